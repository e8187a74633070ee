//! An IPv4 network in CIDR notation, and which ones this host already routes.

use std::fmt;
use std::fs;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `address/prefix` with the host bits zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Cidr {
    network: Ipv4Addr,
    prefix: u8,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "{text:?} is no IPv4 network: write ADDRESS/PREFIX with a prefix from 1 to 28 and zeros behind it, like 10.42.0.0/16"
)]
pub(crate) struct InvalidCidr {
    text: String,
}

impl Cidr {
    /// For constants; host bits must be zero.
    pub(crate) const fn v4(octets: [u8; 4], prefix: u8) -> Self {
        let [a, b, c, d] = octets;
        Self { network: Ipv4Addr::new(a, b, c, d), prefix }
    }

    pub(crate) fn network(self) -> Ipv4Addr {
        self.network
    }

    pub(crate) fn prefix(self) -> u8 {
        self.prefix
    }

    fn mask(self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0)
    }

    /// The address `index` behind the network's own; inside the network for every index that the prefix has room for.
    pub(crate) fn nth(self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() | (index & !self.mask()))
    }

    /// The last address that is not the broadcast address.
    pub(crate) fn last(self) -> Ipv4Addr {
        self.nth(u32::MAX - 1)
    }

    /// Whether all of it is part of `other`.
    pub(crate) fn is_within(self, other: Self) -> bool {
        self.prefix >= other.prefix && self.overlaps(other)
    }

    pub(crate) fn overlaps(self, other: Self) -> bool {
        let mask = self.mask() & other.mask();
        self.network.to_bits() & mask == other.network.to_bits() & mask
    }
}

impl FromStr for Cidr {
    type Err = InvalidCidr;

    fn from_str(text: &str) -> Result<Self, InvalidCidr> {
        let parse = || {
            let (address, prefix) = text.split_once('/')?;
            let cidr = Self { network: address.parse().ok()?, prefix: prefix.parse().ok()? };
            let fits = (1..=28).contains(&cidr.prefix) && cidr.network.to_bits() & !cidr.mask() == 0;
            fits.then_some(cidr)
        };
        parse().ok_or_else(|| InvalidCidr { text: text.into() })
    }
}

impl TryFrom<String> for Cidr {
    type Error = InvalidCidr;

    fn try_from(text: String) -> Result<Self, InvalidCidr> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.network, self.prefix)
    }
}

/// A network of this host's main routing table, and the link that it leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Routed {
    pub link: String,
    pub network: Cidr,
}

/// All of them, the default route aside. proc(5), `/proc/net/route`: the first column is the link, the second and the eighth
/// are address and mask in hexadecimal, in the machine's byte order.
pub(crate) fn routed() -> Vec<Routed> {
    // A kernel without IPv4 has no such file, and no routes.
    let text = fs::read_to_string("/proc/net/route").unwrap_or_default();
    parse_routes(&text)
}

fn parse_routes(text: &str) -> Vec<Routed> {
    let column = |fields: &[&str], index: usize| {
        // The kernel prints network-order memory as a native integer.
        fields.get(index).and_then(|field| u32::from_str_radix(field, 16).ok()).map(u32::from_be)
    };
    text.lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (network, mask) = (column(&fields, 1)?, column(&fields, 7)?);
            let prefix = u8::try_from(mask.leading_ones()).ok()?;
            // A route that refuses has no link.
            let link = if *fields.first()? == "*" { "nobody" } else { *fields.first()? }.to_owned();
            (prefix > 0).then(|| Routed { link, network: Cidr { network: Ipv4Addr::from_bits(network), prefix } })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse() {
        let check = |text: &str, expect: Option<&str>| {
            let found = text.parse::<Cidr>().ok().map(|cidr| cidr.to_string());
            assert_eq!(found.as_deref(), expect, "{text}");
        };
        check("10.42.0.0/16", Some("10.42.0.0/16"));
        check("10.42.0.1/16", None);
        check("10.42.0.0", None);
        check("10.42.0.0/33", None);
        check("10.42.0.0/0", None);
        check("fd00::/64", None);
    }

    #[test]
    fn addresses() {
        let cidr: Cidr = "10.43.0.0/16".parse().unwrap();
        assert_eq!(cidr.nth(10), Ipv4Addr::new(10, 43, 0, 10));
        assert_eq!(cidr.last(), Ipv4Addr::new(10, 43, 255, 254));
    }

    #[test]
    fn overlap() {
        let check = |a: &str, b: &str, expect: bool| {
            assert_eq!(a.parse::<Cidr>().unwrap().overlaps(b.parse().unwrap()), expect, "{a} {b}");
        };
        check("10.42.0.0/16", "10.42.7.0/24", true);
        check("10.42.7.0/24", "10.42.0.0/16", true);
        check("10.42.0.0/16", "10.43.0.0/16", false);
        check("10.0.0.0/8", "10.43.0.0/16", true);
    }

    #[test]
    fn routes() {
        let text = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                    eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                    eth0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";
        let network = Cidr::v4([172, 17, 0, 0], 16);
        assert_eq!(parse_routes(text), [Routed { link: "eth0".into(), network }]);
        assert!(network.is_within(network) && Cidr::v4([172, 17, 3, 0], 24).is_within(network));
        assert!(!Cidr::v4([172, 0, 0, 0], 8).is_within(network), "a wider route gives way to a narrower one");
    }
}
