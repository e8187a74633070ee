//! UpdateContainerResources: limits changed in place; what is not said stays as it is.

use std::sync::Arc;

use runtime_cri_api::v1::{
    ContainerState, LinuxContainerResources, UpdateContainerResourcesRequest, UpdateContainerResourcesResponse,
};

use crate::facts;
use crate::node::Node;
use crate::spec;
use crate::status::Error;

pub(crate) fn run(
    node: &Arc<Node>,
    request: UpdateContainerResourcesRequest,
) -> Result<UpdateContainerResourcesResponse, Error> {
    let container = node.container(&request.container_id)?;
    let wanted = request.linux.ok_or_else(|| Error::invalid("linux", "is missing"))?;
    let _work = container.work();
    match container.read(facts::container_state) {
        ContainerState::ContainerCreated | ContainerState::ContainerRunning => {}
        state => {
            let (kind, id) = ("container", container.id.clone());
            return Err(Error::WrongState { kind, id, state: super::word(state), operation: "update" });
        }
    }
    let resources = spec::plan_resources(&wanted, &node.host)?;
    container.sandbox.shim()?.update(&container.id, resources)?;
    node.change_container(&container, |record| {
        let known = record.resources.get_or_insert_default();
        merge(known, wanted);
    });
    Ok(UpdateContainerResourcesResponse {})
}

/// Zero and empty mean "as before".
fn merge(known: &mut LinuxContainerResources, wanted: LinuxContainerResources) {
    for (known, wanted) in [
        (&mut known.cpu_period, wanted.cpu_period),
        (&mut known.cpu_quota, wanted.cpu_quota),
        (&mut known.cpu_shares, wanted.cpu_shares),
        (&mut known.memory_limit_in_bytes, wanted.memory_limit_in_bytes),
        (&mut known.memory_swap_limit_in_bytes, wanted.memory_swap_limit_in_bytes),
        (&mut known.oom_score_adj, wanted.oom_score_adj),
    ] {
        if wanted != 0 {
            *known = wanted;
        }
    }
    for (known, wanted) in [(&mut known.cpuset_cpus, wanted.cpuset_cpus), (&mut known.cpuset_mems, wanted.cpuset_mems)]
    {
        if !wanted.is_empty() {
            *known = wanted;
        }
    }
    if !wanted.hugepage_limits.is_empty() {
        known.hugepage_limits = wanted.hugepage_limits;
    }
    known.unified.extend(wanted.unified);
}
