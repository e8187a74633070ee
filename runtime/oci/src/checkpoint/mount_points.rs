//! Where criu restores a container: a private copy of its root, with a mount point for everything external.
//!
//! The root may have been made anew since the dump, so what is missing is made; safely, since what lies below belongs to the container.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, OFlag};
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::stat::{Mode, SFlag, fstat};
use runtime_linux::mount::{self, Tree};
use runtime_linux::namespace::{self, Kind};
use runtime_linux::rooted::Root;

use super::externals::{External, Externals, lexical, path_of};
use crate::create::parent;
use crate::error::Error;

const DIRECTORY: Mode = Mode::from_bits_truncate(0o755);
const FILE: Mode = Mode::from_bits_truncate(0o644);

/// criu wants its root to be a mount: one that only we see, and that goes with this value.
pub(super) struct PrivateRoot(PathBuf);

impl PrivateRoot {
    pub(super) fn mount(rootfs: &Path, at: &Path) -> Result<Self, Error> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(at);
        made.map_err(|source| Error::Write { path: at.to_owned(), source })?;
        namespace::unshare(Kind::Mount.flag()).map_err(parent("unshare the mount namespace"))?;
        // Not private: what was the host's slave can only be so again by a copy of one.
        mount::set_root_propagation(MsFlags::MS_SLAVE | MsFlags::MS_REC)
            .map_err(parent("cut mount propagation to the host"))?;
        let tree = mount::open_tree(AT_FDCWD, rootfs, Tree::CloneRecursive)
            .map_err(parent(format!("open {}", rootfs.display())))?;
        let target = nix::fcntl::open(at, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
        let target = target.map_err(parent("open the root"))?;
        mount::attach(&tree, &target).map_err(parent("bind the root file system"))?;
        Ok(Self(at.to_owned()))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for PrivateRoot {
    fn drop(&mut self) {
        // The restored container has its own copy; what is left goes with our mount namespace.
        let _gone = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// Makes mount points and says, in criu's words, what lies where.
pub(super) fn prepare(at: &Path, externals: &Externals) -> Result<Vec<String>, Error> {
    // Through the mount itself: what is attached below is seen through it.
    let root = Root::open_dir(at).map_err(parent(format!("open {}", at.display())))?;
    let mut words = Vec::new();
    let mut attached = Vec::new();
    for external in &externals.mounts {
        if externals.is_covered(&external.inside) {
            // criu makes what lies there itself.
            words.push(external.word(&lexical(&external.inside)));
            continue;
        }
        if external.is_mask && !is_there_as_a_file(&root, &external.inside) {
            // Nothing was masked there, or a directory, by a file system of the container's own.
            continue;
        }
        let step = || format!("make mount point {} for {}", external.inside.display(), external.source.display());
        let is_dir = external.source.is_dir();
        let (inside, mode) = (&external.inside, if is_dir { DIRECTORY } else { FILE });
        let made = if is_dir { root.ensure_dir(inside, mode) } else { root.ensure_file(inside, mode) };
        let target = made.map_err(parent(step()))?;
        let place = path_of(&target)?;
        words.push(external.word(&lexical(place.strip_prefix(at).unwrap_or(&place))));
        attach(external, &target).map_err(parent(step()))?;
        attached.push(place);
    }
    // Only what lies below them was to be found; criu mounts them itself.
    for place in attached.iter().rev() {
        umount2(place, MntFlags::MNT_DETACH).map_err(parent(format!("unmount {}", place.display())))?;
    }
    Ok(words)
}

fn is_there_as_a_file(root: &Root, inside: &Path) -> bool {
    let found = root.open(inside, OFlag::O_PATH).and_then(fstat);
    found.is_ok_and(|status| SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT != SFlag::S_IFDIR)
}

fn attach(external: &External, target: &std::os::fd::OwnedFd) -> Result<(), nix::errno::Errno> {
    let tree = mount::open_tree(AT_FDCWD, &external.source, Tree::CloneRecursive)?;
    mount::attach(&tree, target)
}
