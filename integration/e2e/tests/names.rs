//! The cluster's names as a pod's own resolver sees them: Services, headless ones, aliases, the search path, and the names of the
//! outside through its name server.

use anyhow::{Context as _, Result, ensure};
use integration_e2e::cluster::{Cluster, eventually};
use integration_e2e::outside::{NAMES, OUTSIDE, Outside};

const EVENTUALLY_SECONDS: u64 = 20;

const OBJECTS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: asks, labels: {app: asks}}
spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: 'e2e.local/tools:1'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: one, labels: {app: web}}
spec: {terminationGracePeriodSeconds: 0, hostname: first, subdomain: crowd, containers: [{name: c, image: 'e2e.local/tools:1'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: two, labels: {app: web}}
spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: 'e2e.local/tools:1'}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.43.7.7, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: crowd}
spec: {clusterIP: None, selector: {app: web}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: alias}
spec: {type: ExternalName, externalName: outside.example}
---
apiVersion: v1
kind: Namespace
metadata: {name: elsewhere}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: elsewhere}
spec: {clusterIP: 10.43.8.8, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: own-dns}
spec: {terminationGracePeriodSeconds: 0, dnsPolicy: None, dnsConfig: {nameservers: [198.51.100.2], searches: [example]}, containers: [{name: c, image: 'e2e.local/tools:1'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: host-dns}
spec: {terminationGracePeriodSeconds: 0, hostNetwork: true, dnsPolicy: ClusterFirstWithHostNet, containers: [{name: c, image: 'e2e.local/tools:1', command: [/demo, '8180']}]}
---
apiVersion: v1
kind: Pod
metadata: {name: node-dns}
spec: {terminationGracePeriodSeconds: 0, dnsPolicy: Default, containers: [{name: c, image: 'e2e.local/tools:1'}]}
";

fn world() -> Result<(Cluster, Outside)> {
    let cluster = Cluster::prepare()?;
    let outside = Outside::connect(&cluster)?;
    cluster.up()?;
    cluster.import_tools()?;
    cluster.apply(OBJECTS)?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"])?;
    Ok((cluster, outside))
}

#[test]
fn pods_resolve_names() -> Result<()> {
    let (cluster, _outside) = world()?;
    let c = &cluster;
    let (one, two) = (c.pod_ready("one")?.to_string(), c.pod_ready("two")?.to_string());
    let mut both = [one.clone(), two.clone()];
    both.sort();
    let resolves = |pod: &str, name: &str, expect: &str| {
        eventually(EVENTUALLY_SECONDS, &format!("{pod} resolves {name}"), || {
            let found = c.ask(pod, &["resolve", name])?;
            ensure!(found.lines().collect::<Vec<_>>().join(" ") == expect, "{found:?} instead of {expect:?}");
            Ok(())
        })
    };
    let fails = |pod: &str, name: &str| {
        let said = c.ask(pod, &["resolve", name]);
        assert!(
            said.as_ref().is_err_and(|error| error.to_string().contains("resolve")),
            "{pod} resolves {name}: {said:?}"
        );
    };
    for name in
        ["web", "web.default", "web.default.svc", "web.default.svc.cluster.local", "web.default.svc.cluster.local."]
    {
        resolves("asks", name, "10.43.7.7")?;
    }
    resolves("asks", "web.elsewhere", "10.43.8.8")?;
    resolves("asks", "kubernetes.default.svc.cluster.local", "10.43.0.1")?;
    resolves("asks", "crowd", &both.join(" "))?;
    resolves("asks", "first.crowd", &one)?;
    resolves("one", "first.crowd.default.svc.cluster.local", &one)?;
    resolves("asks", &format!("{}.default.pod.cluster.local", two.replace('.', "-")), &two)?;
    let outside = OUTSIDE.to_string();
    resolves("asks", "outside.example", &outside)?;
    resolves("asks", "alias", &outside)?;
    fails("asks", "nobody.example");
    fails("asks", "nobody");
    // A client by name, all the way.
    let answer = c.ask("asks", &["get", "http://web/client"])?;
    assert_eq!(answer, c.pod_ready("asks")?.to_string());
    assert_eq!(c.ask("asks", &["get", "http://first.crowd:8080/hostname"])?, "first");

    resolves("own-dns", "outside", &outside)?;
    fails("own-dns", "web.default.svc.cluster.local");
    resolves("host-dns", "web", "10.43.7.7")?;
    resolves("host-dns", "outside.example", &outside)?;
    resolves("node-dns", "outside.example", &outside)?;
    fails("node-dns", "web.default.svc.cluster.local");
    let resolv_conf = c.kubectl(&["exec", "asks", "--", "cat", "/etc/resolv.conf"])?;
    let expect = "search default.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.43.0.10\n\
                  options ndots:5";
    assert_eq!(resolv_conf, expect);
    let hosts = c.kubectl(&["exec", "one", "--", "cat", "/etc/hosts"])?;
    assert!(hosts.contains(&format!("{one}\tfirst.crowd.default.svc.cluster.local\tfirst")), "{hosts}");

    // Records that no address lookup shows, with a second resolver's eyes.
    let lookup = |kind: &str, name: &str| {
        let found = c.kubectl(&["exec", "asks", "--", "nslookup", &format!("-type={kind}"), name]);
        found.with_context(|| format!("nslookup -type={kind} {name}"))
    };
    let found = lookup("srv", "_http._tcp.web.default.svc.cluster.local")?;
    assert!(found.contains("0 100 80 web.default.svc.cluster.local"), "{found}");
    let found = lookup("srv", "_http._tcp.crowd.default.svc.cluster.local")?;
    assert!(found.contains("50 8080 first.crowd.default.svc.cluster.local"), "{found}");
    assert!(found.contains(&format!("50 8080 {}.crowd.default.svc.cluster.local", two.replace('.', "-"))), "{found}");
    let found = lookup("ptr", "7.7.43.10.in-addr.arpa")?;
    assert!(found.contains("web.default.svc.cluster.local"), "{found}");
    let found = lookup("cname", "alias.default.svc.cluster.local")?;
    assert!(found.contains("outside.example"), "{found}");

    // A headless Service follows its pods; a name server outside that is gone is no name server.
    c.kubectl(&["delete", "pod", "two"])?;
    resolves("asks", "crowd", &one)?;
    c.kubectl(&["delete", "service", "web"])?;
    eventually(EVENTUALLY_SECONDS, "a deleted Service has no name", || {
        let found = c.ask("asks", &["resolve", "web"]);
        ensure!(found.is_err(), "{found:?}");
        Ok(())
    })?;
    let (other, address) = NAMES[1];
    resolves("asks", other, &address.to_string())
}
