//! The cluster's DNS server: its own zone from the catalog, everything else from the upstream servers.
//!
//! One socket each for UDP and TCP on the DNS address. `zone` answers (pure), `forward` asks others, here is the
//! traffic. Queries beyond [`QUERIES_MAX`] under way are refused with SERVFAIL rather than queued.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::warn;

use crate::catalog::Catalog;

mod alias;
mod forward;
pub mod zone;

use forward::Upstream;
use zone::{Answer, Zone};

const QUERIES_MAX: usize = 1024;
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Without EDNS (RFC 1035, 2.3.4), and the most we send with it (fits every path's MTU).
const UDP_PLAIN_MAX: u16 = 512;
const UDP_MAX: u16 = 1232;

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
    slots: Semaphore,
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
        let inner = Arc::new(Inner { zone, upstream, catalog, slots: Semaphore::new(QUERIES_MAX) });
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
                // An ICMP error for an earlier answer; the socket is fine.
                warn!(%error, "receive a DNS query");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let (inner, socket, query) = (Arc::clone(inner), Arc::clone(&socket), buffer[..length].to_vec());
        tokio::spawn(async move {
            if let Some(answer) = inner.answer(&query, Transport::Udp).await
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
            Ok((stream, _)) => {
                let inner = Arc::clone(inner);
                // A client that breaks off is no event worth a line.
                tokio::spawn(async move { drop(serve_connection(stream, &inner).await) });
            }
            Err(error) => {
                warn!(%error, "accept a DNS connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// RFC 7766: several queries on one connection, each with its length before it.
async fn serve_connection(mut stream: TcpStream, inner: &Inner) -> io::Result<()> {
    loop {
        let Ok(length) = timeout(TCP_IDLE, stream.read_u16()).await else { return Ok(()) };
        let mut query = vec![0; usize::from(length?)];
        let Ok(read) = timeout(TCP_IDLE, stream.read_exact(&mut query)).await else { return Ok(()) };
        read?;
        let Some(answer) = inner.answer(&query, Transport::Tcp).await else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes()[..], &answer].concat()).await?;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Udp,
    Tcp,
}

impl Inner {
    /// `None` for what deserves no answer.
    async fn answer(&self, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
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
        let Ok(_slot) = self.slots.try_acquire() else {
            return finish(&request, error(ResponseCode::ServFail), transport);
        };
        let response = match request.queries.as_slice() {
            _ if request.metadata.op_code != OpCode::Query => error(ResponseCode::NotImp),
            [query] if query.query_class() != DNSClass::IN => error(ResponseCode::Refused),
            [query] => match self.own(query) {
                Some(answer) => {
                    let (answer, code) = alias::follow(self, answer, query.query_type()).await;
                    respond(&request, answer, code)
                }
                None => match self.upstream.ask(bytes, &request, transport == Transport::Tcp).await {
                    Some(answer) => return Some(answer),
                    None => error(ResponseCode::ServFail),
                },
            },
            _ => error(ResponseCode::FormErr),
        };
        finish(&request, response, transport)
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
    let mut short = response.truncate();
    short.metadata.truncation = true;
    short.to_vec().ok()
}
