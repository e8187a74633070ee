//! One container: the facts about it, and what is done to it through the OCI library.
//!
//! ```text
//!   (Coming) -> Created -- start --> Running -- exit --> Exited -- delete --> gone
//!                \------------- exit ----------------/
//! ```
//!
//! The state is derived: an exit record *is* Exited, a start time *is* Running.

use super::clock;
use super::conversation::{Asked, LIMIT};
use super::log::Log;
use super::reactor::{Reactor, Watched};
use super::server::Source;
use super::stdio::{Ends, Stdio};
use nix::fcntl::OFlag;
use nix::sys::epoll::EpollFlags;
use oci_spec::runtime::Spec;
use runtime_linux::cgroup::{Cgroup, Hierarchy, OomWatch};
use runtime_linux::pidfd::{self, Exit};
use runtime_oci::{Bundle, ContainerId, CreateOptions, Creating, ExecOptions, Executing, Starting, StateRoot};
use runtime_shim::record::VERSION;
use runtime_shim::{ContainerInfo, ContainerState, Create, Exec, ExecInfo, ExitRecord, Failure, FailureCode, Target};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;

/// Ended execs whose exit is kept for a late `Wait`; beyond it the oldest is forgotten.
const ENDED_EXECS_MAX: usize = 64;
/// Execs running at once in one container.
const EXECS_MAX: usize = 1024;
/// An id goes back in every record, answer and event.
const EXEC_ID_BYTES_MAX: usize = 1024;

#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: ContainerId,
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    bundle: PathBuf,
    pub(crate) terminal: bool,
    created_at_ns: i64,
    pub(crate) is_starting: bool,
    started_at_ns: Option<i64>,
    pub(crate) exit: Option<ExitRecord>,
    pub(crate) oom_kills: u64,
    pub(crate) oom: Option<Watched<OomWatch, Source>>,
    pub(crate) cgroup: Option<Cgroup>,
    pub(crate) stdio: Stdio,
    pub(crate) execs: BTreeMap<String, Execution>,
    pub(crate) warnings: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Execution {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    /// The connection that it ends with.
    tied: Option<u64>,
    started_at_ns: i64,
    pub(crate) exit: Option<ExitRecord>,
}

pub(crate) fn failure(code: FailureCode, message: impl Into<String>) -> Failure {
    Failure { code, message: message.into() }
}

/// An error with its causes, as one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

pub(crate) fn failed(what: &str, error: &dyn Error) -> Failure {
    failure(FailureCode::Failed, format!("{what}: {}", chain(error)))
}

pub(crate) fn oci_failure(what: &str, error: &runtime_oci::Error) -> Failure {
    use runtime_oci::Error as Oci;
    let code = match error {
        Oci::InvalidId { .. } | Oci::InvalidConfig { .. } | Oci::Parse { .. } => FailureCode::Invalid,
        Oci::Exists { .. } => FailureCode::AlreadyExists,
        Oci::NotFound { .. } => FailureCode::NotFound,
        Oci::WrongStatus { .. } => FailureCode::WrongState,
        _ => FailureCode::Failed,
    };
    failure(code, format!("{what}: {}", chain(error)))
}

/// What the other side of a stream's pipe is given.
struct Pipes {
    ours: Ends,
    theirs: runtime_oci::Stdio,
}

fn pipes(create: &Create) -> Result<Pipes, nix::Error> {
    let mut ours = Ends::default();
    let mut theirs = runtime_oci::Stdio::default();
    if create.terminal {
        return Ok(Pipes { ours, theirs });
    }
    if create.stdin {
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        (theirs.stdin, ours.stdin) = (Some(reader), Some(writer));
    } else {
        theirs.stdin = Some(null()?);
    }
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    (ours.stdout, theirs.stdout) = (Some(reader), Some(writer));
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    (ours.stderr, theirs.stderr) = (Some(reader), Some(writer));
    Ok(Pipes { ours, theirs })
}

/// For a stream that goes nowhere; never the shim's own.
fn null() -> Result<OwnedFd, nix::Error> {
    nix::fcntl::open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())
}

fn cgroup_of(spec: &Spec, hierarchy: &Hierarchy) -> Option<Cgroup> {
    let path = spec.linux().as_ref()?.cgroups_path().as_ref()?;
    Cgroup::new(hierarchy, path.to_str()?).ok()
}

