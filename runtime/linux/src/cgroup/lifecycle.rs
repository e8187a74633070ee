//! Making, freezing, killing and removing cgroups.
//!
//! Waits are on kernel events (`cgroup.events`, pidfds). The two places where v1 offers no event look again after a millisecond, with a
//! limit, and say so.

use super::hierarchy::{Place, Version};
use super::{Cgroup, Error, file};
use crate::pidfd;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{AccessFlags, eaccess};
use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A process that does not freeze for this long sits in an uninterruptible wait.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(10);
/// A kill freezes first so that nothing forks meanwhile; it goes on without where somebody cannot be frozen, and keeps no caller waiting.
const KILL_FREEZE: Duration = Duration::from_millis(200);
/// Killed processes are gone within milliseconds; beyond this `remove` names those that stay.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How soon to look again where v1 has no event to wait for.
const LOOK_AGAIN_MS: u8 = 1;
/// A fork bomb that forks faster than it is killed is frozen first; this bounds the rest.
const KILL_ROUNDS_MAX: usize = 64;
/// Processes whose descriptors are open at once, far below any limit of descriptors.
const SIGNAL_AT_ONCE: usize = 256;

/// So long from now; a wait that the clock cannot express is none at all, rather than one for ever.
fn soon(duration: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(duration).unwrap_or(now)
}

/// What the kernel's files in it let others do is said by their own modes.
const DIRECTORY_MODE: u32 = 0o755;

/// Makes `path` in one hierarchy, ancestors included. False where it was there already.
pub(super) fn create(place: &Place, path: &str) -> Result<bool, Error> {
    let mut directory = place.root().to_owned();
    let mut is_new = false;
    for part in path.split('/').filter(|part| !part.is_empty()) {
        if place.version() == Version::Unified {
            enable_controllers(&directory);
        }
        let parent = directory.clone();
        directory.push(part);
        match fs::create_dir(&directory) {
            Ok(()) => {
                is_new = true;
                // A container's users look at their own cgroup, whatever the umask of who made it.
                fs::set_permissions(&directory, Permissions::from_mode(DIRECTORY_MODE))
                    .map_err(|source| Error::Create { path: directory.clone(), source })?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => is_new = false,
            Err(source) => return Err(Error::Create { path: directory, source }),
        }
        if place.has("cpuset") {
            inherit_cpuset(&parent, &directory, is_new)?;
        }
    }
    if place.version() == Version::Unified {
        refuse_threaded(directory)?;
    }
    Ok(is_new)
}

/// Whether a directory is there, or can be made where the first that is there lies. The kernel may still refuse for other reasons.
pub(super) fn may_be_made(place: &Place, path: &str) -> bool {
    let directory = place.join(path);
    let Some(there) = directory.ancestors().find(|ancestor| ancestor.is_dir()) else { return false };
    eaccess(there, AccessFlags::W_OK | AccessFlags::X_OK).is_ok()
}

/// In a threaded subtree cgroups hold threads, not processes: EOPNOTSUPP for who would move one in. cgroup-v2.rst, "Threads".
fn refuse_threaded(path: PathBuf) -> Result<(), Error> {
    let kind = file::read_if_present(&path.join("cgroup.type"))?.unwrap_or_default();
    match kind.trim() {
        "threaded" | "domain invalid" => Err(Error::Threaded { path }),
        _ => Ok(()),
    }
}

/// Offers every available controller to the children of `directory`. Best effort: the limit that needs one that the kernel refuses fails
/// later and names the controller.
fn enable_controllers(directory: &Path) {
    let (Ok(available), Ok(enabled)) =
        (file::read(&directory.join("cgroup.controllers")), file::read(&directory.join("cgroup.subtree_control")))
    else {
        return;
    };
    let enabled: BTreeSet<&str> = enabled.split_whitespace().collect();
    let missing: Vec<String> =
        available.split_whitespace().filter(|name| !enabled.contains(name)).map(|name| format!("+{name}")).collect();
    let control = directory.join("cgroup.subtree_control");
    if missing.is_empty() {
        return;
    }
    match file::write(&control, &missing.join(" ")) {
        // A process sits here, so no child may have a controller of domains; one by one the others would make the whole subtree a
        // threaded one, where no process can live. cgroup-v2.rst, "No Internal Process Constraint".
        Err(Error::Write { source, .. }) if source.raw_os_error() == Some(Errno::EBUSY as i32) => {}
        Ok(()) => {}
        Err(_) => {
            for controller in missing {
                // One that is refused must not keep the others away.
                let _refused = file::write(&control, &controller);
            }
        }
    }
}

/// A fresh v1 cpuset is empty and takes no process; it starts as its parent.
fn inherit_cpuset(parent: &Path, directory: &Path, is_new: bool) -> Result<(), Error> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let path = directory.join(name);
        if is_new || file::read(&path)?.trim().is_empty() {
            file::write(&path, file::read(&parent.join(name))?.trim())?;
        }
    }
    Ok(())
}

