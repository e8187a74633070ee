//! The protocol itself, request by request: versions, limits, preconditions, patches, forms.

use std::sync::Arc;

use control_plane_apiserver::{ApiServer, Body, LocalService, User};
use control_plane_store::{Sqlite, SqliteConfig, Store};
use http::{Request, Response, header};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tower::Service;

use crate::server::Server;

pub(crate) struct Caller(LocalService);

impl Caller {
    pub(crate) fn of(server: &Server) -> Self {
        Self::as_user(server, User::new("admin", &["system:masters"]))
    }

    pub(crate) fn as_user(server: &Server, user: User) -> Self {
        Self(server.api.local_service(user))
    }

    pub(crate) async fn send<V>(
        &mut self,
        method: &str,
        uri: &str,
        headers: &[(&str, V)],
        body: Vec<u8>,
    ) -> Response<Body>
    where
        V: Copy,
        http::HeaderValue: TryFrom<V, Error: Into<http::Error>>,
    {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.0.call(request.body(Full::<bytes::Bytes>::from(body)).unwrap()).await.unwrap()
    }

    pub(crate) async fn json(&mut self, method: &str, uri: &str, body: Value) -> (u16, Value) {
        self.typed(method, uri, "application/json", body).await
    }

    pub(crate) async fn typed(&mut self, method: &str, uri: &str, media: &str, body: Value) -> (u16, Value) {
        let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let response = self.send(method, uri, &[("content-type", media)], bytes).await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&bytes).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&bytes))))
    }

    pub(crate) async fn get(&mut self, uri: &str) -> (u16, Value) {
        self.json("GET", uri, Value::Null).await
    }
}

/// No headers.
pub(crate) const NONE: &[(&str, &str)] = &[];

pub(crate) const MAPS: &str = "/api/v1/namespaces/default/configmaps";

pub(crate) fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b"}})
}

#[tokio::test]
async fn an_update_names_its_object() {
    let server = Server::start().await;
    let mut caller = Caller::of(&server);
    caller.json("POST", MAPS, map("m")).await;
    let (code, status) = caller.json("PUT", &format!("{MAPS}/m"), json!({})).await;
    assert_eq!(code, 400, "an empty object would empty the one that is there");
    assert!(status["message"].as_str().unwrap().contains("name must be provided"), "{status}");
    assert_eq!(caller.json("PUT", &format!("{MAPS}/m"), map("other")).await.0, 400);
    assert_eq!(caller.json("PUT", &format!("{MAPS}/m"), map("m")).await.0, 200);
}