/// A container that is being created: what its process does not need and it will.
#[derive(Debug)]
pub(crate) struct Coming {
    pub(crate) id: ContainerId,
    bundle: PathBuf,
    terminal: bool,
    stdin: bool,
    stdin_once: bool,
    log: Option<Log>,
    ends: Ends,
    cgroup: Option<Cgroup>,
    /// Who asked meanwhile for it to be deleted.
    pub(crate) deleters: Vec<Asked>,
}

impl Coming {
    pub(crate) fn begin(
        create: &Create,
        root: &StateRoot,
        hierarchy: &Hierarchy,
    ) -> Result<(Self, Creating<'static>), Failure> {
        let what = format!("create container {}", create.id);
        let id = ContainerId::parse(&create.id).map_err(|error| oci_failure(&what, &error))?;
        let bundle = Bundle::load(&create.bundle).map_err(|error| oci_failure(&what, &error))?;
        let terminal = bundle.spec().process().as_ref().and_then(oci_spec::runtime::Process::terminal).unwrap_or(false);
        if terminal != create.terminal {
            let message =
                format!("{what}: terminal is {} in the request and {terminal} in the bundle", create.terminal);
            return Err(failure(FailureCode::Invalid, message));
        }
        if bundle.spec().hooks().is_some() {
            // A hook runs as long as it likes, and this process has a whole pod to serve.
            let message = format!("{what}: the bundle has hooks, which a shim does not run; leave them out");
            return Err(failure(FailureCode::Invalid, message));
        }
        let log = match &create.log_path {
            Some(path) => {
                Some(Log::open(path).map_err(|error| failed(&format!("{what}: open log {}", path.display()), &error))?)
            }
            None => None,
        };
        let cgroup = cgroup_of(bundle.spec(), hierarchy);
        let pipes = pipes(create).map_err(|error| failed(&format!("{what}: make pipes"), &error))?;
        let options = CreateOptions {
            stdio: pipes.theirs,
            rootfs: create.rootfs.clone(),
            limit: Some(LIMIT),
            ..CreateOptions::default()
        };
        let creating = Creating::begin(root, &id, Cow::Owned(bundle), options, &mut None)
            .map_err(|error| oci_failure(&what, &error))?;
        let coming = Self {
            id,
            bundle: create.bundle.clone(),
            terminal,
            stdin: create.stdin,
            stdin_once: create.stdin_once,
            log,
            ends: pipes.ours,
            cgroup,
            deleters: Vec::new(),
        };
        Ok((coming, creating))
    }
}

impl Container {
    /// What has come of it.
    pub(crate) fn created(
        coming: Coming,
        created: runtime_oci::Created,
        root: &StateRoot,
        reactor: &mut Reactor<Source>,
    ) -> Result<Self, Failure> {
        let Coming { id, bundle, terminal, stdin, stdin_once, log, mut ends, cgroup, deleters: _ } = coming;
        let what = format!("create container {id}");
        let key: Rc<str> = id.as_str().into();
        let undo = |what: String, error: nix::Error| {
            // Half a container is none: its init still waits for start, so killing it loses nothing.
            let _first_error_counts = runtime_oci::delete(root, &id, runtime_oci::Deletion::Force);
            failed(&what, &error)
        };
        if let Some(console) = created.console {
            let copy =
                console.try_clone().map_err(|_| undo(format!("{what}: copy the terminal"), nix::Error::EMFILE))?;
            if stdin {
                ends.stdin = Some(copy);
            }
            ends.stdout = Some(console);
        }
        let stdio = Stdio::new(key.clone(), ends, log, stdin_once && !terminal, reactor)
            .map_err(|error| undo(format!("{what}: watch its streams"), error))?;
        let mut warnings = created.warnings;
        let oom = watch_oom(cgroup.as_ref(), key, reactor, &mut warnings);
        Ok(Self {
            id,
            pid: created.pid,
            pidfd: created.pidfd,
            bundle,
            terminal,
            created_at_ns: clock::now_ns(),
            is_starting: false,
            started_at_ns: None,
            exit: None,
            oom_kills: 0,
            oom,
            cgroup,
            stdio,
            execs: BTreeMap::new(),
            warnings,
        })
    }