pub(super) fn pids(directory: &Path) -> Result<Vec<i32>, Error> {
    let text = file::read_if_present(&directory.join("cgroup.procs"))?.unwrap_or_default();
    // 0 stands for a process outside the reader's PID namespace.
    Ok(text.lines().filter_map(|line| line.parse().ok()).filter(|&pid| pid > 0).collect())
}

/// A container that was given cgroups of its own may nest them as deep as it likes: no recursion.
pub(super) fn pids_below(directory: &Path, all: &mut BTreeSet<i32>) -> Result<(), Error> {
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        all.extend(pids(&directory)?);
        left.extend(children(&directory)?);
    }
    Ok(())
}

fn children(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::Read { path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if file::is_gone(&error) => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut children = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            children.push(entry.path());
        }
    }
    Ok(children)
}

impl Cgroup {
    /// Stops every process here and below, and returns when all have stopped. One that cannot stop in time thaws the rest again.
    pub fn freeze(&self) -> Result<(), Error> {
        self.freeze_within(FREEZE_TIMEOUT)
    }

    fn freeze_within(&self, limit: Duration) -> Result<(), Error> {
        let frozen = match self.freezers().into_iter().next() {
            Some((directory, Version::Unified)) => freeze_unified(&directory, limit),
            Some((directory, Version::Legacy)) => freeze_legacy(&directory, limit),
            None => return Err(self.no_freezer()),
        };
        if matches!(frozen, Err(Error::FreezeTimeout { .. })) {
            self.thaw()?;
        }
        frozen
    }

    /// Lets everything go on, whichever of a hybrid host's two freezers holds it.
    pub fn thaw(&self) -> Result<(), Error> {
        let freezers = self.freezers();
        if freezers.is_empty() {
            return Err(self.no_freezer());
        }
        freezers.iter().try_for_each(|(directory, version)| {
            let (name, value) = thawed(*version);
            file::write(&directory.join(name), value)
        })
    }

    /// [`Self::thaw`] for one that may go meanwhile.
    fn thaw_what_is_left(&self) -> Result<(), Error> {
        self.freezers().iter().try_for_each(|(directory, version)| {
            let (name, value) = thawed(*version);
            match file::write_if_present(&directory.join(name), value) {
                Err(Error::Write { source, .. }) if file::is_gone(&source) => Ok(()),
                written => written.map(drop),
            }
        })
    }

