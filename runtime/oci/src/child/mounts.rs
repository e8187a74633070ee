//! From the inherited mounts to the new root. Every mount is made detached and attached to a descriptor below the root's own.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::MsFlags;
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use runtime_linux::mount::{self, Change, Filesystem, Overlay, Reach, Tree, attribute};
use runtime_linux::rooted::Root;

use super::{Child, Done, Held, Refusal, copy_up, devices};
use crate::plan::{BindMount, CgroupMount, Data, FilesystemMount, MountAttributes, MountStep, Step};

/// Mode of directories that are made as mount points.
const DIRECTORY: Mode = Mode::from_bits_truncate(0o755);
const FILE: Mode = Mode::from_bits_truncate(0o644);

pub(super) fn execute(step: &Step, child: &mut Child<'_>, held: &mut Held) -> Done {
    match step {
        Step::Propagation(flag) => propagation(*flag)?,
        Step::RootBind { source } => root_bind(*source, child, held)?,
        Step::RootOverlay(overlay) => root_overlay(overlay, held)?,
        Step::RootDirectory(path) => held.root = Some(Root::open_dir(path)?),
        Step::Mount { destination, attributes, mount } => match mount {
            MountStep::Filesystem(mount) => filesystem(destination, attributes, mount, held)?,
            MountStep::Bind(bind) => bind_mount(destination, attributes, bind, child, held)?,
            MountStep::Cgroup(cgroup) => cgroup_mount(destination, attributes, cgroup, child, held)?,
        },
        Step::PivotRoot => match mount::pivot_root(root(held)?) {
            // pivot_root(2): the host's root is its initramfs, which cannot be left.
            Err(Errno::EINVAL) => chroot(held)?,
            other => other?,
        },
        Step::Chroot => chroot(held)?,
        Step::RootPropagation(flag) => mount::set_root_propagation(MsFlags::from_bits_truncate(*flag))?,
        Step::RootReadonly => {
            let change = Change { set: attribute::RDONLY, ..Change::default() };
            mount::set_attributes(root(held)?, Reach::One, &change)?;
        }
        Step::ReadonlyPath(path) => readonly_path(path, held)?,
        Step::MaskedPath(path) => masked_path(path, held)?,
        other => return Err(Refusal::words(format!("{other} is not a step of mounts"))),
    }
    Ok(())
}

fn root(held: &Held) -> Result<&Root, Errno> {
    held.root.as_ref().ok_or(Errno::ENOENT)
}

/// Where the kernel cannot pivot: the new root lies over the old one already, see `attach_root`.
fn chroot(held: &Held) -> Done {
    nix::unistd::fchdir(root(held)?)?;
    nix::unistd::chroot(".")?;
    Ok(nix::unistd::chdir("/")?)
}

fn propagation(flag: u64) -> Done {
    let mut flags = MsFlags::from_bits_truncate(flag);
    if flags == MsFlags::MS_UNBINDABLE {
        // What is unbindable could not even be bound as our root; it is made so at the end.
        flags = MsFlags::MS_PRIVATE;
    }
    Ok(mount::set_root_propagation(flags | MsFlags::MS_REC)?)
}

fn take(source: usize, child: &mut Child<'_>) -> Result<OwnedFd, Refusal> {
    child.sources.get_mut(source).and_then(Option::take).ok_or_else(|| Errno::ENOENT.into())
}

fn root_bind(source: usize, child: &mut Child<'_>, held: &mut Held) -> Done {
    let tree = take(source, child)?;
    // A slave still gets what the host mounts below it, and is not shared, which pivot_root(2) would refuse.
    let change = Change { propagation: MsFlags::MS_SLAVE.bits(), ..Change::default() };
    mount::set_attributes(&tree, Reach::Recursive, &change)?;
    attach_root(tree, held)
}

