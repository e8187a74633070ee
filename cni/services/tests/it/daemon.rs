//! The whole daemon against an API server that lives in this process: list, watch, restart, cleanup.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cni_netlink::nft::{Family, Nftables};
use cni_netlink::{Namespace, Rtnetlink};
use cni_services::{Config, cleanup};
use futures::StreamExt;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::node::{DNS, Node, ask_tcp, connect, echo, greeting, serve_tcp, udp_client};
use crate::objects::{endpoint, service, slice};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 43, 1, 1);

/// Lists what it holds and sends every change to all watches.
#[derive(Clone)]
pub(crate) struct FakeApi {
    objects: Arc<Mutex<Vec<(&'static str, Value)>>>,
    changes: broadcast::Sender<(&'static str, String)>,
}

impl FakeApi {
    pub(crate) fn new() -> Self {
        Self { objects: Arc::default(), changes: broadcast::channel(64).0 }
    }

    pub(crate) fn put(&self, resource: &'static str, object: impl serde::Serialize) {
        let mut object = serde_json::to_value(object).unwrap();
        object["metadata"]["resourceVersion"] = json!("7");
        let mut objects = self.objects.lock().unwrap();
        let same =
            |other: &(&str, Value)| other.0 == resource && other.1["metadata"]["name"] == object["metadata"]["name"];
        let kind = if objects.iter().any(same) { "MODIFIED" } else { "ADDED" };
        objects.retain(|other| !same(other));
        objects.push((resource, object.clone()));
        let _ = self.changes.send((resource, format!("{}\n", json!({"type": kind, "object": object}))));
    }

    fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let answer = api.answer(&request);
            async move { Ok::<_, std::convert::Infallible>(answer) }
        });
        kube::Client::new(service, "default")
    }

    fn answer(
        &self,
        request: &Request<Body>,
    ) -> Response<http_body_util::combinators::UnsyncBoxBody<bytes::Bytes, std::io::Error>> {
        let resource = if request.uri().path().ends_with("/services") { "services" } else { "endpointslices" };
        if request.uri().query().is_some_and(|query| query.contains("watch=true")) {
            let stream = tokio_stream::wrappers::BroadcastStream::new(self.changes.subscribe());
            let frames = stream.filter_map(move |change| async move {
                let (of, line) = change.ok()?;
                (of == resource).then(|| Ok(Frame::data(bytes::Bytes::from(line))))
            });
            return Response::new(BodyExt::boxed_unsync(StreamBody::new(frames)));
        }
        let objects = self.objects.lock().unwrap();
        let items: Vec<&Value> = objects.iter().filter(|(of, _)| *of == resource).map(|(_, object)| object).collect();
        let (version, kind) =
            if resource == "services" { ("v1", "ServiceList") } else { ("discovery.k8s.io/v1", "EndpointSliceList") };
        let list = json!({"apiVersion": version, "kind": kind, "metadata": {"resourceVersion": "1"}, "items": items});
        let body = Full::new(bytes::Bytes::from(list.to_string())).map_err(|never| match never {});
        Response::new(BodyExt::boxed_unsync(body))
    }
}

