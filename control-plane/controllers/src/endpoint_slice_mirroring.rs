//! Endpoints that somebody wrote for a Service without a selector, mirrored into EndpointSlices: proxies read nothing else.
//!
//! As upstream's controller of this name: one slice for each family of addresses and list of ports, owned by the Endpoints.
//! Nothing is mirrored that a controller of ours wrote, that says so itself (`skip-mirror`), or that is a leader's old lock.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use crate::action::{Action, Part, Plan};
use crate::cache::Key;
use crate::endpoint_slices::{Group, MANAGED_BY, SERVICE_NAME, delete, group_of, ports_of};
use crate::kind::Kind;
use crate::runner::Controller;
use crate::service_endpoints::Port;
use crate::world::{Changed, World};

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Addresses of one group; what is beyond it is not mirrored, and the Endpoints' events say so.
const ADDRESSES_MAX: usize = 1000;
/// Annotations that are about the Endpoints object itself.
const OWN_ANNOTATIONS: [&str; 2] =
    ["kubectl.kubernetes.io/last-applied-configuration", "endpoints.kubernetes.io/last-change-trigger-time"];

pub(crate) struct EndpointSliceMirroring;

impl Controller for EndpointSliceMirroring {
    const NAME: &'static str = "endpoint-slice-mirroring-controller";

    fn keys(&self, _world: &World, changed: &Changed) -> Vec<Key> {
        match changed {
            Changed::Endpoints(change) => change.latest().map(|one| Key::of(one.as_ref())).into_iter().collect(),
            Changed::Service(change) => change.latest().map(|one| Key::of(one.as_ref())).into_iter().collect(),
            Changed::EndpointSlice(change) => change.latest().and_then(|slice| mirrored(slice)).into_iter().collect(),
            _ => Vec::new(),
        }
    }

    fn plan(&self, world: &World, key: &Key, _now: Timestamp) -> Plan {
        let slices = world.endpoint_slices.in_namespace(&key.namespace);
        let ours: Vec<_> = slices.into_iter().filter(|slice| mirrored(slice).as_ref() == Some(key)).collect();
        let endpoints = world.endpoints.get(key).filter(|endpoints| is_to_be_mirrored(endpoints));
        let service = world.services.get(key).filter(|service| is_without_selector(service));
        match (endpoints, service) {
            (Some(endpoints), Some(_)) => plan(&endpoints, &ours).into(),
            _ => ours.iter().map(|slice| delete(slice)).collect::<Vec<_>>().into(),
        }
    }
}

/// The Endpoints that a slice of ours mirrors.
fn mirrored(slice: &EndpointSlice) -> Option<Key> {
    let labels = slice.labels();
    let is_ours = labels.get(MANAGED_BY).map(String::as_str) == Some(MANAGER);
    let name = labels.get(SERVICE_NAME).filter(|_| is_ours)?;
    Some(Key::new(slice.namespace().unwrap_or_default(), name.clone()))
}

fn is_to_be_mirrored(endpoints: &Endpoints) -> bool {
    endpoints.metadata.deletion_timestamp.is_none()
        && endpoints.labels().get(SKIP).map(String::as_str) != Some("true")
        && !endpoints.annotations().contains_key(LEADER)
}

fn is_without_selector(service: &Service) -> bool {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_none_or(BTreeMap::is_empty)
}

fn plan(endpoints: &Endpoints, slices: &[Arc<EndpointSlice>]) -> Vec<Action> {
    let (mut wanted, left_out) = wanted(endpoints);
    let mut actions = Vec::new();
    for slice in slices.iter().filter(|slice| slice.metadata.deletion_timestamp.is_none()) {
        // A second slice of the same group is one too many.
        match group_of(slice).and_then(|group| wanted.remove(&group)) {
            Some(list) => actions.extend(update(endpoints, slice, &list)),
            None => actions.push(delete(slice)),
        }
    }
    for (group, list) in &wanted {
        actions.push(create(endpoints, group, list));
    }
    if left_out > 0 && !actions.is_empty() {
        let note = format!(
            "{left_out} addresses are not mirrored: at most {ADDRESSES_MAX} of a list of ports are, and only valid ones"
        );
        let regarding = Box::new(endpoints.object_ref(&()));
        actions.push(Action::Event { regarding, is_warning: true, reason: "TooManyAddressesToMirror", note });
    }
    actions
}

