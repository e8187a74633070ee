//! Rules of what belongs to the cluster or to a namespace as a whole; and of no rule at all: what is of another type ends nothing.

use serde_json::{Value, json};

use super::{changes, prepared, rules};
use crate::Object;

#[test]
fn nodes() {
    let base = json!({"metadata": {"name": "n"}, "spec": {"podCIDRs": ["10.42.0.0/24"], "podCIDR": "10.42.0.0/24"}});
    let taint = |key: &str, effect: &str| json!({"key": key, "effect": effect});
    let rule = "validateNodeTaints";
    rules("", "v1", "nodes", &base, &[
        ("a taint's key is a label", rule, "/spec/taints", json!([taint("a b", "NoSchedule")]), "metadata.taints[0].key Invalid"),
        ("a taint's effect is given", rule, "/spec/taints", json!([taint("a", "")]), "spec.taints[0].effect Required"),
        ("a taint's effect is one of three", rule, "/spec/taints", json!([taint("a", "X")]), "metadata.taints[0].effect NotSupported"),
        ("taints are unique", rule, "/spec/taints", json!([taint("a", "NoSchedule"), taint("a", "NoSchedule")]), "metadata.taints[1] Duplicate"),
        ("a network is one", "ValidateNode", "/spec/podCIDRs", json!(["x"]), "spec.podCIDRs[0] Invalid"),
        ("two networks are of two families", "ValidateNode", "/spec/podCIDRs", json!(["10.42.0.0/24", "10.43.0.0/24"]), "spec.podCIDRs Invalid"),
        ("a capacity is not negative", "ValidateNodeResources", "/status", json!({"capacity": {"cpu": "-1"}, "allocatable": {"cpu": "1"}}), "status.capacity[cpu] Invalid"),
        ("pods are counted", "ValidateNodeResources", "/status", json!({"capacity": {"pods": "1500m"}, "allocatable": {"pods": "1"}}), "status.capacity[pods] Invalid"),
    ]);
    changes(("", "v1", "nodes"), "", &base, &[
        ("a network stays", "ValidateNodeUpdate", "/spec/podCIDRs", json!(["10.42.1.0/24"]), "spec.podCIDRs Forbidden"),
        ("a provider is told once", "ValidateNodeUpdate", "/spec/providerID", json!("x"), ""),
    ]);
    changes(("", "v1", "nodes"), "status", &base, &[
        ("addresses are unique", "ValidateNodeUpdate", "/status/addresses", json!([{"type": "InternalIP", "address": "10.0.0.1"}, {"type": "InternalIP", "address": "10.0.0.1"}]), "status.addresses[1] Duplicate"),
        ("amounts are not negative", "ValidateNodeResources", "/status/allocatable", json!({"memory": "-1"}), "status.allocatable[memory] Invalid"),
    ]);
}

