//! checkpoint and restore, with a stand-in for criu that notes what it is told and plays its part with a sleeping process.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::json;

use crate::harness::{Said, World};

/// Notes its words in $NOTES. A dump ends the tree unless it is left running; a restore leaves a process behind and its pid in the file.
const CRIU: &str = r#"#!/bin/sh
echo "$@" >> "$NOTES"
what=$1; shift
while [ $# -gt 0 ]; do
    case $1 in
        --tree) tree=$2;;
        --pidfile) pidfile=$2;;
        --leave-running) leave=1;;
    esac
    shift
done
case $what in
    dump) [ -n "$leave" ] || kill -KILL "$tree";;
    restore) sleep 1000 > /dev/null 2>&1 & echo $! > "$pidfile";;
esac
exit ${CRIU_EXIT:-0}
"#;

struct Criu<'a> {
    world: &'a World,
    program: PathBuf,
}

impl<'a> Criu<'a> {
    fn new(world: &'a World) -> Self {
        let program = world.path("criu");
        std::fs::write(&program, CRIU).expect("write");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        Self { world, program }
    }

    fn run(&self, verb: &str, words: &[&str], exit: &str) -> Said {
        let mut command = self.world.command();
        command.arg("--criu").arg(&self.program).arg(verb).args(words);
        command.arg("--image-path").arg(self.world.path("images")).arg(&self.world.id);
        command.env("NOTES", self.world.path("notes")).env("CRIU_EXIT", exit);
        command.output().expect("run sampan-oci").into()
    }

    /// The words of the last call.
    fn told(&self) -> String {
        let notes = std::fs::read_to_string(self.world.path("notes")).unwrap_or_default();
        notes.lines().last().unwrap_or_default().to_owned()
    }
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
fn a_container_is_saved_and_comes_back() {
    let mut world = World::new(&["sleep", "1000"]);
    let data = world.path("data");
    std::fs::create_dir(&data).expect("mkdir");
    let bind = json!({"destination": "/tmp", "type": "bind", "source": data, "options": ["rbind"]});
    world.config["mounts"].as_array_mut().expect("mounts").push(bind);
    let world = world;
    let criu = Criu::new(&world);
    world.create().good();
    assert!(criu.run("checkpoint", &[], "0").bad().contains("cannot checkpoint container"));
    world.oci(&["start"], &[]).good();
    let pid = world.pid();

    criu.run("checkpoint", &["--pre-dump"], "0").good();
    assert!(criu.told().starts_with(&format!("pre-dump --tree {pid} ")) && criu.told().contains("--track-mem"));
    criu.run("checkpoint", &["--leave-running", "--tcp-established", "--manage-cgroups-mode", "ignore"], "0").good();
    for word in ["--leave-running", "--tcp-established", "--manage-cgroups=ignore", "--external mnt[/tmp]:/tmp"] {
        assert!(criu.told().contains(word), "{word}: {}", criu.told());
    }
    assert_eq!(world.status(), "running");
    assert!(criu.run("checkpoint", &["--leave-running"], "3").bad().contains("dump.log"));
    assert!(criu.run("checkpoint", &["--parent-path", "/abs"], "0").bad().contains("relative"));
    assert!(criu.run("checkpoint", &["--page-server", "x"], "0").bad().contains("ADDRESS:PORT"));
    criu.run("checkpoint", &[], "0").good();
    world.assert_gone();

    let bundle = world.bundle();
    let bundle = ["--bundle", bundle.to_str().expect("utf-8")];
    assert!(criu.run("restore", &bundle, "1").bad().contains("restore.log"));
    world.assert_gone();
    criu.run("restore", &[&bundle[..], &["--detach", "--lsm-profile", "apparmor:x"]].concat(), "0").good();
    for word in ["--restore-sibling", "--lsm-profile apparmor:x", &format!("--external mnt[/tmp]:{}", data.display())] {
        assert!(criu.told().contains(word), "{word}: {}", criu.told());
    }
    assert_eq!(world.status(), "running");
    world.oci(&["delete", "--force"], &[]).good();
    world.assert_gone();
}

#[test]
fn a_terminal_cannot_be_saved_and_that_is_said() {
    let mut world = World::new(&["sleep", "1000"]);
    world.start_all();
    world.config["process"]["terminal"] = json!(true);
    world.save();
    let criu = Criu::new(&world);
    std::fs::create_dir(world.path("images")).expect("mkdir");
    let bundle = world.bundle();
    let said = criu.run("restore", &["--bundle", bundle.to_str().expect("utf-8")], "0").bad();
    assert!(said.contains("process.terminal"), "{said}");
}
