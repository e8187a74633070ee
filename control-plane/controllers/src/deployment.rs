//! Deployments: one ReplicaSet per pod template, and the way from the old ones to the new.
//!
//! ```text
//!   template changed ─> new set ─> grow new / shrink old, step by step, within surge and unavailability ─> complete
//!                          │                                                                                │
//!                          └─ no progress before the deadline: condition says so, nothing is torn down      └─ old sets beyond
//!                                                                                                              the limit go
//! ```
//! Each plan takes the steps that are safe now; the pods' readiness brings the next one.

mod annotation;
mod hash;
mod normal;
mod scale;
mod status;

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use crate::action::{Action, Announcement, Part, Plan, Propagation};
use crate::cache::Key;
use crate::clock::after;
use crate::kind::Kind;
use crate::replica_set::{controller_of, matches, nulled};
use crate::runner::Controller;
use crate::world::{Changed, World};

pub(crate) const HASH_LABEL: &str = "pod-template-hash";

pub(crate) struct Deployments;

impl Controller for Deployments {
    const NAME: &'static str = "deployment-controller";

    fn keys(&self, world: &World, changed: &Changed) -> Vec<Key> {
        match changed {
            Changed::Deployment(change) => {
                change.latest().map(|deployment| Key::of(deployment.as_ref())).into_iter().collect()
            }
            Changed::ReplicaSet(change) => change.states().flat_map(|set| deployments_of(world, set)).collect(),
            // Recreate waits for the last old pod to be gone.
            Changed::Pod(change) if change.after.is_none() => {
                change.states().flat_map(|pod| deployments_of_pod(world, pod)).collect()
            }
            _ => Vec::new(),
        }
    }

    fn plan(&self, world: &World, key: &Key, now: Timestamp) -> Plan {
        let Some(deployment) = world.deployments.get(key) else { return Plan::default() };
        let sets = world.replica_sets.in_namespace(&key.namespace);
        let has_pods = |set: &ReplicaSet| {
            let pods = world.pods.in_namespace(&key.namespace);
            pods.iter().any(|pod| controller_of(pod.as_ref()).map(|owner| &owner.uid) == set.metadata.uid.as_ref())
        };
        plan(&deployment, &sets, &has_pods, now)
    }
}

fn deployments_of(world: &World, set: &ReplicaSet) -> Vec<Key> {
    let namespace = set.namespace().unwrap_or_default();
    if let Some(owner) = controller_of(set) {
        return if owner.kind == "Deployment" { vec![Key::new(namespace, owner.name.clone())] } else { Vec::new() };
    }
    let deployments = world.deployments.in_namespace(&namespace);
    let selecting =
        deployments.iter().filter(|deployment| spec(deployment).is_some_and(|spec| matches(&spec.selector, set)));
    selecting.map(|deployment| Key::of(deployment.as_ref())).collect()
}

fn deployments_of_pod(world: &World, pod: &k8s_openapi::api::core::v1::Pod) -> Vec<Key> {
    let Some(owner) = controller_of(pod).filter(|owner| owner.kind == "ReplicaSet") else { return Vec::new() };
    let set = world.replica_sets.get(&Key::new(pod.namespace().unwrap_or_default(), owner.name.clone()));
    set.map(|set| deployments_of(world, &set)).unwrap_or_default()
}

fn spec(deployment: &Deployment) -> Option<&DeploymentSpec> {
    deployment.spec.as_ref()
}

/// What the planner looks at; `old` oldest first.
pub(crate) struct Observed<'a> {
    pub deployment: &'a Deployment,
    pub spec: &'a DeploymentSpec,
    pub new: Option<Arc<ReplicaSet>>,
    pub old: Vec<Arc<ReplicaSet>>,
    pub has_pods: &'a dyn Fn(&ReplicaSet) -> bool,
    /// Every set of the namespace, ours or not: a new one needs a free name.
    pub sets: &'a [Arc<ReplicaSet>],
}

impl Observed<'_> {
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> {
        self.old.iter().chain(&self.new)
    }

    pub(crate) fn replicas(&self) -> i32 {
        self.spec.replicas.unwrap_or(1)
    }

    fn is_rolling(&self) -> bool {
        self.spec.strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) != Some("Recreate")
    }

    /// How many pods may be too many, and how many may be missing, while rolling; never both zero.
    pub(crate) fn limits(&self) -> (i32, i32) {
        if !self.is_rolling() {
            return (0, 0);
        }
        let rolling = self.spec.strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
        let quarter = IntOrString::String("25%".into());
        let surge = rolling.and_then(|rolling| rolling.max_surge.as_ref()).unwrap_or(&quarter);
        let unavailable = rolling.and_then(|rolling| rolling.max_unavailable.as_ref()).unwrap_or(&quarter);
        let (surge, unavailable) = (share(surge, self.replicas(), true), share(unavailable, self.replicas(), false));
        if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable.min(self.replicas())) }
    }
}

/// The longest that a set waits for collisions of names, upstream's limit for a failing key.
const COLLISION_DELAY_MAX: SignedDuration = SignedDuration::from_secs(1000);

