//! Pods of a cached image: how soon one runs, how many start at once, what fifty of them cost.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use integration_e2e::cluster::Cluster;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, PostParams, WatchEvent, WatchParams};
use serde_json::json;

use crate::Settings;
use crate::api::{Session, session};
use crate::figure::{Figure, median, percentile};
use crate::node::{cpu_percent, in_cluster};
use crate::process::{find, memory, milliseconds};

const IMAGE: &str = "demo.sampan.local/demo:1";
const ONE_BY_ONE: usize = 100;
/// Before the first that counts: code and caches are warm, as in a cluster that has run a pod.
const WARM_UP: usize = 3;
const AT_ONCE: usize = 40;
const HELD: usize = 50;
/// No pod takes longer; one that does is stuck.
const STUCK: Duration = Duration::from_secs(120);
/// Until what starting pods left behind is worked off.
const SETTLE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_secs(20);

fn pod(name: &str) -> Result<Pod> {
    let document = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            // Not 0, which takes the object away before its processes: the demo ends at once when it is told to.
            "terminationGracePeriodSeconds": 10, "automountServiceAccountToken": false,
            "containers": [{"name": "demo", "image": IMAGE, "imagePullPolicy": "IfNotPresent"}],
        },
    });
    serde_json::from_value(document).context("a pod")
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number}")).collect()
}

