//! `linux.resources` as properties of a unit; org.freedesktop.systemd1(5), systemd.resource-control(5). Pure.
//!
//! What systemd has no property for, or rounds, is set in the cgroup's own files as well, which is ours by `Delegate=`. Device rules are in
//! `devices.rs`. Invariant: a limit is told to systemd wherever it knows one, or its next `daemon-reload` would take it away.

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};
use runtime_linux::cgroup::{Hierarchy, weight_from_shares};

use super::message::Value;
use crate::error::Error;
use crate::plan::invalid;

type Properties = Vec<(String, Value)>;

/// The kernel's default, microseconds.
const PERIOD_DEFAULT: u64 = 100_000;

pub(super) fn of(resources: &LinuxResources, hierarchy: &Hierarchy) -> Result<Properties, Error> {
    let mut all = Vec::new();
    if let Some(limits) = resources.memory() {
        memory(limits, hierarchy.is_unified("memory"), &mut all);
    }
    if let Some(limits) = resources.cpu() {
        cpu(limits, hierarchy.is_unified("cpu"), &mut all)?;
    }
    if let Some(pids) = resources.pids() {
        push(&mut all, "TasksMax", limit(if pids.limit() == 0 { 1 } else { pids.limit() }));
    }
    let weight = resources.block_io().as_ref().and_then(oci_spec::runtime::LinuxBlockIo::weight);
    if let Some(weight) = weight.filter(|&weight| weight != 0) {
        let weight = u64::from(weight);
        if hierarchy.is_unified("blkio") {
            push(&mut all, "IOWeight", 1 + (weight.clamp(10, 1000) - 10) * 9999 / 990);
        } else {
            push(&mut all, "BlockIOWeight", weight);
        }
    }
    unified(resources, &mut all)?;
    Ok(all)
}

fn push(all: &mut Properties, name: &str, value: u64) {
    all.push((name.to_owned(), Value::Wide(value)));
}

/// `u64::MAX` is systemd's infinity.
fn limit(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

fn memory(memory: &LinuxMemory, is_unified: bool, all: &mut Properties) {
    let set = |value: Option<i64>| value.filter(|&value| value != 0);
    if let Some(value) = set(memory.limit()) {
        push(all, if is_unified { "MemoryMax" } else { "MemoryLimit" }, limit(value));
    }
    if !is_unified {
        return;
    }
    if let Some(value) = set(memory.reservation()) {
        push(all, "MemoryLow", limit(value));
    }
    match (memory.swap(), memory.limit()) {
        // Without a limit on memory there is none on swap either.
        (Some(-1), _) | (None | Some(0), Some(-1)) => push(all, "MemorySwapMax", u64::MAX),
        (Some(swap), Some(memory)) if swap != 0 && memory > 0 => push(all, "MemorySwapMax", limit(swap - memory)),
        _ => {}
    }
}

fn cpu(cpu: &LinuxCpu, is_unified: bool, all: &mut Properties) -> Result<(), Error> {
    if cpu.idle() == Some(1) && is_unified {
        // systemd's name for it since version 252.
        push(all, "CPUWeight", 0);
    } else if let Some(shares) = cpu.shares().filter(|&shares| shares != 0) {
        if is_unified {
            push(all, "CPUWeight", weight_from_shares(shares));
        } else {
            push(all, "CPUShares", shares);
        }
    }
    let period = cpu.period().filter(|&period| period != 0);
    if let Some(quota) = cpu.quota().filter(|&quota| quota != 0) {
        quota_of(quota, period.unwrap_or(PERIOD_DEFAULT), all);
    }
    if let Some(period) = period {
        push(all, "CPUQuotaPeriodUSec", period);
    }
    for (name, list) in [("AllowedCPUs", cpu.cpus()), ("AllowedMemoryNodes", cpu.mems())] {
        if let Some(list) = list.as_ref().filter(|list| !list.is_empty() && is_unified) {
            all.push((name.to_owned(), Value::Bytes(bits(list)?)));
        }
    }
    Ok(())
}

fn quota_of(quota: i64, period: u64, all: &mut Properties) {
    push(all, "CPUQuotaPerSecUSec", per_second(quota, period).unwrap_or(u64::MAX));
}

/// Rounded up to 10 ms as systemd itself would; `None` for no quota.
fn per_second(quota: i64, period: u64) -> Option<u64> {
    const STEP: u64 = 10_000;
    let quota = u64::try_from(quota).ok()?;
    Some((quota.saturating_mul(1_000_000) / period).next_multiple_of(STEP))
}

/// With the quota that systemd makes of it, so that the kernel's file says the same before and after systemd writes it again.
pub(crate) fn as_rounded(resources: &LinuxResources) -> LinuxResources {
    let mut resources = resources.clone();
    if let Some(cpu) = resources.cpu_mut() {
        let period = cpu.period().filter(|&period| period != 0).unwrap_or(PERIOD_DEFAULT);
        let quota = cpu.quota().filter(|&quota| quota > 0).and_then(|quota| per_second(quota, period));
        let rounded = quota.and_then(|quota| i64::try_from(quota.saturating_mul(period) / 1_000_000).ok());
        if rounded.is_some() {
            cpu.set_quota(rounded);
        }
    }
    resources
}

/// `0-2,5` as bits, the first CPU in the lowest bit of the first byte.
fn bits(list: &str) -> Result<Vec<u8>, Error> {
    /// More CPUs than Linux has.
    const CPUS_MAX: usize = 8192;
    let wrong = || invalid("linux.resources.cpu", &format!("\"{list}\" is not a list like 0-3,8"));
    let mut bytes = Vec::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) =
            (first.trim().parse().map_err(|_| wrong())?, last.trim().parse().map_err(|_| wrong())?);
        if first > last || last >= CPUS_MAX {
            return Err(wrong());
        }
        for number in first..=last {
            if bytes.len() <= number / 8 {
                bytes.resize(number / 8 + 1, 0);
            }
            bytes[number / 8] |= 1 << (number % 8);
        }
    }
    Ok(bytes)
}

