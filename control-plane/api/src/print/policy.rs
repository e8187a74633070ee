//! Lines of roles, bindings, budgets, leases, classes and signing requests.

use jiff::Timestamp;
use serde_json::Value;

use super::{AGE, CREATED_AT, NAME, Printer, age, created_at, flag, human, name, number, plain, text, text_or, wide};
use crate::Object;

pub(super) fn printer(kind: &str) -> Option<Printer> {
    let printer = match kind {
        "Role" | "ClusterRole" => Printer {
            columns: const { &[NAME, CREATED_AT] },
            cells: |object, _| vec![name(object), created_at(object)],
        },
        "RoleBinding" | "ClusterRoleBinding" => Printer {
            columns: const { &[NAME, text("Role"), AGE, wide("Users"), wide("Groups"), wide("ServiceAccounts")] },
            cells: binding,
        },
        "PodDisruptionBudget" => Printer {
            columns: const { &[NAME, text("Min Available"), text("Max Unavailable"), number("Allowed Disruptions"), AGE] },
            cells: budget,
        },
        "Lease" => Printer {
            columns: const { &[NAME, text("Holder"), AGE] },
            cells: |object, now| vec![name(object), text_or(object, &["spec", "holderIdentity"], ""), age(object, now)],
        },
        "PriorityClass" => Printer {
            columns: const { &[NAME, number("Value"), flag("Global-Default"), AGE, wide("PreemptionPolicy")] },
            cells: priority_class,
        },
        "RuntimeClass" => Printer {
            columns: const { &[NAME, text("Handler"), AGE] },
            cells: |object, now| vec![name(object), text_or(object, &["handler"], ""), age(object, now)],
        },
        "CertificateSigningRequest" => Printer {
            columns: const {
                &[NAME, AGE, text("SignerName"), text("Requestor"), text("RequestedDuration"), text("Condition")]
            },
            cells: signing_request,
        },
        _ => return None,
    };
    Some(printer)
}

fn binding(object: &Object, now: Timestamp) -> Vec<Value> {
    let role = format!(
        "{}/{}",
        object.str_at(&["roleRef", "kind"]).unwrap_or_default(),
        object.str_at(&["roleRef", "name"]).unwrap_or_default()
    );
    let subjects = |kind: &str| -> Value {
        let matching = object.list_at(&["subjects"]).iter().filter(|one| one["kind"] == kind);
        let names: Vec<String> = matching
            .map(|one| match one["namespace"].as_str() {
                Some(namespace) if kind == "ServiceAccount" => {
                    format!("{namespace}/{}", one["name"].as_str().unwrap_or_default())
                }
                _ => one["name"].as_str().unwrap_or_default().to_owned(),
            })
            .collect();
        names.join(", ").into()
    };
    vec![name(object), role.into(), age(object, now), subjects("User"), subjects("Group"), subjects("ServiceAccount")]
}

fn budget(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        plain(object.at(&["spec", "minAvailable"]), "N/A"),
        plain(object.at(&["spec", "maxUnavailable"]), "N/A"),
        super::count(object, &["status", "disruptionsAllowed"]),
        age(object, now),
    ]
}

fn priority_class(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        super::count(object, &["value"]),
        object.bool_at(&["globalDefault"]).unwrap_or(false).into(),
        age(object, now),
        text_or(object, &["preemptionPolicy"], "PreemptLowerPriority"),
    ]
}

fn signing_request(object: &Object, now: Timestamp) -> Vec<Value> {
    let conditions = object.list_at(&["status", "conditions"]);
    let has = |kind: &str| conditions.iter().any(|one| one["type"] == kind);
    let mut shown = if has("Denied") {
        "Denied".to_owned()
    } else if has("Approved") {
        "Approved".to_owned()
    } else {
        "Pending".to_owned()
    };
    if has("Failed") {
        shown.push_str(",Failed");
    }
    if object.str_at(&["status", "certificate"]).is_some_and(|text| !text.is_empty()) {
        shown.push_str(",Issued");
    }
    let duration = object.i64_at(&["spec", "expirationSeconds"]).map_or_else(|| "<none>".into(), human);
    vec![
        name(object),
        age(object, now),
        text_or(object, &["spec", "signerName"], "<none>"),
        text_or(object, &["spec", "username"], ""),
        duration.into(),
        shown.into(),
    ]
}
