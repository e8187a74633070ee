//! What criu has to know of a container: the parts of it that belong to somebody else, and so are neither saved nor made anew.
//!
//! Names of external namespaces are those that runc and crun use, so that images of one runtime can be restored by another.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat};
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Mount, Spec};
use runtime_linux::proc::read_text;
use runtime_linux::rooted::Root;

use crate::create::parent;
use crate::error::Error;
use crate::plan::CgroupView;
use crate::plan::namespaces::kind;

/// criu's word for the kind, our name for the namespace.
const NAMESPACES: [(LinuxNamespaceType, &str, &str); 2] =
    [(LinuxNamespaceType::Network, "net", "extRootNetNS"), (LinuxNamespaceType::Pid, "pid", "extRootPidNS")];

/// What lies over a masked file.
const MASK: &str = "/dev/null";

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Externals {
    pub mounts: Vec<External>,
    pub joined: Vec<Joined>,
    /// Mount points of the container's own file systems, whose content criu makes.
    own: Vec<PathBuf>,
    /// File names below /proc/PID/ns.
    pub namespaces: Vec<String>,
    /// The PID namespace is somebody else's.
    pub shares_pids: bool,
}

/// Something of the host's that is bound into the container.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct External {
    /// As the configuration has it.
    pub inside: PathBuf,
    pub source: PathBuf,
    /// A directory that is there is no external one.
    pub is_file: bool,
    /// A masked file: all of them have one name, as with runc and crun.
    pub is_mask: bool,
}

/// A namespace that outlives the container.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Joined {
    kind: &'static str,
    pub key: &'static str,
    pub path: PathBuf,
}

impl Externals {
    /// `cgroups`: what a container without a cgroup namespace sees of the host's.
    pub(super) fn of(spec: &Spec, bundle: &Path, cgroups: &CgroupView) -> Self {
        let linux = spec.linux().as_ref();
        let spaces: Vec<_> = linux.and_then(|linux| linux.namespaces().as_ref()).into_iter().flatten().collect();
        let has = |wanted| spaces.iter().any(|space| space.typ() == wanted);
        let is_new_pid = |space: &&LinuxNamespace| space.typ() == LinuxNamespaceType::Pid && space.path().is_none();
        let shares_pids = !spaces.iter().any(is_new_pid);
        let mut all = Self { mounts: vec![], joined: vec![], own: vec![], namespaces: vec![], shares_pids };
        for mount in spec.mounts().iter().flatten() {
            let is_bound = !has(LinuxNamespaceType::Cgroup) && !cgroups.is_mounted_anew(has);
            all.add_mount(mount, bundle, is_bound.then_some(cgroups));
        }
        // A masked file is a bind of /dev/null; a masked directory is a file system of the container's own.
        let masked = linux.and_then(|linux| linux.masked_paths().as_ref()).into_iter().flatten();
        all.mounts.extend(masked.map(|path| External { is_mask: true, ..External::file(path, MASK) }));
        if has(LinuxNamespaceType::User) {
            // Nodes cannot be made there: they are the host's, bound.
            let more = linux.and_then(|linux| linux.devices().as_ref()).into_iter().flatten();
            let nodes = more.map(|device| device.path().clone());
            let nodes = crate::plan::default_device_paths().map(PathBuf::from).chain(nodes);
            all.mounts.extend(nodes.map(|path| External::file(&path, &path)));
        }
        for space in spaces {
            all.namespaces.push(kind(space.typ()).file_name().to_owned());
            let known = NAMESPACES.iter().find(|(typ, ..)| *typ == space.typ());
            if let (Some((_, kind, key)), Some(path)) = (known, space.path()) {
                all.joined.push(Joined { kind, key, path: path.clone() });
            }
        }
        all
    }

