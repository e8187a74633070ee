//! StopPodSandbox: containers killed, shim ended, address given back. Idempotent; goes on past errors and names them all.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use runtime_cri_api::v1::{ContainerEventType, StopPodSandboxRequest, StopPodSandboxResponse};
use runtime_linux::cgroup::{Cgroup, Hierarchy};

use crate::facts::Shim;
use crate::node::{Node, Sandbox, now_ns};
use crate::status::{Error, chain};
use crate::{adopt, container, network};

/// How long a killed container may take to be seen ended.
const KILLED_WITHIN: Duration = Duration::from_secs(10);

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
    let already = sandbox.read(|record, shim| record.stopped_at_ns.is_some() && shim == Shim::Absent);
    if already {
        return Ok(());
    }
    take_down(node, sandbox)?;
    node.change_sandbox(sandbox, |record| {
        record.stopped_at_ns.get_or_insert_with(now_ns);
    })?;
    drop(work);
    node.tell(sandbox, &sandbox.id, ContainerEventType::ContainerStoppedEvent);
    Ok(())
}

/// Every step is tried; all that failed is told. Used for half-made sandboxes too.
pub(crate) fn take_down(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
    let mut problems = Vec::new();
    let mut note = |outcome: Result<(), Error>| {
        if let Err(error) = outcome {
            problems.push(chain(&error));
        }
    };
    for container in node.containers_of(&sandbox.id) {
        note(container::stop::kill(node, &container, KILLED_WITHIN));
    }
    // Before the network: a sandbox whose shim lives is ready, and a daemon killed here would start containers in it anew.
    note(end_shim(node, sandbox));
    // What was created and never started has ended with its shim.
    for container in node.containers_of(&sandbox.id) {
        note(adopt::bury(node, &container));
    }
    let (record, _) = sandbox.facts();
    if let Some(network) = &record.network {
        let netns = sandbox.dir.join("ns/net");
        let pod = network::Pod { id: &sandbox.id, config: &record.config, netns: netns.exists().then_some(netns) };
        note(network::del(&node.config.cni, &pod, network).map_err(Error::from));
    }
    for name in ["shm", "ns/net", "ns/ipc", "ns/uts", "ns/pid", "ns/user"] {
        note(unmount(&sandbox.dir.join(name)));
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Error::Teardown { what: format!("pod sandbox {}", sandbox.id), problems })
    }
}

/// Ends the shim, or what a dead shim left in its cgroup.
fn end_shim(node: &Node, sandbox: &Sandbox) -> Result<(), Error> {
    match sandbox.shim() {
        Ok(mut client) => {
            sandbox.set_shim(Shim::Ending);
            match client.shutdown_forced() {
                Err(error) if !error.is_gone() => {
                    sandbox.set_shim(Shim::Alive);
                    return Err(error.into());
                }
                _ => {}
            }
        }
        Err(Error::Shim(error)) if error.is_gone() => {}
        Err(error) => return Err(error),
    }
    sandbox.set_shim(Shim::Absent);
    kill_cgroup(&format!("{}/shims/{}", node.config.cgroup_root, sandbox.id))
}

/// Kills whatever is in a cgroup and removes it; gone is success.
pub(crate) fn kill_cgroup(path: &str) -> Result<(), Error> {
    let failed = |source: runtime_linux::cgroup::Error| Error::Cgroup { path: path.to_owned(), source };
    let hierarchy = Hierarchy::detect().map_err(failed)?;
    let cgroup = Cgroup::new(&hierarchy, path).map_err(failed)?;
    if cgroup.exists() {
        cgroup.kill().map_err(failed)?;
        cgroup.remove().map_err(failed)?;
    }
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
