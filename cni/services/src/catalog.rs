//! What the API server says about Services and their endpoints, by name. Holds objects; decides nothing.
//!
//! A list that starts over (`begin`, objects, `finish`) drops what was not in it, so a gap in a watch cannot leave a
//! dead Service behind.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher::Event;

const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Namespace and name of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// A Service with its slices.
#[derive(Debug, Default, Clone)]
pub struct Entry {
    /// The Service; slices may arrive before it.
    pub service: Option<Arc<Service>>,
    /// Slices by name.
    pub slices: BTreeMap<String, Arc<EndpointSlice>>,
}

/// All Services of the cluster.
#[derive(Debug, Default)]
pub struct Catalog {
    entries: HashMap<ServiceName, Entry>,
    /// Services by cluster IP, for reverse lookups.
    by_address: HashMap<IpAddr, ServiceName>,
    services_seen: Option<HashSet<ServiceName>>,
    slices_seen: Option<HashSet<(ServiceName, String)>>,
}

impl Catalog {
    /// One Service.
    #[must_use]
    pub fn get(&self, name: &ServiceName) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// All Services and orphaned slices.
    pub fn iter(&self) -> impl Iterator<Item = (&ServiceName, &Entry)> {
        self.entries.iter()
    }

    /// The Service with this cluster IP.
    #[must_use]
    pub fn by_address(&self, address: IpAddr) -> Option<&ServiceName> {
        self.by_address.get(&address)
    }

    /// Takes one event of the watch of Services; returns the names that changed.
    pub fn service_event(&mut self, event: Event<Service>) -> Vec<ServiceName> {
        match event {
            Event::Init => {
                self.services_seen = Some(HashSet::new());
                Vec::new()
            }
            Event::InitApply(service) => {
                let name = name_of(&service);
                if let Some(seen) = &mut self.services_seen {
                    seen.insert(name.clone());
                }
                self.set_service(name, Some(service))
            }
            Event::Apply(service) => self.set_service(name_of(&service), Some(service)),
            Event::Delete(service) => self.set_service(name_of(&service), None),
            Event::InitDone => {
                let seen = self.services_seen.take().unwrap_or_default();
                let has_service = |(name, entry): (&ServiceName, &Entry)| entry.service.is_some().then(|| name.clone());
                let gone: Vec<ServiceName> =
                    self.entries.iter().filter_map(has_service).filter(|name| !seen.contains(name)).collect();
                gone.into_iter().flat_map(|name| self.set_service(name, None)).collect()
            }
        }
    }

    /// An unreadable Service of a list: what was known of it stays.
    pub(crate) fn keep_service(&mut self, metadata: &ObjectMeta) {
        if let (Some(seen), Some(namespace), Some(name)) =
            (&mut self.services_seen, metadata.namespace.clone(), metadata.name.clone())
        {
            seen.insert(ServiceName { namespace, name });
        }
    }

    /// An unreadable EndpointSlice of a list: what was known of it stays.
    pub(crate) fn keep_slice(&mut self, metadata: &ObjectMeta) {
        let known = self.slices_named(metadata);
        if let Some(seen) = &mut self.slices_seen {
            seen.extend(known);
        }
    }

    /// Slices of this name, whichever Service they belong to: one that cannot be read does not say.
    fn slices_named(&self, metadata: &ObjectMeta) -> Vec<(ServiceName, String)> {
        let (Some(namespace), Some(name)) = (&metadata.namespace, &metadata.name) else { return Vec::new() };
        let holders = self
            .entries
            .iter()
            .filter(|(service, entry)| service.namespace == *namespace && entry.slices.contains_key(name));
        holders.map(|(service, _)| (service.clone(), name.clone())).collect()
    }

    /// Takes one event of the watch of EndpointSlices; returns the names of Services that changed.
    pub fn slice_event(&mut self, event: Event<EndpointSlice>) -> Vec<ServiceName> {
        match event {
            Event::Init => {
                self.slices_seen = Some(HashSet::new());
                Vec::new()
            }
            Event::InitApply(slice) => {
                if let (Some(key), Some(seen)) = (slice_key(&slice), &mut self.slices_seen) {
                    seen.insert(key);
                }
                self.set_slice(slice)
            }
            Event::Apply(slice) => self.set_slice(slice),
            Event::Delete(slice) => match slice_key(&slice) {
                Some(key) => self.remove_slice(key),
                None => {
                    let keys = self.slices_named(&slice.metadata);
                    keys.into_iter().flat_map(|key| self.remove_slice(key)).collect()
                }
            },
            Event::InitDone => {
                let seen = self.slices_seen.take().unwrap_or_default();
                let mut gone = Vec::new();
                for (name, entry) in &self.entries {
                    let keys = entry.slices.keys().map(|slice| (name.clone(), slice.clone()));
                    gone.extend(keys.filter(|key| !seen.contains(key)));
                }
                gone.into_iter().flat_map(|key| self.remove_slice(key)).collect()
            }
        }
    }

    fn set_service(&mut self, name: ServiceName, service: Option<Service>) -> Vec<ServiceName> {
        let entry = self.entries.entry(name.clone()).or_default();
        if let Some(old) = &entry.service {
            for address in cluster_addresses(old) {
                self.by_address.remove(&address);
            }
        }
        if let Some(new) = &service {
            self.by_address.extend(cluster_addresses(new).into_iter().map(|address| (address, name.clone())));
        }
        entry.service = service.map(Arc::new);
        self.forget_if_empty(&name);
        vec![name]
    }

    fn set_slice(&mut self, slice: EndpointSlice) -> Vec<ServiceName> {
        let Some((service, name)) = slice_key(&slice) else { return Vec::new() };
        self.entries.entry(service.clone()).or_default().slices.insert(name, Arc::new(slice));
        vec![service]
    }

    fn remove_slice(&mut self, (service, name): (ServiceName, String)) -> Vec<ServiceName> {
        if let Some(entry) = self.entries.get_mut(&service) {
            entry.slices.remove(&name);
        }
        self.forget_if_empty(&service);
        vec![service]
    }

    fn forget_if_empty(&mut self, name: &ServiceName) {
        if self.entries.get(name).is_some_and(|entry| entry.service.is_none() && entry.slices.is_empty()) {
            self.entries.remove(name);
        }
    }
}

/// The cluster IPs of a Service; none for headless ones and external names.
#[must_use]
pub fn cluster_addresses(service: &Service) -> Vec<IpAddr> {
    let Some(spec) = &service.spec else { return Vec::new() };
    if spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let mut texts: Vec<&String> = spec.cluster_ips.iter().flatten().collect();
    if texts.is_empty() {
        texts.extend(&spec.cluster_ip);
    }
    texts.into_iter().filter_map(|text| text.parse().ok()).collect()
}

fn name_of(service: &Service) -> ServiceName {
    ServiceName {
        namespace: service.metadata.namespace.clone().unwrap_or_default(),
        name: service.metadata.name.clone().unwrap_or_default(),
    }
}

fn slice_key(slice: &EndpointSlice) -> Option<(ServiceName, String)> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_LABEL)?.clone();
    let name = ServiceName { namespace: slice.metadata.namespace.clone()?, name: service };
    Some((name, slice.metadata.name.clone()?))
}
