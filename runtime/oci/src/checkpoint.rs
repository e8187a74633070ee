//! `checkpoint` and `restore`: a running container's state to a directory and back, by the criu program.
//!
//! criu is the one program that this runtime runs besides hooks: it is asked for by name, and nothing else can do its work. Invariant: who
//! was restored is on record before it runs its first instruction.

mod externals;
mod mount_points;
mod rpc;

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use oci_spec::runtime::Spec;
use runtime_linux::cgroup::Cgroup;
use runtime_linux::namespace::Kind as Namespace;
use runtime_linux::pidfd;

use crate::cgroup_view::view;
use crate::confine::Confinement;
use crate::create::{Undo, parent, runtime_hooks};
use crate::error::Error;
use crate::plan::CgroupView;
use crate::record::{self, Place, Record};
use crate::status::Status;
use crate::{Bundle, Cgroups, ContainerId, Created, Deletion, StateRoot};
use externals::Externals;
use mount_points::PrivateRoot;
use rpc::{CgroupRoot, InheritFd, Kind, Session};
pub use rpc::{CriuOptions, ManageCgroups, NetworkLock, PageServer};

/// Whose value is the path of criu's own configuration file for a container; empty for none. As with runc and crun.
const CONFIGURATION: &str = "org.criu.config";
/// Where there is no annotation: the first of these that is there.
const CONFIGURATIONS: [&str; 3] = ["/etc/criu/sampan-oci.conf", "/etc/criu/crun.conf", "/etc/criu/runc.conf"];

/// criu, and what the caller wants it to know.
#[derive(Clone, Debug)]
pub struct Criu {
    pub program: PathBuf,
    pub images: PathBuf,
    /// Where its log goes; by default beside the images.
    pub work: Option<PathBuf>,
    pub options: CriuOptions,
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

/// Saves a running container. `ready`: a descriptor that gets a zero byte once lazy pages can be fetched.
pub fn checkpoint(
    root: &StateRoot,
    id: &ContainerId,
    criu: &Criu,
    dump: Dump,
    mut ready: Option<File>,
) -> Result<(), Error> {
    let place = Place::new(root, id);
    let record = place.load()?;
    let cgroup = root.cgroup(&record.cgroup)?;
    match record.status(&place, || cgroup.is_frozen().unwrap_or(false)) {
        Status::Running | Status::Paused => {}
        status => return Err(Error::WrongStatus { id: id.to_string(), operation: "checkpoint", status }),
    }
    let spec = place.config()?;
    let externals = Externals::of(&spec, &record.bundle, &seen(root, &spec, &cgroup)?);
    make_directory(&criu.images)?;
    let directories = Directories::open(criu)?;
    let mut options = directories.tell(criu.options.clone());
    options.pid = Some(record.pid);
    options.root = Some(record.rootfs.display().to_string());
    options.leave_running = Some(dump == Dump::LeaveRunning);
    options.external = externals.of_running(record.pid)?;
    // It stops all at once, and lets a paused container go for as long as it has to do something itself.
    let freezer = if cgroup.is_none() { None } else { cgroup.hand_over_freezer()? };
    options.freeze_cgroup = freezer.map(|directory| directory.display().to_string());
    options.config_file = configuration(&record.annotations);
    if dump != Dump::PreDump {
        save_descriptors(&criu.images, record.pid)?;
    }
    let kind = if dump == Dump::PreDump { Kind::SinglePreDump } else { Kind::Dump };
    let mut session = Session::start(&criu.program, directories.log("dump.log"), &[])?;
    session.ask(kind, options, &mut |notice, _| {
        if let (Some("status-ready"), Some(ready)) = (notice.script.as_deref(), &mut ready) {
            ready.write_all(&[0]).map_err(|source| Error::Write { path: "--status-fd".into(), source })?;
        }
        Ok(())
    })?;
    if dump == Dump::Stop { crate::delete(root, id, Deletion::Force).map(drop) } else { Ok(()) }
}

/// Makes a container of what was saved. Its init is a child of the caller, whose mount namespace is a new one afterwards.
pub fn restore(
    root: &StateRoot,
    id: &ContainerId,
    bundle: &Bundle,
    criu: &Criu,
    cgroups: Cgroups,
) -> Result<Created, Error> {
    let spec = bundle.spec();
    // Whether they are there; criu gets them later.
    drop(Directories::open(criu)?);
    let rootfs = bundle.rootfs();
    let confinement = Confinement::plan(root, spec, id, cgroups)?;
    let externals = Externals::of(spec, bundle.dir(), &seen(root, spec, confinement.cgroup())?);
    let place = Place::new(root, id);
    let lock = place.take()?;
    let mut undo = Undo::new(place.clone(), confinement);
    let mut record = Record::new(bundle, id, SystemTime::now());
    record.cgroup = undo.confinement.recorded_path();
    record.unit = undo.confinement.unit().cloned();
    record.namespaces.clone_from(&externals.namespaces);
    record.shares_pids = externals.shares_pids;
    place.write_config(bundle.raw())?;
    place.write(&record)?;
    let mut warnings = Vec::new();
    undo.confinement.prepare(spec, &mut warnings)?;
    record.cgroup = undo.confinement.recorded_path();

    let held = PrivateRoot::mount(&rootfs, &place.path("criu-root"))?;
    // Of this mount namespace, in which criu mounts below them.
    let directories = Directories::open(criu)?;
    let joined = open_joined(&externals)?;
    let mut options = directories.tell(criu.options.clone());
    options.root = Some(held.path().display().to_string());
    options.rst_sibling = Some(true);
    options.evasive_devices = Some(true);
    options.external = mount_points::prepare(held.path(), &externals)?;
    options.config_file = configuration(&record.annotations);
    options.inherit_fd = inherited_pipes(&criu.images)?;
    options.inherit_fd.extend(joined.iter().map(|(key, fd)| InheritFd { key: (*key).to_owned(), fd: fd.as_raw_fd() }));
    let kept: Vec<&OwnedFd> = joined.iter().map(|(_, fd)| fd).collect();
    let mut session = Session::start(&criu.program, directories.log("restore.log"), &kept)?;
    // Whom criu leaves where it is itself, is in the right place then; and it learns from there where that is.
    undo.confinement.admit(session.pid(), spec, &mut warnings)?;
    options.cg_root = cgroup_roots(session.pid())?;

    let mut coming = Coming { spec, place: &place, record, console: None };
    let restored = session.ask(Kind::Restore, options, &mut |notice, descriptors| coming.hear(notice, descriptors));
    if let Err(error) = restored {
        coming.end(undo.confinement.cgroup());
        return Err(error);
    }
    drop(session);
    drop(held);
    let Coming { record, console, .. } = coming;
    let process = pidfd::open(record.pid).map_err(parent("open the restored init"))?;
    undo.is_armed = false;
    drop(lock);
    Ok(Created { pid: record.pid, pidfd: process, console, warnings })
}

/// A container that criu is about to restore.
struct Coming<'a> {
    spec: &'a Spec,
    place: &'a Place,
    record: Record,
    console: Option<OwnedFd>,
}

