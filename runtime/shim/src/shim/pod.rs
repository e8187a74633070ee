//! The pod's namespaces: made once in a short-lived child, set up inside, pinned at `<dir>/ns/*`; and the process that is pid 1 of a
//! shared PID namespace.
//!
//! Invariant: `make` leaves either every namespace pinned or none.

use nix::sys::signal::Signal;
use runtime_linux::clone::{self, Cloned};
use runtime_linux::idmap::{self, Maps, Range, Setgroups};
use runtime_linux::namespace::{self, Kind};
use runtime_linux::proc::Proc;
use runtime_linux::{pidfd, process};
use runtime_shim::config::{IdRange, UserNamespace};
use runtime_shim::orphan::{self, OrphanError};
use runtime_shim::{Config, NamespaceMode, PidMode};
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the first argument of the pod's pid 1 says.
pub(crate) const PAUSE: &str = "pause";
/// How long the child may take for each word; it has only the kernel to wait for.
const PATIENCE: Duration = Duration::from_secs(20);
/// What is kept of why it could not.
const WORDS_BYTES_MAX: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub(crate) enum PodError {
    #[error("clone into the pod's namespaces")]
    Clone(#[source] nix::Error),
    #[error("write the id maps of the pod's user namespace")]
    Map(#[source] nix::Error),
    #[error("talk to the child in the pod's namespaces")]
    Talk(#[source] io::Error),
    #[error("in the pod's namespaces: {0}")]
    Inside(String),
    #[error("pin the {kind} namespace at {}", at.display())]
    Pin { kind: &'static str, at: PathBuf, source: io::Error },
    #[error("unpin what a former shim left")]
    Unpin(#[from] OrphanError),
}

/// The pod's namespaces as they stand.
#[derive(Debug, Default)]
pub(crate) struct Pod {
    /// OCI name and pinned path.
    pub(crate) namespaces: Vec<(String, PathBuf)>,
    pub(crate) pause: Option<Pause>,
    /// There was one, and it has ended though nobody asked it to.
    pub(crate) pause_lost: bool,
}

#[derive(Debug)]
pub(crate) struct Pause {
    pub(crate) pid: i32,
    pidfd: OwnedFd,
}

impl Pause {
    /// Ends the PID namespace and every process in it.
    pub(crate) fn kill(&self) {
        // ESRCH: it has gone already.
        let _gone = pidfd::send_signal(&self.pidfd, Signal::SIGKILL as i32);
    }
}

fn wanted(config: &Config) -> Vec<Kind> {
    let mut kinds = Vec::new();
    if config.user.is_some() {
        kinds.push(Kind::User);
    }
    for (mode, kind) in [(config.network, Kind::Network), (config.ipc, Kind::Ipc), (config.uts, Kind::Uts)] {
        if mode == NamespaceMode::Pod {
            kinds.push(kind);
        }
    }
    if config.pid == PidMode::Pod {
        kinds.push(Kind::Pid);
    }
    kinds
}

/// As runtime-spec names it.
fn oci_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Network => "network",
        other => other.file_name(),
    }
}

/// Makes, sets up and pins what the configuration asks for.
pub(crate) fn make(dir: &Path, config: &Config) -> Result<Pod, PodError> {
    // What a shim that was killed left pinned belongs to no one any more.
    orphan::unpin(dir)?;
    let kinds = wanted(config);
    if kinds.is_empty() {
        return Ok(Pod::default());
    }
    let (mut ours, mut theirs) = UnixStream::pair().map_err(PodError::Talk)?;
    ours.set_read_timeout(Some(PATIENCE)).map_err(PodError::Talk)?;
    let flags = kinds.iter().fold(0, |flags, kind| flags | kind.flag());
    match clone::clone(flags, None).map_err(PodError::Clone)? {
        Cloned::Child => {
            drop(ours);
            inside(config, &mut theirs)
        }
        Cloned::Parent { pid, pidfd } => {
            drop(theirs);
            let made = set_up(dir, config, &kinds, pid, &mut ours);
            let is_pause = config.pid == PidMode::Pod;
            if !is_pause || made.is_err() {
                let _gone = pidfd::send_signal(&pidfd, Signal::SIGKILL as i32);
                let _reaped = pidfd::wait(&pidfd);
            }
            match made {
                Ok(namespaces) => {
                    Ok(Pod { namespaces, pause: is_pause.then_some(Pause { pid, pidfd }), pause_lost: false })
                }
                Err(error) => {
                    let _first_error_counts = orphan::unpin(dir);
                    Err(error)
                }
            }
        }
    }
}

/// The parent's half: id maps, word that the child has set itself up, pins.
fn set_up(
    dir: &Path,
    config: &Config,
    kinds: &[Kind],
    pid: i32,
    child: &mut UnixStream,
) -> Result<Vec<(String, PathBuf)>, PodError> {
    if let Some(user) = &config.user {
        let proc = Proc::host().map_err(PodError::Map)?;
        idmap::write(&proc, pid, &maps(user), Setgroups::Allow).map_err(PodError::Map)?;
    }
    child.write_all(b"m").map_err(PodError::Talk)?;
    // Then the child waits, alive, until the pins stand.
    hear(child)?;
    let pins = dir.join("ns");
    fs::create_dir_all(&pins).map_err(|source| PodError::Pin { kind: "", at: pins.clone(), source })?;
    let mut namespaces = Vec::new();
    for &kind in kinds {
        let at = pins.join(kind.file_name());
        let pin = || -> io::Result<()> {
            File::create(&at)?;
            Ok(namespace::pin(Path::new(&format!("/proc/{pid}/ns/{}", kind.file_name())), &at)?)
        };
        pin().map_err(|source| PodError::Pin { kind: oci_name(kind), at: at.clone(), source })?;
        namespaces.push((oci_name(kind).to_owned(), at));
    }
    // "Go on": a pause process becomes its program, another is killed by the caller.
    child.write_all(b"p").map_err(PodError::Talk)?;
    if config.pid == PidMode::Pod {
        // Before anybody may enter its namespace it has nothing of the host's any more, and last of all this socket.
        hear(child)?;
        if child.read(&mut [0]).map_err(PodError::Talk)? != 0 {
            return Err(PodError::Inside("it says more than it has to say".to_owned()));
        }
    }
    Ok(namespaces)
}

/// A byte for success, else words.
fn hear(child: &mut UnixStream) -> Result<(), PodError> {
    let mut first = [0];
    child.read_exact(&mut first).map_err(PodError::Talk)?;
    if first == *b"+" {
        return Ok(());
    }
    let mut said = Vec::new();
    child.take(WORDS_BYTES_MAX).read_to_end(&mut said).map_err(PodError::Talk)?;
    Err(PodError::Inside(String::from_utf8_lossy(&said).into_owned()))
}

fn maps(user: &UserNamespace) -> Maps {
    let ranges = |map: &[IdRange]| {
        map.iter().map(|range| Range { inside: range.inside, outside: range.outside, length: range.count }).collect()
    };
    Maps { uids: ranges(&user.uid_map), gids: ranges(&user.gid_map) }
}

/// The child's half. It never returns.
fn inside(config: &Config, parent: &mut UnixStream) -> ! {
    let mut word = [0];
    let mapped = parent.read_exact(&mut word);
    let done = mapped.map_err(|error| format!("wait for the id maps: {error}")).and_then(|()| configure(config));
    if let Err(said) = done {
        // The parent reads to the end of what is said: end at once.
        let _unheard = parent.write_all(format!("-{said}").as_bytes());
        clone::exit_now(1)
    }
    let pinned = parent.write_all(b"+").and_then(|()| parent.read_exact(&mut word));
    if pinned.is_ok() && config.pid == PidMode::Pod && process::place(parent.as_fd(), 0).is_ok() {
        // A fresh image holds no memory and no descriptors of the shim's; its standard input is this socket.
        let arguments = [c"sampan-shim".to_owned(), CString::new(PAUSE).unwrap_or_default()];
        let _not_executed = process::exec(c"/proc/self/exe", &arguments, &[]);
    }
    clone::exit_now(1)
}

fn configure(config: &Config) -> Result<(), String> {
    if config.user.is_some() {
        process::set_identity(0, 0, None).map_err(|errno| format!("become root in the user namespace: {errno}"))?;
    }
    if let Some(hostname) = &config.hostname {
        nix::unistd::sethostname(hostname).map_err(|errno| format!("set the hostname to {hostname:?}: {errno}"))?;
    }
    let domain = config.domainname.iter().map(|value| ("kernel.domainname", value));
    let sysctls = config.sysctls.iter().map(|(name, value)| (name.as_str(), value));
    for (name, value) in domain.chain(sysctls) {
        set_sysctl(name, value).map_err(|error| format!("set sysctl {name} to {value:?}: {error}"))?;
    }
    Ok(())
}

/// `Config` has refused every name that is not of the pod's own namespaces.
fn set_sysctl(name: &str, value: &str) -> Result<(), nix::Error> {
    // sysctl(8): a name written with slashes may hold dots within its parts.
    let path = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    Proc::host()?.write(Path::new("sys").join(path), value.as_bytes())
}
