//! ListContainers, and its streamed twin. What is only announced is not listed.

use runtime_cri_api::v1::{Container, ContainerFilter};

use crate::facts;
use crate::node::Node;
use crate::sandbox::selected;

pub(crate) fn run(node: &Node, filter: Option<ContainerFilter>) -> Vec<Container> {
    let filter = filter.unwrap_or_default();
    let mut items: Vec<Container> = node
        .containers()
        .iter()
        .filter(|container| container.read(|record| record.created_at_ns.is_some()))
        .map(|container| container.read(facts::container_item))
        .filter(|item| {
            (filter.id.is_empty() || item.id.starts_with(&filter.id))
                && (filter.pod_sandbox_id.is_empty() || item.pod_sandbox_id.starts_with(&filter.pod_sandbox_id))
                && filter.state.is_none_or(|wanted| wanted.state == item.state)
                && selected(&filter.label_selector, &item.labels)
        })
        .collect();
    items.sort_by_key(|item| std::cmp::Reverse(item.created_at));
    items
}
