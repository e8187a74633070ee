//! What goes wrong on the way: broken connections, corrupt and cut blobs, giving up, dying, full disks.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use runtime_images::{Config, Event, Images, Kind, Progress, Reference};

use crate::fake_registry::{Answer, FakeRegistry};
use crate::sample::{Packing, Sample, Store, Tar, noise, told};

fn blob(path: &str) -> bool {
    path.contains("/blobs/")
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_broke() {
    let sample = Sample::small();
    let big = sample.layers[0].clone();
    for ranges_known in [true, false] {
        let (breaks, wanted) = (Arc::new(AtomicUsize::new(0)), big.clone());
        let registry = FakeRegistry::with(move |request, mut honest| {
            if request.path.contains(&wanted) {
                if !ranges_known && honest.status == 206 {
                    honest = Answer::of(200, b"");
                    honest.body = Sample::small().blobs[&wanted].clone();
                }
                if breaks.fetch_add(1, Ordering::Relaxed) < 2 {
                    honest.break_after = Some(honest.body.len() / 2);
                }
            }
            honest
        });
        registry.add("app", "v1", &sample);
        let store = Store::new();
        store.images.pull(&registry.reference("app:v1"), None, Progress::silent()).await.unwrap();
        let ranges: Vec<Option<String>> = registry
            .seen()
            .into_iter()
            .filter(|request| request.path.contains(&big))
            .map(|request| request.headers.get("range").cloned())
            .collect();
        assert_eq!(ranges.len(), 3);
        assert!(ranges[0].is_none() && ranges[1].is_some() && ranges[2].is_some());
    }
}

#[tokio::test]
async fn the_next_process_resumes_what_a_dead_one_began() {
    let sample = Sample::small();
    let big = sample.layers[0].clone();
    let honest_from_now = Arc::new(AtomicUsize::new(0));
    let (switch, wanted) = (Arc::clone(&honest_from_now), big.clone());
    let registry = FakeRegistry::with(move |request, mut honest| {
        if request.path.contains(&wanted) && switch.load(Ordering::Relaxed) == 0 {
            // Answers so that no attempt gets further than the first half.
            let half = Sample::small().blobs[&wanted].len() / 2;
            let have = request.headers.get("range").map_or(0, |_| half);
            honest.break_after = Some(half - have);
        }
        honest
    });
    registry.add("app", "v1", &sample);
    let store = Store::new();
    let reference = registry.reference("app:v1");
    let error = store.images.pull(&reference, None, Progress::silent()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{}", told(&error));
    assert_eq!(store.names_in("partial").len(), 1);

    let store = store.reopen();
    honest_from_now.store(1, Ordering::Relaxed);
    let before = registry.seen().len();
    let resumed = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&resumed);
    let progress = Progress::to(move |event| {
        if let Event::LayerStarted { resumed_bytes, .. } = event {
            seen.fetch_max(usize::try_from(resumed_bytes).unwrap(), Ordering::Relaxed);
        }
    });
    store.images.pull(&reference, None, progress).await.unwrap();
    let again = registry.seen()[before..].iter().find(|r| r.path.contains(&big)).unwrap().headers.get("range").cloned();
    let have = resumed.load(Ordering::Relaxed);
    assert!(have > 0);
    assert_eq!(again, Some(format!("bytes={have}-")));
    assert!(store.names_in("partial").is_empty() && store.names_in("tmp").is_empty());
}

/// What `the_next_process_resumes_after_a_kill` kills. Does nothing by itself.
#[tokio::test]
async fn pull_until_killed() {
    let (Ok(dir), Ok(image)) = (std::env::var(KILLED_DIR), std::env::var(KILLED_IMAGE)) else { return };
    let images = Images::open(Config::new(dir)).unwrap();
    let outcome = images.pull(&Reference::parse(&image).unwrap(), None, Progress::silent()).await;
    panic!("the pull was to be killed, but ended: {outcome:?}");
}

const KILLED_DIR: &str = "SAMPAN_TEST_KILLED_DIR";
const KILLED_IMAGE: &str = "SAMPAN_TEST_KILLED_IMAGE";

#[tokio::test]
async fn the_next_process_resumes_after_a_kill() {
    let sample = Sample::small();
    let big = sample.layers[0].clone();
    let (stalled, wanted) = (Arc::new(AtomicUsize::new(1)), big.clone());
    let switch = Arc::clone(&stalled);
    let registry = FakeRegistry::with(move |request, mut honest| {
        if request.path.contains(&wanted) && switch.load(Ordering::Relaxed) == 1 {
            honest.stall_after = Some(honest.body.len() / 2);
        }
        honest
    });
    registry.add("app", "v1", &sample);
    let reference = registry.reference("app:v1");
    let dir = tempfile::tempdir().unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "faults::pull_until_killed", "--nocapture"])
        .env(KILLED_DIR, dir.path())
        .env(KILLED_IMAGE, reference.to_string())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let partial = dir.path().join("partial").join(big.replace(':', "-"));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while fs::metadata(&partial).map_or(0, |meta| meta.len()) < 100_000 {
        assert!(std::time::Instant::now() < deadline, "the child writes no partial file");
        tokio::task::yield_now().await;
    }
    child.kill().unwrap();
    child.wait().unwrap();

    stalled.store(0, Ordering::Relaxed);
    let before = registry.seen().len();
    let images = Images::open(Config::new(dir.path())).unwrap();
    assert!(fs::read_dir(dir.path().join("tmp")).unwrap().next().is_none());
    images.pull(&reference, None, Progress::silent()).await.unwrap();
    let again = registry.seen()[before..].iter().find(|r| r.path.contains(&big)).unwrap().headers.get("range").cloned();
    assert!(again.is_some_and(|range| range != "bytes=0-"));
}