    pub fn is_frozen(&self) -> Result<bool, Error> {
        for (directory, version) in self.freezers() {
            let is_frozen = match version {
                Version::Unified => {
                    let events = file::read_if_present(&directory.join("cgroup.events"))?.unwrap_or_default();
                    file::keyed(&events, "frozen") == Some(1)
                }
                Version::Legacy => {
                    let state = file::read_if_present(&directory.join("freezer.state"))?.unwrap_or_default();
                    state.trim() == "FROZEN"
                }
            };
            if is_frozen {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Where it can be frozen. The v2 freezer comes first: it tells when it is done.
    fn freezers(&self) -> Vec<(PathBuf, Version)> {
        let unified = self.unified_directory().filter(|directory| directory.join("cgroup.freeze").exists());
        let legacy = self.hierarchy().places().iter().find(|place| place.has("freezer"));
        let legacy = legacy.map(|place| place.join(self.path())).filter(|directory| directory.is_dir());
        let unified = unified.map(|directory| (directory, Version::Unified));
        unified.into_iter().chain(legacy.map(|directory| (directory, Version::Legacy))).collect()
    }

    /// The directory of the freezer that a program would use which knows one for the whole host: v1's where there is one. A frozen cgroup is held
    /// by that one alone afterwards, so that such a program can let it go; [`Self::thaw`] does too.
    pub fn hand_over_freezer(&self) -> Result<Option<PathBuf>, Error> {
        let mut freezers = self.freezers();
        let Some((last, version)) = freezers.pop() else { return Ok(None) };
        if version == Version::Legacy && self.is_frozen()? {
            freeze_legacy(&last, FREEZE_TIMEOUT)?;
            for (directory, other) in freezers {
                let (name, value) = thawed(other);
                file::write(&directory.join(name), value)?;
            }
        }
        Ok(Some(last))
    }

    fn no_freezer(&self) -> Error {
        Error::NoController {
            field: "freezing".to_owned(),
            controller: "freezer".to_owned(),
            path: self.main_directory(),
        }
    }

    /// Sends SIGKILL to every process here and below; a cgroup that is gone or empty is success. Frozen processes die too. Returns without
    /// waiting for them to be gone: [`Self::remove`] and [`Self::wait_empty`] do.
    pub fn kill(&self) -> Result<(), Error> {
        if let Some(directory) = self.unified_directory() {
            // cgroup.kill (kernel 5.14) is atomic: no fork escapes it.
            match file::write_if_present(&directory.join("cgroup.kill"), "1") {
                Ok(true) if self.hierarchy().places().len() == 1 => return Ok(()),
                Ok(_) => {}
                Err(Error::Write { source, .. }) if file::is_gone(&source) => {}
                Err(error) => return Err(error),
            }
        }
        // v1, or processes that only v1 knows of. Frozen, nothing can fork meanwhile; without a freezer, round after round.
        let mut left = self.pids_recursive()?;
        if left.is_empty() {
            return Ok(());
        }
        let frozen = self.unified_kill_missing() && self.freeze_within(KILL_FREEZE).is_ok();
        let mut killed = BTreeSet::new();
        for _ in 0..KILL_ROUNDS_MAX {
            left.retain(|pid| !killed.contains(pid));
            self.signal_these(&left, libc::SIGKILL)?;
            killed.extend(left);
            left = self.pids_recursive()?;
            if left.iter().all(|pid| killed.contains(pid)) {
                break;
            }
        }
        // A frozen process dies of SIGKILL only once thawed (v1). What was dying already may be gone by now, and the cgroup with it.
        if frozen || self.is_frozen()? { self.thaw_what_is_left() } else { Ok(()) }
    }

    fn unified_kill_missing(&self) -> bool {
        self.unified_directory().is_none_or(|directory| !directory.join("cgroup.kill").exists())
    }

    /// Sends a signal to every process here and below, each once; what is forked meanwhile may be missed.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        self.signal_these(&self.pids_recursive()?, signal)
    }

    /// A pid that was read may be another's by the time it is opened; a process that is still listed after that is the one that is open.
    fn signal_these(&self, pids: &[i32], signal: i32) -> Result<(), Error> {
        for some in pids.chunks(SIGNAL_AT_ONCE) {
            let opened: Vec<_> = some.iter().filter_map(|pid| Some((*pid, pidfd::open(*pid).ok()?))).collect();
            let still: BTreeSet<i32> = self.pids_recursive()?.into_iter().collect();
            for (pid, process) in opened.iter().filter(|(pid, _)| still.contains(pid)) {
                match pidfd::send_signal(process, signal) {
                    // EINVAL: an exited thread group leader on old kernels.
                    Ok(()) | Err(Errno::ESRCH | Errno::EINVAL) => {}
                    Err(source) => return Err(Error::Signal { path: self.main_directory(), pid: *pid, source }),
                }
            }
        }
        Ok(())
    }

    /// Waits until no process is here or below; false after the timeout.
    pub fn wait_empty(&self, timeout: Duration) -> Result<bool, Error> {
        let deadline = soon(timeout);
        for place in self.hierarchy().places() {
            if !wait_empty(&place.join(self.path()), place.version(), deadline)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Removes the cgroup with everything below it, in every hierarchy. Gone is success. Processes that are dying are waited for; it
    /// does not kill. [`Error::Busy`] names those that stay.
    pub fn remove(&self) -> Result<(), Error> {
        let deadline = soon(REMOVE_TIMEOUT);
        let mut first = None;
        for place in self.hierarchy().places() {
            // One hierarchy that fails must not keep the others from being cleaned.
            if let Err(error) = self.remove_from(place, deadline) {
                first.get_or_insert(error);
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// Removes a cgroup without processes and children, by one call in each hierarchy. False where something is left.
    pub fn remove_if_empty(&self) -> bool {
        let is_left =
            |place: &&Place| fs::remove_dir(place.join(self.path())).is_err_and(|error| !file::is_gone(&error));
        self.hierarchy().places().iter().filter(is_left).count() == 0
    }

    /// [`Self::remove`] without waiting: false while processes are still here or below.
    pub fn try_remove(&self) -> Result<bool, Error> {
        let mut is_removed = true;
        for place in self.hierarchy().places() {
            match remove_tree(&place.join(self.path())) {
                Ok(()) => {}
                Err(Error::Remove { source, .. }) if source.raw_os_error() == Some(Errno::EBUSY as i32) => {
                    is_removed = false;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(is_removed)
    }

    fn remove_from(&self, place: &Place, deadline: Instant) -> Result<(), Error> {
        let directory = place.join(self.path());
        loop {
            match remove_tree(&directory) {
                Ok(()) => return Ok(()),
                Err(Error::Remove { source, .. }) if source.raw_os_error() == Some(Errno::EBUSY as i32) => {}
                Err(error) => return Err(error),
            }
            if !wait_empty(&directory, place.version(), deadline)? {
                let pids = self.pids_recursive()?;
                return Err(Error::Busy { path: directory, pids, timeout: REMOVE_TIMEOUT });
            }
        }
    }
}

/// The file that lets go what is frozen, and what to write there.
fn thawed(version: Version) -> (&'static str, &'static str) {
    match version {
        Version::Unified => ("cgroup.freeze", "0"),
        Version::Legacy => ("freezer.state", "THAWED"),
    }
}

fn remove_tree(directory: &Path) -> Result<(), Error> {
    // Most cgroups have no children: one call is enough.
    match fs::remove_dir(directory) {
        Ok(()) => return Ok(()),
        Err(error) if file::is_gone(&error) => return Ok(()),
        Err(_) => {}
    }
    // Each comes after its parent here, and goes before it.
    let mut all = vec![directory.to_owned()];
    let mut next = 0;
    while let Some(parent) = all.get(next) {
        let below = children(parent)?;
        all.extend(below);
        next += 1;
    }
    for directory in all.into_iter().rev() {
        match fs::remove_dir(&directory) {
            Ok(()) => {}
            Err(error) if file::is_gone(&error) => {}
            Err(source) => return Err(Error::Remove { path: directory, source }),
        }
    }
    Ok(())
}

/// Waits for `key` in `cgroup.events` to be `value`; the kernel marks each change with POLLPRI. A cgroup that is gone counts as there.
fn wait_event(directory: &Path, key: &str, value: u64, deadline: Instant) -> Result<bool, Error> {
    let path = directory.join("cgroup.events");
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if file::is_gone(&error) => return Ok(true),
        Err(source) => return Err(Error::Read { path, source }),
    };
    loop {
        let mut text = String::new();
        // Reading takes note of the present generation; a change after it makes the poll return.
        match file.rewind().and_then(|()| file.read_to_string(&mut text)) {
            Ok(_) => {}
            Err(error) if file::is_gone(&error) => return Ok(true),
            Err(source) => return Err(Error::Read { path, source }),
        }
        if file::keyed(&text, key) == Some(value) {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let mut descriptors = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
        match poll(&mut descriptors, timeout(left)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(source) => return Err(Error::Wait { path, source }),
        }
    }
}

fn timeout(left: Duration) -> PollTimeout {
    PollTimeout::try_from(left.saturating_add(Duration::from_millis(1))).unwrap_or(PollTimeout::MAX)
}

fn wait_empty(directory: &Path, version: Version, deadline: Instant) -> Result<bool, Error> {
    if version == Version::Unified {
        if !wait_event(directory, "populated", 0, deadline)? {
            return Ok(false);
        }
        // Not populated and still busy: the last task is between its exit and its release. No event tells of that.
        look_again();
        return Ok(Instant::now() < deadline);
    }
    let mut present = BTreeSet::new();
    pids_below(directory, &mut present)?;
    for pid in &present {
        let left = deadline.saturating_duration_since(Instant::now());
        match pidfd::open(*pid) {
            Ok(process) => {
                let failed = |source| Error::Wait { path: directory.to_owned(), source };
                if !pidfd::wait_ended(&process, timeout(left)).map_err(failed)? {
                    return Ok(false);
                }
            }
            Err(_) => look_again(),
        }
    }
    if present.is_empty() {
        look_again();
    }
    Ok(Instant::now() < deadline)
}

/// For the instants of v1 that no event marks.
fn look_again() {
    let _timed_out = poll(&mut [], PollTimeout::from(LOOK_AGAIN_MS));
}

fn freeze_unified(directory: &Path, limit: Duration) -> Result<(), Error> {
    file::write(&directory.join("cgroup.freeze"), "1")?;
    if wait_event(directory, "frozen", 1, soon(limit))? {
        return Ok(());
    }
    Err(Error::FreezeTimeout { path: directory.to_owned(), timeout: limit })
}

fn freeze_legacy(directory: &Path, limit: Duration) -> Result<(), Error> {
    let deadline = soon(limit);
    let path = directory.join("freezer.state");
    while Instant::now() < deadline {
        // Written each time: a process forked meanwhile is caught by the next write; freezer-subsystem.txt.
        file::write(&path, "FROZEN")?;
        if file::read(&path)?.trim() == "FROZEN" {
            return Ok(());
        }
        look_again();
    }
    Err(Error::FreezeTimeout { path: directory.to_owned(), timeout: limit })
}
