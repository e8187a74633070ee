//! The pure part: which endpoints count, and that differences add up to the whole.

use std::collections::BTreeMap;

use cni_services::catalog::ServiceName;
use cni_services::proxy::desired::Desired;
use cni_services::proxy::elements::{self, Item, Key, Plan, SetKind, Target};
use cni_services::proxy::surroundings::Surroundings;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::node::settings;
use crate::objects::{catalog, endpoint, name, service, slice};

fn plan(spec: &Value, endpoints: &[Value]) -> Vec<Item> {
    whole_plan(spec, endpoints, &Surroundings::default()).items
}

fn whole_plan(spec: &Value, endpoints: &[Value], surroundings: &Surroundings) -> Plan {
    let catalog = catalog(vec![(service("s", spec), vec![slice("s", &[("", 8080, "TCP")], endpoints)])]);
    elements::plan(catalog.get(&name("s")).unwrap(), &settings(), surroundings)
}

fn of(items: &[Item], set: SetKind) -> Vec<String> {
    let mut texts: Vec<String> =
        items.iter().filter(|(key, _)| key.set == set).map(|(_, target)| format!("{target:?}")).collect();
    texts.sort();
    texts
}

fn spec() -> Value {
    json!({"clusterIP": "10.43.0.5", "ports": [{"port": 80}]})
}

