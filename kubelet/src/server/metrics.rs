//! Statistics as `/stats/summary`, `/metrics/resource` and `/metrics/cadvisor` give them, from the runtime's own figures and the host's.

use std::fmt::Write;

use jiff::Timestamp;
use runtime_cri_api::v1 as cri;
use serde_json::{Value, json};

use crate::kit::Kit;
use crate::machine;
use crate::pods::Registry;
use crate::sync::observed::State;

fn value(v: Option<&cri::UInt64Value>) -> u64 {
    v.map_or(0, |v| v.value)
}

fn time(nanos: i64) -> String {
    Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or_default().to_string()
}

fn cpu(usage: Option<&cri::CpuUsage>) -> Value {
    let Some(usage) = usage else { return Value::Null };
    json!({"time": time(usage.timestamp), "usageNanoCores": value(usage.usage_nano_cores.as_ref()),
        "usageCoreNanoSeconds": value(usage.usage_core_nano_seconds.as_ref())})
}

fn memory(usage: Option<&cri::MemoryUsage>) -> Value {
    let Some(usage) = usage else { return Value::Null };
    json!({"time": time(usage.timestamp), "usageBytes": value(usage.usage_bytes.as_ref()),
        "workingSetBytes": value(usage.working_set_bytes.as_ref()), "rssBytes": value(usage.rss_bytes.as_ref()),
        "pageFaults": value(usage.page_faults.as_ref()), "majorPageFaults": value(usage.major_page_faults.as_ref())})
}

fn network(usage: Option<&cri::NetworkUsage>) -> Value {
    let Some(usage) = usage else { return Value::Null };
    let default = usage.default_interface.clone().unwrap_or_default();
    json!({"time": time(usage.timestamp), "name": default.name,
        "rxBytes": value(default.rx_bytes.as_ref()), "rxErrors": value(default.rx_errors.as_ref()),
        "txBytes": value(default.tx_bytes.as_ref()), "txErrors": value(default.tx_errors.as_ref())})
}

/// Statistics of the pods that are here, each with the start time of its status.
async fn pods(kit: &Kit, registry: &Registry) -> Vec<(cri::PodSandboxStats, Option<String>)> {
    let stats = kit.runtime.sandbox_stats().await.unwrap_or_default();
    let known = |s: &cri::PodSandboxStats| {
        let uid = s.attributes.as_ref()?.metadata.as_ref()?.uid.clone();
        let handle = registry.get(&uid)?;
        let start = handle.snapshot.borrow().status.start_time.as_ref().map(|t| t.0.to_string());
        Some(start)
    };
    stats.into_iter().filter_map(|s| known(&s).map(|start| (s, start))).collect()
}

pub(super) async fn summary(kit: &Kit, registry: &Registry) -> Value {
    let now = crate::status::whole_seconds(Timestamp::now()).to_string();
    let disk = machine::disk(&kit.host.data_dir);
    let available = machine::memory_available_bytes();
    let working = kit.memory_capacity_bytes.saturating_sub(available);
    let filesystem = json!({"time": now, "availableBytes": disk.available_bytes, "capacityBytes": disk.total_bytes,
        "usedBytes": disk.total_bytes.saturating_sub(disk.available_bytes), "inodes": disk.inodes, "inodesFree": disk.inodes_free});
    let mut items = Vec::new();
    for (stats, start) in pods(kit, registry).await {
        let attributes = stats.attributes.unwrap_or_default();
        let metadata = attributes.metadata.unwrap_or_default();
        let linux = stats.linux.unwrap_or_default();
        let containers: Vec<Value> = linux.containers.iter().map(|c| {
            let name = c.attributes.as_ref().and_then(|a| a.metadata.as_ref()).map(|m| m.name.clone());
            let rootfs = c.writable_layer.as_ref().map(|w| json!({"time": time(w.timestamp), "usedBytes": value(w.used_bytes.as_ref()),
                "inodesUsed": value(w.inodes_used.as_ref())}));
            json!({"name": name, "startTime": start, "cpu": cpu(c.cpu.as_ref()), "memory": memory(c.memory.as_ref()), "rootfs": rootfs})
        }).collect();
        items.push(json!({
            "podRef": {"name": metadata.name, "namespace": metadata.namespace, "uid": metadata.uid},
            "startTime": start, "containers": containers, "cpu": cpu(linux.cpu.as_ref()), "memory": memory(linux.memory.as_ref()),
            "network": network(linux.network.as_ref()),
            "process_stats": {"process_count": linux.process.as_ref().map_or(0, |p| value(p.process_count.as_ref()))},
        }));
    }
    json!({
        "node": {
            "nodeName": kit.node_name,
            "cpu": {"time": now, "usageCoreNanoSeconds": machine::cpu_used_nanos()},
            "memory": {"time": now, "availableBytes": available, "usageBytes": working, "workingSetBytes": working},
            "fs": filesystem,
            "runtime": {"imageFs": filesystem},
        },
        "pods": items,
    })
}

