//! The systemd driver, against a manager of our own on a socket: it speaks as much D-Bus as systemd's would for a unit's life. What takes the
//! real one runs where it is the first process, in the virtual machine of `integration/e2e/tests/unified.rs`.

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use nix::sys::stat::{Mode, SFlag, major, minor, mknod};
use serde_json::{Value, json};

use crate::harness::{Said, World, eventually, give};

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
    assert_eq!((line(&mut stream), line(&mut stream)), ("\0AUTH EXTERNAL\r\n".to_owned(), "DATA\r\n".to_owned()));
    stream.write_all(b"DATA\r\nOK 0123456789abcdef\r\n").expect("write");
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

/// What the real one knows of a unit.
fn shown(unit: &str, property: &str) -> String {
    let said = std::process::Command::new("systemctl").args(["show", "--value", "-p", property, unit]).output();
    String::from_utf8_lossy(&said.expect("run systemctl").stdout).trim().to_owned()
}

fn systemctl(words: &[&str]) {
    let said = std::process::Command::new("systemctl").args(words).output().expect("run systemctl");
    assert!(said.status.success(), "{words:?}: {said:?}");
}

/// A file of a cgroup.
fn limit(cgroup: &str, file: &str) -> String {
    let path = Path::new("/sys/fs/cgroup").join(cgroup).join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.trim().to_owned()
}

fn limited(slice: &str) -> World {
    let mut world = World::new(&["sleep", "1000"]);
    world.config["linux"]["cgroupsPath"] = json!(format!("{slice}:sampan:{}", world.id));
    let disk = std::fs::metadata("/dev/vda").expect("the machine's disk").rdev();
    let disk = json!({"allow": true, "type": "b", "major": major(disk), "minor": minor(disk), "access": "r"});
    world.config["linux"]["resources"] = json!({
        "devices": [{"allow": false, "access": "rwm"}, disk],
        "memory": {"limit": 33_554_432, "reservation": 25_165_824, "swap": 67_108_864},
        "cpu": {"shares": 512, "quota": 5000, "period": 20000, "cpus": "1"},
        "pids": {"limit": 77},
        "unified": {"memory.high": "29360128"},
    });
    world.save();
    world
}

impl World {
    fn by_systemd(&self, words: &[&str], rest: &[&str]) -> Said {
        let mut command = self.command();
        command.arg("--systemd-cgroup").args(words).arg(&self.id).args(rest);
        let err = self.path("err");
        let file = std::fs::File::create(&err).expect("create");
        let status = command.stdout(std::process::Stdio::null()).stderr(file).status().expect("run sampan-oci");
        Said { out: String::new(), err: std::fs::read_to_string(err).expect("read"), code: status.code().unwrap_or(-1) }
    }

    fn begin_by_systemd(&self) -> String {
        let bundle = self.bundle();
        self.by_systemd(&["run", "-d", "--bundle", bundle.to_str().expect("utf-8")], &[]).good();
        format!("sampan-{}.scope", self.id)
    }

    /// Whether it may open a device of the host's.
    fn opens(&self, name: &str) -> bool {
        let node = self.rootfs().join("tmp").join(name);
        if !node.exists() {
            let device = std::fs::metadata(Path::new("/dev").join(name)).expect("stat");
            let kind = SFlag::from_bits_truncate(device.mode()) & SFlag::S_IFMT;
            mknod(&node, kind, Mode::from_bits_truncate(0o600), device.rdev()).expect("mknod");
        }
        let opened = self.oci(&["exec"], &["sh", "-c", &format!("exec 3< /tmp/{name}")]);
        assert!(opened.code == 0 || opened.err.contains("not permitted"), "{opened:?}");
        opened.code == 0
    }
}

