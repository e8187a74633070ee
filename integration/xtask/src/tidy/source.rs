//! What a source file may look like: a header, a size, a name, and where `unsafe` and helper programs may stand.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A file longer than this is cut along a noun.
const LINES_MAX: usize = 800;

/// Names that say nothing about what is inside.
const BANNED_NAMES: [&str; 8] = ["common", "helper", "helpers", "misc", "mod", "prelude", "types", "utils"];

/// The only rooms for `unsafe`.
const KERNEL_ROOMS: [&str; 2] = ["runtime/linux", "cni/netlink"];

/// Programs whose work is done here with system calls and netlink.
const HELPER_PROGRAMS: [&str; 12] =
    ["runc", "crun", "ip", "nft", "iptables", "mount", "umount", "modprobe", "nsenter", "tar", "sysctl", "systemctl"];

/// Rooms that may run peers: the proof, not the product.
const PROOF_ROOMS: [&str; 3] = ["integration/e2e", "integration/bench", "integration/xtask"];

pub(super) fn check(root: &Path) -> Result<Vec<String>> {
    let mut violations = Vec::new();
    for folder in ["control-plane", "cni", "runtime", "kubelet", "integration"] {
        for path in rust_files(&root.join(folder))? {
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let relative = path.strip_prefix(root).unwrap_or(&path);
            violations.extend(check_file(relative, &text));
        }
    }
    Ok(violations)
}

fn check_file(path: &Path, text: &str) -> Vec<String> {
    let first_line = text.lines().next().unwrap_or_default();
    if first_line.contains("@generated") {
        return Vec::new();
    }
    let mut violations = Vec::new();
    let mut report = |what: String| violations.push(format!("{}: {what}", path.display()));

    if !first_line.starts_with("//!") {
        report("opens without a `//!` header that says what it is".into());
    }
    let lines = text.lines().count();
    if lines > LINES_MAX {
        report(format!("has {lines} lines; over {LINES_MAX}, cut it along a noun"));
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    if BANNED_NAMES.contains(&stem.as_ref()) {
        report(format!("`{stem}` says nothing about what is inside"));
    }
    // Words are put together here, so that this file does not find itself.
    if !is_in(path, &KERNEL_ROOMS) && has_code(shipped(text), &["unsafe", " {"].concat()) {
        report("`unsafe` stands only in runtime/linux and cni/netlink".into());
    }
    for line in super::select::sleeping_arms(text) {
        report(format!(
            "line {line}: a `sleep` made in an arm of `select!` begins again whenever another arm wins; use an interval, `sleep_until` or `timeout`"
        ));
    }
    if !is_in(path, &PROOF_ROOMS) && !is_test(path) {
        for program in HELPER_PROGRAMS {
            if has_code(shipped(text), &format!("Command::new(\"{program}\")")) {
                report(format!("runs `{program}`; no helper program is ever run"));
            }
        }
    }
    violations
}

/// The part of a file that is shipped: unit tests stand at its end.
fn shipped(text: &str) -> &str {
    text.split_once("#[cfg(test)]\nmod ").map_or(text, |(before, _)| before)
}

fn has_code(text: &str, needle: &str) -> bool {
    text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(needle))
}

fn is_test(path: &Path) -> bool {
    path.components().any(|part| matches!(part.as_os_str().to_str(), Some("tests" | "examples")))
}

fn is_in(path: &Path, rooms: &[&str]) -> bool {
    rooms.iter().any(|room| path.starts_with(room))
}

fn rust_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files() {
        let check = |path: &str, text: &str, expect: &[&str]| {
            let found = check_file(Path::new(path), text);
            assert_eq!(found.len(), expect.len(), "{path}: {found:?}");
            for (found, expect) in found.iter().zip(expect) {
                assert!(found.contains(expect), "{found}");
            }
        };
        check("kubelet/src/lib.rs", "//! Pods.\n", &[]);
        check("kubelet/src/lib.rs", "fn main() {}\n", &["header"]);
        check("kubelet/src/utils.rs", "//! x\n", &["says nothing"]);
        check("kubelet/src/lib.rs", &format!("//! x\n{}", "\n".repeat(900)), &["901 lines"]);
        check("kubelet/src/lib.rs", "//! x\nfn f() { unsafe { g() } }\n", &["unsafe"]);
        check("runtime/linux/src/lib.rs", "//! x\nfn f() { unsafe { g() } }\n", &[]);
        check("cni/services/src/lib.rs", "//! x\nfn f() { Command::new(\"nft\"); }\n", &["no helper program"]);
        check("cni/plugin/tests/it/main.rs", "//! x\nfn f() { Command::new(\"ip\"); }\n", &[]);
        check("runtime/cri-api/src/v1.rs", "// @generated\n", &[]);
        let arm = ["//! x\nfn f() { select! { () = sl", "eep(PAUSE) => {} } }\n"].concat();
        check("kubelet/src/lib.rs", &arm, &["line 2"]);
    }
}
