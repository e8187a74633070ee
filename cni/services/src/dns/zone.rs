//! The cluster's zone, computed from the catalog: Kubernetes DNS-based service discovery 1.1.0. Pure.
//!
//!     SERVICE.NAMESPACE.svc            A, AAAA of the cluster IP, of all ready endpoints when headless; CNAME
//!     HOST.SERVICE.NAMESPACE.svc       one endpoint of a headless Service
//!     _PORT._PROTOCOL.SERVICE....svc   SRV; all ports of a Service are the SRV records of its plain name
//!     a-b-c-d.NAMESPACE.pod            A of that address
//!     reverse zones                    PTR of cluster IPs and of endpoints with a hostname
//!
//! A name that exists without records of the asked type is NODATA, not NXDOMAIN: resolvers give up on the latter.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni_spec::Cidr;
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use k8s_openapi::api::core::v1::{ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::Endpoint;

use crate::catalog::{Catalog, Entry, ServiceName, cluster_addresses};
use crate::proxy::elements::is_ready;

/// Seconds; short, because endpoints change.
const TTL: u32 = 5;
const SCHEMA: &str = "1.1.0";

/// The answer to a question about this zone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// Whether the name exists.
    pub exists: bool,
    /// What was asked for.
    pub records: Vec<Record>,
    /// Addresses of SRV targets.
    pub additionals: Vec<Record>,
    /// SOA, when there are no records.
    pub authority: Option<Record>,
}

/// The zone's fixed facts.
#[derive(Debug)]
pub struct Zone {
    domain: Name,
    server: IpAddr,
    own_networks: Vec<Cidr>,
}

/// What a name holds, whatever type was asked for.
#[derive(Debug, Default)]
struct Found {
    exists: bool,
    data: Vec<(Name, RData)>,
    additionals: Vec<(Name, RData)>,
}

impl Zone {
    /// `domain` is fully qualified and in lower case.
    #[must_use]
    pub fn new(domain: Name, server: IpAddr, own_networks: Vec<Cidr>) -> Self {
        Self { domain, server, own_networks }
    }

    /// `None` when the name is not ours.
    #[must_use]
    pub fn answer(&self, catalog: &Catalog, name: &Name, kind: RecordType) -> Option<Answer> {
        let lower = name.to_lowercase();
        let found = if self.domain.zone_of(&lower) {
            let labels: Vec<String> = labels_below(&lower, &self.domain)?;
            let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
            self.find(catalog, &lower, &labels, kind)
        } else {
            self.reverse(catalog, &lower)?
        };
        let is_wanted = |data: &RData| {
            kind == RecordType::ANY || data.record_type() == kind || data.record_type() == RecordType::CNAME
        };
        // The name as the client wrote it: some clients compare letter by letter.
        let to_record = |(owner, data): (Name, RData)| {
            let owner = if owner == lower { name.clone() } else { owner };
            Record::from_rdata(owner, TTL, data)
        };
        let records: Vec<Record> = found.data.into_iter().filter(|(_, data)| is_wanted(data)).map(to_record).collect();
        let authority = records.is_empty().then(|| self.authority());
        let additionals = if kind == RecordType::SRV { found.additionals } else { Vec::new() };
        let additionals = additionals.into_iter().map(|(owner, data)| Record::from_rdata(owner, TTL, data)).collect();
        Some(Answer { exists: found.exists, records, additionals, authority })
    }

    fn find(&self, catalog: &Catalog, name: &Name, labels: &[&str], kind: RecordType) -> Found {
        let here = |data: Vec<RData>| Found {
            exists: true,
            data: data.into_iter().map(|data| (name.clone(), data)).collect(),
            additionals: Vec::new(),
        };
        let namespace_exists = |namespace: &str| {
            catalog.iter().any(|(service, entry)| service.namespace == namespace && entry.service.is_some())
        };
        match labels {
            [] => {
                let server = self.below(&["ns", "dns"]);
                here(vec![self.soa(), RData::NS(NS(server))])
            }
            ["dns-version"] => here(vec![RData::TXT(TXT::new(vec![SCHEMA.to_owned()]))]),
            ["ns", "dns"] => here(vec![address_data(self.server)]),
            ["dns" | "svc" | "pod"] => here(Vec::new()),
            [namespace, "svc"] => Found { exists: namespace_exists(namespace), ..Found::default() },
            [namespace, "pod"] => Found { exists: namespace_exists(namespace), ..Found::default() },
            [host, _, "pod"] => dashed(host).map(|address| here(vec![address_data(address)])).unwrap_or_default(),
            [rest @ .., service, namespace, "svc"] => {
                let key = ServiceName { namespace: (*namespace).to_owned(), name: (*service).to_owned() };
                let Some(entry) = catalog.get(&key) else { return Found::default() };
                let Some(spec) = entry.service.as_ref().and_then(|service| service.spec.as_ref()) else {
                    return Found::default();
                };
                self.find_service(&key, entry, spec, (name, kind), rest)
            }
            _ => Found::default(),
        }
    }

