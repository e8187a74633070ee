//! Namespaces, links, addresses and routes.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;

use cni_netlink::rtnetlink::{NewRoute, PortChange, Veth};
use cni_netlink::{Batch, Namespace, Rtnetlink, sysctl};

fn ip(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 9, 0, last).into()
}

#[test]
fn a_veth_pair_is_made_across_namespaces_in_one_batch() {
    let (host, pod) = (Namespace::create().unwrap(), Namespace::create().unwrap());
    let mut at_host = Rtnetlink::open_in(&host).unwrap();
    at_host.apply(Batch::default().create_bridge("br0", Some(1400), Some([2, 0, 0, 0, 0, 9]))).unwrap();
    let bridge = at_host.link("br0").unwrap().unwrap();
    assert_eq!((bridge.kind.as_str(), bridge.is_up, bridge.mtu), ("bridge", true, 1400));

    let veth = Veth {
        name: "veth-a",
        bridge: Some(bridge.index),
        peer_name: "eth0",
        peer_namespace: pod.as_fd(),
        peer_mac: Some([2, 0, 0, 0, 0, 1]),
        mtu: Some(1400),
    };
    let port = PortChange { hairpin: Some(true), isolated: None };
    at_host.apply(Batch::default().create_veth(&veth).set_port("veth-a", port)).unwrap();
    let host_end = at_host.link("veth-a").unwrap().unwrap();
    assert_eq!((host_end.hairpin, host_end.controller, host_end.mtu), (Some(true), Some(bridge.index), 1400));

    let mut at_pod = Rtnetlink::open_in(&pod).unwrap();
    let eth0 = at_pod.link("eth0").unwrap().unwrap();
    assert_eq!((eth0.mac.as_slice(), eth0.is_up, eth0.peer), (&[2, 0, 0, 0, 0, 1][..], false, Some(host_end.index)));
    let default = NewRoute::new(Ipv4Addr::UNSPECIFIED.into(), 0, Some(ip(1)), eth0.index);
    at_pod.apply(Batch::default().set_up(eth0.index).add_address(eth0.index, ip(2), 24).add_route(&default)).unwrap();
    // Again: what is there is fine.
    at_pod.apply(Batch::default().set_up(eth0.index).add_address(eth0.index, ip(2), 24).add_route(&default)).unwrap();
    assert!(at_pod.addresses(eth0.index).unwrap().contains(&(ip(2), 24)));
    assert!(at_pod.routes().unwrap().iter().any(|route| route.destination.is_none() && route.gateway == Some(ip(1))));

    at_host.apply(Batch::default().delete_link("veth-a").delete_link("veth-a")).unwrap();
    assert_eq!(at_pod.link("eth0").unwrap(), None);
}

#[test]
fn a_refusal_names_the_step() {
    let space = Namespace::create().unwrap();
    let mut socket = Rtnetlink::open_in(&space).unwrap();
    let mut batch = Batch::default();
    batch.create_bridge("br0", None, None).set_mtu(4711, 1500).create_bridge("br1", None, None);
    let error = socket.apply(&batch).unwrap_err();
    assert_eq!(error.errno(), Some(libc::ENODEV));
    assert!(error.to_string().contains("set MTU 1500 on link 4711"), "{error}");
    assert!(socket.link("br1").unwrap().is_some(), "later steps are still done");
    let names: Vec<String> = socket.links().unwrap().into_iter().map(|link| link.name).collect();
    assert_eq!(names, ["lo", "br0", "br1"]);
}

#[test]
fn a_pinned_namespace_opens_by_path_until_unpinned() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("net");
    let space = Namespace::create().unwrap();
    space.pin(&path).unwrap();
    assert!(space.pin(&path).is_err(), "a pin is not laid over another");
    let opened = Namespace::open(&path).unwrap();
    assert!(opened.is_same(&space) && !opened.is_same(&Namespace::current().unwrap()));
    Namespace::unpin(&path).unwrap();
    Namespace::unpin(&path).unwrap();
    assert!(Namespace::open(&path).is_err());
    std::fs::write(&path, "").unwrap();
    assert!(matches!(Namespace::open(&path), Err(cni_netlink::namespace::NamespaceError::NotANamespace { .. })));
    Namespace::unpin(&path).unwrap();
}

#[test]
fn settings_belong_to_the_namespace_entered() {
    let space = Namespace::create().unwrap();
    let read = || sysctl::read("net/ipv4/conf/lo/forwarding").unwrap();
    space.within(|| sysctl::ensure("net/ipv4/conf/lo/forwarding", "1").unwrap()).unwrap();
    assert_eq!(space.within(read).unwrap(), "1");
    space.within(|| sysctl::ensure("net/ipv4/conf/lo/forwarding", "0").unwrap()).unwrap();
    assert_eq!(space.within(read).unwrap(), "0");
    assert!(matches!(sysctl::read("net/ipv4/conf/nope/x"), Err(sysctl::SysctlError::Missing(_))));
}
