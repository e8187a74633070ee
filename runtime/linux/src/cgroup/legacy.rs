//! What cgroup v1 calls the OCI fields. Pure: fields in, [`Step`]s out.

use super::Error;
use super::hierarchy::{Hierarchy, Version};
use super::plan::{Step, throttle};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxNetwork};

const SWAP_NOT_COUNTED: &str = "the kernel does not account for swap (boot with swapaccount=1)";

pub(super) fn memory(memory: &LinuxMemory, steps: &mut Vec<Step>) -> Result<(), Error> {
    let set = |value: Option<i64>| value.filter(|&value| value != 0);
    let limit = set(memory.limit()).map(|limit| ("memory.limit_in_bytes".to_owned(), limit.to_string()));
    match (limit, set(memory.swap())) {
        (None, None) => {}
        (Some((file, value)), None) if value == "-1" => {
            // Memory cannot be unlimited while memory and swap together are not.
            steps.push(Step::Optional {
                controller: "memory",
                field: "memory.limit",
                file: "memory.memsw.limit_in_bytes".to_owned(),
                value: value.clone(),
                why: "",
            });
            steps.push(Step::write("memory", "memory.limit", &file, value));
        }
        (Some(limit), None) => {
            steps.push(Step::Write { controller: "memory", field: "memory.limit", alternatives: vec![limit] });
        }
        (limit, Some(swap)) => {
            if memory.limit().is_some_and(|limit| swap > 0 && swap < limit) {
                let problem = "is the sum of memory and swap and must not be below memory.limit".to_owned();
                return Err(Error::Value { field: "memory.swap".into(), problem });
            }
            both_limits(limit, swap, steps);
        }
    }
    if let Some(reservation) = set(memory.reservation()) {
        steps.push(Step::write("memory", "memory.reservation", "memory.soft_limit_in_bytes", reservation));
    }
    if let Some(swappiness) = memory.swappiness() {
        steps.push(Step::write("memory", "memory.swappiness", "memory.swappiness", swappiness));
    }
    if memory.disable_oom_killer() == Some(true) {
        steps.push(Step::write("memory", "memory.disableOOMKiller", "memory.oom_control", 1));
    }
    let kernel = memory.kernel();
    if set(kernel).is_some() {
        steps.push(Step::ignore(
            "memory.kernel",
            "the kernel dropped it in 5.16: kernel memory counts within memory.limit",
        ));
    }
    if let Some(tcp) = set(memory.kernel_tcp()) {
        let file = "memory.kmem.tcp.limit_in_bytes".to_owned();
        let why = "this kernel does not limit TCP buffers per cgroup";
        let value = tcp.to_string();
        steps.push(Step::Optional { controller: "memory", field: "memory.kernelTCP", file, value, why });
    }
    Ok(())
}

/// Memory and memory+swap: the kernel keeps the first at or below the second at every moment, so the order depends on whether they
/// rise or fall. Where swap is not accounted for, the memory limit alone is set.
fn both_limits(limit: Option<(String, String)>, swap: i64, steps: &mut Vec<Step>) {
    let why = SWAP_NOT_COUNTED;
    let swap_step = Step::Optional {
        controller: "memory",
        field: "memory.swap",
        file: "memory.memsw.limit_in_bytes".to_owned(),
        value: swap.to_string(),
        why,
    };
    let Some(limit) = limit else {
        steps.push(swap_step);
        return;
    };
    // Unlimited first makes room for either direction.
    steps.push(Step::Optional {
        controller: "memory",
        field: "memory.swap",
        file: "memory.memsw.limit_in_bytes".to_owned(),
        value: "-1".to_owned(),
        why,
    });
    steps.push(Step::Write { controller: "memory", field: "memory.limit", alternatives: vec![limit] });
    if swap > 0 {
        steps.push(swap_step);
    }
}

