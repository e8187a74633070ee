//! Objects of every kind as strangers write them: nulls, explicit zeros and empties, uncanonical amounts, times and base64. For tests.

use serde_json::{Map, Value, json};

use super::{Kind, Type};

/// Levels of structs below which a sample ends.
const DEPTH_MAX: usize = 9;

/// Makes values from a seed: the same seed, the same value.
pub(crate) struct Sample(u64);

impl Sample {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    fn below(&mut self, bound: usize) -> usize {
        // xorshift64: any spread will do.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % (bound as u64)).unwrap()
    }

    pub(crate) fn structure(&mut self, of: &Type, depth: usize) -> Map<String, Value> {
        let mut map = Map::new();
        // A few fields a struct, more near the top, so that a sample stays small and reaches everywhere in time.
        let odds = 2 + of.fields.len() * depth / 6;
        for field in &of.fields {
            if field.numbers != [0] && self.below(odds) < 2 {
                map.insert(field.name.into(), self.value(&field.kind, depth));
            }
        }
        map
    }

    fn value(&mut self, kind: &Kind, depth: usize) -> Value {
        if self.below(8) == 0 {
            return Value::Null;
        }
        let pick = |choices: &[Value], at: usize| choices[at % choices.len()].clone();
        match kind {
            Kind::Bool => pick(&[json!(false), json!(true)], self.below(2)),
            Kind::Int32 | Kind::Int64 | Kind::IntOrString => pick(&[json!(0), json!(7), json!(-1)], self.below(3)),
            Kind::Double => pick(&[json!(0), json!(0.0), json!(1.5)], self.below(3)),
            Kind::String => pick(&[json!(""), json!("a"), json!("b")], self.below(3)),
            Kind::Bytes => pick(&[json!(""), json!("YQ=="), json!("YWJj\nZGVm")], self.below(3)),
            Kind::Quantity => {
                pick(&[json!("1024Mi"), json!(0.5), json!("1000m"), json!("0"), json!("1e3")], self.below(5))
            }
            Kind::Time | Kind::MicroTime => {
                pick(&[json!("2026-01-02T03:04:05.123+02:00"), json!("2026-01-02T03:04:05Z")], self.below(2))
            }
            Kind::RawExtension => json!({"free": [1, {"x": "y"}]}),
            Kind::FieldsV1 => json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}}}),
            Kind::Struct(_) if depth >= DEPTH_MAX => json!({}),
            Kind::Struct(_) => kind.as_struct().map_or(Value::Null, |of| self.structure(of, depth + 1).into()),
            Kind::List(inner) => (0..self.below(3)).map(|_| self.value(inner, depth)).collect(),
            Kind::Map(inner) => (0..self.below(3))
                .map(|index| (format!("k{index}"), self.value(inner, depth)))
                .collect::<Map<_, _>>()
                .into(),
        }
    }
}

/// The path of a null that a typed reader would meet.
pub(crate) fn null_in(kind: &Kind, value: &Value, path: &str) -> Option<String> {
    match (kind, value) {
        (_, Value::Null) => Some(path.to_owned()),
        (Kind::Struct(_), Value::Object(map)) => null_in_struct(kind.as_struct()?, map, path),
        (Kind::List(inner), Value::Array(list)) => {
            list.iter().enumerate().find_map(|(index, item)| null_in(inner, item, &format!("{path}[{index}]")))
        }
        (Kind::Map(inner), Value::Object(map)) => {
            map.iter().find_map(|(key, item)| null_in(inner, item, &format!("{path}.{key}")))
        }
        _ => None,
    }
}

pub(crate) fn null_in_struct(of: &Type, map: &Map<String, Value>, path: &str) -> Option<String> {
    map.iter().find_map(|(name, value)| {
        let path = format!("{path}.{name}");
        match of.field(name) {
            Some(field) => null_in(&field.kind, value, &path),
            None => Some(format!("{path} is unknown")),
        }
    })
}
