//! `exec`: a further process in a container's namespaces and cgroup.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use oci_spec::runtime::{Process, Spec};
use runtime_linux::cgroup::{Cgroup, SubCgroup};
use runtime_linux::namespace::Kind;
use runtime_linux::{local_socket, pidfd};

use crate::child::{Child, Join, TerminalUser, Watch};
use crate::create::{child_error, parent, seccomp_agent};
use crate::error::Error;
use crate::plan::{ProcessContext, STRICT_SECCOMP, Step, is_asked_for, process_steps};
use crate::record::{Place, Record};
use crate::spawn::{Spawn, spawn};
use crate::status::Status;
use crate::sync::{self, Order, Report};
use crate::{ContainerId, ExecOptions, Execed, StateRoot};

/// Runs a further process in a created or running container; comes back when it runs its program.
pub fn exec(root: &StateRoot, id: &ContainerId, process: &Process, options: ExecOptions) -> Result<Execed, Error> {
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
    let (spawned, ours, ()) = spawn(&how, child, ours, ()).map_err(parent("clone into the container"))?;
    enter_cgroup(&cgroup, &options.sub_cgroups, &record, spawned.pid)?;
    if let Some(membership) = &record.resctrl {
        membership.add(spawned.pid)?;
    }
    let _dead = sync::send_order(&ours, Order::Go(spawned.pid));
    let console = hold(&ours, &setup, &start, &mut warnings)?;
    let pid = spawned.pid;
    let pidfd = spawned.release().ok_or_else(|| Error::ChildVanished("at once".to_owned()))?;
    Ok(Execed { pid, pidfd, console, warnings })
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

/// Until the child's end of the socket closes at its exec.
fn hold(
    socket: &OwnedFd,
    setup: &[Step],
    start: &[Step],
    warnings: &mut Vec<String>,
) -> Result<Option<OwnedFd>, Error> {
    let (mut console, mut is_ready) = (None, false);
    loop {
        match sync::receive_report(socket) {
            Ok(Some(Report::Ready)) => is_ready = true,
            Ok(Some(Report::Console(master))) => console = Some(master),
            Ok(Some(Report::Warning(text))) => warnings.push(text),
            Ok(Some(Report::Failed(fault))) => return Err(child_error(&fault, setup, start)),
            Ok(None) | Err(Errno::EPIPE) if is_ready => return Ok(console),
            Ok(None) | Err(Errno::EPIPE) => return Err(Error::ChildVanished("killed".to_owned())),
            Ok(Some(Report::NeedHooks | Report::NeedIds { .. } | Report::Spawned { .. } | Report::Done { .. })) => {
                return Err(parent("exec")(Errno::EPROTO));
            }
            Err(errno) => return Err(parent("exec")(errno)),
        }
    }
}

/// A process of the container's own configuration, for a caller that changes parts of it.
pub fn configured_process(root: &StateRoot, id: &ContainerId) -> Result<Process, Error> {
    let spec = Place::new(root, id).config()?;
    spec.process().clone().ok_or_else(|| crate::plan::invalid("process", "is missing"))
}
