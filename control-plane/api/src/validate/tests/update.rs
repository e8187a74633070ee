//! What may change in a pod that exists.

use serde_json::{Value, json};

use super::changes;

const RULE: &str = "ValidatePodUpdate";

fn base() -> Value {
    json!({"metadata": {"name": "p"}, "spec": {"serviceAccountName": "a", "activeDeadlineSeconds": 100,
        "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}],
        "initContainers": [{"name": "i", "image": "i"}], "containers": [{"name": "c", "image": "i"}]}})
}

#[test]
fn a_pod() {
    let toleration = |key: &str, seconds: i64| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
    changes(("", "v1", "pods"), "", &base(), &[
        ("images change", RULE, "/spec/containers/0/image", json!("j"), ""),
        ("images of the first change", RULE, "/spec/initContainers/0/image", json!("j"), ""),
        ("an image stays an image", "ValidateContainerUpdates", "/spec/containers/0/image", json!(""), "spec.containers[0].image Required"),
        ("nothing else of a container changes", RULE, "/spec/containers/0/command", json!(["a"]), "spec Forbidden"),
        ("a container stays", "ValidateContainerUpdates", "/spec/containers/1", json!({"name": "d", "image": "i", "imagePullPolicy": "Always", "resources": {}}), "spec.containers Forbidden"),
        ("a deadline comes closer", RULE, "/spec/activeDeadlineSeconds", json!(50), ""),
        ("a deadline does not go away", RULE, "/spec/activeDeadlineSeconds", json!(101), "spec.activeDeadlineSeconds Invalid"),
        ("a deadline stays", RULE, "/spec/activeDeadlineSeconds", Value::Null, "spec.activeDeadlineSeconds Invalid"),
        ("tolerations are added", "validateOnlyAddedTolerations", "/spec/tolerations/1", toleration("b", 1), ""),
        ("the time of one changes", "validateOnlyAddedTolerations", "/spec/tolerations/0", toleration("a", 9), ""),
        ("tolerations stay", "validateOnlyAddedTolerations", "/spec/tolerations/0", toleration("b", 5), "spec.tolerations Forbidden"),
        ("a gate comes with the pod", "validateOnlyDeletedSchedulingGates", "/spec/schedulingGates", json!([{"name": "a"}]), "spec.schedulingGates[0].name Forbidden"),
        ("a grace stays", RULE, "/spec/terminationGracePeriodSeconds", json!(1), "spec Forbidden"),
        ("the network stays", RULE, "/spec/hostNetwork", json!(true), "spec Forbidden"),
        ("no null ends it", RULE, "/spec/containers/0", Value::Null, "spec.containers[0].image Required; spec Forbidden"),
        ("a mirror does not become one", "ValidatePodSpecificAnnotationUpdates", "/metadata/annotations", json!({"container.apparmor.security.beta.kubernetes.io/c": "unconfined"}), "metadata.annotations[container.apparmor.security.beta.kubernetes.io/c] Forbidden"),
    ]);
    let mut negative = base();
    negative["spec"]["terminationGracePeriodSeconds"] = json!(-1);
    changes(("", "v1", "pods"), "", &negative, &[
        ("a negative grace becomes a second", RULE, "/spec/terminationGracePeriodSeconds", json!(1), ""),
        ("and nothing else", RULE, "/spec/terminationGracePeriodSeconds", json!(2), "spec Forbidden"),
    ]);
}

