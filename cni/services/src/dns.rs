//! The cluster's DNS server: its own zone from the catalog, everything else from the upstream servers.
//!
//! One socket each for UDP and TCP on the DNS address. `zone` answers (pure), `forward` asks others, here is the
//! traffic. Our own zone never waits for anybody: only questions to the upstream servers are limited, altogether and for
//! each client, and those beyond the limit are refused with SERVFAIL rather than queued. A packet that cannot be
//! answered ends nothing but itself.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::FutureExt;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;
use tracing::{error, warn};

use crate::catalog::Catalog;
use crate::counts;

mod alias;
mod forward;
mod shares;
pub mod zone;

use forward::Upstream;
use shares::Shares;
use zone::{Answer, Zone};

/// Questions to the upstream servers under way, and of them those of one client: who asks for names that nobody answers
/// takes away no more than his own.
const UPSTREAM_MAX: usize = 1024;
const UPSTREAM_OF_ONE_MAX: usize = 128;
/// Connections, and of them those of one client.
const CONNECTIONS_MAX: usize = 512;
const CONNECTIONS_OF_ONE_MAX: usize = 32;
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Without EDNS (RFC 1035, 2.3.4), and the most we send with it (fits every path's MTU).
const UDP_PLAIN_MAX: u16 = 512;
const UDP_MAX: u16 = 1232;
const RECEIVE_PAUSE: Duration = Duration::from_millis(5);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The domain is no name.
    #[error("`{0}` is not a domain name")]
    Domain(String),
    /// The address is not ours, or something else has the port.
    #[error("listen for DNS on {address}; see who has that port, or choose another DNS address")]
    Listen { address: SocketAddr, source: io::Error },
}

/// What the server needs to know.
#[derive(Debug, Clone)]
pub struct DnsSettings {
    /// Where to listen; port 53.
    pub listen: SocketAddr,
    /// Address of the name `ns.dns.<domain>`.
    pub address: IpAddr,
    /// For example `cluster.local`.
    pub domain: String,
    /// Where the upstream servers are written.
    pub upstream_resolv_conf: PathBuf,
    /// Reverse zones that are ours: a name not found there is asked of nobody else.
    pub own_networks: Vec<cni_spec::Cidr>,
}

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    udp: UdpSocket,
    tcp: TcpListener,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    zone: Zone,
    upstream: Upstream,
    catalog: Arc<RwLock<Catalog>>,
    asking: Shares,
    connections: Shares,
}

impl Server {
    /// Binds both sockets.
    ///
    /// # Errors
    /// [`DnsError`].
    pub async fn bind(settings: DnsSettings, catalog: Arc<RwLock<Catalog>>) -> Result<Self, DnsError> {
        let domain = Name::from_ascii(format!("{}.", settings.domain.trim_end_matches('.')))
            .map_err(|_| DnsError::Domain(settings.domain.clone()))?;
        let failed = |source| DnsError::Listen { address: settings.listen, source };
        let udp = UdpSocket::bind(settings.listen).await.map_err(failed)?;
        let tcp = TcpListener::bind(settings.listen).await.map_err(failed)?;
        let zone = Zone::new(domain.to_lowercase(), settings.address, settings.own_networks);
        let upstream = Upstream::new(settings.upstream_resolv_conf, settings.listen.ip());
        let asking = Shares::new(UPSTREAM_MAX, UPSTREAM_OF_ONE_MAX);
        let connections = Shares::new(CONNECTIONS_MAX, CONNECTIONS_OF_ONE_MAX);
        let inner = Arc::new(Inner { zone, upstream, catalog, asking, connections });
        Ok(Self { udp, tcp, inner })
    }

