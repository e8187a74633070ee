//! The cluster's names: pure answers, and real queries by UDP and TCP with an upstream server.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, RwLock};

use cni_services::catalog::Catalog;
use cni_services::dns::zone::{Answer, Zone};
use cni_services::dns::{DnsSettings, Server};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::objects::{catalog, endpoint, service, slice};

fn cluster() -> Catalog {
    let named = |address: &str, host: &str| -> Value {
        let mut endpoint = endpoint(address);
        endpoint["hostname"] = json!(host);
        endpoint
    };
    let not_ready = json!({"addresses": ["10.42.0.9"], "conditions": {"ready": false}});
    let many: Vec<Value> = (0..200).map(|last| endpoint(&format!("10.42.9.{last}"))).collect();
    let headless = json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"name": "db", "port": 5432}]});
    catalog(vec![
        (
            service(
                "web",
                &json!({"clusterIP": "10.43.1.1", "clusterIPs": ["10.43.1.1", "fd43::1"],
                "ports": [{"name": "http", "port": 80}]}),
            ),
            vec![slice("web", &[("http", 8080, "TCP")], &[endpoint("10.42.0.2")])],
        ),
        (
            service("db", &headless),
            vec![slice("db", &[("db", 5432, "TCP")], &[named("10.42.0.5", "db-0"), endpoint("10.42.0.6"), not_ready])],
        ),
        (service("empty", &headless), vec![]),
        (service("many", &headless), vec![slice("many", &[("db", 5432, "TCP")], &many)]),
        (service("ext", &json!({"type": "ExternalName", "externalName": "example.org"})), vec![]),
        (service("gone", &json!({"type": "ExternalName", "externalName": "nowhere.example"})), vec![]),
        (service("mute", &json!({"type": "ExternalName", "externalName": "silent.example"})), vec![]),
        (service("twice", &json!({"type": "ExternalName", "externalName": "ext.default.svc.cluster.local"})), vec![]),
        (service("inside", &json!({"type": "ExternalName", "externalName": "web.default.svc.cluster.local"})), vec![]),
        (service("loop", &json!({"type": "ExternalName", "externalName": "loop.default.svc.cluster.local"})), vec![]),
        (service("cut", &json!({"type": "ExternalName", "externalName": "cut.example"})), vec![]),
    ])
}

fn zone() -> Zone {
    let networks = vec!["10.42.0.0/16".parse().unwrap(), "10.43.0.0/16".parse().unwrap()];
    Zone::new(Name::from_ascii("cluster.local.").unwrap(), "10.43.0.10".parse().unwrap(), networks)
}

fn ask(name: &str, kind: RecordType) -> Option<Answer> {
    zone().answer(&cluster(), &Name::from_ascii(name).unwrap(), kind)
}

fn check(name: &str, kind: RecordType, expect: &[&str]) {
    let answer = ask(name, kind).unwrap_or_else(|| panic!("{name} is ours"));
    let mut texts: Vec<String> = answer.records.iter().map(|record| record.data.to_string()).collect();
    texts.sort();
    assert_eq!(texts, expect, "{name} {kind}");
    assert!(answer.exists, "{name} exists");
    assert_eq!(answer.authority.is_some(), expect.is_empty(), "{name}: SOA without records only");
}

fn check_missing(name: &str) {
    let answer = ask(name, RecordType::A).unwrap_or_else(|| panic!("{name} is ours"));
    assert!(!answer.exists && answer.records.is_empty() && answer.authority.is_some(), "{name}: {answer:?}");
}

