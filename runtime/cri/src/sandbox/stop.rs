//! StopPodSandbox: containers killed, address given back, shim ended. Idempotent; goes on past errors and names them all.
//!
//!     not ready (a fact first) -> processes killed -> CNI DEL -> shim ended, with its namespaces -> mounts gone -> released
//!
//! A stop that failed half-way may be repeated until it succeeds, and begins where there is something left to do. Invariant: DEL comes
//! while the network namespace is there, so that plugins find what they made in it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use runtime_cri_api::v1::{ContainerEventType, StopPodSandboxRequest, StopPodSandboxResponse};
use tracing::warn;

use crate::facts::Shim;
use crate::kill::{self, kill_cgroup};
use crate::network;
use crate::node::{Node, Sandbox, now_ns};
use crate::shim::{ASK_WITHIN, is_dead};
use crate::status::{Error, chain};

/// A shim that kills what is left of its pod waits for the kernel, ten seconds at most.
const ENDED_WITHIN: Duration = Duration::from_secs(15);

/// Whether the pod's shim can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hearing {
    Well,
    Silent,
    Dead,
}

pub(crate) fn run(node: &Arc<Node>, request: &StopPodSandboxRequest) -> Result<StopPodSandboxResponse, Error> {
    // CRI: stopping what is gone is success.
    let sandbox = match node.sandbox(&request.pod_sandbox_id) {
        Err(Error::NotFound { .. }) => return Ok(StopPodSandboxResponse {}),
        other => other?,
    };
    stop(node, &sandbox)?;
    Ok(StopPodSandboxResponse {})
}

pub(super) fn stop(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
    let work = sandbox.work();
    if sandbox.read(|record, _| record.released_at_ns.is_some()) {
        return Ok(());
    }
    // First of all: a daemon that is killed in the middle of this must not find a ready sandbox.
    let mut news = false;
    node.change_sandbox(sandbox, |record| {
        news = record.stopped_at_ns.is_none();
        record.stopped_at_ns.get_or_insert_with(now_ns);
    });
    let outcome = take_down(node, sandbox);
    if outcome.is_ok() {
        node.change_sandbox(sandbox, |record| record.released_at_ns = Some(now_ns()));
    }
    drop(work);
    if news {
        node.tell(sandbox, &sandbox.id, ContainerEventType::ContainerStoppedEvent);
    }
    outcome
}

/// Every step is tried; all that failed is told. Used for half-made sandboxes too.
pub(crate) fn take_down(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
    let mut problems = Vec::new();
    let mut note = |outcome: Result<(), Error>| {
        let failed = outcome.is_err();
        if let Err(error) = outcome {
            problems.push(chain(&error));
        }
        !failed
    };
    let hearing = hearing(sandbox);
    for container in node.containers_of(&sandbox.id) {
        note(match hearing {
            Hearing::Well => kill::kill(node, &container),
            Hearing::Silent => kill::kill_without_shim(node, &container),
            Hearing::Dead => kill::bury(node, &container),
        });
    }
    let (record, _) = sandbox.facts();
    let mut is_detached = true;
    if let Some(network) = &record.network {
        let netns = sandbox.dir.join("ns/net");
        let pod = network::Pod { id: &sandbox.id, config: &record.config, netns: netns.exists().then_some(netns) };
        is_detached = note(network::del(&node.config.cni, &pod, network).map_err(Error::from));
    }
    // A shim that is well takes the namespace with it, which a repeated DEL will want; its containers are dead, so it costs little.
    if is_detached || hearing != Hearing::Well {
        note(end_shim(node, sandbox, hearing));
        // What was created and never started has ended with its shim.
        for container in node.containers_of(&sandbox.id) {
            note(kill::bury(node, &container));
        }
    }
    note(unmount(&sandbox.dir.join("shm")));
    if is_detached {
        for name in ["ns/net", "ns/ipc", "ns/uts", "ns/pid", "ns/user"] {
            note(unmount(&sandbox.dir.join(name)));
        }
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Error::Teardown { what: format!("pod sandbox {}", sandbox.id), problems })
    }
}

fn hearing(sandbox: &Sandbox) -> Hearing {
    match sandbox.shim_within(ASK_WITHIN).and_then(|mut client| Ok(client.info()?)) {
        Ok(_) => Hearing::Well,
        Err(error) if sandbox.is_gone(&error) => Hearing::Dead,
        Err(error) => {
            warn!(sandbox = %sandbox.id, error = %chain(&error), "the pod's shim does not answer: it is killed with its pod");
            Hearing::Silent
        }
    }
}

/// Where the shim itself and the holder of a shared PID namespace are.
pub(crate) fn shim_cgroup(node: &Node, sandbox: &Sandbox) -> String {
    format!("{}/shims/{}", node.config.cgroup_root, sandbox.id)
}

/// Ends the shim: by its own will, or with its cgroup.
fn end_shim(node: &Node, sandbox: &Sandbox, hearing: Hearing) -> Result<(), Error> {
    if hearing == Hearing::Well {
        sandbox.set_shim(Shim::Ending);
        let ended = sandbox.shim_within(ENDED_WITHIN).and_then(|mut client| Ok(client.shutdown_forced()?));
        if let Err(error) = ended
            && !is_dead(&sandbox.dir)
        {
            warn!(sandbox = %sandbox.id, error = %chain(&error), "the pod's shim does not end: it is killed");
            for container in node.containers_of(&sandbox.id) {
                kill_cgroup(node, &container.read(|record| record.cgroup.clone()))?;
            }
        }
    }
    kill_cgroup(node, &shim_cgroup(node, sandbox))?;
    sandbox.set_shim(Shim::Absent);
    Ok(())
}

fn unmount(path: &Path) -> Result<(), Error> {
    loop {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // Once more, in case something was mounted over it.
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(Error::io("unmount", path)(errno.into())),
        }
    }
}
