//! PodSandboxStats and ListPodSandboxStats, and the metrics of pods: from the pod's cgroup, its network and its containers.

use std::fs;

use runtime_cri_api::v1::{
    ContainerMetrics, ContainerStats, LinuxPodSandboxStats, Metric, MetricDescriptor, MetricType,
    NetworkInterfaceUsage, NetworkUsage, PodSandboxAttributes, PodSandboxMetrics, PodSandboxState, PodSandboxStats,
    PodSandboxStatsFilter, ProcessUsage,
};
use runtime_linux::namespace::{self, Kind};

use super::selected;
use crate::container::stats::{self as container_stats, value};
use crate::facts;
use crate::node::{Node, Sandbox, now_ns};
use crate::status::Error;

pub(crate) fn one(node: &Node, id: &str) -> Result<PodSandboxStats, Error> {
    stats(node, &*node.sandbox(id)?)
}

pub(crate) fn list(node: &Node, filter: Option<PodSandboxStatsFilter>) -> Vec<PodSandboxStats> {
    let filter = filter.unwrap_or_default();
    let wanted = |sandbox: &Sandbox| {
        sandbox.read(|record, shim| {
            facts::sandbox_state(record, shim) == PodSandboxState::SandboxReady
                && (filter.id.is_empty() || record.id.starts_with(&filter.id))
                && selected(&filter.label_selector, &record.config.labels)
        })
    };
    let found = node.sandboxes();
    found.iter().filter(|sandbox| wanted(sandbox)).filter_map(|sandbox| stats(node, sandbox).ok()).collect()
}

fn stats(node: &Node, sandbox: &Sandbox) -> Result<PodSandboxStats, Error> {
    let (record, shim) = sandbox.facts();
    let timestamp = now_ns();
    let containers: Vec<ContainerStats> = node
        .containers_of(&sandbox.id)
        .iter()
        .filter_map(|container| container_stats::stats(node, container).ok())
        .filter(|stats| stats.cpu.is_some())
        .collect();
    let parent = record.config.linux.as_ref().map(|linux| linux.cgroup_parent.clone()).filter(|path| !path.is_empty());
    let path = parent.unwrap_or_else(|| crate::container::own_cgroup(&node.config, &record).unwrap_or_default());
    let usage = container_stats::cgroup(node, &format!("/{}", path.trim_matches('/')))?;
    let ready = facts::sandbox_state(&record, shim) == PodSandboxState::SandboxReady;
    let network = if ready && record.network.is_some() { network(sandbox, timestamp)? } else { None };
    Ok(PodSandboxStats {
        attributes: Some(PodSandboxAttributes {
            id: record.id,
            metadata: record.config.metadata,
            labels: record.config.labels,
            annotations: record.config.annotations,
        }),
        linux: Some(LinuxPodSandboxStats {
            cpu: usage.as_ref().map(|usage| container_stats::cpu(usage, timestamp)),
            memory: usage.as_ref().map(|usage| container_stats::memory(usage, timestamp)),
            network,
            process: usage.as_ref().map(|usage| ProcessUsage { timestamp, process_count: value(usage.pids.current) }),
            containers,
            io: None,
        }),
        windows: None,
    })
}

/// What went through the pod's interfaces; a thread looks, because `/proc/net` is that of the thread's namespace.
fn network(sandbox: &Sandbox, timestamp: i64) -> Result<Option<NetworkUsage>, Error> {
    let path = sandbox.dir.join("ns/net");
    let look = || -> std::io::Result<String> {
        let fd = namespace::open_path(&path)?;
        namespace::join(&fd, Kind::Network.flag())?;
        fs::read_to_string("/proc/thread-self/net/dev")
    };
    let failed = Error::io("look into", &path);
    let table = std::thread::scope(|scope| match std::thread::Builder::new().spawn_scoped(scope, look) {
        Ok(thread) => thread.join().unwrap_or_else(|_| Err(std::io::Error::other("the looking thread panicked"))),
        Err(error) => Err(error),
    });
    let table = table.map_err(failed)?;
    let mut interfaces = interfaces(&table);
    let default = interfaces.iter().position(|interface| interface.name == "eth0").map(|at| interfaces.remove(at));
    Ok(Some(NetworkUsage { timestamp, default_interface: default, interfaces }))
}