#[test]
fn namespaces() {
    let base = json!({"metadata": {"name": "n"}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
    changes(("", "v1", "namespaces"), "finalize", &base, &[
        ("a finalizer is a name", "validateFinalizerName", "/spec/finalizers", json!(["a b"]), "spec.finalizers[0] Invalid"),
        ("a finalizer goes", "ValidateNamespaceFinalizeUpdate", "/spec/finalizers", json!([]), ""),
    ]);
    changes(("", "v1", "namespaces"), "status", &base, &[
        ("who lives is active", "ValidateNamespaceStatusUpdate", "/status/phase", json!("Terminating"), "status.Phase Invalid"),
    ]);
}

#[test]
fn levels_of_pod_security() {
    let rule = "podsecurity.Admission.ValidateNamespace";
    let base = json!({"metadata": {"name": "n"}});
    let table = [
        ("a level is one of three", rule, "/metadata/labels", json!({"pod-security.kubernetes.io/enforce": "restrictd"}), "metadata.labels[pod-security.kubernetes.io/enforce] Invalid"),
        ("a version is a release's", rule, "/metadata/labels", json!({"pod-security.kubernetes.io/warn-version": "1.30"}), "metadata.labels[pod-security.kubernetes.io/warn-version] Invalid"),
        ("a level is taken", rule, "/metadata/labels", json!({"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/enforce-version": "v1.36"}), ""),
    ];
    rules("", "v1", "namespaces", &base, &table);
    changes(("", "v1", "namespaces"), "", &base, &table);
}

#[test]
fn configuration() {
    let rule = "ValidateConfigMap";
    let big = "x".repeat(1024 * 1024);
    rules("", "v1", "configmaps", &json!({"data": {"a": "b"}}), &[
        ("a key is a key", rule, "/data", json!({"a/b": ""}), "data[a/b] Invalid"),
        ("a key is no way upwards", "IsConfigMapKey", "/data", json!({"..": ""}), "data[..] Invalid"),
        ("a key has an end", "IsConfigMapKey", "/data", json!({"a".repeat(254): ""}), &format!("data[{}] Invalid", "a".repeat(254))),
        ("a key is there once", rule, "/binaryData", json!({"a": "eA=="}), "data[a] Invalid"),
        ("all of it is at most a mebibyte", rule, "/data", json!({"a": big, "b": "c"}), " TooLong"),
    ]);
    let rule = "ValidateSecret";
    rules("", "v1", "secrets", &json!({"data": {"a": "eA=="}}), &[
        ("a key is a key", rule, "/data", json!({"a/b": ""}), "data[a/b] Invalid"),
        ("a certificate has a key", rule, "/type", json!("kubernetes.io/tls"), "data[tls.crt] Required; data[tls.key] Required"),
        ("a key for a shell is one", rule, "/type", json!("kubernetes.io/ssh-auth"), "data[ssh-privatekey] Required"),
        ("a login has a name or a password", rule, "/type", json!("kubernetes.io/basic-auth"), "data[username] Required; data[password] Required"),
        ("a registry's login is given", rule, "/type", json!("kubernetes.io/dockerconfigjson"), "data[.dockerconfigjson] Required"),
        ("a registry's login is JSON", rule, "", json!({"metadata": {"name": "x"}, "type": "kubernetes.io/dockercfg", "data": {".dockercfg": "eA=="}}), "data[.dockercfg] Invalid"),
        ("a token is an account's", rule, "/type", json!("kubernetes.io/service-account-token"), "metadata.annotations[kubernetes.io/service-account.name] Required"),
    ]);
    changes(("", "v1", "secrets"), "", &json!({"immutable": true, "data": {"a": "eA=="}}), &[
        ("what is fixed stays", "ValidateSecretUpdate", "/data/a", json!("eQ=="), "data Forbidden"),
        ("what is fixed stays fixed", "ValidateSecretUpdate", "/immutable", json!(false), "immutable Forbidden"),
        ("a type stays", "ValidateSecretUpdate", "/type", json!("x"), "type Invalid"),
    ]);
}

#[test]
fn limits_and_quotas() {
    let limit = |more: Value| {
        let mut item = json!({"type": "Container"});
        for (key, value) in more.as_object().unwrap() {
            item[key] = value.clone();
        }
        json!([item])
    };
    let rule = "ValidateLimitRange";
    let at = "spec.limits[0]";
    rules("", "v1", "limitranges", &json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}}]}}), &[
        ("a type is known", "validateLimitRangeTypeName", "/spec/limits", limit(json!({"type": "X"})), &format!("{at}.type Invalid")),
        ("types are unique", rule, "/spec/limits/1", json!({"type": "Container"}), "spec.limits[1].type Duplicate"),
        ("a resource is known", "validateLimitRangeResourceName", "/spec/limits", limit(json!({"min": {"foo": "1"}})), &format!("{at}.min[foo] Invalid; {at}.defaultRequest[foo] Invalid")),
        ("the least is at most the most", rule, "/spec/limits", limit(json!({"min": {"cpu": "2"}, "max": {"cpu": "1"}})), &format!("{at}.min[cpu] Invalid; {at}.defaultRequest[cpu] Invalid; {at}.default[cpu] Invalid")),
        ("the usual is at most the most", rule, "/spec/limits", limit(json!({"default": {"cpu": "2"}, "defaultRequest": {"cpu": "1"}, "max": {"cpu": "1"}})), &format!("{at}.default[cpu] Invalid")),
        ("a request is at most its limit", rule, "/spec/limits", limit(json!({"default": {"cpu": "1"}, "defaultRequest": {"cpu": "2"}})), &format!("{at}.defaultRequest[cpu] Invalid")),
        ("a pod has nothing usual", rule, "/spec/limits", limit(json!({"type": "Pod", "default": {"cpu": "1"}})), &format!("{at}.default Forbidden")),
        ("a claim has a bound", rule, "/spec/limits", limit(json!({"type": "PersistentVolumeClaim"})), &format!("{at}.limits Required")),
        ("a ratio is at least one", rule, "/spec/limits", limit(json!({"maxLimitRequestRatio": {"cpu": "500m"}})), &format!("{at}.maxLimitRequestRatio[cpu] Invalid")),
    ]);
    rules("", "v1", "resourcequotas", &json!({"spec": {"hard": {"pods": "1"}}}), &[
        ("a resource is known", "ValidateResourceQuotaResourceName", "/spec/hard", json!({"foo": "1"}), "spec.hard[foo] Invalid"),
        ("an amount is not negative", "ValidateResourceQuantityValue", "/spec/hard", json!({"cpu": "-1"}), "spec.hard[cpu] Invalid"),
        ("objects are counted", "ValidateResourceQuantityValue", "/spec/hard", json!({"pods": "1500m"}), "spec.hard[pods] Invalid"),
        ("a scope is known", "validateResourceQuotaScopes", "/spec/scopes", json!(["X"]), "spec.scopes Invalid"),
        ("a scope counts the resource", "validateResourceQuotaScopes", "/spec", json!({"hard": {"cpu": "1"}, "scopes": ["BestEffort"]}), "spec.scopes Invalid"),
        ("scopes do not exclude each other", "validateResourceQuotaScopes", "/spec/scopes", json!(["Terminating", "NotTerminating"]), "spec.scopes Invalid"),
        ("one of several has values", "validateScopedResourceSelectorRequirement", "/spec/scopeSelector", json!({"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In"}]}), "spec.scopeSelector.matchExpressions.values Required"),
    ]);
    changes(("", "v1", "resourcequotas"), "", &json!({"spec": {"hard": {"pods": "1"}}}), &[
        ("scopes stay", "ValidateResourceQuotaUpdate", "/spec/scopes", json!(["BestEffort"]), "spec.scopes Invalid"),
    ]);
}

