//! Exec, attach and port-forward: HTTP upgrades on a local socket, each behind a token that works once.
//!
//!     CRI Exec/Attach/PortForward -> token in a URL -> kubelet or crictl connects -> token taken -> WebSocket or SPDY/3.1
//!
//! The socket is one of the file system, in a directory of root's alone; only for peers that know nothing else it is a port of
//! loopback (`listener`). `server` speaks HTTP, `websocket` and `spdy` the two framings, `channels` what both become (stdin, stdout, stderr, error,
//! resize), `remote_command` and `port_forward` do the work. Invariant: a token is taken before anything is started, so no
//! URL runs a command twice; it stands for one request of one kind, and unused it dies after a minute.

pub(crate) mod channels;
pub(crate) mod listener;
mod port_forward;
pub(crate) mod process;
pub(crate) mod queue;
mod remote_command;
mod server;
mod spdy;
mod terminal;
mod websocket;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use runtime_cri_api::stream::StreamUrl;
use runtime_cri_api::v1::{AttachRequest, ContainerState, ExecRequest, PortForwardRequest};

use crate::container;
use crate::facts::{self, Shim};
use crate::node::{Container, Node, Sandbox};
use crate::status::Error;

pub(crate) use listener::{Listener, Place};
pub(crate) use server::serve;

/// How long a URL waits for its one visitor.
const TOKEN_LIFE: Duration = Duration::from_secs(60);

/// URLs waiting at once; beyond it the oldest gives way.
const TOKENS_MAX: usize = 1000;

#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("listen for streams on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("{0} is not loopback: streams are served there alone, because their URLs are the only credential")]
    NotLoopback(SocketAddr),
    #[error("every free port of loopback that was tried is the host port of a pod")]
    NoPort,
    #[error("make a pipe")]
    Pipe(#[source] std::io::Error),
    #[error("watch the command's terminal")]
    Terminal(#[source] std::io::Error),
    #[error("lost the shim while the command ran")]
    Lost,
}

/// What a URL stands for.
#[derive(Debug)]
pub(crate) enum Pending {
    Exec { container: Arc<Container>, command: process::Command },
    Attach { container: Arc<Container>, wanted: process::Wanted },
    PortForward { sandbox: Arc<Sandbox>, ports: Vec<u16> },
}

impl Pending {
    /// The first part of its URL's path.
    fn kind(&self) -> &'static str {
        match self {
            Self::Exec { .. } => "exec",
            Self::Attach { .. } => "attach",
            Self::PortForward { .. } => "portforward",
        }
    }
}

#[derive(Debug)]
pub(crate) struct Streams {
    place: Place,
    waiting: Mutex<HashMap<String, (Instant, Pending)>>,
}

impl Streams {
    pub(crate) fn new(place: Place) -> Self {
        Self { place, waiting: Mutex::default() }
    }

    /// The port that no pod may map, where there is one.
    pub(crate) fn port(&self) -> Option<u16> {
        match &self.place {
            Place::Socket(_) => None,
            Place::Loopback(address) => Some(address.port()),
        }
    }

    fn url(&self, pending: Pending) -> String {
        let token = uuid::Uuid::new_v4().simple().to_string();
        let now = Instant::now();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, (since, _)| now.duration_since(*since) < TOKEN_LIFE);
        if waiting.len() >= TOKENS_MAX
            && let Some(oldest) = waiting.iter().min_by_key(|(_, (since, _))| *since).map(|(token, _)| token.clone())
        {
            waiting.remove(&oldest);
        }
        let target = format!("/{}/{token}", pending.kind());
        waiting.insert(token, (now, pending));
        match &self.place {
            Place::Socket(path) => StreamUrl::unix(path, target).to_string(),
            Place::Loopback(address) => StreamUrl::Http { authority: address.to_string(), target }.to_string(),
        }
    }

    /// Gives a token's work to whoever comes first, in time, and for the kind of stream that it was given out for.
    fn take(&self, kind: &str, token: &str) -> Option<Pending> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, pending) = waiting.remove(token)?;
        (since.elapsed() < TOKEN_LIFE && pending.kind() == kind).then_some(pending)
    }
}

pub(crate) fn exec(node: &Node, request: ExecRequest) -> Result<String, Error> {
    let container = node.container(&request.container_id)?;
    container::must_run(&container, "run a command in")?;
    if request.cmd.is_empty() {
        return Err(Error::invalid("cmd", "is empty"));
    }
    // CRI: a terminal carries standard error in standard output.
    if request.tty && request.stderr {
        return Err(Error::invalid("stderr", "cannot be asked for together with tty"));
    }
    let wanted = wanted(request.stdin, request.stdout, request.stderr, request.tty)?;
    let command = process::Command { args: request.cmd, wanted };
    Ok(node.streams.url(Pending::Exec { container, command }))
}

pub(crate) fn attach(node: &Node, request: &AttachRequest) -> Result<String, Error> {
    let container = node.container(&request.container_id)?;
    // One that is only created may be attached to as well: whoever starts it next loses none of its first words.
    if container.read(facts::container_state) != ContainerState::ContainerCreated {
        container::must_run(&container, "attach to")?;
    }
    let terminal = container.read(|record| record.config.tty);
    if request.tty && request.stderr {
        return Err(Error::invalid("stderr", "cannot be asked for together with tty"));
    }
    let wanted = wanted(request.stdin, request.stdout, request.stderr && !terminal, terminal)?;
    Ok(node.streams.url(Pending::Attach { container, wanted }))
}

fn wanted(stdin: bool, stdout: bool, stderr: bool, terminal: bool) -> Result<process::Wanted, Error> {
    if !(stdin || stdout || stderr) {
        return Err(Error::invalid("stdin, stdout, stderr", "are all off: one of them is needed"));
    }
    Ok(process::Wanted { stdin, stdout, stderr, terminal })
}

pub(crate) fn port_forward(node: &Node, request: &PortForwardRequest) -> Result<String, Error> {
    let sandbox = node.sandbox(&request.pod_sandbox_id)?;
    if sandbox.read(facts::sandbox_item).state() != runtime_cri_api::v1::PodSandboxState::SandboxReady
        || sandbox.read(|_, shim| shim) != Shim::Alive
    {
        let (kind, id) = ("pod sandbox", sandbox.id.clone());
        return Err(Error::WrongState { kind, id, state: "not ready", operation: "forward a port to" });
    }
    let ports = request.port.iter().map(|port| u16::try_from(*port).ok().filter(|port| *port > 0));
    let ports: Option<Vec<u16>> = ports.collect();
    let ports = ports.ok_or_else(|| Error::invalid("port", "is not between 1 and 65535"))?;
    Ok(node.streams.url(Pending::PortForward { sandbox, ports }))
}

#[cfg(test)]
mod tests;