pub(super) fn cpu(cpu: &LinuxCpu, steps: &mut Vec<Step>) -> Result<(), Error> {
    if let Some(idle) = cpu.idle() {
        steps.push(Step::write("cpu", "cpu.idle", "cpu.idle", idle));
    }
    if let Some(shares) = cpu.shares().filter(|&shares| shares != 0 && cpu.idle() != Some(1)) {
        steps.push(Step::write("cpu", "cpu.shares", "cpu.shares", shares));
    }
    pair(
        "cpu.quota",
        cpu.period().filter(|&period| period != 0).map(|period| ("cpu.cfs_period_us".to_owned(), period.to_string())),
        cpu.quota().filter(|&quota| quota != 0).map(|quota| ("cpu.cfs_quota_us".to_owned(), quota.to_string())),
        steps,
    );
    if let Some(burst) = cpu.burst() {
        steps.push(Step::write("cpu", "cpu.burst", "cpu.cfs_burst_us", burst));
    }
    pair(
        "cpu.realtimeRuntime",
        cpu.realtime_period().filter(|&p| p != 0).map(|period| ("cpu.rt_period_us".to_owned(), period.to_string())),
        cpu.realtime_runtime().filter(|&r| r != 0).map(|runtime| ("cpu.rt_runtime_us".to_owned(), runtime.to_string())),
        steps,
    );
    Ok(())
}

fn pair(field: &'static str, first: Option<(String, String)>, second: Option<(String, String)>, steps: &mut Vec<Step>) {
    match (first, second) {
        (Some(first), Some(second)) => steps.push(Step::Pair { controller: "cpu", field, first, second }),
        (Some(one), None) | (None, Some(one)) => {
            steps.push(Step::Write { controller: "cpu", field, alternatives: vec![one] });
        }
        (None, None) => {}
    }
}

pub(super) fn io(io: &LinuxBlockIo, steps: &mut Vec<Step>) -> Result<(), Error> {
    let weights = [("blockIO.weight", "weight", io.weight()), ("blockIO.leafWeight", "leaf_weight", io.leaf_weight())];
    for (field, name, weight) in weights {
        if let Some(weight) = weight.filter(|&weight| weight != 0) {
            steps.push(Step::Write {
                controller: "blkio",
                field,
                alternatives: vec![
                    (format!("blkio.{name}"), weight.to_string()),
                    (format!("blkio.bfq.{name}"), weight.to_string()),
                ],
            });
        }
    }
    for device in io.weight_device().iter().flatten() {
        let numbers = format!("{}:{}", device.major(), device.minor());
        for (name, weight) in [("weight", device.weight()), ("leaf_weight", device.leaf_weight())] {
            let Some(weight) = weight else { continue };
            steps.push(Step::Write {
                controller: "blkio",
                field: "blockIO.weightDevice",
                alternatives: vec![
                    (format!("blkio.{name}_device"), format!("{numbers} {weight}")),
                    (format!("blkio.bfq.{name}_device"), format!("{numbers} {weight}")),
                ],
            });
        }
    }
    for (name, devices) in [
        ("read_bps", io.throttle_read_bps_device()),
        ("write_bps", io.throttle_write_bps_device()),
        ("read_iops", io.throttle_read_iops_device()),
        ("write_iops", io.throttle_write_iops_device()),
    ] {
        for (device, rate) in throttle(devices.as_ref()) {
            let file = format!("blkio.throttle.{name}_device");
            steps.push(Step::write("blkio", "blockIO.throttle", &file, format!("{device} {rate}")));
        }
    }
    Ok(())
}

/// Network classes and priorities exist in v1 only.
pub(super) fn network(hierarchy: &Hierarchy, network: &LinuxNetwork, steps: &mut Vec<Step>) {
    let mounted = |controller| matches!(hierarchy.locate(controller), Some((_, Version::Legacy)));
    if let Some(class) = network.class_id() {
        steps.push(if mounted("net_cls") {
            Step::write("net_cls", "network.classID", "net_cls.classid", class)
        } else {
            Step::ignore("network.classID", "the v1 controller net_cls is not mounted")
        });
    }
    for priority in network.priorities().iter().flatten() {
        steps.push(if mounted("net_prio") {
            let value = format!("{} {}", priority.name(), priority.priority());
            Step::write("net_prio", "network.priorities", "net_prio.ifpriomap", value)
        } else {
            Step::ignore("network.priorities", "the v1 controller net_prio is not mounted")
        });
    }
}
