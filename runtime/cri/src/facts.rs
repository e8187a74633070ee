//! Facts in memory, and the status that follows from them. Nothing here does I/O.
//!
//!     sandbox:    announced --ready_at--> READY --stopped_at, or shim gone--> NOTREADY
//!     container:  announced --created_at--> CREATED --started_at--> RUNNING --exit--> EXITED
//!
//! Invariant: a state is computed from what happened and never stored. What is only announced is shown to nobody.

use runtime_cri_api::v1::{
    Container as ContainerItem, ContainerResources, ContainerState, ContainerStatus, ImageSpec, LinuxPodSandboxStatus,
    Namespace, PodIp, PodSandbox as SandboxItem, PodSandboxNetworkStatus, PodSandboxState, PodSandboxStatus,
};

use crate::record::{ContainerRecord, SandboxRecord};

/// Whether the pod's shim is there. Not kept on disk: found out at start, and by the end of its event stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shim {
    Absent,
    Alive,
    /// It is there, or not known to be dead, and does not answer: what it said last still stands.
    Silent,
    /// It was told to end; the end of its event stream is no surprise.
    Ending,
}

pub(crate) fn sandbox_state(record: &SandboxRecord, shim: Shim) -> PodSandboxState {
    match (record.ready_at_ns, record.stopped_at_ns, shim) {
        (Some(_), None, Shim::Alive | Shim::Silent) => PodSandboxState::SandboxReady,
        _ => PodSandboxState::SandboxNotready,
    }
}

pub(crate) fn container_state(record: &ContainerRecord) -> ContainerState {
    match (&record.exit, record.started_at_ns, record.created_at_ns) {
        (Some(_), _, _) => ContainerState::ContainerExited,
        (None, Some(_), _) => ContainerState::ContainerRunning,
        (None, None, Some(_)) => ContainerState::ContainerCreated,
        (None, None, None) => ContainerState::ContainerUnknown,
    }
}

pub(crate) fn sandbox_item(record: &SandboxRecord, shim: Shim) -> SandboxItem {
    SandboxItem {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: sandbox_state(record, shim).into(),
        created_at: record.created_at_ns,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

pub(crate) fn sandbox_status(record: &SandboxRecord, shim: Shim) -> PodSandboxStatus {
    let mut addresses = record.network.iter().flat_map(|network| network.addresses.iter().cloned());
    // CRI: a stopped sandbox has no address; a host-network one never has.
    let network = match sandbox_state(record, shim) {
        PodSandboxState::SandboxReady => PodSandboxNetworkStatus {
            ip: addresses.next().unwrap_or_default(),
            additional_ips: addresses.map(|ip| PodIp { ip }).collect(),
        },
        PodSandboxState::SandboxNotready => PodSandboxNetworkStatus::default(),
    };
    let options = record
        .config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|context| context.namespace_options.clone());
    PodSandboxStatus {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: sandbox_state(record, shim).into(),
        created_at: record.created_at_ns,
        network: Some(network),
        linux: Some(LinuxPodSandboxStatus { namespaces: Some(Namespace { options }) }),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

pub(crate) fn container_item(record: &ContainerRecord) -> ContainerItem {
    ContainerItem {
        id: record.id.clone(),
        pod_sandbox_id: record.sandbox_id.clone(),
        metadata: record.config.metadata.clone(),
        image: record.config.image.clone(),
        image_ref: record.image_ref.clone(),
        image_id: record.image_id.clone(),
        state: container_state(record).into(),
        created_at: record.created_at_ns.unwrap_or_default(),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
    }
}

pub(crate) fn container_status(record: &ContainerRecord) -> ContainerStatus {
    let (reason, message) = reason(record);
    ContainerStatus {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: container_state(record).into(),
        created_at: record.created_at_ns.unwrap_or_default(),
        started_at: record.started_at_ns.unwrap_or_default(),
        finished_at: record.exit.as_ref().map_or(0, |exit| exit.finished_at_ns),
        exit_code: record.exit.as_ref().map_or(0, |exit| exit.code),
        image: record.config.image.clone().map(|image| ImageSpec {
            // The kubelet shows what the user wrote, where it told us.
            image: if image.user_specified_image.is_empty() {
                image.image.clone()
            } else {
                image.user_specified_image.clone()
            },
            ..image
        }),
        image_ref: record.image_ref.clone(),
        image_id: record.image_id.clone(),
        reason,
        message,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        mounts: record.config.mounts.clone(),
        log_path: record.log_path.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        resources: record.resources.clone().map(|linux| ContainerResources { linux: Some(linux), windows: None }),
        user: record.user.clone(),
        stop_signal: crate::spec::signal::told(record.stop_signal).into(),
    }
}

/// The words that kubelets and their users know: `Completed`, `Error`, `OOMKilled`, `StartError`, `Unknown`.
fn reason(record: &ContainerRecord) -> (String, String) {
    let Some(exit) = &record.exit else { return Default::default() };
    let reason = if exit.oom_killed {
        "OOMKilled"
    } else if exit.lost {
        "Unknown"
    } else if !exit.message.is_empty() {
        "StartError"
    } else if exit.code == 0 {
        "Completed"
    } else {
        "Error"
    };
    (reason.into(), exit.message.clone())
}

#[cfg(test)]
mod tests {
    use runtime_cri_api::v1::ContainerConfig;

    use super::*;
    use crate::record::ExitFacts;

    fn container() -> ContainerRecord {
        ContainerRecord {
            version: 1,
            id: "c".into(),
            sandbox_id: "s".into(),
            name: "n".into(),
            config: ContainerConfig::default(),
            image_id: String::new(),
            image_ref: String::new(),
            log_path: None,
            stop_signal: 15,
            user: None,
            resources: None,
            cgroup: String::new(),
            created_at_ns: None,
            refused: None,
            started_at_ns: None,
            exit: None,
        }
    }

    fn exit(code: i32) -> ExitFacts {
        ExitFacts { finished_at_ns: 9, code, oom_killed: false, lost: false, message: String::new() }
    }

    #[test]
    fn states_follow_from_facts() {
        let check = |change: fn(&mut ContainerRecord), state: ContainerState, reason: &str| {
            let mut record = container();
            change(&mut record);
            let status = container_status(&record);
            assert_eq!((status.state(), status.reason.as_str()), (state, reason));
        };
        check(|_| {}, ContainerState::ContainerUnknown, "");
        check(|record| record.created_at_ns = Some(1), ContainerState::ContainerCreated, "");
        check(|record| record.started_at_ns = Some(2), ContainerState::ContainerRunning, "");
        check(|record| record.exit = Some(exit(0)), ContainerState::ContainerExited, "Completed");
        check(|record| record.exit = Some(exit(1)), ContainerState::ContainerExited, "Error");
        let oom = |record: &mut ContainerRecord| record.exit = Some(ExitFacts { oom_killed: true, ..exit(137) });
        check(oom, ContainerState::ContainerExited, "OOMKilled");
        let lost = |record: &mut ContainerRecord| record.exit = Some(ExitFacts { lost: true, ..exit(255) });
        check(lost, ContainerState::ContainerExited, "Unknown");
        let failed = |record: &mut ContainerRecord| {
            record.exit = Some(ExitFacts { message: "no such file".into(), ..exit(128) });
        };
        check(failed, ContainerState::ContainerExited, "StartError");
    }
}
