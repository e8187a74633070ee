//! Tenants, nodes and passers-by who want more than they have: who asks, for what, and what they are told.

use control_plane_apiserver::User;
use serde_json::{Value, json};

use crate::{
    http::{Caller, NONE},
    server::Server,
};

const MERGE: &str = "application/merge-patch+json";
const JSON: &str = "application/json";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// A request of the table: method, path, and a body for those that send one.
struct Ask {
    method: &'static str,
    uri: String,
    body: Value,
}

fn get(uri: &str) -> Ask {
    Ask { method: "GET", uri: uri.to_owned(), body: Value::Null }
}

fn delete(uri: &str) -> Ask {
    Ask { method: "DELETE", uri: uri.to_owned(), body: Value::Null }
}

fn post(uri: &str, body: Value) -> Ask {
    Ask { method: "POST", uri: uri.to_owned(), body }
}

fn patch(uri: &str, body: Value) -> Ask {
    Ask { method: "PATCH", uri: uri.to_owned(), body }
}

/// Asks, and reads no further than the head: a watch has no end.
async fn code(caller: &mut Caller, ask: &Ask) -> u16 {
    let media = if ask.method == "PATCH" { MERGE } else { JSON };
    let bytes = if ask.body.is_null() { Vec::new() } else { ask.body.to_string().into_bytes() };
    caller.send(ask.method, &ask.uri, &[("content-type", media)], bytes).await.status().as_u16()
}

/// Sends every request of a table and compares all codes at once.
#[track_caller]
fn check(caller: &mut Caller, table: Vec<(Ask, u16)>) -> impl Future<Output = ()> {
    let at = std::panic::Location::caller();
    async move {
        let mut wrong = Vec::new();
        for (ask, expect) in table {
            let found = code(caller, &ask).await;
            if found != expect {
                wrong.push(format!("{} {} {}: {found} instead of {expect}", ask.method, ask.uri, ask.body));
            }
        }
        assert!(wrong.is_empty(), "{at}:\n{}", wrong.join("\n"));
    }
}

async fn made(admin: &mut Caller, uri: &str, body: Value) -> Value {
    let (code, object) = admin.json("POST", uri, body).await;
    assert_eq!(code, 201, "{uri}: {object}");
    // A read of what is newest waits for the cache; authorization goes by the cache as it is.
    let path = format!("{uri}/{}", object["metadata"]["name"].as_str().unwrap());
    assert_eq!(admin.get(&path).await.0, 200, "{path}");
    object
}

fn named(api_version: &str, kind: &str, name: &str) -> Value {
    json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name}})
}

fn with(mut object: Value, more: Value) -> Value {
    fn merge(target: &mut Value, more: Value) {
        match (target, more) {
            (Value::Object(target), Value::Object(more)) => {
                more.into_iter().for_each(|(key, value)| merge(target.entry(key).or_insert(Value::Null), value));
            }
            (target, more) => *target = more,
        }
    }
    merge(&mut object, more);
    object
}

/// Two namespaces with a Secret, a ConfigMap and an account each.
async fn two_tenants(admin: &mut Caller) {
    for namespace in ["team", "other"] {
        made(admin, "/api/v1/namespaces", named("v1", "Namespace", namespace)).await;
        let base = format!("/api/v1/namespaces/{namespace}");
        for account in ["default", "robot"] {
            made(admin, &format!("{base}/serviceaccounts"), named("v1", "ServiceAccount", account)).await;
        }
        for name in ["allowed", "secret"] {
            made(admin, &format!("{base}/secrets"), named("v1", "Secret", name)).await;
            made(admin, &format!("{base}/configmaps"), named("v1", "ConfigMap", name)).await;
        }
    }
}

fn role(name: &str, rules: Value) -> Value {
    with(named("rbac.authorization.k8s.io/v1", "Role", name), json!({"rules": rules}))
}

fn binding(kind: &str, name: &str, role: (&str, &str), subject: Value) -> Value {
    let reference = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": role.0, "name": role.1});
    with(named("rbac.authorization.k8s.io/v1", kind, name), json!({"roleRef": reference, "subjects": [subject]}))
}

