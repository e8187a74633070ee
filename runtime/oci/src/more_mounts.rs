//! `mounts add` and `mounts remove`: mounts that come into a container that is there already, or leave it.
//!
//! A process of ours enters the container's namespaces as an exec's does, and ends when it is done. Invariant: of several mounts all are
//! made, or none stays.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::errno::Errno;
use oci_spec::runtime::{Mount, Spec};
use runtime_linux::namespace::Kind;
use runtime_linux::{local_socket, pidfd};

use crate::child::{Child, TerminalUser, Watch};
use crate::create::{child_error, default_maps, parent};
use crate::error::Error;
use crate::exec::{chroot, namespaces};
use crate::options::RootChange;
use crate::plan::{CgroupView, Context, MountStep, Opener, Plan, Step};
use crate::record::{Place, Record};
use crate::spawn::spawn;
use crate::status::Status;
use crate::sync::{self, Fault, Order, Report};
use crate::{ContainerId, StateRoot, sources};

/// Mounts into a created or running container, as if the entries had come last in its configuration; what is to be told comes back.
pub fn add_mounts(root: &StateRoot, id: &ContainerId, mounts: &[Mount]) -> Result<Vec<String>, Error> {
    let container = Container::find(root, id, "mounts add")?;
    let plan = Plan::more_mounts(&container.spec, mounts, &container.context())?;
    let Some(fault) = container.hold(&plan)? else { return Ok(plan.warnings) };
    let error = child_error(&fault, &plan.setup, &[]);
    // A place beyond the plan's is none of its steps: nothing was begun.
    let done = usize::try_from(fault.step).ok().filter(|step| *step < plan.setup.len()).unwrap_or(0);
    let made: Vec<PathBuf> = plan.setup[..done].iter().filter_map(mounted).collect();
    if !made.is_empty() {
        // What is not undone either stays; the first error is the one to tell.
        let undo = Plan::fewer_mounts(&container.spec, made.into_iter(), &container.context())?;
        let _left = container.hold(&undo)?;
    }
    Err(error)
}

/// Takes away what is mounted at the entries' destinations, the last first.
pub fn remove_mounts(root: &StateRoot, id: &ContainerId, mounts: &[Mount]) -> Result<(), Error> {
    let container = Container::find(root, id, "mounts remove")?;
    let destinations = mounts.iter().map(|mount| mount.destination().clone());
    let plan = Plan::fewer_mounts(&container.spec, destinations, &container.context())?;
    match container.hold(&plan)? {
        None => Ok(()),
        Some(fault) => Err(child_error(&fault, &plan.setup, &[])),
    }
}

fn mounted(step: &Step) -> Option<PathBuf> {
    match step {
        // A remount has mounted nothing.
        Step::Mount { mount: MountStep::Remount { .. }, .. } => None,
        Step::Mount { destination, .. } => Some(destination.clone()),
        _ => None,
    }
}

struct Container {
    record: Record,
    status: Status,
    spec: Spec,
    id: String,
}

impl Container {
    fn find(root: &StateRoot, id: &ContainerId, operation: &'static str) -> Result<Self, Error> {
        let place = Place::new(root, id);
        let record = place.load()?;
        let cgroup = root.cgroup(&record.cgroup)?;
        let status = record.status(&place, || cgroup.is_frozen().unwrap_or(false));
        if !matches!(status, Status::Created | Status::Running | Status::Paused) {
            return Err(Error::WrongStatus { id: id.to_string(), operation, status });
        }
        Ok(Self { spec: place.config()?, id: id.to_string(), record, status })
    }

    fn context(&self) -> Context<'_> {
        let linux = self.spec.linux().as_ref();
        Context {
            bundle: &self.record.bundle,
            rootfs: None,
            root_change: RootChange::Pivot,
            keyring: None,
            cgroup: CgroupView::V1 { hierarchies: Vec::new() },
            preserve_fds: &[],
            default_maps: default_maps(&self.spec),
            mount_label: linux.and_then(|linux| linux.mount_label().as_deref()).filter(|label| !label.is_empty()),
        }
    }

    /// Does the plan's steps in the container; `Some` for the one that failed. The process stays in our cgroup: the container's may be
    /// frozen, or full.
    fn hold(&self, plan: &Plan) -> Result<Option<Fault>, Error> {
        let opened = sources::open(plan)?;
        let is_missing =
            |(index, tree): (usize, &Option<_>)| tree.is_none() && plan.sources[index].by == Opener::Runtime;
        if opened.iter().enumerate().any(is_missing) {
            return Err(parent("open a mount source, which takes the host's root")(Errno::EPERM));
        }
        let init = pidfd::open(self.record.pid).map_err(parent("open the container's init"))?;
        // The pid could have been taken over before it was opened, not after.
        if !self.record.is_alive() {
            let (id, status) = (self.id.clone(), Status::Stopped);
            return Err(Error::WrongStatus { id, operation: "mounts", status });
        }
        let (ours, theirs) = local_socket::pair().map_err(parent("socketpair"))?;
        let (how, joins) = namespaces(&self.record, &init)?;
        let child = Child {
            sync: theirs,
            listener: None,
            joins,
            joins_mounts: self.record.namespaces.iter().any(|name| name == Kind::Mount.file_name()),
            chroot: chroot(&self.record)?,
            sources: opened,
            source_paths: &plan.sources,
            stdio: [None, None, None],
            setup: &plan.setup,
            start: &[],
            arguments: &[],
            environment: &[],
            terminal: TerminalUser::default(),
            hooks: None,
            state: self.record.state(self.status),
            watch: Watch::Nobody,
            agent: None,
        };
        let (spawned, ours) = spawn(&how, child, ours).map_err(parent("clone into the container"))?;
        let _dead = sync::send_order(&ours, Order::Go(spawned.pid));
        let outcome = Self::hear(plan, &ours);
        spawned.end();
        outcome
    }

    fn hear(plan: &Plan, ours: &OwnedFd) -> Result<Option<Fault>, Error> {
        loop {
            match sync::receive_report(ours) {
                // It has nothing more to do, and is ended and reaped by our caller.
                Ok(Some(Report::Ready)) => return Ok(None),
                Ok(Some(Report::Failed(fault))) => return Ok(Some(fault)),
                Ok(Some(Report::NeedIds { source, tree })) => {
                    sources::map_ids_of(plan, usize::try_from(source).unwrap_or(usize::MAX), &tree)?;
                    sync::send_order(ours, Order::IdsMapped).map_err(parent("go on after mapping ids"))?;
                }
                Ok(None) | Err(Errno::EPIPE) => return Err(Error::ChildVanished("killed".to_owned())),
                Ok(Some(_)) => return Err(parent("mounts")(Errno::EPROTO)),
                Err(errno) => return Err(parent("mounts")(errno)),
            }
        }
    }
}
