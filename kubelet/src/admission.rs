//! The node's own word on a pod that has been bound to it: may it run here? Pure. Not scheduling: it refuses, with a reason that
//! says what does not fit. Invariant: the answer depends only on what is given.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement};

use crate::listeners::Listener;
use crate::pod::LocalPod;
use crate::resources;
use crate::sync::observed::Failed;
use crate::sysctls::Allowed;

/// What the node has for pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    pub pods: u32,
}

fn refuse(reason: &str, message: impl Into<String>) -> Result<(), Failed> {
    Err(Failed::new(reason, message))
}

/// What a pod is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub capacity: &'a Capacity,
    pub node: Option<&'a Node>,
    pub sysctls: &'a Allowed,
    /// Who listens on the node and is no pod.
    pub listeners: &'a [Listener],
}

/// # Errors
/// Why the pod may not run here, as its status will say.
pub fn judge(pod: &LocalPod, others: &[Arc<LocalPod>], place: &Place<'_>) -> Result<(), Failed> {
    fits(pod, others, place.capacity)?;
    ports(pod, others)?;
    nodes_ports(pod, place.listeners)?;
    if let Some(node) = place.node {
        chosen(pod, node)?;
    }
    place.sysctls.judge(pod)?;
    supported(pod)
}

/// Whether the pod takes any port of the node.
#[must_use]
pub fn takes_ports(pod: &LocalPod) -> bool {
    !host_ports(pod).is_empty()
}

/// Without those who belong to pods in the node's network: their ports are theirs, and `ports` judges them.
#[must_use]
pub fn nodes_own(listeners: Vec<Listener>, pods: &[Arc<LocalPod>]) -> Vec<Listener> {
    let taken: Vec<(String, String, i32)> =
        pods.iter().filter(|p| p.host_network()).flat_map(|p| host_ports(p)).collect();
    let is_pods = |l: &Listener| taken.iter().any(|(protocol, address, port)| l.clashes(protocol, address, *port));
    listeners.into_iter().filter(|l| !is_pods(l)).collect()
}

/// A program of the node would lose what it gets to the pod: the API server, the kubelet, DNS, ssh.
fn nodes_ports(pod: &LocalPod, listeners: &[Listener]) -> Result<(), Failed> {
    for (protocol, address, port) in host_ports(pod) {
        if let Some(listener) = listeners.iter().find(|l| l.clashes(&protocol, &address, port)) {
            let message = format!(
                "Predicate NodePorts failed: a program of the node itself listens on {listener}; choose another host port, or a hostIP on which nobody listens"
            );
            return refuse("NodePorts", message);
        }
    }
    Ok(())
}

fn fits(pod: &LocalPod, others: &[Arc<LocalPod>], capacity: &Capacity) -> Result<(), Failed> {
    let out_of = |what: &str, requested: i128, used: i128, capacity: i128| {
        let message = format!(
            "Node didn't have enough resource: {what}, requested: {requested}, used: {used}, capacity: {capacity}"
        );
        refuse(&format!("OutOf{what}"), message)
    };
    let count = others.len();
    if count + 1 > capacity.pods as usize {
        let (count, pods) = (i128::try_from(count).unwrap_or(i128::MAX), i128::from(capacity.pods));
        return out_of("pods", 1, count, pods);
    }
    let (cpu, memory) = resources::pod_requests(pod);
    let (mut used_cpu, mut used_memory): (i128, i128) = (0, 0);
    for other in others {
        let (cpu, memory) = resources::pod_requests(other);
        used_cpu = cpu.saturating_add(used_cpu);
        used_memory = memory.saturating_add(used_memory);
    }
    if cpu > 0 && used_cpu + cpu > i128::from(capacity.cpu_millis) {
        return out_of("cpu", cpu, used_cpu, i128::from(capacity.cpu_millis));
    }
    if memory > 0 && used_memory + memory > i128::from(capacity.memory_bytes) {
        return out_of("memory", memory, used_memory, i128::from(capacity.memory_bytes));
    }
    Ok(())
}