impl Observed<'_> {
    pub(crate) fn collisions(&self) -> i32 {
        self.deployment.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0).max(0)
    }

    /// The name of a new set. The same template has the same one, until a different set is found to have it.
    fn new_name(&self) -> String {
        format!("{}-{}", self.deployment.name_any(), hash::of_template(&self.spec.template, self.collisions()))
    }

    /// Another set, of a different template, has the name of the new one: by a hash collision, or by somebody's hand.
    pub(crate) fn collides(&self) -> bool {
        // A name costs the template's normal form, and is wanted only where a set is.
        if self.new.is_some() || self.deployment.metadata.deletion_timestamp.is_some() {
            return false;
        }
        let name = self.new_name();
        self.sets.iter().any(|set| set.metadata.name.as_deref() == Some(name.as_str()))
    }

    /// When a new set may be made, `None` while its name is taken. After each collision a set waits twice as long after the
    /// one before it: should two forms of one template ever be taken for two templates, that makes a few sets, not a flood.
    fn may_create_at(&self) -> Option<Timestamp> {
        if self.collides() {
            return None;
        }
        let newest = self.all().filter_map(|set| set.creation_timestamp()).map(|time| time.0).max();
        Some(match (self.collisions(), newest) {
            (0, _) | (_, None) => Timestamp::MIN,
            (count, Some(newest)) => {
                let factor = 1i32.checked_shl(count.unsigned_abs().saturating_sub(1).min(16)).unwrap_or(i32::MAX);
                after(newest, SignedDuration::from_secs(1).saturating_mul(factor).min(COLLISION_DELAY_MAX))
            }
        })
    }
}

/// A number, or a percentage of `total` rounded up or down.
pub(crate) fn share(value: &IntOrString, total: i32, up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => (*number).max(0),
        IntOrString::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let product = i128::from(percent.max(0)).saturating_mul(i128::from(total.max(0)));
            let rounded = if up { product.saturating_add(99) / 100 } else { product / 100 };
            i32::try_from(rounded).unwrap_or(i32::MAX)
        }
    }
}

pub(crate) fn replicas_of(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

pub(crate) fn available_of(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

fn plan(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
    has_pods: &dyn Fn(&ReplicaSet) -> bool,
    now: Timestamp,
) -> Plan {
    let Some(spec) = spec(deployment) else { return Plan::default() };
    let mut plan = Plan::default();
    let is_leaving = deployment.metadata.deletion_timestamp.is_some();
    let owned = own(deployment, spec, sets, is_leaving, &mut plan);
    if !plan.actions.is_empty() {
        // An adopted set may be the new one: what else is to be done shows once the adoption is written.
        return plan;
    }
    let (new, old) = split(spec, owned);
    let observed = Observed { deployment, spec, new, old, has_pods, sets };
    if !is_leaving {
        let revision = annotation::next_revision(&observed);
        plan.actions.extend(annotation::record(&observed, revision));
        steps(&observed, revision, now, &mut plan);
    }
    status::update(&observed, now, &mut plan);
    plan
}

/// The sets that are ours; those that match and have no controller are adopted.
fn own(
    deployment: &Deployment,
    spec: &DeploymentSpec,
    sets: &[Arc<ReplicaSet>],
    is_leaving: bool,
    plan: &mut Plan,
) -> Vec<Arc<ReplicaSet>> {
    let mut owned = Vec::new();
    for set in sets {
        match controller_of(set.as_ref()) {
            Some(owner) if Some(&owner.uid) == deployment.metadata.uid.as_ref() => owned.push(Arc::clone(set)),
            None if !is_leaving
                && set.metadata.deletion_timestamp.is_none()
                && matches(&spec.selector, set.as_ref()) =>
            {
                let metadata = json!({"uid": set.uid(), "resourceVersion": set.resource_version(), "ownerReferences": [owner(deployment)]});
                plan.push(patch_set(set, json!({"metadata": metadata})));
            }
            _ => {}
        }
    }
    owned.sort_by_key(|set| (set.creation_timestamp().map_or(Timestamp::MIN, |time| time.0), set.name_any()));
    owned
}

/// The set that has the deployment's template, and the others.
fn split(spec: &DeploymentSpec, mut owned: Vec<Arc<ReplicaSet>>) -> (Option<Arc<ReplicaSet>>, Vec<Arc<ReplicaSet>>) {
    let new = same_text(spec, &owned).or_else(|| same_meaning(spec, &owned));
    (new.map(|index| owned.remove(index)), owned)
}

/// The usual case, and the cheap one.
fn same_text(spec: &DeploymentSpec, owned: &[Arc<ReplicaSet>]) -> Option<usize> {
    let wanted = normal::stripped(&spec.template);
    owned.iter().position(|set| template_of(set).is_some_and(|own| normal::stripped(own) == wanted))
}

fn same_meaning(spec: &DeploymentSpec, owned: &[Arc<ReplicaSet>]) -> Option<usize> {
    let wanted = normal::form(&spec.template);
    owned.iter().position(|set| template_of(set).is_some_and(|own| normal::form(own) == wanted))
}

fn template_of(set: &ReplicaSet) -> Option<&PodTemplateSpec> {
    set.spec.as_ref()?.template.as_ref()
}

fn steps(observed: &Observed<'_>, revision: i64, now: Timestamp, plan: &mut Plan) {
    if observed.spec.paused == Some(true) || annotation::was_scaled(observed) {
        plan.actions.extend(scale::proportionally(observed));
        return;
    }
    let steps = if observed.is_rolling() { scale::rolling(observed) } else { scale::recreate(observed) };
    match steps {
        scale::Steps::Create { replicas } => match observed.may_create_at() {
            Some(time) if time > now => plan.look_again_at(time),
            Some(_) => plan.push(create_set(observed, revision, replicas)),
            // The status says so, and the next plan takes the next name.
            None => {}
        },
        scale::Steps::Resize(resizes) => plan.actions.extend(resizes),
    }
    if status::is_complete(observed) {
        plan.actions.extend(surplus_history(observed));
    }
}

/// Old, empty sets beyond `revisionHistoryLimit`, oldest first.
fn surplus_history(observed: &Observed<'_>) -> Vec<Action> {
    let limit = usize::try_from(observed.spec.revision_history_limit.unwrap_or(10)).unwrap_or(usize::MAX);
    let is_idle = |set: &ReplicaSet| {
        let status = set.status.as_ref();
        replicas_of(set) == 0
            && status.is_none_or(|status| status.replicas == 0)
            && status.and_then(|status| status.observed_generation) >= set.metadata.generation
            && set.metadata.deletion_timestamp.is_none()
    };
    let mut idle: Vec<_> = observed.old.iter().filter(|set| is_idle(set)).collect();
    idle.sort_by_key(|set| annotation::revision(set.as_ref()));
    let surplus = idle.len().saturating_sub(limit);
    let delete = |set: &&Arc<ReplicaSet>| Action::Delete {
        kind: Kind::ReplicaSet,
        namespace: set.namespace().unwrap_or_default(),
        name: set.name_any(),
        uid: set.uid().unwrap_or_default(),
        how: Propagation::Background,
        announce: None,
    };
    idle.iter().take(surplus).map(delete).collect()
}

fn owner(deployment: &Deployment) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "name": deployment.name_any(), "uid": deployment.uid(),
        "controller": true, "blockOwnerDeletion": true,
    })
}

