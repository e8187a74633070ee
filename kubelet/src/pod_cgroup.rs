//! The cgroup around a pod's containers, below that of its class. Blocking; called from a blocking task.
//! Not the containers' own cgroups, which the runtime makes. Invariant: what the kubelet made it removes when the pod ends.

use oci_spec::runtime::{LinuxCpu, LinuxCpuBuilder, LinuxMemoryBuilder, LinuxResources, LinuxResourcesBuilder};
use runtime_cri_api::v1 as cri;
use runtime_linux::cgroup::{Cgroup, Error, Hierarchy};

use crate::pod::LocalPod;
use crate::resources;

#[derive(Clone, Debug)]
pub struct Cgroups {
    hierarchy: Option<Hierarchy>,
    root: String,
}

impl Cgroups {
    /// # Errors
    /// If the host's hierarchies cannot be made out.
    pub fn detect(root: &str) -> Result<Cgroups, Error> {
        Ok(Cgroups { hierarchy: Some(Hierarchy::detect()?), root: root.to_owned() })
    }

    /// For a host, or a test, that leaves cgroups to the runtime.
    #[must_use]
    pub fn none() -> Cgroups {
        Cgroups { hierarchy: None, root: String::new() }
    }

    /// Makes the pod's cgroup with the limits of the pod as a whole.
    ///
    /// # Errors
    /// If it cannot be made or a limit cannot be set.
    pub fn ensure(&self, pod: &LocalPod) -> Result<(), Error> {
        let Some(hierarchy) = &self.hierarchy else { return Ok(()) };
        let cgroup = Cgroup::create(hierarchy, &resources::cgroup_parent(&self.root, pod))?;
        if let Some(limits) = translate(&resources::pod(pod)) {
            for ignored in cgroup.apply(&limits)? {
                tracing::debug!(pod = %pod.key, ?ignored, "limit of the pod not set");
            }
        }
        Ok(())
    }

    /// Removes the pod's cgroup; one that is gone is fine.
    ///
    /// # Errors
    /// If processes are left in it.
    pub fn remove(&self, pod: &LocalPod) -> Result<(), Error> {
        let Some(hierarchy) = &self.hierarchy else { return Ok(()) };
        Cgroup::new(hierarchy, &resources::cgroup_parent(&self.root, pod))?.remove()
    }

    /// Removes a pod's cgroup of which only the uid is known.
    ///
    /// # Errors
    /// If processes are left in it.
    pub fn remove_by_uid(&self, uid: &str) -> Result<(), Error> {
        let Some(hierarchy) = &self.hierarchy else { return Ok(()) };
        let root = self.root.trim_end_matches('/');
        for class in ["", "/burstable", "/besteffort"] {
            Cgroup::new(hierarchy, &format!("{root}/kubepods{class}/pod{uid}"))?.remove()?;
        }
        Ok(())
    }
}

fn translate(limits: &cri::LinuxContainerResources) -> Option<LinuxResources> {
    let cpu: LinuxCpu = {
        let builder = LinuxCpuBuilder::default().shares(u64::try_from(limits.cpu_shares).unwrap_or(2));
        let limited = limits.cpu_quota > 0;
        let period = u64::try_from(limits.cpu_period).unwrap_or(100_000);
        let builder = if limited { builder.quota(limits.cpu_quota).period(period) } else { builder };
        builder.build().ok()?
    };
    let mut builder = LinuxResourcesBuilder::default().cpu(cpu);
    if limits.memory_limit_in_bytes > 0 {
        builder = builder.memory(LinuxMemoryBuilder::default().limit(limits.memory_limit_in_bytes).build().ok()?);
    }
    builder.build().ok()
}
