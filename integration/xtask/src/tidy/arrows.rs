//! Who may use whom: an arrow goes to a smaller rank, to the left, and across folders only to a door.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

/// The five folders, left to right. Code looks only left.
const FOLDERS: [&str; 5] = ["control-plane", "cni", "runtime", "kubelet", "integration"];

struct Room {
    package: &'static str,
    rank: u8,
    is_door: bool,
    /// Rooms that fork, or that everybody stands on: no async runtime in them.
    is_sync: bool,
}

const fn room(package: &'static str, rank: u8) -> Room {
    Room { package, rank, is_door: false, is_sync: false }
}

const fn sync(package: &'static str, rank: u8) -> Room {
    Room { package, rank, is_door: false, is_sync: true }
}

const fn door(package: &'static str) -> Room {
    Room { package, rank: 0, is_door: true, is_sync: true }
}

/// The table of ARCHITECTURE.md, "The house". A package missing here is a violation.
const ROOMS: [Room; 25] = [
    door("control-plane-api"),
    door("control-plane-decode"),
    room("control-plane-store", 0),
    room("control-plane-apiserver", 2),
    room("control-plane-scheduler", 2),
    room("control-plane-controllers", 2),
    door("cni-spec"),
    door("cni-netlink"),
    sync("cni-plugin", 1),
    room("cni-services", 2),
    door("runtime-linux"),
    // Its generated stubs are async; nothing else is.
    Room { package: "runtime-cri-api", rank: 0, is_door: true, is_sync: false },
    sync("runtime-oci", 1),
    room("runtime-images", 1),
    sync("runtime-shim", 2),
    sync("runtime-fuzz", 3),
    room("cni-fuzz", 3),
    room("runtime-cri", 3),
    room("kubelet", 4),
    room("integration-sampan", 5),
    sync("integration-demo", 0),
    sync("integration-bare", 1),
    room("integration-e2e", 5),
    room("integration-bench", 6),
    room("integration-xtask", 5),
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
}

pub(super) fn check(root: &Path) -> Result<Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version=1"])
        .current_dir(root)
        .output()
        .context("run cargo metadata")?;
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
    Ok(metadata.packages.iter().flat_map(|package| check_package(root, package)).collect())
}

fn check_package(root: &Path, package: &Package) -> Vec<String> {
    let mut violations = Vec::new();
    let directory = Path::new(&package.manifest_path).parent().unwrap_or(root);
    let path = directory.strip_prefix(root).unwrap_or(directory).to_string_lossy();
    if path.replace('/', "-") != package.name {
        violations.push(format!("{path}: a package's name is its path, not {}", package.name));
    }
    let Some(from) = find(&package.name) else {
        violations.push(format!("{}: not in the table of rooms; give it a rank in tidy/arrows.rs", package.name));
        return violations;
    };
    for dependency in &package.dependencies {
        if let Some(why) = forbidden(from, dependency) {
            violations.push(format!("{} -> {}: {why}", package.name, dependency.name));
        }
    }
    violations
}

fn forbidden(from: &Room, dependency: &Dependency) -> Option<&'static str> {
    let is_runtime_dependency = dependency.kind.is_none();
    if from.is_sync && is_runtime_dependency && matches!(dependency.name.as_str(), "tokio" | "futures" | "async-std") {
        return Some("this room has no async runtime");
    }
    let to = find(&dependency.name)?;
    let (from_folder, to_folder) = (folder(from.package), folder(to.package));
    let from_integration = FOLDERS[from_folder] == "integration";
    if to_folder > from_folder {
        Some("code looks only left")
    } else if to.rank >= from.rank && from.package != to.package {
        Some("an arrow goes to a smaller rank")
    } else if to_folder != from_folder && !to.is_door && !from_integration {
        Some("across folders only doors may be used")
    } else {
        None
    }
}

fn find(package: &str) -> Option<&'static Room> {
    ROOMS.iter().find(|room| room.package == package)
}

fn folder(package: &str) -> usize {
    FOLDERS.iter().position(|folder| package.starts_with(folder)).unwrap_or(FOLDERS.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrows() {
        let check = |from: &str, to: &str, expect: Option<&str>| {
            let dependency = Dependency { name: to.into(), kind: None };
            assert_eq!(forbidden(find(from).unwrap(), &dependency), expect, "{from} -> {to}");
        };
        check("runtime-cri", "runtime-shim", None);
        check("runtime-cri", "cni-spec", None);
        check("kubelet", "runtime-cri-api", None);
        check("integration-sampan", "kubelet", None);
        check("cni-spec", "runtime-linux", Some("code looks only left"));
        check("runtime-images", "runtime-oci", Some("an arrow goes to a smaller rank"));
        check("kubelet", "runtime-cri", Some("across folders only doors may be used"));
        check("runtime-shim", "tokio", Some("this room has no async runtime"));
    }
}