    /// Answers until it is dropped.
    pub async fn serve(self) {
        let udp = Arc::new(self.udp);
        tokio::join!(serve_udp(udp, &self.inner), serve_tcp(self.tcp, &self.inner));
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, inner: &Arc<Inner>) {
    let mut buffer = vec![0; 4096];
    loop {
        let (length, peer) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // An ICMP error for an earlier answer, or no memory: the socket is fine.
                warn!(%error, "receive a DNS query");
                tokio::time::sleep(RECEIVE_PAUSE).await;
                continue;
            }
        };
        let (inner, socket, query) = (Arc::clone(inner), Arc::clone(&socket), buffer[..length].to_vec());
        tokio::spawn(async move {
            if let Some(answer) = inner.answer_safely(&query, peer.ip(), Transport::Udp).await
                && let Err(error) = socket.send_to(&answer, peer).await
            {
                warn!(%error, %peer, "send a DNS answer");
            }
        });
    }
}

async fn serve_tcp(listener: TcpListener, inner: &Arc<Inner>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let inner = Arc::clone(inner);
                tokio::spawn(async move {
                    let Some(_share) = inner.connections.take(peer.ip()) else {
                        counts::DNS_REFUSED.add();
                        return;
                    };
                    // A client that breaks off is no event worth a line.
                    drop(serve_connection(stream, peer.ip(), &inner).await);
                });
            }
            Err(error) => {
                warn!(%error, "accept a DNS connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// RFC 7766: several queries on one connection, each with its length before it.
async fn serve_connection(mut stream: TcpStream, client: IpAddr, inner: &Inner) -> io::Result<()> {
    loop {
        let Ok(length) = timeout(TCP_IDLE, stream.read_u16()).await else { return Ok(()) };
        let mut query = vec![0; usize::from(length?)];
        let Ok(read) = timeout(TCP_IDLE, stream.read_exact(&mut query)).await else { return Ok(()) };
        read?;
        let Some(answer) = inner.answer_safely(&query, client, Transport::Tcp).await else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes()[..], &answer].concat();
        // Who does not read is not waited for.
        let Ok(written) = timeout(TCP_IDLE, stream.write_all(&framed)).await else { return Ok(()) };
        written?;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Udp,
    Tcp,
}

impl Inner {
    /// A query that makes us panic gets no answer, and the next one gets its own.
    async fn answer_safely(&self, bytes: &[u8], client: IpAddr, transport: Transport) -> Option<Vec<u8>> {
        match AssertUnwindSafe(self.answer(bytes, client, transport)).catch_unwind().await {
            Ok(answer) => answer,
            Err(_) => {
                counts::PANICS.add();
                error!(%client, bytes = bytes.len(), "answering a DNS query panicked");
                None
            }
        }
    }

    /// `None` for what deserves no answer.
    async fn answer(&self, bytes: &[u8], client: IpAddr, transport: Transport) -> Option<Vec<u8>> {
        let request = match Message::from_vec(bytes) {
            Ok(request) if request.metadata.message_type == MessageType::Query => request,
            // An answer to an answer would be a loop.
            Ok(_) => return None,
            Err(_) => {
                let id = u16::from_be_bytes([*bytes.first()?, *bytes.get(1)?]);
                let is_response = *bytes.get(2)? & 0x80 != 0;
                let refusal = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
                return if is_response { None } else { refusal.to_vec().ok() };
            }
        };
        let error = |code| Message::error_msg(request.metadata.id, request.metadata.op_code, code);
        let response = match request.queries.as_slice() {
            // RFC 6891, section 6.1.3: a version that we do not know is named, whatever else is asked.
            _ if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) => error(ResponseCode::BADVERS),
            _ if request.metadata.op_code != OpCode::Query => error(ResponseCode::NotImp),
            [query] if query.query_class() != DNSClass::IN => error(ResponseCode::Refused),
            // RFC 5936, section 2.2.1: nobody gets a whole zone, ours or anybody's.
            [query] if matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR) => {
                error(ResponseCode::Refused)
            }
            [query] => match self.own(query) {
                Some(answer) => {
                    let (answer, code) = alias::follow(self, client, answer, query.query_type()).await;
                    respond(&request, answer, code)
                }
                None => match self.ask(bytes, client, &request, transport == Transport::Tcp).await {
                    Some(answer) => return Some(answer),
                    None => error(ResponseCode::ServFail),
                },
            },
            _ => error(ResponseCode::FormErr),
        };
        finish(&request, response, transport)
    }

    /// Asks the upstream servers, within this client's share.
    async fn ask(&self, bytes: &[u8], client: IpAddr, request: &Message, by_tcp: bool) -> Option<Vec<u8>> {
        let Some(_share) = self.asking.take(client) else {
            counts::DNS_REFUSED.add();
            return None;
        };
        self.upstream.ask(bytes, request, by_tcp).await
    }

    fn own(&self, query: &Query) -> Option<Answer> {
        // A poisoned lock still holds a readable catalog: its writer only replaces whole entries.
        let catalog = self.catalog.read().unwrap_or_else(PoisonError::into_inner);
        self.zone.answer(&catalog, query.name(), query.query_type())
    }
}

