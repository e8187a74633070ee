//! Pulling what is in order: platforms, media types, compressions, progress, sharing.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use runtime_images::{Digest, Event, Kind, Progress};
use serde_json::json;

use crate::fake_registry::{Answer, FakeRegistry};
use crate::sample::{DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Packing, Sample, Store, Tar, told};

#[tokio::test]
async fn an_index_gives_the_manifest_for_this_platform() {
    let registry = FakeRegistry::start();
    let layer = |text: &[u8]| vec![(Tar::new().file("which", text).bytes(), Packing::Gzip)];
    let arm = Sample::with_platform(&layer(b"arm"), "linux", "arm64", OCI_MANIFEST);
    let amd = Sample::with_platform(&layer(b"amd"), "linux", "amd64", OCI_MANIFEST);
    registry.add("app", "arm", &arm);
    registry.add("app", "amd", &amd);
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX,
        "manifests": [arm.descriptor("linux", "arm64"), amd.descriptor("linux", "amd64")]});
    registry.put("app/manifests/multi", OCI_INDEX, index.to_string().as_bytes());
    let only = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [arm.descriptor("linux", "arm64")]});
    registry.put("app/manifests/only", OCI_INDEX, only.to_string().as_bytes());

    let store = Store::new();
    let pull = |tag: &str| {
        let (images, reference) = (store.images.clone(), registry.reference(&format!("app:{tag}")));
        async move { images.pull(&reference, None, Progress::silent()).await }
    };
    let image = pull("multi").await.unwrap();
    assert_eq!(image.id.to_string(), amd.config);
    let index_digest = runtime_images::Digest::of(index.to_string().as_bytes());
    assert!(image.digests[0].ends_with(&format!("@{index_digest}")));
    // By the index's digest too, as a kubelet asks after a pull.
    assert!(store.images.resolve(&image.digests[0]).is_some());
    for tag in ["only", "arm"] {
        let error = pull(tag).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Platform);
        assert!(told(&error).contains("linux/arm64"), "{}", told(&error));
    }
}

#[tokio::test]
async fn media_types_and_compressions() {
    let registry = FakeRegistry::start();
    let store = Store::new();
    let one = Tar::new().file("one", b"1").bytes();
    let two = Tar::new().file("two", b"2").bytes();
    let docker = Sample::with_platform(&[(one.clone(), Packing::Gzip)], "linux", "amd64", DOCKER_MANIFEST);
    let mixed = Sample::new(&[(one.clone(), Packing::Plain), (two, Packing::Zstd), (one, Packing::Gzip)]);
    for (tag, sample) in [("docker", &docker), ("mixed", &mixed), ("empty", &Sample::new(&[]))] {
        registry.add("app", tag, sample);
        let reference = registry.reference(&format!("app:{tag}"));
        let image = store.images.pull(&reference, None, Progress::silent()).await.unwrap();
        assert_eq!(image.id.to_string(), sample.config, "{tag}");
    }
    let chart = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [],
        "config": {"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": docker.config, "size": 3}});
    registry.put("app/manifests/chart", OCI_MANIFEST, chart.to_string().as_bytes());
    registry.put(
        "app/manifests/old",
        "application/vnd.docker.distribution.manifest.v1+json",
        br#"{"schemaVersion":1}"#,
    );
    registry.put("app/manifests/nonsense", OCI_MANIFEST, b"<html>");
    for (tag, kind, word) in [
        ("chart", Kind::Platform, "helm"),
        ("old", Kind::Platform, "schema 1"),
        ("nonsense", Kind::Corrupt, "not valid"),
    ] {
        let reference = registry.reference(&format!("app:{tag}"));
        let error = store.images.pull(&reference, None, Progress::silent()).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{tag}");
        assert!(told(&error).contains(word), "{}", told(&error));
    }
}

#[tokio::test]
async fn pulls_of_one_image_are_one_pull() {
    let registry = FakeRegistry::start();
    let sample = Sample::small();
    registry.add("app", "v1", &sample);
    let store = Store::new();
    let reference = registry.reference("app:v1");
    let events = Arc::new(Mutex::new(Vec::new()));
    let pulls = (0..8).map(|_| {
        let (images, reference, events) = (store.images.clone(), reference.clone(), Arc::clone(&events));
        let progress = Progress::to(move |event| events.lock().unwrap().push(event));
        async move { images.pull(&reference, None, progress).await }
    });
    let results = futures::future::join_all(pulls).await;
    assert!(results.iter().all(|result| result.as_ref().unwrap().id.to_string() == sample.config));
    assert_eq!(registry.layer_requests(&sample).len(), 2);
    let events = events.lock().unwrap();
    let count = |wanted: fn(&Event) -> bool| events.iter().filter(|event| wanted(event)).count();
    assert_eq!(count(|event| matches!(event, Event::Resolved { layers: 2, .. })), 8);
    assert_eq!(count(|event| matches!(event, Event::LayerDone { .. })), 16);
}

