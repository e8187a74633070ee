//! What the shim is in the middle of: creating, starting and executing, each a conversation with a process that the loop drives.
//!
//! Not deletions (`deletion.rs`), nor what the child does. Invariants: nothing here waits; each conversation is answered within
//! [`LIMIT`] and what the OCI library takes to kill the process, which together is less than a client waits for an answer; whatever a
//! container does to what is started in it holds up nobody but the one who asked.

use super::container::{Coming, Container, failure, note, oci_failure};
use super::reactor::Token;
use super::server::{Server, Source};
use runtime_linux::pidfd::Exit;
use runtime_oci::{Conversation, Created as OciCreated, Creating, Execed, Executing, Starting};
use runtime_shim::{Created, Failure, FailureCode, Reply, Target};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long a process may take to be ready. A client waits 30 s for an answer.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
/// Conversations at once; more are refused.
pub(crate) const CONVERSATIONS_MAX: usize = 128;

/// Who is to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) connection: u64,
    pub(crate) seq: u64,
}

/// What a conversation is about.
#[derive(Debug)]
pub(crate) enum About {
    Create { coming: Box<Coming>, creating: Box<Creating<'static>> },
    Start { id: String, starting: Box<Starting> },
    Exec { target: Target, tied: bool, executing: Box<Executing> },
}

#[derive(Debug)]
pub(crate) struct Talking {
    pub(crate) asked: Asked,
    pub(crate) about: About,
    watch: Option<Token>,
    /// Its process, once it is known, among the server's `coming`.
    pid: Option<i32>,
    /// It was reaped before the conversation came to its end.
    exit: Option<Exit>,
}

/// What has come of a conversation.
enum Outcome {
    Created(OciCreated),
    Started,
    Executed(Execed),
}

impl About {
    fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Self::Create { creating, .. } => creating.descriptor(),
            Self::Start { starting, .. } => starting.descriptor(),
            Self::Exec { executing, .. } => executing.descriptor(),
        }
    }

    fn due(&self) -> Option<Instant> {
        match self {
            Self::Create { creating, .. } => creating.due(),
            Self::Start { starting, .. } => starting.due(),
            Self::Exec { executing, .. } => executing.due(),
        }
    }

    /// The process that nobody knows but the conversation; a start's is its container's already.
    fn pid(&self) -> Option<i32> {
        match self {
            Self::Create { creating, .. } => creating.pid(),
            Self::Start { .. } => None,
            Self::Exec { executing, .. } => executing.pid(),
        }
    }

    fn advance(&mut self, now: Instant) -> Result<Option<Outcome>, runtime_oci::Error> {
        Ok(match self {
            Self::Create { creating, .. } => creating.advance(now, &mut None)?.map(Outcome::Created),
            Self::Start { starting, .. } => starting.advance(now, &mut None)?.map(|()| Outcome::Started),
            Self::Exec { executing, .. } => executing.advance(now, &mut None)?.map(Outcome::Executed),
        })
    }

    fn abandon(&mut self, error: runtime_oci::Error, now: Instant) {
        match self {
            Self::Create { creating, .. } => creating.abandon(error, now),
            Self::Start { starting, .. } => starting.abandon(error, now),
            Self::Exec { executing, .. } => executing.abandon(error, now),
        }
    }

    pub(crate) fn container(&self) -> &str {
        match self {
            Self::Create { coming, .. } => coming.id.as_str(),
            Self::Start { id, .. } => id,
            Self::Exec { target, .. } => &target.id,
        }
    }

    fn what(&self) -> String {
        match self {
            Self::Create { coming, .. } => format!("create container {}", coming.id),
            Self::Start { id, .. } => format!("start container {id}"),
            Self::Exec { target, .. } => {
                format!("exec {} in container {}", target.exec_id.as_deref().unwrap_or_default(), target.id)
            }
        }
    }
}