/// What metrics-server scrapes.
pub(super) async fn resource(kit: &Kit, registry: &Registry) -> String {
    let mut out = String::new();
    let mut family = |name: &str, kind: &str, help: &str, lines: Vec<String>| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "# HELP {name} [STABLE] {help}\n# TYPE {name} {kind}");
        for line in lines {
            let _ = writeln!(out, "{name}{line}");
        }
    };
    let seconds = |nanos: u64| format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000);
    let working = kit.memory_capacity_bytes.saturating_sub(machine::memory_available_bytes());
    family(
        "node_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the node in core-seconds",
        vec![format!(" {}", seconds(machine::cpu_used_nanos()))],
    );
    family(
        "node_memory_working_set_bytes",
        "gauge",
        "Current working set of the node in bytes",
        vec![format!(" {working}")],
    );
    let (mut pod_cpu, mut pod_memory, mut own_cpu, mut own_memory) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (stats, _) in pods(kit, registry).await {
        let metadata = stats.attributes.unwrap_or_default().metadata.unwrap_or_default();
        let linux = stats.linux.unwrap_or_default();
        let label = format!("namespace=\"{}\",pod=\"{}\"", metadata.namespace, metadata.name);
        if let Some(usage) = &linux.cpu {
            pod_cpu.push(format!("{{{label}}} {}", seconds(value(usage.usage_core_nano_seconds.as_ref()))));
        }
        if let Some(usage) = &linux.memory {
            pod_memory.push(format!("{{{label}}} {}", value(usage.working_set_bytes.as_ref())));
        }
        for container in &linux.containers {
            let name = container
                .attributes
                .as_ref()
                .and_then(|a| a.metadata.as_ref())
                .map(|m| m.name.clone())
                .unwrap_or_default();
            let label = format!("container=\"{name}\",{label}");
            if let Some(usage) = &container.cpu {
                own_cpu.push(format!("{{{label}}} {}", seconds(value(usage.usage_core_nano_seconds.as_ref()))));
            }
            if let Some(usage) = &container.memory {
                own_memory.push(format!("{{{label}}} {}", value(usage.working_set_bytes.as_ref())));
            }
        }
    }
    family(
        "pod_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the pod in core-seconds",
        pod_cpu,
    );
    family("pod_memory_working_set_bytes", "gauge", "Current working set of the pod in bytes", pod_memory);
    family(
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the container in core-seconds",
        own_cpu,
    );
    family("container_memory_working_set_bytes", "gauge", "Current working set of the container in bytes", own_memory);
    out
}

/// One family of `/metrics/cadvisor`.
struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    lines: Vec<String>,
}

