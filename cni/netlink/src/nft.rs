//! nf_tables: transactions that happen as a whole or not at all, and reading chains and sets back.
//!
//! Speaks the kernel's own protocol; no `nft` program and no library of it. Knows tables, chains, rules, sets and maps,
//! and nothing of what they are for. A refused transaction says which of its steps the kernel refused.

use crate::Namespace;
use crate::attributes::{self, read_text, read_u32_be};
use crate::namespace::NamespaceError;
use crate::socket::{NLM_F_DUMP, Netfilter, Socket, SocketError, nfgenmsg};

mod expression;
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
    pub(super) const DELETE_RULE: u16 = 8;
    pub(super) const NEW_SET: u16 = 9;
    pub(super) const DELETE_SET: u16 = 11;
    pub(super) const NEW_ELEMENT: u16 = 12;
    pub(super) const GET_ELEMENT: u16 = 13;
    pub(super) const DELETE_ELEMENT: u16 = 14;
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
        const TABLE: u16 = 1;
        const SET: u16 = 2;
        const ELEMENTS: u16 = 3;
        const LIST_ITEM: u16 = 1;
        let mut request = nfgenmsg(family.number(), 0);
        request.put_text(TABLE, table).put_text(SET, set);
        let kind = SUBSYSTEM | message::GET_ELEMENT;
        let received = match self.socket.request("list nf_tables elements", kind, NLM_F_DUMP, request.as_bytes()) {
            Err(error) if error.errno() == Some(libc::ENOENT) => return Ok(Vec::new()),
            other => other?,
        };
        let mut found = Vec::new();
        for answer in &received {
            let body = answer.payload.get(4..).unwrap_or_default();
            let list = attributes::find(body, ELEMENTS).unwrap_or_default();
            found.extend(
                attributes::iterate(list)
                    .filter(|(kind, _)| *kind == LIST_ITEM)
                    .filter_map(|(_, item)| read_element(item)),
            );
        }
        Ok(found)
    }
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
