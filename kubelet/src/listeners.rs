//! The ports on which programs of the node itself listen, from `/proc/net`. A pod that would take one from them is refused
//! (admission.rs), and the node's object says which they are, so that it need not come here. Not the ports of pods.
//! Invariant: what cannot be read refuses nobody.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The node's annotation, by which the scheduler knows: `TCP:22,TCP:127.0.0.1:2379,UDP:[::1]:53`, sorted; a port without an address
/// is taken on all of them.
pub const ANNOTATION: &str = "sampan.dev/host-ports";
/// More are not told of.
const TOLD_MAX: usize = 256;
/// A table is read this far.
const TABLE_BYTES_MAX: u64 = 16 << 20;

/// One socket that waits for peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    pub protocol: &'static str,
    pub address: IpAddr,
    pub port: u16,
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.address.is_unspecified() {
            return write!(f, "{}:{}", self.protocol, self.port);
        }
        write!(f, "{}:{}", self.protocol, SocketAddr::new(self.address, self.port))
    }
}

impl Listener {
    /// Whether a pod that publishes `port` of `protocol` on `address` (none or unspecified: on all) takes what this one gets.
    #[must_use]
    pub fn clashes(&self, protocol: &str, address: &str, port: i32) -> bool {
        let same_place = match address.parse::<IpAddr>() {
            Ok(wanted) => wanted.is_unspecified() || self.address.is_unspecified() || wanted == self.address,
            Err(_) => true,
        };
        self.protocol == protocol && i32::from(self.port) == port && same_place
    }
}

/// All of them, of this network namespace. Blocking.
#[must_use]
pub fn all() -> Vec<Listener> {
    let ephemeral = ephemeral();
    let mut found = BTreeSet::new();
    for (file, protocol) in [("tcp", "TCP"), ("tcp6", "TCP"), ("udp", "UDP"), ("udp6", "UDP")] {
        // The thread's own, for a thread may be in another network namespace than the process.
        let Ok(file) = File::open(format!("/proc/thread-self/net/{file}")) else { continue };
        found.extend(parse(BufReader::new(file.take(TABLE_BYTES_MAX)), protocol));
    }
    // Who asks by UDP is bound to a port of this range for a moment, and looks like one who listens.
    found.into_iter().filter(|l| l.protocol == "TCP" || !ephemeral.contains(&l.port)).collect()
}

fn ephemeral() -> std::ops::RangeInclusive<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut numbers = text.split_whitespace().filter_map(|n| n.parse().ok());
    numbers.next().unwrap_or(32768)..=numbers.next().unwrap_or(60999)
}

/// Lines of `/proc/net/tcp` and its like: `sl local_address rem_address st ...`; proc_pid_net(5).
fn parse(table: impl BufRead, protocol: &'static str) -> Vec<Listener> {
    // TCP_LISTEN, and for UDP TCP_CLOSE: bound and not connected.
    let waiting = if protocol == "TCP" { "0A" } else { "07" };
    let mut found = Vec::new();
    for line in table.lines().map_while(Result::ok).skip(1) {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (Some(local), Some(_), Some(state)) = (fields.next(), fields.next(), fields.next()) else { continue };
        if state != waiting {
            // The kernel lists TCP's listeners before all connections.
            if protocol == "TCP" {
                break;
            }
            continue;
        }
        let Some((address, port)) = local.split_once(':') else { continue };
        if let (Some(address), Ok(port)) = (address_of(address), u16::from_str_radix(port, 16)) {
            found.push(Listener { protocol, address, port });
        }
    }
    found
}

/// Words of 32 bits, each printed as the host has it in memory.
fn address_of(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(hex.get(at * 8..at * 8 + 8)?, 16).ok()?.to_ne_bytes());
    match hex.len() {
        8 => Some(IpAddr::V4(Ipv4Addr::from(word(0)?))),
        32 => {
            let mut bytes = [0; 16];
            for at in 0..4 {
                bytes[at * 4..at * 4 + 4].copy_from_slice(&word(at)?);
            }
            Some(Ipv6Addr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

/// The annotation's value.
#[must_use]
pub fn text(listeners: &[Listener]) -> String {
    let mut lines: Vec<String> = listeners.iter().map(ToString::to_string).collect();
    lines.dedup();
    lines.truncate(TOLD_MAX);
    lines.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_the_kernel_are_read() {
        let tcp = "  sl  local_address rem_address   st tx_queue\n   0: 00000000:0016 00000000:0000 0A 0\n   1: 0100007F:1F90 00000000:0000 0A 0\n   2: 0100007F:0016 0100007F:AAAA 01 0\n   3: 00000000:0017 00000000:0000 0A 0\n";
        assert_eq!(text(&parse(tcp.as_bytes(), "TCP")), "TCP:22,TCP:127.0.0.1:8080");
        let tcp6 = "head\n   0: 00000000000000000000000000000000:192B 0:0 0A\n   1: 00000000000000000000000001000000:0035 0:0 0A\n";
        assert_eq!(text(&parse(tcp6.as_bytes(), "TCP")), "TCP:6443,TCP:[::1]:53");
        let udp = "head\n   0: 0A002B0A:0035 0:0 07\n   1: 0A002B0A:0036 0:0 01\n   2: 00000000:0044 0:0 07\n";
        assert_eq!(text(&parse(udp.as_bytes(), "UDP")), "UDP:10.43.0.10:53,UDP:68");
        assert_eq!(parse("head\nnonsense\n 0: 12:zz 0:0 0A\n".as_bytes(), "TCP"), []);
    }

    #[test]
    fn who_listens_here_is_found() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = i32::from(socket.local_addr().unwrap().port());
        let found = all();
        let check = |protocol: &str, address: &str, expect: bool| {
            assert_eq!(found.iter().any(|l| l.clashes(protocol, address, port)), expect, "{protocol} {address}");
        };
        check("TCP", "", true);
        check("TCP", "0.0.0.0", true);
        check("TCP", "127.0.0.1", true);
        check("TCP", "192.0.2.1", false);
        check("UDP", "", false);
    }
}
