//! What is wrong with the shape of a body: unknown fields, duplicate fields, wrong types.
//!
//! Paths read as upstream's strict decoder writes them. Invariant: the value itself is never changed here.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::{Kind, Type};
use crate::object::type_name;

/// At most this many findings are listed; more help nobody.
const FINDINGS_MAX: usize = 100;

/// The paths of fields that the type does not have: `spec.foo`, `spec.containers[0].imagee`.
pub fn unknown_fields(of: &Type, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    unknown_in(of, value, "", &mut found);
    found
}

fn unknown_in(of: &Type, value: &Value, path: &str, found: &mut Vec<String>) {
    let Some(map) = value.as_object() else { return };
    for (name, value) in map {
        let path = join(path, name);
        match of.field(name) {
            Some(field) => unknown_below(&field.kind, value, &path, found),
            None if found.len() < FINDINGS_MAX => found.push(path),
            None => return,
        }
    }
}

fn unknown_below(kind: &Kind, value: &Value, path: &str, found: &mut Vec<String>) {
    match kind {
        Kind::Struct(_) => {
            if let Some(of) = kind.as_struct() {
                unknown_in(of, value, path, found);
            }
        }
        Kind::List(inner) => {
            for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                unknown_below(inner, item, &format!("{path}[{index}]"), found);
            }
        }
        Kind::Map(inner) => {
            for (key, item) in value.as_object().into_iter().flatten() {
                unknown_below(inner, item, &join(path, key), found);
            }
        }
        _ => {}
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// A value of the wrong type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    #[error("json: cannot unmarshal {found} into Go struct field {owner}.{path} of type {expected}")]
    Type { owner: &'static str, path: String, found: String, expected: String },
    #[error("{path}: {source}")]
    Quantity { path: String, source: crate::quantity::Error },
    #[error("parsing time {value:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse it ({path})")]
    Time { path: String, value: String },
    #[error("{path}: illegal base64 data")]
    Base64 { path: String },
}

/// The first value whose JSON type is not the field's; null fits everything, as in Go.
pub fn types(of: &Type, value: &Value) -> Result<(), Mismatch> {
    struct_types(of, value, "")
}

fn struct_types(of: &Type, value: &Value, path: &str) -> Result<(), Mismatch> {
    for (name, value) in value.as_object().into_iter().flatten() {
        if let Some(field) = of.field(name) {
            kind_types(&field.kind, value, of.short_name(), &join(path, name))?;
        }
    }
    Ok(())
}

fn kind_types(kind: &Kind, value: &Value, owner: &'static str, path: &str) -> Result<(), Mismatch> {
    let fits = match (kind, value) {
        (_, Value::Null) | (Kind::RawExtension | Kind::FieldsV1, _) => true,
        (Kind::Bool, Value::Bool(_))
        | (Kind::Double, Value::Number(_))
        | (Kind::String, Value::String(_))
        | (Kind::Quantity, Value::Number(_))
        | (Kind::IntOrString, Value::String(_)) => true,
        (Kind::Int32 | Kind::IntOrString, Value::Number(number)) => {
            number.as_i64().is_some_and(|number| i32::try_from(number).is_ok())
        }
        (Kind::Int64, Value::Number(number)) => number.is_i64(),
        (Kind::Bytes, Value::String(text)) => {
            if super::normal::decode_base64(text).is_none() {
                return Err(Mismatch::Base64 { path: path.into() });
            }
            true
        }
        (Kind::Quantity, Value::String(text)) => {
            crate::Quantity::parse(text).map_err(|source| Mismatch::Quantity { path: path.into(), source })?;
            true
        }
        (Kind::Time | Kind::MicroTime, Value::String(text)) => {
            if text.parse::<jiff::Timestamp>().is_err() {
                return Err(Mismatch::Time { path: path.into(), value: text.clone() });
            }
            true
        }
        (Kind::List(inner), Value::Array(items)) => {
            for item in items {
                kind_types(inner, item, owner, path)?;
            }
            true
        }
        (Kind::Map(inner), Value::Object(items)) => {
            for item in items.values() {
                kind_types(inner, item, owner, path)?;
            }
            true
        }
        (Kind::Struct(_), Value::Object(_)) => {
            if let Some(of) = kind.as_struct() {
                struct_types(of, value, path)?;
            }
            true
        }
        _ => false,
    };
    if fits {
        return Ok(());
    }
    let found = match value {
        Value::Number(number) => format!("number {number}"),
        other => type_name(other).to_owned(),
    };
    Err(Mismatch::Type { owner, path: path.into(), found, expected: go_type(kind) })
}

/// The type as a Go programmer reads it in the error.
fn go_type(kind: &Kind) -> String {
    match kind {
        Kind::Bool => "bool".into(),
        Kind::Int32 => "int32".into(),
        Kind::Int64 => "int64".into(),
        Kind::Double => "float64".into(),
        Kind::String => "string".into(),
        Kind::Bytes => "[]uint8".into(),
        Kind::Quantity => "resource.Quantity".into(),
        Kind::IntOrString => "intstr.IntOrString".into(),
        Kind::Time => "v1.Time".into(),
        Kind::MicroTime => "v1.MicroTime".into(),
        Kind::RawExtension => "runtime.RawExtension".into(),
        Kind::FieldsV1 => "v1.FieldsV1".into(),
        Kind::Struct(_) => kind
            .as_struct()
            .map_or_else(String::new, |of| of.name.split_once('.').map_or(of.name, |(_, rest)| rest).into()),
        Kind::List(inner) => format!("[]{}", go_type(inner)),
        Kind::Map(inner) => format!("map[string]{}", go_type(inner)),
    }
}

/// The paths of keys that stand twice in one map of a JSON text. A syntax error ends the search.
pub fn duplicate_fields(json: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    // The body was parsed before; what cannot be parsed was refused there.
    let _syntax = Walk { path: String::new(), found: &mut found }.deserialize(&mut deserializer);
    found
}

struct Walk<'a> {
    path: String,
    found: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("any JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let mut index = 0;
        while items.next_element_seed(Walk { path: format!("{}[{index}]", self.path), found: self.found })?.is_some() {
            index += 1;
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = std::collections::HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            let path = join(&self.path, &key);
            if !seen.insert(key) && self.found.len() < FINDINGS_MAX && !self.found.contains(&path) {
                self.found.push(path.clone());
            }
            map.next_value_seed(Walk { path, found: self.found })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::find;
    use serde_json::json;

    #[test]
    fn names_unknown_fields_by_path() {
        let value = json!({"spec": {"foo": 1, "replicas": 1, "template": {"spec": {"containers": [{"imagee": "x"}]}},
            "selector": {"matchLabels": {"any": "thing"}}}, "kind": "Deployment", "bar": {}});
        let of = find("apps.v1.Deployment").unwrap();
        assert_eq!(unknown_fields(of, &value), ["bar", "spec.foo", "spec.template.spec.containers[0].imagee"]);
    }

    #[test]
    fn names_duplicate_fields_by_path() {
        let json = br#"{"a": {"b": 1, "b": 2}, "c": [{"d": null, "d": [], "d": 1.5}], "a": {}}"#;
        assert_eq!(duplicate_fields(json), ["a.b", "c[0].d", "a"]);
    }

    #[test]
    fn refuses_wrong_types_in_the_words_of_go() {
        let of = find("apps.v1.Deployment").unwrap();
        let error = types(of, &json!({"spec": {"replicas": "three"}})).unwrap_err();
        assert_eq!(
            error.to_string(),
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
        );
        assert!(types(of, &json!({"spec": {"replicas": null, "paused": true}})).is_ok());
        assert!(types(of, &json!({"spec": {"replicas": 1.5}})).is_err());
        assert!(types(of, &json!({"metadata": {"creationTimestamp": "yesterday"}})).is_err());
        let secret = find("core.v1.Secret").unwrap();
        assert!(types(secret, &json!({"data": {"a": "%%%"}})).is_err());
        assert!(types(secret, &json!({"data": {"a": "YQ=="}})).is_ok());
    }
}
