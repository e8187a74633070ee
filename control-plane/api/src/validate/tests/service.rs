//! Rules of Services.

use serde_json::{Value, json};

use super::{changes, rules};

fn base(kind: &str) -> Value {
    json!({"spec": {"type": kind, "externalName": "x.example", "ports": [{"port": 80}]}})
}

const RULE: &str = "ValidateService";

#[test]
fn ports() {
    let rule = "validateServicePort";
    let ports = "/spec/ports";
    let mut table = vec![
        ("a Service has a port", RULE, ports, json!([]), "spec.ports Required"),
        ("several ports have names", rule, ports, json!([{"port": 1}, {"port": 2, "name": "b"}]), "spec.ports[0].name Required"),
        ("a name is a label", rule, ports, json!([{"port": 1, "name": "A"}]), "spec.ports[0].name Invalid"),
        ("names are unique", rule, ports, json!([{"port": 1, "name": "a"}, {"port": 2, "name": "a"}]), "spec.ports[1].name Duplicate"),
        ("a number is positive", rule, ports, json!([{"port": 0}]), "spec.ports[0].port Invalid; spec.ports[0].targetPort Invalid"),
        ("a number is of 16 bits", rule, ports, json!([{"port": 65536, "targetPort": 1}]), "spec.ports[0].port Invalid"),
        ("a protocol is one of three", rule, ports, json!([{"port": 1, "protocol": "X"}]), "spec.ports[0].protocol NotSupported"),
        ("a target's number is of 16 bits", rule, ports, json!([{"port": 1, "targetPort": 70000}]), "spec.ports[0].targetPort Invalid"),
        ("a target's name is a port's", rule, ports, json!([{"port": 1, "targetPort": "a_b"}]), "spec.ports[0].targetPort Invalid"),
        ("a protocol above is a qualified name", rule, ports, json!([{"port": 1, "appProtocol": "a b"}]), "spec.ports[0].appProtocol Invalid"),
        ("number and protocol are unique", RULE, ports, json!([{"port": 1, "name": "a"}, {"port": 1, "name": "b"}]), "spec.ports[1] Duplicate"),
        ("one number may have two protocols", RULE, ports, json!([{"port": 1, "name": "a"}, {"port": 1, "name": "b", "protocol": "UDP"}]), ""),
        ("a cluster's Service has no port of nodes", RULE, ports, json!([{"port": 1, "nodePort": 30000}]), "spec.ports[0].nodePort Forbidden"),
    ];
    rules("", "v1", "services", &base("ClusterIP"), &table);
    table.truncate(0);
    table.push((
        "a node's ports are unique",
        RULE,
        ports,
        json!([{"port": 1, "name": "a", "nodePort": 30000}, {"port": 2, "name": "b", "nodePort": 30000}]),
        "spec.ports[1].nodePort Duplicate",
    ));
    rules("", "v1", "services", &base("NodePort"), &table);
}

