//! Which ports the processes of this network namespace listen on.
//!
//! Asks the kernel (sock_diag(7)) for TCP sockets that listen and UDP sockets that take datagrams from anybody, and reads
//! `/proc/net` where the kernel was built without an answer. Says nothing of ports that rules lead elsewhere.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::Namespace;
use crate::namespace::NamespaceError;
use crate::socket::{Diagnosis, NLM_F_DUMP, Socket, SocketError};

/// linux/sock_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const FAMILIES: [u8; 2] = [2, 10];
const TCP: u8 = 6;
const UDP: u8 = 17;
/// net/tcp_states.h; a UDP socket without a peer is in the state called CLOSE.
const LISTEN: u8 = 10;
const CLOSE: u8 = 7;
/// Lines of `/proc/net` beyond this are not looked at.
const PROC_BYTES_MAX: u64 = 16 << 20;

/// Why the sockets cannot be listed.
#[derive(Debug, thiserror::Error)]
pub enum ListeningError {
    /// The kernel did not answer.
    #[error("list listening sockets")]
    Socket(#[from] SocketError),
    /// Entering the namespace.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The other way to know.
    #[error("read {path}")]
    Read { path: &'static str, source: io::Error },
}

/// A transport whose sockets are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    /// By its number in an IP header.
    #[must_use]
    pub fn of(protocol: u8) -> Option<Self> {
        match protocol {
            TCP => Some(Self::Tcp),
            UDP => Some(Self::Udp),
            _ => None,
        }
    }

    fn facts(self) -> (u8, u8) {
        match self {
            Self::Tcp => (TCP, LISTEN),
            Self::Udp => (UDP, CLOSE),
        }
    }

    fn files(self) -> [&'static str; 2] {
        match self {
            Self::Tcp => ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"],
            Self::Udp => ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"],
        }
    }
}

/// Local addresses of the sockets that take whatever comes. IPv4 addresses in IPv6 clothes are given as IPv4.
///
/// # Errors
/// [`ListeningError`].
pub fn listening(transport: Transport) -> Result<Vec<SocketAddr>, ListeningError> {
    match ask(transport) {
        // No such handler, or a kernel or sandbox without this protocol.
        Err(SocketError::Open(_)) => read(transport),
        Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EINVAL)) => read(transport),
        other => Ok(other?),
    }
}

/// The same in another namespace.
///
/// # Errors
/// [`ListeningError`].
pub fn listening_in(namespace: &Namespace, transport: Transport) -> Result<Vec<SocketAddr>, ListeningError> {
    namespace.within(|| listening(transport))?
}

/// Whether a rule that takes what comes for `port` (to `at`, or to any address of the node) takes it from this socket.
#[must_use]
pub fn is_shadowed(socket: &SocketAddr, at: Option<IpAddr>, port: u16) -> bool {
    socket.port() == port && (socket.ip().is_unspecified() || at.is_none_or(|at| at == socket.ip()))
}

fn ask(transport: Transport) -> Result<Vec<SocketAddr>, SocketError> {
    let (protocol, state) = transport.facts();
    let mut socket = Socket::<Diagnosis>::open()?;
    let mut found = Vec::new();
    for family in FAMILIES {
        // struct inet_diag_req_v2: family, protocol, extensions, padding, states; then the empty id of a dump.
        let mut request = vec![family, protocol, 0, 0];
        request.extend_from_slice(&(1_u32 << state).to_ne_bytes());
        request.resize(56, 0);
        let received = socket.request("list listening sockets", SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &request)?;
        found.extend(received.iter().filter_map(|answer| local_address(&answer.payload)));
    }
    Ok(found)
}

