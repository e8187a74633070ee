//! `start`: the word to a created container's init, and its last answer.

use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::SockType;
use runtime_linux::local_socket;

use crate::child::Watch;
use crate::create::{child_error, parent};
use crate::error::Error;
use crate::hooks::{self, Kind, Surroundings};
use crate::plan::Step;
use crate::record::{Place, Record};
use crate::status::Status;
use crate::sync::{self, Order, Report};
use crate::{ContainerId, Observer, StateRoot};

/// The word that lets the process go on, by who watches it.
fn word(watch: Watch) -> u8 {
    match watch {
        Watch::Nobody => b'S',
        Watch::Reports => b'T',
        Watch::Pauses => b'P',
    }
}

/// What such a word says; `None` for any other byte.
pub(crate) fn watch(byte: u8) -> Option<Watch> {
    [Watch::Nobody, Watch::Reports, Watch::Pauses].into_iter().find(|watch| word(*watch) == byte)
}

/// Lets a created container's process run; an `execve` that fails is reported here.
pub fn start(root: &StateRoot, id: &ContainerId) -> Result<(), Error> {
    start_observed(root, id, None)
}

/// [`start`], with somebody who has watched the same container being created.
pub fn start_observed(
    root: &StateRoot,
    id: &ContainerId,
    mut observer: Option<&mut Observer<'_>>,
) -> Result<(), Error> {
    let place = Place::new(root, id);
    let record = place.load()?;
    let wrong = |status| Err(Error::WrongStatus { id: id.to_string(), operation: "start", status });
    match record.status(&place, || false) {
        Status::Created => {}
        status => return wrong(status),
    }
    if record.lacks_program {
        return Err(crate::plan::invalid("process", "is missing: there is no program to start"));
    }
    let socket = place.socket();
    let starter = match local_socket::connect_to(&socket, SockType::SeqPacket) {
        Ok(starter) => starter,
        Err(errno @ (Errno::ECONNREFUSED | Errno::ENOENT)) => {
            // Started by another, who was killed before it could remove the socket, or was quicker than us.
            remove_socket(&socket)?;
            return if record.is_alive() { wrong(Status::Running) } else { Err(parent("start")(errno)) };
        }
        Err(errno) => return Err(parent("connect to the waiting process")(errno)),
    };
    nix::unistd::write(&starter, &[word(Watch::of(observer.as_deref()))]).map_err(parent("start"))?;
    let answer = answer(&starter, observer.as_deref_mut());
    remove_socket(&socket)?;
    if let Some(fault) = answer? {
        return Err(start_error(&place, &fault));
    }
    if let Some(observer) = observer {
        observer.running()?;
    }
    poststart(root, id, &record)
}

/// What failed; silence and the end of the socket is an exec that worked.
fn answer(starter: &OwnedFd, mut observer: Option<&mut Observer<'_>>) -> Result<Option<sync::Fault>, Error> {
    loop {
        match sync::receive_report(starter) {
            Ok(Some(Report::Failed(fault))) => return Ok(Some(fault)),
            Ok(Some(Report::Done { step, nanoseconds })) => {
                if let Some(observer) = observer.as_deref_mut() {
                    observer.container(step, Duration::from_nanos(nanoseconds))?;
                    if observer.pauses() {
                        sync::send_order(starter, Order::Continue).map_err(parent("go on to the next step"))?;
                    }
                }
            }
            Ok(_) | Err(Errno::EPIPE) => return Ok(None),
            Err(errno) => return Err(parent("wait for exec")(errno)),
        }
    }
}

fn remove_socket(socket: &std::path::Path) -> Result<(), Error> {
    match std::fs::remove_file(socket) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::Write { path: socket.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// After the wait there are few steps, and each says by itself what it is; the plan is not made again for its words.
fn start_error(place: &Place, fault: &sync::Fault) -> Error {
    let has_hooks = place
        .config()
        .ok()
        .and_then(|spec| spec.hooks().as_ref().map(|hooks| hooks.start_container().iter().flatten().count() > 0))
        .unwrap_or(false);
    let step =
        if has_hooks && fault.errno == 0 { Step::Hooks(crate::plan::Moment::StartContainer) } else { Step::Exec };
    child_error(&sync::Fault { step: 0, ..fault.clone() }, &[step], &[])
}

/// runtime-spec 1.3, "Lifecycle" 9: where a poststart hook fails, the container is stopped and destroyed, and the caller hears of it.
fn poststart(root: &StateRoot, id: &ContainerId, record: &Record) -> Result<(), Error> {
    let state = record.state(Status::Running);
    let Err(error) = hooks::run(Kind::Poststart, &record.poststart, &state, Surroundings::default()) else {
        return Ok(());
    };
    // The hook's failure is what the caller has to know; what could not be undone is found by the next `delete`.
    let _left = crate::delete(root, id, crate::Deletion::Force);
    Err(Error::Hook(error.to_string()))
}
