//! The plans for mounts that come into a container that is there already, or leave it.
//!
//! Their steps are done by a process of the runtime's in the container's namespaces; sources are the host's, opened outside, or the
//! container's own.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};

use super::mounts::inherited;
use super::{Context, Namespaces, Opener, Plan, Step, invalid};
use crate::error::Error;

impl Plan {
    pub(crate) fn more_mounts(spec: &Spec, mounts: &[Mount], context: &Context<'_>) -> Result<Self, Error> {
        let mut plan = Self::inside(spec, context)?;
        let linux = spec.linux().as_ref().ok_or_else(|| invalid("linux", "is missing"))?;
        if mounts.iter().any(|mount| matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2"))) {
            return Err(invalid("mounts", "cgroups are mounted when the container is made, not later"));
        }
        plan.mount_each(spec, mounts, context, inherited(linux)?.1)?;
        plan.readonly_at_last();
        let is_root = |step: &Step| matches!(step, Step::Mount { destination, .. } if destination == Path::new("/"));
        if plan.setup.iter().any(is_root) {
            return Err(invalid("mounts", "a running container's root stays what it is: choose another destination"));
        }
        // A path of the host means nothing to who is in the container already.
        for source in plan.sources.iter_mut().filter(|source| source.by == Opener::Process) {
            source.by = Opener::Runtime;
        }
        Ok(plan)
    }

    /// The last that was mounted goes first.
    pub(crate) fn fewer_mounts(
        spec: &Spec,
        destinations: impl DoubleEndedIterator<Item = PathBuf>,
        context: &Context<'_>,
    ) -> Result<Self, Error> {
        let mut plan = Self::inside(spec, context)?;
        for destination in destinations.rev() {
            let destination = Path::new("/").join(destination);
            if destination == Path::new("/") {
                return Err(invalid("mounts", "a running container keeps its root"));
            }
            plan.setup.push(Step::Unmount(destination));
        }
        Ok(plan)
    }

    /// What both begin with.
    fn inside(spec: &Spec, context: &Context<'_>) -> Result<Self, Error> {
        let linux = spec.linux().as_ref().ok_or_else(|| invalid("linux", "is missing"))?;
        let mut plan = Self {
            namespaces: Namespaces::default(),
            sources: Vec::new(),
            net_devices: Vec::new(),
            setup: Vec::new(),
            start: Vec::new(),
            warnings: Vec::new(),
        };
        plan.namespaces = Namespaces::plan(linux, &context.default_maps, &mut Vec::new())?;
        if !plan.namespaces.has(LinuxNamespaceType::Mount) {
            return Err(invalid("linux.namespaces", "has no mount namespace: what would be mounted is the host's"));
        }
        if plan.namespaces.has(LinuxNamespaceType::User) {
            plan.setup.push(Step::NamespaceRoot);
        }
        plan.setup.push(Step::RootDirectory(PathBuf::from("/")));
        Ok(plan)
    }
}
