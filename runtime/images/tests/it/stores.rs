//! What stays over restarts: names, pins, records of this and of other versions, and the lock.

use std::fs;

use runtime_images::{Config, Images, Kind, Progress, Reference};

use crate::fake_registry::FakeRegistry;
use crate::sample::{Packing, Sample, Store, Tar, told};

fn image(text: &[u8]) -> Sample {
    Sample::new(&[(Tar::new().file("f", text).bytes(), Packing::Gzip)])
}

#[tokio::test]
async fn names_move_and_survive() {
    let registry = FakeRegistry::start();
    let (old, new) = (image(b"old"), image(b"new"));
    let store = Store::new();
    let reference = registry.reference("app:latest");
    registry.add("app", "latest", &old);
    store.images.pull(&reference, None, Progress::silent()).await.unwrap();
    registry.add("app", "latest", &new);
    store.images.pull(&reference, None, Progress::silent()).await.unwrap();
    store.images.tag(&new.config, &Reference::parse("mine:v1").unwrap()).await.unwrap();
    store.images.set_pinned("mine:v1", true).await.unwrap();

    let store = store.reopen();
    assert_eq!(store.images.list().len(), 2);
    let (left, taken) = (store.images.resolve(&old.config).unwrap(), store.images.resolve("mine:v1").unwrap());
    assert!(left.tags.is_empty() && left.digests.len() == 1 && !left.pinned);
    assert_eq!((taken.id.to_string(), taken.tags.len(), taken.pinned), (new.config.clone(), 2, true));
    assert_eq!(taken.config.config().as_ref().unwrap().env().as_ref().unwrap()[1], "WHO=sample");

    let id = new.config.strip_prefix("sha256:").unwrap();
    for name in [&reference.to_string(), &new.config, id, &id[..12], &new.manifest_digest(), &taken.digests[0]] {
        assert_eq!(store.images.resolve(name).map(|image| image.id), Some(taken.id.clone()), "{name}");
    }
    for name in ["", "no-such", "sha256:", "zz", &"0".repeat(64)] {
        assert!(store.images.resolve(name).is_none(), "{name}");
    }
    store.images.untag("mine:v1").await.unwrap();
    assert!(store.images.resolve("mine:v1").is_none() && store.images.resolve(&new.config).is_some());
    store.images.remove(&new.config).await.unwrap();
    store.images.remove(&old.config).await.unwrap();
    assert!(store.names_in("blobs/sha256").is_empty());
    assert_eq!(store.images.remove("mine:v1").await.unwrap_err().kind(), Kind::NotFound);
}

#[tokio::test]
async fn usage_counts_layers_and_archives() {
    let registry = FakeRegistry::start();
    registry.add("app", "v1", &Sample::small());
    let store = Store::new();
    let before = store.images.fs_usage().unwrap();
    let pulled = store.images.pull(&registry.reference("app:v1"), None, Progress::silent()).await.unwrap();
    let after = store.images.fs_usage().unwrap();
    assert_eq!(before.used, runtime_images::Usage::default());
    assert!(after.used.bytes > 600_000 + pulled.size_bytes && after.used.inodes >= 3, "{after:?}");
    assert!(after.capacity_bytes > after.available_bytes && after.inodes > 0);
    assert!(pulled.size_bytes > 500_000);
}

#[tokio::test]
async fn archives_can_be_discarded() {
    let registry = FakeRegistry::start();
    let sample = Sample::small();
    registry.add("app", "v1", &sample);
    let store = Store::with(|config| config.discard_layer_archives = true);
    store.images.pull(&registry.reference("app:v1"), None, Progress::silent()).await.unwrap();
    assert_eq!(store.names_in("blobs/sha256").len(), 2);
    let to = store.dir.path().join("x.tar");
    let error = store.images.export(&[&sample.config], &to, runtime_images::ExportFormat::Archive).await.unwrap_err();
    assert!(told(&error).contains("is not kept here"), "{}", told(&error));
}

