//! The expressions rules are made of, and their encoding.
//!
//! Registers are the sixteen 4-byte ones ([`Register`]); a field shorter than four bytes is padded with zeros by the
//! kernel, which is what makes concatenated keys possible.

use crate::attributes::Attributes;

const LIST_ITEM: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;

/// One of the 4-byte registers, 0 to 15.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register(pub u8);

impl Register {
    fn number(self) -> u32 {
        8 + u32::from(self.0)
    }
}

/// What happens to the packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Passes this base chain.
    Accept,
    /// Disappears.
    Drop,
    /// Continues after the jump.
    Return,
    /// Continues in the chain and comes back.
    Jump(String),
    /// Continues in the chain.
    Goto(String),
}

impl Verdict {
    /// Writes the attributes of a verdict.
    pub(super) fn encode<'a>(&self, attributes: &'a mut Attributes) -> &'a mut Attributes {
        const CODE: u16 = 1;
        const CHAIN: u16 = 2;
        let (code, chain) = match self {
            Self::Drop => (0, None),
            Self::Accept => (1, None),
            Self::Jump(chain) => (-3, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
            Self::Return => (-5_i32, None),
        };
        attributes.nest(DATA_VERDICT, |verdict| {
            verdict.put_u32_be(CODE, code.cast_unsigned());
            match chain {
                Some(chain) => verdict.put_text(CHAIN, chain),
                None => verdict,
            }
        })
    }
}

/// Packet metadata (`enum nft_meta_keys`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names nft uses")]
pub enum Meta {
    Mark,
    IifName,
    OifName,
    NfProto,
    L4Proto,
}

/// Conntrack facts (`enum nft_ct_keys`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names nft uses")]
pub enum CtKey {
    State,
    Status,
}

/// Parts of the first packet's addresses as conntrack keeps them (`enum nft_ct_keys`), whatever was translated since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum CtTuple {
    Ip4Destination,
    DestinationPort,
}

/// Header fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names nft uses")]
pub enum Payload {
    Ip4Source,
    Ip4Destination,
    Ip6Source,
    Ip6Destination,
    SourcePort,
    DestinationPort,
}

impl Payload {
    /// Base header, offset, length.
    fn position(self) -> (u32, u32, u32) {
        const NETWORK: u32 = 1;
        const TRANSPORT: u32 = 2;
        match self {
            Self::Ip4Source => (NETWORK, 12, 4),
            Self::Ip4Destination => (NETWORK, 16, 4),
            Self::Ip6Source => (NETWORK, 8, 16),
            Self::Ip6Destination => (NETWORK, 24, 16),
            Self::SourcePort => (TRANSPORT, 0, 2),
            Self::DestinationPort => (TRANSPORT, 2, 2),
        }
    }
}

/// How to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "plain words")]
pub enum Compare {
    Equal,
    NotEqual,
}

/// How a packet is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    /// A TCP reset.
    TcpReset,
    /// ICMP or ICMPv6 port unreachable.
    PortUnreachable,
}

/// What to do with a set from within a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "plain words")]
pub enum Dynset {
    Add,
    Update,
    Delete,
}

/// Which address's route type is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "plain words")]
pub enum FibAddress {
    Source,
    Destination,
}

