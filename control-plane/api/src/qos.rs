//! The quality-of-service class of a pod, from its containers' requests and limits.

use serde_json::Value;

use crate::Quantity;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Class {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// The class of a pod's spec: Guaranteed when every container limits cpu and memory to what it requests.
pub fn class(spec: &Value) -> Class {
    let containers =
        ["initContainers", "containers"].into_iter().filter_map(|list| spec.get(list)?.as_array()).flatten();
    let mut any = false;
    let mut guaranteed = true;
    let mut seen = false;
    for container in containers {
        seen = true;
        for name in ["cpu", "memory"] {
            let amount = |kind: &str| amount(container, kind, name);
            let (request, limit) = (amount("requests"), amount("limits"));
            any |= request.is_some() || limit.is_some();
            // A request that was left out is its limit.
            guaranteed &= limit.is_some()
                && request.unwrap_or(limit.unwrap_or(Quantity::ZERO)) == limit.unwrap_or(Quantity::ZERO);
        }
    }
    match (any, guaranteed && seen) {
        (false, _) => Class::BestEffort,
        (true, true) => Class::Guaranteed,
        (true, false) => Class::Burstable,
    }
}

fn amount(container: &Value, kind: &str, name: &str) -> Option<Quantity> {
    let value = container.get("resources")?.get(kind)?.get(name)?;
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Quantity::parse(&text).ok().filter(|quantity| !quantity.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn classifies() {
        let check = |resources: Value, expect: Class| {
            assert_eq!(class(&json!({"containers": [{"resources": resources}]})), expect, "{resources}");
        };
        check(json!({}), Class::BestEffort);
        check(json!({"limits": {"cpu": "1", "memory": "1Gi"}}), Class::Guaranteed);
        check(json!({"limits": {"cpu": 1, "memory": "1Gi"}, "requests": {"cpu": "1000m"}}), Class::Guaranteed);
        check(json!({"limits": {"cpu": "1"}}), Class::Burstable);
        check(json!({"requests": {"memory": "1Gi"}}), Class::Burstable);
        check(json!({"requests": {"example.com/gpu": "1"}}), Class::BestEffort);
    }
}
