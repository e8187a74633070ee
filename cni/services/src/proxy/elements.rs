//! One Service -> elements of sets. Pure; the order of its input does not matter.
//!
//! Which endpoints get traffic follows upstream's rules: the ready ones; when none is ready, those that still serve
//! while they terminate; of these only this node's where the traffic policy says `Local`. An address that means a
//! machine itself or its link is no endpoint, and a way in that would take traffic from the node or from another
//! Service is a [`Conflict`], never an element.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;

use cni_netlink::nft::{Value, Verdict};
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::Settings;
use super::surroundings::{Conflict, Surroundings};
use crate::catalog::{Entry, cluster_addresses};

/// Services with one of these labels belong to another proxy, or to none (KEP-2447; `service.kubernetes.io/headless` is
/// upstream's `IsHeadlessService`).
const NOT_OURS: [&str; 2] = ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"];

const AFFINITY_SECONDS: i32 = 10_800;
/// More endpoints than this share the traffic among the first ones; a map index must fit a chain each.
const ENDPOINTS_MAX: usize = 5_000;

/// The sets of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SetKind {
    /// address . protocol . port -> chain.
    Services,
    /// protocol . port of the node -> chain.
    NodePorts,
    /// address . protocol . port . index -> endpoint; address 0.0.0.0 for node ports.
    Endpoints,
    /// address . protocol . port -> refusal.
    Refused,
    /// protocol . port of the node -> refusal.
    RefusedNodePorts,
    /// address . protocol . port . endpoint of Services with affinity.
    AffinityLive,
    /// endpoint . endpoint: a container that reached itself.
    Hairpin,
    /// address . protocol . port of ways in that are no cluster IP: whose connections are this table's.
    External,
    /// protocol . port of the node: the same.
    NodePortFronts,
    /// address . protocol . port of Services with affinity -> the chain that remembers.
    Affine,
    /// protocol . port of the node: the same.
    AffineNodePorts,
}

impl SetKind {
    /// In the order of changes.
    pub const ALL: [Self; 11] = [
        Self::Endpoints,
        Self::AffinityLive,
        Self::Hairpin,
        Self::External,
        Self::NodePortFronts,
        Self::Affine,
        Self::AffineNodePorts,
        Self::Services,
        Self::NodePorts,
        Self::Refused,
        Self::RefusedNodePorts,
    ];

    /// Name in the table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::NodePorts => "node-ports",
            Self::Endpoints => "endpoints",
            Self::Refused => "refused",
            Self::RefusedNodePorts => "refused-node-ports",
            Self::AffinityLive => "affinity-live",
            Self::Hairpin => "hairpin",
            Self::External => "external",
            Self::NodePortFronts => "node-port-fronts",
            Self::Affine => "affine",
            Self::AffineNodePorts => "affine-node-ports",
        }
    }
}

/// An element's place.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Which set.
    pub set: SetKind,
    /// Every field padded to four bytes.
    pub bytes: Vec<u8>,
}

/// A chain that distributes over a number of endpoints; over none, one that remembers which was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Chain {
    /// The destination is the node, not the key's address.
    pub is_node_port: bool,
    /// How many endpoints.
    pub count: u32,
    /// How long a client stays with its endpoint.
    pub affinity_seconds: Option<u32>,
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_node_port { "node-port" } else { "service" };
        match self.affinity_seconds {
            Some(seconds) if self.count == 0 => write!(f, "remember-{kind}-for-{seconds}s"),
            None => write!(f, "{kind}-{}", self.count),
            Some(seconds) => write!(f, "{kind}-{}-for-{seconds}s", self.count),
        }
    }
}

/// What an element leads to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// A distributing chain.
    Chain(Chain),
    /// Address and port.
    Endpoint(Ipv4Addr, u16),
    /// A TCP reset or ICMP.
    Refuse,
    /// Silence.
    Drop,
    /// Being in the set is all.
    Member,
}

impl Target {
    /// As nf_tables holds it.
    #[must_use]
    pub fn to_value(&self) -> Value {
        match self {
            Self::Chain(chain) => Value::Verdict(Verdict::Goto(chain.to_string())),
            Self::Endpoint(address, port) => Value::Bytes(endpoint_bytes(*address, *port).to_vec()),
            Self::Refuse => Value::Verdict(Verdict::Goto("refuse".into())),
            Self::Drop => Value::Verdict(Verdict::Drop),
            Self::Member => Value::Nothing,
        }
    }
}

/// An element.
pub type Item = (Key, Target);

/// What a Service needs, and what of it cannot be given.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Plan {
    /// For the sets.
    pub items: Vec<Item>,
    /// Ways in that are somebody else's.
    pub conflicts: Vec<Conflict>,
}

/// Whether a plan of this Service depends on [`Surroundings`].
#[must_use]
pub fn looks_around(entry: &Entry) -> bool {
    entry.service.as_deref().is_some_and(|service| {
        let Some(spec) = &service.spec else { return false };
        let has_node_port = spec.ports.iter().flatten().any(|port| port.node_port.is_some_and(|port| port != 0));
        has_node_port || !external_addresses(service, spec).is_empty()
    })
}

