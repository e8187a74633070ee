//! The container's own side: executes the steps of a plan, in order, in the process that becomes the container's.
//!
//! Runs between clone and exec in a copy of a single-threaded process, so it may allocate (rule 33 of the house makes rule 32's ban
//! needless); it never logs: all it has to say goes to the parent as a `Report`. Invariant: it never returns into the parent's code.

mod copy_up;
mod devices;
mod home;
mod identity;
mod mounts;
mod steps;

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use runtime_linux::clone::exit_now;
use runtime_linux::proc::Proc;
use runtime_linux::rooted::Root;
use runtime_linux::{executable, local_socket, namespace, network, process, rlimit};

use crate::plan::{Source, Step};
use crate::status::{State, Status};
use crate::sync::{self, BEFORE_STEPS, Fault, Order, Report};

/// Why a step failed.
#[derive(Debug)]
pub(crate) struct Refusal {
    errno: i32,
    detail: String,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self { errno: errno as i32, detail: String::new() }
    }
}

impl Refusal {
    fn said(errno: Errno, detail: impl Into<String>) -> Self {
        Self { errno: errno as i32, detail: detail.into() }
    }

    fn is(&self, errno: Errno) -> bool {
        self.errno == errno as i32
    }

    /// Not a kernel's answer: the words say it all.
    fn words(detail: impl Into<String>) -> Self {
        Self { errno: 0, detail: detail.into() }
    }
}

pub(crate) type Done = Result<(), Refusal>;

/// A namespace to join: an open namespace file, or a pidfd with the flags of several.
#[derive(Debug)]
pub(crate) struct Join {
    pub fd: OwnedFd,
    pub flags: u64,
}

/// Everything that the child takes along over the clone.
#[derive(Debug)]
pub(crate) struct Child<'plan> {
    pub sync: OwnedFd,
    /// Where `start` knocks; an exec has none and goes on at once.
    pub listener: Option<OwnedFd>,
    pub joins: Vec<Join>,
    /// What lies in the mount namespace before our first step is a container's.
    pub joins_mounts: bool,
    /// A root below the mount namespace's own, for exec in a container without pivot_root.
    pub chroot: Option<OwnedFd>,
    pub sources: Vec<Option<OwnedFd>>,
    /// The plan's, for those that are opened when their turn comes.
    pub source_paths: &'plan [Source],
    pub stdio: [Option<OwnedFd>; 3],
    pub setup: &'plan [Step],
    pub start: &'plan [Step],
    pub arguments: &'plan [String],
    pub environment: &'plan [String],
    pub terminal: TerminalUser,
    pub hooks: Option<&'plan oci_spec::runtime::Hooks>,
    /// For hooks and the seccomp agent; its pid comes with `Order::Go`.
    pub state: State,
    pub watch: Watch,
    /// Connected to the seccomp agent, with the agent's metadata.
    pub agent: Option<(OwnedFd, String)>,
}

/// Whether somebody hears of each step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Watch {
    #[default]
    Nobody,
    /// Each step is reported with its time.
    Reports,
    /// And the next one waits for the answer.
    Pauses,
}

impl Watch {
    pub(crate) fn of(observer: Option<&crate::Observer<'_>>) -> Self {
        match observer {
            None => Self::Nobody,
            Some(observer) if observer.pauses() => Self::Pauses,
            Some(_) => Self::Reports,
        }
    }
}

impl Child<'_> {
    /// The numbers of all that it still needs, of those above the standard streams.
    pub(crate) fn descriptors(&self) -> Vec<RawFd> {
        let mut all: Vec<RawFd> = vec![self.sync.as_raw_fd()];
        all.extend(self.joins.iter().map(|join| join.fd.as_raw_fd()));
        all.extend(self.agent.iter().map(|(socket, _)| socket.as_raw_fd()));
        let optional = [&self.listener, &self.chroot].into_iter().chain(&self.sources).chain(&self.stdio);
        all.extend(optional.flatten().map(AsRawFd::as_raw_fd));
        for step in self.start {
            if let Step::KeepDescriptors(numbers) = step {
                all.extend(numbers);
            }
        }
        all
    }

    pub(crate) fn join_namespaces(&mut self) -> Result<(), Errno> {
        let mut joins = std::mem::take(&mut self.joins);
        if joins.iter().any(|join| join.flags == namespace::Kind::User.flag()) {
            // One that does not belong to the user namespace can be joined from outside only, and only by who has rights there.
            let is_left = |join: &Join| match namespace::join(&join.fd, join.flags) {
                Ok(()) => Ok(false),
                Err(Errno::EPERM) => Ok(true),
                Err(errno) => Err(errno),
            };
            let mut left = Vec::new();
            for join in joins {
                if join.flags == namespace::Kind::User.flag() || is_left(&join)? {
                    left.push(join);
                }
            }
            joins = left;
        }
        for join in joins {
            namespace::join(&join.fd, join.flags)?;
        }
        if let Some(root) = self.chroot.take() {
            nix::unistd::fchdir(&root)?;
            nix::unistd::chroot(".")?;
        }
        Ok(())
    }
}

