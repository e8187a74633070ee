//! The CRI configuration of a pod's sandbox: names, DNS, ports, namespaces, cgroup. Pure; `Host` brings what it must know.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;

use runtime_cri_api::v1 as cri;

use crate::cri::{POD_GRACE, POD_NAME, POD_NAMESPACE, POD_UID};
use crate::pod::{CONFIG_SOURCE, LocalPod, Source};
use crate::{resources, security};

/// A label of the kernel's host name is no longer than this.
const HOSTNAME_MAX: usize = 63;

/// What is the same for all pods of the node.
#[derive(Clone, Debug)]
pub struct Host {
    pub data_dir: PathBuf,
    pub log_dir: PathBuf,
    pub cgroup_root: String,
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    pub resolv_conf: String,
    /// The host labels processes. Where it does not, labels asked for mean nothing, as with other runtimes.
    pub selinux: bool,
}

impl Host {
    /// Where the pod's container logs are.
    #[must_use]
    pub fn log_dir(&self, pod: &LocalPod) -> PathBuf {
        self.log_dir.join(format!("{}_{}_{}", pod.key.namespace, pod.key.name, pod.uid))
    }

    #[must_use]
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.data_dir.join("pods").join(uid)
    }
}

/// The configuration of the sandbox's `attempt`.
#[must_use]
pub fn build(pod: &LocalPod, attempt: u32, host: &Host) -> cri::PodSandboxConfig {
    let mut annotations: HashMap<String, String> =
        pod.meta().annotations.iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    let source = if pod.source == Source::File { "file" } else { "api" };
    annotations.insert(CONFIG_SOURCE.into(), source.into());
    annotations.insert(POD_GRACE.into(), pod.spec.termination_grace_period_seconds.unwrap_or(30).to_string());
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: pod.key.name.clone(),
            namespace: pod.key.namespace.clone(),
            uid: pod.uid.clone(),
            attempt,
        }),
        hostname: if pod.host_network() { String::new() } else { hostname(pod, &host.cluster_domain).0 },
        log_directory: host.log_dir(pod).to_string_lossy().into_owned(),
        dns_config: Some(dns(pod, host)),
        port_mappings: ports(pod),
        labels: labels(pod).into_iter().collect(),
        annotations,
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: resources::cgroup_parent(&host.cgroup_root, pod),
            security_context: Some(security::sandbox(pod, &host.data_dir, host.selinux)),
            sysctls: sysctls(pod),
            overhead: None,
            resources: Some(resources::pod(pod)),
        }),
        windows: None,
    }
}

fn labels(pod: &LocalPod) -> BTreeMap<String, String> {
    let mut labels = pod.meta().labels.clone().unwrap_or_default();
    labels.insert(POD_NAME.into(), pod.key.name.clone());
    labels.insert(POD_NAMESPACE.into(), pod.key.namespace.clone());
    labels.insert(POD_UID.into(), pod.uid.clone());
    labels
}

fn sysctls(pod: &LocalPod) -> HashMap<String, String> {
    let list = pod.spec.security_context.as_ref().and_then(|c| c.sysctls.as_ref());
    list.into_iter().flatten().map(|s| (s.name.replace('/', "."), s.value.clone())).collect()
}

/// Host name and, if the pod has one, its name in the cluster's DNS.
#[must_use]
pub fn hostname(pod: &LocalPod, cluster_domain: &str) -> (String, Option<String>) {
    let spec = &pod.spec;
    let short = spec.hostname.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| pod.key.name.clone());
    let short: String = short.chars().take(HOSTNAME_MAX).collect();
    let short = short.trim_end_matches(['-', '.']).to_owned();
    let subdomain = spec.subdomain.as_deref().filter(|s| !s.is_empty());
    let full = subdomain.map(|s| format!("{short}.{s}.{}.svc.{cluster_domain}", pod.key.namespace));
    match (&full, spec.set_hostname_as_fqdn) {
        (Some(fqdn), Some(true)) => (fqdn.clone(), full),
        _ => (short, full),
    }
}

fn ports(pod: &LocalPod) -> Vec<cri::PortMapping> {
    if pod.host_network() {
        return Vec::new();
    }
    let all = pod.members.iter().flat_map(|m| m.container.ports.iter().flatten());
    let published = all.filter_map(|p| p.host_port.filter(|h| *h > 0).map(|h| (p, h)));
    published
        .map(|(port, host_port)| cri::PortMapping {
            protocol: match port.protocol.as_deref() {
                Some("UDP") => cri::Protocol::Udp as i32,
                Some("SCTP") => cri::Protocol::Sctp as i32,
                _ => cri::Protocol::Tcp as i32,
            },
            container_port: port.container_port,
            host_port,
            host_ip: port.host_ip.clone().unwrap_or_default(),
        })
        .collect()
}

