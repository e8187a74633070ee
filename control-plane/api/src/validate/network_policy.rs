//! Network policies.

use super::container::PROTOCOLS;
use super::field::Field;
use super::{Causes, address, selector};

pub(super) fn check(spec: &Field<'_, '_>, causes: &mut Causes) {
    selector::check(&spec.key("podSelector"), causes);
    for (direction, side) in [("ingress", "from"), ("egress", "to")] {
        for rule in spec.key(direction).items() {
            for port in rule.key("ports").items() {
                check_port(&port, causes);
            }
            for peer in rule.key(side).items() {
                check_peer(&peer, causes);
            }
        }
    }
    let types = spec.key("policyTypes");
    if types.list().len() > 2 {
        types.invalid("may not specify more than two policyTypes", causes);
        return;
    }
    for one in types.items() {
        if !["Egress", "Ingress"].contains(&one.text()) {
            causes.push(crate::Cause::not_supported(types.path(), one.value, &["Egress", "Ingress"]));
        }
    }
}

fn check_port(rule: &Field<'_, '_>, causes: &mut Causes) {
    let (port, end) = (rule.key("port"), rule.key("endPort"));
    rule.key("protocol").one_of_if_set(PROTOCOLS, causes);
    port.port_or_name(causes);
    if !end.is_set() {
        return;
    }
    if !port.is_set() {
        end.invalid("may not be specified when `port` is not specified", causes);
    } else if !port.value.is_number() {
        end.invalid("may not be specified when `port` is non-numeric", causes);
    } else {
        if end.int() < port.int() {
            end.invalid("must be greater than or equal to `port`", causes);
        }
        end.port_number(causes);
    }
}

fn check_peer(peer: &Field<'_, '_>, causes: &mut Causes) {
    let block = peer.key("ipBlock");
    let mut selects = false;
    for key in ["podSelector", "namespaceSelector"] {
        selects |= peer.key(key).is_set();
        selector::check(&peer.key(key), causes);
    }
    match (selects, block.is_set()) {
        (false, false) => peer.required("must specify a peer", causes),
        (true, true) => peer.forbidden("may not specify both ipBlock and another peer", causes),
        _ => {}
    }
    let cidr = block.key("cidr");
    if cidr.text().is_empty() {
        return;
    }
    let Some(outer) = address::check_network(&cidr, causes) else { return };
    for hole in block.key("except").items() {
        if let Some(inner) = address::check_network(&hole, causes)
            && (!address::contains(outer, inner) || outer.1 == inner.1)
        {
            hole.invalid("must be a strict subset of `cidr`", causes);
        }
    }
}
