//! The configuration of every part, from one instance's names and places. Only assembles: no part's policy is here.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use control_plane_apiserver as apiserver;
use serde_json::json;

use crate::cidr::Cidr;
use crate::instance::{Instance, Layout};
use crate::pki::Pki;
use crate::programs::Programs;

/// The network's prefix length on each node.
const NODE_PREFIX: u8 = 24;
/// Limit for one call of a CNI plugin; ours take milliseconds.
const CNI_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);
/// Revisions of the store that a watch may still start from.
const HISTORY_SECONDS: u64 = 300;

#[derive(Debug, thiserror::Error)]
#[error("read {path}")]
pub(crate) struct PartError {
    path: PathBuf,
    source: io::Error,
}

fn read(path: &Path) -> Result<Vec<u8>, PartError> {
    fs::read(path).map_err(|source| PartError { path: path.into(), source })
}

/// One instance, and everything needed to configure its parts.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    pub layout: Layout,
    pub instance: Instance,
    pub pki: Pki,
    pub programs: Programs,
}

fn cni_cidr(cidr: Cidr) -> cni_spec::Cidr {
    cni_spec::Cidr::new(IpAddr::V4(cidr.network()), cidr.prefix()).expect("a valid IPv4 network is one here too")
}

impl Parts {
    pub(crate) fn apiserver(&self) -> Result<apiserver::Config, PartError> {
        let Self { layout, instance, pki, .. } = self;
        let authority = read(&pki.authority.certificate)?;
        let service_cidr = instance.service_cidr;
        Ok(apiserver::Config {
            listen: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), instance.api_port),
            tls_certificate: read(&pki.apiserver.certificate)?,
            tls_key: read(&pki.apiserver.key)?,
            client_ca: authority.clone(),
            service_account_key: read(&pki.service_account_key)?,
            service_account_issuer: "https://kubernetes.default.svc.cluster.local".into(),
            audiences: vec!["https://kubernetes.default.svc.cluster.local".into()],
            static_tokens: std::collections::BTreeMap::new(),
            kubelet: Some(apiserver::KubeletConfig {
                certificate: read(&pki.apiserver_kubelet_client.certificate)?,
                key: read(&pki.apiserver_kubelet_client.key)?,
                ca: authority,
                insecure: false,
            }),
            service_cidr: apiserver::Cidr { network: service_cidr.network(), prefix: service_cidr.prefix() },
            node_ports: crate::instance::NODE_PORTS,
            node_ports_first: instance.node_ports_first(),
            advertise: SocketAddr::new(instance.node_ip.into(), instance.api_port),
            store: layout.data.join("state.db"),
            history_seconds: HISTORY_SECONDS,
        })
    }

    pub(crate) fn controllers(&self, client: kube::Client) -> Result<control_plane_controllers::Config, PartError> {
        let root_ca = String::from_utf8_lossy(&read(&self.pki.authority.certificate)?).into_owned();
        let pod_cidr = self.instance.pod_cidr;
        Ok(control_plane_controllers::Config {
            client,
            root_ca,
            cluster_cidr: (pod_cidr.network(), pod_cidr.prefix()),
            node_prefix: NODE_PREFIX.max(pod_cidr.prefix()),
            event_ttl: control_plane_controllers::EVENT_TTL,
        })
    }

    pub(crate) fn cri(&self) -> runtime_cri::Config {
        let Self { layout, instance, programs, .. } = self;
        let bridge_options = [
            ("isGateway", json!(true)),
            ("ipMasq", json!(true)),
            ("hairpinMode", json!(true)),
            ("table", json!(instance.name)),
            ("clusterCIDR", json!([instance.pod_cidr.to_string()])),
        ];
        let cni = runtime_cri::Cni {
            conf_dir: instance.cni_conf_dir.clone().unwrap_or_else(|| layout.config.join("cni/net.d")),
            bin_dirs: instance.cni_bin_dir.iter().cloned().chain([layout.run.join("cni-bin")]).collect(),
            // In somebody else's directory nothing is written.
            template: instance.cni_conf_dir.is_none().then(|| runtime_cri::CniTemplate {
                network: instance.name.clone(),
                bridge: instance.bridge.clone(),
                leases_dir: layout.run.join("leases"),
                bridge_options: bridge_options.map(|(key, value)| (key.to_owned(), value)).into_iter().collect(),
                chained: vec![json!({
                    "type": "portmap",
                    "capabilities": {"portMappings": true},
                    "table": instance.name,
                    "reserved": self.own_sockets(),
                })],
            }),
            timeout: CNI_TIMEOUT,
        };
        let mut config = runtime_cri::Config::new(&layout.data, layout.run.clone(), programs.shim.clone(), cni);
        config.socket = layout.cri_socket();
        config.cgroup_root = instance.cgroup_root();
        config.images.registries_dir = Some(layout.config.join("registries.d"));
        config
    }

    /// Where the node's parts listen: neither a Service nor a host port takes traffic from there.
    pub(crate) fn own_sockets(&self) -> Vec<SocketAddr> {
        let instance = &self.instance;
        let any = |port| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
        vec![any(instance.api_port), any(instance.kubelet_port), SocketAddr::new(instance.dns_ip().into(), 53)]
    }

    /// The first node's part of the pod network.
    pub(crate) fn first_node_range(&self) -> String {
        let pod_cidr = self.instance.pod_cidr;
        format!("{}/{}", pod_cidr.network(), NODE_PREFIX.max(pod_cidr.prefix()))
    }

    pub(crate) fn kubelet(&self, client: kube::Client) -> Result<kubelet::Config, PartError> {
        let Self { layout, instance, pki, .. } = self;
        let socket = kubelet::CriEndpoint::Socket(layout.cri_socket());
        let mut config = kubelet::Config::new(client, instance.node_name.clone(), socket, layout.data.clone());
        config.node_ips = vec![instance.node_ip.into()];
        config.cgroup_root = instance.cgroup_root();
        config.listen = Some(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), instance.kubelet_port));
        config.tls = Some(kubelet::ServingTls {
            certificate_chain: read(&pki.kubelet.certificate)?,
            private_key: read(&pki.kubelet.key)?,
            client_ca: read(&pki.authority.certificate)?,
        });
        config.cluster_dns = vec![instance.dns_ip().into()];
        config.static_pod_dir = Some(layout.config.join("manifests"));
        Ok(config)
    }

    pub(crate) fn services(&self, client: kube::Client) -> cni_services::Config {
        let instance = &self.instance;
        cni_services::Config {
            client,
            node_name: instance.node_name.clone(),
            node_ips: vec![instance.node_ip.into()],
            reserved: self.own_sockets(),
            table: instance.name.clone(),
            bridge: instance.bridge.clone(),
            cluster_cidr: cni_cidr(instance.pod_cidr),
            service_cidr: cni_cidr(instance.service_cidr),
            dns_address: instance.dns_ip().into(),
            cluster_domain: "cluster.local".into(),
            upstream_resolv_conf: "/etc/resolv.conf".into(),
        }
    }

    /// Takes away every kernel object of the node's network.
    pub(crate) fn clean_network(&self) -> Result<(), cni_services::network::NetworkError> {
        let instance = &self.instance;
        cni_services::cleanup(
            &instance.name,
            &instance.bridge,
            cni_cidr(instance.pod_cidr),
            cni_cidr(instance.service_cidr),
            instance.dns_ip().into(),
        )
    }
}
