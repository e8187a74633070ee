//! What a controller may rely on: the objects, and nothing that it remembers.
//!
//! A cluster in memory runs plans of every controller in any order, with people and kubelets between. At any moment, also
//! between two actions of one plan, everything in memory is thrown away: caches and controllers begin anew from the objects.
//! However it went, the cluster comes to rest where it should.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use kube::api::DynamicObject;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::action::{Action, Part};
use crate::cache::Key;
use crate::clock::after;
use crate::kind::Kind;
use crate::runner::Controller;
use crate::world::World;
use crate::{
    cluster_role, deployment, disruption, endpoint_slice_mirroring, endpoint_slices, endpoints, replica_set,
    service_account,
};

type PlanOf = Box<dyn Fn(&World, &Key, Timestamp) -> Vec<Action>>;

/// One of each, as at the start of the process; with the kind whose objects are its keys.
fn controllers() -> Vec<(Kind, PlanOf)> {
    fn plans<C: Controller>(controller: C) -> PlanOf {
        Box::new(move |world, key, now| controller.plan(world, key, now).actions)
    }
    vec![
        (Kind::Deployment, plans(deployment::Deployments)),
        (Kind::ReplicaSet, plans(replica_set::ReplicaSets)),
        (Kind::Service, plans(endpoint_slices::EndpointSlices)),
        (Kind::Service, plans(endpoints::EndpointsOfServices)),
        (Kind::Endpoints, plans(endpoint_slice_mirroring::EndpointSliceMirroring)),
        (Kind::PodDisruptionBudget, plans(disruption::Disruptions)),
        (Kind::ClusterRole, plans(cluster_role::ClusterRoles)),
        (Kind::Namespace, plans(service_account::ServiceAccounts { root_ca: "ca".into() })),
    ]
}

struct Cluster {
    objects: BTreeMap<(Kind, Key), Value>,
    revision: u64,
    now: Timestamp,
    world: World,
    controllers: Vec<(Kind, PlanOf)>,
}

fn merge(onto: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else { return onto.clone_from(patch) };
    if !onto.is_object() {
        *onto = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            onto.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut onto[key], value);
        }
    }
}

