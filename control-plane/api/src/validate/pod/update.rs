//! What may change in a pod that exists.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::SECONDS_MAX;
use crate::validate::Causes;
use crate::validate::field::Field;
use crate::{Cause, Object};

const MUTABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
const MIRROR: &str = "kubernetes.io/config.mirror";

pub(in crate::validate) fn check(subresource: &str, new: &Object, old: &Object, causes: &mut Causes) {
    super::annotations::check_update(&Field::top(new, "metadata"), &Field::top(old, "metadata"), causes);
    match subresource {
        "ephemeralcontainers" => return check_ephemeral(new, old, causes),
        // No part changes the resources of a container that runs: a resize that were stored would say what is not so.
        "resize" => {
            if new.get("spec") != old.get("spec") {
                causes.push(Cause::forbidden("spec", "Pod running on node without support for resize"));
            }
            return;
        }
        _ => {}
    }
    let (spec, before) = (Field::top(new, "spec"), Field::top(old, "spec"));
    for list in ["containers", "initContainers"] {
        if spec.key(list).list().len() != before.key(list).list().len() {
            return spec.key(list).forbidden("pod updates may not add or remove containers", causes);
        }
    }
    check_deadline(&spec, &before, causes);
    check_tolerations(&spec.key("tolerations"), &before.key("tolerations"), causes);
    check_gates(&spec.key("schedulingGates"), &before.key("schedulingGates"), causes);
    if spec.value == before.value {
        return;
    }
    let (Some(map), Some(then)) = (spec.value.as_object(), before.value.as_object()) else { return };
    let mut rest = map.clone();
    for list in ["containers", "initContainers"] {
        put_back_images(&mut rest, then, list);
    }
    for key in ["activeDeadlineSeconds", "schedulingGates", "tolerations", "ephemeralContainers"] {
        put_back(&mut rest, then, key);
    }
    let grace = "terminationGracePeriodSeconds";
    if before.key(grace).int() < 0 && spec.key(grace).int() == 1 {
        put_back(&mut rest, then, grace);
    }
    if !before.key("schedulingGates").list().is_empty() {
        check_gated(&spec, &before, causes);
        put_back(&mut rest, then, "nodeSelector");
        put_back_node_affinity(&mut rest, then);
    }
    if &rest != then {
        causes.push(Cause::forbidden("spec", MUTABLE));
    }
}

/// What `key` was before, or its absence.
fn put_back(map: &mut Map<String, Value>, before: &Map<String, Value>, key: &str) {
    match before.get(key) {
        Some(value) => map.insert(key.to_owned(), value.clone()),
        None => map.remove(key),
    };
}

fn put_back_images(map: &mut Map<String, Value>, before: &Map<String, Value>, list: &str) {
    let then = before.get(list).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let now = map.get_mut(list).and_then(Value::as_array_mut);
    for (one, old) in now.into_iter().flatten().zip(then) {
        if let (Some(one), Some(old)) = (one.as_object_mut(), old.as_object()) {
            put_back(one, old, "image");
        }
    }
}

fn put_back_node_affinity(map: &mut Map<String, Value>, before: &Map<String, Value>) {
    let old = before.get("affinity").and_then(Value::as_object).cloned().unwrap_or_default();
    let mut now = map.get("affinity").and_then(Value::as_object).cloned().unwrap_or_default();
    put_back(&mut now, &old, "nodeAffinity");
    if now.is_empty() && !before.contains_key("affinity") {
        map.remove("affinity");
    } else {
        map.insert("affinity".into(), now.into());
    }
}

/// A deadline may be set, and come closer.
fn check_deadline(spec: &Field<'_, '_>, before: &Field<'_, '_>, causes: &mut Causes) {
    let deadline = spec.key("activeDeadlineSeconds");
    match (deadline.number(), before.key("activeDeadlineSeconds").number()) {
        (Some(now), _) if !(0..=SECONDS_MAX).contains(&now) => deadline.within(&(0..=SECONDS_MAX), causes),
        (Some(now), Some(then)) if now > then => {
            deadline.invalid("must be less than or equal to previous value", causes);
        }
        (None, Some(_)) => deadline.invalid("must not update from a positive integer to nil value", causes),
        _ => {}
    }
}

