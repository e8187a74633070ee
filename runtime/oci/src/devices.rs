//! Device nodes for a container in a user namespace, where mknod(2) is forbidden: made outside, and handed in as mounts.
//!
//! A short-lived child with a mount namespace of its own makes them on a tmpfs that nobody else ever sees. Invariant: no mount and no node is
//! left on the host, whenever anybody is killed.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::mount::MsFlags;
use nix::sys::stat::{Mode, SFlag, makedev, mknodat};
use nix::unistd::{Gid, Uid};
use runtime_linux::clone::{Cloned, clone, exit_now};
use runtime_linux::idmap::Range;
use runtime_linux::mount::{self, Change, Filesystem, Reach, Tree, attribute};
use runtime_linux::namespace::Kind;
use runtime_linux::{fd_passing, local_socket, pidfd};

use crate::plan::{DeviceNode, Namespaces};

/// One node as a detached mount, with the owner that the container's ids stand for.
pub(crate) fn make(node: &DeviceNode, namespaces: &Namespaces) -> Result<OwnedFd, Errno> {
    let outside = |ranges: &[Range], id: u32| {
        let range = ranges.iter().find(|range| id >= range.inside && id - range.inside < range.length);
        // In a joined namespace the maps are not ours to know.
        range.map_or(id, |range| range.outside + (id - range.inside))
    };
    let (uid, gid) = (outside(&namespaces.maps.uids, node.uid), outside(&namespaces.maps.gids, node.gid));
    let (ours, theirs) = local_socket::pair()?;
    match clone(Kind::Mount.flag(), None)? {
        Cloned::Child => {
            drop(ours);
            let errno = match make_here(node, uid, gid) {
                Ok(tree) => fd_passing::send(&theirs, &[0; 4], &[tree.as_fd()]).err(),
                Err(errno) => fd_passing::send(&theirs, &(errno as i32).to_ne_bytes(), &[]).err(),
            };
            exit_now(i32::from(errno.is_some()))
        }
        Cloned::Parent { pidfd: child, .. } => {
            drop(theirs);
            let (mut answer, mut trees): ([u8; 4], Vec<OwnedFd>) = ([0; 4], Vec::new());
            let received = fd_passing::receive(&ours, &mut answer, &mut trees);
            pidfd::wait(&child)?;
            received?;
            let errno = i32::from_ne_bytes(answer);
            trees.pop().ok_or(if errno == 0 { Errno::EPIPE } else { Errno::from_raw(errno) })
        }
    }
}

/// In a mount namespace of our own.
fn make_here(node: &DeviceNode, uid: u32, gid: u32) -> Result<OwnedFd, Errno> {
    mount::set_root_propagation(MsFlags::MS_PRIVATE | MsFlags::MS_REC)?;
    let filesystem = Filesystem::open("tmpfs")?;
    filesystem.set("mode", "700")?;
    let tree = filesystem.mount(0)?;
    // open_tree(2) copies only what is attached, before kernel 6.15. Any directory serves: this namespace ends with us.
    let at = nix::fcntl::open("/proc", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    mount::attach(&tree, &at)?;
    let name: PathBuf = "node".into();
    let kind = if node.letter == 'b' { SFlag::S_IFBLK } else { SFlag::S_IFCHR };
    nix::sys::stat::umask(Mode::empty());
    mknodat(&tree, name.as_path(), kind, Mode::from_bits_truncate(node.mode), makedev(node.major, node.minor))?;
    let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
    nix::unistd::fchownat(&tree, name.as_path(), Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), flags)?;
    let copy = mount::open_tree(tree.as_fd(), Path::new("node"), Tree::Clone)?;
    restrict(&copy)?;
    Ok(copy)
}

/// A device is all that a node's mount is for; what the container mounts over it is none of the host's business.
pub(crate) fn restrict(tree: &OwnedFd) -> Result<(), Errno> {
    let (set, propagation) = (attribute::NOSUID | attribute::NOEXEC, MsFlags::MS_PRIVATE.bits());
    mount::set_attributes(tree, Reach::One, &Change { set, propagation, ..Change::default() })
}