#[test]
#[ignore = "runs in unified.rs' machine, under systemd"]
fn limits_are_systemds_too_and_survive_its_reload() {
    let world = limited("system.slice");
    let unit = world.begin_by_systemd();
    let cgroup = format!("system.slice/{unit}");
    let pid = world.pid();
    let own = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("cgroup");
    assert_eq!(own.trim(), format!("0::/{cgroup}"));
    for (property, value) in [
        ("ActiveState", "active"),
        ("Slice", "system.slice"),
        ("Delegate", "yes"),
        ("MemoryMax", "33554432"),
        ("MemoryLow", "25165824"),
        ("MemorySwapMax", "33554432"),
        ("MemoryHigh", "29360128"),
        ("CPUQuotaPerSecUSec", "250ms"),
        ("AllowedCPUs", "1"),
        ("TasksMax", "77"),
    ] {
        assert_eq!(shown(&unit, property), value, "{property}");
    }
    let check = |memory: &str| {
        for (file, value) in [
            ("memory.max", memory),
            ("memory.low", "25165824"),
            ("memory.high", "29360128"),
            ("cpu.max", "5000 20000"),
            ("cpu.weight", "59"),
            ("cpuset.cpus", "1"),
            ("pids.max", "77"),
        ] {
            assert_eq!(limit(&cgroup, file), value, "{file}");
        }
        // As every container; as this one; not at all.
        assert_eq!(["zero", "vda", "ttyS0"].map(|name| world.opens(name)), [true, true, false]);
    };
    check("33554432");
    // Whatever systemd does not know of a unit it takes away now.
    systemctl(&["daemon-reload"]);
    check("33554432");
    world.by_systemd(&["update", "--memory", "41943040", "--memory-swap", "67108864"], &[]).good();
    systemctl(&["daemon-reload"]);
    check("41943040");
    assert_eq!(shown(&unit, "MemoryMax"), "41943040");

    // Half of a quota, then the other half; and no limit on memory, which is none on swap.
    for (words, per_second, file) in
        [(["--cpu-period", "10000"], "500ms", "5000 10000"), (["--cpu-quota", "2500"], "250ms", "2500 10000")]
    {
        world.by_systemd(&[&["update"][..], &words].concat(), &[]).good();
        assert_eq!((shown(&unit, "CPUQuotaPerSecUSec"), limit(&cgroup, "cpu.max")), (per_second.into(), file.into()));
    }
    // What is refused is not told to systemd either, which would do it.
    std::fs::write(world.path("limits"), r#"{"memory":{"limit":1024,"checkBeforeUpdate":true}}"#).expect("write");
    let limits = world.path("limits");
    let said = world.by_systemd(&["update", "--resources", limits.to_str().expect("utf-8")], &[]).bad();
    assert!(said.contains("checkBeforeUpdate"), "{said}");
    assert_eq!(shown(&unit, "MemoryMax"), "41943040");
    world.by_systemd(&["update", "--memory", "-1"], &[]).good();
    assert_eq!(["MemoryMax", "MemorySwapMax"].map(|property| shown(&unit, property)), ["infinity", "infinity"]);

    world.oci(&["pause"], &[]).good();
    assert_eq!(world.status(), "paused");
    world.oci(&["resume"], &[]).good();
    let inside = world.oci(&["exec"], &["cat", "/proc/self/cgroup"]).good();
    assert_eq!(inside.trim(), "0::/");
    world.by_systemd(&["delete", "--force"], &[]).good();
    assert_eq!(shown(&unit, "LoadState"), "not-found");
    assert!(!Path::new("/sys/fs/cgroup").join(&cgroup).exists());
    world.assert_gone();
}

#[test]
#[ignore = "runs in unified.rs' machine, under systemd"]
fn on_v1_device_rules_are_systemds_too_and_survive_its_reload() {
    let mut world = World::new(&["sleep", "1000"]);
    world.config["linux"]["cgroupsPath"] = json!(format!("system.slice:sampan:{}", world.id));
    world.config["linux"]["resources"] = json!({
        "devices": [
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 10, "access": "rw"},
            {"allow": true, "type": "b", "major": 254, "minor": 0, "access": "r"},
        ],
        "memory": {"limit": 33_554_432},
        "cpu": {"quota": 5000, "period": 20000, "cpus": "1"},
        "pids": {"limit": 77},
    });
    world.save();
    let unit = world.begin_by_systemd();
    let own = std::fs::read_to_string(format!("/proc/{}/cgroup", world.pid())).expect("cgroup");
    let is_in = |line: &str| line.starts_with("0:") || line.ends_with(&format!(":/system.slice/{unit}"));
    assert!(own.lines().all(is_in), "{own}");
    let check = |pids: &str| {
        let of = |hierarchy: &str, file: &str| limit(&format!("{hierarchy}/system.slice/{unit}"), file);
        let devices = of("devices", "devices.list");
        let rule = |rule: &str| devices.lines().any(|line| line == rule);
        assert!(rule("c 10:* rw") && rule("b 254:0 r") && rule("c 1:3 rwm") && !rule("a *:* rwm"), "{devices}");
        assert_eq!([&*of("memory", "memory.limit_in_bytes"), &*of("pids", "pids.max")], ["33554432", pids]);
        assert_eq!([&*of("cpu", "cpu.cfs_quota_us"), &*of("cpuset", "cpuset.cpus")], ["5000", "1"]);
    };
    check("77");
    assert_eq!(shown(&unit, "DevicePolicy"), "strict");
    systemctl(&["daemon-reload"]);
    check("77");
    world.by_systemd(&["update", "--pids-limit", "78"], &[]).good();
    systemctl(&["set-property", "--runtime", &unit, "CPUShares=600"]);
    check("78");
    world.by_systemd(&["delete", "--force"], &[]).good();
    assert_eq!(shown(&unit, "LoadState"), "not-found");
    world.assert_gone();
}