#[tokio::test]
async fn shared_layers_are_fetched_once() {
    let registry = FakeRegistry::start();
    let base = (Tar::new().file("base", &[1; 50_000]).bytes(), Packing::Gzip);
    let one = Sample::new(&[base.clone(), (Tar::new().file("one", b"1").bytes(), Packing::Gzip)]);
    // The same layer twice in one image, as empty layers often are.
    let two = Sample::new(&[base.clone(), base.clone(), (Tar::new().file("two", b"2").bytes(), Packing::Gzip)]);
    registry.add("one", "v1", &one);
    registry.add("two", "v1", &two);
    let store = Store::new();
    let (one_name, two_name) = (registry.reference("one:v1"), registry.reference("two:v1"));
    let (a, b) = tokio::join!(
        store.images.pull(&one_name, None, Progress::silent()),
        store.images.pull(&two_name, None, Progress::silent()),
    );
    let (a, b) = (a.unwrap(), b.unwrap());
    let base_requests = registry.seen().iter().filter(|request| request.path.contains(&one.layers[0])).count();
    assert_eq!(base_requests, 1);
    assert_ne!(a.id, b.id);
    // base, one, base over base, two; and the directory for images without layers.
    assert_eq!(store.names_in("l").len(), 5);
}

#[tokio::test]
async fn an_index_may_name_an_index_but_not_for_ever() {
    let sample = Sample::small();
    let inner = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [sample.descriptor("linux", "amd64")]});
    for (depth, is_taken) in [(1, true), (2, true), (4, true), (5, false)] {
        let registry = FakeRegistry::start();
        registry.add("app", "inner", &sample);
        let mut index = inner.to_string().into_bytes();
        for _ in 1..depth {
            let digest = Digest::of(&index).to_string();
            registry.put(&format!("app/manifests/{digest}"), OCI_INDEX, &index);
            let descriptor = json!({"mediaType": OCI_INDEX, "digest": digest, "size": index.len(),
                "platform": {"os": "linux", "architecture": "amd64"}});
            index =
                json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [descriptor]}).to_string().into_bytes();
        }
        registry.put("app/manifests/v1", OCI_INDEX, &index);
        let store = Store::new();
        let pulled = store.images.pull(&registry.reference("app:v1"), None, Progress::silent()).await;
        assert_eq!(pulled.is_ok(), is_taken, "{depth} deep: {:?}", pulled.err().map(|error| told(&error)));
    }
}

#[tokio::test]
async fn a_registry_that_asks_for_a_pause_gets_it() {
    let refusals = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&refusals);
    let registry = FakeRegistry::with(move |request, honest| {
        if request.path.contains("/manifests/v1") && counted.fetch_add(1, Ordering::Relaxed) == 0 {
            return Answer::of(429, b"").header("Retry-After", "1");
        }
        honest
    });
    registry.add("app", "v1", &Sample::small());
    let began = std::time::Instant::now();
    Store::new().images.pull(&registry.reference("app:v1"), None, Progress::silent()).await.unwrap();
    assert!(began.elapsed() >= std::time::Duration::from_secs(1), "the pause was not kept");
}

#[tokio::test]
async fn a_wrong_size_is_told_also_when_the_layer_is_here() {
    let sample = Sample::small();
    let mut lying = sample.clone();
    let mut manifest: serde_json::Value = serde_json::from_slice(&sample.manifest).unwrap();
    manifest["layers"][0]["size"] = json!(7);
    lying.manifest = manifest.to_string().into_bytes();
    let registry = FakeRegistry::start();
    registry.add("app", "v1", &sample);
    registry.add("app", "v2", &lying);
    let store = Store::new();
    store.images.pull(&registry.reference("app:v1"), None, Progress::silent()).await.unwrap();
    let error = store.images.pull(&registry.reference("app:v2"), None, Progress::silent()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{}", told(&error));
}
