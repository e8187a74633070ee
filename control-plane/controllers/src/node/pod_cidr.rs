//! Each node's part of the pod network: the first one that is free. Pure.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kube::{Resource, ResourceExt};
use serde_json::json;

use super::patch;
use crate::action::{Action, Part};

pub(super) fn assign(
    node: &Node,
    nodes: &[Arc<Node>],
    (network, prefix): (Ipv4Addr, u8),
    node_prefix: u8,
) -> Option<Action> {
    let taken: HashSet<&str> = nodes.iter().filter_map(|node| node.spec.as_ref()?.pod_cidr.as_deref()).collect();
    let free = (0..1u64 << node_prefix.saturating_sub(prefix).min(31)).find_map(|index| {
        let offset = u32::try_from(index.checked_shl(32u32.saturating_sub(u32::from(node_prefix)))?).ok()?;
        let candidate = format!("{}/{node_prefix}", Ipv4Addr::from_bits(network.to_bits().checked_add(offset)?));
        (!taken.contains(candidate.as_str())).then_some(candidate)
    });
    Some(match free {
        Some(cidr) => {
            // Two nodes never get the same: the write fails if the node changed in between, and is planned anew.
            let metadata = json!({"uid": node.uid(), "resourceVersion": node.resource_version()});
            patch(node, Part::Whole, json!({"metadata": metadata, "spec": {"podCIDR": cidr, "podCIDRs": [cidr]}}))
        }
        None => Action::Event {
            regarding: Box::new(node.object_ref(&())),
            is_warning: true,
            reason: "CIDRNotAvailable",
            note: format!("The pod network {network}/{prefix} has no free /{node_prefix} left for this node"),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_free() {
        let node = |name: &str, cidr: Option<&str>| {
            Arc::new(
                serde_json::from_value::<Node>(json!({"metadata": {"name": name}, "spec": {"podCIDR": cidr}})).unwrap(),
            )
        };
        let check = |nodes: &[Arc<Node>], prefix: u8, expect: &str| {
            let found = assign(&node("new", None), nodes, (Ipv4Addr::new(10, 42, 0, 0), 16), prefix);
            let text = match found {
                Some(Action::Patch { patch, .. }) => patch["spec"]["podCIDR"].as_str().unwrap().to_owned(),
                Some(Action::Event { reason, .. }) => reason.to_owned(),
                other => panic!("{other:?}"),
            };
            assert_eq!(text, expect);
        };
        check(&[], 24, "10.42.0.0/24");
        check(&[node("a", Some("10.42.0.0/24")), node("b", Some("10.42.2.0/24"))], 24, "10.42.1.0/24");
        check(&[node("a", Some("10.42.0.0/16"))], 16, "CIDRNotAvailable");
    }
}
