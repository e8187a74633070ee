//! Static pods: manifests in a directory, read again when inotify says that something changed. A file that cannot be read is
//! told in the log and leaves the other pods alone.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use runtime_linux::rooted::Root;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use crate::pod::{CONFIG_HASH, CONFIG_SEEN, CONFIG_SOURCE, hash};
use crate::pods::Word;

/// A manifest larger than this is none.
const FILE_BYTES_MAX: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("watch the manifest directory {}: {source}", .dir.display())]
    Watch { dir: PathBuf, source: std::io::Error },
    #[error("read manifest {}: {source}", .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("manifest {} is larger than {FILE_BYTES_MAX} bytes", .path.display())]
    TooLarge { path: PathBuf },
    #[error("manifest {} is no pod: {source}", .path.display())]
    Parse { path: PathBuf, source: Box<serde_saphyr::Error> },
}

struct Watch(Inotify);

impl std::os::fd::AsRawFd for Watch {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        use std::os::fd::AsFd;
        self.0.as_fd().as_raw_fd()
    }
}

/// Sends all manifests of `dir` now and after each change.
///
/// # Errors
/// If the directory cannot be watched.
#[allow(deprecated, reason = "AsyncFd::register is unsafe; `Watch` owns its descriptor and never changes it")]
pub async fn follow(dir: PathBuf, node_name: String, words: mpsc::Sender<Word>) -> Result<(), Error> {
    let failed = |source: std::io::Error| Error::Watch { dir: dir.clone(), source };
    tokio::fs::create_dir_all(&dir).await.map_err(failed)?;
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(|e| failed(e.into()))?;
    // Only what is whole: a file being written is not read half.
    let flags = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_DELETE;
    inotify.add_watch(&dir, flags).map_err(|e| failed(e.into()))?;
    let watch = AsyncFd::new(Watch(inotify)).map_err(failed)?;
    loop {
        if words.send(Word::Manifests(read_all(&dir, &node_name))).await.is_err() {
            return Ok(());
        }
        let mut guard = watch.readable().await.map_err(failed)?;
        // Which file it was does not matter: all are read again.
        let _ = watch.get_ref().0.read_events();
        guard.clear_ready();
    }
}

fn read_all(dir: &Path, node_name: &str) -> Vec<Pod> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.filter_map(|e| e.ok().map(|e| e.path())).collect();
    paths.sort();
    let is_manifest = |p: &&PathBuf| {
        let hidden = p.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        !hidden && p.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json") && p.is_file()
    };
    let mut pods = Vec::new();
    for path in paths.iter().filter(is_manifest) {
        match read(path, node_name) {
            Ok(pod) => pods.push(pod),
            Err(error) => tracing::error!(%error, "static pod ignored"),
        }
    }
    pods
}

fn read(path: &Path, node_name: &str) -> Result<Pod, Error> {
    let failed = |source| Error::Read { path: path.into(), source };
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failed(std::io::ErrorKind::InvalidInput.into()));
    };
    // Links may lead elsewhere, as they do in directories that a ConfigMap fills; what they lead to is read like any file.
    let target = std::fs::canonicalize(dir.join(name)).map_err(failed)?;
    let root = Root::open_dir(Path::new("/")).map_err(|e| failed(e.into()))?;
    let bytes = root.read_regular(&target, FILE_BYTES_MAX).map_err(|source| match source.kind() {
        std::io::ErrorKind::FileTooLarge => Error::TooLarge { path: path.into() },
        _ => failed(source),
    })?;
    let text = String::from_utf8(bytes).map_err(|e| failed(std::io::Error::other(e)))?;
    let pod: Pod =
        serde_saphyr::from_str(&text).map_err(|e| Error::Parse { path: path.into(), source: Box::new(e) })?;
    Ok(complete(pod, &text, path, node_name))
}

/// Gives a manifest what the API server would have: name, namespace, uid, defaults that matter here.
fn complete(mut pod: Pod, text: &str, path: &Path, node_name: &str) -> Pod {
    let meta = &mut pod.metadata;
    let base = meta
        .name
        .take()
        .unwrap_or_else(|| path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default());
    let file = path.to_string_lossy();
    let uid = hash(&[text, &file, node_name]) + &hash(&[node_name, text]);
    meta.name = Some(format!("{base}-{}", node_name.to_lowercase()));
    meta.namespace.get_or_insert_with(|| "default".into());
    meta.uid = Some(uid.clone());
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(CONFIG_HASH.into(), uid);
    annotations.insert(CONFIG_SOURCE.into(), "file".into());
    annotations.entry(CONFIG_SEEN.into()).or_insert_with(|| "static".into());
    if let Some(spec) = &mut pod.spec {
        spec.node_name = Some(node_name.into());
        spec.termination_grace_period_seconds.get_or_insert(30);
        spec.enable_service_links.get_or_insert(true);
        let tolerations = spec.tolerations.get_or_insert_default();
        if tolerations.is_empty() {
            // Upstream: a static pod stays whatever happens to the node.
            tolerations.push(k8s_openapi::api::core::v1::Toleration {
                operator: Some("Exists".into()),
                effect: Some("NoExecute".into()),
                ..Default::default()
            });
        }
    }
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str =
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: c\n    image: busybox:1\n";

    #[tokio::test]
    async fn files_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("broken.yaml"), "kind: [").unwrap();
        let (sender, mut words) = mpsc::channel(8);
        let root = dir.path().to_owned();
        let task = tokio::spawn(follow(root, "N1".into(), sender));
        let mut next = async || match words.recv().await.unwrap() {
            Word::Manifests(pods) => pods,
            other => panic!("manifests, not {other:?}"),
        };
        assert!(next().await.is_empty());
        std::fs::write(dir.path().join("web.yaml"), MANIFEST).unwrap();
        let mut pods = next().await;
        while pods.is_empty() {
            pods = next().await;
        }
        assert_eq!(pods[0].metadata.name.as_deref(), Some("web-n1"));
        let first = pods[0].metadata.uid.clone();
        std::fs::write(dir.path().join("web.yaml"), MANIFEST.replace("busybox:1", "busybox:2")).unwrap();
        let mut pods = next().await;
        while pods.is_empty() || pods[0].metadata.uid == first {
            pods = next().await;
        }
        std::fs::remove_file(dir.path().join("web.yaml")).unwrap();
        while !pods.is_empty() {
            pods = next().await;
        }
        task.abort();
    }
}
