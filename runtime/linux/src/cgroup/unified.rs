//! What cgroup v2 calls the OCI fields. Pure: fields in, [`Step`]s out.

use super::Error;
use super::plan::{Step, throttle};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory};

/// A negative limit means none.
fn bytes(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

pub(super) fn memory(memory: &LinuxMemory, steps: &mut Vec<Step>) -> Result<(), Error> {
    // 0 is "not set" in every client of the OCI format; a limit of 0 could start nothing.
    let set = |value: Option<i64>| value.filter(|&value| value != 0);
    if let Some(reservation) = set(memory.reservation()) {
        steps.push(Step::write("memory", "memory.reservation", "memory.low", bytes(reservation)));
    }
    if let Some(limit) = set(memory.limit()) {
        steps.push(Step::write("memory", "memory.limit", "memory.max", bytes(limit)));
    }
    let swap = match (set(memory.swap()), set(memory.limit())) {
        (Some(swap), limit) => Some((swap_alone(swap, limit)?, "the kernel does not account for swap")),
        // An end of the limit is an end of what was counted with it; runc does so too. Nobody asked for it, so nobody misses it.
        (None, Some(..0)) => Some((bytes(-1), "")),
        (None, _) => None,
    };
    if let Some((value, why)) = swap {
        let file = "memory.swap.max".to_owned();
        steps.push(Step::Optional { controller: "memory", field: "memory.swap", file, value, why });
    }
    let kernel = memory.kernel();
    if set(kernel).is_some() || set(memory.kernel_tcp()).is_some() {
        steps.push(Step::ignore("memory.kernel", "cgroup v2 counts kernel memory within memory.limit"));
    }
    if memory.swappiness().is_some() {
        steps.push(Step::ignore("memory.swappiness", "cgroup v2 has no swappiness per cgroup"));
    }
    if memory.disable_oom_killer() == Some(true) {
        steps.push(Step::ignore("memory.disableOOMKiller", "cgroup v2 cannot switch the OOM killer off"));
    }
    Ok(())
}

/// OCI counts swap together with memory, v2 alone.
fn swap_alone(swap: i64, limit: Option<i64>) -> Result<String, Error> {
    let wrong = |problem: &str| Err(Error::Value { field: "memory.swap".into(), problem: problem.to_owned() });
    if swap < 0 {
        return Ok("max".to_owned());
    }
    match limit {
        None => wrong("needs memory.limit, because it is the sum of memory and swap"),
        Some(limit) if limit < 0 => wrong("cannot be limited while memory.limit is unlimited"),
        Some(limit) if swap < limit => wrong("is the sum of memory and swap and must not be below memory.limit"),
        Some(limit) => Ok((swap - limit).to_string()),
    }
}

/// v1 `cpu.shares` (2 to 262144, default 1024) as v2 `cpu.weight` (1 to 10000, default 100).
///
/// The curve through (2, 1), (1024, 100) and (262144, 10000) that runc 1.3.2 and crun 1.23 agreed on, so that the default stays the
/// default; the straight line used before made 1024 shares a weight of 39.
#[must_use]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the clamp leaves 1 to 10000")]
#[expect(clippy::cast_precision_loss, reason = "shares are at most 262144")]
pub fn weight_from_shares(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    let log = (shares.min(262_144) as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    10f64.powf(exponent).ceil().clamp(1.0, 10_000.0) as u64
}

pub(super) fn cpu(cpu: &LinuxCpu, steps: &mut Vec<Step>) -> Result<(), Error> {
    if let Some(idle) = cpu.idle() {
        steps.push(Step::write("cpu", "cpu.idle", "cpu.idle", idle));
    }
    // An idle cgroup has no weight to set: the kernel refuses with EINVAL.
    if let Some(shares) = cpu.shares().filter(|&shares| shares != 0 && cpu.idle() != Some(1)) {
        steps.push(Step::write("cpu", "cpu.shares", "cpu.weight", weight_from_shares(shares)));
    }
    let quota = cpu.quota().filter(|&quota| quota != 0);
    let period = cpu.period().filter(|&period| period != 0);
    let maximum = match (quota, period) {
        (None, None) => None,
        // The second number may be left out: the kernel keeps the period.
        (Some(quota), None) => Some(bytes(quota)),
        (Some(quota), Some(period)) => Some(format!("{} {period}", bytes(quota))),
        // The first may not.
        (None, Some(period)) => {
            steps.push(Step::Period(period));
            None
        }
    };
    match (maximum, cpu.burst()) {
        (None, None) => {}
        (Some(maximum), None) => steps.push(Step::write("cpu", "cpu.quota", "cpu.max", maximum)),
        (None, Some(burst)) => steps.push(Step::write("cpu", "cpu.burst", "cpu.max.burst", burst)),
        (Some(maximum), Some(burst)) => steps.push(Step::Pair {
            controller: "cpu",
            field: "cpu.quota",
            first: ("cpu.max".to_owned(), maximum),
            second: ("cpu.max.burst".to_owned(), burst.to_string()),
        }),
    }
    if cpu.realtime_runtime().is_some_and(|runtime| runtime != 0) || cpu.realtime_period().is_some_and(|p| p != 0) {
        steps.push(Step::ignore("cpu.realtimeRuntime", "cgroup v2 does not share out real-time CPU time"));
    }
    Ok(())
}

/// v1 `blkio.weight` (10 to 1000) as v2 `io.weight` (1 to 10000).
fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight.clamp(10, 1000)) - 10) * 9999 / 990
}

