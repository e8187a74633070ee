//! The one thread: waits for events and answers them, one at a time.
//!
//! Invariant: nothing here waits for a client or a container; the only waits are for the kernel to make, kill or remove a container.

use super::connection::{Connection, Gone};
use super::container::{Container, chain, failure, note};
use super::log::Stream;
use super::pod::Pod;
use super::reactor::{Reactor, Watched};
use super::{clock, pause};
use nix::errno::Errno;
use nix::sys::epoll::{EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use runtime_linux::cgroup::{Cgroup, Hierarchy};
use runtime_linux::pidfd::Exit;
use runtime_linux::reap;
use runtime_oci::StateRoot;
use runtime_shim::protocol::PROTOCOL;
use runtime_shim::record::{self, ExitRecord};
use runtime_shim::{Config, ContainerState, Event, FailureCode, PidMode, PodInfo, Reply, Target};
use std::collections::BTreeMap;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

/// More clients than this are turned away.
const CONNECTIONS_MAX: usize = 256;
/// More waiting requests than this are refused.
pub(crate) const WAITERS_MAX: usize = 1024;

/// What an event can come from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    Listener,
    Signals,
    Connection(u64),
    Output(Rc<str>, Stream),
    Input(Rc<str>),
    AttachedOutput(Rc<str>, u64, Stream),
    AttachedInput(Rc<str>, u64),
    Oom(Rc<str>),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ServerError {
    #[error("watch for events")]
    Epoll(#[source] Errno),
    #[error("receive signals")]
    Signals(#[source] Errno),
    #[error("reap children")]
    Reap(#[source] Errno),
}

pub(crate) struct Waiter {
    pub(crate) target: Target,
    pub(crate) connection: u64,
    pub(crate) seq: u64,
}

pub(crate) struct Server {
    pub(crate) dir: PathBuf,
    pub(crate) config: Config,
    pub(crate) hierarchy: Hierarchy,
    pub(crate) cgroup: Cgroup,
    pub(crate) root: StateRoot,
    pub(crate) pod: Pod,
    pub(crate) reactor: Reactor<Source>,
    pub(crate) containers: BTreeMap<String, Container>,
    pub(crate) waiters: Vec<Waiter>,
    pub(crate) ending: bool,
    listener: Watched<UnixListener, Source>,
    signals: Watched<SignalFd, Source>,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    /// Whose exit a pid's is.
    pub(crate) pids: BTreeMap<i32, Target>,
    started_at_ns: i64,
}

/// Blocks the signals that the loop reads from a descriptor instead. SIGTERM and the like are read and ignored: only `Shutdown`
/// ends a shim.
fn signal_fd() -> Result<SignalFd, Errno> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        signals.add(signal);
    }
    signals.thread_block()?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

impl Server {
    pub(crate) fn new(
        dir: &Path,
        config: Config,
        hierarchy: Hierarchy,
        cgroup: Cgroup,
        pod: Pod,
        listener: UnixListener,
    ) -> Result<Self, ServerError> {
        let mut reactor = Reactor::new().map_err(ServerError::Epoll)?;
        let mut listener = Watched::new(listener, Source::Listener);
        listener.watch(&mut reactor, EpollFlags::EPOLLIN).map_err(ServerError::Epoll)?;
        let mut signals = Watched::new(signal_fd().map_err(ServerError::Signals)?, Source::Signals);
        signals.watch(&mut reactor, EpollFlags::EPOLLIN).map_err(ServerError::Epoll)?;
        Ok(Self {
            dir: dir.to_owned(),
            root: StateRoot::new(&config.state_root),
            config,
            hierarchy,
            cgroup,
            pod,
            reactor,
            containers: BTreeMap::new(),
            waiters: Vec::new(),
            ending: false,
            listener,
            signals,
            connections: BTreeMap::new(),
            next_connection: 0,
            pids: BTreeMap::new(),
            started_at_ns: clock::now_ns(),
        })
    }

    /// Runs until a `Shutdown` has been answered.
    pub(crate) fn run(&mut self) -> Result<(), ServerError> {
        while !self.ending {
            let timeout = self.timeout();
            for (token, flags) in self.reactor.wait(timeout).map_err(ServerError::Epoll)? {
                // Forgotten by an earlier event of this batch.
                let Some(source) = self.reactor.source(token) else { continue };
                self.handle(source, flags)?;
            }
            let now = Instant::now();
            for container in self.containers.values_mut() {
                container.stdio.expire(now, &mut self.reactor);
            }
        }
        Ok(())
    }

    fn timeout(&self) -> EpollTimeout {
        let deadline = self.containers.values().filter_map(|container| container.stdio.deadline()).min();
        match deadline {
            None => EpollTimeout::NONE,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                EpollTimeout::try_from(left + std::time::Duration::from_millis(1)).unwrap_or(EpollTimeout::ZERO)
            }
        }
    }

    fn handle(&mut self, source: Source, flags: EpollFlags) -> Result<(), ServerError> {
        match source {
            Source::Listener => self.accept(),
            Source::Signals => {
                while self.signals.get().read_signal().map_err(ServerError::Signals)?.is_some() {}
                self.reap()?;
            }
            Source::Connection(number) => self.converse(number, flags),
            Source::Oom(id) => self.out_of_memory(&id),
            Source::Output(id, stream) => self.with_stdio(&id, |stdio, reactor| {
                stdio.output_ready(stream, reactor);
            }),
            Source::Input(id) => self.with_stdio(&id, |stdio, reactor| stdio.input_ready(reactor)),
            Source::AttachedInput(id, number) => {
                self.with_stdio(&id, |stdio, reactor| stdio.attached_input_ready(number, reactor));
            }
            Source::AttachedOutput(id, number, stream) => {
                self.with_stdio(&id, |stdio, reactor| stdio.attached_output_ready(number, stream, flags, reactor));
            }
        }
        Ok(())
    }

    fn with_stdio(&mut self, id: &str, act: impl FnOnce(&mut super::stdio::Stdio, &mut Reactor<Source>)) {
        if let Some(container) = self.containers.get_mut(id) {
            act(&mut container.stdio, &mut self.reactor);
        }
    }

    fn accept(&mut self) {
        // One at a time: the set tells again while more wait.
        let Ok((stream, _)) = self.listener.get().accept() else { return };
        if self.connections.len() >= CONNECTIONS_MAX {
            return;
        }
        let number = self.next_connection;
        self.next_connection += 1;
        if let Ok(connection) = Connection::new(stream, Source::Connection(number), &mut self.reactor) {
            self.connections.insert(number, connection);
        }
    }

    /// Reads, answers and sends on one connection, until it has nothing more or is gone.
    fn converse(&mut self, number: u64, flags: EpollFlags) {
        let readable = flags.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
        if self.talk(number, readable).is_err() {
            self.waiters.retain(|waiter| waiter.connection != number);
            if let Some(connection) = self.connections.remove(&number) {
                connection.close(&mut self.reactor);
            }
        }
    }

    fn talk(&mut self, number: u64, readable: bool) -> Result<(), Gone> {
        if readable {
            self.connections.get_mut(&number).ok_or(Gone)?.receive()?;
        }
        loop {
            // Found anew each time: a request may send events to this very connection.
            let connection = self.connections.get_mut(&number).ok_or(Gone)?;
            connection.flush(&mut self.reactor)?;
            let Some(call) = connection.next_call()? else { return Ok(()) };
            let seq = call.seq;
            if let Some((result, fd)) = self.dispatch(number, call) {
                self.connections.get_mut(&number).ok_or(Gone)?.answer(seq, result, fd);
            }
        }
    }

    pub(crate) fn connection(&mut self, number: u64) -> Option<&mut Connection> {
        self.connections.get_mut(&number)
    }

    fn out_of_memory(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(watch) = &container.oom else { return };
        match watch.get().kills() {
            // Also woken for what is no kill: a limit that was reached.
            Ok(Some(kills)) if kills <= container.oom_kills => {}
            Ok(Some(kills)) => {
                container.oom_kills = kills;
                self.tell(&Event::Oom { id: id.to_owned(), kills });
            }
            // The cgroup has gone, or cannot be read again and again.
            Ok(None) | Err(_) => {
                if let Some(watch) = container.oom.take() {
                    watch.close(&mut self.reactor);
                }
            }
        }
    }

    /// Sends an event to every subscriber; one that has gone is noticed when its connection says so.
    fn tell(&mut self, event: &Event) {
        for connection in self.connections.values_mut().filter(|connection| connection.subscribed) {
            connection.tell(event);
            let _noticed_later = connection.flush(&mut self.reactor);
        }
    }

    /// Takes note of every child that has ended. Orphans of containers that share a PID namespace come here too and need no more.
    pub(crate) fn reap(&mut self) -> Result<(), ServerError> {
        while let Some((pid, exit)) = reap::next().map_err(ServerError::Reap)? {
            let Some(target) = self.pids.remove(&pid) else { continue };
            match &target.exec_id {
                None => self.container_ended(&target.id, exit),
                Some(exec_id) => {
                    let record = self.containers.get_mut(&target.id).and_then(|c| c.record_exec(exec_id, exit));
                    if let Some(record) = record {
                        self.ended(&target, record);
                    }
                }
            }
        }
        Ok(())
    }

    /// Output first, then the record on disk, then word to everyone.
    fn container_ended(&mut self, id: &str, exit: Exit) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if self.config.pid != PidMode::Container
            && let Some(cgroup) = &container.cgroup
            && let Err(error) = cgroup.kill()
        {
            // With a PID namespace of its own the kernel has done it.
            note(&format!("kill what container {id} left behind: {}", chain(&error)));
        }
        container.stdio.end(&mut self.reactor);
        let record = container.record(exit);
        if let Err(error) = record::save(&self.dir, &record) {
            // Told all the same: a full disk must not keep a dead container alive. Info has it as long as the shim lives.
            note(&chain(&error));
        }
        container.exit = Some(record.clone());
        self.ended(&Target::container(id), record);
    }

    fn ended(&mut self, target: &Target, record: ExitRecord) {
        let (answered, waiting) =
            std::mem::take(&mut self.waiters).into_iter().partition(|w: &Waiter| w.target == *target);
        self.waiters = waiting;
        for waiter in answered {
            if let Some(connection) = self.connections.get_mut(&waiter.connection) {
                connection.answer(waiter.seq, Ok(Reply::Exited(record.clone())), None);
                let _noticed_later = connection.flush(&mut self.reactor);
            }
        }
        self.tell(&Event::Exited(record));
    }

    pub(crate) fn info(&self) -> PodInfo {
        PodInfo {
            protocol: PROTOCOL,
            pod_id: self.config.pod_id.clone(),
            shim_pid: nix::unistd::getpid().as_raw(),
            started_at_ns: self.started_at_ns,
            pause_pid: self.pod.pause.as_ref().map(|pause| pause.pid),
            namespaces: self.pod.namespaces.clone(),
            containers: self.containers.values().map(Container::info).collect(),
        }
    }

    /// Removes what the shim made, all but the records, which `cri` removes with the directory.
    pub(crate) fn end(&mut self, force: bool) -> Result<(), runtime_shim::Failure> {
        let alive = |container: &Container| container.state() != ContainerState::Exited;
        if let Some(container) = self.containers.values().find(|container| alive(container))
            && !force
        {
            let message = format!("container {} has not ended: stop it first, or use force", container.id);
            return Err(failure(FailureCode::WrongState, message));
        }
        let ids: Vec<String> = self.containers.keys().cloned().collect();
        for id in ids {
            self.delete(&id, true, super::request::Records::Keep)?;
        }
        if let Some(pause) = self.pod.pause.take() {
            pause.kill();
        }
        runtime_shim::orphan::unpin(&self.dir).map_err(|error| super::container::failed("shut down", &error))?;
        self.ending = true;
        Ok(())
    }
}

/// Leaves the shim's own cgroup and removes it.
pub(crate) fn leave_cgroup(server: &Server) {
    let left = Cgroup::new(&server.hierarchy, "/")
        .and_then(|root| root.add(nix::unistd::getpid().as_raw()))
        .and_then(|()| server.cgroup.remove());
    if let Err(error) = left {
        note(&chain(&error));
    }
}

/// The other program in this binary.
pub(crate) fn run_pause() -> Result<(), Errno> {
    pause::run()
}
