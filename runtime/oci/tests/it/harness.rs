//! A bundle in a directory of its own, and the runtime over it.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Where Debian's busybox-static puts it.
const BUSYBOX: &str = "/bin/busybox";
/// Linked to busybox in the root file system.
const APPLETS: [&str; 20] = [
    "sh", "ls", "cat", "id", "true", "false", "sleep", "mount", "hostname", "ps", "echo", "touch", "tty", "stat",
    "env", "kill", "readlink", "mkdir", "dd", "rm",
];
const OURS: &str = env!("CARGO_BIN_EXE_sampan-oci");
/// What any wait of a test is bounded by.
const PATIENCE: Duration = Duration::from_secs(20);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// One container's world; gone with it.
pub(crate) struct World {
    dir: tempfile::TempDir,
    /// What is tested: `SAMPAN_RUNTIME` where set, so that other runtimes can be put to the same test, else ours.
    pub runtime: PathBuf,
    pub id: String,
    pub config: Value,
}

/// What a command said and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub out: String,
    pub err: String,
    pub code: i32,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code().unwrap_or(-1),
        }
    }
}

impl Said {
    /// The output of a command that worked.
    #[track_caller]
    pub(crate) fn good(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    /// The words of a command that failed.
    #[track_caller]
    pub(crate) fn bad(self) -> String {
        assert_ne!(self.code, 0, "{self:?}");
        self.err
    }
}

impl World {
    pub(crate) fn new(args: &[&str]) -> Self {
        assert!(Path::new(BUSYBOX).exists(), "{BUSYBOX} is missing: apt-get install -y busybox-static");
        assert!(nix::unistd::geteuid().is_root(), "these tests make containers and run as root");
        let dir = tempfile::Builder::new().prefix("sampan-oci-").tempdir().expect("temporary directory");
        let root = dir.path().join("bundle/rootfs");
        for below in ["bin", "tmp", "proc", "sys", "dev", "etc"] {
            std::fs::create_dir_all(root.join(below)).expect("mkdir");
        }
        std::fs::copy(BUSYBOX, root.join("bin/busybox")).expect("copy busybox");
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet)).expect("symlink");
        }
        // Reachable for a container's root that is nobody on the host.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).expect("chmod");
        let runtime = std::env::var_os("SAMPAN_RUNTIME").map_or_else(|| OURS.into(), PathBuf::from);
        let mut world = Self { dir, runtime, id: unique(), config: Value::Null };
        // The same configuration for every runtime.
        let made = Command::new(OURS).args(["spec", "--bundle"]).arg(world.bundle()).output().expect("run sampan-oci");
        assert!(made.status.success(), "{made:?}");
        let text = std::fs::read(world.bundle().join("config.json")).expect("config.json");
        world.config = serde_json::from_slice(&text).expect("json");
        let namespaces = world.config["linux"]["namespaces"].as_array_mut().expect("namespaces");
        if !namespaces.contains(&json!({"type": "cgroup"})) {
            // `spec` leaves it out on cgroup v1.
            namespaces.push(json!({"type": "cgroup"}));
        }
        world.config["process"]["terminal"] = json!(false);
        world.config["process"]["args"] = json!(args);
        world.config["root"]["readonly"] = json!(false);
        world
    }

    pub(crate) fn bundle(&self) -> PathBuf {
        self.dir.path().join("bundle")
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.bundle().join("rootfs")
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    pub(crate) fn state_root(&self) -> PathBuf {
        self.path("state")
    }

    pub(crate) fn save(&self) {
        std::fs::write(self.bundle().join("config.json"), self.config.to_string()).expect("write config.json");
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.runtime);
        command.arg("--root").arg(self.state_root()).stdin(Stdio::null());
        command
    }

    fn raw(&self, first: &[&str], rest: &[&str]) -> Said {
        self.command().args(first).args(rest).output().expect("run sampan-oci").into()
    }

    /// `sampan-oci run`, with the configuration as it is now.
    pub(crate) fn run(&self) -> Said {
        self.save();
        let bundle = self.bundle();
        self.raw(&["run", "--bundle", bundle.to_str().expect("utf-8")], &[&self.id])
    }

    /// Runs a shell script in a mount namespace of its own whose mounts are shared; `$RUN` runs the container.
    pub(crate) fn on_a_shared_host(&self, script: &str) -> Said {
        self.save();
        let (runtime, root, bundle) = (self.runtime.display(), self.state_root(), self.bundle());
        let run = format!("{runtime} --root {} run --bundle {} {}", root.display(), bundle.display(), self.id);
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "shared", "sh", "-c", script]).env("RUN", run);
        command.output().expect("unshare").into()
    }

    pub(crate) fn create(&self) -> Said {
        self.save();
        let mut command = self.command();
        command.arg("create").arg("--bundle").arg(self.bundle()).arg(&self.id);
        // The container keeps its standard streams, so a pipe would never end.
        let err = self.path("create.err");
        let file = std::fs::File::create(&err).expect("create");
        let status = command.stdout(Stdio::null()).stderr(file).status().expect("run sampan-oci");
        let err = std::fs::read_to_string(err).expect("read");
        Said { out: String::new(), err, code: status.code().unwrap_or(-1) }
    }

    /// `sampan-oci VERB [flags] ID [arguments]`.
    pub(crate) fn oci(&self, verb: &[&str], arguments: &[&str]) -> Said {
        let mut rest = vec![self.id.as_str()];
        rest.extend(arguments);
        self.raw(verb, &rest)
    }

    pub(crate) fn start_all(&self) {
        self.create().good();
        self.oci(&["start"], &[]).good();
    }

    pub(crate) fn status(&self) -> String {
        let state: Value = serde_json::from_str(&self.oci(&["state"], &[]).good()).expect("json");
        state["status"].as_str().expect("status").to_owned()
    }

    pub(crate) fn pid(&self) -> i32 {
        let state: Value = serde_json::from_str(&self.oci(&["state"], &[]).good()).expect("json");
        i32::try_from(state["pid"].as_i64().expect("pid")).expect("pid")
    }

    /// Nothing of this container is anywhere.
    #[track_caller]
    pub(crate) fn assert_gone(&self) {
        let left = std::fs::read_dir(self.state_root()).into_iter().flatten().flatten();
        // Some runtimes keep a hidden entry of their own.
        let left: Vec<_> = left.filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b".")).collect();
        assert!(left.is_empty(), "state left behind: {left:?}");
        assert_eq!(self.cgroups(), Vec::<PathBuf>::new(), "cgroups left behind");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        assert!(!mounts.contains(self.dir.path().to_str().expect("utf-8")), "mounts left behind");
    }

    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        let mut places: Vec<PathBuf> = vec!["/sys/fs/cgroup".into()];
        places.extend(std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path()));
        places.into_iter().map(|place| place.join(&self.id)).filter(|path| path.exists()).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _gone = self.oci(&["delete", "--force"], &[]);
    }
}

fn unique() -> String {
    format!("it-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Waits until it holds; a test that waits for longer fails.
#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// A whole tree to another owner.
pub(crate) fn give(path: &Path, uid: u32, gid: u32) {
    std::os::unix::fs::lchown(path, Some(uid), Some(gid)).expect("chown");
    if path.symlink_metadata().expect("stat").is_dir() {
        for entry in std::fs::read_dir(path).expect("read").flatten() {
            give(&entry.path(), uid, gid);
        }
    }
}

/// Everything below a directory: path, inode, kind, owner, mode, content.
pub(crate) fn fingerprint(dir: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let mut all = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(path) = todo.pop() {
        let status = std::fs::symlink_metadata(&path).expect("stat");
        let content = if status.is_file() { std::fs::read(&path).expect("read") } else { Vec::new() };
        let line =
            format!("{path:?} {} {:o} {}:{} {content:?}", status.ino(), status.mode(), status.uid(), status.gid());
        all.push(line);
        if status.is_dir() {
            todo.extend(std::fs::read_dir(&path).expect("read").flatten().map(|entry| entry.path()));
        }
    }
    all.sort();
    all
}