/// All elements of a Service.
#[must_use]
pub fn plan(entry: &Entry, settings: &Settings, surroundings: &Surroundings) -> Plan {
    let mut plan = Plan::default();
    let Some((service, spec)) = entry.service.as_deref().and_then(|service| Some((service, service.spec.as_ref()?)))
    else {
        return plan;
    };
    let labels = service.metadata.labels.iter().flatten();
    let is_ours = !labels.map(|(label, _)| label.as_str()).any(|label| NOT_OURS.contains(&label));
    if !is_ours || spec.type_.as_deref() == Some("ExternalName") || service.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    for port in spec.ports.iter().flatten() {
        plan_port(&mut plan, entry, service, spec, port, (settings, surroundings));
    }
    plan
}

/// A way in: where, and which endpoints it leads to.
struct Front<'a> {
    address: Ipv4Addr,
    is_node_port: bool,
    protocol: u8,
    port: u16,
    endpoints: &'a BTreeSet<(Ipv4Addr, u16)>,
    /// What happens without endpoints.
    otherwise: Target,
}

fn plan_port(
    plan: &mut Plan,
    entry: &Entry,
    service: &Service,
    spec: &ServiceSpec,
    port: &ServicePort,
    (settings, surroundings): (&Settings, &Surroundings),
) {
    let protocol = match port.protocol.as_deref() {
        None | Some("TCP") => 6,
        Some("UDP") => 17,
        Some("SCTP") => 132,
        Some(_) => return,
    };
    let Ok(number) = u16::try_from(port.port) else { return };
    let is_local = |policy: &Option<String>| policy.as_deref() == Some("Local");
    let (inside_local, outside_local) =
        (is_local(&spec.internal_traffic_policy), is_local(&spec.external_traffic_policy));
    let all = endpoints(entry, spec, port, None);
    let own = endpoints(entry, spec, port, Some(&settings.node_name));
    let affinity = affinity(spec);
    let front = |address, is_node_port, port, local, otherwise| Front {
        address,
        is_node_port,
        protocol,
        port,
        endpoints: if local { &own } else { &all },
        otherwise,
    };
    for address in v4(cluster_addresses(service)) {
        if settings.dns_address != address && may_be_endpoint(address) {
            front(address, false, number, inside_local, Target::Refuse).plan(&mut plan.items, affinity);
        }
    }
    // Upstream: a node without an endpoint stays silent, so that a load balancer tries another one.
    let nothing_here = || if outside_local && !all.is_empty() { Target::Drop } else { Target::Refuse };
    for address in external_addresses(service, spec) {
        match surroundings.external(settings, address, protocol, number) {
            Some(conflict) => plan.conflicts.push(conflict),
            None => {
                let items = &mut plan.items;
                front(address, false, number, outside_local, nothing_here()).plan(items, affinity);
                let bytes = key_bytes(address, protocol, number);
                items.push((Key { set: SetKind::External, bytes }, Target::Member));
            }
        }
    }
    if let Some(node_port) = port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0) {
        match surroundings.node_port(settings, protocol, node_port) {
            Some(conflict) => plan.conflicts.push(conflict),
            None => {
                let items = &mut plan.items;
                front(Ipv4Addr::UNSPECIFIED, true, node_port, outside_local, nothing_here()).plan(items, affinity);
                let bytes = key_bytes(Ipv4Addr::UNSPECIFIED, protocol, node_port)[4..].to_vec();
                items.push((Key { set: SetKind::NodePortFronts, bytes }, Target::Member));
            }
        }
    }
    for (address, _) in &all {
        let bytes = [address.octets(), address.octets()].concat();
        plan.items.push((Key { set: SetKind::Hairpin, bytes }, Target::Member));
    }
}

/// Not the machine that looks, not its link, not everybody: upstream's validation refuses the same, and what came in before
/// it did, or by another way, must not lead to what listens on the node's loopback (CVE-2020-8558's class).
#[must_use]
pub fn may_be_endpoint(address: Ipv4Addr) -> bool {
    let is_reserved = address.octets()[0] == 0 || address.octets()[0] >= 240;
    !(is_reserved || address.is_loopback() || address.is_link_local() || address.is_multicast())
}

