//! create, run and start.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use runtime_linux::{executable, process};
use runtime_oci::{
    Bundle, Cgroups, ContainerId, CreateOptions, Created, Deletion, Explained, Observer, Readiness, RootChange,
    StateRoot,
};

use super::arguments::{CgroupManager, Create, Global, Run};
use super::explain::Teller;
use super::report::Reporter;
use super::{Error, explain, foreground};

pub(crate) fn parse_id(id: &str) -> Result<ContainerId, Error> {
    Ok(ContainerId::parse(id)?)
}

/// What has to hold before this process goes anywhere near a container: no stray descriptors, and a file that it cannot spoil.
/// Comes back with the descriptors to preserve: of the `preserve` from 3 on those that the caller has.
pub(crate) fn secure_self(preserve: u32) -> Result<Vec<i32>, Error> {
    process::ensure_standard_streams().map_err(Error::errno("open /dev/null for a closed standard stream"))?;
    let behind = i32::try_from(preserve).ok().and_then(|preserve| preserve.checked_add(3));
    let behind = behind.ok_or_else(|| Error::Usage("--preserve-fds is too large".to_owned()))?;
    executable::ensure_protected().map_err(Error::errno("run from a file that no container can write"))?;
    let preserved = (3..behind).filter(|number| process::is_inherited(*number)).collect();
    // Those that the container is to get, no hook gets.
    process::close_on_exec_from(3).map_err(Error::errno("close inherited descriptors at exec"))?;
    Ok(preserved)
}

