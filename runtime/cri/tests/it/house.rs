//! A house for one test: namespaces, directories, a server in it, and a guard that takes all of it away again.

mod image;
mod requests;
mod server;

use std::collections::BTreeSet;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use runtime_cri::{Cni, CniTemplate, Config};
use runtime_cri_api::v1::image_service_client::ImageServiceClient;
use runtime_cri_api::v1::runtime_service_client::RuntimeServiceClient;
use runtime_cri_api::v1::{NetworkConfig, RuntimeConfig, UpdateRuntimeConfigRequest};
use tonic::transport::{Channel, Endpoint, Uri};

pub(crate) use image::NAME as IMAGE;
pub(crate) use server::Process;

pub(crate) type Runtime = RuntimeServiceClient<Channel>;

/// Longest wait for anything that should come at once.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct House {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) cgroup_root: String,
}

impl House {
    /// Moves this thread, and all it starts, into network and mount namespaces of its own.
    fn enter() -> Self {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("tests run as root");
        let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&Path>, "/", None::<&Path>, flags, None::<&Path>).unwrap();
        let mut socket = cni_netlink::Rtnetlink::open().unwrap();
        let index = socket.link("lo").unwrap().unwrap().index;
        let mut batch = cni_netlink::Batch::default();
        batch.set_up(index);
        socket.apply(&batch).unwrap();
        let dir = tempfile::Builder::new().prefix("sampan-cri-").tempdir().unwrap();
        let name = dir.path().file_name().unwrap().to_string_lossy().into_owned();
        let house = Self { dir, cgroup_root: format!("/{name}") };
        let plugins = house.dir.path().join("plugins");
        std::fs::create_dir_all(&plugins).unwrap();
        for name in ["bridge", "host-local", "loopback", "portmap"] {
            std::os::unix::fs::symlink(built("sampan-cni"), plugins.join(name)).unwrap();
        }
        house
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn config(&self) -> Config {
        config(self.dir.path(), &self.cgroup_root)
    }

    pub(crate) async fn connect(&self) -> Runtime {
        RuntimeServiceClient::new(self.channel().await).max_decoding_message_size(64 << 20)
    }

    pub(crate) async fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel().await)
    }

    async fn channel(&self) -> Channel {
        let socket = self.path("run/cri.sock");
        Endpoint::from_static("http://cri")
            .connect_with_connector(tower::service_fn(move |_: Uri| {
                let socket = socket.clone();
                async move {
                    Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(
                        tokio::net::UnixStream::connect(socket).await?,
                    ))
                }
            }))
            .await
            .unwrap()
    }

    /// Gives the node its pod range.
    pub(crate) async fn give_range(&self, runtime: &mut Runtime) {
        let network_config = Some(NetworkConfig { pod_cidr: "10.77.0.0/24".into() });
        let request = UpdateRuntimeConfigRequest { runtime_config: Some(RuntimeConfig { network_config }) };
        runtime.update_runtime_config(request).await.unwrap();
    }

    /// Everything a pod may leave behind, by name; equal before and after means nothing was.
    pub(crate) fn traces(&self) -> BTreeSet<String> {
        let mut traces = BTreeSet::new();
        let mut list = |wanted: &dyn Fn(&Path) -> bool, dir: PathBuf| {
            for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
                if wanted(&entry.path()) {
                    traces.insert(entry.path().display().to_string());
                }
            }
        };
        for name in ["run/pods", "data/cri/sandboxes", "data/cri/containers", "data/images/snapshots", "data/images/s"]
        {
            list(&|_| true, self.path(name));
        }
        for controller in ["memory", "pids", "unified", "."] {
            for name in ["pods", "shims"] {
                list(
                    &|entry| entry.is_dir(),
                    Path::new("/sys/fs/cgroup").join(controller).join(&self.cgroup_root[1..]).join(name),
                );
            }
        }
        for entry in std::fs::read_dir(self.path("leases/test")).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.parse::<std::net::IpAddr>().is_ok() {
                traces.insert(format!("lease {name}"));
            }
        }
        for line in std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines() {
            let at = line.split(' ').nth(4).unwrap_or_default();
            if at.starts_with(&self.dir.path().display().to_string()) {
                traces.insert(format!("mount {at}"));
            }
        }
        for link in cni_netlink::Rtnetlink::open().unwrap().links().unwrap() {
            if link.name.starts_with("veth") {
                traces.insert(format!("link {}", link.name));
            }
        }
        for (pid, words) in processes() {
            if words.contains(&self.dir.path().display().to_string()) && words.contains("sampan-shim") {
                traces.insert(format!("process {pid}"));
            }
        }
        traces
    }
}

impl Drop for House {
    fn drop(&mut self) {
        let marker = self.dir.path().display().to_string();
        let hierarchy = runtime_linux::cgroup::Hierarchy::detect().unwrap();
        let cgroup = runtime_linux::cgroup::Cgroup::new(&hierarchy, &self.cgroup_root).unwrap();
        for (pid, words) in processes() {
            if words.contains(&marker) && words.contains("sampan-shim") {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
        }
        if cgroup.exists() {
            let _ = cgroup.kill();
            let _ = cgroup.remove();
        }
        // Mounts are private to this thread's namespace, but the directory cannot go while they stand.
        let table = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
        for line in table.lines().rev() {
            let at = line.split(' ').nth(4).unwrap_or_default();
            if at.starts_with(&marker) {
                let _ = nix::mount::umount2(at, nix::mount::MntFlags::MNT_DETACH);
            }
        }
    }
}

fn processes() -> Vec<(i32, String)> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_string_lossy().parse().ok()?;
            let words = std::fs::read(entry.path().join("cmdline")).ok()?;
            Some((pid, String::from_utf8_lossy(&words).replace('\0', " ")))
        })
        .collect()
}

/// A program of this build.
fn built(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let path = own.ancestors().nth(2).unwrap().join(name);
    assert!(path.is_file(), "{} is missing: cargo build -p runtime-shim -p cni-plugin", path.display());
    path
}

fn config(dir: &Path, cgroup_root: &str) -> Config {
    let cni = Cni {
        conf_dir: dir.join("net.d"),
        bin_dirs: vec![dir.join("plugins")],
        template: Some(CniTemplate {
            network: "test".into(),
            bridge: "test0".into(),
            leases_dir: dir.join("leases"),
            bridge_options: serde_json::Map::new(),
            chained: Vec::new(),
        }),
        timeout: Duration::from_secs(20),
    };
    let mut config = Config::new(&dir.join("data"), dir.join("run"), built("sampan-shim"), cni);
    cgroup_root.clone_into(&mut config.cgroup_root);
    config
}

/// Runs a test in a house with a server and the test's image.
pub(crate) fn with_server<F: Future<Output = ()>>(test: impl FnOnce(House, Runtime) -> F) {
    let house = House::enter();
    image::write(&house.path("image.tar"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let server = server::InProcess::start(&house).await;
        let mut client = house.connect().await;
        house.give_range(&mut client).await;
        test(house, client).await;
        server.stop().await;
    });
    runtime.shutdown_background();
}

/// Runs a test in a house whose server is a process of its own, to be killed and started again.
pub(crate) fn with_process<F: Future<Output = ()>>(test: impl FnOnce(House, Process) -> F) {
    let house = House::enter();
    image::write(&house.path("image.tar"));
    let process = Process::start(&house);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(test(house, process));
    runtime.shutdown_background();
}

/// Waits until `look` says yes.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut look: impl FnMut() -> F) {
    let since = Instant::now();
    while !look().await {
        assert!(since.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