#[test]
fn services_have_names() {
    use RecordType as T;
    check("web.default.svc.cluster.local.", T::A, &["10.43.1.1"]);
    check("WEB.Default.svc.cluster.LOCAL.", T::A, &["10.43.1.1"]);
    check("web.default.svc.cluster.local.", T::AAAA, &["fd43::1"]);
    check("web.default.svc.cluster.local.", T::MX, &[]);
    check("_http._tcp.web.default.svc.cluster.local.", T::SRV, &["0 100 80 web.default.svc.cluster.local."]);
    check("_tcp.web.default.svc.cluster.local.", T::A, &[]);
    check("db.default.svc.cluster.local.", T::A, &["10.42.0.5", "10.42.0.6"]);
    check("db-0.db.default.svc.cluster.local.", T::A, &["10.42.0.5"]);
    check("10-42-0-6.db.default.svc.cluster.local.", T::A, &["10.42.0.6"]);
    check(
        "_db._tcp.db.default.svc.cluster.local.",
        T::SRV,
        &["0 50 5432 10-42-0-6.db.default.svc.cluster.local.", "0 50 5432 db-0.db.default.svc.cluster.local."],
    );
    check("empty.default.svc.cluster.local.", T::A, &[]);
    check("ext.default.svc.cluster.local.", T::A, &["example.org."]);
    check("10-42-0-77.default.pod.cluster.local.", T::A, &["10.42.0.77"]);
    check("default.svc.cluster.local.", T::A, &[]);
    check("svc.cluster.local.", T::A, &[]);
    check("ns.dns.cluster.local.", T::A, &["10.43.0.10"]);
    check("dns-version.cluster.local.", T::TXT, &["1.1.0"]);
    check("cluster.local.", T::NS, &["ns.dns.cluster.local."]);
    check("1.1.43.10.in-addr.arpa.", T::PTR, &["web.default.svc.cluster.local."]);
    check("5.0.42.10.in-addr.arpa.", T::PTR, &["db-0.db.default.svc.cluster.local."]);
}

#[test]
fn what_is_not_there_is_said_to_be_missing_or_not_ours() {
    for name in [
        "nope.default.svc.cluster.local.",
        "web.other.svc.cluster.local.",
        "other.svc.cluster.local.",
        "_ftp._tcp.web.default.svc.cluster.local.",
        "host.web.default.svc.cluster.local.",
        "db-9.db.default.svc.cluster.local.",
        "10-42-0-9.db.default.svc.cluster.local.",
        "not-an-address.default.pod.cluster.local.",
        "example.org.default.svc.cluster.local.",
        "x.cluster.local.",
        "99.0.42.10.in-addr.arpa.",
    ] {
        check_missing(name);
    }
    for name in ["example.org.", "cluster.", "1.1.1.1.in-addr.arpa.", "notcluster.local."] {
        assert!(ask(name, RecordType::A).is_none(), "{name}");
    }
}

/// An upstream server that knows one name, cuts its UDP answers for another, and is silent for the rest.
async fn upstream() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let answer = |bytes: &[u8], by_tcp: bool| {
        let query = Message::from_vec(bytes).unwrap();
        let name = query.queries[0].name().clone();
        let mut response = Message::response(query.metadata.id, OpCode::Query);
        response.add_query(query.queries[0].clone());
        match name.to_ascii().as_str() {
            "cut.example." if !by_tcp => response.metadata.truncation = true,
            "example.org." | "cut.example." => {
                response.add_answer(Record::from_rdata(name, 60, RData::A(A::new(203, 0, 113, 1))));
            }
            "nowhere.example." => response.metadata.response_code = ResponseCode::NXDomain,
            _ => return None,
        }
        response.to_vec().ok()
    };
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            if let Some(bytes) = answer(&buffer[..length], false) {
                let _ = socket.send_to(&bytes, peer).await;
            }
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let length = stream.read_u16().await.unwrap();
            let mut query = vec![0; usize::from(length)];
            stream.read_exact(&mut query).await.unwrap();
            if let Some(bytes) = answer(&query, true) {
                stream.write_u16(u16::try_from(bytes.len()).unwrap()).await.unwrap();
                stream.write_all(&bytes).await.unwrap();
            }
        }
    });
    address
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