#[tokio::test]
async fn a_limited_list_stays_at_its_revision() {
    let server = Server::start().await;
    let mut caller = Caller::of(&server);
    for index in 0..7 {
        assert_eq!(caller.json("POST", MAPS, map(&format!("m{index}"))).await.0, 201);
    }
    let (_, first) = caller.get(&format!("{MAPS}?limit=3")).await;
    assert_eq!(first["metadata"]["remainingItemCount"], 4);
    // What changes meanwhile is not in the continuation.
    caller.json("DELETE", &format!("{MAPS}/m5"), Value::Null).await;
    caller.json("POST", MAPS, map("m9")).await;
    let mut names: Vec<String> = Vec::new();
    let mut page = first.clone();
    loop {
        names.extend(
            page["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()),
        );
        assert_eq!(page["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
        let Some(token) = page["metadata"]["continue"].as_str() else { break };
        page = caller.get(&format!("{MAPS}?limit=3&continue={token}")).await.1;
    }
    assert_eq!(names, ["m0", "m1", "m2", "m3", "m4", "m5", "m6"]);
    assert_eq!(caller.get(&format!("{MAPS}?continue=nonsense")).await.0, 400);
    let (code, future) = caller.get(&format!("{MAPS}?resourceVersion=999999&resourceVersionMatch=Exact")).await;
    assert_eq!((code, &future["reason"]), (504, &json!("Timeout")));
    let (code, _) = caller.get(&format!("{MAPS}?resourceVersionMatch=Exact")).await;
    assert_eq!(code, 400);
}

#[tokio::test]
async fn a_stale_write_is_refused_and_a_fresh_one_is_not() {
    let server = Server::start().await;
    let mut caller = Caller::of(&server);
    let (_, first) = caller.json("POST", MAPS, map("m")).await;
    let uri = format!("{MAPS}/m");
    let mut next = first.clone();
    next["data"]["a"] = "c".into();
    let (code, second) = caller.json("PUT", &uri, next.clone()).await;
    assert_eq!(code, 200);
    assert_ne!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let (code, stale) = caller.json("PUT", &uri, next).await;
    assert_eq!((code, &stale["reason"]), (409, &json!("Conflict")));
    // Nothing changed: nothing is written.
    let (_, same) = caller.json("PUT", &uri, second.clone()).await;
    assert_eq!(same["metadata"]["resourceVersion"], second["metadata"]["resourceVersion"]);
    let wrong_uid = json!({"preconditions": {"uid": "other"}});
    assert_eq!(caller.json("DELETE", &uri, wrong_uid).await.0, 409);
    let (code, dry) = caller.json("DELETE", &format!("{uri}?dryRun=All"), Value::Null).await;
    assert_eq!((code, &dry["status"]), (200, &json!("Success")));
    assert_eq!(caller.get(&uri).await.0, 200);
    assert_eq!(caller.json("DELETE", &uri, Value::Null).await.0, 200);
    assert_eq!(caller.get(&uri).await.0, 404);
}

#[tokio::test]
async fn many_writers_of_one_object_lose_nothing() {
    let server = Server::start().await;
    let mut caller = Caller::of(&server);
    caller.json("POST", MAPS, map("m")).await;
    let writers: Vec<_> = (0..16)
        .map(|index| {
            let mut caller = Caller::of(&server);
            tokio::spawn(async move {
                let patch = json!({"data": {format!("k{index}"): "v"}});
                let media = "application/merge-patch+json";
                caller.typed("PATCH", &format!("{MAPS}/m"), media, patch).await.0
            })
        })
        .collect();
    let mut done = 0;
    for writer in writers {
        let code = writer.await.unwrap();
        assert!(code == 200 || code == 409, "{code}");
        done += usize::from(code == 200);
    }
    let (_, object) = caller.get(&format!("{MAPS}/m")).await;
    assert_eq!(object["data"].as_object().unwrap().len(), done + 1);
    assert!(done >= 8, "most writers get through: {done}");
}

#[tokio::test]
async fn patches_of_every_kind() {
    let server = Server::start().await;
    let mut caller = Caller::of(&server);
    caller.json("POST", MAPS, map("m")).await;
    let uri = format!("{MAPS}/m");
    let json_patch =
        json!([{"op": "test", "path": "/data/a", "value": "b"}, {"op": "add", "path": "/data/x", "value": "y"}]);
    let (code, patched) = caller.typed("PATCH", &uri, "application/json-patch+json", json_patch).await;
    assert_eq!((code, &patched["data"]["x"]), (200, &json!("y")));
    let failing = json!([{"op": "test", "path": "/data/a", "value": "no"}]);
    assert_eq!(caller.typed("PATCH", &uri, "application/json-patch+json", failing).await.0, 422);
    let intent = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"a": "mine"}});
    let apply = "application/apply-patch+yaml";
    assert_eq!(caller.typed("PATCH", &uri, apply, intent.clone()).await.0, 422, "fieldManager is required");
    let (code, conflict) = caller.typed("PATCH", &format!("{uri}?fieldManager=two"), apply, intent.clone()).await;
    assert_eq!(code, 409);
    assert_eq!(conflict["details"]["causes"][0]["field"], ".data.a");
    let (code, forced) = caller.typed("PATCH", &format!("{uri}?fieldManager=two&force=true"), apply, intent).await;
    assert_eq!((code, &forced["data"]), (200, &json!({"a": "mine", "x": "y"})));
    let without = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}});
    let (_, removed) = caller.typed("PATCH", &format!("{uri}?fieldManager=two"), apply, without.clone()).await;
    assert_eq!(removed["data"], json!({"x": "y"}), "what is no longer applied goes");
    let (code, _) = caller
        .typed(
            "PATCH",
            &format!("{MAPS}/new?fieldManager=two"),
            apply,
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "new"}}),
        )
        .await;
    assert_eq!(code, 201);
    assert_eq!(caller.typed("PATCH", &uri, "text/plain", json!({})).await.0, 415);
}