    fn find_service(
        &self,
        key: &ServiceName,
        entry: &Entry,
        spec: &ServiceSpec,
        (name, kind): (&Name, RecordType),
        rest: &[&str],
    ) -> Found {
        if spec.type_.as_deref() == Some("ExternalName") {
            let target = spec
                .external_name
                .as_deref()
                .and_then(|target| Name::from_ascii(format!("{}.", target.trim_end_matches('.'))).ok());
            let data = target.filter(|_| rest.is_empty()).map(|target| (name.clone(), RData::CNAME(CNAME(target))));
            return Found { exists: rest.is_empty(), data: data.into_iter().collect(), additionals: Vec::new() };
        }
        let addresses: Vec<IpAddr> = entry.service.as_deref().map(cluster_addresses).unwrap_or_default();
        let records = |wanted: Option<(&str, &str)>| {
            service_records(name, self.service_targets(key, entry, spec, &addresses, wanted))
        };
        match rest {
            // The Service itself exists, whether a port of it leads anywhere or not.
            [] if kind == RecordType::SRV => Found { exists: true, ..records(None) },
            [] if !addresses.is_empty() => found_addresses(name, addresses),
            // A headless Service without endpoints has no addresses, yet it exists.
            [] => found_addresses(name, endpoints(entry, spec).into_iter().map(|host| host.address)),
            [port, protocol] => match (port.strip_prefix('_'), protocol.strip_prefix('_')) {
                (Some(port), Some(protocol)) => records(Some((port, protocol))),
                _ => Found::default(),
            },
            // Every part of an existing name exists (RFC 8020).
            [protocol] if ["_tcp", "_udp", "_sctp"].contains(protocol) => Found { exists: true, ..Found::default() },
            [host] if addresses.is_empty() => {
                let hosts = endpoints(entry, spec).into_iter().filter(|found| found.name == *host);
                let found = found_addresses(name, hosts.map(|found| found.address));
                Found { exists: !found.data.is_empty(), ..found }
            }
            _ => Found::default(),
        }
    }

    /// Name, port and address behind each port of a Service, or behind the one of this name and protocol.
    fn service_targets(
        &self,
        key: &ServiceName,
        entry: &Entry,
        spec: &ServiceSpec,
        addresses: &[IpAddr],
        wanted: Option<(&str, &str)>,
    ) -> Vec<(Name, u16, IpAddr)> {
        let service_name = self.service_name(key);
        if addresses.is_empty() {
            let hosts = endpoints(entry, spec);
            let targets = hosts.into_iter().flat_map(|host| {
                let ports = host.ports.iter();
                let ports = ports.filter(|found| wanted.is_none_or(|(name, protocol)| found.matches(name, protocol)));
                let target = join(&[&host.name], &service_name);
                ports.map(|found| (target.clone(), found.number, host.address)).collect::<Vec<_>>()
            });
            return targets.collect();
        }
        let is_wanted = |found: &&ServicePort| {
            wanted.is_none_or(|(name, protocol)| {
                found.name.as_deref() == Some(name)
                    && found.protocol.as_deref().unwrap_or("TCP").eq_ignore_ascii_case(protocol)
            })
        };
        let ports = spec.ports.iter().flatten().filter(is_wanted);
        let numbers = ports.filter_map(|found| u16::try_from(found.port).ok());
        let targets = numbers.flat_map(|number| {
            addresses.iter().map(|address| (service_name.clone(), number, *address)).collect::<Vec<_>>()
        });
        targets.collect()
    }

    /// `None` when the address is in none of our networks and belongs to no Service.
    fn reverse(&self, catalog: &Catalog, name: &Name) -> Option<Found> {
        let address = name.parse_arpa_name().ok().filter(|network| network.prefix_len() == network.max_prefix_len())?;
        let address = address.addr();
        let mut targets = BTreeSet::new();
        if let Some(key) = catalog.by_address(address) {
            targets.insert(self.service_name(key));
        } else if self.own_networks.iter().any(|network| network.contains(address)) {
            for (key, entry) in catalog.iter() {
                let Some(spec) = entry.service.as_ref().and_then(|service| service.spec.as_ref()) else { continue };
                let hosts = endpoints(entry, spec).into_iter();
                let hosts = hosts.filter(|host| host.is_named && host.address == address);
                targets.extend(hosts.map(|host| join(&[&host.name], &self.service_name(key))));
            }
        } else {
            return None;
        }
        let data = targets.into_iter().map(|target| (name.clone(), RData::PTR(PTR(target))));
        let data: Vec<_> = data.collect();
        Some(Found { exists: !data.is_empty(), data, additionals: Vec::new() })
    }

