//! A restart: every pod found again with its address and its running containers, and every half-made thing undone.
//!
//!     record without ready_at/created_at -> taken down and forgotten; listed as not ready where that fails
//!     record with it, shim answers       -> followed: its exits become facts
//!     record with it, shim is silent     -> what was known goes on to be told, and it is asked again, ever less often
//!     record with it, shim dead          -> sandbox not ready; containers buried with code 255, their cgroups killed
//!     record that cannot be read         -> set aside; what is left of its pod is ended, since nobody can name it any more
//!
//! Invariants: nothing here ends a container whose shim is alive and whose record is whole; nobody is buried whose lock is held
//! (`shim`). All pods are asked at once, each with a short deadline, so that silent ones cost a start seconds and not minutes.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use runtime_cri_api::v1::ContainerEventType;
use runtime_shim::protocol::Message;
use runtime_shim::wire::Decoder;
use runtime_shim::{Event, ExitRecord, PodInfo};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::facts::Shim;
use crate::kill::{self, bury};
use crate::node::{Container, Node, Sandbox, now_ns};
use crate::record::{ContainerRecord, ExitFacts, Loaded, SandboxRecord};
use crate::sandbox::{remove, stop};
use crate::shim::ASK_WITHIN;
use crate::status::{Error, chain};

/// Between two tries to hear a silent shim.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_LAST: Duration = Duration::from_secs(30);
/// A conversation that lasted this long was a good one: the next pause is the first again.
const GOOD_CONVERSATION: Duration = Duration::from_secs(10);

/// Loads every record and makes the world agree with it, as far as it answers; called before the first request is answered.
pub(crate) async fn adopt(node: &Arc<Node>, sandboxes: Loaded<SandboxRecord>) -> Result<(), Error> {
    let loading = Arc::clone(node);
    let unreadable = node.pool.run(move || know(&loading, sandboxes)).await?;
    let mut adopting = JoinSet::new();
    for sandbox in node.sandboxes() {
        let node = Arc::clone(node);
        adopting.spawn(async move {
            let (known, asked) = (Arc::clone(&node), Arc::clone(&sandbox));
            if let Err(error) = node.pool.run(move || adopt_one(&known, &asked)).await {
                error!(sandbox = %sandbox.id, error = %chain(&error), "sandbox not adopted");
            }
        });
    }
    while adopting.join_next().await.is_some() {}
    let releasing = Arc::clone(node);
    node.pool
        .run(move || {
            release_snapshots(&releasing, &unreadable);
            Ok(())
        })
        .await
}

/// Takes the records into memory; the ids of those that could not be read.
fn know(node: &Arc<Node>, sandboxes: Loaded<SandboxRecord>) -> Result<HashSet<String>, Error> {
    let containers = node.records.load::<ContainerRecord>()?;
    for record in sandboxes.records {
        let lives = record.ready_at_ns.is_some() && record.stopped_at_ns.is_none();
        let sandbox = node.know_sandbox(record);
        if lives {
            // Until it is heard, or known to be dead.
            sandbox.set_shim(Shim::Silent);
        }
    }
    for record in containers.records {
        match node.sandbox(&record.sandbox_id) {
            Ok(sandbox) => {
                node.know_container(&sandbox, record);
            }
            Err(_) => end_stray(node, &record),
        }
    }
    for id in &sandboxes.damaged {
        end_unreadable(node, id);
    }
    Ok(containers.damaged.into_iter().collect())
}

/// A container of no known pod: it goes with the pod whose record is lost.
fn end_stray(node: &Arc<Node>, record: &ContainerRecord) {
    warn!(container = %record.id, sandbox = %record.sandbox_id, "record of no known sandbox: what it left is removed");
    let ended = kill::kill_cgroup(node, &record.cgroup)
        .and_then(|()| Ok(node.tokio.block_on(node.images.release(&record.id))?))
        .and_then(|()| Ok(node.records.remove::<ContainerRecord>(&record.id)?));
    if let Err(error) = ended {
        error!(container = %record.id, error = %chain(&error), "not removed");
    }
}

/// A pod whose record is damaged: its kubelet will make another, so this one must not go on.
fn end_unreadable(node: &Arc<Node>, id: &str) {
    let record = SandboxRecord::unreadable(id);
    // Its address lies in the network that pods get today, or in none that can be named.
    let network = crate::network::choose(&node.config.cni).ok().map(crate::record::NetworkRecord::intended);
    let sandbox = node.know_sandbox(SandboxRecord { network, ..record });
    let ended = stop::take_down(node, &sandbox).and_then(|()| remove::erase(node, &sandbox));
    if let Err(error) = ended {
        error!(sandbox = id, error = %chain(&error), "what is left of an unreadable sandbox is not removed");
        // Still nobody can name it; the next start finds nothing, and says so no more.
        if let Err(error) = node.forget_sandbox(&sandbox) {
            error!(sandbox = id, error = %chain(&error), "not forgotten");
        }
    }
}