#[test]
fn roles() {
    let group = "rbac.authorization.k8s.io";
    let binding = json!({"roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "view"}, "subjects": [{"kind": "User", "name": "u", "apiGroup": group}]});
    rules(group, "v1", "rolebindings", &binding, &[
        ("a role is of the group", "ValidateRoleBinding", "/roleRef/apiGroup", json!("x"), "roleRef.apiGroup NotSupported"),
        ("a role is one of two kinds", "ValidateRoleBinding", "/roleRef/kind", json!("X"), "roleRef.kind NotSupported"),
        ("a role has a name", "ValidateRoleBinding", "/roleRef/name", json!(""), "roleRef.name Required"),
        ("a subject is of a known kind", "ValidateRoleBindingSubject", "/subjects/0/kind", json!("X"), "subjects[0].kind NotSupported"),
        ("a subject has a name", "ValidateRoleBindingSubject", "/subjects/0/name", json!(""), "subjects[0].name Required"),
        ("an account's name is a subdomain", "ValidateRoleBindingSubject", "/subjects/0", json!({"kind": "ServiceAccount", "name": "A"}), "subjects[0].name Invalid"),
    ]);
    rules(group, "v1", "clusterrolebindings", &binding, &[
        ("an account is somewhere", "ValidateRoleBindingSubject", "/subjects/0", json!({"kind": "ServiceAccount", "name": "a"}), "subjects[0].namespace Required"),
        ("a role of a namespace is not bound everywhere", "ValidateClusterRoleBinding", "/roleRef/kind", json!("Role"), "roleRef.kind NotSupported"),
    ]);
    changes((group, "v1", "rolebindings"), "", &binding, &[
        ("the role stays", "ValidateRoleBindingUpdate", "/roleRef/name", json!("edit"), "roleRef Invalid"),
    ]);
    let rule = "ValidatePolicyRule";
    let role = json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]});
    rules(group, "v1", "roles", &role, &[
        ("a rule has a verb", rule, "/rules/0/verbs", json!([]), "rules[0].verbs Required"),
        ("a rule has a group", rule, "/rules/0/apiGroups", json!([]), "rules[0].apiGroups Required"),
        ("a rule has a resource", rule, "/rules/0/resources", json!([]), "rules[0].resources Required"),
        ("a namespace has no paths", rule, "/rules/0", json!({"nonResourceURLs": ["/x"], "verbs": ["get"]}), "rules[0].nonResourceURLs Invalid"),
    ]);
    rules(group, "v1", "clusterroles", &role, &[
        ("a rule is of resources or of paths", rule, "/rules/0/nonResourceURLs", json!(["/x"]), "rules[0].nonResourceURLs Invalid"),
        ("what is gathered is selected", "ValidateClusterRole", "/aggregationRule", json!({"clusterRoleSelectors": []}), "aggregationRule.clusterRoleSelectors Required"),
    ]);
}

