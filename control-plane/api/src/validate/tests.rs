//! What people get wrong, and what they are told.

#[rustfmt::skip]
mod cluster;
#[rustfmt::skip]
mod container;
#[rustfmt::skip]
mod metadata;
#[rustfmt::skip]
mod network;
#[rustfmt::skip]
mod pod;
#[rustfmt::skip]
mod service;
#[rustfmt::skip]
mod sound;
#[rustfmt::skip]
mod update;
#[rustfmt::skip]
mod volume;
#[rustfmt::skip]
mod warning;
#[rustfmt::skip]
mod workload;

use serde_json::{Value, json};

use super::*;
use crate::{defaults, row, strategy};

/// A rule: what it says, upstream's function that has it, where in a sound object something is put, what is put there, and
/// which fields are faulty then, with the kind of the fault; nothing when the object stays sound.
type Rule<'a> = (&'a str, &'a str, &'a str, Value, &'a str);

/// Puts a value at a JSON pointer, making what lies on the way.
fn put(object: &mut Value, pointer: &str, value: Value) {
    let mut place = object;
    for step in pointer.split('/').skip(1) {
        // RFC 6901, section 3.
        let step = step.replace("~1", "/");
        place = match place {
            Value::Array(list) => {
                let index: usize = step.parse().unwrap();
                if index == list.len() {
                    list.push(Value::Null);
                }
                &mut list[index]
            }
            other => &mut other[step],
        };
    }
    *place = value;
}

fn found(causes: &[Cause]) -> String {
    let mut all: Vec<String> = causes.iter().map(|cause| format!("{} {:?}", cause.field, cause.kind)).collect();
    all.dedup();
    all.join("; ")
}

/// The base is sound; each rule breaks it as it says.
#[track_caller]
fn rules(group: &str, version: &str, resource: &str, base: &Value, table: &[Rule<'_>]) {
    let (row, object) = prepared(group, version, resource, base.clone());
    assert_eq!(found(&create(row, &object)), "", "the base");
    for (says, source, pointer, value, expect) in table {
        let mut broken = base.clone();
        put(&mut broken, pointer, value.clone());
        let (row, object) = prepared(group, version, resource, broken);
        let causes = create(row, &object);
        assert_eq!(found(&causes), *expect, "{says} ({source}): {pointer} = {value}\n{causes:#?}");
    }
}

/// What changes of a sound object are refused.
#[track_caller]
fn changes((group, version, resource): (&str, &str, &str), subresource: &str, base: &Value, table: &[Rule<'_>]) {
    let (row, old) = prepared(group, version, resource, base.clone());
    assert_eq!(found(&update(row, subresource, &old, &old)), "", "no change");
    for (says, source, pointer, value, expect) in table {
        let mut changed = old.to_value();
        put(&mut changed, pointer, value.clone());
        let causes = update(row, subresource, &Object::from_value(changed).unwrap(), &old);
        assert_eq!(found(&causes), *expect, "{says} ({source}): {pointer} = {value}\n{causes:#?}");
    }
}

fn prepared(group: &str, version: &str, resource: &str, given: Value) -> (&'static Row, Object) {
    let row = row(group, version, resource).unwrap();
    let mut object = Object::from_value(given).unwrap();
    if object.name().is_empty() {
        object.set_name("x");
    }
    if row.namespaced {
        object.set_namespace("default");
    }
    defaults::apply(row, &mut object);
    strategy::prepare_create(row, &mut object);
    (row, object)
}

#[track_caller]
fn check(group: &str, version: &str, resource: &str, given: Value, expect: &[&str]) {
    let (row, object) = prepared(group, version, resource, given);
    let found: Vec<String> = create(row, &object).iter().map(ToString::to_string).collect();
    assert_eq!(found, expect);
}

#[track_caller]
fn check_update(group: &str, version: &str, resource: &str, old: Value, change: (&[&str], Value), expect: &[&str]) {
    let (row, old) = prepared(group, version, resource, old);
    let mut new = old.clone();
    new.set(change.0, change.1);
    let found: Vec<String> = update(row, "", &new, &old).iter().map(ToString::to_string).collect();
    assert_eq!(found, expect);
}

fn pod(container: Value, extra: Value) -> Value {
    let mut spec = extra;
    let mut one = json!({"name": "c", "image": "i"});
    for (key, value) in container.as_object().unwrap() {
        one[key] = value.clone();
    }
    spec["containers"] = json!([one]);
    json!({"spec": spec})
}

#[test]
fn pods_without_the_essentials() {
    check("", "v1", "pods", json!({"spec": {}}), &["spec.containers: Required value"]);
    check("", "v1", "pods", pod(json!({"image": ""}), json!({})), &["spec.containers[0].image: Required value"]);
    check(
        "",
        "v1",
        "pods",
        json!({"spec": {"containers": [{"image": "i"}]}}),
        &["spec.containers[0].name: Required value"],
    );
    check(
        "",
        "v1",
        "pods",
        pod(json!({}), json!({"restartPolicy": "Sometimes"})),
        &[
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
        ],
    );
    check("", "v1", "pods", pod(json!({}), json!({})), &[]);
}

#[test]
fn containers_with_faults() {
    let amounts = json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}});
    check(
        "",
        "v1",
        "pods",
        pod(amounts, json!({})),
        &["spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1"],
    );
    check(
        "",
        "v1",
        "pods",
        pod(json!({"volumeMounts": [{"name": "no", "mountPath": "/a"}]}), json!({})),
        &["spec.containers[0].volumeMounts[0].name: Not found: \"no\""],
    );
    check(
        "",
        "v1",
        "pods",
        pod(json!({"ports": [{"containerPort": 70000}], "livenessProbe": {"periodSeconds": 3}}), json!({})),
        &[
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
        ],
    );
    check(
        "",
        "v1",
        "pods",
        pod(json!({}), json!({"volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/x"}}]})),
        &["spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type"],
    );
    check(
        "",
        "v1",
        "pods",
        pod(json!({}), json!({"tolerations": [{"value": "x"}]})),
        &[
            "spec.tolerations[0].operator: Invalid value: \"\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
        ],
    );
}

