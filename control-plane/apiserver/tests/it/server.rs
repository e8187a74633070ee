//! A server on a free port with its own directory, and kubectl pointed at it. Ends and removes everything when dropped.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::Arc,
};

use control_plane_apiserver::{ApiServer, Config, KubeletConfig, User};

use rustls_pki_types::{CertificateDer, pem::PemObject};

use crate::pki::Pki;

/// A fixed token of an administrator.
pub(crate) const ADMIN_TOKEN: &str = "admin-token";

pub(crate) struct Server {
    pub(crate) api: ApiServer,
    directory: tempfile::TempDir,
    kubeconfig: PathBuf,
    pub(crate) pki: Pki,
}

pub(crate) fn config(pki: &Pki, store: PathBuf) -> Config {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let tokens = [
        ("viewer-token".to_owned(), User::new("viewer", &[])),
        (ADMIN_TOKEN.to_owned(), User::new("admin", &["system:masters"])),
    ];
    Config {
        listen,
        tls_certificate: pki.server.certificate.clone().into_bytes(),
        tls_key: pki.server.key.clone().into_bytes(),
        client_ca: pki.ca.clone().into_bytes(),
        service_account_key: pki.service_account_key.clone().into_bytes(),
        service_account_issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
        audiences: vec!["https://kubernetes.default.svc.cluster.local".to_owned()],
        static_tokens: tokens.into_iter().collect(),
        kubelet: Some(KubeletConfig {
            certificate: pki.admin.certificate.clone().into_bytes(),
            key: pki.admin.key.clone().into_bytes(),
            ca: pki.ca.clone().into_bytes(),
            insecure: false,
        }),
        service_cidr: "10.43.0.0/16".parse().unwrap(),
        node_ports: (30000, 32767),
        node_ports_first: (30000, 32767),
        advertise: listen,
        store,
        history_seconds: 300,
    }
}

impl Server {
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::make().unwrap();
        let api = ApiServer::start(config(&pki, directory.path().join("state.db"))).await.unwrap();
        let kubeconfig = directory.path().join("kubeconfig");
        let url = format!("https://{}", api.address());
        std::fs::write(&kubeconfig, with_nobody(&pki.kubeconfig(&url, "admin", &pki.admin))).unwrap();
        Self { api, directory, kubeconfig, pki }
    }

    /// Ends the server and starts another on the same store.
    pub(crate) async fn restart(self) -> Self {
        let Self { api, directory, kubeconfig, pki } = self;
        api.stop().await;
        let api = ApiServer::start(config(&pki, directory.path().join("state.db"))).await.unwrap();
        let url = format!("https://{}", api.address());
        std::fs::write(&kubeconfig, with_nobody(&pki.kubeconfig(&url, "admin", &pki.admin))).unwrap();
        Self { api, directory, kubeconfig, pki }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A file with this text, for `-f`.
    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// A plain TLS connection to the server, for what no client library sends.
    pub(crate) async fn connect_tls(&self) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pki.ca.as_bytes()).unwrap()).unwrap();
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tcp = tokio::net::TcpStream::connect(self.api.address()).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        connector.connect("localhost".try_into().unwrap(), tcp).await.unwrap()
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("kubectl");
        command.args(words(line));
        command.env("KUBECONFIG", &self.kubeconfig).env("HOME", self.directory.path()).stdin(Stdio::null());
        command
    }

    /// Runs kubectl off the async threads; words may be quoted with '.
    pub(crate) async fn output(&self, line: &str) -> Output {
        let mut command = self.command(line);
        let outcome = tokio::task::spawn_blocking(move || command.output()).await.unwrap();
        outcome.expect("these tests need stock kubectl in PATH; install it first (see integration/test)")
    }

    /// What kubectl prints; it must succeed.
    #[track_caller]
    pub(crate) fn kubectl(&self, line: &str) -> impl Future<Output = String> {
        let at = std::panic::Location::caller();
        async move {
            let output = self.output(line).await;
            let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success(), "{at}: kubectl {line}\n{out}\n{err}");
            out.into_owned()
        }
    }

    /// What kubectl complains about; it must fail.
    #[track_caller]
    pub(crate) fn refused(&self, line: &str) -> impl Future<Output = String> {
        let at = std::panic::Location::caller();
        async move {
            let output = self.output(line).await;
            assert!(
                !output.status.success(),
                "{at}: kubectl {line} succeeded: {}",
                String::from_utf8_lossy(&output.stdout)
            );
            String::from_utf8_lossy(&output.stderr).into_owned()
        }
    }
}

/// Splits at blanks, except within single quotes.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    let mut started = false;
    for one in line.chars() {
        match one {
            '\'' => {
                quoted = !quoted;
                started = true;
            }
            ' ' if !quoted => {
                if started {
                    words.push(std::mem::take(&mut word));
                }
                started = false;
            }
            one => {
                word.push(one);
                started = true;
            }
        }
    }
    if started {
        words.push(word);
    }
    words
}

/// Adds a user without credentials, for `--user=none --token=...`.
fn with_nobody(kubeconfig: &str) -> String {
    format!("{kubeconfig}- name: none\n  user: {{}}\n")
}
