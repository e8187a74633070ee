//! `checkpoint` and `restore`: a running container's state to a directory and back, by the criu program.
//!
//! criu is the one program that this runtime runs besides hooks: it is asked for by name, and nothing else can do its work. What is told
//! to it is planned in `arguments.rs`.

mod arguments;

use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::stat::Mode;
use runtime_linux::mount::{self, Tree};
use runtime_linux::namespace::{self, Kind};
use runtime_linux::pidfd;

use crate::confine::Confinement;
use crate::create::{Undo, parent};
use crate::error::Error;
use crate::record::{self, Place, Record};
use crate::status::Status;
use crate::{Bundle, Cgroups, ContainerId, Created, Deletion, StateRoot};
use arguments::Externals;

/// criu, and what the caller wants it to know.
#[derive(Debug)]
pub struct Criu {
    pub program: PathBuf,
    pub images: PathBuf,
    /// Where its log goes; by default beside the images.
    pub work: Option<PathBuf>,
    /// Options that have nothing to do with the container, as criu's command line has them.
    pub options: Vec<String>,
}

/// What becomes of the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dump {
    /// It ends, and is deleted.
    Stop,
    /// It goes on.
    LeaveRunning,
    /// Only its memory is saved, for a later dump to build on; it goes on.
    PreDump,
}

/// Saves a running container.
pub fn checkpoint(root: &StateRoot, id: &ContainerId, criu: &Criu, dump: Dump) -> Result<(), Error> {
    let place = Place::new(root, id);
    let record = place.load()?;
    let cgroup = root.cgroup(&record.cgroup)?;
    match record.status(&place, || cgroup.is_frozen().unwrap_or(false)) {
        Status::Running | Status::Paused => {}
        status => return Err(Error::WrongStatus { id: id.to_string(), operation: "checkpoint", status }),
    }
    let externals = Externals::of(&place.config()?, &record.rootfs)?;
    make_directory(&criu.images)?;
    save_descriptors(&criu.images, record.pid)?;
    let mut words = vec![if dump == Dump::PreDump { "pre-dump" } else { "dump" }.to_owned()];
    words.extend(["--tree".to_owned(), record.pid.to_string()]);
    words.extend(["--root".to_owned(), record.rootfs.display().to_string()]);
    words.extend(externals.for_dump());
    if let Some(directory) = cgroup.directory_of("freezer").filter(|directory| directory.is_dir()) {
        words.extend(["--freeze-cgroup".to_owned(), directory.display().to_string()]);
    }
    if dump == Dump::LeaveRunning {
        words.push("--leave-running".to_owned());
    }
    run(criu, "dump.log", words)?;
    if dump == Dump::Stop { crate::delete(root, id, Deletion::Force).map(drop) } else { Ok(()) }
}

/// Makes a container of what was saved. Its init is a child of the caller.
pub fn restore(
    root: &StateRoot,
    id: &ContainerId,
    bundle: &Bundle,
    criu: &Criu,
    cgroups: Cgroups,
) -> Result<Created, Error> {
    let spec = bundle.spec();
    if !criu.images.is_dir() {
        let source = std::io::Error::from(ErrorKind::NotFound);
        return Err(Error::Read { path: criu.images.clone(), source });
    }
    let rootfs = bundle.rootfs();
    let externals = Externals::of(spec, &rootfs)?;
    let confinement = Confinement::plan(root, spec, id, cgroups)?;
    let place = Place::new(root, id);
    let lock = place.take()?;
    let mut undo = Undo::new(&place, confinement);
    let mut record = Record::new(bundle, id, SystemTime::now());
    record.cgroup = undo.confinement.recorded_path();
    record.unit = undo.confinement.unit().cloned();
    record.namespaces = externals.namespaces.clone();
    place.write_config(bundle.raw())?;
    place.write(&record)?;
    let mut warnings = Vec::new();
    undo.confinement.prepare(spec, &mut warnings)?;
    record.cgroup = undo.confinement.recorded_path();

    let held = mount_root(&rootfs, &place.path("criu-root"))?;
    let pid_file = place.path("criu.pid");
    let mut words = vec!["restore".to_owned(), "--restore-detached".to_owned(), "--restore-sibling".to_owned()];
    words.extend(["--pidfile".to_owned(), pid_file.display().to_string()]);
    words.extend(["--root".to_owned(), held.0.display().to_string()]);
    words.extend(externals.for_restore());
    words.extend(inherited_pipes(&criu.images)?);
    let network = externals.network.as_deref().map(open_for_child).transpose()?;
    if let Some(network) = &network {
        use std::os::fd::AsRawFd;
        words.extend(["--inherit-fd".to_owned(), format!("fd[{}]:{}", network.as_raw_fd(), arguments::NETWORK)]);
    }
    run(criu, "restore.log", words)?;
    drop(held);
    record.pid = read_pid(&pid_file)?;
    let process = pidfd::open(record.pid).map_err(parent("open the restored init"))?;
    undo.confinement.admit(record.pid, spec, &mut warnings)?;
    record.pid_started = record::start_time(record.pid).ok_or_else(|| Error::ChildVanished("at once".to_owned()))?;
    place.write(&record)?;
    undo.is_armed = false;
    drop(lock);
    Ok(Created { pid: record.pid, pidfd: process, console: None, warnings })
}

