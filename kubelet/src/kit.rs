//! What every pod's task is given: the runtime, the API, the recorder, and what is the same for all pods of the node.
//! Holds no pod.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use k8s_openapi::api::core::v1::Service;
use kube::Client;

use crate::cri::Runtime;
use crate::env::Sources;
use crate::events::Recorder;
use crate::pod::Key;
use crate::sandbox_config::Host;
use crate::status::NodeFacts;
use crate::volumes::Access;

/// The Services of the cluster, kept by the watch in pods.rs.
#[derive(Clone, Debug, Default)]
pub struct Services {
    map: Arc<RwLock<BTreeMap<Key, Arc<Service>>>>,
}

impl Services {
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Service>> {
        self.map.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub fn change(&self, change: impl FnOnce(&mut BTreeMap<Key, Arc<Service>>)) {
        change(&mut self.map.write().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Shared by all pods' tasks.
pub struct Kit {
    pub client: Client,
    pub runtime: Runtime,
    pub access: Access,
    pub recorder: Recorder,
    pub host: Host,
    pub node_name: String,
    pub facts: NodeFacts,
    pub services: Services,
    pub counters: Arc<crate::counters::Counters>,
    pub allowed_sysctls: crate::sysctls::Allowed,
    pub cpu_capacity_millis: u64,
    pub memory_capacity_bytes: u64,
    pub allocatable_cpu_millis: u64,
    pub allocatable_memory_bytes: u64,
    pub cgroups: crate::pod_cgroup::Cgroups,
}

impl std::fmt::Debug for Kit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kit").field("node_name", &self.node_name).finish_non_exhaustive()
    }
}

impl Kit {
    /// What environment variables and the downward API need, without objects.
    #[must_use]
    pub fn sources(&self, pod_ips: Vec<String>) -> Sources {
        Sources {
            services: self.services.list(),
            pod_ips,
            host_ips: self.facts.ips.clone(),
            node_name: self.node_name.clone(),
            allocatable_cpu_millis: self.allocatable_cpu_millis,
            allocatable_memory_bytes: self.allocatable_memory_bytes,
            ..Sources::default()
        }
    }
}
