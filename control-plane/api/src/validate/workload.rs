//! What keeps pods running: Deployments, ReplicaSets, StatefulSets, DaemonSets, ReplicationControllers and their histories.

use serde_json::{Map, Value};

use super::field::Field;
use super::{Causes, metadata, name_of_claims, pod, selector, storage, syntax, unchanged};
use crate::selector::Selector;
use crate::{Cause, Object, Row, name};

const UPDATE_TYPES: &[&str] = &["OnDelete", "RollingUpdate"];

pub(super) fn check(row: &Row, object: &Object, causes: &mut Causes) {
    let spec = Field::top(object, "spec");
    match row.kind {
        "ControllerRevision" => {
            if object.get("data").is_none_or(Value::is_null) {
                causes.push(Cause::required("data", "data is mandatory"));
            }
            Field::top(object, "revision").not_negative(causes);
            return;
        }
        "Deployment" => {
            check_common(row, &spec, &[], causes);
            check_deployment(&spec, causes);
        }
        "StatefulSet" => {
            let claims = name_of_claims(&spec);
            check_common(row, &spec, &claims, causes);
            check_stateful_set(&spec, causes);
        }
        "DaemonSet" => {
            check_common(row, &spec, &[], causes);
            check_daemon_strategy(&spec.key("updateStrategy"), causes);
        }
        _ => check_common(row, &spec, &[], causes),
    }
    spec.none_negative(&["replicas", "minReadySeconds", "revisionHistoryLimit"], causes);
}

/// A selector that selects what the template makes, and a template that lives for ever.
fn check_common(row: &Row, spec: &Field<'_, '_>, claims: &[&str], causes: &mut Causes) {
    let (selects, template) = (spec.key("selector"), spec.key("template"));
    let is_controller = row.kind == "ReplicationController";
    let parsed = if is_controller {
        selects.value.as_object().and_then(|map| Selector::from_map(map).ok())
    } else {
        selector::check(&selects, causes);
        Selector::from_value(selects.value).ok()
    };
    let is_empty = if is_controller { metadata::is_nothing(selects.value) } else { selector::is_empty(&selects) };
    if is_controller && is_empty {
        selects.required("", causes);
    } else if selects.is_set() && is_empty {
        let kind = match row.kind {
            // Upstream's word for both.
            "ReplicaSet" => "deployment",
            _ => row.singular,
        };
        selects.invalid(&format!("empty selector is invalid for {kind}"), causes);
    }
    if let Some(parsed) = parsed.filter(|_| !is_empty) {
        matches_template(&parsed, &template, causes);
    }
    pod::check_template(&template, claims, causes);
    let inner = template.key("spec");
    let policy = inner.key("restartPolicy");
    if ["OnFailure", "Never"].contains(&policy.text()) {
        policy.unsupported(&["Always"], causes);
    }
    if inner.key("activeDeadlineSeconds").is_set() {
        let kind = if row.kind == "Deployment" { "ReplicaSet" } else { row.kind };
        let detail = format!("activeDeadlineSeconds in {kind} is not Supported");
        inner.key("activeDeadlineSeconds").forbidden(&detail, causes);
    }
}

pub(super) fn matches_template(selector: &Selector, template: &Field<'_, '_>, causes: &mut Causes) {
    let metadata = template.key("metadata");
    let labels = metadata.key("labels");
    if !selector.matches(|key| labels.value.get(key).and_then(Value::as_str)) {
        let none = Value::Object(Map::new());
        let shown = if labels.is_set() { labels.value } else { &none };
        labels.invalid_as(shown, "`selector` does not match template `labels`", causes);
    }
}

fn check_deployment(spec: &Field<'_, '_>, causes: &mut Causes) {
    let strategy = spec.key("strategy");
    let (kind, rolling) = (strategy.key("type"), strategy.key("rollingUpdate"));
    kind.one_of(&["Recreate", "RollingUpdate"], causes);
    match kind.text() {
        "Recreate" if rolling.is_set() => {
            rolling.forbidden("may not be specified when strategy `type` is 'Recreate'", causes);
        }
        "RollingUpdate" => {
            let (down, up) = (rolling.key("maxUnavailable"), rolling.key("maxSurge"));
            let counts = (share(&down, true, causes), share(&up, false, causes));
            if counts == (Some(0), Some(0)) {
                down.invalid("may not be 0 when `maxSurge` is 0", causes);
            }
        }
        _ => {}
    }
    let deadline = spec.key("progressDeadlineSeconds");
    deadline.not_negative(causes);
    if deadline.number().is_some_and(|deadline| deadline <= spec.key("minReadySeconds").int()) {
        deadline.invalid("must be greater than minReadySeconds", causes);
    }
}

