//! `start`: the word to a created container's init, and its last answer.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::SockType;
use runtime_linux::local_socket;
use runtime_linux::pidfd::{self, Exit};

use crate::child::Watch;
use crate::conversation::{Conversation, Illegal, Stage, Word, drive};
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
    let mut starting = Starting::begin(root, id, Watch::of(observer.as_deref()), None)?;
    drive(&mut starting, &mut observer)?;
    if let Some(observer) = observer {
        observer.running()?;
    }
    poststart(root, id, &starting.record)
}

/// A container on its way to its program. Dropped, it goes on by itself: who wants it ended kills it.
#[derive(Debug)]
pub struct Starting {
    place: Place,
    record: Record,
    init: OwnedFd,
    starter: OwnedFd,
    stage: Stage,
    limit: Option<(Instant, Duration)>,
}

impl Starting {
    /// The word to go on; its answer is what the conversation waits for. Poststart hooks are the caller's.
    pub fn new(root: &StateRoot, id: &ContainerId, limit: Option<Duration>) -> Result<Self, Error> {
        Self::begin(root, id, Watch::Nobody, limit)
    }

    fn begin(root: &StateRoot, id: &ContainerId, watch: Watch, limit: Option<Duration>) -> Result<Self, Error> {
        let place = Place::new(root, id);
        let record = place.load()?;
        let wrong = |status| Error::WrongStatus { id: id.to_string(), operation: "start", status };
        match record.status(&place, || false) {
            Status::Created => {}
            status => return Err(wrong(status)),
        }
        if record.lacks_program {
            return Err(crate::plan::invalid("process", "is missing: there is no program to start"));
        }
        let init = pidfd::open(record.pid).map_err(parent("open the container's init"))?;
        let socket = place.socket();
        let starter = match local_socket::connect_now(&socket, SockType::SeqPacket) {
            Ok(starter) => starter,
            Err(errno @ (Errno::ECONNREFUSED | Errno::ENOENT)) => {
                // Started by another, who was killed before it could remove the socket, or was quicker than us.
                remove_socket(&socket)?;
                return Err(if record.is_alive() { wrong(Status::Running) } else { parent("start")(errno) });
            }
            Err(errno) => return Err(parent("connect to the waiting process")(errno)),
        };
        nix::unistd::write(&starter, &[word(watch)]).map_err(parent("start"))?;
        let stage = Stage::Program { steps: watch != Watch::Nobody };
        let limit = limit.and_then(|limit| Some((Instant::now().checked_add(limit)?, limit)));
        Ok(Self { place, record, init, starter, stage, limit })
    }

    /// Silence and the end of the socket is an exec that worked.
    fn go_on(&mut self, now: Instant, observer: &mut Option<&mut Observer<'_>>) -> Result<Option<()>, Error> {
        loop {
            let report = match sync::receive_report_now(&self.starter) {
                Ok(report) => report,
                Err(Errno::EPIPE) => None,
                Err(Errno::EAGAIN) => {
                    return match self.limit {
                        Some((at, limit)) if at <= now => Err(Error::TimedOut { seconds: limit.as_secs() }),
                        _ => Ok(None),
                    };
                }
                Err(errno) => return Err(parent("wait for exec")(errno)),
            };
            let illegal = |Illegal| parent("wait for exec")(Errno::EPROTO);
            self.stage = self.stage.next(Word::of(report.as_ref())).map_err(illegal)?;
            match report {
                None => return Ok(Some(())),
                Some(Report::Failed(fault)) => return Err(start_error(&self.place, &fault)),
                Some(Report::Done { step, nanoseconds }) => {
                    if let Some(observer) = observer.as_deref_mut() {
                        observer.container(step, Duration::from_nanos(nanoseconds))?;
                        if observer.pauses() {
                            sync::send_order(&self.starter, Order::Continue)
                                .map_err(parent("go on to the next step"))?;
                        }
                    }
                }
                Some(_) => return Err(illegal(Illegal)),
            }
        }
    }
}

impl Conversation for Starting {
    type Done = ();

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.starter.as_fd()
    }

    fn due(&self) -> Option<Instant> {
        self.limit.map(|(at, _)| at)
    }

    fn pid(&self) -> Option<i32> {
        Some(self.record.pid)
    }

    fn advance(&mut self, now: Instant, observer: &mut Option<&mut Observer<'_>>) -> Result<Option<()>, Error> {
        let answer = self.go_on(now, observer);
        if let Err(Error::TimedOut { .. } | Error::Parent(_)) = &answer {
            // Neither created nor running any more: its end is told as any other. ESRCH: it has ended.
            let _ended = pidfd::send_signal(&self.init, nix::libc::SIGKILL);
        }
        if !matches!(answer, Ok(None)) {
            remove_socket(&self.place.socket())?;
        }
        answer
    }

    fn reaped(&mut self, _: Exit) {}

    fn abandon(&mut self, _: Error, _: Instant) {
        // ESRCH: it has ended, which the socket says too.
        let _ended = pidfd::send_signal(&self.init, nix::libc::SIGKILL);
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
