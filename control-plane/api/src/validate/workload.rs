//! What makes pods: selectors that match their templates, strategies, and what stays fixed.

use serde_json::Value;

use super::affinity::check_selector;
use super::{Causes, IMMUTABLE, items, metadata, not_negative, one_of, pod, storage, text, unchanged};
use crate::selector::Selector;
use crate::{Cause, Object, Row};

pub(super) fn check(row: &Row, object: &Object, causes: &mut Causes) {
    let spec = object.get("spec").unwrap_or(&Value::Null);
    match row.kind {
        "ControllerRevision" => {
            if object.i64_at(&["revision"]).is_some_and(|revision| revision < 0) {
                causes.push(Cause::invalid("revision", &object.as_map()["revision"], super::NOT_NEGATIVE));
            }
        }
        "Job" => check_job(spec, "spec", causes),
        "CronJob" => check_cron_job(spec, causes),
        _ => check_replicated(row, spec, causes),
    }
}

fn check_replicated(row: &Row, spec: &Value, causes: &mut Causes) {
    not_negative(spec, "spec", &["replicas", "minReadySeconds", "revisionHistoryLimit"], causes);
    let template = &spec["template"];
    check_template(template, "spec.template", causes);
    // A controller's selector is a plain map, the others' a LabelSelector.
    let selector = match row.kind {
        "ReplicationController" => spec["selector"].as_object().and_then(|map| Selector::from_map(map).ok()),
        _ => {
            check_selector(&spec["selector"], "spec.selector", causes);
            Selector::from_value(&spec["selector"]).ok()
        }
    };
    if let Some(selector) = selector {
        let labels = &template["metadata"]["labels"];
        if selector.is_empty() {
            let detail = format!("empty selector is invalid for {}", row.singular);
            causes.push(Cause::invalid("spec.selector", &spec["selector"], &detail));
        } else if !selector.matches(|key| labels.get(key).and_then(Value::as_str)) {
            let shown = if labels.is_null() { Value::Object(serde_json::Map::new()) } else { labels.clone() };
            let detail = "`selector` does not match template `labels`";
            causes.push(Cause::invalid("spec.template.metadata.labels", &shown, detail));
        }
    }
    let policy = text(&template["spec"], "restartPolicy");
    if !policy.is_empty() && policy != "Always" {
        causes.push(Cause::not_supported("spec.template.spec.restartPolicy", &policy.into(), &["Always"]));
    }
    if template["spec"]["activeDeadlineSeconds"].is_number() {
        let detail = format!("activeDeadlineSeconds in {} is not Supported", row.kind);
        causes.push(Cause::forbidden("spec.template.spec.activeDeadlineSeconds", &detail));
    }
    match row.kind {
        "Deployment" => check_strategy(spec, causes),
        "DaemonSet" => {
            one_of(&spec["updateStrategy"], "spec.updateStrategy", "type", &["OnDelete", "RollingUpdate"], causes);
            check_rolling(&spec["updateStrategy"], "spec.updateStrategy", causes);
        }
        "StatefulSet" => {
            one_of(&spec["updateStrategy"], "spec.updateStrategy", "type", &["OnDelete", "RollingUpdate"], causes);
            one_of(spec, "spec", "podManagementPolicy", &["OrderedReady", "Parallel"], causes);
            not_negative(
                &spec["updateStrategy"]["rollingUpdate"],
                "spec.updateStrategy.rollingUpdate",
                &["partition"],
                causes,
            );
            for (index, claim) in items(spec, "volumeClaimTemplates").iter().enumerate() {
                storage::check_claim(&claim["spec"], &format!("spec.volumeClaimTemplates[{index}].spec"), causes);
            }
        }
        _ => {}
    }
}

fn check_template(template: &Value, path: &str, causes: &mut Causes) {
    metadata::labels(template["metadata"].get("labels"), &format!("{path}.metadata.labels"), causes);
    pod::check(&template["spec"], &format!("{path}.spec"), causes);
}