/// Endpoints by group, and how many addresses are left out.
fn wanted(endpoints: &Endpoints) -> (BTreeMap<Group, Vec<Endpoint>>, usize) {
    let mut wanted: BTreeMap<Group, Vec<Endpoint>> = BTreeMap::new();
    let mut left_out = 0usize;
    for subset in endpoints.subsets.iter().flatten() {
        let ports = ports(subset);
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let unready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        for (address, is_ready) in ready.chain(unready) {
            let Ok(ip) = address.ip.parse::<IpAddr>() else {
                left_out = left_out.saturating_add(1);
                continue;
            };
            let family = if ip.is_ipv6() { "IPv6" } else { "IPv4" };
            let list = wanted.entry((family, ports.clone())).or_default();
            if list.len() < ADDRESSES_MAX {
                list.push(endpoint(address, ip, is_ready));
            } else {
                left_out = left_out.saturating_add(1);
            }
        }
    }
    (wanted, left_out)
}

fn ports(subset: &EndpointSubset) -> Vec<Port> {
    let port = |port: &k8s_openapi::api::core::v1::EndpointPort| Port {
        name: port.name.clone().unwrap_or_default(),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
        number: port.port,
        app_protocol: port.app_protocol.clone(),
    };
    let mut ports: Vec<Port> = subset.ports.iter().flatten().map(port).collect();
    ports.sort();
    ports
}

