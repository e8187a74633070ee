//! The OCI device list, parsed; pure. Its v1 form is in `device_list.rs`, its v2 form in `device_filter.rs`.
//!
//! Meaning, in both versions: everything is denied, then the rules are applied in order, so the last one that speaks of an access
//! decides it.

use super::Error;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

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
            // Nothing to the kernel, but runc takes it and so it is in use.
            'a' => 0,
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

#[cfg(test)]
mod tests {
    use super::*;

    type Parts = (bool, Kind, Option<u32>, Option<u32>, u8);

    fn check(json: &str, expect: Result<Parts, &str>) {
        let rule: LinuxDeviceCgroup = serde_json::from_str(json).unwrap();
        match (parse(&[rule]), expect) {
            (Ok(rules), Ok(expect)) => {
                let Rule { allow, kind, major, minor, access } = rules[0];
                assert_eq!((allow, kind, major, minor, access), expect, "{json}");
            }
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (outcome, expect) => panic!("{outcome:?}, expected {expect:?}"),
        }
    }

    #[test]
    fn rules_are_read() {
        check(r#"{"allow":false,"access":"rwm"}"#, Ok((false, Kind::Any, None, None, ALL)));
        check(r#"{"allow":true,"type":"a"}"#, Ok((true, Kind::Any, None, None, ALL)));
        let null = Ok((true, Kind::Character, Some(1), Some(3), READ | WRITE));
        check(r#"{"allow":true,"type":"c","major":1,"minor":3,"access":"rw"}"#, null);
        check(r#"{"allow":true,"type":"b","major":8,"access":"m"}"#, Ok((true, Kind::Block, Some(8), None, MKNOD)));
        check(r#"{"allow":true,"type":"c","major":-1,"minor":-1}"#, Ok((true, Kind::Character, None, None, ALL)));
        check(r#"{"allow":true,"type":"p"}"#, Err("not a device"));
        check(r#"{"allow":true,"major":-7}"#, Err("major -7"));
        check(r#"{"allow":true,"access":"rx"}"#, Err("\"rx\""));
    }
}
