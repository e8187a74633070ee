//! A daemon that was killed: how long from the start of the next until it has found every pod again and its node is Ready.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use integration_e2e::cluster::{Cluster, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Settings;
use crate::figure::{Figure, median};
use crate::node::in_cluster;
use crate::pod;

/// How many pods there are when the daemon is killed; more are added each time.
const COUNTS: [usize; 3] = [1, 10, 50];
const KILLS: usize = 5;
/// Until what starting pods left behind is worked off.
const SETTLE: Duration = Duration::from_secs(3);

pub(crate) fn measure(settings: &Settings) -> Result<Vec<Figure>> {
    in_cluster(settings, kill_and_start)
}

fn kill_and_start(_settings: &Settings, cluster: &Cluster) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let mut held = 0;
    for count in COUNTS {
        pod::add(cluster, &format!("of-{count}"), count - held)?;
        held = count;
        std::thread::park_timeout(SETTLE);
        let times = (0..KILLS).map(|_| found_again(cluster, count)).collect::<Result<Vec<f64>>>()?;
        figures
            .push(Figure::new(format!("killed, started, {count} pods found again"), median(&times), "s").at_most(1.0));
    }
    Ok(figures)
}

/// Seconds from the start of `sampan up` to its end, which is when all pods are found and the node is Ready.
fn found_again(cluster: &Cluster, count: usize) -> Result<f64> {
    let pid = cluster.daemon_pid()?;
    kill(Pid::from_raw(pid), Signal::SIGKILL).context("kill the daemon")?;
    eventually(5, "the daemon is gone", || {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        ensure!(state.is_empty() || state.contains(") Z "), "{state}");
        Ok(())
    })?;
    let started = Instant::now();
    let said = cluster.sampan(&["up", "--no-kubeconfig"])?;
    let took = started.elapsed().as_secs_f64();
    let line = said.stderr.lines().find(|line| line.contains("pods found again"));
    let found = line.and_then(|line| line.split_whitespace().last()?.parse::<usize>().ok());
    ensure!(said.code == 0 && found == Some(count), "{count} pods were to be found: {}", said.all());
    Ok(took)
}
