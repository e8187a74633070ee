//! Counters of requests, in the text format that Prometheus reads, under upstream's names. Keeps no label with unbounded values.

use std::{
    collections::BTreeMap,
    fmt::{self, Display, Write as _},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use control_plane_api::{Row, row};

use crate::{
    authn::User,
    request::{RequestInfo, Verb},
};

/// Upper ends of the latency buckets, in seconds; a part of upstream's.
const BUCKETS: [f64; 13] = [0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0, 5.0, 10.0, 30.0];
/// Distinct label sets; a request beyond that is counted under `other`.
const SERIES_MAX: usize = 2000;

/// What a request is counted by. Everything in it comes from this program, never from the caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Labels {
    verb: &'static str,
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    subresource: &'static str,
    scope: &'static str,
}

impl Labels {
    fn of(info: &RequestInfo) -> Self {
        let verb = verb(info);
        let found =
            info.resource.as_ref().and_then(|path| Some((path, row(&path.group, &path.version, &path.resource)?)));
        let Some((path, row)) = found else { return Self { verb, ..Self::default() } };
        let subresource = row.subresource(&path.subresource).map_or("", |sub| sub.name);
        let scope = match (path.name.is_empty(), path.namespace.is_empty()) {
            (false, _) => "resource",
            (true, false) => "namespace",
            (true, true) => "cluster",
        };
        let Row { group, version, resource, .. } = row;
        Self { verb, group, version, resource, subresource, scope }
    }
}

/// The verb as upstream's metrics write it.
fn verb(info: &RequestInfo) -> &'static str {
    let connects = info
        .resource
        .as_ref()
        .is_some_and(|path| matches!(path.subresource.as_str(), "exec" | "attach" | "portforward" | "proxy" | "log"));
    match info.verb {
        _ if connects => "CONNECT",
        Verb::Get | Verb::Head => "GET",
        Verb::List => "LIST",
        Verb::Watch => "WATCH",
        Verb::Create | Verb::Post => "POST",
        Verb::Update | Verb::Put => "PUT",
        Verb::Patch => "PATCH",
        Verb::Delete => "DELETE",
        Verb::DeleteCollection => "DELETECOLLECTION",
        Verb::Options => "OPTIONS",
        Verb::Other => "other",
    }
}

impl Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verb, group, version, resource, subresource, scope } = self;
        write!(
            f,
            "component=\"apiserver\",group=\"{group}\",resource=\"{resource}\",scope=\"{scope}\",subresource=\"{subresource}\",verb=\"{verb}\",version=\"{version}\""
        )
    }
}

#[derive(Debug, Default)]
struct Series {
    count: u64,
    seconds: f64,
    buckets: [u64; BUCKETS.len()],
    codes: BTreeMap<u16, u64>,
}

/// How often callers proved who they are.
#[derive(Debug, Default)]
struct Authentications {
    success: AtomicU64,
    failure: AtomicU64,
    anonymous: AtomicU64,
}

#[derive(Debug, Default)]
pub(crate) struct Metrics {
    requests: Mutex<BTreeMap<Labels, Series>>,
    authentications: Authentications,
}

/// A family whose values are read when it is asked for.
#[derive(Debug)]
pub(crate) struct Family {
    pub(crate) name: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) help: &'static str,
    /// Labels, with their braces or empty, and the value.
    pub(crate) values: Vec<(String, u64)>,
}

impl Metrics {
    pub(crate) fn observe(&self, info: &RequestInfo, code: u16, took: Duration) {
        let mut labels = Labels::of(info);
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        if requests.len() >= SERIES_MAX && !requests.contains_key(&labels) {
            labels = Labels { verb: "other", ..Labels::default() };
        }
        let series = requests.entry(labels).or_default();
        series.count = series.count.saturating_add(1);
        let by_code = series.codes.entry(code).or_default();
        *by_code = by_code.saturating_add(1);
        // How long a watch lasts says nothing about the server.
        if labels.verb == "WATCH" || labels.verb == "CONNECT" {
            return;
        }
        let seconds = took.as_secs_f64();
        series.seconds += seconds;
        for (bucket, end) in series.buckets.iter_mut().zip(BUCKETS) {
            *bucket = bucket.saturating_add(u64::from(seconds <= end));
        }
    }