#[test]
fn names_and_labels() {
    let (row, mut object) = prepared("", "v1", "configmaps", json!({"metadata": {"labels": {"a b": "c"}}}));
    object.set_name("Upper");
    let found = create(row, &object);
    assert!(
        found[0].to_string().starts_with("metadata.name: Invalid value: \"Upper\": a lowercase RFC 1123 subdomain")
    );
    assert!(found[1].to_string().starts_with("metadata.labels: Invalid value: \"a b\": name part must consist"));
    check(
        "",
        "v1",
        "nodes",
        json!({"metadata": {"namespace": "x"}}),
        &["metadata.namespace: Forbidden: not allowed on this type"],
    );
    check(
        "",
        "v1",
        "secrets",
        json!({"data": {"a/b": ""}}),
        &[
            "data[a/b]: Invalid value: \"a/b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
        ],
    );
    check(
        "",
        "v1",
        "secrets",
        json!({"type": "kubernetes.io/tls"}),
        &["data[tls.crt]: Required value", "data[tls.key]: Required value"],
    );
}

fn deployment(selector: Value) -> Value {
    json!({"spec": {"selector": selector, "template": {"metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

#[test]
fn selectors_match_their_templates_and_stay() {
    check("apps", "v1", "deployments", deployment(json!({"matchLabels": {"a": "b"}})), &[]);
    check(
        "apps",
        "v1",
        "deployments",
        deployment(json!({"matchLabels": {"a": "c"}})),
        &["spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`"],
    );
    check("apps", "v1", "deployments", deployment(Value::Null), &["spec.selector: Required value"]);
    check_update(
        "apps",
        "v1",
        "deployments",
        deployment(json!({"matchLabels": {"a": "b"}})),
        (&["spec", "selector", "matchLabels"], json!({})),
        &[
            "spec.selector: Invalid value: {\"matchLabels\":{}}: empty selector is invalid for deployment",
            "spec.selector: Invalid value: {\"matchLabels\":{}}: field is immutable",
        ],
    );
}

#[test]
fn jobs_and_services() {
    let job = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    check(
        "batch",
        "v1",
        "jobs",
        job,
        &["spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""],
    );
    check("", "v1", "services", json!({"spec": {}}), &["spec.ports: Required value"]);
    check(
        "",
        "v1",
        "services",
        json!({"spec": {"ports": [{"port": 80}, {"port": 80}]}}),
        &[
            "spec.ports[0].name: Required value",
            "spec.ports[1].name: Required value",
            "spec.ports[1]: Duplicate value: {\"port\":80,\"protocol\":\"TCP\"}",
        ],
    );
    check(
        "",
        "v1",
        "services",
        json!({"spec": {"ports": [{"port": 80, "nodePort": 30000}]}}),
        &["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
    );
    check_update(
        "",
        "v1",
        "services",
        json!({"spec": {"clusterIP": "10.43.0.9", "ports": [{"port": 80}]}}),
        (&["spec", "clusterIPs"], json!(["10.43.0.8"])),
        &[
            "spec.clusterIPs: Invalid value: [\"10.43.0.8\"]: first value must match `clusterIP`",
            "spec.clusterIPs[0]: Invalid value: [\"10.43.0.8\"]: may not change once set",
        ],
    );
}

#[test]
fn pods_change_only_their_images() {
    let old = pod(json!({}), json!({}));
    check_update(
        "",
        "v1",
        "pods",
        old.clone(),
        (
            &["spec", "containers"],
            json!([{"name": "c", "image": "j",
        "imagePullPolicy": "Always", "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
        "resources": {}}]),
        ),
        &[],
    );
    let (row, before) = prepared("", "v1", "pods", old);
    let mut after = before.clone();
    after.set(&["spec", "hostNetwork"], true);
    let found = update(row, "", &after, &before);
    assert_eq!((found.len(), found[0].field.as_str(), found[0].kind), (1, "spec", crate::CauseType::Forbidden));
    assert!(update(row, "", &before, &before).is_empty());
}

#[test]
fn bindings_keep_their_roles() {
    let binding =
        json!({"roleRef": {"kind": "ClusterRole", "name": "view"}, "subjects": [{"kind": "User", "name": "u"}]});
    check("rbac.authorization.k8s.io", "v1", "rolebindings", binding.clone(), &[]);
    check_update(
        "rbac.authorization.k8s.io",
        "v1",
        "rolebindings",
        binding,
        (&["roleRef", "name"], json!("edit")),
        &[
            "roleRef: Invalid value: {\"apiGroup\":\"rbac.authorization.k8s.io\",\"kind\":\"ClusterRole\",\"name\":\"edit\"}: cannot change roleRef",
        ],
    );
    check("rbac.authorization.k8s.io", "v1", "clusterroles", json!({"rules": []}), &[]);
    check(
        "rbac.authorization.k8s.io",
        "v1",
        "roles",
        json!({"rules": [{"apiGroups": [""], "resources": ["pods"]}]}),
        &["rules[0].verbs: Required value"],
    );
}

#[test]
fn what_controllers_write_passes() {
    check(
        "coordination.k8s.io",
        "v1",
        "leases",
        json!({"spec": {"holderIdentity": "n", "leaseDurationSeconds": 40}}),
        &[],
    );
    check("", "v1", "events", json!({"involvedObject": {"kind": "Pod"}, "reason": "r"}), &[]);
    check(
        "discovery.k8s.io",
        "v1",
        "endpointslices",
        json!({"addressType": "IPv4", "endpoints": null, "ports": []}),
        &[],
    );
    check(
        "",
        "v1",
        "endpoints",
        json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}]}),
        &[],
    );
    check("", "v1", "nodes", json!({"spec": {"podCIDR": "10.42.0.0/24"}, "status": {"nodeInfo": {}}}), &[]);
    let header = json!({"livenessProbe": {"httpGet": {"port": 80, "httpHeaders": [{"name": "X-Empty", "value": ""}]}}});
    check("", "v1", "pods", pod(header, json!({})), &[]);
    let rule =
        json!({"http": {"paths": [{"path": "/", "backend": {"service": {"name": "s", "port": {"number": 80}}}}]}});
    check(
        "networking.k8s.io",
        "v1",
        "ingresses",
        json!({"spec": {"rules": [rule]}}),
        &["spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified"],
    );
    check("", "v1", "namespaces", json!({}), &[]);
    check("", "v1", "serviceaccounts", json!({}), &[]);
    check(
        "",
        "v1",
        "persistentvolumeclaims",
        json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources":
        {"requests": {"storage": "1Gi"}}}}),
        &[],
    );
    check("storage.k8s.io", "v1", "csinodes", json!({"spec": {"drivers": null}}), &[]);
    check("networking.k8s.io", "v1", "networkpolicies", json!({"spec": {"podSelector": {}}}), &[]);
    check("apps", "v1", "controllerrevisions", json!({"revision": 1, "data": {"x": 1}}), &[]);
}
