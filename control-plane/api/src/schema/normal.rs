//! The normal form of an object: what upstream's typed round trip would leave of it.
//!
//! Fields that the type does not have go, null fields go, nulls in lists and maps become the zero value of what stands there
//! (Go decodes them so), empty optional values go, quantities, times and base64 become canonical, structs that upstream
//! always writes (`resources: {}`) appear. Invariants: idempotent; no null is left outside free-form values.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::{Field, Kind, Type};
use crate::object::{rfc3339, rfc3339_micro};
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
        None => false,
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
            if let Some(list) = value.as_array_mut() {
                list.retain_mut(|item| normalize_item(inner, item));
            }
        }
        Kind::Map(inner) => {
            if let Some(map) = value.as_object_mut() {
                map.retain(|_, item| normalize_item(inner, item));
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
        Kind::Time => rewrite(value, |text| text.parse().ok().map(rfc3339)),
        Kind::MicroTime => rewrite(value, |text| text.parse().ok().map(rfc3339_micro)),
        Kind::Bytes => rewrite(value, |text| {
            // What has no line break and decodes is canonical already, but for the bits that nobody reads.
            decode_base64(text).map(|bytes| encode_base64(&bytes))
        }),
        _ => {}
    }
}

/// Normalizes an item of a list or map; false when nothing may stand there.
fn normalize_item(kind: &Kind, item: &mut Value) -> bool {
    if item.is_null() {
        match zero(kind) {
            Some(zero) => *item = zero,
            None => return false,
        }
    }
    normalize_value(kind, item);
    true
}

/// What Go makes of a null in a list or map. A zero time is written as null again, and so it goes.
fn zero(kind: &Kind) -> Option<Value> {
    Some(match kind {
        Kind::Bool => false.into(),
        Kind::Int32 | Kind::Int64 | Kind::Double | Kind::IntOrString => 0.into(),
        Kind::String | Kind::Bytes => "".into(),
        Kind::Quantity => "0".into(),
        Kind::List(_) => Value::Array(Vec::new()),
        Kind::Struct(_) | Kind::Map(_) | Kind::FieldsV1 | Kind::RawExtension => Value::Object(Map::new()),
        Kind::Time | Kind::MicroTime => return None,
    })
}

