//! nf_tables: transactions that happen as a whole or not at all, and reading chains and sets back.
//!
//! Speaks the kernel's own protocol; no `nft` program and no library of it. Knows tables, chains, rules, sets and maps,
//! and nothing of what they are for. A refused transaction says which of its steps the kernel refused.

use crate::Namespace;
use crate::attributes::{self, Attributes, read_text, read_u32_be};
use crate::namespace::NamespaceError;
use crate::socket::{NLM_F_DUMP, Netfilter, Socket, SocketError, nfgenmsg};

mod expression;
pub mod snapshot;
mod transaction;

pub use expression::{
    Compare, CtKey, CtTuple, Dynset, Expression, FibAddress, Meta, Payload, Register, Reject, Verdict,
};
pub use transaction::{ChainKind, DataKind, Element, Hook, Policy, Set, SetData, Transaction, Value};

/// Subsystem number of nf_tables within nfnetlink.
const SUBSYSTEM: u16 = 10 << 8;

mod message {
    pub(super) const NEW_TABLE: u16 = 0;
    pub(super) const GET_TABLE: u16 = 1;
    pub(super) const DELETE_TABLE: u16 = 2;
    pub(super) const NEW_CHAIN: u16 = 3;
    pub(super) const GET_CHAIN: u16 = 4;
    pub(super) const DELETE_CHAIN: u16 = 5;
    pub(super) const NEW_RULE: u16 = 6;
    pub(super) const GET_RULE: u16 = 7;
    pub(super) const DELETE_RULE: u16 = 8;
    pub(super) const NEW_SET: u16 = 9;
    pub(super) const GET_SET: u16 = 10;
    pub(super) const DELETE_SET: u16 = 11;
    pub(super) const NEW_ELEMENT: u16 = 12;
    pub(super) const GET_ELEMENT: u16 = 13;
    pub(super) const DELETE_ELEMENT: u16 = 14;
    pub(super) const GET_GENERATION: u16 = 16;
}

/// Why nf_tables did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The transport, or a refusal.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Entering the namespace.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
}

impl NftError {
    /// The errno of a refusal.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Socket(error) => error.errno(),
            Self::Namespace(_) => None,
        }
    }
}

/// Address family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6 in one table.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
}

impl Family {
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Ip6 => 10,
        }
    }
}

/// A chain as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundChain {
    /// Name.
    pub name: String,
    /// Rules in it plus jumps to it.
    pub uses: u32,
    /// What its maker noted on it.
    pub note: Vec<u8>,
}

/// An element as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FoundElement {
    /// Key bytes, every field padded to four.
    pub key: Vec<u8>,
    /// Value bytes of a map; empty for sets and verdicts.
    pub value: Vec<u8>,
    /// Chain a verdict goes to.
    pub chain: Option<String>,
    /// The remark it was made with.
    pub comment: Option<String>,
}

/// A socket to nf_tables in one namespace.
#[derive(Debug)]
pub struct Nftables {
    socket: Socket<Netfilter>,
}

impl Nftables {
    /// In the calling thread's namespace.
    ///
    /// # Errors
    /// No socket.
    pub fn open() -> Result<Self, NftError> {
        Ok(Self { socket: Socket::open()? })
    }

    /// In another namespace.
    ///
    /// # Errors
    /// No socket, or the namespace cannot be entered.
    pub fn open_in(namespace: &Namespace) -> Result<Self, NftError> {
        namespace.within(Self::open)?
    }

    /// Does all of it, or nothing.
    ///
    /// # Errors
    /// Transport errors; the first refused step.
    pub fn apply(&mut self, transaction: Transaction) -> Result<(), NftError> {
        let Some(outgoing) = transaction.finish() else { return Ok(()) };
        // The kernel takes a transaction only as one datagram.
        self.socket.grow(outgoing.byte_len() + (64 << 10))?;
        Ok(self.socket.apply(&outgoing)?)
    }

    /// Names of the tables of this family.
    ///
    /// # Errors
    /// Transport errors.
    pub fn tables(&mut self, family: Family) -> Result<Vec<String>, NftError> {
        const NAME: u16 = 1;
        let request = nfgenmsg(family.number(), 0);
        let kind = SUBSYSTEM | message::GET_TABLE;
        let received = self.socket.request("list nf_tables tables", kind, NLM_F_DUMP, request.as_bytes())?;
        Ok(received
            .iter()
            .filter_map(|answer| attributes::find(answer.payload.get(4..)?, NAME).map(read_text))
            .collect())
    }

