//! The ports that a container names.

use std::collections::BTreeSet;

use super::{Context, List};
use crate::name;
use crate::validate::field::Field;
use crate::validate::{Causes, address};

pub(in crate::validate) const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

pub(super) fn check(container: &Field<'_, '_>, context: &Context<'_>, list: List, causes: &mut Causes) {
    let mut names = BTreeSet::new();
    for port in container.key("ports").items() {
        let given = port.key("name");
        let before = causes.len();
        given.may_be(name::port_name, causes);
        if causes.len() == before && !given.text().is_empty() && !names.insert(given.text()) {
            given.duplicate(causes);
        }
        let (inner, outer) = (port.key("containerPort"), port.key("hostPort"));
        if inner.int() == 0 {
            inner.required("", causes);
        } else {
            inner.port_number(causes);
        }
        if outer.int() != 0 {
            outer.port_number(causes);
        }
        if context.host_network
            && list == List::Regular
            && (context.is_pod || outer.int() != 0)
            && outer.int() != inner.int()
        {
            outer.invalid_as(&outer.int().into(), "must match `containerPort` when `hostNetwork` is true", causes);
        }
        port.key("protocol").one_of(PROTOCOLS, causes);
        let host = port.key("hostIP");
        if !host.text().is_empty() {
            address::check(&host, causes);
        }
    }
}

/// Two containers that run together cannot have one port of the host.
pub(in crate::validate) fn check_host_ports<'v>(
    container: &Field<'v, '_>,
    seen: &mut BTreeSet<(&'v str, &'v str, i64)>,
    causes: &mut Causes,
) {
    for port in container.key("ports").items() {
        let number = port.key("hostPort").int();
        let (protocol, host) = (port.key("protocol").text(), port.key("hostIP").text());
        if number != 0 && !seen.insert((protocol, host, number)) {
            let shown = format!("{protocol}/{host}/{number}");
            causes.push(crate::Cause::duplicate(port.key("hostPort").path(), &shown.into()));
        }
    }
}
