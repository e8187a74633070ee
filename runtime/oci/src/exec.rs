//! `exec`: a further process in a container's namespaces and cgroup.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::errno::Errno;
use oci_spec::runtime::{Process, Spec};
use runtime_linux::cgroup::{Cgroup, SubCgroup};
use runtime_linux::local_socket;
use runtime_linux::namespace::Kind;
use runtime_linux::pidfd::{self, Exit};

use crate::child::{Child, Join, TerminalUser, Watch};
use crate::conversation::{Allowed, Conversation, Heard, Talk, drive};
use crate::create::{child_error, parent, seccomp_agent};
use crate::error::Error;
use crate::plan::{ProcessContext, STRICT_SECCOMP, Step, is_asked_for, process_steps};
use crate::record::{Place, Record};
use crate::spawn::{Spawn, begin};
use crate::status::Status;
use crate::streams;
use crate::sync::{Order, Report};
use crate::{ContainerId, ExecOptions, Execed, Observer, StateRoot};

/// Runs a further process in a created or running container; comes back when it runs its program.
pub fn exec(root: &StateRoot, id: &ContainerId, process: &Process, options: ExecOptions) -> Result<Execed, Error> {
    drive(&mut Executing::begin(root, id, process, options)?, &mut None)
}

/// A further process on its way to its program. Dropped, it is killed.
#[derive(Debug)]
pub struct Executing {
    talk: Talk,
    record: Record,
    cgroup: Cgroup,
    sub_cgroups: Vec<SubCgroup>,
    setup: Vec<Step>,
    start: Vec<Step>,
    warnings: Vec<String>,
    console: Option<OwnedFd>,
}

impl Executing {
    /// Everything up to the clone, of which none waits for anybody.
    pub fn begin(root: &StateRoot, id: &ContainerId, process: &Process, options: ExecOptions) -> Result<Self, Error> {
        let place = Place::new(root, id);
        let record = place.load()?;
        let cgroup = root.cgroup(&record.cgroup)?;
        let status = record.status(&place, || cgroup.is_frozen().unwrap_or(false));
        match status {
            Status::Created | Status::Running => {}
            Status::Paused if options.ignore_paused => {}
            _ => return Err(Error::WrongStatus { id: id.to_string(), operation: "exec", status }),
        }
        let spec = place.config()?;
        let mut warnings = Vec::new();
        let (setup, start) = steps(process, &spec, id, &options, &mut warnings)?;
        let init = pidfd::open(record.pid).map_err(parent("open the container's init"))?;
        // The pid could have been taken over before it was opened, not after.
        if !record.is_alive() {
            return Err(Error::WrongStatus { id: id.to_string(), operation: "exec", status: Status::Stopped });
        }
        let (ours, theirs) = local_socket::pair().map_err(parent("socketpair"))?;
        let (how, joins) = namespaces(&record, &init)?;
        let stdio = options.stdio;
        if record.namespaces.iter().any(|name| name == Kind::User.file_name()) {
            let user = process.user();
            let given =
                streams::pipes(&stdio).and_then(|pipes| streams::give(&pipes, record.pid, user.uid(), user.gid()));
            given.map_err(parent("give the standard streams to the user"))?;
        }
        let child = Child {
            sync: theirs,
            listener: None,
            joins,
            joins_mounts: record.namespaces.iter().any(|name| name == Kind::Mount.file_name()),
            chroot: chroot(&record)?,
            sources: Vec::new(),
            source_paths: &[],
            stdio: [stdio.stdin, stdio.stdout, stdio.stderr],
            setup: &setup,
            start: &start,
            arguments: process.args().as_deref().unwrap_or(&[]),
            environment: process.env().as_deref().unwrap_or(&[]),
            terminal: TerminalUser { uid: process.user().uid() },
            hooks: None,
            state: record.state(status),
            watch: Watch::Nobody,
            agent: seccomp_agent(&spec, &start)?,
        };
        let allowed = Allowed { console: process.terminal() == Some(true), runs_on: true, ..Allowed::default() };
        let (begun, ours, ()) = begin(&how, child, ours, ()).map_err(parent("clone into the container"))?;
        let talk = Talk::new(ours, begun, allowed, options.limit);
        Ok(Self { talk, record, cgroup, sub_cgroups: options.sub_cgroups, setup, start, warnings, console: None })
    }

    /// The process is there and waits: its cgroup, and its word to go on.
    fn meet(&self) -> Result<(), Error> {
        let pid = self.talk.pid().ok_or_else(|| Error::ChildVanished("at once".to_owned()))?;
        enter_cgroup(&self.cgroup, &self.sub_cgroups, &self.record, pid)?;
        if let Some(membership) = &self.record.resctrl {
            membership.add(pid)?;
        }
        // One that died has said why, if it could.
        let _dead = self.talk.order(Order::Go(pid));
        Ok(())
    }

    fn go_on(&mut self, now: Instant) -> Result<Option<Execed>, Error> {
        loop {
            match self.talk.hear(now)? {
                Heard::Nothing => return Ok(None),
                Heard::Spawned => self.meet()?,
                Heard::Said(Report::Ready) => {}
                Heard::Said(Report::Console(master)) => self.console = Some(master),
                Heard::Said(Report::Warning(text)) => self.warnings.push(text),
                Heard::Said(Report::Failed(fault)) => return Err(child_error(&fault, &self.setup, &self.start)),
                Heard::Runs => {
                    let vanished = || Error::ChildVanished("at once".to_owned());
                    let pid = self.talk.pid().ok_or_else(vanished)?;
                    let pidfd = self.talk.release().ok_or_else(vanished)?;
                    let (console, warnings) = (self.console.take(), std::mem::take(&mut self.warnings));
                    return Ok(Some(Execed { pid, pidfd, console, warnings }));
                }
                Heard::Said(
                    Report::NeedHooks | Report::NeedIds { .. } | Report::Spawned { .. } | Report::Done { .. },
                ) => return Err(parent("exec")(Errno::EPROTO)),
            }
        }
    }
}

