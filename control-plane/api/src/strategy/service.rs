//! Services: what was given out stays with an update that leaves it out, and what belongs to a type goes with the type.
//!
//! Pure: numbers and addresses are given by the server. Invariant: a value that the caller changed is left to validation.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::Object;
use crate::object::map_entry;

type Spec = Map<String, Value>;

fn text<'a>(spec: &'a Spec, key: &str) -> &'a str {
    spec.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn is_empty(spec: &Spec, key: &str) -> bool {
    spec.get(key).is_none_or(|value| match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        _ => false,
    })
}

fn same(one: &Spec, other: &Spec, key: &str) -> bool {
    (is_empty(one, key) && is_empty(other, key)) || one.get(key) == other.get(key)
}

fn kind(spec: &Spec) -> &str {
    match text(spec, "type") {
        "" => "ClusterIP",
        kind => kind,
    }
}

fn has_address(spec: &Spec) -> bool {
    kind(spec) != "ExternalName"
}

fn has_node_ports(spec: &Spec) -> bool {
    matches!(kind(spec), "NodePort" | "LoadBalancer")
}

fn has_health_check(spec: &Spec) -> bool {
    kind(spec) == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local"
}

fn is_external(spec: &Spec) -> bool {
    has_node_ports(spec) || (kind(spec) == "ClusterIP" && !is_empty(spec, "externalIPs"))
}

fn is_balancer(spec: &Spec) -> bool {
    kind(spec) == "LoadBalancer"
}

fn ports(spec: &Spec) -> &[Value] {
    spec.get("ports").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn node_port(port: &Value) -> i64 {
    port.get("nodePort").and_then(Value::as_i64).unwrap_or(0)
}

/// The one address and the list of them are two ways to write the first.
pub(super) fn prepare_create(object: &mut Object) {
    let spec = map_entry(object.as_map_mut(), "spec");
    if !is_empty(spec, "clusterIP") && is_empty(spec, "clusterIPs") {
        let first = json!([text(spec, "clusterIP")]);
        spec.insert("clusterIPs".into(), first);
    }
}

pub(super) fn prepare_update(new: &mut Object, old: &Object) {
    let Some(before) = old.get("spec").and_then(Value::as_object) else { return };
    let spec = map_entry(new.as_map_mut(), "spec");
    keep_what_was_given(spec, before);
    settle_addresses(spec, before);
    drop_what_went(spec, before);
    if !is_balancer(spec) && is_balancer(before) {
        new.set(&["status", "loadBalancer"], json!({}));
    }
}

fn copy(spec: &mut Spec, before: &Spec, key: &str) {
    if let Some(value) = before.get(key) {
        spec.insert(key.to_owned(), value.clone());
    }
}

/// A client that writes the file it once created the Service from does not know what it was given since.
fn keep_what_was_given(spec: &mut Spec, before: &Spec) {
    if has_address(spec) && has_address(before) {
        if is_empty(spec, "clusterIP") && is_empty(spec, "clusterIPs") {
            copy(spec, before, "clusterIP");
        }
        if is_empty(spec, "clusterIPs") && text(spec, "clusterIP") == text(before, "clusterIP") {
            copy(spec, before, "clusterIPs");
        }
        for key in ["ipFamilies", "ipFamilyPolicy"] {
            if is_empty(spec, key) {
                copy(spec, before, key);
            }
        }
    }
    if has_node_ports(spec) && has_node_ports(before) {
        keep_node_ports(spec, before);
    }
    if has_health_check(spec) && has_health_check(before) && is_empty(spec, "healthCheckNodePort") {
        copy(spec, before, "healthCheckNodePort");
    }
}

/// A port keeps the number of the node that the port of its name had, unless another port asks for that one now.
fn keep_node_ports(spec: &mut Spec, before: &Spec) {
    let name = |port: &Value| port.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let had: BTreeMap<String, i64> = ports(before).iter().map(|port| (name(port), node_port(port))).collect();
    let mut used: BTreeSet<i64> = ports(spec).iter().map(node_port).collect();
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let number = had.get(&name(port)).copied().unwrap_or(0);
        if node_port(port) == 0
            && number != 0
            && used.insert(number)
            && let Some(port) = port.as_object_mut()
        {
            port.insert("nodePort".into(), number.into());
        }
    }
}

/// Whoever changes the one address alone means the list, too.
fn settle_addresses(spec: &mut Spec, before: &Spec) {
    if !has_address(spec) || same(spec, before, "clusterIP") || !same(spec, before, "clusterIPs") {
        return;
    }
    if is_empty(spec, "clusterIP") {
        spec.remove("clusterIPs");
    } else {
        let first = json!([text(spec, "clusterIP")]);
        spec.insert("clusterIPs".into(), first);
    }
}

