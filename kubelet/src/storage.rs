//! Holds pods to what they may write on the node: the `sizeLimit` of an emptyDir on disk, and limits of `ephemeral-storage`. A pod
//! above one is evicted, with upstream's words. `judge` is pure; trees are measured by tree.rs. An emptyDir in memory needs none of
//! this: its file system has the size of the limit (volumes/host.rs).

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::kit::Kit;
use crate::pod::{Kind, LocalPod};
use crate::sync::observed::Failed;
use crate::worker::Snapshot;
use crate::{resources, tree};

const RESOURCE: &str = "ephemeral-storage";
/// An evicted pod has eaten its neighbours' disk: no long farewell.
const GRACE_SECONDS: i64 = 1;

/// What a pod uses of the node's disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// By volume name: emptyDirs on disk.
    pub volumes: BTreeMap<String, u64>,
    /// By container name: writable layer and log.
    pub containers: BTreeMap<String, u64>,
}

/// Whether the pod has any limit that has to be looked after.
#[must_use]
pub fn is_limited(pod: &LocalPod) -> bool {
    volume_limits(pod).next().is_some() || pod.members.iter().any(|m| limit(&m.container).is_some())
}

/// Names and limits of emptyDirs on disk.
fn volume_limits(pod: &LocalPod) -> impl Iterator<Item = (&str, &Quantity)> {
    pod.spec.volumes.iter().flatten().filter_map(|volume| {
        let source = volume.empty_dir.as_ref().filter(|source| source.medium.as_deref() != Some("Memory"))?;
        let limit = source.size_limit.as_ref()?;
        resources::units(limit).is_some_and(|bytes| bytes > 0).then_some((volume.name.as_str(), limit))
    })
}

fn limit(container: &k8s_openapi::api::core::v1::Container) -> Option<&Quantity> {
    container.resources.as_ref()?.limits.as_ref()?.get(RESOURCE)
}

fn exceeds(used: u64, limit: &Quantity) -> bool {
    resources::units(limit).and_then(|bytes| u64::try_from(bytes).ok()).is_some_and(|bytes| used > bytes)
}

/// The eviction that the usage calls for, in upstream's order: volumes, the pod as a whole, containers.
#[must_use]
pub fn judge(pod: &LocalPod, usage: &Usage) -> Option<Failed> {
    let evicted = |message| {
        Some(Failed { reason: "Evicted".into(), message, grace_seconds: Some(GRACE_SECONDS), is_disruption: true })
    };
    for (name, limit) in volume_limits(pod) {
        if exceeds(usage.volumes.get(name).copied().unwrap_or(0), limit) {
            return evicted(format!("Usage of EmptyDir volume \"{name}\" exceeds the limit \"{}\". ", limit.0));
        }
    }
    let limits: Vec<&Quantity> = pod.of(&[Kind::Regular, Kind::Sidecar]).filter_map(|m| limit(&m.container)).collect();
    let allowed = limits.iter().filter_map(|limit| resources::units(limit)).fold(0, i64::saturating_add);
    let total =
        usage.volumes.values().chain(usage.containers.values()).fold(0, |sum: u64, own| sum.saturating_add(*own));
    if !limits.is_empty() && i64::try_from(total).unwrap_or(i64::MAX) > allowed {
        let text = if let [only] = limits[..] { only.0.clone() } else { allowed.to_string() };
        return evicted(format!("Pod ephemeral local storage usage exceeds the total limit of containers {text}. "));
    }
    for member in &pod.members {
        let Some(limit) = limit(&member.container) else { continue };
        if exceeds(usage.containers.get(member.name()).copied().unwrap_or(0), limit) {
            let name = member.name();
            return evicted(format!("Container {name} exceeded its local ephemeral storage limit \"{}\". ", limit.0));
        }
    }
    None
}

/// Measures what a pod uses; what cannot be read counts as nothing.
pub async fn measure(kit: &Kit, snapshot: &Snapshot) -> Usage {
    let mut usage = Usage::default();
    let pod = snapshot.pod.clone();
    let volumes = kit.host.pod_dir(&pod.uid).join("volumes/kubernetes.io~empty-dir");
    let logs = kit.host.log_dir(&pod);
    let (names, containers): (Vec<String>, Vec<String>) = (
        pod.spec.volumes.iter().flatten().filter(|v| on_disk(v)).map(|v| v.name.clone()).collect(),
        pod.members.iter().map(|m| m.name().to_owned()).collect(),
    );
    let look = move || {
        let of = |root: &Path, names: Vec<String>| -> BTreeMap<String, u64> {
            names.into_iter().map(|name| (name.clone(), tree::measure(&root.join(&name)).bytes)).collect()
        };
        (of(&volumes, names), of(&logs, containers))
    };
    if let Ok((volumes, containers)) = tokio::task::spawn_blocking(look).await {
        usage.volumes = volumes;
        usage.containers = containers;
    }
    if pod.members.iter().any(|m| limit(&m.container).is_some()) {
        for container in snapshot.containers.iter().filter(|c| c.is_running()) {
            let layer = kit.runtime.writable_layer_bytes(&container.id).await.unwrap_or(0);
            let own = usage.containers.entry(container.name.clone()).or_default();
            *own = own.saturating_add(layer);
        }
    }
    usage
}

fn on_disk(volume: &k8s_openapi::api::core::v1::Volume) -> bool {
    volume.empty_dir.as_ref().is_some_and(|source| source.medium.as_deref() != Some("Memory"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::Source;

    fn pod() -> LocalPod {
        let object = json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "u"},
            "spec": {
                "containers": [
                    {"name": "a", "image": "i", "resources": {"limits": {"ephemeral-storage": "2Mi"}}},
                    {"name": "b", "image": "i", "resources": {"limits": {"ephemeral-storage": "4Mi"}}},
                ],
                "volumes": [
                    {"name": "small", "emptyDir": {"sizeLimit": "1Mi"}},
                    {"name": "quick", "emptyDir": {"sizeLimit": "1Mi", "medium": "Memory"}},
                    {"name": "large", "emptyDir": {}},
                ],
            },
        });
        LocalPod::parse(serde_json::from_value(object).unwrap(), Source::Api).unwrap()
    }

    #[test]
    fn who_uses_too_much_is_named() {
        let check = |volumes: &[(&str, u64)], containers: &[(&str, u64)], expect: Option<&str>| {
            let own = |list: &[(&str, u64)]| list.iter().map(|(n, b)| ((*n).to_owned(), *b)).collect();
            let usage = Usage { volumes: own(volumes), containers: own(containers) };
            let said = judge(&pod(), &usage).map(|failed| failed.message);
            assert_eq!(said.as_deref(), expect, "{usage:?}");
        };
        const MIB: u64 = 1 << 20;
        check(&[("small", MIB), ("large", 2 * MIB)], &[("a", MIB)], None);
        let volume = "Usage of EmptyDir volume \"small\" exceeds the limit \"1Mi\". ";
        check(&[("small", MIB + 1)], &[], Some(volume));
        let whole = "Pod ephemeral local storage usage exceeds the total limit of containers 6291456. ";
        check(&[("large", 6 * MIB)], &[("b", 1)], Some(whole));
        let one = "Container a exceeded its local ephemeral storage limit \"2Mi\". ";
        check(&[], &[("a", 3 * MIB)], Some(one));
        check(&[], &[], None);
        assert!(is_limited(&pod()));
    }
}
