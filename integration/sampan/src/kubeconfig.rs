//! Kubeconfigs: the administrator's own file, and a context merged into the one that `kubectl` reads.
//!
//! A file that is merged into keeps everything that others put there: entries are replaced by name only, and the
//! current context is changed only where none was set or ours was. Each file that was merged into is remembered with the
//! instance, so that `down` finds it whatever `$HOME`, `$KUBECONFIG` and the flags say by then.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::instance::{Instance, Layout};
use crate::pki::Pki;

#[derive(Debug, thiserror::Error)]
pub(crate) enum KubeconfigError {
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("{path} is not a kubeconfig ({why}); nothing was changed: mend it, or use --kubeconfig PATH")]
    Parse { path: PathBuf, why: String },
    #[error("encode a kubeconfig: {why}")]
    Encode { why: String },
    #[error("{path} is locked by another program ({lock} is there; remove that file if nobody is writing)")]
    Locked { path: PathBuf, lock: PathBuf },
    #[error("lock {path}")]
    Lock { path: PathBuf, source: io::Error },
    #[error("{path} is no list of kubeconfigs; move it away, and take this instance's context out of them by hand")]
    Remembered { path: PathBuf, source: serde_json::Error },
    #[error("{path} has version {found}, this sampan knows up to {REMEMBERED_VERSION}")]
    TooNew { path: PathBuf, found: u32 },
}

/// kubectl's own lock on a kubeconfig: who creates the file beside it may write (client-go, `clientcmd/config.go`).
struct Lock {
    path: PathBuf,
}

impl Lock {
    fn take(config: &Path) -> Result<Self, KubeconfigError> {
        let mut name = config.as_os_str().to_owned();
        name.push(".lock");
        let path = PathBuf::from(name);
        let failed = |source| KubeconfigError::Lock { path: config.into(), source };
        fs::create_dir_all(config.parent().unwrap_or(Path::new("."))).map_err(failed)?;
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(_) => Ok(Self { path }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(KubeconfigError::Locked { path: config.into(), lock: path })
            }
            Err(source) => Err(failed(source)),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _gone_already = fs::remove_file(&self.path);
    }
}

/// The version of `kubeconfigs.json` that this program writes.
const REMEMBERED_VERSION: u32 = 1;

/// The kubeconfigs that have this instance's context.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Remembered {
    version: u32,
    paths: BTreeSet<PathBuf>,
}

fn remembered_path(layout: &Layout) -> PathBuf {
    layout.config.join("kubeconfigs.json")
}

fn remembered(layout: &Layout) -> Result<Remembered, KubeconfigError> {
    let path = remembered_path(layout);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Remembered::default()),
        Err(source) => return Err(KubeconfigError::Read { path, source }),
    };
    let found: Remembered =
        serde_json::from_slice(&text).map_err(|source| KubeconfigError::Remembered { path: path.clone(), source })?;
    if found.version > REMEMBERED_VERSION {
        return Err(KubeconfigError::TooNew { path, found: found.version });
    }
    Ok(found)
}

fn remember(layout: &Layout, paths: BTreeSet<PathBuf>) -> Result<(), KubeconfigError> {
    let path = remembered_path(layout);
    let text = serde_json::to_vec(&Remembered { version: REMEMBERED_VERSION, paths }).expect("paths encode");
    crate::files::replace(&path, &text, 0o600).map_err(|source| KubeconfigError::Write { path, source })
}

/// Puts the instance's context into the file at `path`, and remembers that.
pub(crate) fn merge_and_remember(layout: &Layout, path: &Path, config: &Value) -> Result<(), KubeconfigError> {
    let absolute = std::path::absolute(path).map_err(|source| KubeconfigError::Read { path: path.into(), source })?;
    let mut paths = remembered(layout)?.paths;
    // First: a merge that nobody knows of would stay for ever.
    if paths.insert(absolute.clone()) {
        remember(layout, paths)?;
    }
    merge_into(&absolute, config)
}

/// Takes the instance's context out of every file that has it. What cannot be changed is returned, stays remembered, and keeps
/// nobody from going on.
pub(crate) fn forget(layout: &Layout, name: &str) -> Vec<KubeconfigError> {
    let known = match remembered(layout) {
        Ok(known) => known.paths,
        Err(error) => return vec![error],
    };
    let (mut kept, mut failures) = (BTreeSet::new(), Vec::new());
    for path in &known {
        if let Err(error) = remove_from(path, name) {
            kept.insert(path.clone());
            failures.push(error);
        }
    }
    if kept != known
        && let Err(error) = remember(layout, kept)
    {
        failures.push(error);
    }
    failures
}

