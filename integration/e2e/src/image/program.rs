//! Which files a dynamically linked program needs to start, as the machine's own loader resolves them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// The loader and the libraries of `program`; none for a static one.
pub(crate) fn needed(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).env("LC_ALL", "C").output().context("run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        if complaint.contains("not a dynamic executable") || text.contains("not a dynamic executable") {
            return Ok(Vec::new());
        }
        bail!("ldd {}: {}", program.display(), complaint.trim());
    }
    parse(&text).with_context(|| format!("libraries of {}", program.display()))
}

fn parse(text: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.contains("not found") {
            bail!("a library is not installed: {line}");
        }
        // `libc.so.6 => /lib/libc.so.6 (0x...)`, `/lib64/ld-linux-x86-64.so.2 (0x...)`, `linux-vdso.so.1 (0x...)`
        let place = line.split_once("=>").map_or(line, |(_, place)| place).trim();
        if place.starts_with('/') {
            found.extend(place.split_whitespace().next().map(PathBuf::from));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings() {
        let text =
            "\tlinux-vdso.so.1 (0x1)\n\tlibz.so.1 => /lib/libz.so.1 (0x2)\n\t/lib64/ld.so (0x3)\n\tstatically linked\n";
        assert_eq!(parse(text).unwrap(), [PathBuf::from("/lib/libz.so.1"), PathBuf::from("/lib64/ld.so")]);
        assert!(parse("libx.so => not found").is_err());
    }
}
