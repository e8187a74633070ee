//! `sampan-oci` against runc and crun: the same bundle, the same words, taking turns in each round.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::Settings;
use crate::figure::{Figure, Peer, median};
use crate::process::{Cost, Of, QUANTITIES, cost};

/// Where Debian puts the only program of the bundle.
const BUSYBOX: [&str; 2] = ["/bin/busybox", "/usr/bin/busybox"];
/// What a runtime is asked, and the name of the figure.
const MEASURED: [(&str, &str); 4] =
    [("run", "run /bin/true"), ("state", "state"), ("exec", "exec /bin/true"), ("delete", "delete -f")];

/// One runtime with its state and bundles. Dropping it removes what it may have left.
#[derive(Debug)]
struct Runtime {
    name: &'static str,
    program: PathBuf,
    dir: PathBuf,
    /// First refusal, in the runtime's own words.
    refusal: Option<String>,
    costs: [Vec<Cost>; 4],
}

impl Runtime {
    fn prepare(name: &'static str, program: PathBuf, base: &Path) -> Result<Self> {
        let dir = base.join(name);
        let mut runtime = Self { name, program, dir, refusal: None, costs: [const { Vec::new() }; 4] };
        for (bundle, arguments) in [("true", json!(["/bin/true"])), ("sleep", json!(["/bin/sleep", "1000"]))] {
            let cgroup = format!("/sampan-bench-{}-{name}", std::process::id());
            write_bundle(&runtime.dir.join(bundle), &arguments, &base.join("rootfs"), &cgroup)?;
        }
        if let Err(why) = runtime.measure(&["run", "--bundle", "true", "first"]) {
            runtime.refusal = Some(first_line(&why));
        }
        Ok(runtime)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(self.dir.join("state")).args(words).current_dir(&self.dir);
        command
    }

    fn measure(&self, words: &[&str]) -> Result<Cost> {
        cost(&mut self.command(words))
    }

    /// One round of everything.
    fn round(&mut self) -> Result<()> {
        let run = self.measure(&["run", "--bundle", "true", "once"])?;
        // Without a shell's pipe: a container would hold it open.
        let started = self
            .command(&["run", "--detach", "--bundle", "sleep", "held"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        ensure!(started.success(), "{} run --detach ended with {started}", self.name);
        let state = self.measure(&["state", "held"])?;
        let exec = self.measure(&["exec", "held", "/bin/true"])?;
        let delete = self.measure(&["delete", "--force", "held"])?;
        for (costs, cost) in self.costs.iter_mut().zip([run, state, exec, delete]) {
            costs.push(cost);
        }
        Ok(())
    }

    fn value(&self, index: usize, of: Of) -> Result<f64, String> {
        match &self.refusal {
            Some(why) => Err(why.clone()),
            None => Ok(median(&self.costs[index].iter().map(of).collect::<Vec<_>>())),
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        for id in ["first", "once", "held"] {
            // Normally there is nothing, and then this fails.
            let _gone = self.command(&["delete", "--force", id]).stdin(Stdio::null()).output();
        }
    }
}

pub(crate) fn measure(settings: &Settings) -> Result<Vec<Figure>> {
    // A runtime that is killed leaves its mounts to these namespaces, not to the host.
    unshare(CloneFlags::CLONE_NEWNS).context("unshare")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("make mounts private")?;
    let base = tempfile::Builder::new().prefix("sampan-bench-").tempdir()?;
    write_rootfs(&base)?;
    let mut own = Runtime::prepare("sampan", settings.dist.join("sampan-oci"), base.path())?;
    ensure!(own.refusal.is_none(), "sampan-oci: {}", own.refusal.take().unwrap_or_default());
    let mut peers = Vec::new();
    for name in ["runc", "crun"] {
        peers.push(match find_program(name) {
            Some(program) => Ok(Runtime::prepare(name, program, base.path())?),
            None => Err(name),
        });
    }
    for _ in 0..settings.rounds {
        own.round()?;
        for peer in peers.iter_mut().flatten().filter(|peer| peer.refusal.is_none()) {
            peer.round()?;
        }
    }
    let mut figures = Vec::new();
    for (index, (word, name)) in MEASURED.iter().enumerate() {
        for (kind, of) in QUANTITIES {
            let value = own.value(index, of).unwrap_or_default();
            let mut figure = Figure::new(format!("{name}, {kind}"), value, "ms");
            if *word == "run" && kind == "CPU" {
                figure = figure.at_most(6.0);
            }
            figure.peers = peers.iter().map(|peer| as_peer(peer, index, of)).collect();
            figures.push(figure);
        }
    }
    Ok(figures)
}

fn as_peer(peer: &Result<Runtime, &'static str>, index: usize, of: Of) -> Peer {
    match peer {
        Ok(runtime) => Peer { name: runtime.name.to_owned(), value: runtime.value(index, of) },
        Err(name) => Peer { name: (*name).to_owned(), value: Err(format!("not installed (Debian package {name})")) },
    }
}

pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

pub(crate) fn first_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let words = text.rsplit_once("exit status: ").map_or(text.as_str(), |(_, rest)| rest);
    words
        .lines()
        .next()
        .unwrap_or_default()
        .trim_start_matches(|c: char| c.is_ascii_digit() || ": ".contains(c))
        .to_owned()
}

fn write_rootfs(base: &TempDir) -> Result<()> {
    let root = base.path().join("rootfs");
    for dir in ["bin", "proc", "dev", "sys", "tmp"] {
        fs::create_dir_all(root.join(dir))?;
    }
    let busybox = BUSYBOX.iter().find(|path| Path::new(path).is_file());
    let busybox = busybox.context("no busybox: install the Debian package busybox-static")?;
    fs::copy(busybox, root.join("bin/busybox"))?;
    for name in ["true", "sleep"] {
        symlink("busybox", root.join("bin").join(name))?;
    }
    Ok(())
}

/// What `runc spec` writes, as far as it costs something.
fn write_bundle(dir: &Path, arguments: &Value, rootfs: &Path, cgroup: &str) -> Result<()> {
    fs::create_dir_all(dir)?;
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let special = |target: &str, kind: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": kind, "options": options});
    let config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0}, "args": arguments, "cwd": "/", "noNewPrivileges": true,
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        },
        "root": {"path": rootfs, "readonly": true},
        "hostname": "bench",
        "mounts": [
            special("/proc", "proc", &[]),
            special("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            special("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            special("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            special("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            special("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            special("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    });
    fs::write(dir.join("config.json"), config.to_string()).context("write a bundle")
}
