//! Debian's kernel for clouds, from its package: fetched and unpacked below the target directory, never installed.
//!
//! Which modules need which is read from the modules themselves: the package holds no modules.dep, its installation would write it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

/// Depends on the newest kernel of its release.
const PACKAGE: &str = "linux-image-cloud-amd64";
const COMMAND_SECONDS: &str = "120";

#[derive(Debug)]
pub(super) struct Kernel {
    image: PathBuf,
    /// By name, `-` written as `_`.
    modules: BTreeMap<String, PathBuf>,
}

impl Kernel {
    /// The one that was unpacked earlier, else the one of the package source.
    pub(super) fn obtain() -> Result<Self> {
        let own = std::env::current_exe().context("find this test")?;
        // <target>/<profile>/deps/<test>
        let target = own.ancestors().nth(3).context("a target directory above this test")?;
        let home = target.join("vm-kernel");
        if !home.is_dir() {
            fetch(target, &home).with_context(|| {
                format!("the virtual machine needs Debian's package {PACKAGE}, and it cannot be had; an unpacked one in {} will do", home.display())
            })?;
        }
        Self::open(&home).with_context(|| format!("{}; remove it to have it fetched again", home.display()))
    }

    fn open(home: &Path) -> Result<Self> {
        let mut kernel = Self { image: PathBuf::new(), modules: BTreeMap::new() };
        let mut todo = vec![home.to_owned()];
        while let Some(directory) = todo.pop() {
            for entry in fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if entry.file_type()?.is_dir() {
                    todo.push(entry.path());
                } else if name.starts_with("vmlinuz-") {
                    kernel.image = entry.path();
                } else if let Some(name) = name.strip_suffix(".ko").or_else(|| name.strip_suffix(".ko.xz")) {
                    kernel.modules.insert(name.replace('-', "_"), entry.path());
                }
            }
        }
        ensure!(kernel.image.is_file(), "there is no kernel in it");
        Ok(kernel)
    }

    pub(super) fn image(&self) -> &Path {
        &self.image
    }

    /// The named modules and all they need, in an order in which they can be loaded.
    pub(super) fn modules(&self, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut ordered = Vec::new();
        for name in names {
            self.collect(name, &mut ordered)?;
        }
        Ok(ordered)
    }

    fn collect(&self, name: &str, ordered: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
        let name = name.replace('-', "_");
        if ordered.iter().any(|(other, _)| *other == name) {
            return Ok(());
        }
        let path = self.modules.get(&name).with_context(|| format!("the kernel has no module {name}"))?;
        let content = read_module(path)?;
        for needed in dependencies(&content) {
            self.collect(&needed, ordered)?;
        }
        ordered.push((name, content));
        Ok(())
    }
}

fn read_module(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "ko") {
        return fs::read(path).with_context(|| format!("read {}", path.display()));
    }
    let output = Command::new("xz").arg("-dc").arg(path).output().context("run xz (xz-utils)")?;
    ensure!(output.status.success(), "xz {}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

/// From the section `.modinfo`: strings that end with NUL, among them `depends=a,b`.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let list = &module[at + KEY.len()..];
    let list = &list[..list.iter().position(|&byte| byte == 0).unwrap_or(list.len())];
    String::from_utf8_lossy(list).split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn fetch(target: &Path, home: &Path) -> Result<()> {
    let scratch = tempfile::Builder::new().prefix("vm-kernel-").tempdir_in(target)?;
    let apt = |words: &[&str]| run(scratch.path(), "apt-get", words);
    let mut package = newest();
    let downloaded = package.as_ref().is_ok_and(|package| apt(&["download", package]).is_ok());
    if !downloaded {
        // The lists may never have been fetched, or be older than what the source holds.
        apt(&["update", "-qq"])?;
        package = newest();
        apt(&["download", &package?])?;
    }
    let archive = fs::read_dir(scratch.path())?.flatten().map(|entry| entry.path());
    let archive = archive.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let archive = archive.context("apt-get download left no package")?;
    run(scratch.path(), "dpkg-deb", &["-x", &archive.to_string_lossy(), "unpacked"])?;
    // Whole or not at all; another test may have been first.
    match fs::rename(scratch.path().join("unpacked"), home) {
        Err(error) if !home.is_dir() => Err(error).context("keep the unpacked kernel"),
        _ => Ok(()),
    }
}

/// The package behind the one that only names it.
fn newest() -> Result<String> {
    let text = run(Path::new("/"), "apt-cache", &["depends", PACKAGE])?;
    let names = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.map(str::to_owned).find(|name| name.starts_with("linux-image-")).context("it names no kernel")
}

fn run(directory: &Path, program: &str, words: &[&str]) -> Result<String> {
    let output = Command::new("timeout")
        .args(["-k", "1", COMMAND_SECONDS, program])
        .args(words)
        .current_dir(directory)
        .env("LC_ALL", "C")
        .output()
        .with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {} ended with {}: {}", words.join(" "), output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_modules_say_they_need() {
        let check = |module: &[u8], expect: &[&str]| assert_eq!(dependencies(module), expect);
        check(b"ELF\0license=GPL\0depends=llc,stp\0name=bridge\0", &["llc", "stp"]);
        check(b"ELF\0depends=\0name=overlay\0", &[]);
        check(b"ELF", &[]);
    }
}
