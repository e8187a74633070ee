//! One pod for a test: directory, shim, bundles; all of it gone on drop, whatever happened.

use nix::poll::{PollTimeout, poll};
use runtime_linux::cgroup::{Cgroup, Hierarchy};
use runtime_shim::config::VERSION;
use runtime_shim::{Client, Config, Create, Exec, NamespaceMode, PidMode, SpawnError, Stdio, spawn};
use serde_json::{Value, json};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

const APPLETS: [&str; 15] = [
    "sh", "sleep", "cat", "echo", "true", "kill", "dd", "stty", "tty", "printf", "ps", "head", "hostname", "id", "tail",
];

pub(crate) struct Sandbox {
    directory: tempfile::TempDir,
    pub(crate) config: Config,
    /// The parent of every cgroup of this test.
    cgroup: String,
}

impl Sandbox {
    /// A pod that is not started yet.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let directory = tempfile::Builder::new().prefix("sampan-shim-").tempdir().unwrap();
        let cgroup = format!("/sampan-shim-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let config = Config {
            version: VERSION,
            pod_id: "pod".into(),
            state_root: directory.path().join("pod/oci"),
            cgroup: format!("{cgroup}/shim"),
            hostname: Some("web-0".into()),
            domainname: None,
            sysctls: [].into(),
            network: NamespaceMode::Pod,
            ipc: NamespaceMode::Pod,
            uts: NamespaceMode::Pod,
            pid: PidMode::Container,
            user: None,
        };
        fs::create_dir(directory.path().join("pod")).unwrap();
        let sandbox = Self { directory, config, cgroup };
        sandbox.make_rootfs();
        sandbox
    }

    pub(crate) fn started() -> (Self, Client) {
        let sandbox = Self::new();
        let client = sandbox.spawn().unwrap();
        (sandbox, client)
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.directory.path().join("pod")
    }

    pub(crate) fn log(&self, id: &str) -> PathBuf {
        self.directory.path().join(format!("{id}.log"))
    }

    pub(crate) fn container_cgroup(&self, id: &str) -> Cgroup {
        Cgroup::new(&Hierarchy::detect().unwrap(), &format!("{}/{id}", self.cgroup)).unwrap()
    }

    pub(crate) fn spawn(&self) -> Result<Client, SpawnError> {
        self.config.save(&self.dir()).unwrap();
        spawn(Path::new(env!("CARGO_BIN_EXE_sampan-shim")), &self.dir())
    }

    fn make_rootfs(&self) {
        let bin = self.directory.path().join("rootfs/bin");
        fs::create_dir_all(&bin).unwrap();
        for below in ["proc", "dev", "sys", "tmp", "etc"] {
            fs::create_dir(self.directory.path().join("rootfs").join(below)).unwrap();
        }
        let busybox = ["/usr/bin/busybox", "/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
        fs::copy(busybox.expect("install busybox-static"), bin.join("busybox")).unwrap();
        for applet in APPLETS {
            std::os::unix::fs::symlink("busybox", bin.join(applet)).unwrap();
        }
    }

    /// A bundle's configuration for a shell script, in the pod's namespaces.
    pub(crate) fn spec(&self, id: &str, script: &str) -> Value {
        let pins = self.dir().join("ns");
        let mut namespaces = vec![json!({"type": "mount"})];
        for (mode, kind, file) in
            [(self.config.network, "network", "net"), (self.config.ipc, "ipc", "ipc"), (self.config.uts, "uts", "uts")]
        {
            if mode == NamespaceMode::Pod {
                namespaces.push(json!({"type": kind, "path": pins.join(file)}));
            }
        }
        match self.config.pid {
            PidMode::Container => namespaces.push(json!({"type": "pid"})),
            PidMode::Pod => namespaces.push(json!({"type": "pid", "path": pins.join("pid")})),
            PidMode::Host => {}
        }
        if self.config.user.is_some() {
            namespaces.push(json!({"type": "user", "path": pins.join("user")}));
        }
        json!({
            "ociVersion": "1.2.0",
            "process": {
                "args": ["/bin/sh", "-c", script],
                "cwd": "/",
                "env": ["PATH=/bin", "TERM=xterm"],
                "user": {"uid": 0, "gid": 0},
                "capabilities": {
                    "bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]
                }
            },
            "root": {"path": self.directory.path().join("rootfs")},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]}
            ],
            "linux": {"namespaces": namespaces, "cgroupsPath": format!("{}/{id}", self.cgroup)}
        })
    }

    pub(crate) fn bundle(&self, id: &str, spec: &Value) -> PathBuf {
        let bundle = self.directory.path().join("bundles").join(id);
        fs::create_dir_all(&bundle).unwrap();
        fs::write(bundle.join("config.json"), serde_json::to_vec(spec).unwrap()).unwrap();
        bundle
    }

    /// A request to create a container that runs a script and logs.
    pub(crate) fn create(&self, id: &str, script: &str) -> Create {
        self.create_from(id, &self.spec(id, script))
    }

    pub(crate) fn create_from(&self, id: &str, spec: &Value) -> Create {
        Create {
            id: id.to_owned(),
            bundle: self.bundle(id, spec),
            terminal: spec["process"]["terminal"].as_bool().unwrap_or(false),
            stdin: false,
            stdin_once: false,
            log_path: Some(self.log(id)),
            rootfs: None,
        }
    }

    /// Creates and starts a script.
    pub(crate) fn run(&self, client: &mut Client, id: &str, script: &str) -> i32 {
        let created = client.create(self.create(id, script)).unwrap();
        client.start(id).unwrap();
        created.pid
    }

    /// Log entries without their times: `stdout F text`.
    pub(crate) fn entries(&self, id: &str) -> Vec<String> {
        let text = fs::read_to_string(self.log(id)).unwrap();
        text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let ended = Client::connect(&self.dir()).and_then(|mut client| client.shutdown_forced());
        let lock = self.dir().join("shim.pid");
        if ended.is_err() && lock.exists() {
            let shim = fs::read_to_string(&lock).ok().and_then(|pid| pid.trim().parse().ok());
            if let Some(pid) = shim {
                kill_and_wait(pid);
            }
            if let Err(error) = runtime_shim::orphan::clean_up(&self.dir()) {
                eprintln!("clean up {}: {error:?}", self.dir().display());
            }
        }
        let outer = Cgroup::new(&Hierarchy::detect().unwrap(), &self.cgroup).unwrap();
        let removed = outer.kill().and_then(|()| outer.remove());
        if !std::thread::panicking() {
            removed.unwrap();
            assert!(!self.dir().join("ns").exists(), "pins were left");
        } else if let Ok(log) = fs::read_to_string(self.dir().join("shim.log")) {
            eprintln!("shim.log:\n{log}");
        }
    }
}

