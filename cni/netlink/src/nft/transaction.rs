//! Building a transaction: steps in order, committed by the kernel as a whole.
//!
//! Creating what exists is fine, deleting what does not exist is refused; [`Transaction::remove_table`] gets round that
//! by creating first. Elements are packed into as few messages as the 64 KiB limit of an attribute allows.

use crate::attributes::Attributes;
use crate::socket::{Netfilter, Outgoing, nfgenmsg};

use super::expression::{Expression, Verdict};
use super::{Family, SUBSYSTEM, message};

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
/// Below 64 KiB, the limit of the attribute that holds the list.
const ELEMENT_BYTES_MAX: usize = 60_000;

const SET_MAP: u32 = 0x8;
const SET_TIMEOUT: u32 = 0x10;
const SET_EVAL: u32 = 0x20;

/// What kind of base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names nft uses")]
pub enum ChainKind {
    Filter,
    Nat,
}

/// Where a base chain is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names nft uses")]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

/// What a base chain does at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names nft uses")]
pub enum Policy {
    Accept,
    Drop,
}

/// Type of a field in a key or value; the kernel needs only the length, `nft list` also the type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names nft uses")]
pub enum DataKind {
    Ipv4,
    Ipv6,
    Protocol,
    Port,
    /// A 32-bit number in the machine's order.
    Number,
}

impl DataKind {
    /// Number in nft's table of types and padded length.
    fn facts(self) -> (u32, u32) {
        match self {
            Self::Ipv4 => (7, 4),
            Self::Ipv6 => (8, 16),
            Self::Protocol => (12, 4),
            Self::Port => (13, 4),
            Self::Number => (19, 4),
        }
    }
}

/// What a set maps its keys to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetData<'a> {
    /// Nothing: a set.
    Nothing,
    /// Bytes: a map.
    Fields(&'a [DataKind]),
    /// Verdicts: a verdict map.
    Verdict,
}

/// A set or map.
#[derive(Debug, Clone, Copy)]
pub struct Set<'a> {
    /// Name.
    pub name: &'a str,
    /// Fields of the key.
    pub key: &'a [DataKind],
    /// What keys map to.
    pub data: SetData<'a>,
    /// Rules change it, and its elements expire.
    pub is_dynamic: bool,
}

/// What an element maps to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Nothing: an element of a set.
    Nothing,
    /// Bytes, every field padded to four.
    Bytes(Vec<u8>),
    /// A verdict.
    Verdict(Verdict),
}

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// Key bytes, every field padded to four.
    pub key: Vec<u8>,
    /// What it maps to.
    pub value: Value,
    /// A remark of at most 120 characters, kept with the element and read back with it.
    pub comment: Option<String>,
}

impl Element {
    /// An element without a remark.
    #[must_use]
    pub fn new(key: Vec<u8>, value: Value) -> Self {
        Self { key, value, comment: None }
    }
}

/// Steps that happen together.
#[derive(Debug)]
pub struct Transaction {
    family: Family,
    outgoing: Outgoing<Netfilter>,
    sets: u32,
}

impl Transaction {
    /// Nothing yet.
    #[must_use]
    pub fn new(family: Family) -> Self {
        let mut outgoing = Outgoing::default();
        outgoing.push_unacknowledged("begin a transaction".into(), BATCH_BEGIN, 0, nfgenmsg(0, 10).as_bytes());
        Self { family, outgoing, sets: 0 }
    }