fn check_strategy(spec: &Value, causes: &mut Causes) {
    const PATH: &str = "spec.strategy";
    let strategy = &spec["strategy"];
    one_of(strategy, PATH, "type", &["Recreate", "RollingUpdate"], causes);
    if text(strategy, "type") == "Recreate" && strategy["rollingUpdate"].is_object() {
        let detail = "may not be specified when strategy `type` is 'Recreate'";
        causes.push(Cause::forbidden(format!("{PATH}.rollingUpdate"), detail));
    } else if text(strategy, "type") == "RollingUpdate" {
        check_rolling(strategy, PATH, causes);
    }
    not_negative(spec, "spec", &["progressDeadlineSeconds"], causes);
    let (deadline, ready) = (&spec["progressDeadlineSeconds"], spec["minReadySeconds"].as_i64().unwrap_or(0));
    if deadline.as_i64().is_some_and(|deadline| deadline <= ready) {
        causes.push(Cause::invalid("spec.progressDeadlineSeconds", deadline, "must be greater than minReadySeconds"));
    }
}

/// A share of pods: a count, or a percentage. The number in it, when it is sound.
fn share(value: &Value, path: &str, causes: &mut Causes) -> Option<i64> {
    match value {
        Value::Number(number) => {
            let number = number.as_i64().unwrap_or(0);
            if number < 0 {
                causes.push(Cause::invalid(path, value, super::NOT_NEGATIVE));
            }
            Some(number)
        }
        Value::String(text) => {
            let number = text.strip_suffix('%').and_then(|digits| digits.parse::<u32>().ok());
            if number.is_none() {
                let detail = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
                causes.push(Cause::invalid(path, value, detail));
            }
            number.map(i64::from)
        }
        _ => Some(0),
    }
}

fn check_rolling(strategy: &Value, path: &str, causes: &mut Causes) {
    let rolling = &strategy["rollingUpdate"];
    if !rolling.is_object() {
        return;
    }
    let unavailable_path = format!("{path}.rollingUpdate.maxUnavailable");
    let unavailable = share(&rolling["maxUnavailable"], &unavailable_path, causes);
    let surge = share(&rolling["maxSurge"], &format!("{path}.rollingUpdate.maxSurge"), causes);
    if (unavailable, surge) == (Some(0), Some(0)) {
        let detail = "may not be 0 when `maxSurge` is 0";
        causes.push(Cause::invalid(&unavailable_path, &rolling["maxUnavailable"], detail));
    }
    if rolling["maxUnavailable"].is_string() && unavailable.is_some_and(|percent| percent > 100) {
        causes.push(Cause::invalid(&unavailable_path, &rolling["maxUnavailable"], "must not be greater than 100%"));
    }
}

fn check_job(spec: &Value, path: &str, causes: &mut Causes) {
    let numbers = ["completions", "parallelism", "backoffLimit", "ttlSecondsAfterFinished", "activeDeadlineSeconds"];
    not_negative(spec, path, &numbers, causes);
    one_of(spec, path, "completionMode", &["Indexed", "NonIndexed"], causes);
    one_of(spec, path, "podReplacementPolicy", &["Failed", "TerminatingOrFailed"], causes);
    if text(spec, "completionMode") == "Indexed" && !spec["completions"].is_number() {
        let detail = "when completion mode is Indexed";
        causes.push(Cause::required(format!("{path}.completions"), detail));
    }
    check_template(&spec["template"], &format!("{path}.template"), causes);
    let field = format!("{path}.template.spec.restartPolicy");
    match text(&spec["template"]["spec"], "restartPolicy") {
        "OnFailure" | "Never" => {}
        "" | "Always" => causes.push(Cause::required(field, "valid values: \"OnFailure\", \"Never\"")),
        other => causes.push(Cause::not_supported(field, &other.into(), &["OnFailure", "Never"])),
    }
    if spec["selector"].is_object()
        && let Ok(selector) = Selector::from_value(&spec["selector"])
    {
        let labels = &spec["template"]["metadata"]["labels"];
        if !selector.matches(|key| labels.get(key).and_then(Value::as_str)) {
            let detail = "`selector` does not match template `labels`";
            causes.push(Cause::invalid(format!("{path}.template.metadata.labels"), labels, detail));
        }
    }
}

fn check_cron_job(spec: &Value, causes: &mut Causes) {
    let schedule = text(spec, "schedule");
    if !schedule.is_empty()
        && let Err(why) = cron_fault(schedule)
    {
        causes.push(Cause::invalid_str("spec.schedule", schedule, &why));
    }
    one_of(spec, "spec", "concurrencyPolicy", &["Allow", "Forbid", "Replace"], causes);
    let numbers = ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"];
    not_negative(spec, "spec", &numbers, causes);
    check_job(&spec["jobTemplate"]["spec"], "spec.jobTemplate.spec", causes);
    if spec["jobTemplate"]["spec"]["manualSelector"].as_bool() == Some(true) {
        let causes_field = "spec.jobTemplate.spec.manualSelector";
        causes.push(Cause::not_supported(causes_field, &true.into(), &["nil", "false"]));
    }
}

