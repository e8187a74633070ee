//! A restart: every pod found again with its address and its running containers, and every half-made thing undone.
//!
//!     record without ready_at/created_at -> taken down and forgotten
//!     record with it, shim answers       -> followed: its exits become facts
//!     record with it, shim gone          -> sandbox not ready; containers buried with code 255, their cgroups killed
//!
//! Invariant: nothing here ends a container whose shim is alive and whose record is whole.

use std::sync::Arc;

use runtime_cri_api::v1::{ContainerEventType, ContainerState};
use runtime_shim::protocol::Message;
use runtime_shim::record::LOST_CODE;
use runtime_shim::wire::Decoder;
use runtime_shim::{Event, ExitRecord, PodInfo};
use tokio::io::AsyncReadExt;
use tracing::{error, info, warn};

use crate::facts::{self, Shim};
use crate::node::{Container, Node, Sandbox, now_ns};
use crate::record::ExitFacts;
use crate::sandbox::{remove, stop};
use crate::status::{Error, chain};

/// Loads every record and makes the world agree with it. Blocks; called before the first request is answered.
pub(crate) fn adopt(node: &Arc<Node>) -> Result<(), Error> {
    for record in node.records.sandboxes()? {
        node.know_sandbox(record);
    }
    for record in node.records.containers()? {
        match node.sandbox(&record.sandbox_id) {
            Ok(sandbox) => {
                node.know_container(&sandbox, record);
            }
            // Its sandbox was forgotten last, so this cannot be; but a record copied here by hand must not stop the server.
            Err(_) => warn!(container = %record.id, sandbox = %record.sandbox_id, "record of no known sandbox"),
        }
    }
    for sandbox in node.sandboxes() {
        if let Err(error) = adopt_one(node, &sandbox) {
            error!(sandbox = %sandbox.id, error = %chain(&error), "sandbox not adopted");
        }
    }
    release_snapshots(node);
    Ok(())
}

fn adopt_one(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
    if sandbox.read(|record, _| record.ready_at_ns.is_none()) {
        info!(sandbox = %sandbox.id, "half-made sandbox undone");
        let _work = sandbox.work();
        return stop::take_down(node, sandbox).and_then(|()| remove::erase(node, sandbox));
    }
    if sandbox.read(|record, _| record.stopped_at_ns.is_none()) {
        match follow(node, sandbox) {
            Err(Error::Shim(error)) if error.is_gone() => lose_shim(node, sandbox),
            other => other?,
        }
    }
    for container in node.containers_of(&sandbox.id) {
        if container.read(|record| record.created_at_ns.is_none()) {
            info!(container = %container.id, "half-made container undone");
            let _work = container.work();
            crate::container::remove::erase(node, &container)?;
        } else if sandbox.read(|_, shim| shim) == Shim::Absent {
            bury(node, &container)?;
        }
    }
    Ok(())
}

/// Snapshots of no container: what a crash between two steps may leave.
fn release_snapshots(node: &Arc<Node>) {
    for key in node.images.snapshots() {
        if node.container(&key).is_err()
            && let Err(error) = node.tokio.block_on(node.images.release(&key))
        {
            warn!(snapshot = key, %error, "snapshot not released");
        }
    }
}

/// Subscribes to the pod's shim, takes over what it knows, and keeps listening.
pub(crate) fn follow(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
    let (info, events) = sandbox.shim()?.subscribe()?;
    sandbox.set_shim(Shim::Alive);
    take_over(node, sandbox, &info)?;
    let (socket, decoder) = events.into_parts();
    let listening = || -> std::io::Result<tokio::net::UnixStream> {
        socket.set_nonblocking(true)?;
        let _inside = node.tokio.enter();
        tokio::net::UnixStream::from_std(socket)
    };
    let socket = listening().map_err(Error::io("listen to the shim of", &sandbox.dir))?;
    node.tokio.spawn(listen(Arc::clone(node), Arc::clone(sandbox), socket, decoder));
    Ok(())
}

/// What the shim knows and we do not: exits while nobody listened, and starts that were not acknowledged.
fn take_over(node: &Arc<Node>, sandbox: &Arc<Sandbox>, info: &PodInfo) -> Result<(), Error> {
    for container in node.containers_of(&sandbox.id) {
        let known = info.containers.iter().find(|known| known.id == container.id);
        match known {
            Some(known) => {
                node.change_container(&container, |record| {
                    if record.started_at_ns.is_none() {
                        record.started_at_ns = known.started_at_ns;
                    } else if known.started_at_ns.is_none() && known.exit.is_none() {
                        // Our start was recorded, but never reached the shim.
                        record.started_at_ns = None;
                    }
                })?;
                if let Some(exit) = &known.exit {
                    record_exit(node, &container, exit)?;
                }
            }
            None if container.read(|record| record.created_at_ns.is_some()) => bury(node, &container)?,
            None => {}
        }
    }
    Ok(())
}