impl Conversation for Executing {
    type Done = Execed;

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.talk.descriptor()
    }

    fn due(&self) -> Option<Instant> {
        self.talk.due()
    }

    fn pid(&self) -> Option<i32> {
        self.talk.pid()
    }

    fn advance(&mut self, now: Instant, _: &mut Option<&mut Observer<'_>>) -> Result<Option<Execed>, Error> {
        if !self.talk.is_given_up() {
            match self.go_on(now) {
                Ok(done) => return Ok(done),
                Err(error) => self.talk.give_up(error, now),
            }
        }
        self.talk.ended(now).map_or(Ok(None), |(error, _)| Err(error))
    }

    fn reaped(&mut self, exit: Exit) {
        self.talk.reaped(exit);
    }

    fn abandon(&mut self, error: Error, now: Instant) {
        self.talk.give_up(error, now);
    }
}

fn steps(
    process: &Process,
    spec: &Spec,
    id: &ContainerId,
    options: &ExecOptions,
    warnings: &mut Vec<String>,
) -> Result<(Vec<Step>, Vec<Step>), Error> {
    let linux = spec.linux().as_ref();
    let mut setup = vec![Step::Session, Step::Keyring(format!("_ses.{id}")), Step::RootDirectory(PathBuf::from("/"))];
    let mut start = Vec::new();
    if let Some(adjustment) = process.oom_score_adj() {
        setup.push(Step::OomScoreAdjust(adjustment));
    }
    if process.terminal() == Some(true) {
        let cells = |cells: u64| u16::try_from(cells).unwrap_or(u16::MAX);
        let (columns, rows) = process.console_size().map_or((0, 0), |size| (cells(size.width()), cells(size.height())));
        setup.push(Step::Console { bind: false, columns, rows });
    }
    let context = ProcessContext {
        seccomp: linux.and_then(|linux| linux.seccomp().as_ref()),
        personality: linux.and_then(|linux| linux.personality().as_ref()),
        memory_policy: linux.and_then(|linux| linux.memory_policy().as_ref()),
        preserve_fds: &options.preserve_fds,
        keep_groups: false,
        strict_seccomp: is_asked_for(spec, STRICT_SECCOMP),
        is_exec: true,
    };
    process_steps(process, &context, &mut setup, &mut start, warnings)?;
    Ok((setup, start))
}

/// All of them in one setns by the init's pidfd, but the PID namespace, which only children enter.
pub(crate) fn namespaces(record: &Record, init: &OwnedFd) -> Result<(Spawn, Vec<Join>), Error> {
    let copy = || init.try_clone().map_err(|_| parent("copy a descriptor")(Errno::EMFILE));
    let kinds = Kind::ALL.into_iter().filter(|kind| record.namespaces.iter().any(|name| name == kind.file_name()));
    let (mut flags, mut has_pid) = (0, false);
    for kind in kinds {
        if kind == Kind::Pid {
            has_pid = true;
        } else {
            flags |= kind.flag();
        }
    }
    let joins = if flags == 0 { Vec::new() } else { vec![Join { fd: copy()?, flags }] };
    let pid_namespace = if has_pid { Some(copy()?) } else { None };
    Ok((Spawn { flags: 0, pid_namespace, has_process_between: true, cgroup: None }, joins))
}

pub(crate) fn chroot(record: &Record) -> Result<Option<OwnedFd>, Error> {
    if !record.chroot {
        return Ok(None);
    }
    let path = format!("/proc/{}/root", record.pid);
    let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_CLOEXEC;
    let opened = nix::fcntl::open(path.as_str(), flags, nix::sys::stat::Mode::empty());
    let root = opened.map_err(parent("open the container's root"))?;
    // Its pid could have become another's meanwhile.
    if !record.is_alive() {
        return Err(Error::WrongStatus { id: record.id.clone(), operation: "exec", status: Status::Stopped });
    }
    Ok(Some(root))
}

fn enter_cgroup(cgroup: &Cgroup, below: &[SubCgroup], record: &Record, pid: i32) -> Result<(), Error> {
    if !below.is_empty() {
        return Ok(cgroup.add_below(pid, below)?);
    }
    let Err(error) = cgroup.add(pid) else { return Ok(()) };
    // cgroups(7), "no internal processes": a container that made cgroups of its own has moved its init below; follow it there. One
    // whose cgroup is gone altogether can only be joined where its init is.
    let own = std::fs::read_to_string(format!("/proc/{}/cgroup", record.pid)).unwrap_or_default();
    let place = own.lines().find_map(|line| line.strip_prefix("0::")).filter(|path| *path != cgroup.path());
    match place.and_then(|path| Cgroup::new(cgroup.hierarchy(), path).ok()) {
        Some(place) if Path::new(place.path()).starts_with(cgroup.path()) || !cgroup.exists() => Ok(place.add(pid)?),
        _ => Err(error.into()),
    }
}

/// A process of the container's own configuration, for a caller that changes parts of it.
pub fn configured_process(root: &StateRoot, id: &ContainerId) -> Result<Process, Error> {
    let spec = Place::new(root, id).config()?;
    spec.process().clone().ok_or_else(|| crate::plan::invalid("process", "is missing"))
}