#[tokio::test]
async fn collecting_garbage_never_harms_a_pull() {
    let registry = FakeRegistry::start();
    registry.add("app", "v1", &Sample::small());
    let store = Store::new();
    let reference = registry.reference("app:v1");
    let stop = tokio_util::sync::CancellationToken::new();
    let (images, until) = (store.images.clone(), stop.clone());
    let collecting = tokio::spawn(async move {
        while !until.is_cancelled() {
            images.collect_garbage().await.unwrap();
        }
    });
    for _ in 0..10 {
        let image = store.images.pull(&reference, None, Progress::silent()).await.unwrap();
        let overlay = store.images.prepare(&image.id.to_string(), "k").await.unwrap();
        store.images.remove(&image.id.to_string()).await.unwrap();
        assert_eq!(fs::read_to_string(overlay.lower[0].join("etc/name")).unwrap(), "top");
        store.images.release("k").await.unwrap();
    }
    stop.cancel();
    collecting.await.unwrap();
}

#[tokio::test]
async fn a_damaged_partial_file_is_not_believed() {
    let sample = Sample::small();
    let registry = FakeRegistry::start();
    registry.add("app", "v1", &sample);
    let store = Store::new();
    let partial = sample.layers[0].replace(':', "-");
    fs::write(store.dir.path().join("images/partial").join(partial), vec![0; 1000]).unwrap();
    store.images.pull(&registry.reference("app:v1"), None, Progress::silent()).await.unwrap();
    assert_eq!(registry.layer_requests(&sample).iter().filter(|r| r.path.contains(&sample.layers[0])).count(), 2);
}

#[tokio::test]
async fn corrupt_and_cut_blobs_are_refused_by_name() {
    let sample = Sample::small();
    let victims = [(sample.layers[0].clone(), "layer"), (sample.config.clone(), "configuration")];
    for (victim, word) in victims {
        for fault in ["flipped", "cut", "longer", "gone"] {
            let wanted = victim.clone();
            let registry = FakeRegistry::with(move |request, mut honest| {
                if blob(&request.path) && request.path.contains(&wanted) && honest.status < 300 {
                    let last = honest.body.len() - 1;
                    match fault {
                        "flipped" => honest.body[last] ^= 1,
                        "cut" => honest.body.truncate(last),
                        "longer" => honest.body.push(0),
                        _ => return Answer::of(404, b""),
                    }
                }
                honest
            });
            registry.add("app", "v1", &sample);
            let store = Store::new();
            let error = store.images.pull(&registry.reference("app:v1"), None, Progress::silent()).await.unwrap_err();
            let text = told(&error);
            let kind = if fault == "gone" { Kind::NotFound } else { Kind::Corrupt };
            assert_eq!(error.kind(), kind, "{fault} {word}: {text}");
            assert!(text.contains(&victim), "{fault} {word}: {text}");
            assert!(store.images.list().is_empty());
            assert!(store.is_emptied("tmp").await, "{fault} {word}");
        }
    }
}

