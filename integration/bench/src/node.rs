//! A node without pods: how long until it is Ready, and what it costs to have it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use integration_e2e::cluster::Cluster;

use crate::figure::{Figure, median};
use crate::process::{cpu, memory, milliseconds};
use crate::{Settings, tell};

/// Nodes brought up from nothing.
const STARTS: usize = 5;
/// What a daemon does right after it is Ready belongs to its start.
const SETTLE: Duration = Duration::from_secs(5);

pub(crate) fn ready(settings: &Settings) -> Result<Vec<Figure>> {
    let (mut first, mut again) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        // Each start needs namespaces that nothing was in, so a thread of its own.
        let times = std::thread::scope(|scope| scope.spawn(|| start_twice(settings)).join());
        let (from_nothing, with_data) = times.map_err(|_| anyhow::anyhow!("a start panicked; see above"))??;
        first.push(from_nothing);
        again.push(with_data);
    }
    Ok(vec![
        Figure::new("up to Ready, from nothing", median(&first), "s").at_most(2.0),
        Figure::new("up to Ready, with its data", median(&again), "s"),
    ])
}

fn start_twice(settings: &Settings) -> Result<(f64, f64)> {
    let cluster = prepare(settings)?;
    let first = timed(&cluster, &["up", "--no-kubeconfig", "--node-name", "node-1"])?;
    timed(&cluster, &["down"])?;
    let again = timed(&cluster, &["up", "--no-kubeconfig", "--node-name", "node-1"])?;
    Ok((first, again))
}

fn timed(cluster: &Cluster, words: &[&str]) -> Result<f64> {
    let started = Instant::now();
    let said = cluster.sampan(words)?;
    ensure!(said.code == 0, "sampan {} ended with {}: {}", words.join(" "), said.code, said.all());
    Ok(started.elapsed().as_secs_f64())
}

/// The namespaces and directories of a cluster; this thread lives in them from now on.
fn prepare(settings: &Settings) -> Result<Cluster> {
    let cluster = Cluster::prepare()?;
    ensure!(
        cluster.dist() == settings.dist,
        "the cluster would be of {}: give --dist by the environment, SAMPAN_DIST={}",
        cluster.dist().display(),
        settings.dist.display()
    );
    Ok(cluster)
}

/// Measures in a Ready cluster with the demo image, which is gone afterwards.
pub(crate) fn in_cluster(
    settings: &Settings,
    measure: fn(&Settings, &Cluster) -> Result<Vec<Figure>>,
) -> Result<Vec<Figure>> {
    let cluster = prepare(settings)?;
    timed(&cluster, &["up", "--no-kubeconfig", "--node-name", "node-1"])?;
    cluster.import_demo()?;
    // Said before the cluster goes: it complains by panic, which would hide this.
    measure(settings, &cluster).inspect_err(|error| tell(&format!("failed: {error:#}\n{}", cluster.log_tail())))
}

pub(crate) fn idle(settings: &Settings) -> Result<Vec<Figure>> {
    in_cluster(settings, look_at_idle)
}

fn look_at_idle(settings: &Settings, cluster: &Cluster) -> Result<Vec<Figure>> {
    let daemon = cluster.daemon_pid()?;
    std::thread::park_timeout(SETTLE);
    let percent = cpu_percent(&[daemon], Duration::from_secs(settings.idle_seconds))?;
    let memory = memory(daemon)?;
    Ok(vec![
        Figure::new("idle memory (PSS), no pods", memory.proportional, "MB").at_most(80.0),
        Figure::new(format!("idle CPU over {} s, no pods", settings.idle_seconds), percent, "% of a core"),
    ])
}

/// How much of one processor these processes use.
pub(crate) fn cpu_percent(pids: &[i32], time: Duration) -> Result<f64> {
    let all = || pids.iter().map(|pid| cpu(*pid)).sum::<Result<Duration>>();
    let (before, started) = (all()?, Instant::now());
    while started.elapsed() < time {
        std::thread::park_timeout(time.saturating_sub(started.elapsed()));
    }
    let used = all()?.saturating_sub(before);
    Ok(milliseconds(used) / milliseconds(started.elapsed()) * 100.0)
}