#[test]
fn a_gated_pod() {
    let mut gated = base();
    gated["spec"]["schedulingGates"] = json!([{"name": "a"}, {"name": "b"}]);
    gated["spec"]["nodeSelector"] = json!({"a": "b"});
    let terms = |list: Value| json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list}}});
    let term = json!({"matchExpressions": [{"key": "a", "operator": "Exists"}]});
    gated["spec"]["affinity"] = terms(json!([term]));
    let narrowed = json!({"matchExpressions": [{"key": "a", "operator": "Exists"}, {"key": "b", "operator": "Exists"}]});
    let other = json!({"matchExpressions": [{"key": "b", "operator": "Exists"}]});
    let at = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    changes(("", "v1", "pods"), "", &gated, &[
        ("a gate goes", "validateOnlyDeletedSchedulingGates", "/spec/schedulingGates", json!([{"name": "b"}]), ""),
        ("a selector is narrowed", "validateNodeSelectorMutation", "/spec/nodeSelector/c", json!("d"), ""),
        ("a selector is not widened", "validateNodeSelectorMutation", "/spec/nodeSelector", json!({"c": "d"}), "spec.nodeSelector Invalid"),
        ("a term is narrowed", "validateNodeAffinityMutation", "/spec/affinity", terms(json!([narrowed])), ""),
        ("a term is not exchanged", "validateNodeAffinityMutation", "/spec/affinity", terms(json!([other])), &format!("{at}[0] Invalid")),
        ("no term is added", "validateNodeAffinityMutation", "/spec/affinity", terms(json!([term, other])), &format!("{at} Invalid")),
        ("company stays", RULE, "/spec/affinity/podAffinity", json!({}), "spec Forbidden"),
    ]);
}

#[test]
fn by_a_path_of_its_own() {
    let mut debugged = base();
    debugged["spec"]["ephemeralContainers"] = json!([{"name": "e", "image": "i"}]);
    let row = crate::row("", "v1", "pods").unwrap();
    let object = |value: Value| {
        let mut object = crate::Object::from_value(value).unwrap();
        object.set_namespace("d");
        crate::defaults::apply(row, &mut object);
        object
    };
    let old = object(debugged.clone());
    let after = |subresource: &str, pointer: &str, value: Value| {
        let mut changed = debugged.clone();
        super::put(&mut changed, pointer, value);
        super::found(&super::update(row, subresource, &object(changed), &old))
    };
    let list = "/spec/ephemeralContainers";
    for (subresource, pointer, value, expect) in [
        ("ephemeralcontainers", "/spec/ephemeralContainers/1", json!({"name": "f", "image": "i", "targetContainerName": "c"}), ""),
        ("ephemeralcontainers", list, json!([]), "spec.ephemeralContainers Forbidden"),
        ("ephemeralcontainers", list, json!([{"name": "e", "image": "j"}]), "spec.ephemeralContainers Forbidden"),
        ("ephemeralcontainers", "/spec/ephemeralContainers/1", json!({"name": "c", "image": "i"}), "spec.ephemeralContainers[1].name Duplicate"),
        ("ephemeralcontainers", "/spec/ephemeralContainers/1", json!({"name": "f", "image": "i", "targetContainerName": "x"}), "spec.ephemeralContainers[1].targetContainerName NotFound"),
        ("ephemeralcontainers", "/spec/ephemeralContainers/1", json!({"name": "f", "image": "i", "ports": [{"containerPort": 1}]}), "spec.ephemeralContainers[1].ports Forbidden"),
        ("ephemeralcontainers", "/spec/ephemeralContainers/1", json!({"name": "f", "image": "i", "resources": {"limits": {"cpu": "1"}}}), "spec.ephemeralContainers[1].resources Forbidden"),
        ("ephemeralcontainers", "/spec/ephemeralContainers/1", json!({"name": "f", "image": "i", "livenessProbe": {"exec": {"command": ["a"]}}}), "spec.ephemeralContainers[1].livenessProbe Forbidden"),
        // No part changes what a container that runs may use: that is said, not stored.
        ("resize", "/spec/containers/0/resources", json!({"limits": {"cpu": "1"}}), "spec Forbidden"),
        ("resize", "/spec/containers/0/name", json!("c"), ""),
    ] {
        assert_eq!(after(subresource, pointer, value.clone()), expect, "{subresource} {pointer} {value}");
    }
}
