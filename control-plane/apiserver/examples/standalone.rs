//! An API server by itself, with certificates of its own: `cargo run -p control-plane-apiserver --example standalone -- DIR [PORT]`.
//!
//! Writes `DIR/admin.kubeconfig`, and `DIR/pki/` with the CA, a client certificate for kubelets of the node `node-1`
//! (`DIR/node-1.kubeconfig`) and the server's own. For development and for the tests of its neighbours; `sampan up` does this
//! for real.

#![allow(clippy::print_stdout, reason = "standard output is this program's data")]

#[path = "standalone/pki.rs"]
mod pki;

use std::{net::SocketAddr, path::PathBuf};

use control_plane_apiserver::{ApiServer, Config, KubeletConfig};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().ok_or("usage: standalone DIR [PORT]")?);
    let port: u16 = arguments.next().map_or(Ok(6443), |port| port.parse())?;
    let pki = pki::Pki::ensure(&directory.join("pki"))?;
    let listen = SocketAddr::from(([127, 0, 0, 1], port));
    let config = Config {
        listen,
        tls_certificate: pki.server.certificate.clone().into_bytes(),
        tls_key: pki.server.key.clone().into_bytes(),
        client_ca: pki.ca.clone().into_bytes(),
        service_account_key: pki.service_account_key.clone().into_bytes(),
        service_account_issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
        audiences: vec!["https://kubernetes.default.svc.cluster.local".to_owned()],
        static_tokens: std::collections::BTreeMap::new(),
        kubelet: Some(KubeletConfig {
            certificate: pki.admin.certificate.clone().into_bytes(),
            key: pki.admin.key.clone().into_bytes(),
            ca: pki.ca.clone().into_bytes(),
            insecure: true,
        }),
        service_cidr: "10.43.0.0/16".parse()?,
        node_ports: (30000, 32767),
        node_ports_first: (30000, 32767),
        advertise: listen,
        store: directory.join("state.db"),
        history_seconds: 300,
    };
    let server = ApiServer::start(config).await?;
    let url = format!("https://{}", server.address());
    std::fs::write(directory.join("admin.kubeconfig"), pki.kubeconfig(&url, "admin", &pki.admin))?;
    std::fs::write(directory.join("node-1.kubeconfig"), pki.kubeconfig(&url, "node-1", &pki.node))?;
    println!("serving on {url}; kubectl --kubeconfig {}", directory.join("admin.kubeconfig").display());
    let stopped = server.stopped();
    tokio::select! {
        signal = tokio::signal::ctrl_c() => signal?,
        () = stopped.cancelled() => {}
    }
    server.stop().await;
    Ok(())
}
