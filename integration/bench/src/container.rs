//! `sampan-oci` against runc, crun and what the kernel alone takes: the same bundle, the same words, taking turns in each round.
//!
//! The state lies in a tmpfs, as it does for each of them by default, in /run.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::Settings;
use crate::figure::{Figure, Peer, Target, median};
use crate::process::{Cost, Of, QUANTITIES, cost, milliseconds, peak_memory};

/// Where Debian puts the only program of the bundle.
const BUSYBOX: [&str; 2] = ["/bin/busybox", "/usr/bin/busybox"];
/// What a runtime is asked, and the name of the figure.
const MEASURED: [(&str, &str); 5] = [
    ("run", "run /bin/true"),
    ("state", "state"),
    ("exec", "exec /bin/true"),
    ("kill", "kill"),
    ("delete", "delete -f of a running container"),
];
/// The peer of the floor.
const BARE: &str = "bare kernel";

/// How often the peak of memory is looked at; it hardly differs.
const PEAK_ROUNDS: usize = 5;
/// Starts of the parallel figure, and how many run at once.
const STARTS: u32 = 100;
const AT_ONCE: u32 = 8;

/// One runtime with its state and bundles. Dropping it removes what it may have left.
#[derive(Debug)]
pub(crate) struct Runtime {
    name: &'static str,
    program: PathBuf,
    dir: PathBuf,
    state: PathBuf,
    /// First refusal, in the runtime's own words.
    refusal: Option<String>,
    costs: [Vec<Cost>; 5],
    peaks: Vec<f64>,
    /// Wall time of all parallel starts, in milliseconds.
    parallel: f64,
}

impl Runtime {
    pub(crate) fn prepare(name: &'static str, program: PathBuf, ground: &Ground) -> Result<Self> {
        let base = ground.base.path();
        let mut runtime = Self {
            name,
            program,
            dir: base.join(name),
            state: ground.state().join(name),
            refusal: None,
            costs: [const { Vec::new() }; 5],
            peaks: Vec::new(),
            parallel: 0.0,
        };
        let cgroup = format!("/sampan-bench-{}-{name}", std::process::id());
        // Many at once share no cgroup: each gets one of its own name.
        let bundles = [
            ("true", ["/bin/true", ""], Some(&cgroup)),
            ("sleep", ["/bin/sleep", "1000"], Some(&cgroup)),
            ("many", ["/bin/true", ""], None),
        ];
        for (bundle, arguments, cgroup) in bundles {
            let arguments = json!(arguments);
            write_bundle(&runtime.dir.join(bundle), &arguments, &base.join("rootfs"), cgroup)?;
        }
        if let Err(why) = runtime.measure(&["run", "--bundle", "true", "first"]) {
            runtime.refusal = Some(first_line(&why));
        }
        Ok(runtime)
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.state).args(words).current_dir(&self.dir);
        command
    }

    /// A container that runs on as `held`.
    pub(crate) fn hold(&self) -> Result<()> {
        // Without a shell's pipe: a container would hold it open.
        let mut command = self.command(&["run", "--detach", "--bundle", "sleep", "held"]);
        let started = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        ensure!(started.success(), "{} run --detach ended with {started}", self.name);
        Ok(())
    }

    fn measure(&self, words: &[&str]) -> Result<Cost> {
        cost(&mut self.command(words))
    }

    /// One round of everything.
    fn round(&mut self) -> Result<()> {
        let run = self.measure(&["run", "--bundle", "true", "once"])?;
        self.hold()?;
        let state = self.measure(&["state", "held"])?;
        let exec = self.measure(&["exec", "held", "/bin/true"])?;
        // What a sleeping program does not mind, so that the next one still finds it running.
        let kill = self.measure(&["kill", "held", "CONT"])?;
        let delete = self.measure(&["delete", "--force", "held"])?;
        for (costs, cost) in self.costs.iter_mut().zip([run, state, exec, kill, delete]) {
            costs.push(cost);
        }
        Ok(())
    }

    /// Peak memory, and many starts at once.
    fn once(&mut self) -> Result<()> {
        for _ in 0..PEAK_ROUNDS {
            self.peaks.push(peak_memory(&self.command(&["run", "--bundle", "true", "once"]))?);
        }
        let began = Instant::now();
        std::thread::scope(|scope| -> Result<()> {
            let one = &*self;
            let start = |thread: u32| {
                (thread..STARTS).step_by(AT_ONCE as usize).try_for_each(|number| {
                    let id = format!("many-{number}");
                    let mut command = one.command(&["run", "--bundle", "many", &id]);
                    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
                    ensure!(status.success(), "{} run ended with {status}", one.name);
                    Ok(())
                })
            };
            let running: Vec<_> = (0..AT_ONCE).map(|thread| scope.spawn(move || start(thread))).collect();
            running.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| bail!("a thread panicked")))
        })?;
        self.parallel = milliseconds(began.elapsed());
        Ok(())
    }

    fn value(&self, of: impl Fn(&Self) -> f64) -> Result<f64, String> {
        match &self.refusal {
            Some(why) => Err(why.clone()),
            None => Ok(of(self)),
        }
    }

    fn cost(&self, index: usize, of: Of) -> f64 {
        median(&self.costs[index].iter().map(of).collect::<Vec<_>>())
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
    let ground = Ground::prepare()?;
    let rootfs = ground.base.path().join("rootfs");
    let mut own = Runtime::prepare("sampan", settings.dist.join("sampan-oci"), &ground)?;
    ensure!(own.refusal.is_none(), "sampan-oci: {}", own.refusal.take().unwrap_or_default());
    let mut peers = Vec::new();
    for name in ["runc", "crun"] {
        peers.push(match find_program(name) {
            Some(program) => Ok(Runtime::prepare(name, program, &ground)?),
            None => Err(name),
        });
    }
    let bare = settings.dist.join("sampan-bare");
    let mut floor = Vec::new();
    for _ in 0..settings.rounds {
        own.round()?;
        for peer in peers.iter_mut().flatten().filter(|peer| peer.refusal.is_none()) {
            peer.round()?;
        }
        floor.push(cost(Command::new(&bare).arg(&rootfs).arg("/bin/true"))?);
    }
    own.once()?;
    for peer in peers.iter_mut().flatten().filter(|peer| peer.refusal.is_none()) {
        peer.once()?;
    }
    let mut figures = Vec::new();
    for (index, (word, name)) in MEASURED.iter().enumerate() {
        for (kind, of) in QUANTITIES {
            let mut figure = Figure::new(format!("{name}, {kind}"), own.cost(index, of), "ms");
            figure.targets = targets(word, kind);
            figure.peers = peers.iter().map(|peer| as_peer(peer, |runtime| runtime.cost(index, of))).collect();
            if *word == "run" {
                let value = Ok(median(&floor.iter().map(of).collect::<Vec<_>>()));
                figure.peers.push(Peer { name: BARE.to_owned(), value });
            }
            figures.push(figure);
        }
    }
    let mut memory = Figure::new("run /bin/true, peak memory", median(&own.peaks), "MB").at_most(2.2);
    memory.peers = peers.iter().map(|peer| as_peer(peer, |runtime| median(&runtime.peaks))).collect();
    let mut parallel =
        Figure::new(format!("{STARTS} runs, {AT_ONCE} at once, wall"), own.parallel, "ms").at_most_of("crun", 0.6);
    parallel.peers = peers.iter().map(|peer| as_peer(peer, |runtime| runtime.parallel)).collect();
    figures.extend([memory, parallel]);
    Ok(figures)
}