    pub(crate) fn state(&self) -> ContainerState {
        if self.exit.is_some() {
            ContainerState::Exited
        } else if self.started_at_ns.is_some() {
            ContainerState::Running
        } else {
            ContainerState::Created
        }
    }

    /// The word to go on; [`Self::started`] when it has.
    pub(crate) fn start(&mut self, root: &StateRoot) -> Result<Starting, Failure> {
        self.expect("start", ContainerState::Created)?;
        if self.is_starting {
            let message = format!("cannot start container {}: it is being started already", self.id);
            return Err(failure(FailureCode::WrongState, message));
        }
        let starting = Starting::new(root, &self.id, Some(LIMIT))
            .map_err(|error| oci_failure(&format!("start container {}", self.id), &error))?;
        self.is_starting = true;
        Ok(starting)
    }

    pub(crate) fn started(&mut self) {
        self.is_starting = false;
        self.started_at_ns = Some(clock::now_ns());
    }

    pub(crate) fn expect(&self, operation: &str, wanted: ContainerState) -> Result<(), Failure> {
        let state = self.state();
        if state == wanted {
            return Ok(());
        }
        let message =
            format!("cannot {operation} container {}: it is {state:?}, not {wanted:?}", self.id).to_lowercase();
        Err(failure(FailureCode::WrongState, message))
    }

    /// Begins an exec.
    pub(crate) fn exec(
        &self,
        exec: &Exec,
        stdio: [Option<OwnedFd>; 3],
        root: &StateRoot,
    ) -> Result<Executing, Failure> {
        let what = format!("exec {} in container {}", exec.exec_id, self.id);
        self.expect("exec in", ContainerState::Running)?;
        if exec.exec_id.len() > EXEC_ID_BYTES_MAX {
            let message = format!("exec in container {}: its id is longer than {EXEC_ID_BYTES_MAX} bytes", self.id);
            return Err(failure(FailureCode::Invalid, message));
        }
        if self.execs.contains_key(&exec.exec_id) {
            return Err(failure(FailureCode::AlreadyExists, format!("{what}: the exec id is taken")));
        }
        if self.execs.values().filter(|exec| exec.exit.is_none()).count() >= EXECS_MAX {
            return Err(failure(FailureCode::Exhausted, format!("{what}: {EXECS_MAX} execs are running already")));
        }
        let or_null = |fd: Option<OwnedFd>| match fd {
            Some(fd) => Ok(fd),
            None => null().map_err(|error| failed(&format!("{what}: open /dev/null"), &error)),
        };
        let [stdin, stdout, stderr] = stdio;
        let stdio = if exec.process.terminal().unwrap_or(false) {
            runtime_oci::Stdio::default()
        } else {
            runtime_oci::Stdio {
                stdin: Some(or_null(stdin)?),
                stdout: Some(or_null(stdout)?),
                stderr: Some(or_null(stderr)?),
            }
        };
        let options = ExecOptions { stdio, limit: Some(LIMIT), ..ExecOptions::default() };
        Executing::begin(root, &self.id, &exec.process, options).map_err(|error| oci_failure(&what, &error))
    }

    /// An exec runs its program.
    pub(crate) fn executed(&mut self, target: &Target, pidfd: OwnedFd, pid: i32, tied: Option<u64>) {
        let execution = Execution { pid, pidfd, tied, started_at_ns: clock::now_ns(), exit: None };
        self.execs.insert(target.exec_id.clone().unwrap_or_default(), execution);
    }

    /// Ends the execs that are tied to a connection.
    pub(crate) fn kill_tied(&self, connection: u64) {
        for exec in self.execs.values().filter(|exec| exec.exit.is_none() && exec.tied == Some(connection)) {
            // ESRCH: it has ended.
            let _gone = pidfd::send_signal(&exec.pidfd, nix::libc::SIGKILL);
        }
    }

