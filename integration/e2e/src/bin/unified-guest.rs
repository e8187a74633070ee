//! What runs inside the virtual machine of `tests/unified.rs`: checks on real cgroup v2 files. Not for a host.
//!
//! Each check is a function that ends with an error or does not; all run, each is told in one line, and the exit code is 1 if any failed.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use integration_e2e::cluster::{Cluster, eventually, http_get};
use serde_json::{Value, json};

const CGROUPS: &str = "/sys/fs/cgroup";
const RUNTIME: &str = "/dist/sampan-oci";
/// Rounded to pages by the kernel, so a multiple of one.
const MEMORY_BYTES: u64 = 64 << 20;

/// What holds, and who looks.
type Check = (&'static str, fn() -> Result<()>);

fn main() -> ExitCode {
    let containers: &[Check] = &[
        ("only cgroup v2 is here", only_v2),
        ("limits reach the container's files, and updates too", limits),
        ("pause, resume and kill go through the cgroup", pause_and_kill),
        ("one out-of-memory kill ends the container with 137", out_of_memory),
        ("a container sees its own cgroup as the root", cgroup_namespace),
        ("device rules hold, for exec too", devices),
        ("a parent with processes of its own is named", busy_parent),
        ("a threaded parent is refused in words", threaded_parent),
        ("reads from a block device are throttled by file", io_limits),
    ];
    let cluster: &[Check] = &[("a whole node starts, serves a pod and goes", whole_node)];
    let checks = if std::env::args().nth(1).as_deref() == Some("cluster") { cluster } else { containers };
    let mut failed = 0_u8;
    for (name, check) in checks {
        let began = Instant::now();
        let line = match check() {
            Ok(()) => format!("ok {name} ({:.1} s)", began.elapsed().as_secs_f32()),
            Err(error) => {
                failed = 1;
                format!("FAILED {name}: {error:#}")
            }
        };
        let _console_is_full = writeln!(std::io::stdout(), "{line}");
    }
    ExitCode::from(failed)
}

/// A bundle of busybox and its container, deleted when dropped.
struct Container {
    id: String,
    directory: PathBuf,
    config: Value,
}

impl Container {
    fn new(id: &str, arguments: &[&str]) -> Result<Self> {
        let directory = Path::new("/tmp").join(id);
        let root = directory.join("rootfs");
        for below in ["proc", "sys/fs/cgroup", "dev", "bin", "tmp"] {
            fs::create_dir_all(root.join(below))?;
        }
        fs::copy("/bin/busybox", root.join("bin/busybox"))?;
        for applet in ["sh", "cat", "sleep", "dd", "ls", "echo", "mkdir", "true"] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
        }
        let mut container = Self { id: id.to_owned(), directory, config: Value::Null };
        let bundle = container.directory.to_string_lossy().into_owned();
        container.run(&["spec", "--bundle", &bundle])?;
        container.config = serde_json::from_slice(&fs::read(container.directory.join("config.json"))?)?;
        container.config["process"]["terminal"] = json!(false);
        container.config["process"]["args"] = json!(arguments);
        container.config["root"]["readonly"] = json!(false);
        container.config["linux"]["cgroupsPath"] = json!(format!("/checks/{id}"));
        Ok(container)
    }

    fn resources(mut self, resources: Value) -> Self {
        let devices = self.config["linux"]["resources"]["devices"].take();
        self.config["linux"]["resources"] = resources;
        if self.config["linux"]["resources"]["devices"].is_null() {
            self.config["linux"]["resources"]["devices"] = devices;
        }
        self
    }

    fn try_run(&self, words: &[&str]) -> Result<(i32, String, String)> {
        let mut command = Command::new(RUNTIME);
        command.args(["--root", "/run/oci"]).args(words).stdin(Stdio::null());
        // A container keeps the streams that it was created with: files, since a pipe would not end.
        let [out, err] = ["out", "err"].map(|name| self.directory.join(name));
        let status = command.stdout(fs::File::create(&out)?).stderr(fs::File::create(&err)?).status()?;
        Ok((status.code().unwrap_or(-1), fs::read_to_string(out)?, fs::read_to_string(err)?))
    }

    fn run(&self, words: &[&str]) -> Result<String> {
        let (code, out, err) = self.try_run(words)?;
        ensure!(code == 0, "sampan-oci {} ended with {code}: {out}{err}", words.join(" "));
        Ok(out)
    }

    fn save(&self) -> Result<String> {
        fs::write(self.directory.join("config.json"), self.config.to_string())?;
        Ok(self.directory.to_string_lossy().into_owned())
    }

    fn start(&self) -> Result<()> {
        let bundle = self.save()?;
        self.run(&["create", "--bundle", &bundle, &self.id])?;
        self.run(&["start", &self.id])?;
        Ok(())
    }

    /// `sampan-oci run` to its end: exit code, output, errors.
    fn foreground(&self) -> Result<(i32, String, String)> {
        let bundle = self.save()?;
        self.try_run(&["run", "--bundle", &bundle, &self.id])
    }

    fn state(&self) -> Result<String> {
        let state: Value = serde_json::from_str(&self.run(&["state", &self.id])?)?;
        Ok(state["status"].as_str().unwrap_or_default().to_owned())
    }

    fn cgroup(&self) -> PathBuf {
        Path::new(CGROUPS).join("checks").join(&self.id)
    }

    fn file(&self, name: &str) -> Result<String> {
        read(&self.cgroup().join(name))
    }

    fn expect(&self, files: &[(&str, &str)]) -> Result<()> {
        for (name, expect) in files {
            let found = self.file(name)?;
            ensure!(found == *expect, "{name} holds {found:?}, not {expect:?}");
        }
        Ok(())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _never_created = self.try_run(&["delete", "--force", &self.id]);
        let _own_directory = fs::remove_dir_all(&self.directory);
    }
}