fn adopt_one(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
    if sandbox.read(|record, _| record.ready_at_ns.is_none() && record.failed_at_ns.is_none()) {
        info!(sandbox = %sandbox.id, "half-made sandbox undone");
        let _work = sandbox.work();
        return remove::undo(node, sandbox);
    }
    if sandbox.read(|_, shim| shim) != Shim::Silent {
        // Stopped, or never ready: the kubelet finishes what is left of it, and of a shim that still lives.
        return if crate::shim::is_dead(&sandbox.dir) { settle(node, sandbox) } else { Ok(()) };
    }
    match follow(node, sandbox) {
        Err(error) if sandbox.is_gone(&error) => lose_shim(node, sandbox),
        Err(error) => {
            warn!(sandbox = %sandbox.id, error = %chain(&error), "the pod's shim is silent; it is asked again");
            follow_later(node, sandbox, PAUSE_FIRST);
        }
        Ok(()) => return settle(node, sandbox),
    }
    Ok(())
}

/// Half-made containers are undone, and what a dead shim left behind is buried.
fn settle(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
    for container in node.containers_of(&sandbox.id) {
        if container.read(|record| record.created_at_ns.is_none()) && !container.making.is_under_way() {
            info!(container = %container.id, "half-made container undone");
            let _work = container.work();
            crate::container::remove::erase(node, &container)?;
        } else if sandbox.read(|_, shim| shim) == Shim::Absent {
            bury(node, &container)?;
        }
    }
    Ok(())
}

/// Snapshots and volumes of no container: what a crash between two steps may leave. Those of records that could not be read stay, for
/// whoever mends the record.
fn release_snapshots(node: &Arc<Node>, unreadable: &HashSet<String>) {
    for key in node.images.snapshots() {
        if !unreadable.contains(&key)
            && node.container(&key).is_err()
            && let Err(error) = node.tokio.block_on(node.images.release(&key))
        {
            warn!(snapshot = key, %error, "snapshot not released");
        }
    }
    crate::container::volumes::release_strays(node, unreadable);
}

/// Subscribes to the pod's shim, takes over what it knows, and keeps listening.
pub(crate) fn follow(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
    let (info, events) = sandbox.shim_within(ASK_WITHIN)?.subscribe()?;
    sandbox.set_shim(Shim::Alive);
    take_over(node, sandbox, &info)?;
    let (socket, decoder) = events.into_parts();
    let listening = || -> std::io::Result<UnixStream> {
        socket.set_nonblocking(true)?;
        let _inside = node.tokio.enter();
        UnixStream::from_std(socket)
    };
    let socket = listening().map_err(Error::io("listen to the shim of", &sandbox.dir))?;
    node.tokio.spawn(listen(Arc::clone(node), Arc::clone(sandbox), socket, decoder));
    Ok(())
}

/// What the shim knows and we do not: exits while nobody listened, and starts that were not acknowledged.
fn take_over(node: &Arc<Node>, sandbox: &Arc<Sandbox>, info: &PodInfo) -> Result<(), Error> {
    if info.pause_lost {
        lose_pause(node, sandbox);
    }
    for container in node.containers_of(&sandbox.id) {
        let known = info.containers.iter().find(|known| known.id == container.id);
        match known {
            Some(known) => {
                // A start that is under way is between its record and the shim.
                let is_idle = container.is_idle();
                node.change_container(&container, |record| {
                    if record.started_at_ns.is_none() {
                        record.started_at_ns = known.started_at_ns;
                    } else if is_idle && known.started_at_ns.is_none() && known.exit.is_none() && record.exit.is_none()
                    {
                        // Our start was recorded, but never reached the shim.
                        record.started_at_ns = None;
                    }
                });
                if let Some(exit) = &known.exit {
                    record_exit(node, &container, exit);
                }
            }
            None if container.read(|record| record.created_at_ns.is_some() && record.refused.is_none())
                && container.is_idle() =>
            {
                bury(node, &container)?;
            }
            None => {}
        }
    }
    Ok(())
}

async fn listen(node: Arc<Node>, sandbox: Arc<Sandbox>, mut socket: UnixStream, mut decoder: Decoder) {
    let since = Instant::now();
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
        let (known, told) = (Arc::clone(&node), Arc::clone(&sandbox));
        if let Err(error) = node.pool.run(move || handle(&known, &told, message)).await {
            error!(sandbox = %sandbox.id, error = %chain(&error), "the shim's event is not dealt with: all is asked again");
            break;
        }
    }
    let pause = if since.elapsed() < GOOD_CONVERSATION { PAUSE_FIRST.saturating_mul(10) } else { PAUSE_FIRST };
    let (known, told) = (Arc::clone(&node), Arc::clone(&sandbox));
    let missing = move || {
        miss_shim(&known, &told, pause);
        Ok(())
    };
    let _ = node.pool.run(missing).await;
}