/// The file that stock kubectl would change: the first of `$KUBECONFIG`, else `~/.kube/config`.
pub(crate) fn user_path() -> Option<PathBuf> {
    let from_environment = std::env::var_os("KUBECONFIG")
        .and_then(|list| std::env::split_paths(&list).find(|path| !path.as_os_str().is_empty()));
    from_environment.or_else(|| std::env::home_dir().map(|home| home.join(".kube/config")))
}

/// A whole kubeconfig for the administrator, certificates inside.
pub(crate) fn admin(instance: &Instance, pki: &Pki) -> Result<Value, KubeconfigError> {
    let data = |path: &Path| {
        fs::read(path)
            .map(|bytes| STANDARD.encode(bytes))
            .map_err(|source| KubeconfigError::Read { path: path.into(), source })
    };
    let (name, user) = (&instance.name, format!("{}-admin", instance.name));
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "preferences": {},
        "clusters": [{"name": name, "cluster": {
            "server": instance.api_url(),
            "certificate-authority-data": data(&pki.authority.certificate)?,
        }}],
        "users": [{"name": user, "user": {
            "client-certificate-data": data(&pki.admin.certificate)?,
            "client-key-data": data(&pki.admin.key)?,
        }}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": user}}],
    }))
}

pub(crate) fn write(path: &Path, config: &Value) -> Result<(), KubeconfigError> {
    let text = to_yaml(config)?;
    crate::files::replace(path, text.as_bytes(), 0o600)
        .map_err(|source| KubeconfigError::Write { path: path.into(), source })
}

pub(crate) fn to_yaml(config: &Value) -> Result<String, KubeconfigError> {
    // Each value on the line of its key, where people and their `grep` look for it.
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    serde_saphyr::to_string_with_options(config, options)
        .map_err(|error| KubeconfigError::Encode { why: error.to_string() })
}

/// Puts `config`'s entries into the file at `path`; makes the file where there is none.
fn merge_into(path: &Path, config: &Value) -> Result<(), KubeconfigError> {
    let _lock = Lock::take(path)?;
    let kept = load(path)?;
    let merged = merge(kept.clone(), config);
    if merged == kept { Ok(()) } else { write(path, &Value::Object(merged)) }
}

/// Takes the entries called `name` out of the file at `path`, if it is there.
fn remove_from(path: &Path, name: &str) -> Result<(), KubeconfigError> {
    if !path.exists() {
        return Ok(());
    }
    let _lock = Lock::take(path)?;
    let kept = load(path)?;
    let rest = without(kept.clone(), name);
    if rest == kept { Ok(()) } else { write(path, &Value::Object(rest)) }
}

fn load(path: &Path) -> Result<Map<String, Value>, KubeconfigError> {
    let text = match fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => text,
        Ok(_) => return Ok(Map::new()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(source) => return Err(KubeconfigError::Read { path: path.into(), source }),
    };
    serde_saphyr::from_str(&text).map_err(|error| KubeconfigError::Parse { path: path.into(), why: error.to_string() })
}

fn merge(mut kept: Map<String, Value>, config: &Value) -> Map<String, Value> {
    for key in ["apiVersion", "kind", "preferences"] {
        kept.entry(key).or_insert_with(|| config[key].clone());
    }
    for key in ["clusters", "users", "contexts"] {
        let entries = kept.entry(key).or_insert_with(|| json!([]));
        if !entries.is_array() {
            *entries = json!([]);
        }
        let Some(entries) = entries.as_array_mut() else { continue };
        for new in config[key].as_array().into_iter().flatten() {
            match entries.iter_mut().find(|entry| entry["name"] == new["name"]) {
                // A namespace that somebody set in our context stays.
                Some(entry) if key == "contexts" => overlay(&mut entry["context"], &new["context"]),
                Some(entry) => *entry = new.clone(),
                None => entries.push(new.clone()),
            }
        }
    }
    let current = kept.get("current-context").and_then(Value::as_str).unwrap_or_default();
    if current.is_empty() {
        kept.insert("current-context".into(), config["current-context"].clone());
    }
    kept
}

fn overlay(onto: &mut Value, new: &Value) {
    if !onto.is_object() {
        *onto = json!({});
    }
    for (key, value) in new.as_object().into_iter().flatten() {
        onto[key] = value.clone();
    }
}

