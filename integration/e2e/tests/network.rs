//! Who reaches whom, and whom the other end sees: pods, Services, the node, the outside; and that it stays so while endpoints
//! come and go. Names are tested in `names.rs`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use integration_e2e::cluster::{Cluster, LOCALHOST, eventually, http_get, ip};
use integration_e2e::outside::{NODE, OUTSIDE, Outside, serve_peer_addresses};

/// An answer over one node takes less than a millisecond.
const DATAGRAM_PATIENCE: Duration = Duration::from_secs(2);
const EVENTUALLY_SECONDS: u64 = 20;

fn world() -> Result<(Cluster, Outside)> {
    let cluster = Cluster::prepare()?;
    let outside = Outside::connect(&cluster)?;
    cluster.up()?;
    cluster.import_tools()?;
    Ok((cluster, outside))
}

/// A pod of the demo program: its name is its host name, and its label `app` is `app`.
fn pod(name: &str, app: &str, pod_fields: &str, container_fields: &str) -> String {
    let comma = |fields: &str| if fields.is_empty() { String::new() } else { format!(", {fields}") };
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {app}}}}}\n\
         spec: {{terminationGracePeriodSeconds: 0{}, containers: [{{name: c, image: 'e2e.local/tools:1'{}}}]}}\n",
        comma(pod_fields),
        comma(container_fields)
    )
}

/// A Service on port 80, TCP and UDP, for the pods of one `app`.
fn service(name: &str, app: &str, fields: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{selector: {{app: {app}}}, {fields}\
         ports: [{{name: t, port: 80, targetPort: 8080}}, {{name: u, protocol: UDP, port: 80, targetPort: 8080}}]}}\n"
    )
}

fn cluster_ip(cluster: &Cluster, service: &str) -> Result<IpAddr> {
    ip(&cluster.kubectl(&["get", "service", service, "-o", "jsonpath={.spec.clusterIP}"])?)
}

fn node_ports(cluster: &Cluster, service: &str) -> Result<(u16, u16)> {
    let ports = cluster.kubectl(&["get", "service", service, "-o", "jsonpath={.spec.ports[*].nodePort}"])?;
    let (tcp, udp) = ports.split_once(' ').with_context(|| format!("two ports: {ports:?}"))?;
    Ok((tcp.parse()?, udp.parse()?))
}

fn datagram(target: (IpAddr, u16)) -> Result<String> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    say(&socket, target)
}

fn say(socket: &UdpSocket, target: (IpAddr, u16)) -> Result<String> {
    socket.set_read_timeout(Some(DATAGRAM_PATIENCE))?;
    socket.send_to(b"hello", SocketAddr::from(target)).context("send a datagram")?;
    let mut answer = [0; 256];
    let (length, _) = socket.recv_from(&mut answer).with_context(|| format!("an answer from {target:?}"))?;
    Ok(String::from_utf8_lossy(&answer[..length]).trim_end().to_owned())
}

/// The whole answer is this line.
#[track_caller]
#[expect(clippy::needless_pass_by_value, reason = "an address or a format at the call reads better")]
fn answers(found: Result<String>, expect: impl ToString, what: &str) {
    match found {
        Ok(found) => assert_eq!(found.trim_end(), expect.to_string(), "{what}"),
        Err(error) => panic!("{what}: {error:#}"),
    }
}

/// Asked until it answers so: rules follow endpoints within moments, not at once.
fn soon(what: &str, expect: &str, mut look: impl FnMut() -> Result<String>) -> Result<()> {
    eventually(EVENTUALLY_SECONDS, what, || {
        let found = look()?;
        ensure!(found.trim_end() == expect, "{found:?} instead of {expect:?}");
        Ok(())
    })
}

