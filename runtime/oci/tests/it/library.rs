//! The library's door as the shim uses it: streams by descriptor, an overlay as root, the child reaped by the caller.

use std::io::Read;
use std::os::fd::OwnedFd;

use oci_spec::runtime::Spec;
use runtime_linux::mount::Overlay;
use runtime_linux::pidfd::{self, Exit};
use runtime_oci::{Bundle, ContainerId, CreateOptions, Deletion, ExecOptions, StateRoot, Stdio, Target};
use serde_json::json;

use crate::harness::World;

struct Library {
    world: World,
    root: StateRoot,
    id: ContainerId,
}

impl Library {
    fn new(args: &[&str]) -> Self {
        let world = World::new(args);
        let root = StateRoot::new(world.state_root());
        let id = ContainerId::parse(&world.id).expect("id");
        Self { world, root, id }
    }

    fn bundle(&self) -> Bundle {
        let spec: Spec = serde_json::from_value(self.world.config.clone()).expect("spec");
        Bundle::from_spec(&self.world.bundle(), spec).expect("bundle")
    }
}

fn pipe() -> (std::fs::File, OwnedFd) {
    let (reader, writer) = std::io::pipe().expect("pipe");
    (std::fs::File::from(OwnedFd::from(reader)), OwnedFd::from(writer))
}

fn text(mut reader: std::fs::File) -> String {
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("read");
    text
}

#[test]
fn an_overlay_is_the_root_and_stays_inside() {
    let library = Library::new(&["sh", "-c", "cat /top /bottom; echo new > /written; rm /bottom"]);
    let top = library.world.path("a layer, with: odd characters");
    for dir in [&top, &library.world.path("upper"), &library.world.path("work")] {
        std::fs::create_dir_all(dir).expect("mkdir");
    }
    std::fs::write(top.join("top"), "top\n").expect("write");
    std::fs::write(library.world.rootfs().join("top"), "hidden\n").expect("write");
    std::fs::write(library.world.rootfs().join("bottom"), "bottom\n").expect("write");
    let overlay = Overlay {
        lower: vec![top, library.world.rootfs()],
        upper: library.world.path("upper"),
        work: library.world.path("work"),
    };
    let (reader, writer) = pipe();
    let stdio = Stdio { stdout: Some(writer), ..Stdio::default() };
    let options = CreateOptions { stdio, rootfs: Some(overlay), ..CreateOptions::default() };
    let created = runtime_oci::create(&library.root, &library.id, &library.bundle(), options).expect("create");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    assert!(!mounts.contains("odd characters"), "the overlay leaked onto the host");
    runtime_oci::start(&library.root, &library.id).expect("start");
    assert_eq!(text(reader), "top\nbottom\n");
    assert_eq!(pidfd::wait(&created.pidfd), Ok(Exit::Code(0)));
    assert!(library.world.path("upper/written").exists());
    assert!(library.world.rootfs().join("bottom").exists());
    runtime_oci::delete(&library.root, &library.id, Deletion::Stopped).expect("delete");
    library.world.assert_gone();
}

#[test]
fn exec_with_streams_and_a_terminal() {
    let library = Library::new(&["sleep", "1000"]);
    let created = runtime_oci::create(&library.root, &library.id, &library.bundle(), CreateOptions::default());
    let created = created.expect("create");
    runtime_oci::start(&library.root, &library.id).expect("start");
    let mut process = runtime_oci::configured_process(&library.root, &library.id).expect("process");
    process.set_args(Some(["sh", "-c", "echo hello; exit 3"].map(str::to_owned).to_vec()));
    let (reader, writer) = pipe();
    let stdio = Stdio { stdout: Some(writer), ..Stdio::default() };
    let options = ExecOptions { stdio, ..ExecOptions::default() };
    let execed = runtime_oci::exec(&library.root, &library.id, &process, options).expect("exec");
    assert_eq!(text(reader), "hello\n");
    assert_eq!(pidfd::wait(&execed.pidfd), Ok(Exit::Code(3)));
    process.set_args(Some(vec!["tty".to_owned()])).set_terminal(Some(true));
    let execed = runtime_oci::exec(&library.root, &library.id, &process, ExecOptions::default()).expect("exec");
    let mut console = std::fs::File::from(execed.console.expect("console"));
    let mut buffer = [0; 64];
    let length = console.read(&mut buffer).expect("read");
    assert_eq!(&buffer[..length], b"/dev/pts/0\r\n");
    assert_eq!(pidfd::wait(&execed.pidfd), Ok(Exit::Code(0)));
    runtime_oci::kill(&library.root, &library.id, 9, Target::All).expect("kill");
    assert_eq!(pidfd::wait(&created.pidfd), Ok(Exit::Signal(9)));
    runtime_oci::delete(&library.root, &library.id, Deletion::Stopped).expect("delete");
    library.world.assert_gone();
}

#[test]
fn a_refused_step_has_its_name_and_errno() {
    let mut library = Library::new(&["true"]);
    let bad = json!({"destination": "/mnt", "type": "tmpfs", "source": "x", "options": ["nonsense=1"]});
    library.world.config["mounts"].as_array_mut().expect("mounts").push(bad);
    let error = runtime_oci::create(&library.root, &library.id, &library.bundle(), CreateOptions::default());
    let error = error.expect_err("a bad option");
    assert_eq!((error.step(), error.errno()), (Some("mount tmpfs at /mnt"), Some(22)));
    library.world.assert_gone();
}