fn read(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    Ok(text.trim_end().to_owned())
}

fn only_v2() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!mounts.contains(" - cgroup "), "a v1 hierarchy is mounted: {mounts}");
    // Nobody has enabled anything yet: the products do.
    let enabled = read(&Path::new(CGROUPS).join("cgroup.subtree_control"))?;
    ensure!(enabled.is_empty(), "enabled before the first container: {enabled}");
    let available = read(&Path::new(CGROUPS).join("cgroup.controllers"))?;
    for controller in ["cpu", "cpuset", "io", "memory", "pids"] {
        ensure!(available.split(' ').any(|name| name == controller), "no {controller} in {available}");
    }
    Ok(())
}

fn limits() -> Result<()> {
    let container = Container::new("limits", &["sleep", "1000"])?.resources(json!({
        "memory": {"limit": MEMORY_BYTES, "reservation": MEMORY_BYTES / 4, "swap": MEMORY_BYTES},
        "cpu": {"shares": 1024, "quota": 20_000, "period": 50_000, "cpus": "1"},
        "pids": {"limit": 17},
        "unified": {"memory.high": "33554432", "memory.oom.group": "1", "cpu.weight.nice": "5"},
    }));
    container.start()?;
    container.expect(&[
        ("memory.max", "67108864"),
        ("memory.low", "16777216"),
        ("memory.swap.max", "0"),
        ("memory.high", "33554432"),
        ("memory.oom.group", "1"),
        ("cpu.max", "20000 50000"),
        ("cpu.weight.nice", "5"),
        ("cpuset.cpus", "1"),
        ("cpuset.cpus.effective", "1"),
        ("pids.max", "17"),
    ])?;
    let id = &container.id;
    container.run(&["exec", id, "true"])?;
    ensure!(container.file("cgroup.procs")?.lines().count() == 1, "exec left a process behind");
    container.run(&["update", "--memory", "134217728", "--pids-limit", "30", "--cpu-quota", "40000", id])?;
    container.expect(&[("memory.max", "134217728"), ("pids.max", "30"), ("cpu.max", "40000 50000")])?;
    container.run(&["kill", id, "KILL"])?;
    eventually(20, "stopped", || container.state().and_then(|state| expect_state(&state, "stopped")))?;
    container.run(&["delete", id])?;
    ensure!(!container.cgroup().exists(), "the cgroup is left behind");
    Ok(())
}

fn expect_state(state: &str, expect: &str) -> Result<()> {
    ensure!(state == expect, "the container is {state}, not {expect}");
    Ok(())
}

fn pause_and_kill() -> Result<()> {
    // Its processes share the host's PID namespace: nothing but the cgroup holds them together.
    let mut container = Container::new("pause", &["sh", "-c", "sleep 1000 & sleep 1000 & wait"])?;
    let namespaces = container.config["linux"]["namespaces"].as_array_mut().context("namespaces")?;
    namespaces.retain(|namespace| namespace["type"] != "pid");
    container.start()?;
    let id = &container.id;
    eventually(20, "three processes", || {
        let processes = container.file("cgroup.procs")?;
        ensure!(processes.lines().count() == 3, "{processes}");
        Ok(())
    })?;
    container.run(&["pause", id])?;
    expect_state(&container.state()?, "paused")?;
    ensure!(container.file("cgroup.events")?.contains("frozen 1"), "not frozen");
    let refused = container.try_run(&["exec", id, "true"])?;
    ensure!(refused.0 != 0, "exec into a paused container did not fail");
    container.run(&["resume", id])?;
    ensure!(container.file("cgroup.events")?.contains("frozen 0"), "still frozen");
    container.run(&["pause", id])?;
    container.run(&["delete", "--force", id])?;
    ensure!(!container.cgroup().exists(), "the cgroup of a deleted container is there");
    Ok(())
}

