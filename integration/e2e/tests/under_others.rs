//! `sampan-oci` in the place of runc: under podman and under containerd, as Debian packages them.
//!
//! Everything of theirs lies in directories of the test, and every container is removed also when it fails.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use integration_e2e::cluster::{self, Said, eventually};
use integration_e2e::image;
use integration_e2e::podman::{self, CONTAINERS_CONF, IMAGE, Podman};
use serde_json::Value;
use tempfile::TempDir;

/// The podman of root.
struct OfRoot {
    directory: TempDir,
}

impl OfRoot {
    fn start() -> Result<Self> {
        cluster::enter_namespaces()?;
        let podman = Self { directory: tempfile::Builder::new().prefix("sampan-podman-").tempdir()? };
        std::fs::write(podman.path("containers.conf"), CONTAINERS_CONF)?;
        podman.load(podman.directory())?;
        Ok(podman)
    }
}

impl Podman for OfRoot {
    fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new("timeout");
        command.args(["--foreground", "-k", "1", "90", "podman"]);
        for (flag, below) in
            [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp"), ("--network-config-dir", "net")]
        {
            command.arg(flag).arg(self.path(below));
        }
        command.args(["--cgroup-manager=cgroupfs", "--events-backend=file", "--storage-driver=vfs", "--runtime"]);
        command.arg(cluster::dist()?.join("sampan-oci")).args(arguments);
        command.env("CONTAINERS_CONF", self.path("containers.conf")).current_dir(self.directory());
        Ok(command)
    }
}

impl Drop for OfRoot {
    fn drop(&mut self) {
        self.clear();
    }
}

fn good(said: &Said, arguments: &[&str]) -> Result<String> {
    ensure!(said.code == 0, "{} ended with {}: {}", arguments.join(" "), said.code, said.all());
    Ok(said.stdout.trim_end_matches('\n').to_owned())
}

#[test]
fn podman_runs_and_stops() -> Result<()> {
    let podman = OfRoot::start()?;
    let run = |rest: &[&str]| podman.say(&[&["run", "--rm", "--network=none"], rest].concat());
    let said = run(&[IMAGE, "sh", "-c", "echo out; echo err >&2; exit 7"])?;
    ensure!((said.stdout.as_str(), said.code) == ("out\n", 7) && said.stderr.contains("err"), "{said:?}");
    let said = run(&[IMAGE, "/nowhere"])?;
    ensure!(said.code == 127, "podman tells a missing program by the runtime's words: {said:?}");
    let said =
        run(&["--user=1000:1001", "--read-only", "--cap-drop=all", IMAGE, "sh", "-c", "id -u; id -g; touch /x"])?;
    ensure!(said.stdout == "1000\n1001\n" && said.stderr.contains("Read-only file system"), "{said:?}");

    podman.good(&[
        "run",
        "-d",
        "--name=c",
        "--network=none",
        "--memory=64m",
        "--pids-limit=50",
        IMAGE,
        "sleep",
        "1000",
    ])?;
    ensure!(podman.good(&["exec", "-e", "WORD=hello", "c", "sh", "-c", "echo $WORD"])? == "hello");
    ensure!(podman.say(&["exec", "c", "sh", "-c", "exit 9"])?.code == 9);
    let processes = podman.good(&["exec", "c", "ps"])?;
    ensure!(processes.contains("sleep 1000") && processes.lines().count() < 6, "{processes}");
    let stats: Value = serde_json::from_str(&podman.good(&["stats", "--no-stream", "--format=json", "c"])?)?;
    let memory = stats[0]["mem_usage"].as_str().unwrap_or_default();
    ensure!(memory.ends_with("/ 67.11MB") && !memory.starts_with("0B"), "{stats}");
    ensure!(podman.good(&["top", "c", "pid", "comm"])?.contains("sleep"));
    podman.good(&["pause", "c"])?;
    ensure!(podman.inspect("c", ".State.Status")? == "paused");
    podman.good(&["unpause", "c"])?;
    podman::ends_in_every_way(&podman, "c")
}

#[test]
fn podman_gives_a_terminal() -> Result<()> {
    podman::gives_a_terminal(&OfRoot::start()?)
}

#[test]
fn podman_plays_a_pod() -> Result<()> {
    podman::plays_a_pod(&OfRoot::start()?, ", resources: {limits: {memory: 64Mi}}")
}

/// A containerd with state of its own; it and its shims are gone when dropped.
struct Containerd {
    process: Child,
    directory: TempDir,
}

