//! The systemd driver, against a manager of our own on a socket: it speaks as much D-Bus as systemd's would for a unit's life.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::json;

use crate::harness::{Said, World};

/// A call that came: member and body.
type Calls = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

struct Manager {
    path: PathBuf,
    calls: Calls,
}

impl Manager {
    /// Every job ends as `result`.
    fn new(world: &World, result: &'static str) -> Self {
        let path = world.path("bus");
        let listener = UnixListener::bind(&path).expect("listen");
        let calls = Calls::default();
        let noted = Arc::clone(&calls);
        // Ends with the test's process: nobody connects any more then.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                serve(stream, result, &noted);
            }
        });
        Self { path, calls }
    }

    fn run(&self, world: &World, words: &[&str]) -> Said {
        let mut command = world.command();
        command.arg("--systemd-cgroup").args(words).arg(&world.id);
        command.env("DBUS_SYSTEM_BUS_ADDRESS", format!("tcp:host=x;unix:path={},guid=1", self.path.display()));
        let err = world.path("err");
        let file = std::fs::File::create(&err).expect("create");
        let status = command.stdout(std::process::Stdio::null()).stderr(file).status().expect("run sampan-oci");
        Said { out: String::new(), err: std::fs::read_to_string(err).expect("read"), code: status.code().unwrap_or(-1) }
    }

    fn members(&self) -> Vec<String> {
        let calls = self.calls.lock().expect("calls");
        calls.iter().map(|(member, _)| member.clone()).filter(|member| member != "Hello").collect()
    }

    /// The body of the last call of that name.
    fn body(&self, member: &str) -> Vec<u8> {
        let calls = self.calls.lock().expect("calls");
        calls.iter().rev().find(|(name, _)| name == member).map(|(_, body)| body.clone()).expect("such a call")
    }
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// A string with its length in front, aligned.
fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(u32::try_from(text.len()).expect("short").to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes.push(0);
}

/// (code, signature, value); 5 is the serial that is replied to.
fn message(kind: u8, fields: &[(u8, &str, &str)], reply_to: u32, body: &[u8]) -> Vec<u8> {
    let mut header = Vec::new();
    let mut put = |code: u8, signature: &str, value: &dyn Fn(&mut Vec<u8>)| {
        header.resize(header.len().next_multiple_of(8), 0);
        header.extend([code, u8::try_from(signature.len()).expect("short")]);
        header.extend(signature.as_bytes());
        header.push(0);
        value(&mut header);
    };
    if reply_to != 0 {
        put(5, "u", &|bytes| {
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes.extend(reply_to.to_le_bytes());
        });
    }
    for (code, signature, value) in fields {
        put(*code, signature, &|bytes| {
            if *signature == "g" {
                bytes.push(u8::try_from(value.len()).expect("short"));
                bytes.extend(value.as_bytes());
                bytes.push(0);
            } else {
                text(bytes, value);
            }
        });
    }
    let mut all = vec![b'l', kind, 0, 1];
    all.extend(u32::try_from(body.len()).expect("short").to_le_bytes());
    all.extend(7u32.to_le_bytes());
    all.extend(u32::try_from(header.len()).expect("short").to_le_bytes());
    all.extend(&header);
    all.resize(all.len().next_multiple_of(8), 0);
    all.extend(body);
    all
}

fn line(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a line");
        line.push(byte[0]);
    }
    String::from_utf8(line).expect("utf-8")
}

fn serve(mut stream: UnixStream, result: &str, calls: &Calls) {
    assert_eq!(line(&mut stream), "\0AUTH EXTERNAL 30\r\n", "root says who it is");
    stream.write_all(b"OK 0123456789abcdef\r\n").expect("write");
    assert_eq!(line(&mut stream), "BEGIN\r\n");
    let mut job = 0;
    loop {
        let mut head = [0; 16];
        if stream.read_exact(&mut head).is_err() {
            return;
        }
        let (body, serial, fields) = (number(&head, 4), number(&head, 8), number(&head, 12));
        let padded = usize::try_from(fields).expect("short").next_multiple_of(8);
        let mut rest = vec![0; padded + usize::try_from(body).expect("short")];
        stream.read_exact(&mut rest).expect("the rest");
        let (header, body) = rest.split_at(padded);
        let at = header.windows(4).position(|window| window == [3, 1, b's', 0]).expect("a member");
        let length = usize::try_from(number(header, at + 4)).expect("short");
        let member = String::from_utf8(header[at + 8..at + 8 + length].to_vec()).expect("utf-8");
        calls.lock().expect("calls").push((member.clone(), body.to_vec()));
        let mut answer = Vec::new();
        let is_job = ["StartTransientUnit", "StopUnit"].contains(&member.as_str());
        if is_job {
            job += 1;
            text(&mut answer, &format!("/org/freedesktop/systemd1/job/{job}"));
        }
        let signature: &[(u8, &str, &str)] = if is_job { &[(8, "g", "o")] } else { &[] };
        stream.write_all(&message(2, signature, serial, &answer)).expect("write");
        if is_job {
            let mut removed = 1u32.to_le_bytes().to_vec();
            for part in [&format!("/org/freedesktop/systemd1/job/{job}"), "some.scope", result] {
                text(&mut removed, part);
            }
            let fields = [
                (1, "o", "/org/freedesktop/systemd1"),
                (2, "s", "org.freedesktop.systemd1.Manager"),
                (3, "s", "JobRemoved"),
                (8, "g", "uoss"),
            ];
            stream.write_all(&message(4, &fields, 0, &removed)).expect("write");
        }
    }
}

