//! The blocking client of one shim. One request at a time per connection; connecting costs microseconds, so a caller
//! that waits opens a connection of its own.
//!
//! Every call has a deadline ([`Client::set_deadline`], 30 s unless told) except [`Client::wait`]; after an I/O error the
//! connection is out of step and every further call fails: connect anew.

use crate::protocol::{Call, Create, Created, Event, Exec, Failure, Message, PodInfo, Reply, Request, Target};
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
    /// Whether nobody listens there any more, as opposed to a shim in trouble.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        use io::ErrorKind::{ConnectionRefused, ConnectionReset, NotADirectory, NotFound};
        match self {
            Self::Connect { source, .. } => {
                matches!(source.kind(), NotFound | NotADirectory | ConnectionRefused | ConnectionReset)
            }
            Self::Closed => true,
            _ => false,
        }
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
    stream: UnixStream,
    decoder: Decoder,
    fds: VecDeque<OwnedFd>,
    seq: u64,
    broken: bool,
}

impl Client {
    /// Connects to the shim of the pod at `dir`.
    pub fn connect(dir: &Path) -> Result<Self, ClientError> {
        let failed = |source| ClientError::Connect { dir: dir.to_owned(), source };
        let stream = socket::connect(dir).map_err(failed)?;
        let client = Self { stream, decoder: Decoder::default(), fds: VecDeque::new(), seq: 0, broken: false };
        client.set_deadline(Some(DEADLINE)).map_err(failed)?;
        Ok(client)
    }

    /// Limits how long each answer may take; `None` waits for ever.
    pub fn set_deadline(&self, deadline: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(deadline)?;
        self.stream.set_write_timeout(deadline)
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
        self.done(Request::Signal { target, signal, all: false })
    }

    /// Sends a signal to every process of a container.
    pub fn signal_all(&mut self, id: &str, signal: i32) -> Result<(), ClientError> {
        self.done(Request::Signal { target: Target::container(id), signal, all: true })
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
        self.set_deadline(None).map_err(ClientError::Send)?;
        let reply = self.call(Request::Wait { target }, &[]);
        self.set_deadline(Some(DEADLINE)).map_err(ClientError::Send)?;
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
        let seq = self.seq;
        let frame = encode(&Call { seq, request })?;
        self.fds.clear();
        // Until the answer is read whole, an early return leaves the stream out of step.
        self.broken = true;
        self.send(&frame, fds)?;
        loop {
            match self.receive()? {
                Message::Reply { seq: answered, result } if answered == seq => {
                    self.broken = false;
                    return Ok(result?);
                }
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
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(ClientError::Closed),
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
    pub fn set_deadline(&self, deadline: Option<Duration>) -> io::Result<()> {
        self.client.set_deadline(deadline)
    }

    /// For an async caller: the socket, and the decoder with what was read beyond the reply. Feed it what is read from
    /// the socket and take [`Message`]s from it.
    #[must_use]
    pub fn into_parts(self) -> (UnixStream, Decoder) {
        (self.client.stream, self.client.decoder)
    }
}
