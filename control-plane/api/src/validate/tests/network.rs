//! Rules of endpoints, ingresses and network policies.

use serde_json::{Value, json};

use super::{changes, rules};

const SPECIAL: &[&str] = &["127.0.0.1", "127.9.9.9", "169.254.169.254", "224.0.0.1", "239.0.0.1", "0.0.0.0", "255.255.255.255"];

#[test]
fn endpoints() {
    let base = json!({"subsets": [{"addresses": [{"ip": "10.42.0.2"}], "ports": [{"port": 80}]}]});
    let address = "validateEndpointAddress";
    let port = "validateEndpointPort";
    let mut table = vec![
        ("a subset has an address", "validateEndpointSubsets", "/subsets/0/addresses", json!([]), "subsets[0] Required"),
        ("an address is one", address, "/subsets/0/addresses/0/ip", json!("x"), "subsets[0].addresses[0].ip Invalid"),
        ("an address is given", address, "/subsets/0/addresses/0/ip", json!(""), "subsets[0].addresses[0].ip Required"),
        ("a host name is a label", address, "/subsets/0/addresses/0/hostname", json!("a.b"), "subsets[0].addresses[0].hostname Invalid"),
        ("a node's name is a subdomain", address, "/subsets/0/addresses/0/nodeName", json!("A"), "subsets[0].addresses[0].nodeName Invalid"),
        ("who is not ready has an address, too", address, "/subsets/0/notReadyAddresses", json!([{"ip": "::1"}]), "subsets[0].notReadyAddresses[0].ip Invalid"),
        ("a port's number is of 16 bits", port, "/subsets/0/ports/0/port", json!(70000), "subsets[0].ports[0].port Invalid"),
        ("a protocol is one of three", port, "/subsets/0/ports/0/protocol", json!("X"), "subsets[0].ports[0].protocol NotSupported"),
        ("several ports have names", port, "/subsets/0/ports", json!([{"port": 1, "name": "a"}, {"port": 2}]), "subsets[0].ports[1].name Required"),
    ];
    for special in SPECIAL {
        table.push(("no node's own, link's or group's address", "ValidateNonSpecialIP", "/subsets/0/addresses/0/ip", json!(special), "subsets[0].addresses[0].ip Invalid"));
    }
    rules("", "v1", "endpoints", &base, &table);
}

#[test]
fn slices() {
    let base = json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.42.0.2"]}], "ports": [{"port": 80}]});
    let rule = "validateEndpoints";
    let many: Vec<String> = (0..101).map(|index| format!("10.42.0.{index}")).collect();
    let mut table = vec![
        ("a type is given", "validateAddressType", "/addressType", json!(""), "addressType Required"),
        ("a type is one of three", "validateAddressType", "/addressType", json!("X"), "addressType NotSupported"),
        ("an endpoint has an address", rule, "/endpoints/0/addresses", json!([]), "endpoints[0].addresses Required"),
        ("an endpoint has at most a hundred", rule, "/endpoints/0/addresses", json!(many), "endpoints[0].addresses TooMany"),
        ("endpoints are at most a thousand", rule, "/endpoints", json!(vec![json!({"addresses": ["10.42.0.2"]}); 1001]), "endpoints TooMany"),
        ("an address is of its type", rule, "/endpoints/0/addresses", json!(["fd00::1"]), "endpoints[0].addresses[0] Invalid"),
        ("a host name is a label", rule, "/endpoints/0/hostname", json!("a.b"), "endpoints[0].hostname Invalid"),
        ("a node's name is a subdomain", rule, "/endpoints/0/nodeName", json!("A"), "endpoints[0].nodeName Invalid"),
        ("hints are at most eight", "validateHints", "/endpoints/0/hints", json!({"forZones": vec![json!({"name": "z"}); 9]}), "endpoints[0].hints.forZones TooMany"),
        ("hints are unique", "validateHints", "/endpoints/0/hints", json!({"forZones": [{"name": "z"}, {"name": "z"}]}), "endpoints[0].hints.forZones[1].name Duplicate"),
        ("a port's name is a label", "validatePorts", "/ports/0/name", json!("A"), "ports[0].name Invalid"),
        ("port names are unique", "validatePorts", "/ports", json!([{"port": 1, "name": "a"}, {"port": 2, "name": "a"}]), "ports[1].name Duplicate"),
        ("a protocol is one of three", "validatePorts", "/ports/0/protocol", json!("X"), "ports[0].protocol NotSupported"),
        ("a port's number is of 16 bits", "validatePorts", "/ports/0/port", json!(70000), "ports[0].port Invalid"),
        ("a protocol above is a qualified name", "validatePorts", "/ports/0/appProtocol", json!("a b"), "ports[0].appProtocol Invalid"),
    ];
    for special in SPECIAL {
        table.push(("no node's own, link's or group's address", "ValidateNonSpecialIP", "/endpoints/0/addresses", json!([special]), "endpoints[0].addresses[0] Invalid"));
    }
    rules("discovery.k8s.io", "v1", "endpointslices", &base, &table);
    let mut six = base.clone();
    six["addressType"] = "IPv6".into();
    six["endpoints"] = json!([{"addresses": ["fd00::2"]}]);
    let table: Vec<super::Rule<'_>> = ["::1", "::", "fe80::1", "ff02::1", "ff0e::1", "::ffff:127.0.0.1"]
        .into_iter()
        .map(|special| ("no node's own, link's or group's address", "ValidateNonSpecialIP", "/endpoints/0/addresses", json!([special]), "endpoints[0].addresses[0] Invalid"))
        .collect();
    rules("discovery.k8s.io", "v1", "endpointslices", &six, &table);
    changes(("discovery.k8s.io", "v1", "endpointslices"), "", &base, &[
        ("the type stays", "ValidateEndpointSliceUpdate", "/addressType", json!("IPv6"), "endpoints[0].addresses[0] Invalid; addressType Invalid"),
    ]);
}

