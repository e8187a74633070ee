//! The demo as a client: what a pod sees of the cluster, for `kubectl exec` into an image without any other program.
//!
//!     sampan-demo get http://HOST[:PORT]/PATH [TIMES]    the body of each answer, each over a connection of its own
//!     sampan-demo datagram HOST:PORT TEXT [TIMES]        the answer to each datagram, all from one socket
//!     sampan-demo resolve NAME                           the addresses that the system's resolver gives, one a line
//!
//! Answers go to standard output. The first failure ends it with what failed and how.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::time::Duration;

/// An address that does not answer is told instead of waited for.
const PATIENCE: Duration = Duration::from_secs(5);
const DATAGRAM_BYTES_MAX: usize = 2048;

/// What a person typed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Get { host: String, port: u16, path: String, times: u32 },
    Datagram { host: String, port: u16, text: String, times: u32 },
    Resolve { name: String },
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    Usage(&'static str),
    Resolve { name: String, source: io::Error },
    Connect { address: SocketAddr, source: io::Error },
    Talk { address: SocketAddr, source: io::Error },
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(usage) => write!(formatter, "usage: sampan-demo {usage}"),
            Self::Resolve { name, source } => write!(formatter, "resolve {name}: {source}"),
            Self::Connect { address, source } => write!(formatter, "connect to {address}: {source}"),
            Self::Talk { address, source } => write!(formatter, "talk to {address}: {source}"),
        }
    }
}

impl Request {
    /// `None` where the words ask for a server.
    pub(crate) fn parse(words: &[String]) -> Option<Result<Self, Failure>> {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let times = |text: Option<&&str>| text.map_or(Some(1), |text| text.parse().ok());
        let (usage, parsed) = match *words.first()? {
            "get" => ("get http://HOST[:PORT]/PATH [TIMES]", get(words.get(1), times(words.get(2)))),
            "datagram" => {
                let text = words.get(2).copied().map(str::to_owned);
                ("datagram HOST:PORT TEXT [TIMES]", datagram(words.get(1), text, times(words.get(3))))
            }
            "resolve" => ("resolve NAME", words.get(1).map(|name| Self::Resolve { name: (*name).to_owned() })),
            _ => return None,
        };
        Some(parsed.ok_or(Failure::Usage(usage)))
    }

    /// Does it and writes the answers.
    pub(crate) fn run(&self, mut output: impl Write) -> Result<(), Failure> {
        let mut say = |text: &str| {
            // Nobody may be reading any more; that is no failure of the network.
            let _nobody_reads = output.write_all(text.as_bytes()).and_then(|()| output.flush());
        };
        match self {
            Self::Get { host, port, path, times } => {
                let address = first(host, *port)?;
                (0..*times).try_for_each(|_| fetch(address, host, path).map(|body| say(&body)))
            }
            Self::Datagram { host, port, text, times } => {
                let address = first(host, *port)?;
                let socket = open(address).map_err(|source| Failure::Connect { address, source })?;
                (0..*times).try_for_each(|_| {
                    let answer = exchange(&socket, text).map_err(|source| Failure::Talk { address, source });
                    answer.map(|answer| say(&answer))
                })
            }
            Self::Resolve { name } => {
                let mut found: Vec<IpAddr> = resolve(name, 0)?.into_iter().map(|address| address.ip()).collect();
                found.sort_unstable();
                found.dedup();
                found.iter().for_each(|address| say(&format!("{address}\n")));
                Ok(())
            }
        }
    }
}

fn get(url: Option<&&str>, times: Option<u32>) -> Option<Request> {
    let rest = url?.strip_prefix("http://")?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()?),
        None => (authority, 80),
    };
    Some(Request::Get { host: host.to_owned(), port, path: format!("/{path}"), times: times? })
}

fn datagram(target: Option<&&str>, text: Option<String>, times: Option<u32>) -> Option<Request> {
    let (host, port) = target?.rsplit_once(':')?;
    Some(Request::Datagram { host: host.to_owned(), port: port.parse().ok()?, text: text?, times: times? })
}

fn resolve(name: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
    let found = (name, port).to_socket_addrs().map_err(|source| Failure::Resolve { name: name.to_owned(), source })?;
    Ok(found.collect())
}

fn first(name: &str, port: u16) -> Result<SocketAddr, Failure> {
    let nothing = || Failure::Resolve { name: name.to_owned(), source: io::ErrorKind::NotFound.into() };
    resolve(name, port)?.first().copied().ok_or_else(nothing)
}

fn fetch(address: SocketAddr, host: &str, path: &str) -> Result<String, Failure> {
    let failed = |source| Failure::Talk { address, source };
    let mut stream =
        TcpStream::connect_timeout(&address, PATIENCE).map_err(|source| Failure::Connect { address, source })?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    // One write, one packet. HTTP/1.0: the answer ends with the connection.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes()).map_err(failed)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(failed)?;
    let no_head = || failed(io::Error::new(io::ErrorKind::InvalidData, format!("no HTTP answer: {answer:?}")));
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).ok_or_else(no_head)
}

/// A connected socket hears of refusals and of nobody else's datagrams.
fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(address)?;
    Ok(socket)
}

fn exchange(socket: &UdpSocket, text: &str) -> io::Result<String> {
    socket.send(text.as_bytes())?;
    let mut answer = [0; DATAGRAM_BYTES_MAX];
    let length = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        let check = |line: &str, expect: Option<Request>| {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            let found = Request::parse(&words).map(|parsed| parsed.map_err(|failure| failure.to_string()));
            match expect {
                Some(expect) => assert_eq!(found, Some(Ok(expect)), "{line}"),
                None => assert!(matches!(found, None | Some(Err(_))), "{line}: {found:?}"),
            }
        };
        let get = |host: &str, port, path: &str, times| {
            Some(Request::Get { host: host.into(), port, path: path.into(), times })
        };
        check("get http://web", get("web", 80, "/", 1));
        check("get http://web.default:8080/client 3", get("web.default", 8080, "/client", 3));
        check("get https://web", None);
        check("get http://web/ many", None);
        check("get", None);
        check("8080", None);
        let datagram = Request::Datagram { host: "web".into(), port: 53, text: "hello".into(), times: 1 };
        check("datagram web:53 hello", Some(datagram));
        check("datagram web:53", None);
        check("resolve web", Some(Request::Resolve { name: "web".into() }));
    }
}