#[test]
fn the_rest() {
    let budget = json!({"spec": {"minAvailable": 1, "selector": {"matchLabels": {"a": "b"}}}});
    let rule = "ValidatePodDisruptionBudgetSpec";
    rules("policy", "v1", "poddisruptionbudgets", &budget, &[
        ("one bound is given", rule, "/spec/maxUnavailable", json!(1), "spec Invalid"),
        ("a bound is not negative", rule, "/spec/minAvailable", json!(-1), "spec.minAvailable Invalid"),
        ("a bound is at most all", rule, "/spec/minAvailable", json!("101%"), "spec.minAvailable Invalid"),
        ("a bound is a share", rule, "/spec/minAvailable", json!("x"), "spec.minAvailable Invalid"),
        ("who is ill goes in one of two ways", rule, "/spec/unhealthyPodEvictionPolicy", json!("X"), "spec.unhealthyPodEvictionPolicy NotSupported"),
    ]);
    let scaler = json!({"spec": {"maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}});
    let rule = "validateHorizontalPodAutoscalerSpec";
    rules("autoscaling", "v2", "horizontalpodautoscalers", &scaler, &[
        ("one pod is the least", rule, "/spec/minReplicas", json!(0), "spec.minReplicas Invalid"),
        ("the most is positive", rule, "/spec", json!({"maxReplicas": 0, "scaleTargetRef": {"kind": "D", "name": "d"}}), "spec.maxReplicas Invalid"),
        ("the most is at least the least", rule, "/spec/minReplicas", json!(4), "spec.maxReplicas Invalid"),
        ("a target has a name", "ValidateCrossVersionObjectReference", "/spec/scaleTargetRef/name", json!(""), "spec.scaleTargetRef.name Required"),
        ("a metric is known", "validateMetricSpec", "/spec/metrics", json!([{"type": "X"}]), "spec.metrics[0].type NotSupported"),
        ("a metric says what", "validateMetricSpec", "/spec/metrics", json!([{"type": "Resource"}]), "spec.metrics[0].resource Required"),
        ("a share is positive", "validateMetricTarget", "/spec/metrics", json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 0}}}]), "spec.metrics[0].resource.target.averageUtilization Invalid"),
        ("a window is at most an hour", "validateScalingRules", "/spec/behavior", json!({"scaleDown": {"stabilizationWindowSeconds": 3601}}), "spec.behavior.scaleDown.stabilizationWindowSeconds Invalid"),
        ("a period is at most half an hour", "validateScalingPolicy", "/spec/behavior", json!({"scaleUp": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 1801}]}}), "spec.behavior.scaleUp.policies[0].periodSeconds Invalid"),
    ]);
    let rule = "ValidatePriorityClass";
    rules("scheduling.k8s.io", "v1", "priorityclasses", &json!({"metadata": {"name": "p"}, "value": 5}), &[
        ("the system's names are its own", rule, "/metadata/name", json!("system-x"), "metadata.name Forbidden"),
        ("the system's values are its own", rule, "/value", json!(1_000_000_001), "value Forbidden"),
        ("preemption is one of two", rule, "/preemptionPolicy", json!("X"), "preemptionPolicy NotSupported"),
    ]);
    changes(("scheduling.k8s.io", "v1", "priorityclasses"), "", &json!({"metadata": {"name": "p"}, "value": 5}), &[
        ("a value stays", "ValidatePriorityClassUpdate", "/value", json!(6), "value Forbidden"),
    ]);
    let rule = "ValidateLeaseSpec";
    rules("coordination.k8s.io", "v1", "leases", &json!({"spec": {"leaseDurationSeconds": 40}}), &[
        ("a lease lasts", rule, "/spec/leaseDurationSeconds", json!(0), "spec.leaseDurationSeconds Invalid"),
        ("hands are counted", rule, "/spec/leaseTransitions", json!(-1), "spec.leaseTransitions Invalid"),
        ("who let go holds nothing", rule, "/spec/holderIdentity", json!(""), ""),
    ]);
    rules("node.k8s.io", "v1", "runtimeclasses", &json!({"handler": "h"}), &[
        ("a handler is a label", "ValidateRuntimeClass", "/handler", json!("A"), "handler Invalid"),
        ("a handler is given", "ValidateRuntimeClass", "/handler", json!(""), "handler Required"),
    ]);
}