fn rewrite(value: &mut Value, canonical: impl Fn(&str) -> Option<String>) {
    if let Value::String(text) = value
        && let Some(written) = canonical(text)
        && written != *text
    {
        *text = written;
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
    use crate::schema::sample::{self, Sample};
    use crate::schema::{check, find};
    use crate::{defaults, proto, rows};
    use proptest::prelude::*;
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
        let expect = json!({"kind": "Deployment", "spec": {"replicas": 0, "strategy": {}, "template":
            {"metadata": {}, "spec": {"automountServiceAccountToken": false, "containers": [{"name": "", "image": "i",
            "env": [{"name": "A"}], "resources": {"limits": {"memory": "1Gi", "cpu": "500m"}}}]}}}});
        assert_eq!(object.to_value(), expect);
        normalize(of, &mut object);
        assert_eq!(object.to_value(), expect);
    }

    /// Every list of the type holds a null, every map one too, down to the last struct.
    fn nulls_everywhere(of: &Type, depth: usize) -> Map<String, Value> {
        let below = |kind: &Kind| match kind.as_struct() {
            Some(of) if depth < 12 => nulls_everywhere(of, depth + 1).into(),
            _ => Value::Null,
        };
        let of_kind = |kind: &Kind| match kind {
            Kind::List(inner) => json!([null, below(inner)]),
            Kind::Map(inner) => json!({"null": null, "more": below(inner)}),
            kind => below(kind),
        };
        let fields = of.fields.iter().filter(|field| field.numbers != [0]);
        fields.map(|field| (field.name.to_owned(), of_kind(&field.kind))).collect()
    }

    #[test]
    fn no_null_is_left_in_any_list_or_map_of_any_kind() {
        for row in rows() {
            let of = find(&row.schema).unwrap();
            let mut map = nulls_everywhere(of, 0);
            map.insert("odd".into(), json!(1));
            normalize_struct(of, &mut map);
            assert_eq!(sample::null_in_struct(of, &map, ""), None, "{}", of.name);
            assert_eq!(check::types(of, &Value::Object(map)), Ok(()), "{}", of.name);
        }
    }

    #[test]
    fn nulls_become_what_go_makes_of_them() {
        let check = |kind: &str, given: Value, expect: Value| {
            let mut given = given;
            normalize_struct(find(kind).unwrap(), given.as_object_mut().unwrap());
            assert_eq!(given, expect);
        };
        check("core.v1.NodeSelector", json!({"nodeSelectorTerms": [null]}), json!({"nodeSelectorTerms": [{}]}));
        check("core.v1.Container", json!({"command": ["a", null], "env": [null]}), {
            json!({"command": ["a", ""], "env": [{}], "resources": {}})
        });
        check("core.v1.ConfigMap", json!({"data": {"a": null}, "binaryData": {"b": null}}), {
            json!({"data": {"a": ""}, "binaryData": {"b": ""}})
        });
        check("core.v1.ResourceRequirements", json!({"limits": {"cpu": null}}), json!({"limits": {"cpu": "0"}}));
        check("policy.v1.PodDisruptionBudgetStatus", json!({"disruptedPods": {"p": null}}), json!({}));
        check("authentication.v1.UserInfo", json!({"extra": {"k": null}}), json!({"extra": {"k": []}}));
        check("apps.v1.ControllerRevision", json!({"data": {"free": null}}), json!({"data": {"free": null}}));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
        #[test]
        fn the_normal_form_is_a_fixed_point_of_everything(seed in any::<u64>()) {
            let mut sample = Sample::new(seed);
            for row in rows() {
                let of = find(&row.schema).unwrap();
                let mut object = row.object();
                object.as_map_mut().extend(sample.structure(of, 0));
                normalize(of, &mut object);
                let once = object.clone();
                normalize(of, &mut object);
                prop_assert_eq!(&object, &once, "again");
                prop_assert_eq!(sample::null_in_struct(of, once.as_map(), ""), None);
                // With defaults, as it is stored.
                defaults::apply(row, &mut object);
                normalize(of, &mut object);
                let stored = object.clone();
                defaults::apply(row, &mut object);
                prop_assert_eq!(&object, &stored, "defaults make nothing that the normal form drops");
                // There and back as protobuf.
                let mut back = proto::decode(&proto::encode(&stored).unwrap(), None).unwrap();
                normalize(of, &mut back);
                let differs = first_difference(&stored.to_value(), &back.to_value(), "");
                prop_assert_eq!(differs, None, "{}", row.kind);
            }
        }
    }

    /// Where two values differ, but for empty structs that protobuf cannot tell from absent ones.
    fn first_difference(one: &Value, other: &Value, path: &str) -> Option<String> {
        match (one, other) {
            // An embedded object's type does not travel.
            _ if path.ends_with("].apiVersion") || path.ends_with("].kind") => None,
            (Value::Object(a), Value::Object(b)) => a.keys().chain(b.keys()).find_map(|key| {
                let empty = json!({});
                let side = |map: &Map<String, Value>| map.get(key).cloned().unwrap_or_else(|| empty.clone());
                first_difference(&side(a), &side(b), &format!("{path}.{key}"))
            }),
            (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
                a.iter().zip(b).find_map(|(a, b)| first_difference(a, b, &format!("{path}[]")))
            }
            _ if one == other || (is_zero(one) && is_zero(other)) => None,
            _ => Some(format!("{path}: {one} and {other}")),
        }
    }

    fn is_zero(value: &Value) -> bool {
        [json!({}), json!(""), json!([]), json!(0), json!(0.0), json!(false)].contains(value)
    }
}