/// What is wrong with a schedule: five fields of numbers, names, steps and ranges, or one of the `@` words.
fn cron_fault(schedule: &str) -> Result<(), String> {
    const WORDS: &[&str] = &["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
    if schedule.contains("TZ") {
        return Err("cannot use TZ or CRON_TZ in schedule, use timeZone field instead".into());
    }
    if WORDS.contains(&schedule) || schedule.starts_with("@every ") {
        return Ok(());
    }
    if schedule.starts_with('@') {
        return Err(format!("unrecognized descriptor: {schedule}"));
    }
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    if fields.len() != 5 {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    }
    let bounds = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 7)];
    for (field, (least, most)) in fields.iter().zip(bounds) {
        for part in field.split(',') {
            cron_part(part, least, most)?;
        }
    }
    Ok(())
}

fn cron_part(part: &str, least: u32, most: u32) -> Result<(), String> {
    const NAMES: &[&str] = &[
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec", "sun", "mon", "tue", "wed",
        "thu", "fri", "sat",
    ];
    let (range, step) = part.split_once('/').unwrap_or((part, "1"));
    if step.parse::<u32>().ok().is_none_or(|step| step == 0) {
        return Err(format!("step of range should be a positive number: {part}"));
    }
    if matches!(range, "*" | "?") {
        return Ok(());
    }
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let mut ends = Vec::new();
    for end in [first, last] {
        if NAMES.contains(&end.to_lowercase().as_str()) && most <= 12 {
            continue;
        }
        let number = end.parse::<u32>().map_err(|_| format!("failed to parse int from {end}"))?;
        if number < least {
            return Err(format!("beginning of range ({number}) below minimum ({least}): {part}"));
        }
        if number > most {
            return Err(format!("end of range ({number}) above maximum ({most}): {part}"));
        }
        ends.push(number);
    }
    match ends.as_slice() {
        [first, last] if first > last => {
            Err(format!("beginning of range ({first}) beyond end of range ({last}): {part}"))
        }
        _ => Ok(()),
    }
}

pub(super) fn check_update(row: &Row, new: &Object, old: &Object, causes: &mut Causes) {
    match row.kind {
        "Deployment" | "ReplicaSet" | "DaemonSet" => unchanged(new, old, &["spec", "selector"], causes),
        "StatefulSet" => check_stateful_update(new, old, causes),
        "Job" => check_job_update(new, old, causes),
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

fn check_job_update(new: &Object, old: &Object, causes: &mut Causes) {
    unchanged(new, old, &["spec", "selector"], causes);
    unchanged(new, old, &["spec", "completionMode"], causes);
    let suspended = old.bool_at(&["spec", "suspend"]) == Some(true) && old.at(&["status", "startTime"]).is_none();
    // A job that has not begun may still be told where its pods go.
    if !suspended {
        unchanged(new, old, &["spec", "template"], causes);
    }
    let indexed = new.str_at(&["spec", "completionMode"]) == Some("Indexed");
    let (now, before) = (new.at(&["spec", "completions"]), old.at(&["spec", "completions"]));
    let elastic = indexed && now == new.at(&["spec", "parallelism"]);
    if now != before && !elastic {
        causes.push(Cause::invalid("spec.completions", now.unwrap_or(&Value::Null), IMMUTABLE));
    }
}

#[cfg(test)]
mod tests {
    use super::cron_fault;

    #[test]
    fn knows_schedules() {
        for good in ["* * * * *", "*/5 0-23/2 1,15 jan-mar MON", "@hourly", "@every 5m", "0 0 ? * 7"] {
            assert_eq!(cron_fault(good), Ok(()), "{good}");
        }
        for bad in [
            "* * * *",
            "60 * * * *",
            "x * * * *",
            "5-1 * * * *",
            "*/0 * * * *",
            "@often",
            "TZ=UTC * * * * *",
            "* * 0 * *",
        ] {
            assert!(cron_fault(bad).is_err(), "{bad}");
        }
    }
}
