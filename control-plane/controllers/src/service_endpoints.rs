//! Which pods stand behind a Service, at which ports: what EndpointSlices and Endpoints both say. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use control_plane_api::selector::Selector;
use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use crate::cache::Key;
use crate::replica_set::ready_since;
use crate::world::{Changed, World};

/// A port of the backends, as one Service port maps to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Port {
    pub name: String,
    pub protocol: String,
    pub number: i32,
    pub app_protocol: Option<String>,
}

/// A pod behind a Service.
#[derive(Clone, Debug)]
pub(crate) struct Backend {
    pub pod: Arc<Pod>,
    pub addresses: Vec<IpAddr>,
    pub is_ready: bool,
    pub is_serving: bool,
    pub is_terminating: bool,
    pub hostname: Option<String>,
}

/// The keys of Services that a change concerns.
pub(crate) fn services(world: &World, changed: &Changed) -> Vec<Key> {
    match changed {
        Changed::Service(change) => change.latest().map(|service| Key::of(service.as_ref())).into_iter().collect(),
        Changed::Pod(change) => {
            let mut keys: Vec<Key> = change.states().flat_map(|pod| selecting(world, pod)).collect();
            keys.sort();
            keys.dedup();
            keys
        }
        _ => Vec::new(),
    }
}

fn selecting(world: &World, pod: &Pod) -> Vec<Key> {
    let services = world.services.in_namespace(&pod.namespace().unwrap_or_default());
    services.iter().filter(|service| selects(service, pod)).map(|service| Key::of(service.as_ref())).collect()
}

/// A Service without a selector has its endpoints from somebody else.
pub(crate) fn has_selector(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.selector.as_ref()).is_some_and(|selector| !selector.is_empty())
        && service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) != Some("ExternalName")
}

fn selects(service: &Service, pod: &Pod) -> bool {
    let Some(selector) = service.spec.as_ref().and_then(|spec| spec.selector.as_ref()) else { return false };
    let map: serde_json::Map<_, _> = selector.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect();
    has_selector(service)
        && Selector::from_map(&map)
            .is_ok_and(|selector| selector.matches(|key| pod.labels().get(key).map(String::as_str)))
}

pub(crate) fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

/// Backends by the ports they serve the Service at, in the order of their names. Pods that name their ports differently
/// stand in different groups.
pub(crate) fn groups(service: &Service, pods: &[Arc<Pod>]) -> BTreeMap<Vec<Port>, Vec<Backend>> {
    let mut groups: BTreeMap<Vec<Port>, Vec<Backend>> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| selects(service, pod)) {
        if let Some(backend) = backend(service, pod) {
            groups.entry(ports(service, pod)).or_default().push(backend);
        }
    }
    groups
}

fn backend(service: &Service, pod: &Arc<Pod>) -> Option<Backend> {
    let status = pod.status.as_ref()?;
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let mut addresses: Vec<IpAddr> =
        status.pod_ips.iter().flatten().filter_map(|address| address.ip.parse().ok()).collect();
    if addresses.is_empty() {
        addresses.extend(status.pod_ip.iter().filter_map(|address| address.parse::<IpAddr>().ok()));
    }
    if addresses.is_empty() {
        return None;
    }
    let service_spec = service.spec.as_ref()?;
    let publishes_all = service_spec.publish_not_ready_addresses == Some(true);
    let is_terminating = pod.metadata.deletion_timestamp.is_some();
    let is_serving = ready_since(pod).is_some();
    let spec = pod.spec.as_ref()?;
    let is_named = spec.subdomain.is_some() && spec.subdomain == service.metadata.name;
    Some(Backend {
        addresses,
        is_ready: publishes_all || (is_serving && !is_terminating),
        is_serving,
        is_terminating,
        hostname: spec.hostname.clone().filter(|hostname| is_named && !hostname.is_empty()),
        pod: Arc::clone(pod),
    })
}

fn ports(service: &Service, pod: &Pod) -> Vec<Port> {
    let wanted = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    let mut ports: Vec<Port> = wanted
        .filter_map(|port| {
            Some(Port {
                name: port.name.clone().unwrap_or_default(),
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                number: target(port, pod)?,
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect();
    ports.sort();
    ports
}

/// A named target port is looked up in the pod's containers; a pod without it does not serve that port.
fn target(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let spec = pod.spec.as_ref()?;
            let sidecars =
                spec.init_containers.iter().flatten().filter(|init| init.restart_policy.as_deref() == Some("Always"));
            let declared =
                spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
            let found = declared.into_iter().find(|declared| {
                declared.name.as_deref() == Some(name) && declared.protocol.as_deref().unwrap_or("TCP") == protocol
            });
            found.map(|declared| declared.container_port)
        }
    }
}

/// How a Service names its port where it has no name.
pub(crate) fn optional(name: &str) -> Option<&str> {
    (!name.is_empty()).then_some(name)
}
