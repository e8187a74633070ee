//! Mounts: the new mount API (`fsopen`, `open_tree`, `move_mount`, `mount_setattr`) and the classic calls.
//!
//! Not a place for policy. Invariant: a mount that is made here is detached until it is attached to a descriptor.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};

use crate::syscall::{check, check_fd, path as c_path};

mod views;

pub use views::unescape;

/// An overlay that is still to be mounted: what `images` prepares and `oci` mounts inside the container's own mount namespace.
///
/// Paths are absolute. `lower[0]` is the topmost layer, as in the kernel's `lowerdir`; `upper` and `work` lie on one file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    pub lower: Vec<PathBuf>,
    pub upper: PathBuf,
    pub work: PathBuf,
}

/// linux/mount.h, MOUNT_ATTR_*.
pub mod attribute {
    pub const RDONLY: u64 = 0x01;
    pub const NOSUID: u64 = 0x02;
    pub const NODEV: u64 = 0x04;
    pub const NOEXEC: u64 = 0x08;
    /// The field of the three access-time modes; `RELATIME` is its zero.
    pub const ATIME: u64 = 0x70;
    pub const NOATIME: u64 = 0x10;
    pub const STRICTATIME: u64 = 0x20;
    pub const NODIRATIME: u64 = 0x80;
    pub const IDMAP: u64 = 0x0010_0000;
    pub const NOSYMFOLLOW: u64 = 0x0020_0000;
}

const FSOPEN_CLOEXEC: u32 = 1;
const FSMOUNT_CLOEXEC: u32 = 1;
const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
const FSCONFIG_CMD_RECONFIGURE: u32 = 7;
const FSPICK_CLOEXEC: u32 = 1;
const FSPICK_EMPTY_PATH: u32 = 8;
const OPEN_TREE_CLONE: u32 = 1;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x04;
const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;
const AT_RECURSIVE: u32 = 0x8000;

/// What fsconfig takes in one value, NUL included.
const VALUE_BYTES_MAX: usize = 256;
/// Bytes kept of what a file system says about a refusal.
const MESSAGE_BYTES_MAX: usize = 512;

/// A file system that is being configured.
#[derive(Debug)]
pub struct Filesystem {
    context: OwnedFd,
}

impl Filesystem {
    pub fn open(kind: &str) -> Result<Self, Errno> {
        let kind = c_path(kind)?;
        // SAFETY: `kind` is a NUL-terminated string that outlives the call.
        let context = check_fd(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })?;
        Ok(Self { context })
    }

    /// The superblock of what is mounted at the descriptor, to be changed.
    pub fn pick(mount: impl AsFd) -> Result<Self, Errno> {
        let flags = FSPICK_CLOEXEC | FSPICK_EMPTY_PATH;
        let fd = mount.as_fd().as_raw_fd();
        // SAFETY: the path is an empty NUL-terminated string.
        let context = check_fd(unsafe { libc::syscall(libc::SYS_fspick, fd, c"".as_ptr(), flags) })?;
        Ok(Self { context })
    }

    /// Applies to a picked superblock what was set.
    pub fn reconfigure(&self) -> Result<(), Errno> {
        self.configure(FSCONFIG_CMD_RECONFIGURE, None, None)
    }

    pub fn set(&self, key: &str, value: impl AsRef<Path>) -> Result<(), Errno> {
        let value = c_path(value.as_ref())?;
        if value.as_bytes_with_nul().len() > VALUE_BYTES_MAX {
            return Err(Errno::E2BIG);
        }
        self.configure(FSCONFIG_SET_STRING, Some(&c_path(key)?), Some(&value))
    }

    pub fn set_flag(&self, key: &str) -> Result<(), Errno> {
        self.configure(FSCONFIG_SET_FLAG, Some(&c_path(key)?), None)
    }

    /// Makes the superblock and a detached mount of it.
    pub fn mount(&self, attributes: u64) -> Result<OwnedFd, Errno> {
        self.configure(FSCONFIG_CMD_CREATE, None, None)?;
        let fd = self.context.as_raw_fd();
        // SAFETY: fsmount takes three integers.
        check_fd(unsafe { libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, attributes) })
    }

    /// What the file system has to say about its last refusal; empty where it says nothing.
    pub fn message(&self) -> String {
        let mut buffer = [0u8; MESSAGE_BYTES_MAX];
        match nix::unistd::read(&self.context, &mut buffer) {
            // "e " opens an error, "w " a warning, "i " information.
            Ok(length) if length > 2 => String::from_utf8_lossy(&buffer[2..length]).trim_end().to_owned(),
            _ => String::new(),
        }
    }

    fn configure(&self, command: u32, key: Option<&CStr>, value: Option<&CStr>) -> Result<(), Errno> {
        let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: both strings are NUL-terminated and outlive the call; null is what the commands without them take.
        check(unsafe {
            libc::syscall(libc::SYS_fsconfig, self.context.as_raw_fd(), command, pointer(key), pointer(value), 0)
        })?;
        Ok(())
    }
}

