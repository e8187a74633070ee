//! Creating, starting and executing as conversations with a process on its way, driven by whoever has a loop: the shim's reactor, or
//! [`drive`] for a program that has nothing else to do.
//!
//! ```text
//!   Between --spawned--> Setup --ready--> (create) over, committed
//!                          |     \------> (exec, start) Program --end of the socket--> over, the program runs
//!                          \--failed, end, illegal report, deadline--> killed --its end--> undone, and the error told
//! ```
//!
//! Not the steps themselves (`child.rs`), nor what the runtime does between them (`create.rs`, `exec.rs`, `start.rs`).
//! Invariants: nothing here waits; what the child may say next is [`Stage`], so that one who is traced by a container cannot make the
//! runtime do anything twice; each conversation ends within its limit and [`END_LIMIT`], whatever is done to the child.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use runtime_linux::pidfd::{self, Exit};

use crate::create::parent;
use crate::error::Error;
use crate::explain::Observer;
use crate::spawn::{Begun, Spawned};
use crate::sync::{self, Order, Report};

/// How long a killed process may take to be gone. Beyond it the error is told all the same, and the record stays for `delete`.
const END_LIMIT: Duration = Duration::from_secs(5);
/// Warnings of one child; it has fewer steps that warn, so more is no child of ours.
const WARNINGS_MAX: u8 = 64;

/// Something that is being done with a process, a piece at a time.
pub trait Conversation {
    /// What has come of it.
    type Done;

    /// Readable when there is something to [`advance`](Self::advance) with. May be another after each advance.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// When to advance though nothing is readable.
    fn due(&self) -> Option<Instant>;

    /// The process that is on its way, once it is known.
    fn pid(&self) -> Option<i32>;

    /// Goes on as far as it can without waiting. After `Some` or an error it is over.
    fn advance(&mut self, now: Instant, observer: &mut Option<&mut Observer<'_>>) -> Result<Option<Self::Done>, Error>;

    /// Its process was reaped by the caller, which reaps whatever ends.
    fn reaped(&mut self, exit: Exit);

    /// Ends it with this error; what was made is undone by further advances.
    fn abandon(&mut self, error: Error, now: Instant);
}

/// Drives a conversation to its end, with nothing else to do meanwhile.
pub(crate) fn drive<C: Conversation>(
    conversation: &mut C,
    observer: &mut Option<&mut Observer<'_>>,
) -> Result<C::Done, Error> {
    loop {
        let timeout = match conversation.due() {
            None => PollTimeout::NONE,
            Some(due) => {
                let left = due.saturating_duration_since(Instant::now()).saturating_add(Duration::from_millis(1));
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            }
        };
        match poll(&mut [PollFd::new(conversation.descriptor(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(parent("wait for the container's process")(errno)),
        }
        if let Some(done) = conversation.advance(Instant::now(), observer)? {
            return Ok(done);
        }
    }
}

/// What a child of a given kind may say at all, and how often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Allowed {
    pub console: bool,
    pub hooks: bool,
    /// Trees whose ids are to be mapped.
    pub trees: usize,
    /// Somebody hears of each step.
    pub steps: bool,
    /// It goes on to its program by itself, without another `start`.
    pub runs_on: bool,
}

/// What may be said next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// A process in between is making it.
    Between(Allowed),
    /// It does its steps.
    Setup {
        left: Allowed,
        warnings: u8,
    },
    /// It is about to become its program: the end of its socket is that it has.
    Program {
        steps: bool,
    },
    Over,
}

/// A report without what it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    Spawned,
    Hooks,
    Ids,
    Console,
    Warning,
    Failed,
    Step,
    Ready,
    /// The socket's.
    End,
}

impl Word {
    pub(crate) fn of(report: Option<&Report>) -> Self {
        match report {
            None => Self::End,
            Some(Report::Spawned { .. }) => Self::Spawned,
            Some(Report::NeedHooks) => Self::Hooks,
            Some(Report::NeedIds { .. }) => Self::Ids,
            Some(Report::Console(_)) => Self::Console,
            Some(Report::Warning(_)) => Self::Warning,
            Some(Report::Failed(_)) => Self::Failed,
            Some(Report::Done { .. }) => Self::Step,
            Some(Report::Ready) => Self::Ready,
        }
    }
}

/// A report that nobody may make at that stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Illegal;

impl Stage {
    pub(crate) fn first(has_between: bool, allowed: Allowed) -> Self {
        if has_between { Self::Between(allowed) } else { Self::setup(allowed) }
    }

    fn setup(left: Allowed) -> Self {
        Self::Setup { left, warnings: WARNINGS_MAX }
    }

