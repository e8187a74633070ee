//! What is stored is in the normal form, within its budgets, by whatever way it came.

use http::header;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::http::{Caller, MAPS, map};
use crate::server::Server;

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const NODES: &str = "/api/v1/nodes";
const JSON_PATCH: &str = "application/json-patch+json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

/// The path of a null outside metadata.
fn null_in(value: &Value, path: &str) -> Option<String> {
    match value {
        Value::Null => Some(path.to_owned()),
        Value::Array(list) => list.iter().find_map(|item| null_in(item, &format!("{path}[]"))),
        Value::Object(map) => map.iter().find_map(|(key, item)| null_in(item, &format!("{path}.{key}"))),
        _ => None,
    }
}

fn deployment() -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
        "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

#[tokio::test]
async fn no_null_is_stored_by_any_way_in() {
    let server = Server::start().await;
    let mut caller = Caller::of(&server);
    let affinity =
        json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [null]}}});
    let with = |mut object: Value| {
        object["spec"]["template"]["spec"]["affinity"] = affinity.clone();
        object["spec"]["template"]["spec"]["containers"][0]["command"] = json!(["x", null]);
        object["metadata"]["annotations"] = json!({"n": null});
        object
    };
    let uri = format!("{DEPLOYMENTS}/d");
    let stored = async |caller: &mut Caller, way: &str, code: u16| {
        assert!((200..300).contains(&code), "{way}: {code}");
        let (_, found) = caller.get(&uri).await;
        assert_eq!(null_in(&found, ""), None, "{way}");
        let pod = &found["spec"]["template"]["spec"];
        assert_eq!(pod["containers"][0]["command"], json!(["x", ""]), "{way}");
        let terms =
            pod.pointer("/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms");
        assert_eq!(terms, Some(&json!([{}])), "{way}");
        assert_eq!(found["metadata"]["annotations"]["n"], "", "{way}");
        assert_eq!(caller.json("DELETE", &uri, Value::Null).await.0, 200);
    };
    let (code, _) = caller.json("POST", DEPLOYMENTS, with(deployment())).await;
    stored(&mut caller, "create", code).await;
    let yaml = with(deployment()).to_string().into_bytes();
    let media = [("content-type", "application/yaml")];
    let code = caller.send("POST", DEPLOYMENTS, &media, yaml).await.status().as_u16();
    stored(&mut caller, "create by YAML", code).await;
    caller.json("POST", DEPLOYMENTS, deployment()).await;
    let (code, _) = caller.json("PUT", &uri, with(deployment())).await;
    stored(&mut caller, "update", code).await;
    let containers = json!([{"name": "c", "image": "i", "command": ["x", null]}]);
    let json_patch = json!([
        {"op": "add", "path": "/spec/template/spec/affinity", "value": affinity},
        {"op": "add", "path": "/spec/template/spec/containers/0/command", "value": ["x", null]},
        {"op": "add", "path": "/metadata/annotations", "value": {"n": null}}]);
    // A null in a merge patch's map removes; in a list it stands.
    let merge = json!({"metadata": {"annotations": {"n": ""}},
        "spec": {"template": {"spec": {"affinity": affinity, "containers": containers}}}});
    for (media, patch) in [(JSON_PATCH, json_patch), (MERGE, merge.clone()), (STRATEGIC, merge)] {
        caller.json("POST", DEPLOYMENTS, deployment()).await;
        let (code, _) = caller.typed("PATCH", &uri, media, patch).await;
        stored(&mut caller, media, code).await;
    }
    let (code, _) = caller.typed("PATCH", &format!("{uri}?fieldManager=m"), APPLY, with(deployment())).await;
    stored(&mut caller, "apply", code).await;
    // And what a zero value means is then judged like any other.
    let (code, status) = caller
        .typed("POST", MAPS, "application/json", {
            let mut odd = map("m");
            odd["metadata"]["finalizers"] = json!([null]);
            odd
        })
        .await;
    assert_eq!(code, 422, "{status}");
    let mut nameless = deployment();
    nameless["spec"]["template"]["spec"]["containers"] = json!([null]);
    assert_eq!(caller.json("POST", DEPLOYMENTS, nameless).await.0, 422);
}

#[tokio::test]
async fn no_null_is_stored_in_a_status() {
    let server = Server::start().await;
    let mut caller = Caller::of(&server);
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}});
    caller.json("POST", NODES, node.clone()).await;
    let status =
        json!({"status": {"images": [{"names": [null]}], "volumesInUse": [null, "v"], "capacity": {"cpu": null}}});
    let uri = format!("{NODES}/n/status");
    let mut whole = node;
    whole["status"] = status["status"].clone();
    let add = json!([{"op": "add", "path": "/status", "value": status["status"]}]);
    for (method, media, body) in [
        ("PUT", "application/json", whole),
        ("PATCH", MERGE, status.clone()),
        ("PATCH", STRATEGIC, status),
        ("PATCH", JSON_PATCH, add),
    ] {
        let (code, answer) = caller.typed(method, &uri, media, body).await;
        assert_eq!(code, 200, "{media}: {answer}");
        assert_eq!(null_in(&answer, ""), None, "{media}");
        assert_eq!(answer["status"]["images"][0]["names"], json!([""]), "{media}");
    }
}

