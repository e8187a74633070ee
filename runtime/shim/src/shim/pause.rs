//! Pid 1 of a pod that shares its PID namespace: reaps orphans and does nothing else.
//!
//! When the shim kills it, the kernel kills everything in the namespace. From inside nothing reaches it: pid 1 gets only signals it has
//! a handler for, and it has none; pid_namespaces(7).

use nix::sys::signal::{SigSet, Signal};
use runtime_linux::reap;

pub(crate) fn run() -> Result<(), nix::Error> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.thread_block()?;
    loop {
        while reap::next()?.is_some() {}
        signals.wait()?;
    }
}
