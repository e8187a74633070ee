//! spec: a configuration to begin with, as `runc spec` writes one.

use std::fs::OpenOptions;
use std::io::Write;

use runtime_linux::cgroup::{Hierarchy, Mode};
use serde_json::{Value, json};

use super::Error;
use super::arguments::Spec;

const CAPABILITIES: [&str; 3] = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];

pub(crate) fn write(spec: &Spec) -> Result<u8, Error> {
    let path = match &spec.file {
        Some(file) => file.clone(),
        None => spec.bundle.join("config.json"),
    };
    let what = || format!("write {}; move an old one away first", path.display());
    let mut value = base();
    // A v1 hierarchy says where one is all the same, and what was made for it reads that.
    if Hierarchy::detect().is_ok_and(|hierarchy| hierarchy.mode() == Mode::Unified)
        && let Some(namespaces) = value["linux"]["namespaces"].as_array_mut()
    {
        namespaces.push(json!({ "type": "cgroup" }));
    }
    if spec.rootless {
        make_rootless(&mut value);
    }
    let text = serde_json::to_string_pretty(&value).map_err(|source| Error::Json { what: what(), source })?;
    let mut file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(Error::io(what()))?;
    file.write_all(text.as_bytes()).map_err(Error::io(what()))?;
    Ok(0)
}

fn base() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "terminal": true,
            "user": { "uid": 0, "gid": 0 },
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": { "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "sampan",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            {
                "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
            },
            {
                "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            },
            {
                "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
            },
            {
                "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
                "options": ["nosuid", "noexec", "nodev"],
            },
            {
                "destination": "/sys", "type": "sysfs", "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", "ro"],
            },
            {
                "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                "options": ["nosuid", "noexec", "nodev", "relatime", "ro"],
            },
        ],
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
            ],
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

/// No network of its own, so no sysfs either; ids mapped to the caller's; nothing that only root may set.
fn make_rootless(value: &mut Value) {
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let linux = &mut value["linux"];
    linux["namespaces"] = json!([{ "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }, { "type": "cgroup" }, { "type": "user" }]);
    linux["uidMappings"] = json!([{ "containerID": 0, "hostID": uid, "size": 1 }]);
    linux["gidMappings"] = json!([{ "containerID": 0, "hostID": gid, "size": 1 }]);
    if let Some(linux) = linux.as_object_mut() {
        linux.remove("resources");
    }
    let Some(mounts) = value["mounts"].as_array_mut() else { return };
    mounts.retain(|mount| mount["type"] != "cgroup");
    for mount in mounts {
        if mount["type"] == "sysfs" {
            *mount = json!({
                "destination": "/sys", "type": "none", "source": "/sys",
                "options": ["rbind", "nosuid", "noexec", "nodev", "ro"],
            });
        } else if mount["type"] == "devpts"
            && let Some(options) = mount["options"].as_array_mut()
        {
            options.retain(|option| option != "gid=5");
        }
    }
}
