//! Jobs: how many pods, how often again, and when it is enough.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::field::Field;
use super::{Causes, IMMUTABLE, ingress, pod, selector, unchanged, workload};
use crate::selector::Selector;
use crate::{Cause, Object, name};

const RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;
const INDEXES_MAX: i64 = 100_000;
/// With more indexes than those above, so many may run and fail.
const PARALLEL_OF_MANY_MAX: i64 = 10_000;
const MANAGER_BYTES_MAX: usize = 63;
const ACTIONS: &[&str] = &["Count", "FailIndex", "FailJob", "Ignore"];
const LABEL: &str = "batch.kubernetes.io/controller-uid";

pub(super) fn check(object: &Object, is_new: bool, causes: &mut Causes) {
    let spec = Field::top(object, "spec");
    check_spec(&spec, causes);
    let selects = spec.key("selector");
    if is_new && !spec.key("manualSelector").is_true() && selects.is_set() {
        let own =
            selects.key("matchLabels").value.as_object().is_some_and(|labels| {
                labels.len() == 1 && labels.get(LABEL).and_then(Value::as_str) == Some(object.uid())
            });
        if !own || !selects.key("matchExpressions").list().is_empty() {
            selects.invalid("`selector` not auto-generated", causes);
        }
    }
    if let Ok(parsed) = Selector::from_value(selects.value) {
        workload::matches_template(&parsed, &spec.key("template"), causes);
    }
    // An indexed job's pods are known by the job's name and their index.
    if spec.key("completionMode").text() == "Indexed" && spec.key("completions").int() > 0 {
        let last = format!("{}-{}", object.name(), spec.key("completions").int().saturating_sub(1));
        for fault in name::dns1123_label(&last) {
            let detail = format!("will not able to create pod with invalid DNS label: {fault}");
            causes.push(Cause::invalid_str("metadata.name", object.name(), &detail));
        }
    }
}

pub(super) fn check_spec(spec: &Field<'_, '_>, causes: &mut Causes) {
    let numbers = [
        "completions",
        "parallelism",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "activeDeadlineSeconds",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ];
    spec.none_negative(&numbers, causes);
    check_indexes(spec, causes);
    let manager = spec.key("managedBy");
    if manager.is_set() {
        manager.must_be(ingress::domain_path, causes);
        if manager.text().len() > MANAGER_BYTES_MAX {
            manager.too_long(MANAGER_BYTES_MAX, causes);
        }
    }
    selector::check(&spec.key("selector"), causes);
    let template = spec.key("template");
    pod::check_template(&template, &[], causes);
    let inner = template.key("spec");
    let policy = inner.key("restartPolicy");
    if ["", "Always"].contains(&policy.text()) {
        policy.required("valid values: \"OnFailure\", \"Never\"", causes);
    }
    let replacement = spec.key("podReplacementPolicy");
    let failures = spec.key("podFailurePolicy");
    if failures.is_set() {
        replacement.one_of(&["Failed"], causes);
        if !["", "Never"].contains(&policy.text()) {
            policy.invalid("only \"Never\" is supported when podFailurePolicy is specified", causes);
        }
        check_failures(spec, &failures, causes);
    } else {
        replacement.one_of(&["Failed", "TerminatingOrFailed"], causes);
    }
    check_success(spec, causes);
}

