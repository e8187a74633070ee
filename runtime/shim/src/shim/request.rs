//! Requests, one arm each. What takes no time is answered here, exactly once; a `Wait` that has to wait, a conversation and a deletion
//! are answered by whoever brings them to their end.

use super::container::{Coming, Container, failed, failure, oci_failure};
use super::conversation::{About, Asked, Talking};
use super::server::{Server, WAITERS_MAX, Waiter};
use super::stdio::{ATTACHED_MAX, Ends};
use runtime_linux::pidfd;
use runtime_linux::terminal::{self, Size};
use runtime_shim::protocol::{Greeting, OLDEST, PROTOCOL};
use runtime_shim::{Exec, Failure, FailureCode, Reply, Request, Target};
use std::os::fd::OwnedFd;

impl Server {
    /// The answer; `None` when it comes later.
    pub(crate) fn dispatch(&mut self, asked: Asked, request: Request) -> Option<Result<Reply, Failure>> {
        let number = asked.connection;
        Some(match request {
            Request::Hello { protocol } => self.greet(number, protocol),
            Request::Wait { id, exec_id } => match self.wait(asked, Target { id, exec_id }) {
                Ok(None) => return None,
                Ok(Some(reply)) => Ok(reply),
                Err(failure) => Err(failure),
            },
            Request::Create(create) => match self.create(asked, &create) {
                Ok(()) => return None,
                Err(failure) => Err(failure),
            },
            Request::Start { id } => match self.start(asked, &id) {
                Ok(()) => return None,
                Err(failure) => Err(failure),
            },
            Request::Exec(exec) => {
                let begun = self
                    .take_fds(number, [exec.stdin, exec.stdout, exec.stderr])
                    .and_then(|fds| self.exec(asked, &exec, fds));
                match begun {
                    Ok(()) => return None,
                    Err(failure) => Err(failure),
                }
            }
            Request::Delete { id, force } => {
                self.delete_for(asked, &id, force);
                return None;
            }
            Request::Shutdown { force } => {
                self.shut_down_for(asked, force);
                return None;
            }
            Request::Attach { id, stdin, stdout, stderr } => {
                self.take_fds(number, [stdin, stdout, stderr]).and_then(|fds| self.attach(&id, fds))
            }
            Request::Subscribe => {
                if let Some(connection) = self.connection(number) {
                    connection.subscribed = true;
                }
                Ok(Reply::Info(Box::new(self.info())))
            }
            other => self.simple(other),
        })
    }

    fn greet(&mut self, number: u64, protocol: u32) -> Result<Reply, Failure> {
        if protocol < OLDEST {
            let message =
                format!("this shim serves clients of protocol {OLDEST} and newer, not {protocol}: upgrade the daemon");
            return Err(failure(FailureCode::Unsupported, message));
        }
        if let Some(connection) = self.connection(number) {
            connection.protocol = protocol;
        }
        Ok(Reply::Hello(Greeting { protocol: PROTOCOL, oldest: OLDEST }))
    }

    /// The descriptors a request announced, in their places.
    fn take_fds(&mut self, number: u64, wanted: [bool; 3]) -> Result<[Option<OwnedFd>; 3], Failure> {
        let mut fds = [None, None, None];
        for (slot, _) in fds.iter_mut().zip(wanted).filter(|(_, wanted)| *wanted) {
            let sent = self.connection(number).and_then(|connection| connection.fds.pop_front());
            let missing =
                || failure(FailureCode::Invalid, "a descriptor that the request announces did not come along");
            *slot = Some(sent.ok_or_else(missing)?);
        }
        Ok(fds)
    }

    fn simple(&mut self, request: Request) -> Result<Reply, Failure> {
        match request {
            Request::Info => return Ok(Reply::Info(Box::new(self.info()))),
            Request::Signal { id, exec_id, signal, all } => self.signal(&Target { id, exec_id }, signal, all)?,
            Request::Resize { id, columns, rows } => {
                let (container, _) = self.container(&id)?;
                let Some(master) = container.stdio.terminal().filter(|_| container.terminal) else {
                    return Err(failure(FailureCode::WrongState, format!("container {id} has no terminal")));
                };
                terminal::set_size(master, Size { columns, rows })
                    .map_err(|error| failed(&format!("resize the terminal of container {id}"), &error))?;
            }
            Request::ReopenLog { id } => {
                let (container, _) = self.container(&id)?;
                if let Some(log) = &mut container.stdio.log {
                    let what = format!("reopen log {}", log.path().display());
                    log.reopen().map_err(|error| failed(&what, &error))?;
                }
            }
            Request::CloseStdin { id } => {
                let container = self.containers.get_mut(&id).ok_or_else(|| not_found(&id))?;
                // A terminal's input has no end: its program is told by a typed ^D.
                if !container.terminal {
                    container.stdio.end_input(&mut self.reactor);
                }
            }
            Request::Update { id, resources } => {
                let (container, root) = self.container(&id)?;
                runtime_oci::update(root, &container.id, &resources, &runtime_oci::Schemata::default())
                    .map_err(|error| oci_failure(&format!("update container {id}"), &error))?;
            }
            // Taken in `dispatch`, which knows who asked.
            Request::Hello { .. }
            | Request::Wait { .. }
            | Request::Create(_)
            | Request::Start { .. }
            | Request::Exec(_)
            | Request::Delete { .. }
            | Request::Shutdown { .. }
            | Request::Attach { .. }
            | Request::Subscribe => {
                return Err(failure(FailureCode::Invalid, "this request needs a connection of its own"));
            }
        }
        Ok(Reply::Done)
    }

