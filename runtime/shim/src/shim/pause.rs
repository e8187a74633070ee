//! Pid 1 of a pod that shares its PID namespace: reaps orphans and does nothing else.
//!
//! When the shim kills it, the kernel kills everything in the namespace. From inside nothing reaches it: pid 1 gets only signals it has
//! a handler for, and it has none; pid_namespaces(7).
//!
//! Invariant: who looks at it from a container of the pod, even with CAP_SYS_PTRACE, finds nothing of the host: an empty root of its own,
//! no descriptor, no capability, nobody as its user, not dumpable, and a filter that lets it wait and end. All of that holds before the
//! pod's PID namespace is handed to anyone.

use super::container::chain;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::MsFlags;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::Mode;
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSyscall};
use runtime_linux::capability::{self, Set};
use runtime_linux::mount::{self, Filesystem, attribute};
use runtime_linux::namespace::{self, Kind};
use runtime_linux::{executable, process, reap, seccomp};

/// The user and group that own nothing.
const NOBODY: u32 = 65_534;

/// What it still does, and what ends it. `write` and `close_range` are for its last word to the shim.
const CALLS: [&str; 9] = [
    "wait4",
    "rt_sigtimedwait",
    "rt_sigreturn",
    "rt_sigprocmask",
    "restart_syscall",
    "exit_group",
    "exit",
    "write",
    "close_range",
];

#[derive(Debug, thiserror::Error)]
enum PauseError {
    #[error("block signals")]
    Signals(#[source] Errno),
    #[error("leave the host's mounts")]
    Mounts(#[source] Errno),
    #[error("mount an empty root")]
    Root(#[source] Errno),
    #[error("change the root")]
    Pivot(#[source] Errno),
    #[error("drop capabilities")]
    Capabilities(#[source] Errno),
    #[error("become nobody")]
    Identity(#[source] Errno),
    #[error("set no_new_privs")]
    NoNewPrivileges(#[source] Errno),
    #[error("compile the filter")]
    Compile(#[source] seccomp::Error),
    #[error("load the filter")]
    Filter(#[source] Errno),
    #[error("become undumpable")]
    Undumpable(#[source] Errno),
}

/// Standard input is the shim's socket: it gets `+`, or `-` and words; then every descriptor is closed.
pub(crate) fn run() -> Result<(), nix::Error> {
    let isolated = isolate();
    let word = match &isolated {
        Ok(()) => b"+".to_vec(),
        Err(error) => format!("-{}", chain(error)).into_bytes(),
    };
    let shim = process::standard_stream(0).ok_or(Errno::EBADF)?;
    let told = nix::unistd::write(shim, &word);
    process::close_all()?;
    if isolated.is_err() || told.is_err() {
        return Err(Errno::EPERM);
    }
    let signals = child_signals();
    loop {
        while reap::next()?.is_some() {}
        signals.wait()?;
    }
}

fn child_signals() -> SigSet {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals
}

fn isolate() -> Result<(), PauseError> {
    child_signals().thread_block().map_err(PauseError::Signals)?;
    namespace::unshare(Kind::Mount.flag() | Kind::Cgroup.flag()).map_err(PauseError::Mounts)?;
    mount::set_root_propagation(MsFlags::MS_PRIVATE | MsFlags::MS_REC).map_err(PauseError::Mounts)?;
    empty_root()?;
    capability::limit_bounding(Set::EMPTY).map_err(PauseError::Capabilities)?;
    match process::set_identity(NOBODY, NOBODY, Some(&[])) {
        // Not mapped in the pod's user namespace: root there, without any capability.
        Ok(()) | Err(Errno::EINVAL) => {}
        Err(errno) => return Err(PauseError::Identity(errno)),
    }
    capability::set_ambient(Set::EMPTY).map_err(PauseError::Capabilities)?;
    capability::set(Set::EMPTY, Set::EMPTY, Set::EMPTY).map_err(PauseError::Capabilities)?;
    nix::sys::prctl::set_no_new_privs().map_err(PauseError::NoNewPrivileges)?;
    executable::set_undumpable().map_err(PauseError::Undumpable)?;
    let filter = seccomp::compile(&profile()).map_err(PauseError::Compile)?;
    seccomp::load(&filter).map_err(PauseError::Filter)?;
    Ok(())
}

/// A file system with nothing in it, where nothing can be made.
fn empty_root() -> Result<(), PauseError> {
    let filesystem = Filesystem::open("tmpfs").map_err(PauseError::Root)?;
    filesystem.set("mode", "555").map_err(PauseError::Root)?;
    filesystem.set("size", "4k").map_err(PauseError::Root)?;
    let attributes = attribute::RDONLY | attribute::NOSUID | attribute::NODEV | attribute::NOEXEC;
    let root = filesystem.mount(attributes).map_err(PauseError::Root)?;
    // Any directory serves to attach it at: nobody else sees this mount namespace.
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let at = nix::fcntl::open("/proc", flags, Mode::empty()).map_err(PauseError::Root)?;
    mount::attach(&root, &at).map_err(PauseError::Root)?;
    drop(at);
    match mount::pivot_root(&root) {
        // The host's root is an initramfs, which cannot be left; laid over it, it cannot be reached either.
        Err(Errno::EINVAL) => mount::move_and_chroot(&root).map_err(PauseError::Pivot),
        other => other.map_err(PauseError::Pivot),
    }
}

fn profile() -> LinuxSeccomp {
    let mut allowed = LinuxSyscall::default();
    allowed.set_names(CALLS.map(str::to_owned).to_vec()).set_action(LinuxSeccompAction::ScmpActAllow);
    let mut profile = LinuxSeccomp::default();
    profile.set_default_action(LinuxSeccompAction::ScmpActErrno).set_syscalls(Some(vec![allowed]));
    profile
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_of_the_filter_is_known_here() {
        assert!(seccomp::compile(&profile()).unwrap().unknown.is_empty());
    }
}