fn root_overlay(overlay: &Overlay, held: &mut Held) -> Done {
    let mounted = mount::overlay(overlay, &overlay.upper).map_err(|(errno, detail)| Refusal::said(errno, detail))?;
    match mounted {
        Some(tree) => attach_root(tree, held),
        None => {
            // Attached over its upper directory by the classic call; now over the root, like the others.
            let at = Root::open_dir(&overlay.upper)?;
            let tree = at.open(Path::new("/"), OFlag::O_PATH)?;
            attach_root(tree, held)
        }
    }
}

/// The new root goes over the old one: no host path has to be reachable for the container's user.
fn attach_root(tree: OwnedFd, held: &mut Held) -> Done {
    let over = nix::fcntl::open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    mount::attach(&tree, &over)?;
    held.root = Some(Root::new(tree));
    Ok(())
}

/// The option's own attributes, then everything below, then propagation in the order given.
fn set_attributes(tree: impl AsFd, attributes: &MountAttributes) -> Result<(), Errno> {
    let tree = tree.as_fd();
    if attributes.set | attributes.clear != 0 {
        let change = Change { set: attributes.set, clear: attributes.clear, ..Change::default() };
        mount::set_attributes(tree, Reach::One, &change)?;
    }
    if attributes.recursive_set | attributes.recursive_clear != 0 {
        let (set, clear) = (attributes.recursive_set, attributes.recursive_clear);
        mount::set_attributes(tree, Reach::Recursive, &Change { set, clear, ..Change::default() })?;
    }
    for (propagation, recursive) in &attributes.propagation {
        let reach = if *recursive { Reach::Recursive } else { Reach::One };
        mount::set_attributes(tree, reach, &Change { propagation: *propagation, ..Change::default() })?;
    }
    Ok(())
}

fn filesystem(destination: &Path, attributes: &MountAttributes, mount: &FilesystemMount, held: &Held) -> Done {
    let root = root(held)?;
    let target = if mount.kind == "proc" || mount.kind == "sysfs" {
        plain_dir(destination, root)?
    } else {
        root.ensure_dir(destination, DIRECTORY)?
    };
    refuse_proc(&target, destination)?;
    let filesystem = Filesystem::open(&mount.kind)?;
    let said = |errno: Errno| Refusal::said(errno, filesystem.message());
    if let Some(source) = &mount.source {
        filesystem.set("source", source).map_err(said)?;
    }
    let mut has_mode = false;
    for data in &mount.data {
        match data {
            Data::Flag(name) => filesystem.set_flag(name),
            Data::Value(key, value) => {
                has_mode |= key == "mode";
                filesystem.set(key, value)
            }
        }
        .map_err(said)?;
    }
    if mount.kind == "tmpfs" && !has_mode {
        // What was there keeps its mode.
        let mode = fstat(&target)?.st_mode & 0o7777;
        filesystem.set("mode", format!("{mode:o}")).map_err(said)?;
    }
    let plain = MountAttributes { set: 0, clear: 0, ..attributes.clone() };
    if mount.copy_up {
        let tree = filesystem.mount(0).map_err(said)?;
        copy_up::copy(target.as_fd(), tree.as_fd())?;
        set_attributes(&tree, attributes)?;
        return Ok(mount::attach(&tree, &target)?);
    }
    let tree = filesystem.mount(attributes.set).map_err(said)?;
    set_attributes(&tree, &plain)?;
    Ok(mount::attach(&tree, &target)?)
}

/// A symlink would put the real one elsewhere and leave a fake in its place (CVE-2019-19921, CVE-2023-27561).
fn plain_dir(destination: &Path, root: &Root) -> Result<OwnedFd, Refusal> {
    root.ensure_plain_dir(destination, DIRECTORY)
        .map_err(|errno| Refusal::said(errno, "must be mounted on an ordinary directory"))
}

