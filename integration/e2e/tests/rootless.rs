//! `sampan-oci` under the podman of a user without rights, as Debian packages it: `podman` has made a user namespace already when it calls
//! the runtime, and neither it nor the runtime may touch the host's cgroups.
//!
//! The user exists for the test alone: copies of the host's account files, with a line more, are bound over them in the mount namespace of
//! the test, so nothing has to be undone on the host. Skips nothing: where the host's cgroups are not the user's, it is the error that is
//! looked at.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use integration_e2e::cluster::{self, eventually};
use integration_e2e::podman::{self, CONTAINERS_CONF, IMAGE, Podman};
use nix::mount::{MsFlags, mount};
use tempfile::TempDir;

const USER: &str = "sampan-boatman";
const UID: u32 = 54_321;
const SUBORDINATE: &str = "700000:65536";

/// The podman of a user.
struct OfUser {
    directory: TempDir,
}

impl OfUser {
    fn start() -> Result<Self> {
        cluster::enter_namespaces()?;
        let podman = Self { directory: tempfile::Builder::new().prefix("sampan-rootless-").tempdir()? };
        std::fs::set_permissions(podman.directory.path(), Permissions::from_mode(0o755))?;
        podman.make_user()?;
        std::fs::write(podman.path("containers.conf"), CONTAINERS_CONF)?;
        // The tree of the binaries may be closed to others.
        std::fs::copy(cluster::dist()?.join("sampan-oci"), podman.path("sampan-oci"))?;
        for (below, mode) in [("home", 0o755), ("xdg", 0o700)] {
            std::fs::create_dir(podman.path(below))?;
            std::fs::set_permissions(podman.path(below), Permissions::from_mode(mode))?;
            chown(podman.path(below), Some(UID), Some(UID))?;
        }
        podman.load(&podman.path("home"))?;
        Ok(podman)
    }

    fn make_user(&self) -> Result<()> {
        let home = self.path("home");
        let lines = [
            ("passwd", format!("{USER}:x:{UID}:{UID}::{}:/bin/sh", home.display())),
            ("group", format!("{USER}:x:{UID}:")),
            ("subuid", format!("{USER}:{SUBORDINATE}")),
            ("subgid", format!("{USER}:{SUBORDINATE}")),
        ];
        for (name, line) in lines {
            let real = Path::new("/etc").join(name);
            ensure!(real.exists(), "{} is missing: install the package uidmap, and touch it", real.display());
            let text = std::fs::read_to_string(&real)?;
            std::fs::write(self.path(name), format!("{}\n{line}\n", text.trim_end()))?;
            let none = None::<&str>;
            mount(Some(&self.path(name)), &real, none, MsFlags::MS_BIND, none)
                .with_context(|| format!("bind over {}", real.display()))?;
        }
        Ok(())
    }
}

impl Podman for OfUser {
    fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Without a login session: no PAM, no systemd of the user, no USER, and nothing of the caller's environment but PATH.
    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new("timeout");
        command.args(["--foreground", "-k", "1", "90", "env", "-i", "-C"]).arg(self.path("home"));
        let assign = |name: &str, below: &str| format!("{name}={}", self.path(below).display());
        command.arg(format!("PATH={}", std::env::var("PATH").unwrap_or_default()));
        command.args([assign("HOME", "home"), assign("XDG_RUNTIME_DIR", "xdg")]);
        command.args([assign("CONTAINERS_CONF", "containers.conf"), "TERM=dumb".to_owned()]);
        command.args(["setpriv", &format!("--reuid={UID}"), &format!("--regid={UID}"), "--init-groups", "podman"]);
        for (flag, below) in [("--root", "home/root"), ("--runroot", "xdg/run"), ("--tmpdir", "xdg/tmp")] {
            command.arg(flag).arg(self.path(below));
        }
        command.args(["--cgroup-manager=cgroupfs", "--events-backend=file", "--storage-driver=vfs", "--runtime"]);
        command.arg(self.path("sampan-oci")).args(arguments);
        Ok(command)
    }
}

