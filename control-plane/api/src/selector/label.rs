//! Label selectors: the text form (`a=b,c in (d,e),!f`) and the object form (`matchLabels`, `matchExpressions`).
//!
//! Requirements are sorted by key, so equal selectors print equally. Invariant: keys and values are valid label syntax.

use std::fmt;

use serde_json::Value;

use crate::Object;
use crate::budget;
use crate::name;

/// All requirements hold. The empty selector matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    /// Sorted. Empty for Exists and DoesNotExist.
    pub values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    In,
    NotIn,
    Equals,
    NotEquals,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("unable to parse requirement: found '{found}', expected: {expected}")]
    Syntax { found: String, expected: &'static str },
    #[error("unable to parse requirement: key: Invalid value: \"{key}\": {why}")]
    Key { key: String, why: String },
    #[error("unable to parse requirement: values[0][{key}]: Invalid value: \"{value}\": {why}")]
    Value { key: String, value: String, why: String },
    #[error("\"{operator}\" is not a valid label selector operator")]
    Operator { operator: String },
    #[error("a label selector's {operator} must have {expected} values")]
    Values { operator: String, expected: &'static str },
    #[error(
        "a selector may have at most {} bytes and {} requirements",
        budget::SELECTOR_BYTES_MAX,
        budget::SELECTOR_TERMS_MAX
    )]
    TooLarge,
    #[error("a label selector must be an object with matchLabels and matchExpressions")]
    Shape,
}

impl Requirement {
    pub fn new(key: &str, operator: Operator, mut values: Vec<String>) -> Result<Self, Error> {
        if let Some(why) = name::qualified(key).into_iter().next() {
            return Err(Error::Key { key: key.into(), why });
        }
        for value in &values {
            if let Some(why) = name::label_value(value).into_iter().next() {
                return Err(Error::Value { key: key.into(), value: value.clone(), why });
            }
        }
        if matches!(operator, Operator::GreaterThan | Operator::LessThan)
            && values.first().is_none_or(|value| value.parse::<i64>().is_err())
        {
            return Err(Error::Values { operator: "Gt or Lt".into(), expected: "one integer among its" });
        }
        // Sorted, so that a long list is looked through in a moment for each object.
        values.sort_unstable();
        values.dedup();
        Ok(Self { key: key.into(), operator, values })
    }

    pub fn matches(&self, value: Option<&str>) -> bool {
        let within = |value: &str| self.values.binary_search_by(|one| one.as_str().cmp(value)).is_ok();
        let number = |text: &str| text.parse::<i64>().ok();
        let limit = || self.values.first().and_then(|text| number(text));
        match self.operator {
            Operator::In | Operator::Equals => value.is_some_and(within),
            Operator::NotIn | Operator::NotEquals => !value.is_some_and(within),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => value.and_then(number) > limit() && value.and_then(number).is_some(),
            Operator::LessThan => value.and_then(number).zip(limit()).is_some_and(|(value, limit)| value < limit),
        }
    }
}

impl Selector {
    pub fn everything() -> Self {
        Self::default()
    }

    pub fn new(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Self(requirements)
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The text form, as in `?labelSelector=`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.len() > budget::SELECTOR_BYTES_MAX {
            return Err(Error::TooLarge);
        }
        let tokens = tokenize(text);
        let mut parser = Parser { tokens: &tokens, position: 0 };
        let mut requirements = Vec::new();
        if parser.peek() == "" {
            return Ok(Self::default());
        }
        loop {
            requirements.push(parser.requirement()?);
            if requirements.len() > budget::SELECTOR_TERMS_MAX {
                return Err(Error::TooLarge);
            }
            match parser.next() {
                "" => break,
                "," => {}
                found => return Err(Error::Syntax { found: found.into(), expected: "',' or 'end of string'" }),
            }
        }
        Ok(Self::new(requirements))
    }

