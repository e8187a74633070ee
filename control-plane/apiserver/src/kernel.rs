//! What every request shares: the store, the cache, the authorizer, the tokens, the allocators. Built once, then only read.

use std::sync::{Arc, atomic::AtomicBool};

use control_plane_store::Store;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::{
    allocate::Allocators,
    authn::token::{Lookup, Tokens},
    authz::Authorizer,
    cache::Cache,
    config::Config,
    connections::Connections,
    inflight::Inflight,
    metrics::Metrics,
    proxy::KubeletClient,
    walls::Walls,
};

#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) config: Config,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) tokens: Tokens,
    pub(crate) authorizer: Authorizer,
    pub(crate) allocators: Allocators,
    pub(crate) kubelets: Option<KubeletClient>,
    pub(crate) metrics: Metrics,
    pub(crate) connections: Arc<Connections>,
    pub(crate) inflight: Arc<Inflight>,
    pub(crate) walls: Walls,
    /// Bootstrap is done.
    pub(crate) ready: AtomicBool,
    pub(crate) shutdown: CancellationToken,
}

impl Kernel {
    /// The time of a request: read once at its edge, handed down from there.
    pub(crate) fn now() -> Timestamp {
        Timestamp::now()
    }
}

impl Lookup for Cache {
    fn uid(&self, resource: &str, namespace: &str, name: &str) -> Option<String> {
        let found = self.of("", resource)?.get(namespace, name)?;
        Some(found.uid.to_string())
    }
}
