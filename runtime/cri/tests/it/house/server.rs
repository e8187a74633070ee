//! The server under test: in this process, or in one of its own that can be killed.

use std::process::{Child, Command, Stdio};

use runtime_images::{Images, Reference};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::House;

const DIR: &str = "SAMPAN_CRI_TEST_DIR";
const CGROUP: &str = "SAMPAN_CRI_TEST_CGROUP";

pub(crate) struct InProcess {
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl InProcess {
    pub(super) async fn start(house: &House) -> Self {
        import(house).await;
        let mut config = house.config();
        let (ready, mut is_ready) = watch::channel(false);
        config.ready = Some(ready);
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let task = tokio::spawn(async move { runtime_cri::run(config, stop).await.unwrap() });
        is_ready.wait_for(|ready| *ready).await.unwrap();
        Self { shutdown, task }
    }

    pub(super) async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap();
    }
}

async fn import(house: &House) {
    let images = Images::open(house.config().images).unwrap();
    let name = Reference::parse(super::IMAGE).unwrap();
    images.import(&house.path("image.tar"), Some(&name)).await.unwrap();
}

/// This very test program, started again for its one ignored test.
pub(crate) struct Process {
    child: Child,
}

impl Process {
    pub(crate) fn start(house: &House) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["house::server::serve", "--exact", "--ignored", "--nocapture"])
            .env(DIR, house.dir.path())
            .env(CGROUP, &house.cgroup_root)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { child }
    }

    /// SIGKILL: it gets to do nothing more.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "the body of a server process that other tests start"]
fn serve() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let dir = std::path::PathBuf::from(dir);
    let config = super::config(&dir, &std::env::var(CGROUP).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let images = Images::open(config.images.clone()).unwrap();
        if images.resolve(super::IMAGE).is_none() {
            let name = Reference::parse(super::IMAGE).unwrap();
            images.import(&dir.join("image.tar"), Some(&name)).await.unwrap();
        }
        drop(images);
        runtime_cri::run(config, CancellationToken::new()).await.unwrap();
    });
}
