//! ClusterIPs and NodePorts: given out, honoured when asked for, taken back. Memory only; rebuilt from the stored Services at start,
//! which is also the repair: what no Service holds is free again.
//!
//! Invariant: an address or port that a stored Service holds is never given to another. A claim that is not kept is returned.

mod service;

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use control_plane_api::{Object, Row};

use crate::{config::Cidr, status::Outcome};

/// Addresses at the range's start that are given only to who asks for them, as upstream keeps them for static use.
const STATIC_PART_MAX: u32 = 256;

#[derive(Debug)]
pub(crate) struct Allocators {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    cidr: Cidr,
    addresses: BTreeSet<Ipv4Addr>,
    /// Offset of the next dynamic address to try.
    next_address: u32,
    ports: BTreeSet<u16>,
    port_range: (u16, u16),
    /// Within the range: given as long as one of them is free.
    ports_first: (u16, u16),
    next_port: u16,
}

/// What was taken for a write that has not happened yet; dropped without `keep`, it is free again.
#[derive(Debug, Default)]
pub(crate) struct Claim {
    state: Option<Arc<Mutex<State>>>,
    addresses: Vec<Ipv4Addr>,
    ports: Vec<u16>,
    /// Freed when the write has happened.
    let_go_addresses: Vec<Ipv4Addr>,
    let_go_ports: Vec<u16>,
}

