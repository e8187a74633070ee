//! The steps that are a few calls each; mounts, devices and the identity have rooms of their own beside this one.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};

use nix::errno::Errno;
use runtime_linux::{executable, namespace, process, seccomp, terminal};

use super::{Child, Done, Held, Refusal, proc};
use crate::hooks::{self, Kind as HookKind, Surroundings};
use crate::plan::Moment;
use crate::status::{State, Status};
use crate::sync::{self, Report};

pub(super) fn keyring(name: &str) -> Done {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    match process::join_session_keyring(&name) {
        // A kernel without keys has no keys to leak; a full quota (EDQUOT) is runc's error too.
        Err(Errno::ENOSYS) => Ok(()),
        other => Ok(other?),
    }
}

/// Maps are written: become their root, so that what is made belongs to somebody.
pub(super) fn namespace_root() -> Done {
    match nix::unistd::setgroups(&[]) {
        // setgroups is denied in this namespace, and so are no groups to be had.
        Ok(()) | Err(Errno::EPERM) => {}
        Err(errno) => return Err(errno.into()),
    }
    Ok(process::set_identity(0, 0, None)?)
}

pub(super) fn time_namespace(offsets: &str, held: &Held) -> Done {
    namespace::unshare(namespace::Kind::Time.flag())?;
    if !offsets.is_empty() {
        let write = || proc(held)?.write("self/timens_offsets", offsets.as_bytes());
        match write() {
            // Without the host's root the file is ours only while others may trace us. In a new PID namespace nobody is there to do so but
            // the user's own processes outside.
            Err(Errno::EACCES) if nix::unistd::getpid().as_raw() == 1 => executable::while_dumpable(write)?,
            other => other?,
        }
    }
    // unshare(2): only children live in the new one; joining it moves ourselves.
    let namespace = namespace::open_path(std::path::Path::new("/proc/self/ns/time_for_children"))?;
    Ok(namespace::join(&namespace, namespace::Kind::Time.flag())?)
}

pub(super) fn oom_score_adjust(value: i32, child: &Child<'_>, held: &Held) -> Done {
    match proc(held)?.write("self/oom_score_adj", value.to_string().as_bytes()) {
        // Lowering it needs CAP_SYS_RESOURCE, which a nested host may lack; the container works without.
        Err(Errno::EACCES | Errno::EPERM) => {
            let text = format!("oom_score_adj {value} is refused by the kernel: it needs CAP_SYS_RESOURCE");
            Ok(sync::send_report(&child.sync, &Report::Warning(text))?)
        }
        other => Ok(other?),
    }
}

pub(super) fn run_hooks(moment: Moment, child: &mut Child<'_>, held: &Held) -> Done {
    let Some(all) = child.hooks else { return Ok(()) };
    // As the program will have it.
    let home = held.home.as_ref().map(|home| home.to_string_lossy().into_owned());
    let environment: Vec<String> =
        child.environment.iter().filter(|variable| *variable != "HOME=").cloned().chain(home).collect();
    let (kind, list, around) = match moment {
        Moment::CreateContainer => {
            // As with runc, such a hook begins in the container's root, which is not `/` yet.
            if let Some(root) = &held.root {
                nix::unistd::fchdir(root)?;
            }
            let around = Surroundings { directory: None, environment: None };
            (HookKind::CreateContainer, all.create_container(), around)
        }
        Moment::StartContainer => {
            let around = Surroundings { directory: None, environment: Some(&environment) };
            (HookKind::StartContainer, all.start_container(), around)
        }
    };
    // runtime-spec 1.3, "State": for hooks in the container's namespaces it is the pid as seen there.
    let state = State { pid: nix::unistd::getpid().as_raw(), status: Status::Created, ..child.state.clone() };
    let list = list.as_deref().unwrap_or(&[]);
    hooks::run(kind, list, &state, around).map_err(|error| Refusal::words(error.to_string()))
}

/// runtime-spec 1.3, "The Container Process State": the descriptor goes along with the state.
pub(super) fn seccomp_filter(filter: &seccomp::Filter, child: &mut Child<'_>) -> Done {
    let agent = child.agent.take().filter(|_| filter.notifies());
    let Some((agent, metadata)) = agent else {
        seccomp::load(filter)?;
        return Ok(());
    };
    let message = for_agent(metadata, &child.state);
    seccomp::load_and_hand_over(filter, |listener| {
        runtime_linux::fd_passing::send(&agent, message.as_bytes(), &[listener]).map(drop)
    })?;
    // Closed by the exec, not here: under the filter every call may be one too many.
    let _number = agent.into_raw_fd();
    Ok(())
}

/// runtime-spec 1.3, "The Container Process State".
fn for_agent(metadata: String, state: &State) -> String {
    // The program does not run yet; runc and crun say so too.
    let state = State { status: Status::Creating, ..state.clone() };
    let mut message = serde_json::json!({
        "ociVersion": state.oci_version, "fds": ["seccompFd"], "pid": state.pid, "state": state,
    });
    if !metadata.is_empty() {
        message["metadata"] = metadata.into();
    }
    message.to_string()
}

pub(super) fn exec(child: &Child<'_>, held: &Held) -> Done {
    let strings = |texts: &[String]| -> Result<Vec<CString>, Errno> {
        texts.iter().map(|text| CString::new(text.as_str()).map_err(|_| Errno::EINVAL)).collect()
    };
    let program = held.program.as_ref().ok_or(Errno::ENOENT)?;
    let (arguments, mut environment) = (strings(child.arguments)?, strings(&unique(child.environment))?);
    if let Some(home) = &held.home {
        // An empty one is none.
        environment.retain(|variable| variable.as_bytes() != b"HOME=");
        environment.push(home.clone());
    }
    let errno = process::exec(program, &arguments, &environment);
    Err(Refusal::said(errno, program.to_string_lossy()))
}

/// Of two values of one variable the last holds, as with runc and crun; a program would take the first.
fn unique(environment: &[String]) -> Vec<String> {
    let mut names = std::collections::HashSet::new();
    let name = |variable: &String| variable.split('=').next().unwrap_or_default().to_owned();
    let mut kept: Vec<_> = environment.iter().rev().filter(|variable| names.insert(name(variable))).cloned().collect();
    kept.reverse();
    kept
}

/// The terminal: its slave becomes the standard streams, its master goes to the parent.
pub(super) fn take_terminal(ptmx: OwnedFd, size: terminal::Size, child: &Child<'_>) -> Result<OwnedFd, Refusal> {
    let (master, slave) = terminal::open(ptmx)?;
    if size.columns != 0 || size.rows != 0 {
        terminal::set_size(&master, size)?;
    }
    if child.terminal.uid != 0 {
        process::give(&slave, child.terminal.uid, None)?;
    }
    sync::send_report(&child.sync, &Report::Console(master))?;
    terminal::set_controlling(&slave)?;
    for target in 0..=2 {
        process::place(slave.as_fd(), target)?;
    }
    debug_assert!(slave.as_raw_fd() > 2, "the standard streams are open in every program of the house");
    Ok(slave)
}
