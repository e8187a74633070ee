//! Field selectors: `metadata.name=a,status.phase!=Running`.
//!
//! Only equality exists, as upstream. Invariant: every requirement names a path.

use std::fmt;

use crate::budget;

/// All requirements hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector(Vec<FieldRequirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRequirement {
    pub path: String,
    /// True for `=` and `==`, false for `!=`.
    pub equal: bool,
    pub value: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("invalid selector: '{selector}'; can't understand '{part}'")]
    Term { selector: String, part: String },
    #[error(
        "a selector may have at most {} bytes and {} requirements",
        budget::SELECTOR_BYTES_MAX,
        budget::SELECTOR_TERMS_MAX
    )]
    TooLarge,
    #[error("invalid field selector: invalid escape sequence: {sequence}")]
    Escape { sequence: String },
    #[error("invalid field selector: unescaped character in value: {character}")]
    Unescaped { character: char },
}

impl FieldSelector {
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut requirements = Vec::new();
        if text.len() > budget::SELECTOR_BYTES_MAX {
            return Err(Error::TooLarge);
        }
        for part in split_unescaped(text) {
            if part.is_empty() {
                continue;
            }
            let term = || Error::Term { selector: text.to_owned(), part: part.to_owned() };
            let at = operator_at(part).ok_or_else(term)?;
            let (path, rest) = part.split_at(at);
            let (equal, value) = if let Some(value) = rest.strip_prefix("!=") {
                (false, value)
            } else {
                (true, rest.strip_prefix("==").or(rest.strip_prefix('=')).ok_or_else(term)?)
            };
            if requirements.len() == budget::SELECTOR_TERMS_MAX {
                return Err(Error::TooLarge);
            }
            requirements.push(FieldRequirement { path: path.to_owned(), equal, value: unescape(value)? });
        }
        Ok(Self(requirements))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn requirements(&self) -> &[FieldRequirement] {
        &self.0
    }

    /// The value that `path` must have, when the selector says so.
    pub fn exact(&self, path: &str) -> Option<&str> {
        self.0.iter().find(|one| one.equal && one.path == path).map(|one| one.value.as_str())
    }

    /// Whether all requirements hold; `field` gives a path's value, empty when absent.
    pub fn matches(&self, field: impl Fn(&str) -> String) -> bool {
        self.0.iter().all(|one| (field(&one.path) == one.value) == one.equal)
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, one) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let value = one.value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            write!(out, "{comma}{}{}{value}", one.path, if one.equal { "=" } else { "!=" })?;
        }
        Ok(())
    }
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (index, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn operator_at(part: &str) -> Option<usize> {
    part.char_indices().find(|(index, c)| *c == '=' || part[*index..].starts_with("!=")).map(|(index, _)| index)
}

fn unescape(value: &str) -> Result<String, Error> {
    let mut out = String::with_capacity(value.len());
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some(next @ ('\\' | ',' | '=')) => out.push(next),
                Some(next) => return Err(Error::Escape { sequence: format!("\\{next}") }),
                None => return Err(Error::Escape { sequence: "\\".into() }),
            },
            ',' | '=' => return Err(Error::Unescaped { character }),
            other => out.push(other),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_matches() {
        let selector = FieldSelector::parse(r"metadata.name=a,status.phase!=Running,x==b\,c").unwrap();
        assert_eq!(selector.exact("metadata.name"), Some("a"));
        assert_eq!(selector.requirements()[2].value, "b,c");
        let value = |path: &str| match path {
            "metadata.name" => "a".to_owned(),
            "x" => "b,c".to_owned(),
            _ => String::new(),
        };
        assert!(selector.matches(value));
        assert_eq!(selector.to_string(), r"metadata.name=a,status.phase!=Running,x=b\,c");
        assert!(FieldSelector::parse("").unwrap().is_empty());
    }

    #[test]
    fn refuses_nonsense() {
        for text in ["metadata.name", r"a=\x", "a=b=c"] {
            assert!(FieldSelector::parse(text).is_err(), "{text}");
        }
    }
}
