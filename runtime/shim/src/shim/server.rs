//! The one thread: waits for events and answers them, one at a time.
//!
//! Invariant: nothing here waits for a client or a container: what takes time is a conversation or a deletion, each with a deadline.

use super::connection::{self, Connection, Gone};
use super::container::{Container, chain, failure, note};
use super::conversation::{Asked, Talking};
use super::deletion::Deletion;
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
use runtime_shim::protocol::{CONNECTION_SEQ, PROTOCOL};
use runtime_shim::record::{self, ExitRecord};
use runtime_shim::{Config, Event, Failure, FailureCode, PidMode, PodInfo, Reply, Request, Target};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// More clients than this are turned away.
const CONNECTIONS_MAX: usize = 256;
/// What all clients' unfinished requests may hold together, and what one may hold without being counted.
const BUFFERS_BYTES_MAX: usize = 16 << 20;
const BUFFER_BYTES_FREE: usize = 64 * 1024;
/// How long no connection is taken when descriptors or memory have run out.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// The protocol of the first clients that know of it.
const PAUSE_EXITED_SINCE: u32 = 2;
/// How soon a record that could not be written is tried again; doubled each time up to the second.
const SAVE_FIRST: Duration = Duration::from_secs(1);
const SAVE_LAST: Duration = Duration::from_secs(30);
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
    Conversation(u64),
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
    pub(crate) asked: Asked,
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
    pub(crate) conversations: BTreeMap<u64, Talking>,
    pub(crate) next_conversation: u64,
    /// Processes of conversations, whose exit is nobody else's.
    pub(crate) coming: BTreeMap<i32, u64>,
    /// Exits to be told once the start has been answered.
    pub(crate) late: Vec<(Target, Exit)>,
    pub(crate) deletions: BTreeMap<String, Deletion>,
    /// Who is to be told that the shim ends; nothing begins any more while there is somebody.
    pub(crate) shutdown: Option<Vec<Asked>>,
    /// Records that could not be written, by container.
    pub(crate) unsaved: BTreeMap<String, ExitRecord>,
    save_again: Option<(Instant, Duration)>,
    pub(crate) ending: bool,
    listener: Watched<UnixListener, Source>,
    /// When connections are taken again, after descriptors or memory ran out.
    accept_again: Option<Instant>,
    /// Connections whose next request may be served now.
    resumed: Vec<u64>,
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
            conversations: BTreeMap::new(),
            next_conversation: 0,
            coming: BTreeMap::new(),
            late: Vec::new(),
            deletions: BTreeMap::new(),
            shutdown: None,
            unsaved: BTreeMap::new(),
            save_again: None,
            ending: false,
            listener,
            accept_again: None,
            resumed: Vec::new(),
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
            self.look_at_the_clock();
            while let Some(number) = self.resumed.pop() {
                self.serve(number, false);
            }
            self.advance_shutdown();
        }
        Ok(())
    }

    fn look_at_the_clock(&mut self) {
        let now = Instant::now();
        for container in self.containers.values_mut() {
            container.stdio.expire(now, &mut self.reactor);
        }
        self.expire_conversations(now);
        self.advance_deletions(now);
        if self.accept_again.is_some_and(|at| at <= now) {
            self.accept_again = None;
            self.listen();
        }
        if self.save_again.is_some_and(|(at, _)| at <= now) {
            self.save_unsaved();
        }
    }

    fn timeout(&self) -> EpollTimeout {
        let stdio = self.containers.values().filter_map(|container| container.stdio.deadline()).min();
        let others =
            [stdio, self.conversation_due(), self.deletion_due(), self.accept_again, self.save_again.map(|(at, _)| at)];
        match others.into_iter().flatten().min() {
            None => EpollTimeout::NONE,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                EpollTimeout::try_from(left.saturating_add(Duration::from_millis(1))).unwrap_or(EpollTimeout::MAX)
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
            Source::Connection(number) => {
                self.serve(number, flags.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR));
            }
            Source::Conversation(number) => self.advance(number, Instant::now()),
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

    fn listen(&mut self) {
        if let Err(error) = self.listener.watch(&mut self.reactor, EpollFlags::EPOLLIN) {
            note(&format!("wait for connections: {error}"));
            self.accept_later();
        }
    }

    /// The set would tell again at once, and nothing would have changed.
    fn accept_later(&mut self) {
        self.listener.unwatch(&mut self.reactor);
        self.accept_again = Instant::now().checked_add(ACCEPT_PAUSE);
    }

    fn accept(&mut self) {
        // One at a time: the set tells again while more wait.
        let stream = match self.listener.get().accept() {
            Ok((stream, _)) => stream,
            Err(error) if is_exhausted(&error) => {
                note(&format!("no connections for {} s: {error}", ACCEPT_PAUSE.as_secs()));
                return self.accept_later();
            }
            Err(_) => return,
        };
        let number = self.next_connection;
        self.next_connection += 1;
        let Ok(mut connection) = Connection::new(stream, Source::Connection(number), &mut self.reactor) else { return };
        if self.connections.len() >= CONNECTIONS_MAX {
            let message = format!("{CONNECTIONS_MAX} clients are connected already");
            connection.answer(CONNECTION_SEQ, Err(failure(FailureCode::Exhausted, message)), None);
            let _told_if_it_can_be = connection.flush(&mut self.reactor);
            return connection.close(&mut self.reactor);
        }
        self.connections.insert(number, connection);
    }

    /// Reads, answers and sends on one connection, until it has nothing more, waits for an answer, or is gone.
    fn serve(&mut self, number: u64, readable: bool) {
        if self.talk(number, readable).is_err() {
            self.waiters.retain(|waiter| waiter.asked.connection != number);
            if let Some(connection) = self.connections.remove(&number) {
                connection.close(&mut self.reactor);
            }
            self.end_tied(number);
        }
    }

    fn talk(&mut self, number: u64, readable: bool) -> Result<(), Gone> {
        if readable {
            self.connections.get_mut(&number).ok_or(Gone)?.receive()?;
            self.bound_buffers(number)?;
        }
        loop {
            // Found anew each time: a request may send events to this very connection.
            let connection = self.connections.get_mut(&number).ok_or(Gone)?;
            connection.flush(&mut self.reactor)?;
            let Some(call) = connection.next_call()? else { return Ok(()) };
            let call = match call {
                connection::Asked::Call(call) => call,
                connection::Asked::Refused(seq, failure) => {
                    connection.answer(seq, Err(failure), None);
                    continue;
                }
            };
            let asked = Asked { connection: number, seq: call.seq };
            connection.waits = !matches!(call.request, Request::Wait { .. });
            if let Some(result) = self.dispatch(asked, call.request) {
                let connection = self.connections.get_mut(&number).ok_or(Gone)?;
                connection.waits = false;
                connection.answer(asked.seq, result, None);
            }
        }
    }

    /// Requests that are not whole yet, of all clients together: whose comes on top of too many is turned away.
    fn bound_buffers(&mut self, number: u64) -> Result<(), Gone> {
        let connection = self.connections.get_mut(&number).ok_or(Gone)?;
        if connection.buffered() <= BUFFER_BYTES_FREE {
            return Ok(());
        }
        let all: usize = self.connections.values().map(Connection::buffered).sum();
        if all <= BUFFERS_BYTES_MAX {
            return Ok(());
        }
        let message = format!("requests of more than {BUFFERS_BYTES_MAX} bytes are on their way already");
        let connection = self.connections.get_mut(&number).ok_or(Gone)?;
        connection.answer(CONNECTION_SEQ, Err(failure(FailureCode::Exhausted, message)), None);
        let _told_if_it_can_be = connection.flush(&mut self.reactor);
        Err(Gone)
    }

    /// An answer that took its time; what the client has asked since comes next.
    pub(crate) fn answer(&mut self, asked: Asked, result: Result<Reply, Failure>, descriptor: Option<OwnedFd>) {
        let Some(connection) = self.connections.get_mut(&asked.connection) else { return };
        connection.waits = false;
        connection.answer(asked.seq, result, descriptor);
        let _noticed_later = connection.flush(&mut self.reactor);
        self.resumed.push(asked.connection);
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
            if let Some(target) = self.pids.remove(&pid) {
                self.target_ended(&target, exit);
            } else if self.coming.contains_key(&pid) {
                self.coming_ended(pid, exit);
            } else if self.pod.pause.as_ref().is_some_and(|pause| pause.pid == pid) {
                self.pause_ended(pid, exit);
            }
        }
        Ok(())
    }

    pub(crate) fn target_ended(&mut self, target: &Target, exit: Exit) {
        match &target.exec_id {
            None => self.container_ended(&target.id, exit),
            Some(exec_id) => {
                let record = self.containers.get_mut(&target.id).and_then(|c| c.record_exec(exec_id, exit));
                if let Some(record) = record {
                    self.ended(target, record);
                }
            }
        }
    }

    /// With it the kernel ends every process of the pod's PID namespace, and no other can come.
    fn pause_ended(&mut self, pid: i32, exit: Exit) {
        note(&format!("the pod's pause process {pid} has ended: {exit:?}"));
        self.pod.pause = None;
        self.pod.pause_lost = true;
        let event = Event::PauseExited { pid, code: exit.code() };
        for connection in self.connections.values_mut().filter(|c| c.subscribed && c.protocol >= PAUSE_EXITED_SINCE) {
            connection.tell(&event);
            let _noticed_later = connection.flush(&mut self.reactor);
        }
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
        container.exit = Some(record.clone());
        if let Err(error) = record::save(&self.dir, &record) {
            // Told all the same: a full disk must not keep a dead container alive. Info has it as long as the shim lives, and it is
            // written once there is room.
            note(&chain(&error));
            self.unsaved.insert(id.to_owned(), record.clone());
            self.save_later(SAVE_FIRST);
        }
        self.ended(&Target::container(id), record);
        self.advance_deletion(id, Instant::now());
    }

    fn save_later(&mut self, pause: Duration) {
        if self.save_again.is_none() {
            self.save_again = Instant::now().checked_add(pause).map(|at| (at, pause));
        }
    }

    /// Tries again what could not be written; what still cannot waits twice as long.
    pub(crate) fn save_unsaved(&mut self) {
        let pause = self.save_again.take().map_or(SAVE_FIRST, |(_, pause)| pause.saturating_mul(2).min(SAVE_LAST));
        let dir = &self.dir;
        self.unsaved.retain(|_, record| record::save(dir, record).is_err());
        if !self.unsaved.is_empty() {
            self.save_later(pause);
        }
    }

    fn ended(&mut self, target: &Target, record: ExitRecord) {
        let (answered, waiting) =
            std::mem::take(&mut self.waiters).into_iter().partition(|w: &Waiter| w.target == *target);
        self.waiters = waiting;
        for waiter in answered {
            if let Some(connection) = self.connections.get_mut(&waiter.asked.connection) {
                connection.answer(waiter.asked.seq, Ok(Reply::Exited(record.clone())), None);
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
            pause_lost: self.pod.pause_lost,
            namespaces: self.pod.namespaces.clone(),
            containers: self.containers.values().map(Container::info).collect(),
        }
    }
}

/// Nothing is left to take one more connection with; accept(2).
fn is_exhausted(error: &std::io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM))
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