    fn add_mount(&mut self, mount: &Mount, bundle: &Path, cgroups: Option<&CgroupView>) {
        let options = mount.options().as_deref().unwrap_or(&[]);
        let typ = mount.typ().as_deref().unwrap_or_default();
        let inside = mount.destination();
        let external = |inside: PathBuf, source: &Path| External { is_file: false, ..External::file(inside, source) };
        if typ == "bind" || options.iter().any(|option| option == "bind" || option == "rbind") {
            let source = mount.source().clone().unwrap_or_default();
            self.mounts.push(external(inside.clone(), &bundle.join(source)));
            return;
        }
        self.own.push(inside.clone());
        match cgroups.filter(|_| matches!(typ, "cgroup" | "cgroup2")) {
            Some(CgroupView::V1 { hierarchies }) => {
                self.mounts.extend(hierarchies.iter().map(|(name, _, source)| external(inside.join(name), source)));
            }
            Some(CgroupView::V2 { own, .. }) => self.mounts.push(external(inside.clone(), own)),
            None => {}
        }
    }

    /// For a dump of the container of `pid`: what is there of them, each under its own name.
    pub(super) fn of_running(&self, pid: i32) -> Result<Vec<String>, Error> {
        let table = MountTable::of(pid)?;
        let mut words = Vec::new();
        for external in &self.mounts {
            if let Some(place) = table.place_of(external) {
                let word = format!("mnt[{}]:{}", place.display(), external.name(&place).display());
                if !words.contains(&word) {
                    words.push(word);
                }
            }
        }
        for joined in &self.joined {
            if let Ok(namespace) = std::fs::metadata(&joined.path) {
                words.push(format!("{}[{}]:{}", joined.kind, namespace.ino(), joined.key));
            }
        }
        Ok(words)
    }

    /// Whether it lies in a file system of the container's own.
    pub(super) fn is_covered(&self, inside: &Path) -> bool {
        self.own.iter().any(|own| inside.starts_with(own))
    }
}

impl External {
    fn file(inside: impl AsRef<Path>, source: impl AsRef<Path>) -> Self {
        Self { inside: inside.as_ref().to_owned(), source: source.as_ref().to_owned(), is_file: true, is_mask: false }
    }

    /// criu's word for it when it restores, once it is known where it really lies. criu compares the source with the host's mount points.
    pub(super) fn word(&self, place: &Path) -> String {
        let source = std::fs::canonicalize(&self.source);
        format!("mnt[{}]:{}", self.name(place).display(), source.as_ref().unwrap_or(&self.source).display())
    }

    /// What it is called in the images.
    fn name<'a>(&self, place: &'a Path) -> &'a Path {
        if self.is_mask { Path::new(MASK) } else { place }
    }
}