#[tokio::test]
async fn bad_input_is_named() {
    let server = Server::start().await;
    let mut caller = Caller::of(&server);
    let strict = format!("{MAPS}?fieldValidation=Strict");
    let mut typo = map("m");
    typo["dataa"] = json!({});
    let (code, answer) = caller.json("POST", &strict, typo.clone()).await;
    assert_eq!(code, 400);
    assert!(answer["message"].as_str().unwrap().contains("unknown field \"dataa\""), "{answer}");
    let warned =
        caller.send("POST", MAPS, &[("content-type", "application/json")], typo.to_string().into_bytes()).await;
    assert_eq!(warned.status(), 201);
    assert_eq!(warned.headers()[header::WARNING], "299 - \"unknown field \\\"dataa\\\"\"");
    assert_eq!(caller.send("POST", MAPS, NONE, b"{".to_vec()).await.status(), 400);
    assert_eq!(caller.send("POST", MAPS, NONE, vec![b' '; (3 << 20) + 1]).await.status(), 413);
    let elsewhere =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "namespace": "kube-system"}});
    assert_eq!(caller.json("POST", MAPS, elsewhere).await.0, 400);
    let other_kind = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "m"}});
    assert_eq!(caller.json("POST", MAPS, other_kind).await.0, 400);
    for (uri, code) in [
        ("/api/v1/unknowns", 404),
        ("/api/v9/pods", 404),
        ("/nothing", 404),
        ("/api/v1/namespaces/default/configmaps/none", 404),
        ("/api/v1/pods?labelSelector=a%20b%20c", 400),
        ("/api/v1/pods?fieldSelector=spec.unknown%3Dx", 400),
        ("/api/v1/pods?resourceVersion=abc", 400),
        ("/api/v1/pods?limit=abc", 400),
    ] {
        assert_eq!(caller.get(uri).await.0, code, "{uri}");
    }
    assert_eq!(caller.json("DELETE", "/api/v1/namespaces/kube-system", Value::Null).await.0, 403);
    assert_eq!(caller.json("POST", "/api/v1/namespaces/none/configmaps", map("m")).await.0, 404);
    assert_eq!(caller.json("PATCH", "/api/v1/namespaces/default/configmaps", json!({})).await.0, 405);
    assert_eq!(caller.send("GET", MAPS, &[("accept", "text/html")], Vec::new()).await.status(), 406);
}

#[tokio::test]
async fn one_object_in_every_form() {
    let server = Server::start().await;
    let mut caller = Caller::of(&server);
    caller.json("POST", MAPS, map("m")).await;
    let uri = format!("{MAPS}/m");
    let protobuf = caller.send("GET", &uri, &[("accept", "application/vnd.kubernetes.protobuf")], Vec::new()).await;
    assert_eq!(protobuf.headers()[header::CONTENT_TYPE], "application/vnd.kubernetes.protobuf");
    let bytes = protobuf.into_body().collect().await.unwrap().to_bytes();
    assert!(bytes.starts_with(b"k8s\0"));
    // The same bytes are understood when they come back under another name.
    let media = [("content-type", "application/vnd.kubernetes.protobuf")];
    assert_eq!(caller.send("PUT", &uri, &media, bytes.to_vec()).await.status(), 200);
    let yaml = caller.send("GET", &uri, &[("accept", "application/yaml")], Vec::new()).await;
    let text = yaml.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&text).contains("kind: ConfigMap"));
    let partial = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    let list = caller.send("GET", MAPS, &[("accept", partial)], Vec::new()).await;
    let list: Value = serde_json::from_slice(&list.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    assert_eq!(list["items"][0].get("data"), None);
    // Clients of some age ask for the beta alone.
    for (shape, kind) in [("Table", "Table"), ("PartialObjectMetadataList", "PartialObjectMetadataList")] {
        let beta = format!("application/json;as={shape};g=meta.k8s.io;v=v1beta1");
        let answer = caller.send("GET", MAPS, &[("accept", beta.as_str())], Vec::new()).await;
        let answer: Value = serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap();
        assert_eq!((&answer["apiVersion"], &answer["kind"]), (&json!("meta.k8s.io/v1beta1"), &json!(kind)));
    }
    // Large answers are packed for who accepts it.
    for index in 0..4 {
        let mut large = map(&format!("large{index}"));
        large["data"]["a"] = "x".repeat(100_000).into();
        caller.json("POST", MAPS, large).await;
    }
    let packed = caller.send("GET", MAPS, &[("accept-encoding", "gzip")], Vec::new()).await;
    assert_eq!(packed.headers()[header::CONTENT_ENCODING], "gzip");
    assert!(packed.into_body().collect().await.unwrap().to_bytes().len() < 40_000);
}