impl Server {
    /// Takes a conversation that has begun into the loop.
    pub(crate) fn converse(&mut self, asked: Asked, about: About) {
        let number = self.next_conversation;
        self.next_conversation += 1;
        self.conversations.insert(number, Talking { asked, about, watch: None, pid: None, exit: None });
        self.watch_conversation(number);
    }

    pub(crate) fn may_converse(&self) -> Result<(), Failure> {
        if self.conversations.len() < CONVERSATIONS_MAX {
            return Ok(());
        }
        let message = format!("{CONVERSATIONS_MAX} containers and execs are being started already");
        Err(failure(FailureCode::Exhausted, message))
    }

    /// Watches what the conversation waits for, and knows its process by its pid.
    fn watch_conversation(&mut self, number: u64) {
        let Some(talking) = self.conversations.get_mut(&number) else { return };
        let flags = nix::sys::epoll::EpollFlags::EPOLLIN;
        match self.reactor.watch(talking.about.descriptor(), flags, Source::Conversation(number)) {
            Ok(token) => talking.watch = Some(token),
            // Without memory for a watch it is looked at when it is due.
            Err(error) => note(&format!("{}: watch: {error}", talking.about.what())),
        }
        if talking.pid.is_none()
            && let Some(pid) = talking.about.pid()
        {
            talking.pid = Some(pid);
            self.coming.insert(pid, number);
        }
    }

    /// Goes on with one conversation, and answers where it is over.
    pub(crate) fn advance(&mut self, number: u64, now: Instant) {
        let Some(talking) = self.conversations.get_mut(&number) else { return };
        // What it waits for may be another descriptor afterwards.
        if let Some(token) = talking.watch.take() {
            self.reactor.forget(token, talking.about.descriptor());
        }
        let outcome = match talking.about.advance(now) {
            Ok(None) => return self.watch_conversation(number),
            Ok(Some(outcome)) => Ok(outcome),
            Err(error) => Err(error),
        };
        let Some(talking) = self.conversations.remove(&number) else { return };
        if let Some(pid) = talking.pid {
            self.coming.remove(&pid);
        }
        let asked = talking.asked;
        let (result, descriptor) = self.conclude(talking, outcome);
        self.answer(asked, result, descriptor);
        // What had ended before anybody could be told that it runs.
        for (target, exit) in std::mem::take(&mut self.late) {
            self.target_ended(&target, exit);
        }
    }