#[test]
fn types_and_what_goes_with_them() {
    let traffic = "validateServiceExternalTrafficPolicy";
    let balancer = "validateLoadBalancerClassField";
    rules(
        "",
        "v1",
        "services",
        &base("ClusterIP"),
        &[
            ("a type is one of four", RULE, "/spec/type", json!("X"), "spec.type NotSupported"),
            ("clients stay or do not", RULE, "/spec/sessionAffinity", json!("X"), "spec.sessionAffinity NotSupported"),
            ("who stays, stays for a time", "validateAffinityTimeout", "/spec", json!({"ports": [{"port": 1}], "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}}), "spec.sessionAffinityConfig.clientIP.timeoutSeconds Invalid"),
            ("who stays, stays for a day at most", "validateAffinityTimeout", "/spec", json!({"ports": [{"port": 1}], "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}}}), "spec.sessionAffinityConfig.clientIP.timeoutSeconds Invalid"),
            ("a selector's keys are labels", "ValidateLabels", "/spec/selector", json!({"a b": ""}), "spec.selector Invalid"),
            ("only who is reached from outside has a policy for it", traffic, "/spec/externalTrafficPolicy", json!("Local"), "spec.externalTrafficPolicy Invalid"),
            ("inside, the policy is one of two", "validateServiceInternalTrafficFieldsValue", "/spec/internalTrafficPolicy", json!("X"), "spec.internalTrafficPolicy NotSupported"),
            ("traffic is distributed in known ways", "validateServiceTrafficDistribution", "/spec/trafficDistribution", json!("X"), "spec.trafficDistribution NotSupported"),
            ("only a balancer is checked", traffic, "/spec/healthCheckNodePort", json!(30000), "spec.healthCheckNodePort Invalid"),
            ("only a balancer has a class", balancer, "/spec/loadBalancerClass", json!("a/b"), "spec.loadBalancerClass Forbidden"),
            ("only a balancer goes without ports of nodes", RULE, "/spec/allocateLoadBalancerNodePorts", json!(true), "spec.allocateLoadBalancerNodePorts Forbidden"),
            ("only a balancer has source ranges", RULE, "/spec/loadBalancerSourceRanges", json!(["10.0.0.0/8"]), "spec.LoadBalancerSourceRanges Forbidden"),
            ("hints are said once", RULE, "/metadata/annotations", json!({"service.kubernetes.io/topology-mode": "Auto", "service.kubernetes.io/topology-aware-hints": "Disabled"}), "metadata.annotations[service.kubernetes.io/topology-mode] Invalid"),
        ],
    );
    rules(
        "",
        "v1",
        "services",
        &base("LoadBalancer"),
        &[
            ("a policy is one of two", traffic, "/spec/externalTrafficPolicy", json!("X"), "spec.externalTrafficPolicy NotSupported"),
            ("a class is a qualified name", balancer, "/spec/loadBalancerClass", json!("a b"), "spec.loadBalancerClass Invalid"),
            ("a source range is a network", RULE, "/spec/loadBalancerSourceRanges", json!(["10.0.0.0"]), "spec.LoadBalancerSourceRanges[0] Invalid"),
            ("a source range may have spaces around it", RULE, "/spec/loadBalancerSourceRanges", json!([" 10.0.0.0/8 "]), ""),
            ("a balancer has an address inside", RULE, "/spec", json!({"type": "LoadBalancer", "clusterIP": "None", "ports": [{"port": 1}]}), "spec.clusterIPs[0] Invalid"),
            ("a checked port is one", traffic, "/spec", json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 70000, "ports": [{"port": 1}]}), "spec.healthCheckNodePort Invalid"),
        ],
    );
    rules(
        "",
        "v1",
        "services",
        &base("ExternalName"),
        &[
            ("an alias has a name", RULE, "/spec/externalName", json!(""), "spec.externalName Required"),
            ("an alias' name is a subdomain", RULE, "/spec/externalName", json!("A b"), "spec.externalName Invalid"),
            ("an alias' name may end with a dot", RULE, "/spec/externalName", json!("x.example."), ""),
            ("an alias has no address", RULE, "/spec/clusterIP", json!("10.43.0.7"), "spec.clusterIPs Forbidden"),
            ("an alias has no family", RULE, "/spec/ipFamilies", json!(["IPv4"]), "spec.ipFamilies Forbidden"),
            ("an alias needs no port", RULE, "/spec/ports", json!([]), ""),
        ],
    );
}

#[test]
fn addresses() {
    let rule = "ValidateServiceClusterIPsRelatedFields";
    let external = "ValidateNonSpecialIP";
    let addresses = |list: Value| json!({"ports": [{"port": 1}], "clusterIP": list[0], "clusterIPs": list});
    let mut table = vec![
        ("the first of the list is the one", rule, "/spec", json!({"ports": [{"port": 1}], "clusterIP": "10.43.0.7", "clusterIPs": ["10.43.0.8"]}), "spec.clusterIPs Invalid"),
        ("a list has its first also alone", rule, "/spec", json!({"ports": [{"port": 1}], "clusterIPs": ["10.43.0.8"]}), "spec.clusterIPs Invalid"),
        ("an address is one", rule, "/spec", addresses(json!(["x"])), "spec.clusterIPs[0] Invalid"),
        ("none is alone", rule, "/spec", addresses(json!(["None", "10.43.0.7"])), "spec.clusterIPs Invalid"),
        ("two of a family are too many", rule, "/spec", addresses(json!(["10.43.0.7", "10.43.0.8"])), "spec.clusterIPs Invalid"),
        ("three are too many", rule, "/spec", addresses(json!(["10.43.0.7", "fd00::1", "10.43.0.8"])), "spec.clusterIPs Invalid"),
        ("a family is one of two", rule, "/spec/ipFamilies", json!(["IPv5"]), "spec.ipFamilies[0] NotSupported"),
        ("families are unique", rule, "/spec/ipFamilies", json!(["IPv4", "IPv4"]), "spec.ipFamilies[1] Duplicate"),
        ("a policy for families is one of three", rule, "/spec/ipFamilyPolicy", json!("X"), "spec.ipFamilyPolicy NotSupported"),
        ("an address is of its family", rule, "/spec", json!({"ports": [{"port": 1}], "clusterIP": "10.43.0.7", "ipFamilies": ["IPv6"]}), "spec.clusterIPs[0] Invalid"),
        ("an address from outside is one", external, "/spec/externalIPs", json!(["host"]), "spec.externalIPs[0] Invalid"),
        ("an address has one way to be written", "IsValidIP", "/spec/externalIPs", json!(["010.0.0.1"]), "spec.externalIPs[0] Invalid"),
        ("an address of another host", external, "/spec/externalIPs", json!(["192.0.2.1", "2001:db8::1"]), ""),
    ];
    for special in [
        "127.0.0.1",
        "127.1.2.3",
        "::1",
        "0.0.0.0",
        "::",
        "169.254.169.254",
        "fe80::1",
        "224.0.0.1",
        "ff02::1",
        "239.1.1.1",
        "255.255.255.255",
        "::ffff:127.0.0.1",
    ] {
        table.push((
            "no node's own, link's or group's address",
            external,
            "/spec/externalIPs",
            json!([special]),
            "spec.externalIPs[0] Invalid",
        ));
    }
    rules("", "v1", "services", &base("ClusterIP"), &table);
}

#[test]
fn what_a_balancer_says() {
    let base = json!({"spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}, "status": {"loadBalancer": {}}});
    let rule = "ValidateLoadBalancerStatus";
    let ingress = "/status/loadBalancer/ingress";
    changes(
        ("", "v1", "services"),
        "status",
        &base,
        &[
            ("an address is one", rule, ingress, json!([{"ip": "x"}]), "status.loadBalancer.ingress[0].ip Invalid"),
            ("a name is one", rule, ingress, json!([{"hostname": "A b"}]), "status.loadBalancer.ingress[0].hostname Invalid"),
            ("a name is no address", rule, ingress, json!([{"hostname": "10.0.0.1"}]), "status.loadBalancer.ingress[0].hostname Invalid"),
            ("a mode is one of two", rule, ingress, json!([{"ip": "10.0.0.1", "ipMode": "X"}]), "status.loadBalancer.ingress[0].ipMode NotSupported"),
            ("a mode is an address'", rule, ingress, json!([{"hostname": "a", "ipMode": "VIP"}]), "status.loadBalancer.ingress[0].ipMode Forbidden"),
        ],
    );
}