async fn listen(node: Arc<Node>, sandbox: Arc<Sandbox>, mut socket: tokio::net::UnixStream, mut decoder: Decoder) {
    let mut buffer = vec![0; 8192];
    loop {
        let message = match decoder.decode::<Message>() {
            Ok(Some(message)) => message,
            Ok(None) => match socket.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(count) => {
                    decoder.push(&buffer[..count]);
                    continue;
                }
            },
            Err(error) => {
                error!(sandbox = %sandbox.id, error = %chain(&error), "shim not understood");
                break;
            }
        };
        let (node, sandbox) = (Arc::clone(&node), Arc::clone(&sandbox));
        let handled = tokio::task::spawn_blocking(move || handle(&node, &sandbox, message)).await;
        if let Ok(Err(error)) = handled {
            error!(error = %chain(&error), "exit not recorded");
        }
    }
    let _ = tokio::task::spawn_blocking(move || lose_shim(&node, &sandbox)).await;
}

fn handle(node: &Arc<Node>, sandbox: &Arc<Sandbox>, message: Message) -> Result<(), Error> {
    match message {
        Message::Event(Event::Exited(exit)) if exit.exec_id.is_none() => match node.container(&exit.id) {
            Ok(container) => record_exit(node, &container, &exit),
            // Removed in the meantime.
            Err(_) => Ok(()),
        },
        Message::Event(Event::Lost { .. }) => {
            let info = sandbox.shim()?.info()?;
            take_over(node, sandbox, &info)
        }
        Message::Event(Event::Oom { id, kills }) => {
            info!(container = id, kills, "out of memory");
            Ok(())
        }
        Message::Event(Event::PauseExited { pid, code }) => {
            // The exits of its containers follow.
            error!(sandbox = %sandbox.id, pid, code, "pause process ended");
            Ok(())
        }
        Message::Event(Event::Exited(_)) | Message::Reply { .. } => Ok(()),
    }
}

fn record_exit(node: &Arc<Node>, container: &Arc<Container>, exit: &ExitRecord) -> Result<(), Error> {
    let mut news = false;
    node.change_container(container, |record| {
        if record.exit.is_none() {
            news = true;
            record.exit = Some(ExitFacts {
                finished_at_ns: exit.exited_at_ns,
                code: exit.code,
                oom_killed: exit.oom_killed,
                lost: exit.lost,
                message: String::new(),
            });
        }
    })?;
    if news {
        node.tell(&container.sandbox, &container.id, ContainerEventType::ContainerStoppedEvent);
    }
    Ok(())
}

/// The event stream ended: by StopPodSandbox, or because the shim died.
fn lose_shim(node: &Arc<Node>, sandbox: &Arc<Sandbox>) {
    // It may only have dropped the connection; then we listen anew.
    let stopped = sandbox.read(|record, shim| record.stopped_at_ns.is_some() || shim != Shim::Alive);
    if stopped || node.sandbox(&sandbox.id).is_err() {
        return;
    }
    match follow(node, sandbox) {
        Ok(()) => return,
        Err(Error::Shim(error)) if error.is_gone() => {}
        Err(error) => error!(sandbox = %sandbox.id, error = %chain(&error), "shim not followed"),
    }
    warn!(sandbox = %sandbox.id, "the pod's shim is gone: its containers are ended");
    sandbox.set_shim(Shim::Absent);
    for container in node.containers_of(&sandbox.id) {
        if let Err(error) = bury(node, &container) {
            error!(container = %container.id, error = %chain(&error), "not buried");
        }
    }
    node.tell(sandbox, &sandbox.id, ContainerEventType::ContainerStoppedEvent);
}

/// Ends a container whose shim is gone: its exit record if the shim wrote one, else 255 after its cgroup is killed.
pub(crate) fn bury(node: &Arc<Node>, container: &Arc<Container>) -> Result<(), Error> {
    match container.read(facts::container_state) {
        ContainerState::ContainerRunning | ContainerState::ContainerCreated => {}
        ContainerState::ContainerExited | ContainerState::ContainerUnknown => return Ok(()),
    }
    let exit = match runtime_shim::record::load(&container.sandbox.dir, &container.id) {
        Ok(found) => found,
        Err(error) => {
            warn!(container = %container.id, error = %chain(&error), "exit code unknown");
            None
        }
    };
    stop::kill_cgroup(&container.read(|record| record.cgroup.clone()))?;
    let exit = exit.unwrap_or_else(|| ExitRecord {
        version: runtime_shim::record::VERSION,
        id: container.id.clone(),
        exec_id: None,
        pid: 0,
        code: LOST_CODE,
        signal: None,
        oom_killed: false,
        started_at_ns: 0,
        exited_at_ns: now_ns(),
        lost: true,
    });
    record_exit(node, container, &exit)
}
