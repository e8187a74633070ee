//! Asking the upstream servers, UDP first and TCP when the client came by TCP or the answer was cut.
//!
//! Servers are read from a resolv.conf whenever it changed. Our own address is never asked: that would be a loop.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hickory_proto::op::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

const WAIT: Duration = Duration::from_millis(1500);
/// For all servers and rounds together: below the five seconds after which clients ask again, so that whoever waits hears
/// that there is no answer.
const DEADLINE: Duration = Duration::from_secs(4);
const ROUNDS: usize = 2;
/// As the C library: later lines are ignored.
const SERVERS_MAX: usize = 3;
const PORT: u16 = 53;
const RESOLV_CONF_BYTES_MAX: u64 = 64 << 10;

#[derive(Debug)]
pub(super) struct Upstream {
    path: PathBuf,
    own: IpAddr,
    read: Mutex<Option<(SystemTime, Vec<SocketAddr>)>>,
}

impl Upstream {
    pub(super) fn new(path: PathBuf, own: IpAddr) -> Self {
        Self { path, own, read: Mutex::new(None) }
    }

    /// The first usable answer, as bytes with the client's own id; `None` when nobody answers.
    pub(super) async fn ask(&self, query: &[u8], request: &Message, by_tcp: bool) -> Option<Vec<u8>> {
        timeout(DEADLINE, self.ask_all(query, request, by_tcp)).await.ok().flatten()
    }

    async fn ask_all(&self, query: &[u8], request: &Message, by_tcp: bool) -> Option<Vec<u8>> {
        let servers = self.servers();
        for _ in 0..ROUNDS {
            for server in &servers {
                let answer = async {
                    if by_tcp { ask_tcp(*server, query).await } else { ask_udp(*server, query, request).await }
                };
                if let Ok(Ok(answer)) = timeout(WAIT, answer).await
                    && is_answer_to(&answer, request)
                {
                    return Some(answer);
                }
            }
        }
        None
    }

    fn servers(&self) -> Vec<SocketAddr> {
        let modified = fs::metadata(&self.path).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, servers)) = read.as_ref()
            && *at == modified
        {
            return servers.clone();
        }
        let text = read_bounded(&self.path).unwrap_or_default();
        let servers = parse(&text, self.own);
        *read = Some((modified, servers.clone()));
        servers
    }
}

/// A file that somebody replaced by a huge one is cut.
fn read_bounded(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(RESOLV_CONF_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The servers of a resolv.conf; a test's may name a port as `1.2.3.4:5300`.
fn parse(text: &str, own: IpAddr) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next()? == "nameserver").then(|| words.next())?
        })
        .filter_map(|server| {
            let plain = || server.parse().ok().map(|address: IpAddr| SocketAddr::new(address, PORT));
            server.parse().ok().or_else(plain)
        })
        .filter(|server| server.ip() != own)
        .take(SERVERS_MAX)
        .collect()
}

/// A fresh socket, so a fresh port, for every question; connected, so that only this server's answers arrive.
async fn ask_udp(server: SocketAddr, query: &[u8], request: &Message) -> io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if is_answer_to(&buffer[..length], request) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], query].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// Same id, is a response, same question.
fn is_answer_to(answer: &[u8], request: &Message) -> bool {
    answer.get(..2) == Some(&request.metadata.id.to_be_bytes()[..])
        && answer.get(2).is_some_and(|flags| flags & 0x80 != 0)
        && Message::from_vec(answer).is_ok_and(|message| message.queries == request.queries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_names_servers() {
        let text = "# x\nsearch a b\nnameserver 10.43.0.10\nnameserver 1.1.1.1\n nameserver fe80::1\nnameserver x\nnameserver 8.8.8.8:5353\n";
        let servers = parse(text, "10.43.0.10".parse().unwrap());
        let texts: Vec<String> = servers.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["1.1.1.1:53", "[fe80::1]:53", "8.8.8.8:5353"]);
    }
}