    fn conclude(
        &mut self,
        talking: Talking,
        outcome: Result<Outcome, runtime_oci::Error>,
    ) -> (Result<Reply, Failure>, Option<OwnedFd>) {
        let what = talking.about.what();
        let exit = talking.exit;
        match (talking.about, outcome) {
            (About::Create { coming, .. }, Ok(Outcome::Created(created))) => {
                (self.created(*coming, created, exit), None)
            }
            (About::Start { id, .. }, Ok(Outcome::Started)) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.started();
                }
                (Ok(Reply::Done), None)
            }
            (About::Exec { target, tied, .. }, Ok(Outcome::Executed(execed))) => {
                self.executed(talking.asked, &target, tied, execed, exit)
            }
            (about, Err(error)) => {
                let failure = oci_failure(&what, &error);
                match about {
                    About::Create { coming, creating } => {
                        // Undone before anybody hears of it.
                        drop(creating);
                        let deleters = coming.deleters.clone();
                        drop(coming);
                        for asked in deleters {
                            self.answer(asked, Ok(Reply::Done), None);
                        }
                    }
                    About::Start { id, .. } => {
                        if let Some(container) = self.containers.get_mut(&id) {
                            container.is_starting = false;
                        }
                    }
                    About::Exec { .. } => {}
                }
                (Err(failure), None)
            }
            (_, Ok(_)) => (Err(failure(FailureCode::Failed, what)), None),
        }
    }

    fn created(&mut self, coming: Coming, created: OciCreated, exit: Option<Exit>) -> Result<Reply, Failure> {
        let (id, deleters) = (coming.id.to_string(), coming.deleters.clone());
        let container = Container::created(coming, created, &self.root, &mut self.reactor)?;
        let (pid, warnings) = (container.pid, container.warnings.clone());
        self.containers.insert(id.clone(), container);
        match exit {
            None => {
                self.pids.insert(pid, Target::container(&id));
            }
            Some(exit) => self.late.push((Target::container(&id), exit)),
        }
        for asked in deleters {
            self.delete_for(asked, &id, true);
        }
        Ok(Reply::Created(Created { pid, warnings }))
    }

    fn executed(
        &mut self,
        asked: Asked,
        target: &Target,
        tied: bool,
        execed: Execed,
        exit: Option<Exit>,
    ) -> (Result<Reply, Failure>, Option<OwnedFd>) {
        let (pid, console) = (execed.pid, execed.console);
        let Some(container) = self.containers.get_mut(&target.id) else {
            // Deleted meanwhile, and the process with it.
            let message = format!("container {} has been deleted", target.id);
            return (Err(failure(FailureCode::WrongState, message)), None);
        };
        container.executed(target, execed.pidfd, pid, tied.then_some(asked.connection));
        match exit {
            None => {
                self.pids.insert(pid, target.clone());
                if tied && self.connection(asked.connection).is_none() {
                    self.end_tied(asked.connection);
                }
            }
            Some(exit) => self.late.push((target.clone(), exit)),
        }
        (Ok(Reply::Executed { pid }), console)
    }

    /// A child that no container has yet, but a conversation.
    pub(crate) fn coming_ended(&mut self, pid: i32, exit: Exit) {
        let Some(talking) = self.coming.get(&pid).and_then(|number| self.conversations.get_mut(number)) else {
            return;
        };
        talking.exit = Some(exit);
        match &mut talking.about {
            About::Create { creating, .. } => creating.reaped(exit),
            About::Exec { executing, .. } => executing.reaped(exit),
            About::Start { .. } => {}
        }
    }

    /// Every conversation about a container is given up: it is being deleted.
    pub(crate) fn abandon(&mut self, id: &str, now: Instant) {
        let about = |talking: &Talking| talking.about.container() == id;
        let all: Vec<u64> =
            self.conversations.iter().filter(|(_, talking)| about(talking)).map(|(number, _)| *number).collect();
        for number in all {
            self.give_up(number, now);
        }
    }

    fn give_up(&mut self, number: u64, now: Instant) {
        let Some(talking) = self.conversations.get_mut(&number) else { return };
        // It waits for another descriptor afterwards.
        if let Some(token) = talking.watch.take() {
            self.reactor.forget(token, talking.about.descriptor());
        }
        let step = talking.about.what();
        talking.about.abandon(runtime_oci::Error::Abandoned { step }, now);
        self.advance(number, now);
    }

    pub(crate) fn conversation_due(&self) -> Option<Instant> {
        self.conversations.values().filter_map(|talking| talking.about.due()).min()
    }

    /// Those whose time is up.
    pub(crate) fn expire_conversations(&mut self, now: Instant) {
        let is_due = |talking: &Talking| talking.about.due().is_some_and(|due| due <= now);
        let due: Vec<u64> =
            self.conversations.iter().filter(|(_, talking)| is_due(talking)).map(|(number, _)| *number).collect();
        for number in due {
            self.advance(number, now);
        }
    }

    /// Execs that were to end with a connection that has gone.
    pub(crate) fn end_tied(&mut self, connection: u64) {
        for container in self.containers.values() {
            container.kill_tied(connection);
        }
        let is_tied = |talking: &Talking| {
            talking.asked.connection == connection && matches!(talking.about, About::Exec { tied: true, .. })
        };
        let tied: Vec<u64> =
            self.conversations.iter().filter(|(_, talking)| is_tied(talking)).map(|(number, _)| *number).collect();
        for number in tied {
            self.give_up(number, Instant::now());
        }
    }
}
