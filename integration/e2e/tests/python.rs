//! The Python client of Debian's `python3-kubernetes`: written by others, some releases old, and in wide use.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use integration_e2e::cluster::Cluster;

#[test]
fn a_pods_life() -> Result<()> {
    let cluster = Cluster::start()?;
    let image = cluster.import_busybox()?;
    // The system's own Python: another first in the path would not find Debian's packages.
    let output = Command::new("timeout")
        .args(["-k", "1", "120", "/usr/bin/python3", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/client.py")])
        .arg(cluster.kubeconfig())
        .arg(image)
        .env("HOME", cluster.root())
        .output()
        .context("start Python")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && said.contains("all is well"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
