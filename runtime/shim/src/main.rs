//! One shim per pod: one epoll thread that holds stdio, writes CRI logs and keeps exit records: the `sampan-shim` binary.
//!
//! `sampan-shim --dir DIR` reads `DIR/config.json`, forks, and ends with status 0 once the fork listens on `DIR/shim.sock`; else it prints a
//! [`Failure`] as JSON and ends with 1. The fork has its own session and cgroup and outlives every daemon; only `Shutdown` ends it.
//!
//! **When a shim is killed** (SIGKILL, or the kernel for memory; it asks to be spared): clients see the socket refuse. Its containers
//! live on in their cgroups, without anyone to reap them or to read their output (a write gets SIGPIPE), and their exit codes are
//! lost. Whoever manages the pod then calls [`runtime_shim::orphan::clean_up`], which kills them through their cgroups, writes exit
//! records marked `lost`, and unpins the namespaces; then it may start anew.

mod shim;

use nix::fcntl::Flock;
use runtime_linux::clone::{self, Cloned};
use runtime_linux::{executable, process};
use runtime_shim::orphan::{self, OrphanError};
use runtime_shim::{Config, Failure, FailureCode};
use shim::container::{chain, failed, failure, note, open_null};
use shim::server::{self, Server};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "usage: sampan-shim --dir DIR (started by the CRI server, one per pod)";

fn main() -> ExitCode {
    if process::ensure_standard_streams().is_err() {
        return ExitCode::FAILURE;
    }
    // Every init and exec of the pod is this program until it becomes the container's (CVE-2019-5736).
    if let Err(errno) = executable::ensure_protected() {
        return report(&failed("run from a file that no container can write", &errno));
    }
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match arguments.as_slice() {
        [word] if word == shim::pod::PAUSE => match server::run_pause() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        [flag, dir] if flag == "--dir" => match start(Path::new(dir)) {
            Ok(code) => code,
            Err(failure) => report(&failure),
        },
        _ => report(&failure(FailureCode::Invalid, USAGE)),
    }
}

fn report(failure: &Failure) -> ExitCode {
    let line = serde_json::to_vec(failure).unwrap_or_default();
    // If nobody reads, the exit status says it.
    let _unread = io::stdout().write_all(&line);
    ExitCode::FAILURE
}

/// Forks; the parent's half waits for word from the child's.
fn start(dir: &Path) -> Result<ExitCode, Failure> {
    let dir = fs::canonicalize(dir).map_err(|error| failed(&format!("open {}", dir.display()), &error))?;
    let config = Config::load(&dir).map_err(|error| failure(FailureCode::Invalid, chain(&error)))?;
    let lock = lock(&dir)?;
    process::close_on_exec_from(3).map_err(|error| failed("mark descriptors", &error))?;
    let (mut reader, writer) = io::pipe().map_err(|error| failed("make a pipe", &error))?;
    match clone::clone(0, None).map_err(|error| failed("fork", &error))? {
        Cloned::Child => {
            drop(reader);
            Ok(serve(&dir, config, lock, writer))
        }
        Cloned::Parent { .. } => {
            drop(writer);
            // Dropped, it would unlock for the child too: the lock is the open file's, not the process's.
            std::mem::forget(lock);
            let mut said = Vec::new();
            reader.read_to_end(&mut said).map_err(|error| failed("hear from the shim", &error))?;
            match said.as_slice() {
                b"ready" => Ok(ExitCode::SUCCESS),
                words => Err(serde_json::from_slice(words)
                    .unwrap_or_else(|_| failure(FailureCode::Failed, "the shim died before it was ready"))),
            }
        }
    }
}

/// One shim per directory.
fn lock(dir: &Path) -> Result<Flock<File>, Failure> {
    orphan::lock(dir).map_err(|error| match error {
        OrphanError::Alive { .. } => {
            failure(FailureCode::AlreadyExists, format!("a shim is already running for {}", dir.display()))
        }
        other => failed("take the pod's lock", &other),
    })
}

/// The child's half: becomes the shim.
fn serve(dir: &Path, config: Config, lock: Flock<File>, mut ready: io::PipeWriter) -> ExitCode {
    let mut server = match set_up(dir, config, &lock) {
        Ok(server) => server,
        Err(failure) => {
            let _unread = ready.write_all(&serde_json::to_vec(&failure).unwrap_or_default());
            return ExitCode::FAILURE;
        }
    };
    if ready.write_all(b"ready").is_err() {
        note("whoever started this shim has gone");
    }
    drop(ready);
    let outcome = server.run();
    if let Err(error) = &outcome {
        // Nothing is torn down: the containers live, and whoever finds the socket refusing cleans up.
        note(&chain(error));
        return ExitCode::FAILURE;
    }
    server::leave_cgroup(&server);
    for name in [runtime_shim::socket::NAME, "shim.pid"] {
        let _gone = fs::remove_file(dir.join(name));
    }
    drop(lock);
    ExitCode::SUCCESS
}

fn set_up(dir: &Path, config: Config, lock: &Flock<File>) -> Result<Server, Failure> {
    use runtime_linux::cgroup::{Cgroup, Hierarchy};
    nix::unistd::setsid().map_err(|error| failed("become a session", &error))?;
    // What a shim makes (records, logs, socket, pins) is root's alone, whatever its starter's mask.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    redirect(dir).map_err(|error| failed("redirect the standard streams", &error))?;
    std::env::set_current_dir("/").map_err(|error| failed("change to /", &error))?;
    let pid = nix::unistd::getpid().as_raw();
    let mut file: &File = lock;
    let write = file.set_len(0).and_then(|()| writeln!(file, "{pid}"));
    write.map_err(|error| failed("write shim.pid", &error))?;
    let cgroup = Hierarchy::detect().and_then(|hierarchy| {
        let cgroup = Cgroup::create(&hierarchy, &config.cgroup)?;
        cgroup.add(pid)?;
        Ok((hierarchy, cgroup))
    });
    let (hierarchy, cgroup) = cgroup.map_err(|error| failed("enter the shim's cgroup", &error))?;
    // Without CAP_SYS_RESOURCE the kernel refuses; then the shim is as likely a victim as any process.
    let _refused = fs::write("/proc/self/oom_score_adj", "-998");
    nix::sys::prctl::set_child_subreaper(true).map_err(|error| failed("become a subreaper", &error))?;
    let pod = shim::pod::make(dir, &config).map_err(|error| failed("make the pod's namespaces", &error))?;
    // After the pod's processes; the containers' get their soft limit back between clone and exec.
    if let Err(error) = runtime_linux::rlimit::raise_descriptors() {
        note(&format!("raise the limit of descriptors: {error}"));
    }
    let listener =
        runtime_shim::socket::listen(dir).map_err(|error| failed(&format!("listen in {}", dir.display()), &error))?;
    listener.set_nonblocking(true).map_err(|error| failed("listen", &error))?;
    Server::new(dir, config, hierarchy, cgroup, pod, listener).map_err(|error| failed("watch for events", &error))
}

/// The starter waits for the end of its pipes: none of them stays here.
fn redirect(dir: &Path) -> io::Result<()> {
    let null = open_null()?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    let log: PathBuf = dir.join("shim.log");
    nix::unistd::dup2_stderr(File::options().append(true).create(true).open(log)?)?;
    Ok(())
}
