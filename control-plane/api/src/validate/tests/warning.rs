//! What is taken, and told.

use serde_json::{Value, json};

use crate::validate::warnings;
use crate::{Object, row};

#[track_caller]
fn check(group: &str, resource: &str, given: Value, expect: &[&str]) {
    let row = row(group, "v1", resource).unwrap();
    let object = Object::from_value(given).unwrap();
    assert_eq!(warnings(row, &object, None), expect);
    assert_eq!(warnings(row, &object, Some(&object)), Vec::<String>::new(), "what was there is not told again");
}

fn pod(container: Value, mut spec: Value) -> Value {
    spec["containers"] = json!([container]);
    json!({"spec": spec})
}

/// Upstream: `warningsForPodSpecAndMeta`.
#[test]
fn of_pods() {
    check("", "pods", pod(json!({"resources": {"limits": {"memory": "100m"}}}), json!({})),
        &["spec.containers[0].resources.limits[memory]: fractional byte value \"100m\" is invalid, must be an integer"]);
    check("", "pods", pod(json!({"resources": {"limits": {"cpu": "100m", "memory": "1.5Gi"}}}), json!({})), &[]);
    check("", "pods", pod(json!({"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}), json!({})),
        &["spec.containers[0].env[1]: hides previous definition of \"A\" at spec.containers[0].env[0], which may be dropped when using apply"]);
    check("", "pods", pod(json!({"ports": [{"containerPort": 80}, {"containerPort": 80}]}), json!({})),
        &["spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]"]);
    check("", "pods", pod(json!({}), json!({"terminationGracePeriodSeconds": -1})),
        &["spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"]);
    check("", "pods", pod(json!({}), json!({"nodeSelector": {"beta.kubernetes.io/os": "linux"}})),
        &["spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead"]);
    check("", "pods", pod(json!({}), json!({"volumes": [{"name": "v", "gitRepo": {"repository": "r"}}]})),
        &["spec.volumes[0].gitRepo: deprecated in v1.11"]);
    check("", "pods", pod(json!({}), json!({"volumes": [{"name": "v", "emptyDir": {"sizeLimit": "500m"}}]})),
        &["spec.volumes[0].emptyDir.sizeLimit: fractional byte value \"500m\" is invalid, must be an integer"]);
    check("", "pods", pod(json!({}), json!({"hostAliases": [{"ip": "1.1.1.1"}, {"ip": "1.1.1.1"}]})),
        &["spec.hostAliases: duplicate ip \"1.1.1.1\""]);
    check("", "pods", pod(json!({}), json!({"imagePullSecrets": [{"name": ""}]})),
        &["spec.imagePullSecrets[0].name: invalid empty name; the empty reference will not be used"]);
    check("apps", "deployments", json!({"spec": {"template": pod(json!({"resources": {"requests": {"memory": "1m"}}}), json!({}))}}),
        &["spec.template.spec.containers[0].resources.requests[memory]: fractional byte value \"1m\" is invalid, must be an integer"]);
    let many: Vec<Value> = (0..100).map(|_| json!({"name": "A"})).collect();
    let row = row("", "v1", "pods").unwrap();
    let object = Object::from_value(pod(json!({"env": many}), json!({}))).unwrap();
    assert_eq!(warnings(row, &object, None).len(), 20, "warnings have a bound");
}

/// Upstream: `GetWarningsForService`, `WarningsOnCreate` of the strategies.
#[test]
fn of_other_kinds() {
    check("", "endpoints", json!({"subsets": []}), &["v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"]);
    check("", "services", json!({"spec": {"type": "ExternalName", "externalName": "x", "externalIPs": ["192.0.2.1"]}}),
        &["spec.externalIPs is ignored when spec.type is \"ExternalName\""]);
    check("", "services", json!({"spec": {"clusterIP": "None", "sessionAffinity": "ClientIP"}}),
        &["spec.sessionAffinity is ignored for headless services"]);
    check("networking.k8s.io", "networkpolicies", json!({"spec": {"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.1/8"}}]}]}}),
        &["spec.ingress[0].from[0].ipBlock.cidr: \"10.0.0.1/8\": CIDR value has bits set beyond the prefix length"]);
    check("networking.k8s.io", "networkpolicies", json!({"spec": {"ingress": [{"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}]}}), &[]);
}

#[test]
fn what_is_not_done_about_a_level_is_told() {
    let label = |key: &str, level: &str| json!({"metadata": {"name": "n", "labels": {key: level}}});
    check("", "namespaces", label("pod-security.kubernetes.io/audit", "restricted"),
        &["metadata.labels[pod-security.kubernetes.io/audit]: nothing is audited yet; use enforce or warn"]);
    check("", "namespaces", label("pod-security.kubernetes.io/enforce-version", "v1.20"),
        &["metadata.labels[pod-security.kubernetes.io/enforce-version]: pods are judged by the latest rules"]);
    check("", "namespaces", label("pod-security.kubernetes.io/enforce", "restricted"), &[]);
    let row = row("", "v1", "namespaces").unwrap();
    let old = Object::from_value(json!({"metadata": {"name": "n"}})).unwrap();
    let new = Object::from_value(label("pod-security.kubernetes.io/audit", "baseline")).unwrap();
    assert_eq!(warnings(row, &new, Some(&old)).len(), 1, "labelling later, too");
}
