//! A whole Sampan for one test: its own network and mount namespace, its own directories, the real binaries.
//!
//! `Cluster::start` moves the calling thread into new namespaces; everything that it starts afterwards (the daemon, kubectl, a
//! registry) lives there too. Dropping the cluster takes it down and fails loudly if anything is left.
//!
//!     let cluster = Cluster::start()?;
//!     cluster.kubectl(&["get", "nodes"])?;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::image::{self, ImageBuilder};

/// No command of a test takes longer; one that does is stuck.
const COMMAND_SECONDS: &str = "90";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Between two looks of `eventually`.
const POLL: Duration = Duration::from_millis(50);

/// What a command said.
#[derive(Clone, Debug)]
pub struct Said {
    pub stdout: String,
    pub stderr: String,
    pub code: i32,
}

impl Said {
    /// Both streams: what a person saw.
    pub fn all(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// A running cluster; it is gone when dropped.
#[derive(Debug)]
pub struct Cluster {
    root: TempDir,
    dist: PathBuf,
}

impl Cluster {
    /// A Ready node in new namespaces of this thread.
    pub fn start() -> Result<Self> {
        let cluster = Self::prepare()?;
        cluster.up()?;
        Ok(cluster)
    }

    /// Ready, for the first time or again.
    pub fn up(&self) -> Result<()> {
        let said = self.sampan(&["up", "--no-kubeconfig", "--node-name", "node-1"])?;
        ensure!(said.code == 0, "sampan up failed: {}\n{}", said.all(), self.log_tail());
        Ok(())
    }

    /// The namespaces and directories without a daemon.
    pub fn prepare() -> Result<Self> {
        enter_namespaces()?;
        Self::here()
    }

    /// Another one on the same machine: the namespaces of this one, directories of its own, no daemon yet.
    pub fn beside(&self) -> Result<Self> {
        Self::here()
    }

    fn here() -> Result<Self> {
        let dist = dist()?;
        let root = tempfile::Builder::new().prefix("sampan-e2e-").tempdir()?;
        Ok(Self { root, dist })
    }

    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The directory with the binaries.
    pub fn dist(&self) -> &Path {
        &self.dist
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.root().join("config/admin.kubeconfig")
    }

    /// Stock kubectl as administrator; fails unless it succeeds. Standard output without the last newline.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let said = self.try_kubectl(arguments, None)?;
        ensure!(said.code == 0, "kubectl {} ended with {}: {}", arguments.join(" "), said.code, said.all());
        Ok(said.stdout.trim_end_matches('\n').to_owned())
    }

    /// Stock kubectl, whatever it says; `input` is its standard input.
    pub fn try_kubectl(&self, arguments: &[&str], input: Option<&str>) -> Result<Said> {
        run(self.kubectl_command(arguments), input)
    }

    /// For tests that hold a kubectl of their own, like `port-forward` or `get -w`. It is killed after `COMMAND_SECONDS`.
    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        // In the foreground, so that it may read from a terminal.
        command.args(["--foreground", "-k", "1", COMMAND_SECONDS, "kubectl", "--kubeconfig"]);
        command.arg(self.kubeconfig()).args(arguments);
        command.env("HOME", self.root()).env_remove("KUBECONFIG");
        command
    }

    /// `kubectl apply -f -`.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        let said = self.try_kubectl(&["apply", "-f", "-"], Some(manifest))?;
        ensure!(said.code == 0, "kubectl apply ended with {}: {}", said.code, said.all());
        Ok(said.stdout)
    }

    /// An object as JSON.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let mut all = vec!["get", "-o", "json"];
        all.extend(arguments);
        serde_json::from_str(&self.kubectl(&all)?).context("kubectl printed no JSON")
    }

    /// The program itself, whatever it says.
    pub fn sampan(&self, arguments: &[&str]) -> Result<Said> {
        self.sampan_with_input(arguments, None)
    }

    pub fn sampan_with_input(&self, arguments: &[&str], input: Option<&str>) -> Result<Said> {
        run(self.sampan_command(arguments), input)
    }

    /// For tests that hold the program themselves.
    pub fn sampan_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--foreground", "-k", "1", COMMAND_SECONDS]).arg(self.dist.join("sampan"));
        command.arg("--root").arg(self.root()).args(arguments).env("HOME", self.root()).env_remove("KUBECONFIG");
        command
    }

    /// Makes an image known to the runtime without any registry.
    pub fn import(&self, image: &ImageBuilder, name: &str) -> Result<()> {
        let layout = tempfile::tempdir()?;
        image.build()?.write_layout(layout.path(), name)?;
        let said = self.sampan(&["import", &layout.path().to_string_lossy()])?;
        ensure!(said.code == 0, "import failed: {}", said.all());
        Ok(())
    }

    /// A static busybox with a shell; its name.
    pub fn import_busybox(&self) -> Result<&'static str> {
        const NAME: &str = "e2e.local/busybox:1";
        self.import(&image::busybox()?, NAME)?;
        Ok(NAME)
    }

    /// Busybox with the demo program as `/demo`, which serves on 8080 unless told otherwise and asks others; its name.
    pub fn import_tools(&self) -> Result<&'static str> {
        const NAME: &str = "e2e.local/tools:1";
        let demo = fs::read(self.dist.join("sampan-demo")).context("read sampan-demo")?;
        let image = image::busybox()?.next_layer().file("/demo", 0o755, demo).command(&["/demo"]);
        self.import(&image, NAME)?;
        Ok(NAME)
    }

    /// What the demo program says as a client in a pod of the image above; fails with what it says where it does.
    pub fn ask(&self, pod: &str, words: &[&str]) -> Result<String> {
        self.kubectl(&[&["exec", pod, "--", "/demo"], words].concat())
    }

    /// Makes the demo image from our own static binary, without any registry.
    pub fn import_demo(&self) -> Result<&'static str> {
        const NAME: &str = "demo.sampan.local/demo:1";
        let binary = self.dist.join("sampan-demo");
        let said = self.sampan(&["import", "--name", NAME, "--binary", &binary.to_string_lossy()])?;
        ensure!(said.code == 0, "import failed: {}", said.all());
        Ok(NAME)
    }

    /// The daemon's process.
    pub fn daemon_pid(&self) -> Result<i32> {
        let path = self.root().join("run/daemon.lock");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        // A second line tells that it is ending.
        text.lines().next().unwrap_or_default().parse().context("the daemon's pid")
    }

    /// Waits for a pod to be Ready; its address.
    pub fn pod_ready(&self, name: &str) -> Result<IpAddr> {
        self.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"])
            .with_context(|| self.kubectl(&["describe", "pod", name]).unwrap_or_default())?;
        let address = self.kubectl(&["get", "pod", name, "-o", "jsonpath={.status.podIP}"])?;
        address.parse().with_context(|| format!("the address of pod {name}: {address:?}"))
    }

    /// The end of the daemon's log.
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.root().join("data/logs/sampan.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _nobody_reads = writeln!(std::io::stderr(), "--- the daemon's log ends with\n{}", self.log_tail());
        }
        let down = self.sampan(&["down", "--purge"]);
        let is_clean = matches!(&down, Ok(said) if said.code == 0);
        // A second panic would hide the first.
        assert!(is_clean || std::thread::panicking(), "sampan down left something: {down:?}");
    }
}

