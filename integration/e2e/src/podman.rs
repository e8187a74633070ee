//! Debian's podman with `sampan-oci` as its runtime: what that of root and that of a user have in common.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::cluster::{self, Said, eventually};
use crate::image;
use crate::terminal::Terminal;

pub const IMAGE: &str = "e2e.local/busybox:1";

/// podman asks for limits of its own that a host without CAP_SYS_RESOURCE cannot give, nor many a user have; these any host can.
pub const CONTAINERS_CONF: &str = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n";

/// A podman with storage of its own in a directory of the test.
pub trait Podman {
    fn directory(&self) -> &Path;

    fn command(&self, arguments: &[&str]) -> Result<Command>;

    fn path(&self, below: &str) -> PathBuf {
        self.directory().join(below)
    }

    fn say(&self, arguments: &[&str]) -> Result<Said> {
        cluster::run(self.command(arguments)?, None)
    }

    /// What it says, of a call that succeeds.
    fn good(&self, arguments: &[&str]) -> Result<String> {
        let said = self.say(arguments)?;
        ensure!(said.code == 0, "{} ended with {}: {}", arguments.join(" "), said.code, said.all());
        Ok(said.stdout.trim_end_matches('\n').to_owned())
    }

    /// One field of `podman inspect`.
    fn inspect(&self, name: &str, field: &str) -> Result<String> {
        self.good(&["inspect", "--format", &format!("{{{{{field}}}}}"), name])
    }

    /// Takes `IMAGE` in, by way of a layout in `directory`, from where it is called.
    fn load(&self, directory: &Path) -> Result<()> {
        image::busybox()?.build()?.write_layout(&directory.join("layout"), IMAGE)?;
        // It makes a name out of the path, which has to be one that a name may have.
        self.good(&["pull", "-q", "oci:layout"])?;
        let id = self.good(&["images", "-q", "--no-trunc"])?;
        self.good(&["tag", &id, IMAGE])?;
        Ok(())
    }

    /// Removes every container and image.
    fn clear(&self) {
        let removed = self.say(&["rm", "--all", "--force", "--time=0"]);
        let cleared = self.say(&["rmi", "--all", "--force"]);
        for said in [&removed, &cleared] {
            // A second panic would hide the first.
            let is_good = matches!(said, Ok(said) if said.code == 0);
            assert!(is_good || std::thread::panicking(), "podman cleans up: {said:?}");
        }
    }
}

/// Restarted, stopped, started, killed and removed.
pub fn ends_in_every_way(podman: &impl Podman, name: &str) -> Result<()> {
    podman.good(&["restart", "--time=0", name])?;
    ensure!(podman.inspect(name, ".State.Status")? == "running");
    podman.good(&["stop", "--time=0", name])?;
    ensure!(podman.inspect(name, ".State.ExitCode")? == "137");
    podman.good(&["start", name])?;
    podman.good(&["kill", "--signal=KILL", name])?;
    eventually(10, "the end after a kill", || {
        let status = podman.inspect(name, ".State.Status")?;
        ensure!(status == "exited", "{status}");
        Ok(())
    })?;
    podman.good(&["rm", name])?;
    Ok(())
}

pub fn gives_a_terminal(podman: &impl Podman) -> Result<()> {
    let mut terminal = Terminal::start(&podman.command(&["run", "--rm", "-it", "--network=none", IMAGE, "sh"])?)?;
    terminal.expect("# ")?;
    terminal.type_line("tty; stty size; exit 5")?;
    terminal.expect("/dev/pts/0")?;
    terminal.expect("24 80")?;
    ensure!(terminal.end()?.1 == 5);
    Ok(())
}

/// A pod of two containers by `play kube`; `more` is what each has beside its command.
pub fn plays_a_pod(podman: &impl Podman, more: &str) -> Result<()> {
    let manifest = podman.path("pod.yaml");
    let container = |name: &str| {
        format!("  - {{name: {name}, image: '{IMAGE}', imagePullPolicy: Never, command: [sleep, '1000']{more}}}\n")
    };
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n  hostNetwork: true\n  containers:\n{}{}",
        container("a"),
        container("b")
    );
    std::fs::write(&manifest, text)?;
    let manifest = manifest.to_string_lossy();
    podman.good(&["play", "kube", &manifest])?;
    for name in ["p-a", "p-b"] {
        ensure!(podman.inspect(name, ".State.Status")? == "running");
    }
    // The pod's containers share what the infra container holds.
    let ipc = |name: &str| podman.good(&["exec", name, "readlink", "/proc/self/ns/ipc"]);
    ensure!(ipc("p-a")? == ipc("p-b")?);
    podman.good(&["play", "kube", "--down", &manifest])?;
    ensure!(podman.good(&["ps", "-aq"])?.is_empty());
    Ok(())
}
