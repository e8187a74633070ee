//! What may be said of a pod that runs: no state that ended comes back, and no address that is not a pod's.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::validate::field::Field;
use crate::validate::{Causes, IMMUTABLE, address};
use crate::{Cause, Object, name};

/// Conditions that are not the user's own.
const OWN_CONDITIONS: &[&str] = &["Initialized", "PodScheduled", "Ready"];

pub(in crate::validate) fn check(new: &Object, old: &Object, causes: &mut Causes) {
    super::annotations::check_update(&Field::top(new, "metadata"), &Field::top(old, "metadata"), causes);
    let (status, before) = (Field::top(new, "status"), Field::top(old, "status"));
    if !status.is_set() {
        return;
    }
    for condition in status.key("conditions").items() {
        let kind = condition.key("type").text();
        if !OWN_CONDITIONS.contains(&kind) {
            for fault in name::qualified(kind) {
                condition.key("Type").invalid_as(&kind.into(), &fault, causes);
            }
        }
    }
    let nominated = status.key("nominatedNodeName");
    if nominated.text() != before.key("nominatedNodeName").text() {
        nominated.may_be(name::dns1123_subdomain, causes);
    }
    let class = status.key("qosClass");
    if before.key("qosClass").is_set() && class.value != before.key("qosClass").value {
        class.invalid(IMMUTABLE, causes);
    }
    let spec = Field::top(old, "spec");
    check_states(&status, &before, &spec, causes);
    check_addresses(&spec, &status, causes);
}

/// A container that ended, and that its pod's policy does not start again, stays ended.
fn check_states(status: &Field<'_, '_>, before: &Field<'_, '_>, spec: &Field<'_, '_>, causes: &mut Causes) {
    let policy = spec.key("restartPolicy").text();
    let restarting = restarting(spec);
    for list in ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"] {
        let policy = if list == "ephemeralContainerStatuses" { "Never" } else { policy };
        if policy == "Always" {
            continue;
        }
        let now = status.key(list);
        let left: BTreeSet<&str> = now
            .items()
            .filter(|one| !one.key("state").key("terminated").is_set())
            .map(|one| one.key("name").text())
            .collect();
        for (index, one) in before.key(list).items().enumerate() {
            let state = one.key("state");
            let ended = state.key("terminated");
            let given = one.key("name").text();
            let starts_again = ended.key("exitCode").int() != 0 && policy == "OnFailure";
            if ended.is_set() && !starts_again && left.contains(given) && !restarting.contains(given) {
                let place = now.index(index);
                place.key("state").forbidden("may not be transitioned to non-terminated state", causes);
            }
        }
    }
}

/// The containers that have a policy of their own that may start them again.
fn restarting<'v>(spec: &Field<'v, '_>) -> BTreeSet<&'v str> {
    let mut names = BTreeSet::new();
    for list in ["initContainers", "containers"] {
        for one in spec.key(list).items() {
            let own = one.key("restartPolicy");
            let restarts = own.is_set() && own.text() != "Never";
            if restarts || !one.key("restartPolicyRules").list().is_empty() {
                names.insert(one.key("name").text());
            }
        }
    }
    names
}

/// The addresses of a pod: each one of its family, and none that means the node or its link. What a pod's status says is where
/// Services and the API server's proxy send their traffic; a pod on the host's network has the host's own.
fn check_addresses(spec: &Field<'_, '_>, status: &Field<'_, '_>, causes: &mut Causes) {
    let on_host = spec.key("hostNetwork").is_true();
    let own = status.key("podIP");
    if !own.text().is_empty() {
        judge(&own, on_host, causes);
    }
    check_list(&status.key("podIPs"), on_host, causes);
    let hosts = status.key("hostIPs");
    check_list(&hosts, true, causes);
    let first = hosts.index(0);
    if !hosts.list().is_empty() && first.key("ip").text() != status.key("hostIP").text() {
        first.key("ip").invalid("must be equal to `hostIP`", causes);
    }
}

fn judge(field: &Field<'_, '_>, on_host: bool, causes: &mut Causes) -> Option<IpAddr> {
    let address = address::check(field, causes)?;
    // A host without any other address is known by its loopback one.
    if !on_host && let Some(why) = address::special(address) {
        field.invalid(&why, causes);
    }
    Some(address)
}

fn check_list(list: &Field<'_, '_>, on_host: bool, causes: &mut Causes) {
    let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
    for one in list.items() {
        let field = one.key("ip");
        if field.text().is_empty() {
            field.invalid("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)", causes);
            continue;
        }
        found.extend(judge(&field, on_host, causes));
        if !seen.insert(field.text()) {
            causes.push(Cause::duplicate(one.path(), one.value));
        }
    }
    if !address::one_of_each_family(&found) {
        list.invalid("may specify no more than one IP for each IP family", causes);
    }
}