/// The keys of `unified` that systemd has a property for; the others are set in the files.
fn unified(resources: &LinuxResources, all: &mut Properties) -> Result<(), Error> {
    let mut keys: Vec<_> = resources.unified().iter().flatten().collect();
    keys.sort();
    for (key, value) in keys {
        let text = value.trim();
        let wrong =
            || invalid(&format!("linux.resources.unified.{key}"), &format!("\"{text}\" is not a number, or max"));
        let number = || if text == "max" { Ok(u64::MAX) } else { text.parse::<u64>().map_err(|_| wrong()) };
        match key.as_str() {
            "memory.min" => push(all, "MemoryMin", number()?),
            "memory.low" => push(all, "MemoryLow", number()?),
            "memory.high" => push(all, "MemoryHigh", number()?),
            "memory.max" => push(all, "MemoryMax", number()?),
            "memory.swap.max" => push(all, "MemorySwapMax", number()?),
            "pids.max" => push(all, "TasksMax", number()?),
            "cpu.weight" => push(all, "CPUWeight", number()?),
            "cpu.idle" if text == "1" => push(all, "CPUWeight", 0),
            "cpuset.cpus" => all.push(("AllowedCPUs".to_owned(), Value::Bytes(bits(text)?))),
            "cpuset.mems" => all.push(("AllowedMemoryNodes".to_owned(), Value::Bytes(bits(text)?))),
            "cpu.max" => {
                let (quota, period) = text.split_once(' ').unwrap_or((text, ""));
                let period = if period.is_empty() { PERIOD_DEFAULT } else { period.parse().map_err(|_| wrong())? };
                let quota = if quota == "max" { -1 } else { quota.parse().map_err(|_| wrong())? };
                quota_of(quota, period.max(1), all);
                push(all, "CPUQuotaPeriodUSec", period);
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str, hierarchy: &Hierarchy, expect: &[(&str, u64)]) {
        let resources: LinuxResources = serde_json::from_str(json).expect("resources");
        let all = of(&resources, hierarchy).expect("properties");
        let expect: Properties = expect.iter().map(|(name, value)| ((*name).to_owned(), Value::Wide(*value))).collect();
        assert_eq!(all, expect, "{json}");
    }

    #[test]
    fn limits_become_properties() {
        let unified = Hierarchy::unified("/x");
        let legacy = Hierarchy::legacy(&[(&["memory", "cpu", "blkio", "pids"], std::path::Path::new("/x"))], None);
        let memory = r#"{"memory": {"limit": 100, "swap": 150, "reservation": 50}, "pids": {"limit": -1}}"#;
        check(
            memory,
            &unified,
            &[("MemoryMax", 100), ("MemoryLow", 50), ("MemorySwapMax", 50), ("TasksMax", u64::MAX)],
        );
        check(memory, &legacy, &[("MemoryLimit", 100), ("TasksMax", u64::MAX)]);
        check(r#"{"memory": {"limit": -1}}"#, &unified, &[("MemoryMax", u64::MAX), ("MemorySwapMax", u64::MAX)]);
        check(
            r#"{"cpu": {"quota": 4001, "period": 10000, "shares": 1024}}"#,
            &unified,
            &[("CPUWeight", 100), ("CPUQuotaPerSecUSec", 410_000), ("CPUQuotaPeriodUSec", 10_000)],
        );
        check(
            r#"{"unified": {"cpu.max": "max 50000", "memory.high": "7"}}"#,
            &unified,
            &[("CPUQuotaPerSecUSec", u64::MAX), ("CPUQuotaPeriodUSec", 50_000), ("MemoryHigh", 7)],
        );
    }

    #[test]
    fn a_quota_is_what_systemd_makes_of_it() {
        for (quota, period, expect) in [(500_000, 900_000, 504_000), (5000, 20_000, 5000), (-1, 20_000, -1)] {
            let json = format!(r#"{{"cpu": {{"quota": {quota}, "period": {period}}}}}"#);
            let resources: LinuxResources = serde_json::from_str(&json).expect("resources");
            let rounded = as_rounded(&resources).cpu().as_ref().and_then(LinuxCpu::quota);
            assert_eq!(rounded, Some(expect), "{json}");
        }
    }

    #[test]
    fn lists_become_bits() {
        assert_eq!(bits("0-2,9").expect("bits"), [0b111, 0b10]);
        for bad in ["x", "3-1", "9999", "1-"] {
            assert!(bits(bad).is_err(), "{bad}");
        }
    }
}