#[tokio::test]
async fn a_layer_that_is_not_what_the_configuration_says() {
    let mut sample = Sample::small();
    // The blob is intact, but the configuration promises another content.
    let config = String::from_utf8(sample.blobs[&sample.config].clone()).unwrap();
    let diff_id = config.split("sha256:").nth(1).unwrap()[..64].to_owned();
    let config = config.replace(&diff_id, &"0".repeat(64)).into_bytes();
    let digest = runtime_images::Digest::of(&config).to_string();
    let manifest = String::from_utf8(sample.manifest.clone()).unwrap().replace(&sample.config, &digest);
    sample.blobs.insert(digest.clone(), config);
    (sample.config, sample.manifest) = (digest, manifest.into_bytes());
    let registry = FakeRegistry::start();
    registry.add("app", "v1", &sample);
    let store = Store::new();
    let error = store.images.pull(&registry.reference("app:v1"), None, Progress::silent()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(told(&error).contains(&"0".repeat(64)), "{}", told(&error));
}

#[tokio::test]
async fn a_pull_given_up_leaves_nothing_running_or_half_done() {
    let sample = Sample::small();
    let registry = FakeRegistry::start();
    registry.add("app", "v1", &sample);
    let store = Store::new();
    let reference = registry.reference("app:v1");
    for polls in 0..40 {
        let pull = store.images.pull(&reference, None, Progress::silent());
        let mut pull = Box::pin(pull);
        for _ in 0..polls {
            let _ = futures::poll!(&mut pull);
            tokio::task::yield_now().await;
        }
        drop(pull);
    }
    store.images.pull(&reference, None, Progress::silent()).await.unwrap();
    let store = store.reopen();
    assert_eq!(store.images.list().len(), 1);
    assert!(store.names_in("tmp").is_empty() && store.names_in("partial").is_empty());
}

#[tokio::test]
async fn hosts_that_are_not_there() {
    let store = Store::new();
    let check = async |image: &str, kind: Kind, word: &str| {
        let reference = Reference::parse(image).unwrap();
        let error = store.images.pull(&reference, None, Progress::silent()).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{}", told(&error));
        assert!(told(&error).contains(word), "{}", told(&error));
    };
    check("no-such-host.invalid/app", Kind::Unavailable, "does not resolve").await;
    check("127.0.0.1:1/app", Kind::Unavailable, "cannot connect").await;
}

/// A filesystem of four MiB. Unmounted when dropped.
struct Tiny(tempfile::TempDir);

impl Tiny {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        mount(Some("tiny"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some("size=4m")).unwrap();
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
async fn a_full_disk_is_told_and_cleaned_up() {
    let registry = FakeRegistry::start();
    let zeros = Sample::new(&[(Tar::new().file("zeros", &vec![0; 8 << 20]).bytes(), Packing::Gzip)]);
    let noise = noise(8 << 20);
    let noise = Sample::new(&[(Tar::new().file("noise", &noise).bytes(), Packing::Plain)]);
    let fits = Sample::small();
    for (tag, sample) in [("zeros", &zeros), ("noise", &noise), ("fits", &fits)] {
        registry.add("app", tag, sample);
    }
    let tiny = Tiny::new();
    let images = Images::open(Config::new(tiny.path().join("images"))).unwrap();
    for tag in ["zeros", "noise"] {
        let reference = registry.reference(&format!("app:{tag}"));
        let error = images.pull(&reference, None, Progress::silent()).await.unwrap_err();
        assert_eq!(error.kind(), Kind::NoSpace, "{tag}: {}", told(&error));
        assert!(told(&error).contains("no space left"), "{}", told(&error));
    }
    images.collect_garbage().await.unwrap();
    // The room is there again.
    images.pull(&registry.reference("app:fits"), None, Progress::silent()).await.unwrap();
    drop(images);
}
