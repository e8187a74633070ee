//! Collects the descriptions of every built-in type for the OpenAPI documents out of the crate `k8s-openapi`.
//!
//! The crate is read, not compiled: its `schemars` feature holds the published texts by JSON name, and building it a
//! second time would cost more than the whole package. Without its sources the documents have no texts, and all else
//! works; the build says so.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The Kubernetes release whose texts are taken; the feature that the workspace enables.
const RELEASE: &str = "src/v1_36";

fn main() {
    directive("rerun-if-changed=build.rs");
    let mut out = String::new();
    match sources() {
        Some(root) => {
            directive(&format!("rerun-if-changed={}", root.display()));
            collect(&root, &mut out);
        }
        None => {
            // A path that never is there: cargo comes back with each build until the sources are.
            directive("rerun-if-changed=k8s-openapi-was-not-found");
            directive(
                "warning=k8s-openapi's sources were not found: `kubectl explain` will show no descriptions; run `cargo fetch`, then build again",
            );
        }
    }
    let target = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("descriptions.tsv");
    fs::write(&target, out).expect("OUT_DIR can be written");
}

#[allow(clippy::print_stdout, reason = "standard output is how a build script speaks to cargo")]
fn directive(text: &str) {
    println!("cargo::{text}");
}

/// The directory of the crate's release: where cargo unpacks what it downloads, else (vendored) where its metadata says.
fn sources() -> Option<PathBuf> {
    let manifest = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR")?);
    let lock = manifest.join("../../Cargo.lock");
    directive(&format!("rerun-if-changed={}", lock.display()));
    let folder = format!("k8s-openapi-{}", locked_version(&fs::read_to_string(lock).ok()?)?);
    let mut unpacked = registries().into_iter().map(|registry| registry.join(&folder).join(RELEASE));
    unpacked.find(|root| root.is_dir()).or_else(|| told_by_metadata(&manifest))
}

/// The one version of the crate in the lock file.
fn locked_version(lock: &str) -> Option<&str> {
    let entry = lock.split("[[package]]").find(|entry| entry.trim_start().starts_with("name = \"k8s-openapi\"\n"))?;
    entry.lines().find_map(|line| line.strip_prefix("version = \"")?.strip_suffix('"'))
}

/// Cargo's directories of unpacked crates, one per registry.
fn registries() -> Vec<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let entries = home.and_then(|home| fs::read_dir(home.join("registry/src")).ok());
    entries.into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// For this platform alone: the metadata of all of them need crates that no build of this one downloads.
fn told_by_metadata(manifest: &Path) -> Option<PathBuf> {
    let mut command = Command::new(std::env::var_os("CARGO")?);
    command.args(["metadata", "--offline", "--format-version", "1", "--filter-platform"]);
    let output =
        command.arg(std::env::var_os("TARGET")?).arg("--manifest-path").arg(manifest.join("Cargo.toml")).output();
    let text = String::from_utf8(output.ok()?.stdout).ok()?;
    // One path of a known shape is wanted out of two megabytes of JSON.
    let manifests = text.split("\"manifest_path\":\"").skip(1).filter_map(|rest| rest.split('"').next());
    let found = manifests.map(Path::new).find(|path| {
        let folder = path.parent().and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or_default();
        folder.starts_with("k8s-openapi") && !folder.contains("derive")
    });
    Some(found?.parent()?.join(RELEASE)).filter(|root| root.is_dir())
}

fn collect(folder: &Path, out: &mut String) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            collect(&path, out);
        } else if let Ok(text) = fs::read_to_string(&path) {
            read(&text, out);
        }
    }
}

/// Writes `=type<TAB>text` and `field<TAB>text` lines; the texts keep their escapes.
fn read(text: &str, out: &mut String) {
    let mut type_name = None;
    let mut field = "";
    for line in text.lines() {
        let trimmed = line.trim_start();
        let indent = line.len() - trimmed.len();
        if let Some(rest) =
            trimmed.strip_prefix('"').filter(|_| indent == 8).and_then(|rest| rest.strip_suffix("\".into()"))
        {
            type_name = Some(rest);
            field = "";
        } else if let (16, Some(name)) = (indent, field_of(trimmed)) {
            field = name;
        } else if let Some(description) = description_of(trimmed) {
            match (type_name, indent) {
                (Some(name), 12) => out.push_str(&format!("={name}\t{description}\n")),
                (Some(_), 20) if !field.is_empty() => out.push_str(&format!("{field}\t{description}\n")),
                _ => {}
            }
        }
    }
}

/// A property with a schema of its own, or one that points to another type.
fn field_of(line: &str) -> Option<&str> {
    let rest = line.strip_prefix('"')?;
    rest.strip_suffix("\": {").or_else(|| rest.strip_suffix("\": ({"))
}

fn description_of(line: &str) -> Option<&str> {
    let own = line.strip_prefix("\"description\": \"").and_then(|rest| rest.strip_suffix("\","));
    let beside = line.strip_prefix("schema_obj.ensure_object().insert(\"description\".into(), \"");
    own.or_else(|| beside?.strip_suffix("\".into());"))
}
