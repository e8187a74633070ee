//! Nodes, runtime and priority classes, leases: what belongs to the cluster itself.

use std::collections::BTreeSet;

use super::field::Field;
use super::pod::EFFECTS;
use super::{Causes, address, metadata, resources, unchanged};
use crate::{Cause, Object, name};

/// Larger priorities are for the system's own classes.
const PRIORITY_MAX: i64 = 1_000_000_000;

pub(super) fn check(object: &Object, causes: &mut Causes) {
    let spec = Field::top(object, "spec");
    let taints = spec.key("taints");
    // Upstream reports them so.
    let place = Field::root("metadata.taints", taints.value);
    let mut seen = BTreeSet::new();
    for taint in place.items() {
        let (key, effect) = (taint.key("key"), taint.key("effect"));
        key.must_be(name::qualified, causes);
        taint.key("value").may_be(name::label_value, causes);
        effect.one_of(EFFECTS, causes);
        if !seen.insert((key.text(), effect.text())) {
            let mut cause = Cause::duplicate(taint.path(), taint.value);
            cause.message.push_str(": taints must be unique by key and effect pair");
            causes.push(cause);
        }
    }
    check_networks(&spec.key("podCIDRs"), causes);
    check_amounts(object, causes);
}

fn check_networks(networks: &Field<'_, '_>, causes: &mut Causes) {
    let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
    for network in networks.items() {
        found.extend(address::check_network(&network, causes).map(|(address, _)| address));
        if !seen.insert(network.text()) {
            network.duplicate(causes);
        }
    }
    if !address::one_of_each_family(&found) {
        networks.invalid("may specify no more than one CIDR for each IP family", causes);
    }
}

fn check_amounts(object: &Object, causes: &mut Causes) {
    let status = Field::top(object, "status");
    for key in ["capacity", "allocatable"] {
        for (resource, amount) in status.key(key).entries() {
            resources::check_amount(resource, &amount, causes);
        }
    }
}

pub(super) fn check_update(new: &Object, old: &Object, causes: &mut Causes) {
    let networks = |object: &Object| object.list_at(&["spec", "podCIDRs"]).to_vec();
    if !networks(old).is_empty() && networks(old) != networks(new) {
        let detail = "node updates may not change podCIDR except from \"\" to valid";
        causes.push(Cause::forbidden("spec.podCIDRs", detail));
    }
    let provider = |object: &Object| object.str_at(&["spec", "providerID"]).unwrap_or_default().to_owned();
    if !provider(old).is_empty() && provider(old) != provider(new) {
        let detail = "node updates may not change providerID except from \"\" to valid";
        causes.push(Cause::forbidden("spec.providerID", detail));
    }
}

pub(super) fn check_status(new: &Object, causes: &mut Causes) {
    check_amounts(new, causes);
    let status = Field::top(new, "status");
    let mut seen = BTreeSet::new();
    for one in status.key("addresses").items() {
        if !seen.insert((one.key("type").text(), one.key("address").text())) {
            causes.push(Cause::duplicate(one.path(), one.value));
        }
    }
}

pub(super) fn check_namespace(object: &Object, causes: &mut Causes) {
    let spec = Field::top(object, "spec");
    let finalizers = spec.key("finalizers");
    for finalizer in finalizers.items() {
        for fault in name::qualified(finalizer.text()) {
            finalizer.invalid_as(&finalizer.text().into(), &fault, causes);
        }
        metadata::standard_finalizer(&finalizer, causes);
    }
}

/// Levels and versions of Pod Security are known ones: one that was stored before stays.
pub(super) fn check_levels(new: &Object, old: Option<&Object>, causes: &mut Causes) {
    const PREFIX: &str = "pod-security.kubernetes.io/";
    for (key, value) in new.labels().filter(|(key, value)| old.and_then(|old| old.label(key)) != Some(*value)) {
        let detail = match key.strip_prefix(PREFIX) {
            Some("enforce" | "audit" | "warn") if !["privileged", "baseline", "restricted"].contains(&value) => {
                "must be one of privileged, baseline, restricted"
            }
            Some("enforce-version" | "audit-version" | "warn-version") if !is_release(value) => {
                "must be \"latest\" or \"v1.x\""
            }
            _ => continue,
        };
        causes.push(Cause::invalid_str(format!("metadata.labels[{key}]"), value, detail));
    }
}

fn is_release(text: &str) -> bool {
    let minor = text.strip_prefix("v1.");
    text == "latest" || minor.is_some_and(|minor| minor.parse::<u16>().is_ok() && !minor.starts_with('+'))
}

pub(super) fn check_namespace_status(new: &Object, causes: &mut Causes) {
    let (wanted, detail) = if new.is_deleting() {
        ("Terminating", "may only be 'Terminating' if `deletionTimestamp` is not empty")
    } else {
        ("Active", "may only be 'Active' if `deletionTimestamp` is empty")
    };
    let status = Field::top(new, "status");
    let phase = status.key("phase");
    if phase.text() != wanted {
        status.place("Phase", phase.value).invalid(detail, causes);
    }
}

pub(super) fn check_priority_class(object: &Object, is_new: bool, causes: &mut Causes) {
    let own = ["system-node-critical", "system-cluster-critical"].contains(&object.name());
    if is_new && object.name().starts_with("system-") && !own {
        let detail =
            "priority class names with 'system-' prefix are reserved for system use only. error: is not a system class";
        causes.push(Cause::forbidden("metadata.name", detail));
    }
    if !own && object.i64_at(&["value"]).unwrap_or(0) > PRIORITY_MAX {
        let detail = format!("maximum allowed value of a user defined priority is {PRIORITY_MAX}");
        causes.push(Cause::forbidden("value", &detail));
    }
    Field::top(object, "preemptionPolicy").one_of_if_set(&["PreemptLowerPriority", "Never"], causes);
}

pub(super) fn check_priority_class_update(new: &Object, old: &Object, causes: &mut Causes) {
    if new.i64_at(&["value"]).unwrap_or(0) != old.i64_at(&["value"]).unwrap_or(0) {
        causes.push(Cause::forbidden("value", "may not be changed in an update."));
    }
    unchanged(new, old, &["preemptionPolicy"], causes);
}

pub(super) fn check_runtime_class(object: &Object, causes: &mut Causes) {
    Field::top(object, "handler").may_be(name::dns1123_label, causes);
    let overhead = Field::top(object, "overhead");
    resources::check_amounts(resources::Use::Container, &overhead.key("podFixed"), causes);
    let scheduling = Field::top(object, "scheduling");
    metadata::labels(&scheduling.key("nodeSelector"), causes);
}

pub(super) fn check_runtime_class_update(new: &Object, old: &Object, causes: &mut Causes) {
    unchanged(new, old, &["handler"], causes);
}

pub(super) fn check_lease(spec: &Field<'_, '_>, causes: &mut Causes) {
    let seconds = spec.key("leaseDurationSeconds");
    if seconds.is_set() && seconds.int() <= 0 {
        seconds.invalid("must be greater than 0", causes);
    }
    spec.key("leaseTransitions").not_negative(causes);
    let strategy = spec.key("strategy");
    if strategy.is_set() {
        strategy.may_be(name::qualified, causes);
    } else if !spec.key("preferredHolder").text().is_empty() {
        let detail = "may only be specified if `strategy` is defined";
        spec.key("preferredHolder").forbidden(detail, causes);
    }
}
