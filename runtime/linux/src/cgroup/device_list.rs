//! The OCI device list on cgroup v1: the rules come down to one answer for everything and exceptions from it, as the kernel keeps them.
//!
//! The kernel's own reading of rules one by one is narrower than OCI's: a denial takes away only what was allowed in just those words.
//! So the outcome is worked out here, purely, and the list is brought from what it is to that. Invariant: a running container never loses,
//! on the way, what both lists allow, and never gains what neither does.

use super::device::{self, ALL, Kind, MKNOD, READ, Rule, WRITE};
use super::{Error, file};
use oci_spec::runtime::LinuxDeviceCgroup;
use std::path::Path;

/// `b` or `c`, major, minor; `None` is every number.
type Device = (char, Option<u32>, Option<u32>);

/// What each device or pattern may, in the order in which they were named; the kernel's list then has that order too.
type Exceptions = Vec<(Device, u8)>;

/// What a list amounts to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    /// Everything is allowed but the exceptions, or else nothing but them.
    is_open: bool,
    exceptions: Exceptions,
}

/// Whether one device, or pattern of devices, is part of another.
fn is_within(inner: Device, outer: Device) -> bool {
    let fits = |inner: Option<u32>, outer: Option<u32>| outer.is_none() || inner == outer;
    inner.0 == outer.0 && fits(inner.1, outer.1) && fits(inner.2, outer.2)
}

fn overlap(left: Device, right: Device) -> bool {
    let meet = |left: Option<u32>, right: Option<u32>| left.is_none() || right.is_none() || left == right;
    left.0 == right.0 && meet(left.1, right.1) && meet(left.2, right.2)
}

fn outcome(rules: &[Rule]) -> Result<Outcome, Error> {
    let mut outcome = Outcome::default();
    for (index, rule) in rules.iter().enumerate() {
        let is_whole = rule.kind == Kind::Any && rule.major.is_none() && rule.minor.is_none() && rule.access == ALL;
        if is_whole {
            outcome = Outcome { is_open: rule.allow, exceptions: Exceptions::new() };
            continue;
        }
        let kinds: &[char] = match rule.kind {
            Kind::Any => &['b', 'c'],
            Kind::Block => &['b'],
            Kind::Character => &['c'],
        };
        for kind in kinds {
            let device = (*kind, rule.major, rule.minor);
            if rule.allow == outcome.is_open {
                take_back(&mut outcome.exceptions, device, rule.access).map_err(|wider| {
                    let problem = format!(
                        "takes a part out of {}, which cgroup v1 cannot say; list what remains instead, or use cgroup v2",
                        line(wider, rule.access)
                    );
                    Error::Value { field: format!("devices[{index}]"), problem }
                })?;
            } else {
                match outcome.exceptions.iter_mut().find(|(known, _)| *known == device) {
                    Some((_, access)) => *access |= rule.access,
                    None => outcome.exceptions.push((device, rule.access)),
                }
            }
        }
    }
    Ok(outcome)
}

/// Takes exceptions back; one that is wider than what is taken back, and would lose a part of it, comes back as the error.
fn take_back(exceptions: &mut Exceptions, device: Device, access: u8) -> Result<(), Device> {
    for &mut (exception, ref mut left) in exceptions.iter_mut() {
        if is_within(exception, device) {
            *left &= !access;
        } else if overlap(exception, device) && *left & access != 0 {
            return Err(exception);
        }
    }
    exceptions.retain(|(_, left)| *left != 0);
    Ok(())
}

/// Devices that a list allows, or a pattern of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedDevice {
    pub is_block: bool,
    /// `None` is every number.
    pub major: Option<u32>,
    pub minor: Option<u32>,
    /// Some of `rwm`.
    pub access: String,
}

/// What a list of `linux.resources.devices` comes down to where everything else is denied; `None` where everything else is allowed.
pub fn allowed_devices(rules: &[LinuxDeviceCgroup]) -> Result<Option<Vec<AllowedDevice>>, Error> {
    let outcome = outcome(&device::parse(rules)?)?;
    let allowed = outcome.exceptions.into_iter().map(|((kind, major, minor), access)| AllowedDevice {
        is_block: kind == 'b',
        major,
        minor,
        access: letters(access),
    });
    Ok((!outcome.is_open).then(|| allowed.collect()))
}

fn letters(access: u8) -> String {
    let letters = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')];
    letters.iter().filter(|(bit, _)| access & bit != 0).map(|(_, letter)| *letter).collect()
}

/// As `devices.allow`, `devices.deny` and `devices.list` have it.
fn line((kind, major, minor): Device, access: u8) -> String {
    let number = |value: Option<u32>| value.map_or("*".to_owned(), |value| value.to_string());
    format!("{kind} {}:{} {}", number(major), number(minor), letters(access))
}