#[tokio::test]
async fn deletions_wait_for_finalizers() {
    let server = Server::start().await;
    let mut caller = Caller::of(&server);
    let mut held = map("held");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    caller.json("POST", MAPS, held).await;
    let uri = format!("{MAPS}/held");
    let (code, marked) = caller.json("DELETE", &uri, Value::Null).await;
    assert_eq!(code, 200);
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    let (code, _) =
        caller.typed("PATCH", &uri, "application/merge-patch+json", json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(code, 200);
    assert_eq!(caller.get(&uri).await.0, 404);
    // A namespace ends when its finalizer is taken away, and takes nothing new meanwhile.
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ending"}});
    caller.json("POST", "/api/v1/namespaces", namespace).await;
    caller.json("DELETE", "/api/v1/namespaces/ending", Value::Null).await;
    assert_eq!(caller.json("POST", "/api/v1/namespaces/ending/configmaps", map("late")).await.0, 403);
    let (_, mut live) = caller.get("/api/v1/namespaces/ending").await;
    assert_eq!(live["status"]["phase"], "Terminating");
    live["spec"]["finalizers"] = json!([]);
    assert_eq!(caller.json("PUT", "/api/v1/namespaces/ending/finalize", live).await.0, 200);
    assert_eq!(caller.get("/api/v1/namespaces/ending").await.0, 404);
}

#[tokio::test]
async fn a_watch_from_before_the_history_is_told_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let pki = crate::pki::Pki::make().unwrap();
    let store: Arc<dyn Store> = Arc::new(Sqlite::open(&SqliteConfig::new(&path)).unwrap());
    let api = ApiServer::start_on(crate::server::config(&pki, path), Arc::clone(&store)).await.unwrap();
    let mut caller = Caller(api.local_service(User::new("admin", &["system:masters"])));
    // More than memory keeps, and then the store forgets it too.
    for index in 0..4 {
        let mut large = map(&format!("m{index}"));
        large["data"]["a"] = "x".repeat(900 << 10).into();
        assert_eq!(caller.json("POST", MAPS, large.clone()).await.0, 201);
        large["data"]["a"] = "".into();
        assert_eq!(caller.json("PUT", &format!("{MAPS}/m{index}"), large).await.0, 200);
    }
    store.compact(store.revision().await.unwrap()).await.unwrap();
    let response = caller.send("GET", &format!("{MAPS}?watch=true&resourceVersion=1"), NONE, Vec::new()).await;
    assert_eq!(response.status(), 200);
    let event: Value = serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)));
}