impl Cluster {
    fn new() -> Self {
        let mut cluster = Self {
            objects: BTreeMap::new(),
            revision: 0,
            now: Timestamp::from_second(1_000).unwrap(),
            world: World::default(),
            controllers: controllers(),
        };
        let template =
            json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "v1"}]}});
        let selector = json!({"matchLabels": {"app": "web"}});
        cluster.put(Kind::Namespace, "", "d", json!({}));
        cluster.put(
            Kind::Deployment,
            "d",
            "web",
            json!({"spec": {"replicas": 3, "selector": selector, "template": template}}),
        );
        cluster.put(
            Kind::Service,
            "d",
            "web",
            json!({"spec": {"selector": {"app": "web"}, "clusterIP": "10.43.0.5", "ports": [{"port": 80}]}}),
        );
        cluster.put(Kind::Service, "d", "db", json!({"spec": {"clusterIP": "10.43.0.6", "ports": [{"port": 5432}]}}));
        let subsets = json!([{"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 5432}]}]);
        cluster.put(Kind::Endpoints, "d", "db", json!({"subsets": subsets}));
        cluster.put(
            Kind::PodDisruptionBudget,
            "d",
            "web",
            json!({"spec": {"maxUnavailable": 1, "selector": selector}}),
        );
        let rules = json!([{"verbs": ["get"], "resources": ["pods"]}]);
        cluster.put(
            Kind::ClusterRole,
            "",
            "part",
            json!({"metadata": {"labels": {"to-view": "true"}}, "rules": rules}),
        );
        let aggregation = json!({"clusterRoleSelectors": [{"matchLabels": {"to-view": "true"}}]});
        cluster.put(Kind::ClusterRole, "", "view", json!({"aggregationRule": aggregation}));
        cluster
    }

    fn put(&mut self, kind: Kind, namespace: &str, name: &str, mut object: Value) {
        self.revision += 1;
        let metadata = json!({"namespace": namespace, "name": name, "uid": format!("u{}", self.revision), "generation": 1,
            "resourceVersion": self.revision.to_string(), "creationTimestamp": self.now});
        merge(&mut object, &json!({"metadata": metadata}));
        self.store(kind, Key::new(namespace, name), object);
    }

    /// What a watch shows at once, or the answer to a write: both bring the object into the caches.
    fn store(&mut self, kind: Kind, key: Key, object: Value) {
        self.world.absorb(kind, dynamic(kind, &object));
        self.objects.insert((kind, key), object);
    }

    /// A write by anybody: a merge patch with the preconditions that it names.
    fn patch(&mut self, kind: Kind, key: &Key, part: Part, patch: &Value) {
        let Some(mut object) = self.objects.get(&(kind, key.clone())).cloned() else { return };
        for precondition in ["uid", "resourceVersion"] {
            if let Some(wanted) = patch["metadata"].get(precondition).filter(|wanted| !wanted.is_null())
                && object["metadata"][precondition] != *wanted
            {
                return;
            }
        }
        let before = object.clone();
        match part {
            Part::Whole => {
                merge(&mut object, patch);
                object["status"] = before["status"].clone();
            }
            Part::Status => merge(&mut object["status"], &patch["status"]),
        }
        if object["spec"] != before["spec"] {
            object["metadata"]["generation"] = json!(before["metadata"]["generation"].as_i64().unwrap() + 1);
        }
        if object != before {
            self.revision += 1;
            object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
            self.store(kind, key.clone(), object);
        }
    }

    fn delete(&mut self, kind: Kind, key: &Key) {
        if let Some(object) = self.objects.remove(&(kind, key.clone())) {
            let uid = object["metadata"]["uid"].as_str().unwrap();
            self.world.absorb_deleted(kind, &key.namespace, &key.name, uid);
        }
    }

    fn apply(&mut self, action: &Action) {
        match action {
            Action::Create { kind, namespace, body, .. } => {
                let metadata = &body["metadata"];
                let name = match metadata["name"].as_str() {
                    Some(name) => name.to_owned(),
                    None => format!("{}{}", metadata["generateName"].as_str().unwrap(), self.revision),
                };
                if !self.objects.contains_key(&(*kind, Key::new(namespace.as_str(), name.as_str()))) {
                    self.put(*kind, namespace, &name, body.clone());
                }
            }
            Action::Patch { kind, namespace, name, part, patch } => {
                self.patch(*kind, &Key::new(namespace.as_str(), name.as_str()), *part, patch);
            }
            Action::Delete { kind, namespace, name, .. } => {
                self.delete(*kind, &Key::new(namespace.as_str(), name.as_str()));
            }
            Action::Event { .. } => {}
            other => panic!("{other:?}"),
        }
    }

    /// Everything in memory is lost.
    fn forget(&mut self) {
        self.world = World::default();
        self.controllers = controllers();
        for ((kind, _), object) in &self.objects {
            self.world.absorb(*kind, dynamic(*kind, object));
        }
    }

    fn keys(&self, kind: Kind) -> Vec<Key> {
        self.objects.keys().filter(|(of, _)| *of == kind).map(|(_, key)| key.clone()).collect()
    }

    fn plan(&self, controller: usize, key: &Key) -> Vec<Action> {
        self.controllers[controller].1(&self.world, key, self.now)
    }

    /// One key of one controller, and of its plan no more actions than `cut`.
    fn turn(&mut self, controller: usize, key: usize, cut: usize) {
        let controller = controller % self.controllers.len();
        let keys = self.keys(self.controllers[controller].0);
        let Some(key) = keys.get(key % keys.len().max(1)) else { return };
        for action in self.plan(controller, key).iter().take(cut) {
            self.apply(action);
        }
        self.now = after(self.now, SignedDuration::from_secs(1));
    }

    fn kubelet(&mut self) {
        for key in self.keys(Kind::Pod) {
            let ready = json!([{"type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:00:00Z"}]);
            let status = json!({"phase": "Running", "podIP": address(&key.name), "conditions": ready});
            self.patch(Kind::Pod, &key, Part::Status, &json!({"status": status}));
        }
    }

    fn person(&mut self, number: u8) {
        let web = Key::new("d", "web");
        let pod = self.keys(Kind::Pod).into_iter().nth(usize::from(number % 3));
        match number % 5 {
            0 => self.patch(Kind::Deployment, &web, Part::Whole, &json!({"spec": {"replicas": number % 7}})),
            1 => {
                let container = json!([{"name": "c", "image": format!("v{}", number % 4)}]);
                let patch = json!({"spec": {"template": {"spec": {"containers": container}}}});
                self.patch(Kind::Deployment, &web, Part::Whole, &patch);
            }
            2 => pod.into_iter().for_each(|pod| self.delete(Kind::Pod, &pod)),
            3 => {
                let patch = json!({"metadata": {"labels": {"app": "other"}}});
                pod.into_iter().for_each(|pod| self.patch(Kind::Pod, &pod, Part::Whole, &patch));
            }
            _ => {
                self.patch(Kind::Deployment, &web, Part::Status, &json!({"status": {"replicas": 99, "conditions": []}}))
            }
        }
    }

    /// Until nobody has anything left to do.
    fn settle(&mut self) {
        for _ in 0..300 {
            self.kubelet();
            let mut is_settled = true;
            for controller in 0..self.controllers.len() {
                for key in self.keys(self.controllers[controller].0) {
                    let actions = self.plan(controller, &key);
                    is_settled &= actions.is_empty();
                    actions.iter().for_each(|action| self.apply(action));
                }
            }
            self.now = after(self.now, SignedDuration::from_secs(1));
            if is_settled {
                return;
            }
        }
        panic!("no rest in sight");
    }

    fn check(&self) {
        let get = |kind: Kind, name: &str| &self.objects[&(kind, Key::new("d", name))];
        let deployment = get(Kind::Deployment, "web");
        let wanted = deployment["spec"]["replicas"].as_u64().unwrap();
        let image = &deployment["spec"]["template"]["spec"]["containers"][0]["image"];
        let pods: Vec<&Value> =
            self.keys(Kind::Pod).iter().map(|key| &self.objects[&(Kind::Pod, key.clone())]).collect();
        let ours: Vec<_> = pods.iter().filter(|pod| pod["metadata"]["labels"]["app"] == "web").collect();
        assert_eq!(ours.len() as u64, wanted, "pods");
        assert!(ours.iter().all(|pod| pod["spec"]["containers"][0]["image"] == *image), "of the newest template");
        assert_eq!(deployment["status"]["availableReplicas"].as_u64().unwrap_or(0), wanted);
        let mut addresses: Vec<String> =
            ours.iter().map(|pod| pod["status"]["podIP"].as_str().unwrap().into()).collect();
        addresses.sort();
        let listed = |value: &Value, list: &str, field: &str| -> Vec<String> {
            let items = value[list].as_array().cloned().unwrap_or_default();
            items.iter().map(|one| one[field].as_str().or(one[field][0].as_str()).unwrap().to_owned()).collect()
        };
        let mut said = listed(&get(Kind::Endpoints, "web")["subsets"][0], "addresses", "ip");
        said.sort();
        assert_eq!(said, addresses, "Endpoints");
        for (service, expect) in [("web", addresses), ("db", vec!["192.0.2.1".to_owned()])] {
            let slices =
                self.keys(Kind::EndpointSlice).into_iter().map(|key| &self.objects[&(Kind::EndpointSlice, key)]);
            let of_service =
                slices.filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == service);
            let mut said: Vec<String> = of_service.flat_map(|slice| listed(slice, "endpoints", "addresses")).collect();
            said.sort();
            assert_eq!(said, expect, "EndpointSlices of {service}");
        }
        assert_eq!(get(Kind::PodDisruptionBudget, "web")["status"]["currentHealthy"].as_u64().unwrap(), wanted);
        assert_eq!(self.objects[&(Kind::ClusterRole, Key::new("", "view"))]["rules"][0]["resources"][0], "pods");
        assert_eq!(get(Kind::ConfigMap, "kube-root-ca.crt")["data"]["ca.crt"], "ca");
    }
}