#[tokio::test]
async fn one_process_at_a_time() {
    let store = Store::new();
    let second = Images::open(Config::new(store.dir.path().join("images"))).unwrap_err();
    assert_eq!(second.kind(), Kind::InUse);
    store.reopen();
}

/// The records as version 1 wrote them, byte for byte: a later program must read them.
#[tokio::test]
async fn records_of_version_1_are_read() {
    let config = br#"{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}"#;
    let id = runtime_images::Digest::of(config);
    let layer = runtime_images::Digest::of(b"layer");
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for made in ["blobs/sha256", "l/1a", "layers", "s/2b/fs", "s/2b/work", "snapshots"] {
        fs::create_dir_all(path(made)).unwrap();
    }
    fs::write(path("blobs/sha256").join(id.hex()), config).unwrap();
    let manifest = runtime_images::Digest::of(b"manifest");
    fs::write(path("images.json"), format!(
        r#"{{"version":1,"images":[{{"id":"{id}","manifest":"{manifest}","manifest_media_type":"application/vnd.oci.image.manifest.v1+json","index":null,"tags":["docker.io/library/app:v1"],"digests":["docker.io/library/app@{manifest}"],"layers":["{layer}"],"chain":["{layer}"],"size_bytes":77,"pinned":true}}]}}"#
    )).unwrap();
    fs::write(path("layers").join(format!("sha256-{}.json", layer.hex())), format!(
        r#"{{"version":1,"chain_id":"{layer}","diff_id":"{layer}","parent":null,"name":"1a","bytes":4096,"inodes":1}}"#
    )).unwrap();
    fs::write(
        path("snapshots/2b.json"),
        format!(r#"{{"version":1,"key":"pod/c","image":"{id}","top":"{layer}","name":"2b"}}"#),
    )
    .unwrap();

    let images = Images::open(Config::new(dir.path())).unwrap();
    let image = images.resolve("app:v1").unwrap();
    assert_eq!((image.size_bytes, image.pinned, image.id), (77, true, id));
    let overlay = images.snapshot("pod/c").unwrap();
    assert_eq!((overlay.lower, overlay.upper), (vec![path("l/1a")], path("s/2b/fs")));
    assert_eq!(images.fs_usage().unwrap().used.bytes, 4096 + 77);
    drop(images);

    fs::write(path("images.json"), r#"{"version":99,"images":[]}"#).unwrap();
    let error = Images::open(Config::new(dir.path())).unwrap_err();
    assert!(told(&error).contains("written by a newer one"), "{}", told(&error));
}

#[tokio::test]
async fn what_a_crash_left_is_swept() {
    let store = Store::new();
    let dir = store.dir.path().join("images");
    fs::create_dir_all(dir.join("l/zz/deep")).unwrap();
    fs::create_dir_all(dir.join("s/yy/fs")).unwrap();
    fs::create_dir_all(dir.join("tmp/xx/half")).unwrap();
    fs::write(dir.join("layers/half.new"), "{").unwrap();
    let store = store.reopen();
    assert_eq!(store.names_in("l"), ["empty"]);
    assert!(store.names_in("s").is_empty() && store.names_in("tmp").is_empty() && store.names_in("layers").is_empty());
}

#[tokio::test]
async fn a_damaged_record_costs_nothing_but_itself() {
    let registry = FakeRegistry::start();
    registry.add("app", "v1", &Sample::small());
    let store = Store::new();
    store.images.pull(&registry.reference("app:v1"), None, Progress::silent()).await.unwrap();
    let records = store.dir.path().join("images/layers");
    let victim = std::fs::read_dir(&records).unwrap().next().unwrap().unwrap().path();
    std::fs::write(&victim, "{ cut o").unwrap();
    let dirs = store.names_in("l").len();
    let store = store.reopen();
    assert_eq!(store.names_in("l").len(), dirs, "a container may run on any of them");
    assert_eq!(store.names_in("layers.damaged").len(), 1);
    store.images.pull(&registry.reference("app:v1"), None, Progress::silent()).await.unwrap();
}