/// One step of a rule. A comparison or lookup that fails ends the rule.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields say it")]
pub enum Expression {
    Meta {
        key: Meta,
        to: Register,
    },
    Payload {
        field: Payload,
        to: Register,
    },
    Ct {
        key: CtKey,
        to: Register,
    },
    /// Of the direction in which the connection was begun.
    CtOriginal {
        key: CtTuple,
        to: Register,
    },
    /// Route type of an address (`RTN_*`).
    FibType {
        address: FibAddress,
        to: Register,
    },
    Compare {
        register: Register,
        how: Compare,
        value: Vec<u8>,
    },
    /// `to = (from & mask) ^ xor`.
    Bitwise {
        from: Register,
        to: Register,
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    Value {
        value: Vec<u8>,
        to: Register,
    },
    Verdict(Verdict),
    /// Is the key in the set?
    InSet {
        set: String,
        key: Register,
        inverted: bool,
    },
    /// Value of the key in the map.
    Map {
        map: String,
        key: Register,
        to: Register,
    },
    /// Verdict of the key in the map.
    VerdictMap {
        map: String,
        key: Register,
    },
    /// A random number below `modulus`, in the machine's byte order.
    Random {
        modulus: u32,
        to: Register,
    },
    /// Destination NAT for IPv4, address and port from registers.
    Dnat4 {
        address: Register,
        port: Register,
    },
    Masquerade,
    Reject(Reject),
    Counter,
    /// A match of xtables, as `iptables` writes and reads them; `info` is its structure, padded to eight bytes.
    XtMatch {
        name: &'static str,
        revision: u32,
        info: Vec<u8>,
    },
    Dynset {
        operation: Dynset,
        set: String,
        key: Register,
        value: Option<Register>,
        timeout_milliseconds: Option<u64>,
    },
}

impl Expression {
    /// Jumps without conditions.
    #[must_use]
    pub fn jump(chain: &str) -> Self {
        Self::Verdict(Verdict::Jump(chain.to_owned()))
    }

    /// Equality with bytes.
    #[must_use]
    pub fn equals(register: Register, value: impl Into<Vec<u8>>) -> Self {
        Self::Compare { register, how: Compare::Equal, value: value.into() }
    }

    /// Writes the list item.
    pub(super) fn encode(&self, list: &mut Attributes) {
        list.nest(LIST_ITEM, |item| {
            item.put_text(EXPRESSION_NAME, self.name());
            item.nest(EXPRESSION_DATA, |data| {
                self.encode_data(data);
                data
            })
        });
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Meta { .. } => "meta",
            Self::Payload { .. } => "payload",
            Self::Ct { .. } | Self::CtOriginal { .. } => "ct",
            Self::FibType { .. } => "fib",
            Self::Compare { .. } => "cmp",
            Self::Bitwise { .. } => "bitwise",
            Self::Value { .. } | Self::Verdict(_) => "immediate",
            Self::InSet { .. } | Self::Map { .. } | Self::VerdictMap { .. } => "lookup",
            Self::Random { .. } => "numgen",
            Self::Dnat4 { .. } => "nat",
            Self::Masquerade => "masq",
            Self::Reject(_) => "reject",
            Self::Counter => "counter",
            Self::XtMatch { .. } => "match",
            Self::Dynset { .. } => "dynset",
        }
    }