fn out_of_memory() -> Result<()> {
    let container = Container::new("oom", &["dd", "if=/dev/zero", "of=/tmp/x", "bs=64M", "count=1"])?
        .resources(json!({"memory": {"limit": 16 << 20, "swap": 16 << 20}}));
    let (code, _, err) = container.foreground()?;
    ensure!(code == 137, "ended with {code}: {err}");
    ensure!(!container.cgroup().exists(), "the cgroup is left behind");
    Ok(())
}

fn cgroup_namespace() -> Result<()> {
    let script =
        "cat /proc/self/cgroup /sys/fs/cgroup/memory.max; echo 1 > /sys/fs/cgroup/memory.max || echo read-only";
    let mut container =
        Container::new("view", &["sh", "-c", script])?.resources(json!({"memory": {"limit": MEMORY_BYTES}}));
    let namespaces = container.config["linux"]["namespaces"].as_array_mut().context("namespaces")?;
    if !namespaces.iter().any(|namespace| namespace["type"] == "cgroup") {
        namespaces.push(json!({"type": "cgroup"}));
    }
    let mounts = container.config["mounts"].as_array_mut().context("mounts")?;
    mounts.retain(|mount| mount["type"] != "cgroup");
    let options = ["nosuid", "noexec", "nodev", "relatime", "ro"];
    mounts.push(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options}));
    let (code, out, err) = container.foreground()?;
    ensure!(code == 0 && out == format!("0::/\n{MEMORY_BYTES}\nread-only\n"), "{code}: {out}{err}");
    // Without the namespace it finds the host's tree, and its own cgroup where it is told to be.
    let at = "/sys/fs/cgroup/checks/view/memory.max";
    container.config["process"]["args"] = json!(["sh", "-c", script.replace("/sys/fs/cgroup/memory.max", at)]);
    let namespaces = container.config["linux"]["namespaces"].as_array_mut().context("namespaces")?;
    namespaces.retain(|namespace| namespace["type"] != "cgroup");
    let (code, out, err) = container.foreground()?;
    let expect = format!("0::/checks/view\n{MEMORY_BYTES}\nread-only\n");
    ensure!(code == 0 && out == expect, "{code}: {out}{err}");
    Ok(())
}

fn devices() -> Result<()> {
    let (major, minor) = disk()?;
    let mut container = Container::new("devices", &["sleep", "1000"])?.resources(json!({"devices": [
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "b", "major": major, "minor": minor, "access": "r"},
    ]}));
    // The disk may be read only, the machine's memory not at all.
    container.config["linux"]["devices"] = json!([
        {"path": "/dev/disk", "type": "b", "major": major, "minor": minor, "fileMode": 0o666},
        {"path": "/dev/memory", "type": "c", "major": 1, "minor": 1, "fileMode": 0o666},
    ]);
    container.start()?;
    let script = "dd if=/dev/disk of=/dev/null bs=512 count=1 2>/dev/null && echo read; \
                  (: >> /dev/disk) 2>/dev/null || echo not written; \
                  (: < /dev/memory) 2>/dev/null || echo refused";
    let said = container.run(&["exec", &container.id, "sh", "-c", script])?;
    ensure!(said == "read\nnot written\nrefused\n", "{said}");
    Ok(())
}

/// The guest's only disk.
fn disk() -> Result<(i64, i64)> {
    let disks = fs::read_dir("/sys/block")?.flatten();
    let number =
        disks.into_iter().find_map(|disk| read(&disk.path().join("dev")).ok()).context("the guest has no disk")?;
    let (major, minor) = number.split_once(':').context("a device number")?;
    Ok((major.parse()?, minor.parse()?))
}

/// cgroup v2: what hands controllers to children may hold no process of its own, but for the root.
fn busy_parent() -> Result<()> {
    let parent = Path::new(CGROUPS).join("busy");
    fs::create_dir(&parent)?;
    let mut tenant = Command::new("/bin/sleep").arg("1000").spawn()?;
    fs::write(parent.join("cgroup.procs"), tenant.id().to_string())?;
    let mut container = Container::new("tenant", &["true"])?.resources(json!({"memory": {"limit": MEMORY_BYTES}}));
    container.config["linux"]["cgroupsPath"] = json!("/busy/child");
    let (code, _, err) = container.foreground()?;
    tenant.kill()?;
    tenant.wait()?;
    ensure!(code != 0, "the limit was dropped in silence");
    ensure!(err.contains("memory") && err.contains("sit directly in /sys/fs/cgroup/busy;"), "{err}");
    ensure!(read(&parent.join("cgroup.type"))? == "domain", "the parent was made threaded");
    ensure!(!parent.join("child").exists(), "the cgroup of the failed container is left behind");
    // With the tenant gone the same container runs.
    let (code, _, err) = container.foreground()?;
    ensure!(code == 0, "{err}");
    fs::remove_dir(&parent).context("remove the parent")
}

