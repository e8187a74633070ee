//! What a plan takes from the host: detached copies of its trees, opened before the clone by who may.
//!
//! Invariant: nothing here is attached anywhere.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use oci_spec::runtime::LinuxNamespaceType;
use runtime_linux::idmap;
use runtime_linux::mount::{self, Change, Reach, Tree, attribute};
use runtime_linux::namespace::{self, Kind};

use crate::create::parent;
use crate::devices;
use crate::error::Error;
use crate::plan::{DeviceNode, IdMapping, MountStep, Opener, Plan, Source, Step};

/// One for each of `Plan::sources`; `None` is for the container's process to open, or to say what is missing.
pub(crate) fn open(plan: &Plan) -> Result<Vec<Option<OwnedFd>>, Error> {
    let mut opened = Vec::with_capacity(plan.sources.len());
    for (index, source) in plan.sources.iter().enumerate() {
        if let Some(node) = device(plan, index) {
            opened.push(open_device(node, plan)?);
            continue;
        }
        let mapping = id_mapping(plan, index);
        let is_process_root = plan.namespaces.is_new(LinuxNamespaceType::User) && mapping.is_none();
        if source.by != Opener::Runtime {
            opened.push(None);
            continue;
        }
        match open_one(source) {
            Ok(tree) => {
                if let Some(mapping) = mapping {
                    map_ids(&tree, mapping, plan)?;
                }
                opened.push(Some(tree));
            }
            // Who is not root may copy no mount; as the root of its own namespaces the process may.
            Err(Errno::EPERM) if is_process_root => opened.push(None),
            Err(errno) => return Err(parent(format!("open mount source {}", source.path.display()))(errno)),
        }
    }
    Ok(opened)
}

pub(crate) fn open_one(source: &Source) -> Result<OwnedFd, Errno> {
    let tree = if source.recursive { Tree::CloneRecursive } else { Tree::Clone };
    let open = if source.follow { mount::open_tree } else { mount::open_tree_nofollow };
    open(nix::fcntl::AT_FDCWD, &source.path, tree)
}

fn joined_user_namespace(plan: &Plan) -> Result<OwnedFd, Error> {
    let joined = plan.namespaces.join.iter().find(|(kind, _)| *kind == Kind::User);
    let (_, path) = joined.ok_or_else(|| parent("find the user namespace of an id-mapped mount")(Errno::ENOENT))?;
    namespace::open_path(path).map_err(parent(format!("open user namespace {}", path.display())))
}

fn device(plan: &Plan, source: usize) -> Option<&DeviceNode> {
    plan.setup.iter().find_map(|step| match step {
        Step::Device(node) if node.bind == Some(source) => Some(node),
        _ => None,
    })
}

/// The host's own node for a default device, else one made for the container; that takes the host's root.
fn open_device(node: &DeviceNode, plan: &Plan) -> Result<Option<OwnedFd>, Error> {
    let made = if node.is_default {
        mount::open_tree(nix::fcntl::AT_FDCWD, &node.path, Tree::Clone)
            .and_then(|tree| devices::restrict(&tree).map(|()| tree))
    } else {
        devices::make(node, &plan.namespaces)
    };
    match made {
        Ok(tree) => Ok(Some(tree)),
        // Who is not root can still be given what the host has at that place, by the process itself.
        Err(Errno::EPERM | Errno::ENOENT) => Ok(None),
        Err(errno) => Err(parent(format!("prepare device {}", node.path.display()))(errno)),
    }
}

fn id_mapping(plan: &Plan, source: usize) -> Option<&IdMapping> {
    plan.setup.iter().find_map(|step| match step {
        Step::Mount { mount: MountStep::Bind(bind), .. } if bind.source == source => bind.idmap.as_ref(),
        _ => None,
    })
}

/// The same for a tree that the container's process has opened and may not map.
pub(crate) fn map_ids_of(plan: &Plan, source: usize, tree: &OwnedFd) -> Result<(), Error> {
    let mapping = id_mapping(plan, source).ok_or_else(|| parent("map the ids of a bind mount")(Errno::EPROTO))?;
    map_ids(tree, mapping, plan)
}

/// While the tree is detached, and by who has rights over its file system: the container's own root may have none.
fn map_ids(tree: &OwnedFd, mapping: &IdMapping, plan: &Plan) -> Result<(), Error> {
    let namespace = match &mapping.maps {
        Some(maps) => idmap::user_namespace(maps).map_err(parent("make a user namespace for an id-mapped mount"))?,
        None => joined_user_namespace(plan)?,
    };
    let reach = if mapping.recursive { Reach::Recursive } else { Reach::One };
    let change = Change { set: attribute::IDMAP, user_namespace: Some(namespace.as_fd()), ..Change::default() };
    mount::set_attributes(tree, reach, &change)
        .map_err(parent("map the ids of a bind mount, which its file system may not support"))
}