    /// Whether no step was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.outgoing.len() == 1
    }

    /// A table; one that is there is fine.
    pub fn add_table(&mut self, table: &str) -> &mut Self {
        let mut body = self.body();
        body.put_text(1, table);
        self.push(format!("add table {table}"), message::NEW_TABLE, NLM_F_CREATE, &body)
    }

    /// No such table afterwards, whether there was one or not.
    pub fn remove_table(&mut self, table: &str) -> &mut Self {
        self.add_table(table);
        let mut body = self.body();
        body.put_text(1, table);
        self.push(format!("delete table {table}"), message::DELETE_TABLE, 0, &body)
    }

    /// A chain that is jumped to.
    pub fn add_chain(&mut self, table: &str, chain: &str) -> &mut Self {
        let mut body = self.body();
        body.put_text(1, table).put_text(3, chain);
        self.push(format!("add chain {chain}"), message::NEW_CHAIN, NLM_F_CREATE, &body)
    }

    /// A chain the kernel calls. `note` is kept with it and can be read back.
    pub fn add_base_chain(
        &mut self,
        table: &str,
        chain: &str,
        kind: ChainKind,
        (hook, priority, policy): (Hook, i32, Policy),
        note: &[u8],
    ) -> &mut Self {
        let hook = match hook {
            Hook::Prerouting => 0,
            Hook::Input => 1,
            Hook::Forward => 2,
            Hook::Output => 3,
            Hook::Postrouting => 4,
        };
        let kind = match kind {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
        };
        let mut body = self.body();
        body.put_text(1, table).put_text(3, chain);
        body.nest(4, |inner| inner.put_u32_be(1, hook).put_u32_be(2, priority.cast_unsigned()));
        body.put_u32_be(5, u32::from(policy == Policy::Accept)).put_text(7, kind);
        if !note.is_empty() {
            body.put(12, note);
        }
        self.push(format!("add base chain {chain}"), message::NEW_CHAIN, NLM_F_CREATE, &body)
    }

    /// Removes all rules of a chain.
    pub fn flush_chain(&mut self, table: &str, chain: &str) -> &mut Self {
        let mut body = self.body();
        body.put_text(1, table).put_text(2, chain);
        self.push(format!("flush chain {chain}"), message::DELETE_RULE, 0, &body)
    }

    /// Removes a chain that is empty and not jumped to.
    pub fn delete_chain(&mut self, table: &str, chain: &str) -> &mut Self {
        let mut body = self.body();
        body.put_text(1, table).put_text(3, chain);
        self.push(format!("delete chain {chain}"), message::DELETE_CHAIN, 0, &body)
    }

    /// A rule at the end of a chain.
    pub fn add_rule(&mut self, table: &str, chain: &str, expressions: &[Expression]) -> &mut Self {
        let mut body = self.body();
        body.put_text(1, table).put_text(2, chain);
        body.nest(4, |list| {
            expressions.iter().for_each(|expression| expression.encode(list));
            list
        });
        self.push(format!("add a rule to chain {chain}"), message::NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, &body)
    }

    /// A set or map; one that is there with the same type is fine.
    pub fn add_set(&mut self, table: &str, set: &Set<'_>) -> &mut Self {
        let mut flags = if set.is_dynamic { SET_TIMEOUT | SET_EVAL } else { 0 };
        let (key_type, key_length) = concatenated(set.key);
        self.sets += 1;
        let id = self.sets;
        let mut body = self.body();
        body.put_text(1, table).put_text(2, set.name);
        body.put_u32_be(4, key_type).put_u32_be(5, key_length);
        match set.data {
            SetData::Nothing => {}
            SetData::Fields(fields) => {
                flags |= SET_MAP;
                let (data_type, data_length) = concatenated(fields);
                body.put_u32_be(6, data_type).put_u32_be(7, data_length);
            }
            SetData::Verdict => {
                const VERDICT: u32 = 0xffff_ff00;
                flags |= SET_MAP;
                body.put_u32_be(6, VERDICT);
            }
        }
        body.put_u32_be(3, flags).put_u32_be(10, id);
        self.push(format!("add set {}", set.name), message::NEW_SET, NLM_F_CREATE, &body)
    }

    /// Removes a set no rule uses.
    pub fn delete_set(&mut self, table: &str, set: &str) -> &mut Self {
        let mut body = self.body();
        body.put_text(1, table).put_text(2, set);
        self.push(format!("delete set {set}"), message::DELETE_SET, 0, &body)
    }

    /// Adds elements; one that is there with the same value is fine, with another value it is refused.
    pub fn add_elements(&mut self, table: &str, set: &str, elements: impl IntoIterator<Item = Element>) -> &mut Self {
        self.elements(table, set, ("add", message::NEW_ELEMENT, NLM_F_CREATE), elements)
    }

    /// Removes elements by key; one that is not there is refused.
    pub fn delete_elements(
        &mut self,
        table: &str,
        set: &str,
        elements: impl IntoIterator<Item = Element>,
    ) -> &mut Self {
        self.elements(table, set, ("delete", message::DELETE_ELEMENT, 0), elements)
    }

    /// Removes all elements.
    pub fn flush_set(&mut self, table: &str, set: &str) -> &mut Self {
        let mut body = self.body();
        body.put_text(1, table).put_text(2, set);
        self.push(format!("flush set {set}"), message::DELETE_ELEMENT, 0, &body)
    }

    fn elements(
        &mut self,
        table: &str,
        set: &str,
        (verb, kind, flags): (&str, u16, u16),
        elements: impl IntoIterator<Item = Element>,
    ) -> &mut Self {
        const LIST: u16 = 3;
        let mut elements = elements.into_iter().peekable();
        while elements.peek().is_some() {
            let mut body = self.body();
            body.put_text(1, table).put_text(2, set);
            let mut count = 0;
            body.nest(LIST, |list| {
                let start = list.len();
                while let Some(element) = elements.next_if(|_| list.len() - start < ELEMENT_BYTES_MAX) {
                    encode_element(list, &element);
                    count += 1;
                }
                list
            });
            self.push(format!("{verb} {count} elements of {set}"), kind, flags, &body);
        }
        self
    }

    /// A chain as the kernel described it.
    pub(super) fn add_raw_chain(&mut self, table: &str, chain: &str, attributes: &[u8]) -> &mut Self {
        let mut body = self.body();
        body.put_text(1, table).raw(attributes);
        self.push(format!("add chain {chain}"), message::NEW_CHAIN, NLM_F_CREATE, &body)
    }

    /// A rule as the kernel described it, at the end of its chain.
    pub(super) fn add_raw_rule(&mut self, table: &str, chain: &str, attributes: &[u8]) -> &mut Self {
        let mut body = self.body();
        body.put_text(1, table).put_text(2, chain).raw(attributes);
        self.push(format!("add a rule to chain {chain}"), message::NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, &body)
    }

    /// A set as the kernel described it.
    pub(super) fn add_raw_set(&mut self, table: &str, set: &str, attributes: &[u8]) -> &mut Self {
        self.sets += 1;
        let id = self.sets;
        let mut body = self.body();
        body.put_text(1, table).raw(attributes).put_u32_be(10, id);
        self.push(format!("add set {set}"), message::NEW_SET, NLM_F_CREATE, &body)
    }

    /// Elements as the kernel described them.
    pub(super) fn add_raw_elements(&mut self, table: &str, set: &str, elements: &[Vec<u8>]) -> &mut Self {
        const LIST: u16 = 3;
        const ITEM: u16 = 1;
        let mut elements = elements.iter().peekable();
        while elements.peek().is_some() {
            let mut body = self.body();
            body.put_text(1, table).put_text(2, set);
            body.nest(LIST, |list| {
                let start = list.len();
                while let Some(element) = elements.next_if(|_| list.len() - start < ELEMENT_BYTES_MAX) {
                    list.nest(ITEM, |item| item.raw(element));
                }
                list
            });
            self.push(format!("add elements of {set}"), message::NEW_ELEMENT, NLM_F_CREATE, &body);
        }
        self
    }

    /// Elements that were saved from a map of the same shape.
    pub fn add_saved_elements(&mut self, table: &str, set: &str, elements: &[super::SavedElement]) -> &mut Self {
        let raw: Vec<Vec<u8>> = elements.iter().map(|element| element.attributes.clone()).collect();
        self.add_raw_elements(table, set, &raw)
    }

    /// A rule at the head of a chain, with a remark that is read back with it. `protocol` is what extensions of xtables in
    /// it are told.
    pub fn insert_rule(
        &mut self,
        table: &str,
        chain: &str,
        expressions: &[Expression],
        comment: &str,
        protocol: Option<u8>,
    ) -> &mut Self {
        let mut body = self.body();
        body.put_text(1, table).put_text(2, chain);
        body.nest(4, |list| {
            expressions.iter().for_each(|expression| expression.encode(list));
            list
        });
        if let Some(protocol) = protocol {
            // NFTA_RULE_COMPAT: protocol and flags.
            body.nest(5, |compat| compat.put_u32_be(1, u32::from(protocol)).put_u32_be(2, 0));
        }
        body.put(7, &comment_to_note(comment));
        self.push(format!("add a rule to chain {chain}"), message::NEW_RULE, NLM_F_CREATE, &body)
    }

    /// Removes one rule.
    pub fn delete_rule(&mut self, table: &str, chain: &str, handle: u64) -> &mut Self {
        let mut body = self.body();
        body.put_text(1, table).put_text(2, chain).put_u64_be(3, handle);
        self.push(format!("delete rule {handle} of chain {chain}"), message::DELETE_RULE, 0, &body)
    }

    fn body(&self) -> Attributes {
        nfgenmsg(self.family.number(), 0)
    }

    fn push(&mut self, label: String, kind: u16, flags: u16, body: &Attributes) -> &mut Self {
        self.outgoing.push_unacknowledged(label, SUBSYSTEM | kind, flags, body.as_bytes());
        self
    }

    /// The bytes to send; `None` when there is nothing to do.
    pub(super) fn finish(mut self) -> Option<Outgoing<Netfilter>> {
        if self.is_empty() {
            return None;
        }
        self.outgoing.acknowledge_last();
        self.outgoing.push_unacknowledged("commit".into(), BATCH_END, 0, nfgenmsg(0, 10).as_bytes());
        Some(self.outgoing.into_transaction())
    }
}