/// Below /proc nothing is mounted over, however it is reached; `Plan` has looked at the written path only.
fn refuse_proc(target: &OwnedFd, destination: &Path) -> Done {
    if !destination.starts_with("/proc") && fstatfs(target)?.filesystem_type() == PROC_SUPER_MAGIC {
        return Err(Refusal::said(Errno::EPERM, "it leads into /proc"));
    }
    Ok(())
}

fn bind_mount(
    destination: &Path,
    attributes: &MountAttributes,
    bind: &BindMount,
    child: &mut Child<'_>,
    held: &Held,
) -> Done {
    let tree = take(bind.source, child)?;
    if destination == Path::new("/proc") && !runtime_linux::proc::is_root(&tree)? {
        return Err(Refusal::said(Errno::EPERM, "only a proc file system may be mounted on /proc"));
    }
    let target = if destination == Path::new("/proc") || destination == Path::new("/sys") {
        plain_dir(destination, root(held)?)?
    } else {
        target_like(&tree, destination, root(held)?)?
    };
    refuse_proc(&target, destination)?;
    set_attributes(&tree, attributes)?;
    Ok(mount::attach(&tree, &target)?)
}

/// The mount point for a tree: a directory for a directory, a file for anything else.
fn target_like(tree: &OwnedFd, destination: &Path, root: &Root) -> Result<OwnedFd, Errno> {
    let kind = SFlag::from_bits_truncate(fstat(tree)?.st_mode) & SFlag::S_IFMT;
    if kind == SFlag::S_IFDIR { root.ensure_dir(destination, DIRECTORY) } else { root.ensure_file(destination, FILE) }
}

fn cgroup_mount(
    destination: &Path,
    attributes: &MountAttributes,
    cgroup: &CgroupMount,
    child: &mut Child<'_>,
    held: &Held,
) -> Done {
    let target = root(held)?.ensure_dir(destination, DIRECTORY)?;
    let below = MountAttributes { set: attributes.set, clear: attributes.clear, ..MountAttributes::default() };
    match cgroup {
        CgroupMount::V2 => {
            let tree = Filesystem::open("cgroup2")?.mount(attributes.set)?;
            set_attributes(&tree, attributes)?;
            Ok(mount::attach(&tree, &target)?)
        }
        CgroupMount::Bound { source } => {
            let tree = take(*source, child)?;
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
                    Some(source) => take(*source, child)?,
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

/// What is not there needs no protection.
fn present(path: &Path, held: &Held) -> Result<Option<OwnedFd>, Errno> {
    match root(held)?.open(path, OFlag::O_PATH) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn readonly_path(path: &Path, held: &Held) -> Done {
    let Some(target) = present(path, held)? else { return Ok(()) };
    let tree = mount::open_tree(target.as_fd(), Path::new(""), Tree::CloneRecursive)?;
    mount::set_attributes(&tree, Reach::Recursive, &Change { set: attribute::RDONLY, ..Change::default() })?;
    Ok(mount::attach(&tree, &target)?)
}

fn masked_path(path: &Path, held: &mut Held) -> Done {
    let Some(target) = present(path, held)? else { return Ok(()) };
    let is_dir = SFlag::from_bits_truncate(fstat(&target)?.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR;
    // One empty directory and one /dev/null serve all masks: the first is attached, the others are copies of it. A copy of what is not
    // attached is refused with EINVAL before kernel 6.15; open_tree(2).
    let template = if is_dir { &mut held.mask } else { &mut held.null };
    if let Some(template) = template {
        let tree = mount::open_tree(template.as_fd(), Path::new(""), Tree::Clone)?;
        return Ok(mount::attach(&tree, &target)?);
    }
    let tree = if is_dir { empty_dir()? } else { devices::host_null()? };
    mount::attach(&tree, &target)?;
    *template = Some(tree);
    Ok(())
}

fn empty_dir() -> Result<OwnedFd, Errno> {
    let filesystem = Filesystem::open("tmpfs")?;
    filesystem.set_flag("ro")?;
    filesystem.mount(attribute::RDONLY)
}