/// struct inet_diag_msg: family, state, two bytes of timers; then the id: ports in network order, addresses.
fn local_address(message: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(message.get(4..6)?.try_into().ok()?);
    let address: IpAddr = match *message.first()? {
        2 => Ipv4Addr::from(<[u8; 4]>::try_from(message.get(8..12)?).ok()?).into(),
        10 => plain(Ipv6Addr::from(<[u8; 16]>::try_from(message.get(8..24)?).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}

fn plain(address: Ipv6Addr) -> IpAddr {
    address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4)
}

fn read(transport: Transport) -> Result<Vec<SocketAddr>, ListeningError> {
    let mut found = Vec::new();
    for path in transport.files() {
        let file = match File::open(path) {
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(|source| ListeningError::Read { path, source })?,
        };
        for line in BufReader::new(file.take(PROC_BYTES_MAX)).lines().skip(1) {
            let line = line.map_err(|source| ListeningError::Read { path, source })?;
            found.extend(parse_line(&line, transport));
        }
    }
    Ok(found)
}

/// proc(5), `/proc/net/tcp`: number, local address and port in hexadecimal (words in the machine's order), remote, state.
fn parse_line(line: &str, transport: Transport) -> Option<SocketAddr> {
    let mut words = line.split_whitespace().skip(1);
    let (address, port) = words.next()?.split_once(':')?;
    let state = u8::from_str_radix(words.nth(1)?, 16).ok()?;
    if state != transport.facts().1 || !address.is_ascii() {
        return None;
    }
    let word = |text: &str| u32::from_str_radix(text, 16).ok().map(u32::to_ne_bytes);
    let address = match address.len() {
        8 => Ipv4Addr::from(word(address)?).into(),
        32 => {
            let mut bytes = [0; 16];
            for (at, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(address.get(at * 8..at * 8 + 8)?)?);
            }
            plain(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

/// What a fuzzer calls: any bytes as the kernel's description of a socket.
#[doc(hidden)]
pub fn read_any(bytes: &[u8]) {
    let _ = local_address(bytes);
    let _ = parse_line(&String::from_utf8_lossy(bytes), Transport::Udp);
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn both_ways_find_who_listens() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(!listening(Transport::Tcp).unwrap().contains(&tcp), "closed again");
        let listener = TcpListener::bind("[::]:0").unwrap();
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        for found in [listening(Transport::Tcp), read(Transport::Tcp)] {
            assert!(found.unwrap().contains(&listener.local_addr().unwrap()));
        }
        for found in [listening(Transport::Udp), read(Transport::Udp)] {
            assert!(found.unwrap().contains(&datagrams.local_addr().unwrap()));
        }
    }

    #[test]
    fn lines_of_proc() {
        let check = |line: &str, expect: Option<&str>| {
            assert_eq!(parse_line(line, Transport::Tcp).map(|found| found.to_string()).as_deref(), expect, "{line}");
        };
        let word = |bytes: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(bytes));
        check(&format!("  0: {}:1F90 00000000:0000 0A 0", word([127, 0, 0, 1])), Some("127.0.0.1:8080"));
        check(&format!("  0: {}:1F90 00000000:0000 01 0", word([127, 0, 0, 1])), None);
        let mapped = [word([0; 4]), word([0; 4]), word([0, 0, 255, 255]), word([10, 0, 0, 1])].concat();
        check(&format!("  0: {mapped}:0016 00000000000000000000000000000000:0000 0A 0"), Some("10.0.0.1:22"));
        for bad in ["", "0:", "0: x:y z 0A", "0: ÄÖÜÄ:0016 0:0 0A", "0: 7F:0016 0:0 0A"] {
            check(bad, None);
        }
    }

    #[test]
    fn who_is_shadowed() {
        let check = |socket: &str, at: Option<&str>, expect: bool| {
            let at = at.map(|text| text.parse().unwrap());
            assert_eq!(is_shadowed(&socket.parse().unwrap(), at, 80), expect, "{socket} {at:?}");
        };
        check("0.0.0.0:80", None, true);
        check("0.0.0.0:80", Some("192.0.2.1"), true);
        check("[::]:80", Some("192.0.2.1"), true);
        check("127.0.0.1:80", None, true);
        check("127.0.0.1:80", Some("192.0.2.1"), false);
        check("192.0.2.1:80", Some("192.0.2.1"), true);
        check("0.0.0.0:81", None, false);
    }
}
