//! ListPodSandbox, and its streamed twin. What is only announced is not listed; what failed and could not be undone is.

use runtime_cri_api::v1::{PodSandbox, PodSandboxFilter};

use crate::facts;
use crate::node::Node;

pub(crate) fn run(node: &Node, filter: Option<PodSandboxFilter>) -> Vec<PodSandbox> {
    let filter = filter.unwrap_or_default();
    let mut items: Vec<PodSandbox> = node
        .sandboxes()
        .iter()
        .filter(|sandbox| sandbox.read(|record, _| record.ready_at_ns.is_some() || record.failed_at_ns.is_some()))
        .map(|sandbox| sandbox.read(facts::sandbox_item))
        .filter(|item| {
            (filter.id.is_empty() || item.id.starts_with(&filter.id))
                && filter.state.is_none_or(|wanted| wanted.state == item.state)
                && super::selected(&filter.label_selector, &item.labels)
        })
        .collect();
    items.sort_by_key(|item| std::cmp::Reverse(item.created_at));
    items
}