pub(super) fn io(io: &LinuxBlockIo, steps: &mut Vec<Step>) -> Result<(), Error> {
    if let Some(weight) = io.weight().filter(|&weight| weight != 0) {
        steps.push(Step::Write {
            controller: "io",
            field: "blockIO.weight",
            alternatives: vec![
                ("io.bfq.weight".to_owned(), weight.to_string()),
                ("io.weight".to_owned(), format!("default {}", io_weight(weight))),
            ],
        });
    }
    for device in io.weight_device().iter().flatten() {
        let Some(weight) = device.weight() else { continue };
        let device = format!("{}:{}", device.major(), device.minor());
        steps.push(Step::Write {
            controller: "io",
            field: "blockIO.weightDevice",
            alternatives: vec![
                ("io.bfq.weight".to_owned(), format!("{device} {weight}")),
                ("io.weight".to_owned(), format!("{device} {}", io_weight(weight))),
            ],
        });
    }
    if io.leaf_weight().is_some_and(|weight| weight != 0) {
        steps.push(Step::ignore("blockIO.leafWeight", "cgroup v2 has no leaf weight"));
    }
    for (key, devices) in [
        ("rbps", io.throttle_read_bps_device()),
        ("wbps", io.throttle_write_bps_device()),
        ("riops", io.throttle_read_iops_device()),
        ("wiops", io.throttle_write_iops_device()),
    ] {
        for (device, rate) in throttle(devices.as_ref()) {
            steps.push(Step::write("io", "blockIO.throttle", "io.max", format!("{device} {key}={rate}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_keep_their_three_fixed_points_and_their_order() {
        for (shares, weight) in [(0, 1), (2, 1), (1024, 100), (262_144, 10_000), (1 << 40, 10_000)] {
            assert_eq!(weight_from_shares(shares), weight, "{shares} shares");
        }
        let weights: Vec<u64> = (1..300).map(|step| weight_from_shares(step * 900)).collect();
        assert!(weights.is_sorted());
    }

    #[test]
    fn swap_is_told_alone() {
        assert_eq!(swap_alone(-1, None).unwrap(), "max");
        assert_eq!(swap_alone(300, Some(100)).unwrap(), "200");
        assert_eq!(swap_alone(100, Some(100)).unwrap(), "0");
        for limit in [None, Some(-1), Some(200)] {
            assert!(swap_alone(100, limit).is_err(), "{limit:?}");
        }
    }

    #[test]
    fn io_weight_spans_its_range() {
        assert_eq!((io_weight(10), io_weight(1000), io_weight(5)), (1, 10_000, 1));
    }
}