#[test]
#[ignore = "runs in unified.rs' machine, under systemd"]
fn a_name_can_be_used_again_however_it_ended() {
    let mut world = limited("machine-tests.slice");
    world.config["process"]["args"] = json!(["sh", "-c", "exit 3"]);
    world.save();
    let unit = format!("sampan-{}.scope", world.id);
    for _ in 0..2 {
        let bundle = world.bundle();
        let said = world.by_systemd(&["run", "--bundle", bundle.to_str().expect("utf-8")], &[]);
        assert_eq!(said.code, 3, "{said:?}");
        assert_eq!(shown(&unit, "LoadState"), "not-found");
    }
    world.config["process"]["args"] = json!(["sleep", "1000"]);
    // Its init takes no notice of SIGTERM.
    world.config["annotations"] = json!({"org.systemd.property.TimeoutStopSec": "1"});
    world.save();
    assert_eq!(world.begin_by_systemd(), unit);
    // A slice of a slice is below it.
    assert_eq!(shown(&unit, "ControlGroup"), format!("/machine.slice/machine-tests.slice/{unit}"));
    // systemd may end a container as well.
    systemctl(&["stop", &unit]);
    eventually("it has stopped", || world.status() == "stopped");
    world.by_systemd(&["delete"], &[]).good();
    // And one that failed before it was a container leaves no unit behind.
    world.config["process"]["args"] = json!(["/not/there"]);
    world.save();
    let bundle = world.bundle();
    let said = world.by_systemd(&["run", "--bundle", bundle.to_str().expect("utf-8")], &[]).bad();
    assert!(said.contains("/not/there"), "{said}");
    assert_eq!(shown(&unit, "LoadState"), "not-found");
    world.assert_gone();
}

#[test]
#[ignore = "runs in unified.rs' machine, under systemd"]
fn what_systemd_refuses_is_told_in_its_words() {
    let mut world = limited("system.slice");
    world.config["annotations"] = json!({"org.systemd.property.NoSuchProperty": "true"});
    world.save();
    let bundle = world.bundle();
    let run = ["run", "-d", "--bundle", bundle.to_str().expect("utf-8")];
    let said = world.by_systemd(&run, &[]).bad();
    assert!(said.contains("NoSuchProperty"), "{said}");
    world.assert_gone();
    world.config["annotations"] = json!({
        "org.systemd.property.Description": "'a container of ours'",
        "org.systemd.property.TimeoutStopSec": "7",
    });
    world.save();
    let unit = world.begin_by_systemd();
    assert_eq!(shown(&unit, "Description"), "a container of ours");
    assert_eq!(shown(&unit, "TimeoutStopUSec"), "7s");
    // Two with one unit: the second is refused, the first lives.
    let mut second = limited("system.slice");
    second.config["linux"]["cgroupsPath"] = world.config["linux"]["cgroupsPath"].clone();
    second.save();
    let bundle = second.bundle();
    second.by_systemd(&["run", "-d", "--bundle", bundle.to_str().expect("utf-8")], &[]).bad();
    second.assert_gone();
    assert_eq!(world.status(), "running");
}

/// A user's systemd, on the user's bus.
struct Session {
    uid: u32,
    directory: PathBuf,
}

