//! `kill -9` of the daemon and of shims: pods do not notice, nothing acknowledged is lost, nothing is left behind.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use integration_e2e::cluster::{Cluster, Said, eventually, http_get, ip};
use integration_e2e::image;
use integration_e2e::registry::Registry;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const DEMO: &str = include_str!("../../demo/demo.yaml");
const IMAGE: &str = "demo.sampan.local/demo:1";
const READ_TIMEOUT: Duration = Duration::from_secs(5);

fn demo() -> Result<Cluster> {
    let cluster = Cluster::start()?;
    cluster.import_demo()?;
    Ok(cluster)
}

fn kill_daemon(cluster: &Cluster) -> Result<()> {
    let pid = cluster.daemon_pid()?;
    kill(Pid::from_raw(pid), Signal::SIGKILL)
        .with_context(|| format!("the daemon had ended by itself; its log ends with\n{}", cluster.log_tail()))?;
    eventually(5, "the daemon is gone", || {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        ensure!(state.is_empty() || state.contains(") Z "), "{state}");
        Ok(())
    })
}

fn up(cluster: &Cluster) -> Result<Said> {
    let said = cluster.sampan(&["up", "--no-kubeconfig"])?;
    ensure!(said.code == 0, "up: {}\n{}", said.all(), cluster.log_tail());
    Ok(said)
}

/// Name, address, container id, restarts and start of every pod: what a restart of the daemon must not change.
fn lives(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let path = "jsonpath={range .items[*]}{.metadata.name} {.status.podIP} {.status.containerStatuses[*].containerID} \
                {.status.containerStatuses[*].restartCount} {.status.containerStatuses[*].state.running.startedAt}{'\\n'}{end}";
    Ok(cluster.kubectl(&["get", "pods", "-o", path])?.lines().map(str::to_owned).collect())
}

/// One connection that echoes lines.
struct Echo {
    reader: BufReader<TcpStream>,
    sent: usize,
}

impl Echo {
    fn open(address: SocketAddr) -> Result<Self> {
        let mut stream = TcpStream::connect_timeout(&address, READ_TIMEOUT)?;
        stream.set_read_timeout(Some(READ_TIMEOUT))?;
        write!(stream, "GET /echo HTTP/1.1\r\nHost: echo\r\n\r\n")?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            ensure!(reader.read_line(&mut line)? > 0, "the connection ended in its head");
        }
        Ok(Self { reader, sent: 0 })
    }

    fn say(&mut self, lines: usize) -> Result<()> {
        for _ in 0..lines {
            self.sent += 1;
            // One write, one packet: pieces would wait for acknowledgements.
            self.reader.get_mut().write_all(format!("line {}\n", self.sent).as_bytes())?;
            let mut line = String::new();
            self.reader.read_line(&mut line)?;
            ensure!(line.ends_with(&format!(" line {}\n", self.sent)), "line {} came back as {line:?}", self.sent);
        }
        Ok(())
    }
}

#[test]
fn pods_do_not_notice_a_killed_daemon() -> Result<()> {
    let cluster = demo()?;
    cluster.apply(DEMO)?;
    cluster.kubectl(&["rollout", "status", "deployment/demo", "--timeout=60s"])?;
    let service = ip(&cluster.kubectl(&["get", "service", "demo", "-o", "jsonpath={.spec.clusterIP}"])?)?;
    eventually(10, "a page from the Service", || http_get((service, 80), "/healthz"))?;
    let before = lives(&cluster)?;
    let mut echo = Echo::open((service, 80).into())?;
    echo.say(100)?;
    for _ in 0..2 {
        kill_daemon(&cluster)?;
        echo.say(100)?;
        http_get((service, 80), "/healthz").context("a new connection while the daemon is dead")?;
        // How long it takes is measured by the benchmark `takeover`.
        let said = up(&cluster)?;
        ensure!(said.all().contains("pods found again"), "{said:?}");
        echo.say(100)?;
        ensure!(lives(&cluster)? == before, "{before:?} became {:?}", lives(&cluster)?);
    }
    // What a late reconciliation would break.
    cluster.kubectl(&["run", "later", "--image", IMAGE, "--image-pull-policy=Never"])?;
    cluster.pod_ready("later")?;
    echo.say(100)?;
    let after = lives(&cluster)?;
    ensure!(before.is_subset(&after), "{before:?} became {after:?}");
    Ok(())
}

