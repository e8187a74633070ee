//! The shape of runc's statistics. What a host does not count is left out, or 0 where runc says 0.

use runtime_linux::cgroup::{CPUSET_FLAGS, Details, IoEntry, Pressures, Usage};
use serde_json::{Map, Value, json};

pub(crate) fn json(details: &Details) -> Value {
    let [cpu_pressure, memory_pressure, io_pressure] = &details.pressure;
    json!({
        "cpu": with_pressure(cpu(details), cpu_pressure.as_ref()),
        "cpuset": cpuset(details),
        "memory": with_pressure(memory(details), memory_pressure.as_ref()),
        "pids": pids(details),
        "blkio": with_pressure(blkio(details), io_pressure.as_ref()),
        "hugetlb": details.hugetlb.iter().map(|(size, usage)| (size.clone(), hugetlb(usage))).collect::<Map<_, _>>(),
        "intel_rdt": {},
        "network_interfaces": null,
    })
}

fn with_pressure(mut value: Value, pressure: Option<&Pressures>) -> Value {
    if let Some(Pressures { some, full }) = pressure {
        let line = |line: &runtime_linux::cgroup::Pressure| {
            let [avg10, avg60, avg300] = line.averages;
            json!({ "avg10": avg10, "avg60": avg60, "avg300": avg300, "total": line.total })
        };
        value["psi"] = json!({ "some": line(some), "full": line(full) });
    }
    value
}

fn cpu(details: &Details) -> Value {
    let stats = &details.stats.cpu;
    let mut usage = json!({ "total": stats.usage_ns, "kernel": stats.system_ns, "user": stats.user_ns });
    for (name, numbers) in ["percpu", "percpu_kernel", "percpu_user"].into_iter().zip(&details.per_cpu_ns) {
        if !numbers.is_empty() {
            usage[name] = json!(numbers);
        }
    }
    json!({
        "usage": usage,
        "throttling": {
            "periods": stats.periods,
            "throttledPeriods": stats.throttled_periods,
            "throttledTime": stats.throttled_ns,
        },
    })
}

fn cpuset(details: &Details) -> Value {
    let mut value = json!({ "cpus": details.cpuset_cpus, "mems": details.cpuset_mems });
    for name in CPUSET_FLAGS {
        value[name] = details.cpuset_flags.get(name).copied().unwrap_or(0).into();
    }
    value
}

fn usage(usage: &Usage) -> Value {
    json!({ "limit": usage.limit, "usage": usage.usage, "max": usage.max, "failcnt": usage.failures })
}

fn hugetlb(usage: &Usage) -> Value {
    json!({ "usage": usage.usage, "max": usage.max, "failcnt": usage.failures })
}

fn memory(details: &Details) -> Value {
    let raw = &details.memory_raw;
    // v1 counts the page cache as `cache`, v2 as `file`.
    let cache = raw.get("cache").or_else(|| raw.get("file")).copied().unwrap_or(0);
    json!({
        "cache": cache,
        "usage": usage(&details.memory),
        "swap": usage(&details.swap),
        "kernel": usage(&details.kernel),
        "kernelTCP": usage(&details.kernel_tcp),
        "raw": raw,
    })
}

fn pids(details: &Details) -> Value {
    // runc's 0 is no limit.
    json!({ "current": details.stats.pids.current, "limit": details.stats.pids.limit.unwrap_or(0) })
}

fn blkio(details: &Details) -> Value {
    let entry = |entry: &IoEntry| json!({ "major": entry.major, "minor": entry.minor, "op": entry.operation, "value": entry.value });
    let names = [
        ("io_service_bytes_recursive", "ioServiceBytesRecursive"),
        ("io_serviced_recursive", "ioServicedRecursive"),
        ("io_queued_recursive", "ioQueueRecursive"),
        ("io_service_time_recursive", "ioServiceTimeRecursive"),
        ("io_wait_time_recursive", "ioWaitTimeRecursive"),
        ("io_merged_recursive", "ioMergedRecursive"),
        ("time_recursive", "ioTimeRecursive"),
        ("sectors_recursive", "sectorsRecursive"),
    ];
    let mut value = json!({});
    for (file, name) in names {
        let entries: Vec<Value> = details.io.get(file).into_iter().flatten().map(entry).collect();
        if !entries.is_empty() {
            value[name] = entries.into();
        }
    }
    value
}