#[tokio::test]
async fn what_is_not_acted_on_is_kept_and_told() {
    let server = Server::start().await;
    let mut caller = Caller::of(&server);
    let uri = "/apis/apps/v1/namespaces/default/deployments";
    let template = json!({"metadata": {"labels": {"app": "d"}}, "spec": {
        "containers": [{"name": "c", "image": "i"}], "affinity": {"podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": {"topologyKey": "k"}}]}}}});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"selector": {"matchLabels": {"app": "d"}}, "template": template}});
    let json_type = [("content-type", "application/json")];
    let told = caller.send("POST", uri, &json_type, deployment.to_string().into_bytes()).await;
    assert_eq!(told.status(), 201);
    let text = told.headers()[header::WARNING].to_str().unwrap().to_owned();
    assert!(text.starts_with("299 - \"spec.template.spec.affinity.podAntiAffinity: kept, but"), "{text}");
    // Kept, and no news to who changes something else.
    let merge = [("content-type", "application/merge-patch+json")];
    let patch = json!({"spec": {"replicas": 2}}).to_string().into_bytes();
    let quiet = caller.send("PATCH", &format!("{uri}/d"), &merge, patch).await;
    assert_eq!(quiet.status(), 200);
    assert!(!quiet.headers().contains_key(header::WARNING));
    let (_, kept) = caller.get(&format!("{uri}/d")).await;
    assert_eq!(kept["spec"]["template"]["spec"]["affinity"], deployment["spec"]["template"]["spec"]["affinity"]);
    let patch = json!({"spec": {"template": {"spec": {"hostnameOverride": "h"}}}}).to_string().into_bytes();
    let told = caller.send("PATCH", &format!("{uri}/d"), &merge, patch).await;
    assert!(told.headers()[header::WARNING].to_str().unwrap().contains("spec.hostnameOverride: kept"));
}

#[tokio::test]
async fn numbers_and_forms_that_nobody_meant_are_answered() {
    let server = Server::start().await;
    let mut caller = Caller::of(&server);
    caller.json("POST", "/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
    let pod = |name: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}})
    };
    let pods = "/api/v1/namespaces/default/pods";
    for name in ["a", "b", "c"] {
        assert_eq!(caller.json("POST", pods, pod(name)).await.0, 201);
    }
    for (method, uri, body, expect) in [
        ("GET", format!("{MAPS}?watch=1&timeoutSeconds={}", u64::MAX), Value::Null, 200),
        ("GET", format!("{MAPS}?watch=1&timeoutSeconds=-1"), Value::Null, 400),
        ("GET", format!("{MAPS}?watch=1&timeout={}h", u64::MAX), Value::Null, 200),
        ("GET", format!("{MAPS}?limit={}", u64::MAX), Value::Null, 200),
        ("GET", format!("{MAPS}?timeout=invalid"), Value::Null, 400),
        ("GET", format!("{MAPS}?timeout=0s"), Value::Null, 200),
        ("GET", format!("{MAPS}?timeout=1h"), Value::Null, 200),
        ("DELETE", format!("{pods}/a?timeout=invalid"), Value::Null, 400),
        ("DELETE", format!("{pods}/a?gracePeriodSeconds={}", i64::MAX), Value::Null, 200),
        ("DELETE", format!("{pods}/b"), json!({"gracePeriodSeconds": i64::MIN}), 200),
        // A wish that is not understood is not passed over.
        ("DELETE", format!("{pods}/c"), json!({"preconditions": {"uid": 5}}), 400),
        ("DELETE", format!("{pods}/c"), json!({"dryRun": "All"}), 400),
        ("DELETE", format!("{pods}/c"), json!({"dryRun": ["Some"]}), 400),
        ("DELETE", format!("{pods}/c"), json!({"kind": "Pod", "apiVersion": "v1"}), 400),
        ("GET", format!("{pods}/c"), Value::Null, 200),
    ] {
        let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let answer = caller.send(method, &uri, &[("content-type", "application/json")], bytes).await;
        assert_eq!(answer.status().as_u16(), expect, "{method} {uri} {body}");
    }
    let (_, pod) = caller.get(&format!("{pods}/a")).await;
    assert_eq!(pod["metadata"]["deletionGracePeriodSeconds"], 1_i64 << 32, "{pod}");
    assert!(pod["metadata"]["deletionTimestamp"].as_str().unwrap().starts_with("21"), "{pod}");
}

