//! A field of an object while it is judged: its value and the way to it. The way becomes text only where something is wrong.
//!
//! What is absent, null or of another type reads as the zero value of its type, as it does in upstream's structs; bodies were
//! checked against the schema before. Invariant: a path reads as upstream writes it: `spec.containers[0].env[1].name`.

use std::fmt::Write as _;
use std::ops::RangeInclusive;

use serde_json::Value;

use super::Causes;
use crate::{Cause, Object, Quantity, name};

const NULL: &Value = &Value::Null;

#[derive(Clone, Copy, Debug)]
enum Step<'p> {
    Key(&'p str),
    Index(usize),
    /// A key that is the user's own: of labels, of data, of amounts.
    Entry(&'p str),
}

#[derive(Clone, Copy, Debug)]
struct Path<'p> {
    parent: Option<&'p Path<'p>>,
    step: Step<'p>,
}

/// A value and the way to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field<'v, 'p> {
    pub(super) value: &'v Value,
    path: Path<'p>,
}

/// What is wrong with a text, in upstream's words.
pub(super) type Syntax = fn(&str) -> Vec<String>;

impl Path<'_> {
    fn write(&self, out: &mut String) {
        if let Some(parent) = self.parent {
            parent.write(out);
        }
        let written = match self.step {
            Step::Key(key) if out.is_empty() => {
                out.push_str(key);
                Ok(())
            }
            Step::Key(key) => write!(out, ".{key}"),
            Step::Index(index) => write!(out, "[{index}]"),
            Step::Entry(key) => write!(out, "[{key}]"),
        };
        written.expect("writing to a string does not fail");
    }
}

impl<'v, 'p> Field<'v, 'p> {
    /// A value whose way begins with `name`: `spec`, `spec.template`.
    pub(super) fn root(name: &'p str, value: &'v Value) -> Self {
        Self { value, path: Path { parent: None, step: Step::Key(name) } }
    }

    /// A field of the object itself.
    pub(super) fn top(object: &'v Object, name: &'p str) -> Self {
        Self::root(name, object.get(name).unwrap_or(NULL))
    }