fn has(body: &[u8], text: &str) -> bool {
    body.windows(text.len()).any(|window| window == text.as_bytes())
}

fn world() -> World {
    let mut world = World::new(&["sleep", "1000"]);
    world.config["linux"]["cgroupsPath"] = json!(format!("-.slice:sampan:{}", world.id));
    world.config["linux"]["resources"]["pids"] = json!({"limit": 77});
    world.config["annotations"] = json!({"org.systemd.property.TimeoutStopSec": "2"});
    world.save();
    world
}

fn cgroups(name: &str) -> Vec<PathBuf> {
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup").expect("cgroups").flatten().map(|entry| entry.path());
    let all = hierarchies.chain([Path::new("/sys/fs/cgroup").to_owned()]);
    all.map(|place| place.join(name)).filter(|path| path.exists()).collect()
}

#[test]
fn a_unit_is_made_around_the_process_and_goes_with_it() {
    let world = world();
    let manager = Manager::new(&world, "done");
    let bundle = world.bundle();
    manager.run(&world, &["run", "-d", "--bundle", bundle.to_str().expect("utf-8")]).good();
    let unit = format!("sampan-{}.scope", world.id);
    let pid = world.pid();
    let own = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("cgroup");
    assert!(own.lines().any(|line| line.ends_with(&format!(":/{unit}"))), "{own}");

    let started = manager.body("StartTransientUnit");
    for word in [unit.as_str(), "replace", "-.slice", "Delegate", "TasksMax", "TimeoutStopUSec", "MemoryAccounting"] {
        assert!(has(&started, word), "{word}");
    }
    let at = started.windows(8).position(|window| window == b"PIDs\0\x02au").expect("PIDs") + 9;
    let at = at.next_multiple_of(4);
    assert_eq!((number(&started, at), number(&started, at + 4)), (4, pid.cast_unsigned()));
    // As the kernel has it too: systemd may round, and knows fewer.
    let limit = cgroups(&unit).iter().find_map(|path| std::fs::read_to_string(path.join("pids.max")).ok());
    assert_eq!(limit.as_deref(), Some("77\n"));

    manager.run(&world, &["update", "--pids-limit", "78"]).good();
    assert!(has(&manager.body("SetUnitProperties"), "TasksMax"));
    manager.run(&world, &["delete", "--force"]).good();
    assert!(has(&manager.body("StopUnit"), &unit));
    assert_eq!(cgroups(&unit), Vec::<PathBuf>::new());
    let members = manager.members();
    let first: Vec<_> = members.iter().take(4).map(String::as_str).collect();
    assert_eq!(first, ["ResetFailedUnit", "AddMatch", "Subscribe", "StartTransientUnit"]);
    assert_eq!(members.last().map(String::as_str), Some("ResetFailedUnit"));
    world.assert_gone();
}

#[test]
fn a_job_that_fails_undoes_the_create() {
    let world = world();
    let manager = Manager::new(&world, "failed");
    let bundle = world.bundle();
    let said = manager.run(&world, &["run", "-d", "--bundle", bundle.to_str().expect("utf-8")]).bad();
    assert!(said.contains("StartTransientUnit") && said.contains("\"failed\""), "{said}");
    world.assert_gone();
}

#[test]
fn what_systemd_cannot_be_asked_is_said() {
    let mut world = world();
    let manager = Manager::new(&world, "done");
    let bundle = world.bundle();
    let run = ["run", "--bundle", bundle.to_str().expect("utf-8")];
    world.config["linux"]["cgroupsPath"] = json!("/a/b");
    world.save();
    assert!(manager.run(&world, &run).bad().contains("slice:prefix:name"));
    world.config["linux"]["cgroupsPath"] = json!(":sampan:x");
    world.config["annotations"] = json!({"org.systemd.property.X": "nonsense"});
    world.save();
    assert!(manager.run(&world, &run).bad().contains("org.systemd.property.X"));
    world.config["annotations"] = json!({});
    world.save();
    let mut command = world.command();
    command.arg("--systemd-cgroup").args(run).arg(&world.id).env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/no/bus");
    let said: Said = command.output().expect("run").into();
    assert!(said.bad().contains("cannot be reached at /no/bus (is systemd running"));
    world.assert_gone();
}
