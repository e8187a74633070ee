//! What a Service needs and holds: filled in before it is stored. Pure beside the claim.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use control_plane_api::{Cause, Object, Status};
use serde_json::{Value, json};

use super::{Claim, Refused, lock};
use crate::status::Outcome;

const NONE: &str = "None";

fn service_type(object: &Object) -> &str {
    object.str_at(&["spec", "type"]).filter(|text| !text.is_empty()).unwrap_or("ClusterIP")
}

fn has_ports(object: &Object) -> bool {
    match service_type(object) {
        "NodePort" => true,
        "LoadBalancer" => object.bool_at(&["spec", "allocateLoadBalancerNodePorts"]) != Some(false),
        _ => false,
    }
}

fn cluster_ip(object: &Object) -> &str {
    let first = object.list_at(&["spec", "clusterIPs"]).first().and_then(Value::as_str);
    object.str_at(&["spec", "clusterIP"]).filter(|text| !text.is_empty()).or(first).unwrap_or("")
}

/// Addresses and ports that a stored Service holds.
pub(super) fn holdings(object: &Object) -> (Vec<Ipv4Addr>, Vec<u16>) {
    let addresses = cluster_ip(object).parse().ok().into_iter().collect();
    let mut ports: Vec<u16> = object.list_at(&["spec", "ports"]).iter().filter_map(node_port).collect();
    ports.extend(object.i64_at(&["spec", "healthCheckNodePort"]).and_then(port));
    ports.sort_unstable();
    ports.dedup();
    (addresses, ports)
}

fn port(number: i64) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port != 0)
}

fn node_port(entry: &Value) -> Option<u16> {
    entry.get("nodePort").and_then(Value::as_i64).and_then(port)
}

fn invalid(object: &Object, field: &str, value: &Value, why: &Refused) -> Status {
    let detail = match why {
        Refused::Full => format!("failed to allocate: {why}"),
        why => why.to_string(),
    };
    Status::invalid("", "Service", object.name(), vec![Cause::invalid(field, value, &detail)])
}

/// The cluster has addresses of one family: what asks for the other is told so, and never given something else in silence.
/// A headless Service without a selector has whatever addresses its endpoints have.
fn families(object: &Object) -> Outcome<()> {
    let selects = object.at(&["spec", "selector"]).and_then(Value::as_object).is_some_and(|map| !map.is_empty());
    if service_type(object) == "ExternalName" || (cluster_ip(object) == NONE && !selects) {
        return Ok(());
    }
    let mut causes = Vec::new();
    let families = object.at(&["spec", "ipFamilies"]).cloned().unwrap_or_default();
    for (index, family) in families.as_array().into_iter().flatten().enumerate() {
        if family == "IPv6" {
            let field = format!("spec.ipFamilies[{index}]");
            causes.push(Cause::invalid(field, &families, "not configured on this cluster"));
        }
    }
    let addresses = object.list_at(&["spec", "clusterIPs"]);
    for (index, address) in addresses.iter().enumerate() {
        if address.as_str().is_some_and(|text| text.parse::<Ipv6Addr>().is_ok()) {
            let field = format!("spec.clusterIPs[{index}]");
            causes.push(Cause::invalid(field, address, "IPv6 is not configured on this cluster"));
        }
    }
    if object.str_at(&["spec", "ipFamilyPolicy"]) == Some("RequireDualStack") {
        let detail = "this cluster is not configured for dual-stack services";
        causes.push(Cause::invalid_str("spec.ipFamilyPolicy", "RequireDualStack", detail));
    }
    if causes.is_empty() { Ok(()) } else { Err(Status::invalid("", "Service", object.name(), causes).into()) }
}

/// Gives the Service its address and ports, keeps those it has, and lets go of those it no longer needs.
pub(super) fn fill(mut claim: Claim, live: Option<&Object>, object: &mut Object, dry_run: bool) -> Outcome<Claim> {
    let (old_addresses, old_ports) = live.map(holdings).unwrap_or_default();
    families(object)?;
    address(&mut claim, &old_addresses, live, object)?;
    ports(&mut claim, &old_ports, object)?;
    let (addresses, ports) = holdings(object);
    claim.let_go_addresses = old_addresses.into_iter().filter(|old| !addresses.contains(old)).collect();
    claim.let_go_ports = old_ports.into_iter().filter(|old| !ports.contains(old)).collect();
    if dry_run {
        // Shown, not kept: dropping the claim returns what was taken.
        drop(std::mem::take(&mut claim));
    }
    Ok(claim)
}