/// `resolv.conf` by the pod's policy, its own `dnsConfig` merged in.
#[must_use]
pub fn dns(pod: &LocalPod, host: &Host) -> cri::DnsConfig {
    let system = parse_resolv_conf(&host.resolv_conf);
    let policy = pod.spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirst" => !pod.host_network(),
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let mut config = match policy {
        "None" => cri::DnsConfig::default(),
        _ if cluster && !host.cluster_dns.is_empty() => {
            let domain = &host.cluster_domain;
            let mut searches =
                vec![format!("{}.svc.{domain}", pod.key.namespace), format!("svc.{domain}"), domain.clone()];
            searches.extend(system.searches);
            cri::DnsConfig {
                servers: host.cluster_dns.iter().map(ToString::to_string).collect(),
                searches,
                options: vec!["ndots:5".into()],
            }
        }
        _ => system,
    };
    if let Some(own) = &pod.spec.dns_config {
        config.servers.extend(own.nameservers.iter().flatten().cloned());
        config.searches.extend(own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            config.options.retain(|o| o.split(':').next() != Some(name.as_str()));
            config.options.push(match option.value.as_deref() {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name,
            });
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    config.servers.retain(|s| seen.insert(s.clone()));
    seen.clear();
    config.searches.retain(|s| seen.insert(s.clone()));
    config
}

/// resolv.conf(5): the last `search` or `domain` counts, name servers and options add up.
fn parse_resolv_conf(text: &str) -> cri::DnsConfig {
    let mut config = cri::DnsConfig::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => config.servers.extend(words.next()),
            Some("search" | "domain") => config.searches = words.collect(),
            Some("options") => config.options.extend(words),
            _ => {}
        }
    }
    config
}

/// `/etc/hosts` of a pod, laid out as upstream's, for programs look for its first line. `host_file` is the host's own, used by
/// pods in its network.
#[must_use]
pub fn hosts_file(pod: &LocalPod, ips: &[String], cluster_domain: &str, host_file: &str) -> String {
    let mut text = if pod.host_network() {
        format!("# Kubernetes-managed hosts file (host network).\n{host_file}")
    } else {
        let (name, full) = hostname(pod, cluster_domain);
        let mut text = String::from(
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
        );
        for ip in ips {
            match &full {
                Some(full) if *full != name => text.push_str(&format!("{ip}\t{full}\t{name}\n")),
                _ => text.push_str(&format!("{ip}\t{name}\n")),
            }
        }
        text
    };
    let aliases = pod.spec.host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        if !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        // A name with a line break would write a line of its own.
        let line: String = format!("{}\t{names}", alias.ip).chars().filter(|c| *c == '\t' || !c.is_control()).collect();
        text.push_str(&line);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn host() -> Host {
        Host {
            data_dir: "/data".into(),
            log_dir: "/logs".into(),
            cgroup_root: "/s".into(),
            cluster_dns: vec!["10.43.0.10".parse().unwrap()],
            cluster_domain: "cluster.local".into(),
            selinux: false,
            resolv_conf: "# x\nnameserver 192.0.2.53\nsearch corp.example\noptions timeout:1\n".into(),
        }
    }

    fn pod(mut spec: serde_json::Value) -> LocalPod {
        spec["containers"] = json!([{"name": "c", "image": "i", "ports": [{"containerPort": 80, "hostPort": 8080}]}]);
        let object = json!({"metadata": {"name": "web-0", "namespace": "d", "uid": "u"}, "spec": spec});
        LocalPod::parse(serde_json::from_value(object).unwrap(), Source::Api).unwrap()
    }

    #[test]
    fn dns_by_policy() {
        let check = |spec: serde_json::Value, expect: &str| {
            let got = dns(&pod(spec), &host());
            assert_eq!(
                format!("{} | {} | {}", got.servers.join(" "), got.searches.join(" "), got.options.join(" ")),
                expect
            );
        };
        check(json!({}), "10.43.0.10 | d.svc.cluster.local svc.cluster.local cluster.local corp.example | ndots:5");
        check(json!({"hostNetwork": true}), "192.0.2.53 | corp.example | timeout:1");
        check(json!({"dnsPolicy": "Default"}), "192.0.2.53 | corp.example | timeout:1");
        let own = json!({"nameservers": ["9.9.9.9"], "searches": ["a"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]});
        check(json!({"dnsPolicy": "None", "dnsConfig": own}), "9.9.9.9 | a | ndots:2 edns0");
        check(
            json!({"dnsConfig": own}),
            "10.43.0.10 9.9.9.9 | d.svc.cluster.local svc.cluster.local cluster.local corp.example a | ndots:2 edns0",
        );
    }

    #[test]
    fn names_ports_and_hosts() {
        let plain = build(&pod(json!({})), 2, &host());
        assert_eq!(plain.hostname, "web-0");
        assert_eq!((plain.port_mappings[0].host_port, plain.port_mappings[0].container_port), (8080, 80));
        assert_eq!(plain.log_directory, "/logs/d_web-0_u");
        assert!(build(&pod(json!({"hostNetwork": true})), 0, &host()).port_mappings.is_empty());
        let named = pod(
            json!({"hostname": "h", "subdomain": "s", "hostAliases": [{"ip": "1.1.1.1", "hostnames": ["x", "y"]}]}),
        );
        let text = hosts_file(&named, &["10.0.0.2".into()], "cluster.local", "");
        let end = "10.0.0.2\th.s.d.svc.cluster.local\th\n\n# Entries added by HostAliases.\n1.1.1.1\tx\ty\n";
        assert!(text.ends_with(end), "{text}");
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"), "{text}");
        let shared =
            pod(json!({"hostNetwork": true, "hostAliases": [{"ip": "1.1.1.1", "hostnames": ["x\n2.2.2.2\ty"]}]}));
        let text = hosts_file(&shared, &[], "cluster.local", "127.0.0.1 localhost");
        let expect = "# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost\n\n# Entries added by HostAliases.\n1.1.1.1\tx2.2.2.2\ty\n";
        assert_eq!(text, expect);
    }
}