fn check_indexes(spec: &Field<'_, '_>, causes: &mut Causes) {
    let mode = spec.key("completionMode");
    mode.one_of(&["Indexed", "NonIndexed"], causes);
    let (completions, parallel) = (spec.key("completions"), spec.key("parallelism"));
    let (per_index, failed) = (spec.key("backoffLimitPerIndex"), spec.key("maxFailedIndexes"));
    if mode.text() != "Indexed" {
        for key in [&per_index, &failed] {
            if key.is_set() {
                key.invalid("requires indexed completion mode", causes);
            }
        }
        if spec.key("successPolicy").is_set() {
            spec.key("successPolicy").invalid("requires indexed completion mode", causes);
        }
        return;
    }
    if !completions.is_set() {
        completions.required("when completion mode is Indexed", causes);
    }
    if parallel.int() > INDEXES_MAX {
        let detail = format!("must be less than or equal to {INDEXES_MAX} when completion mode is Indexed");
        parallel.invalid(&detail, causes);
    }
    if failed.is_set() && !per_index.is_set() {
        per_index.required("when maxFailedIndexes is specified", causes);
    }
    if failed.int() > completions.int() {
        failed.invalid("must be less than or equal to completions", causes);
    }
    if failed.int() > INDEXES_MAX {
        failed.invalid(&format!("must be less than or equal to {INDEXES_MAX}"), causes);
    }
    if per_index.is_set() && completions.int() > INDEXES_MAX {
        if !failed.is_set() {
            let detail = format!("must be specified when completions is above {INDEXES_MAX}");
            failed.required(&detail, causes);
        }
        for (field, what) in [(&parallel, "parallelism"), (&failed, "maxFailedIndexes")] {
            if field.int() > PARALLEL_OF_MANY_MAX {
                let detail = format!(
                    "{what} must be less than or equal to {PARALLEL_OF_MANY_MAX} when completions are above {INDEXES_MAX} and used with backoff limit per index"
                );
                field.invalid(&detail, causes);
            }
        }
    }
}

fn check_failures(spec: &Field<'_, '_>, policy: &Field<'_, '_>, causes: &mut Causes) {
    let rules = policy.key("rules");
    if rules.list().len() > RULES_MAX {
        causes.push(Cause::too_many(rules.path(), rules.list().len(), RULES_MAX));
        return;
    }
    let template = spec.key("template");
    let inner = template.key("spec");
    let mut names = BTreeSet::new();
    for list in ["containers", "initContainers"] {
        names.extend(inner.key(list).items().map(|one| one.key("name").text()));
    }
    for rule in rules.items() {
        let action = rule.key("action");
        action.one_of(ACTIONS, causes);
        if action.text() == "FailIndex" && !spec.key("backoffLimitPerIndex").is_set() {
            action.invalid("requires the backoffLimitPerIndex to be set", causes);
        }
        let (codes, conditions) = (rule.key("onExitCodes"), rule.key("onPodConditions"));
        match (codes.is_set(), !conditions.list().is_empty()) {
            (true, true) => {
                rule.invalid("specifying both OnExitCodes and OnPodConditions is not supported", causes);
            }
            (false, false) => {
                rule.invalid("specifying one of OnExitCodes and OnPodConditions is required", causes);
            }
            _ => {}
        }
        if codes.is_set() {
            check_codes(&codes, &names, causes);
        }
        if conditions.list().len() > RULES_MAX {
            causes.push(Cause::too_many(conditions.path(), conditions.list().len(), RULES_MAX));
        }
        for condition in conditions.items().take(RULES_MAX) {
            condition.key("type").may_be(name::qualified, causes);
            condition.key("status").one_of(&["False", "True", "Unknown"], causes);
        }
    }
}

fn check_codes(codes: &Field<'_, '_>, containers: &BTreeSet<&str>, causes: &mut Causes) {
    let (operator, values) = (codes.key("operator"), codes.key("values"));
    operator.one_of(&["In", "NotIn"], causes);
    let container = codes.key("containerName");
    if container.is_set() && !containers.contains(container.text()) {
        let detail = "must be one of the container or initContainer names in the pod template";
        container.invalid(detail, causes);
    }
    let count = values.list().len();
    if count > EXIT_CODES_MAX {
        causes.push(Cause::too_many(values.path(), count, EXIT_CODES_MAX));
        return;
    }
    let (mut seen, mut ordered, mut last) = (BTreeSet::new(), true, i64::MIN);
    for value in values.items() {
        if operator.text() == "In" && value.int() == 0 {
            value.invalid("must not be 0 for the In operator", causes);
        }
        if !seen.insert(value.int()) {
            value.duplicate(causes);
        }
        ordered &= value.int() >= last;
        last = value.int();
    }
    if !ordered {
        values.invalid("must be ordered", causes);
    }
}