impl Coming<'_> {
    fn hear(&mut self, notice: &rpc::Notice, descriptors: Vec<OwnedFd>) -> Result<(), Error> {
        match (notice.script.as_deref().unwrap_or_default(), notice.pid) {
            ("setup-namespaces", Some(pid)) => {
                self.record.pid = pid;
                runtime_hooks(self.spec, &self.record)
            }
            ("post-restore", Some(pid)) => {
                self.record.pid = pid;
                let vanished = || Error::ChildVanished("at once".to_owned());
                self.record.pid_started = record::start_time(pid).ok_or_else(vanished)?;
                add_time_namespace(&mut self.record.namespaces, pid);
                self.place.write(&self.record)
            }
            ("orphan-pts-master", _) => {
                self.console = descriptors.into_iter().next();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// After a failure: criu ends what it has begun with, unless it was ended itself.
    fn end(&self, cgroup: &Cgroup) {
        if !cgroup.is_none() {
            let _the_first_error_matters = cgroup.kill();
        }
    }
}

/// The directories of the images and of the log, opened: criu reaches them through us.
struct Directories {
    images: File,
    work: File,
    work_path: PathBuf,
}

impl Directories {
    fn open(criu: &Criu) -> Result<Self, Error> {
        let open = |path: &Path| File::open(path).map_err(|source| Error::Read { path: path.to_owned(), source });
        let images = open(&criu.images)?;
        let work_path = criu.work.as_ref().unwrap_or(&criu.images).clone();
        make_directory(&work_path)?;
        Ok(Self { images, work: open(&work_path)?, work_path })
    }

    fn log(&self, name: &str) -> PathBuf {
        self.work_path.join(name)
    }

    /// What every request has.
    fn tell(&self, mut options: CriuOptions) -> CriuOptions {
        options.images_dir_fd = self.images.as_raw_fd();
        options.work_dir_fd = Some(self.work.as_raw_fd());
        options.notify_scripts = Some(true);
        options.orphan_pts_master = Some(true);
        options.manage_cgroups = Some(true);
        options
    }
}

fn make_directory(path: &Path) -> Result<(), Error> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| Error::Write { path: path.to_owned(), source })
}

