//! CronJobs: when they run, and what they make.

use super::field::Field;
use super::{Causes, job};

const SEGMENT_BYTES_MAX: usize = 14;
const WORD: &str = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";

pub(super) fn check(spec: &Field<'_, '_>, causes: &mut Causes) {
    let schedule = spec.key("schedule");
    if !schedule.text().is_empty()
        && let Err(why) = fault(schedule.text())
    {
        schedule.invalid(&why, causes);
    }
    check_zone(&spec.key("timeZone"), causes);
    spec.key("concurrencyPolicy").one_of(&["Allow", "Forbid", "Replace"], causes);
    let numbers = ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"];
    spec.none_negative(&numbers, causes);
    let template = spec.key("jobTemplate");
    let inner = template.key("spec");
    super::metadata::check_template(&template, causes);
    job::check_spec(&inner, causes);
    if inner.key("manualSelector").is_true() {
        inner.key("manualSelector").unsupported(&["nil", "false"], causes);
    }
}

fn check_zone(zone: &Field<'_, '_>, causes: &mut Causes) {
    if !zone.is_set() {
        return;
    }
    let text = zone.text();
    if text.is_empty() {
        return zone.invalid("timeZone must be nil or non-empty string", causes);
    }
    if text.eq_ignore_ascii_case("local") {
        return zone.invalid(WORD, causes);
    }
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._+-".contains(&byte);
    let sound = |part: &str| !part.is_empty() && part.len() <= SEGMENT_BYTES_MAX && part.bytes().all(known);
    if !text.split('/').all(sound) || text.split('/').any(|part| part == ".." || part == ".") {
        zone.invalid(&format!("unknown time zone {text}"), causes);
    }
}

/// What is wrong with a schedule: five fields of numbers, names, steps and ranges, or one of the `@` words.
fn fault(schedule: &str) -> Result<(), String> {
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
            part_fault(part, least, most)?;
        }
    }
    Ok(())
}

fn part_fault(part: &str, least: u32, most: u32) -> Result<(), String> {
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

#[cfg(test)]
mod tests {
    use super::fault;

    #[test]
    fn knows_schedules() {
        for good in ["* * * * *", "*/5 0-23/2 1,15 jan-mar MON", "@hourly", "@every 5m", "0 0 ? * 7"] {
            assert_eq!(fault(good), Ok(()), "{good}");
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
            assert!(fault(bad).is_err(), "{bad}");
        }
    }
}