fn address(claim: &mut Claim, old: &[Ipv4Addr], live: Option<&Object>, object: &mut Object) -> Outcome<()> {
    if service_type(object) == "ExternalName" {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            object.remove(&["spec", field]);
        }
        return Ok(());
    }
    let mut wanted = cluster_ip(object).to_owned();
    if wanted.is_empty()
        && let Some(live) = live
    {
        // An update that leaves the address out keeps it.
        cluster_ip(live).clone_into(&mut wanted);
    }
    if wanted != NONE {
        let shared = claim.state.clone();
        let Some(shared) = shared else { return Ok(()) };
        let mut state = lock(&shared);
        if wanted.is_empty() {
            let given = state.any_address().map_err(|why| invalid(object, "spec.clusterIPs", &Value::Null, &why))?;
            claim.addresses.push(given);
            wanted = given.to_string();
        } else {
            let field = "spec.clusterIPs";
            let parsed: Ipv4Addr = wanted.parse().map_err(|_| {
                let cause = Cause::invalid(field, &json!([wanted]), "must be a valid IPv4 address or None");
                Status::invalid("", "Service", object.name(), vec![cause])
            })?;
            if !old.contains(&parsed) {
                state.take_address(parsed).map_err(|why| invalid(object, field, &json!([wanted]), &why))?;
                claim.addresses.push(parsed);
            }
        }
    }
    object.set(&["spec", "clusterIP"], wanted.as_str());
    object.set(&["spec", "clusterIPs"], json!([wanted]));
    if object.list_at(&["spec", "ipFamilies"]).is_empty() {
        object.set(&["spec", "ipFamilies"], json!(["IPv4"]));
    }
    if object.at(&["spec", "ipFamilyPolicy"]).is_none() {
        object.set(&["spec", "ipFamilyPolicy"], "SingleStack");
    }
    Ok(())
}

fn ports(claim: &mut Claim, old: &[u16], object: &mut Object) -> Outcome<()> {
    let needs = has_ports(object);
    let local_policy = object.str_at(&["spec", "externalTrafficPolicy"]) == Some("Local");
    let is_load_balancer = service_type(object) == "LoadBalancer";
    let mut entries = object.list_at(&["spec", "ports"]).to_vec();
    let Some(shared) = claim.state.clone() else { return Ok(()) };
    let mut state = lock(&shared);
    // TCP and UDP of one number may share a NodePort, within one Service.
    let mut own: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    for (index, entry) in entries.iter_mut().enumerate() {
        let Some(map) = entry.as_object_mut() else { continue };
        let protocol = map.get("protocol").and_then(Value::as_str).unwrap_or("TCP").to_owned();
        let given = map.get("nodePort").and_then(Value::as_i64).unwrap_or(0);
        if !needs && (service_type(object) != "LoadBalancer" || given == 0) {
            map.remove("nodePort");
            continue;
        }
        let field = format!("spec.ports[{index}].nodePort");
        let number = if given == 0 {
            let number = state.any_port().map_err(|why| invalid(object, &field, &json!(0), &why))?;
            claim.ports.push(number);
            number
        } else {
            let outside = Refused::PortOutside { first: state.port_range.0, last: state.port_range.1 };
            let number = port(given).ok_or_else(|| invalid(object, &field, &json!(given), &outside))?;
            let shared_here = own.get(&number).is_some_and(|protocols| !protocols.contains(&protocol));
            let taken_here = own.get(&number).is_some_and(|protocols| protocols.contains(&protocol));
            if taken_here || (!shared_here && !old.contains(&number)) {
                state.take_port(number).map_err(|why| invalid(object, &field, &json!(given), &why))?;
                claim.ports.push(number);
            }
            number
        };
        own.entry(number).or_default().push(protocol);
        map.insert("nodePort".into(), number.into());
    }
    let health = object.i64_at(&["spec", "healthCheckNodePort"]).and_then(port);
    if is_load_balancer && local_policy {
        let number = match health {
            Some(number) if old.contains(&number) => number,
            Some(number) => {
                let field = "spec.healthCheckNodePort";
                state.take_port(number).map_err(|why| invalid(object, field, &json!(number), &why))?;
                claim.ports.push(number);
                number
            }
            None => {
                let field = "spec.healthCheckNodePort";
                let number = state.any_port().map_err(|why| invalid(object, field, &json!(0), &why))?;
                claim.ports.push(number);
                number
            }
        };
        object.set(&["spec", "healthCheckNodePort"], number);
    } else if health.is_some() {
        object.remove(&["spec", "healthCheckNodePort"]);
    }
    drop(state);
    if !entries.is_empty() {
        object.set(&["spec", "ports"], entries);
    }
    Ok(())
}