/// `(protocol, address, port)` of every port taken on the node.
fn host_ports(pod: &LocalPod) -> Vec<(String, String, i32)> {
    let all = pod.members.iter().flat_map(|m| m.container.ports.iter().flatten());
    let host = |p: &k8s_openapi::api::core::v1::ContainerPort| {
        p.host_port.filter(|h| *h > 0).or_else(|| pod.host_network().then_some(p.container_port))
    };
    all.filter_map(|p| {
        let address = p.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".into());
        Some((p.protocol.clone().unwrap_or_else(|| "TCP".into()), address, host(p)?))
    })
    .collect()
}

fn ports(pod: &LocalPod, others: &[Arc<LocalPod>]) -> Result<(), Failed> {
    let mine = host_ports(pod);
    for other in others {
        for (protocol, address, port) in host_ports(other) {
            let clash = mine.iter().any(|(own_protocol, own_address, own_port)| {
                let same_place = *own_address == address || own_address == "0.0.0.0" || address == "0.0.0.0";
                *own_protocol == protocol && *own_port == port && same_place
            });
            if clash {
                let message = format!(
                    "Predicate NodePorts failed: {protocol} port {port} of the node is taken by pod {}",
                    other.key
                );
                return refuse("NodePorts", message);
            }
        }
    }
    Ok(())
}

fn chosen(pod: &LocalPod, node: &Node) -> Result<(), Failed> {
    let empty = std::collections::BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&empty);
    let selected = pod.spec.node_selector.iter().flatten().all(|(k, v)| labels.get(k) == Some(v));
    let affinity = pod.spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let affine = required.is_none_or(|r| {
        r.node_selector_terms.iter().any(|term| {
            let name = node.metadata.name.as_deref();
            let labels_match =
                term.match_expressions.iter().flatten().all(|e| holds(e, labels.get(&e.key).map(String::as_str)));
            labels_match && term.match_fields.iter().flatten().all(|e| holds(e, name))
        })
    });
    if !selected || !affine {
        return refuse(
            "NodeAffinity",
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
        );
    }
    let tolerations = pod.spec.tolerations.as_deref().unwrap_or_default();
    for taint in node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default() {
        let tolerated = tolerations.iter().any(|t| {
            let effect = t.effect.as_deref().is_none_or(|e| e.is_empty() || e == taint.effect);
            let key = t.key.as_deref().is_none_or(|k| k.is_empty() || k == taint.key);
            let exists = t.operator.as_deref() == Some("Exists");
            effect
                && key
                && (exists || t.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default())
        });
        // Static pods are the node's own; only NoExecute is ours to enforce for the others, as upstream.
        if taint.effect == "NoExecute" && !tolerated && pod.source == crate::pod::Source::Api {
            return refuse(
                "TaintToleration",
                format!("Predicate TaintToleration failed: taint {} is not tolerated", taint.key),
            );
        }
    }
    Ok(())
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let number = |text: Option<&str>| text.and_then(|t| t.parse::<i64>().ok());
    let bound = number(values.first().map(String::as_str));
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|v| values.iter().any(|w| w == v)),
        "NotIn" => value.is_none_or(|v| values.iter().all(|w| w != v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => number(value).zip(bound).is_some_and(|(a, b)| a > b),
        "Lt" => number(value).zip(bound).is_some_and(|(a, b)| a < b),
        _ => false,
    }
}

/// A field whose meaning is isolation must not be ignored.
fn supported(pod: &LocalPod) -> Result<(), Failed> {
    if pod.spec.host_users == Some(false) {
        let message = "spec.hostUsers: false asks for a user namespace, which this node cannot give yet; remove the field to run without";
        return refuse("UserNamespacesNotSupported", message);
    }
    if pod.spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        return refuse("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS");
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value, reason = "json! at the call reads better")]
mod tests {
    use super::*;
    use crate::pod::Source;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Arc<LocalPod> {
        let object = json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"}, "spec": spec});
        Arc::new(LocalPod::parse(serde_json::from_value(object).unwrap(), Source::Api).unwrap())
    }

