//! Pod sandboxes: one file per RPC. All of it blocks; the service runs it on blocking threads.

pub(crate) mod list;
pub(crate) mod remove;
pub(crate) mod run;
pub(crate) mod stats;
pub(crate) mod stop;
pub(crate) mod update_resources;

pub(crate) mod status;

use runtime_cri_api::v1::PodSandboxConfig;

/// What makes a sandbox the same one: its pod, and how often it was tried.
pub(crate) fn name(config: &PodSandboxConfig) -> String {
    let metadata = config.metadata.clone().unwrap_or_default();
    format!("{}_{}_{}_{}", metadata.name, metadata.namespace, metadata.uid, metadata.attempt)
}

/// Whether every pair of `selector` is among `labels`.
pub(crate) fn selected<S: std::hash::BuildHasher>(
    selector: &std::collections::HashMap<String, String, S>,
    labels: &std::collections::HashMap<String, String, S>,
) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}
