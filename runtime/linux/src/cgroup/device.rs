//! The OCI device list, and its v1 form. Parsing is pure.
//!
//! Meaning, in both versions: everything is denied, then the rules are applied in order, so the last one that speaks of an access
//! decides it.

use super::{Error, file};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use std::path::Path;

pub(super) const MKNOD: u8 = 1;
pub(super) const READ: u8 = 2;
pub(super) const WRITE: u8 = 4;
pub(super) const ALL: u8 = MKNOD | READ | WRITE;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Any,
    Block,
    Character,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) allow: bool,
    pub(super) kind: Kind,
    /// `None` is every number.
    pub(super) major: Option<u32>,
    pub(super) minor: Option<u32>,
    /// Bits as linux/bpf.h has them.
    pub(super) access: u8,
}

pub(super) fn parse(rules: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>, Error> {
    rules.iter().enumerate().map(|(index, rule)| parse_rule(index, rule)).collect()
}

fn parse_rule(index: usize, rule: &LinuxDeviceCgroup) -> Result<Rule, Error> {
    let wrong = |problem: String| Error::Value { field: format!("devices[{index}]"), problem };
    let kind = match rule.typ() {
        None | Some(LinuxDeviceType::A) => Kind::Any,
        Some(LinuxDeviceType::B) => Kind::Block,
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Kind::Character,
        Some(other) => return Err(wrong(format!("type {other:?} is not a device"))),
    };
    let number = |name: &str, value: Option<i64>| match value {
        // runtime-spec, "Allowed Device list": unset is every number; -1 is runc's way of saying so.
        None | Some(-1) => Ok(None),
        Some(value) => match u32::try_from(value) {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(wrong(format!("{name} {value} is not a device number"))),
        },
    };
    let mut access = 0;
    let letters = rule.access().as_deref().unwrap_or("rwm");
    for letter in letters.chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            _ => return Err(wrong(format!("access {letters:?} is not made of r, w and m"))),
        };
    }
    Ok(Rule {
        allow: rule.allow(),
        kind,
        major: number("major", rule.major())?,
        minor: number("minor", rule.minor())?,
        access: if access == 0 { ALL } else { access },
    })
}

/// One line for `devices.allow` or `devices.deny`.
fn legacy_lines(rule: &Rule) -> Vec<String> {
    let number = |value: Option<u32>| value.map_or("*".to_owned(), |value| value.to_string());
    let letters: String = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')]
        .iter()
        .filter(|(bit, _)| rule.access & bit != 0)
        .map(|p| p.1)
        .collect();
    // The kernel takes a line that begins with 'a' as everything, whatever follows.
    let whole = rule.major.is_none() && rule.minor.is_none() && rule.access == ALL;
    let kinds: &[char] = match rule.kind {
        Kind::Any if whole => return vec!["a".to_owned()],
        Kind::Any => &['b', 'c'],
        Kind::Block => &['b'],
        Kind::Character => &['c'],
    };
    kinds.iter().map(|kind| format!("{kind} {}:{} {letters}", number(rule.major), number(rule.minor))).collect()
}

pub(super) fn apply_legacy(directory: &Path, rules: &[Rule]) -> Result<(), Error> {
    file::write(&directory.join("devices.deny"), "a")?;
    // A leading "deny everything" has just been done.
    let done = rules.iter().take_while(|rule| !rule.allow).count();
    for rule in &rules[done..] {
        let name = if rule.allow { "devices.allow" } else { "devices.deny" };
        for line in legacy_lines(rule) {
            file::write(&directory.join(name), &line)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str, expect: Result<&[&str], &str>) {
        let rule: LinuxDeviceCgroup = serde_json::from_str(json).unwrap();
        match (parse(&[rule]), expect) {
            (Ok(rules), Ok(lines)) => assert_eq!(legacy_lines(&rules[0]), lines),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (outcome, expect) => panic!("{outcome:?}, expected {expect:?}"),
        }
    }

    #[test]
    fn rules_become_lines() {
        check(r#"{"allow":false,"access":"rwm"}"#, Ok(&["a"]));
        check(r#"{"allow":true,"type":"a"}"#, Ok(&["a"]));
        check(r#"{"allow":true,"type":"c","major":1,"minor":3,"access":"rw"}"#, Ok(&["c 1:3 rw"]));
        check(r#"{"allow":true,"type":"b","major":8,"access":"m"}"#, Ok(&["b 8:* m"]));
        check(r#"{"allow":true,"type":"c","major":-1,"minor":-1,"access":"m"}"#, Ok(&["c *:* m"]));
        check(r#"{"allow":true,"type":"a","access":"r"}"#, Ok(&["b *:* r", "c *:* r"]));
        check(r#"{"allow":true,"type":"p"}"#, Err("not a device"));
        check(r#"{"allow":true,"major":-7}"#, Err("major -7"));
        check(r#"{"allow":true,"access":"rx"}"#, Err("\"rx\""));
    }
}
