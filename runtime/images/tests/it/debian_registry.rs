//! A real `docker-registry` process on a free loopback port, with storage of its own. Ends with its guard.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use runtime_images::{Auth, Kind, Progress, Reference};
use tempfile::TempDir;

use crate::sample::{Sample, Store, told};

/// bcrypt of "secret"
const HTPASSWD: &str = "ann:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";
const START_TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) struct DebianRegistry {
    process: Child,
    pub(crate) port: u16,
    pub(crate) dir: TempDir,
}

#[derive(Clone, Copy, Default)]
pub(crate) struct Options {
    pub(crate) tls: bool,
    pub(crate) password: bool,
}

impl DebianRegistry {
    pub(crate) fn start(options: Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            path("storage")
        );
        if options.tls {
            write_certificates(&dir);
            config.push_str(&format!("  tls: {{certificate: {}, key: {}}}\n", path("server.crt"), path("server.key")));
        }
        if options.password {
            fs::write(dir.path().join("htpasswd"), HTPASSWD).unwrap();
            config.push_str(&format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", path("htpasswd")));
        }
        fs::write(dir.path().join("config.yml"), config).unwrap();
        let process = Command::new("docker-registry")
            .args(["serve", &path("config.yml")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed (Debian package docker-registry)");
        let registry = Self { process, port, dir };
        let deadline = Instant::now().checked_add(START_TIMEOUT).expect("a clock that is not near its end");
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "docker-registry does not listen");
            std::thread::yield_now();
        }
        registry
    }

    pub(crate) fn reference(&self, name: &str) -> Reference {
        Reference::parse(&format!("127.0.0.1:{}/{name}", self.port)).unwrap()
    }
}

impl Drop for DebianRegistry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn write_certificates(dir: &TempDir) {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let server = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    let server = server.signed_by(&key, &authority).unwrap();
    fs::write(dir.path().join("ca.crt"), authority.pem()).unwrap();
    fs::write(dir.path().join("server.crt"), server.pem()).unwrap();
    fs::write(dir.path().join("server.key"), key.serialize_pem()).unwrap();
}

/// Puts a sample into a store and from there into a registry.
async fn push(store: &Store, sample: &Sample, reference: &Reference, auth: Option<Auth>) {
    let layout = tempfile::tempdir().unwrap();
    sample.write_layout(layout.path(), "local/sample:v1");
    store.images.import(layout.path(), None).await.unwrap();
    store.images.push("local/sample:v1", reference, auth).await.unwrap();
}

#[tokio::test]
async fn plain_http_on_loopback() {
    let registry = DebianRegistry::start(Options::default());
    let (sender, receiver) = (Store::new(), Store::new());
    let sample = Sample::small();
    let reference = registry.reference("team/app:v1");
    push(&sender, &sample, &reference, None).await;

    let image = receiver.images.pull(&reference, None, Progress::silent()).await.unwrap();
    assert_eq!(image.id.to_string(), sample.config);
    assert_eq!(image.tags, [reference.to_string()]);
    assert_eq!(image.digests, [format!("{}@{}", reference.name(), sample.manifest_digest())]);
    assert_eq!(image.config.config().as_ref().unwrap().user().as_deref(), Some("12:34"));

    let by_digest = reference.with_digest(sample.manifest_digest().parse().unwrap());
    let again = receiver.images.pull(&by_digest, None, Progress::silent()).await.unwrap();
    assert_eq!(again.id, image.id);

    let missing = receiver.images.pull(&registry.reference("team/app:v2"), None, Progress::silent()).await.unwrap_err();
    assert_eq!(missing.kind(), Kind::NotFound);
    assert!(told(&missing).contains("team/app:v2"), "{}", told(&missing));
    let missing = receiver.images.pull(&registry.reference("nobody/app"), None, Progress::silent()).await.unwrap_err();
    assert_eq!(missing.kind(), Kind::NotFound);
}

#[tokio::test]
async fn https_with_own_authority_and_password() {
    let registry = DebianRegistry::start(Options { tls: true, password: true });
    let name = format!("localhost:{}", registry.port);
    let registries = tempfile::tempdir().unwrap();
    let store = Store::with(|config| config.registries_dir = Some(registries.path().to_owned()));
    let reference = Reference::parse(&format!("{name}/team/app:v1")).unwrap();
    let auth = || Some(Auth::basic("ann", "secret"));

    let untrusted = store.images.pull(&reference, auth(), Progress::silent()).await.unwrap_err();
    assert_eq!(untrusted.kind(), Kind::Tls, "{}", told(&untrusted));
    assert!(told(&untrusted).contains("ca = \"ca.crt\""), "{}", told(&untrusted));

    // The configuration is read again for each pull.
    fs::create_dir(registries.path().join(&name)).unwrap();
    fs::copy(registry.dir.path().join("ca.crt"), registries.path().join(&name).join("ca.crt")).unwrap();
    fs::write(registries.path().join(&name).join("hosts.toml"), "ca = \"ca.crt\"\n").unwrap();
    push(&store, &Sample::small(), &reference, auth()).await;
    let image = store.images.pull(&reference, auth(), Progress::silent()).await.unwrap();
    assert_eq!(image.id.to_string(), Sample::small().config);

    let anonymous = store.images.pull(&reference, None, Progress::silent()).await.unwrap_err();
    assert_eq!(anonymous.kind(), Kind::Unauthorized);
    assert!(told(&anonymous).contains("wants credentials"), "{}", told(&anonymous));
    let wrong = Some(Auth::basic("ann", "wrong"));
    let wrong = store.images.pull(&reference, wrong, Progress::silent()).await.unwrap_err();
    assert_eq!(wrong.kind(), Kind::Unauthorized);
    assert!(told(&wrong).contains("refuses these credentials"), "{}", told(&wrong));
}

#[tokio::test]
async fn https_that_is_listed_as_insecure() {
    let registry = DebianRegistry::start(Options { tls: true, password: false });
    let store = Store::with(|config| config.insecure_registries = vec![format!("127.0.0.1:{}", registry.port)]);
    let reference = registry.reference("app");
    push(&store, &Sample::small(), &reference, None).await;
    store.images.pull(&reference, None, Progress::silent()).await.unwrap();
}