#[test]
fn what_ends_while_the_daemon_is_dead_is_told() -> Result<()> {
    let cluster = demo()?;
    cluster.kubectl(&["run", "ends", "--image", IMAGE, "--image-pull-policy=Never", "--restart=Never"])?;
    cluster.pod_ready("ends")?;
    let id = cluster.kubectl(&["get", "pod", "ends", "-o", "jsonpath={.status.containerStatuses[0].containerID}"])?;
    let id = id.rsplit('/').next().unwrap_or_default().to_owned();
    let container = container_pid(&id)?;
    kill_daemon(&cluster)?;
    kill(Pid::from_raw(container), Signal::SIGKILL)?;
    up(&cluster)?;
    eventually(10, "the exit code", || {
        let pod = cluster.get(&["pod", "ends"])?;
        let code = pod.pointer("/status/containerStatuses/0/state/terminated/exitCode");
        ensure!(code.and_then(serde_json::Value::as_i64) == Some(137), "{}", pod["status"]);
        ensure!(pod["status"]["phase"] == "Failed", "{}", pod["status"]);
        Ok(())
    })
}

#[test]
fn a_killed_shim() -> Result<()> {
    let cluster = demo()?;
    cluster.kubectl(&["run", "p", "--image", IMAGE, "--image-pull-policy=Never"])?;
    cluster.pod_ready("p")?;
    let shims = shims(&cluster)?;
    ensure!(shims.len() == 1, "{shims:?}");
    kill(Pid::from_raw(shims[0]), Signal::SIGKILL)?;
    eventually(30, "the pod runs again", || {
        let pod = cluster.get(&["pod", "p"])?;
        let status = &pod["status"]["containerStatuses"][0];
        ensure!(status["restartCount"].as_i64() > Some(0) && status["ready"] == true, "{}", pod["status"]);
        let address = ip(pod["status"]["podIP"].as_str().unwrap_or_default())?;
        http_get((address, 8080), "/healthz")
    })?;
    cluster.kubectl(&["delete", "pod", "p", "--wait=true", "--timeout=40s"])?;
    nothing_of_pods(&cluster)
}

#[test]
fn down_and_up_keeps_the_cluster() -> Result<()> {
    let cluster = demo()?;
    cluster.apply(DEMO)?;
    cluster.kubectl(&["rollout", "status", "deployment/demo", "--timeout=60s"])?;
    let down = cluster.sampan(&["down"])?;
    ensure!(down.code == 0, "{}", down.all());
    up(&cluster)?;
    back(&cluster).context("after down")?;
    // A reboot: no process, no cgroup, no namespace and no run directory is left, the data is.
    kill_daemon(&cluster)?;
    let again = cluster.sampan(&["down"])?;
    ensure!(again.code == 0 && !cluster.root().join("run").exists(), "{}", again.all());
    up(&cluster)?;
    back(&cluster).context("after the reboot")
}

fn back(cluster: &Cluster) -> Result<()> {
    let service = ip(&cluster.kubectl(&["get", "service", "demo", "-o", "jsonpath={.spec.clusterIP}"])?)?;
    eventually(30, "the page again", || http_get((service, 80), "/healthz"))
        .with_context(|| cluster.kubectl(&["describe", "pods"]).unwrap_or_default())?;
    Ok(())
}