#[tokio::test]
async fn an_applied_object_is_stored_as_a_created_one() {
    let server = Server::start().await;
    let mut caller = Caller::of(&server);
    let mut odd = deployment();
    let pod = &mut odd["spec"]["template"]["spec"];
    for (key, value) in [("hostNetwork", json!(false)), ("volumes", json!([])), ("nodeSelector", json!({}))] {
        pod[key] = value;
    }
    let container = &mut pod["containers"][0];
    container["resources"] = json!({"limits": {"memory": "1024Mi", "cpu": "1000m"}, "requests": {}});
    for (key, value) in [("env", json!([])), ("tty", json!(false)), ("args", json!([])), ("workingDir", json!(""))] {
        container[key] = value;
    }
    let uri = format!("{DEPLOYMENTS}/d");
    let apply = format!("{uri}?fieldManager=helm");
    let (code, applied) = caller.typed("PATCH", &apply, APPLY, odd.clone()).await;
    assert_eq!(code, 201, "{applied}");
    let (_, again) = caller.typed("PATCH", &apply, APPLY, odd.clone()).await;
    assert_eq!(again, applied, "the same intent again is no change");
    caller.json("DELETE", &uri, Value::Null).await;
    let (_, created) = caller.json("POST", DEPLOYMENTS, odd).await;
    assert_eq!(applied["spec"], created["spec"]);
    // A pod that was applied so can be labelled.
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"hostNetwork": false,
        "containers": [{"name": "c", "image": "i", "env": [], "tty": false, "resources": {"limits": {"memory": "1024Mi"}}}]}});
    server.kubectl("create serviceaccount default").await;
    let uri = "/api/v1/namespaces/default/pods/p";
    let (code, answer) = caller.typed("PATCH", &format!("{uri}?fieldManager=helm"), APPLY, pod).await;
    assert_eq!(code, 201, "{answer}");
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    let (code, answer) = caller.typed("PATCH", uri, MERGE, label).await;
    assert_eq!((code, &answer["metadata"]["generation"]), (200, &json!(1)), "{answer}");
}

#[tokio::test]
async fn unknown_fields_are_dropped_with_a_warning() {
    let server = Server::start().await;
    let mut caller = Caller::of(&server);
    let mut odd = map("m");
    odd["dataa"] = json!({"x": "y"});
    let uri = format!("{MAPS}/m");
    let json = "application/json";
    let add = json!([{"op": "add", "path": "/dataa", "value": {}}]);
    for (method, uri, media, body, strict) in [
        ("POST", MAPS, json, odd.clone(), 400),
        ("PUT", &uri, json, odd.clone(), 400),
        ("PATCH", &uri, MERGE, json!({"dataa": {}}), 422),
        ("PATCH", &uri, STRATEGIC, json!({"dataa": {}}), 422),
        ("PATCH", &uri, JSON_PATCH, add, 422),
    ] {
        let refused = caller.typed(method, &format!("{uri}?fieldValidation=Strict"), media, body.clone()).await;
        assert_eq!(refused.0, strict, "{media}: {}", refused.1);
        assert!(refused.1["message"].as_str().unwrap().contains("unknown field \"dataa\""), "{}", refused.1);
        for (validation, warned) in [("Warn", true), ("Ignore", false)] {
            if method == "POST" {
                caller.json("DELETE", &format!("{MAPS}/m"), Value::Null).await;
            }
            let uri = format!("{uri}?fieldValidation={validation}");
            let media = [("content-type", media)];
            let answer = caller.send(method, &uri, &media, body.to_string().into_bytes()).await;
            assert_eq!(answer.headers().contains_key(header::WARNING), warned, "{method} {media:?}");
            let bytes = answer.into_body().collect().await.unwrap().to_bytes();
            let answer: Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!((&answer["data"]["a"], answer.get("dataa")), (&json!("b"), None), "{method} {media:?}");
        }
    }
    // Who applies owns what it names; it cannot own what there is not.
    let (code, refused) = caller.typed("PATCH", &format!("{uri}?fieldManager=m"), APPLY, odd).await;
    assert_eq!(code, 400);
    let why =
        "failed to create typed patch object (default/m; /v1, Kind=ConfigMap): .dataa: field not declared in schema";
    assert_eq!(refused["message"], why);
}

