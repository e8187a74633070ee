//! The node's address on a host that has none but loopback: one of the pod network, put on `lo`.
//!
//! Pods reach the API server at the node's address, and 127.0.0.1 is another host inside each pod.

use std::net::IpAddr;

use anyhow::{Context, Result};
use cni_netlink::rtnetlink::{Batch, Rtnetlink};

use crate::instance::Instance;

const PREFIX: u8 = 32;

/// There after this. It stays until `down`, so that a restarted daemon finds its pods' connections alive.
pub(crate) fn ensure(instance: &Instance) -> Result<()> {
    change(instance, |batch, loopback, address| {
        batch.set_up(loopback);
        batch.add_address(loopback, address, PREFIX);
    })
    .with_context(|| format!("put {} on lo", instance.node_ip))
}

/// Gone after this.
pub(crate) fn remove(instance: &Instance) -> Result<()> {
    change(instance, |batch, loopback, address| {
        batch.delete_address(loopback, address, PREFIX);
    })
    .with_context(|| format!("take {} from lo", instance.node_ip))
}

fn change(instance: &Instance, what: impl FnOnce(&mut Batch, u32, IpAddr)) -> Result<()> {
    if !instance.owns_node_ip() {
        return Ok(());
    }
    let mut netlink = Rtnetlink::open()?;
    let loopback = netlink.link("lo")?.context("this network namespace has no lo")?;
    let mut batch = Batch::default();
    what(&mut batch, loopback.index, IpAddr::V4(instance.node_ip));
    Ok(netlink.apply(&batch)?)
}
