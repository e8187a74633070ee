//! Addresses and networks, and those that nothing of a cluster may stand for.

use std::net::{IpAddr, Ipv4Addr};

use super::Causes;
use super::field::Field;

const ADDRESS: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const MAPPED: &str = "must not be an IPv4-mapped IPv6 address";
const NETWORK: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// The address, when it is one. Forms that other programs read otherwise (leading zeros, IPv4 inside IPv6) are refused:
/// a check that reads them one way guards nothing for a reader of the other.
pub(super) fn check(field: &Field<'_, '_>, causes: &mut Causes) -> Option<IpAddr> {
    match field.text().parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) if address.to_ipv4_mapped().is_some() => {
            field.invalid_as(&field.text().into(), MAPPED, causes);
            None
        }
        Ok(address) => Some(address),
        Err(_) => {
            field.invalid_as(&field.text().into(), ADDRESS, causes);
            None
        }
    }
}

/// An address that traffic of the cluster may be sent to: nothing that means the node itself, its link or no host at all.
/// CVE-2020-8558 and CVE-2020-8554 are about such.
pub(super) fn check_ordinary(field: &Field<'_, '_>, causes: &mut Causes) {
    if let Some(address) = check(field, causes)
        && let Some(why) = special(address)
    {
        field.invalid(&why, causes);
    }
}

/// Why an address is no ordinary one.
pub(super) fn special(address: IpAddr) -> Option<String> {
    let address = address.to_canonical();
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let link_local_multicast = match address {
        IpAddr::V4(address) => address.octets().starts_with(&[224, 0, 0]),
        IpAddr::V6(address) => address.segments()[0] & 0xff0f == 0xff02,
    };
    if address.is_unspecified() {
        Some(format!("may not be unspecified ({address})"))
    } else if address.is_loopback() {
        Some("may not be in the loopback range (127.0.0.0/8, ::1/128)".into())
    } else if link_local {
        Some("may not be in the link-local range (169.254.0.0/16, fe80::/10)".into())
    } else if link_local_multicast {
        Some("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".into())
    } else if address.is_multicast() {
        // Upstream lets the rest of the range pass, where nothing can answer.
        Some("may not be in the multicast range (224.0.0.0/4, ff00::/8)".into())
    } else if address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        Some("may not be the broadcast address (255.255.255.255)".into())
    } else {
        None
    }
}

/// A network: its address and the length of its prefix.
pub(super) fn network(text: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    if !bits.bytes().all(|byte| byte.is_ascii_digit()) || (bits.len() > 1 && bits.starts_with('0')) {
        return None;
    }
    let bits: u8 = bits.parse().ok()?;
    (bits <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, bits))
}

pub(super) fn check_network(field: &Field<'_, '_>, causes: &mut Causes) -> Option<(IpAddr, u8)> {
    let found = network(field.text().trim());
    if found.is_none() {
        field.invalid_as(&field.text().into(), NETWORK, causes);
    }
    found
}

/// Whether an address has no bits beyond a prefix: it is the network's own.
pub(super) fn is_base(address: IpAddr, bits: u8) -> bool {
    let (number, width) = match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()), 32_u32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    let rest = width.saturating_sub(u32::from(bits));
    number.trailing_zeros() >= rest || number == 0
}

/// Whether a network contains another that is of its family.
pub(super) fn contains((outer, bits): (IpAddr, u8), (inner, inner_bits): (IpAddr, u8)) -> bool {
    let number = |address: IpAddr| match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()), 32_u32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    let ((outer, width), (inner, inner_width)) = (number(outer), number(inner));
    if width != inner_width || bits > inner_bits {
        return false;
    }
    let shift = width.saturating_sub(u32::from(bits));
    outer.checked_shr(shift).unwrap_or(0) == inner.checked_shr(shift).unwrap_or(0)
}

/// No more than one address of each family.
pub(super) fn one_of_each_family(addresses: &[IpAddr]) -> bool {
    let fours = addresses.iter().filter(|address| address.is_ipv4()).count();
    fours <= 1 && addresses.len().saturating_sub(fours) <= 1
}