fn respond(request: &Message, answer: Answer, code: ResponseCode) -> Message {
    let mut response = Message::response(request.metadata.id, OpCode::Query);
    response.metadata.authoritative = true;
    response.metadata.recursion_available = true;
    response.metadata.response_code = code;
    response.insert_answers(answer.records);
    response.insert_additionals(answer.additionals);
    response.insert_authorities(answer.authority.into_iter().collect());
    response
}

/// The question repeated, EDNS where the client spoke it, cut to what the client can take.
fn finish(request: &Message, mut response: Message, transport: Transport) -> Option<Vec<u8>> {
    response.metadata.recursion_desired = request.metadata.recursion_desired;
    response.add_queries(request.queries.iter().cloned());
    let mut limit = UDP_PLAIN_MAX;
    if let Some(edns) = &request.edns {
        limit = edns.max_payload().clamp(UDP_PLAIN_MAX, UDP_MAX);
        let mut own = Edns::new();
        own.set_max_payload(UDP_MAX);
        response.set_edns(own);
    }
    let bytes = response.to_vec().ok()?;
    if transport == Transport::Tcp || bytes.len() <= usize::from(limit) {
        return Some(bytes);
    }
    cut(&response, usize::from(limit))
}

/// As many records as fit, and the mark that there are more: some C libraries never ask again by TCP. What may be left out
/// without loss (RFC 2181, section 9) goes first.
fn cut(response: &Message, limit: usize) -> Option<Vec<u8>> {
    let with = |count: usize, is_cut: bool| {
        let mut short = response.truncate();
        short.metadata.truncation = is_cut;
        short.insert_answers(response.answers.get(..count).unwrap_or_default().to_vec());
        short.to_vec().ok().filter(|bytes| bytes.len() <= limit)
    };
    let all = response.answers.len();
    if let Some(whole) = with(all, false).filter(|_| all > 0) {
        return Some(whole);
    }
    // The length grows with the number of records.
    let (mut fits, mut too_many) = (0, all);
    while too_many - fits > 1 {
        let middle = fits + (too_many - fits) / 2;
        if with(middle, true).is_some() { fits = middle } else { too_many = middle }
    }
    with(fits, true)
}

/// What a fuzzer calls: any bytes as a query; what is answered is a message with the same number.
#[doc(hidden)]
pub fn answer_any(bytes: &[u8]) {
    let domain = Name::from_ascii("cluster.local.").expect("a constant");
    let address = IpAddr::from([10, 43, 0, 10]);
    let inner = Inner {
        zone: Zone::new(domain, address, Vec::new()),
        upstream: Upstream::new("/nonexistent".into(), address),
        catalog: Arc::default(),
        asking: Shares::new(0, 0),
        connections: Shares::new(0, 0),
    };
    // Without servers and without shares nothing is waited for.
    let answered = inner.answer(bytes, address, Transport::Udp).now_or_never().expect("nothing to wait for");
    if let Some(answer) = answered {
        assert!(answer.len() <= usize::from(UDP_MAX), "{} bytes by UDP", answer.len());
        assert_eq!(answer.get(..2), bytes.get(..2), "an answer to another question");
    }
}
