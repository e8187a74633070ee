//! What every cluster starts with: namespaces, default roles, the `kubernetes` Service with its endpoints, priority classes.
//! Idempotent: what is there is kept, rules that an upgrade brings are added.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use control_plane_api::{Object, row};
use futures::{StreamExt, TryStreamExt};
use http::Request;
use serde_json::{Value, json};

use crate::{
    authn::{MASTERS, User},
    authz::defaults,
    body,
    config::Config,
    dispatch::{self, Peer},
    kernel::Kernel,
};

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
const MANAGER: &str = "kube-apiserver";
/// Roles and bindings written at once.
const CONCURRENT_MAX: usize = 64;
/// Between two looks at what must always be there; upstream's interval.
const KEEP_INTERVAL: Duration = Duration::from_secs(10);

/// Why the start failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("create {what}: {message}")]
    Refused { what: String, message: String },
}

pub(crate) async fn run(kernel: &Arc<Kernel>) -> Result<(), Error> {
    for name in NAMESPACES {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        ensure(kernel, "", "namespaces", "", name, object).await?;
    }
    // Together: the store commits in groups, and nothing here depends on another.
    let roles = defaults::all().into_iter().map(|default| ensure_role(kernel, default));
    futures::stream::iter(roles).buffer_unordered(CONCURRENT_MAX).try_collect::<()>().await?;
    for (name, value, description) in [
        (
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
        (
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
    ] {
        let object = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "description": description});
        ensure(kernel, "scheduling.k8s.io", "priorityclasses", "", name, object).await?;
    }
    service(kernel).await
}

/// Brings the `kubernetes` Service back when somebody deletes it, as `kubectl delete all --all` does: pods reach the API
/// server through it.
pub(crate) async fn keep(kernel: Arc<Kernel>) {
    let is_there = |group, resource| {
        kernel.cache.of(group, resource).is_some_and(|all| all.get("default", "kubernetes").is_some())
    };
    loop {
        if tokio::time::timeout(KEEP_INTERVAL, kernel.shutdown.cancelled()).await.is_ok() {
            return;
        }
        let parts = [("", "services"), ("", "endpoints"), ("discovery.k8s.io", "endpointslices")];
        if parts.iter().all(|(group, resource)| is_there(group, resource)) {
            continue;
        }
        if let Err(error) = service(&kernel).await {
            tracing::warn!(%error, "the Service kubernetes could not be restored");
        }
    }
}

/// Creates the object unless it is there.
async fn ensure(
    kernel: &Arc<Kernel>,
    group: &str,
    resource: &str,
    namespace: &str,
    name: &str,
    object: Value,
) -> Result<(), Error> {
    let exists = kernel.cache.of(group, resource).is_some_and(|all| all.get(namespace, name).is_some());
    if exists {
        return Ok(());
    }
    match send(kernel, "POST", group, resource, namespace, "", &object).await {
        Ok(_) => Ok(()),
        // Another server was quicker.
        Err((409, _)) => Ok(()),
        Err((_, message)) => Err(Error::Refused { what: format!("{resource} {name:?}"), message }),
    }
}

/// A default role gets the rules it lacks; one that an administrator took out of automatic care is left alone.
async fn ensure_role(kernel: &Arc<Kernel>, default: defaults::Default) -> Result<(), Error> {
    let group = crate::authz::rbac::GROUP;
    let defaults::Default { resource, namespace, name, object } = default;
    let found = kernel.cache.of(group, resource).and_then(|all| all.get(&namespace, &name));
    let Some(found) = found else {
        return ensure(kernel, group, resource, &namespace, &name, object).await;
    };
    let live = found.object();
    if live.annotation("rbac.authorization.kubernetes.io/autoupdate") == Some("false") {
        return Ok(());
    }
    let mut next = live.clone();
    for field in ["rules", "subjects"] {
        let wanted = object.get(field).and_then(Value::as_array);
        let mut list = live.list_at(&[field]).to_vec();
        for one in wanted.into_iter().flatten() {
            if !list.contains(one) {
                list.push(one.clone());
            }
        }
        if !list.is_empty() {
            next.set(&[field], list);
        }
    }
    for (key, value) in object["metadata"]["labels"].as_object().into_iter().flatten() {
        next.set_label(key, value.as_str().unwrap_or(""));
    }
    if next == live {
        return Ok(());
    }
    let sent = send(kernel, "PUT", group, resource, &namespace, &name, &next.into_value()).await;
    sent.map(|_| ()).map_err(|(_, message)| Error::Refused { what: format!("{resource} {name:?}"), message })
}

/// The `kubernetes` Service and where it leads.
async fn service(kernel: &Arc<Kernel>) -> Result<(), Error> {
    let Config { service_cidr, advertise, .. } = kernel.config;
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let object = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
        "spec": {"type": "ClusterIP", "clusterIP": service_cidr.nth(1).to_string(), "sessionAffinity": "None",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": advertise.port()}]}});
    ensure(kernel, "", "services", "default", "kubernetes", object).await?;
    endpoints(kernel, advertise).await
}

async fn endpoints(kernel: &Arc<Kernel>, advertise: SocketAddr) -> Result<(), Error> {
    // An address that means another host inside each pod is nothing to send pods to.
    if control_plane_api::validate::special_address(advertise.ip()).is_some() {
        tracing::debug!(%advertise, "no pod can reach this address: the Service kubernetes has no endpoints");
        return Ok(());
    }
    let address = advertise.ip().to_string();
    let port = json!([{"name": "https", "port": advertise.port(), "protocol": "TCP"}]);
    let classic = json!({"apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": [{"ip": address}], "ports": port}]});
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": if advertise.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}], "ports": port});
    for (group, resource, object) in [("", "endpoints", classic), ("discovery.k8s.io", "endpointslices", slice)] {
        // PUT creates or replaces: the address may have changed since the last start.
        let sent = send(kernel, "PUT", group, resource, "default", "kubernetes", &object).await;
        sent.map_err(|(_, message)| Error::Refused { what: format!("{resource} \"kubernetes\""), message })?;
    }
    Ok(())
}

/// A request to this server itself, through the same door as everybody's.
async fn send(
    kernel: &Arc<Kernel>,
    method: &str,
    group: &str,
    resource: &str,
    namespace: &str,
    name: &str,
    object: &Value,
) -> Result<Object, (u16, String)> {
    let version = row::groups().into_iter().find(|(one, _)| *one == group).map_or("v1", |(_, versions)| versions[0]);
    let mut path = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
    if !namespace.is_empty() {
        path.push_str(&format!("/namespaces/{namespace}"));
    }
    path.push_str(&format!("/{resource}"));
    if !name.is_empty() {
        path.push_str(&format!("/{name}"));
    }
    path.push_str(&format!("?fieldManager={MANAGER}"));
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body::full(object.to_string()))
        .map_err(|error| (500, error.to_string()))?;
    let user = User::new("system:apiserver", &[MASTERS]);
    let response = dispatch::serve(Arc::clone(kernel), Peer::Local(user), request).await;
    let code = response.status().as_u16();
    let bytes = body::read(response.into_body()).await.map_err(|failure| (failure.0.code, failure.0.message))?;
    let value: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    if code >= 300 {
        return Err((code, value["message"].as_str().unwrap_or("unreadable answer").to_owned()));
    }
    Object::from_value(value).map_err(|error| (500, error.to_string()))
}
