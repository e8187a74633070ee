//! What a pod asks for and a node has, per resource.

use std::collections::BTreeMap;

use control_plane_api::quantity::Quantity as Amount;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

pub(crate) const CPU: &str = "cpu";
pub(crate) const MEMORY: &str = "memory";
pub(crate) const PODS: &str = "pods";

/// What upstream counts for a container that asks for nothing, when nodes are compared (never when they are ruled out).
const CPU_MILLIS_UNSAID: i128 = 100;
const MEMORY_BYTES_UNSAID: i128 = 200 * 1024 * 1024;

/// Amounts per resource: CPU in millicores, everything else in whole units. Each is a number of 64 bits that somebody chose;
/// in 128 bits no sum of them overflows, and what was added can be taken away again exactly.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests(BTreeMap<String, i128>);

impl Requests {
    /// Quantities that do not parse were refused by the API server; here they count as nothing.
    pub fn from_quantities(quantities: &BTreeMap<String, Quantity>) -> Self {
        Self(quantities.iter().map(|(name, quantity)| (name.clone(), amount(name, quantity))).collect())
    }

    /// The effective request of a pod (kubernetes.io, "Init Containers: Resource sharing within containers"): containers
    /// and sidecars run together; each plain init container runs beside the sidecars started before it; the larger counts.
    pub fn of_pod(pod: &Pod) -> Self {
        let Some(spec) = &pod.spec else { return Self::default() };
        let mut requests = Self::of_containers(spec, Self::of_container);
        if let Some(pod_level) = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()) {
            for (name, amount) in Self::from_quantities(pod_level).0 {
                requests.0.insert(name, amount);
            }
        }
        requests.add(&spec.overhead.as_ref().map(Self::from_quantities).unwrap_or_default());
        requests
    }

    /// As `of_pod`, with upstream's numbers for containers that ask for nothing.
    pub fn of_pod_for_scoring(pod: &Pod) -> Self {
        let Some(spec) = &pod.spec else { return Self::default() };
        Self::of_containers(spec, |container| {
            let mut requests = Self::of_container(container);
            requests.0.entry(CPU.into()).or_insert(CPU_MILLIS_UNSAID);
            requests.0.entry(MEMORY.into()).or_insert(MEMORY_BYTES_UNSAID);
            requests
        })
    }

    fn of_containers(spec: &PodSpec, of: impl Fn(&Container) -> Self) -> Self {
        let mut sidecars = Self::default();
        let mut starting = Self::default();
        for init in spec.init_containers.iter().flatten() {
            let own = of(init);
            if init.restart_policy.as_deref() == Some("Always") {
                sidecars.add(&own);
                starting.raise_to(&sidecars);
            } else {
                let mut beside = sidecars.clone();
                beside.add(&own);
                starting.raise_to(&beside);
            }
        }
        let mut running = sidecars;
        for container in &spec.containers {
            running.add(&of(container));
        }
        running.raise_to(&starting);
        running
    }

    fn of_container(container: &Container) -> Self {
        let resources = container.resources.as_ref();
        resources.and_then(|resources| resources.requests.as_ref()).map(Self::from_quantities).unwrap_or_default()
    }

    pub fn get(&self, name: &str) -> i128 {
        self.0.get(name).copied().unwrap_or(0)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, i128)> {
        self.0.iter().map(|(name, amount)| (name.as_str(), *amount))
    }

    pub fn add(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let sum = self.0.entry(name.clone()).or_insert(0);
            *sum = sum.saturating_add(*amount);
        }
    }

    pub fn subtract(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let rest = self.0.entry(name.clone()).or_insert(0);
            *rest = rest.saturating_sub(*amount);
        }
    }

    fn raise_to(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let own = self.0.entry(name.clone()).or_insert(0);
            *own = (*own).max(*amount);
        }
    }
}

fn amount(name: &str, quantity: &Quantity) -> i128 {
    let Ok(parsed) = Amount::parse(&quantity.0) else { return 0 };
    i128::from(if name == CPU { parsed.milli_value() } else { parsed.value() })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn container(cpu: &str) -> Value {
        json!({"name": "c", "resources": {"requests": {"cpu": cpu}}})
    }

    #[test]
    fn effective_request() {
        let check = |spec: Value, expect: i128| {
            let pod: Pod = serde_json::from_value(json!({"spec": spec.clone()})).unwrap();
            assert_eq!(Requests::of_pod(&pod).get(CPU), expect, "{spec}");
        };
        check(json!({"containers": [container("100m"), container("1")]}), 1100);
        check(json!({"containers": [container("100m")], "initContainers": [container("2"), container("1")]}), 2000);
        let mut sidecar = container("500m");
        sidecar["restartPolicy"] = json!("Always");
        check(json!({"containers": [container("100m")], "initContainers": [sidecar, container("1")]}), 1500);
        check(json!({"containers": [container("100m")], "overhead": {"cpu": "50m"}}), 150);
        check(json!({"containers": [container("100m")], "resources": {"requests": {"cpu": "3"}}}), 3000);
    }

    #[test]
    fn nothing_asked_counts_in_scores_only() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [{"name": "c"}]}})).unwrap();
        assert_eq!(Requests::of_pod(&pod), Requests::default());
        assert_eq!(Requests::of_pod_for_scoring(&pod).get(MEMORY), MEMORY_BYTES_UNSAID);
    }
}