    /// One chain; `None` when it or its table does not exist.
    ///
    /// # Errors
    /// Transport errors.
    pub fn chain(&mut self, family: Family, table: &str, name: &str) -> Result<Option<FoundChain>, NftError> {
        const TABLE: u16 = 1;
        const NAME: u16 = 3;
        const USE: u16 = 6;
        const USERDATA: u16 = 12;
        let mut request = nfgenmsg(family.number(), 0);
        request.put_text(TABLE, table).put_text(NAME, name);
        let kind = SUBSYSTEM | message::GET_CHAIN;
        let received = match self.socket.request("look for an nf_tables chain", kind, 0, request.as_bytes()) {
            Err(error) if error.errno() == Some(libc::ENOENT) => return Ok(None),
            other => other?,
        };
        Ok(received.first().map(|answer| {
            let body = answer.payload.get(4..).unwrap_or_default();
            FoundChain {
                name: name.to_owned(),
                uses: attributes::find(body, USE).and_then(read_u32_be).unwrap_or_default(),
                note: attributes::find(body, USERDATA).unwrap_or_default().to_vec(),
            }
        }))
    }

    /// All elements of a set or map; empty when it does not exist.
    ///
    /// # Errors
    /// Transport errors.
    pub fn elements(&mut self, family: Family, table: &str, set: &str) -> Result<Vec<FoundElement>, NftError> {
        Ok(self.raw_elements(family, table, set)?.iter().filter_map(|item| read_element(item)).collect())
    }

    /// All elements of a map, with everything that belongs to them, to be put into another of the same shape.
    ///
    /// # Errors
    /// Transport errors.
    pub fn saved_elements(&mut self, family: Family, table: &str, set: &str) -> Result<Vec<SavedElement>, NftError> {
        let all = self.raw_elements(family, table, set)?;
        Ok(all.into_iter().filter_map(SavedElement::read).collect())
    }

    /// The number of the rules' generation: every transaction of anybody makes the next one.
    ///
    /// # Errors
    /// Transport errors.
    pub fn generation(&mut self) -> Result<u32, NftError> {
        const ID: u16 = 1;
        let kind = SUBSYSTEM | message::GET_GENERATION;
        let received = self.socket.request("ask for the rules' generation", kind, 0, nfgenmsg(0, 0).as_bytes())?;
        let body = received.first().and_then(|answer| answer.payload.get(4..)).unwrap_or_default();
        Ok(attributes::find(body, ID).and_then(read_u32_be).unwrap_or_default())
    }

    /// Base chains of all tables of this family.
    ///
    /// # Errors
    /// Transport errors.
    pub fn base_chains(&mut self, family: Family) -> Result<Vec<BaseChain>, NftError> {
        Ok(self.list_chains(family)?.iter().filter_map(|body| read_base_chain(body)).collect())
    }

    /// All rules of a table, in order.
    ///
    /// # Errors
    /// Transport errors.
    pub fn rules(&mut self, family: Family, table: &str) -> Result<Vec<FoundRule>, NftError> {
        Ok(self.list_rules(family, table)?.iter().filter_map(|body| read_rule(body)).collect())
    }

    fn list_chains(&mut self, family: Family) -> Result<Vec<Vec<u8>>, NftError> {
        self.list("list nf_tables chains", message::GET_CHAIN, &nfgenmsg(family.number(), 0))
    }

    fn list_rules(&mut self, family: Family, table: &str) -> Result<Vec<Vec<u8>>, NftError> {
        let mut request = nfgenmsg(family.number(), 0);
        request.put_text(1, table);
        self.list("list nf_tables rules", message::GET_RULE, &request)
    }

    fn list_sets(&mut self, family: Family, table: &str) -> Result<Vec<Vec<u8>>, NftError> {
        let mut request = nfgenmsg(family.number(), 0);
        request.put_text(1, table);
        self.list("list nf_tables sets", message::GET_SET, &request)
    }

    /// Bodies of a dump, without the header of nfnetlink; nothing where the table is gone.
    fn list(&mut self, label: &str, kind: u16, request: &Attributes) -> Result<Vec<Vec<u8>>, NftError> {
        match self.socket.request(label, SUBSYSTEM | kind, NLM_F_DUMP, request.as_bytes()) {
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
            Ok(received) => {
                Ok(received.into_iter().filter_map(|answer| answer.payload.get(4..).map(<[u8]>::to_vec)).collect())
            }
        }
    }

    /// The attributes of each element.
    fn raw_elements(&mut self, family: Family, table: &str, set: &str) -> Result<Vec<Vec<u8>>, NftError> {
        const TABLE: u16 = 1;
        const SET: u16 = 2;
        const ELEMENTS: u16 = 3;
        const LIST_ITEM: u16 = 1;
        let mut request = nfgenmsg(family.number(), 0);
        request.put_text(TABLE, table).put_text(SET, set);
        let mut found = Vec::new();
        for body in self.list("list nf_tables elements", message::GET_ELEMENT, &request)? {
            let list = attributes::find(&body, ELEMENTS).unwrap_or_default();
            let items = attributes::iterate(list).filter(|(kind, _)| *kind == LIST_ITEM);
            found.extend(items.map(|(_, item)| item.to_vec()));
        }
        Ok(found)
    }
}

