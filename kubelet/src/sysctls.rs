//! Which kernel parameters a pod may set: those that are safe, and those that the node's owner allows by name. Pure.
//! Invariant: what is not namespaced is never allowed, whatever the configuration says.

use crate::pod::LocalPod;
use crate::sync::observed::Failed;

/// Upstream's list of 1.36: namespaced, and without effect on other pods or on what the pod may use.
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Namespace {
    Ipc,
    Net,
}

/// `None` for what the whole host shares.
fn namespace(name: &str) -> Option<Namespace> {
    let is_ipc = name == "kernel.sem" || ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|p| name.starts_with(p));
    match (is_ipc, name.starts_with("net.")) {
        (true, _) => Some(Namespace::Ipc),
        (false, true) => Some(Namespace::Net),
        (false, false) => None,
    }
}

/// The name with dots between its parts: where a slash comes first, both have changed their roles; sysctl.d(5).
#[must_use]
pub fn normal(name: &str) -> String {
    if name.find(['.', '/']).is_none_or(|at| name.as_bytes()[at] == b'.') {
        return name.to_owned();
    }
    name.chars()
        .map(|c| match c {
            '.' => '/',
            '/' => '.',
            other => other,
        })
        .collect()
}

/// Names and patterns (`kernel.msg*`) that the node's owner allows beyond the safe ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    patterns: Vec<String>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "the sysctl {pattern:?} cannot be allowed: it is not namespaced, so that a pod would set it for the whole host"
)]
pub struct NotNamespaced {
    pattern: String,
}

impl Allowed {
    /// # Errors
    /// If one of them is not namespaced.
    pub fn parse(patterns: &[String]) -> Result<Allowed, NotNamespaced> {
        let patterns: Vec<String> = patterns.iter().map(|p| normal(p.trim())).filter(|p| !p.is_empty()).collect();
        match patterns.iter().find(|p| namespace(p.trim_end_matches('*')).is_none()) {
            Some(pattern) => Err(NotNamespaced { pattern: pattern.clone() }),
            None => Ok(Allowed { patterns }),
        }
    }

    fn has(&self, name: &str) -> bool {
        let matches = |pattern: &String| match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => pattern == name,
        };
        SAFE.contains(&name) || self.patterns.iter().any(matches)
    }

    /// # Errors
    /// Upstream's refusal of the first one that the pod may not set.
    pub fn judge(&self, pod: &LocalPod) -> Result<(), Failed> {
        let context = pod.spec.security_context.as_ref();
        for sysctl in context.and_then(|c| c.sysctls.as_ref()).into_iter().flatten() {
            let name = normal(&sysctl.name);
            let problem = match namespace(&name) {
                _ if !self.has(&name) => "not allowlisted",
                Some(Namespace::Ipc) if pod.spec.host_ipc == Some(true) => "not allowed with host ipc enabled",
                Some(Namespace::Net) if pod.host_network() => "not allowed with host net enabled",
                _ => continue,
            };
            return Err(Failed::new("SysctlForbidden", format!("forbidden sysctl: {name:?} {problem}")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::Source;
    use serde_json::json;

    fn check(names: &[&str], shared: &str, expect: &str) {
        let sysctls: Vec<_> = names.iter().map(|n| json!({"name": n, "value": "1"})).collect();
        let object = json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"},
            "spec": {"containers": [], "hostNetwork": shared == "net", "hostIPC": shared == "ipc",
                "securityContext": {"sysctls": sysctls}}});
        let pod = LocalPod::parse(serde_json::from_value(object).unwrap(), Source::Api).unwrap();
        let allowed = Allowed::parse(&["kernel.msg*".into(), "net/core/somaxconn".into()]).unwrap();
        let got = allowed.judge(&pod).map_or_else(|f| f.message, |()| String::new());
        assert_eq!(got, expect, "{names:?}");
    }

    #[test]
    fn unsafe_ones_are_refused_unless_allowed() {
        check(&SAFE, "", "");
        check(&["net/ipv4/tcp_syncookies"], "", "");
        check(&["kernel.msgmax", "net.core.somaxconn"], "", "");
        check(
            &["kernel.shm_rmid_forced", "net.ipv4.ip_forward"],
            "",
            "forbidden sysctl: \"net.ipv4.ip_forward\" not allowlisted",
        );
        check(&["kernel.core_pattern"], "", "forbidden sysctl: \"kernel.core_pattern\" not allowlisted");
        check(&["vm.swappiness"], "", "forbidden sysctl: \"vm.swappiness\" not allowlisted");
        check(
            &["net.ipv4.tcp_syncookies"],
            "net",
            "forbidden sysctl: \"net.ipv4.tcp_syncookies\" not allowed with host net enabled",
        );
        check(
            &["kernel.shm_rmid_forced"],
            "ipc",
            "forbidden sysctl: \"kernel.shm_rmid_forced\" not allowed with host ipc enabled",
        );
        check(&["kernel.shm_rmid_forced"], "net", "");
    }

    #[test]
    fn what_the_host_shares_cannot_be_allowed() {
        for pattern in ["kernel.core_pattern", "vm.*", "*", "kernel.*"] {
            assert!(Allowed::parse(&[pattern.into()]).is_err(), "{pattern}");
        }
    }
}
