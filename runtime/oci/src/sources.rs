//! What a plan takes from the host: detached copies of its trees, opened before the clone by who may.
//!
//! Invariant: nothing here is attached anywhere.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use runtime_linux::idmap;
use runtime_linux::mount::{self, Change, Reach, Tree, attribute};

use crate::create::parent;
use crate::devices;
use crate::error::Error;
use crate::plan::{DeviceNode, IdMapping, MountStep, Plan, Step};

/// One for each of `Plan::sources`. A default device that is missing is `None`: its step then says so.
pub(crate) fn open(plan: &Plan) -> Result<Vec<Option<OwnedFd>>, Error> {
    let mut opened = Vec::with_capacity(plan.sources.len());
    for (index, source) in plan.sources.iter().enumerate() {
        if let Some(node) = device(plan, index) {
            opened.push(open_device(node, plan)?);
            continue;
        }
        let tree = if source.recursive { Tree::CloneRecursive } else { Tree::Clone };
        let open = if source.follow { mount::open_tree } else { mount::open_tree_nofollow };
        let tree = open(nix::fcntl::AT_FDCWD, &source.path, tree)
            .map_err(parent(format!("open mount source {}", source.path.display())))?;
        if let Some(mapping) = id_mapping(plan, index) {
            map_ids(&tree, mapping)?;
        }
        opened.push(Some(tree));
    }
    Ok(opened)
}

fn device(plan: &Plan, source: usize) -> Option<&DeviceNode> {
    plan.setup.iter().find_map(|step| match step {
        Step::Device(node) if node.bind == Some(source) => Some(node),
        _ => None,
    })
}

/// The host's own node where it is just that device, else one made for the container; that takes the host's root.
fn open_device(node: &DeviceNode, plan: &Plan) -> Result<Option<OwnedFd>, Error> {
    let step = || format!("prepare device {}", node.path.display());
    if node.is_default {
        return match mount::open_tree(nix::fcntl::AT_FDCWD, &node.path, Tree::Clone) {
            Ok(tree) => devices::restrict(&tree).map(|()| Some(tree)).map_err(parent(step())),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(parent(step())(errno)),
        };
    }
    match devices::make(node, &plan.namespaces) {
        Ok(tree) => Ok(Some(tree)),
        // Who is not root may still hand in what the host has at that place.
        Err(Errno::EPERM) => match mount::open_tree(nix::fcntl::AT_FDCWD, &node.path, Tree::Clone) {
            Ok(tree) => devices::restrict(&tree).map(|()| Some(tree)).map_err(parent(step())),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(parent(step())(errno)),
        },
        Err(errno) => Err(parent(step())(errno)),
    }
}

fn id_mapping(plan: &Plan, source: usize) -> Option<&IdMapping> {
    plan.setup.iter().find_map(|step| match step {
        Step::Mount { mount: MountStep::Bind(bind), .. } if bind.source == source => bind.idmap.as_ref(),
        _ => None,
    })
}

/// While the tree is detached, and by who has rights over its file system: the container's own root may have none.
fn map_ids(tree: &OwnedFd, mapping: &IdMapping) -> Result<(), Error> {
    let namespace =
        idmap::user_namespace(&mapping.maps).map_err(parent("make a user namespace for an id-mapped mount"))?;
    let reach = if mapping.recursive { Reach::Recursive } else { Reach::One };
    let change = Change { set: attribute::IDMAP, user_namespace: Some(namespace.as_fd()), ..Change::default() };
    mount::set_attributes(tree, reach, &change)
        .map_err(parent("map the ids of a bind mount, which its file system may not support"))
}
