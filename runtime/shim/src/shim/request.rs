//! Requests, one arm each. Every answer is given here, exactly once, except for a `Wait` that has to wait.

use super::container::{Container, chain, failed, failure, note, oci_failure};
use super::server::{Server, WAITERS_MAX, Waiter};
use super::stdio::{ATTACHED_MAX, Ends};
use nix::poll::PollTimeout;
use runtime_linux::pidfd;
use runtime_linux::terminal::{self, Size};
use runtime_oci::Deletion;
use runtime_shim::protocol::Call;
use runtime_shim::{ContainerState, Created, Exec, Failure, FailureCode, Reply, Request, Target};
use std::os::fd::OwnedFd;

/// How long a killed container may take to be gone. Beyond it the delete fails and can be repeated.
const KILL_TIMEOUT_MS: u16 = 10_000;

/// Whether a delete takes the exit record along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Records {
    Keep,
    Remove,
}

type Answer = (Result<Reply, Failure>, Option<OwnedFd>);

impl Server {
    /// The answer, with a descriptor for the client where there is one; `None` when it comes later.
    pub(crate) fn dispatch(&mut self, number: u64, call: Call) -> Option<Answer> {
        let mut console = None;
        let result = match call.request {
            Request::Wait { target } => match self.wait(number, call.seq, target) {
                Ok(None) => return None,
                Ok(Some(reply)) => Ok(reply),
                Err(failure) => Err(failure),
            },
            Request::Exec(exec) => self
                .take_fds(number, [exec.stdin, exec.stdout, exec.stderr])
                .and_then(|fds| self.exec(&exec, fds))
                .map(|(pid, master)| {
                    console = master;
                    Reply::Executed { pid }
                }),
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
        };
        Some((result, console))
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
            Request::Create(create) => return self.create(&create),
            Request::Start { id } => {
                let (container, root) = self.container(&id)?;
                container.start(root)?;
            }
            Request::Signal { target, signal, all } => self.signal(&target, signal, all)?,
            Request::Delete { id, force } => self.delete(&id, force, Records::Remove)?,
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
            Request::Shutdown { force } => self.end(force)?,
            // Answered in `dispatch`, which has their connection.
            Request::Wait { .. } | Request::Exec(_) | Request::Attach { .. } | Request::Subscribe => {
                return Err(failure(FailureCode::Invalid, "this request needs a connection of its own"));
            }
        }
        Ok(Reply::Done)
    }

    fn container(&mut self, id: &str) -> Result<(&mut Container, &runtime_oci::StateRoot), Failure> {
        let container = self.containers.get_mut(id).ok_or_else(|| not_found(id))?;
        Ok((container, &self.root))
    }

    fn create(&mut self, create: &runtime_shim::Create) -> Result<Reply, Failure> {
        if self.containers.contains_key(&create.id) {
            let message = format!("container {} exists already", create.id);
            return Err(failure(FailureCode::AlreadyExists, message));
        }
        let container = Container::create(create, &self.root, &self.hierarchy, &mut self.reactor)?;
        let created = Created { pid: container.pid, warnings: container.warnings.clone() };
        self.pids.insert(container.pid, Target::container(&create.id));
        self.containers.insert(create.id.clone(), container);
        Ok(Reply::Created(created))
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

    fn exec(&mut self, exec: &Exec, fds: [Option<OwnedFd>; 3]) -> Result<(i32, Option<OwnedFd>), Failure> {
        let (container, root) = self.container(&exec.id)?;
        let (pid, console) = container.exec(exec, fds, root)?;
        self.pids.insert(pid, Target::exec(&exec.id, &exec.exec_id));
        Ok((pid, console))
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
    fn wait(&mut self, connection: u64, seq: u64, target: Target) -> Result<Option<Reply>, Failure> {
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
        self.waiters.push(Waiter { target, connection, seq });
        Ok(None)
    }

    pub(crate) fn delete(&mut self, id: &str, force: bool, records: Records) -> Result<(), Failure> {
        let what = format!("delete container {id}");
        let Some(container) = self.containers.get_mut(id) else { return Ok(()) };
        if container.exit.is_none() {
            if !force {
                container.expect("delete", ContainerState::Exited)?;
            }
            kill(container).map_err(|error| failed(&what, &error))?;
            if !pidfd::wait_ended(&container.pidfd, PollTimeout::from(KILL_TIMEOUT_MS))
                .map_err(|error| failed(&what, &error))?
            {
                return Err(failure(FailureCode::Failed, format!("{what}: it was killed but does not end; try again")));
            }
            // Its exit is recorded and told as any other.
            self.reap().map_err(|error| failed(&what, &error))?;
        }
        let Some(container) = self.containers.get_mut(id) else { return Ok(()) };
        if let Some(cgroup) = &container.cgroup
            && let Err(error) = cgroup.kill()
        {
            // What is left is named by the removal that follows.
            note(&format!("{what}: {}", chain(&error)));
        }
        runtime_oci::delete(&self.root, &container.id, Deletion::Force).map_err(|error| oci_failure(&what, &error))?;
        if let Some(container) = self.containers.remove(id) {
            self.pids.retain(|_, target| target.id != id);
            container.close(&mut self.reactor);
        }
        if records == Records::Remove {
            let directory = self.dir.join("containers").join(id);
            match std::fs::remove_dir_all(&directory) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(failed(&format!("{what}: remove {}", directory.display()), &error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn kill(container: &Container) -> Result<(), nix::Error> {
    match pidfd::send_signal(&container.pidfd, nix::libc::SIGKILL) {
        Ok(()) | Err(nix::Error::ESRCH) => Ok(()),
        Err(error) => Err(error),
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