    pub(crate) fn next(self, word: Word) -> Result<Self, Illegal> {
        match (self, word) {
            (Self::Over, _) => Err(Illegal),
            (_, Word::Failed | Word::End) => Ok(Self::Over),
            (Self::Between(allowed), Word::Spawned) => Ok(Self::setup(allowed)),
            (Self::Setup { left, warnings }, word) => {
                let once = |is_left: bool, left: Allowed| {
                    if is_left { Ok(Self::Setup { left, warnings }) } else { Err(Illegal) }
                };
                match word {
                    Word::Console => once(left.console, Allowed { console: false, ..left }),
                    Word::Hooks => once(left.hooks, Allowed { hooks: false, ..left }),
                    Word::Ids => once(left.trees > 0, Allowed { trees: left.trees.saturating_sub(1), ..left }),
                    Word::Step => once(left.steps, left),
                    Word::Warning => {
                        let warnings = warnings.checked_sub(1).ok_or(Illegal)?;
                        Ok(Self::Setup { left, warnings })
                    }
                    Word::Ready if left.runs_on => Ok(Self::Program { steps: left.steps }),
                    Word::Ready => Ok(Self::Over),
                    Word::Spawned | Word::Failed | Word::End => Err(Illegal),
                }
            }
            (Self::Program { steps: true }, Word::Step) => Ok(self),
            (Self::Between(_) | Self::Program { .. }, _) => Err(Illegal),
        }
    }
}

/// What has come from the other side.
#[derive(Debug)]
pub(crate) enum Heard {
    /// Nothing yet.
    Nothing,
    /// The process is there now, and waits for [`Order::Go`].
    Spawned,
    Said(Report),
    /// Its end of the socket has closed, at a stage where that is its program's start.
    Runs,
}

/// One process and our end of the socket to it; killed, and its end awaited, where it is given up.
#[derive(Debug)]
pub(crate) struct Talk {
    socket: OwnedFd,
    stage: Stage,
    begun: Begun,
    /// Who made it; ended long before it is, and reaped with it.
    between: Option<Spawned>,
    limit: Option<(Instant, Duration)>,
    exit: Option<Exit>,
    given_up: Option<(Error, Instant)>,
}

impl Talk {
    pub(crate) fn new(socket: OwnedFd, begun: Begun, allowed: Allowed, limit: Option<Duration>) -> Self {
        let stage = Stage::first(matches!(begun, Begun::Between(_)), allowed);
        let limit = limit.and_then(|limit| Some((Instant::now().checked_add(limit)?, limit)));
        Self { socket, stage, begun, between: None, limit, exit: None, given_up: None }
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        match (&self.given_up, self.begun.pidfd()) {
            (Some(_), Some(pidfd)) => pidfd.as_fd(),
            _ => self.socket.as_fd(),
        }
    }

    pub(crate) fn due(&self) -> Option<Instant> {
        match &self.given_up {
            Some((_, until)) => Some(*until),
            None => self.limit.map(|(at, _)| at),
        }
    }

    pub(crate) fn pid(&self) -> Option<i32> {
        self.begun.spawned().map(|spawned| spawned.pid)
    }

    pub(crate) fn reaped(&mut self, exit: Exit) {
        self.exit = Some(exit);
    }

    /// The next report, checked against what may be said.
    pub(crate) fn hear(&mut self, now: Instant) -> Result<Heard, Error> {
        let before = self.stage;
        let report = match sync::receive_report_now(&self.socket) {
            Ok(report) => report,
            Err(Errno::EPIPE) => None,
            Err(Errno::EAGAIN) => {
                return match self.limit {
                    Some((at, limit)) if at <= now => Err(Error::TimedOut { seconds: limit.as_secs() }),
                    _ => Ok(Heard::Nothing),
                };
            }
            Err(errno) => return Err(parent("hear from the container's process")(errno)),
        };
        self.stage = before.next(Word::of(report.as_ref())).map_err(|Illegal| {
            let step = "hear from the container's process, which said what it may not say now";
            parent(step)(Errno::EPROTO)
        })?;
        match report {
            Some(Report::Spawned { pid, pidfd }) => {
                if let Begun::Between(between) =
                    std::mem::replace(&mut self.begun, Begun::Init(Spawned::new(pid, pidfd)))
                {
                    self.between = Some(between);
                }
                Ok(Heard::Spawned)
            }
            Some(report) => Ok(Heard::Said(report)),
            None if matches!(before, Stage::Program { .. }) => Ok(Heard::Runs),
            None => Err(Error::ChildVanished(String::new())),
        }
    }

    pub(crate) fn order(&self, order: Order) -> Result<(), Errno> {
        sync::send_order(&self.socket, order)
    }

    pub(crate) fn is_given_up(&self) -> bool {
        self.given_up.is_some()
    }

    /// Kills the process. The error is told once its end is seen, or [`END_LIMIT`] later.
    pub(crate) fn give_up(&mut self, error: Error, now: Instant) {
        if self.given_up.is_none() {
            self.begun.kill();
            self.given_up = Some((error, now.checked_add(END_LIMIT).unwrap_or(now)));
        }
    }