/// Kills a process that is nobody's child here, and waits until it is gone.
pub(crate) fn kill_and_wait(pid: i32) {
    let Ok(pidfd) = runtime_linux::pidfd::open(pid) else { return };
    let _gone = runtime_linux::pidfd::send_signal(&pidfd, 9);
    assert!(runtime_linux::pidfd::wait_ended(&pidfd, PollTimeout::from(10_000u16)).unwrap());
}

pub(crate) fn exec(id: &str, exec_id: &str, script: &str) -> Exec {
    let process = json!({
        "args": ["/bin/sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}
    });
    Exec {
        id: id.to_owned(),
        exec_id: exec_id.to_owned(),
        process: serde_json::from_value(process).unwrap(),
        stdin: false,
        stdout: false,
        stderr: false,
        tied: false,
    }
}

/// Three pipes: what goes to the shim, and our ends.
pub(crate) struct Pipes {
    pub(crate) stdin: std::io::PipeWriter,
    pub(crate) stdout: std::io::PipeReader,
    pub(crate) stderr: std::io::PipeReader,
}

pub(crate) fn pipes() -> (Stdio, Pipes) {
    let (in_reader, stdin) = std::io::pipe().unwrap();
    let (stdout, out_writer) = std::io::pipe().unwrap();
    let (stderr, err_writer) = std::io::pipe().unwrap();
    let theirs = Stdio {
        stdin: Some(OwnedFd::from(in_reader)),
        stdout: Some(OwnedFd::from(out_writer)),
        stderr: Some(OwnedFd::from(err_writer)),
    };
    (theirs, Pipes { stdin, stdout, stderr })
}

/// Waits, for at most ten seconds, until a condition that no event tells of is met.
pub(crate) fn eventually(what: &str, mut met: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if met() {
            return;
        }
        let _elapsed = poll(&mut [], PollTimeout::from(5u8));
    }
    panic!("not within ten seconds: {what}");
}