#[tokio::test]
async fn a_streamed_list_of_nothing_tells_how_far_it_is() {
    let server = Server::start().await;
    let mut caller = Caller::of(&server);
    let (_, made) = caller.json("POST", MAPS, map("m")).await;
    let newest: u64 = made["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    let watch =
        "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1";
    let uri = format!("/apis/batch/v1/namespaces/default/jobs?{watch}");
    let told = caller.send("GET", &uri, NONE, Vec::new()).await.into_body().collect().await.unwrap().to_bytes();
    let bookmark: Value = serde_json::from_slice(told.split(|byte| *byte == b'\n').next().unwrap()).unwrap();
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true", "{bookmark}");
    let told: u64 = bookmark["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    assert!(told >= newest, "{told} {newest}");
}

#[tokio::test]
async fn what_happens_is_counted_under_the_names_that_dashboards_know() {
    let server = Server::start().await;
    let mut caller = Caller::of(&server);
    caller.get(MAPS).await;
    let watch = caller.send("GET", &format!("{MAPS}?watch=1"), NONE, Vec::new()).await;
    let mut nobody = Caller::as_user(&server, User::new("nobody", &[]));
    assert_eq!(nobody.get("/api/v1/secrets").await.0, 403);
    let text = caller.send("GET", "/metrics", NONE, Vec::new()).await.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8(text.to_vec()).unwrap();
    for line in [
        "apiserver_request_total{code=\"200\",dry_run=\"\",component=\"apiserver\",group=\"\",resource=\"configmaps\",scope=\"namespace\",subresource=\"\",verb=\"LIST\",version=\"v1\"} 1\n",
        "# TYPE apiserver_request_duration_seconds histogram\n",
        "apiserver_current_inflight_requests{request_kind=\"readOnly\"} 0\n",
        "apiserver_registered_watchers{group=\"\",kind=\"ConfigMap\",version=\"v1\"} 1\n",
        "apiserver_storage_objects{resource=\"namespaces\"} 4\n",
        "apiserver_storage_size_bytes{",
        "authentication_attempts{result=\"success\"} ",
        "authorization_attempts_total{result=\"denied\"} 1\n",
        "process_resident_memory_bytes ",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    drop(watch);
}

#[tokio::test]
async fn a_signing_request_says_who_asks_and_an_approval_why() {
    let server = Server::start().await;
    let mut caller = Caller::of(&server);
    let uri = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let pem = "-----BEGIN CERTIFICATE REQUEST-----\nAA==\n-----END CERTIFICATE REQUEST-----\n";
    use base64::Engine as _;
    let request = base64::engine::general_purpose::STANDARD.encode(pem);
    let object = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": "r"},
        "spec": {"request": request, "signerName": "example.com/s", "usages": ["client auth"], "username": "somebody-else"}});
    let (code, made) = caller.json("POST", uri, object).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["spec"]["username"], "admin");
    assert_eq!(made["spec"]["groups"], json!(["system:masters", "system:authenticated"]));
    let media = "application/merge-patch+json";
    let approved = json!({"type": "Approved", "status": "True", "reason": "r", "message": "m"});
    let patch = json!({"metadata": {"annotations": {"why": "asked"}}, "status": {"conditions": [approved]}});
    let (code, approved) = caller.typed("PATCH", &format!("{uri}/r/approval"), media, patch).await;
    assert_eq!(code, 200, "{approved}");
    assert_eq!(approved["metadata"]["annotations"]["why"], "asked");
    assert_eq!(approved["status"]["conditions"][0]["type"], "Approved");
    let patch = json!({"spec": {"username": "somebody-else"}});
    let (_, same) = caller.typed("PATCH", &format!("{uri}/r"), media, patch).await;
    assert_eq!(same["spec"]["username"], "admin", "{same}");
}

#[tokio::test]
async fn a_runtime_class_must_exist() {
    let server = Server::start().await;
    let mut caller = Caller::of(&server);
    caller.json("POST", "/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
    let pods = "/api/v1/namespaces/default/pods";
    let pod = |name: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"runtimeClassName": "heavy", "containers": [{"name": "c", "image": "i"}]}})
    };
    let (code, refused) = caller.json("POST", pods, pod("a")).await;
    assert_eq!(code, 403, "{refused}");
    let class = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "heavy"}, "handler": "runc",
        "overhead": {"podFixed": {"memory": "64Mi"}}});
    assert_eq!(caller.json("POST", "/apis/node.k8s.io/v1/runtimeclasses", class).await.0, 201);
    let (code, made) = caller.json("POST", pods, pod("a")).await;
    assert_eq!((code, &made["spec"]["overhead"]), (201, &json!({"memory": "64Mi"})), "{made}");
}