    /// The object form. An empty selector matches everything; an absent one (`None`) matches nothing, so callers decide.
    pub fn from_value(value: &Value) -> Result<Self, Error> {
        let map = value.as_object().ok_or(Error::Shape)?;
        let mut requirements = Vec::new();
        if let Some(labels) = map.get("matchLabels").filter(|labels| !labels.is_null()) {
            for (key, value) in labels.as_object().ok_or(Error::Shape)? {
                let value = value.as_str().ok_or(Error::Shape)?;
                requirements.push(Requirement::new(key, Operator::In, vec![value.into()])?);
            }
        }
        if let Some(expressions) = map.get("matchExpressions").filter(|list| !list.is_null()) {
            for expression in expressions.as_array().ok_or(Error::Shape)? {
                requirements.push(expression_requirement(expression)?);
            }
        }
        Ok(Self::new(requirements))
    }

    /// A plain map of labels, as in a Service's selector.
    pub fn from_map(map: &serde_json::Map<String, Value>) -> Result<Self, Error> {
        let one = |(key, value): (&String, &Value)| {
            Requirement::new(key, Operator::In, vec![value.as_str().ok_or(Error::Shape)?.into()])
        };
        Ok(Self::new(map.iter().map(one).collect::<Result<_, _>>()?))
    }

    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|one| one.matches(label(&one.key)))
    }

    pub fn matches_object(&self, object: &Object) -> bool {
        self.0.iter().all(|one| one.matches(object.label(&one.key)))
    }
}

fn expression_requirement(expression: &Value) -> Result<Requirement, Error> {
    let key = expression.get("key").and_then(Value::as_str).ok_or(Error::Shape)?;
    let operator = expression.get("operator").and_then(Value::as_str).unwrap_or_default();
    let values = expression.get("values").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let values: Vec<String> =
        values.iter().map(|value| value.as_str().map(str::to_owned).ok_or(Error::Shape)).collect::<Result<_, _>>()?;
    let kind = match operator {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        other => return Err(Error::Operator { operator: other.into() }),
    };
    let needs_values = matches!(kind, Operator::In | Operator::NotIn);
    if needs_values == values.is_empty() {
        let expected = if needs_values { "some" } else { "no" };
        return Err(Error::Values { operator: operator.into(), expected });
    }
    Requirement::new(key, kind, values)
}

impl fmt::Display for Selector {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, one) in self.0.iter().enumerate() {
            out.write_str(if index == 0 { "" } else { "," })?;
            let mut values = one.values.clone();
            values.sort();
            let list = values.join(",");
            let key = &one.key;
            match one.operator {
                Operator::In if values.len() == 1 => write!(out, "{key}={list}")?,
                Operator::In => write!(out, "{key} in ({list})")?,
                Operator::NotIn => write!(out, "{key} notin ({list})")?,
                Operator::Equals => write!(out, "{key}={list}")?,
                Operator::NotEquals => write!(out, "{key}!={list}")?,
                Operator::Exists => write!(out, "{key}")?,
                Operator::DoesNotExist => write!(out, "!{key}")?,
                Operator::GreaterThan => write!(out, "{key}>{list}")?,
                Operator::LessThan => write!(out, "{key}<{list}")?,
            }
        }
        Ok(())
    }
}

fn tokenize(text: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '=' if rest.starts_with("==") => 2,
            '!' if rest.starts_with("!=") => 2,
            '=' | '!' | '(' | ')' | ',' | '<' | '>' => 1,
            _ => rest.find(|c: char| c.is_whitespace() || "=!(),<>".contains(c)).unwrap_or(rest.len()),
        };
        let (token, tail) = rest.split_at(length);
        tokens.push(token);
        rest = tail.trim_start();
    }
    tokens
}

struct Parser<'a> {
    tokens: &'a [&'a str],
    position: usize,
}