/// Network and mounts of their own for this thread and what it starts.
pub fn enter_namespaces() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("unshare; these tests run as root")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("make mounts private")?;
    Ok(())
}

/// Where `cargo xtask dist` puts the binaries: beside the profile directory that this test was built into.
pub fn dist() -> Result<PathBuf> {
    if let Some(told) = std::env::var_os("SAMPAN_DIST") {
        return Ok(told.into());
    }
    let own = std::env::current_exe().context("find this test")?;
    let dist = own.ancestors().map(|directory| directory.join("dist")).find(|dist| dist.join("sampan").is_file());
    dist.context("no dist/sampan above this test: run `cargo xtask dist` first")
}

/// Runs a command to its end, whatever it says.
pub fn run(mut command: Command, input: Option<&str>) -> Result<Said> {
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("start {command:?}"))?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        // The program may not want all of it.
        let _ended_early = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("wait for {command:?}"))?;
    Ok(Said {
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        code: output.status.code().unwrap_or(-1),
    })
}

/// Ends a held program and what it wraps: a killed `timeout` would leave its child behind.
pub fn end(child: &mut Child) -> Result<()> {
    if child.try_wait()?.is_none() {
        kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM).context("end a program")?;
    }
    child.wait()?;
    Ok(())
}

/// Looks until `look` has something, for `seconds` at most; what it said last otherwise.
pub fn eventually<T>(seconds: u64, what: &str, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now().checked_add(Duration::from_secs(seconds)).expect("a clock that is not near its end");
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("not within {seconds} s: {what}")));
            }
            Err(_) => std::thread::park_timeout(POLL),
        }
    }
}

/// The body of a plain HTTP GET.
pub fn http_get(address: impl Into<SocketAddr>, path: &str) -> Result<String> {
    let address = address.into();
    let mut stream =
        TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(CONNECT_TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    let complete = |answer: &[u8]| {
        let text = String::from_utf8_lossy(answer);
        let (head, body) = text.split_once("\r\n\r\n")?;
        let length = head
            .lines()
            .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse::<usize>().ok())?;
        (body.len() >= length).then(|| body.to_owned())
    };
    loop {
        if let Some(body) = complete(&answer) {
            return Ok(body);
        }
        match stream.read(&mut chunk)? {
            0 => break,
            length => answer.extend_from_slice(&chunk[..length]),
        }
    }
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("no HTTP answer: {text:?}"))?;
    if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return dechunked(body).with_context(|| format!("no chunks: {text:?}"));
    }
    Ok(body.to_owned())
}

/// RFC 9112, section 7.1: the length of each chunk stands before it, in hexadecimal digits.
fn dechunked(mut body: &str) -> Option<String> {
    let mut whole = String::new();
    loop {
        let (length, rest) = body.split_once("\r\n")?;
        let length = usize::from_str_radix(length.split(';').next()?.trim(), 16).ok()?;
        if length == 0 {
            return Some(whole);
        }
        whole.push_str(rest.get(..length)?);
        body = rest.get(length..)?.strip_prefix("\r\n")?;
    }
}

/// Parses an address that kubectl printed.
pub fn ip(text: &str) -> Result<IpAddr> {
    text.trim().parse().with_context(|| format!("an address: {text:?}"))
}

/// The loopback address, for what the host itself serves.
pub const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
