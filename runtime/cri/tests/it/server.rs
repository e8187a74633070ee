//! One server for a test: a process that can be killed, its directory, cgroups and network. All of it is gone on drop.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use runtime_cri::{Cni, Config, StreamListen};
use runtime_cri_api::v1::image_service_client::ImageServiceClient;
use runtime_cri_api::v1::runtime_service_client::RuntimeServiceClient;
use runtime_cri_api::v1::*;
use runtime_linux::cgroup::{Cgroup, Hierarchy};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::image;

/// Where the server's process finds its directory; see [`serve`].
const DIRECTORY: &str = "SAMPAN_CRI_TEST_DIRECTORY";
/// Its cgroup.
const CGROUP: &str = "SAMPAN_CRI_TEST_CGROUP";
/// Where it serves streams: loopback if set.
const LOOPBACK: &str = "SAMPAN_CRI_TEST_LOOPBACK";

/// No wait of these tests takes longer on a machine that does nothing else.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Server {
    pub(crate) runtime: RuntimeServiceClient<Channel>,
    pub(crate) images: ImageServiceClient<Channel>,
    dir: tempfile::TempDir,
    cgroup: String,
    process: Child,
    loopback: bool,
}

impl Server {
    /// Answers, with the image [`image::NAME`] and without a pod network.
    pub(crate) async fn start() -> Self {
        Self::with(false).await
    }

    /// The same with streams on loopback.
    pub(crate) async fn on_loopback() -> Self {
        Self::with(true).await
    }

    async fn with(loopback: bool) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("run as root");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        raise_loopback();
        let dir = tempfile::Builder::new().prefix("sampan-cri-").tempdir().unwrap();
        let cgroup = format!("/sampan-cri-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        image::write_layout(&dir.path().join("image"));
        fs::create_dir(dir.path().join("cni")).unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        for plugin in ["bridge", "host-local", "portmap"] {
            symlink(program("sampan-cni"), dir.path().join("bin").join(plugin)).unwrap();
        }
        let process = launch(dir.path(), &cgroup, loopback);
        let channel = connect(&dir.path().join("run/cri.sock")).await;
        let (runtime, images) = clients(channel);
        Self { runtime, images, dir, cgroup, process, loopback }
    }

    /// The server's process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Ends the server at once, whatever it does.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts it again over what it left.
    pub(crate) async fn start_again(&mut self) {
        self.process = launch(self.dir.path(), &self.cgroup, self.loopback);
        let channel = connect(&self.socket()).await;
        (self.runtime, self.images) = clients(channel);
    }

    pub(crate) async fn restart(&mut self) {
        self.kill();
        self.start_again().await;
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("run/cri.sock")
    }

    pub(crate) fn pod_dir(&self, sandbox: &str) -> PathBuf {
        self.path("run/pods").join(sandbox)
    }

    pub(crate) fn cgroup(&self, below: &str) -> Cgroup {
        Cgroup::new(&Hierarchy::detect().unwrap(), &format!("{}{below}", self.cgroup)).unwrap()
    }

