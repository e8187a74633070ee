//! An address with a prefix length, `10.42.0.7/24`, as CNI writes subnets, addresses and route targets.
//!
//! Keeps the host bits it was given; [`Cidr::network`] clears them. The prefix never exceeds the family's width.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text is not a CIDR.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseCidrError {
    /// No slash, or more than one.
    #[error("`{0}` is not ADDRESS/PREFIX, for example 10.42.0.0/24")]
    Form(String),
    /// The part before the slash.
    #[error("`{0}`: the part before the slash is not an IP address")]
    Address(String),
    /// The part after the slash.
    #[error("`{0}`: the prefix length is not a number the address family allows")]
    Prefix(String),
}

/// An address with a prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// `None` when the prefix is longer than the address.
    #[must_use]
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        (prefix <= width(address)).then_some(Self { address, prefix })
    }

    /// The single address, `/32` or `/128`.
    #[must_use]
    pub fn host(address: IpAddr) -> Self {
        Self { address, prefix: width(address) }
    }

    /// As written, host bits included.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Length of the network part in bits.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether this is IPv4.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.address.is_ipv4()
    }

    /// The same network with all host bits cleared.
    #[must_use]
    pub fn network(&self) -> Self {
        Self { address: from_bits(self.address, bits(self.address) & self.mask()), prefix: self.prefix }
    }

    /// The first address of the network (the network address itself).
    #[must_use]
    pub fn first(&self) -> IpAddr {
        self.network().address
    }

    /// The last address of the network (IPv4: the broadcast address).
    #[must_use]
    pub fn last(&self) -> IpAddr {
        let all = if self.is_ipv4() { u128::from(u32::MAX) } else { u128::MAX };
        from_bits(self.address, (bits(self.address) & self.mask()) | (all & !self.mask()))
    }

    /// Whether the address lies in this network.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.is_ipv4() && bits(address) & self.mask() == bits(self.address) & self.mask()
    }

    /// Whether all of `other` lies in this network.
    #[must_use]
    pub fn covers(&self, other: &Cidr) -> bool {
        other.prefix >= self.prefix && self.contains(other.address)
    }

    fn mask(&self) -> u128 {
        let host_bits = u32::from(width(self.address) - self.prefix);
        let all = if self.is_ipv4() { u128::from(u32::MAX) } else { u128::MAX };
        all & u128::MAX.checked_shl(host_bits).unwrap_or(0)
    }
}

/// The next address, or `None` after the family's last.
#[must_use]
pub fn successor(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => v4.to_bits().checked_add(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(v6) => v6.to_bits().checked_add(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

/// The address before, or `None` before the family's first.
#[must_use]
pub fn predecessor(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => v4.to_bits().checked_sub(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(v6) => v6.to_bits().checked_sub(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn from_bits(family: IpAddr, bits: u128) -> IpAddr {
    match (family, u32::try_from(bits)) {
        (IpAddr::V4(_), Ok(bits)) => Ipv4Addr::from_bits(bits).into(),
        _ => Ipv6Addr::from_bits(bits).into(),
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = ParseCidrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, prefix) = text.split_once('/').ok_or_else(|| ParseCidrError::Form(text.to_owned()))?;
        let address: IpAddr = address.parse().map_err(|_| ParseCidrError::Address(text.to_owned()))?;
        prefix
            .parse()
            .ok()
            .and_then(|prefix| Cidr::new(address, prefix))
            .ok_or_else(|| ParseCidrError::Prefix(text.to_owned()))
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_and_bounds() {
        for (text, first, last) in [
            ("10.42.0.7/24", "10.42.0.0", "10.42.0.255"),
            ("10.42.0.7/32", "10.42.0.7", "10.42.0.7"),
            ("1.2.3.4/0", "0.0.0.0", "255.255.255.255"),
            ("fd00::5/64", "fd00::", "fd00::ffff:ffff:ffff:ffff"),
            ("fd00::5/0", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            let cidr: Cidr = text.parse().unwrap();
            assert_eq!(cidr.to_string(), text);
            assert_eq!((cidr.first().to_string(), cidr.last().to_string()), (first.into(), last.into()), "{text}");
            assert!(cidr.contains(cidr.first()) && cidr.contains(cidr.last()) && cidr.covers(&cidr));
        }
    }

    #[test]
    fn refuses_what_is_no_cidr() {
        for text in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0/8", "fd00::/129", "10.0.0.0/-1", "10.0.0.0/8/8"] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }
}
