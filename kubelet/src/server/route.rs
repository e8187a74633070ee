//! The request line of a kubelet request, parsed. Pure. Paths and parameters are upstream's.

use jiff::{SignedDuration, Timestamp};

use super::logs;

/// What to run in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Exec {
    pub command: Vec<String>,
    pub attach: Attach,
}

/// Which streams are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Attach {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Healthz,
    Pods,
    Logs { namespace: String, pod: String, container: String, previous: bool, options: logs::Options },
    Exec { namespace: String, pod: String, container: String, exec: Exec },
    Attach { namespace: String, pod: String, container: String, attach: Attach },
    PortForward { namespace: String, pod: String, ports: Vec<i32> },
    Summary,
    Metrics,
    ResourceMetrics,
    CadvisorMetrics,
    ProbeMetrics,
}

impl Route {
    /// `None` for a path that is not served.
    pub(super) fn parse(path: &str, query: Option<&str>) -> Option<Route> {
        let parts: Vec<String> = path.trim_matches('/').split('/').map(decode).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let query: Vec<(String, String)> =
            query.unwrap_or_default().split('&').filter(|p| !p.is_empty()).map(pair).collect();
        let get = |name: &str| query.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str());
        let flag = |name: &str| matches!(get(name), Some("1" | "true" | "t" | "T" | "TRUE" | "True"));
        let own = |s: &str| s.to_owned();
        let attach = Attach {
            stdin: flag("input") || flag("stdin"),
            stdout: flag("output") || flag("stdout"),
            stderr: flag("error") || flag("stderr"),
            tty: flag("tty"),
        };
        Some(match parts.as_slice() {
            ["healthz"] => Route::Healthz,
            ["pods"] | ["pods", ""] => Route::Pods,
            ["stats", "summary"] => Route::Summary,
            ["metrics"] => Route::Metrics,
            ["metrics", "resource"] => Route::ResourceMetrics,
            ["metrics", "cadvisor"] => Route::CadvisorMetrics,
            ["metrics", "probes"] => Route::ProbeMetrics,
            ["containerLogs", namespace, pod, container] => Route::Logs {
                namespace: own(namespace),
                pod: own(pod),
                container: own(container),
                previous: flag("previous"),
                options: log_options(&get, flag("follow"), flag("timestamps")),
            },
            ["exec", namespace, pod, container] | ["exec", namespace, pod, _, container] => {
                let command = query.iter().filter(|(k, _)| k == "command").map(|(_, v)| v.clone()).collect();
                let (namespace, pod, container) = (own(namespace), own(pod), own(container));
                Route::Exec { namespace, pod, container, exec: Exec { command, attach } }
            }
            ["attach", namespace, pod, container] | ["attach", namespace, pod, _, container] => {
                Route::Attach { namespace: own(namespace), pod: own(pod), container: own(container), attach }
            }
            ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => {
                let ports = query.iter().filter(|(k, _)| k == "port" || k == "ports");
                let ports = ports.flat_map(|(_, v)| v.split(',').filter_map(|p| p.parse().ok()).collect::<Vec<i32>>());
                Route::PortForward { namespace: own(namespace), pod: own(pod), ports: ports.collect() }
            }
            _ => return None,
        })
    }

    /// The subresource of `nodes` that one must be allowed to use.
    pub(super) fn subresource(&self) -> &'static str {
        match self {
            Route::Healthz => "healthz",
            Route::Pods => "pods",
            Route::Summary => "stats",
            Route::Metrics | Route::ResourceMetrics | Route::CadvisorMetrics | Route::ProbeMetrics => "metrics",
            Route::Logs { .. } | Route::Exec { .. } | Route::Attach { .. } | Route::PortForward { .. } => "proxy",
        }
    }
}

fn log_options<'a>(get: &impl Fn(&str) -> Option<&'a str>, follow: bool, timestamps: bool) -> logs::Options {
    let number = |name: &str| get(name).and_then(|v| v.parse::<u64>().ok());
    let seconds = get("sinceSeconds").and_then(|v| v.parse::<i64>().ok());
    let ago = seconds.and_then(|s| Timestamp::now().checked_sub(SignedDuration::from_secs(s)).ok());
    let stream = get("stream").map(str::to_lowercase).filter(|s| s != "all" && !s.is_empty());
    logs::Options {
        follow,
        timestamps,
        tail_lines: number("tailLines"),
        limit_bytes: number("limitBytes"),
        since: get("sinceTime").and_then(|t| t.parse().ok()).or(ago),
        stream,
    }
}

fn pair(text: &str) -> (String, String) {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    (decode(&name.replace('+', " ")), decode(&value.replace('+', " ")))
}

/// Undoes percent-encoding; what is not encoded right stays as it is.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes
            .get(at + 1..at + 3)
            .and_then(|h| std::str::from_utf8(h).ok())
            .and_then(|h| u8::from_str_radix(h, 16).ok());
        match (bytes[at], hex) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_parameters() {
        let exec = Route::parse("/exec/d/p/c", Some("command=sh&command=-c&command=echo+a%2Bb&input=1&output=1&tty=1"));
        let attach = Attach { stdin: true, stdout: true, stderr: false, tty: true };
        let command = vec!["sh".into(), "-c".into(), "echo a+b".into()];
        let expect = Route::Exec {
            namespace: "d".into(),
            pod: "p".into(),
            container: "c".into(),
            exec: Exec { command, attach },
        };
        assert_eq!(exec, Some(expect));
        let logs = Route::parse(
            "/containerLogs/d/p/c",
            Some("follow=true&tailLines=5&limitBytes=9&timestamps=true&sinceTime=2026-01-01T00:00:00Z"),
        );
        for seconds in [i64::MIN, -1, 0, i64::MAX] {
            Route::parse("/containerLogs/d/p/c", Some(&format!("sinceSeconds={seconds}&tailLines={}", u64::MAX)));
        }
        let Some(Route::Logs { options, previous, .. }) = logs else { panic!("{logs:?}") };
        assert_eq!(
            (options.follow, options.tail_lines, options.limit_bytes, previous),
            (true, Some(5), Some(9), false)
        );
        assert!(options.since.is_some());
        assert_eq!(
            Route::parse("/portForward/d/p", Some("port=80&ports=81,82")),
            Some(Route::PortForward { namespace: "d".into(), pod: "p".into(), ports: vec![80, 81, 82] })
        );
        assert_eq!(Route::parse("/metrics/cadvisor", None), Some(Route::CadvisorMetrics));
        assert_eq!(Route::parse("/metrics/probes", None), Some(Route::ProbeMetrics));
        for path in ["/", "/exec/d/p", "/containerLogs/d", "/nothing", "/metrics/x"] {
            assert_eq!(Route::parse(path, None), None, "{path}");
        }
    }
}