/// The budgets: of what a person waits for by the clock, of the rest by the processor.
fn targets(word: &str, kind: &str) -> Vec<Target> {
    match (word, kind) {
        ("run", "CPU") => vec![Target::AtMost(6.0), Target::OfPeer("crun", 0.55), Target::OfPeer(BARE, 1.6)],
        ("state" | "kill", "CPU") => vec![Target::AtMost(1.3)],
        ("exec", "CPU") => vec![Target::AtMost(2.5)],
        ("delete", "wall") => vec![Target::AtMost(5.0)],
        _ => Vec::new(),
    }
}

/// What the runtimes stand on: a mount namespace of this thread's, a root file system, a tmpfs for their state.
#[derive(Debug)]
pub(crate) struct Ground {
    base: TempDir,
}

impl Ground {
    pub(crate) fn prepare() -> Result<Self> {
        // A runtime that is killed leaves its mounts to this namespace, not to the host.
        unshare(CloneFlags::CLONE_NEWNS).context("unshare")?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .context("make mounts private")?;
        hide_hybrid();
        let ground = Self { base: tempfile::Builder::new().prefix("sampan-bench-").tempdir()? };
        write_rootfs(&ground.base)?;
        let state = ground.state();
        fs::create_dir(&state)?;
        mount(Some("tmpfs"), &state, Some("tmpfs"), MsFlags::empty(), None::<&str>).context("mount a tmpfs")?;
        Ok(ground)
    }

    fn state(&self) -> PathBuf {
        self.base.path().join("state")
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // Where it is not mounted, the directory can be removed all the same.
        let _absent = umount2(&self.state(), MntFlags::MNT_DETACH);
    }
}

/// crun refuses a hybrid host whose v2 tree has a controller. All runtimes are measured alike, so on such a host it is hidden from all.
fn hide_hybrid() {
    // Where it is not mounted there is nothing to hide.
    let _absent = umount2("/sys/fs/cgroup/unified", MntFlags::MNT_DETACH);
}

fn as_peer(peer: &Result<Runtime, &'static str>, of: impl Fn(&Runtime) -> f64) -> Peer {
    match peer {
        Ok(runtime) => Peer { name: runtime.name.to_owned(), value: runtime.value(of) },
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
fn write_bundle(dir: &Path, arguments: &Value, rootfs: &Path, cgroup: Option<&String>) -> Result<()> {
    fs::create_dir_all(dir)?;
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let special = |target: &str, kind: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": kind, "options": options});
    let mut config = json!({
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
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    });
    if let Some(cgroup) = cgroup {
        config["linux"]["cgroupsPath"] = json!(cgroup);
    }
    fs::write(dir.join("config.json"), config.to_string()).context("write a bundle")
}
