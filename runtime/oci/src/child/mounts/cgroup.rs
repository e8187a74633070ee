//! /sys/fs/cgroup: the one tree of v2, or a directory with v1's hierarchies. Never the host's own, which the container could write to.

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::MsFlags;
use runtime_linux::mount::{self, Change, Filesystem, Reach, attribute};
use runtime_linux::rooted::Root;

use super::super::{Child, Done, Held, Refusal};
use super::{DIRECTORY, configure, root, set_attributes, take};
use crate::plan::{CgroupMount, MountAttributes};

pub(super) fn mount(
    destination: &Path,
    attributes: &MountAttributes,
    cgroup: &CgroupMount,
    child: &mut Child<'_>,
    held: &Held,
) -> Done {
    let target = root(held)?.ensure_dir(destination, DIRECTORY)?;
    let below = MountAttributes { set: attributes.set, clear: attributes.clear, ..MountAttributes::default() };
    match cgroup {
        CgroupMount::V2 { data } => {
            let filesystem = Filesystem::open("cgroup2")?;
            let said = |errno: Errno| Refusal::said(errno, filesystem.message());
            configure(&filesystem, data).map_err(said)?;
            let tree = filesystem.mount(attributes.set).map_err(said)?;
            set_attributes(&tree, attributes)?;
            Ok(mount::attach(&tree, &target)?)
        }
        CgroupMount::Bound { source } => {
            let tree = host_cgroup(*source, child)?;
            set_attributes(&tree, attributes)?;
            Ok(mount::attach(&tree, &target)?)
        }
        CgroupMount::V1 { hierarchies } => {
            let filesystem = Filesystem::open("tmpfs")?;
            filesystem.set("mode", "755")?;
            let tree = filesystem.mount(attributes.set & !attribute::RDONLY)?;
            mount::attach(&tree, &target)?;
            let top = Root::new(tree);
            for (name, controllers, source) in hierarchies {
                let at = top.ensure_dir(Path::new(name), DIRECTORY)?;
                let mounted = match source {
                    Some(source) => host_cgroup(*source, child)?,
                    None => v1_hierarchy(controllers)
                        .map_err(|(errno, text)| Refusal::said(errno, format!("{name}: {text}")))?,
                };
                set_attributes(&mounted, &below)?;
                mount::attach(&mounted, &at)?;
                // cpu,cpuacct is reached as cpu and as cpuacct.
                for alias in name.split(',').filter(|alias| *alias != name) {
                    nix::unistd::symlinkat(Path::new(name), &top, Path::new(alias))?;
                }
            }
            Ok(set_attributes(&top, attributes)?)
        }
    }
}

/// Where the host's mount is shared, the container's must not hand on what is mounted below it.
fn host_cgroup(source: usize, child: &mut Child<'_>) -> Result<OwnedFd, Refusal> {
    let tree = take(source, child)?;
    let change = Change { propagation: MsFlags::MS_SLAVE.bits(), ..Change::default() };
    mount::set_attributes(&tree, Reach::Recursive, &change)?;
    Ok(tree)
}

fn v1_hierarchy(controllers: &str) -> Result<OwnedFd, (Errno, String)> {
    let filesystem = Filesystem::open("cgroup").map_err(|errno| (errno, String::new()))?;
    let said = |errno: Errno| (errno, filesystem.message());
    for option in controllers.split(',') {
        match option.split_once('=') {
            Some((key, value)) => filesystem.set(key, value),
            None => filesystem.set_flag(option),
        }
        .map_err(said)?;
    }
    filesystem.mount(0).map_err(said)
}
