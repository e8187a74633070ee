//! What criu has to know of a container: the parts of it that belong to somebody else. Pure.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use crate::error::Error;
use crate::plan::invalid;
use crate::plan::namespaces::kind;

/// Our name for a network namespace that is not the container's own.
pub(super) const NETWORK: &str = "sampan-network";

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Externals {
    /// Bind mounts: where, and from where.
    mounts: Vec<(PathBuf, PathBuf)>,
    /// A network namespace that outlives the container.
    pub network: Option<PathBuf>,
    /// File names below /proc/PID/ns.
    pub namespaces: Vec<String>,
}

impl Externals {
    pub(super) fn of(spec: &Spec, rootfs: &Path) -> Result<Self, Error> {
        if spec.process().as_ref().is_some_and(|process| process.terminal() == Some(true)) {
            return Err(invalid(
                "process.terminal",
                "is true, and criu's command line cannot hand on a terminal: checkpoint containers without one",
            ));
        }
        let mut mounts = Vec::new();
        for mount in spec.mounts().iter().flatten() {
            let options = mount.options().as_deref().unwrap_or(&[]);
            let is_bind = mount.typ().as_deref() == Some("bind")
                || options.iter().any(|option| option == "bind" || option == "rbind");
            if let Some(source) = mount.source().as_ref().filter(|_| is_bind) {
                mounts.push((mount.destination().clone(), source.clone()));
            }
        }
        let linux = spec.linux().as_ref();
        // A masked file is a bind of /dev/null; a masked directory is a file system of its own, which criu saves.
        for path in linux.and_then(|linux| linux.masked_paths().as_ref()).into_iter().flatten() {
            let inside = rootfs.join(path.trim_start_matches('/'));
            if !inside.is_dir() && !Path::new(path).is_dir() {
                mounts.push((PathBuf::from(path), PathBuf::from("/dev/null")));
            }
        }
        let namespaces = linux.and_then(|linux| linux.namespaces().as_ref());
        let network = namespaces.into_iter().flatten().find(|namespace| namespace.typ() == LinuxNamespaceType::Network);
        let network = network.and_then(|namespace| namespace.path().clone());
        let names = namespaces.into_iter().flatten().map(|namespace| kind(namespace.typ()).file_name().to_owned());
        Ok(Self { mounts, network, namespaces: names.collect() })
    }

    pub(super) fn for_dump(&self) -> Vec<String> {
        let mut words = Vec::new();
        for (destination, _) in &self.mounts {
            words.extend(["--external".to_owned(), format!("mnt[{0}]:{0}", destination.display())]);
        }
        if let Some(inode) = self.network.as_ref().and_then(|path| std::fs::metadata(path).ok()) {
            use std::os::unix::fs::MetadataExt;
            words.extend(["--external".to_owned(), format!("net[{}]:{NETWORK}", inode.ino())]);
        }
        words
    }

    pub(super) fn for_restore(&self) -> Vec<String> {
        let word = |(destination, source): &(PathBuf, PathBuf)| {
            ["--external".to_owned(), format!("mnt[{}]:{}", destination.display(), source.display())]
        };
        self.mounts.iter().flat_map(word).collect()
    }
}

/// Standard streams that were pipes are ours now.
pub(super) fn inherit(descriptors: &[String]) -> Vec<String> {
    let mut words = Vec::new();
    for (number, target) in descriptors.iter().enumerate().take(3) {
        if let Some(inode) = target.strip_prefix("pipe:") {
            words.extend(["--inherit-fd".to_owned(), format!("fd[{number}]:pipe{inode}")]);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn externals(json: serde_json::Value) -> Result<Externals, Error> {
        let spec: Spec = serde_json::from_value(json).expect("spec");
        Externals::of(&spec, Path::new("/nonexistent"))
    }

    #[test]
    fn what_is_somebody_elses_is_external() {
        let all = externals(serde_json::json!({
            "ociVersion": "1.2.0",
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/data", "type": "none", "source": "/srv", "options": ["rbind", "ro"] },
            ],
            "linux": { "maskedPaths": ["/proc/kcore", "/proc/sys"], "namespaces": [{ "type": "pid" }, { "type": "mount" }] },
        }))
        .expect("externals");
        assert_eq!(all.for_dump(), ["--external", "mnt[/data]:/data", "--external", "mnt[/proc/kcore]:/proc/kcore"]);
        assert_eq!(all.for_restore(), ["--external", "mnt[/data]:/srv", "--external", "mnt[/proc/kcore]:/dev/null"]);
        assert_eq!(all.namespaces, ["pid", "mnt"]);
        let words = ["/dev/null", "pipe:[12]", "socket:[13]"].map(str::to_owned);
        assert_eq!(inherit(&words), ["--inherit-fd", "fd[1]:pipe[12]"]);
    }

    #[test]
    fn a_terminal_is_refused() {
        let json = serde_json::json!({
            "ociVersion": "1.2.0",
            "process": { "terminal": true, "cwd": "/", "args": ["sh"], "user": { "uid": 0, "gid": 0 } },
            "linux": {},
        });
        assert!(externals(json).is_err_and(|error| error.to_string().contains("terminal")));
    }
}
