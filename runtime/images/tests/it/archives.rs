//! Import and export, there and back.

use std::fs;
use std::io::Write as _;

use runtime_images::{ExportFormat, Kind, Reference};
use serde_json::json;

use crate::sample::{OCI_INDEX, Packing, Sample, Store, Tar, pack, told};

async fn imported(sample: &Sample, name: &str) -> Store {
    let layout = tempfile::tempdir().unwrap();
    sample.write_layout(layout.path(), name);
    let store = Store::new();
    store.images.import(layout.path(), None).await.unwrap();
    store
}

#[tokio::test]
async fn there_and_back_in_every_form() {
    let sample = Sample::small();
    let store = imported(&sample, "q.io/app:v1").await;
    let dir = tempfile::tempdir().unwrap();
    let (tar, layout, packed) = (dir.path().join("a.tar"), dir.path().join("layout"), dir.path().join("a.tar.gz"));
    store.images.export(&["q.io/app:v1"], &tar, ExportFormat::Archive).await.unwrap();
    store.images.export(&["q.io/app:v1"], &layout, ExportFormat::Directory).await.unwrap();
    fs::write(&packed, pack(&fs::read(&tar).unwrap(), Packing::Gzip)).unwrap();
    for path in [&tar, &layout, &packed] {
        let other = Store::new();
        let images = other.images.import(path, None).await.unwrap();
        assert_eq!((images.len(), images[0].id.to_string()), (1, sample.config.clone()));
        assert_eq!(images[0].tags, ["q.io/app:v1"]);
        assert!(other.names_in("tmp").is_empty(), "{}", path.display());
        // A layout without the names, as a docker-archive.
    }
    let occupied = store.images.export(&["q.io/app:v1"], &layout, ExportFormat::Directory).await.unwrap_err();
    assert_eq!(occupied.kind(), Kind::Invalid);
    let missing = store.images.export(&["q.io/none"], &tar, ExportFormat::Archive).await.unwrap_err();
    assert_eq!(missing.kind(), Kind::NotFound);
}

/// As `docker save` of old wrote it: a directory per layer, and a link where two are the same.
#[tokio::test]
async fn a_docker_archive() {
    let base = Tar::new().file("base", b"1").bytes();
    let sample = Sample::new(&[(base.clone(), Packing::Plain), (base.clone(), Packing::Plain)]);
    let manifest = json!([{"Config": "c.json", "RepoTags": ["app:v1", "q.io/app:v2"], "Layers": ["one/layer.tar", "two/layer.tar"]}]);
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |kind, name: &str, link: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        if link.is_empty() {
            archive.append_data(&mut header, name, bytes).unwrap();
        } else {
            archive.append_link(&mut header, name, link).unwrap();
        }
    };
    add(tar::EntryType::Regular, "one/layer.tar", "", &base);
    add(tar::EntryType::Symlink, "two/layer.tar", "../one/layer.tar", b"");
    add(tar::EntryType::Regular, "c.json", "", &sample.blobs[&sample.config]);
    add(tar::EntryType::Regular, "manifest.json", "", manifest.to_string().as_bytes());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("docker.tar");
    fs::write(&path, archive.into_inner().unwrap()).unwrap();

    let store = Store::new();
    let images = store.images.import(&path, None).await.unwrap();
    assert_eq!(images[0].tags, ["docker.io/library/app:v1", "q.io/app:v2"]);
    let overlay = store.images.prepare("app:v1", "k").await.unwrap();
    assert_eq!(fs::read(overlay.lower[0].join("base")).unwrap(), b"1");
    // What was imported can be sent on.
    store.images.export(&["app:v1"], &dir.path().join("again.tar"), ExportFormat::Archive).await.unwrap();

    let store = Store::new();
    let name = Reference::parse("mine:v9").unwrap();
    assert_eq!(store.images.import(&path, Some(&name)).await.unwrap()[0].tags, ["docker.io/library/mine:v9"]);
}

#[tokio::test]
async fn a_layout_with_an_index_inside() {
    let amd = Sample::small();
    let arm = Sample::with_platform(&[], "linux", "arm64", crate::sample::OCI_MANIFEST);
    let dir = tempfile::tempdir().unwrap();
    amd.write_layout(dir.path(), "x:1");
    arm.write_layout(dir.path(), "x:1");
    let inner = json!({"schemaVersion": 2, "mediaType": OCI_INDEX,
        "manifests": [arm.descriptor("linux", "arm64"), amd.descriptor("linux", "amd64")]});
    let inner = inner.to_string().into_bytes();
    let digest = runtime_images::Digest::of(&inner);
    fs::write(dir.path().join("blobs/sha256").join(digest.hex()), &inner).unwrap();
    let entry = |name: &str| {
        json!({"mediaType": OCI_INDEX, "digest": digest, "size": inner.len(),
            "annotations": {"io.containerd.image.name": name}})
    };
    let index = json!({"schemaVersion": 2, "manifests": [entry("q.io/a:1"), entry("q.io/b:1")]});
    fs::write(dir.path().join("index.json"), index.to_string()).unwrap();
    let store = Store::new();
    let images = store.images.import(dir.path(), None).await.unwrap();
    assert_eq!((images.len(), images[0].id.to_string()), (1, amd.config.clone()));
    assert_eq!(images[0].tags, ["q.io/a:1", "q.io/b:1"]);
}

#[tokio::test]
async fn bad_archives_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::small();
    let corrupt = dir.path().join("corrupt");
    sample.write_layout(&corrupt, "q.io/app:v1");
    let victim = corrupt.join("blobs/sha256").join(&sample.layers[0]["sha256:".len()..]);
    let mut bytes = fs::read(&victim).unwrap();
    bytes[1000] ^= 1;
    fs::write(&victim, bytes).unwrap();
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let text = dir.path().join("text");
    fs::File::create(&text).unwrap().write_all(b"hello, this is no archive at all").unwrap();
    let missing = dir.path().join("missing.tar");
    let gone = dir.path().join("gone");
    sample.write_layout(&gone, "q.io/app:v1");
    fs::remove_file(gone.join("blobs/sha256").join(&sample.config["sha256:".len()..])).unwrap();

    let store = Store::new();
    for (path, kind, word) in [
        (&corrupt, Kind::Corrupt, sample.layers[0].as_str()),
        (&empty, Kind::Invalid, "neither"),
        (&text, Kind::Invalid, "neither"),
        (&missing, Kind::NotFound, "missing.tar"),
        (&gone, Kind::Invalid, &sample.config["sha256:".len()..]),
    ] {
        let error = store.images.import(path, None).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{}", told(&error));
        assert!(told(&error).contains(word), "{}", told(&error));
    }
    assert!(store.images.list().is_empty() && store.is_emptied("tmp").await);
}
