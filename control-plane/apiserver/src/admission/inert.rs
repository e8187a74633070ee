//! Kinds that are kept faithfully and that no part acts on yet: whoever creates one is told, so that nobody waits in vain.

use crate::verb::Call;

/// Group, resource, and what does not happen.
const KINDS: [(&str, &str, &str); 13] = [
    ("apps", "daemonsets", "no pods are made for it"),
    ("apps", "statefulsets", "no pods are made for it"),
    ("batch", "jobs", "no pods are made for it"),
    ("batch", "cronjobs", "no jobs are made for it"),
    ("", "replicationcontrollers", "no pods are made for it; a ReplicaSet does the same work"),
    ("autoscaling", "horizontalpodautoscalers", "nothing is scaled by it"),
    ("networking.k8s.io", "ingresses", "no traffic follows it"),
    ("networking.k8s.io", "networkpolicies", "no traffic is refused because of it"),
    ("", "persistentvolumeclaims", "no volume is bound to it"),
    ("", "resourcequotas", "nothing is refused because of it"),
    ("certificates.k8s.io", "certificatesigningrequests", "it is not signed"),
    ("policy", "poddisruptionbudgets", "its status is not counted, so it allows no eviction"),
    ("storage.k8s.io", "csidrivers", "no driver is called"),
];

/// Adds a warning to the answer.
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