/// What `open_tree` gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tree {
    /// A detached copy of the one mount.
    Clone,
    /// A detached copy with everything mounted below.
    CloneRecursive,
}

/// A detached copy of what is at `path`, which may be empty to mean the descriptor itself. Follows symlinks: for host paths.
pub fn open_tree(at: BorrowedFd<'_>, path: &Path, tree: Tree) -> Result<OwnedFd, Errno> {
    open_tree_flags(at, path, tree, 0)
}

/// The same, but a symlink at the end is what is copied.
pub fn open_tree_nofollow(at: BorrowedFd<'_>, path: &Path, tree: Tree) -> Result<OwnedFd, Errno> {
    open_tree_flags(at, path, tree, libc::AT_SYMLINK_NOFOLLOW)
}

fn open_tree_flags(at: BorrowedFd<'_>, path: &Path, tree: Tree, more: libc::c_int) -> Result<OwnedFd, Errno> {
    let path = c_path(path)?;
    let flags = u32::try_from(libc::O_CLOEXEC | libc::AT_EMPTY_PATH | more).map_err(|_| Errno::EINVAL)?;
    let flags = flags | OPEN_TREE_CLONE | if tree == Tree::CloneRecursive { AT_RECURSIVE } else { 0 };
    // SAFETY: `path` is NUL-terminated and outlives the call.
    check_fd(unsafe { libc::syscall(libc::SYS_open_tree, at.as_raw_fd(), path.as_ptr(), flags) })
}

/// Attaches a detached (or moves an attached) mount onto what the descriptor `target` names.
pub fn attach(mount: impl AsFd, target: impl AsFd) -> Result<(), Errno> {
    let (mount, target) = (mount.as_fd().as_raw_fd(), target.as_fd().as_raw_fd());
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: both paths are empty NUL-terminated strings.
    check(unsafe { libc::syscall(libc::SYS_move_mount, mount, c"".as_ptr(), target, c"".as_ptr(), flags) })?;
    Ok(())
}

/// Unmounts, lazily, what the descriptor is the root of; `EINVAL` where that is no mount's root.
pub fn detach(mount: impl AsFd) -> Result<(), Errno> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", mount.as_fd().as_raw_fd()));
    nix::mount::umount2(&path, MntFlags::MNT_DETACH)
}

/// The same for a directory, without /proc; afterwards the working directory is `home`.
pub fn detach_directory(mount: impl AsFd, home: impl AsFd) -> Result<(), Errno> {
    nix::unistd::fchdir(mount)?;
    let done = nix::mount::umount2(".", MntFlags::MNT_DETACH);
    nix::unistd::fchdir(home)?;
    done
}

/// What is mounted on a file of a directory, through no symlink; afterwards the working directory is `home`.
pub fn detach_file(directory: impl AsFd, name: &Path, home: impl AsFd) -> Result<(), Errno> {
    nix::unistd::fchdir(directory)?;
    let done = nix::mount::umount2(name, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    nix::unistd::fchdir(home)?;
    done
}

/// How mounts below a mount follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    One,
    Recursive,
}

/// What `mount_setattr(2)` changes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change<'fd> {
    pub set: u64,
    pub clear: u64,
    /// `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE`, or 0 for no change.
    pub propagation: u64,
    /// The user namespace whose maps the mount takes; needs `attribute::IDMAP` in `set`.
    pub user_namespace: Option<BorrowedFd<'fd>>,
}

#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

pub fn set_attributes(mount: impl AsFd, reach: Reach, change: &Change<'_>) -> Result<(), Errno> {
    let attributes = MountAttributes {
        set: change.set,
        clear: change.clear,
        propagation: change.propagation,
        user_namespace: match change.user_namespace {
            Some(fd) => u64::try_from(fd.as_raw_fd()).map_err(|_| Errno::EBADF)?,
            None => 0,
        },
    };
    let empty = u32::try_from(libc::AT_EMPTY_PATH).map_err(|_| Errno::EINVAL)?;
    let flags = empty | if reach == Reach::Recursive { AT_RECURSIVE } else { 0 };
    let fd = mount.as_fd().as_raw_fd();
    // SAFETY: `attributes` has the kernel's layout (MOUNT_ATTR_SIZE_VER0) and outlives the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    })?;
    Ok(())
}

