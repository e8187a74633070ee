//! From the inherited mounts to the new root. Every mount is made detached and attached to a descriptor below the root's own.

mod cgroup;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::MsFlags;
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use runtime_linux::mount::{self, Change, Filesystem, Overlay, Reach, Tree, attribute};
use runtime_linux::rooted::Root;

use super::{Child, Done, Held, Refusal, RootPlace, copy_up, devices};
use crate::plan::{BindMount, Data, FilesystemMount, MountAttributes, MountStep, Opener, Step};
use crate::sources;
use crate::sync::{self, Order, Report};

/// Mode of directories that are made as mount points.
const DIRECTORY: Mode = Mode::from_bits_truncate(0o755);
const FILE: Mode = Mode::from_bits_truncate(0o644);

pub(super) fn execute(step: &Step, child: &mut Child<'_>, held: &mut Held) -> Done {
    match step {
        Step::Propagation(flag) => propagation(*flag)?,
        Step::RootBind { source, at } => root_bind(*source, at.as_deref(), child, held)?,
        Step::RootOverlay(overlay) => root_overlay(overlay, held)?,
        Step::RootDirectory(path) => held.root = Some(Root::open_dir(path)?),
        Step::Mount { destination, attributes, mount } => match mount {
            MountStep::Filesystem(mount) => filesystem(destination, attributes, mount, held)?,
            MountStep::Bind(bind) => bind_mount(destination, attributes, bind, child, held)?,
            MountStep::Cgroup(cgroup) => cgroup::mount(destination, attributes, cgroup, child, held)?,
            MountStep::Remount { superblock } => remount(destination, attributes, superblock.as_deref(), held)?,
        },
        Step::Unmount(path) => unmount(path, root(held)?)?,
        Step::MountsReadonly => {
            for mount in held.writable.drain(..) {
                let change = Change { set: attribute::RDONLY, ..Change::default() };
                mount::set_attributes(&mount, Reach::One, &change)?;
            }
        }
        Step::EnsureDirectory(path) => ensure_directory(path, held)?,
        Step::PivotRoot => match mount::pivot_root(root(held)?) {
            // pivot_root(2): the host's root is its initramfs, which cannot be left.
            Err(Errno::EINVAL) => chroot(child, held)?,
            other => other?,
        },
        Step::Chroot => chroot(child, held)?,
        Step::RootPropagation(flag) => root_propagation(MsFlags::from_bits_truncate(*flag))?,
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

/// Where the kernel cannot pivot. The new root lies over the old one already, or is moved there; see `attach_root`.
fn chroot(child: &Child<'_>, held: &Held) -> Done {
    let root = root(held)?;
    let place = if child.joins_mounts { RootPlace::Others } else { held.root_place };
    match place {
        RootPlace::OwnPath => Ok(mount::move_and_chroot(root)?),
        RootPlace::OverRoot => Ok(mount::chroot_over(root)?),
        // What else is mounted there is not ours to take away.
        RootPlace::Others => {
            nix::unistd::fchdir(root)?;
            nix::unistd::chroot(".")?;
            Ok(nix::unistd::chdir("/")?)
        }
    }
}

fn propagation(flag: u64) -> Done {
    let mut flags = MsFlags::from_bits_truncate(flag);
    if flags == MsFlags::MS_UNBINDABLE {
        // What is unbindable could not even be bound as our root; it is made so at the end.
        flags = MsFlags::MS_PRIVATE;
    }
    Ok(mount::set_root_propagation(flags | MsFlags::MS_REC)?)
}

/// What is to be shared is so with the container's own only: as runc, the root is no slave of the host's any more.
fn root_propagation(flags: MsFlags) -> Done {
    if flags.contains(MsFlags::MS_SHARED) {
        mount::set_root_propagation(MsFlags::MS_PRIVATE)?;
    }
    Ok(mount::set_root_propagation(flags)?)
}

pub(super) fn take(source: usize, child: &mut Child<'_>) -> Result<OwnedFd, Refusal> {
    if let Some(tree) = child.sources.get_mut(source).and_then(Option::take) {
        return Ok(tree);
    }
    let source = child.source_paths.get(source).ok_or(Errno::ENOENT)?;
    sources::open_one(source).map_err(|errno| Refusal::said(errno, format!("open {}", source.path.display())))
}

/// The tree of a bind mount, its ids mapped.
fn bind_source(bind: &BindMount, child: &mut Child<'_>, held: &Held) -> Result<OwnedFd, Refusal> {
    let source = child.source_paths.get(bind.source).ok_or(Errno::ENOENT)?;
    if source.by != Opener::Root {
        return take(bind.source, child);
    }
    let flags = OFlag::O_PATH | if source.follow { OFlag::empty() } else { OFlag::O_NOFOLLOW };
    let said = |errno: Errno| Refusal::said(errno, format!("open {} of the container", source.path.display()));
    let found = root(held)?.open(&source.path, flags).map_err(said)?;
    let reach = if source.recursive { Tree::CloneRecursive } else { Tree::Clone };
    let tree = mount::open_tree(found.as_fd(), Path::new(""), reach).map_err(said)?;
    if bind.idmap.is_none() {
        return Ok(tree);
    }
    // It takes rights over the file system, which the root of a user namespace lacks.
    let number = u32::try_from(bind.source).map_err(|_| Errno::EOVERFLOW)?;
    let copy = tree.as_fd().try_clone_to_owned().map_err(|_| Errno::EMFILE)?;
    sync::send_report(&child.sync, &Report::NeedIds { source: number, tree: copy })?;
    match sync::receive_order(&child.sync)? {
        Order::IdsMapped => Ok(tree),
        other => Err(Refusal::words(format!("expected the ids to be mapped, was told {other:?}"))),
    }
}

fn root_bind(source: usize, at: Option<&Path>, child: &mut Child<'_>, held: &mut Held) -> Done {
    let tree = take(source, child)?;
    // A slave still gets what the host mounts below it, and is not shared, which pivot_root(2) would refuse.
    let change = Change { propagation: MsFlags::MS_SLAVE.bits(), ..Change::default() };
    mount::set_attributes(&tree, Reach::Recursive, &change)?;
    attach_root(tree, at, held)
}

fn root_overlay(overlay: &Overlay, held: &mut Held) -> Done {
    let mounted = mount::overlay(overlay, &overlay.upper).map_err(|(errno, detail)| Refusal::said(errno, detail))?;
    match mounted {
        Some(tree) => attach_root(tree, None, held),
        None => {
            // Attached over its upper directory by the classic call; now over the root, like the others.
            let at = Root::open_dir(&overlay.upper)?;
            let tree = at.open(Path::new("/"), OFlag::O_PATH)?;
            attach_root(tree, None, held)
        }
    }
}

/// The new root goes over the old one: no host path has to be reachable for the container's user. Where hooks look for it at its path and
/// that can be reached, it goes there.
fn attach_root(tree: OwnedFd, at: Option<&Path>, held: &mut Held) -> Done {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let own = at.and_then(|path| nix::fcntl::open(path, flags, Mode::empty()).ok());
    held.root_place = if own.is_some() { RootPlace::OwnPath } else { RootPlace::OverRoot };
    let target = match own {
        Some(own) => own,
        None => nix::fcntl::open("/", flags, Mode::empty())?,
    };
    mount::attach(&tree, &target)?;
    held.root = Some(Root::new(tree));
    Ok(())
}

/// What cannot be made will be missed by chdir, which then says so.
fn ensure_directory(path: &Path, held: &Held) -> Done {
    match root(held)?.ensure_dir(path, DIRECTORY) {
        Ok(_) | Err(Errno::EROFS | Errno::EACCES | Errno::EPERM | Errno::ENOTDIR | Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn unmount(path: &Path, root: &Root) -> Done {
    let said = |errno: Errno| match errno {
        Errno::EINVAL => {
            Refusal::said(errno, "nothing is mounted there, or it came with the container's user namespace")
        }
        errno => errno.into(),
    };
    let target = root.open(path, OFlag::O_PATH)?;
    // By no path of /proc, which is the container's own.
    let is_dir = SFlag::from_bits_truncate(fstat(&target)?.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR;
    if is_dir {
        return mount::detach_directory(&target, root).map_err(said);
    }
    let (parent, name) = path.parent().zip(path.file_name()).ok_or(Errno::EINVAL)?;
    let parent = root.open(parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
    mount::detach_file(&parent, Path::new(name), root).map_err(said)
}

/// The option's own attributes, then everything below, then propagation in the order given.
fn set_attributes(tree: impl AsFd, attributes: &MountAttributes) -> Result<(), Errno> {
    let tree = tree.as_fd();
    let (set, asked) = (attributes.set, attributes.clear);
    let own = |clear: u64| match set | clear {
        0 => Ok(()),
        _ => mount::set_attributes(tree, Reach::One, &Change { set, clear, ..Change::default() }),
    };
    match own(asked | attributes.clear_unasked) {
        // Locked by who gave the mount to our own user namespace; mount_namespaces(7).
        Err(Errno::EPERM) if attributes.clear_unasked != 0 => own(asked)?,
        other => other?,
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

fn filesystem(destination: &Path, attributes: &MountAttributes, mount: &FilesystemMount, held: &mut Held) -> Done {
    let root = root(held)?;
    let has_mode = mount.data.iter().any(|data| matches!(data, Data::Value(key, _) if key == "mode"));
    let directory = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let keeps_mode = mount.kind == "tmpfs" && !has_mode && root.open(destination, directory).is_ok();
    let target = if mount.kind == "proc" || mount.kind == "sysfs" {
        plain_dir(destination, root)?
    } else {
        root.ensure_dir(destination, DIRECTORY)?
    };
    refuse_proc(&target, destination)?;
    let filesystem = match Filesystem::open(&mount.kind) {
        // Only who owns the network namespace may mount one; a user namespace that shares the host's does not.
        Err(Errno::EPERM) if mount.kind == "sysfs" => return Ok(mount::attach(host_sysfs(attributes)?, &target)?),
        other => other?,
    };
    let said = |errno: Errno| Refusal::said(errno, filesystem.message());
    if let Some(source) = &mount.source {
        filesystem.set("source", source).map_err(said)?;
    }
    configure(&filesystem, &mount.data).map_err(said)?;
    if keeps_mode {
        // What was there keeps its mode; what was not has the mode of any tmpfs.
        let mode = fstat(&target)?.st_mode & 0o7777;
        filesystem.set("mode", format!("{mode:o}")).map_err(said)?;
    }
    let tree = if mount.copy_up {
        let tree = filesystem.mount(0).map_err(said)?;
        copy_up::copy(target.as_fd(), tree.as_fd())?;
        set_attributes(&tree, attributes)?;
        tree
    } else {
        let tree = filesystem.mount(attributes.set).map_err(said)?;
        set_attributes(&tree, &MountAttributes { set: 0, clear: 0, ..attributes.clone() })?;
        tree
    };
    mount::attach(&tree, &target)?;
    if mount.readonly_at_last {
        held.writable.push(tree.as_fd().try_clone_to_owned().map_err(|_| Errno::EMFILE)?);
    }
    if destination == Path::new("/") {
        // What comes after goes onto it.
        held.root = Some(Root::new(tree));
    }
    Ok(())
}

fn configure(filesystem: &Filesystem, data: &[Data]) -> Result<(), Errno> {
    for data in data {
        match data {
            Data::Flag(name) => filesystem.set_flag(name)?,
            Data::Hint(name) => match filesystem.set_flag(name) {
                // Not one of those that know it. The refusal's words must not be taken for a later one's.
                Err(Errno::EINVAL) => drop(filesystem.message()),
                other => other?,
            },
            Data::Value(key, value) => filesystem.set(key, value)?,
        }
    }
    Ok(())
}

/// The host's /sys with all that is mounted below it, for nobody to write to: the cgroups in it are the host's own (CVE-2023-25809).
fn host_sysfs(attributes: &MountAttributes) -> Result<OwnedFd, Refusal> {
    let tree = mount::open_tree(nix::fcntl::AT_FDCWD, Path::new("/sys"), Tree::CloneRecursive)?;
    let set = attribute::RDONLY | attribute::NOSUID | attribute::NODEV | attribute::NOEXEC;
    let slave = MsFlags::MS_SLAVE.bits();
    mount::set_attributes(&tree, Reach::Recursive, &Change { set, propagation: slave, ..Change::default() })?;
    set_attributes(&tree, &MountAttributes { clear: 0, recursive_clear: 0, ..attributes.clone() })?;
    Ok(tree)
}

/// runtime-spec 1.3, "remount": mount(8)'s, for what an earlier entry has mounted.
fn remount(destination: &Path, attributes: &MountAttributes, superblock: Option<&[Data]>, held: &Held) -> Done {
    // No symlink of the image may lead to a file system that the entry does not mean.
    let target = root(held)?.open_plain(destination, OFlag::O_PATH)?;
    refuse_proc(&target, destination)?;
    if let Some(data) = superblock {
        let filesystem = Filesystem::pick(&target)?;
        let said = |errno: Errno| Refusal::said(errno, filesystem.message());
        configure(&filesystem, data).map_err(said)?;
        for (attribute, name) in [(attributes.set, "ro"), (attributes.clear, "rw")] {
            if attribute & attribute::RDONLY != 0 {
                filesystem.set_flag(name).map_err(said)?;
            }
        }
        filesystem.reconfigure().map_err(said)?;
    }
    Ok(set_attributes(&target, attributes)?)
}

/// A symlink would put the real one elsewhere and leave a fake in its place (CVE-2019-19921, CVE-2023-27561).
fn plain_dir(destination: &Path, root: &Root) -> Result<OwnedFd, Refusal> {
    root.ensure_plain_dir(destination, DIRECTORY)
        .map_err(|errno| Refusal::said(errno, "must be mounted on ordinary directory"))
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
    held: &mut Held,
) -> Done {
    let tree = bind_source(bind, child, held)?;
    if destination == Path::new("/proc") && !runtime_linux::proc::is_root(&tree)? {
        return Err(Refusal::said(Errno::EPERM, "only a proc file system may be mounted on /proc"));
    }
    let kind = SFlag::from_bits_truncate(fstat(&tree)?.st_mode) & SFlag::S_IFMT;
    if bind.copy_symlink && kind == SFlag::S_IFLNK {
        return copy_symlink(&tree, destination, root(held)?);
    }
    let root = root(held)?;
    let is_kernels = destination == Path::new("/proc") || destination == Path::new("/sys");
    // The mount point for a tree: a directory for a directory, a file for anything else.
    let target = match (kind == SFlag::S_IFDIR, bind.nofollow) {
        _ if is_kernels => plain_dir(destination, root)?,
        (true, _) => root.ensure_dir(destination, DIRECTORY)?,
        (false, false) => root.ensure_file(destination, FILE)?,
        (false, true) => root.ensure_file_nofollow(destination, FILE)?,
    };
    refuse_proc(&target, destination)?;
    set_attributes(&tree, attributes)?;
    mount::attach(&tree, &target)?;
    if destination == Path::new("/") {
        held.root = Some(Root::new(tree));
    }
    Ok(())
}

fn copy_symlink(tree: &OwnedFd, destination: &Path, root: &Root) -> Done {
    let link = nix::fcntl::readlinkat(tree, "")?;
    let (parent, name) = root.ensure_parent(destination)?;
    match nix::unistd::symlinkat(Path::new(&link), &parent, name.as_path()) {
        Err(Errno::EEXIST) if nix::fcntl::readlinkat(&parent, name.as_path()).is_ok_and(|found| found == link) => {
            Ok(())
        }
        other => Ok(other?),
    }
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