    /// After [`Self::give_up`]: the error once the process has ended, and whether it has.
    pub(crate) fn ended(&mut self, now: Instant) -> Option<(Error, bool)> {
        let (_, until) = self.given_up.as_ref()?;
        let until = *until;
        let has_ended = match self.begun.pidfd().map(pidfd::try_wait) {
            None => true,
            Some(Ok(Some(exit))) => {
                self.exit = Some(exit);
                true
            }
            Some(Ok(None)) => false,
            // Reaped by the caller, or by nobody in a process that ignores SIGCHLD.
            Some(Err(_)) => true,
        };
        if !has_ended && now < until {
            return None;
        }
        if let Begun::Between(_) = self.begun {
            // What it made and could not tell of any more.
            while let Ok(Some(report)) = sync::receive_report_now(&self.socket) {
                if let Report::Spawned { pid, pidfd } = report {
                    drop(Spawned::new(pid, pidfd));
                }
            }
        }
        let (error, _) = self.given_up.take()?;
        let error = match (error, self.exit) {
            (Error::ChildVanished(_), Some(Exit::Signal(signal))) => Error::ChildVanished(format!(
                "killed by signal {signal}; a memory limit that is too small for the start of a process does this"
            )),
            (Error::ChildVanished(_), Some(exit)) => Error::ChildVanished(format!("exit code {}", exit.code())),
            (error, _) => error,
        };
        Some((error, has_ended))
    }

    /// The process goes on by itself.
    pub(crate) fn release(&mut self) -> Option<OwnedFd> {
        self.between = None;
        match std::mem::replace(&mut self.begun, Begun::Released) {
            Begun::Init(spawned) => spawned.release(),
            Begun::Between(_) | Begun::Released => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERYTHING: Allowed = Allowed { console: true, hooks: true, trees: 2, steps: true, runs_on: true };
    const NOTHING: Allowed = Allowed { console: false, hooks: false, trees: 0, steps: false, runs_on: false };

    /// The stage after the words, or the place of the one that was illegal.
    #[track_caller]
    fn check(first: Stage, words: &[Word], expect: Result<Stage, usize>) {
        let mut stage = first;
        for (index, word) in words.iter().enumerate() {
            match stage.next(*word) {
                Ok(next) => stage = next,
                Err(Illegal) => return assert_eq!(Err(index), expect, "{words:?}"),
            }
        }
        assert_eq!(Ok(stage), expect, "{words:?}");
    }

    #[test]
    fn a_child_says_what_its_kind_may_say_and_each_thing_once() {
        use Word::{Console, End, Failed, Hooks, Ids, Ready, Spawned, Step, Warning};
        let with = Stage::first(true, EVERYTHING);
        let bare = Stage::first(false, NOTHING);
        check(with, &[Spawned, Hooks, Step, Ids, Ids, Console, Warning, Ready, Step, End], Ok(Stage::Over));
        check(bare, &[Ready], Ok(Stage::Over));
        check(bare, &[Failed], Ok(Stage::Over));
        check(with, &[End], Ok(Stage::Over));
        check(with, &[Spawned, Ready], Ok(Stage::Program { steps: true }));
        // Nobody speaks before there is somebody, and nobody is made twice.
        check(with, &[Ready], Err(0));
        check(with, &[Warning], Err(0));
        check(with, &[Spawned, Spawned], Err(1));
        check(bare, &[Spawned], Err(0));
        // Once each, or never.
        check(with, &[Spawned, Console, Console], Err(2));
        check(with, &[Spawned, Hooks, Hooks], Err(2));
        check(with, &[Spawned, Ids, Ids, Ids], Err(3));
        for word in [Console, Hooks, Ids, Step] {
            check(bare, &[word], Err(0));
        }
        // Nothing after the end, and nothing but steps and the end after ready.
        check(bare, &[Ready, Failed], Err(1));
        check(with, &[Spawned, Failed, Failed], Err(2));
        for word in [Console, Hooks, Ids, Warning, Ready, Spawned] {
            check(with, &[Spawned, Ready, word], Err(2));
        }
        check(Stage::Program { steps: false }, &[Step], Err(0));
        check(Stage::Program { steps: false }, &[End], Ok(Stage::Over));
    }

    #[test]
    fn warnings_are_bounded() {
        let mut words = vec![Word::Warning; usize::from(WARNINGS_MAX)];
        check(Stage::first(false, NOTHING), &words, Ok(Stage::Setup { left: NOTHING, warnings: 0 }));
        words.push(Word::Warning);
        check(Stage::first(false, NOTHING), &words, Err(usize::from(WARNINGS_MAX)));
    }
}