fn is_running(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// A watch on all pods of the default namespace.
struct Watch {
    events: futures::stream::BoxStream<'static, kube::Result<WatchEvent<Pod>>>,
}

impl Watch {
    async fn open(pods: &Api<Pod>) -> Result<Self> {
        let list = pods.list(&kube::api::ListParams::default()).await?;
        let version = list.metadata.resource_version.context("a list without a resource version")?;
        Ok(Self { events: pods.watch(&WatchParams::default().timeout(290), &version).await?.boxed() })
    }

    /// Until `is_it` held once for a pod of each name.
    async fn wait(&mut self, names: &[String], is_it: impl Fn(&WatchEvent<Pod>) -> bool) -> Result<()> {
        let mut missing: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        let seen = async {
            while !missing.is_empty() {
                let event = self.events.try_next().await?.context("the watch ended")?;
                if let WatchEvent::Error(status) = &event {
                    anyhow::bail!("the watch ended: {status:?}");
                }
                if is_it(&event)
                    && let WatchEvent::Added(pod) | WatchEvent::Modified(pod) | WatchEvent::Deleted(pod) = &event
                {
                    missing.remove(pod.metadata.name.as_deref().unwrap_or_default());
                }
            }
            Ok(())
        };
        let ended = tokio::time::timeout(STUCK, seen).await;
        ended.unwrap_or_else(|_| Err(anyhow::anyhow!("pods are stuck after {} s: {missing:?}", STUCK.as_secs())))
    }

    async fn wait_until(&mut self, names: &[String], is_it: impl Fn(&Pod) -> bool) -> Result<()> {
        self.wait(names, |event| matches!(event, WatchEvent::Added(pod) | WatchEvent::Modified(pod) if is_it(pod)))
            .await
    }

    async fn wait_until_gone(&mut self, names: &[String]) -> Result<()> {
        self.wait(names, |event| matches!(event, WatchEvent::Deleted(_))).await
    }
}

async fn create(pods: &Api<Pod>, names: &[String]) -> Result<()> {
    let parameters = &PostParams::default();
    let creations = names.iter().map(|name| async move {
        pods.create(parameters, &pod(name)?).await.map(drop).with_context(|| format!("create pod {name}"))
    });
    futures::future::try_join_all(creations).await.map(drop)
}

async fn delete(pods: &Api<Pod>, names: &[String]) -> Result<()> {
    let parameters = DeleteParams::default();
    let deletions = names.iter().map(|name| pods.delete(name, &parameters));
    futures::future::try_join_all(deletions).await.map(drop).context("delete pods")
}

fn connect(cluster: &Cluster) -> Result<(Session, Api<Pod>)> {
    let session = session(cluster)?;
    let pods = Api::default_namespaced(session.client.clone());
    Ok((session, pods))
}

pub(crate) fn one_by_one(settings: &Settings) -> Result<Vec<Figure>> {
    in_cluster(settings, start_one_by_one)
}

fn start_one_by_one(_settings: &Settings, cluster: &Cluster) -> Result<Vec<Figure>> {
    let (session, pods) = connect(cluster)?;
    let (mut running, mut gone) = (Vec::new(), Vec::new());
    session.runtime.block_on(async {
        let mut watch = Watch::open(&pods).await?;
        for (index, name) in names("single", WARM_UP + ONE_BY_ONE).chunks(1).enumerate() {
            let started = Instant::now();
            create(&pods, name).await?;
            watch.wait_until(name, is_running).await?;
            let until_running = milliseconds(started.elapsed());
            let started = Instant::now();
            delete(&pods, name).await?;
            watch.wait_until_gone(name).await?;
            if index >= WARM_UP {
                running.push(until_running);
                gone.push(milliseconds(started.elapsed()));
            }
        }
        anyhow::Ok(())
    })?;
    Ok(vec![
        Figure::new("pod create to Running, p50", median(&running), "ms").at_most(150.0),
        Figure::new("pod create to Running, p99", percentile(&running, 99), "ms"),
        Figure::new("pod delete to gone, p50", median(&gone), "ms"),
    ])
}

pub(crate) fn at_once(settings: &Settings) -> Result<Vec<Figure>> {
    in_cluster(settings, start_at_once)
}

fn start_at_once(_settings: &Settings, cluster: &Cluster) -> Result<Vec<Figure>> {
    let (session, pods) = connect(cluster)?;
    let names = names("burst", AT_ONCE);
    let (up, down) = session.runtime.block_on(async {
        let mut watch = Watch::open(&pods).await?;
        let started = Instant::now();
        create(&pods, &names).await?;
        watch.wait_until(&names, is_ready).await?;
        let up = started.elapsed();
        let started = Instant::now();
        delete(&pods, &names).await?;
        watch.wait_until_gone(&names).await?;
        anyhow::Ok((up, started.elapsed()))
    })?;
    let rate = |time: Duration| f64::from(u32::try_from(AT_ONCE).unwrap_or(0)) / time.as_secs_f64();
    Ok(vec![
        Figure::new(format!("{AT_ONCE} pods at once until all Ready"), rate(up), "pods/s"),
        Figure::new(format!("{AT_ONCE} pods deleted at once until all gone"), rate(down), "pods/s"),
    ])
}

/// Starts pods that stay, ten at a time.
pub(crate) fn add(cluster: &Cluster, prefix: &str, count: usize) -> Result<()> {
    let (session, pods) = connect(cluster)?;
    session.runtime.block_on(hold(&pods, &names(prefix, count)))
}

async fn hold(pods: &Api<Pod>, names: &[String]) -> Result<()> {
    let mut watch = Watch::open(pods).await?;
    for some in names.chunks(10) {
        create(pods, some).await?;
        watch.wait_until(some, is_ready).await?;
    }
    Ok(())
}

pub(crate) fn memory_of_many(settings: &Settings) -> Result<Vec<Figure>> {
    in_cluster(settings, hold_many)
}

fn hold_many(settings: &Settings, cluster: &Cluster) -> Result<Vec<Figure>> {
    let (session, pods) = connect(cluster)?;
    let daemon = cluster.daemon_pid()?;
    let names = names("held", HELD);
    session.runtime.block_on(async {
        // One pod first: what the daemon loads once is not a cost of each pod.
        let mut watch = Watch::open(&pods).await?;
        create(&pods, &["first".to_owned()]).await?;
        watch.wait_until(&["first".to_owned()], is_ready).await
    })?;
    std::thread::park_timeout(SETTLE);
    let before = memory(daemon)?;
    session.runtime.block_on(hold(&pods, &names))?;
    std::thread::park_timeout(SETTLE);
    let after = memory(daemon)?;
    let shims = find(&settings.dist.join("sampan-shim"), cluster.root())?;
    ensure!(shims.len() == HELD + 1, "{} shims for {} pods", shims.len(), HELD + 1);
    let (mut proportional, mut private) = (Vec::new(), Vec::new());
    for shim in &shims {
        let memory = memory(*shim)?;
        proportional.push(memory.proportional);
        private.push(memory.private);
    }
    let count = f64::from(u32::try_from(HELD).unwrap_or(1));
    let growth = (after.proportional - before.proportional).max(0.0) / count;
    let all: Vec<i32> = shims.iter().copied().chain([daemon]).collect();
    let percent = cpu_percent(&all, LOOK)?;
    Ok(vec![
        Figure::new(format!("memory per pod at {HELD} pods"), median(&proportional) + growth, "MB").at_most(1.5),
        Figure::new("of it: shim (PSS)", median(&proportional), "MB"),
        Figure::new("of it: the daemon's growth", growth, "MB"),
        Figure::new("shim, private pages alone", median(&private), "MB"),
        Figure::new(format!("daemon (PSS) at {HELD} pods"), after.proportional, "MB"),
        Figure::new(format!("idle CPU over {} s, {HELD} pods", LOOK.as_secs()), percent, "% of a core"),
    ])
}