    fn service_name(&self, key: &ServiceName) -> Name {
        self.below(&[&key.name, &key.namespace, "svc"])
    }

    fn below(&self, labels: &[&str]) -> Name {
        join(labels, &self.domain)
    }

    fn soa(&self) -> RData {
        let (server, contact) = (self.below(&["ns", "dns"]), self.below(&["hostmaster"]));
        RData::SOA(SOA::new(server, contact, 1, 7200, 1800, 86400, TTL))
    }

    fn authority(&self) -> Record {
        Record::from_rdata(self.domain.clone(), TTL, self.soa())
    }
}

/// An endpoint as DNS sees it.
struct Host {
    name: String,
    is_named: bool,
    address: IpAddr,
    ports: Vec<HostPort>,
}

struct HostPort {
    name: String,
    protocol: String,
    number: u16,
}

impl HostPort {
    fn matches(&self, name: &str, protocol: &str) -> bool {
        self.name == name && self.protocol.eq_ignore_ascii_case(protocol)
    }
}

fn endpoints(entry: &Entry, spec: &ServiceSpec) -> Vec<Host> {
    let publish_all = spec.publish_not_ready_addresses == Some(true);
    let mut hosts = Vec::new();
    for slice in entry.slices.values() {
        let ports = || {
            let all = slice.ports.iter().flatten();
            let usable = all.filter_map(|port| {
                Some(HostPort {
                    name: port.name.clone().unwrap_or_default(),
                    protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                    number: u16::try_from(port.port?).ok()?,
                })
            });
            usable.collect()
        };
        for endpoint in slice.endpoints.iter().flatten().filter(|endpoint| publish_all || is_ready(endpoint)) {
            for address in endpoint.addresses.iter().filter_map(|text| text.parse().ok()) {
                let (name, is_named) = host_name(endpoint, address);
                hosts.push(Host { name, is_named, address, ports: ports() });
            }
        }
    }
    hosts.sort_by_key(|host| host.address);
    hosts.dedup_by(|one, other| one.address == other.address && one.name == other.name && one.ports.is_empty());
    hosts
}

fn host_name(endpoint: &Endpoint, address: IpAddr) -> (String, bool) {
    match endpoint.hostname.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => (name.to_ascii_lowercase(), true),
        None => (address.to_string().replace(['.', ':'], "-"), false),
    }
}

fn found_addresses(name: &Name, addresses: impl IntoIterator<Item = IpAddr>) -> Found {
    let unique: BTreeSet<IpAddr> = addresses.into_iter().collect();
    let data = unique.into_iter().map(|address| (name.clone(), address_data(address))).collect();
    Found { exists: true, data, additionals: Vec::new() }
}

fn service_records(name: &Name, targets: Vec<(Name, u16, IpAddr)>) -> Found {
    let records: BTreeSet<(Name, u16)> = targets.iter().map(|(target, port, _)| (target.clone(), *port)).collect();
    let weight = u16::try_from(100 / records.len().max(1)).unwrap_or(1).max(1);
    let data: Vec<(Name, RData)> = records
        .into_iter()
        .map(|(target, port)| (name.clone(), RData::SRV(SRV::new(0, weight, port, target))))
        .collect();
    let unique: BTreeSet<(Name, IpAddr)> = targets.into_iter().map(|(target, _, address)| (target, address)).collect();
    let additionals = unique.into_iter().map(|(target, address)| (target, address_data(address))).collect();
    Found { exists: !data.is_empty(), data, additionals }
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    }
}

/// `10-42-0-7` or `fd00--7`.
fn dashed(host: &str) -> Option<IpAddr> {
    let v4 = host.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
    v4.ok().or_else(|| host.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6).ok())
}

/// The labels before the zone's own; `None` when one is not text.
fn labels_below(name: &Name, zone: &Name) -> Option<Vec<String>> {
    let count = usize::from(name.num_labels()).checked_sub(usize::from(zone.num_labels()))?;
    name.iter().take(count).map(|label| std::str::from_utf8(label).ok().map(str::to_owned)).collect()
}

/// Names come from validated objects; one that is too long for DNS falls back to the zone itself.
fn join(labels: &[&str], zone: &Name) -> Name {
    let name = labels.iter().rev().try_fold(zone.clone(), |name, label| name.prepend_label(*label));
    name.unwrap_or_else(|_| zone.clone())
}
