//! /healthz, /livez, /readyz and the metrics.

use std::sync::atomic::Ordering;

use http::{Response, StatusCode};
use tokio::time::Instant;

use super::text;
use crate::{body::Body, inflight::Kind, kernel::Kernel, metrics::Family, request::Query, status::Outcome};

/// The checks of an endpoint: name and whether it holds.
async fn checks(kernel: &Kernel, endpoint: &str) -> Vec<(&'static str, Result<(), String>)> {
    let newest = kernel.store.revision().await.map_err(|error| error.to_string());
    let moves = newest.as_ref().ok().map_or(Ok(()), |newest| kernel.cache.is_moving(*newest, Instant::now()));
    let mut checks = vec![("ping", Ok(())), ("store", newest.map(|_| ())), ("watch-cache", moves)];
    if endpoint != "livez" {
        let bootstrapped = kernel.ready.load(Ordering::Acquire).then_some(()).ok_or("not finished".to_owned());
        checks.push(("bootstrap", bootstrapped));
    }
    if endpoint == "readyz" {
        let ending = kernel.shutdown.is_cancelled();
        checks.push(("shutdown", if ending { Err("process is shutting down".to_owned()) } else { Ok(()) }));
    }
    checks
}

pub(super) async fn serve(kernel: &Kernel, endpoint: &str, only: &str, query: &Query) -> Outcome<Response<Body>> {
    let excluded: Vec<&str> = query.all("exclude").collect();
    let mut checks = checks(kernel, endpoint).await;
    if !only.is_empty() {
        checks.retain(|(name, _)| *name == only);
        if checks.is_empty() {
            return Err(control_plane_api::Status::no_such_path().into());
        }
    }
    let failed = checks.iter().any(|(name, outcome)| outcome.is_err() && !excluded.contains(name));
    let code = if failed { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
    if !failed && !query.flag("verbose") {
        return Ok(text(code, "ok".to_owned()));
    }
    let mut out = String::new();
    for (name, outcome) in &checks {
        match outcome {
            _ if excluded.contains(name) => out.push_str(&format!("[+]{name} excluded: ok\n")),
            Ok(()) => out.push_str(&format!("[+]{name} ok\n")),
            Err(why) => out.push_str(&format!("[-]{name} failed: {why}\n")),
        }
    }
    out.push_str(&format!("{endpoint} check {}\n", if failed { "failed" } else { "passed" }));
    Ok(text(code, out))
}

fn label(name: &str, value: &str) -> String {
    format!("{{{name}=\"{value}\"}}")
}

fn family(name: &'static str, kind: &'static str, help: &'static str, values: Vec<(String, u64)>) -> Family {
    Family { name, kind, help, values }
}

pub(super) fn metrics(kernel: &Kernel) -> String {
    let mut families = of_requests(kernel);
    families.extend(of_objects(kernel));
    families.extend(of_process());
    kernel.metrics.render(&families)
}

fn of_requests(kernel: &Kernel) -> Vec<Family> {
    let (allowed, denied) = kernel.authorizer.counts();
    let kinds = [Kind::LongRunning, Kind::Mutating, Kind::ReadOnly];
    let bounded = kinds.into_iter().filter(|kind| *kind != Kind::LongRunning);
    let inflight =
        bounded.clone().map(|kind| (label("request_kind", kind.as_str()), kernel.inflight.of(kind).0 as u64));
    let dropped = bounded.map(|kind| (label("request_kind", kind.as_str()), kernel.inflight.of(kind).1));
    let panics = kernel.walls.counts().into_iter().map(|(part, count)| (label("part", part), count)).collect();
    let open = kernel.connections.counts();
    vec![
        family(
            "apiserver_current_inflight_requests",
            "gauge",
            "Requests that are being answered, by kind.",
            inflight.collect(),
        ),
        family("apiserver_dropped_requests_total", "counter", "Requests that were turned away.", dropped.collect()),
        family(
            "authorization_attempts_total",
            "counter",
            "Counter of authorization attempts by result.",
            vec![(label("result", "allowed"), allowed), (label("result", "denied"), denied)],
        ),
        family("apiserver_panics_total", "counter", "Panics that were caught, by part.", panics),
        family(
            "apiserver_connections",
            "gauge",
            "Open connections, by whether somebody has proven who he is on them.",
            vec![(label("known", "true"), open.known as u64), (label("known", "false"), open.strangers as u64)],
        ),
        family(
            "apiserver_connections_ended_total",
            "counter",
            "Connections that were ended for want of room.",
            vec![(label("reason", "shed"), open.shed), (label("reason", "refused"), open.refused)],
        ),
    ]
}

fn of_objects(kernel: &Kernel) -> Vec<Family> {
    let (mut objects, mut watchers) = (Vec::new(), Vec::new());
    for collection in kernel.cache.collections() {
        let row = collection.row();
        let group = if row.group.is_empty() { String::new() } else { format!(".{}", row.group) };
        objects.push((label("resource", &format!("{}{group}", row.resource)), collection.snapshot().len() as u64));
        let labels = format!("{{group=\"{}\",kind=\"{}\",version=\"{}\"}}", row.group, row.kind, row.version);
        watchers.push((labels, collection.watchers() as u64));
    }
    objects.sort();
    watchers.sort();
    let file = |suffix: &str| {
        let mut path = kernel.config.store.clone().into_os_string();
        path.push(suffix);
        std::fs::metadata(path).map_or(0, |metadata| metadata.len())
    };
    let size = file("").saturating_add(file("-wal"));
    let one = |value: u64| vec![(String::new(), value)];
    vec![
        family("apiserver_storage_objects", "gauge", "Stored objects, by resource.", objects),
        family("apiserver_registered_watchers", "gauge", "Watches that run, by kind.", watchers),
        family(
            "apiserver_storage_size_bytes",
            "gauge",
            "Size of the store's files.",
            vec![(label("storage_cluster_id", "sqlite"), size)],
        ),
        family(
            "apiserver_watch_cache_revision",
            "gauge",
            "The cache holds all up to here.",
            one(kernel.cache.applied().0),
        ),
        family(
            "apiserver_watch_queue_bytes",
            "gauge",
            "Bytes of events that wait for slow watchers.",
            one(kernel.cache.queued_bytes() as u64),
        ),
    ]
}

/// The process that the server runs in, from /proc/self.
fn of_process() -> Vec<Family> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).map(|rest| rest.trim_end_matches("kB"));
    let resident = kibibytes.and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0).saturating_mul(1024);
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64);
    let one = |value: u64| vec![(String::new(), value)];
    let build = format!("{{git_version=\"{}\",major=\"1\",minor=\"36\"}}", control_plane_api::KUBERNETES_VERSION);
    vec![
        family("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", one(resident)),
        family("process_open_fds", "gauge", "Number of open file descriptors.", one(open)),
        family("kubernetes_build_info", "gauge", "The version that clients are told.", vec![(build, 1)]),
    ]
}