fn without(mut kept: Map<String, Value>, name: &str) -> Map<String, Value> {
    let user = format!("{name}-admin");
    for (key, gone) in [("clusters", name), ("users", user.as_str()), ("contexts", name)] {
        if let Some(entries) = kept.get_mut(key).and_then(Value::as_array_mut) {
            entries.retain(|entry| entry["name"] != gone);
        }
    }
    if kept.get("current-context").and_then(Value::as_str) == Some(name) {
        kept.insert("current-context".into(), json!(""));
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Config", "preferences": {}, "current-context": "sampan",
            "clusters": [{"name": "sampan", "cluster": {"server": "https://192.0.2.1:6443"}}],
            "users": [{"name": "sampan-admin", "user": {}}],
            "contexts": [{"name": "sampan", "context": {"cluster": "sampan", "user": "sampan-admin"}}],
        })
    }

    #[test]
    fn others_entries_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        let theirs =
            "current-context: work\nclusters:\n- name: work\n  cluster: {server: 'https://w'}\nextensions: [1]\n";
        fs::write(&path, theirs).unwrap();
        merge_into(&path, &ours()).unwrap();
        let merged = load(&path).unwrap();
        assert_eq!(merged["current-context"], "work");
        assert_eq!(merged["clusters"].as_array().unwrap().len(), 2);
        assert_eq!(merged["extensions"], json!([1]));
        remove_from(&path, "sampan").unwrap();
        let rest = load(&path).unwrap();
        assert_eq!(rest["clusters"], json!([{"name": "work", "cluster": {"server": "https://w"}}]));
        assert_eq!(rest["users"], json!([]));
    }

    #[test]
    fn a_namespace_in_our_context_stays() {
        let mut kept = merge(Map::new(), &ours());
        kept["contexts"][0]["context"]["namespace"] = json!("dev");
        let merged = merge(kept, &ours());
        assert_eq!(merged["contexts"][0]["context"]["namespace"], "dev");
        assert_eq!(merged["current-context"], "sampan");
    }

    #[test]
    fn what_was_merged_into_is_found_again_wherever_it_lies() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(Some(directory.path().join("root"))).unwrap();
        layout.create().unwrap();
        let (one, two) = (directory.path().join("one"), directory.path().join("two"));
        merge_and_remember(&layout, &one, &ours()).unwrap();
        merge_and_remember(&layout, &two, &ours()).unwrap();
        // Root reads everything; what root cannot read either is no kubeconfig.
        fs::write(&two, "clusters: [").unwrap();
        assert!(matches!(forget(&layout, "sampan").as_slice(), [KubeconfigError::Parse { path, .. }] if *path == two));
        assert_eq!(load(&one).unwrap()["users"], json!([]));
        assert_eq!(remembered(&layout).unwrap().paths, [two.clone()].into());
        fs::remove_file(&two).unwrap();
        assert!(forget(&layout, "sampan").is_empty());
        assert!(remembered(&layout).unwrap().paths.is_empty());
    }

    #[test]
    fn kubectls_lock_is_respected_and_let_go() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        let lock = directory.path().join("config.lock");
        fs::write(&lock, "").unwrap();
        assert!(matches!(merge_into(&path, &ours()), Err(KubeconfigError::Locked { .. })));
        assert!(lock.exists() && !path.exists());
        fs::remove_file(&lock).unwrap();
        merge_into(&path, &ours()).unwrap();
        assert!(!lock.exists() && path.exists());
    }

    #[test]
    fn reads_the_first_version_of_what_is_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(Some(directory.path().into())).unwrap();
        layout.create().unwrap();
        fs::write(remembered_path(&layout), r#"{"version":1,"paths":["/root/.kube/config"]}"#).unwrap();
        assert_eq!(remembered(&layout).unwrap().paths, [PathBuf::from("/root/.kube/config")].into());
        fs::write(remembered_path(&layout), r#"{"version":2,"paths":[]}"#).unwrap();
        assert!(matches!(remembered(&layout), Err(KubeconfigError::TooNew { found: 2, .. })));
    }

    #[test]
    fn a_broken_file_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        fs::write(&path, "clusters: [").unwrap();
        let error = merge_into(&path, &ours()).unwrap_err().to_string();
        assert!(error.contains("nothing was changed"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "clusters: [");
    }
}