/// An element as the kernel describes it, the time it has left included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedElement {
    /// Key bytes.
    pub key: Vec<u8>,
    /// Value bytes.
    pub value: Vec<u8>,
    attributes: Vec<u8>,
}

impl SavedElement {
    fn read(attributes: Vec<u8>) -> Option<Self> {
        let FoundElement { key, value, .. } = read_element(&attributes)?;
        Some(Self { key, value, attributes })
    }
}

/// A chain that the kernel calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseChain {
    /// Name of its table.
    pub table: String,
    /// Its own.
    pub name: String,
    /// As the kernel numbers them: 0 prerouting, 1 input, 2 forward, 3 output, 4 postrouting.
    pub hook: u32,
    /// `filter`, `nat` or `route`.
    pub kind: String,
    /// What passes all its rules is dropped.
    pub drops: bool,
    /// Rules in it.
    pub uses: u32,
}

/// A rule as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundRule {
    /// Its chain.
    pub chain: String,
    /// Its number.
    pub handle: u64,
    /// The remark it was made with.
    pub comment: Option<String>,
    /// Names of its expressions, in order; `match` and `target` of xtables with the extension's name behind a colon, a verdict
    /// as `drop`, `accept`, `jump:CHAIN` or `goto:CHAIN`.
    pub expressions: Vec<String>,
}

fn read_base_chain(body: &[u8]) -> Option<BaseChain> {
    let text = |kind| attributes::find(body, kind).map(read_text);
    let hook = attributes::find(attributes::find(body, 4)?, 1).and_then(read_u32_be)?;
    Some(BaseChain {
        table: text(1)?,
        name: text(3)?,
        hook,
        kind: text(7).unwrap_or_default(),
        drops: attributes::find(body, 5).and_then(read_u32_be) == Some(0),
        uses: attributes::find(body, 6).and_then(read_u32_be).unwrap_or_default(),
    })
}

fn read_rule(body: &[u8]) -> Option<FoundRule> {
    let handle = attributes::find(body, 3)?;
    let list = attributes::find(body, 4).unwrap_or_default();
    Some(FoundRule {
        chain: read_text(attributes::find(body, 2)?),
        handle: u64::from_be_bytes(handle.try_into().ok()?),
        comment: attributes::find(body, 7).and_then(transaction::note_to_comment),
        expressions: attributes::iterate(list).filter_map(|(_, item)| expression_name(item)).collect(),
    })
}

fn expression_name(item: &[u8]) -> Option<String> {
    let name = read_text(attributes::find(item, 1)?);
    let data = attributes::find(item, 2).unwrap_or_default();
    Some(match name.as_str() {
        "match" | "target" => format!("{name}:{}", attributes::find(data, 1).map(read_text).unwrap_or_default()),
        "immediate" => match attributes::find(data, 2).and_then(|data| attributes::find(data, 2)) {
            None => name,
            Some(verdict) => {
                let chain = attributes::find(verdict, 2).map(read_text).unwrap_or_default();
                match attributes::find(verdict, 1).and_then(read_u32_be).map(u32::cast_signed) {
                    Some(0) => "drop".into(),
                    Some(1) => "accept".into(),
                    Some(-3) => format!("jump:{chain}"),
                    Some(-4) => format!("goto:{chain}"),
                    _ => "return".into(),
                }
            }
        },
        _ => name,
    })
}

/// What a fuzzer calls: any bytes as the kernel's description of an element, a chain, a rule.
#[doc(hidden)]
pub fn read_any(bytes: &[u8]) {
    let _ = (read_element(bytes), read_base_chain(bytes), read_rule(bytes));
    snapshot::read_any(bytes);
}

fn read_element(item: &[u8]) -> Option<FoundElement> {
    const KEY: u16 = 1;
    const DATA: u16 = 2;
    const USERDATA: u16 = 6;
    const DATA_VALUE: u16 = 1;
    const DATA_VERDICT: u16 = 2;
    const VERDICT_CHAIN: u16 = 2;
    let key = attributes::find(attributes::find(item, KEY)?, DATA_VALUE)?.to_vec();
    let data = attributes::find(item, DATA).unwrap_or_default();
    let value = attributes::find(data, DATA_VALUE).unwrap_or_default().to_vec();
    let chain = attributes::find(data, DATA_VERDICT)
        .and_then(|verdict| attributes::find(verdict, VERDICT_CHAIN))
        .map(read_text);
    let comment = attributes::find(item, USERDATA).and_then(transaction::note_to_comment);
    Some(FoundElement { key, value, chain, comment })
}