fn run(criu: &Criu, log: &str, words: Vec<String>) -> Result<(), Error> {
    let work = criu.work.as_ref().unwrap_or(&criu.images);
    make_directory(work)?;
    let mut command = Command::new(&criu.program);
    command.args(words).arg("--images-dir").arg(&criu.images).arg("--work-dir").arg(work);
    // criu changes to the work directory before it opens its log.
    command.args(["--log-file", log, "-v4"]).args(&criu.options).stdin(Stdio::inherit());
    let failed = |what: String| Error::Criu { what };
    let status = command.status().map_err(|error| {
        let program = criu.program.display();
        if error.kind() == ErrorKind::NotFound {
            failed(format!("{program} is not installed: install criu, or name it with --criu"))
        } else {
            failed(format!("{program} cannot be run: {error}"))
        }
    })?;
    if status.success() { Ok(()) } else { Err(failed(format!("{status}: see {}", work.join(log).display()))) }
}

fn make_directory(path: &Path) -> Result<(), Error> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| Error::Write { path: path.to_owned(), source })
}

/// Where the standard streams led, by which `restore` knows a pipe again. The file's name and shape are runc's and crun's.
fn save_descriptors(images: &Path, pid: i32) -> Result<(), Error> {
    let target = |number: i32| {
        let link = std::fs::read_link(format!("/proc/{pid}/fd/{number}"));
        link.map(|target| target.display().to_string()).unwrap_or_default()
    };
    let text = serde_json::to_vec(&[target(0), target(1), target(2)]).unwrap_or_default();
    let path = images.join("descriptors.json");
    std::fs::write(&path, text).map_err(|source| Error::Write { path, source })
}

fn inherited_pipes(images: &Path) -> Result<Vec<String>, Error> {
    let path = images.join("descriptors.json");
    let text = match std::fs::read(&path) {
        // Images that somebody else made.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|source| Error::Read { path: path.clone(), source })?,
    };
    let all: Vec<String> = serde_json::from_slice(&text).map_err(|source| Error::Parse { path, source })?;
    Ok(arguments::inherit(&all))
}

fn read_pid(path: &Path) -> Result<i32, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    text.trim().parse().map_err(|_| Error::Criu { what: format!("{} holds no process id", path.display()) })
}

/// A descriptor that criu gets along.
fn open_for_child(path: &Path) -> Result<OwnedFd, Error> {
    let step = || format!("open network namespace {}", path.display());
    let fd = nix::fcntl::open(path, OFlag::O_RDONLY, Mode::empty()).map_err(parent(step()))?;
    fcntl(fd.as_fd(), FcntlArg::F_SETFD(FdFlag::empty())).map_err(parent(step()))?;
    Ok(fd)
}

/// criu wants its root to be a mount: one that only we see, and that goes with this value.
struct Held(PathBuf);

impl Drop for Held {
    fn drop(&mut self) {
        // The restored container has its own copy; what is left goes with our mount namespace.
        let _gone = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn mount_root(rootfs: &Path, at: &Path) -> Result<Held, Error> {
    make_directory(at)?;
    namespace::unshare(Kind::Mount.flag()).map_err(parent("unshare the mount namespace"))?;
    mount::set_root_propagation(MsFlags::MS_PRIVATE | MsFlags::MS_REC)
        .map_err(parent("cut mount propagation to the host"))?;
    let tree = mount::open_tree(nix::fcntl::AT_FDCWD, rootfs, Tree::CloneRecursive)
        .map_err(parent(format!("open {}", rootfs.display())))?;
    let target =
        nix::fcntl::open(at, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(parent("open the root"))?;
    mount::attach(&tree, &target).map_err(parent("bind the root file system"))?;
    Ok(Held(at.to_owned()))
}
