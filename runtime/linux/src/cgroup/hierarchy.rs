//! Which controllers a host offers, where, and in which version.
//!
//! A value without I/O after `detect`; cheap to clone. Invariant: places are ordered, v2 first, each directory once.

use super::{Error, file};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How the host mounts its cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Everything in one v2 tree.
    Unified,
    /// v1 controllers beside a v2 tree.
    Hybrid,
    /// v1 only.
    Legacy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    Unified,
    Legacy,
}

/// One mounted tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    root: PathBuf,
    version: Version,
    /// v1 controllers, or names as `name=systemd`; empty for v2.
    controllers: Vec<String>,
}

impl Place {
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn version(&self) -> Version {
        self.version
    }

    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }

    pub(super) fn join(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

#[derive(Debug, Clone)]
pub struct Hierarchy {
    places: Arc<[Place]>,
}

impl Hierarchy {
    /// Reads this process's mount table.
    pub fn detect() -> Result<Self, Error> {
        let table = crate::proc::read_text(Path::new("/proc/self/mountinfo")).map_err(Error::Mounts)?;
        Self::parse(&table)
    }

    /// A pure v2 tree at `root`, for tests and for trees mounted elsewhere.
    #[must_use]
    pub fn unified(root: impl Into<PathBuf>) -> Self {
        let place = Place { root: root.into(), version: Version::Unified, controllers: Vec::new() };
        Self { places: Arc::new([place]) }
    }

    /// A v1 host, or with `unified` a hybrid one: controllers and the directory where they are mounted together.
    #[must_use]
    pub fn legacy(mounts: &[(&[&str], &Path)], unified: Option<&Path>) -> Self {
        let unified =
            unified.map(|root| Place { root: root.to_owned(), version: Version::Unified, controllers: Vec::new() });
        let legacy = mounts.iter().map(|(controllers, root)| Place {
            root: (*root).to_owned(),
            version: Version::Legacy,
            controllers: controllers.iter().map(|&name| name.to_owned()).collect(),
        });
        Self { places: unified.into_iter().chain(legacy).collect() }
    }

    /// No tree at all: for who lives in somebody else's cgroup.
    #[must_use]
    pub fn none() -> Self {
        Self { places: Arc::new([]) }
    }

    #[must_use]
    pub fn mode(&self) -> Mode {
        let has = |version| self.places.iter().any(|place| place.version == version);
        match (has(Version::Unified), has(Version::Legacy)) {
            (true, false) => Mode::Unified,
            (true, true) => Mode::Hybrid,
            (false, _) => Mode::Legacy,
        }
    }

    /// Whether the host offers a controller at all.
    #[must_use]
    pub fn offers(&self, controller: &str) -> bool {
        match self.locate(controller) {
            Some((_, Version::Legacy)) => true,
            Some((place, Version::Unified)) => file::read(&place.root.join("cgroup.controllers"))
                .is_ok_and(|text| text.split_whitespace().any(|name| name == controller)),
            None => false,
        }
    }

    /// Whether a controller is spoken to in version 2; also where the host has it in neither.
    #[must_use]
    pub fn is_unified(&self, controller: &str) -> bool {
        matches!(self.locate(controller), Some((_, Version::Unified)))
    }

    /// Where the v2 tree is mounted, if it is.
    #[must_use]
    pub fn unified_root(&self) -> Option<&Path> {
        self.places.iter().find(|place| place.version == Version::Unified).map(Place::root)
    }

    /// Where a controller lives: its v1 mount, else the v2 tree, which may or may not have it.
    pub(super) fn locate(&self, controller: &str) -> Option<(&Place, Version)> {
        let legacy = self.places.iter().find(|place| place.has(controller));
        legacy
            .or_else(|| self.places.iter().find(|place| place.version == Version::Unified))
            .map(|place| (place, place.version))
    }

    pub(super) fn places(&self) -> &[Place] {
        &self.places
    }

    /// What a mount table has of cgroups; proc_pid_mountinfo(5).
    pub fn parse(table: &str) -> Result<Self, Error> {
        let mut unified = None;
        let mut legacy: Vec<Place> = Vec::new();
        for line in table.lines() {
            let Some((version, root, options)) = parse_line(line) else { continue };
            let mut controllers: Vec<String> = Vec::new();
            if version == Version::Legacy {
                controllers = options.split(',').filter(|name| is_controller(name)).map(str::to_owned).collect();
                // The same hierarchy mounted twice is one hierarchy.
                if controllers.is_empty() || legacy.iter().any(|place| place.controllers == controllers) {
                    continue;
                }
            }
            let place = Place { root, version, controllers };
            match version {
                Version::Unified => {
                    unified.get_or_insert(place);
                }
                Version::Legacy => legacy.push(place),
            }
        }
        let places: Vec<Place> = unified.into_iter().chain(legacy).collect();
        if places.is_empty() { Err(Error::NotMounted) } else { Ok(Self { places: places.into() }) }
    }
}

/// The version, mount point and super options of a cgroup mount; proc_pid_mountinfo(5).
fn parse_line(line: &str) -> Option<(Version, PathBuf, &str)> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut filesystem = filesystem.split(' ');
    let version = match filesystem.next()? {
        "cgroup2" => Version::Unified,
        "cgroup" => Version::Legacy,
        _ => return None,
    };
    let options = filesystem.nth(1)?;
    let target = mount.split(' ').nth(4)?;
    Some((version, PathBuf::from(target.replace("\\040", " ")), options))
}

fn is_controller(option: &str) -> bool {
    const CONTROLLERS: [&str; 14] = [
        "blkio",
        "cpu",
        "cpuacct",
        "cpuset",
        "debug",
        "devices",
        "freezer",
        "hugetlb",
        "memory",
        "misc",
        "net_cls",
        "net_prio",
        "perf_event",
        "pids",
    ];
    CONTROLLERS.contains(&option) || option == "rdma" || option.starts_with("name=")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 23 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/systemd rw shared:11 - cgroup cgroup rw,xattr,name=systemd
33 30 0:31 / /sys/fs/cgroup/cpu,cpuacct rw shared:12 - cgroup cgroup rw,cpu,cpuacct
34 30 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
35 30 0:32 / /somewhere/else rw - cgroup cgroup rw,memory
";

    #[test]
    fn each_layout_is_recognised() {
        let hybrid = Hierarchy::parse(HYBRID).unwrap();
        assert_eq!(hybrid.mode(), Mode::Hybrid);
        assert_eq!(hybrid.places().len(), 4);
        assert_eq!(hybrid.unified_root(), Some(Path::new("/sys/fs/cgroup/unified")));
        let (place, version) = hybrid.locate("cpuacct").unwrap();
        assert_eq!((place.root(), version), (Path::new("/sys/fs/cgroup/cpu,cpuacct"), Version::Legacy));
        assert_eq!(hybrid.locate("pids").unwrap().1, Version::Unified);

        let pure = Hierarchy::parse("29 1 0:5 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw").unwrap();
        assert_eq!(pure.mode(), Mode::Unified);
        let legacy = Hierarchy::parse("29 1 0:5 / /a\\040b rw - cgroup cgroup rw,pids").unwrap();
        assert_eq!(legacy.mode(), Mode::Legacy);
        assert_eq!(legacy.locate("pids").unwrap().0.root(), Path::new("/a b"));
        assert!(legacy.locate("memory").is_none());
        assert!(matches!(Hierarchy::parse("29 1 0:5 / / rw - ext4 /dev/x rw"), Err(Error::NotMounted)));
    }
}
