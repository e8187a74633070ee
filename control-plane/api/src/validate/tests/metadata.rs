//! Rules of metadata, of every kind.

use serde_json::json;

use super::{changes, rules};

const META: &str = "ValidateObjectMeta";

#[test]
fn names_and_maps() {
    let long = "a".repeat(254);
    let owner = json!([{"apiVersion": "v1", "kind": "K", "name": "n", "uid": "u"}]);
    let with = |key: &str, value: serde_json::Value| {
        let mut owner = owner.clone();
        owner[0][key] = value;
        owner
    };
    let two = json!([{"apiVersion": "v1", "kind": "K", "name": "n", "uid": "u", "controller": true},
        {"apiVersion": "v1", "kind": "K", "name": "m", "uid": "v", "controller": true}]);
    rules(
        "",
        "v1",
        "configmaps",
        &json!({"metadata": {"name": "a.b-1"}}),
        &[
            ("a name is a subdomain", META, "/metadata/name", json!("A"), "metadata.name Invalid"),
            ("a name is at most 253 bytes", META, "/metadata/name", json!(long), "metadata.name Invalid"),
            ("a base may end with a hyphen", "ValidateObjectMeta", "/metadata/generateName", json!("a-"), ""),
            ("a base is the start of a name", META, "/metadata/generateName", json!("A-"), "metadata.generateName Invalid"),
            ("a label's key is a qualified name", "ValidateLabels", "/metadata/labels", json!({"a b": ""}), "metadata.labels Invalid"),
            ("a label's value is a label value", "ValidateLabels", "/metadata/labels", json!({"a": "b c"}), "metadata.labels Invalid"),
            ("an annotation's key may have any case", "ValidateAnnotations", "/metadata/annotations", json!({"X.io/Y": ""}), ""),
            ("an annotation's key is a qualified name", "ValidateAnnotations", "/metadata/annotations", json!({"a b": ""}), "metadata.annotations Invalid"),
            ("annotations are at most 256 KiB together", "ValidateAnnotationsSize", "/metadata/annotations", json!({"a": "x".repeat(256 * 1024)}), "metadata.annotations TooLong"),
            ("an owner has a version", "validateOwnerReference", "/metadata/ownerReferences", with("apiVersion", json!("")), "metadata.ownerReferences.apiVersion Invalid"),
            ("an owner has a kind", "validateOwnerReference", "/metadata/ownerReferences", with("kind", json!("")), "metadata.ownerReferences.kind Invalid"),
            ("an owner has a name", "validateOwnerReference", "/metadata/ownerReferences", with("name", json!("")), "metadata.ownerReferences.name Invalid"),
            ("an owner has a uid", "validateOwnerReference", "/metadata/ownerReferences", with("uid", json!("")), "metadata.ownerReferences.uid Invalid"),
            ("an event owns nothing", "validateOwnerReference", "/metadata/ownerReferences", with("kind", json!("Event")), "metadata.ownerReferences Invalid"),
            ("one owner is the controller", "ValidateOwnerReferences", "/metadata/ownerReferences", two, "metadata.ownerReferences Invalid"),
            ("a finalizer is a qualified name", "ValidateFinalizerName", "/metadata/finalizers", json!(["a b/c"]), "metadata.finalizers Invalid"),
            ("a finalizer without a domain is a standard one", "validateKubeFinalizerName", "/metadata/finalizers", json!(["mine"]), "metadata.finalizers[0] Invalid"),
            ("an object is not orphaned and deleted in the foreground", "ValidateFinalizers", "/metadata/finalizers", json!(["orphan", "foregroundDeletion"]), "metadata.finalizers Invalid"),
            ("fields are applied or updated", "ValidateManagedFields", "/metadata/managedFields", json!([{"operation": "Take", "manager": "m", "fieldsType": "FieldsV1"}]), "metadata.managedFields[0].operation Invalid"),
            ("fields are of the one type", "ValidateManagedFields", "/metadata/managedFields", json!([{"operation": "Apply", "manager": "m", "fieldsType": "V2"}]), "metadata.managedFields[0].fieldsType Invalid"),
            ("a manager's name is at most 128 bytes", "ValidateFieldManager", "/metadata/managedFields", json!([{"operation": "Apply", "manager": "m".repeat(129), "fieldsType": "FieldsV1"}]), "metadata.managedFields[0].manager TooLong"),
            ("a manager's name is printable", "ValidateFieldManager", "/metadata/managedFields", json!([{"operation": "Apply", "manager": "a\nb", "fieldsType": "FieldsV1"}]), "metadata.managedFields[0].manager Invalid"),
        ],
    );
}

#[test]
fn names_of_their_kind() {
    let table = |bad: &'static str, good: &'static str| {
        [
            ("a name of its kind's syntax", "ValidateNameFunc", "/metadata/name", json!(bad), "metadata.name Invalid"),
            ("a name of its kind's syntax", "ValidateNameFunc", "/metadata/name", json!(good), ""),
        ]
    };
    rules("", "v1", "namespaces", &json!({}), &table("a.b", "1-a"));
    rules("", "v1", "services", &json!({"spec": {"ports": [{"port": 80}]}}), &table("1a", "a1"));
    rules("rbac.authorization.k8s.io", "v1", "clusterroles", &json!({}), &table("a/b", "system:A"));
    rules("", "v1", "serviceaccounts", &json!({}), &table("a_b", "a.b"));
    let job = json!({"spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": {"spec":
        {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}}}});
    let long: &'static str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    rules("batch", "v1", "cronjobs", &job, &table(long, &long[1..]));
}

#[test]
fn what_stays() {
    let base = json!({"metadata": {"name": "a", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}});
    let update = "ValidateObjectMetaUpdate";
    changes(
        ("", "v1", "configmaps"),
        "",
        &base,
        &[
            ("the name stays", update, "/metadata/name", json!("b"), "metadata.name Invalid"),
            ("the namespace stays", update, "/metadata/namespace", json!("b"), "metadata.namespace Invalid"),
            ("the uid stays", update, "/metadata/uid", json!("v"), "metadata.uid Invalid"),
            ("the time of creation stays", update, "/metadata/creationTimestamp", json!("2026-01-02T00:00:00Z"), "metadata.creationTimestamp Invalid"),
            ("labels may change", update, "/metadata/labels", json!({"a": "b"}), ""),
        ],
    );
    let mut ending = base;
    ending["metadata"]["deletionTimestamp"] = json!("2026-01-02T00:00:00Z");
    ending["metadata"]["finalizers"] = json!(["x.io/a"]);
    changes(
        ("", "v1", "configmaps"),
        "",
        &ending,
        &[
            ("what ends gets no finalizer", "ValidateNoNewFinalizers", "/metadata/finalizers", json!(["x.io/a", "x.io/b"]), "metadata.finalizers Forbidden"),
            ("what ends loses its finalizers", "ValidateNoNewFinalizers", "/metadata/finalizers", json!([]), ""),
        ],
    );
}