    /// What the server has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// A pod in this test's network, by name.
    pub(crate) fn pod(&self, name: &str) -> PodSandboxConfig {
        let namespaces = NamespaceOption {
            network: NamespaceMode::Node.into(),
            pid: NamespaceMode::Container.into(),
            ..NamespaceOption::default()
        };
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: format!("{name}-uid"),
                namespace: "default".into(),
                attempt: 0,
            }),
            log_directory: self.path("logs").display().to_string(),
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces),
                    ..LinuxSandboxSecurityContext::default()
                }),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        }
    }

    pub(crate) async fn run_pod(&mut self, config: PodSandboxConfig) -> String {
        self.try_run_pod(config).await.unwrap()
    }

    pub(crate) async fn try_run_pod(&mut self, config: PodSandboxConfig) -> Result<String, tonic::Status> {
        let request = RunPodSandboxRequest { config: Some(config), ..Default::default() };
        Ok(self.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    pub(crate) async fn create(&mut self, sandbox: &str, config: ContainerConfig) -> String {
        self.try_create(sandbox, config).await.unwrap()
    }

    pub(crate) async fn try_create(&mut self, sandbox: &str, config: ContainerConfig) -> Result<String, tonic::Status> {
        let request =
            CreateContainerRequest { pod_sandbox_id: sandbox.into(), config: Some(config), sandbox_config: None };
        Ok(self.runtime.create_container(request).await?.into_inner().container_id)
    }

    pub(crate) async fn start_container(&mut self, id: &str) -> Result<(), tonic::Status> {
        self.runtime.start_container(StartContainerRequest { container_id: id.into() }).await.map(drop)
    }

    /// A running container of the pod.
    pub(crate) async fn run(&mut self, sandbox: &str, config: ContainerConfig) -> String {
        let id = self.create(sandbox, config).await;
        self.start_container(&id).await.unwrap();
        id
    }

    pub(crate) async fn stop_container(&mut self, id: &str, timeout: i64) -> Result<(), tonic::Status> {
        self.runtime.stop_container(StopContainerRequest { container_id: id.into(), timeout }).await.map(drop)
    }

    pub(crate) async fn remove_container(&mut self, id: &str) -> Result<(), tonic::Status> {
        self.runtime.remove_container(RemoveContainerRequest { container_id: id.into() }).await.map(drop)
    }

    pub(crate) async fn stop_pod(&mut self, id: &str) -> Result<(), tonic::Status> {
        self.runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id.into() }).await.map(drop)
    }

    pub(crate) async fn remove_pod(&mut self, id: &str) -> Result<(), tonic::Status> {
        self.runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id.into() }).await.map(drop)
    }

    pub(crate) async fn status(&mut self, id: &str) -> ContainerStatus {
        let request = ContainerStatusRequest { container_id: id.into(), verbose: false };
        self.runtime.container_status(request).await.unwrap().into_inner().status.unwrap()
    }

    pub(crate) async fn pod_status(&mut self, id: &str) -> PodSandboxStatus {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false };
        self.runtime.pod_sandbox_status(request).await.unwrap().into_inner().status.unwrap()
    }

    /// Ids and states of all sandboxes.
    pub(crate) async fn pods(&mut self) -> Vec<(String, PodSandboxState)> {
        let listed = self.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap();
        listed.into_inner().items.into_iter().map(|item| (item.id.clone(), item.state())).collect()
    }

    /// Ids and states of all containers.
    pub(crate) async fn containers(&mut self) -> Vec<(String, ContainerState)> {
        let listed = self.runtime.list_containers(ListContainersRequest::default()).await.unwrap();
        listed.into_inner().containers.into_iter().map(|item| (item.id.clone(), item.state())).collect()
    }

    pub(crate) async fn until_exited(&mut self, id: &str) -> ContainerStatus {
        let deadline = Instant::now().checked_add(PATIENCE).unwrap();
        loop {
            let status = self.status(id).await;
            if status.state() == ContainerState::ContainerExited {
                return status;
            }
            assert!(Instant::now() < deadline, "{id} does not end: {}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn exec(&mut self, id: &str, command: &[&str]) -> Result<ExecSyncResponse, tonic::Status> {
        self.exec_within(id, command, 30).await
    }

    pub(crate) async fn exec_within(
        &mut self,
        id: &str,
        command: &[&str],
        timeout: i64,
    ) -> Result<ExecSyncResponse, tonic::Status> {
        let cmd = command.iter().map(ToString::to_string).collect();
        let request = ExecSyncRequest { container_id: id.into(), cmd, timeout };
        Ok(self.runtime.exec_sync(request).await?.into_inner())
    }

    /// The standard output of a command that succeeds.
    pub(crate) async fn said(&mut self, id: &str, command: &[&str]) -> String {
        let answer = self.exec(id, command).await.unwrap();
        assert_eq!(answer.exit_code, 0, "{command:?}: {}", String::from_utf8_lossy(&answer.stderr));
        String::from_utf8(answer.stdout).unwrap()
    }

    /// The process of a pod's shim.
    pub(crate) fn shim_pid(&self, sandbox: &str) -> Pid {
        let text = fs::read_to_string(self.pod_dir(sandbox).join("shim.pid")).unwrap();
        Pid::from_raw(text.trim().parse().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended = self.process.kill();
        let _reaped = self.process.wait();
        if std::thread::panicking() {
            eprintln!("the server's log:\n{}", self.log());
        }
        let cgroup = self.cgroup("");
        for pid in cgroup.pids_recursive().unwrap_or_default() {
            let _woken = kill(Pid::from_raw(pid), Signal::SIGCONT);
        }
        let _killed = cgroup.kill();
        let _removed = cgroup.remove();
        for mounted in mounts_below(self.dir.path()) {
            let _unmounted = nix::mount::umount2(&mounted, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

/// A container of the test image that runs a command of its shell.
pub(crate) fn shell(name: &str, script: &str) -> ContainerConfig {
    command(name, &["/bin/sh", "-c", script])
}

pub(crate) fn command(name: &str, words: &[&str]) -> ContainerConfig {
    let namespaces = NamespaceOption {
        network: NamespaceMode::Node.into(),
        pid: NamespaceMode::Container.into(),
        ..NamespaceOption::default()
    };
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(ImageSpec { image: image::NAME.into(), ..ImageSpec::default() }),
        command: words.iter().map(ToString::to_string).collect(),
        log_path: format!("{name}.log"),
        linux: Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(namespaces),
                ..LinuxContainerSecurityContext::default()
            }),
            ..LinuxContainerConfig::default()
        }),
        ..ContainerConfig::default()
    }
}

/// The container's security context, to be changed.
pub(crate) fn security(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap()
}

/// Looks again and again until something is so.
pub(crate) async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now().checked_add(PATIENCE).unwrap();
    while !is_so().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// With a kubelet's limit for an answer.
fn clients(channel: Channel) -> (RuntimeServiceClient<Channel>, ImageServiceClient<Channel>) {
    let runtime = RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(16 << 20);
    (runtime, ImageServiceClient::new(channel))
}

/// The gRPC channel, once the server answers.
async fn connect(socket: &Path) -> Channel {
    let path = socket.to_owned();
    let endpoint = Endpoint::from_static("http://localhost");
    let deadline = Instant::now().checked_add(PATIENCE).unwrap();
    loop {
        let path = path.clone();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        if let Ok(channel) = endpoint.connect_with_connector(connector).await {
            // It listens before it answers: pods are taken over in between.
            let asked = RuntimeServiceClient::new(channel.clone()).version(VersionRequest::default()).await;
            if asked.is_ok() {
                return channel;
            }
        }
        let log = socket.parent().and_then(Path::parent).map(|dir| fs::read_to_string(dir.join("log")));
        assert!(Instant::now() < deadline, "the server does not answer: {log:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn launch(dir: &Path, cgroup: &str, loopback: bool) -> Child {
    let log = File::options().append(true).create(true).open(dir.join("log")).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "server::serve", "--ignored", "--nocapture"]).env(DIRECTORY, dir).env(CGROUP, cgroup);
    if loopback {
        command.env(LOOPBACK, "1");
    }
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}

/// The server's process.
#[test]
#[ignore = "the process that the other tests start"]
fn serve() {
    let Some(dir) = std::env::var_os(DIRECTORY).map(PathBuf::from) else { return };
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let cni = Cni {
            conf_dir: dir.join("cni"),
            bin_dirs: vec![dir.join("bin")],
            template: None,
            timeout: Duration::from_secs(20),
        };
        let mut config = Config::new(&dir.join("data"), dir.join("run"), program("sampan-shim"), cni);
        config.cgroup_root = std::env::var(CGROUP).unwrap();
        config.images.registries_dir = Some(dir.join("registries.d"));
        if std::env::var_os(LOOPBACK).is_some() {
            config.streams = StreamListen::any_loopback_port();
        }
        let images = runtime_images::Images::open(config.images.clone()).unwrap();
        if images.resolve(image::NAME).is_none() {
            let name = runtime_images::Reference::parse(image::NAME).unwrap();
            images.import(&dir.join("image"), Some(&name)).await.unwrap();
        }
        runtime_cri::run_with_images(config, images, CancellationToken::new()).await.unwrap();
    });
}

/// A program of this workspace: of the distribution or of the profile that this test was built with, whichever is newer.
pub(crate) fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let places = own.ancestors().skip(1).flat_map(|dir| [dir.join(name), dir.join("dist").join(name)]);
    let newest =
        places.filter(|path| path.is_file()).max_by_key(|path| fs::metadata(path).unwrap().modified().unwrap());
    newest.unwrap_or_else(|| panic!("no {name} above this test: cargo build -p runtime-shim -p cni-plugin"))
}

fn raise_loopback() {
    use cni_netlink::rtnetlink::{Batch, Rtnetlink};
    let mut socket = Rtnetlink::open().unwrap();
    let index = socket.link("lo").unwrap().unwrap().index;
    let mut batch = Batch::default();
    // The kernel gives the address itself.
    batch.set_up(index);
    socket.apply(&batch).unwrap();
}

/// Mount points below a directory, deepest first.
pub(crate) fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let mut found: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4).map(PathBuf::from))
        .filter(|path| path.starts_with(dir))
        .collect();
    found.reverse();
    found
}