impl Front<'_> {
    fn plan(&self, items: &mut Vec<Item>, affinity_seconds: Option<u32>) {
        let full = key_bytes(self.address, self.protocol, self.port);
        let place = |usual, node_port| {
            // The sets of node ports have no address.
            if self.is_node_port { (node_port, full[4..].to_vec()) } else { (usual, full.clone()) }
        };
        if self.endpoints.is_empty() {
            let (set, bytes) = place(SetKind::Refused, SetKind::RefusedNodePorts);
            items.push((Key { set, bytes }, self.otherwise.clone()));
            return;
        }
        let count = u32::try_from(self.endpoints.len().min(ENDPOINTS_MAX)).unwrap_or(u32::MAX);
        let chain = Chain { is_node_port: self.is_node_port, count, affinity_seconds };
        let (set, bytes) = place(SetKind::Services, SetKind::NodePorts);
        items.push((Key { set, bytes }, Target::Chain(chain)));
        if affinity_seconds.is_some() {
            let (set, bytes) = place(SetKind::Affine, SetKind::AffineNodePorts);
            items.push((Key { set, bytes }, Target::Chain(Chain { count: 0, ..chain })));
        }
        for (index, (address, port)) in (0..count).zip(self.endpoints) {
            let bytes = [&full[..], &index.to_ne_bytes()].concat();
            items.push((Key { set: SetKind::Endpoints, bytes }, Target::Endpoint(*address, *port)));
            if affinity_seconds.is_some() {
                let bytes = [&full[..], &endpoint_bytes(*address, *port)].concat();
                items.push((Key { set: SetKind::AffinityLive, bytes }, Target::Member));
            }
        }
    }
}

/// The endpoints that get traffic for this port; only those of `node`, when given.
fn endpoints(entry: &Entry, spec: &ServiceSpec, port: &ServicePort, node: Option<&str>) -> BTreeSet<(Ipv4Addr, u16)> {
    let publish_all = spec.publish_not_ready_addresses == Some(true);
    let (mut ready, mut serving) = (BTreeSet::new(), BTreeSet::new());
    for slice in entry.slices.values().filter(|slice| slice.address_type == "IPv4") {
        let Some(number) = slice_port(slice, port) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            if node.is_some() && endpoint.node_name.as_deref() != node {
                continue;
            }
            let addresses = endpoint.addresses.iter().filter_map(|text| text.parse::<Ipv4Addr>().ok());
            let addresses = addresses.filter(|address| may_be_endpoint(*address));
            let pairs = addresses.map(|address| (address, number));
            if is_ready(endpoint) || publish_all {
                ready.extend(pairs);
            } else if is_serving_its_last(endpoint) {
                serving.extend(pairs);
            }
        }
    }
    if ready.is_empty() { serving } else { ready }
}

/// The number a slice gives to a Service's port; named target ports are resolved there, per slice.
fn slice_port(slice: &EndpointSlice, port: &ServicePort) -> Option<u16> {
    let name = port.name.as_deref().unwrap_or_default();
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let found = slice.ports.iter().flatten().find(|candidate| {
        candidate.name.as_deref().unwrap_or_default() == name
            && candidate.protocol.as_deref().unwrap_or("TCP") == protocol
    })?;
    u16::try_from(found.port?).ok().filter(|port| *port != 0)
}

/// EndpointSlice: an unknown condition counts as ready.
pub(crate) fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
}

fn is_serving_its_last(endpoint: &Endpoint) -> bool {
    endpoint
        .conditions
        .as_ref()
        .is_some_and(|conditions| conditions.terminating == Some(true) && conditions.serving != Some(false))
}

fn affinity(spec: &ServiceSpec) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let configured = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = configured.and_then(|client| client.timeout_seconds).unwrap_or(AFFINITY_SECONDS);
    u32::try_from(seconds).ok().filter(|seconds| *seconds > 0)
}

fn external_addresses(service: &Service, spec: &ServiceSpec) -> BTreeSet<Ipv4Addr> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let balancers = status.into_iter().flat_map(|balancer| balancer.ingress.iter().flatten());
    // `Proxy`: the balancer wants to see its own traffic.
    let balancers = balancers.filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"));
    let texts = balancers.filter_map(|ingress| ingress.ip.as_ref()).chain(spec.external_ips.iter().flatten());
    texts.filter_map(|text| text.parse().ok()).collect()
}

fn v4(addresses: Vec<std::net::IpAddr>) -> impl Iterator<Item = Ipv4Addr> {
    addresses.into_iter().filter_map(|address| match address {
        std::net::IpAddr::V4(v4) => Some(v4),
        std::net::IpAddr::V6(_) => None,
    })
}

fn key_bytes(address: Ipv4Addr, protocol: u8, port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    [&address.octets()[..], &[protocol, 0, 0, 0, high, low, 0, 0]].concat()
}

fn endpoint_bytes(address: Ipv4Addr, port: u16) -> [u8; 8] {
    let ([a, b, c, d], [high, low]) = (address.octets(), port.to_be_bytes());
    [a, b, c, d, high, low, 0, 0]
}

/// Address, protocol and port of a key that begins with them.
#[must_use]
pub fn ports_of(key: &Key) -> (Ipv4Addr, u8, u16) {
    let byte = |index: usize| key.bytes.get(index).copied().unwrap_or_default();
    let has_address = !matches!(key.set, SetKind::NodePorts | SetKind::RefusedNodePorts | SetKind::NodePortFronts);
    let shift = if has_address { 4 } else { 0 };
    let address = if shift == 0 { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::new(byte(0), byte(1), byte(2), byte(3)) };
    (address, byte(shift), u16::from_be_bytes([byte(shift + 4), byte(shift + 5)]))
}
