//! Bodies become values: JSON and YAML, within the budgets of [`crate::budget`].
//!
//! Protobuf is read by its own module. Pure. Invariant: what is returned passed [`budget::check`].

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::budget::{self, Exceeded};
use crate::schema::check::duplicate_fields;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the body is not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the body is not valid YAML: it is no UTF-8")]
    Utf8,
    #[error("error decoding YAML: {0}")]
    Yaml(String),
    #[error("the body is too large: {0}")]
    Budget(#[from] Exceeded),
}

/// A value, and the paths of the fields that stand twice in it.
pub type Read = (Value, Vec<String>);

pub fn json(bytes: &[u8]) -> Result<Read, Error> {
    let value = serde_json::from_slice(bytes)?;
    budget::check(&value)?;
    Ok((value, duplicate_fields(bytes)))
}

/// One YAML document. A field that stands twice is an error here.
pub fn yaml(bytes: &[u8]) -> Result<Read, Error> {
    let text = std::str::from_utf8(bytes).map_err(|_| Error::Utf8)?;
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: budget::YAML_DEPTH_MAX,
            max_nodes: budget::VALUES_MAX,
            max_aliases: budget::YAML_ALIASES_MAX,
            max_anchors: budget::YAML_ALIASES_MAX,
            max_documents: 1,
            max_total_scalar_bytes: budget::BODY_BYTES_MAX,
        },
    };
    // An alias costs the reader nothing and its copy does: what comes out is counted here.
    let spent = Spent { bytes: Cell::new(budget::BODY_BYTES_MAX), values: Cell::new(budget::VALUES_MAX) };
    let value = serde_saphyr::with_deserializer_from_str_with_options(text, options, |yaml| {
        Counted { spent: &spent, depth: 0 }.deserialize(yaml)
    });
    let value = value.map_err(|error| Error::Yaml(error.to_string()))?;
    budget::check(&value)?;
    Ok((value, Vec::new()))
}

/// What may still be made.
struct Spent {
    bytes: Cell<usize>,
    values: Cell<usize>,
}

#[derive(Clone, Copy)]
struct Counted<'a> {
    spent: &'a Spent,
    depth: usize,
}

impl Counted<'_> {
    fn take<E: serde::de::Error>(&self, bytes: usize) -> Result<(), E> {
        let spend = |cell: &Cell<usize>, cost: usize| cell.get().checked_sub(cost).map(|left| cell.set(left));
        match spend(&self.spent.values, 1).and_then(|()| spend(&self.spent.bytes, bytes)) {
            Some(()) => Ok(()),
            None => Err(E::custom("the document and what its aliases repeat are too large")),
        }
    }

    fn below<E: serde::de::Error>(&self) -> Result<Self, E> {
        match self.depth < budget::YAML_DEPTH_MAX {
            true => Ok(Self { spent: self.spent, depth: self.depth + 1 }),
            false => Err(E::custom(Exceeded::Depth)),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Counted<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Counted<'_> {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("any YAML that JSON can hold")
    }

    fn visit_bool<E: serde::de::Error>(self, flag: bool) -> Result<Value, E> {
        self.take(0).map(|()| Value::Bool(flag))
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Value, E> {
        self.take(0).map(|()| number.into())
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Value, E> {
        self.take(0).map(|()| number.into())
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Value, E> {
        self.take(0)?;
        Number::from_f64(number).map(Value::Number).ok_or_else(|| E::custom("JSON has no such number"))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Value, E> {
        self.take(text.len()).map(|()| text.into())
    }

    fn visit_string<E: serde::de::Error>(self, text: String) -> Result<Value, E> {
        self.take(text.len()).map(|()| text.into())
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        self.take(0).map(|()| Value::Null)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.take(0)?;
        let below = self.below()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(below)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.take(0)?;
        let below = self.below()?;
        let mut map = Map::new();
        while let Some(key) = items.next_key::<String>()? {
            self.take::<A::Error>(key.len())?;
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("duplicate field {key:?}")));
            }
            map.insert(key, items.next_value_seed(below)?);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(text: &str, expect: Value) {
        assert_eq!(yaml(text.as_bytes()).unwrap().0, expect);
    }

    #[test]
    fn reads_yaml_as_kubectl_writes_it() {
        check("a: 1\nb: [x, \"1\", true, null, 1.5]\n", json!({"a": 1, "b": ["x", "1", true, null, 1.5]}));
        check("a: &x {k: v}\nb: *x\n", json!({"a": {"k": "v"}, "b": {"k": "v"}}));
        check("base: &b {x: 1}\nmore:\n  <<: *b\n  y: 2\n", json!({"base": {"x": 1}, "more": {"x": 1, "y": 2}}));
        check("v: ${HOME}\n1: one\n", json!({"v": "${HOME}", "1": "one"}));
        check("text: |\n  a\n  b\n", json!({"text": "a\nb\n"}));
        check("---\na: b\n", json!({"a": "b"}));
    }

    #[test]
    fn refuses_what_exceeds_a_budget() {
        let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(json(deep(budget::DEPTH_MAX).as_bytes()).is_ok());
        assert!(yaml(deep(budget::YAML_DEPTH_MAX).as_bytes()).is_ok());
        assert!(yaml(deep(budget::YAML_DEPTH_MAX + 1).as_bytes()).is_err());
        for bytes in [deep(budget::DEPTH_MAX + 1), deep(100_000), "{\"a\":".repeat(100_000)] {
            assert!(json(bytes.as_bytes()).is_err());
            assert!(yaml(bytes.as_bytes()).is_err());
        }
        // A billion laughs: few bytes, many values.
        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for index in 1..10 {
            let alias = format!("*a{}", index - 1);
            laughs.push_str(&format!("a{index}: &a{index} [{}]\n", vec![alias; 9].join(", ")));
        }
        assert!(yaml(laughs.as_bytes()).is_err());
        // Few values, many bytes.
        let large = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), vec!["*a"; 900].join(", "));
        assert!(yaml(large.as_bytes()).is_err());
        let wide = format!("[{}]", vec!["0"; budget::VALUES_MAX].join(","));
        assert!(matches!(json(wide.as_bytes()), Err(Error::Budget(Exceeded::Values))));
        assert!(yaml(wide.as_bytes()).is_err());
        assert!(yaml(b"a: 1\na: 2\n").is_err());
    }

    #[test]
    fn an_object_at_the_limit_is_written_as_yaml_too() {
        let value = (1..budget::DEPTH_MAX).fold(json!([]), |value, _| json!({"a": value}));
        assert!(serde_saphyr::to_string(&value).is_ok());
    }
}
