//! /healthz, /livez, /readyz and the metrics.

use http::{Response, StatusCode};

use super::text;
use crate::{body::Body, kernel::Kernel, request::Query, status::Outcome};

/// The checks of an endpoint: name and whether it holds.
async fn checks(kernel: &Kernel, endpoint: &str) -> Vec<(&'static str, Result<(), String>)> {
    let store = kernel.store.revision().await.map(|_| ()).map_err(|error| error.to_string());
    let caught_up = kernel.cache.catch_up().await.map_err(|error| error.to_string());
    let mut checks = vec![("ping", Ok(())), ("store", store), ("watch-cache", caught_up)];
    if endpoint != "livez" {
        let bootstrapped =
            kernel.ready.load(std::sync::atomic::Ordering::Acquire).then_some(()).ok_or("not finished".to_owned());
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

pub(super) fn metrics(kernel: &Kernel) -> String {
    let mut names: Vec<(String, u64)> = kernel
        .cache
        .collections()
        .map(|collection| {
            let row = collection.row();
            let group = if row.group.is_empty() { String::new() } else { format!(".{}", row.group) };
            (format!("{{resource=\"{}{group}\"}}", row.resource), collection.snapshot().len() as u64)
        })
        .collect();
    names.sort();
    let revision = kernel.cache.applied().0;
    let mut gauges: Vec<(&str, &str, u64)> =
        names.iter().map(|(labels, count)| ("apiserver_storage_objects", labels.as_str(), *count)).collect();
    gauges.push(("apiserver_watch_cache_revision", "", revision));
    let (allowed, denied) = kernel.authorizer.counts();
    gauges.push(("authorization_attempts_total", "{result=\"allowed\"}", allowed));
    gauges.push(("authorization_attempts_total", "{result=\"denied\"}", denied));
    kernel.metrics.render(&gauges)
}
