//! Pod sandboxes: one file per RPC. What is not async blocks; the service runs it in the pool.

pub(crate) mod list;
pub(crate) mod remove;
pub(crate) mod run;
pub(crate) mod stats;
pub(crate) mod stop;
pub(crate) mod update_resources;

pub(crate) mod status;

use runtime_cri_api::v1::{PodSandboxConfig, Protocol};

use crate::record::SandboxRecord;

/// What makes a sandbox the same one: its pod, and how often it was tried.
pub(crate) fn name(config: &PodSandboxConfig) -> String {
    let metadata = config.metadata.clone().unwrap_or_default();
    format!("{}_{}_{}_{}", metadata.name, metadata.namespace, metadata.uid, metadata.attempt)
}

/// The TCP ports of the host that lead to the pod until it is taken down.
pub(crate) fn host_ports(record: &SandboxRecord) -> Vec<u16> {
    let mapped = record.config.port_mappings.iter().filter(|mapping| mapping.protocol() == Protocol::Tcp);
    mapped.filter_map(|mapping| u16::try_from(mapping.host_port).ok()).filter(|port| *port > 0).collect()
}

/// Whether every pair of `selector` is among `labels`.
pub(crate) fn selected<S: std::hash::BuildHasher>(
    selector: &std::collections::HashMap<String, String, S>,
    labels: &std::collections::HashMap<String, String, S>,
) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}
