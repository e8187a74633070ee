//! EndpointSlices: the backends of every Service that has a selector, at most a hundred a slice.
//!
//! A backend stays in the slice it is in, so that one pod's change rewrites one slice.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::action::{Action, Part, Plan, Propagation};
use crate::cache::Key;
use crate::kind::Kind;
use crate::runner::Controller;
use crate::service_endpoints::{Backend, Port, groups, has_selector, is_headless, services};
use crate::world::{Changed, World};

const ENDPOINTS_MAX: usize = 100;
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
const ZONE: &str = "topology.kubernetes.io/zone";

pub(crate) struct EndpointSlices;

impl Controller for EndpointSlices {
    const NAME: &'static str = "endpointslice-controller";

    fn keys(&self, world: &World, changed: &Changed) -> Vec<Key> {
        match changed {
            Changed::EndpointSlice(change) => {
                change.latest().into_iter().filter_map(|slice| service_of(slice)).collect()
            }
            _ => services(world, changed),
        }
    }

    fn plan(&self, world: &World, key: &Key, _now: Timestamp) -> Plan {
        let slices = world.endpoint_slices.in_namespace(&key.namespace);
        let ours: Vec<_> = slices.into_iter().filter(|slice| service_of(slice).as_ref() == Some(key)).collect();
        let service = world.services.get(key).filter(|service| has_selector(service));
        // Slices of a Service that is gone go by their owner reference; those of one that lost its selector stay, as upstream.
        let Some(service) = service else { return Plan::default() };
        let zone = |name: &str| zone_of(world.nodes.get(&Key::new("", name)).as_deref());
        plan(&service, &world.pods.in_namespace(&key.namespace), &ours, &zone).into()
    }
}

fn service_of(slice: &EndpointSlice) -> Option<Key> {
    let labels = slice.labels();
    let is_ours = labels.get(MANAGED_BY).map(String::as_str) == Some(MANAGER);
    let name = labels.get(SERVICE_NAME).filter(|_| is_ours)?;
    Some(Key::new(slice.namespace().unwrap_or_default(), name.clone()))
}

fn zone_of(node: Option<&Node>) -> Option<String> {
    node?.labels().get(ZONE).cloned()
}