    fn step<'q>(&'q self, value: &'v Value, step: Step<'q>) -> Field<'v, 'q> {
        Field { value, path: Path { parent: Some(&self.path), step } }
    }

    pub(super) fn key<'q>(&'q self, name: &'q str) -> Field<'v, 'q> {
        self.step(self.value.get(name).unwrap_or(NULL), Step::Key(name))
    }

    /// The value under a key that is the user's own.
    pub(super) fn entry<'q>(&'q self, name: &'q str) -> Field<'v, 'q> {
        self.step(self.value.get(name).unwrap_or(NULL), Step::Entry(name))
    }

    /// The same value under another name: where upstream reports it.
    pub(super) fn named<'q>(&'q self, name: &'q str) -> Field<'v, 'q> {
        self.step(self.value, Step::Key(name))
    }

    /// Another value below this one: where upstream's path leaves a step out.
    pub(super) fn place<'q>(&'q self, name: &'q str, value: &'v Value) -> Field<'v, 'q> {
        self.step(value, Step::Key(name))
    }

    /// The way to an item, for what is said of it without its value.
    pub(super) fn index(&self, index: usize) -> Field<'v, '_> {
        self.step(self.value.get(index).unwrap_or(NULL), Step::Index(index))
    }

    pub(super) fn list(&self) -> &'v [Value] {
        self.value.as_array().map_or(&[], Vec::as_slice)
    }

    pub(super) fn items<'q>(&'q self) -> impl Iterator<Item = Field<'v, 'q>> {
        self.list().iter().enumerate().map(|(index, value)| self.step(value, Step::Index(index)))
    }

    /// The entries of a map whose keys are the user's own.
    pub(super) fn entries<'q>(&'q self) -> impl Iterator<Item = (&'v str, Field<'v, 'q>)>
    where
        'v: 'q,
    {
        let entries = self.value.as_object().into_iter().flatten();
        entries.map(|(key, value)| (key.as_str(), self.step(value, Step::Entry(key))))
    }

    pub(super) fn path(&self) -> String {
        let mut out = String::new();
        self.path.write(&mut out);
        out
    }

    pub(super) fn is_set(&self) -> bool {
        !self.value.is_null()
    }

    pub(super) fn text(&self) -> &'v str {
        self.value.as_str().unwrap_or_default()
    }

    pub(super) fn number(&self) -> Option<i64> {
        self.value.as_i64()
    }

    /// The number; zero when it is absent, which upstream does not tell apart.
    pub(super) fn int(&self) -> i64 {
        self.number().unwrap_or(0)
    }

    pub(super) fn is_true(&self) -> bool {
        self.value.as_bool() == Some(true)
    }

    pub(super) fn is_false(&self) -> bool {
        self.value.as_bool() == Some(false)
    }

    pub(super) fn quantity(&self) -> Option<Quantity> {
        match self.value {
            Value::String(text) => Quantity::parse(text).ok(),
            Value::Number(number) => Quantity::parse(&number.to_string()).ok(),
            _ => None,
        }
    }

    pub(super) fn required(&self, detail: &str, causes: &mut Causes) {
        causes.push(Cause::required(self.path(), detail));
    }

    pub(super) fn invalid(&self, detail: &str, causes: &mut Causes) {
        causes.push(Cause::invalid(self.path(), self.value, detail));
    }

    /// Invalid, with something else shown than the value itself.
    pub(super) fn invalid_as(&self, shown: &Value, detail: &str, causes: &mut Causes) {
        causes.push(Cause::invalid(self.path(), shown, detail));
    }

    pub(super) fn forbidden(&self, detail: &str, causes: &mut Causes) {
        causes.push(Cause::forbidden(self.path(), detail));
    }

    pub(super) fn unsupported(&self, supported: &[&str], causes: &mut Causes) {
        causes.push(Cause::not_supported(self.path(), self.value, supported));
    }

    pub(super) fn duplicate(&self, causes: &mut Causes) {
        causes.push(Cause::duplicate(self.path(), self.value));
    }

    pub(super) fn not_found(&self, causes: &mut Causes) {
        causes.push(Cause::not_found(self.path(), self.value));
    }

    pub(super) fn too_long(&self, bytes_max: usize, causes: &mut Causes) {
        causes.push(Cause::too_long(self.path(), bytes_max));
    }

    /// What a syntax says of the text, the empty one included.
    pub(super) fn must_be(&self, syntax: Syntax, causes: &mut Causes) {
        for fault in syntax(self.text()) {
            self.invalid_as(&self.text().into(), &fault, causes);
        }
    }

    /// What a syntax says of the text, unless there is none.
    pub(super) fn may_be(&self, syntax: Syntax, causes: &mut Causes) {
        if !self.text().is_empty() {
            self.must_be(syntax, causes);
        }
    }

    /// The text, when there is one, must be one of these.
    pub(super) fn one_of(&self, supported: &[&str], causes: &mut Causes) {
        if !self.text().is_empty() && !supported.contains(&self.text()) {
            self.unsupported(supported, causes);
        }
    }

    /// The text of a pointer, the empty one included, must be one of these.
    pub(super) fn one_of_if_set(&self, supported: &[&str], causes: &mut Causes) {
        if self.is_set() && !supported.contains(&self.text()) {
            self.unsupported(supported, causes);
        }
    }

    pub(super) fn not_negative(&self, causes: &mut Causes) {
        if self.int() < 0 {
            self.invalid(super::NOT_NEGATIVE, causes);
        }
    }

    pub(super) fn none_negative(&self, keys: &[&str], causes: &mut Causes) {
        for key in keys {
            self.key(key).not_negative(causes);
        }
    }

    /// A number that is there lies in a range.
    pub(super) fn within(&self, range: &RangeInclusive<i64>, causes: &mut Causes) {
        if self.number().is_some_and(|number| !range.contains(&number)) {
            self.invalid(&format!("must be between {} and {}, inclusive", range.start(), range.end()), causes);
        }
    }

    /// A port's number, zero included.
    pub(super) fn port_number(&self, causes: &mut Causes) {
        for fault in name::port_number(self.int()) {
            self.invalid_as(&self.int().into(), &fault, causes);
        }
    }

    /// A port of a target: a number, or the name of one.
    pub(super) fn port_or_name(&self, causes: &mut Causes) {
        match self.value {
            Value::Number(_) => self.port_number(causes),
            Value::String(_) => self.must_be(name::port_name, causes),
            _ => {}
        }
    }
}