#[test]
fn senders_keep_their_addresses() -> Result<()> {
    let (cluster, outside) = world()?;
    cluster.apply(
        &[
            pod("a", "a", "", ""),
            pod("b", "b", "", ""),
            pod("h", "h", "hostNetwork: true", "command: [/demo, '8180']"),
            service("own", "a", ""),
            service("other", "b", ""),
            service("host", "h", "").replace("targetPort: 8080", "targetPort: 8180"),
        ]
        .concat(),
    )?;
    let (a, b, h) = (cluster.pod_ready("a")?, cluster.pod_ready("b")?, cluster.pod_ready("h")?);
    let (own, other, host) =
        (cluster_ip(&cluster, "own")?, cluster_ip(&cluster, "other")?, cluster_ip(&cluster, "host")?);
    let c = &cluster;
    let get = |pod: &str, target: IpAddr, port: u16, path: &str| {
        c.ask(pod, &["get", &format!("http://{target}:{port}/{path}")])
    };
    let tell = |pod: &str, target: IpAddr, port: u16| c.ask(pod, &["datagram", &format!("{target}:{port}"), "hello"]);

    answers(get("a", b, 8080, "client"), a, "pod to pod, no translation");
    answers(tell("a", b, 8080), format!("b {a} hello"), "pod to pod by datagram");
    soon("pod to a Service, the sender kept", &a.to_string(), || get("a", other, 80, "client"))?;
    soon("pod to a Service by datagram", &format!("b {a} hello"), || tell("a", other, 80))?;
    soon("pod to itself through its own Service", "a", || get("a", own, 80, "hostname"))?;
    let own_answer = tell("a", own, 80)?;
    assert!(own_answer.starts_with("a ") && own_answer.ends_with(" hello"), "itself by datagram: {own_answer}");
    answers(get("a", a, 8080, "client"), a, "pod to itself by its own address");

    let gateway = c.kubectl(&["get", "node", "node-1", "-o", "jsonpath={.spec.podCIDR}"])?.replace(".0/24", ".1");
    answers(http_get((b, 8080), "/client"), &gateway, "node to pod");
    soon("node to a Service", "b", || http_get((other, 80), "/hostname"))?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || serve_peer_addresses(&listener));
    answers(get("a", NODE, port, ""), a, "pod to node, the sender kept");

    assert_eq!(h, NODE, "a pod in the host's network has the node's address");
    answers(get("a", h, 8180, "client"), a, "pod to a pod in the host's network");
    answers(get("h", b, 8080, "client"), &gateway, "from a pod in the host's network");
    soon("pod to a Service of the host's network", &a.to_string(), || get("a", host, 80, "client"))?;
    soon("through a Service from the host's network", "b", || get("h", other, 80, "hostname"))?;

    let port = outside.serve_peer_addresses()?;
    answers(get("a", OUTSIDE, port, ""), NODE, "pod to the outside, masqueraded");
    answers(get("h", OUTSIDE, port, ""), NODE, "the host's network to the outside");
    Ok(())
}

