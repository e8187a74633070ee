//! Prepared snapshots, mounted for real.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use runtime_images::{Kind, Overlay};

use crate::sample::{Packing, Sample, Store, Tar};

struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(overlay: &Overlay) -> Self {
        let target = tempfile::tempdir().unwrap();
        let lower: Vec<String> = overlay.lower.iter().map(|dir| dir.display().to_string()).collect();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.join(":"),
            overlay.upper.display(),
            overlay.work.display()
        );
        mount(Some("overlay"), target.path(), Some("overlay"), MsFlags::empty(), Some(options.as_str())).unwrap();
        Self(target)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

async fn import(store: &Store, sample: &Sample, name: &str) {
    let layout = tempfile::tempdir().unwrap();
    sample.write_layout(layout.path(), name);
    store.images.import(layout.path(), None).await.unwrap();
}

#[tokio::test]
async fn layers_merge_as_their_whiteouts_say() {
    let layers = [
        Tar::new().dir("./", 0o751).dir("tmp", 0o1777).dir("opaque", 0o755).file("opaque/old", b"1").file("gone", b"1"),
        Tar::new()
            .file("tmp/from-two", b"2")
            .file(".wh.gone", b"")
            .file("opaque/.wh..wh..opq", b"")
            .file("opaque/new", b"2"),
        Tar::new().file("three", b"3"),
    ];
    let layers: Vec<_> = layers.into_iter().map(|tar| (tar.bytes(), Packing::Gzip)).collect();
    let store = Store::new();
    import(&store, &Sample::new(&layers), "q.io/app:v1").await;
    let overlay = store.images.prepare("q.io/app:v1", "pod/container 1").await.unwrap();
    assert_eq!(overlay.lower.len(), 3);
    let mounted = Mounted::new(&overlay);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&mounted.path("")), mode(&mounted.path("tmp"))), (0o751, 0o1777));
    assert!(!mounted.path("gone").exists() && !mounted.path("opaque/old").exists());
    for (name, text) in [("opaque/new", "2"), ("three", "3"), ("tmp/from-two", "2")] {
        assert_eq!(fs::read_to_string(mounted.path(name)).unwrap(), text);
    }
    fs::write(mounted.path("written"), vec![7; 100_000]).unwrap();
    let usage = store.images.usage("pod/container 1").await.unwrap();
    assert!(usage.bytes >= 100_000 && usage.inodes == 1, "{usage:?}");
    assert!(fs::read_dir(&overlay.lower[0]).unwrap().all(|entry| entry.unwrap().file_name() != "written"));
}

#[tokio::test]
async fn many_layers_fit_one_mount() {
    let layers: Vec<_> = (0..100).map(|n| (Tar::new().file(&format!("f{n}"), b"x").bytes(), Packing::Plain)).collect();
    let store = Store::new();
    import(&store, &Sample::new(&layers), "q.io/deep:v1").await;
    let overlay = store.images.prepare("q.io/deep:v1", "k").await.unwrap();
    let mounted = Mounted::new(&overlay);
    assert!((0..100).all(|n| mounted.path(&format!("f{n}")).exists()));
}

#[tokio::test]
async fn an_image_without_layers_is_an_empty_directory() {
    let store = Store::new();
    import(&store, &Sample::new(&[]), "q.io/empty:v1").await;
    let mounted = Mounted::new(&store.images.prepare("q.io/empty:v1", "k").await.unwrap());
    fs::write(mounted.path("f"), "x").unwrap();
}

#[tokio::test]
async fn snapshots_live_and_die() {
    let store = Store::new();
    import(&store, &Sample::small(), "q.io/app:v1").await;
    import(&store, &Sample::new(&[]), "q.io/other:v1").await;
    let overlay = store.images.prepare("q.io/app:v1", "k").await.unwrap();
    fs::write(overlay.upper.join("kept"), "x").unwrap();
    assert_eq!(store.images.prepare("q.io/app:v1", "k").await.unwrap(), overlay);
    assert_eq!(store.images.prepare("q.io/other:v1", "k").await.unwrap_err().kind(), Kind::InUse);
    assert_eq!(store.images.prepare("q.io/none", "k2").await.unwrap_err().kind(), Kind::NotFound);

    // The image goes, its layers stay for the snapshot, over a restart and a collection too.
    store.images.remove("q.io/app:v1").await.unwrap();
    assert!(store.images.resolve("q.io/app:v1").is_none());
    let store = store.reopen();
    store.images.collect_garbage().await.unwrap();
    assert_eq!(store.images.snapshot("k").unwrap(), overlay);
    assert_eq!(fs::read_to_string(overlay.upper.join("kept")).unwrap(), "x");
    assert_eq!(fs::read_to_string(Mounted::new(&overlay).path("etc/name")).unwrap(), "top");

    store.images.release("k").await.unwrap();
    store.images.release("k").await.unwrap();
    assert!(store.images.snapshots().is_empty());
    let collected = store.images.collect_garbage().await.unwrap();
    assert_eq!(collected.layers, 2);
    assert_eq!(store.names_in("l"), ["empty"]);
    assert!(store.names_in("s").is_empty() && store.names_in("tmp").is_empty());
}
