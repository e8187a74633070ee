//! Does what plans say. The only place of this package that writes.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy,
};
use serde_json::Value;
use tracing::{debug, warn};

use crate::action::{Action, Announcement, Part, Propagation};
use crate::kind::Kind;
use crate::namespace;
use crate::recorder::{Recorder, Saying};
use crate::world::World;

/// Actions of one plan under way at once.
const CONCURRENT_MAX: usize = 32;
/// The API server is in this process: an action that takes longer hangs, and others wait for its key.
const ACTION_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The API server's own words, which `kube`'s error would say three times.
    #[error("{verb} {what}: {}", .status.message)]
    Refused { verb: &'static str, what: String, status: Box<kube::core::Status> },
    #[error("{verb} {what}")]
    Api { verb: &'static str, what: String, source: kube::Error },
    #[error("an action took longer than {} s", ACTION_MAX.as_secs())]
    Late,
    #[error(transparent)]
    Namespace(#[from] namespace::empty::Error),
}

impl Error {
    /// Nothing is wrong, the next plan sees what is there: somebody else wrote first, which is how writers without locks
    /// meet, or what was begun takes its time.
    pub(crate) fn is_expected(&self) -> bool {
        use namespace::empty::Error::{Conflict, Remains};
        match self {
            Self::Refused { status, .. } => status.code == 409,
            Self::Namespace(error) => matches!(error, Remains { .. } | Conflict),
            Self::Api { .. } | Self::Late => false,
        }
    }

    fn new(verb: &'static str, what: String, error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Refused { verb, what, status },
            source => Self::Api { verb, what, source },
        }
    }
}

#[derive(Clone)]
pub(crate) struct Executor {
    client: kube::Client,
    recorder: Recorder,
    world: Arc<World>,
}

/// Whether an error means that the world has moved on: the next plan sees what is there now. In a namespace that ends
/// nothing can be made any more, and nobody needs to be told.
fn is_obsolete(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let is_ending = || {
        let causes = status.details.iter().flat_map(|details| &details.causes);
        causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
    };
    status.code == 404 || status.code == 409 || (status.code == 403 && is_ending())
}

impl Executor {
    pub(crate) fn new(client: kube::Client, world: Arc<World>, controller: &'static str) -> Self {
        Self { recorder: Recorder::new(client.clone(), controller), client, world }
    }

    /// All actions, `CONCURRENT_MAX` at once; every error, so that one does not hide another.
    pub(crate) async fn run(&self, actions: Vec<Action>) -> Vec<Error> {
        let (creates, others): (Vec<_>, Vec<_>) =
            actions.into_iter().partition(|action| matches!(action, Action::Create { .. }));
        let others = stream::iter(others).map(|action| self.in_time(action)).buffered(CONCURRENT_MAX);
        let others = others.filter_map(async |result| result.err()).collect::<Vec<_>>();
        let (mut errors, refused) = futures::future::join(others, self.create_slowly(creates)).await;
        errors.extend(refused);
        errors
    }

    /// One, then twice as many after each success. What is refused once is mostly refused each time (a quota, an admission
    /// rule): after the first refusals the rest is left to the next plan, which comes after a delay.
    async fn create_slowly(&self, creates: Vec<Action>) -> Vec<Error> {
        let mut creates = creates.into_iter().peekable();
        let mut size = 1;
        let mut errors = Vec::new();
        while creates.peek().is_some() && errors.is_empty() {
            let batch: Vec<Action> = creates.by_ref().take(size).collect();
            let done = stream::iter(batch).map(|action| self.in_time(action)).buffered(size);
            errors = done.filter_map(async |result| result.err()).collect().await;
            size = size.saturating_mul(2).min(CONCURRENT_MAX);
        }
        errors
    }

    async fn in_time(&self, action: Action) -> Result<(), Error> {
        tokio::time::timeout(ACTION_MAX, self.one(action)).await.unwrap_or(Err(Error::Late))
    }

    async fn one(&self, action: Action) -> Result<(), Error> {
        match action {
            Action::Create { kind, namespace, body, announce } => {
                let resource = kind.resource();
                let result = self.create(&resource, &namespace, body).await;
                self.announce(announce, result.as_ref().map(name_of), "FailedCreate", "Error creating: ").await;
                self.settle("create", &resource, &namespace, result.map(|written| self.world.absorb(kind, written)))
            }
            Action::Patch { kind, namespace, name, part, patch } => {
                let resource = kind.resource();
                let result = self.patch(&resource, &namespace, &name, part, patch).await;
                self.settle("patch", &resource, &name, result.map(|written| self.world.absorb(kind, written)))
            }
            Action::Delete { kind, namespace, name, uid, how, announce } => {
                let resource = kind.resource();
                let result = self.delete(&resource, &namespace, &name, &uid, how).await;
                self.announce(announce, result.as_ref().map(|_| name.clone()), "FailedDelete", "Error deleting: ")
                    .await;
                let absorbed = result.map(|left| match left {
                    Some(left) => self.world.absorb(kind, left),
                    None => self.world.absorb_deleted(kind, &namespace, &name, &uid),
                });
                self.settle("delete", &resource, &name, absorbed)
            }
            Action::DeleteAny { resource, namespace, name, uid, how } => {
                let result = self.delete(&resource, &namespace, &name, &uid, how).await;
                self.settle("delete", &resource, &name, result.map(drop))
            }
            Action::PatchAny { resource, namespace, name, patch } => {
                let result = self.patch(&resource, &namespace, &name, Part::Whole, patch).await;
                self.settle("patch", &resource, &name, result.map(drop))
            }
            Action::EmptyNamespace { name } => Ok(namespace::empty::run(&self.client, &name).await?),
            Action::UnlessNodeExists { node, then } => self.unless_node_exists(&node, then).await,
            Action::Event { regarding, is_warning, reason, note } => {
                self.publish(&regarding, is_warning, reason, note).await;
                Ok(())
            }
        }
    }

    fn settle(
        &self,
        verb: &'static str,
        resource: &ApiResource,
        name: &str,
        result: Result<(), kube::Error>,
    ) -> Result<(), Error> {
        let what = format!("{} {name}", resource.plural);
        match result {
            Ok(()) => Ok(()),
            Err(error) if is_obsolete(&error) => {
                debug!(verb, what, %error, "overtaken by another change");
                // The watch brings what is there now; a conflict that it does not mention again is tried again.
                if matches!(&error, kube::Error::Api(status) if status.code == 409 && status.reason == "Conflict") {
                    return Err(Error::new(verb, what, error));
                }
                Ok(())
            }
            Err(error) => Err(Error::new(verb, what, error)),
        }
    }

    fn api(&self, resource: &ApiResource, namespace: &str) -> Api<DynamicObject> {
        if namespace.is_empty() {
            Api::all_with(self.client.clone(), resource)
        } else {
            Api::namespaced_with(self.client.clone(), namespace, resource)
        }
    }

    async fn create(&self, resource: &ApiResource, namespace: &str, body: Value) -> Result<DynamicObject, kube::Error> {
        let object: DynamicObject = serde_json::from_value(body).map_err(kube::Error::SerdeError)?;
        let object = DynamicObject { types: Some(types(resource)), ..object };
        self.api(resource, namespace).create(&PostParams::default(), &object).await
    }

    async fn patch(
        &self,
        resource: &ApiResource,
        namespace: &str,
        name: &str,
        part: Part,
        patch: Value,
    ) -> Result<DynamicObject, kube::Error> {
        let api = self.api(resource, namespace);
        let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
        match part {
            Part::Whole => api.patch(name, &params, &patch).await,
            Part::Status => api.patch_status(name, &params, &patch).await,
        }
    }

    /// What is left of the object while it ends, or `None` if it is gone.
    async fn delete(
        &self,
        resource: &ApiResource,
        namespace: &str,
        name: &str,
        uid: &str,
        how: Propagation,
    ) -> Result<Option<DynamicObject>, kube::Error> {
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
            propagation_policy: match how {
                Propagation::Foreground => Some(PropagationPolicy::Foreground),
                Propagation::Background | Propagation::Now => Some(PropagationPolicy::Background),
            },
            grace_period_seconds: (how == Propagation::Now).then_some(0),
            ..DeleteParams::default()
        };
        let deleted = self.api(resource, namespace).delete(name, &params).await?;
        Ok(deleted.left().filter(|object| object.metadata.deletion_timestamp.is_some()))
    }

    /// Asks the API server, not the cache: what follows cannot be taken back.
    async fn unless_node_exists(&self, node: &str, then: Vec<Vec<Action>>) -> Result<(), Error> {
        let found = self.api(&Kind::Node.resource(), "").get_metadata_opt(node).await;
        if found.map_err(|error| Error::new("get", format!("nodes {node}"), error))?.is_some() {
            return Ok(());
        }
        let in_order = async |actions: Vec<Action>| {
            let mut outcome = Ok(());
            for action in actions {
                // The last one counts: what comes before it only says why.
                outcome = Box::pin(self.in_time(action)).await;
            }
            outcome
        };
        let results = stream::iter(then).map(in_order).buffered(CONCURRENT_MAX);
        results.fold(Ok(()), async |all, one| all.and(one)).await
    }

    async fn announce(
        &self,
        announce: Option<Announcement>,
        result: Result<String, &kube::Error>,
        failed: &'static str,
        failed_prefix: &str,
    ) {
        let Some(Announcement { regarding, reason, prefix, suffix }) = announce else { return };
        match result {
            Ok(name) => self.publish(&regarding, false, reason, format!("{prefix}{name}{suffix}")).await,
            Err(error) if is_obsolete(error) => {}
            Err(error) => self.publish(&regarding, true, failed, format!("{failed_prefix}{}", message(error))).await,
        }
    }

    async fn publish(&self, regarding: &ObjectReference, is_warning: bool, reason: &str, note: String) {
        let saying = Saying { regarding: regarding.clone(), is_warning, reason: reason.into(), message: note };
        if let Err(error) = self.recorder.publish(saying).await {
            warn!(reason, name = regarding.name, %error, "an event was lost");
        }
    }
}

fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

fn name_of(object: &DynamicObject) -> String {
    object.metadata.name.clone().unwrap_or_default()
}

fn types(resource: &ApiResource) -> kube::core::TypeMeta {
    kube::core::TypeMeta { api_version: resource.api_version.clone(), kind: resource.kind.clone() }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;

    use super::*;

    /// An API server that answers everything so, and counts the requests whose path has `counted`.
    fn answering(code: u16, body: &Value, counted: &'static str) -> (Executor, Arc<AtomicUsize>) {
        let (count, text) = (Arc::new(AtomicUsize::new(0)), body.to_string());
        let seen = Arc::clone(&count);
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            seen.fetch_add(usize::from(request.uri().path().ends_with(counted)), Ordering::SeqCst);
            let answer =
                http::Response::builder().status(code).body(kube::client::Body::from(text.clone().into_bytes()));
            async { answer }
        });
        let client = kube::Client::new(service, "default");
        (Executor::new(client, Arc::default(), "test"), count)
    }

    fn creates(count: usize) -> Vec<Action> {
        let create = |index: usize| Action::Create {
            kind: Kind::Pod,
            namespace: "d".into(),
            body: json!({"metadata": {"name": format!("p{index}")}}),
            announce: None,
        };
        (0..count).map(create).collect()
    }

    #[tokio::test]
    async fn refused_creates_are_few_requests() {
        let refusal = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "reason": "Forbidden",
            "message": "exceeded quota"});
        let (executor, requests) = answering(403, &refusal, "/pods");
        let errors = executor.run(creates(500)).await;
        assert_eq!((errors.len(), requests.load(Ordering::SeqCst)), (1, 1));
        assert_eq!(errors[0].to_string(), "create pods d: exceeded quota", "said once");
        assert!(std::error::Error::source(&errors[0]).is_none());
        assert!(!errors[0].is_expected());
    }

    #[tokio::test]
    async fn creates_that_succeed_are_all_done() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "d", "name": "p", "uid": "u"}});
        let (executor, requests) = answering(201, &pod, "/pods");
        assert!(executor.run(creates(100)).await.is_empty());
        assert_eq!(requests.load(Ordering::SeqCst), 100);
    }

    #[tokio::test]
    async fn what_cannot_be_made_in_an_ending_namespace_is_nobodys_failure() {
        let refusal = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "reason": "Forbidden",
            "message": "it is being terminated", "details": {"causes": [{"reason": "NamespaceTerminating", "message": "", "field": ""}]}});
        let (executor, _) = answering(403, &refusal, "/pods");
        assert!(executor.run(creates(1)).await.is_empty());
    }

    #[tokio::test]
    async fn a_node_that_exists_keeps_its_pods() {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "uid": "u"}});
        let (executor, deletes) = answering(200, &node, "/pods/p");
        let delete = Action::Delete {
            kind: Kind::Pod,
            namespace: "d".into(),
            name: "p".into(),
            uid: "u".into(),
            how: Propagation::Now,
            announce: None,
        };
        let action = |delete: &Action| Action::UnlessNodeExists { node: "n1".into(), then: vec![vec![delete.clone()]] };
        assert!(executor.run(vec![action(&delete)]).await.is_empty());
        assert_eq!(deletes.load(Ordering::SeqCst), 0);
        let gone = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound", "message": "not found"});
        let (executor, deletes) = answering(404, &gone, "/pods/p");
        assert!(executor.run(vec![action(&delete)]).await.is_empty());
        assert_eq!(deletes.load(Ordering::SeqCst), 1);
    }
}