fn handle(node: &Arc<Node>, sandbox: &Arc<Sandbox>, message: Message) -> Result<(), Error> {
    match message {
        Message::Event(Event::Exited(exit)) if exit.exec_id.is_none() => {
            // One removed in the meantime is no loss.
            if let Ok(container) = node.container(&exit.id) {
                record_exit(node, &container, &exit);
            }
            Ok(())
        }
        Message::Event(Event::Lost { .. }) => {
            let info = sandbox.shim_within(ASK_WITHIN)?.info()?;
            take_over(node, sandbox, &info)
        }
        Message::Event(Event::Oom { id, kills }) => {
            info!(container = id, kills, "out of memory");
            Ok(())
        }
        Message::Event(Event::PauseExited { pid, code }) => {
            error!(sandbox = %sandbox.id, pid, code, "pause process ended");
            lose_pause(node, sandbox);
            Ok(())
        }
        Message::Event(Event::Exited(_) | Event::Unknown) | Message::Reply { .. } => Ok(()),
    }
}

/// No process can be made in the pod's PID namespace any more, so the pod is not ready; the exits of its containers follow.
fn lose_pause(node: &Arc<Node>, sandbox: &Arc<Sandbox>) {
    let mut news = false;
    node.change_sandbox(sandbox, |record| {
        news = record.stopped_at_ns.is_none();
        record.stopped_at_ns.get_or_insert_with(now_ns);
    });
    if news {
        node.tell(sandbox, &sandbox.id, ContainerEventType::ContainerStoppedEvent);
    }
}

/// Makes an end a fact and tells it; the first word counts.
pub(crate) fn record_exit(node: &Arc<Node>, container: &Arc<Container>, exit: &ExitRecord) {
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
    });
    if news {
        node.tell(&container.sandbox, &container.id, ContainerEventType::ContainerStoppedEvent);
    }
}

/// Whether there is a shim to be followed at all.
fn is_followed(node: &Node, sandbox: &Sandbox) -> bool {
    sandbox.read(|record, shim| record.stopped_at_ns.is_none() && matches!(shim, Shim::Alive | Shim::Silent))
        && node.sandbox(&sandbox.id).is_ok()
}

/// The event stream ended: by StopPodSandbox, because the shim died, or for a reason that it will get over.
fn miss_shim(node: &Arc<Node>, sandbox: &Arc<Sandbox>, pause: Duration) {
    if !is_followed(node, sandbox) {
        return;
    }
    if crate::shim::is_dead(&sandbox.dir) {
        lose_shim(node, sandbox);
    } else {
        follow_later(node, sandbox, pause);
    }
}

/// Asks a silent shim again until it answers, is dead, or its pod is stopped.
fn follow_later(node: &Arc<Node>, sandbox: &Arc<Sandbox>, mut pause: Duration) {
    let (node, sandbox) = (Arc::clone(node), Arc::clone(sandbox));
    node.tokio.clone().spawn(async move {
        loop {
            tokio::time::sleep(pause).await;
            pause = pause.saturating_mul(2).min(PAUSE_LAST);
            let (known, asked) = (Arc::clone(&node), Arc::clone(&sandbox));
            match node.pool.run(move || ask_again(&known, &asked)).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => error!(sandbox = %sandbox.id, error = %chain(&error), "not followed"),
            }
        }
    });
}

/// Whether nobody needs to ask any more.
fn ask_again(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<bool, Error> {
    if !is_followed(node, sandbox) {
        return Ok(true);
    }
    match follow(node, sandbox) {
        Ok(()) => {
            info!(sandbox = %sandbox.id, "the pod's shim is heard again");
            settle(node, sandbox).map(|()| true)
        }
        Err(error) if sandbox.is_gone(&error) => {
            lose_shim(node, sandbox);
            Ok(true)
        }
        Err(error) => {
            sandbox.set_shim(Shim::Silent);
            tracing::debug!(sandbox = %sandbox.id, error = %chain(&error), "still silent");
            Ok(false)
        }
    }
}

/// Clears up after a shim that is dead.
fn lose_shim(node: &Arc<Node>, sandbox: &Arc<Sandbox>) {
    warn!(sandbox = %sandbox.id, "the pod's shim is gone: its containers are ended");
    sandbox.set_shim(Shim::Absent);
    // What holds its PID namespace, and the shim itself where only its directory is gone.
    let own = kill::kill_cgroup(node, &stop::shim_cgroup(node, sandbox));
    for outcome in std::iter::once(own).chain([settle(node, sandbox)]) {
        if let Err(error) = outcome {
            error!(sandbox = %sandbox.id, error = %chain(&error), "not cleared up");
        }
    }
    node.change_sandbox(sandbox, |record| {
        record.stopped_at_ns.get_or_insert_with(now_ns);
    });
    node.tell(sandbox, &sandbox.id, ContainerEventType::ContainerStoppedEvent);
}
