//! Mounts of a container without a mount namespace: they lie on the host, below its root directory, until it is deleted.
//!
//! Invariant: the record names them before the first is made, and only what lies just there is taken away.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use runtime_linux::mount;
use runtime_linux::rooted::Root;

use crate::create::parent;
use crate::error::Error;
use crate::plan::{Plan, Step};

/// The places that a plan mounts something at, in its order; none for a plan with a mount namespace.
pub(crate) fn of(plan: &Plan) -> Vec<PathBuf> {
    if !plan.setup.iter().any(|step| matches!(step, Step::RootDirectory(_))) {
        return Vec::new();
    }
    let place = |step: &Step| match step {
        Step::Mount { destination, .. } => Some(destination.clone()),
        Step::Device(node) if node.bind.is_some() => Some(node.path.clone()),
        Step::Console { bind: true, .. } => Some(PathBuf::from("/dev/console")),
        _ => None,
    };
    plan.setup.iter().filter_map(place).collect()
}

/// Takes them away again, the last first; what is gone already is fine.
pub(crate) fn remove(rootfs: &Path, places: &[PathBuf]) -> Result<(), Error> {
    if places.is_empty() {
        return Ok(());
    }
    let root = match Root::open_dir(rootfs) {
        Ok(root) => root,
        Err(Errno::ENOENT) => return Ok(()),
        Err(errno) => return Err(parent(format!("open {}", rootfs.display()))(errno)),
    };
    for place in places.iter().rev() {
        let step = || format!("unmount {} below {}", place.display(), rootfs.display());
        // Through no symlink: what the container has put there leads nowhere else.
        let mounted = match root.open_plain(place, OFlag::O_PATH | OFlag::O_NOFOLLOW) {
            Ok(mounted) => mounted,
            Err(Errno::ENOENT | Errno::ENOTDIR) => continue,
            Err(errno) => return Err(parent(step())(errno)),
        };
        match mount::detach(&mounted) {
            // Nothing is mounted just there.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(errno) => return Err(parent(step())(errno)),
        }
    }
    Ok(())
}
