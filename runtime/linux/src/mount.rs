//! Mounts: the new mount API (`fsopen`, `open_tree`, `move_mount`, `mount_setattr`) and the classic calls.
//!
//! Not a place for policy. Invariant: a mount that is made here is detached until it is attached to a descriptor.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// An overlay that is still to be mounted: what `images` prepares and `oci` mounts inside the container's own mount namespace.
///
/// Paths are absolute. `lower[0]` is the topmost layer, as in the kernel's `lowerdir`; `upper` and `work` lie on one file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    pub lower: Vec<PathBuf>,
    pub upper: PathBuf,
    pub work: PathBuf,
}
