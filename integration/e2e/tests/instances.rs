//! Two instances on one machine: neither takes anything of the other, running, coming or going.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use integration_e2e::cluster::{Cluster, LOCALHOST, eventually, http_get, ip};
use serde_json::Value;

const EVENTUALLY_SECONDS: u64 = 20;

/// The same for both: pods behind a Service with a NodePort.
const OBJECTS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: asks}
spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: 'e2e.local/tools:1'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: NAME, labels: {app: web}}
spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: 'e2e.local/tools:1'}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
";

fn populate(cluster: &Cluster, name: &str) -> Result<()> {
    cluster.import_tools()?;
    cluster.apply(&OBJECTS.replace("NAME", name))?;
    cluster.pod_ready("asks")?;
    cluster.pod_ready(name)?;
    Ok(())
}

/// All that a pod of the cluster and the machine itself can ask of it.
fn serves(cluster: &Cluster, name: &str) -> Result<()> {
    let soon = |what: &str, look: &dyn Fn() -> Result<String>| {
        eventually(EVENTUALLY_SECONDS, &format!("{what} of {name}"), || {
            let found = look()?;
            ensure!(found.trim_end() == name, "{found:?}");
            Ok(())
        })
    };
    soon("the Service's name, from a pod", &|| cluster.ask("asks", &["get", "http://web/hostname"]))?;
    let service = ip(&cluster.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"])?)?;
    soon("the Service, from the machine", &|| http_get((service, 80), "/hostname"))?;
    for address in [LOCALHOST, facts(cluster)?.0] {
        let port = node_port(cluster)?;
        soon(&format!("NodePort {port} at {address}"), &|| http_get((address, port), "/hostname"))?;
    }
    let (asks, web) = (cluster.pod_ready("asks")?, cluster.pod_ready(name)?);
    let seen = cluster.ask("asks", &["get", &format!("http://{web}:8080/client")])?;
    ensure!(seen == asks.to_string(), "{web} sees {seen} instead of {asks}");
    Ok(())
}

fn node_port(cluster: &Cluster) -> Result<u16> {
    Ok(cluster.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.ports[0].nodePort}"])?.parse()?)
}

/// The node's address, and everything that must be an instance's own.
fn facts(cluster: &Cluster) -> Result<(IpAddr, BTreeSet<String>)> {
    let path = cluster.root().join("config/instance.json");
    let record: Value = serde_json::from_slice(&std::fs::read(&path)?).with_context(|| path.display().to_string())?;
    let own = ["name", "api_port", "kubelet_port", "pod_cidr", "service_cidr", "bridge"];
    Ok((ip(record["node_ip"].as_str().unwrap_or_default())?, own.iter().map(|key| record[key].to_string()).collect()))
}

fn lives(cluster: &Cluster) -> Result<String> {
    let path = "jsonpath={range .items[*]}{.metadata.name} {.status.podIP} {.status.containerStatuses[*].containerID} \
                {.status.containerStatuses[*].restartCount}{'\\n'}{end}";
    cluster.kubectl(&["get", "pods", "-o", path])
}

#[test]
fn two_instances_side_by_side() -> Result<()> {
    let first = Cluster::start()?;
    let second = first.beside()?;
    second.up()?;
    let (of_first, of_second) = (facts(&first)?.1, facts(&second)?.1);
    assert!(of_first.is_disjoint(&of_second), "{of_first:?} and {of_second:?}");
    populate(&first, "one")?;
    populate(&second, "two")?;
    assert_ne!(node_port(&first)?, node_port(&second)?);
    serves(&first, "one")?;
    serves(&second, "two")?;

    // One machine has each port once: who comes second is told who has it, and gets it when it is free.
    let holder = "apiVersion: v1\nkind: Pod\nmetadata: {name: holder}\nspec: {terminationGracePeriodSeconds: 0, containers: [\
                  {name: c, image: 'e2e.local/tools:1', ports: [{containerPort: 8080, hostPort: 8088}]}]}\n";
    first.apply(holder)?;
    first.pod_ready("holder")?;
    second.apply(&holder.replace("holder", "waits"))?;
    eventually(EVENTUALLY_SECONDS, "the second says who has the port", || {
        let described = second.kubectl(&["describe", "pod", "waits"])?;
        ensure!(described.contains("host port 8088 belongs to container"), "{described}");
        Ok(())
    })?;
    assert_eq!(http_get((LOCALHOST, 8088), "/hostname")?.trim_end(), "holder");
    first.kubectl(&["delete", "pod", "holder"])?;
    second.pod_ready("waits")?;
    assert_eq!(http_get((LOCALHOST, 8088), "/hostname")?.trim_end(), "waits");
    second.kubectl(&["delete", "pod", "waits"])?;

    // One goes and comes back; the other does not notice.
    let before = lives(&second)?;
    let said = first.sampan(&["down"])?;
    assert_eq!(said.code, 0, "{}", said.all());
    serves(&second, "two")?;
    assert_eq!(lives(&second)?, before);

    // A third takes the networks that are free meanwhile; the first then says so instead of sharing them.
    let third = first.beside()?;
    let ports = ["--api-port", "16443", "--kubelet-port", "20250"];
    let said = third.sampan(&[&["up", "--no-kubeconfig", "--node-name", "node-1"], &ports[..]].concat())?;
    assert_eq!(said.code, 0, "{}", said.all());
    assert!(!facts(&third)?.1.is_disjoint(&of_first), "the networks of the first are free");
    let said = first.sampan(&["up", "--no-kubeconfig"])?;
    assert_ne!(said.code, 0, "{}", said.all());
    assert!(said.stderr.contains("is routed by") && said.stderr.contains("sampan down --purge"), "{}", said.stderr);
    drop(third);

    first.up()?;
    first.pod_ready("one")?;
    serves(&first, "one")?;
    serves(&second, "two")?;
    assert_eq!(lives(&second)?, before);
    drop(second);
    serves(&first, "one")
}