fn check_success(spec: &Field<'_, '_>, causes: &mut Causes) {
    let policy = spec.key("successPolicy");
    let rules = policy.key("rules");
    if rules.list().len() > RULES_MAX {
        causes.push(Cause::too_many(rules.path(), rules.list().len(), RULES_MAX));
        return;
    }
    for rule in rules.items() {
        let (count, indexes) = (rule.key("succeededCount"), rule.key("succeededIndexes"));
        if !count.is_set() && !indexes.is_set() {
            rule.required("at least one of succeededCount or succeededIndexes must be specified", causes);
        }
        count.not_negative(causes);
        if count.int() > spec.key("completions").int() {
            let detail = format!(
                "must be less than or equal to {} (the number of specified completions)",
                spec.key("completions").int()
            );
            count.invalid(&detail, causes);
        }
        if indexes.is_set()
            && let Err(why) = indexes_fault(indexes.text(), spec.key("completions").int())
        {
            indexes.invalid(&format!("error parsing succeededIndexes: {why}"), causes);
        }
    }
}

/// `1,3-5`: rising numbers and ranges below the number of completions.
fn indexes_fault(text: &str, completions: i64) -> Result<(), String> {
    let mut next = 0;
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.parse::<u32>().map(i64::from);
        let (Ok(first), Ok(last)) = (number(first), number(last)) else {
            return Err(format!("cannot convert string to integer for index: {part:?}"));
        };
        if first < next || last < first {
            return Err(format!("non-increasing order, previous: {}, current: {first}", next.saturating_sub(1)));
        }
        if last >= completions {
            return Err(format!("too large index: {part:?}"));
        }
        next = last.saturating_add(1);
    }
    Ok(())
}

pub(super) fn check_update(new: &Object, old: &Object, causes: &mut Causes) {
    for key in ["selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"]
    {
        unchanged(new, old, &["spec", key], causes);
    }
    let template = |object: &Object, directives: bool| {
        let mut template = object.at(&["spec", "template"]).and_then(Value::as_object).cloned().unwrap_or_default();
        if directives {
            without_directives(&mut template);
        }
        template
    };
    // A job that has not begun may still be told where its pods go.
    let waits = old.bool_at(&["spec", "suspend"]) == Some(true) && old.at(&["status", "startTime"]).is_none();
    if template(new, waits) != template(old, waits) {
        let shown = new.at(&["spec", "template"]).unwrap_or(&Value::Null);
        causes.push(Cause::invalid("spec.template", shown, IMMUTABLE));
    }
    let indexed = new.str_at(&["spec", "completionMode"]) == Some("Indexed");
    let (now, before) = (new.at(&["spec", "completions"]), old.at(&["spec", "completions"]));
    let elastic = indexed && now == new.at(&["spec", "parallelism"]);
    if now != before && !elastic {
        causes.push(Cause::invalid("spec.completions", now.unwrap_or(&Value::Null), IMMUTABLE));
    }
}

/// What of a template says where pods go, and what they are called by.
fn without_directives(template: &mut Map<String, Value>) {
    if let Some(metadata) = template.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("labels");
        metadata.remove("annotations");
    }
    if template.get("metadata").and_then(Value::as_object).is_some_and(Map::is_empty) {
        template.remove("metadata");
    }
    let Some(spec) = template.get_mut("spec").and_then(Value::as_object_mut) else { return };
    for key in ["nodeSelector", "tolerations", "schedulingGates"] {
        spec.remove(key);
    }
    if let Some(affinity) = spec.get_mut("affinity").and_then(Value::as_object_mut) {
        affinity.remove("nodeAffinity");
        if affinity.is_empty() {
            spec.remove("affinity");
        }
    }
}
