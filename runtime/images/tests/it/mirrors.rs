//! Mirrors: which is asked, in what order, with what, and what happens when one is bad.

use std::fs;

use runtime_images::{Auth, Kind, Progress, Reference};
use tempfile::TempDir;

use crate::fake_registry::{Answer, FakeRegistry};
use crate::sample::{Sample, Store, told};

fn configured(files: &[(&str, String)]) -> (Store, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::create_dir_all(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("hosts.toml"), text).unwrap();
    }
    let store = Store::with(|config| config.registries_dir = Some(dir.path().to_owned()));
    (store, dir)
}

fn mirror(registry: &FakeRegistry) -> String {
    format!("[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n", registry.address)
}

#[tokio::test]
async fn a_mirror_stands_in_for_a_registry_that_is_not_there() {
    let registry = FakeRegistry::start();
    registry.add("library/nginx", "1.27", &Sample::small());
    for place in ["docker.io", "_default"] {
        let (store, _dir) = configured(&[(place, mirror(&registry))]);
        let reference = Reference::parse("nginx:1.27").unwrap();
        let auth = Some(Auth::basic("ann", "secret"));
        let image = store.images.pull(&reference, auth, Progress::silent()).await.unwrap();
        assert_eq!(image.tags, ["docker.io/library/nginx:1.27"]);
    }
    assert!(
        registry.seen().iter().all(|r| r.path.ends_with("?ns=docker.io") && !r.headers.contains_key("authorization"))
    );
}

#[tokio::test]
async fn bad_mirrors_are_passed_over() {
    let sample = Sample::small();
    let broken = FakeRegistry::with(|_, _| Answer::of(500, b"<html>"));
    let liar = FakeRegistry::with(|request, mut honest| {
        if request.path.contains("/blobs/") {
            honest.body.reverse()
        }
        honest
    });
    let down = "127.0.0.1:1";
    let good = FakeRegistry::start();
    for registry in [&liar, &good] {
        registry.add("app", "v1", &sample);
    }
    let text = format!("[host.\"http://{down}\"]\n{}server = \"http://{}\"\n", "", good.address);
    // TOML wants the plain key before the tables.
    let text = text.lines().rev().collect::<Vec<_>>().join("\n");
    let (store, _dir) = configured(&[("q.example", format!("{text}\n{}", mirror(&broken)))]);
    let reference = Reference::parse("q.example/app:v1").unwrap();
    store.images.pull(&reference, None, Progress::silent()).await.unwrap();
    assert!(!broken.seen().is_empty());

    // What a mirror falsifies is found out by its digest, and named.
    let (store, _dir) = configured(&[("q.example", mirror(&liar))]);
    let error = store.images.pull(&reference, None, Progress::silent()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{}", told(&error));
    assert!(store.images.list().is_empty());

    // With the registry in reach, the liar is no more than a detour.
    let text = format!("server = \"http://{}\"\n{}", good.address, mirror(&liar));
    let (store, _dir) = configured(&[("q.example", text)]);
    store.images.pull(&reference, None, Progress::silent()).await.unwrap();
    assert!(!liar.layer_requests(&sample).is_empty());
}

#[tokio::test]
async fn all_failures_are_told() {
    let empty = FakeRegistry::start();
    let (store, _dir) = configured(&[("nowhere.invalid", mirror(&empty))]);
    let reference = Reference::parse("nowhere.invalid/app").unwrap();
    let error = store.images.pull(&reference, None, Progress::silent()).await.unwrap_err();
    let text = told(&error);
    assert!(text.contains(&empty.address) && text.contains("does not resolve"), "{text}");

    let (store, _dir) = configured(&[("q.example", "server = 7".to_owned())]);
    let error =
        store.images.pull(&Reference::parse("q.example/a").unwrap(), None, Progress::silent()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(told(&error).contains("hosts.toml"), "{}", told(&error));
}
