//! Endpoints: what older clients read instead of EndpointSlices; the same backends, at most a thousand.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{EndpointSubset, Endpoints, Pod, Service};
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::action::{Action, Part, Plan};
use crate::cache::Key;
use crate::kind::Kind;
use crate::runner::Controller;
use crate::service_endpoints::{Backend, Port, groups, has_selector, is_headless, optional, services};
use crate::world::{Changed, World};

/// Beyond it the object says so in an annotation (core/v1 Endpoints, "over-capacity").
const ADDRESSES_MAX: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const HEADLESS: &str = "service.kubernetes.io/headless";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";

pub(crate) struct EndpointsOfServices;

impl Controller for EndpointsOfServices {
    const NAME: &'static str = "endpoint-controller";

    fn keys(&self, world: &World, changed: &Changed) -> Vec<Key> {
        match changed {
            Changed::Endpoints(change) => {
                change.latest().map(|endpoints| Key::of(endpoints.as_ref())).into_iter().collect()
            }
            _ => services(world, changed),
        }
    }

    fn plan(&self, world: &World, key: &Key, _now: Timestamp) -> Plan {
        let endpoints = world.endpoints.get(key);
        let service = world.services.get(key).filter(|service| has_selector(service));
        // The garbage collector takes the Endpoints of a Service that is gone.
        let Some(service) = service.filter(|service| service.metadata.deletion_timestamp.is_none()) else {
            return Plan::default();
        };
        plan(&service, &world.pods.in_namespace(&key.namespace), endpoints.as_deref()).into()
    }
}

fn plan(service: &Service, pods: &[Arc<Pod>], existing: Option<&Endpoints>) -> Vec<Action> {
    let (subsets, is_cut) = subsets(service, pods);
    let mut labels = service.labels().clone();
    labels.insert(MANAGED_BY.into(), "endpoint-controller".into());
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    let namespace = service.namespace().unwrap_or_default();
    let Some(existing) = existing else {
        let annotations = if is_cut { json!({OVER_CAPACITY: "truncated"}) } else { json!({}) };
        let owner = json!({"apiVersion": "v1", "kind": "Service", "name": service.name_any(), "uid": service.uid(),
            "controller": true, "blockOwnerDeletion": true});
        let metadata = json!({"name": service.name_any(), "labels": labels, "annotations": annotations, "ownerReferences": [owner]});
        let body = json!({"metadata": metadata, "subsets": subsets});
        return vec![Action::Create { kind: Kind::Endpoints, namespace, body, announce: None }];
    };
    let was_cut = existing.annotations().contains_key(OVER_CAPACITY);
    let is_same = existing.subsets.as_deref().unwrap_or_default() == subsets.as_slice()
        && labels.iter().all(|(key, value)| existing.labels().get(key) == Some(value))
        && was_cut == is_cut;
    if is_same {
        return Vec::new();
    }
    let annotations = json!({OVER_CAPACITY: if is_cut { json!("truncated") } else { Value::Null }});
    let metadata = json!({"uid": existing.uid(), "labels": labels, "annotations": annotations});
    let patch = json!({"metadata": metadata, "subsets": subsets});
    vec![Action::Patch { kind: Kind::Endpoints, namespace, name: service.name_any(), part: Part::Whole, patch }]
}

fn subsets(service: &Service, pods: &[Arc<Pod>]) -> (Vec<EndpointSubset>, bool) {
    let mut room = ADDRESSES_MAX;
    let mut is_cut = false;
    let mut subsets = Vec::new();
    let has_ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref()).is_some_and(|ports| !ports.is_empty());
    for (ports, backends) in groups(service, pods) {
        // A pod that has none of the Service's ports does not stand behind it.
        if ports.is_empty() && has_ports {
            continue;
        }
        // A terminating pod is not ready, and an older client has no word for it.
        let mut live: Vec<&Backend> =
            backends.iter().filter(|backend| !backend.is_terminating || backend.is_ready).collect();
        is_cut |= live.len() > room;
        live.truncate(room);
        room -= live.len();
        // Upstream sorts by address, so that the same pods always read the same.
        live.sort_by(|a, b| a.addresses.cmp(&b.addresses));
        let (ready, unready): (Vec<&Backend>, Vec<&Backend>) = live.into_iter().partition(|backend| backend.is_ready);
        if ready.is_empty() && unready.is_empty() {
            continue;
        }
        subsets.extend(subset(&ports, &ready, &unready));
    }
    (subsets, is_cut)
}

