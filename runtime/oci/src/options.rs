//! What a caller may ask of `create` and `exec` beyond the bundle, and what it gets back.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use runtime_linux::cgroup::SubCgroup;
use runtime_linux::mount::Overlay;

/// The three standard streams; `None` inherits the caller's. Ignored for a process with a terminal.
#[derive(Debug, Default)]
pub struct Stdio {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

/// How the process comes to its new root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RootChange {
    /// `pivot_root(2)`, and where the kernel cannot (the host runs from an initramfs), a moved mount and `chroot(2)`.
    #[default]
    Pivot,
    /// `--no-pivot`: always a moved mount and `chroot(2)`.
    Chroot,
}

/// Who makes the container's cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cgroups {
    /// The runtime itself.
    #[default]
    Direct,
    /// The runtime itself; without permission, and without limits or a path asked for, the container stays in its caller's cgroup.
    WherePermitted,
    /// systemd; `linux.cgroupsPath` is `slice:prefix:name`.
    Systemd,
    /// Nobody.
    None,
}

/// What `create` takes beyond the bundle. A terminal is asked for by the bundle's `process.terminal`.
#[derive(Debug, Default)]
pub struct CreateOptions {
    pub stdio: Stdio,
    /// Mounted as the root file system inside the container's own mount namespace, in place of the bundle's `root.path`.
    pub rootfs: Option<Overlay>,
    /// Descriptors of the caller that stay open in the container, by the same numbers.
    pub preserve_fds: Vec<i32>,
    pub root_change: RootChange,
    /// `--no-new-keyring`: keep the caller's session keyring.
    pub keep_keyring: bool,
    pub cgroups: Cgroups,
    /// Of a service manager that waits to hear that the container is ready: see [`crate::Readiness`].
    pub notify_socket: Option<PathBuf>,
    /// How long its process may take until it waits to be started; beyond it, it is killed and all is undone. `None`: as long as it takes.
    pub limit: Option<Duration>,
}

/// A created container: its init is a direct child of the caller, waits for `start`, and is the caller's to reap.
#[derive(Debug)]
pub struct Created {
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// The terminal's master, where the process has a terminal.
    pub console: Option<OwnedFd>,
    /// What was asked for and could not be done, though the container works; for people.
    pub warnings: Vec<String>,
}

/// What `exec` takes beyond the process.
#[derive(Debug, Default)]
pub struct ExecOptions {
    pub stdio: Stdio,
    pub preserve_fds: Vec<i32>,
    /// `--cgroup`: places below the container's own cgroup; elsewhere the process joins that one itself.
    pub sub_cgroups: Vec<SubCgroup>,
    /// `--ignore-paused`: do not refuse in a paused container.
    pub ignore_paused: bool,
    /// How long it may take until its program runs; beyond it, it is killed. `None`: as long as it takes.
    pub limit: Option<Duration>,
}

/// A running further process of a container: a direct child of the caller, the caller's to reap.
#[derive(Debug)]
pub struct Execed {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub console: Option<OwnedFd>,
    pub warnings: Vec<String>,
}