fn threaded_parent() -> Result<()> {
    let parent = Path::new(CGROUPS).join("threads");
    fs::create_dir(&parent)?;
    fs::write(parent.join("cgroup.type"), "threaded")?;
    let mut container = Container::new("thread", &["true"])?;
    container.config["linux"]["cgroupsPath"] = json!("/threads/child");
    let (code, _, err) = container.foreground()?;
    ensure!(code != 0, "a process was put below a threaded cgroup");
    ensure!(err.contains("/threads") && err.contains("threaded"), "{err}");
    fs::remove_dir(&parent).context("remove the parent")
}

fn io_limits() -> Result<()> {
    let (major, minor) = disk()?;
    let device = json!({"major": major, "minor": minor, "rate": 1_048_576});
    let container =
        Container::new("io", &["sleep", "1000"])?.resources(json!({"blockIO": {"throttleReadBpsDevice": [device]}}));
    container.start()?;
    let limits = container.file("io.max")?;
    ensure!(limits == format!("{major}:{minor} rbps=1048576 wbps=max riops=max wiops=max"), "{limits}");
    Ok(())
}

const POD: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "demo"}, "spec": {"containers": [{
    "name": "demo", "image": "demo.sampan.local/demo:1", "imagePullPolicy": "IfNotPresent",
    "resources": {"requests": {"cpu": "50m", "memory": "16Mi"}, "limits": {"cpu": "100m", "memory": "32Mi"}}}]}}"#;

/// A whole node: a pod that answers, the limits of its cgroups at both levels, and nothing left of any of it.
fn whole_node() -> Result<()> {
    let cluster = Cluster::start()?;
    pod_and_its_cgroups(&cluster).with_context(|| format!("the daemon's log ends with\n{}", cluster.log_tail()))?;
    drop(cluster);
    let left = fs::read_dir(CGROUPS)?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let left: Vec<String> = left.filter(|name| name.starts_with("sampan")).collect();
    ensure!(left.is_empty(), "cgroups are left: {left:?}");
    Ok(())
}

fn pod_and_its_cgroups(cluster: &Cluster) -> Result<()> {
    let daemon = cluster.daemon_pid()?;
    let own = read(Path::new(&format!("/proc/{daemon}/cgroup")))?;
    ensure!(own.ends_with("/daemon"), "the daemon sits in {own}");
    cluster.import_demo()?;
    cluster.apply(POD)?;
    let address = cluster.pod_ready("demo")?;
    let page = http_get((address, 8080), "/")?;
    ensure!(page.contains("It floats"), "{page}");
    let pod = cluster.get(&["pod", "demo"])?;
    let uid = pod["metadata"]["uid"].as_str().context("the pod's uid")?;
    let place = find(Path::new(CGROUPS), uid)?.context("no cgroup of the pod")?;
    ensure!(place.to_string_lossy().contains("burstable"), "the class of {}", place.display());
    ensure!(read(&place.join("memory.max"))? == "33554432" && read(&place.join("cpu.max"))? == "10000 100000");
    ensure!(read(&place.join("cgroup.procs"))?.is_empty(), "processes sit in the pod's own cgroup");
    let containers: Vec<PathBuf> = fs::read_dir(&place)?.flatten().map(|entry| entry.path()).collect();
    let is_limited = |place: &PathBuf| {
        read(&place.join("memory.max")).is_ok_and(|limit| limit == "33554432")
            && read(&place.join("cpu.max")).is_ok_and(|limit| limit == "10000 100000")
            && read(&place.join("cgroup.procs")).is_ok_and(|processes| !processes.is_empty())
    };
    ensure!(containers.iter().any(is_limited), "no limits at any of {containers:?}");
    Ok(())
}

/// The highest cgroup whose name holds `part`.
fn find(directory: &Path, part: &str) -> Result<Option<PathBuf>> {
    let mut level = vec![directory.to_owned()];
    while !level.is_empty() {
        let mut next = Vec::new();
        for directory in level {
            let entries = fs::read_dir(&directory)?.flatten();
            next.extend(entries.filter(|entry| entry.path().is_dir()).map(|entry| entry.path()));
        }
        let is_it = |path: &&PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().contains(part));
        if let Some(found) = next.iter().find(is_it) {
            return Ok(Some(found.clone()));
        }
        level = next;
    }
    Ok(None)
}
