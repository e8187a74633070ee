//! `linux.netDevices`: interfaces of the host that go into the container's network namespace. runtime-spec 1.3, "Network Devices".
//!
//! Not a network plugin: nothing is created, and only what a device has already goes along. Invariant: they come back when the container
//! is not made after all.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use runtime_linux::namespace::{self, Kind};
use runtime_linux::network::{self, Moved};

use crate::create::parent;
use crate::error::Error;
use crate::plan::{Namespaces, Plan};

/// Moves them all; `pid` is in the container's new namespaces already.
pub(crate) fn move_in(plan: &Plan, pid: i32) -> Result<Vec<Moved>, Error> {
    if plan.net_devices.is_empty() {
        return Ok(Vec::new());
    }
    let target = target(&plan.namespaces, pid)?;
    let mut moved = Vec::new();
    for (name, new_name) in &plan.net_devices {
        let done = network::move_device(name, &target, new_name);
        moved.push(done.map_err(|source| Error::NetDevice { name: name.clone(), source })?);
    }
    Ok(moved)
}

fn target(namespaces: &Namespaces, pid: i32) -> Result<OwnedFd, Error> {
    let joined = namespaces.join.iter().find(|(kind, _)| *kind == Kind::Network).map(|(_, path)| path.clone());
    let path = joined.unwrap_or_else(|| PathBuf::from(format!("/proc/{pid}/ns/net")));
    namespace::open_path(&path).map_err(parent(format!("open net namespace {}", path.display())))
}