    fn encode_data(&self, data: &mut Attributes) {
        const VERDICT_REGISTER: u32 = 0;
        match self {
            Self::Meta { key, to } => {
                let key = match key {
                    Meta::Mark => 3,
                    Meta::IifName => 6,
                    Meta::OifName => 7,
                    Meta::NfProto => 15,
                    Meta::L4Proto => 16,
                };
                data.put_u32_be(1, to.number()).put_u32_be(2, key);
            }
            Self::Payload { field, to } => {
                let (base, offset, length) = field.position();
                data.put_u32_be(1, to.number()).put_u32_be(2, base).put_u32_be(3, offset).put_u32_be(4, length);
            }
            Self::Ct { key, to } => {
                let key = match key {
                    CtKey::State => 0,
                    CtKey::Status => 2,
                };
                data.put_u32_be(1, to.number()).put_u32_be(2, key);
            }
            Self::CtOriginal { key, to } => {
                const ORIGINAL: u8 = 0;
                let key = match key {
                    CtTuple::DestinationPort => 12,
                    CtTuple::Ip4Destination => 20,
                };
                data.put_u32_be(1, to.number()).put_u32_be(2, key).put(3, &[ORIGINAL]);
            }
            Self::FibType { address, to } => {
                const ADDRESS_TYPE: u32 = 3;
                let flags = match address {
                    FibAddress::Source => 1,
                    FibAddress::Destination => 2,
                };
                data.put_u32_be(1, to.number()).put_u32_be(2, ADDRESS_TYPE).put_u32_be(3, flags);
            }
            Self::Compare { register, how, value } => {
                let how = match how {
                    Compare::Equal => 0,
                    Compare::NotEqual => 1,
                };
                data.put_u32_be(1, register.number()).put_u32_be(2, how);
                data.nest(3, |inner| inner.put(DATA_VALUE, value));
            }
            Self::Bitwise { from, to, mask, xor } => {
                let length = u32::try_from(mask.len()).unwrap_or_default();
                data.put_u32_be(1, from.number()).put_u32_be(2, to.number()).put_u32_be(3, length);
                data.nest(4, |inner| inner.put(DATA_VALUE, mask));
                data.nest(5, |inner| inner.put(DATA_VALUE, xor));
            }
            Self::Value { value, to } => {
                data.put_u32_be(1, to.number()).nest(2, |inner| inner.put(DATA_VALUE, value));
            }
            Self::Verdict(verdict) => {
                data.put_u32_be(1, VERDICT_REGISTER).nest(2, |inner| verdict.encode(inner));
            }
            Self::Random { modulus, to } => {
                const RANDOM: u32 = 1;
                data.put_u32_be(1, to.number()).put_u32_be(2, *modulus).put_u32_be(3, RANDOM);
            }
            Self::Dnat4 { address, port } => {
                const DESTINATION: u32 = 1;
                const IPV4: u32 = 2;
                data.put_u32_be(1, DESTINATION).put_u32_be(2, IPV4);
                data.put_u32_be(3, address.number()).put_u32_be(5, port.number());
            }
            Self::Reject(how) => match how {
                Reject::TcpReset => {
                    data.put_u32_be(1, 1);
                }
                // NFT_REJECT_ICMPX_UNREACH with NFT_REJECT_ICMPX_PORT_UNREACH: right for both families.
                Reject::PortUnreachable => {
                    data.put_u32_be(1, 2).put(2, &[1]);
                }
            },
            Self::Masquerade => {}
            Self::Counter => {
                // Written out, because `iptables` reads both numbers.
                data.put_u64_be(1, 0).put_u64_be(2, 0);
            }
            Self::XtMatch { name, revision, info } => {
                data.put_text(1, name).put_u32_be(2, *revision).put(3, info);
            }
            Self::InSet { .. } | Self::Map { .. } | Self::VerdictMap { .. } | Self::Dynset { .. } => {
                self.encode_set_data(data);
            }
        }
    }

    /// The expressions that name a set.
    fn encode_set_data(&self, data: &mut Attributes) {
        match self {
            Self::InSet { set, key, inverted } => {
                data.put_text(1, set).put_u32_be(2, key.number());
                if *inverted {
                    data.put_u32_be(5, 1);
                }
            }
            Self::Map { map, key, to } => {
                data.put_text(1, map).put_u32_be(2, key.number()).put_u32_be(3, to.number());
            }
            Self::VerdictMap { map, key } => {
                data.put_text(1, map).put_u32_be(2, key.number()).put_u32_be(3, 0);
            }
            Self::Dynset { operation, set, key, value, timeout_milliseconds } => {
                let operation = match operation {
                    Dynset::Add => 0,
                    Dynset::Update => 1,
                    Dynset::Delete => 2,
                };
                data.put_text(1, set).put_u32_be(3, operation).put_u32_be(4, key.number());
                if let Some(value) = value {
                    data.put_u32_be(5, value.number());
                }
                if let Some(timeout) = timeout_milliseconds {
                    data.put_u64_be(6, *timeout);
                }
            }
            _ => {}
        }
    }
}
