//! The API server under load: large lists, and writes that are on disk before they are answered.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use integration_e2e::cluster::Cluster;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::json;
use tokio::runtime::Runtime;

use crate::Settings;
use crate::figure::{Figure, median, percentile};
use crate::node::in_cluster;
use crate::process::{cpu, milliseconds};

const OBJECTS: usize = 1000;
const LISTS: usize = 20;
const CLIENTS: usize = 50;
const WRITING: Duration = Duration::from_secs(5);

/// A client, and the runtime that it lives in, on the thread whose network it uses.
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) runtime: Runtime,
}

/// As the administrator of this cluster.
pub(crate) fn session(cluster: &Cluster) -> Result<Session> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start tokio")?;
    let client = runtime.block_on(connect(cluster))?;
    Ok(Session { client, runtime })
}

async fn connect(cluster: &Cluster) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig()).context("read the administrator's kubeconfig")?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Client::try_from(config).context("make a client")
}

fn config_map(name: &str) -> Result<ConfigMap> {
    let document = json!({"metadata": {"name": name, "labels": {"app": "bench"}}, "data": {"value": "x".repeat(200)}});
    serde_json::from_value(document).context("a ConfigMap")
}

pub(crate) fn measure(settings: &Settings) -> Result<Vec<Figure>> {
    in_cluster(settings, list_and_write)
}

fn list_and_write(_settings: &Settings, cluster: &Cluster) -> Result<Vec<Figure>> {
    cluster.kubectl(&["create", "namespace", "list"])?;
    let session = session(cluster)?;
    let daemon = cluster.daemon_pid()?;
    session.runtime.block_on(async {
        let mut figures = list(&session.client, daemon).await?;
        figures.extend(write(cluster).await?);
        Ok(figures)
    })
}

async fn list(client: &Client, daemon: i32) -> Result<Vec<Figure>> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "list");
    let parameters = PostParams::default();
    let results: Vec<Result<()>> = futures::stream::iter(0..OBJECTS)
        .map(|number| {
            let (maps, parameters) = (&maps, &parameters);
            async move {
                maps.create(parameters, &config_map(&format!("map-{number}"))?).await?;
                Ok(())
            }
        })
        .buffer_unordered(CLIENTS)
        .collect()
        .await;
    results.into_iter().collect::<Result<()>>().context("create objects to list")?;
    let (mut times, mut work, mut bytes) = (Vec::new(), Vec::new(), 0);
    for _ in 0..LISTS {
        let request =
            http::Request::get("/api/v1/namespaces/list/configmaps?labelSelector=app%3Dbench").body(Vec::new())?;
        let (started, before) = (Instant::now(), cpu(daemon)?);
        bytes = client.request_text(request).await.context("list")?.len();
        times.push(milliseconds(started.elapsed()));
        work.push(milliseconds(cpu(daemon)?.saturating_sub(before)));
    }
    ensure!(bytes > OBJECTS * 300, "{OBJECTS} objects were listed in {bytes} bytes");
    Ok(vec![
        Figure::new(format!("LIST of {OBJECTS} objects ({} kB)", bytes / 1000), median(&times), "ms"),
        Figure::new(format!("LIST of {OBJECTS} objects, server's CPU"), median(&work), "ms"),
    ])
}

/// Each client has its own connection and waits for each answer.
async fn write(cluster: &Cluster) -> Result<Vec<Figure>> {
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(connect(cluster).await?);
    }
    let started = Instant::now();
    let writers = clients.into_iter().enumerate().map(|(number, client)| writer(client, number, started));
    let latencies: Vec<f64> = futures::future::try_join_all(writers).await?.concat();
    let elapsed = started.elapsed().as_secs_f64();
    let count = f64::from(u32::try_from(latencies.len()).context("more writes than a u32 counts")?);
    Ok(vec![
        Figure::new(format!("durable writes, {CLIENTS} clients"), count / elapsed, "writes/s"),
        Figure::new(format!("a durable write, {CLIENTS} clients, p50"), median(&latencies), "ms"),
        Figure::new(format!("a durable write, {CLIENTS} clients, p99"), percentile(&latencies, 99), "ms"),
    ])
}

async fn writer(client: Client, number: usize, started: Instant) -> Result<Vec<f64>> {
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    let mut latencies = Vec::new();
    while started.elapsed() < WRITING {
        let map = config_map(&format!("write-{number}-{}", latencies.len()))?;
        let started = Instant::now();
        maps.create(&PostParams::default(), &map).await.context("write")?;
        latencies.push(milliseconds(started.elapsed()));
    }
    Ok(latencies)
}
