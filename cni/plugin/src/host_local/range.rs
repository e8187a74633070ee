//! Ranges of addresses: checked and completed, pure.
//!
//! Inside, a [`Range`] has bounds within its subnet in order, and no two ranges of a configuration overlap.

use std::fmt;
use std::net::IpAddr;

use cni_spec::Cidr;
use cni_spec::cidr::{predecessor, successor};

use crate::config::RangeConfig;

/// What is wrong with a range.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RangeError {
    /// No ranges at all.
    #[error("no ranges; set `ranges` to a list of lists such as [[{{\"subnet\": \"10.42.0.0/24\"}}]]")]
    None,
    /// An inner list is empty.
    #[error("an empty list of ranges")]
    EmptySet,
    /// A range without network.
    #[error("a range without `subnet`")]
    NoSubnet,
    /// Too few host addresses.
    #[error("subnet {0} is too small; the longest prefix is /30 (IPv6 /126)")]
    TooSmall(Cidr),
    /// Host bits are set.
    #[error("subnet {0} has host bits set; the network is {network}", network = .0.network())]
    HostBits(Cidr),
    /// A bound is elsewhere.
    #[error("{what} {address} is not in subnet {subnet}")]
    Outside { what: &'static str, address: IpAddr, subnet: Cidr },
    /// Bounds in the wrong order.
    #[error("rangeStart {0} comes after rangeEnd {1}")]
    Order(IpAddr, IpAddr),
    /// Two ranges share addresses.
    #[error("ranges {0} and {1} overlap")]
    Overlap(String, String),
    /// Families mixed in a set.
    #[error("one list of ranges mixes IPv4 and IPv6")]
    MixedFamilies,
}

/// Addresses `start` to `end`, both included, without the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) subnet: Cidr,
    pub(super) start: IpAddr,
    pub(super) end: IpAddr,
    pub(super) gateway: Option<IpAddr>,
}

impl Range {
    fn new(config: &RangeConfig) -> Result<Self, RangeError> {
        let subnet = config.subnet.ok_or(RangeError::NoSubnet)?;
        if subnet.network() != subnet {
            return Err(RangeError::HostBits(subnet));
        }
        if subnet.prefix() > if subnet.is_ipv4() { 30 } else { 126 } {
            return Err(RangeError::TooSmall(subnet));
        }
        let first = successor(subnet.first()).ok_or(RangeError::TooSmall(subnet))?;
        // The last IPv4 address is the broadcast one.
        let last = if subnet.is_ipv4() { predecessor(subnet.last()).unwrap_or(first) } else { subnet.last() };
        let inside = |what, address: Option<IpAddr>, default| match address {
            Some(address) if !subnet.contains(address) => Err(RangeError::Outside { what, address, subnet }),
            Some(address) => Ok(address),
            None => Ok(default),
        };
        let start = inside("rangeStart", config.range_start, first)?.max(first);
        let end = inside("rangeEnd", config.range_end, last)?.min(last);
        if start > end {
            return Err(RangeError::Order(start, end));
        }
        // A gateway may lie outside the subnet (a point-to-point link).
        Ok(Self { subnet, start, end, gateway: Some(config.gateway.unwrap_or(first)) })
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.start.is_ipv4() && self.start <= address && address <= self.end
    }

    /// Whether the address may be given to a container.
    pub(super) fn offers(&self, address: IpAddr) -> bool {
        self.contains(address) && self.gateway != Some(address)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

/// Ranges that together give one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RangeSet(Vec<Range>);

impl RangeSet {
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|range| range.offers(address))
    }

    /// The range an address belongs to.
    pub(super) fn range_of(&self, address: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.offers(address))
    }

    /// Every address once, beginning behind `last`, so that a freed address rests as long as possible.
    pub(super) fn candidates(&self, last: Option<IpAddr>) -> impl Iterator<Item = (IpAddr, &Range)> {
        let at = last.and_then(|last| self.0.iter().position(|range| range.contains(last)));
        let (first, after) = match (at, last) {
            (Some(position), Some(last)) => (position, Some(last)),
            _ => (0, None),
        };
        let count = self.0.len();
        // The first range is visited twice: behind `last` at the start, up to `last` at the end.
        (0..=count).flat_map(move |step| {
            let range = &self.0[(first + step) % count];
            let from = match (step, after) {
                (0, Some(last)) => successor(last).filter(|address| *address <= range.end),
                _ => Some(range.start),
            };
            let to = if step == count { after } else { Some(range.end) };
            from.zip(to).into_iter().flat_map(move |(from, to)| {
                std::iter::successors(Some(from), move |address| successor(*address).filter(|next| *next <= to))
                    .filter(|address| range.offers(*address))
                    .map(move |address| (address, range))
            })
        })
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&texts.join(", "))
    }
}