impl Claim {
    /// The write happened.
    pub(crate) fn keep(mut self) {
        if let Some(state) = self.state.take() {
            let mut state = lock(&state);
            for address in &self.let_go_addresses {
                state.addresses.remove(address);
            }
            for port in &self.let_go_ports {
                state.ports.remove(port);
            }
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(state) = self.state.take() {
            let mut state = lock(&state);
            for address in &self.addresses {
                state.addresses.remove(address);
            }
            for port in &self.ports {
                state.ports.remove(port);
            }
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why nothing was given.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("provided IP is already allocated")]
    AddressTaken,
    #[error("the provided IP is not in the valid range. The range of valid IPs is {range}")]
    AddressOutside { range: String },
    #[error("provided port is already allocated")]
    PortTaken,
    #[error("the provided port is not in the valid range. The range of valid ports is {first}-{last}")]
    PortOutside { first: u16, last: u16 },
    #[error("the range is full; delete a Service that is no longer needed")]
    Full,
}

impl Allocators {
    pub(crate) fn new(cidr: Cidr, port_range: (u16, u16), ports_first: (u16, u16)) -> Self {
        let state = State {
            cidr,
            addresses: BTreeSet::new(),
            next_address: 0,
            ports: BTreeSet::new(),
            port_range,
            ports_first,
            next_port: ports_first.0,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Takes note of what stored Services hold.
    pub(crate) fn learn(&self, services: impl Iterator<Item = Object>) {
        let mut state = lock(&self.state);
        for service in services {
            let (addresses, ports) = service::holdings(&service);
            for address in addresses {
                if !state.addresses.insert(address) {
                    tracing::error!(%address, service = service.name(), "two Services hold one ClusterIP; recreate one");
                }
            }
            for port in ports {
                if !state.ports.insert(port) {
                    tracing::error!(port, service = service.name(), "two Services hold one NodePort; recreate one");
                }
            }
        }
    }

    pub(crate) fn claim_for_create(&self, row: &Row, object: &mut Object, dry_run: bool) -> Outcome<Claim> {
        if !is_service(row) {
            return Ok(Claim::default());
        }
        let claim = self.start();
        service::fill(claim, None, object, dry_run)
    }

    pub(crate) fn claim_for_update(
        &self,
        row: &Row,
        live: &Object,
        next: &mut Object,
        dry_run: bool,
    ) -> Outcome<Claim> {
        if !is_service(row) {
            return Ok(Claim::default());
        }
        let claim = self.start();
        service::fill(claim, Some(live), next, dry_run)
    }

    /// Takes back what a deleted Service held.
    pub(crate) fn release(&self, row: &Row, object: &Object) {
        if !is_service(row) {
            return;
        }
        let (addresses, ports) = service::holdings(object);
        let mut state = lock(&self.state);
        for address in addresses {
            state.addresses.remove(&address);
        }
        for port in ports {
            state.ports.remove(&port);
        }
    }

    fn start(&self) -> Claim {
        let mut claim = Claim::default();
        claim.state = Some(Arc::clone(&self.state));
        claim
    }
}

fn is_service(row: &Row) -> bool {
    row.group.is_empty() && row.resource == "services"
}

impl State {
    fn take_address(&mut self, wanted: Ipv4Addr) -> Result<(), Refused> {
        let last = self.cidr.nth(self.cidr.size() - 1);
        if !self.cidr.contains(wanted) || wanted == self.cidr.network || wanted == last {
            return Err(Refused::AddressOutside { range: self.cidr.to_string() });
        }
        if self.addresses.insert(wanted) { Ok(()) } else { Err(Refused::AddressTaken) }
    }

    fn any_address(&mut self) -> Result<Ipv4Addr, Refused> {
        // Network and broadcast address are never given.
        let (first, last) = (1, self.cidr.size() - 2);
        // Upstream's rule: min(max(16, size / 16), 256) addresses are kept for those who ask by number.
        let reserved = (self.cidr.size() / 16).clamp(16, STATIC_PART_MAX).min(last / 2);
        let dynamic = (first + reserved)..=last;
        let count = last - first - reserved + 1;
        let start = self.next_address % count;
        let turn = (0..count).map(|step| first + reserved + (start + step) % count);
        debug_assert!(dynamic.contains(&(first + reserved)));
        for offset in turn.chain(first..first + reserved) {
            let address = self.cidr.nth(offset);
            if self.addresses.insert(address) {
                self.next_address = offset.saturating_sub(first + reserved) + 1;
                return Ok(address);
            }
        }
        Err(Refused::Full)
    }

    fn take_port(&mut self, wanted: u16) -> Result<(), Refused> {
        let (first, last) = self.port_range;
        if wanted < first || wanted > last {
            return Err(Refused::PortOutside { first, last });
        }
        if self.ports.insert(wanted) { Ok(()) } else { Err(Refused::PortTaken) }
    }

    fn any_port(&mut self) -> Result<u16, Refused> {
        let (first, last) = self.ports_first;
        let turn = (self.next_port..=last).chain(first..self.next_port);
        for port in turn {
            if self.ports.insert(port) {
                // A prime step spreads ports, so that a new Service seldom gets the port of one just deleted.
                let count = u32::from(last - first) + 1;
                let next = (u32::from(port - first) + 1231) % count;
                self.next_port = first + u16::try_from(next).unwrap_or(0);
                return Ok(port);
            }
        }
        let (first, last) = self.port_range;
        (first..=last).find(|port| self.ports.insert(*port)).ok_or(Refused::Full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use control_plane_api::row;
    use serde_json::{Value, json};

    fn service(name: &str, spec: Value) -> Object {
        Object::from_value(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}))
            .unwrap()
    }

    fn allocators() -> Allocators {
        Allocators::new("10.43.0.0/28".parse().unwrap(), (30000, 30003), (30002, 30003))
    }

    #[test]
    fn gives_honours_refuses_and_takes_back() {
        let row = row("", "v1", "services").unwrap();
        let allocators = allocators();
        let mut given = BTreeSet::new();
        for index in 0..14 {
            let mut one = service(&format!("s{index}"), json!({"ports": [{"port": 80}]}));
            allocators.claim_for_create(row, &mut one, false).unwrap().keep();
            assert!(given.insert(one.str_at(&["spec", "clusterIP"]).unwrap().to_owned()));
        }
        let mut one_more = service("x", json!({}));
        assert!(allocators.claim_for_create(row, &mut one_more, false).is_err(), "14 addresses in a /28");
        allocators.release(row, &service("s", json!({"clusterIP": "10.43.0.3", "clusterIPs": ["10.43.0.3"]})));
        let mut wants = service("w", json!({"clusterIP": "10.43.0.3"}));
        allocators.claim_for_create(row, &mut wants, false).unwrap().keep();
        let mut same = service("t", json!({"clusterIP": "10.43.0.3"}));
        let failure = allocators.claim_for_create(row, &mut same, false).unwrap_err();
        assert_eq!(failure.0.code, 422);
        assert!(failure.0.message.contains("already allocated"), "{}", failure.0.message);
        let mut outside = service("o", json!({"clusterIP": "10.44.0.1"}));
        assert!(allocators.claim_for_create(row, &mut outside, false).is_err());
    }

    #[test]
    fn a_claim_that_is_not_kept_is_free_again() {
        let row = row("", "v1", "services").unwrap();
        let allocators = allocators();
        let spec = json!({"clusterIP": "10.43.0.5", "type": "NodePort", "ports": [{"port": 1, "nodePort": 30001}]});
        drop(allocators.claim_for_create(row, &mut service("a", spec.clone()), false).unwrap());
        allocators.claim_for_create(row, &mut service("b", spec.clone()), false).unwrap().keep();
        assert!(allocators.claim_for_create(row, &mut service("c", spec), false).is_err());
    }

    #[test]
    fn ports_of_the_first_part_are_given_first() {
        let row = row("", "v1", "services").unwrap();
        let allocators = allocators();
        let mut given = Vec::new();
        for index in 0..4 {
            let mut one = service(&format!("s{index}"), json!({"type": "NodePort", "ports": [{"port": 80}]}));
            allocators.claim_for_create(row, &mut one, false).unwrap().keep();
            given.push(one.list_at(&["spec", "ports"])[0]["nodePort"].as_i64().unwrap());
        }
        given[..2].sort_unstable();
        assert_eq!(given, [30002, 30003, 30000, 30001]);
        let mut one_more = service("x", json!({"type": "NodePort", "ports": [{"port": 80}]}));
        assert!(allocators.claim_for_create(row, &mut one_more, false).is_err(), "four ports");
    }

    #[test]
    fn headless_and_external_services_hold_nothing() {
        let row = row("", "v1", "services").unwrap();
        let allocators = allocators();
        let mut headless = service("h", json!({"clusterIP": "None"}));
        allocators.claim_for_create(row, &mut headless, false).unwrap().keep();
        assert_eq!(headless.at(&["spec", "clusterIPs"]), Some(&json!(["None"])));
        let mut external = service("e", json!({"type": "ExternalName", "externalName": "x.y"}));
        allocators.claim_for_create(row, &mut external, false).unwrap().keep();
        assert_eq!(external.at(&["spec", "clusterIP"]), None);
    }

    #[test]
    fn a_family_that_the_cluster_has_not_is_refused() {
        let row = row("", "v1", "services").unwrap();
        let refused = |spec: Value| {
            let failure = allocators().claim_for_create(row, &mut service("s", spec), false).err()?;
            failure.0.details.and_then(|details| details.causes.first().map(|cause| cause.field.clone()))
        };
        for (spec, field) in [
            (json!({"ipFamilies": ["IPv6"]}), Some("spec.ipFamilies[0]")),
            (json!({"ipFamilies": ["IPv4", "IPv6"]}), Some("spec.ipFamilies[1]")),
            (json!({"ipFamilyPolicy": "RequireDualStack"}), Some("spec.ipFamilyPolicy")),
            (json!({"clusterIP": "fd00::1", "clusterIPs": ["fd00::1"]}), Some("spec.clusterIPs[0]")),
            (
                json!({"ipFamilyPolicy": "RequireDualStack", "clusterIP": "None", "selector": {"a": "b"}}),
                Some("spec.ipFamilyPolicy"),
            ),
            (json!({"ipFamilyPolicy": "RequireDualStack", "clusterIP": "None"}), None),
            (json!({"ipFamilyPolicy": "PreferDualStack"}), None),
            (json!({"ipFamilies": ["IPv4"]}), None),
        ] {
            assert_eq!(refused(spec.clone()).as_deref(), field, "{spec}");
        }
    }

    #[test]
    fn a_change_of_type_takes_and_returns_ports() {
        let row = row("", "v1", "services").unwrap();
        let allocators = allocators();
        let mut live = service("s", json!({"type": "ClusterIP", "ports": [{"port": 80}, {"port": 81}]}));
        allocators.claim_for_create(row, &mut live, false).unwrap().keep();
        let mut next = live.clone();
        next.set(&["spec", "type"], "NodePort");
        allocators.claim_for_update(row, &live, &mut next, false).unwrap().keep();
        let ports: Vec<i64> =
            next.list_at(&["spec", "ports"]).iter().map(|port| port["nodePort"].as_i64().unwrap()).collect();
        assert_eq!(ports.len(), 2);
        assert_eq!(next.at(&["spec", "clusterIP"]), live.at(&["spec", "clusterIP"]));
        let mut back = next.clone();
        back.set(&["spec", "type"], "ClusterIP");
        allocators.claim_for_update(row, &next, &mut back, false).unwrap().keep();
        assert!(back.list_at(&["spec", "ports"]).iter().all(|port| port.get("nodePort").is_none()));
        for port in ports {
            let spec = json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": port}]});
            allocators.claim_for_create(row, &mut service("n", spec), false).unwrap().keep();
        }
    }
}
