//! Device rules as systemd has them, for cgroup v1: there its next `daemon-reload` writes its own list over ours.
//!
//! On v2 a filter of systemd's stands beside ours and takes nothing away from it, so it is told of none.

use std::path::Path;

use oci_spec::runtime::LinuxResources;
use runtime_linux::cgroup::{AllowedDevice, Hierarchy, allowed_devices};
use runtime_linux::proc::read_text;

use super::message::Value;
use crate::confine::with_default_devices;
use crate::error::Error;

const GROUPS: &str = "/proc/devices";

pub(super) fn of(resources: &LinuxResources, hierarchy: &Hierarchy) -> Result<Vec<(String, Value)>, Error> {
    let resources = with_default_devices(resources);
    let Some(rules) = resources.devices().as_ref().filter(|_| !hierarchy.is_unified("devices")) else {
        return Ok(Vec::new());
    };
    let path = Path::new(GROUPS);
    let groups = read_text(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    Ok(properties(allowed_devices(rules)?, &groups))
}

/// systemd.resource-control(5), `DevicePolicy=` and `DeviceAllow=`.
fn properties(allowed: Option<Vec<AllowedDevice>>, groups: &str) -> Vec<(String, Value)> {
    // What is open but for exceptions cannot be told: then at least nothing is lost.
    let (policy, allowed) = allowed.map_or(("auto", Vec::new()), |allowed| ("strict", allowed));
    let pairs = allowed.iter().filter_map(|device| Some((name(device, groups)?, device.access.clone())));
    vec![
        ("DevicePolicy".to_owned(), Value::String(policy.to_owned())),
        ("DeviceAllow".to_owned(), Value::Pairs(pairs.collect())),
    ]
}

/// A node, a whole driver by its name, or a whole kind; a driver that the kernel does not list, and a minor number of every driver, have none.
fn name(device: &AllowedDevice, groups: &str) -> Option<String> {
    let kind = if device.is_block { "block" } else { "char" };
    match (device.major, device.minor) {
        (Some(major), Some(minor)) => Some(format!("/dev/{kind}/{major}:{minor}")),
        (Some(major), None) => Some(format!("{kind}-{}", driver(device.is_block, major, groups)?)),
        (None, None) => Some(format!("{kind}-*")),
        (None, Some(_)) => None,
    }
}

/// proc(5), "/proc/devices": two lists with a heading each.
fn driver(is_block: bool, major: u32, groups: &str) -> Option<&str> {
    let heading = if is_block { "Block devices:" } else { "Character devices:" };
    let list = groups.lines().skip_while(|line| *line != heading).skip(1).take_while(|line| !line.is_empty());
    let mut entries = list.filter_map(|line| line.trim().split_once(' '));
    entries.find_map(|(number, name)| (number.parse() == Ok(major)).then_some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUPS: &str = "Character devices:\n  1 mem\n136 pts\n\nBlock devices:\n  1 ramdisk\n  8 sd\n";

    #[test]
    fn rules_become_names() {
        let rules = serde_json::json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"},
            {"allow": true, "type": "c", "major": 136, "access": "rwm"},
            {"allow": true, "type": "b", "major": 8, "access": "r"},
            {"allow": true, "type": "b", "major": 99, "access": "r"},
            {"allow": true, "type": "c", "access": "m"},
        ]);
        let rules: Vec<_> = serde_json::from_value(rules).expect("rules");
        let all = properties(allowed_devices(&rules).expect("allowed"), GROUPS);
        let pair = |name: &str, access: &str| (name.to_owned(), access.to_owned());
        let pairs =
            vec![pair("/dev/char/1:3", "rw"), pair("char-pts", "rwm"), pair("block-sd", "r"), pair("char-*", "m")];
        assert_eq!(all[0].1, Value::String("strict".to_owned()));
        assert_eq!(all[1].1, Value::Pairs(pairs));

        let all = properties(allowed_devices(&[]).expect("allowed"), GROUPS);
        assert_eq!(all[1].1, Value::Pairs(Vec::new()));
        let open: Vec<_> = serde_json::from_str(r#"[{"allow": true}]"#).expect("rules");
        let all = properties(allowed_devices(&open).expect("allowed"), GROUPS);
        assert_eq!(all[0].1, Value::String("auto".to_owned()));
    }
}