/// Who gets the terminal.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TerminalUser {
    pub uid: u32,
}

/// Where the new root lies before it is the root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum RootPlace {
    /// In a mount namespace that is not the container's alone.
    #[default]
    Others,
    /// Over the old root.
    OverRoot,
    /// At its own path of the host.
    OwnPath,
}

/// What the steps hand on to each other.
#[derive(Debug, Default)]
struct Held {
    root: Option<Root>,
    root_place: RootPlace,
    proc: Option<Proc>,
    /// Where the last node or link was made: the next one mostly lies beside it.
    directory: Option<(PathBuf, OwnedFd)>,
    null: Option<OwnedFd>,
    /// Mounts that are to be read-only, and are not yet.
    writable: Vec<OwnedFd>,
    mask: Option<OwnedFd>,
    program: Option<CString>,
    /// `HOME=...`, where the configuration has none.
    home: Option<CString>,
    /// The working directory was entered before the user was set.
    is_in_directory: bool,
}

/// Runs the whole life of the child.
pub(crate) fn run(mut child: Child<'_>) -> ! {
    let mut held = Held::default();
    let at = |step: usize, refusal: Refusal| Fault {
        step: u32::try_from(step).unwrap_or(BEFORE_STEPS),
        errno: refusal.errno,
        detail: refusal.detail,
    };
    if let Err(refusal) = enter(&mut child, &mut held) {
        fail(&child.sync, at(usize::MAX, refusal));
    }
    for (index, step) in child.setup.iter().enumerate() {
        let began = began(&child);
        let done = execute(step, &mut child, &mut held).and_then(|()| told(index, began, &child.sync, child.watch));
        if let Err(refusal) = done {
            fail(&child.sync, at(index, refusal));
        }
    }
    // Before anybody hears of us: whoever is told of a created container may signal it at once, and the first of a PID namespace that does
    // not listen yet would never know.
    if child.listener.is_some() && deadly_signals().thread_block().is_err() {
        exit_now(1);
    }
    // A parent that is gone has left a record without us: then we must not be either.
    if sync::send_report(&child.sync, &Report::Ready).is_err() {
        exit_now(1);
    }
    let starter = match child.listener.take() {
        Some(listener) => match wait_for_start(&child.sync, &listener) {
            Ok((starter, watch)) => {
                child.watch = watch;
                starter
            }
            Err(_) => exit_now(1),
        },
        // exec: whoever asked hears of a failure on the same socket, and end of file is success.
        None => match child.sync.try_clone() {
            Ok(sync) => sync,
            Err(_) => exit_now(1),
        },
    };
    child.state.status = Status::Created;
    for (index, step) in child.start.iter().enumerate() {
        let (place, began) = (child.setup.len() + index, began(&child));
        if crate::explain::ends_the_telling(step) {
            child.watch = Watch::Nobody;
        }
        let done = execute(step, &mut child, &mut held).and_then(|()| told(place, began, &starter, child.watch));
        if let Err(refusal) = done {
            fail(&starter, at(place, refusal));
        }
    }
    exit_now(1)
}

fn began(child: &Child<'_>) -> Option<Instant> {
    (child.watch != Watch::Nobody).then(Instant::now)
}

/// A step to whoever watches; nothing otherwise.
fn told(place: usize, began: Option<Instant>, socket: &OwnedFd, watch: Watch) -> Done {
    let Some(began) = began.filter(|_| watch != Watch::Nobody) else { return Ok(()) };
    let nanoseconds = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
    sync::send_report(socket, &Report::Done { step: u32::try_from(place).unwrap_or(BEFORE_STEPS), nanoseconds })?;
    if watch == Watch::Pauses && sync::receive_order(socket)? != Order::Continue {
        return Err(Refusal::words("whoever watched has gone"));
    }
    Ok(())
}

fn fail(socket: &OwnedFd, fault: Fault) -> ! {
    // Nobody is left to be told where the socket has gone.
    let _gone = sync::send_report(socket, &Report::Failed(fault));
    exit_now(1)
}