/// systemd's socket activation: the descriptors come first, as many as it says.
pub(crate) fn listen_fds() -> u32 {
    std::env::var("LISTEN_FDS").ok().and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// The service manager's socket (sd_notify(3)).
fn notify_socket() -> Option<PathBuf> {
    std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// Listens for a container's readiness, where a service manager waits for it.
fn readiness(root: &StateRoot, id: &ContainerId) -> Result<Option<Readiness>, Error> {
    match notify_socket() {
        Some(host) => Ok(Readiness::listen(root, id, &host)?),
        None => Ok(None),
    }
}

/// A terminal needs somebody who holds its master after us.
pub(crate) fn check_console(terminal: bool, detach: bool, socket: Option<&PathBuf>) -> Result<(), Error> {
    match (terminal, socket) {
        (true, None) if detach => Err(Error::Usage(
            "cannot allocate tty if runc will detach without setting console socket: give --console-socket, or set \
             process.terminal to false"
                .to_owned(),
        )),
        (false, Some(_)) => Err(Error::Usage(
            "cannot use console socket if runc will not detach or allocate tty: the process has no terminal".to_owned(),
        )),
        (true, Some(_)) if !detach => {
            Err(Error::Usage("cannot use console socket if runc will not detach: add --detach".to_owned()))
        }
        _ => Ok(()),
    }
}

fn preserved(create: &Create) -> u32 {
    create.preserve_fds.saturating_add(listen_fds())
}

struct Made {
    id: ContainerId,
    created: Created,
    terminal: bool,
}

fn load(create: &Create) -> Result<Bundle, Error> {
    let config = create.config.as_deref().unwrap_or(Path::new("config.json"));
    Ok(Bundle::load_named(&create.bundle, config)?)
}

/// The plan on standard output, for `--dry-run`.
fn dry_run(root: &StateRoot, global: &Global, create: &Create, reporter: &Reporter) -> Result<u8, Error> {
    let bundle = load(create)?;
    let (steps, warnings) = runtime_oci::explain(root, &parse_id(&create.id)?, &bundle, &options(global, create))?;
    reporter.warnings(&warnings);
    explain::print_plan(&create.telling, &steps)?;
    Ok(0)
}

/// Whoever asked to be told, where somebody did.
fn teller(root: &StateRoot, global: &Global, create: &Create) -> Result<Option<Teller>, Error> {
    if !create.telling.is_wanted() {
        return Ok(None);
    }
    let bundle = load(create)?;
    let (steps, _) = runtime_oci::explain(root, &parse_id(&create.id)?, &bundle, &options(global, create))?;
    Teller::new(&create.telling, steps.len()).map(Some)
}

fn options(global: &Global, create: &Create) -> CreateOptions {
    CreateOptions {
        preserve_fds: (3..3i32.saturating_add_unsigned(preserved(create))).collect(),
        root_change: if create.no_pivot { RootChange::Chroot } else { RootChange::Pivot },
        keep_keyring: create.no_new_keyring,
        cgroups: cgroups(global),
        notify_socket: notify_socket(),
        ..CreateOptions::default()
    }
}

fn make(
    root: &StateRoot,
    global: &Global,
    create: &Create,
    detach: bool,
    reporter: &Reporter,
    observer: Option<&mut Observer<'_>>,
) -> Result<Made, Error> {
    let id = parse_id(&create.id)?;
    let preserve_fds = secure_self(preserved(create))?;
    let mut bundle = load(create)?;
    reporter.debug(|| format!("create container {id} of bundle {}", bundle.dir().display()));
    let terminal = bundle.spec().process().as_ref().is_some_and(|process| process.terminal() == Some(true));
    check_console(terminal, detach, create.console_socket.as_ref())?;
    if listen_fds() > 0 {
        bundle.add_environment(&[format!("LISTEN_FDS={}", listen_fds()), "LISTEN_PID=1".to_owned()]);
    }
    let mut created = {
        let options = CreateOptions { preserve_fds, ..options(global, create) };
        runtime_oci::create_observed(root, &id, &bundle, options, observer)?
    };
    reporter.warnings(&created.warnings);
    reporter.debug(|| match runtime_oci::seccomp::filter_flags(bundle.spec()) {
        Some(flags) => format!("seccomp filter flags: {flags}"),
        None => "no seccomp filter".to_owned(),
    });
    reporter.debug(|| format!("container {id} is created: its init is process {}", created.pid));
    let finish = |created: &mut Created| -> Result<(), Error> {
        if let (Some(socket), Some(master)) = (&create.console_socket, created.console.take_if(|_| detach)) {
            runtime_oci::send_console(socket, &master)?;
        }
        if let Some(socket) = &create.pidfd_socket {
            runtime_oci::send_pidfd(socket, &created.pidfd)?;
        }
        write_pid_file(create.pid_file.as_deref(), created.pid)
    };
    if let Err(error) = finish(&mut created) {
        // Whoever asked would not know of a container that it got no terminal or pid of.
        runtime_oci::delete(root, &id, Deletion::Force)?;
        return Err(error);
    }
    Ok(Made { id, created, terminal })
}

/// Whole or not at all: a reader waits for the file to appear.
pub(crate) fn write_pid_file(path: Option<&Path>, pid: i32) -> Result<(), Error> {
    let Some(path) = path else { return Ok(()) };
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    let temporary = path.with_file_name(name);
    let write = || {
        // Whoever can write in that directory may have left a symlink there, which must not lead us elsewhere.
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        File::create_new(&temporary)?.write_all(pid.to_string().as_bytes())?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(Error::io(format!("write pid file {}", path.display())))
}

/// Who makes the cgroup, and whether a container may do without.
pub(crate) fn cgroups(global: &Global) -> Cgroups {
    let is_rootless = match global.rootless.as_str() {
        "true" => true,
        "false" => false,
        // Root of a user namespace of its own, as under a podman of a user, may not touch the host's cgroups either.
        _ => !nix::unistd::geteuid().is_root() || !runtime_linux::idmap::is_initial(),
    };
    match global.cgroup_manager() {
        CgroupManager::Systemd => Cgroups::Systemd,
        CgroupManager::Disabled => Cgroups::None,
        CgroupManager::Cgroupfs if is_rootless => Cgroups::WherePermitted,
        CgroupManager::Cgroupfs => Cgroups::Direct,
    }
}

pub(crate) fn create(root: &StateRoot, global: &Global, create: &Create, reporter: &Reporter) -> Result<u8, Error> {
    if create.telling.dry_run {
        return dry_run(root, global, create, reporter);
    }
    let mut teller = teller(root, global, create)?;
    observed(&mut teller, |observer| make(root, global, create, true, reporter, observer))?;
    Ok(0)
}

pub(crate) fn run(root: &StateRoot, global: &Global, run: &Run, reporter: &Reporter) -> Result<u8, Error> {
    if run.create.telling.dry_run {
        return dry_run(root, global, &run.create, reporter);
    }
    let mut teller = teller(root, global, &run.create)?;
    observed(&mut teller, |observer| run_observed(root, global, run, reporter, observer))
}

/// With the teller as the observer, where there is one.
fn observed<T>(
    teller: &mut Option<Teller>,
    action: impl FnOnce(Option<&mut Observer<'_>>) -> Result<T, Error>,
) -> Result<T, Error> {
    let Some(teller) = teller else { return action(None) };
    let pauses = teller.pauses();
    let mut tell = |step: &Explained, pid: Option<i32>, took: Option<Duration>| teller.tell(step, pid, took);
    let mut observer = if pauses { Observer::pausing(&mut tell) } else { Observer::new(&mut tell) };
    action(Some(&mut observer))
}

fn run_observed(
    root: &StateRoot,
    global: &Global,
    run: &Run,
    reporter: &Reporter,
    mut observer: Option<&mut Observer<'_>>,
) -> Result<u8, Error> {
    // Signals that come from now on wait until there is somebody to hand them to.
    let signals = if run.detach { None } else { Some(foreground::Signals::take()?) };
    let Made { id, created, terminal } =
        make(root, global, &run.create, run.detach, reporter, observer.as_deref_mut())?;
    let undo = |error: Error| {
        // The first error is the one to tell.
        let _second = runtime_oci::delete(root, &id, Deletion::Force);
        error
    };
    let mut console = foreground::Console::new(created.console, terminal && !run.detach).map_err(undo)?;
    let readiness = readiness(root, &id).map_err(undo)?;
    runtime_oci::start_observed(root, &id, observer).map_err(|error| {
        // What hooks of the container, or its program, had to say is on its terminal.
        console.iter_mut().for_each(foreground::Console::drain);
        undo(error.into())
    })?;
    reporter.debug(|| format!("container {id} is started"));
    let Some(signals) = signals else {
        readiness.map_or(Ok(()), |readiness| readiness.relay())?;
        return Ok(0);
    };
    readiness.map_or(Ok(()), Readiness::relay_beside)?;
    Wait { root, id: &id, process: &created.pidfd, signals: &signals, keep: run.keep, reporter }.for_end(console)
}

/// Standing in for a container in the foreground.
pub(crate) struct Wait<'a> {
    pub root: &'a StateRoot,
    pub id: &'a ContainerId,
    pub process: &'a OwnedFd,
    pub signals: &'a foreground::Signals,
    pub keep: bool,
    pub reporter: &'a Reporter,
}

impl Wait<'_> {
    /// The container's exit code; it is deleted unless it is to be kept.
    pub(crate) fn for_end(&self, console: Option<foreground::Console>) -> Result<u8, Error> {
        let code = foreground::wait(self.process, self.signals, console);
        if !self.keep {
            self.reporter.warnings(&runtime_oci::delete(self.root, self.id, Deletion::Force)?);
        }
        code
    }
}

pub(crate) fn start(root: &StateRoot, id: &str, reporter: &Reporter) -> Result<u8, Error> {
    let id = parse_id(id)?;
    let readiness = readiness(root, &id)?;
    runtime_oci::start(root, &id)?;
    reporter.debug(|| format!("container {id} is started"));
    readiness.map_or(Ok(()), |readiness| readiness.relay())?;
    Ok(0)
}
