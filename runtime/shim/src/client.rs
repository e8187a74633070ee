//! The blocking client of one shim. One request at a time per connection; connecting costs microseconds, so a caller
//! that waits opens a connection of its own.
//!
//! Every call has a deadline ([`Client::set_deadline`], 30 s unless told) except [`Client::wait`]; after an I/O error the
//! connection is out of step and every further call fails: connect anew.
//!
//! The first call brings its hello along, in the same write. A shim of protocol 1 closes the connection for it, before it has done
//! anything: then the client connects anew and speaks protocol 1.

use crate::protocol::{
    CONNECTION_SEQ, Call, Create, Created, Event, Exec, Failure, Message, OLDEST, PROTOCOL, PodInfo, Reply, Request,
    Target,
};
use crate::record::ExitRecord;
use crate::socket;
use crate::wire::{Decoder, WireError, encode};
use nix::errno::Errno;
use oci_spec::runtime::LinuxResources;
use runtime_linux::fd_passing;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long an answer may take. A create on a machine under heavy load takes seconds, never this.
const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No such directory or socket, or nobody behind it: the shim is gone.
    #[error("connect to the shim of {}", dir.display())]
    Connect { dir: PathBuf, source: io::Error },
    #[error("the shim of {} serves protocol {oldest} and newer, and this daemon speaks {PROTOCOL}: upgrade the daemon", dir.display())]
    TooOld { dir: PathBuf, oldest: u32 },
    #[error("send a request to the shim")]
    Send(#[source] io::Error),
    #[error("read the shim's answer")]
    Receive(#[source] io::Error),
    #[error("the shim did not answer in time; it may be stopped or the machine overloaded")]
    Deadline,
    #[error("the shim closed the connection")]
    Closed,
    #[error("the shim's answer cannot be read; daemon and shim may be of different releases")]
    Wire(#[from] WireError),
    #[error("the shim's answer does not fit the request; daemon and shim may be of different releases")]
    Mismatch,
    /// The shim's own refusal.
    #[error(transparent)]
    Failure(#[from] Failure),
}

impl ClientError {
    /// Whether nobody listens there any more, as opposed to a shim in trouble. A connection that was closed says nothing of the kind:
    /// connect anew. And who would clear away what a shim left still has to take its lock: [`crate::orphan::claim`].
    #[must_use]
    pub fn is_gone(&self) -> bool {
        use io::ErrorKind::{ConnectionRefused, NotADirectory, NotFound};
        matches!(self, Self::Connect { source, .. }
            if matches!(source.kind(), NotFound | NotADirectory | ConnectionRefused))
    }
}

/// Descriptors for an exec or an attach.
#[derive(Debug, Default)]
pub struct Stdio {
    /// Read by the process (exec) or the shim (attach).
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

impl Stdio {
    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        [&self.stdin, &self.stdout, &self.stderr].into_iter().flatten().map(AsFd::as_fd).collect()
    }
}

/// A started exec.
#[derive(Debug)]
pub struct Execution {
    pub pid: i32,
    /// The master side of its terminal, if it has one. It is the only copy: closing it hangs the terminal up.
    pub console: Option<OwnedFd>,
}

#[derive(Debug)]
pub struct Client {
    dir: PathBuf,
    /// What the shim speaks, once it has said so.
    protocol: Option<u32>,
    deadline: Option<Duration>,
    stream: UnixStream,
    decoder: Decoder,
    fds: VecDeque<OwnedFd>,
    seq: u64,
    broken: bool,
}

impl Client {
    /// Connects to the shim of the pod at `dir`.
    pub fn connect(dir: &Path) -> Result<Self, ClientError> {
        Self::connect_within(dir, DEADLINE)
    }

    /// The same with another limit for each answer, e.g. for a daemon that looks which shims are there.
    pub fn connect_within(dir: &Path, deadline: Duration) -> Result<Self, ClientError> {
        let mut client = Self {
            dir: dir.to_owned(),
            protocol: None,
            deadline: Some(deadline),
            stream: open(dir)?,
            decoder: Decoder::default(),
            fds: VecDeque::new(),
            seq: 0,
            broken: false,
        };
        client.set_deadline(Some(deadline)).map_err(|source| ClientError::Connect { dir: dir.to_owned(), source })?;
        Ok(client)
    }

    /// Limits how long each answer may take; `None` waits for ever.
    pub fn set_deadline(&mut self, deadline: Option<Duration>) -> io::Result<()> {
        self.deadline = deadline;
        self.stream.set_read_timeout(deadline)?;
        self.stream.set_write_timeout(deadline)
    }

    /// What the shim speaks; known from the first answer on.
    #[must_use]
    pub fn protocol(&self) -> Option<u32> {
        self.protocol
    }

    pub fn info(&mut self) -> Result<PodInfo, ClientError> {
        match self.call(Request::Info, &[])? {
            Reply::Info(info) => Ok(*info),
            _ => Err(ClientError::Mismatch),
        }
    }

    pub fn create(&mut self, create: Create) -> Result<Created, ClientError> {
        match self.call(Request::Create(Box::new(create)), &[])? {
            Reply::Created(created) => Ok(created),
            _ => Err(ClientError::Mismatch),
        }
    }

    pub fn start(&mut self, id: &str) -> Result<(), ClientError> {
        self.done(Request::Start { id: id.to_owned() })
    }

    /// Sends a signal to one process.
    pub fn signal(&mut self, target: Target, signal: i32) -> Result<(), ClientError> {
        self.done(Request::Signal { id: target.id, exec_id: target.exec_id, signal, all: false })
    }

    /// Sends a signal to every process of a container.
    pub fn signal_all(&mut self, id: &str, signal: i32) -> Result<(), ClientError> {
        self.done(Request::Signal { id: id.to_owned(), exec_id: None, signal, all: true })
    }

    /// Removes a stopped container; gone is success.
    pub fn delete(&mut self, id: &str) -> Result<(), ClientError> {
        self.done(Request::Delete { id: id.to_owned(), force: false })
    }

    /// Kills and removes a container; gone is success.
    pub fn delete_forced(&mut self, id: &str) -> Result<(), ClientError> {
        self.done(Request::Delete { id: id.to_owned(), force: true })
    }

    /// Runs a process in a container. The flags of `exec` are set from `stdio`; the caller's copies are closed.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the descriptors' ends must close here, or no end of file arrives"
    )]
    pub fn exec(&mut self, mut exec: Exec, stdio: Stdio) -> Result<Execution, ClientError> {
        exec.stdin = stdio.stdin.is_some();
        exec.stdout = stdio.stdout.is_some();
        exec.stderr = stdio.stderr.is_some();
        let terminal = exec.process.terminal().unwrap_or(false);
        match self.call(Request::Exec(Box::new(exec)), &stdio.fds())? {
            Reply::Executed { pid } => {
                let console = self.fds.pop_front();
                if console.is_some() == terminal { Ok(Execution { pid, console }) } else { Err(ClientError::Mismatch) }
            }
            _ => Err(ClientError::Mismatch),
        }
    }

    /// Waits, without a deadline, until a container or exec has ended.
    pub fn wait(&mut self, target: Target) -> Result<ExitRecord, ClientError> {
        let deadline = self.deadline;
        self.set_deadline(None).map_err(ClientError::Send)?;
        let reply = self.call(Request::Wait { id: target.id, exec_id: target.exec_id }, &[]);
        self.set_deadline(deadline).map_err(ClientError::Send)?;
        match reply? {
            Reply::Exited(record) => Ok(record),
            _ => Err(ClientError::Mismatch),
        }
    }

    /// Joins a container's streams; the caller keeps the other ends. End of file on them means the container ended, or
    /// that this client accepted nothing for too long.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the descriptors' ends must close here, or no end of file arrives"
    )]
    pub fn attach(&mut self, id: &str, stdio: Stdio) -> Result<(), ClientError> {
        let request = Request::Attach {
            id: id.to_owned(),
            stdin: stdio.stdin.is_some(),
            stdout: stdio.stdout.is_some(),
            stderr: stdio.stderr.is_some(),
        };
        match self.call(request, &stdio.fds())? {
            Reply::Done => Ok(()),
            _ => Err(ClientError::Mismatch),
        }
    }

    pub fn resize(&mut self, id: &str, columns: u16, rows: u16) -> Result<(), ClientError> {
        self.done(Request::Resize { id: id.to_owned(), columns, rows })
    }

    pub fn reopen_log(&mut self, id: &str) -> Result<(), ClientError> {
        self.done(Request::ReopenLog { id: id.to_owned() })
    }

    pub fn close_stdin(&mut self, id: &str) -> Result<(), ClientError> {
        self.done(Request::CloseStdin { id: id.to_owned() })
    }

    pub fn update(&mut self, id: &str, resources: LinuxResources) -> Result<(), ClientError> {
        self.done(Request::Update { id: id.to_owned(), resources: Box::new(resources) })
    }

    /// Ends the shim; refused while a container runs.
    pub fn shutdown(&mut self) -> Result<(), ClientError> {
        self.done(Request::Shutdown { force: false })
    }

    /// Kills every container and ends the shim.
    pub fn shutdown_forced(&mut self) -> Result<(), ClientError> {
        self.done(Request::Shutdown { force: true })
    }

    /// Turns this connection into a stream of events, with everything known at its start.
    pub fn subscribe(mut self) -> Result<(PodInfo, Events), ClientError> {
        match self.call(Request::Subscribe, &[])? {
            Reply::Info(info) => {
                self.set_deadline(None).map_err(ClientError::Receive)?;
                Ok((*info, Events { client: self }))
            }
            _ => Err(ClientError::Mismatch),
        }
    }

    fn done(&mut self, request: Request) -> Result<(), ClientError> {
        match self.call(request, &[])? {
            Reply::Done => Ok(()),
            _ => Err(ClientError::Mismatch),
        }
    }

    fn call(&mut self, request: Request, fds: &[BorrowedFd<'_>]) -> Result<Reply, ClientError> {
        if self.broken {
            return Err(ClientError::Closed);
        }
        self.seq += 1;
        let number = self.seq;
        let frame = encode(&Call { seq: number, request })?;
        if self.protocol.is_some() {
            return self.exchange(number, &frame, fds);
        }
        match self.introduce(number, &frame, fds) {
            Err(ClientError::Closed) if self.protocol.is_none() => {
                // A shim of protocol 1, which did not get beyond the hello.
                self.stream = open(&self.dir)?;
                self.set_deadline(self.deadline).map_err(ClientError::Send)?;
                self.decoder = Decoder::default();
                self.protocol = Some(OLDEST);
                self.exchange(number, &frame, fds)
            }
            other => other,
        }
    }

    /// The hello and the first request together, and both answers.
    fn introduce(&mut self, number: u64, frame: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Reply, ClientError> {
        self.seq += 1;
        let hello = encode(&Call { seq: self.seq, request: Request::Hello { protocol: PROTOCOL } })?;
        self.broken = true;
        if fds.is_empty() {
            self.send(&[&hello, frame].concat(), &[])?;
        } else {
            // Descriptors ride on their own frame's first byte.
            self.send(&hello, &[])?;
            self.send(frame, fds)?;
        }
        match self.answer(self.seq)?? {
            Reply::Hello(greeting) if greeting.oldest <= PROTOCOL => self.protocol = Some(greeting.protocol),
            Reply::Hello(greeting) => {
                return Err(ClientError::TooOld { dir: self.dir.clone(), oldest: greeting.oldest });
            }
            _ => return Err(ClientError::Mismatch),
        }
        self.settle(number)
    }

    fn exchange(&mut self, number: u64, frame: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Reply, ClientError> {
        // Until the answer is read whole, an early return leaves the stream out of step.
        self.broken = true;
        self.send(frame, fds)?;
        self.settle(number)
    }

    fn settle(&mut self, number: u64) -> Result<Reply, ClientError> {
        self.fds.clear();
        let answer = self.answer(number)?;
        self.broken = false;
        Ok(answer?)
    }

    /// The answer to one request; events that come between are another's.
    fn answer(&mut self, number: u64) -> Result<Result<Reply, Failure>, ClientError> {
        loop {
            match self.receive()? {
                Message::Reply { seq, result } if seq == number => return Ok(result),
                // About the connection: it is closed after this.
                Message::Reply { seq: CONNECTION_SEQ, result } => return Ok(result),
                Message::Reply { .. } => return Err(ClientError::Mismatch),
                Message::Event(_) => {}
            }
        }
    }

    fn send(&self, frame: &[u8], mut fds: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        let mut rest = frame;
        while !rest.is_empty() {
            match fd_passing::send(&self.stream, rest, fds) {
                Ok(count) => {
                    rest = &rest[count..];
                    fds = &[];
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(ClientError::Deadline),
                Err(Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN) => return Err(ClientError::Closed),
                Err(errno) => return Err(ClientError::Send(errno.into())),
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<Message, ClientError> {
        let mut buffer = [0; 8192];
        loop {
            if let Some(message) = self.decoder.decode()? {
                return Ok(message);
            }
            match fd_passing::receive(&self.stream, &mut buffer, &mut self.fds) {
                Ok(0) | Err(Errno::ECONNRESET) => return Err(ClientError::Closed),
                Ok(count) => self.decoder.push(&buffer[..count]),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(ClientError::Deadline),
                Err(errno) => return Err(ClientError::Receive(errno.into())),
            }
        }
    }
}

fn open(dir: &Path) -> Result<UnixStream, ClientError> {
    socket::connect(dir).map_err(|source| match source.kind() {
        // It takes no connections: it is stopped, or the machine is overloaded.
        io::ErrorKind::WouldBlock => ClientError::Deadline,
        _ => ClientError::Connect { dir: dir.to_owned(), source },
    })
}

/// Events of one shim, in the order they happened.
#[derive(Debug)]
pub struct Events {
    client: Client,
}

impl Events {
    /// Waits for the next event; [`ClientError::Closed`] when the shim has gone.
    pub fn wait(&mut self) -> Result<Event, ClientError> {
        loop {
            if let Message::Event(event) = self.client.receive()? {
                return Ok(event);
            }
        }
    }

    /// Limits [`Self::next`]; beyond it, [`ClientError::Deadline`] and the stream stays usable.
    pub fn set_deadline(&mut self, deadline: Option<Duration>) -> io::Result<()> {
        self.client.set_deadline(deadline)
    }

    /// For an async caller: the socket, and the decoder with what was read beyond the reply. Feed it what is read from
    /// the socket and take [`Message`]s from it.
    #[must_use]
    pub fn into_parts(self) -> (UnixStream, Decoder) {
        (self.client.stream, self.client.decoder)
    }
}
