//! checkpoint and restore. What takes a real criu runs where one works, in the virtual machine of `integration/e2e/tests/unified.rs`.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{Said, World, eventually};

/// Counts in memory, and says how far it is.
const COUNT: &str = "i=0; while true; do i=$((i + 1)); echo $i > /tmp/count; sleep 0.02; done";

impl World {
    fn checkpoint(&self, words: &[&str]) -> Said {
        let images = self.path("images");
        let images = images.to_str().expect("utf-8");
        self.oci(&[&["checkpoint", "--image-path", images], words].concat(), &[])
    }

    /// Detached, unless `words` say otherwise.
    fn restore(&self, words: &[&str]) -> Said {
        let mut command = self.command();
        command.arg("restore").arg("--image-path").arg(self.path("images")).arg("--bundle").arg(self.bundle());
        let err = self.path("restore.err");
        let file = std::fs::File::create(&err).expect("create");
        // The container keeps its standard streams, so a pipe would never end.
        let status = command.args(words).arg(&self.id).stdout(Stdio::null()).stderr(file).status().expect("run");
        let err = std::fs::read_to_string(err).expect("read");
        Said { out: String::new(), err, code: status.code().unwrap_or(-1) }
    }

    fn count(&self) -> u64 {
        let text = std::fs::read_to_string(self.rootfs().join("tmp/count")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// With nothing of the host's open in it but its standard input.
    fn begin(&self, stdin: Stdio) {
        self.save();
        let mut command = self.command();
        command
            .args(["run", "--detach", "--bundle"])
            .arg(self.bundle())
            .arg(&self.id)
            .stdin(stdin)
            .stdout(Stdio::null());
        assert!(command.stderr(Stdio::null()).status().expect("run").success());
    }

    fn starts_to_count(&self) {
        self.begin(Stdio::null());
        eventually("it counts", || self.count() > 3);
    }
}

fn counting() -> World {
    World::new(&["sh", "-c", COUNT])
}

#[test]
fn without_criu_it_is_said_what_is_missing() {
    let world = World::new(&["sleep", "1000"]);
    world.start_all();
    let images = world.path("images");
    let words = ["--criu", "/no/criu", "checkpoint", "--image-path", images.to_str().expect("utf-8"), &world.id];
    let said: Said = world.command().args(words).output().expect("run").into();
    assert!(said.bad().contains("/no/criu is not installed"));
    assert_eq!(world.status(), "running");
}

#[test]
fn a_criu_that_breaks_off_leaves_everything_as_it_was() {
    let world = World::new(&["sleep", "1000"]);
    world.start_all();
    std::fs::create_dir(world.path("images")).expect("mkdir");
    let program = world.path("criu");
    std::fs::write(&program, "#!/bin/sh\nexit 3\n").expect("write");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    let run = |words: &[&str]| -> Said {
        let images = world.path("images");
        let mut command = world.command();
        command.arg("--criu").arg(&program).args(words).arg("--image-path").arg(images).arg(&world.id);
        command.output().expect("run sampan-oci").into()
    };
    assert!(run(&["checkpoint"]).bad().contains("ended without an answer"));
    assert_eq!(world.status(), "running");
    world.oci(&["delete", "--force"], &[]).good();
    let bundle = world.bundle();
    let bundle = bundle.to_str().expect("utf-8");
    assert!(run(&["restore", "--detach", "--bundle", bundle]).bad().contains("ended without an answer"));
    world.assert_gone();
}

#[test]
fn words_that_make_no_sense_are_refused() {
    let mut world = World::new(&["sleep", "1000"]);
    world.create().good();
    assert!(world.checkpoint(&[]).bad().contains("cannot checkpoint container"));
    world.oci(&["start"], &[]).good();
    for (words, expect) in [
        (["--parent-path", "/abs"], "relative"),
        (["--parent-path", "not-there"], "No such file"),
        (["--page-server", "x"], "ADDRESS:PORT"),
        (["--page-server", "x:port"], "not a port"),
        (["--empty-ns", "pid"], "network namespace only"),
        (["--status-fd", "77"], "--status-fd 77"),
        (["--manage-cgroups-mode", "hard"], "--manage-cgroups-mode"),
    ] {
        let said = world.checkpoint(&words).bad();
        assert!(said.contains(expect), "{words:?}: {said}");
    }
    assert_eq!(world.status(), "running");
    world.oci(&["delete", "--force"], &[]).good();
    assert!(world.restore(&["--detach"]).bad().contains("images"), "there are none");
    world.config["process"]["terminal"] = json!(true);
    world.save();
    assert!(world.restore(&["--detach"]).bad().contains("console socket"));
    world.assert_gone();
}

#[test]
#[ignore = "runs in unified.rs' machine, where criu works"]
fn a_container_goes_on_where_it_was() {
    let mut world = counting();
    let data = world.path("data");
    std::fs::create_dir_all(data.join("below")).expect("mkdir");
    let file = world.path("file");
    std::fs::write(&file, "of the host\n").expect("write");
    let mounts = world.config["mounts"].as_array_mut().expect("mounts");
    // One reached by a symlink of the container's, one in another, one that is a file.
    mounts.push(json!({"destination": "/link", "type": "bind", "source": data, "options": ["rbind"]}));
    mounts.push(json!({"destination": "/real/below", "type": "bind", "source": "/etc", "options": ["bind", "ro"]}));
    mounts.push(json!({"destination": "/file", "source": file, "options": ["bind"]}));
    std::fs::create_dir(world.rootfs().join("real")).expect("mkdir");
    std::os::unix::fs::symlink("/real", world.rootfs().join("link")).expect("symlink");
    // A directory, a file, and nothing at all.
    std::fs::write(world.rootfs().join("etc/secret"), "secret\n").expect("write");
    std::fs::create_dir(world.rootfs().join("hidden")).expect("mkdir");
    world.config["linux"]["maskedPaths"] = json!(["/proc/kcore", "/hidden", "/etc/secret", "/absent"]);
    let world = world;
    world.starts_to_count();
    // What comes in by exec and stays is init's.
    world.oci(&["exec"], &["sh", "-c", "sleep 1000 < /dev/null > /dev/null 2>&1 &"]).good();

    world.checkpoint(&["--leave-running"]).good();
    assert_eq!(world.status(), "running");
    world.checkpoint(&[]).good();
    world.assert_gone();
    let before = world.count();
    // What is bound there made this directory.
    std::fs::remove_dir_all(data.join("below")).expect("rmdir");
    for round in 0..2 {
        world.restore(&["--detach"]).good();
        assert_eq!(world.status(), "running");
        eventually("it counts on", || world.count() > before + 3);
        let seen = world.oci(&["exec"], &["sh", "-c", "cat /file; ls /real/below/group; ps -o args"]).good();
        assert!(seen.contains("of the host") && seen.contains("/real/below/group"), "{round}: {seen}");
        assert!(seen.contains("sleep 1000"), "{round}: {seen}");
        assert_eq!(world.oci(&["exec"], &["cat", "/etc/secret"]).good(), "");
        assert!(!world.rootfs().join("absent").exists());
        world.checkpoint(&[]).good();
        world.assert_gone();
    }
}

#[test]
#[ignore = "runs in unified.rs' machine, where criu works"]
fn what_cannot_be_saved_goes_on_and_what_cannot_be_restored_leaves_nothing() {
    let mut world = counting();
    // A file of the host's that nobody in the container could name.
    let host = std::fs::File::open("/etc/passwd").expect("open");
    world.begin(host.into());
    eventually("it counts", || world.count() > 3);
    let said = world.checkpoint(&[]).bad();
    assert!(said.contains("dump.log") && said.contains("/etc/passwd"), "{said}");
    assert_eq!(world.status(), "running");
    let before = world.count();
    eventually("it still counts", || world.count() > before);
    world.oci(&["delete", "--force"], &[]).good();

    world.starts_to_count();
    world.checkpoint(&[]).good();
    world.config["hooks"] = json!({"createRuntime": [{"path": "/bin/busybox", "args": ["false"]}]});
    world.save();
    let said = world.restore(&["--detach"]).bad();
    assert!(said.contains("createRuntime hook"), "{said}");
    world.assert_gone();
    std::fs::write(world.path("images/inventory.img"), "not an image").expect("write");
    let said = world.restore(&["--detach"]).bad();
    assert!(said.contains("restore.log"), "{said}");
    world.assert_gone();
}

#[test]
#[ignore = "runs in unified.rs' machine, where criu works"]
fn a_paused_container_is_saved_as_any_other() {
    let world = counting();
    world.starts_to_count();
    world.oci(&["pause"], &[]).good();
    let before = world.count();
    world.checkpoint(&["--leave-running"]).good();
    assert_eq!((world.status(), world.count()), ("paused".to_owned(), before));
    world.checkpoint(&[]).good();
    world.assert_gone();
    world.restore(&["--detach"]).good();
    eventually("it counts on", || world.count() > before);
}

#[test]
#[ignore = "runs in unified.rs' machine, where criu works"]
fn a_pre_dump_saves_what_has_not_changed() {
    let world = counting();
    world.starts_to_count();
    let earlier = world.path("earlier");
    let earlier = earlier.to_str().expect("utf-8");
    world.oci(&["checkpoint", "--pre-dump", "--image-path", earlier], &[]).good();
    assert_eq!(world.status(), "running");
    std::fs::create_dir(world.path("images")).expect("mkdir");
    world.checkpoint(&["--parent-path", "../earlier"]).good();
    assert!(world.path("images/parent").is_symlink());
    let before = world.count();
    world.restore(&["--detach"]).good();
    eventually("it counts on", || world.count() > before);
}

#[test]
#[ignore = "runs in unified.rs' machine, where criu works"]
fn a_terminal_comes_back_by_the_console_socket() {
    let mut world = World::new(&["sh", "-c", "while read word; do echo got $word; done"]);
    world.config["process"]["terminal"] = json!(true);
    world.save();
    let path = world.path("console.sock");
    let listener = UnixListener::bind(&path).expect("listen");
    let master = || {
        let (stream, _) = listener.accept().expect("accept");
        let (mut name, mut descriptors) = ([0; 64], Vec::<OwnedFd>::new());
        runtime_linux::fd_passing::receive(&stream, &mut name, &mut descriptors).expect("receive");
        std::fs::File::from(descriptors.pop().expect("a descriptor"))
    };
    let answers = |mut master: std::fs::File, word: &str| {
        master.write_all(format!("{word}\n").as_bytes()).expect("write");
        let (mut text, mut buffer) = (String::new(), [0; 256]);
        while !text.contains(&format!("got {word}")) {
            let length = master.read(&mut buffer).expect("read");
            assert_ne!(length, 0, "{text}");
            text.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    };
    let mut command = world.command();
    command.args(["run", "--detach", "--console-socket"]).arg(&path).arg("--bundle").arg(world.bundle()).arg(&world.id);
    assert!(command.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("run").success());
    // criu asks the terminal about itself while it dumps, so its master is there until then.
    let first = master();
    answers(first.try_clone().expect("dup"), "one");
    world.checkpoint(&[]).good();
    drop(first);
    world.restore(&["--detach", "--console-socket", path.to_str().expect("utf-8")]).good();
    answers(master(), "two");
}

#[test]
#[ignore = "runs in unified.rs' machine, where criu works"]
fn in_the_foreground_its_end_is_ours() {
    let world = World::new(&["sh", "-c", "trap 'exit 7' USR1; touch /tmp/ready; while true; do sleep 0.02; done"]);
    world.begin(Stdio::null());
    eventually("it waits", || world.rootfs().join("tmp/ready").exists());
    world.checkpoint(&[]).good();
    let mut command = world.command();
    command.arg("restore").arg("--image-path").arg(world.path("images")).arg("--bundle").arg(world.bundle());
    command.arg("--pid-file").arg(world.path("pid")).arg(&world.id).stdout(Stdio::null()).stderr(Stdio::null());
    let mut restored = command.spawn().expect("run");
    eventually("it is there", || world.path("pid").exists());
    let pid = std::fs::read_to_string(world.path("pid")).expect("pid").parse().expect("a number");
    assert_eq!(pid, world.pid());
    kill(Pid::from_raw(pid), Signal::SIGUSR1).expect("kill");
    assert_eq!(restored.wait().expect("wait").code(), Some(7));
    world.assert_gone();
}

#[test]
#[ignore = "runs in unified.rs' machine, where criu works"]
fn namespaces_of_others_and_limits_are_found_again() {
    let mut world = counting();
    let network = world.path("network");
    std::fs::write(&network, "").expect("write");
    let made = std::process::Command::new("unshare").arg(format!("--net={}", network.display())).arg("true").status();
    assert!(made.expect("unshare").success());
    let spaces = world.config["linux"]["namespaces"].as_array_mut().expect("namespaces");
    // Without a cgroup namespace what is seen of the host's cgroups is bound.
    spaces.retain(|space| space["type"] != "network" && space["type"] != "cgroup");
    spaces.push(json!({"type": "network", "path": network}));
    world.config["linux"]["resources"] = json!({"pids": {"limit": 33}});
    let world = world;
    world.starts_to_count();
    world.checkpoint(&[]).good();
    let before = world.count();
    world.restore(&["--detach"]).good();
    eventually("it counts on", || world.count() > before);
    let space = |path: &Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).expect("stat"));
    let own = Path::new("/proc").join(world.pid().to_string()).join("ns/net");
    assert_eq!(space(&own), space(&network));
    let cgroups = world.cgroups();
    let cgroup = cgroups.iter().find(|cgroup| cgroup.join("pids.max").exists()).expect("a cgroup with a limit");
    assert_eq!(std::fs::read_to_string(cgroup.join("pids.max")).expect("pids.max").trim(), "33");
    let tasks = std::fs::read_to_string(cgroup.join("cgroup.procs")).expect("cgroup.procs");
    assert!(tasks.lines().any(|task| task == world.pid().to_string()), "{tasks}");
    world.oci(&["delete", "--force"], &[]).good();
    nix::mount::umount(&network).expect("umount");
    world.assert_gone();
}
