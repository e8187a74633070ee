//! A command in a container, or the container's own streams, as async readers and writers: the shim's side of a session.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;

use oci_spec::runtime::Spec;
use runtime_shim::{Exec, ExitRecord, Stdio, Target};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::unix::pipe;
use tokio_util::task::AbortOnDropHandle;

use super::StreamError;
use super::terminal::Terminal;
use crate::container;
use crate::kill::ignore_ended;
use crate::node::{Container, Node};
use crate::shim::{ASK_WITHIN, ExitWaiter};
use crate::spec;
use crate::status::Error;

pub(crate) type Source = Pin<Box<dyn AsyncRead + Send>>;
pub(crate) type Sink = Pin<Box<dyn AsyncWrite + Send>>;

/// Which streams the client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) terminal: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Command {
    pub(crate) args: Vec<String>,
    pub(crate) wanted: Wanted,
}

/// What sets a terminal's size.
#[derive(Clone, Debug)]
pub(crate) enum Resizer {
    /// An exec's terminal is held here.
    Terminal(Terminal),
    /// A container's own is held by the shim.
    Container(Arc<Node>, Arc<Container>),
}

/// A command that runs, or a container that is attached to.
pub(crate) struct Running {
    pub(crate) stdin: Option<Sink>,
    pub(crate) stdout: Option<Source>,
    pub(crate) stderr: Option<Source>,
    pub(crate) resizer: Option<Resizer>,
    /// Absent for an attached container: its end is the end of its output.
    pub(crate) exit: Option<Exit>,
    /// Who attached leaves when the standard input has ended: the container's own stays open for others.
    pub(crate) leaves_after_stdin: bool,
}

/// The end of a command, and the means to bring it about.
#[derive(Debug)]
pub(crate) struct Exit {
    container: Arc<Container>,
    target: Target,
    record: AbortOnDropHandle<Result<ExitRecord, Error>>,
}

impl Exit {
    pub(crate) async fn wait(&mut self) -> Result<ExitRecord, Error> {
        (&mut self.record).await.unwrap_or(Err(Error::Stream(StreamError::Lost)))
    }

    /// Kills the command's first process.
    pub(crate) async fn kill(&self, node: &Node) -> Result<(), Error> {
        let (container, target) = (Arc::clone(&self.container), self.target.clone());
        let kill = move || {
            let mut client = container.sandbox.shim_within(ASK_WITHIN)?;
            ignore_ended(client.signal(target, nix::sys::signal::Signal::SIGKILL as i32))
        };
        node.pool.run(kill).await
    }
}

/// Starts a command in a running container.
pub(crate) async fn start(node: &Node, container: &Arc<Container>, command: Command) -> Result<Running, Error> {
    let (mine, theirs) = pipes(Wanted { terminal: false, ..command.wanted }, command.wanted.terminal)?;
    let exec_id = uuid::Uuid::new_v4().simple().to_string();
    let target = Target::exec(&container.id, &exec_id);
    let owner = Arc::clone(container);
    let started = {
        let terminal = command.wanted.terminal;
        let starting = move || {
            let path = container::bundle(&owner).join("config.json");
            let spec = Spec::load(&path).map_err(|error| Error::io("read", &path)(io::Error::other(error)))?;
            let process = spec::exec_process(&spec, command.args, terminal);
            let exec = Exec {
                id: owner.id.clone(),
                exec_id,
                process,
                stdin: false,
                stdout: false,
                stderr: false,
                tied: false,
            };
            // Connected before it starts, so that its end cannot be missed for want of a connection.
            let waiter = ExitWaiter::connect(&owner.sandbox.dir)?;
            let execution = owner.sandbox.shim()?.exec(exec, theirs)?;
            Ok((execution, waiter))
        };
        node.pool.run(starting).await?
    };
    let (execution, waiter) = started;
    let record = AbortOnDropHandle::new(tokio::spawn(waiter.wait(target.clone())));
    let exit = Some(Exit { container: Arc::clone(container), target, record });
    let Some(console) = execution.console else {
        return Ok(Running { exit, ..mine });
    };
    let terminal = Terminal::new(console).map_err(StreamError::Terminal)?;
    Ok(Running {
        stdin: command.wanted.stdin.then(|| Box::pin(terminal.clone()) as Sink),
        stdout: Some(Box::pin(terminal.clone())),
        stderr: None,
        resizer: Some(Resizer::Terminal(terminal)),
        exit,
        leaves_after_stdin: false,
    })
}

/// Joins the streams of a running container.
pub(crate) async fn attach(node: &Arc<Node>, container: &Arc<Container>, wanted: Wanted) -> Result<Running, Error> {
    let (mut mine, theirs) = pipes(wanted, false)?;
    mine.resizer = wanted.terminal.then(|| Resizer::Container(Arc::clone(node), Arc::clone(container)));
    // As containerd: only with stdinOnce and without a terminal is the end of the input the container's to hear.
    let is_last_input = container.read(|record| record.config.stdin_once && !record.config.tty);
    mine.leaves_after_stdin = wanted.stdin && !is_last_input;
    let container = Arc::clone(container);
    node.pool.run(move || Ok(container.sandbox.shim_within(ASK_WITHIN)?.attach(&container.id, theirs)?)).await?;
    Ok(mine)
}

/// Our ends and the shim's. With a terminal there are none: its master side comes back.
fn pipes(wanted: Wanted, terminal: bool) -> Result<(Running, Stdio), Error> {
    let mut mine =
        Running { stdin: None, stdout: None, stderr: None, resizer: None, exit: None, leaves_after_stdin: false };
    let mut theirs = Stdio::default();
    if terminal {
        return Ok((mine, theirs));
    }
    if wanted.stdin {
        let (sender, receiver) = pipe::pipe().map_err(StreamError::Pipe)?;
        mine.stdin = Some(Box::pin(sender));
        theirs.stdin = Some(receiver.into_blocking_fd().map_err(StreamError::Pipe)?);
    }
    let output = || -> Result<(Source, OwnedFd), Error> {
        let (sender, receiver) = pipe::pipe().map_err(StreamError::Pipe)?;
        Ok((Box::pin(receiver), sender.into_blocking_fd().map_err(StreamError::Pipe)?))
    };
    if wanted.stdout {
        let (source, fd) = output()?;
        (mine.stdout, theirs.stdout) = (Some(source), Some(fd));
    }
    if wanted.stderr {
        let (source, fd) = output()?;
        (mine.stderr, theirs.stderr) = (Some(source), Some(fd));
    }
    Ok((mine, theirs))
}

impl Resizer {
    pub(crate) async fn resize(&self, columns: u16, rows: u16) {
        let outcome = match self {
            Self::Terminal(terminal) => terminal.resize(columns, rows).map_err(|errno| errno.to_string()),
            Self::Container(node, container) => {
                let container = Arc::clone(container);
                let resize =
                    move || Ok(container.sandbox.shim_within(ASK_WITHIN)?.resize(&container.id, columns, rows)?);
                node.pool.run(resize).await.map_err(|error| error.to_string())
            }
        };
        if let Err(error) = outcome {
            tracing::debug!(error, "terminal not resized");
        }
    }
}