fn user(name: &str) -> Value {
    json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name})
}

/// Binds a user to rules of its own in the namespace team.
async fn grant(admin: &mut Caller, name: &str, rules: Value) {
    let base = format!("{RBAC}/namespaces/team");
    made(admin, &format!("{base}/roles"), role(name, rules)).await;
    made(admin, &format!("{base}/rolebindings"), binding("RoleBinding", name, ("Role", name), user(name))).await;
}

#[tokio::test]
async fn a_name_that_was_granted_is_all_that_is_served() {
    let server = Server::start().await;
    let mut admin = Caller::of(&server);
    two_tenants(&mut admin).await;
    let verbs = ["get", "list", "watch", "delete", "deletecollection"];
    let rule = json!([{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["allowed"], "verbs": verbs}]);
    grant(&mut admin, "reader", rule).await;
    let mut reader = Caller::as_user(&server, User::new("reader", &[]));
    let (all, one) = ("/api/v1/namespaces/team/secrets", "/api/v1/namespaces/team/secrets/allowed");
    let old = "/api/v1/watch/namespaces/team/secrets";
    let not = "metadata.name!%3Dzzz";
    check(
        &mut reader,
        vec![
            (get(one), 200),
            (get(&format!("{one}?watch=1")), 200),
            (get(&format!("{old}/allowed")), 200),
            (get(&format!("{all}?fieldSelector=metadata.name%3Dallowed")), 200),
            (get(&format!("{all}?fieldSelector=metadata.name%3Dallowed&watch=1")), 200),
            (get(&format!("{all}/secret")), 403),
            (get(all), 403),
            (get(&format!("{all}?watch=1")), 403),
            (get(old), 403),
            (get("/api/v1/secrets"), 403),
            (get("/api/v1/namespaces/other/secrets/allowed"), 403),
            // What contradicts the name.
            (get(&format!("{one}?watch=1&fieldSelector={not}")), 400),
            (get(&format!("{one}?watch=1&fieldSelector=type%3DOpaque")), 400),
            (get(&format!("{one}?watch=1&fieldSelector=metadata.name%3Dsecret")), 400),
            (get(&format!("{old}/allowed?fieldSelector={not}")), 400),
            (get(&format!("{all}?fieldSelector={not}")), 403),
            (get(&format!("{all}?fieldSelector=metadata.name%3Dsecret,metadata.name%3Dallowed")), 403),
            // A collection has no name to be granted by.
            (delete(&format!("{all}?fieldSelector=metadata.name%3Dallowed")), 403),
            (delete(all), 403),
            (delete(&format!("{all}/secret")), 403),
            (post(old, named("v1", "Secret", "new")), 403),
        ],
    )
    .await;
    for selector in ["metadata.name%3Dallowed", "metadata.name%3Dallowed,metadata.name!%3Dzzz"] {
        let (_, list) = reader.get(&format!("{all}?fieldSelector={selector}")).await;
        let names: Vec<&str> =
            list["items"].as_array().unwrap().iter().map(|one| one["metadata"]["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["allowed"], "{selector}");
    }
    // And what a watch by name tells of.
    for uri in [format!("{one}?watch=1&timeoutSeconds=1"), format!("{old}/allowed?timeoutSeconds=1")] {
        let told = reader.send("GET", &uri, NONE, Vec::new()).await;
        let told = http_body_util::BodyExt::collect(told.into_body()).await.unwrap().to_bytes();
        let told = String::from_utf8(told.to_vec()).unwrap();
        let objects: Vec<&str> = told.lines().collect();
        assert!(matches!(&objects[..], [only] if only.contains("\"name\":\"allowed\"")), "{uri}: {told}");
    }
    // A collection that is deleted by who may is selected as it was authorized.
    let (code, gone) = admin.json("DELETE", &format!("{all}?fieldSelector=metadata.name%3Dallowed"), Value::Null).await;
    assert_eq!((code, gone["items"].as_array().unwrap().len()), (200, 1));
    assert_eq!(admin.get(&format!("{all}/secret")).await.0, 200);
}

#[tokio::test]
async fn a_tenant_stays_in_its_namespace() {
    let server = Server::start().await;
    let mut admin = Caller::of(&server);
    two_tenants(&mut admin).await;
    let account = json!({"kind": "ServiceAccount", "namespace": "team", "name": "robot"});
    let edit = binding("RoleBinding", "edit", ("ClusterRole", "edit"), account);
    made(&mut admin, &format!("{RBAC}/namespaces/team/rolebindings"), edit).await;
    let groups = ["system:serviceaccounts", "system:serviceaccounts:team"];
    let mut robot = Caller::as_user(&server, User::new("system:serviceaccount:team:robot", &groups));
    let (own, other) = ("/api/v1/namespaces/team", "/api/v1/namespaces/other");
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": "x"}});
    let masters = binding("ClusterRoleBinding", "me", ("ClusterRole", "cluster-admin"), user("system:anonymous"));
    let admin_here = binding("RoleBinding", "me", ("ClusterRole", "admin"), user("system:anonymous"));
    let token = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    check(
        &mut robot,
        vec![
            (get(&format!("{own}/secrets/secret")), 200),
            (post(&format!("{own}/configmaps"), named("v1", "ConfigMap", "mine")), 201),
            (get(&format!("{other}/secrets/secret")), 403),
            (get(&format!("{other}/configmaps")), 403),
            (get("/api/v1/secrets"), 403),
            (get("/api/v1/pods?watch=1"), 403),
            (get("/api/v1/nodes"), 403),
            (get("/api/v1/nodes/n/proxy/pods"), 403),
            (get("/api/v1/nodes/n:22/proxy/"), 403),
            (get("/metrics"), 403),
            (get("/api/v1/namespaces/kube-system/secrets"), 403),
            (post(&format!("{other}/configmaps"), named("v1", "ConfigMap", "mine")), 403),
            // The body does not say where, the path does.
            (
                post(
                    &format!("{own}/configmaps"),
                    with(named("v1", "ConfigMap", "m"), json!({"metadata": {"namespace": "other"}})),
                ),
                400,
            ),
            (get(&format!("{own}%2F..%2Fother/secrets/secret")), 403),
            (get(&format!("{own}/secrets/..%2F..%2Fother%2Fsecret")), 404),
            (post("/apis/authentication.k8s.io/v1/tokenreviews", review), 403),
            (post(&format!("{RBAC}/clusterrolebindings"), masters), 403),
            (post(&format!("{RBAC}/namespaces/team/rolebindings"), admin_here), 403),
            (post(&format!("{RBAC}/namespaces/team/roles"), role("r", json!([]))), 403),
            (post(&format!("{own}/serviceaccounts/default/token"), token.clone()), 201),
            (post(&format!("{other}/serviceaccounts/default/token"), token), 403),
            (delete(own), 403),
            (patch(own, json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}}})), 403),
            (post(&format!("{own}/pods/p/binding"), json!({"target": {"name": "n"}})), 403),
            (patch(&format!("{own}/pods/p/status"), json!({"status": {"podIP": "127.0.0.1"}})), 403),
            (post("/apis/discovery.k8s.io/v1/namespaces/team/endpointslices", json!({})), 403),
        ],
    )
    .await;
    // Whom it may act as: the accounts of its namespace, and nobody else.
    for (name, value, code) in [
        ("impersonate-user", "system:serviceaccount:team:default", 200),
        ("impersonate-user", "system:serviceaccount:other:default", 403),
        ("impersonate-user", "system:serviceaccount:team:a:b", 403),
        ("impersonate-user", "admin", 403),
        ("impersonate-user", "system:node:n", 403),
        ("impersonate-user", "", 400),
        ("impersonate-group", "system:masters", 400),
        ("impersonate-uid", "1", 400),
        ("impersonate-extra-scopes", "x", 400),
        ("impersonate-anything", "x", 400),
    ] {
        let found = robot.send("GET", "/api", &[(name, value)], Vec::new()).await.status().as_u16();
        assert_eq!(found, code, "{name}: {value}");
    }
    let both = [("impersonate-user", "system:serviceaccount:team:default"), ("impersonate-group", "system:masters")];
    assert_eq!(robot.send("GET", "/api", &both, Vec::new()).await.status(), 403);
    // An administrator who acts as somebody is that somebody: whatever the name is written in.
    for name in ["müller".as_bytes(), b"nobody"] {
        let mut admin = Caller::of(&server);
        let found = admin.send("GET", "/api/v1/secrets", &[("impersonate-user", name)], Vec::new()).await;
        assert_eq!(found.status(), 403, "{}", String::from_utf8_lossy(name));
    }
    let broken: &[u8] = b"m\xfcller";
    assert_eq!(admin.send("GET", "/api/v1/secrets", &[("impersonate-user", broken)], Vec::new()).await.status(), 400);
}