/// Slices of one kind of address and one list of ports share their endpoints between them.
pub(crate) type Group = (&'static str, Vec<Port>);

fn plan(
    service: &Service,
    pods: &[Arc<Pod>],
    slices: &[Arc<EndpointSlice>],
    zone: &dyn Fn(&str) -> Option<String>,
) -> Vec<Action> {
    let mut wanted = wanted(service, pods, zone);
    let mut actions = Vec::new();
    let live = slices.iter().filter(|slice| slice.metadata.deletion_timestamp.is_none());
    let mut by_group: BTreeMap<Group, Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in live {
        match group_of(slice).filter(|group| wanted.contains_key(group)) {
            Some(group) => by_group.entry(group).or_default().push(slice),
            None => actions.push(delete(slice)),
        }
    }
    for (group, endpoints) in &mut wanted {
        let existing = by_group.remove(group).unwrap_or_default();
        actions.extend(fill(service, group, std::mem::take(endpoints), &existing));
    }
    actions
}

/// Endpoints by the name of their pod, for every group. A Service without backends keeps one empty slice.
fn wanted(
    service: &Service,
    pods: &[Arc<Pod>],
    zone: &dyn Fn(&str) -> Option<String>,
) -> BTreeMap<Group, BTreeMap<String, Endpoint>> {
    let families =
        service.spec.as_ref().and_then(|spec| spec.ip_families.clone()).unwrap_or_else(|| vec!["IPv4".into()]);
    let mut wanted: BTreeMap<Group, BTreeMap<String, Endpoint>> = BTreeMap::new();
    for (ports, backends) in groups(service, pods) {
        for backend in backends {
            for family in ["IPv4", "IPv6"].into_iter().filter(|family| families.iter().any(|wanted| wanted == family)) {
                if let Some(endpoint) = endpoint(&backend, family, zone) {
                    wanted.entry((family, ports.clone())).or_default().insert(backend.pod.name_any(), endpoint);
                }
            }
        }
    }
    if wanted.is_empty() {
        let family = if families.first().is_some_and(|family| family == "IPv6") { "IPv6" } else { "IPv4" };
        wanted.insert((family, Vec::new()), BTreeMap::new());
    }
    wanted
}

fn endpoint(backend: &Backend, family: &str, zone: &dyn Fn(&str) -> Option<String>) -> Option<Endpoint> {
    let address = backend.addresses.iter().find(|address| address.is_ipv6() == (family == "IPv6"))?;
    let node = backend.pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let value = json!({
        "addresses": [address.to_string()],
        "conditions": {"ready": backend.is_ready, "serving": backend.is_serving, "terminating": backend.is_terminating},
        "hostname": backend.hostname,
        "nodeName": node,
        "zone": node.as_deref().and_then(zone),
        "targetRef": {"kind": "Pod", "namespace": backend.pod.namespace(), "name": backend.pod.name_any(), "uid": backend.pod.uid()},
    });
    serde_json::from_value(value).ok()
}

pub(crate) fn group_of(slice: &EndpointSlice) -> Option<Group> {
    let family = match slice.address_type.as_str() {
        "IPv4" => "IPv4",
        "IPv6" => "IPv6",
        _ => return None,
    };
    let mut ports: Vec<Port> = slice
        .ports
        .iter()
        .flatten()
        .filter_map(|port| {
            Some(Port {
                name: port.name.clone().unwrap_or_default(),
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                number: port.port?,
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect();
    ports.sort();
    Some((family, ports))
}

fn pod_name(endpoint: &Endpoint) -> &str {
    endpoint.target_ref.as_ref().and_then(|target| target.name.as_deref()).unwrap_or_default()
}

fn fill(
    service: &Service,
    group: &Group,
    mut endpoints: BTreeMap<String, Endpoint>,
    existing: &[&EndpointSlice],
) -> Vec<Action> {
    // Who is somewhere stays there, with what is true of it now.
    let mut kept: Vec<Vec<Endpoint>> = existing
        .iter()
        .map(|slice| {
            slice.endpoints.iter().flatten().filter_map(|endpoint| endpoints.remove(pod_name(endpoint))).collect()
        })
        .collect();
    let mut rest: Vec<Endpoint> = endpoints.into_values().collect();
    for slice in &mut kept {
        let room = ENDPOINTS_MAX.saturating_sub(slice.len()).min(rest.len());
        slice.extend(rest.drain(..room));
    }
    let mut actions = Vec::new();
    let is_last = |index: usize| index == 0 && rest.is_empty() && kept.iter().all(Vec::is_empty);
    for (index, (slice, endpoints)) in existing.iter().zip(&kept).enumerate() {
        if endpoints.is_empty() && !is_last(index) {
            actions.push(delete(slice));
        } else if slice.endpoints.as_deref().unwrap_or_default() != endpoints.as_slice() || !has_labels(service, slice)
        {
            actions.push(update(service, slice, endpoints));
        }
    }
    let new = rest.chunks(ENDPOINTS_MAX).map(<[Endpoint]>::to_vec);
    actions.extend(new.map(|endpoints| create(service, group, &endpoints)));
    if existing.is_empty() && rest.is_empty() {
        actions.push(create(service, group, &[]));
    }
    actions
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.labels().clone();
    labels.remove(HEADLESS);
    labels.insert(SERVICE_NAME.into(), service.name_any());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels
}

fn has_labels(service: &Service, slice: &EndpointSlice) -> bool {
    labels(service) == *slice.labels()
}

fn create(service: &Service, (family, ports): &Group, endpoints: &[Endpoint]) -> Action {
    let body = json!({
        "metadata": {
            "generateName": format!("{}-", service.name_any()),
            "labels": labels(service),
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "Service", "name": service.name_any(), "uid": service.uid(),
                "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "addressType": family,
        "endpoints": endpoints,
        "ports": ports_of(ports),
    });
    Action::Create {
        kind: Kind::EndpointSlice,
        namespace: service.namespace().unwrap_or_default(),
        body,
        announce: None,
    }
}

pub(crate) fn ports_of(ports: &[Port]) -> Vec<Value> {
    let port = |port: &Port| json!({"name": port.name, "protocol": port.protocol, "port": port.number, "appProtocol": port.app_protocol});
    ports.iter().map(port).collect()
}

fn update(service: &Service, slice: &EndpointSlice, endpoints: &[Endpoint]) -> Action {
    let mut wanted: serde_json::Map<String, Value> =
        labels(service).into_iter().map(|(key, value)| (key, json!(value))).collect();
    for gone in slice.labels().keys().filter(|key| !wanted.contains_key(*key)).cloned().collect::<Vec<_>>() {
        wanted.insert(gone, Value::Null);
    }
    Action::Patch {
        kind: Kind::EndpointSlice,
        namespace: slice.namespace().unwrap_or_default(),
        name: slice.name_any(),
        part: Part::Whole,
        patch: json!({"metadata": {"uid": slice.uid(), "labels": wanted}, "endpoints": endpoints}),
    }
}

pub(crate) fn delete(slice: &EndpointSlice) -> Action {
    Action::Delete {
        kind: Kind::EndpointSlice,
        namespace: slice.namespace().unwrap_or_default(),
        name: slice.name_any(),
        uid: slice.uid().unwrap_or_default(),
        how: Propagation::Background,
        announce: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> Service {
        serde_json::from_value(json!({
            "metadata": {"namespace": "d", "name": "web", "uid": "v1"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}}))
        .unwrap()
    }

    fn pod(index: usize, port: i32, ready: bool) -> Arc<Pod> {
        let status = if ready { "True" } else { "False" };
        let pod = json!({
            "metadata": {"namespace": "d", "name": format!("p{index:03}"), "uid": format!("u{index}"), "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
            "status": {"phase": "Running", "podIP": format!("10.42.{}.{}", index / 250, index % 250 + 2),
                "conditions": [{"type": "Ready", "status": status}]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn apply(slices: &mut Vec<Arc<EndpointSlice>>, actions: Vec<Action>) -> usize {
        let count = actions.len();
        for action in actions {
            match action {
                Action::Create { mut body, .. } => {
                    let name = format!("s{}-{}", slices.len(), body["ports"][0]["port"]);
                    body["metadata"]["name"] = json!(name);
                    body["metadata"]["namespace"] = json!("d");
                    slices.push(Arc::new(serde_json::from_value(body).unwrap()));
                }
                Action::Patch { name, patch, .. } => {
                    let slice = slices.iter_mut().find(|slice| slice.name_any() == name).unwrap();
                    let mut changed = slice.as_ref().clone();
                    changed.endpoints = serde_json::from_value(patch["endpoints"].clone()).unwrap();
                    *slice = Arc::new(changed);
                }
                Action::Delete { name, .. } => slices.retain(|slice| slice.name_any() != name),
                other => panic!("{other:?}"),
            }
        }
        count
    }

    fn sizes(slices: &[Arc<EndpointSlice>]) -> Vec<usize> {
        slices.iter().map(|slice| slice.endpoints.as_ref().map_or(0, Vec::len)).collect()
    }

    #[test]
    fn slices_follow_the_pods() {
        let zone = |_: &str| Some("z".to_owned());
        let service = service();
        let settle = |slices: &mut Vec<Arc<EndpointSlice>>, pods: &[Arc<Pod>]| {
            let actions = plan(&service, pods, slices, &zone);
            apply(slices, actions)
        };
        let mut slices = Vec::new();
        let mut pods: Vec<_> = (0..250).map(|index| pod(index, 8080, true)).collect();
        settle(&mut slices, &pods);
        assert_eq!(sizes(&slices), [100, 100, 50]);
        assert_eq!(plan(&service, &pods, &slices, &zone), [], "settled");

        pods[0] = pod(0, 8080, false);
        let touched = settle(&mut slices, &pods);
        assert_eq!(touched, 1, "one pod's change rewrites one slice");

        pods[1] = pod(1, 9090, true);
        settle(&mut slices, &pods);
        assert_eq!(slices.len(), 4, "another port, another slice");

        settle(&mut slices, &[]);
        assert_eq!(sizes(&slices), [0], "an empty one stays");
    }
}