/// `devices.list`; one that allows by default shows only that.
fn read(text: &str) -> Outcome {
    let mut outcome = Outcome::default();
    for line in text.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [kind, numbers, letters] = words[..] else { continue };
        if kind == "a" {
            return Outcome { is_open: true, exceptions: Exceptions::new() };
        }
        let (major, minor) = numbers.split_once(':').unwrap_or((numbers, "*"));
        let bits = |letter| match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            _ => 0,
        };
        let access = letters.chars().map(bits).fold(0, |all, bit| all | bit);
        let kind = if kind == "b" { 'b' } else { 'c' };
        outcome.exceptions.push(((kind, major.parse().ok(), minor.parse().ok()), access));
    }
    outcome
}

/// The writes that lead from one list to the other: file, line.
fn steps(now: &Outcome, wanted: &Outcome) -> Vec<(&'static str, String)> {
    const ALLOW: &str = "devices.allow";
    const DENY: &str = "devices.deny";
    let all = |file: &'static str, exceptions: &Exceptions| {
        exceptions.iter().map(move |&(device, access)| (file, line(device, access))).collect::<Vec<_>>()
    };
    match (now.is_open, wanted.is_open) {
        // Its exceptions are not shown, so it is begun anew.
        (_, true) => [(ALLOW, "a".to_owned())].into_iter().chain(all(DENY, &wanted.exceptions)).collect(),
        (true, false) => [(DENY, "a".to_owned())].into_iter().chain(all(ALLOW, &wanted.exceptions)).collect(),
        (false, false) => {
            let missing = |from: &Outcome, to: &Outcome| -> Exceptions {
                let left = |&(device, access): &(Device, u8)| {
                    let has = to.exceptions.iter().find(|(known, _)| *known == device).map_or(0, |(_, access)| *access);
                    (device, access & !has)
                };
                from.exceptions.iter().map(left).filter(|(_, access)| *access != 0).collect()
            };
            let mut steps = all(ALLOW, &missing(wanted, now));
            steps.extend(all(DENY, &missing(now, wanted)));
            steps
        }
    }
}

/// Makes `rules` the device list of the cgroup at `directory`.
pub(super) fn apply(directory: &Path, rules: &[Rule]) -> Result<(), Error> {
    let wanted = outcome(rules)?;
    let now = read(&file::read(&directory.join("devices.list"))?);
    // In their order; opening one of these files costs more than a write to it.
    steps(&now, &wanted).chunk_by(|(left, _), (right, _)| left == right).try_for_each(|same| {
        let lines: Vec<&str> = same.iter().map(|(_, line)| line.as_str()).collect();
        file::write_each(&directory.join(same[0].0), &lines)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(json: &str) -> Vec<Rule> {
        let rules: Vec<oci_spec::runtime::LinuxDeviceCgroup> = serde_json::from_str(json).unwrap();
        device::parse(&rules).unwrap()
    }

    fn check(json: &str, now: &str, expect: &[&str]) {
        let steps = steps(&read(now), &outcome(&rules(json)).unwrap());
        let said: Vec<String> = steps.iter().map(|(file, line)| format!("{} {line}", &file[8..])).collect();
        assert_eq!(said, expect, "{json}");
    }

    const NULL_AND_ZERO: &str = r#"[{"allow":false,"access":"rwm"},
        {"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"},
        {"allow":true,"type":"c","major":1,"minor":5,"access":"r"}]"#;

    #[test]
    fn a_list_is_brought_to_what_is_wanted() {
        check(NULL_AND_ZERO, "a *:* rwm\n", &["deny a", "allow c 1:3 rwm", "allow c 1:5 r"]);
        check(NULL_AND_ZERO, "c 1:3 rw\nb 8:0 rwm\n", &["allow c 1:3 m", "allow c 1:5 r", "deny b 8:0 rwm"]);
        check(NULL_AND_ZERO, "c 1:3 rwm\nc 1:5 r\n", &[]);
        let in_order = r#"[{"allow":true,"type":"c","major":10,"minor":229},{"allow":true,"type":"b","access":"m"},{"allow":true,"type":"c","major":1,"minor":3}]"#;
        check(in_order, "", &["allow c 10:229 rwm", "allow b *:* m", "allow c 1:3 rwm"]);
        let but_null = r#"[{"allow":true},{"allow":false,"type":"c","major":1,"minor":3,"access":"w"}]"#;
        check(but_null, "c 1:3 rwm\n", &["allow a", "deny c 1:3 w"]);
        check(r#"[{"allow":true,"type":"a","access":"m"}]"#, "", &["allow b *:* m", "allow c *:* m"]);
    }

    #[test]
    fn a_denial_takes_all_that_it_means() {
        let all_of_memory =
            r#"[{"allow":true,"type":"c","major":1,"minor":3},{"allow":false,"type":"c","major":1,"access":"w"}]"#;
        check(all_of_memory, "", &["allow c 1:3 rm"]);
        let part =
            r#"[{"allow":true,"type":"c","major":1},{"allow":false,"type":"c","major":1,"minor":3,"access":"w"}]"#;
        let error = outcome(&rules(part)).unwrap_err().to_string();
        assert!(error.contains("devices[1]") && error.contains("c 1:* w"), "{error}");
        let apart =
            r#"[{"allow":true,"type":"c","access":"m"},{"allow":false,"type":"c","major":1,"minor":3,"access":"w"}]"#;
        assert!(outcome(&rules(apart)).is_ok());
    }
}