    /// The record of how its first process ended.
    pub(crate) fn record(&mut self, exit: Exit) -> ExitRecord {
        if let Some(cgroup) = &self.cgroup {
            // An unreadable counter says nothing; the last one seen stands.
            self.oom_kills = cgroup.oom_kills().unwrap_or(0).max(self.oom_kills);
        }
        ExitRecord {
            version: VERSION,
            id: self.id.to_string(),
            exec_id: None,
            pid: self.pid,
            code: exit.code(),
            signal: signal(exit),
            oom_killed: self.oom_kills > 0 && exit.code() != 0,
            started_at_ns: self.started_at_ns.unwrap_or(0),
            exited_at_ns: clock::now_ns(),
            lost: false,
        }
    }

    /// Keeps and returns the record of how an exec ended.
    pub(crate) fn record_exec(&mut self, exec_id: &str, exit: Exit) -> Option<ExitRecord> {
        let execution = self.execs.get_mut(exec_id)?;
        let record = ExitRecord {
            version: VERSION,
            id: self.id.to_string(),
            exec_id: Some(exec_id.to_owned()),
            pid: execution.pid,
            code: exit.code(),
            signal: signal(exit),
            oom_killed: false,
            started_at_ns: execution.started_at_ns,
            exited_at_ns: clock::now_ns(),
            lost: false,
        };
        execution.exit = Some(record.clone());
        let ended = || self.execs.iter().filter_map(|(id, exec)| Some((exec.exit.as_ref()?.exited_at_ns, id)));
        if ended().count() > ENDED_EXECS_MAX
            && let Some(oldest) = ended().min().map(|(_, id)| id.clone())
        {
            self.execs.remove(&oldest);
        }
        Some(record)
    }

    pub(crate) fn info(&self) -> ContainerInfo {
        let execs = self.execs.iter().map(|(exec_id, exec)| ExecInfo {
            exec_id: exec_id.clone(),
            pid: exec.pid,
            exit: exec.exit.clone(),
        });
        ContainerInfo {
            id: self.id.to_string(),
            pid: self.pid,
            bundle: self.bundle.clone(),
            state: self.state(),
            terminal: self.terminal,
            log_path: self.stdio.log.as_ref().map(|log| log.path().to_owned()),
            created_at_ns: self.created_at_ns,
            started_at_ns: self.started_at_ns,
            exit: self.exit.clone(),
            oom_kills: self.oom_kills,
            log_dropped_bytes: self.stdio.log.as_ref().map_or(0, Log::dropped_bytes),
            attached: self.stdio.attached(),
            execs: execs.collect(),
        }
    }

    /// Lets go of every descriptor that is watched.
    pub(crate) fn close(mut self, reactor: &mut Reactor<Source>) {
        self.stdio.close(reactor);
        if let Some(oom) = self.oom.take() {
            oom.close(reactor);
        }
    }
}

fn signal(exit: Exit) -> Option<i32> {
    match exit {
        Exit::Code(_) => None,
        Exit::Signal(signal) => Some(signal),
    }
}

fn watch_oom(
    cgroup: Option<&Cgroup>,
    key: Rc<str>,
    reactor: &mut Reactor<Source>,
    warnings: &mut Vec<String>,
) -> Option<Watched<OomWatch, Source>> {
    let watch = match cgroup?.watch_oom() {
        Ok(watch) => watch,
        Err(error) => {
            warnings.push(format!("out-of-memory events are not told: {}", chain(&error)));
            return None;
        }
    };
    let flags = if watch.is_priority() { EpollFlags::EPOLLPRI } else { EpollFlags::EPOLLIN };
    let mut watched = Watched::new(watch, Source::Oom(key));
    match watched.watch(reactor, flags) {
        Ok(()) => Some(watched),
        Err(error) => {
            warnings.push(format!("out-of-memory events are not told: {error}"));
            None
        }
    }
}

/// The shim's notes for people, in `<dir>/shim.log`: rare, and never part of the protocol.
pub(crate) fn note(message: &str) {
    use std::io::Write;
    let mut line = Vec::new();
    clock::push_rfc3339(clock::now_ns(), &mut line);
    line.extend_from_slice(format!(" {message}\n").as_bytes());
    // Nowhere to complain about a full disk.
    let _lost = std::io::stderr().write_all(&line);
}

/// Opens a file that must exist, for descriptors handed to no one.
pub(crate) fn open_null() -> std::io::Result<File> {
    File::options().read(true).write(true).open("/dev/null")
}