/// Sets the propagation of everything below `/` in this mount namespace.
pub fn set_root_propagation(propagation: MsFlags) -> Result<(), Errno> {
    nix::mount::mount(None::<&Path>, "/", None::<&Path>, propagation, None::<&Path>)
}

/// Mounts an overlay, detached.
///
/// Kernels before 6.8 have no `lowerdir+`, and one fsconfig value holds 255 bytes only; then the layers go through the classic call,
/// attached to `fallback_target`, and `None` comes back. Before 6.5 overlay takes any option and refuses it only when it is mounted.
pub fn overlay(overlay: &Overlay, fallback_target: &Path) -> Result<Option<OwnedFd>, (Errno, String)> {
    let filesystem = Filesystem::open("overlay").map_err(|errno| (errno, String::new()))?;
    let mounted = configure_overlay(&filesystem, overlay).and_then(|()| filesystem.mount(0));
    match mounted.map_err(|errno| (errno, filesystem.message())) {
        Ok(mount) => Ok(Some(mount)),
        Err((Errno::EINVAL | Errno::E2BIG, said)) => {
            classic_overlay(overlay, fallback_target).map_err(|errno| (errno, said))?;
            Ok(None)
        }
        Err(refused) => Err(refused),
    }
}

fn configure_overlay(filesystem: &Filesystem, overlay: &Overlay) -> Result<(), Errno> {
    for layer in &overlay.lower {
        filesystem.set("lowerdir+", layer)?;
    }
    filesystem.set("upperdir", &overlay.upper)?;
    filesystem.set("workdir", &overlay.work)
}

fn classic_overlay(overlay: &Overlay, target: &Path) -> Result<(), Errno> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let escaped = |path: &Path| {
        let mut bytes = Vec::new();
        for byte in path.as_os_str().as_bytes() {
            if b"\\:,".contains(byte) {
                bytes.push(b'\\');
            }
            bytes.push(*byte);
        }
        bytes
    };
    let mut options = b"lowerdir=".to_vec();
    for (index, layer) in overlay.lower.iter().enumerate() {
        if index > 0 {
            options.push(b':');
        }
        options.extend(escaped(layer));
    }
    for (key, path) in [(",upperdir=", &overlay.upper), (",workdir=", &overlay.work)] {
        options.extend(key.as_bytes());
        options.extend(escaped(path));
    }
    let options = std::ffi::OsString::from_vec(options);
    nix::mount::mount(Some("overlay"), target, Some("overlay"), MsFlags::empty(), Some(options.as_os_str()))
}

/// Makes the directory of `new_root` the root, and lets go of the old one. `EINVAL` where the host's root is an initramfs.
pub fn pivot_root(new_root: impl AsFd) -> Result<(), Errno> {
    let old_root = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    nix::unistd::fchdir(new_root)?;
    // pivot_root(2), "pivot_root(".", ".")": the old root ends up on top of the new one, and is what "." unmounts.
    nix::unistd::pivot_root(".", ".")?;
    // The old root must not hand our unmount on to the host. It alone: what the new one shares stays shared.
    nix::unistd::fchdir(&old_root)?;
    nix::mount::mount(None::<&Path>, ".", None::<&Path>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&Path>)?;
    nix::mount::umount2(".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir("/")
}

/// Where `pivot_root` is impossible: moves the mount of `new_root` over `/` and changes into it.
///
/// The host's mounts stay below, but for its views of the kernel; see `views.rs`.
pub fn move_and_chroot(new_root: impl AsFd) -> Result<(), Errno> {
    views::take_away_outside(&new_root)?;
    nix::unistd::fchdir(new_root)?;
    nix::mount::mount(Some("."), "/", None::<&Path>, MsFlags::MS_MOVE, None::<&Path>)?;
    nix::unistd::chroot(".")?;
    nix::unistd::chdir("/")
}

/// The same for a new root that lies over the old one already.
pub fn chroot_over(new_root: impl AsFd) -> Result<(), Errno> {
    views::take_away_outside(&new_root)?;
    nix::unistd::fchdir(new_root)?;
    nix::unistd::chroot(".")?;
    nix::unistd::chdir("/")
}