fn create_set(observed: &Observed<'_>, revision: i64, replicas: i32) -> Action {
    let (deployment, spec) = (observed.deployment, observed.spec);
    let hash = hash::of_template(&spec.template, observed.collisions());
    let with_hash = |mut labels: Value| {
        if !labels.is_object() {
            labels = json!({});
        }
        labels[HASH_LABEL] = json!(hash);
        labels
    };
    let mut template = serde_json::to_value(&spec.template).unwrap_or_default();
    let labels = with_hash(template["metadata"]["labels"].clone());
    template["metadata"]["labels"] = labels.clone();
    let mut selector = serde_json::to_value(&spec.selector).unwrap_or_default();
    selector["matchLabels"] = with_hash(selector["matchLabels"].clone());
    let body = json!({
        "metadata": {
            "name": observed.new_name(),
            "labels": labels,
            "annotations": annotation::of_new_set(observed, revision),
            "ownerReferences": [owner(deployment)],
        },
        "spec": {
            "replicas": replicas,
            "minReadySeconds": spec.min_ready_seconds.unwrap_or(0),
            "selector": selector,
            "template": template,
        },
    });
    Action::Create {
        kind: Kind::ReplicaSet,
        namespace: deployment.namespace().unwrap_or_default(),
        body,
        // An empty set is no news: the template changed while nothing was to run, or while surge was used up.
        announce: (replicas > 0).then(|| Announcement {
            regarding: Box::new(deployment.object_ref(&())),
            reason: "ScalingReplicaSet",
            prefix: "Scaled up replica set ",
            suffix: format!(" from 0 to {replicas}"),
        }),
    }
}

pub(crate) fn patch_set(set: &ReplicaSet, patch: Value) -> Action {
    let (namespace, name) = (set.namespace().unwrap_or_default(), set.name_any());
    Action::Patch { kind: Kind::ReplicaSet, namespace, name, part: Part::Whole, patch }
}

fn event(deployment: &Deployment, reason: &'static str, note: String) -> Action {
    Action::Event { regarding: Box::new(deployment.object_ref(&())), is_warning: false, reason, note }
}

fn patch_status(deployment: &Deployment, status: &k8s_openapi::api::apps::v1::DeploymentStatus) -> Action {
    Action::Patch {
        kind: Kind::Deployment,
        namespace: deployment.namespace().unwrap_or_default(),
        name: deployment.name_any(),
        part: Part::Status,
        patch: json!({"status": nulled(status, deployment.status.as_ref())}),
    }
}

#[cfg(test)]
mod tests;
