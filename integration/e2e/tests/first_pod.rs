//! From nothing to a served page: the shortest way through every room.

use anyhow::{Context, Result};
use integration_e2e::cluster::{Cluster, eventually, http_get, ip};

const DEMO: &str = include_str!("../../demo/demo.yaml");

#[test]
fn a_page_through_its_service() -> Result<()> {
    let cluster = Cluster::start()?;
    let image = cluster.import_demo()?;
    cluster.apply(DEMO)?;
    cluster.kubectl(&["rollout", "status", "deployment/demo", "--timeout=60s"])?;
    let service = ip(&cluster.kubectl(&["get", "service", "demo", "-o", "jsonpath={.spec.clusterIP}"])?)?;
    let page = eventually(10, "a page from the Service", || http_get((service, 80), "/"))?;
    assert!(page.contains("It floats"), "{page}");
    let node = ip(&cluster.kubectl(&["get", "node", "node-1", "-o", "jsonpath={.status.addresses[0].address}"])?)?;
    let port = cluster.kubectl(&["get", "service", "demo", "-o", "jsonpath={.spec.ports[0].nodePort}"])?;
    let page = http_get((node, port.parse().context("the node port")?), "/hostname")?;
    assert!(page.starts_with("demo-"), "{page}");
    // As `integration/up` says to go on: nothing tells kubectl that no registry has this image.
    cluster.kubectl(&["create", "deployment", "web", &format!("--image={image}")])?;
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    Ok(())
}