fn conditions(address: &str, ready: bool, serving: bool, terminating: bool, node: &str) -> Value {
    json!({"addresses": [address], "nodeName": node,
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
}

#[test]
fn readiness_and_termination_choose_the_endpoints() {
    let ready = conditions("10.42.0.1", true, true, false, "here");
    let last = conditions("10.42.0.2", false, true, true, "here");
    let dead = conditions("10.42.0.3", false, false, true, "here");
    let ready_one = vec!["Endpoint(10.42.0.1, 8080)".to_owned()];
    assert_eq!(of(&plan(&spec(), &[ready.clone(), last.clone(), dead.clone()]), SetKind::Endpoints), ready_one);
    assert_eq!(of(&plan(&spec(), &[last, dead.clone()]), SetKind::Endpoints), ["Endpoint(10.42.0.2, 8080)"]);
    assert!(of(&plan(&spec(), std::slice::from_ref(&dead)), SetKind::Endpoints).is_empty());
    assert_eq!(of(&plan(&spec(), std::slice::from_ref(&dead)), SetKind::Refused), ["Refuse"]);
    let mut all = spec();
    all["publishNotReadyAddresses"] = json!(true);
    assert_eq!(of(&plan(&all, &[ready, dead]), SetKind::Endpoints).len(), 2);
}

#[test]
fn traffic_policies_keep_to_this_node() {
    let here = conditions("10.42.0.1", true, true, false, "here");
    let there = conditions("10.42.1.1", true, true, false, "there");
    let mut local = spec();
    local["internalTrafficPolicy"] = json!("Local");
    assert_eq!(of(&plan(&local, &[here, there.clone()]), SetKind::Endpoints), ["Endpoint(10.42.0.1, 8080)"]);
    assert_eq!(of(&plan(&local, std::slice::from_ref(&there)), SetKind::Refused), ["Refuse"]);
    let mut outside = json!({"clusterIP": "10.43.0.5", "ports": [{"port": 80, "nodePort": 30000}]});
    outside["externalTrafficPolicy"] = json!("Local");
    let items = plan(&outside, &[there]);
    assert_eq!(of(&items, SetKind::Endpoints), ["Endpoint(10.42.1.1, 8080)"], "the cluster IP is not bound to it");
    assert_eq!(of(&items, SetKind::RefusedNodePorts), ["Drop"]);
}

#[test]
fn what_needs_no_rules_gets_none() {
    for spec in [
        json!({"clusterIP": "None", "ports": [{"port": 80}]}),
        json!({"type": "ExternalName", "externalName": "example.org"}),
        json!({"clusterIP": "10.43.0.10", "ports": [{"port": 53, "protocol": "UDP"}]}),
    ] {
        let items = plan(&spec, &[]);
        assert!(items.is_empty(), "{spec}: {items:?}");
    }
}

#[test]
fn addresses_that_mean_the_machine_itself_are_no_endpoints() {
    let bad =
        ["127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "169.254.1.1", "224.0.0.1", "255.255.255.255", "240.0.0.1"];
    let mut endpoints: Vec<Value> = bad.iter().map(|address| endpoint(address)).collect();
    let alone = plan(&spec(), &endpoints);
    assert!(of(&alone, SetKind::Endpoints).is_empty() && of(&alone, SetKind::Hairpin).is_empty(), "{alone:?}");
    assert_eq!(of(&alone, SetKind::Refused), ["Refuse"]);
    endpoints.push(endpoint("10.42.0.7"));
    assert_eq!(of(&plan(&spec(), &endpoints), SetKind::Endpoints), ["Endpoint(10.42.0.7, 8080)"]);
}

#[test]
fn external_addresses_shadow_neither_cluster_nor_node() {
    use cni_netlink::listening::Transport::Tcp;
    let surroundings = Surroundings {
        addresses: ["192.0.2.1".parse().unwrap(), "198.51.100.9".parse().unwrap()].into(),
        sockets: vec![(Tcp, "0.0.0.0:22".parse().unwrap()), (Tcp, "198.51.100.9:81".parse().unwrap())],
    };
    let check = |address: &str, port: u16, refused: Option<&str>| {
        let spec = json!({"clusterIP": "10.43.0.5", "externalIPs": [address], "ports": [{"port": port}]});
        let plan = whole_plan(&spec, &[endpoint("10.42.0.7")], &surroundings);
        let fronts = of(&plan.items, SetKind::Services).len();
        assert_eq!(fronts, if refused.is_some() { 1 } else { 2 }, "{address}:{port}");
        let told: Vec<String> = plan.conflicts.iter().map(ToString::to_string).collect();
        match refused {
            None => assert!(told.is_empty(), "{told:?}"),
            Some(part) => assert!(told.len() == 1 && told[0].contains(part), "{address}:{port}: {told:?}"),
        }
    };
    for address in ["10.43.0.10", "10.43.0.1", "10.43.7.7", "10.42.0.9"] {
        check(address, 80, Some("belongs to the cluster"));
    }
    for address in ["127.0.0.1", "127.8.8.8", "0.0.0.0", "169.254.169.254", "224.0.0.1", "255.255.255.255"] {
        check(address, 80, Some("no address that others can reach"));
    }
    check("192.0.2.1", 22, Some("0.0.0.0:22"));
    check("198.51.100.9", 81, Some("198.51.100.9:81"));
    check("192.0.2.1", 81, None);
    check("203.0.113.5", 22, None);
}

#[test]
fn node_ports_leave_the_nodes_own_ports_alone() {
    use cni_netlink::listening::Transport::{Tcp, Udp};
    let surroundings = Surroundings {
        addresses: ["192.0.2.1".parse().unwrap()].into(),
        sockets: vec![(Tcp, "127.0.0.1:30022".parse().unwrap()), (Udp, "0.0.0.0:30053".parse().unwrap())],
    };
    let check = |port: u16, refused: bool| {
        let spec = json!({"clusterIP": "10.43.0.5", "ports": [{"port": 80, "nodePort": port}]});
        let plan = whole_plan(&spec, &[endpoint("10.42.0.7")], &surroundings);
        assert_eq!(of(&plan.items, SetKind::NodePorts).is_empty(), refused, "{port}");
        assert_eq!(plan.conflicts.len(), usize::from(refused), "{port}");
    };
    // The last one is reserved whether anybody listens or not.
    for (port, refused) in [(30022, true), (30053, false), (30080, false), (30643, true)] {
        check(port, refused);
    }
}

#[test]
fn services_of_another_proxy_are_left_alone() {
    for label in ["service.kubernetes.io/headless", "service.kubernetes.io/service-proxy-name"] {
        let mut labelled = service("s", &spec());
        labelled.metadata.labels = Some([(label.to_owned(), String::new())].into());
        let catalog = catalog(vec![(labelled, vec![slice("s", &[("", 8080, "TCP")], &[endpoint("10.42.0.7")])])]);
        let plan = elements::plan(catalog.get(&name("s")).unwrap(), &settings(), &Surroundings::default());
        assert_eq!(plan, Plan::default(), "{label}");
    }
}

#[test]
fn the_older_service_keeps_an_external_address() {
    let key = Key { set: SetKind::Services, bytes: vec![1; 12] };
    let target = |count| Target::Chain(elements::Chain { is_node_port: false, count, affinity_seconds: None });
    let mut desired = Desired::default();
    desired.replace(&name("victim"), 100, vec![(key.clone(), target(1))]);
    desired.replace(&name("attacker"), 200, vec![(key.clone(), target(2))]);
    assert_eq!(desired.wanted().collect::<Vec<_>>(), [(key.clone(), target(1))]);
    desired.replace(&name("victim"), 100, Vec::new());
    assert_eq!(desired.wanted().collect::<Vec<_>>(), [(key, target(2))]);
}

fn any_items() -> impl Strategy<Value = Vec<Item>> {
    let item = (0_u8..12, 0_u8..4, 1_u32..4).prop_map(|(place, value, count)| {
        let (set, target) = if place < 6 {
            let affinity_seconds = (value == 3).then_some(60);
            (SetKind::Services, Target::Chain(elements::Chain { is_node_port: false, count, affinity_seconds }))
        } else {
            (SetKind::Endpoints, Target::Endpoint([10, 42, 0, value].into(), 80))
        };
        (Key { set, bytes: vec![place; 12] }, target)
    });
    proptest::collection::vec(item, 0..6).prop_map(|items| {
        // One Service does not claim an element twice.
        items.into_iter().collect::<BTreeMap<_, _>>().into_iter().collect()
    })
}

proptest! {
    #[test]
    fn differences_add_up_to_the_whole(steps in proptest::collection::vec((0_u8..4, any_items(), any::<bool>()), 1..40)) {
        let owner = |number: u8| ServiceName { namespace: "n".into(), name: number.to_string() };
        let mut desired = Desired::default();
        let mut kernel: BTreeMap<Key, Target> = BTreeMap::new();
        let mut chains = std::collections::BTreeSet::new();
        let mut last: BTreeMap<u8, Vec<Item>> = BTreeMap::new();
        for (number, items, apply) in steps {
            desired.replace(&owner(number), 0, items.clone());
            last.insert(number, items);
            if !apply {
                continue;
            }
            let changes = desired.changes();
            for chain in &changes.new_chains {
                prop_assert!(chains.insert(*chain), "a chain is made once");
            }
            for (key, target) in &changes.removed {
                let old = kernel.remove(key);
                prop_assert_eq!(old.as_ref(), Some(target), "only what is there is removed");
            }
            for (key, target) in &changes.added {
                prop_assert!(kernel.insert(key.clone(), target.clone()).is_none(), "nothing is added twice");
            }
            for chain in &changes.old_chains {
                prop_assert!(chains.remove(chain), "only chains that are there are removed");
            }
            desired.commit();
            prop_assert!(desired.changes().is_empty());
            // The same as from nothing: the first owner by name wins.
            let mut whole: BTreeMap<Key, Target> = BTreeMap::new();
            for items in last.values() {
                for (key, target) in items {
                    whole.entry(key.clone()).or_insert_with(|| target.clone());
                }
            }
            prop_assert_eq!(&kernel, &whole);
            let used: std::collections::BTreeSet<_> = kernel.values().filter_map(|target| match target {
                Target::Chain(chain) => Some(*chain),
                _ => None,
            }).collect();
            prop_assert_eq!(&chains, &used);
        }
    }

    #[test]
    fn the_order_of_endpoints_does_not_matter(mut numbers in proptest::collection::vec(2_u8..200, 1..20), seed in any::<u64>()) {
        numbers.sort_unstable();
        numbers.dedup();
        let all: Vec<Value> = numbers.iter().map(|last| endpoint(&format!("10.42.0.{last}"))).collect();
        let mut turned = all.clone();
        turned.rotate_left(usize::try_from(seed % 20).unwrap() % all.len());
        let sorted = |mut items: Vec<Item>| { items.sort(); items };
        prop_assert_eq!(sorted(plan(&spec(), &all)), sorted(plan(&spec(), &turned)));
    }
}
