//! The node's conditions from what the runtime says and how full the host is. Pure but for `Load::measure`.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{NodeCondition, NodeStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use runtime_cri_api::v1 as cri;

use crate::machine;

/// Upstream's default hard eviction thresholds.
const MEMORY_BYTES_MIN: u64 = 100 << 20;
const DISK_PERCENT_MIN: u64 = 10;
const INODES_PERCENT_MIN: u64 = 5;
const PIDS_PERCENT_MIN: u64 = 5;

/// How full the host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Load {
    pub memory_available: u64,
    pub disk: machine::Disk,
    pub pids: (u64, u64),
}

impl Load {
    pub(super) fn measure(data_dir: &Path) -> Load {
        Load {
            memory_available: machine::memory_available_bytes(),
            disk: machine::disk(data_dir),
            pids: machine::pids(),
        }
    }
}

fn below(part: u64, whole: u64, percent: u64) -> bool {
    whole > 0 && u128::from(part) * 100 < u128::from(whole) * u128::from(percent)
}

/// The reason of the event that tells of a condition, as upstream names it.
pub(super) fn news(condition: &NodeCondition) -> Option<&'static str> {
    Some(match (condition.type_.as_str(), condition.status.as_str()) {
        ("MemoryPressure", "False") => "NodeHasSufficientMemory",
        ("MemoryPressure", "True") => "NodeHasInsufficientMemory",
        ("DiskPressure", "False") => "NodeHasNoDiskPressure",
        ("DiskPressure", "True") => "NodeHasDiskPressure",
        ("PIDPressure", "False") => "NodeHasSufficientPID",
        ("PIDPressure", "True") => "NodeHasInsufficientPID",
        ("Ready", "True") => "NodeReady",
        ("Ready", "False") => "NodeNotReady",
        _ => return None,
    })
}

pub(super) fn all(
    runtime: &Result<cri::StatusResponse, crate::cri::Error>,
    load: &Load,
    old: &[NodeCondition],
    now: Timestamp,
) -> Vec<NodeCondition> {
    let now = crate::status::whole_seconds(now);
    let memory = load.memory_available < MEMORY_BYTES_MIN;
    let disk = below(load.disk.available_bytes, load.disk.total_bytes, DISK_PERCENT_MIN)
        || below(load.disk.inodes_free, load.disk.inodes, INODES_PERCENT_MIN);
    let pids = below(load.pids.1.saturating_sub(load.pids.0), load.pids.1, PIDS_PERCENT_MIN);
    let pick = |bad: bool, yes: (&'static str, &str), no: (&'static str, &str)| {
        let (reason, message) = if bad { yes } else { no };
        (bad, reason, message.to_owned())
    };
    let problem = unready(runtime);
    let ready = match problem {
        None => (true, "KubeletReady", "kubelet is posting ready status".to_owned()),
        Some(why) => (false, "KubeletNotReady", why),
    };
    let list = [
        (
            "MemoryPressure",
            pick(
                memory,
                ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
                ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            ),
        ),
        (
            "DiskPressure",
            pick(
                disk,
                ("KubeletHasDiskPressure", "kubelet has disk pressure"),
                ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            ),
        ),
        (
            "PIDPressure",
            pick(
                pids,
                ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
                ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            ),
        ),
        ("Ready", ready),
    ];
    let condition = |(kind, (on, reason, message)): (&str, (bool, &str, String))| {
        let status = if on { "True" } else { "False" };
        let since =
            old.iter().find(|c| c.type_ == kind && c.status == status).and_then(|c| c.last_transition_time.clone());
        NodeCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_heartbeat_time: Some(Time(now)),
            last_transition_time: since.or(Some(Time(now))),
        }
    };
    list.into_iter().map(condition).collect()
}