    fn container(&mut self, id: &str) -> Result<(&mut Container, &runtime_oci::StateRoot), Failure> {
        let container = self.containers.get_mut(id).ok_or_else(|| not_found(id))?;
        Ok((container, &self.root))
    }

    pub(crate) fn is_being_created(&self, id: &str) -> bool {
        let creates =
            |talking: &Talking| matches!(talking.about, About::Create { .. }) && talking.about.container() == id;
        self.conversations.values().any(creates)
    }

    /// Nothing begins in a pod, or a container, that is on its way out.
    fn may_begin(&self, id: &str) -> Result<(), Failure> {
        if self.shutdown.is_some() {
            return Err(failure(FailureCode::WrongState, "the pod is being shut down"));
        }
        if self.deletions.contains_key(id) {
            return Err(failure(FailureCode::WrongState, format!("container {id} is being deleted")));
        }
        self.may_converse()
    }

    fn create(&mut self, asked: Asked, create: &runtime_shim::Create) -> Result<(), Failure> {
        if self.containers.contains_key(&create.id) || self.is_being_created(&create.id) {
            let message = format!("container {} exists already", create.id);
            return Err(failure(FailureCode::AlreadyExists, message));
        }
        self.may_begin(&create.id)?;
        let (coming, creating) = Coming::begin(create, &self.root, &self.hierarchy)?;
        self.converse(asked, About::Create { coming: Box::new(coming), creating: Box::new(creating) });
        Ok(())
    }

    fn start(&mut self, asked: Asked, id: &str) -> Result<(), Failure> {
        self.may_begin(id)?;
        let (container, root) = self.container(id)?;
        let starting = Box::new(container.start(root)?);
        self.converse(asked, About::Start { id: id.to_owned(), starting });
        Ok(())
    }

    fn signal(&mut self, target: &Target, signal: i32, all: bool) -> Result<(), Failure> {
        let (container, root) = self.container(&target.id)?;
        let what = format!("send signal {signal} to {}", name(target));
        let ended = || failure(FailureCode::WrongState, format!("{what}: it has ended"));
        let pidfd = match &target.exec_id {
            Some(exec_id) => {
                let exec = container.execs.get(exec_id).ok_or_else(|| not_found(&name(target)))?;
                if exec.exit.is_some() {
                    return Err(ended());
                }
                &exec.pidfd
            }
            None if all => {
                return runtime_oci::kill(root, &container.id, signal, runtime_oci::Target::All)
                    .map_err(|error| oci_failure(&what, &error));
            }
            None if container.exit.is_some() => return Err(ended()),
            None => &container.pidfd,
        };
        match pidfd::send_signal(pidfd, signal) {
            // Ended, but not reaped yet: the exit is on its way.
            Ok(()) | Err(nix::Error::ESRCH) => Ok(()),
            Err(error) => Err(failed(&what, &error)),
        }
    }

    fn exec(&mut self, asked: Asked, exec: &Exec, fds: [Option<OwnedFd>; 3]) -> Result<(), Failure> {
        self.may_begin(&exec.id)?;
        let target = Target::exec(&exec.id, &exec.exec_id);
        let is_coming =
            |talking: &Talking| matches!(&talking.about, About::Exec { target: other, .. } if *other == target);
        if self.conversations.values().any(is_coming) {
            let message = format!("{}: the exec id is taken", name(&target));
            return Err(failure(FailureCode::AlreadyExists, message));
        }
        let (container, root) = self.container(&exec.id)?;
        let executing = Box::new(container.exec(exec, fds, root)?);
        self.converse(asked, About::Exec { target, tied: exec.tied, executing });
        Ok(())
    }

    fn attach(&mut self, id: &str, fds: [Option<OwnedFd>; 3]) -> Result<Reply, Failure> {
        let container = self.containers.get_mut(id).ok_or_else(|| not_found(id))?;
        if container.exit.is_some() {
            return Err(failure(FailureCode::WrongState, format!("cannot attach to container {id}: it has ended")));
        }
        if container.stdio.attached() >= ATTACHED_MAX {
            let message = format!("{ATTACHED_MAX} clients are attached to container {id} already");
            return Err(failure(FailureCode::Exhausted, message));
        }
        let [stdin, stdout, stderr] = fds;
        let ends = Ends { stdin, stdout, stderr };
        container.stdio.attach(ends, &mut self.reactor).map_err(|error| {
            let message = format!("attach to container {id}: streams must be pipes or sockets: {error}");
            failure(FailureCode::Invalid, message)
        })?;
        Ok(Reply::Done)
    }

    /// The answer, or `None` when it comes later.
    fn wait(&mut self, asked: Asked, target: Target) -> Result<Option<Reply>, Failure> {
        let container = self.containers.get(&target.id).ok_or_else(|| not_found(&target.id))?;
        let exit = match &target.exec_id {
            None => &container.exit,
            Some(exec_id) => &container.execs.get(exec_id).ok_or_else(|| not_found(&name(&target)))?.exit,
        };
        if let Some(record) = exit {
            return Ok(Some(Reply::Exited(record.clone())));
        }
        if self.waiters.len() >= WAITERS_MAX {
            return Err(failure(FailureCode::Exhausted, format!("{WAITERS_MAX} requests are waiting already")));
        }
        self.waiters.push(Waiter { target, asked });
        Ok(None)
    }
}

fn name(target: &Target) -> String {
    match &target.exec_id {
        None => format!("container {}", target.id),
        Some(exec_id) => format!("exec {exec_id} of container {}", target.id),
    }
}

fn not_found(what: &str) -> Failure {
    failure(FailureCode::NotFound, format!("{what}: there is no such thing in this pod"))
}