impl Containerd {
    fn start() -> Result<Self> {
        cluster::enter_namespaces()?;
        let directory = tempfile::Builder::new().prefix("sampan-containerd-").tempdir()?;
        let at = |below: &str| directory.path().join(below);
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n",
            at("root"),
            at("state"),
            at("containerd.sock"),
        );
        std::fs::write(at("config.toml"), config)?;
        let log = File::create(at("log"))?;
        let process = Command::new("containerd")
            .arg("--config")
            .arg(at("config.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start containerd; it is in the Debian package containerd")?;
        let containerd = Self { process, directory };
        eventually(20, "containerd answers", || containerd.good(&["version"]))?;
        containerd.import()?;
        Ok(containerd)
    }

    fn import(&self) -> Result<()> {
        let layout = self.directory.path().join("layout");
        image::busybox()?.build()?.write_layout(&layout, IMAGE)?;
        let archive = self.directory.path().join("image.tar");
        tar::Builder::new(File::create(&archive)?).append_dir_all(".", &layout)?;
        self.good(&["images", "import", "--snapshotter=native", &archive.to_string_lossy()])?;
        Ok(())
    }

    fn say(&self, arguments: &[&str]) -> Result<Said> {
        let mut command = Command::new("timeout");
        command.args(["-k", "1", "90", "ctr", "--address"]).arg(self.directory.path().join("containerd.sock"));
        command.args(arguments);
        cluster::run(command, None)
    }

    fn good(&self, arguments: &[&str]) -> Result<String> {
        good(&self.say(arguments)?, arguments)
    }

    fn run(&self, flags: &[&str], id: &str, program: &[&str]) -> Result<Said> {
        let runtime = cluster::dist()?.join("sampan-oci");
        let runtime = runtime.to_string_lossy();
        let head = ["run", "--snapshotter=native", "--runc-binary", &runtime];
        self.say(&[&head[..], flags, &[IMAGE, id], program].concat())
    }

    fn status(&self, id: &str) -> Result<String> {
        let listed = self.good(&["tasks", "list"])?;
        let line = listed.lines().find(|line| line.starts_with(&format!("{id} ")));
        Ok(line.and_then(|line| line.split_whitespace().nth(2)).unwrap_or_default().to_owned())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        for id in ["c", "once"] {
            let _gone = self.say(&["tasks", "kill", "--signal=KILL", "--all", id]);
            let _gone = self.say(&["tasks", "delete", "--force", id]);
        }
        let _ended = cluster::end(&mut self.process);
    }
}

#[test]
fn containerd_runs_it_as_its_runtime() -> Result<()> {
    let containerd = Containerd::start()?;
    let said = containerd.run(&["--rm"], "once", &["sh", "-c", "echo out; exit 7"])?;
    ensure!((said.stdout.as_str(), said.code) == ("out\n", 7), "{said:?}");
    let said = containerd.run(&["--rm"], "once", &["/nowhere"])?;
    ensure!(said.code != 0 && said.stderr.contains("/nowhere"), "{said:?}");

    good(&containerd.run(&["--detach", "--memory-limit=67108864"], "c", &["sleep", "1000"])?, &["run"])?;
    ensure!(containerd.status("c")? == "RUNNING");
    let processes = containerd.good(&["tasks", "exec", "--exec-id=e", "c", "ps"])?;
    ensure!(processes.contains("sleep 1000"), "{processes}");
    let metrics = containerd.good(&["tasks", "metrics", "c"])?;
    ensure!(metrics.contains("memory.usage"), "{metrics}");
    ensure!(containerd.good(&["tasks", "ps", "c"])?.lines().count() == 2);
    containerd.good(&["tasks", "pause", "c"])?;
    ensure!(containerd.status("c")? == "PAUSED");
    containerd.good(&["tasks", "resume", "c"])?;
    containerd.good(&["tasks", "kill", "--signal=KILL", "c"])?;
    eventually(10, "the end after a kill", || {
        let status = containerd.status("c")?;
        ensure!(status == "STOPPED", "{status}");
        Ok(())
    })?;
    let said = containerd.say(&["tasks", "delete", "c"])?;
    ensure!(said.all().contains("exit code 137"), "{said:?}");
    containerd.good(&["containers", "delete", "c"])?;
    nothing_is_left(containerd.directory.path())
}

/// No process, mount or runtime state that names the directory, beside containerd itself.
fn nothing_is_left(directory: &Path) -> Result<()> {
    let ours = directory.to_string_lossy().into_owned();
    eventually(10, "nothing is left", || {
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
        let left: Vec<&str> = mounts.lines().filter(|line| line.contains(&ours)).collect();
        ensure!(left.is_empty(), "mounts {left:#?}");
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            ensure!(!(line.contains("shim-runc") && line.contains(&ours)), "process {line}");
        }
        Ok(())
    })
}
