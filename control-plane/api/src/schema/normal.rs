//! The normal form of an object: what upstream's typed round trip would leave of it.
//!
//! Nulls go, empty optional values go, quantities become canonical, structs that upstream always writes (`resources: {}`)
//! appear. Invariant: idempotent; unknown fields stay as they are.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::{Field, Kind, Type};
use crate::{Object, Quantity};

/// Brings `object` into the normal form of its type.
pub fn normalize(of: &Type, object: &mut Object) {
    normalize_struct(of, object.as_map_mut());
}

/// Brings a map of a known type into its normal form.
pub fn normalize_struct(of: &Type, map: &mut Map<String, Value>) {
    map.retain(|name, value| match of.field(name) {
        Some(field) => {
            normalize_value(&field.kind, value);
            !is_dropped(field, value)
        }
        None => true,
    });
    for field in &of.fields {
        // Go writes a struct that is no pointer even when it is empty.
        let written = field.kind.as_struct().filter(|_| !field.pointer && field.numbers != [0]);
        if let Some(inner) =
            written.filter(|inner| !map.contains_key(field.name) && is_visible_when_empty(of, field, inner))
        {
            let mut empty = Map::new();
            normalize_struct(inner, &mut empty);
            map.insert(field.name.into(), Value::Object(empty));
        }
    }
}

/// Whether upstream shows this empty struct. Top-level parts belong to the request, so only nested ones are made.
fn is_visible_when_empty(of: &Type, field: &Field, inner: &Type) -> bool {
    !of.is_kind
        && field.name != "metadata"
        && inner.fields.iter().all(|field| !field.required)
        && matches!(
            (of.short_name(), field.name),
            ("Container" | "EphemeralContainer", "resources")
                | ("PersistentVolumeClaimSpec", "resources")
                | ("DeploymentSpec", "strategy")
                | ("DaemonSetSpec", "updateStrategy")
                | ("StatefulSetSpec", "updateStrategy")
        )
}

fn normalize_value(kind: &Kind, value: &mut Value) {
    match kind {
        Kind::Struct(_) => {
            if let (Some(of), Some(map)) = (kind.as_struct(), value.as_object_mut()) {
                normalize_struct(of, map);
            }
        }
        Kind::List(inner) => {
            for item in value.as_array_mut().into_iter().flatten() {
                normalize_value(inner, item);
            }
        }
        Kind::Map(inner) => {
            for (_, item) in value.as_object_mut().into_iter().flatten() {
                normalize_value(inner, item);
                // Go keeps a null map value as the zero value.
                if item.is_null() && **inner == Kind::String {
                    *item = "".into();
                }
            }
        }
        Kind::Quantity => {
            let text = match &*value {
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(),
                _ => return,
            };
            if let Ok(quantity) = Quantity::parse(&text) {
                *value = quantity.to_string().into();
            }
        }
        _ => {}
    }
}

/// Whether `omitempty` drops the value: nulls always go, zero values only where they mean absence.
fn is_dropped(field: &Field, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => field.omit_empty && list.is_empty() && !matches!(field.kind, Kind::RawExtension),
        Value::Object(map) => field.omit_empty && map.is_empty() && matches!(field.kind, Kind::Map(_)),
        _ if field.pointer || !field.omit_empty => false,
        Value::String(text) => text.is_empty() && matches!(field.kind, Kind::String | Kind::Bytes | Kind::Time),
        Value::Bool(flag) => !flag,
        Value::Number(number) => {
            number.as_i64() == Some(0) && matches!(field.kind, Kind::Int32 | Kind::Int64 | Kind::Double)
        }
    }
}

pub fn decode_base64(text: &str) -> Option<Vec<u8>> {
    // Go's decoder skips line breaks.
    if text.contains(['\n', '\r']) {
        return STANDARD.decode(text.replace(['\n', '\r'], "")).ok();
    }
    STANDARD.decode(text).ok()
}

pub fn encode_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::find;
    use serde_json::json;

    #[test]
    fn drops_what_means_nothing_and_keeps_the_rest() {
        let mut object = Object::from_value(json!({"kind": "Deployment", "spec": {"replicas": 0, "paused": false,
            "minReadySeconds": 0, "strategy": {}, "odd": null, "template": {"metadata": {"creationTimestamp": null},
            "spec": {"hostname": "", "volumes": [], "nodeSelector": {}, "automountServiceAccountToken": false,
                "containers": [{"name": "", "image": "i", "env": [{"name": "A", "value": ""}],
                    "resources": {"limits": {"memory": "1024Mi", "cpu": 0.5}}}]}}}}))
        .unwrap();
        let of = find("apps.v1.Deployment").unwrap();
        normalize(of, &mut object);
        let expect = json!({"kind": "Deployment", "spec": {"replicas": 0, "strategy": {}, "odd": null, "template":
            {"metadata": {}, "spec": {"automountServiceAccountToken": false, "containers": [{"name": "", "image": "i",
            "env": [{"name": "A"}], "resources": {"limits": {"memory": "1Gi", "cpu": "500m"}}}]}}}});
        assert_eq!(object.to_value(), expect);
        normalize(of, &mut object);
        assert_eq!(object.to_value(), expect);
    }
}