/// Tolerations are added, and the seconds of one may change.
fn check_tolerations(now: &Field<'_, '_>, before: &Field<'_, '_>, causes: &mut Causes) {
    if now.value == before.value {
        return;
    }
    let without_seconds = |one: &Value| {
        let mut map = one.as_object().cloned().unwrap_or_default();
        map.remove("tolerationSeconds");
        Value::Object(map).to_string()
    };
    let kept: BTreeSet<String> = now.list().iter().map(without_seconds).collect();
    if before.list().iter().any(|one| !kept.contains(&without_seconds(one))) {
        now.forbidden("existing toleration can not be modified except its tolerationSeconds", causes);
    }
}

fn check_gates(now: &Field<'_, '_>, before: &Field<'_, '_>, causes: &mut Causes) {
    let known: BTreeSet<&str> = before.items().map(|gate| gate.key("name").text()).collect();
    for gate in now.items() {
        let given = gate.key("name");
        if !known.contains(given.text()) {
            let detail = format!("only deletion is allowed, but found new scheduling gate '{}'", given.text());
            given.forbidden(&detail, causes);
        }
    }
}

/// A gated pod waits for its place: where it may go can be narrowed, never widened.
fn check_gated(spec: &Field<'_, '_>, before: &Field<'_, '_>, causes: &mut Causes) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    let (now, then) = (spec.key("nodeSelector"), before.key("nodeSelector"));
    if then.entries().any(|(key, value)| now.key(key).value != value.value) {
        let detail = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        now.invalid(detail, causes);
    }
    let terms = |spec: &Field<'_, '_>| {
        let affinity = spec.value.pointer(&format!("/affinity/nodeAffinity/{REQUIRED}/nodeSelectorTerms"));
        affinity.and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let (now, then) = (terms(spec), terms(before));
    let affinity = spec.key("affinity");
    let nodes = affinity.key("nodeAffinity");
    let required = nodes.key(REQUIRED);
    let place = required.key("nodeSelectorTerms");
    if !then.is_empty() && now.len() != then.len() {
        let detail = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        return place.invalid(detail, causes);
    }
    for (index, (now, then)) in now.iter().zip(&then).enumerate() {
        if !only_adds(now, then) {
            place.index(index).invalid("only additions are allowed (no mutations or deletions)", causes);
        }
    }
}

/// Whether a term begins with all that it said before.
fn only_adds(now: &Value, then: &Value) -> bool {
    let list = |term: &Value, key: &str| term.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let keys = ["matchExpressions", "matchFields"];
    let was_empty = keys.iter().all(|key| list(then, key).is_empty());
    let is_empty = keys.iter().all(|key| list(now, key).is_empty());
    // An empty term selects nothing: anything that is added to it widens.
    (!was_empty || is_empty) && keys.iter().all(|key| list(now, key).starts_with(&list(then, key)))
}

fn check_ephemeral(new: &Object, old: &Object, causes: &mut Causes) {
    const FIELD: &str = "spec.ephemeralContainers";
    if old.annotation(MIRROR).is_some() {
        causes.push(Cause::forbidden("", "static pods do not support ephemeral containers"));
        return;
    }
    let now: BTreeMap<&str, &Value> = new
        .list_at(&["spec", "ephemeralContainers"])
        .iter()
        .filter_map(|one| Some((one.get("name")?.as_str()?, one)))
        .collect();
    for before in old.list_at(&["spec", "ephemeralContainers"]) {
        let given = before.get("name").and_then(Value::as_str).unwrap_or_default();
        let what = match now.get(given) {
            None => "removed",
            Some(one) if *one != before => "changed",
            Some(_) => continue,
        };
        causes.push(Cause::forbidden(FIELD, &format!("existing ephemeral containers {given:?} may not be {what}\n")));
    }
}
