//! What is wrong with an object: causes with field paths, in upstream's words.
//!
//! Runs on objects that have their defaults. One file per noun; `field.rs` is how each of them looks at a value, and the
//! tables below `tests/` name each rule with upstream's function that has it.
//!
//! Invariants: an object that upstream stores passes, but for addresses and ports that no cluster can mean; one that was stored
//! passes an update that changes nothing; no check takes longer than its object is long, nor ends on a value of another type.

mod address;
mod autoscaler;
mod config;
mod container;
mod cron;
mod endpoints;
mod field;
mod ingress;
mod job;
mod metadata;
mod network_policy;
mod node;
mod path;
mod pod;
mod quota;
mod rbac;
mod required;
mod resources;
mod selector;
mod service;
mod storage;
mod syntax;
mod volume;
mod warning;
mod workload;

pub use warning::warnings;

use serde_json::Value;

use crate::schema;
use crate::{Cause, Object, Row};
use field::Field;

const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
const IMMUTABLE: &str = "field is immutable";
/// Causes beyond these are left out: an answer of thousands helps nobody, and a body of a megabyte can have a hundred thousand.
const CAUSES_MAX: usize = 200;
/// What is shown of one cause.
const MESSAGE_BYTES_MAX: usize = 8 * 1024;

/// What is found, in the order of the fields.
#[derive(Debug, Default)]
struct Causes(Vec<Cause>);

