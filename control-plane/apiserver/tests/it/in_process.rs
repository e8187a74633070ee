//! The Rust client over the server as a service, without a socket: the way controllers, scheduler and kubelet speak to it.

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::json;

use crate::server::Server;
use control_plane_apiserver::User;

fn client(server: &Server, name: &str, groups: &[&str]) -> Client {
    Client::new(server.api.local_service(User::new(name, groups)), "default")
}

fn config_map(name: &str, value: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name, "labels": {"value": value}}, "data": {"k": value}}))
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_its_own_writes_and_watches() {
    let server = Server::start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&server, "admin", &["system:masters"]));
    let list = maps.list(&ListParams::default()).await.unwrap();
    let start = list.metadata.resource_version.unwrap();
    for index in 0..50 {
        maps.create(&PostParams::default(), &config_map(&format!("m{index:02}"), "old")).await.unwrap();
        assert_eq!(maps.list(&ListParams::default()).await.unwrap().items.len(), index + 1);
    }
    let patch = Patch::Merge(json!({"metadata": {"labels": {"value": "new"}}}));
    maps.patch("m07", &PatchParams::default(), &patch).await.unwrap();
    maps.delete("m08", &DeleteParams::default()).await.unwrap();
    let selected = maps.list(&ListParams::default().labels("value=new")).await.unwrap();
    assert_eq!(selected.items.len(), 1);
    // From before the first write: every change, in order.
    let mut watch = maps.watch(&WatchParams::default(), &start).await.unwrap().boxed();
    let mut told = Vec::new();
    while told.len() < 52 {
        let (kind, object) = match watch.try_next().await.unwrap().unwrap() {
            WatchEvent::Added(object) => ("ADDED", object),
            WatchEvent::Modified(object) => ("MODIFIED", object),
            WatchEvent::Deleted(object) => ("DELETED", object),
            other => panic!("{other:?}"),
        };
        told.push((
            kind,
            object.metadata.name.unwrap(),
            object.metadata.resource_version.unwrap().parse::<u64>().unwrap(),
        ));
    }
    assert!(told.is_sorted_by_key(|one| one.2), "{told:?}");
    assert_eq!((told[50].0, told[50].1.as_str()), ("MODIFIED", "m07"));
    assert_eq!((told[51].0, told[51].1.as_str()), ("DELETED", "m08"));
    // Seen through a selector, the object that changed into it appears, and one that changed out of it goes.
    let mut watch = maps.watch(&WatchParams::default().labels("value=old"), &start).await.unwrap().boxed();
    let mut last = None;
    for _ in 0..51 {
        last = watch.try_next().await.unwrap();
    }
    assert!(matches!(last, Some(WatchEvent::Deleted(object)) if object.metadata.name.as_deref() == Some("m07")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reflector_starts_with_a_streamed_list() {
    let server = Server::start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&server, "admin", &["system:masters"]));
    for index in 0..3 {
        maps.create(&PostParams::default(), &config_map(&format!("m{index}"), "v")).await.unwrap();
    }
    for config in [watcher::Config::default(), watcher::Config::default().streaming_lists()] {
        let mut stream = watcher(maps.clone(), config).applied_objects().boxed();
        for _ in 0..3 {
            stream.try_next().await.unwrap().unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubelets_touch_only_what_is_theirs() {
    let server = Server::start().await;
    let admin = client(&server, "admin", &["system:masters"]);
    server.kubectl("create serviceaccount default").await;
    let pod = |name: &str, node: &str| -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"nodeName": node, "containers": [
            {"name": "c", "image": "i", "envFrom": [{"secretRef": {"name": format!("secret-of-{name}")}}]}]}}))
        .unwrap()
    };
    let pods: Api<Pod> = Api::default_namespaced(admin.clone());
    pods.create(&PostParams::default(), &pod("mine", "node-a")).await.unwrap();
    pods.create(&PostParams::default(), &pod("other", "node-b")).await.unwrap();
    for name in ["secret-of-mine", "secret-of-other"] {
        server.kubectl(&format!("create secret generic {name} --from-literal=a=b")).await;
    }
    let kubelet = client(&server, "system:node:node-a", &["system:nodes"]);
    let nodes: Api<Node> = Api::all(kubelet.clone());
    let node = |name: &str| -> Node { serde_json::from_value(json!({"metadata": {"name": name}})).unwrap() };
    nodes.create(&PostParams::default(), &node("node-a")).await.unwrap();
    assert_code(nodes.create(&PostParams::default(), &node("node-b")).await, 403);
    let own: Api<Pod> = Api::default_namespaced(kubelet.clone());
    let status = Patch::Strategic(json!({"status": {"phase": "Running"}}));
    own.patch_status("mine", &PatchParams::default(), &status).await.unwrap();
    assert_code(own.patch_status("other", &PatchParams::default(), &status).await, 403);
    let secrets: Api<k8s_openapi::api::core::v1::Secret> = Api::default_namespaced(kubelet);
    secrets.get("secret-of-mine").await.unwrap();
    assert_code(secrets.get("secret-of-other").await, 403);
    assert_code(secrets.list(&ListParams::default()).await, 403);
    // Asked to go, the pod waits for its kubelet; the kubelet's second deletion ends it.
    let gone = pods.delete("mine", &DeleteParams::default()).await.unwrap();
    assert!(gone.left().is_some_and(|pod| pod.metadata.deletion_timestamp.is_some()));
    own.delete("mine", &DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() }).await.unwrap();
    assert_code(pods.get("mine").await, 404);
}

#[track_caller]
fn assert_code<T: std::fmt::Debug>(outcome: Result<T, kube::Error>, code: u16) {
    match outcome {
        Err(kube::Error::Api(status)) => assert_eq!(status.code, code, "{status:?}"),
        other => panic!("expected {code}, got {other:?}"),
    }
}
