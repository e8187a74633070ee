//! Pod specs: of pods, and of what pods are made from.

mod affinity;
mod annotations;
mod names;
mod place;
mod security;
mod status;
mod update;

pub(super) use affinity::check_node_selector;
pub(super) use place::EFFECTS;
pub(super) use status::check as check_status;
pub(super) use update::check as check_update;

use std::collections::BTreeSet;

use super::container::{self, List};
use super::field::Field;
use super::{Causes, metadata, resources, volume};
use crate::{Object, name};

/// The three lists of containers.
const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];
const SECONDS_MAX: i64 = i32::MAX as i64;
const PREEMPTION: &[&str] = &["PreemptLowerPriority", "Never"];

/// A pod, but for its metadata.
pub(super) fn check(pod: &Object, causes: &mut Causes) {
    let spec = Field::top(pod, "spec");
    annotations::check(&Field::top(pod, "metadata"), &spec, causes);
    check_spec(&spec, Kind::Pod { name: pod.name() }, causes);
    if !spec.key("serviceAccountName").text().is_empty() {
        return;
    }
    for volume in spec.key("volumes").items() {
        for source in volume.key("projected").key("sources").items() {
            if source.key("serviceAccountToken").is_set() {
                let detail = "must not be specified when serviceAccountName is not set";
                source.key("serviceAccountToken").forbidden(detail, causes);
            }
        }
    }
}

/// What only holds for a pod that comes into being.
pub(super) fn check_create(pod: &Object, causes: &mut Causes) {
    let spec = Field::top(pod, "spec");
    if !spec.key("ephemeralContainers").list().is_empty() {
        spec.key("ephemeralContainers").forbidden("cannot be set on create", causes);
    }
    if !spec.key("nodeName").text().is_empty() && !spec.key("schedulingGates").list().is_empty() {
        spec.key("nodeName").forbidden("cannot be set until all schedulingGates have been cleared", causes);
    }
    annotations::check_profiles(&Field::top(pod, "metadata"), &spec, causes);
}

/// Pods are made from it: `spec.template`. `claims` are volumes that whoever makes the pods adds to them.
pub(super) fn check_template(template: &Field<'_, '_>, claims: &[&str], causes: &mut Causes) {
    metadata::check_template(template, causes);
    let spec = template.key("spec");
    let inner = template.key("metadata");
    annotations::check(&inner, &spec, causes);
    annotations::check_profiles(&inner, &spec, causes);
    check_spec(&spec, Kind::Template { claims }, causes);
    if !spec.key("ephemeralContainers").list().is_empty() {
        spec.key("ephemeralContainers").forbidden("ephemeral containers not allowed in pod template", causes);
    }
}

/// Whose spec it is.
#[derive(Clone, Copy, Debug)]
enum Kind<'a> {
    Pod { name: &'a str },
    Template { claims: &'a [&'a str] },
}

fn check_spec(spec: &Field<'_, '_>, kind: Kind<'_>, causes: &mut Causes) {
    check_containers(spec, kind, causes);
    resources::check_pod(spec, causes);
    spec.key("restartPolicy").one_of(&["Always", "OnFailure", "Never"], causes);
    names::check_dns(spec, causes);
    metadata::labels(&spec.key("nodeSelector"), causes);
    security::check(spec, causes);
    affinity::check(&spec.key("affinity"), causes);
    names::check_gates(spec, causes);
    place::check_spread(&spec.key("topologySpreadConstraints"), causes);
    for key in ["serviceAccountName", "nodeName", "priorityClassName", "runtimeClassName"] {
        spec.key(key).may_be(name::dns1123_subdomain, causes);
    }
    spec.key("activeDeadlineSeconds").within(&(1..=SECONDS_MAX), causes);
    names::check_host_name(spec, causes);
    place::check_tolerations(&spec.key("tolerations"), causes);
    names::check_host_aliases(&spec.key("hostAliases"), causes);
    spec.key("preemptionPolicy").one_of_if_set(PREEMPTION, causes);
    // Overhead is judged as limits are, each at its own place.
    resources::check_amounts(resources::Use::Container, &spec.key("overhead"), causes);
}

fn check_containers(spec: &Field<'_, '_>, kind: Kind<'_>, causes: &mut Causes) {
    let (is_pod, pod) = match kind {
        Kind::Pod { name } => (true, name),
        Kind::Template { .. } => (false, ""),
    };
    let list = spec.key("volumes");
    let mut volumes = volume::check(&list, pod, is_pod, causes);
    if let Kind::Template { claims } = kind {
        // A claim's volume takes the place of one of the same name.
        volumes.extend(claims.iter().map(|claim| (*claim, "persistentVolumeClaim")));
    }
    let claims = check_claims(&spec.key("resourceClaims"), causes);
    let context = container::Context {
        volumes: &volumes,
        claims: &claims,
        restart_policy: spec.key("restartPolicy").text(),
        os: spec.key("os").key("name").text(),
        host_network: spec.key("hostNetwork").is_true(),
        host_users: !spec.key("hostUsers").is_false(),
        grace_seconds: spec.key("terminationGracePeriodSeconds").int(),
        is_pod,
    };
    let (mut names, mut others) = (BTreeSet::new(), BTreeSet::new());
    let mut host_ports = BTreeSet::new();
    // The regular ones first: it is the others that may not take a name of theirs.
    for (key, list) in
        [("containers", List::Regular), ("initContainers", List::Init), ("ephemeralContainers", List::Ephemeral)]
    {
        for one in spec.key(key).items() {
            container::check(list, &one, &context, causes);
            let given = one.key("name");
            if !given.text().is_empty() && !names.insert(given.text()) {
                given.duplicate(causes);
            }
            match list {
                List::Regular => container::check_host_ports(&one, &mut host_ports, causes),
                // One runs after the other.
                List::Init => container::check_host_ports(&one, &mut BTreeSet::new(), causes),
                List::Ephemeral => {
                    let target = one.key("targetContainerName");
                    if !target.text().is_empty() && !others.contains(target.text()) {
                        target.not_found(causes);
                    }
                    continue;
                }
            }
            others.insert(given.text());
        }
    }
}

/// The resource claims of a pod, and their names.
fn check_claims<'v>(claims: &Field<'v, '_>, causes: &mut Causes) -> BTreeSet<&'v str> {
    let mut names = BTreeSet::new();
    for claim in claims.items() {
        let given = claim.key("name");
        if !given.text().is_empty() {
            given.must_be(name::dns1123_label, causes);
            if !names.insert(given.text()) {
                given.duplicate(causes);
            }
        }
        let (own, template) = (claim.key("resourceClaimName"), claim.key("resourceClaimTemplateName"));
        match (own.is_set(), template.is_set()) {
            (true, true) => {
                let detail = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
                claim.invalid(detail, causes);
            }
            (false, false) => {
                let detail = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
                claim.invalid(detail, causes);
            }
            _ => {}
        }
        for one in [own, template] {
            if one.is_set() {
                one.must_be(name::dns1123_subdomain, causes);
            }
        }
    }
    names
}