/// What dashboards and alerts read of containers, under cAdvisor's names. Only figures that the runtime gives.
pub(super) async fn cadvisor(kit: &Kit, registry: &Registry) -> String {
    let family = |name, kind, help| Family { name, kind, help, lines: Vec::new() };
    let mut cpu = family("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in seconds.");
    let mut usage =
        family("container_memory_usage_bytes", "gauge", "Current memory usage in bytes, including all memory.");
    let mut working = family("container_memory_working_set_bytes", "gauge", "Current working set in bytes.");
    let mut rss = family("container_memory_rss", "gauge", "Size of RSS in bytes.");
    let mut disk = family("container_fs_usage_bytes", "gauge", "Bytes that are consumed by the container.");
    let mut start = family("container_start_time_seconds", "gauge", "Start time of the container since unix epoch.");
    let network = [
        ("container_network_receive_bytes_total", "Cumulative count of bytes received"),
        ("container_network_receive_errors_total", "Cumulative count of errors encountered while receiving"),
        ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted"),
        ("container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting"),
    ];
    let mut network = network.map(|(name, help)| family(name, "counter", help));
    let seconds = |nanos: u64| format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000);
    for (stats, _) in pods(kit, registry).await {
        let metadata = stats.attributes.unwrap_or_default().metadata.unwrap_or_default();
        let linux = stats.linux.unwrap_or_default();
        let known = registry.get(&metadata.uid).map(|handle| handle.snapshot.borrow().containers.clone());
        let known = known.unwrap_or_default();
        let pod = format!("namespace=\"{}\",pod=\"{}\"", metadata.namespace, metadata.name);
        if let Some(interface) = linux.network.as_ref().and_then(|n| n.default_interface.as_ref()) {
            let values = [&interface.rx_bytes, &interface.rx_errors, &interface.tx_bytes, &interface.tx_errors];
            for (family, own) in network.iter_mut().zip(values) {
                let name = &interface.name;
                family.lines.push(format!("{{interface=\"{name}\",{pod}}} {}", value(own.as_ref())));
            }
        }
        for container in &linux.containers {
            let attributes = container.attributes.clone().unwrap_or_default();
            let name = attributes.metadata.map(|m| m.name).unwrap_or_default();
            let found = known.iter().find(|c| c.id == attributes.id);
            let image = found.map_or("", |c| c.image.as_str());
            let id = &attributes.id;
            let label = format!("{{container=\"{name}\",id=\"{id}\",image=\"{image}\",name=\"{id}\",{pod}}}");
            if let Some(own) = &container.cpu {
                cpu.lines.push(format!("{label} {}", seconds(value(own.usage_core_nano_seconds.as_ref()))));
            }
            if let Some(own) = &container.memory {
                usage.lines.push(format!("{label} {}", value(own.usage_bytes.as_ref())));
                working.lines.push(format!("{label} {}", value(own.working_set_bytes.as_ref())));
                rss.lines.push(format!("{label} {}", value(own.rss_bytes.as_ref())));
            }
            if let Some(own) = &container.writable_layer {
                disk.lines.push(format!("{label} {}", value(own.used_bytes.as_ref())));
            }
            if let Some(State::Running { since }) = found.map(|c| &c.state) {
                start.lines.push(format!("{label} {}", since.as_second()));
            }
        }
    }
    let mut out = String::new();
    for Family { name, kind, help, lines } in [cpu, usage, working, rss, disk, start].into_iter().chain(network) {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for line in lines {
            let _ = writeln!(out, "{name}{line}");
        }
    }
    out
}

/// The kubelet's own figures.
pub(super) fn own(registry: &Registry) -> String {
    let all = registry.all();
    let running: usize =
        all.iter().map(|h| h.snapshot.borrow().containers.iter().filter(|c| c.is_running()).count()).sum();
    format!(
        "# HELP kubelet_running_pods [BETA] Number of pods that have a running pod sandbox\n# TYPE kubelet_running_pods gauge\nkubelet_running_pods {}\n# HELP kubelet_running_containers [BETA] Number of containers currently running\n# TYPE kubelet_running_containers gauge\nkubelet_running_containers{{container_state=\"running\"}} {running}\n",
        all.iter().filter(|h| h.snapshot.borrow().sandbox.as_ref().is_some_and(|s| s.ready)).count()
    )
}