/// Checks and completes all ranges of a configuration.
pub(super) fn plan(config: &[Vec<RangeConfig>]) -> Result<Vec<RangeSet>, RangeError> {
    if config.is_empty() {
        return Err(RangeError::None);
    }
    let mut seen: Vec<Range> = Vec::new();
    let mut sets = Vec::new();
    for set in config {
        let ranges: Vec<Range> = set.iter().map(Range::new).collect::<Result<_, _>>()?;
        let first = ranges.first().ok_or(RangeError::EmptySet)?;
        if ranges.iter().any(|range| range.subnet.is_ipv4() != first.subnet.is_ipv4()) {
            return Err(RangeError::MixedFamilies);
        }
        for range in &ranges {
            let overlaps = |other: &&Range| other.contains(range.start) || range.contains(other.start);
            if let Some(other) = seen.iter().find(overlaps) {
                return Err(RangeError::Overlap(other.to_string(), range.to_string()));
            }
            seen.push(*range);
        }
        sets.push(RangeSet(ranges));
    }
    Ok(sets)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn config(subnet: &str, start: Option<&str>, end: Option<&str>) -> RangeConfig {
        RangeConfig {
            subnet: Some(subnet.parse().unwrap()),
            range_start: start.map(|text| text.parse().unwrap()),
            range_end: end.map(|text| text.parse().unwrap()),
            gateway: None,
        }
    }

    fn all(set: &RangeSet, last: Option<&str>) -> Vec<String> {
        set.candidates(last.map(|text| text.parse().unwrap())).map(|(address, _)| address.to_string()).collect()
    }

    #[test]
    fn gateway_network_and_broadcast_are_not_given() {
        let sets = plan(&[vec![config("10.0.0.0/29", None, None)]]).unwrap();
        assert_eq!(all(&sets[0], None), ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
        assert_eq!(all(&sets[0], Some("10.0.0.4")), ["10.0.0.5", "10.0.0.6", "10.0.0.2", "10.0.0.3", "10.0.0.4"]);
        assert_eq!(all(&sets[0], Some("10.0.0.6")), all(&sets[0], None));
    }

    #[test]
    fn bad_ranges_are_named() {
        for (ranges, part) in [
            (vec![], "no ranges"),
            (vec![vec![]], "empty list"),
            (vec![vec![RangeConfig::default()]], "without `subnet`"),
            (vec![vec![config("10.0.0.0/31", None, None)]], "too small"),
            (vec![vec![config("10.0.0.5/24", None, None)]], "10.0.0.0/24"),
            (vec![vec![config("10.0.0.0/24", Some("10.0.1.1"), None)]], "rangeStart 10.0.1.1"),
            (vec![vec![config("10.0.0.0/24", Some("10.0.0.9"), Some("10.0.0.8"))]], "comes after"),
            (vec![vec![config("10.0.0.0/24", None, None)], vec![config("10.0.0.0/25", None, None)]], "overlap"),
            (vec![vec![config("10.0.0.0/24", None, None), config("fd00::/64", None, None)]], "mixes"),
        ] {
            let error = plan(&ranges).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    proptest! {
        #[test]
        fn candidates_are_every_address_once(last in 0_u8..=255, second in any::<bool>()) {
            let mut ranges = vec![config("10.0.0.0/26", Some("10.0.0.10"), Some("10.0.0.40"))];
            if second {
                ranges.push(config("10.0.0.128/26", None, None));
            }
            let sets = plan(&[ranges]).unwrap();
            let last = format!("10.0.0.{last}");
            let found = all(&sets[0], Some(&last));
            let unique: HashSet<&String> = found.iter().collect();
            prop_assert_eq!(unique.len(), found.len());
            prop_assert_eq!(found.len(), if second { 31 + 61 } else { 31 });
        }
    }
}