#[test]
fn a_hundred_pods_and_random_kills() -> Result<()> {
    let cluster = demo()?;
    let done = std::thread::scope(|scope| -> Result<BTreeSet<String>> {
        let maker = scope.spawn(|| make_and_delete(&cluster));
        let mut seed = std::process::id() | 1;
        while !maker.is_finished() {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            std::thread::park_timeout(Duration::from_millis(u64::from(300 + (seed >> 16) % 1500)));
            kill_daemon(&cluster)?;
            up(&cluster)?;
        }
        maker.join().expect("the maker does not panic")
    })?;
    eventually(60, "what was acknowledged and nothing else", || {
        let path = "jsonpath={range .items[*]}{.metadata.name} {.status.phase}{'\\n'}{end}";
        let said = cluster.kubectl(&["get", "pods", "-o", path])?;
        let found: BTreeSet<String> = said.lines().map(str::to_owned).collect();
        let wanted: BTreeSet<String> = done.iter().map(|name| format!("{name} Running")).collect();
        ensure!(found == wanted, "missing {:?}, too many {:?}", &wanted - &found, &found - &wanted);
        ensure!(shims(&cluster)?.len() == wanted.len(), "{} shims", shims(&cluster)?.len());
        Ok(())
    })?;
    cluster.kubectl(&["delete", "pods", "--all", "--wait=true", "--grace-period=1", "--timeout=60s"])?;
    nothing_of_pods(&cluster)
}

/// Moments at which something is killed, in milliseconds after it began.
const MOMENTS: [u64; 5] = [1, 10, 40, 120, 300];

