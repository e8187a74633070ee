//! The cost of many Services. Run by hand in release: `cargo test --release -- --ignored --nocapture`.

use std::time::Instant;

use cni_netlink::Namespace;
use cni_services::proxy::Proxy;
use nix::time::{ClockId, clock_gettime};
use serde_json::json;

use crate::node::settings;
use crate::objects::{catalog, endpoint, name, service, slice};

fn cpu_milliseconds() -> i64 {
    let now = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap();
    now.tv_sec() * 1000 + now.tv_nsec() / 1_000_000
}

#[test]
#[ignore = "a measurement, not a test"]
fn ten_thousand_services_with_ten_endpoints() {
    let node = Namespace::create().unwrap();
    let count = 10_000_u32;
    let objects = (0..count).map(|number| {
        let [_, _, high, low] = number.to_be_bytes();
        let spec = json!({"clusterIP": format!("10.43.{high}.{low}"), "ports": [{"port": 80}]});
        let endpoints: Vec<_> = (0..10).map(|last| endpoint(&format!("10.42.{}.{}", number % 250, last + 2))).collect();
        let name = format!("s{number}");
        (service(&name, &spec), vec![slice(&name, &[("", 8080, "TCP")], &endpoints)])
    });
    let mut catalog = catalog(objects.collect());
    let mut proxy = Proxy::new(settings());
    let (begin, cpu) = (Instant::now(), cpu_milliseconds());
    for number in 0..count {
        let name = name(&format!("s{number}"));
        proxy.set(&name, catalog.get(&name));
    }
    let planned = cpu_milliseconds();
    node.within(|| proxy.apply()).unwrap().unwrap();
    println!(
        "plan {} ms CPU, program {} ms CPU, wall {:?}",
        planned - cpu,
        cpu_milliseconds() - planned,
        begin.elapsed()
    );
    let begin = Instant::now();
    let spec = json!({"clusterIP": "10.43.250.1", "ports": [{"port": 80}]});
    catalog.service_event(kube::runtime::watcher::Event::Apply(service("new", &spec)));
    catalog.slice_event(kube::runtime::watcher::Event::Apply(slice(
        "new",
        &[("", 1, "TCP")],
        &[endpoint("10.42.0.2")],
    )));
    proxy.set(&name("new"), catalog.get(&name("new")));
    node.within(|| proxy.apply()).unwrap().unwrap();
    println!("one more: {:?}", begin.elapsed());
    let begin = Instant::now();
    catalog.slice_event(kube::runtime::watcher::Event::Apply(slice(
        "new",
        &[("", 1, "TCP")],
        &[endpoint("10.42.0.3")],
    )));
    proxy.set(&name("new"), catalog.get(&name("new")));
    node.within(|| proxy.apply()).unwrap().unwrap();
    println!("its endpoint replaced: {:?}", begin.elapsed());
}