fn check_daemon_strategy(strategy: &Field<'_, '_>, causes: &mut Causes) {
    let (kind, rolling) = (strategy.key("type"), strategy.key("rollingUpdate"));
    kind.one_of(UPDATE_TYPES, causes);
    if kind.text() != "RollingUpdate" {
        return;
    }
    let (down, up) = (rolling.key("maxUnavailable"), rolling.key("maxSurge"));
    match (share(&down, true, causes), share(&up, true, causes)) {
        (Some(0), Some(0)) => down.required("cannot be 0 when maxSurge is 0", causes),
        (Some(less), Some(more)) if less != 0 && more != 0 => {
            up.invalid("may not be set when maxUnavailable is non-zero", causes);
        }
        _ => {}
    }
}

fn check_stateful_set(spec: &Field<'_, '_>, causes: &mut Causes) {
    let policy = spec.key("podManagementPolicy");
    if !["", "OrderedReady", "Parallel"].contains(&policy.text()) {
        policy.invalid("must be 'OrderedReady' or 'Parallel'", causes);
    }
    let strategy = spec.key("updateStrategy");
    let (kind, rolling) = (strategy.key("type"), strategy.key("rollingUpdate"));
    match kind.text() {
        "OnDelete" if rolling.is_set() => {
            rolling.invalid("only allowed for updateStrategy 'RollingUpdate'", causes);
        }
        "RollingUpdate" => {
            rolling.key("partition").not_negative(causes);
            let down = rolling.key("maxUnavailable");
            if down.is_set() && share(&down, true, causes) == Some(0) {
                down.invalid("cannot be 0", causes);
            }
        }
        "" | "OnDelete" => {}
        _ => strategy.invalid("must be 'RollingUpdate' or 'OnDelete'", causes),
    }
    let retention = spec.key("persistentVolumeClaimRetentionPolicy");
    for key in ["whenDeleted", "whenScaled"] {
        retention.key(key).one_of(&["Delete", "Retain"], causes);
    }
    let ordinals = spec.key("ordinals");
    ordinals.key("start").not_negative(causes);
    spec.key("serviceName").may_be(name::dns1123_label, causes);
    for claim in spec.key("volumeClaimTemplates").items() {
        storage::check_claim(&claim.key("spec"), causes);
    }
}

/// A share of pods: a count, or a percentage, which may have to be at most the whole. The number in it, when it is sound.
pub(super) fn share(share: &Field<'_, '_>, at_most_all: bool, causes: &mut Causes) -> Option<i64> {
    if share.value.is_number() {
        share.not_negative(causes);
        return share.number().filter(|count| *count >= 0);
    }
    if !share.value.is_string() {
        return Some(0);
    }
    let faults = syntax::percent(share.text());
    if !faults.is_empty() {
        share.must_be(syntax::percent, causes);
        return None;
    }
    // Beyond what a number holds is beyond the whole.
    let percent = share.text().trim_end_matches('%').parse::<i64>().unwrap_or(i64::MAX);
    if at_most_all && percent > 100 {
        share.invalid("must not be greater than 100%", causes);
    }
    Some(percent)
}

pub(super) fn check_update(row: &Row, new: &Object, old: &Object, causes: &mut Causes) {
    match row.kind {
        "Deployment" | "ReplicaSet" | "DaemonSet" => unchanged(new, old, &["spec", "selector"], causes),
        "StatefulSet" => check_stateful_update(new, old, causes),
        "ControllerRevision" => unchanged(new, old, &["data"], causes),
        _ => {}
    }
}

fn check_stateful_update(new: &Object, old: &Object, causes: &mut Causes) {
    const MUTABLE: &[&str] = &[
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ];
    let fixed = |object: &Object| {
        let mut spec = object.get("spec").and_then(Value::as_object).cloned().unwrap_or_default();
        spec.retain(|key, _| !MUTABLE.contains(&key.as_str()));
        spec
    };
    if fixed(new) != fixed(old) {
        let names: Vec<String> = MUTABLE.iter().map(|name| format!("'{name}'")).collect();
        let (last, first) = names.split_last().map_or(("", &[][..]), |(last, first)| (last.as_str(), first));
        let detail =
            format!("updates to statefulset spec for fields other than {} and {last} are forbidden", first.join(", "));
        causes.push(Cause::forbidden("spec", &detail));
    }
}

/// Counts in a status: none negative, and none above those that it is a part of.
pub(super) fn check_status(row: &Row, new: &Object, causes: &mut Causes) {
    let status = Field::top(new, "status");
    for (key, value) in status.entries() {
        if value.number().is_some_and(|number| number < 0) {
            status.key(key).not_negative(causes);
        }
    }
    if !["Deployment", "ReplicaSet", "ReplicationController", "StatefulSet"].contains(&row.kind) {
        return;
    }
    let count = |key: &str| status.key(key).int();
    for key in ["updatedReplicas", "readyReplicas", "availableReplicas", "fullyLabeledReplicas", "currentReplicas"] {
        if count(key) > count("replicas") {
            status.key(key).invalid("cannot be greater than status.replicas", causes);
        }
    }
    if count("availableReplicas") > count("readyReplicas") {
        status.key("availableReplicas").invalid("cannot be greater than readyReplicas", causes);
    }
}