impl Drop for OfUser {
    fn drop(&mut self) {
        self.clear();
        // Ends the process that keeps podman's namespaces.
        let ended = self.say(&["system", "migrate"]);
        if !std::thread::panicking() {
            assert!(matches!(&ended, Ok(said) if said.code == 0), "podman lets its namespaces go: {ended:?}");
            eventually(20, "no process of the user", || {
                let left = processes_of_the_user()?;
                ensure!(left.is_empty(), "{left:?}");
                Ok(())
            })
            .expect("nothing is left");
        }
    }
}

/// Zombies are for whoever is first on this machine to reap.
fn processes_of_the_user() -> Result<Vec<String>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let text = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
        let is_users = field("Uid:").split_whitespace().next() == Some(&UID.to_string());
        if is_users && !field("State:").starts_with('Z') {
            all.push(format!("{} {}", entry.file_name().to_string_lossy(), field("Name:")));
        }
    }
    Ok(all)
}

#[test]
fn a_users_podman_runs_and_stops() -> Result<()> {
    let podman = OfUser::start()?;
    let run = |rest: &[&str]| podman.say(&[&["run", "--rm", "--network=none"], rest].concat());
    let said = run(&[IMAGE, "sh", "-c", "echo out; echo err >&2; exit 7"])?;
    ensure!((said.stdout.as_str(), said.code) == ("out\n", 7) && said.stderr.contains("err"), "{said:?}");
    let said = run(&[IMAGE, "/nowhere"])?;
    ensure!(said.code == 127, "podman tells a missing program by the runtime's words: {said:?}");
    // Root inside is the user; what other ids there are come from the subordinate ones.
    let said = run(&[IMAGE, "sh", "-c", "cat /proc/self/uid_map"])?;
    let words: Vec<&str> = said.stdout.split_whitespace().collect();
    ensure!(words == ["0", &UID.to_string(), "1", "1", "700000", "65536"], "{said:?}");
    let script = "id -u; id -g; touch /x; echo x > /dev/null && echo null; ls /sys/fs/cgroup | wc -l; mkdir /sys/fs/cgroup/x /sys/fs/cgroup/*/x";
    let said = run(&["--user=1000:1001", "--read-only", "--cap-drop=all", IMAGE, "sh", "-c", script])?;
    let lines: Vec<&str> = said.stdout.lines().collect();
    ensure!(lines.len() == 4 && lines[..3] == ["1000", "1001", "null"] && lines[3] != "0", "{said:?}");
    ensure!(said.stderr.contains("/x: Read-only file system") && said.code != 0, "{said:?}");

    podman.good(&["run", "-d", "--name=c", "--network=host", IMAGE, "sleep", "1000"])?;
    ensure!(podman.good(&["exec", "-e", "WORD=hello", "c", "sh", "-c", "echo $WORD"])? == "hello");
    ensure!(podman.good(&["exec", "--user=1000", "c", "id", "-u"])? == "1000");
    ensure!(podman.say(&["exec", "c", "sh", "-c", "exit 9"])?.code == 9);
    ensure!(podman.good(&["top", "c", "pid", "comm"])?.contains("sleep"));
    needs_cgroups(&podman)?;
    podman::ends_in_every_way(&podman, "c")
}

/// Where a user has cgroups, these work; where not, podman and the runtime say that it is cgroups that are missing.
fn needs_cgroups(podman: &OfUser) -> Result<()> {
    let paused = podman.say(&["pause", "c"])?;
    if paused.code == 0 {
        ensure!(podman.inspect("c", ".State.Status")? == "paused");
        podman.good(&["unpause", "c"])?;
    } else {
        ensure!(paused.stderr.contains("cgroup"), "{paused:?}");
    }
    let stats = podman.say(&["stats", "--no-stream", "c"])?;
    ensure!(stats.code == 0 || stats.stderr.contains("cgroup"), "{stats:?}");
    // podman leaves out the limit, with a warning, or the runtime has to say what is in its way.
    let limited = podman.say(&["run", "--rm", "--network=none", "--memory=64m", IMAGE, "true"])?;
    ensure!(limited.code == 0 || limited.stderr.contains("cgroup"), "{limited:?}");
    Ok(())
}

#[test]
fn a_users_podman_gives_a_terminal() -> Result<()> {
    podman::gives_a_terminal(&OfUser::start()?)
}

#[test]
fn a_users_podman_plays_a_pod() -> Result<()> {
    podman::plays_a_pod(&OfUser::start()?, "")
}
