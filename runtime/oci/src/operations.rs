//! The operations of the library's door on one container.

use nix::errno::Errno;
use oci_spec::runtime::{LinuxResources, Process};

use crate::error::{Error, Failure};
use crate::status::State;
use crate::{Bundle, ContainerId, CreateOptions, Created, ExecOptions, Execed, StateRoot};

fn absent<T>(step: &str) -> Result<T, Error> {
    Err(Error::Parent(Failure::new(step, Errno::ENOSYS)))
}

/// Creates a container whose init waits for [`start`]; on an error everything is undone.
pub fn create(
    _root: &StateRoot,
    _id: &ContainerId,
    _bundle: &Bundle,
    _options: CreateOptions,
) -> Result<Created, Error> {
    absent("create")
}

/// Lets a created container's process run; an `execve` that fails is reported here.
pub fn start(_root: &StateRoot, _id: &ContainerId) -> Result<(), Error> {
    absent("start")
}

/// Runs a further process in a created or running container.
pub fn exec(_root: &StateRoot, _id: &ContainerId, _process: &Process, _options: ExecOptions) -> Result<Execed, Error> {
    absent("exec")
}

/// Who gets a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Init,
    /// Every process in the container's cgroup.
    All,
}

pub fn kill(_root: &StateRoot, _id: &ContainerId, _signal: i32, _target: Target) -> Result<(), Error> {
    absent("kill")
}

/// What `delete` does to a container that still runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// Refuses.
    Stopped,
    /// Kills it first, and does not mind a container that is not there.
    Force,
}

pub fn delete(_root: &StateRoot, _id: &ContainerId, _deletion: Deletion) -> Result<(), Error> {
    absent("delete")
}

pub fn state(_root: &StateRoot, _id: &ContainerId) -> Result<State, Error> {
    absent("state")
}

/// Every container below the root, by id; one whose record cannot be read is an error of its own.
pub fn list(_root: &StateRoot) -> Result<Vec<Result<State, Error>>, Error> {
    absent("list")
}

pub fn pause(_root: &StateRoot, _id: &ContainerId) -> Result<(), Error> {
    absent("pause")
}

pub fn resume(_root: &StateRoot, _id: &ContainerId) -> Result<(), Error> {
    absent("resume")
}

pub fn update(_root: &StateRoot, _id: &ContainerId, _resources: &LinuxResources) -> Result<(), Error> {
    absent("update")
}

/// The processes in the container's cgroup, as pids of the caller's namespace.
pub fn processes(_root: &StateRoot, _id: &ContainerId) -> Result<Vec<i32>, Error> {
    absent("processes")
}
