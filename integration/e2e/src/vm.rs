//! A small virtual machine on pure cgroup v2 (or, under systemd, v1), whatever the host has: Debian's cloud kernel under qemu's own emulation, so that it runs
//! where nothing may be virtualised, with an initramfs that is made here. No network, no disk.
//!
//! `Vm` collects what the guest holds; `run` boots it, runs one program as the only work of the machine, and returns its exit code and
//! everything that the console showed. Invariant: the machine ends with its program, or when it has used up its time. That is counted on its
//! processors: beside a build it may get a twentieth of them, and is then no more stuck than the build.

mod cpio;
mod kernel;
mod systemd;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};

use crate::image::program;
use cpio::Archive;
use kernel::Kernel;
pub use systemd::Layout;

const QEMU: &str = "qemu-system-x86_64";
const BUSYBOX: &str = "/bin/busybox";
/// What the guest says last, followed by the exit code of its program. Not `=`, which a shell trace could show.
const MARKER: &str = "the guest's program ended with ";
const MEMORY_MB: u32 = 1280;
const PROCESSORS: u64 = 2;
/// Ends a guest that waits for ever, whatever it was given; less than any test may take.
const PATIENCE_SECONDS: &str = "540";
/// A debug build of everything is ten times the size of this machine's memory; what is larger goes in without its symbols.
const STRIP_BYTES: u64 = 4 << 20;
/// Overlays for containers, bridges and rules for pods, what criu asks about sockets; what they depend on comes with them.
const MODULES: [&str; 20] = [
    "virtio_pci",
    "virtio_blk",
    "overlay",
    "veth",
    "bridge",
    "br_netfilter",
    "nf_tables",
    "nft_chain_nat",
    "nft_masq",
    "nft_nat",
    "nft_ct",
    "nft_fib_inet",
    "nft_numgen",
    "nft_reject_inet",
    "nf_conntrack_netlink",
    "unix_diag",
    "tcp_diag",
    "udp_diag",
    "netlink_diag",
    "af_packet_diag",
];

/// Brings up what any Linux has before its first service, and no cgroup controller: enabling them is for who needs them.
///
/// Nobody may pivot away from the first root of all, an initramfs; so the same tree is mounted over it, and that one has a parent.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=dumb
mount --rbind / /tree && cd /tree && mount --move . / || poweroff -f
exec chroot . /init-in-tree
"#;

