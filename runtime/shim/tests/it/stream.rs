//! Streams: long lines, rotation, attach, standard input, terminals.

use crate::sandbox::{Sandbox, eventually, pipes};
use runtime_shim::{FailureCode, Stdio, Target};
use serde_json::json;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

#[test]
fn long_lines_are_cut_and_nothing_is_lost() {
    let (sandbox, mut client) = Sandbox::started();
    sandbox.run(&mut client, "c1", "dd if=/proc/self/exe bs=100000 count=8 2>/dev/null | tail -c 800000");
    client.wait(Target::container("c1")).unwrap();
    let log = fs::read(sandbox.log("c1")).unwrap();
    let mut restored = Vec::new();
    for line in log.split(|&byte| byte == b'\n') {
        // time, stream, tag, text
        let mut words = line.splitn(4, |&byte| byte == b' ');
        let (Some(_), Some(stream), Some(tag), Some(text)) = (words.next(), words.next(), words.next(), words.next())
        else {
            continue;
        };
        assert_eq!(stream, b"stdout");
        assert!(text.len() <= 16 * 1024);
        restored.extend_from_slice(text);
        if tag == b"F" {
            restored.push(b'\n');
        }
    }
    let busybox = ["/usr/bin/busybox", "/bin/busybox"].into_iter().find_map(|path| fs::read(path).ok()).unwrap();
    assert!(restored == busybox[..800_000], "{} bytes came back", restored.len());
}

#[test]
fn a_rotated_log_goes_on_in_a_new_file() {
    let (sandbox, mut client) = Sandbox::started();
    let mut create = sandbox.create("c1", "echo before; read x; echo after");
    create.stdin = true;
    client.create(create).unwrap();
    client.start("c1").unwrap();
    eventually("the first line", || sandbox.entries("c1").len() == 1);
    let old = sandbox.log("c1").with_extension("old");
    fs::rename(sandbox.log("c1"), &old).unwrap();
    client.reopen_log("c1").unwrap();
    client.close_stdin("c1").unwrap();
    client.wait(Target::container("c1")).unwrap();
    assert_eq!(sandbox.entries("c1"), ["stdout F after"]);
    assert!(fs::read_to_string(old).unwrap().ends_with(" stdout F before\n"));
}

#[test]
fn attached_clients_all_see_the_output_and_share_the_input() {
    let (sandbox, mut client) = Sandbox::started();
    let mut create = sandbox.create("c1", "while read line; do echo got $line; done; echo end >&2");
    create.stdin = true;
    client.create(create).unwrap();
    let (theirs, mut first) = pipes();
    client.attach("c1", theirs).unwrap();
    let (theirs, mut second) = pipes();
    client.attach("c1", theirs).unwrap();
    client.start("c1").unwrap();
    first.stdin.write_all(b"one\n").unwrap();
    let mut buffer = [0; 8];
    second.stdout.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"got one\n");
    // The first goes; its input's end is not the container's (stdin_once is off).
    drop(first.stdin);
    second.stdin.write_all(b"two\n").unwrap();
    second.stdout.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"got two\n");
    client.close_stdin("c1").unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    first.stdout.read_to_string(&mut out).unwrap();
    second.stderr.read_to_string(&mut err).unwrap();
    assert_eq!((out.as_str(), err.as_str()), ("got one\ngot two\n", "end\n"));
    assert_eq!(client.wait(Target::container("c1")).unwrap().code, 0);
    assert_eq!(sandbox.entries("c1").len(), 3);
}

#[test]
fn stdin_once_ends_with_the_first_client() {
    let (sandbox, mut client) = Sandbox::started();
    let mut create = sandbox.create("c1", "cat");
    (create.stdin, create.stdin_once) = (true, true);
    client.create(create).unwrap();
    client.start("c1").unwrap();
    let (theirs, mut ours) = pipes();
    client.attach("c1", theirs).unwrap();
    // More than the pipe and the shim's queue hold at once.
    let sent = vec![b'x'; 300_000];
    let reader = std::thread::spawn(move || {
        let mut seen = Vec::new();
        ours.stdout.read_to_end(&mut seen).unwrap();
        seen
    });
    ours.stdin.write_all(&sent).unwrap();
    drop(ours.stdin);
    assert_eq!(client.wait(Target::container("c1")).unwrap().code, 0);
    assert!(reader.join().unwrap() == sent);
}

#[test]
fn a_terminal_is_sized_typed_into_and_logged() {
    let (sandbox, mut client) = Sandbox::started();
    let mut spec = sandbox.spec("c1", "read a; stty size; read b; echo bye $b");
    spec["process"]["terminal"] = json!(true);
    let mut create = sandbox.create_from("c1", &spec);
    create.stdin = true;
    client.create(create).unwrap();
    client.start("c1").unwrap();
    client.resize("c1", 120, 40).unwrap();
    let (mut theirs, mut ours) = pipes();
    theirs.stderr = None;
    client.attach("c1", theirs).unwrap();
    ours.stdin.write_all(b"x\ny\n").unwrap();
    let mut seen = String::new();
    ours.stdout.read_to_string(&mut seen).unwrap();
    assert!(seen.contains("40 120") && seen.contains("bye y"), "{seen:?}");
    assert_eq!(client.wait(Target::container("c1")).unwrap().code, 0);
    assert!(
        sandbox.entries("c1").iter().any(|entry| entry.starts_with("stdout F bye y")),
        "{:?}",
        sandbox.entries("c1")
    );
}

#[test]
fn what_cannot_be_attached_is_refused() {
    let (sandbox, mut client) = Sandbox::started();
    sandbox.run(&mut client, "c1", "sleep 1000");
    let file = OwnedFd::from(File::create(sandbox.log("file")).unwrap());
    let failure = client.attach("c1", Stdio { stdout: Some(file), ..Stdio::default() }).unwrap_err();
    assert!(matches!(failure, runtime_shim::ClientError::Failure(failure) if failure.code == FailureCode::Invalid));
    let mut held = Vec::new();
    loop {
        let (theirs, ours) = pipes();
        held.push(ours);
        match client.attach("c1", theirs) {
            Ok(()) => assert!(held.len() <= 16),
            Err(runtime_shim::ClientError::Failure(failure)) => {
                assert_eq!((failure.code, held.len()), (FailureCode::Exhausted, 17));
                break;
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    held.clear();
    eventually("all are noticed to be gone", || client.info().unwrap().containers[0].attached == 0);
}
