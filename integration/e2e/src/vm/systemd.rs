//! A guest whose first process is the host's systemd, with a D-Bus daemon: no service but these and the guest's program.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::Vm;

/// Since systemd 254 a program of its own starts the services.
const PROGRAMS: [&str; 2] = ["/usr/lib/systemd/systemd", "/usr/lib/systemd/systemd-executor"];
const TOOLS: [&str; 2] = ["/usr/bin/systemctl", "/usr/bin/dbus-daemon"];

/// How systemd lays out the cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    Unified,
    /// v1 alone, each controller with a hierarchy of its own.
    Legacy,
}

impl Layout {
    /// The last line of the tree's init, in place of the guest's program.
    pub(super) fn start(self) -> String {
        let legacy = "umount /sys/fs/cgroup\n\
                      export SYSTEMD_PROC_CMDLINE='systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1'\n";
        let before = if self == Self::Legacy { legacy } else { "" };
        let flags = "--unit=program.service --show-status=false --log-target=console --log-level=warning";
        format!("{before}exec /usr/lib/systemd/systemd {flags}\n")
    }
}

const PROGRAM: &str = "\
[Unit]
DefaultDependencies=no
Requires=dbus.service
After=dbus.service

[Service]
Type=oneshot
StandardInput=null
StandardOutput=file:/dev/console
StandardError=file:/dev/console
Environment=PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=dumb
ExecStart=/program-and-off
";

/// systemd goes on the bus once these two are active.
const BUS_SOCKET: &str = "\
[Unit]
DefaultDependencies=no

[Socket]
ListenStream=/run/dbus/system_bus_socket
";

const BUS: &str = "\
[Unit]
DefaultDependencies=no
Requires=dbus.socket
After=dbus.socket

[Service]
Type=notify
NotifyAccess=main
ExecStart=/usr/bin/dbus-daemon --config-file=/etc/bus.conf --address=systemd: --nofork --nopidfile
";

/// A user's own, by the user's number, as of the host; but without PAM, which is not in the guest.
const USERS: &str = "\
[Unit]
DefaultDependencies=no

[Service]
User=%i
Type=notify
Delegate=pids memory cpu cpuset
Environment=XDG_RUNTIME_DIR=/run/user/%i
ExecStart=/usr/lib/systemd/systemd --user --unit=dbus.service --log-target=console
";

const USERS_BUS_SOCKET: &str = "\
[Unit]
DefaultDependencies=no

[Socket]
ListenStream=%t/bus
";

/// Everybody may do everything; who may ask systemd for what is systemd's own affair.
const BUS_CONFIGURATION: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_type="method_return"/>
    <allow send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="signal"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
  </policy>
</busconfig>
"#;

pub(super) fn add(vm: &mut Vm) -> Result<()> {
    for program in PROGRAMS.iter().filter(|program| Path::new(program).exists()) {
        vm.program(Path::new(program), program)?;
    }
    for tool in TOOLS {
        if !Path::new(tool).exists() {
            bail!("{tool} is missing: install the packages systemd and dbus");
        }
        vm.program(Path::new(tool), tool).with_context(|| format!("put {tool} into the guest"))?;
    }
    for (name, text) in [
        ("system/program.service", PROGRAM),
        ("system/dbus.socket", BUS_SOCKET),
        ("system/dbus.service", BUS),
        ("system/user@.service", USERS),
        ("user/dbus.socket", USERS_BUS_SOCKET),
        ("user/dbus.service", BUS),
    ] {
        vm.file(&format!("/etc/systemd/{name}"), text);
    }
    vm.file("/etc/bus.conf", BUS_CONFIGURATION);
    vm.file("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:a user:/:/bin/sh\n");
    Ok(())
}