#[tokio::test]
async fn a_budget_that_is_exceeded_is_said() {
    let server = Server::start().await;
    let mut caller = Caller::of(&server);
    let revisions = "/apis/apps/v1/namespaces/default/controllerrevisions";
    let nested = |depth: usize| (0..depth).fold(json!(1), |value, _| json!([value]));
    let revision = |name: &str, depth: usize| {
        json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": {"name": name}, "revision": 1,
            "data": {"x": nested(depth)}})
    };
    // What is stored can be read, listed, watched, changed and deleted.
    assert_eq!(caller.json("POST", revisions, revision("deep", 110)).await.0, 201);
    let uri = format!("{revisions}/deep");
    for uri in [&uri, revisions] {
        assert_eq!(caller.get(uri).await.0, 200);
        let table = [("accept", "application/json;as=Table;g=meta.k8s.io;v=v1")];
        let answer = caller.send("GET", &format!("{uri}?includeObject=Object"), &table, Vec::new()).await;
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(serde_json::from_slice::<Value>(&bytes).is_ok());
    }
    assert_eq!(caller.typed("PATCH", &uri, MERGE, json!({"metadata": {"labels": {"a": "b"}}})).await.0, 200);
    assert_eq!(caller.json("DELETE", &uri, Value::Null).await.0, 200);
    assert_eq!(caller.json("POST", revisions, revision("deeper", 125)).await.0, 400);
    assert_eq!(caller.json("POST", revisions, revision("a", 60)).await.0, 201);
    let nest: Vec<Value> = (0..15)
        .map(|index| json!({"op": "copy", "from": "/data", "path": format!("/data/x{}/{index}", "/0".repeat(59))}))
        .collect();
    let (code, answer) = caller.typed("PATCH", &format!("{revisions}/a"), JSON_PATCH, nest.into()).await;
    assert_eq!(code, 422, "{answer}");
    let double: Vec<Value> =
        (0..25).map(|index| json!({"op": "copy", "from": "/data", "path": format!("/data/{index}")})).collect();
    assert_eq!(caller.typed("PATCH", &format!("{revisions}/a"), JSON_PATCH, double.into()).await.0, 422);
    let many = vec![json!({"op": "test", "path": "/kind", "value": "ControllerRevision"}); 10_001];
    assert_eq!(caller.typed("PATCH", &format!("{revisions}/a"), JSON_PATCH, many.into()).await.0, 413);
    assert_eq!(
        caller
            .json(
                "POST",
                revisions,
                json!({"kind": "ControllerRevision", "apiVersion": "apps/v1",
        "metadata": {"name": "wide"}, "data": {"x": vec![0; 250_001]}})
            )
            .await
            .0,
        413
    );
    // A patch may not grow an object without end.
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    let rule = json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["x".repeat(900 << 10)]});
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "r"},
        "rules": [rule]});
    assert_eq!(caller.json("POST", roles, role).await.0, 201);
    let more = json!([{"op": "add", "path": "/rules/-", "value": rule}]);
    assert_eq!(caller.typed("PATCH", &format!("{roles}/r"), JSON_PATCH, more).await.0, 413);
    let long = format!("/api/v1/pods?labelSelector={}", vec!["a"; 2_000].join(","));
    assert_eq!(caller.get(&long).await.0, 400);
}

#[tokio::test]
async fn a_finalizer_is_not_added_to_what_is_going() {
    let server = Server::start().await;
    let mut caller = Caller::of(&server);
    let mut held = map("m");
    held["metadata"]["finalizers"] = json!(["a.b/c"]);
    caller.json("POST", MAPS, held).await;
    let uri = format!("{MAPS}/m");
    caller.json("DELETE", &uri, Value::Null).await;
    let more = json!({"metadata": {"finalizers": ["a.b/c", "a.b/new"]}});
    let (code, answer) = caller.typed("PATCH", &uri, MERGE, more).await;
    assert_eq!(code, 422, "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("no new finalizers can be added"), "{answer}");
    let (code, _) = caller.typed("PATCH", &uri, MERGE, json!({"metadata": {"finalizers": null}})).await;
    assert_eq!((code, caller.get(&uri).await.0), (200, 404));
}

#[tokio::test]
async fn a_lease_is_replaced_by_version_only() {
    let server = Server::start().await;
    let mut caller = Caller::of(&server);
    let uri = "/apis/coordination.k8s.io/v1/namespaces/default/leases/l";
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"}});
    let (code, made) = caller.json("PUT", uri, lease.clone()).await;
    assert_eq!(code, 201);
    let (code, answer) = caller.json("PUT", uri, lease).await;
    assert_eq!(code, 422, "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("must be specified for an update"), "{answer}");
    assert_eq!(caller.json("PUT", uri, made).await.0, 200);
}