#[tokio::test]
async fn who_writes_roles_grants_no_more_than_it_has() {
    let server = Server::start().await;
    let mut admin = Caller::of(&server);
    two_tenants(&mut admin).await;
    let everything = json!([{"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["*"], "verbs": ["get", "list", "watch",
        "create", "update", "patch", "delete"]}]);
    let writer = with(role("writer", everything), json!({"kind": "ClusterRole"}));
    made(&mut admin, &format!("{RBAC}/clusterroles"), writer).await;
    let bound = binding("ClusterRoleBinding", "writer", ("ClusterRole", "writer"), user("writer"));
    made(&mut admin, &format!("{RBAC}/clusterrolebindings"), bound).await;
    let secrets = json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]);
    let cluster = |name: &str, rules: Value| with(role(name, rules), json!({"kind": "ClusterRole"}));
    made(&mut admin, &format!("{RBAC}/clusterroles"), cluster("secrets", secrets.clone())).await;
    let to_view = json!({"metadata": {"labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}}});
    let selects = json!({"aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]}});
    let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": "1"});
    let mut writer = Caller::as_user(&server, User::new("writer", &[]));
    check(
        &mut writer,
        vec![
            (post(&format!("{RBAC}/clusterroles"), cluster("nothing", json!([]))), 201),
            (post(&format!("{RBAC}/clusterroles"), cluster("more", secrets.clone())), 403),
            (post(&format!("{RBAC}/clusterroles"), with(cluster("agg", json!([])), selects.clone())), 403),
            // Labels make roles part of others.
            (patch(&format!("{RBAC}/clusterroles/cluster-admin"), to_view.clone()), 403),
            (patch(&format!("{RBAC}/clusterroles/secrets"), to_view.clone()), 403),
            (patch(&format!("{RBAC}/clusterroles/admin"), to_view), 403),
            (patch(&format!("{RBAC}/clusterroles/secrets"), json!({"metadata": {"annotations": {"a": "b"}}})), 403),
            (patch(&format!("{RBAC}/clusterroles/nothing"), selects), 403),
            (patch(&format!("{RBAC}/clusterroles/view"), json!({"aggregationRule": null})), 403),
            (patch(&format!("{RBAC}/clusterroles/nothing"), json!({"rules": secrets})), 403),
            // What the garbage collector needs.
            (patch(&format!("{RBAC}/clusterroles/secrets"), json!({"metadata": {"finalizers": ["a.b/c"]}})), 200),
            (patch(&format!("{RBAC}/clusterroles/secrets"), json!({"metadata": {"ownerReferences": [owner]}})), 200),
            (
                post(
                    &format!("{RBAC}/clusterrolebindings"),
                    binding("ClusterRoleBinding", "b", ("ClusterRole", "cluster-admin"), user("writer")),
                ),
                403,
            ),
            (patch(&format!("{RBAC}/clusterrolebindings/cluster-admin"), json!({"subjects": [user("writer")]})), 403),
            (
                patch(
                    &format!("{RBAC}/clusterrolebindings/cluster-admin"),
                    json!({"metadata": {"labels": {"a": "b"}}}),
                ),
                403,
            ),
        ],
    )
    .await;
    // A star is a name like any other.
    let star = binding("ClusterRoleBinding", "star", ("ClusterRole", "cluster-admin"), user("*"));
    made(&mut admin, &format!("{RBAC}/clusterrolebindings"), star).await;
    let mut anonymous = Caller::as_user(&server, User::anonymous());
    check(&mut anonymous, vec![(get("/api/v1/secrets"), 401)]).await;
    check(&mut writer, vec![(get("/api/v1/secrets"), 403)]).await;
}

#[tokio::test]
async fn nobody_sees_whether_the_server_lives_and_nothing_else() {
    let server = Server::start().await;
    let mut anonymous = Caller::as_user(&server, User::anonymous());
    check(
        &mut anonymous,
        vec![
            (get("/healthz"), 200),
            (get("/livez"), 200),
            (get("/readyz"), 200),
            (get("/version"), 200),
            (get("/readyz/store"), 401),
            (get("/metrics"), 401),
            (get("/api"), 401),
            (get("/api/v1/namespaces"), 401),
            (get("/openapi/v2"), 401),
            (post("/version", json!({})), 401),
        ],
    )
    .await;
}

/// Node `name` and its kubelet; the node's uid.
async fn node(server: &Server, admin: &mut Caller, name: &str) -> (Caller, String) {
    let object = made(admin, "/api/v1/nodes", named("v1", "Node", name)).await;
    let kubelet = Caller::as_user(server, User::new(&format!("system:node:{name}"), &["system:nodes"]));
    (kubelet, object["metadata"]["uid"].as_str().unwrap().to_owned())
}

fn pod(name: &str, node: &str, spec: Value) -> Value {
    let containers = json!([{"name": "c", "image": "i"}]);
    with(
        with(named("v1", "Pod", name), json!({"spec": {"nodeName": node, "containers": containers}})),
        json!({"spec": spec}),
    )
}

#[tokio::test]
async fn a_kubelet_reads_its_own_node_and_pods_and_what_they_name() {
    let server = Server::start().await;
    let mut admin = Caller::of(&server);
    two_tenants(&mut admin).await;
    let (mut kubelet, _) = node(&server, &mut admin, "a").await;
    node(&server, &mut admin, "b").await;
    let base = "/api/v1/namespaces/team";
    let volumes = json!({"volumes": [{"name": "s", "secret": {"secretName": "allowed"}},
        {"name": "m", "configMap": {"name": "allowed"}}, {"name": "v", "persistentVolumeClaim": {"claimName": "allowed"}}]});
    made(&mut admin, &format!("{base}/pods"), pod("mine", "a", volumes)).await;
    made(&mut admin, &format!("{base}/pods"), pod("theirs", "b", json!({}))).await;
    let own = "fieldSelector=spec.nodeName%3Da";
    let secret = "fieldSelector=metadata.name%3Dallowed";
    check(
        &mut kubelet,
        vec![
            (get("/api/v1/nodes/a"), 200),
            (get("/api/v1/nodes?fieldSelector=metadata.name%3Da"), 200),
            (get("/api/v1/nodes?fieldSelector=metadata.name%3Da&watch=1"), 200),
            (get("/api/v1/nodes"), 403),
            (get("/api/v1/nodes?watch=1"), 403),
            (get("/api/v1/nodes/b"), 403),
            (get("/api/v1/nodes/a?watch=1&fieldSelector=metadata.name!%3Dzzz"), 400),
            (get(&format!("/api/v1/pods?{own}")), 200),
            (get(&format!("/api/v1/pods?{own}&watch=1")), 200),
            (get(&format!("/api/v1/pods?{own},status.phase!%3DFailed")), 200),
            (get("/api/v1/pods"), 403),
            (get("/api/v1/pods?watch=1"), 403),
            (get("/api/v1/pods?fieldSelector=spec.nodeName!%3Da"), 403),
            (get("/api/v1/pods?fieldSelector=spec.nodeName%3Db"), 403),
            (get("/api/v1/pods?fieldSelector=xspec.nodeName%3Da"), 403),
            (get(&format!("{base}/pods/mine")), 200),
            (get(&format!("{base}/pods?fieldSelector=metadata.name%3Dmine")), 200),
            (get(&format!("{base}/pods/theirs")), 403),
            (get(&format!("{base}/pods/none")), 403),
            (get(&format!("{base}/pods/mine/log")), 403),
            (get(&format!("{base}/secrets/allowed")), 200),
            (get(&format!("{base}/secrets?{secret}")), 200),
            (get(&format!("{base}/secrets?{secret}&watch=1")), 200),
            (get(&format!("{base}/secrets/allowed?watch=1&fieldSelector=metadata.name!%3Dzzz")), 400),
            (get(&format!("{base}/secrets/secret")), 403),
            (get(&format!("{base}/secrets")), 403),
            (get(&format!("/api/v1/secrets?{secret}")), 403),
            (get("/api/v1/namespaces/other/secrets/allowed"), 403),
            (get(&format!("{base}/configmaps/allowed")), 200),
            (get(&format!("{base}/configmaps/secret")), 403),
            (get(&format!("{base}/configmaps")), 403),
            (get(&format!("{base}/persistentvolumeclaims/allowed")), 404),
            (get(&format!("{base}/persistentvolumeclaims/other")), 403),
            (get(&format!("{base}/persistentvolumeclaims")), 403),
            (get(&format!("{base}/serviceaccounts/robot")), 403),
            (get(&format!("{base}/serviceaccounts")), 403),
            (get("/api/v1/services"), 200),
            (get("/api/v1/namespaces"), 403),
            (get("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"), 403),
            (get("/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/a"), 403),
            (get("/api/v1/nodes/a/proxy/pods"), 403),
            (delete(&format!("{base}/pods?{own}")), 403),
            (delete("/api/v1/nodes/a"), 403),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_kubelet_writes_no_more_than_its_node_needs() {
    let server = Server::start().await;
    let mut admin = Caller::of(&server);
    two_tenants(&mut admin).await;
    let (mut kubelet, uid) = node(&server, &mut admin, "a").await;
    let base = "/api/v1/namespaces/team";
    let mine =
        made(&mut admin, &format!("{base}/pods"), pod("mine", "a", json!({"serviceAccountName": "robot"}))).await;
    made(&mut admin, &format!("{base}/pods"), pod("theirs", "b", json!({}))).await;
    let pod_uid = mine["metadata"]["uid"].as_str().unwrap();
    let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "none", "uid": "1"});
    let label = |key: &str| json!({"metadata": {"labels": {key: "x"}}});
    let token = |spec: Value| json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
    let bound = |name: &str, uid: &str| json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}});
    let asks = format!("{base}/serviceaccounts/robot/token");
    let lease = |name: &str| named("coordination.k8s.io/v1", "Lease", name);
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let csi = with(named("storage.k8s.io/v1", "CSINode", "b"), json!({"spec": {"drivers": []}}));
    check(
        &mut kubelet,
        vec![
            (patch("/api/v1/nodes/a/status", json!({"status": {"phase": "Running"}})), 200),
            (patch("/api/v1/nodes/b/status", json!({"status": {"phase": "Running"}})), 404),
            (post("/api/v1/nodes", named("v1", "Node", "c")), 403),
            (patch("/api/v1/nodes/a", label("example.com/a")), 200),
            (patch("/api/v1/nodes/a", label("kubernetes.io/hostname")), 200),
            (patch("/api/v1/nodes/a", label("node-role.kubernetes.io/control-plane")), 403),
            (patch("/api/v1/nodes/a", label("node-restriction.kubernetes.io/safe")), 403),
            (patch("/api/v1/nodes/a/status", label("node-restriction.kubernetes.io/safe")), 403),
            (patch("/api/v1/nodes/a", json!({"metadata": {"ownerReferences": [owner]}})), 403),
            (patch("/api/v1/nodes/a", json!({"spec": {"taints": null}})), 403),
            (patch("/api/v1/nodes/a", json!({"spec": {"configSource": {"configMap": {}}}})), 422),
            (patch(&format!("{base}/pods/mine/status"), json!({"status": {"phase": "Running"}})), 200),
            (patch(&format!("{base}/pods/mine/status"), label("app")), 403),
            (patch(&format!("{base}/pods/theirs/status"), json!({"status": {"phase": "Running"}})), 403),
            (patch(&format!("{base}/pods/mine"), label("app")), 403),
            (delete(&format!("{base}/pods/theirs")), 403),
            (post(&asks, token(bound("mine", pod_uid))), 201),
            (post(&asks, token(json!({}))), 403),
            (post(&asks, token(bound("mine", ""))), 403),
            (post(&asks, token(bound("mine", "other"))), 409),
            (post(&asks, token(with(bound("mine", pod_uid), json!({"audiences": ["vault"]})))), 403),
            (post(&format!("{base}/serviceaccounts/default/token"), token(bound("theirs", ""))), 403),
            (post(leases, lease("a")), 201),
            (post(leases, lease("b")), 403),
            (post("/apis/coordination.k8s.io/v1/namespaces/kube-system/leases", lease("a")), 403),
            (post("/apis/storage.k8s.io/v1/csinodes", csi), 403),
            (post(&format!("{base}/secrets"), named("v1", "Secret", "new")), 403),
            (patch(&format!("{base}/configmaps/allowed"), json!({"data": {"a": "b"}})), 403),
            (post(&format!("{base}/pods/mine/exec"), json!({})), 403),
        ],
    )
    .await;
    mirrors(&mut kubelet, &uid).await;
}

/// What a pod that a kubelet makes may be.
async fn mirrors(kubelet: &mut Caller, uid: &str) {
    let owner = |uid: &str| json!([{"apiVersion": "v1", "kind": "Node", "name": "a", "uid": uid, "controller": true}]);
    let mirror = |name: &str, more: Value| {
        let metadata =
            json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "1"}, "ownerReferences": owner(uid)}});
        with(with(pod(name, "a", json!({})), metadata), more)
    };
    let volume = |source: Value| json!({"spec": {"volumes": [with(json!({"name": "v"}), source)]}});
    let variable = |source: Value| json!({"spec": {"containers": [{"name": "c", "image": "i", "env": [{"name": "E", "valueFrom": source}]}]}});
    let pods = "/api/v1/namespaces/other/pods";
    let other = json!([{"apiVersion": "v1", "kind": "Node", "name": "b", "uid": uid, "controller": true}]);
    let owners = |list: Value| json!({"metadata": {"ownerReferences": list}});
    let second = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": "1"});
    let two = json!([owner(uid)[0], second]);
    check(
        kubelet,
        vec![
            (post(pods, mirror("fine", json!({}))), 201),
            (post(pods, pod("plain", "a", json!({}))), 403),
            (post(pods, mirror("elsewhere", json!({"spec": {"nodeName": "b"}}))), 403),
            (post(pods, mirror("unowned", owners(json!([])))), 403),
            (post(pods, mirror("other", owners(other))), 403),
            (post(pods, mirror("uid", owners(owner("1")))), 403),
            (post(pods, mirror("two", owners(two))), 403),
            (post(pods, mirror("secret", volume(json!({"secret": {"secretName": "secret"}})))), 403),
            (post(pods, mirror("map", volume(json!({"configMap": {"name": "secret"}})))), 403),
            (post(pods, mirror("claim", volume(json!({"persistentVolumeClaim": {"claimName": "c"}})))), 403),
            (
                post(
                    pods,
                    mirror("projected", volume(json!({"projected": {"sources": [{"secret": {"name": "secret"}}]}}))),
                ),
                403,
            ),
            (
                post(
                    pods,
                    mirror(
                        "token",
                        volume(json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}})),
                    ),
                ),
                403,
            ),
            (post(pods, mirror("env", variable(json!({"secretKeyRef": {"name": "secret", "key": "k"}})))), 403),
            (post(pods, mirror("env-map", variable(json!({"configMapKeyRef": {"name": "secret", "key": "k"}})))), 403),
            (post(pods, mirror("pull", json!({"spec": {"imagePullSecrets": [{"name": "secret"}]}}))), 403),
            (post(pods, mirror("account", json!({"spec": {"serviceAccountName": "robot"}}))), 403),
            (get("/api/v1/namespaces/other/secrets/secret"), 403),
        ],
    )
    .await;
}