#[test]
fn ways_in() -> Result<()> {
    let (cluster, outside) = world()?;
    let ports = "ports: [{containerPort: 8080, hostPort: 8081}, {containerPort: 8080, hostPort: 8081, protocol: UDP}]";
    let local = "ports: [{containerPort: 8080, hostPort: 8082, hostIP: 127.0.0.1}]";
    cluster.apply(
        &[
            pod("a", "a", "", ports),
            pod("b", "b", "", local),
            service("open", "a", "type: NodePort, "),
            service("plain", "a", "type: NodePort, externalTrafficPolicy: Local, "),
            service("empty", "nobody", "type: NodePort, "),
        ]
        .concat(),
    )?;
    let (a, _) = (cluster.pod_ready("a")?, cluster.pod_ready("b")?);
    let (tcp, udp) = node_ports(&cluster, "open")?;
    let from_outside = |port: u16, path: &str| outside.within(|| http_get((NODE, port), path))?;
    for address in [NODE, LOCALHOST] {
        soon(&format!("NodePort at {address}"), "a", || http_get((address, tcp), "/hostname"))?;
        soon(&format!("NodePort by datagram at {address}"), "a", || first_word(datagram((address, udp))))?;
        answers(http_get((address, 8081), "/hostname"), "a", "hostPort");
        answers(first_word(datagram((address, 8081))), "a", "hostPort by datagram");
    }
    answers(from_outside(tcp, "/hostname"), "a", "NodePort from outside");
    answers(first_word(outside.within(|| datagram((NODE, udp)))?), "a", "NodePort by datagram from outside");
    let url = |port: u16, path: &str| format!("http://{NODE}:{port}/{path}");
    answers(cluster.ask("b", &["get", &url(tcp, "hostname")]), "a", "NodePort from a pod");
    answers(cluster.ask("a", &["get", &url(tcp, "hostname")]), "a", "a pod to itself through a NodePort");
    let (plain, _) = node_ports(&cluster, "plain")?;
    soon("externalTrafficPolicy Local keeps the client", &OUTSIDE.to_string(), || from_outside(plain, "/client"))?;

    answers(from_outside(8081, "/client"), OUTSIDE, "hostPort from outside, the client kept");
    answers(first_word(outside.within(|| datagram((NODE, 8081)))?), "a", "hostPort by datagram from outside");
    answers(cluster.ask("b", &["get", &url(8081, "hostname")]), "a", "hostPort from a pod");
    answers(cluster.ask("a", &["get", &url(8081, "hostname")]), "a", "a pod to itself through its hostPort");
    answers(http_get((LOCALHOST, 8082), "/hostname"), "b", "hostPort of 127.0.0.1");
    refused("hostPort of 127.0.0.1 elsewhere", || from_outside(8082, "/"))?;
    // 127.0.0.1 of the node is nobody else's, whatever forwarding is set up for it.
    let spoofed = cluster.ask("b", &["get", "http://127.0.0.1:8081/"]);
    assert!(format!("{:#}", spoofed.unwrap_err()).contains("refused"), "127.0.0.1 in a pod is the pod's own");

    let (empty, empty_udp) = node_ports(&cluster, "empty")?;
    for address in [NODE, LOCALHOST] {
        refused("a NodePort without endpoints", || http_get((address, empty), "/"))?;
    }
    refused("a NodePort without endpoints from outside", || from_outside(empty, "/"))?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((NODE, empty_udp))?;
    refused("a NodePort without endpoints by datagram", || {
        socket.set_read_timeout(Some(DATAGRAM_PATIENCE))?;
        socket.send(b"hello").and_then(|_| socket.recv(&mut [0; 16])).context("datagram").map(|_| String::new())
    })?;

    // The port is taken: the second pod waits and says why, and has it as soon as the first is gone.
    cluster.apply(&pod("second", "second", "", ports))?;
    eventually(EVENTUALLY_SECONDS, "the second pod says what it waits for", || {
        let described = cluster.kubectl(&["describe", "pod", "second"])?;
        ensure!(described.contains("free ports"), "{described}");
        Ok(())
    })?;
    cluster.kubectl(&["delete", "pod", "a"])?;
    let second = cluster.pod_ready("second")?;
    assert_ne!(second, a, "a freed address rests");
    soon("the hostPort's next holder", "second", || from_outside(8081, "/hostname"))?;
    cluster.kubectl(&["delete", "pod", "second"])?;
    refused("a hostPort without holder", || from_outside(8081, "/"))
}

fn first_word(answer: Result<String>) -> Result<String> {
    answer.map(|answer| answer.split(' ').next().unwrap_or_default().to_owned())
}

/// Refused at once, not met with silence.
fn refused(what: &str, mut attempt: impl FnMut() -> Result<String>) -> Result<()> {
    eventually(EVENTUALLY_SECONDS, what, || match attempt() {
        Ok(answer) => bail!("answered {answer:?}"),
        Err(error) => {
            let text = format!("{error:#}");
            ensure!(text.contains("refused"), "{text}");
            Ok(())
        }
    })
}

/// Who answers `times` requests.
fn who(cluster: &Cluster, pod: &str, service: IpAddr, times: u32) -> Result<BTreeSet<String>> {
    let said = cluster.ask(pod, &["get", &format!("http://{service}/hostname"), &times.to_string()])?;
    Ok(said.lines().map(str::to_owned).collect())
}

