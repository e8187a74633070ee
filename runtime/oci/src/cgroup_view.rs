//! The host's cgroups as a container's /sys/fs/cgroup is to show them: which trees there are, and the container's own directory in each.
//!
//! A container without a cgroup of its own lives in its caller's, which /proc/self/cgroup names; runc (`getCgroupMounts`) and crun
//! (`do_mount_cgroup_v1`) read it there too, for every container. Invariant: nothing is bound that lies above the container's place,
//! unless that place lies above the mount itself; only root of the host shows the whole tree of v2.

use std::path::{Path, PathBuf};

use runtime_linux::cgroup::{self, Cgroup, Mode};
use runtime_linux::proc::read_text;

use crate::StateRoot;
use crate::error::Error;
use crate::plan::CgroupView;

pub(crate) fn view(root: &StateRoot, cgroup: &Cgroup) -> Result<CgroupView, Error> {
    let mode = match root.hierarchy() {
        Ok(hierarchy) => hierarchy.mode(),
        // Who asks for no cgroup may be on a host without any.
        Err(Error::Cgroup(cgroup::Error::NotMounted)) => return Ok(CgroupView::V1 { hierarchies: Vec::new() }),
        Err(error) => return Err(error),
    };
    let read = |path: &str| read_text(Path::new(path)).map_err(|source| Error::Read { path: path.into(), source });
    let own = if cgroup.is_none() { Own::Callers(read("/proc/self/cgroup")?) } else { Own::Path(cgroup.path()) };
    // Asked only where it matters: it is a file of /proc.
    let is_hosts_root = mode == Mode::Unified && nix::unistd::geteuid().is_root() && runtime_linux::idmap::is_initial();
    Ok(look(mode, root.mounts()?, &own, is_hosts_root))
}

/// Where the container is in each tree.
enum Own<'a> {
    /// The same path everywhere, counted from where the tree is mounted.
    Path(&'a str),
    /// As cgroups(7) tells it, counted from the root of the cgroup namespace.
    Callers(String),
}

impl Own<'_> {
    fn directory(&self, tree: &Tree<'_>) -> PathBuf {
        match self {
            Self::Path(path) => tree.mount.join(path.trim_start_matches('/')),
            Self::Callers(text) => {
                let path = text.lines().find_map(|line| tree.is_meant(line)).unwrap_or("/");
                let below = Path::new(path).strip_prefix(tree.root).ok();
                tree.mount.join(below.filter(|path| !path.starts_with("..")).unwrap_or(Path::new("")))
            }
        }
    }
}

fn look(mode: Mode, table: &str, own: &Own<'_>, is_hosts_root: bool) -> CgroupView {
    let trees = table.lines().filter_map(Tree::parse);
    if mode == Mode::Unified {
        let tree = trees.into_iter().find(|tree| tree.is_unified);
        let own = tree.map(|tree| own.directory(&tree)).unwrap_or_default();
        return CgroupView::V2 { own, may_show_all: is_hosts_root };
    }
    let legacy = trees.filter(|tree| !tree.is_unified);
    let known = legacy.filter_map(|tree| {
        let name = tree.mount.file_name()?.to_str()?.to_owned();
        Some((name, tree.option(), own.directory(&tree)))
    });
    CgroupView::V1 { hierarchies: known.collect() }
}

/// A mounted cgroup file system: a line of proc_pid_mountinfo(5).
struct Tree<'a> {
    is_unified: bool,
    /// What of it is mounted.
    root: &'a str,
    mount: PathBuf,
    /// v1: controllers, or `name=`.
    controllers: Vec<&'a str>,
}

impl<'a> Tree<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let is_unified = match right.next()? {
            "cgroup" => false,
            "cgroup2" => true,
            _ => return None,
        };
        let mut left = left.split(' ').skip(3);
        let (root, mount) = (left.next()?, PathBuf::from(left.next()?.replace("\\040", " ")));
        let ignored = ["rw", "ro", "xattr", "noprefix", "clone_children", "none"];
        let of_controllers =
            |option: &&str| !ignored.contains(option) && (!option.contains('=') || option.starts_with("name="));
        let controllers = right.nth(1)?.split(',').filter(of_controllers).collect();
        Some(Self { is_unified, root, mount, controllers })
    }

    /// For mount(2), which finds the same hierarchy by it.
    fn option(&self) -> String {
        match self.controllers.iter().find(|name| name.starts_with("name=")) {
            Some(name) => format!("none,{name}"),
            None => self.controllers.join(","),
        }
    }

    /// The path of a line `id:controllers:path` that is about this tree.
    fn is_meant<'line>(&self, line: &'line str) -> Option<&'line str> {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let is_same = if self.is_unified {
            controllers.is_empty()
        } else {
            controllers.split(',').any(|name| self.controllers.contains(&name))
        };
        is_same.then_some(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/systemd rw shared:11 - cgroup cgroup rw,xattr,name=systemd
33 30 0:31 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
34 30 0:32 /pod /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory,release_agent=/x
35 30 0:33 /pod /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
";
    const CALLER: &str = "9:name=systemd:/user\n4:memory:/pod/shell\n3:pids:/elsewhere\n1:cpu,cpuacct:/\n0::/session\n";

    fn check(own: &Own<'_>, expect: [(&str, &str, &str); 4]) {
        let hierarchies = expect.map(|(name, option, own)| (name.to_owned(), option.to_owned(), PathBuf::from(own)));
        assert_eq!(look(Mode::Hybrid, HYBRID, own, true), CgroupView::V1 { hierarchies: hierarchies.to_vec() });
    }

    #[test]
    fn its_own_cgroup_or_its_callers() {
        let own = Own::Path("/c");
        check(
            &own,
            [
                ("systemd", "none,name=systemd", "/sys/fs/cgroup/systemd/c"),
                ("cpu,cpuacct", "cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct/c"),
                ("memory", "memory", "/sys/fs/cgroup/memory/c"),
                ("pids", "pids", "/sys/fs/cgroup/pids/c"),
            ],
        );
        // Where the caller is not below what is mounted, the whole mount is all that can be shown.
        check(
            &Own::Callers(CALLER.to_owned()),
            [
                ("systemd", "none,name=systemd", "/sys/fs/cgroup/systemd/user"),
                ("cpu,cpuacct", "cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct/"),
                ("memory", "memory", "/sys/fs/cgroup/memory/shell"),
                ("pids", "pids", "/sys/fs/cgroup/pids/"),
            ],
        );
        let unified = "29 1 0:5 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        for (own, expect) in [
            (Own::Path("/a/c"), "/sys/fs/cgroup/a/c"),
            (Own::Callers(CALLER.to_owned()), "/sys/fs/cgroup/session"),
            (Own::Callers("0::/../..\n".to_owned()), "/sys/fs/cgroup/"),
        ] {
            let expect = CgroupView::V2 { own: expect.into(), may_show_all: false };
            assert_eq!(look(Mode::Unified, unified, &own, false), expect);
        }
    }
}
