//! Kinds and fields that are kept faithfully and that no part acts on yet: whoever writes one is told, so that nobody waits in vain.

mod fields;

use control_plane_api::{Object, schema, validate};

use crate::verb::Call;

/// Group, resource, and what does not happen.
const KINDS: [(&str, &str, &str); 22] = [
    ("apps", "daemonsets", "no pods are made for it"),
    ("apps", "statefulsets", "no pods are made for it"),
    ("batch", "jobs", "no pods are made for it"),
    ("batch", "cronjobs", "no jobs are made for it"),
    ("", "replicationcontrollers", "no pods are made for it; a ReplicaSet does the same work"),
    ("autoscaling", "horizontalpodautoscalers", "nothing is scaled by it"),
    ("networking.k8s.io", "ingressclasses", "no traffic follows its ingresses"),
    ("networking.k8s.io", "ingresses", "no traffic follows it"),
    ("networking.k8s.io", "ipaddresses", "Services get their addresses without it"),
    ("networking.k8s.io", "servicecidrs", "Services get addresses of the instance's own network alone"),
    ("node.k8s.io", "runtimeclasses", "there is one runtime, whatever handler a class names"),
    ("networking.k8s.io", "networkpolicies", "no traffic is refused because of it"),
    ("", "persistentvolumeclaims", "no volume is bound to it"),
    ("", "persistentvolumes", "no claim is bound to it"),
    ("", "resourcequotas", "nothing is refused because of it"),
    ("certificates.k8s.io", "certificatesigningrequests", "it is not signed"),
    ("storage.k8s.io", "csidrivers", "no driver is called"),
    ("storage.k8s.io", "csinodes", "no driver is called"),
    ("storage.k8s.io", "csistoragecapacities", "pods are placed without regard to it"),
    ("storage.k8s.io", "storageclasses", "no volume is made by it"),
    ("storage.k8s.io", "volumeattachments", "no volume is attached"),
    ("storage.k8s.io", "volumeattributesclasses", "no volume is changed by it"),
];

/// Kinds that are records, requests or data of others, with no field that could ask for anything.
#[cfg(test)]
const RECORDS: [(&str, &str); 13] = [
    ("", "bindings"),
    ("", "componentstatuses"),
    ("", "events"),
    ("", "podtemplates"),
    ("apps", "controllerrevisions"),
    ("authentication.k8s.io", "selfsubjectreviews"),
    ("authentication.k8s.io", "tokenreviews"),
    ("authorization.k8s.io", "localsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectrulesreviews"),
    ("authorization.k8s.io", "subjectaccessreviews"),
    ("coordination.k8s.io", "leases"),
    ("events.k8s.io", "events"),
];

/// Adds warnings for fields to the answer, but for those that `live` has already.
pub(crate) fn warn_of_fields(call: &mut Call, object: &Object, live: Option<&Object>) {
    let row = call.row;
    let Some(of) = schema::find_kind(row.group, row.version, row.kind) else { return };
    let asked = validate::warnings(row, object, live);
    for warning in asked.into_iter().chain(fields::find(of, object.as_map(), live.map(Object::as_map))) {
        // A change that lost a race is made again.
        if !call.warnings.contains(&warning) {
            call.warnings.push(warning);
        }
    }
}

/// Adds a warning for the kind to the answer.
pub(super) fn warn(call: &mut Call) {
    let row = call.row;
    if let Some((_, _, what)) =
        KINDS.iter().find(|(group, resource, _)| row.group == *group && row.resource == *resource)
    {
        call.warnings.push(format!("this {} is stored, but Sampan does not act on it yet: {what}", row.kind));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_listed_is_served() {
        for (group, resource, _) in KINDS {
            let is_served = control_plane_api::rows().iter().any(|row| row.group == group && row.resource == resource);
            assert!(is_served, "{group}/{resource}");
        }
    }
}