/// The daemon on threads of its own, inside the node's namespace.
pub(crate) struct Daemon {
    shutdown: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Daemon {
    pub(crate) fn start(namespace: &Namespace, api: &FakeApi) -> Self {
        let (api, shutdown) = (api.clone(), CancellationToken::new());
        let token = shutdown.clone();
        let namespace = namespace.try_clone().unwrap();
        let thread = std::thread::spawn(move || {
            let work = || {
                let runtime =
                    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
                runtime.block_on(async {
                    let config = Config {
                        client: api.client(),
                        node_name: "here".into(),
                        node_ips: Vec::new(),
                        reserved: vec!["0.0.0.0:6443".parse().unwrap(), "10.43.0.10:53".parse().unwrap()],
                        table: "sampan".into(),
                        bridge: "sampan0".into(),
                        cluster_cidr: "10.42.0.0/16".parse().unwrap(),
                        service_cidr: "10.43.0.0/16".parse().unwrap(),
                        dns_address: DNS.into(),
                        cluster_domain: "cluster.local".into(),
                        upstream_resolv_conf: "/nonexistent".into(),
                    };
                    cni_services::run(config, token).await.unwrap();
                });
            };
            namespace.within(work).unwrap();
        });
        Self { shutdown, thread: Some(thread) }
    }

    pub(crate) fn stop(mut self) {
        self.shutdown.cancel();
        self.thread.take().unwrap().join().unwrap();
    }
}

pub(crate) fn eventually<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now().checked_add(Duration::from_secs(20)).expect("a clock that is not near its end");
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(Instant::now() < deadline, "did not happen within 20 s");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

#[test]
fn the_daemon_follows_restarts_and_cleans_up() {
    let node = Node::new();
    let (a, b, client) = (node.pod(2), node.pod(3), node.pod(4));
    serve_tcp(&a, 8080, "a");
    serve_tcp(&b, 8080, "b");
    let api = FakeApi::new();
    let spec = json!({"clusterIP": VIP, "clusterIPs": [VIP], "ports": [{"name": "http", "port": 80}]});
    api.put("services", service("web", &spec));
    let ports = [("http", 8080, "TCP")];
    api.put("endpointslices", slice("web", &ports, &[endpoint("10.42.0.2")]));
    let daemon = Daemon::start(&node.namespace, &api);

    assert_eq!(eventually(|| ask_tcp(&client, (VIP, 80)).ok()), "a 10.42.0.4");
    assert_eq!(ask_tcp(&node.namespace, (VIP, 80)).unwrap().split(' ').next(), Some("a"));
    let mut held = connect(&client, (VIP, 80)).unwrap();
    greeting(&mut held).unwrap();
    assert_eq!(resolve(&client), [10, 43, 1, 1]);

    api.put("endpointslices", slice("web", &ports, &[endpoint("10.42.0.3")]));
    eventually(|| ask_tcp(&client, (VIP, 80)).ok().filter(|text| text.starts_with("b ")));
    assert!(echo(&mut held), "an established connection outlives its endpoint's entry");

    daemon.stop();
    assert!(ask_tcp(&client, (VIP, 80)).unwrap().starts_with("b "), "traffic goes on without the daemon");
    api.put("endpointslices", slice("web", &ports, &[endpoint("10.42.0.2")]));
    let daemon = Daemon::start(&node.namespace, &api);
    eventually(|| ask_tcp(&client, (VIP, 80)).ok().filter(|text| text.starts_with("a ")));
    assert!(echo(&mut held));
    daemon.stop();

    let clean =
        || cleanup("sampan", "sampan0", "10.42.0.0/16".parse().unwrap(), "10.43.0.0/16".parse().unwrap(), DNS.into());
    node.namespace.within(clean).unwrap().unwrap();
    node.namespace.within(clean).unwrap().unwrap();
    assert!(Nftables::open_in(&node.namespace).unwrap().tables(Family::Inet).unwrap().is_empty());
    let mut host = Rtnetlink::open_in(&node.namespace).unwrap();
    let names: Vec<String> = host.links().unwrap().into_iter().map(|link| link.name).collect();
    assert_eq!(names, ["lo", "up0"]);
    assert!(!host.addresses(1).unwrap().contains(&(DNS.into(), 32)));
    assert!(host.routes().unwrap().iter().all(|route| route.link != Some(1)));
}

/// One A record of the Service's name, asked of the cluster's DNS server.
pub(crate) fn resolve(client: &Namespace) -> [u8; 4] {
    use hickory_proto::op::{Message, MessageType, OpCode, Query};
    use hickory_proto::rr::{Name, RData, RecordType};
    let mut query = Message::new(1, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(Name::from_ascii("web.default.svc.cluster.local.").unwrap(), RecordType::A));
    let socket = udp_client(client, (DNS, 53));
    socket.send(&query.to_vec().unwrap()).unwrap();
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).unwrap();
    let answer = Message::from_vec(&buffer[..length]).unwrap();
    match &answer.answers[0].data {
        RData::A(address) => address.0.octets(),
        other => panic!("{other}"),
    }
}