    fn cpu(amount: &str) -> serde_json::Value {
        json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": amount}}, "ports": [{"containerPort": 80, "hostPort": 80}]}]})
    }

    fn check(new: &LocalPod, others: &[Arc<LocalPod>], expect: &str) {
        let node: Node =
            serde_json::from_value(json!({"metadata": {"name": "n", "labels": {"disk": "ssd", "gen": "7"}},
            "spec": {"taints": [{"key": "k", "effect": "NoExecute"}]}}))
            .unwrap();
        let capacity = Capacity { cpu_millis: 2000, memory_bytes: 1 << 30, pods: 3 };
        let listeners = [Listener { protocol: "TCP", address: "0.0.0.0".parse().unwrap(), port: 22 }];
        let sysctls = Allowed::default();
        let place = Place { capacity: &capacity, node: Some(&node), sysctls: &sysctls, listeners: &listeners };
        let got = judge(new, others, &place).map_or_else(|f| f.reason, |()| String::new());
        assert_eq!(got, expect);
    }

    #[test]
    fn listeners_of_pods_in_the_nodes_network_are_not_the_nodes() {
        let on = |port| Listener { protocol: "TCP", address: "0.0.0.0".parse().unwrap(), port };
        let shared = pod(json!({"hostNetwork": true, "containers": [{"name": "c", "ports": [{"containerPort": 80}]}]}));
        let own = pod(json!({"containers": [{"name": "c", "ports": [{"containerPort": 22}]}]}));
        assert_eq!(nodes_own(vec![on(22), on(80)], &[shared, own]), [on(22)]);
    }

    #[test]
    fn refusals_name_their_reason() {
        let ok = |mut spec: serde_json::Value| {
            spec["tolerations"] = json!([{"operator": "Exists"}]);
            if spec.get("containers").is_none() {
                spec["containers"] = json!([]);
            }
            pod(spec)
        };
        check(&ok(cpu("1")), &[], "");
        check(&ok(cpu("2")), &[pod(cpu("1m"))], "OutOfcpu");
        check(&ok(cpu("1m")), &[pod(cpu("1m"))], "NodePorts");
        let port = |network: bool, own: serde_json::Value| {
            ok(json!({"hostNetwork": network, "containers": [{"name": "c", "ports": [own]}]}))
        };
        check(&port(false, json!({"containerPort": 80, "hostPort": 22})), &[], "NodePorts");
        check(&port(false, json!({"containerPort": 80, "hostPort": 22, "protocol": "UDP"})), &[], "");
        check(&port(false, json!({"containerPort": 22})), &[], "");
        check(&port(true, json!({"containerPort": 22})), &[], "NodePorts");
        let sysctls = json!([{"name": "kernel.msgmax", "value": "1"}]);
        check(&ok(json!({"securityContext": {"sysctls": sysctls}})), &[], "SysctlForbidden");
        check(
            &ok(json!({})),
            &[pod(json!({"containers": []})), pod(json!({"containers": []})), pod(json!({"containers": []}))],
            "OutOfpods",
        );
        check(&ok(json!({"nodeSelector": {"disk": "ssd"}})), &[], "");
        check(&ok(json!({"nodeSelector": {"disk": "hdd"}})), &[], "NodeAffinity");
        let affinity = |op: &str, values: serde_json::Value| {
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchExpressions": [{"key": "gen", "operator": op, "values": values}]}]}}}})
        };
        check(&ok(affinity("Gt", json!(["6"]))), &[], "");
        check(&ok(affinity("Lt", json!(["6"]))), &[], "NodeAffinity");
        check(&pod(json!({"containers": []})), &[], "TaintToleration");
        check(&ok(json!({"hostUsers": false})), &[], "UserNamespacesNotSupported");
    }
}