fn endpoint(address: &EndpointAddress, ip: IpAddr, is_ready: bool) -> Endpoint {
    let conditions =
        k8s_openapi::api::discovery::v1::EndpointConditions { ready: Some(is_ready), ..Default::default() };
    Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(conditions),
        hostname: address.hostname.clone().filter(|name| !name.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn labels(endpoints: &Endpoints) -> BTreeMap<String, String> {
    let mut labels = endpoints.labels().clone();
    labels.insert(SERVICE_NAME.into(), endpoints.name_any());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    labels
}

fn annotations(endpoints: &Endpoints) -> BTreeMap<String, String> {
    let mut annotations = endpoints.annotations().clone();
    annotations.retain(|key, _| !OWN_ANNOTATIONS.contains(&key.as_str()));
    annotations
}

fn create(endpoints: &Endpoints, (family, ports): &Group, list: &[Endpoint]) -> Action {
    let body = json!({
        "metadata": {
            "generateName": format!("{}-", endpoints.name_any()),
            "labels": labels(endpoints),
            "annotations": annotations(endpoints),
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "Endpoints", "name": endpoints.name_any(), "uid": endpoints.uid(),
                "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "addressType": family,
        "endpoints": list,
        "ports": ports_of(ports),
    });
    let namespace = endpoints.namespace().unwrap_or_default();
    Action::Create { kind: Kind::EndpointSlice, namespace, body, announce: None }
}

fn update(endpoints: &Endpoints, slice: &EndpointSlice, list: &[Endpoint]) -> Option<Action> {
    let (labels, annotations) = (labels(endpoints), annotations(endpoints));
    let is_same = slice.endpoints.as_deref().unwrap_or_default() == list
        && *slice.labels() == labels
        && *slice.annotations() == annotations;
    let metadata = json!({
        "uid": slice.uid(), "labels": replaced(&labels, slice.labels()),
        "annotations": replaced(&annotations, slice.annotations()),
    });
    (!is_same).then(|| Action::Patch {
        kind: Kind::EndpointSlice,
        namespace: slice.namespace().unwrap_or_default(),
        name: slice.name_any(),
        part: Part::Whole,
        patch: json!({"metadata": metadata, "endpoints": list}),
    })
}

/// A merge patch that leaves of `old` only what is in `new`.
fn replaced(new: &BTreeMap<String, String>, old: &BTreeMap<String, String>) -> Value {
    let gone = old.keys().filter(|key| !new.contains_key(*key)).map(|key| (key.clone(), Value::Null));
    new.iter().map(|(key, value)| (key.clone(), json!(value))).chain(gone).collect::<serde_json::Map<_, _>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(extra: Value, subsets: Value) -> Endpoints {
        let mut metadata = json!({"namespace": "d", "name": "db", "uid": "e1", "labels": {"app": "db"}});
        for (key, value) in extra.as_object().unwrap() {
            metadata[key] = value.clone();
        }
        serde_json::from_value(json!({"metadata": metadata, "subsets": subsets})).unwrap()
    }

    fn slices_of(actions: &[Action]) -> Vec<Arc<EndpointSlice>> {
        let made = actions.iter().enumerate().filter_map(|(index, action)| match action {
            Action::Create { body, .. } => {
                let mut body = body.clone();
                body["metadata"]["name"] = json!(format!("db-{index}"));
                body["metadata"]["namespace"] = json!("d");
                Some(Arc::new(serde_json::from_value(body).unwrap()))
            }
            _ => None,
        });
        made.collect()
    }

    fn two_families() -> Value {
        json!([{"addresses": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}], "notReadyAddresses": [{"ip": "192.0.2.2"}],
            "ports": [{"name": "sql", "port": 5432}]}])
    }

    #[test]
    fn each_family_has_its_slice() {
        let endpoints = endpoints(json!({}), two_families());
        let actions = plan(&endpoints, &[]);
        let slices = slices_of(&actions);
        let seen: Vec<_> = slices
            .iter()
            .map(|slice| {
                let list = slice.endpoints.iter().flatten();
                let ready = list.map(|one| one.conditions.as_ref().unwrap().ready.unwrap()).collect::<Vec<_>>();
                (slice.address_type.as_str(), ready, slice.ports.as_ref().unwrap()[0].port)
            })
            .collect();
        assert_eq!(seen, [("IPv4", vec![true, false], Some(5432)), ("IPv6", vec![true], Some(5432))]);
        assert_eq!(slices[0].labels()[SERVICE_NAME], "db");
        assert_eq!(slices[0].owner_references()[0].kind, "Endpoints");
        assert_eq!(plan(&endpoints, &slices), [], "settled");
    }

    #[test]
    fn a_change_rewrites_its_slice() {
        let slices = slices_of(&plan(&endpoints(json!({}), two_families()), &[]));
        let changed = endpoints(
            json!({"labels": {"app": "other"}}),
            json!([{"addresses": [{"ip": "192.0.2.9"}], "ports": [{"name": "sql", "port": 5432}]}]),
        );
        let actions = plan(&changed, &slices);
        let [Action::Patch { patch, .. }, Action::Delete { name, .. }] = actions.as_slice() else {
            panic!("{actions:?}")
        };
        assert_eq!(patch["endpoints"][0]["addresses"][0], "192.0.2.9");
        assert_eq!((&patch["metadata"]["labels"]["app"], name.as_str()), (&json!("other"), "db-1"));
    }

    #[test]
    fn only_what_somebody_wrote_for_a_service_without_a_selector() {
        let check = |extra: Value, selector: Value, expect: bool| {
            let world = World::default();
            world.endpoints.upsert(endpoints(extra.clone(), two_families()));
            let service = json!({"metadata": {"namespace": "d", "name": "db"}, "spec": {"selector": selector}});
            world.services.upsert(serde_json::from_value(service).unwrap());
            let plan = EndpointSliceMirroring.plan(&world, &Key::new("d", "db"), Timestamp::UNIX_EPOCH);
            assert_eq!(!plan.actions.is_empty(), expect, "{extra} {selector}");
        };
        check(json!({}), Value::Null, true);
        check(json!({}), json!({}), true);
        check(json!({}), json!({"app": "db"}), false);
        check(json!({"labels": {SKIP: "true"}}), Value::Null, false);
        check(json!({"annotations": {LEADER: "{}"}}), Value::Null, false);
    }

    #[test]
    fn without_its_service_the_mirror_goes() {
        let world = World::default();
        let endpoints = endpoints(json!({}), two_families());
        let slices = slices_of(&plan(&endpoints, &[]));
        world.endpoints.upsert(endpoints);
        slices.iter().for_each(|slice| drop(world.endpoint_slices.upsert(slice.as_ref().clone())));
        let plan = EndpointSliceMirroring.plan(&world, &Key::new("d", "db"), Timestamp::UNIX_EPOCH);
        assert_eq!(plan.actions.len(), 2);
        assert!(plan.actions.iter().all(|action| matches!(action, Action::Delete { .. })), "{plan:?}");
    }

    #[test]
    fn what_is_too_many_or_no_address_is_told() {
        let many: Vec<Value> =
            (0..1200).map(|index| json!({"ip": format!("10.0.{}.{}", index / 250, index % 250)})).collect();
        let mut addresses = many;
        addresses.push(json!({"ip": "no address"}));
        let actions = plan(&endpoints(json!({}), json!([{"addresses": addresses, "ports": [{"port": 1}]}])), &[]);
        let [Action::Create { body, .. }, Action::Event { note, .. }] = actions.as_slice() else {
            panic!("{actions:?}")
        };
        assert_eq!(body["endpoints"].as_array().unwrap().len(), ADDRESSES_MAX);
        assert!(note.starts_with("201 addresses"), "{note}");
    }
}