/// Each pod its own.
fn address(pod: &str) -> String {
    let number: u32 = pod.bytes().fold(7, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
    std::net::Ipv4Addr::from_bits(0x0a2a_0000 | (number & 0xffff)).to_string()
}

fn dynamic(kind: Kind, object: &Value) -> DynamicObject {
    let mut object = object.clone();
    let resource = kind.resource();
    merge(&mut object, &json!({"apiVersion": resource.api_version, "kind": resource.kind}));
    serde_json::from_value(object).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Invariant: controllers reconcile against the objects, never against the memory of their own last write.
    #[test]
    fn whatever_is_forgotten_it_comes_right(steps in prop::collection::vec((0..10u8, 0..64usize, 0..4usize, any::<u8>()), 0..80)) {
        let mut cluster = Cluster::new();
        for (what, controller, cut, number) in steps {
            match what {
                0 | 1 => cluster.forget(),
                2 => cluster.kubelet(),
                3 => cluster.person(number),
                // Cut short, and everything lost with it.
                4 => {
                    cluster.turn(controller, usize::from(number), cut);
                    cluster.forget();
                }
                _ => cluster.turn(controller, usize::from(number), usize::MAX),
            }
        }
        cluster.settle();
        cluster.forget();
        cluster.settle();
        cluster.check();
    }
}
