//! Watches that start in the past.

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
};
use serde_json::json;

use crate::server::Server;
use control_plane_apiserver::User;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_from_before_the_history_in_memory_reads_the_store() {
    // More than memory keeps of one kind, in changes of 4 KiB.
    const CHANGES: usize = 1200;
    let server = Server::start().await;
    let client = Client::new(server.api.local_service(User::new("admin", &["system:masters"])), "default");
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    let labelled = |name: &str| json!({"metadata": {"name": name, "labels": {"kept": "yes"}}, "data": {}});
    maps.create(&PostParams::default(), &serde_json::from_value(labelled("m")).unwrap()).await.unwrap();
    maps.create(&PostParams::default(), &serde_json::from_value(labelled("other")).unwrap()).await.unwrap();
    let start = maps.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    for index in 0..CHANGES {
        let patch = Patch::Merge(json!({"data": {"k": format!("{index:04}{}", "x".repeat(4096))}}));
        maps.patch("m", &PatchParams::default(), &patch).await.unwrap();
        if index == 7 {
            let patch = Patch::Merge(json!({"metadata": {"labels": null}}));
            maps.patch("other", &PatchParams::default(), &patch).await.unwrap();
        }
    }
    let watch = maps.watch(&WatchParams::default().labels("kept=yes"), &start).await.unwrap();
    let mut watch = std::pin::pin!(watch);
    let (mut seen, mut gone) = (0, 0);
    while seen < CHANGES {
        match watch.try_next().await.unwrap().unwrap() {
            WatchEvent::Modified(map) => {
                assert!(map.data.unwrap()["k"].starts_with(&format!("{seen:04}")), "in order");
                seen += 1;
            }
            WatchEvent::Deleted(map) => {
                assert_eq!(map.metadata.name.as_deref(), Some("other"), "it no longer matches");
                gone += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(gone, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bookmark_of_an_empty_kind_has_a_version() {
    let server = Server::start().await;
    let client = Client::new(server.api.local_service(User::new("admin", &["system:masters"])), "default");
    let secrets: Api<Secret> = Api::default_namespaced(client);
    let watch = secrets.watch(&WatchParams::default().initial_events(), "").await.unwrap();
    let mut watch = std::pin::pin!(watch);
    match watch.try_next().await.unwrap().unwrap() {
        WatchEvent::Bookmark(bookmark) => assert_ne!(bookmark.metadata.resource_version, "0"),
        other => panic!("{other:?}"),
    }
}
