//! Counters of requests, in the text format that Prometheus reads. Keeps no label with unbounded values.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::request::RequestInfo;

/// Upper ends of the latency buckets, in seconds.
const BUCKETS: [f64; 8] = [0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0];
/// Distinct label sets; a request beyond that is counted under `other`.
const SERIES_MAX: usize = 2000;

type Labels = (&'static str, String, u16);

#[derive(Debug, Default)]
struct Series {
    count: u64,
    seconds: f64,
    buckets: [u64; BUCKETS.len()],
}

#[derive(Debug, Default)]
pub(crate) struct Metrics {
    requests: Mutex<BTreeMap<Labels, Series>>,
}

impl Metrics {
    pub(crate) fn observe(&self, info: &RequestInfo, code: u16, took: Duration) {
        let resource = match &info.resource {
            Some(path) if control_plane_api::row(&path.group, &path.version, &path.resource).is_some() => {
                path.resource.clone()
            }
            _ => String::new(),
        };
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let mut labels = (info.verb.as_str(), resource, code);
        if requests.len() >= SERIES_MAX && !requests.contains_key(&labels) {
            labels = ("other", String::new(), code);
        }
        let series = requests.entry(labels).or_default();
        series.count += 1;
        let seconds = took.as_secs_f64();
        series.seconds += seconds;
        for (bucket, end) in series.buckets.iter_mut().zip(BUCKETS) {
            *bucket += u64::from(seconds <= end);
        }
    }

    /// The exposition; `gauges` are added as they are.
    pub(crate) fn render(&self, gauges: &[(&str, &str, u64)]) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "# TYPE apiserver_request_total counter");
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        for ((verb, resource, code), series) in requests.iter() {
            let _ = writeln!(
                out,
                "apiserver_request_total{{verb=\"{verb}\",resource=\"{resource}\",code=\"{code}\"}} {}",
                series.count
            );
        }
        let _ = writeln!(out, "# TYPE apiserver_request_duration_seconds histogram");
        for ((verb, resource, code), series) in requests.iter() {
            let labels = format!("verb=\"{verb}\",resource=\"{resource}\",code=\"{code}\"");
            for (bucket, end) in series.buckets.iter().zip(BUCKETS) {
                let _ = writeln!(out, "apiserver_request_duration_seconds_bucket{{{labels},le=\"{end}\"}} {bucket}");
            }
            let name = "apiserver_request_duration_seconds";
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", series.count);
            let _ = writeln!(out, "{name}_sum{{{labels}}} {}", series.seconds);
            let _ = writeln!(out, "{name}_count{{{labels}}} {}", series.count);
        }
        let mut named = "";
        for (name, labels, value) in gauges {
            if *name != named {
                let _ = writeln!(out, "# TYPE {name} gauge");
                named = name;
            }
            let _ = writeln!(out, "{name}{labels} {value}");
        }
        out
    }
}