/// The host's cgroups as the container has them mounted, where it has.
fn seen(root: &StateRoot, spec: &Spec, cgroup: &Cgroup) -> Result<CgroupView, Error> {
    let mut mounts = spec.mounts().iter().flatten();
    let is_shown = mounts.any(|mount| matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2")));
    if is_shown { view(root, cgroup) } else { Ok(CgroupView::V1 { hierarchies: Vec::new() }) }
}

fn configuration(annotations: &HashMap<String, String>) -> Option<String> {
    match annotations.get(CONFIGURATION) {
        Some(path) => Some(path.clone()).filter(|path| !path.is_empty()),
        None => CONFIGURATIONS.iter().find(|path| Path::new(path).exists()).map(|path| (*path).to_owned()),
    }
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

fn inherited_pipes(images: &Path) -> Result<Vec<InheritFd>, Error> {
    let path = images.join("descriptors.json");
    let text = match std::fs::read(&path) {
        // Images that somebody else made.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|source| Error::Read { path: path.clone(), source })?,
    };
    let all: Vec<String> = serde_json::from_slice(&text).map_err(|source| Error::Parse { path, source })?;
    Ok(pipes(&all))
}

/// Standard streams that were pipes are criu's, and so ours, now.
fn pipes(descriptors: &[String]) -> Vec<InheritFd> {
    let streams = (0..3).zip(descriptors).filter(|(_, target)| target.starts_with("pipe:"));
    streams.map(|(fd, key)| InheritFd { key: key.clone(), fd }).collect()
}

fn open_joined(externals: &Externals) -> Result<Vec<(&'static str, OwnedFd)>, Error> {
    let open = |joined: &externals::Joined| {
        let file = File::open(&joined.path).map_err(|source| Error::Read { path: joined.path.clone(), source })?;
        Ok((joined.key, OwnedFd::from(file)))
    };
    externals.joined.iter().map(open).collect()
}

/// criu gives whom it restores a time namespace, asked for or not: the monotonic clock goes on from where it was. Whoever enters the container
/// later has to be in it, or the next dump would find two.
fn add_time_namespace(names: &mut Vec<String>, pid: i32) {
    let time = Namespace::Time.file_name();
    let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{time}")).ok();
    if of("self") != of(&pid.to_string()) && !names.iter().any(|name| name == time) {
        names.push(time.to_owned());
    }
}

/// Where the process is in each hierarchy, which is where the container's processes are to be.
fn cgroup_roots(pid: i32) -> Result<Vec<CgroupRoot>, Error> {
    let path = PathBuf::from(format!("/proc/{pid}/cgroup"));
    let text = runtime_linux::proc::read_text(&path).map_err(|source| Error::Read { path, source })?;
    Ok(text.lines().flat_map(roots_of_line).collect())
}

/// cgroups(7), "/proc/pid/cgroup".
fn roots_of_line(line: &str) -> Vec<CgroupRoot> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { return Vec::new() };
    let root = |name: &str| CgroupRoot { ctrl: Some(name.to_owned()), path: path.to_owned() };
    controllers.split(',').map(root).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_controller_has_its_root() {
        let told = |line: &str| {
            let roots = roots_of_line(line);
            roots.into_iter().map(|root| (root.ctrl.unwrap_or_default(), root.path)).collect::<Vec<_>>()
        };
        assert_eq!(told("4:cpu,cpuacct:/a:b"), [("cpu".into(), "/a:b".into()), ("cpuacct".into(), "/a:b".into())]);
        assert_eq!(told("0::/c"), [(String::new(), "/c".into())]);
        assert!(told("nonsense").is_empty());
    }

    #[test]
    fn pipes_are_known_again_by_their_number() {
        let words = ["/dev/null", "pipe:[12]", "socket:[13]"].map(str::to_owned);
        assert_eq!(pipes(&words), [InheritFd { key: "pipe:[12]".to_owned(), fd: 1 }]);
    }

    #[test]
    fn an_empty_annotation_means_no_configuration() {
        let annotated = |value: &str| configuration(&HashMap::from([(CONFIGURATION.to_owned(), value.to_owned())]));
        assert_eq!(annotated("/x.conf"), Some("/x.conf".to_owned()));
        assert_eq!(annotated(""), None);
    }
}