fn subset(ports: &[Port], ready: &[&Backend], unready: &[&Backend]) -> Option<EndpointSubset> {
    let list = |backends: &[&Backend]| backends.iter().map(|backend| address(backend)).collect::<Vec<_>>();
    let ports: Vec<Value> = ports
        .iter()
        .map(|port| json!({"name": optional(&port.name), "protocol": port.protocol, "port": port.number, "appProtocol": port.app_protocol}))
        .collect();
    let mut value = json!({"ports": ports});
    for (key, backends) in [("addresses", ready), ("notReadyAddresses", unready)] {
        if !backends.is_empty() {
            value[key] = json!(list(backends));
        }
    }
    serde_json::from_value(value).ok()
}

fn address(backend: &Backend) -> Value {
    let pod = &backend.pod;
    json!({
        "ip": backend.addresses.first().map(ToString::to_string),
        "hostname": backend.hostname,
        "nodeName": pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        "targetRef": {"kind": "Pod", "namespace": pod.namespace(), "name": pod.name_any(), "uid": pod.uid()},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_no_pod_has_has_no_addresses() {
        let check = |ports: Value, cluster_ip: &str, expect: usize| {
            let service: Service = serde_json::from_value(json!({
                "metadata": {"namespace": "d", "name": "web", "uid": "v1"},
                "spec": {"selector": {"app": "web"}, "clusterIP": cluster_ip, "ports": ports}}))
            .unwrap();
            let pod = json!({"metadata": {"namespace": "d", "name": "a", "labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 80}]}]},
                "status": {"podIP": "10.42.0.2", "conditions": [{"type": "Ready", "status": "True"}]}});
            let (subsets, _) = subsets(&service, &[Arc::new(serde_json::from_value(pod).unwrap())]);
            let addresses = subsets.iter().flat_map(|subset| subset.addresses.iter().flatten()).count();
            assert_eq!(addresses, expect, "{ports}");
        };
        check(json!([{"port": 80, "targetPort": "https"}]), "10.43.0.2", 0);
        check(json!([{"port": 80, "targetPort": "http"}]), "10.43.0.2", 1);
        check(json!([{"name": "a", "port": 80, "targetPort": "https"}, {"name": "b", "port": 81}]), "10.43.0.2", 1);
        check(json!([]), "None", 1);
    }

    #[test]
    fn ready_and_not() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"namespace": "d", "name": "web", "uid": "v1"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}}))
        .unwrap();
        let pod = |name: &str, ip: &str, ready: &str| {
            let pod = json!({"metadata": {"namespace": "d", "name": name, "labels": {"app": "web"}}, "spec": {"containers": []},
                "status": {"podIP": ip, "conditions": [{"type": "Ready", "status": ready}]}});
            Arc::new(serde_json::from_value::<Pod>(pod).unwrap())
        };
        let pods = [pod("a", "10.42.0.2", "True"), pod("b", "10.42.0.3", "False")];
        let (subsets, is_cut) = subsets(&service, &pods);
        assert!(!is_cut);
        assert_eq!(subsets.len(), 1);
        assert_eq!(subsets[0].addresses.as_ref().unwrap()[0].ip, "10.42.0.2");
        assert_eq!(subsets[0].not_ready_addresses.as_ref().unwrap()[0].ip, "10.42.0.3");
        let existing = Endpoints {
            subsets: Some(subsets),
            ..serde_json::from_value(json!({
            "metadata": {"name": "web", "labels": {MANAGED_BY: "endpoint-controller"}}}))
            .unwrap()
        };
        assert_eq!(plan(&service, &pods, Some(&existing)), []);
    }
}
