//! The telling of a plan: complete, in order, on the right stream; and a container that waits for the reader.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::harness::{Said, World};

/// One object per line.
fn steps(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

/// `sampan-oci run FLAGS` without a terminal to ask at, with these answers on standard input.
fn run_with_answers(world: &World, flags: &[&str], answers: &str) -> Said {
    world.save();
    let mut child = Command::new("setsid")
        .args(["--wait", env!("CARGO_BIN_EXE_sampan-oci"), "--root"])
        .arg(world.state_root())
        .args(["run", "--bundle"])
        .arg(world.bundle())
        .args(flags)
        .arg(&world.id)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start setsid; it is in the Debian package util-linux");
    // One that gives up before it has read all is what some of these tests are about.
    let _gave_up = child.stdin.take().expect("piped").write_all(answers.as_bytes());
    child.wait_with_output().expect("wait").into()
}

#[test]
fn a_dry_run_does_nothing() {
    let world = World::new(&["true"]);
    world.save();
    let bundle = world.bundle();
    let bundle = bundle.to_str().expect("utf-8");
    let text = world.oci(&["run", "--dry-run", "--bundle", bundle], &[]).good();
    for words in
        ["the runtime, on the host", "mount proc at /proc", "pivot_root(2)", "why", "findmnt -N PID", "execve(2)"]
    {
        assert!(text.contains(words), "{words} is not in {text}");
    }
    let json = world.oci(&["create", "--dry-run", "--explain=json", "--bundle", bundle], &[]).good();
    let steps = steps(&json);
    assert_eq!(steps.last().expect("steps")["step"], "exec");
    assert!(steps.iter().all(|step| step.get("microseconds").is_none()), "{json}");
    world.assert_gone();
}

#[test]
fn a_run_is_told_whole_and_beside_its_output() {
    let mut world = World::new(&["echo", "from inside"]);
    // A filter that lets nothing be reported any more.
    world.config["process"]["noNewPrivileges"] = json!(false);
    world.config["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["sendmsg", "sendto"], "action": "SCMP_ACT_KILL_PROCESS" }] });
    world.save();
    let bundle = world.bundle();
    let bundle = bundle.to_str().expect("utf-8");
    let planned = steps(&world.oci(&["run", "--dry-run", "--explain=json", "--bundle", bundle], &[]).good());
    let said = world.oci(&["run", "--explain=json", "--bundle", bundle], &[]);
    assert_eq!((said.code, said.out.as_str()), (0, "from inside\n"), "{said:?}");
    let told = steps(&said.err);
    let names = |steps: &[Value]| steps.iter().map(|step| step["step"].to_string()).collect::<Vec<_>>();
    assert_eq!(names(&told), names(&planned), "told in the planned order, none left out");
    let untimed: Vec<_> = told.iter().filter(|step| step.get("microseconds").is_none()).collect();
    assert_eq!(untimed.len(), 2, "the filter and the capabilities after it: {untimed:?}");
    assert!(told.last().is_some_and(|step| step["pid"].as_i64().is_some_and(|pid| pid > 0)), "{told:?}");
    world.assert_gone();
}

#[test]
fn a_stepped_container_waits_and_can_be_given_up() {
    let world = World::new(&["echo", "from inside"]);
    let said = run_with_answers(&world, &["--step"], &"\n".repeat(200));
    assert_eq!((said.code, said.out.as_str()), (0, "from inside\n"), "{said:?}");
    assert!(said.err.contains("Enter for the next step"), "{}", said.err);
    // Three steps, then a person who has seen enough; and one who just leaves.
    for answers in ["\n\n\nq\n", "\n\n\n\n\n\n\n\n\n\n"] {
        let said = run_with_answers(&world, &["--step"], answers);
        assert_eq!((said.code, said.out.as_str()), (1, ""), "{said:?}");
        assert!(said.err.contains("given up on request"), "{}", said.err);
        world.assert_gone();
    }
}