/// Objects of many kinds, each with most of what its kind can have.
fn rich() -> Vec<(&'static str, &'static str, &'static str, Value)> {
    let selector = json!({"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "k", "operator": "In", "values": ["v"]}]});
    let node = json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}], "matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}]});
    let term = json!({"topologyKey": "z", "labelSelector": selector, "namespaces": ["d"], "matchLabelKeys": ["m"]});
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let spec = json!({"serviceAccountName": "a", "hostAliases": [{"ip": "1.1.1.1", "hostnames": ["h"]}], "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["s"], "options": [{"name": "o"}]},
        "tolerations": [{"key": "a", "operator": "Exists"}], "affinity": {"nodeAffinity": {required: node}, "podAffinity": {required: [term]}},
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": selector}],
        "securityContext": {"sysctls": [{"name": "a.b", "value": "1"}], "supplementalGroups": [1], "seccompProfile": {"type": "Localhost", "localhostProfile": "p"}},
        "readinessGates": [{"conditionType": "a"}], "overhead": {"cpu": "1"}, "resourceClaims": [{"name": "r", "resourceClaimName": "x"}],
        "volumes": [{"name": "v", "secret": {"secretName": "s", "items": [{"key": "k", "path": "p"}]}}, {"name": "w", "projected": {"sources": [{"downwardAPI": {"items": [{"path": "p", "fieldRef": {"fieldPath": "metadata.name"}}]}}]}}],
        "initContainers": [{"name": "i", "image": "i", "restartPolicy": "Always", "readinessProbe": {"httpGet": {"port": 80, "httpHeaders": [{"name": "H", "value": "v"}]}}}],
        "containers": [{"name": "c", "image": "i", "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}], "envFrom": [{"secretRef": {"name": "s"}}],
            "ports": [{"containerPort": 1, "name": "p"}], "volumeMounts": [{"name": "v", "mountPath": "/m", "subPath": "s"}], "lifecycle": {"preStop": {"sleep": {"seconds": 1}}},
            "resources": {"limits": {"cpu": "1"}, "claims": [{"name": "r"}]}, "securityContext": {"capabilities": {"add": ["X"]}, "runAsUser": 1}}]});
    let template = json!({"metadata": {"labels": {"a": "b", "k": "v"}, "annotations": {"a": "b"}}});
    vec![
        ("", "v1", "pods", json!({"metadata": {"name": "p", "labels": {"a": "b"}, "annotations": {"a": "b"}, "finalizers": ["x.io/y"], "ownerReferences": [{"apiVersion": "v1", "kind": "K", "name": "n", "uid": "u"}]}, "spec": spec,
            "status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}], "hostIPs": [{"ip": "10.0.0.2"}], "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": 1}}}]}})),
        ("apps", "v1", "deployments", json!({"spec": {"selector": selector, "template": {"metadata": template["metadata"]}, "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}})),
        ("apps", "v1", "statefulsets", json!({"spec": {"selector": selector, "template": {"metadata": template["metadata"]}, "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]}})),
        ("", "v1", "services", json!({"spec": {"type": "LoadBalancer", "ports": [{"name": "a", "port": 1, "nodePort": 30000}], "externalIPs": ["192.0.2.1"], "selector": {"a": "b"}, "loadBalancerSourceRanges": ["10.0.0.0/8"], "clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9"], "ipFamilies": ["IPv4"]}, "status": {"loadBalancer": {"ingress": [{"ip": "10.0.0.1"}]}}})),
        ("", "v1", "endpoints", json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}]})),
        ("discovery.k8s.io", "v1", "endpointslices", json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"], "hints": {"forZones": [{"name": "z"}]}}], "ports": [{"port": 80}]})),
        ("networking.k8s.io", "v1", "networkpolicies", json!({"spec": {"podSelector": selector, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}], "ports": [{"port": 1, "endPort": 2}]}]}})),
        ("networking.k8s.io", "v1", "ingresses", json!({"spec": {"tls": [{"hosts": ["a"]}], "rules": [{"host": "a", "http": {"paths": [{"path": "/", "pathType": "Exact", "backend": {"service": {"name": "s", "port": {"number": 1}}}}]}}]}})),
        ("batch", "v1", "jobs", json!({"spec": {"completionMode": "Indexed", "completions": 3, "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}, "podFailurePolicy": {"rules": [{"action": "Ignore", "onExitCodes": {"operator": "In", "values": [1]}}]}, "successPolicy": {"rules": [{"succeededIndexes": "0-1"}]}}})),
        ("", "v1", "limitranges", json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "1"}, "maxLimitRequestRatio": {"cpu": "2"}}]}})),
        ("", "v1", "resourcequotas", json!({"spec": {"hard": {"pods": "1"}, "scopes": ["BestEffort"], "scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "Exists"}]}}})),
        ("", "v1", "secrets", json!({"data": {"a": "eA=="}, "type": "Opaque"})),
        ("", "v1", "nodes", json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}], "podCIDRs": ["10.0.0.0/24"]}, "status": {"capacity": {"cpu": "1"}, "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}})),
        ("", "v1", "persistentvolumes", json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "local": {"path": "/x"}, "nodeAffinity": {"required": node}}})),
        ("rbac.authorization.k8s.io", "v1", "clusterroles", json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]})),
        ("autoscaling", "v2", "horizontalpodautoscalers", json!({"spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "D", "name": "d"}, "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 5}}}], "behavior": {"scaleUp": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 5}]}}}})),
    ]
}