fn concatenated(fields: &[DataKind]) -> (u32, u32) {
    // nft packs the types of a concatenation six bits each.
    fields.iter().fold((0, 0), |(kind, length), field| {
        let (field_kind, field_length) = field.facts();
        ((kind << 6) | field_kind, length + field_length)
    })
}

fn encode_element(list: &mut Attributes, element: &Element) {
    const ITEM: u16 = 1;
    const KEY: u16 = 1;
    const DATA: u16 = 2;
    const USERDATA: u16 = 6;
    const DATA_VALUE: u16 = 1;
    list.nest(ITEM, |item| {
        item.nest(KEY, |key| key.put(DATA_VALUE, &element.key));
        if let Some(comment) = &element.comment {
            item.put(USERDATA, &comment_to_note(comment));
        }
        match &element.value {
            Value::Nothing => item,
            Value::Bytes(bytes) => item.nest(DATA, |data| data.put(DATA_VALUE, bytes)),
            Value::Verdict(verdict) => item.nest(DATA, |data| verdict.encode(data)),
        }
    });
}

/// The note `nft` shows as a comment: type 0, length, text with NUL.
fn comment_to_note(comment: &str) -> Vec<u8> {
    let text = comment.as_bytes();
    let text = &text[..text.len().min(120)];
    let length = u8::try_from(text.len() + 1).expect("cut to 120 above");
    [&[0, length], text, &[0]].concat()
}

/// The remark in a note, if it is one.
pub(super) fn note_to_comment(note: &[u8]) -> Option<String> {
    let (head, text) = note.split_at_checked(2)?;
    (head[0] == 0).then(|| crate::attributes::read_text(text))
}
