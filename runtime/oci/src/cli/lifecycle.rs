//! create, run, start, kill, delete, pause, resume.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use runtime_linux::{executable, process};
use runtime_oci::{
    Bundle, ContainerId, CreateOptions, Created, Deletion, Explained, Observer, RootChange, StateRoot, Target,
};

use super::arguments::{Create, Kill, Run};
use super::explain::Teller;
use super::report::Reporter;
use super::{Error, explain, foreground};

pub(crate) fn parse_id(id: &str) -> Result<ContainerId, Error> {
    Ok(ContainerId::parse(id)?)
}

/// What has to hold before this process goes anywhere near a container: no stray descriptors, and a file that it cannot spoil.
pub(crate) fn secure_self(preserve: u32) -> Result<(), Error> {
    process::ensure_standard_streams().map_err(Error::errno("open /dev/null for a closed standard stream"))?;
    let first = i32::try_from(preserve).ok().and_then(|preserve| preserve.checked_add(3));
    let first = first.ok_or_else(|| Error::Usage("--preserve-fds is too large".to_owned()))?;
    if let Some(number) = (3..first).find(|number| !process::is_open(*number)) {
        return Err(Error::Usage(format!("--preserve-fds {preserve}: descriptor {number} is not open")));
    }
    executable::ensure_protected().map_err(Error::errno("run from a file that no container can write"))?;
    // Those that the container is to get, no hook gets.
    process::close_on_exec_from(3).map_err(Error::errno("close inherited descriptors at exec"))
}

