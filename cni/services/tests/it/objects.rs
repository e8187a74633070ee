//! Services and slices as the API server would send them.

use cni_services::catalog::{Catalog, ServiceName};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};

pub(crate) fn service(name: &str, spec: &Value) -> Service {
    serde_json::from_value(json!({"metadata": {"namespace": "default", "name": name}, "spec": spec})).unwrap()
}

/// Endpoints as `(address, conditions)`; ports as `(name, number, protocol)`.
pub(crate) fn slice(service: &str, ports: &[(&str, u16, &str)], endpoints: &[Value]) -> EndpointSlice {
    let ports: Vec<Value> =
        ports.iter().map(|(name, port, protocol)| json!({"name": name, "port": port, "protocol": protocol})).collect();
    serde_json::from_value(json!({
        "metadata": {"namespace": "default", "name": format!("{service}-1"),
            "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
    }))
    .unwrap()
}

pub(crate) fn endpoint(address: &str) -> Value {
    json!({"addresses": [address], "nodeName": "here", "conditions": {"ready": true}})
}

pub(crate) fn name(name: &str) -> ServiceName {
    ServiceName { namespace: "default".into(), name: name.into() }
}

/// A catalog of Services with their slices.
pub(crate) fn catalog(objects: Vec<(Service, Vec<EndpointSlice>)>) -> Catalog {
    let mut catalog = Catalog::default();
    for (service, slices) in objects {
        catalog.service_event(Event::Apply(service));
        for slice in slices {
            catalog.slice_event(Event::Apply(slice));
        }
    }
    catalog
}