/// What the new type has no use for goes, as long as the caller left it as it was.
fn drop_what_went(spec: &mut Spec, before: &Spec) {
    let drop = |spec: &mut Spec, went: bool, keys: &[&str]| {
        if went {
            for key in keys.iter().filter(|key| same(spec, before, key)).copied().collect::<Vec<_>>() {
                spec.remove(key);
            }
        }
    };
    let went = |has: fn(&Spec) -> bool, spec: &Spec| has(before) && !has(spec);
    let no_address = went(has_address, spec);
    drop(spec, no_address, &["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"]);
    if went(has_node_ports, spec) {
        let had: BTreeSet<i64> = ports(before).iter().map(node_port).collect();
        for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            if had.contains(&node_port(port))
                && let Some(port) = port.as_object_mut()
            {
                port.remove("nodePort");
            }
        }
    }
    let no_check = went(has_health_check, spec);
    drop(spec, no_check, &["healthCheckNodePort"]);
    let no_balancer = went(is_balancer, spec);
    drop(
        spec,
        no_balancer,
        &["allocateLoadBalancerNodePorts", "loadBalancerClass", "loadBalancerIP", "loadBalancerSourceRanges"],
    );
    let not_external = went(is_external, spec);
    drop(spec, not_external, &["externalTrafficPolicy"]);
    if kind(before) == "ExternalName" && kind(spec) != "ExternalName" {
        drop(spec, true, &["externalName"]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{defaults, row, validate};

    /// A Service as it is stored: with what the server gave it.
    fn stored(kind: &str) -> Value {
        let ports = |node| match node {
            true => json!([{"name": "a", "port": 80, "targetPort": 80, "protocol": "TCP", "nodePort": 30001},
                {"name": "b", "port": 81, "targetPort": 81, "protocol": "TCP", "nodePort": 30002}]),
            false => json!([{"name": "a", "port": 80, "targetPort": 80, "protocol": "TCP"},
                {"name": "b", "port": 81, "targetPort": 81, "protocol": "TCP"}]),
        };
        let mut spec = match kind {
            "ExternalName" => json!({"externalName": "x.example"}),
            _ => json!({"clusterIP": "10.43.0.7", "clusterIPs": ["10.43.0.7"], "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster"}),
        };
        spec["type"] = kind.into();
        spec["sessionAffinity"] = "None".into();
        spec["ports"] = ports(["NodePort", "LoadBalancer"].contains(&kind));
        if ["NodePort", "LoadBalancer"].contains(&kind) {
            spec["externalTrafficPolicy"] = "Local".into();
        }
        if kind == "LoadBalancer" {
            spec["healthCheckNodePort"] = 30003.into();
            spec["allocateLoadBalancerNodePorts"] = true.into();
            spec["loadBalancerClass"] = "example.com/x".into();
            spec["loadBalancerIP"] = "10.1.1.1".into();
            spec["loadBalancerSourceRanges"] = json!(["10.0.0.0/8"]);
        }
        spec
    }

    fn service(spec: Value) -> Object {
        Object::from_value(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "d",
            "uid": "u"}, "spec": spec}))
        .unwrap()
    }

    /// What an update becomes, and what is wrong with it.
    fn updated(old: &Object, sent: Value) -> (Object, Vec<String>) {
        let row = row("", "v1", "services").unwrap();
        let mut new = service(sent);
        defaults::apply(row, &mut new);
        super::super::prepare_update(row, "", &mut new, old);
        let causes = validate::update(row, "", &new, old);
        (new, causes.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn each_type_becomes_each_other_by_changing_the_type_alone() {
        let kinds = ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"];
        for from in kinds {
            for to in kinds {
                let mut sent = stored(from);
                sent["type"] = to.into();
                if to == "ExternalName" {
                    sent["externalName"] = "x.example".into();
                }
                let (new, causes) = updated(&service(stored(from)), sent);
                assert_eq!(causes, Vec::<String>::new(), "{from} to {to}: {new:?}");
                let has = |key: &str| new.at(&["spec", key]).is_some();
                assert_eq!(has("clusterIP"), from != "ExternalName" && to != "ExternalName", "{from} to {to}");
                assert_eq!(has("loadBalancerIP"), to == "LoadBalancer" && from == to, "{from} to {to}");
                assert_eq!(has("healthCheckNodePort"), to == "LoadBalancer" && from == to, "{from} to {to}");
                let holds_ports = new.list_at(&["spec", "ports"]).iter().any(|port| port.get("nodePort").is_some());
                let both = ["NodePort", "LoadBalancer"];
                assert_eq!(holds_ports, both.contains(&from) && both.contains(&to), "{from} to {to}");
            }
        }
    }

    #[test]
    fn a_replace_from_the_file_keeps_what_was_given() {
        for kind in ["ClusterIP", "NodePort", "LoadBalancer"] {
            let old = service(stored(kind));
            let mut file = stored(kind);
            for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "healthCheckNodePort"] {
                file.as_object_mut().unwrap().remove(key);
            }
            for port in file["ports"].as_array_mut().unwrap() {
                port.as_object_mut().unwrap().remove("nodePort");
            }
            let (new, causes) = updated(&old, file);
            assert_eq!(causes, Vec::<String>::new(), "{kind}");
            assert_eq!(new.get("spec"), old.get("spec"), "{kind}");
        }
    }

    #[test]
    fn a_number_that_another_port_asks_for_is_not_kept() {
        let old = service(stored("NodePort"));
        let mut sent = stored("NodePort");
        sent["ports"] = json!([{"name": "a", "port": 80}, {"name": "c", "port": 81, "nodePort": 30001}]);
        let (new, causes) = updated(&old, sent);
        assert_eq!(causes, Vec::<String>::new());
        assert_eq!(new.list_at(&["spec", "ports"])[0].get("nodePort"), None);
    }

    #[test]
    fn what_the_caller_changed_is_judged() {
        let old = service(stored("NodePort"));
        let mut sent = stored("NodePort");
        sent["type"] = "ClusterIP".into();
        sent["ports"][0]["nodePort"] = 30009.into();
        let (_, causes) = updated(&old, sent);
        assert_eq!(causes, ["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"]);
        let mut sent = stored("ClusterIP");
        sent["clusterIP"] = "10.43.0.8".into();
        let (_, causes) = updated(&service(stored("ClusterIP")), sent);
        assert_eq!(causes, ["spec.clusterIPs[0]: Invalid value: [\"10.43.0.8\"]: may not change once set"]);
    }
}