impl Session {
    fn begin(uid: u32) -> Self {
        let directory = PathBuf::from(format!("/run/user/{uid}"));
        std::fs::create_dir_all(&directory).expect("mkdir");
        std::os::unix::fs::chown(&directory, Some(uid), Some(uid)).expect("chown");
        systemctl(&["start", &format!("user@{uid}.service")]);
        let session = Self { uid, directory };
        eventually("its bus is there", || session.directory.join("bus").exists());
        session
    }

    /// As a podman of the user's would run it: with a container's root directory and state that are the user's.
    fn command(&self, world: &World, program: &[&str]) -> std::process::Command {
        let mut command = std::process::Command::new(program[0]);
        command.args(&program[1..]).uid(self.uid).gid(self.uid).current_dir("/");
        command.env("XDG_RUNTIME_DIR", &self.directory);
        command.env("DBUS_SESSION_BUS_ADDRESS", format!("unix:path={}/bus", self.directory.display()));
        command.arg("--root").arg(world.state_root()).arg("--systemd-cgroup").stdin(std::process::Stdio::null());
        command
    }

    fn shown(&self, unit: &str, property: &str) -> String {
        let mut command = std::process::Command::new("systemctl");
        command.args(["--user", "show", "--value", "-p", property, unit]).uid(self.uid).gid(self.uid);
        let said = command.env("XDG_RUNTIME_DIR", &self.directory).output().expect("run systemctl");
        String::from_utf8_lossy(&said.stdout).trim().to_owned()
    }
}

#[test]
#[ignore = "runs in unified.rs' machine, under systemd"]
fn a_user_without_rights_has_limits_by_its_own_systemd() {
    const UID: u32 = 1000;
    let session = Session::begin(UID);
    // By itself in a new user namespace, and as the root of one that a podman of the user's has made.
    for is_inside in [false, true] {
        let mut world = World::new(&["sleep", "1000"]);
        world.config["linux"]["cgroupsPath"] = json!(format!("user.slice:sampan:{}", world.id));
        world.config["linux"]["resources"] = json!({"memory": {"limit": 33_554_432}, "pids": {"limit": 77}});
        if !is_inside {
            let namespaces = world.config["linux"]["namespaces"].as_array_mut().expect("namespaces");
            namespaces.push(json!({"type": "user"}));
        }
        for mount in world.config["mounts"].as_array_mut().expect("mounts") {
            if mount["type"] == "devpts" {
                mount["options"] = json!(["newinstance", "ptmxmode=0666"]);
            }
        }
        world.save();
        std::fs::create_dir_all(world.state_root()).expect("mkdir");
        give(&world.path(""), UID, UID);
        let runtime = world.runtime.to_str().expect("utf-8").to_owned();
        let program: &[&str] = if is_inside { &["unshare", "-U", "-m", "-r", &runtime] } else { &[&runtime] };
        let run = |words: &[&str]| -> Said {
            let err = world.path("err");
            let file = std::fs::File::create(&err).expect("create");
            let mut command = session.command(&world, program);
            let status = command.args(words).arg(&world.id).stdout(std::process::Stdio::null()).stderr(file).status();
            let code = status.expect("run").code().unwrap_or(-1);
            Said { out: String::new(), err: std::fs::read_to_string(err).expect("read"), code }
        };
        let bundle = world.bundle();
        run(&["run", "-d", "--bundle", bundle.to_str().expect("utf-8")]).good();
        let unit = format!("sampan-{}.scope", world.id);
        assert_eq!(session.shown(&unit, "MemoryMax"), "33554432", "inside: {is_inside}");
        let cgroup = session.shown(&unit, "ControlGroup");
        assert!(cgroup.ends_with(&format!("/user@{UID}.service/user.slice/{unit}")), "{cgroup}");
        // From its own record: root does not ask a program about what is the user's.
        let record = std::fs::read(world.state_root().join(&world.id).join("state.json")).expect("record");
        let record: Value = serde_json::from_slice(&record).expect("json");
        let own = std::fs::read_to_string(format!("/proc/{}/cgroup", record["pid"])).expect("cgroup");
        assert_eq!(own.trim(), format!("0::{cgroup}"));
        let cgroup = cgroup.trim_start_matches('/');
        assert_eq!([limit(cgroup, "memory.max"), limit(cgroup, "pids.max")], ["33554432", "77"]);
        run(&["delete", "--force"]).good();
        assert_eq!(session.shown(&unit, "LoadState"), "not-found");
        world.assert_gone();
    }
}
