//! Namespaces that are being deleted: everything in them goes first, pods before all else, then the namespace.
//!
//! ```text
//!   deleted ─> sweep: delete what is there, count what remains ─> something ─> conditions say what ─> sweep again, after a delay,
//!                ^                                                                                      or when some of it is gone
//!                └────────────────────────────────────────────────── nothing ─> finalizer goes
//! ```

mod conditions;
pub(crate) mod empty;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;

use crate::action::{Action, Plan};
use crate::cache::Key;
use crate::runner::Controller;
use crate::world::{Changed, World};

/// The finalizer in `spec.finalizers` that this controller answers for.
const FINALIZER: &str = "kubernetes";

pub(crate) struct Namespaces;

impl Controller for Namespaces {
    const NAME: &'static str = "namespace-controller";
    const WORKERS: usize = 10;

    fn keys(&self, world: &World, changed: &Changed) -> Vec<Key> {
        match changed {
            Changed::Namespace(change) => change.after.iter().map(|namespace| Key::of(namespace.as_ref())).collect(),
            // The rest of a namespace waits for its pods.
            Changed::Pod(change) if change.after.is_none() => {
                let pod = change.latest().and_then(|pod| pod.namespace());
                let key = pod.map(|namespace| Key::new("", namespace));
                let is_due = |key: &Key| {
                    world.namespaces.get(key).is_some_and(|one| is_ending(&one))
                        && world.pods.in_namespace(&key.name).is_empty()
                };
                key.into_iter().filter(is_due).collect()
            }
            _ => Vec::new(),
        }
    }

    fn plan(&self, world: &World, key: &Key, _now: Timestamp) -> Plan {
        world.namespaces.get(key).map(plan).unwrap_or_default().into()
    }
}

fn is_ending(namespace: &Namespace) -> bool {
    let finalizers = namespace.spec.iter().flat_map(|spec| spec.finalizers.iter().flatten());
    namespace.metadata.deletion_timestamp.is_some() && finalizers.into_iter().any(|finalizer| finalizer == FINALIZER)
}

#[expect(clippy::needless_pass_by_value, reason = "what the cache gives")]
fn plan(namespace: Arc<Namespace>) -> Vec<Action> {
    if is_ending(&namespace) { vec![Action::EmptyNamespace { name: namespace.name_any() }] } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn only_what_ends_is_emptied() {
        let check = |finalizers: Value, deleted: Value, expect: usize| {
            let namespace =
                json!({"metadata": {"name": "d", "deletionTimestamp": deleted}, "spec": {"finalizers": finalizers}});
            assert_eq!(
                plan(Arc::new(serde_json::from_value(namespace).unwrap())).len(),
                expect,
                "{finalizers} {deleted}"
            );
        };
        let deleted = json!("2026-01-01T00:00:00Z");
        check(json!(["kubernetes", "mine"]), deleted.clone(), 1);
        check(json!(["mine"]), deleted, 0);
        check(json!(["kubernetes"]), Value::Null, 0);
    }
}
