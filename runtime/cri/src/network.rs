//! The pod's network: CNI calls with what was recorded, never with what the directory says today.
//!
//! Blocks. Invariant: ADD is called after its intent is recorded, and DEL with the recorded list, so that no crash and no
//! edit of the configuration leaves an address behind.

use std::path::PathBuf;

use cni_spec::config::ConfigError;
use cni_spec::invoke::{self, InvokeError};
use cni_spec::{ConfigList, Runtime};
use runtime_cri_api::v1::{PodSandboxConfig, PortMapping, Protocol};
use serde_json::{Map, Value, json};

use crate::config::Cni;
use crate::record::NetworkRecord;

/// The pod's interface, as every Kubernetes runtime calls it.
const INTERFACE: &str = "eth0";

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("no usable network in {}: the node has no pod range yet, or no configuration was put there", dir.display())]
    Configuration { dir: PathBuf, source: ConfigError },
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("write {}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("the recorded network configuration")]
    Recorded(#[source] ConfigError),
    #[error("attach")]
    Add(#[source] Box<InvokeError>),
    #[error("detach")]
    Del(#[source] Box<InvokeError>),
    #[error("loopback")]
    Loopback(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the network's plugins gave the pod no address")]
    NoAddress,
    #[error("pod range {0:?} is not a network such as 10.42.0.0/24")]
    Range(String),
}

/// The list that a new pod gets, as text to be recorded.
pub(crate) fn choose(cni: &Cni) -> Result<String, NetworkError> {
    let dir = cni.conf_dir.clone();
    let failed = |source| NetworkError::Configuration { dir: dir.clone(), source };
    let mut first_error = None;
    for path in cni_spec::config::files(&cni.conf_dir).map_err(failed)? {
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            // Renamed away between listing and reading.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(source) => return Err(NetworkError::Read { path, source }),
        };
        match ConfigList::parse(&text) {
            Ok(_) => return Ok(String::from_utf8_lossy(&text).into_owned()),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    Err(failed(first_error.unwrap_or_else(|| ConfigError::Nothing { path: cni.conf_dir.clone() })))
}

/// Whether pods can be attached now.
pub(crate) fn check(cni: &Cni) -> Result<(), NetworkError> {
    let list = ConfigList::parse(choose(cni)?.as_bytes()).map_err(NetworkError::Recorded)?;
    invoke::status(&list, &cni.bin_dirs, cni.timeout).map_err(|source| NetworkError::Add(Box::new(source)))
}

/// One pod's attachment; `netns` is `None` once it is gone.
pub(crate) struct Pod<'a> {
    pub(crate) id: &'a str,
    pub(crate) config: &'a PodSandboxConfig,
    pub(crate) netns: Option<PathBuf>,
}

/// Attaches the pod and completes its record.
pub(crate) fn add(cni: &Cni, pod: &Pod<'_>, record: &mut NetworkRecord) -> Result<(), NetworkError> {
    let list = ConfigList::parse(record.list.as_bytes()).map_err(NetworkError::Recorded)?;
    let runtime = runtime(cni, pod, INTERFACE);
    let result = invoke::add(&list, &runtime).map_err(|source| NetworkError::Add(Box::new(source)))?;
    record.addresses = invoke::addresses(&result).iter().map(|cidr| cidr.address().to_string()).collect();
    record.result = Some(result);
    if record.addresses.is_empty() { Err(NetworkError::NoAddress) } else { Ok(()) }
}

/// Detaches; a pod that was never attached, or no longer is, is success.
pub(crate) fn del(cni: &Cni, pod: &Pod<'_>, record: &NetworkRecord) -> Result<(), NetworkError> {
    let list = ConfigList::parse(record.list.as_bytes()).map_err(NetworkError::Recorded)?;
    invoke::del(&list, &runtime(cni, pod, INTERFACE), record.result.as_ref())
        .map_err(|source| NetworkError::Del(Box::new(source)))
}

fn runtime(cni: &Cni, pod: &Pod<'_>, if_name: &str) -> Runtime {
    let metadata = pod.config.metadata.clone().unwrap_or_default();
    let pairs = [
        ("IgnoreUnknown", "1".to_owned()),
        ("K8S_POD_NAMESPACE", metadata.namespace),
        ("K8S_POD_NAME", metadata.name),
        ("K8S_POD_INFRA_CONTAINER_ID", pod.id.to_owned()),
        ("K8S_POD_UID", metadata.uid),
    ];
    // A value with ';' or '=' cannot be said in CNI_ARGS (CNI 1.1, section 3).
    let sayable = |value: &str| !value.is_empty() && !value.contains([';', '=']);
    Runtime {
        container_id: pod.id.to_owned(),
        netns: pod.netns.clone(),
        if_name: if_name.to_owned(),
        args: pairs.into_iter().filter(|(_, value)| sayable(value)).map(|(key, value)| (key.into(), value)).collect(),
        capabilities: capabilities(pod.config),
        bin_dirs: cni.bin_dirs.clone(),
        timeout: cni.timeout,
    }
}

/// What plugins may be told beyond the standard: they get what they declare.
fn capabilities(config: &PodSandboxConfig) -> Map<String, Value> {
    let mut capabilities = Map::new();
    let mappings: Vec<Value> =
        config.port_mappings.iter().filter(|mapping| mapping.host_port > 0).map(mapping).collect();
    if !mappings.is_empty() {
        capabilities.insert("portMappings".into(), Value::Array(mappings));
    }
    if let Some(dns) = &config.dns_config {
        let dns = json!({ "servers": dns.servers, "searches": dns.searches, "options": dns.options });
        capabilities.insert("dns".into(), dns);
    }
    let annotation = |name: &str| config.annotations.get(name).and_then(|text| bits_per_second(text));
    let (ingress, egress) =
        (annotation("kubernetes.io/ingress-bandwidth"), annotation("kubernetes.io/egress-bandwidth"));
    if ingress.is_some() || egress.is_some() {
        let mut bandwidth = Map::new();
        for (direction, rate) in [("ingress", ingress), ("egress", egress)] {
            if let Some(rate) = rate {
                bandwidth.insert(format!("{direction}Rate"), json!(rate));
                bandwidth.insert(format!("{direction}Burst"), json!(i32::MAX));
            }
        }
        capabilities.insert("bandwidth".into(), Value::Object(bandwidth));
    }
    capabilities
}

fn mapping(mapping: &PortMapping) -> Value {
    let protocol = match mapping.protocol() {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    json!({
        "hostPort": mapping.host_port,
        "containerPort": mapping.container_port,
        "protocol": protocol,
        "hostIP": mapping.host_ip,
    })
}

/// A quantity such as `10M`; what is none is the kubelet's to refuse.
fn bits_per_second(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let factor = match &text[digits.len()..] {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use runtime_cri_api::v1::PodSandboxMetadata;

    use super::*;

    #[test]
    fn a_pod_becomes_cni_arguments() {
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata { name: "web".into(), namespace: "a;b".into(), ..Default::default() }),
            port_mappings: vec![
                PortMapping { container_port: 80, host_port: 8080, ..Default::default() },
                PortMapping { container_port: 81, ..Default::default() },
            ],
            annotations: [("kubernetes.io/egress-bandwidth".to_owned(), "10M".to_owned())].into(),
            ..Default::default()
        };
        let cni = Cni {
            conf_dir: "/nowhere".into(),
            bin_dirs: vec!["/bin".into()],
            template: None,
            timeout: std::time::Duration::from_secs(1),
        };
        let runtime = runtime(&cni, &Pod { id: "s1", config: &config, netns: None }, INTERFACE);
        let args: Vec<&str> = runtime.args.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(args, ["IgnoreUnknown", "K8S_POD_NAME", "K8S_POD_INFRA_CONTAINER_ID"]);
        assert_eq!(runtime.capabilities["portMappings"].as_array().unwrap().len(), 1);
        assert_eq!(runtime.capabilities["bandwidth"]["egressRate"], 10_000_000);
        assert!(matches!(choose(&cni), Err(NetworkError::Configuration { .. })));
    }

    #[test]
    fn rates() {
        for (text, expect) in
            [("10M", Some(10_000_000)), ("1Ki", Some(1024)), ("7", Some(7)), ("x", None), ("1e", None)]
        {
            assert_eq!(bits_per_second(text), expect, "{text}");
        }
    }
}