/// systemd's socket activation: the descriptors come first, as many as it says.
pub(crate) fn listen_fds() -> u32 {
    std::env::var("LISTEN_FDS").ok().and_then(|count| count.parse().ok()).unwrap_or(0)
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

/// The plan on standard output, for `--dry-run`.
fn dry_run(root: &StateRoot, create: &Create, reporter: &Reporter) -> Result<u8, Error> {
    let bundle = Bundle::load(&create.bundle)?;
    let (steps, warnings) = runtime_oci::explain(root, &parse_id(&create.id)?, &bundle, &options(create))?;
    reporter.warnings(&warnings);
    explain::print_plan(&create.telling, &steps)?;
    Ok(0)
}

/// Whoever asked to be told, where somebody did.
fn teller(root: &StateRoot, create: &Create) -> Result<Option<Teller>, Error> {
    if !create.telling.is_wanted() {
        return Ok(None);
    }
    let bundle = Bundle::load(&create.bundle)?;
    let (steps, _) = runtime_oci::explain(root, &parse_id(&create.id)?, &bundle, &options(create))?;
    Teller::new(&create.telling, steps.len()).map(Some)
}

fn options(create: &Create) -> CreateOptions {
    CreateOptions {
        preserve_fds: preserved(create),
        root_change: if create.no_pivot { RootChange::Chroot } else { RootChange::Pivot },
        keep_keyring: create.no_new_keyring,
        ..CreateOptions::default()
    }
}

fn make(
    root: &StateRoot,
    create: &Create,
    detach: bool,
    reporter: &Reporter,
    observer: Option<&mut Observer<'_>>,
) -> Result<Made, Error> {
    let id = parse_id(&create.id)?;
    let preserve = preserved(create);
    secure_self(preserve)?;
    let mut bundle = Bundle::load(&create.bundle)?;
    let terminal = bundle.spec().process().as_ref().is_some_and(|process| process.terminal() == Some(true));
    check_console(terminal, detach, create.console_socket.as_ref())?;
    if listen_fds() > 0 {
        bundle.add_environment(&[format!("LISTEN_FDS={}", listen_fds()), "LISTEN_PID=1".to_owned()]);
    }
    let mut created = runtime_oci::create_observed(root, &id, &bundle, options(create), observer)?;
    reporter.warnings(&created.warnings);
    let finish = |created: &mut Created| -> Result<(), Error> {
        if let (Some(socket), Some(master)) = (&create.console_socket, created.console.take_if(|_| detach)) {
            runtime_oci::send_console(socket, &master)?;
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

pub(crate) fn create(root: &StateRoot, create: &Create, reporter: &Reporter) -> Result<u8, Error> {
    if create.telling.dry_run {
        return dry_run(root, create, reporter);
    }
    let mut teller = teller(root, create)?;
    observed(&mut teller, |observer| make(root, create, true, reporter, observer))?;
    Ok(0)
}

pub(crate) fn run(root: &StateRoot, run: &Run, reporter: &Reporter) -> Result<u8, Error> {
    if run.create.telling.dry_run {
        return dry_run(root, &run.create, reporter);
    }
    let mut teller = teller(root, &run.create)?;
    observed(&mut teller, |observer| run_observed(root, run, reporter, observer))
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
    run: &Run,
    reporter: &Reporter,
    mut observer: Option<&mut Observer<'_>>,
) -> Result<u8, Error> {
    // Signals that come from now on wait until there is somebody to hand them to.
    let signals = if run.detach { None } else { Some(foreground::Signals::take()?) };
    let Made { id, created, terminal } = make(root, &run.create, run.detach, reporter, observer.as_deref_mut())?;
    let undo = |error: Error| {
        // The first error is the one to tell.
        let _second = runtime_oci::delete(root, &id, Deletion::Force);
        error
    };
    let console = foreground::Console::new(created.console, terminal && !run.detach).map_err(undo)?;
    runtime_oci::start_observed(root, &id, observer).map_err(|error| undo(error.into()))?;
    let Some(signals) = signals else { return Ok(0) };
    let code = foreground::wait(&created.pidfd, &signals, console);
    if !run.keep {
        runtime_oci::delete(root, &id, Deletion::Force)?;
    }
    code
}

pub(crate) fn start(root: &StateRoot, id: &str) -> Result<u8, Error> {
    runtime_oci::start(root, &parse_id(id)?)?;
    Ok(0)
}

pub(crate) fn kill(root: &StateRoot, kill: &Kill) -> Result<u8, Error> {
    let signal = parse_signal(&kill.signal)?;
    let target = if kill.all { Target::All } else { Target::Init };
    runtime_oci::kill(root, &parse_id(&kill.id)?, signal, target)?;
    Ok(0)
}

fn parse_signal(text: &str) -> Result<i32, Error> {
    let unknown = || Error::Usage(format!("unknown signal \"{text}\""));
    if let Ok(number) = text.parse::<i32>() {
        return if (0..=64).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let realtime = |rest: Option<&str>, base: i32, sign: i32| {
        let offset = rest?.parse::<i32>().ok()?;
        (0..=30).contains(&offset).then_some(base + sign * offset)
    };
    // signal(7): 34 is glibc's and musl's first real-time signal for programs, 64 the last.
    let number = match name {
        "RTMIN" => Some(34),
        "RTMAX" => Some(64),
        _ => realtime(name.strip_prefix("RTMIN+"), 34, 1).or_else(|| realtime(name.strip_prefix("RTMAX-"), 64, -1)),
    };
    match number {
        Some(number) => Ok(number),
        None => {
            format!("SIG{name}").parse::<nix::sys::signal::Signal>().map(|signal| signal as i32).map_err(|_| unknown())
        }
    }
}

pub(crate) fn delete(root: &StateRoot, id: &str, force: bool) -> Result<u8, Error> {
    let deletion = if force { Deletion::Force } else { Deletion::Stopped };
    runtime_oci::delete(root, &parse_id(id)?, deletion)?;
    Ok(0)
}

pub(crate) fn pause(root: &StateRoot, id: &str) -> Result<u8, Error> {
    runtime_oci::pause(root, &parse_id(id)?)?;
    Ok(0)
}

pub(crate) fn resume(root: &StateRoot, id: &str) -> Result<u8, Error> {
    runtime_oci::resume(root, &parse_id(id)?)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals() {
        for (text, expect) in [
            ("9", Some(9)),
            ("KILL", Some(9)),
            ("sigterm", Some(15)),
            ("SIGRTMIN+1", Some(35)),
            ("RTMAX-1", Some(63)),
            ("65", None),
            ("-1", None),
            ("SIGNONSENSE", None),
            ("", None),
        ] {
            assert_eq!(parse_signal(text).ok(), expect, "{text}");
        }
    }
}
