//! `sampan-bare ROOTFS PROGRAM [ARGUMENT...]`: namespaces, mounts, `pivot_root` and exec, and nothing else.
//!
//! The floor under the benchmarks: what the kernel alone takes for a container. It reads no configuration, checks nothing, drops no
//! privilege and makes no cgroup, so it is not a runtime and must never run what is not trusted.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::MsFlags;
use nix::sys::stat::Mode;
use runtime_linux::clone::{Cloned, clone, exit_now};
use runtime_linux::mount::{self, Filesystem, Tree, attribute};
use runtime_linux::namespace::Kind;
use runtime_linux::{pidfd, process};

/// Directory below the root, kind, options, attributes.
type Mount = (&'static str, &'static str, &'static [(&'static str, &'static str)], u64);

/// In this order. What `sampan-oci spec` mounts, but for cgroups.
const MOUNTS: [Mount; 6] = [
    ("proc", "proc", &[], 0),
    ("dev", "tmpfs", &[("mode", "755"), ("size", "65536k")], attribute::NOSUID | attribute::STRICTATIME),
    (
        "dev/pts",
        "devpts",
        &[("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")],
        attribute::NOSUID | attribute::NOEXEC,
    ),
    ("dev/shm", "tmpfs", &[("mode", "1777"), ("size", "65536k")], RESTRICTED),
    ("dev/mqueue", "mqueue", &[], RESTRICTED),
    ("sys", "sysfs", &[], RESTRICTED | attribute::RDONLY),
];
const RESTRICTED: u64 = attribute::NOSUID | attribute::NODEV | attribute::NOEXEC;
const NAMESPACES: [Kind; 5] = [Kind::Mount, Kind::Uts, Kind::Ipc, Kind::Pid, Kind::Network];

fn main() -> ExitCode {
    let words: Vec<CString> =
        std::env::args_os().skip(1).filter_map(|word| CString::new(word.into_vec()).ok()).collect();
    let [root, command @ ..] = &words[..] else { return told("usage: sampan-bare ROOTFS PROGRAM [ARGUMENT...]") };
    let Some(program) = command.first() else { return told("which program is to run?") };
    let Ok(root) = root.to_str() else { return told("the root file system's path is not UTF-8") };
    let flags = NAMESPACES.iter().fold(0, |flags, kind| flags | kind.flag());
    match clone(flags, None) {
        Ok(Cloned::Child) => {
            let errno = match enter(Path::new(root)) {
                Ok(()) => process::exec(program, command, &[]),
                Err(errno) => errno,
            };
            told(errno.desc());
            exit_now(1)
        }
        Ok(Cloned::Parent { pidfd, .. }) => match pidfd::wait(&pidfd) {
            Ok(exit) => ExitCode::from(u8::try_from(exit.code()).unwrap_or(u8::MAX)),
            Err(errno) => told(errno.desc()),
        },
        Err(errno) => told(errno.desc()),
    }
}

fn told(text: &str) -> ExitCode {
    use std::io::Write;
    let _nobody_reads = writeln!(std::io::stderr(), "sampan-bare: {text}");
    ExitCode::FAILURE
}

fn enter(root: &Path) -> Result<(), Errno> {
    mount::set_root_propagation(MsFlags::MS_SLAVE)?;
    let tree = mount::open_tree(nix::fcntl::AT_FDCWD, root, Tree::CloneRecursive)?;
    mount::attach(&tree, directory(root)?)?;
    let inside = directory(root)?;
    for (path, kind, options, attributes) in MOUNTS {
        let filesystem = Filesystem::open(kind)?;
        for (key, value) in options {
            filesystem.set(key, value)?;
        }
        let mounted = filesystem.mount(attributes)?;
        let target = match below(&inside, path) {
            Err(Errno::ENOENT) => {
                nix::sys::stat::mkdirat(&inside, path, Mode::from_bits_truncate(0o755))?;
                below(&inside, path)?
            }
            other => other?,
        };
        mount::attach(&mounted, &target)?;
    }
    nix::unistd::sethostname("bare")?;
    mount::pivot_root(&inside)?;
    nix::unistd::chdir("/")
}

fn directory(path: &Path) -> Result<OwnedFd, Errno> {
    open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

fn below(root: &OwnedFd, path: &str) -> Result<OwnedFd, Errno> {
    nix::fcntl::openat(root.as_fd(), path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}