/// Up to the parent's go: descriptors, dumpability, namespaces by path.
fn enter(child: &mut Child<'_>, held: &mut Held) -> Done {
    // What our maker has open is none of the container's business, not even until exec.
    process::close_all_but(&child.descriptors())?;
    for (stream, target) in child.stdio.iter().zip(0..) {
        if let Some(stream) = stream {
            process::place(stream.as_fd(), target)?;
        }
    }
    child.stdio = [None, None, None];
    process::reset_signals()?;
    // A shim holds thousands; what the container gets is what its configuration says, or what the shim itself came with.
    rlimit::restore_descriptors()?;
    // What is made for the container has the mode that is asked for; the process gets its own umask later.
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    match sync::receive_order(&child.sync)? {
        Order::Go(pid) => child.state.pid = pid,
        other => return Err(Refusal::words(format!("expected to go on, was told {other:?}"))),
    }
    // Ours may be one CPU that our caller was put on; the container's are what its cgroup has.
    process::reset_cpu_affinity()?;
    // Not before: an unprivileged parent could not write the id maps of a process that is not dumpable.
    executable::set_undumpable()?;
    let needs_proc = |step: &Step| {
        matches!(
            step,
            Step::Sysctl { .. }
                | Step::AppArmor(_)
                | Step::Selinux(_)
                | Step::OomScoreAdjust(_)
                | Step::TimeNamespace(_)
        )
    };
    if child.setup.iter().any(needs_proc) {
        held.proc = Some(if child.joins_mounts {
            // The /proc that is there is the container's to choose; a user namespace that may not mount one has no other, though.
            Proc::private().or_else(|_| Proc::host())?
        } else {
            // Now, while /proc is the host's and nobody in a container can have mounted over it.
            Proc::host().or_else(|_| Proc::private())?
        });
    }
    Ok(child.join_namespaces()?)
}

/// After the commit, with the deadly signals blocked: the first who connects and says so starts us. A connection that says nothing is a
/// question whether we are there.
fn wait_for_start(sync: &OwnedFd, listener: &OwnedFd) -> Result<(OwnedFd, Watch), Errno> {
    match sync::receive_order(sync)? {
        Order::Commit => {}
        _ => return Err(Errno::EPROTO),
    }
    let deadly = deadly_signals();
    let signals = SignalFd::with_flags(&deadly, SfdFlags::SFD_CLOEXEC)?;
    loop {
        let mut ready =
            [PollFd::new(listener.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno),
        }
        if ready[1].any() == Some(true) {
            let number = signals.read_signal()?.map_or(0, |signal| signal.ssi_signo);
            exit_now(128 + i32::try_from(number).unwrap_or(0));
        }
        let starter = local_socket::accept(listener)?;
        let mut word = [0; 1];
        if nix::unistd::read(&starter, &mut word) == Ok(1)
            && let Some(watch) = crate::start::watch(word[0])
        {
            deadly.thread_unblock()?;
            return Ok((starter, watch));
        }
    }
}

/// What ends an ordinary process. The first of a PID namespace is deaf to them (pid_namespaces(7)), and whoever signals a container that is
/// not started yet expects it to end.
fn deadly_signals() -> SigSet {
    use Signal::{SIGALRM, SIGHUP, SIGINT, SIGPIPE, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
    [SIGHUP, SIGINT, SIGQUIT, SIGPIPE, SIGALRM, SIGTERM, SIGUSR1, SIGUSR2].into_iter().collect()
}

fn execute(step: &Step, child: &mut Child<'_>, held: &mut Held) -> Done {
    // Whatever is done in between may mount over it.
    held.directory.take_if(|_| !matches!(step, Step::Device(_) | Step::Link(..)));
    match step {
        Step::Session => {
            nix::unistd::setsid()?;
        }
        Step::Keyring(name) => steps::keyring(name)?,
        Step::NamespaceRoot => steps::namespace_root()?,
        Step::Loopback => network::bring_up_loopback()?,
        Step::CgroupNamespace => namespace::unshare(namespace::Kind::Cgroup.flag())?,
        Step::TimeNamespace(offsets) => steps::time_namespace(offsets, held)?,
        Step::OomScoreAdjust(value) => steps::oom_score_adjust(*value, child, held)?,
        Step::RuntimeHooks => {
            sync::send_report(&child.sync, &Report::NeedHooks)?;
            match sync::receive_order(&child.sync)? {
                Order::HooksDone => {}
                other => return Err(Refusal::words(format!("expected the hooks' end, was told {other:?}"))),
            }
        }
        Step::Hooks(moment) => steps::run_hooks(*moment, child, held)?,
        Step::Hostname(name) => nix::unistd::sethostname(name)?,
        Step::Domainname(name) => process::set_domainname(name)?,
        Step::Sysctl { path, value, .. } => proc(held)?.write(path, value.as_bytes())?,
        Step::Seccomp(filter) => {
            steps::seccomp_filter(filter, child)?;
        }
        Step::Exec => steps::exec(child, held)?,
        Step::Propagation(_)
        | Step::EnsureDirectory(_)
        | Step::Unmount(_)
        | Step::MountsReadonly
        | Step::RootBind { .. }
        | Step::RootOverlay(_)
        | Step::RootDirectory(_)
        | Step::Mount { .. }
        | Step::PivotRoot
        | Step::Chroot
        | Step::RootPropagation(_)
        | Step::RootReadonly
        | Step::ReadonlyPath(_)
        | Step::MaskedPath(_) => mounts::execute(step, child, held)?,
        Step::Device(_) | Step::Link(..) | Step::Console { .. } => devices::execute(step, child, held)?,
        _ => identity::execute(step, child, held)?,
    }
    Ok(())
}

/// The host's procfs, opened by `enter` for the steps that write there.
fn proc(held: &Held) -> Result<&Proc, Errno> {
    held.proc.as_ref().ok_or(Errno::ENOENT)
}