/// The ways to every value in a value.
fn pointers(value: &Value, way: &str, out: &mut Vec<String>) {
    match value {
        Value::Array(list) => {
            for (index, item) in list.iter().enumerate() {
                out.push(format!("{way}/{index}"));
                pointers(item, &format!("{way}/{index}"), out);
            }
        }
        Value::Object(map) => {
            for (key, item) in map {
                let way = format!("{way}/{}", key.replace('~', "~0").replace('/', "~1"));
                out.push(way.clone());
                pointers(item, &way, out);
            }
        }
        _ => {}
    }
}

/// Whatever stands anywhere, null and values of other types too, is judged and ends nothing.
#[test]
fn values_of_other_types_end_no_check() {
    let odd = [Value::Null, json!(""), json!(-1), json!(u64::MAX), json!([null, {}, ""]), json!({"": null})];
    for (group, version, resource, given) in rich() {
        let (row, object) = prepared(group, version, resource, given);
        let sound = object.to_value();
        let mut ways = Vec::new();
        pointers(&sound, "", &mut ways);
        for way in ways {
            for odd in &odd {
                let mut broken = sound.clone();
                *broken.pointer_mut(&way).unwrap() = odd.clone();
                let broken = Object::from_value(broken).unwrap();
                let _ = super::create(row, &broken);
                for subresource in ["", "status"] {
                    let _ = super::update(row, subresource, &broken, &object);
                    let _ = super::update(row, subresource, &object, &broken);
                }
            }
        }
    }
}

/// What is wrong with a hundred thousand entries is told of the first, and shown in part.
#[test]
fn causes_have_a_bound() {
    let containers: Vec<Value> = (0..20_000).map(|_| json!({})).collect();
    let (row, object) = prepared("", "v1", "pods", json!({"spec": {"containers": containers}}));
    assert_eq!(super::create(row, &object).len(), super::super::CAUSES_MAX);
    let (row, object) = prepared("", "v1", "pods", json!({"spec": {"containers": [{"name": "x".repeat(1 << 20), "image": "i"}]}}));
    let causes = super::create(row, &object);
    assert!(causes.iter().all(|cause| cause.message.len() < 2 * super::super::MESSAGE_BYTES_MAX), "{}", causes.len());
}