#[test]
fn ingresses() {
    let path = |more: Value| {
        let mut path = json!({"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "s", "port": {"number": 80}}}});
        for (key, value) in more.as_object().unwrap() {
            path[key] = value.clone();
        }
        json!([path])
    };
    let base = json!({"spec": {"rules": [{"host": "a.b", "http": {"paths": path(json!({}))}}]}});
    let rule = "validateIngressRules";
    let paths = "/spec/rules/0/http/paths";
    let at = "spec.rules[0].http.paths[0]";
    let backend = "validateIngressBackend";
    rules("networking.k8s.io", "v1", "ingresses", &base, &[
        ("there is a rule or a backend", "ValidateIngressSpec", "/spec/rules", json!([]), "spec Invalid"),
        ("a host is no address", rule, "/spec/rules/0/host", json!("10.0.0.1"), "spec.rules[0].host Invalid"),
        ("a host is a subdomain", rule, "/spec/rules/0/host", json!("A"), "spec.rules[0].host Invalid"),
        ("a host's first label may be any", rule, "/spec/rules/0/host", json!("*.a.b"), ""),
        ("a host's other labels are given", rule, "/spec/rules/0/host", json!("a.*.b"), "spec.rules[0].host Invalid"),
        ("a path has a type", "validateHTTPIngressPath", paths, path(json!({"pathType": Value::Null})), &format!("{at}.pathType Required")),
        ("a type is one of three", "validateHTTPIngressPath", paths, path(json!({"pathType": "X"})), &format!("{at}.pathType NotSupported")),
        ("a path is absolute", "validateHTTPIngressPath", paths, path(json!({"path": "a"})), &format!("{at}.path Invalid")),
        ("a path is read in one way", "validateHTTPIngressPath", paths, path(json!({"path": "/a//b"})), &format!("{at}.path Invalid")),
        ("a path does not lead upwards", "validateHTTPIngressPath", paths, path(json!({"path": "/a/../b"})), &format!("{at}.path Invalid")),
        ("a path does not end upwards", "validateHTTPIngressPath", paths, path(json!({"path": "/a/.."})), &format!("{at}.path Invalid")),
        ("a backend is given", backend, paths, path(json!({"backend": {}})), &format!("{at}.backend Required")),
        ("one backend is given", backend, paths, path(json!({"backend": {"service": {"name": "s", "port": {"number": 1}}, "resource": {"kind": "K", "name": "n"}}})), &format!("{at}.backend Invalid")),
        ("a backend has a name", backend, paths, path(json!({"backend": {"service": {"port": {"number": 1}}}})), &format!("{at}.backend.service.name Required")),
        ("a backend has a port", backend, paths, path(json!({"backend": {"service": {"name": "s"}}})), &format!("{at}.backend Required")),
        ("a backend has one port", backend, paths, path(json!({"backend": {"service": {"name": "s", "port": {"name": "a", "number": 1}}}})), &format!("{at}.backend Invalid")),
        ("a backend's port is of 16 bits", backend, paths, path(json!({"backend": {"service": {"name": "s", "port": {"number": 70000}}}})), &format!("{at}.backend.service.port.number Invalid")),
        ("a certificate's host is one", "validateIngressTLS", "/spec/tls", json!([{"hosts": ["A b"]}]), "spec.tls[0].hosts[0] Invalid"),
        ("a certificate's Secret is one", "ValidateIngressSpec", "/spec/tls", json!([{"secretName": "A"}]), "spec.tls[0].secretName Invalid"),
        ("a class' name is a subdomain", "ValidateIngressSpec", "/spec/ingressClassName", json!("A"), "spec.ingressClassName Invalid"),
    ]);
    rules("networking.k8s.io", "v1", "ingressclasses", &json!({"spec": {"controller": "a.b/c"}}), &[
        ("a controller is given", "validateIngressClassSpec", "/spec/controller", json!(""), "spec.controller Required"),
        ("a controller is a path of a domain", "validateIngressClassSpec", "/spec/controller", json!("abc"), "spec.controller Invalid"),
        ("parameters are of one scope", "validateIngressClassParametersReference", "/spec/parameters", json!({"kind": "K", "name": "n", "scope": "X"}), "spec.parameters.scope NotSupported"),
        ("parameters of a namespace are in one", "validateIngressClassParametersReference", "/spec/parameters", json!({"kind": "K", "name": "n", "scope": "Namespace"}), "spec.parameters.namespace Required"),
    ]);
}

#[test]
fn policies() {
    let base = json!({"spec": {"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": 80}]}]}});
    let port = "ValidateNetworkPolicyPort";
    let peer = "ValidateNetworkPolicyPeer";
    let block = |block: Value| json!([{"ipBlock": block}]);
    let ports = "/spec/ingress/0/ports";
    let from = "/spec/ingress/0/from";
    let at = "spec.ingress[0]";
    rules("networking.k8s.io", "v1", "networkpolicies", &base, &[
        ("a selector is one", "ValidateNetworkPolicySpec", "/spec/podSelector", json!({"matchLabels": {"a b": ""}}), "spec.podSelector.matchLabels Invalid"),
        ("a protocol is one of three", port, ports, json!([{"protocol": "X"}]), &format!("{at}.ports[0].protocol NotSupported")),
        ("a port's number is of 16 bits", port, ports, json!([{"port": 70000}]), &format!("{at}.ports[0].port Invalid")),
        ("a port's name is one", port, ports, json!([{"port": "a_b"}]), &format!("{at}.ports[0].port Invalid")),
        ("a range has a beginning", port, ports, json!([{"endPort": 5}]), &format!("{at}.ports[0].endPort Invalid")),
        ("a range is of numbers", port, ports, json!([{"port": "a", "endPort": 5}]), &format!("{at}.ports[0].endPort Invalid")),
        ("a range goes up", port, ports, json!([{"port": 6, "endPort": 5}]), &format!("{at}.ports[0].endPort Invalid")),
        ("a peer is somebody", peer, from, json!([{}]), &format!("{at}.from[0] Required")),
        ("a peer is of one kind", peer, from, json!([{"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}]), &format!("{at}.from[0] Forbidden")),
        ("a block is a network", "ValidateIPBlock", from, block(json!({"cidr": "10.0.0.0"})), &format!("{at}.from[0].ipBlock.cidr Invalid")),
        ("a block is given", "ValidateIPBlock", from, block(json!({"cidr": ""})), &format!("{at}.from[0].ipBlock.cidr Required")),
        ("a block may have bits beyond its prefix", "IsValidCIDR", from, block(json!({"cidr": "10.0.0.1/8"})), ""),
        ("an exception is within", "ValidateIPBlock", from, block(json!({"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]})), &format!("{at}.from[0].ipBlock.except[0] Invalid")),
        ("an exception is smaller", "ValidateIPBlock", from, block(json!({"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]})), &format!("{at}.from[0].ipBlock.except[0] Invalid")),
        ("an exception is a network", "ValidateIPBlock", from, block(json!({"cidr": "10.0.0.0/8", "except": ["x"]})), &format!("{at}.from[0].ipBlock.except[0] Invalid")),
        ("a whole family may have an exception", "ValidateIPBlock", from, block(json!({"cidr": "::/0", "except": ["fd00::/8"]})), ""),
        ("a type is one of two", "ValidateNetworkPolicySpec", "/spec/policyTypes", json!(["X"]), "spec.policyTypes NotSupported"),
        ("types are at most two", "ValidateNetworkPolicySpec", "/spec/policyTypes", json!(["Ingress", "Egress", "Ingress"]), "spec.policyTypes Invalid"),
    ]);
}