/// A path without `.`, `..` and double slashes, for places that nobody can be asked about.
pub(super) fn lexical(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::from("/"), |mut done, component| {
        match component {
            Component::Normal(name) => done.push(name),
            Component::ParentDir => drop(done.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
        done
    })
}

/// Where a descriptor leads, by the kernel's word.
pub(super) fn path_of(fd: &OwnedFd) -> Result<PathBuf, Error> {
    let link = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    std::fs::read_link(&link).map_err(|source| Error::Read { path: link, source })
}

/// The mounts of a running container, as it sees them.
struct MountTable {
    root: Root,
    places: Vec<PathBuf>,
}

impl MountTable {
    fn of(pid: i32) -> Result<Self, Error> {
        let root = PathBuf::from(format!("/proc/{pid}/root"));
        let table = PathBuf::from(format!("/proc/{pid}/mountinfo"));
        let text = read_text(&table).map_err(|source| Error::Read { path: table, source })?;
        // proc_pid_mountinfo(5), field 5.
        let place = |line: &str| line.split(' ').nth(4).map(runtime_linux::mount::unescape);
        let places = text.lines().filter_map(place).collect();
        let root = Root::open_dir(&root).map_err(parent(format!("open {}", root.display())))?;
        Ok(Self { root, places })
    }

    /// The mount that an external one has become, through whatever symlinks the container has; `None` where nothing is mounted there.
    fn place_of(&self, external: &External) -> Option<PathBuf> {
        let found = self.root.open(&external.inside, OFlag::O_PATH).ok()?;
        let kind = SFlag::from_bits_truncate(fstat(&found).ok()?.st_mode) & SFlag::S_IFMT;
        // The path is that in the container's mount namespace, whose root is the container's.
        let place = path_of(&found).ok()?;
        let is_meant = !(external.is_file && kind == SFlag::S_IFDIR);
        (is_meant && self.places.contains(&place)).then_some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn externals(json: serde_json::Value, cgroups: &CgroupView) -> Externals {
        let spec: Spec = serde_json::from_value(json).expect("spec");
        Externals::of(&spec, Path::new("/bundle"), cgroups)
    }

    fn words(all: &Externals) -> Vec<String> {
        all.mounts.iter().map(|external| external.word(&external.inside)).collect()
    }

    #[test]
    fn what_is_somebody_elses_is_external() {
        let cgroups = CgroupView::V2 { own: "/sys/fs/cgroup/c".into(), may_show_all: false };
        let mut json = serde_json::json!({
            "ociVersion": "1.2.0",
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/data", "type": "none", "source": "srv", "options": ["rbind", "ro"] },
                { "destination": "/sys/fs/cgroup", "type": "cgroup" },
            ],
            "linux": {
                "maskedPaths": ["/proc/kcore"],
                "namespaces": [{ "type": "pid" }, { "type": "network", "path": "/run/netns/x" }],
            },
        });
        let all = externals(json.clone(), &cgroups);
        let mine = ["mnt[/data]:/bundle/srv", "mnt[/sys/fs/cgroup]:/sys/fs/cgroup/c", "mnt[/dev/null]:/dev/null"];
        assert_eq!(words(&all), mine);
        assert_eq!((&*all.namespaces, all.shares_pids), (&["pid".to_owned(), "net".to_owned()][..], false));
        assert_eq!(all.joined.iter().map(|joined| joined.key).collect::<Vec<_>>(), ["extRootNetNS"]);
        assert!(all.is_covered(Path::new("/proc/kcore")) && !all.is_covered(Path::new("/data")));

        json["linux"]["namespaces"] = serde_json::json!([{ "type": "cgroup" }, { "type": "user" }]);
        let all = externals(json, &cgroups);
        let words = words(&all);
        assert!(words.contains(&"mnt[/dev/null]:/dev/null".to_owned()), "{words:?}");
        assert!(!words.iter().any(|word| word.contains("cgroup")), "{words:?}");
    }

    #[test]
    fn v1_hierarchies_are_bound_one_by_one() {
        let hierarchies =
            vec![("cpu,cpuacct".to_owned(), "cpu,cpuacct".to_owned(), "/sys/fs/cgroup/cpu,cpuacct/c".into())];
        let json = serde_json::json!({
            "ociVersion": "1.2.0",
            "mounts": [{ "destination": "/sys/fs/cgroup", "type": "cgroup" }],
        });
        let all = externals(json, &CgroupView::V1 { hierarchies });
        assert_eq!(words(&all), ["mnt[/sys/fs/cgroup/cpu,cpuacct]:/sys/fs/cgroup/cpu,cpuacct/c"]);
    }

    #[test]
    fn only_what_is_mounted_here_is_external_of_a_process() {
        let pid = std::process::id().cast_signed();
        let table = MountTable::of(pid).expect("table");
        let external = |inside: &str| External::file(inside, "/dev/null");
        assert_eq!(table.place_of(&External { is_file: false, ..external("/../proc/./") }), Some("/proc".into()));
        assert_eq!(table.place_of(&external("/proc")), None);
        assert_eq!(table.place_of(&external("/proc/version")), None);
        assert_eq!(table.place_of(&external("/not/there")), None);
        assert_eq!(lexical(Path::new("/a/./b/../../../c//d")), Path::new("/c/d"));
    }
}
