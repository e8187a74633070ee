//! A pod's address is leased as long as the pod is there and no longer: also when the daemon is killed between two steps, and when
//! the machine goes down under it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use integration_e2e::cluster::{Cluster, eventually, http_get, ip};
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const EVENTUALLY_SECONDS: u64 = 45;
const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: many}
spec:
  replicas: 3
  selector: {matchLabels: {app: many}}
  template:
    metadata: {labels: {app: many}}
    spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: 'e2e.local/tools:1'}]}
";

/// Addresses in the records on disk.
fn leased(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for network in fs::read_dir(cluster.root().join("run/leases")).context("the directory of leases")? {
        let names = fs::read_dir(network?.path())?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        // Each lease is a file with the address' name.
        found.extend(names.filter(|name| name.parse::<std::net::IpAddr>().is_ok()));
    }
    Ok(found)
}

/// `count` pods are Ready and answer, and exactly theirs are the addresses leased.
fn settled(cluster: &Cluster, count: usize) -> Result<()> {
    eventually(EVENTUALLY_SECONDS, &format!("{count} pods with addresses of their own"), || {
        let pods = cluster.get(&["pods"])?;
        let pods = pods["items"].as_array().context("a list")?;
        let is_ready = |pod: &Value| {
            let conditions = pod["status"]["conditions"].as_array();
            conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
        };
        ensure!(pods.len() == count && pods.iter().all(is_ready), "{} pods", pods.len());
        let addresses: BTreeSet<String> =
            pods.iter().filter_map(|pod| pod["status"]["podIP"].as_str().map(str::to_owned)).collect();
        ensure!(addresses.len() == count, "{addresses:?}");
        let leased = leased(cluster)?;
        ensure!(leased == addresses, "leased are {leased:?}, pods have {addresses:?}");
        for address in &addresses {
            http_get((ip(address)?, 8080), "/healthz")?;
        }
        Ok(())
    })
}

fn kill_and_wait(pid: i32) -> Result<()> {
    let _ended_already = kill(Pid::from_raw(pid), Signal::SIGKILL);
    eventually(10, &format!("process {pid} is gone"), || {
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        ensure!(state.is_empty() || state.contains(") Z "), "{state}");
        Ok(())
    })
}

#[test]
fn addresses_are_given_back() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import_tools()?;
    cluster.apply(DEPLOYMENT)?;
    settled(&cluster, 3)?;

    // Killed while pods come and while they go.
    for (replicas, killed_at) in [("8", 5), ("1", 2), ("6", 4), ("0", 3)] {
        cluster.kubectl(&["scale", "deployment", "many", &format!("--replicas={replicas}")])?;
        // Somewhere on the way, told by the leases themselves: no time has a meaning here.
        eventually(EVENTUALLY_SECONDS, "the way is half gone", || {
            let count = leased(&cluster)?.len();
            let is_growing = replicas != "0" && replicas != "1";
            ensure!(if is_growing { count >= killed_at } else { count <= killed_at + 3 }, "{count} leases");
            Ok(())
        })?;
        kill_and_wait(cluster.daemon_pid()?)?;
        cluster.up()?;
        settled(&cluster, replicas.parse()?)?;
    }
    cluster.kubectl(&["scale", "deployment", "many", "--replicas=2"])?;
    settled(&cluster, 2)?;

    power_off(&cluster).context("power off")?;
    cluster.up()?;
    settled(&cluster, 2)?;
    cluster.kubectl(&["delete", "deployment", "many"])?;
    settled(&cluster, 0)
}

/// What a power failure leaves: what is in memory is gone, processes, mounts, links and `/run` alike.
fn power_off(cluster: &Cluster) -> Result<()> {
    let record: Value = serde_json::from_slice(&fs::read(cluster.root().join("config/instance.json"))?)?;
    let name = record["name"].as_str().context("the instance's name")?;
    kill_and_wait(cluster.daemon_pid()?)?;
    let hierarchies = fs::read_dir("/sys/fs/cgroup")?.flatten().map(|entry| entry.path().join(name));
    let mut pids = BTreeSet::new();
    for cgroup in hierarchies.chain([Path::new("/sys/fs/cgroup").join(name)]).filter(|path| path.is_dir()) {
        processes(&cgroup, &mut pids)?;
    }
    ensure!(!pids.is_empty(), "no process of a pod in any cgroup called {name}");
    pids.into_iter().try_for_each(kill_and_wait)?;
    let root = cluster.root().to_string_lossy().into_owned();
    // This thread has a mount namespace of its own.
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|point| point.starts_with(&root));
    let points: Vec<PathBuf> = points.map(PathBuf::from).collect();
    for point in points.iter().rev() {
        umount2(point, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", point.display()))?;
    }
    fs::remove_dir_all(cluster.root().join("run"))?;
    unshare(CloneFlags::CLONE_NEWNET).context("a network without links")
}

fn processes(cgroup: &Path, found: &mut BTreeSet<i32>) -> Result<()> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs"))?;
    found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    for entry in fs::read_dir(cgroup)?.flatten().filter(|entry| entry.path().is_dir()) {
        processes(&entry.path(), found)?;
    }
    Ok(())
}