#[test]
fn endpoints_are_followed() -> Result<()> {
    let (cluster, _outside) = world()?;
    let readiness = "readinessProbe: {exec: {command: [test, -e, /tmp/ready]}, periodSeconds: 1}";
    cluster.apply(
        &[
            pod("asks", "asks", "", ""),
            pod("r1", "r", "", readiness),
            pod("r2", "r", "", readiness),
            service("all", "r", ""),
            service("eager", "r", "publishNotReadyAddresses: true, "),
            service("loyal", "r", "sessionAffinity: ClientIP, "),
            service("nobody", "nobody", ""),
        ]
        .concat(),
    )?;
    let c = &cluster;
    c.pod_ready("asks")?;
    let (all, eager, loyal, nobody) =
        (cluster_ip(c, "all")?, cluster_ip(c, "eager")?, cluster_ip(c, "loyal")?, cluster_ip(c, "nobody")?);
    let expect = |service: IpAddr, names: &[&str]| {
        let names: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
        eventually(EVENTUALLY_SECONDS, &format!("{names:?} answer for {service}"), || {
            let found = who(c, "asks", service, 30)?;
            ensure!(found == names, "{found:?}");
            Ok(())
        })
    };
    let nobody_answers = |service: IpAddr| {
        refused("no endpoints, from a pod", || c.ask("asks", &["get", &format!("http://{service}/")]))?;
        refused("no endpoints, from the node", || http_get((service, 80), "/"))?;
        refused("no endpoints, by datagram", || c.ask("asks", &["datagram", &format!("{service}:80"), "hello"]))
    };
    let ready = |pod: &str, is_ready: bool| {
        c.kubectl(&["exec", pod, "--", if is_ready { "touch" } else { "rm" }, "/tmp/ready"])
    };
    nobody_answers(nobody)?;
    nobody_answers(all)?;
    expect(eager, &["r1", "r2"])?;
    ready("r1", true)?;
    expect(all, &["r1"])?;
    ready("r2", true)?;
    expect(all, &["r1", "r2"])?;

    // One client stays with one endpoint as long as that lives.
    eventually(EVENTUALLY_SECONDS, "session affinity", || {
        let found = who(c, "asks", loyal, 30)?;
        ensure!(found.len() == 1, "{found:?}");
        Ok(())
    })?;
    let chosen = who(c, "asks", loyal, 1)?.pop_first().context("an answer")?;
    let other = if chosen == "r1" { "r2" } else { "r1" };
    ready(&chosen, false)?;
    expect(loyal, &[other])?;
    expect(all, &[other])?;
    ready(&chosen, true)?;
    expect(all, &["r1", "r2"])?;
    expect(loyal, &[other])?;
    c.kubectl(&["patch", "service", "loyal", "-p", r#"{"spec": {"sessionAffinity": "None"}}"#])?;
    expect(loyal, &["r1", "r2"])?;

    c.kubectl(&["delete", "pod", "r1"])?;
    expect(all, &["r2"])?;
    c.kubectl(&["delete", "pod", "r2"])?;
    nobody_answers(all)?;

    c.kubectl(&["create", "deployment", "many", "--image=e2e.local/tools:1", "--replicas=3", "--port=8080"])?;
    c.kubectl(&["expose", "deployment", "many", "--port=80", "--target-port=8080"])?;
    let many = cluster_ip(c, "many")?;
    for count in [3, 1, 2] {
        c.kubectl(&["scale", "deployment", "many", &format!("--replicas={count}")])?;
        eventually(EVENTUALLY_SECONDS, &format!("{count} replicas answer"), || {
            let found = who(c, "asks", many, 40)?;
            ensure!(found.len() == count, "{found:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn datagrams_find_the_living() -> Result<()> {
    let (cluster, outside) = world()?;
    cluster.apply(&service("u", "u", "type: NodePort, "))?;
    let address = cluster_ip(&cluster, "u")?;
    let (_, node_port) = node_ports(&cluster, "u")?;
    // Each socket keeps its port, so that to the kernel it is one connection from the first datagram to the last.
    let open = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0));
    let (here, there) = (open()?, outside.within(open)??);
    assert!(say(&here, (address, 80)).is_err(), "nobody is there yet");
    assert!(outside.within(|| say(&there, (NODE, node_port)))?.is_err(), "nobody is there yet");
    for name in ["first", "second"] {
        cluster.apply(&pod(name, "u", "", ""))?;
        cluster.pod_ready(name)?;
        soon("a datagram from the node", name, || first_word(say(&here, (address, 80))))?;
        soon("a datagram from outside", name, || first_word(outside.within(|| say(&there, (NODE, node_port)))?))?;
        cluster.kubectl(&["delete", "pod", name])?;
    }
    Ok(())
}