/// Of a status what the kubelet writes, as `like` has it: its conditions without heartbeats, its resources; what others add is theirs.
pub(super) fn ours(status: Option<&NodeStatus>, like: &NodeStatus) -> NodeStatus {
    let status = status.cloned().unwrap_or_default();
    let conditions = like.conditions.iter().flatten().filter_map(|wanted| {
        let found = status.conditions.iter().flatten().find(|c| c.type_ == wanted.type_)?;
        Some(NodeCondition { last_heartbeat_time: None, last_transition_time: None, ..found.clone() })
    });
    let resources = |own: Option<&BTreeMap<String, Quantity>>, like: Option<&BTreeMap<String, Quantity>>| {
        let wanted = |name: &String| like.is_some_and(|like| like.contains_key(name));
        own.map(|own| own.iter().filter(|(name, _)| wanted(name)).map(|(n, q)| (n.clone(), q.clone())).collect())
    };
    NodeStatus {
        conditions: Some(conditions.collect()),
        capacity: resources(status.capacity.as_ref(), like.capacity.as_ref()),
        allocatable: resources(status.allocatable.as_ref(), like.allocatable.as_ref()),
        addresses: status.addresses,
        daemon_endpoints: status.daemon_endpoints,
        images: status.images.filter(|images| !images.is_empty()),
        node_info: status.node_info,
        ..NodeStatus::default()
    }
}

/// Why no pod can run here.
fn unready(runtime: &Result<cri::StatusResponse, crate::cri::Error>) -> Option<String> {
    let status = match runtime {
        Ok(answer) => answer.status.clone().unwrap_or_default(),
        Err(error) => return Some(format!("container runtime is down: {error}")),
    };
    let find = |kind: &str| status.conditions.iter().find(|c| c.r#type == kind);
    let mut problems = Vec::new();
    for (kind, what) in
        [("RuntimeReady", "container runtime not ready"), ("NetworkReady", "container runtime network not ready")]
    {
        match find(kind) {
            Some(c) if c.status => {}
            Some(c) => problems.push(format!("{what}: {kind}=false reason:{} message:{}", c.reason, c.message)),
            None => problems.push(format!("{what}: the runtime says nothing of {kind}")),
        }
    }
    if problems.is_empty() { None } else { Some(problems.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(network: bool) -> Result<cri::StatusResponse, crate::cri::Error> {
        let condition = |kind: &str, status| cri::RuntimeCondition {
            r#type: kind.into(),
            status,
            reason: if status { String::new() } else { "NoCni".into() },
            message: if status { String::new() } else { "no configuration".into() },
        };
        let conditions = vec![condition("RuntimeReady", true), condition("NetworkReady", network)];
        Ok(cri::StatusResponse { status: Some(cri::RuntimeStatus { conditions }), ..cri::StatusResponse::default() })
    }

    fn check(runtime: &Result<cri::StatusResponse, crate::cri::Error>, free: u64, expect: &str) -> Vec<NodeCondition> {
        let disk = machine::Disk { total_bytes: 100, available_bytes: free, inodes: 100, inodes_free: 100 };
        let load = Load { memory_available: 1 << 30, disk, pids: (10, 100) };
        let list = all(runtime, &load, &[], Timestamp::from_second(1_800_000_000).unwrap());
        let text: Vec<String> = list.iter().map(|c| format!("{}={}", c.type_, c.status)).collect();
        assert_eq!(text.join(" "), expect);
        list
    }

    #[test]
    fn what_others_write_into_the_status_is_no_difference_and_what_they_change_is() {
        let status = |value: serde_json::Value| -> NodeStatus { serde_json::from_value(value).unwrap() };
        let own = status(serde_json::json!({"capacity": {"cpu": "2"}, "conditions": [
            {"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:00Z"}]}));
        let more = status(serde_json::json!({"capacity": {"cpu": "2", "example.com/foo": "5"}, "conditions": [
            {"type": "NetworkUnavailable", "status": "False"},
            {"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:10Z"}]}));
        let lost = status(serde_json::json!({"capacity": {"cpu": "2"}, "conditions": [
            {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}]}));
        assert_eq!(ours(Some(&own), &own), ours(Some(&more), &own));
        assert_ne!(ours(Some(&own), &own), ours(Some(&lost), &own));
        assert_ne!(ours(Some(&own), &own), ours(None, &own));
    }

    #[test]
    fn reasons_are_told() {
        check(&answer(true), 50, "MemoryPressure=False DiskPressure=False PIDPressure=False Ready=True");
        check(&answer(true), 9, "MemoryPressure=False DiskPressure=True PIDPressure=False Ready=True");
        let list = check(&answer(false), 50, "MemoryPressure=False DiskPressure=False PIDPressure=False Ready=False");
        assert_eq!(
            list[3].message.as_deref(),
            Some("container runtime network not ready: NetworkReady=false reason:NoCni message:no configuration")
        );
    }
}