#[test]
fn killed_while_images_come() -> Result<()> {
    let cluster = Cluster::start()?;
    let registry = Registry::start()?;
    // Large enough that the moments fall into it: two layers of what does not compress.
    let noise: Vec<u8> = (0..6_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect();
    let image =
        image::busybox()?.next_layer().file("/noise", 0o644, noise.clone()).next_layer().file("/more", 0o644, noise);
    let pulled = registry.push(&image, "team/noise:1")?;
    let layout = tempfile::tempdir()?;
    image.build()?.write_layout(layout.path(), "e2e.local/imported:1")?;
    let layout = layout.path().to_string_lossy().into_owned();
    let ways = [["pull", pulled.as_str()], ["import", layout.as_str()]];
    for words in ways {
        for moment in MOMENTS {
            let mut child = cluster.sampan_command(&words).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
            std::thread::park_timeout(Duration::from_millis(moment));
            kill_daemon(&cluster)?;
            // It was quicker, or says that the daemon is gone.
            child.wait()?;
            up(&cluster)?;
        }
        let said = cluster.sampan(&words)?;
        ensure!(said.code == 0, "{words:?}: {}", said.all());
    }
    let sum = "cat /noise /more | wc -c";
    for image in [&pulled, "e2e.local/imported:1"] {
        let said = cluster.sampan(&["run", "--rm", image, "sh", "-c", sum])?;
        ensure!(said.stdout.trim() == (12 << 20).to_string(), "{image}: {said:?}");
    }
    for left in ["partial", "tmp"] {
        let found = below(cluster.root().join("data/images").join(left));
        ensure!(found.is_empty(), "left of killed pulls: {found:?}");
    }
    Ok(())
}

#[test]
fn killed_while_up_and_down() -> Result<()> {
    let cluster = demo()?;
    cluster.apply(DEMO)?;
    cluster.kubectl(&["rollout", "status", "deployment/demo", "--timeout=60s"])?;
    for moment in MOMENTS {
        let mut down = cluster.sampan_command(&["down"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        std::thread::park_timeout(Duration::from_millis(moment));
        // The program itself, not the `timeout` that guards it.
        for pid in children(down.id())? {
            kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        }
        down.wait()?;
        let mut starting = cluster.sampan_command(&["up", "--no-kubeconfig"]);
        let mut starting = starting.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        std::thread::park_timeout(Duration::from_millis(moment));
        let lock = std::fs::read_to_string(cluster.root().join("run/daemon.lock")).unwrap_or_default();
        if let Some(Ok(pid @ 1..)) = lock.lines().next().map(str::parse) {
            // The one that ended before may have written it.
            let _gone_already = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        starting.wait()?;
        let said = up(&cluster)?;
        back(&cluster).with_context(|| {
            format!("killed after {moment} ms; up said {}; the log:\n{}", said.all(), cluster.log_tail())
        })?;
    }
    let down = cluster.sampan(&["down"])?;
    ensure!(down.code == 0 && down.stderr.contains("nothing is left"), "{}", down.all());
    Ok(())
}

fn children(pid: u32) -> Result<Vec<i32>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(|pid| pid.parse().context("a pid")).collect()
}

/// A hundred pods by tens; of each ten eight are deleted again. The names that are to stay.
fn make_and_delete(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let mut kept = BTreeSet::new();
    for ten in 0..10 {
        let names: Vec<String> = (0..10).map(|n| format!("p-{ten}-{n}")).collect();
        let pods: String = names
            .iter()
            .map(|name| {
                format!(
                    "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  \
                     terminationGracePeriodSeconds: 1\n  \
                     containers: [{{name: c, image: '{IMAGE}', imagePullPolicy: Never}}]\n"
                )
            })
            .collect();
        // A person tries again when the server is away; so do scripts.
        eventually(60, "the pods are taken", || cluster.apply(&pods))?;
        let mut delete = vec!["delete", "pod", "--ignore-not-found", "--wait=false"];
        delete.extend(names[..8].iter().map(String::as_str));
        eventually(60, "the pods are deleted", || cluster.kubectl(&delete))?;
        kept.extend(names[8..].iter().cloned());
    }
    Ok(kept)
}

/// The pids of this cluster's shims.
fn shims(cluster: &Cluster) -> Result<Vec<i32>> {
    processes(|line| line.contains("sampan-shim") && line.contains(&*cluster.root().to_string_lossy()))
}

fn processes(is_wanted: impl Fn(&str) -> bool) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if is_wanted(&String::from_utf8_lossy(&line).replace('\0', " ")) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// The first process whose cgroup bears the container's id.
fn container_pid(id: &str) -> Result<i32> {
    for pid in processes(|line| line.contains("demo"))? {
        let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        if cgroup.contains(id) {
            return Ok(pid);
        }
    }
    anyhow::bail!("no process in a cgroup of container {id}")
}

/// No shim, sandbox directory, pin, veth or lease of any pod.
fn nothing_of_pods(cluster: &Cluster) -> Result<()> {
    let run = cluster.root().join("run");
    eventually(20, "nothing is left of the pods", || {
        ensure!(shims(cluster)?.is_empty(), "shims {:?}", shims(cluster)?);
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
        let ours = cluster.root().to_string_lossy().into_owned();
        let left: Vec<&str> = mounts.lines().filter(|line| line.contains(&ours)).collect();
        ensure!(left.is_empty(), "mounts {left:#?}");
        let links = std::fs::read_to_string("/proc/thread-self/net/dev")?;
        ensure!(!links.contains("veth"), "links {links}");
        let pods = listed(run.join("pods"));
        ensure!(pods.is_empty(), "sandboxes {pods:?}");
        let leases: Vec<PathBuf> = below(run.join("leases"))
            .into_iter()
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("10.")))
            .collect();
        ensure!(leases.is_empty(), "leases {leases:?}");
        Ok(())
    })
}

fn listed(directory: PathBuf) -> Vec<PathBuf> {
    std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn below(directory: PathBuf) -> Vec<PathBuf> {
    let (directories, mut files): (Vec<_>, Vec<_>) = listed(directory).into_iter().partition(|path| path.is_dir());
    files.extend(directories.into_iter().flat_map(below));
    files
}
