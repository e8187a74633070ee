//! Amounts: requests, limits, quotas and limit ranges.

use serde_json::Value;

use super::{Causes, NOT_NEGATIVE, items, refuse};
use crate::{Cause, Quantity, name};

fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => Quantity::parse(text).ok(),
        Value::Number(number) => Quantity::parse(&number.to_string()).ok(),
        _ => None,
    }
}

/// A map of resource names to amounts.
pub(super) fn check_amounts(amounts: &Value, path: &str, causes: &mut Causes) {
    for (resource, value) in amounts.as_object().into_iter().flatten() {
        refuse(path, resource, name::qualified(resource), causes);
        let path = format!("{path}[{resource}]");
        match quantity(value) {
            None => {
                let detail = crate::quantity::Error::Format.to_string();
                causes.push(Cause::invalid(path, value, &detail));
            }
            Some(amount) if amount.is_negative() => causes.push(Cause::invalid(path, value, NOT_NEGATIVE)),
            Some(_) => {}
        }
    }
}

/// A container's requests and limits.
pub(super) fn check(resources: &Value, path: &str, causes: &mut Causes) {
    for kind in ["limits", "requests"] {
        let amounts = &resources[kind];
        check_amounts(amounts, &format!("{path}.{kind}"), causes);
        for resource in amounts.as_object().into_iter().flatten().map(|(resource, _)| resource) {
            let standard = ["cpu", "memory", "ephemeral-storage"].contains(&resource.as_str());
            if !standard && !resource.contains('/') && !resource.starts_with("hugepages-") {
                let detail = "must be a standard resource for containers";
                causes.push(Cause::invalid_str(format!("{path}.{kind}"), resource, detail));
            }
        }
    }
    for (resource, limit) in resources["limits"].as_object().into_iter().flatten() {
        let request = &resources["requests"][resource];
        let (Some(wanted), Some(most)) = (quantity(request), quantity(limit)) else { continue };
        let overcommits = ["cpu", "memory", "ephemeral-storage"].contains(&resource.as_str());
        if wanted > most {
            let detail = format!("must be less than or equal to {resource} limit of {most}");
            causes.push(Cause::invalid_str(format!("{path}.requests"), &wanted.to_string(), &detail));
        } else if !overcommits && wanted != most {
            let detail = format!("must be equal to {resource} limit of {most}");
            causes.push(Cause::invalid_str(format!("{path}.requests"), &wanted.to_string(), &detail));
        }
    }
}

pub(super) fn check_limit_range(spec: &Value, causes: &mut Causes) {
    for (index, item) in items(spec, "limits").iter().enumerate() {
        let path = format!("spec.limits[{index}]");
        for kind in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
            check_amounts(&item[kind], &format!("{path}.{kind}"), causes);
        }
        for (small, large) in [("min", "max"), ("min", "default"), ("default", "max"), ("defaultRequest", "default")] {
            for (resource, value) in item[small].as_object().into_iter().flatten() {
                let (Some(less), Some(more)) = (quantity(value), quantity(&item[large][resource])) else { continue };
                if less > more {
                    let detail = format!("{small} value {less} is greater than {large} value {more}");
                    let path = format!("{path}.{small}[{resource}]");
                    causes.push(Cause::invalid_str(path, &less.to_string(), &detail));
                }
            }
        }
    }
}