async fn by_udp(server: SocketAddr, message: &Message) -> Message {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket.send_to(&message.to_vec().unwrap(), server).await.unwrap();
    let mut buffer = [0; 4096];
    let received = tokio::time::timeout(std::time::Duration::from_secs(20), socket.recv(&mut buffer));
    let length = received.await.unwrap().unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

async fn by_tcp(stream: &mut TcpStream, message: &Message) -> Message {
    let bytes = message.to_vec().unwrap();
    stream.write_u16(u16::try_from(bytes.len()).unwrap()).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let length = stream.read_u16().await.unwrap();
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await.unwrap();
    Message::from_vec(&answer).unwrap()
}

#[tokio::test]
async fn a_real_server_answers_forwards_and_cuts() {
    let directory = tempfile::tempdir().unwrap();
    let resolv_conf = directory.path().join("resolv.conf");
    std::fs::write(&resolv_conf, format!("nameserver {}\n", upstream().await)).unwrap();
    // A free port: taken, given back, used.
    let listen = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
    let settings = DnsSettings {
        listen,
        address: IpAddr::from([10, 43, 0, 10]),
        domain: "cluster.local".into(),
        // Our own address is skipped, so the upstream listens on another one than we compare with.
        upstream_resolv_conf: resolv_conf,
        own_networks: vec!["10.42.0.0/16".parse().unwrap()],
    };
    let listen_elsewhere = DnsSettings { listen: SocketAddr::from(([127, 0, 0, 2], listen.port())), ..settings };
    let server = listen_elsewhere.listen;
    let serving = Server::bind(listen_elsewhere, Arc::new(RwLock::new(cluster()))).await.unwrap();
    tokio::spawn(serving.serve());

    let answer = by_udp(server, &query("web.default.svc.cluster.local.", RecordType::A)).await;
    assert_eq!((answer.metadata.id, answer.metadata.authoritative, answer.answers.len()), (4711, true, 1));
    assert!(answer.metadata.recursion_desired && answer.metadata.recursion_available);
    assert_eq!(answer.queries.len(), 1);
    let answer = by_udp(server, &query("nope.default.svc.cluster.local.", RecordType::A)).await;
    assert_eq!((answer.metadata.response_code, answer.authorities.len()), (ResponseCode::NXDomain, 1));
    let answer = by_udp(server, &query("many.default.svc.cluster.local.", RecordType::A)).await;
    assert!(answer.metadata.truncation, "too long for UDP");
    assert!((20..200).contains(&answer.answers.len()), "as many as fit: {}", answer.answers.len());
    let mut stream = TcpStream::connect(server).await.unwrap();
    let answer = by_tcp(&mut stream, &query("many.default.svc.cluster.local.", RecordType::A)).await;
    assert_eq!((answer.answers.len(), answer.metadata.truncation), (200, false));

    let answer = by_udp(server, &query("example.org.", RecordType::A)).await;
    assert_eq!((answer.answers.len(), answer.metadata.id), (1, 4711));
    let answer = by_udp(server, &query("nowhere.example.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    assert!(by_udp(server, &query("cut.example.", RecordType::A)).await.metadata.truncation);
    // The same connection carries more than one question; by TCP the upstream is asked by TCP.
    assert_eq!(by_tcp(&mut stream, &query("cut.example.", RecordType::A)).await.answers.len(), 1);
    let answer = by_udp(server, &query("silent.example.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);

    // Who asks for an address wants one, whatever aliases are in between.
    let alias = async |name: &str, kind| {
        let answer = by_udp(server, &query(&format!("{name}.default.svc.cluster.local."), kind)).await;
        let texts: Vec<String> = answer.answers.iter().map(|record| record.data.to_string()).collect();
        format!("{:?} {}", answer.metadata.response_code, texts.join(" "))
    };
    let (web, ext) = ("web.default.svc.cluster.local.", "ext.default.svc.cluster.local.");
    assert_eq!(alias("ext", RecordType::A).await, "NoError example.org. 203.0.113.1");
    assert_eq!(alias("ext", RecordType::CNAME).await, "NoError example.org.");
    assert_eq!(alias("twice", RecordType::A).await, format!("NoError {ext} example.org. 203.0.113.1"));
    assert_eq!(alias("inside", RecordType::A).await, format!("NoError {web} 10.43.1.1"));
    assert_eq!(alias("inside", RecordType::MX).await, format!("NoError {web}"));
    assert_eq!(alias("cut", RecordType::A).await, "NoError cut.example. 203.0.113.1");
    assert_eq!(alias("gone", RecordType::A).await, "NXDomain nowhere.example.");
    assert_eq!(alias("mute", RecordType::A).await, "ServFail silent.example.");
    assert!(alias("loop", RecordType::A).await.starts_with("NoError loop."), "a loop ends");

    // Garbage gets FORMERR, an answer gets nothing, and the server lives on.
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket.send_to(&[0x12, 0x34, 0x80, 0, 0xff], server).await.unwrap();
    socket.send_to(&[0x12, 0x34, 0x01, 0, 0xff], server).await.unwrap();
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).await.unwrap();
    assert_eq!(Message::from_vec(&buffer[..length]).unwrap().metadata.response_code, ResponseCode::FormErr);
    by_udp(server, &query("web.default.svc.cluster.local.", RecordType::A)).await;
}

/// A server of the catalog above on an address of its own, with this upstream.
async fn server(address: [u8; 4], upstream: SocketAddr) -> (SocketAddr, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let resolv_conf = directory.path().join("resolv.conf");
    std::fs::write(&resolv_conf, format!("nameserver {upstream}\n")).unwrap();
    let port = UdpSocket::bind((Ipv4Addr::from(address), 0)).await.unwrap().local_addr().unwrap().port();
    let settings = DnsSettings {
        listen: SocketAddr::from((address, port)),
        address: IpAddr::from([10, 43, 0, 10]),
        domain: "cluster.local".into(),
        upstream_resolv_conf: resolv_conf,
        own_networks: Vec::new(),
    };
    let listen = settings.listen;
    tokio::spawn(Server::bind(settings, Arc::new(RwLock::new(cluster()))).await.unwrap().serve());
    (listen, directory)
}

#[tokio::test]
async fn a_silent_upstream_costs_neither_the_own_zone_nor_other_clients() {
    let (server, _directory) = server([127, 0, 0, 5], upstream().await).await;
    let flood = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let question = query("silent.example.", RecordType::A).to_vec().unwrap();
    for _ in 0..300 {
        flood.send_to(&question, server).await.unwrap();
    }
    // The share of this client is used up once the first refusal comes.
    let mut buffer = [0; 512];
    let length = flood.recv(&mut buffer).await.unwrap();
    assert_eq!(Message::from_vec(&buffer[..length]).unwrap().metadata.response_code, ResponseCode::ServFail);
    let ours = query("web.default.svc.cluster.local.", RecordType::A);
    assert_eq!(by_udp(server, &ours).await.answers.len(), 1);
    let other = UdpSocket::bind(("127.0.0.6", 0)).await.unwrap();
    other.send_to(&query("example.org.", RecordType::A).to_vec().unwrap(), server).await.unwrap();
    let received = tokio::time::timeout(std::time::Duration::from_secs(20), other.recv(&mut buffer));
    let length = received.await.unwrap().unwrap();
    assert_eq!(Message::from_vec(&buffer[..length]).unwrap().answers.len(), 1, "another client is served");
}

#[tokio::test]
async fn unknown_versions_and_whole_zones_are_refused() {
    use hickory_proto::op::Edns;
    let (server, _directory) = server([127, 0, 0, 7], upstream().await).await;
    for name in ["web.default.svc.cluster.local.", "example.org."] {
        let mut newer = query(name, RecordType::A);
        let mut edns = Edns::new();
        edns.set_version(1);
        newer.set_edns(edns);
        let answer = by_udp(server, &newer).await;
        let version = answer.edns.as_ref().map(Edns::version);
        assert_eq!((answer.metadata.response_code.low(), version), (0, Some(0)), "{name}");
        assert_eq!(answer.edns.as_ref().map(Edns::rcode_high), Some(1), "BADVERS is 16: {name}");
        assert!(answer.answers.is_empty());
        for kind in [RecordType::AXFR, RecordType::IXFR] {
            let answer = by_udp(server, &query(name, kind)).await;
            assert_eq!(answer.metadata.response_code, ResponseCode::Refused, "{name} {kind}");
        }
    }
    let mut stream = TcpStream::connect(server).await.unwrap();
    let answer = by_tcp(&mut stream, &query("cluster.local.", RecordType::AXFR)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
}

#[test]
fn a_services_own_name_has_the_srv_records_of_all_its_ports() {
    let headless =
        ["0 50 5432 10-42-0-6.db.default.svc.cluster.local.", "0 50 5432 db-0.db.default.svc.cluster.local."];
    check("db.default.svc.cluster.local.", RecordType::SRV, &headless);
    check("web.default.svc.cluster.local.", RecordType::SRV, &["0 100 80 web.default.svc.cluster.local."]);
    check("empty.default.svc.cluster.local.", RecordType::SRV, &[]);
    check("ext.default.svc.cluster.local.", RecordType::SRV, &["example.org."]);
}