/// Lines of proc_pid_net(5): `name: rx_bytes packets errs drop fifo frame compressed multicast tx_bytes packets errs ...`.
fn interfaces(table: &str) -> Vec<NetworkInterfaceUsage> {
    table
        .lines()
        .filter_map(|line| {
            let (name, numbers) = line.split_once(':')?;
            let numbers: Vec<u64> = numbers.split_whitespace().map_while(|number| number.parse().ok()).collect();
            Some(NetworkInterfaceUsage {
                name: name.trim().to_owned(),
                rx_bytes: value(*numbers.first()?),
                rx_errors: value(*numbers.get(2)?),
                tx_bytes: value(*numbers.get(8)?),
                tx_errors: value(*numbers.get(10)?),
            })
        })
        .filter(|interface| interface.name != "lo")
        .collect()
}

/// Name, help, what is read of a container's statistics.
type Row = (&'static str, &'static str, MetricType, fn(&ContainerStats) -> Option<u64>);

const ROWS: [Row; 5] = [
    ("container_cpu_usage_nanoseconds_total", "CPU time used, in nanoseconds", MetricType::Counter, |stats| {
        Some(stats.cpu.as_ref()?.usage_core_nano_seconds?.value)
    }),
    ("container_memory_usage_bytes", "Memory used, with page cache", MetricType::Gauge, |stats| {
        Some(stats.memory.as_ref()?.usage_bytes?.value)
    }),
    ("container_memory_working_set_bytes", "Memory that cannot be taken back", MetricType::Gauge, |stats| {
        Some(stats.memory.as_ref()?.working_set_bytes?.value)
    }),
    ("container_memory_rss", "Anonymous memory", MetricType::Gauge, |stats| {
        Some(stats.memory.as_ref()?.rss_bytes?.value)
    }),
    ("container_fs_usage_bytes", "Bytes in the writable layer", MetricType::Gauge, |stats| {
        Some(stats.writable_layer.as_ref()?.used_bytes?.value)
    }),
];

/// Labels of every metric, in the order of its values.
const LABELS: [&str; 5] = ["id", "name", "pod", "namespace", "image"];

pub(crate) fn descriptors() -> Vec<MetricDescriptor> {
    let label_keys = || LABELS.map(String::from).to_vec();
    ROWS.iter()
        .map(|(name, help, ..)| MetricDescriptor {
            name: (*name).into(),
            help: (*help).into(),
            label_keys: label_keys(),
        })
        .collect()
}

pub(crate) fn metrics(node: &Node) -> Vec<PodSandboxMetrics> {
    let all = list(node, None);
    all.into_iter()
        .map(|pod| {
            let attributes = pod.attributes.unwrap_or_default();
            let owner = attributes.metadata.unwrap_or_default();
            let containers = pod.linux.map(|linux| linux.containers).unwrap_or_default();
            let container_metrics = containers.iter().map(|stats| container_metrics(node, stats, &owner)).collect();
            PodSandboxMetrics { pod_sandbox_id: attributes.id, metrics: Vec::new(), container_metrics }
        })
        .collect()
}

fn container_metrics(
    node: &Node,
    stats: &ContainerStats,
    owner: &runtime_cri_api::v1::PodSandboxMetadata,
) -> ContainerMetrics {
    let attributes = stats.attributes.clone().unwrap_or_default();
    let image = node.container(&attributes.id).map(|container| container.read(|record| record.image_ref.clone()));
    let label_values = vec![
        attributes.id.clone(),
        attributes.metadata.unwrap_or_default().name,
        owner.name.clone(),
        owner.namespace.clone(),
        image.unwrap_or_default(),
    ];
    let timestamp = now_ns();
    let metrics = ROWS
        .iter()
        .filter_map(|(name, _, kind, read)| {
            let found = read(stats)?;
            Some(Metric {
                name: (*name).into(),
                timestamp,
                metric_type: (*kind).into(),
                label_values: label_values.clone(),
                value: value(found),
            })
        })
        .collect();
    ContainerMetrics { container_id: attributes.id, metrics }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_read_but_for_loopback() {
        let table = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop\n    \
            lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0\n  \
            eth0:    1000      10    2    0    0     0          0         0     2000      20    3    0    0     0       0          0\n";
        let found = interfaces(table);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].name.as_str(), found[0].rx_bytes.unwrap().value), ("eth0", 1000));
        assert_eq!((found[0].tx_bytes.unwrap().value, found[0].tx_errors.unwrap().value), (2000, 3));
    }
}