/// The second half, in the tree. A debugger of the guest sets `set -x` here.
const INIT_IN_TREE: &str = r#"#!/bin/busybox sh
cd /
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm /dev/mqueue
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t mqueue mqueue /dev/mqueue
# With what the archive has there: a program lies where its test was built, which may be below any of them.
fresh() { mount -t tmpfs tmpfs /mnt && cp -a "$1/." /mnt/ && mount --move /mnt "$1"; }
fresh /run
fresh /tmp && chmod 1777 /tmp
fresh /var
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
hostname guest
for module in /modules/*; do insmod "$module" || echo "insmod $module failed"; done
echo 1 > /proc/sys/net/ipv4/ip_forward
. /last
"#;

/// The only work of the machine, and its end.
const PROGRAM_AND_OFF: &str = r#"#!/bin/busybox sh
/program < /dev/null
echo "the guest's program ended with $?"
poweroff -f
"#;

/// What the guest said.
#[derive(Clone, Debug)]
pub struct Report {
    /// Of the guest's program.
    pub code: i32,
    pub console: String,
}

/// A machine to be: a kernel and the files of its memory.
#[derive(Debug)]
pub struct Vm {
    kernel: Kernel,
    archive: Archive,
    scratch: tempfile::TempDir,
}

impl Vm {
    /// A guest with busybox and the kernel's modules.
    pub fn new() -> Result<Self> {
        let found = Command::new(QEMU).arg("--version").stdout(Stdio::null()).status();
        ensure!(found.is_ok_and(|status| status.success()), "{QEMU} is missing: install the package qemu-system-x86");
        ensure!(Path::new(BUSYBOX).exists(), "{BUSYBOX} is missing: install the package busybox-static");
        let kernel = Kernel::obtain()?;
        let scratch = tempfile::Builder::new().prefix("sampan-vm-").tempdir()?;
        let mut vm = Self { kernel, archive: Archive::new(), scratch };
        for directory in [
            "dev", "proc", "sys", "mnt", "run", "tmp", "tree", "var", "root", "etc", "sbin", "usr/bin", "usr/sbin",
            "modules",
        ] {
            vm.archive.directory(directory);
        }
        vm.archive.file("bin/busybox", 0o755, fs::read(BUSYBOX).context("read busybox")?);
        vm.archive.file("init", 0o755, INIT.into());
        vm.archive.file("init-in-tree", 0o755, INIT_IN_TREE.into());
        vm.archive.file("program-and-off", 0o755, PROGRAM_AND_OFF.into());
        vm.archive.file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n".into());
        vm.archive.file("etc/resolv.conf", 0o644, "nameserver 127.0.0.1\n".into());
        vm.archive.file("etc/group", 0o644, "root:x:0:\ntty:x:5:\n".into());
        for (index, (name, content)) in vm.kernel.modules(&MODULES)?.into_iter().enumerate() {
            // The shell's order of names is the order of dependency.
            vm.archive.file(&format!("modules/{index:03}-{name}.ko"), 0o644, content);
        }
        Ok(vm)
    }

    /// A program of the host at a path of the guest, with the loader and the libraries that it needs.
    pub fn program(&mut self, from: &Path, to: &str) -> Result<&mut Self> {
        let size = fs::metadata(from).with_context(|| format!("find {}", from.display()))?.len();
        let content = if size > STRIP_BYTES { self.stripped(from)? } else { fs::read(from)? };
        self.archive.file(to.trim_start_matches('/'), 0o755, content);
        for library in program::needed(from)? {
            let content = fs::read(&library).with_context(|| format!("read {}", library.display()))?;
            self.archive.file(library.to_string_lossy().trim_start_matches('/'), 0o755, content);
        }
        Ok(self)
    }

    pub fn file(&mut self, to: &str, content: &str) -> &mut Self {
        self.archive.file(to.trim_start_matches('/'), 0o644, content.into());
        self
    }

    pub fn symlink(&mut self, at: &str, target: &str) -> &mut Self {
        self.archive.symlink(at.trim_start_matches('/'), target);
        self
    }

    fn stripped(&self, from: &Path) -> Result<Vec<u8>> {
        let to = self.scratch.path().join("stripped");
        let status = Command::new("strip").arg("-o").arg(&to).arg(from).status().context("run strip (binutils)")?;
        ensure!(status.success(), "strip {} ended with {status}", from.display());
        fs::read(&to).with_context(|| format!("read {}", to.display()))
    }

    /// Boots, runs a shell script and returns when the machine is off; `deadline` is what it takes at most with its processors to itself.
    pub fn run(self, script: &str, deadline: Duration) -> Result<Report> {
        self.run_after("exec /program-and-off\n", script, deadline)
    }

    /// The same as a service of the host's systemd, which is the guest's first process and on the bus.
    pub fn run_under_systemd(mut self, layout: Layout, script: &str, deadline: Duration) -> Result<Report> {
        systemd::add(&mut self)?;
        self.run_after(&layout.start(), script, deadline)
    }

    fn run_after(mut self, last: &str, script: &str, deadline: Duration) -> Result<Report> {
        self.archive.file("last", 0o644, last.into());
        self.archive.file("program", 0o755, format!("#!/bin/sh\n{script}").into());
        let initramfs = self.scratch.path().join("initramfs");
        fs::write(&initramfs, self.archive.finish()).context("write the initramfs")?;
        let (began, used) = (Instant::now(), processor_seconds()?);
        let console = self.boot(&initramfs, deadline)?;
        let ended = console.lines().rev().find_map(|line| line.trim().strip_prefix(MARKER));
        let Some(code) = ended.and_then(|code| code.parse().ok()) else {
            bail!(
                "the guest ended, or was ended, without a word, after {} s in which its processors ran for {} s:\n{console}",
                began.elapsed().as_secs(),
                processor_seconds()? - used
            );
        };
        Ok(Report { code, console })
    }

    fn boot(&self, initramfs: &Path, deadline: Duration) -> Result<String> {
        let mut command = Command::new("timeout");
        command.args(["-k", "1", PATIENCE_SECONDS, "prlimit", &format!("--cpu={}", PROCESSORS * deadline.as_secs())]);
        command.args([QEMU, "-accel", "tcg,thread=multi", "-cpu", "max"]);
        command.args(["-smp", &PROCESSORS.to_string(), "-m", &MEMORY_MB.to_string()]);
        command.args(["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"]);
        // A disk that reads as zeros, to have something with a device number.
        command.args(["-drive", "driver=null-co,read-zeroes=on,size=16M,if=virtio"]);
        command.arg("-kernel").arg(self.kernel.image()).arg("-initrd").arg(initramfs);
        command.args(["-append", "console=ttyS0 loglevel=4 panic=-1 mitigations=off nokaslr systemd.show_status=0"]);
        let console: PathBuf = self.scratch.path().join("console");
        // To a file: a reader that falls behind would slow the guest down.
        let output = fs::File::create(&console).context("create the console")?;
        let errors = output.try_clone().context("share the console")?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors).status().with_context(|| format!("run {QEMU}"))?;
        let text = fs::read(&console).context("read the console")?;
        Ok(String::from_utf8_lossy(&text).replace('\r', ""))
    }
}

/// What our children that have ended used.
fn processor_seconds() -> Result<i64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("ask for the processor time")?;
    Ok(usage.user_time().tv_sec() + usage.system_time().tv_sec())
}