    /// Whether a caller proved who he is; `None` when what he brought was refused.
    pub(crate) fn authenticated(&self, user: Option<&User>) {
        let counter = match user {
            None => &self.authentications.failure,
            Some(user) if user.is_anonymous() => &self.authentications.anonymous,
            Some(_) => &self.authentications.success,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// The exposition; the families are added as they are.
    pub(crate) fn render(&self, families: &[Family]) -> String {
        let mut out = String::new();
        self.render_requests(&mut out);
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Authentications { success, failure, anonymous } = &self.authentications;
        let attempts = Family {
            name: "authentication_attempts",
            kind: "counter",
            help: "Counter of authenticated attempts.",
            values: vec![
                ("{result=\"success\"}".into(), of(success)),
                ("{result=\"failure\"}".into(), of(failure)),
                ("{result=\"anonymous\"}".into(), of(anonymous)),
            ],
        };
        for family in std::iter::once(&attempts).chain(families) {
            let Family { name, kind, help, values } = family;
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in values {
                let _ = writeln!(out, "{name}{labels} {value}");
            }
        }
        out
    }

    fn render_requests(&self, out: &mut String) {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let name = "apiserver_request_total";
        let _ = writeln!(out, "# HELP {name} Counter of requests by verb, resource and code.\n# TYPE {name} counter");
        for (labels, series) in requests.iter() {
            for (code, count) in &series.codes {
                let _ = writeln!(out, "{name}{{code=\"{code}\",dry_run=\"\",{labels}}} {count}");
            }
        }
        let name = "apiserver_request_duration_seconds";
        let _ =
            writeln!(out, "# HELP {name} Response latency in seconds by verb and resource.\n# TYPE {name} histogram");
        let timed = |labels: &Labels| labels.verb != "WATCH" && labels.verb != "CONNECT";
        for (labels, series) in requests.iter().filter(|(labels, _)| timed(labels)) {
            for (bucket, end) in series.buckets.iter().zip(BUCKETS) {
                let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{end}\"}} {bucket}");
            }
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", series.count);
            let _ = writeln!(out, "{name}_sum{{{labels}}} {}", series.seconds);
            let _ = writeln!(out, "{name}_count{{{labels}}} {}", series.count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Query;

    #[test]
    fn nothing_that_a_caller_chose_becomes_a_label() {
        let metrics = Metrics::default();
        let check = |method: &str, uri: &str, expect: &str| {
            let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
            let method = http::Method::from_bytes(method.as_bytes()).unwrap();
            let info = RequestInfo::parse(&method, path, &Query::parse(query));
            metrics.observe(&info, 200, Duration::from_millis(30));
            assert_eq!(Labels::of(&info).to_string(), expect, "{uri}");
        };
        let pods = |resource: &str, scope: &str, sub: &str, verb: &str| {
            format!(
                "component=\"apiserver\",group=\"\",resource=\"{resource}\",scope=\"{scope}\",subresource=\"{sub}\",verb=\"{verb}\",version=\"v1\""
            )
        };
        let nothing =
            "component=\"apiserver\",group=\"\",resource=\"\",scope=\"\",subresource=\"\",verb=\"GET\",version=\"\"";
        check("GET", "/api/v1/pods", &pods("pods", "cluster", "", "LIST"));
        check("GET", "/api/v1/namespaces/x/pods?watch=1", &pods("pods", "namespace", "", "WATCH"));
        check("PATCH", "/api/v1/namespaces/x/pods/evil/status", &pods("pods", "resource", "status", "PATCH"));
        check("POST", "/api/v1/namespaces/x/pods/evil/exec", &pods("pods", "resource", "exec", "CONNECT"));
        check("GET", "/apis/evil/v1/evils/e", nothing);
        check("GET", "/evil\"}", nothing);
        let text = metrics.render(&[]);
        assert!(!text.contains("evil"), "{text}");
        assert!(text.contains("apiserver_request_duration_seconds_bucket{component=\"apiserver\",group=\"\",resource=\"pods\",scope=\"cluster\",subresource=\"\",verb=\"LIST\",version=\"v1\",le=\"0.05\"} 1\n"), "{text}");
    }
}