impl Causes {
    fn push(&mut self, mut cause: Cause) {
        if self.0.len() >= CAUSES_MAX {
            return;
        }
        for text in [&mut cause.message, &mut cause.field] {
            if text.len() > MESSAGE_BYTES_MAX {
                let end = text.floor_char_boundary(MESSAGE_BYTES_MAX);
                text.truncate(end);
                text.push('…');
            }
        }
        self.0.push(cause);
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

/// The faults of a new object. Its name, uid and defaults are set.
pub fn create(row: &Row, object: &Object) -> Vec<Cause> {
    let mut causes = Causes::default();
    metadata::check(row, object, &mut causes);
    body(row, object, true, &mut causes);
    if (row.group, row.kind) == ("", "Pod") {
        pod::check_create(object, &mut causes);
    }
    causes.0
}

/// The faults of an update through `subresource` (empty: the object itself).
pub fn update(row: &Row, subresource: &str, new: &Object, old: &Object) -> Vec<Cause> {
    let mut causes = Causes::default();
    metadata::check(row, new, &mut causes);
    metadata::check_update(new, old, &mut causes);
    match subresource {
        "status" => status(row, new, old, &mut causes),
        "finalize" => node::check_namespace(new, &mut causes),
        "approval" => {}
        _ => changed(row, subresource, new, old, &mut causes),
    }
    causes.0
}

fn changed(row: &Row, subresource: &str, new: &Object, old: &Object, causes: &mut Causes) {
    // What is going away may lose its finalizers whatever else has become wrong with it since.
    if new.get("spec") != old.get("spec") || new.get("spec").is_none() {
        body(row, new, false, causes);
    }
    match (row.group, row.kind) {
        ("", "Pod") => pod::check_update(subresource, new, old, causes),
        ("", "Service") => service::check_update(new, old, causes),
        ("", "ConfigMap") => config::check_update(new, old, causes),
        ("", "Secret") => config::check_secret_update(new, old, causes),
        ("", "Namespace") => node::check_levels(new, Some(old), causes),
        ("", "Node") => node::check_update(new, old, causes),
        ("", "PersistentVolume") => storage::check_volume_update(new, old, causes),
        ("", "PersistentVolumeClaim") => storage::check_claim_update(new, old, causes),
        ("", "ResourceQuota") => quota::check_update(new, old, causes),
        ("apps", _) => workload::check_update(row, new, old, causes),
        ("batch", "Job") => job::check_update(new, old, causes),
        ("discovery.k8s.io", _) => endpoints::check_slice_update(new, old, causes),
        ("networking.k8s.io", "IngressClass") => ingress::check_class_update(new, old, causes),
        ("node.k8s.io", "RuntimeClass") => node::check_runtime_class_update(new, old, causes),
        ("rbac.authorization.k8s.io", _) => rbac::check_update(row, new, old, causes),
        ("scheduling.k8s.io", _) => node::check_priority_class_update(new, old, causes),
        ("storage.k8s.io", "StorageClass") => storage::check_class_update(new, old, causes),
        _ => {}
    }
}

fn body(row: &Row, object: &Object, is_new: bool, causes: &mut Causes) {
    if let Some(of) = schema::find(&row.schema) {
        required::check(of, object, causes);
    }
    let spec = Field::top(object, "spec");
    match (row.group, row.kind) {
        ("", "Pod") => pod::check(object, causes),
        ("", "PodTemplate") => pod::check_template(&Field::top(object, "template"), &[], causes),
        ("", "Service") => service::check(object, causes),
        ("", "Endpoints") => endpoints::check(object, causes),
        ("", "ConfigMap") => config::check_config_map(object, causes),
        ("", "Secret") => config::check_secret(object, causes),
        ("", "Namespace") => {
            node::check_namespace(object, causes);
            if is_new {
                node::check_levels(object, None, causes);
            }
        }
        ("", "Node") => node::check(object, causes),
        ("", "ResourceQuota") => quota::check(&spec, causes),
        ("", "LimitRange") => quota::check_limit_range(&spec, causes),
        ("", "PersistentVolume") => storage::check_volume(object, causes),
        ("", "PersistentVolumeClaim") => storage::check_claim(&spec, causes),
        ("batch", "Job") => job::check(object, is_new, causes),
        ("batch", "CronJob") => cron::check(&spec, causes),
        ("", "ReplicationController") | ("apps", _) => workload::check(row, object, causes),
        ("autoscaling", _) => autoscaler::check(row.version, &spec, causes),
        ("coordination.k8s.io", "Lease") => node::check_lease(&spec, causes),
        ("policy", "PodDisruptionBudget") => autoscaler::check_budget(&spec, causes),
        ("networking.k8s.io", "Ingress") => ingress::check(&spec, causes),
        ("networking.k8s.io", "IngressClass") => ingress::check_class(&spec, causes),
        ("networking.k8s.io", "NetworkPolicy") => network_policy::check(&spec, causes),
        ("node.k8s.io", "RuntimeClass") => node::check_runtime_class(object, causes),
        ("discovery.k8s.io", _) => endpoints::check_slice(object, causes),
        ("rbac.authorization.k8s.io", _) => rbac::check(row, object, causes),
        ("scheduling.k8s.io", _) => node::check_priority_class(object, is_new, causes),
        ("storage.k8s.io", "StorageClass") => storage::check_class(object, causes),
        _ => {}
    }
}

/// What its writers, controllers and kubelets, may say of an object.
fn status(row: &Row, new: &Object, old: &Object, causes: &mut Causes) {
    match (row.group, row.kind) {
        ("", "Pod") => pod::check_status(new, old, causes),
        ("", "Service") => service::check_status(new, causes),
        ("", "Node") => node::check_status(new, causes),
        ("", "Namespace") => node::check_namespace_status(new, causes),
        ("", "ResourceQuota") => quota::check_status(&Field::top(new, "status"), causes),
        ("", "ReplicationController") | ("apps" | "batch", _) => workload::check_status(row, new, causes),
        _ => {}
    }
}

/// Why no traffic of the cluster may be sent to an address, when it means the node itself, its link, many hosts or none.
pub fn special_address(address: std::net::IpAddr) -> Option<String> {
    address::special(address)
}

/// The names of the claims that a StatefulSet makes for each of its pods: volumes of those pods.
fn name_of_claims<'v>(spec: &Field<'v, '_>) -> Vec<&'v str> {
    let claims = spec.key("volumeClaimTemplates").list();
    claims.iter().filter_map(|claim| claim.get("metadata")?.get("name")?.as_str()).collect()
}

fn unchanged(new: &Object, old: &Object, path: &[&str], causes: &mut Causes) {
    let (now, before) = (new.at(path).unwrap_or(&Value::Null), old.at(path).unwrap_or(&Value::Null));
    if now != before {
        causes.push(Cause::invalid(path.join("."), now, IMMUTABLE));
    }
}

#[cfg(test)]
mod tests;