impl<'a> Parser<'a> {
    /// The next token; empty at the end.
    fn peek(&self) -> &'a str {
        self.tokens.get(self.position).copied().unwrap_or_default()
    }

    fn next(&mut self) -> &'a str {
        let token = self.peek();
        self.position += 1;
        token
    }

    fn requirement(&mut self) -> Result<Requirement, Error> {
        let absent = self.peek() == "!";
        if absent {
            self.next();
        }
        let key = self.next();
        if key.is_empty() || "=!(),<>==!=".contains(key) {
            return Err(Error::Syntax { found: key.into(), expected: "!, identifier, or 'end of string'" });
        }
        if absent {
            return Requirement::new(key, Operator::DoesNotExist, Vec::new());
        }
        let operator = match self.peek() {
            "" | "," => return Requirement::new(key, Operator::Exists, Vec::new()),
            "=" | "==" => Operator::Equals,
            "!=" => Operator::NotEquals,
            "in" => Operator::In,
            "notin" => Operator::NotIn,
            ">" => Operator::GreaterThan,
            "<" => Operator::LessThan,
            found => {
                return Err(Error::Syntax { found: found.into(), expected: "in, notin, =, ==, !=, gt, lt" });
            }
        };
        self.next();
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            // `a=` and `a=,b` compare with the empty value.
            _ if matches!(self.peek(), "" | ",") => vec![String::new()],
            _ => vec![self.next().to_owned()],
        };
        Requirement::new(key, operator, values)
    }

    fn values(&mut self) -> Result<Vec<String>, Error> {
        match self.next() {
            "(" => {}
            found => return Err(Error::Syntax { found: found.into(), expected: "'('" }),
        }
        let mut values = Vec::new();
        let mut empty = true;
        loop {
            match self.next() {
                ")" => {
                    if empty {
                        values.push(String::new());
                    }
                    return Ok(values);
                }
                "," => {
                    if empty {
                        values.push(String::new());
                    }
                    empty = true;
                }
                "" => return Err(Error::Syntax { found: String::new(), expected: "',' or ')'" }),
                value if empty => {
                    values.push(value.to_owned());
                    empty = false;
                }
                found => return Err(Error::Syntax { found: found.into(), expected: "',' or ')'" }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(selector: &str, labels: &[(&str, &str)], expect: bool) {
        let parsed = Selector::parse(selector).unwrap();
        let label = |key: &str| labels.iter().find(|(name, _)| *name == key).map(|(_, value)| *value);
        assert_eq!(parsed.matches(label), expect, "{selector} {labels:?}");
        assert_eq!(Selector::parse(&parsed.to_string()).unwrap().to_string(), parsed.to_string());
    }

    #[test]
    fn matches_each_operator() {
        check("", &[], true);
        check("a=b", &[("a", "b")], true);
        check("a==b", &[("a", "c")], false);
        check("a!=b", &[], true);
        check("a in (b, c)", &[("a", "c")], true);
        check("a in (b, c)", &[], false);
        check("a notin (b)", &[], true);
        check("a", &[("a", "")], true);
        check("!a", &[("a", "")], false);
        check("a,!b , c=d", &[("a", ""), ("c", "d")], true);
        check("a>3", &[("a", "4")], true);
        check("a>3", &[("a", "x")], false);
        check("a<3", &[], false);
        check("a=", &[("a", "")], true);
        check("a in (,b)", &[("a", "")], true);
        check("example.com/in=x", &[("example.com/in", "x")], true);
    }

    #[test]
    fn refuses_nonsense() {
        for text in ["=a", "a in b", "a in (b", "a b", ",", "a,", "a=b c", "a/b/c=d", "a=_-", "a>x", "!"] {
            assert!(Selector::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn reads_the_object_form() {
        let value = json!({"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", "operator": "Exists"}]});
        assert_eq!(Selector::from_value(&value).unwrap().to_string(), "a=b,c");
        for bad in [
            json!({"matchExpressions": [{"key": "c", "operator": "In"}]}),
            json!({"matchExpressions": [{"key": "c", "operator": "Exists", "values": ["x"]}]}),
            json!({"matchExpressions": [{"key": "c", "operator": "Is"}]}),
            json!({"matchLabels": {"a": 1}}),
        ] {
            assert!(Selector::from_value(&bad).is_err(), "{bad}");
        }
    }
}
