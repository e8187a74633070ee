//! /eviction and the disruption budget that it spends, without the controller that counts it.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{EvictParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::server::Server;
use control_plane_apiserver::User;

struct Fixture {
    _server: Server,
    pods: Api<Pod>,
    budgets: Api<PodDisruptionBudget>,
}

/// Running, ready pods `p0` and up, and a budget that covers them.
async fn fixture(count: usize) -> Fixture {
    let server = Server::start().await;
    let client = Client::new(server.api.local_service(User::new("admin", &["system:masters"])), "default");
    server.kubectl("create serviceaccount default").await;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let budgets: Api<PodDisruptionBudget> = Api::default_namespaced(client);
    for index in 0..count {
        let pod = json!({"metadata": {"name": format!("p{index}"), "labels": {"app": "web"}},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}});
        pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
        let conditions = json!([{"type": "Ready", "status": "True"}]);
        let status = Patch::Strategic(json!({"status": {"phase": "Running", "conditions": conditions}}));
        pods.patch_status(&format!("p{index}"), &PatchParams::default(), &status).await.unwrap();
    }
    let budget = json!({"metadata": {"name": "b"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}});
    budgets.create(&PostParams::default(), &serde_json::from_value(budget).unwrap()).await.unwrap();
    Fixture { _server: server, pods, budgets }
}

impl Fixture {
    async fn count(&self, allowed: i32, more: Value) {
        let mut status = json!({"observedGeneration": 1, "disruptionsAllowed": allowed, "currentHealthy": 2,
            "desiredHealthy": 1, "expectedPods": 2});
        status.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let patch = Patch::Merge(json!({"status": status}));
        self.budgets.patch_status("b", &PatchParams::default(), &patch).await.unwrap();
    }

    /// Code, retry and the message of the cause.
    async fn evict(&self, name: &str) -> Result<(), (u16, Option<u32>, String)> {
        match self.pods.evict(name, &EvictParams::default()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) => {
                let details = status.details.expect("a refusal has details");
                let cause = details.causes.first().cloned().expect("a refusal has a cause");
                assert_eq!(cause.reason, "DisruptionBudget", "clients tell a budget from a busy server by it");
                let retry = Some(details.retry_after_seconds).filter(|seconds| *seconds > 0);
                Err((status.code, retry, cause.message))
            }
            Err(other) => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_budget_is_spent_and_then_refuses() {
    let fixture = fixture(2).await;
    let (code, retry, message) = fixture.evict("p0").await.unwrap_err();
    assert_eq!((code, retry), (429, Some(10)), "nobody has counted it yet");
    assert!(message.contains("budget b is still being processed"), "{message}");

    fixture.count(1, json!({})).await;
    fixture.evict("p0").await.unwrap();
    let budget = fixture.budgets.get("b").await.unwrap().status.unwrap();
    assert_eq!(budget.disruptions_allowed, Some(0));
    assert!(budget.disrupted_pods.unwrap().contains_key("p0"));
    let evicted = fixture.pods.get("p0").await.unwrap();
    assert!(evicted.metadata.deletion_timestamp.is_some(), "it ends with grace");
    let conditions = evicted.status.unwrap().conditions.unwrap();
    let told = conditions.iter().find(|one| one.type_ == "DisruptionTarget").unwrap();
    assert_eq!(told.reason.as_deref(), Some("EvictionByEvictionAPI"));

    let (code, retry, message) = fixture.evict("p1").await.unwrap_err();
    assert_eq!((code, retry), (429, None), "without a time to retry, or client libraries would wait in silence");
    assert!(message.contains("budget b needs 1 healthy pods and has 2 currently"), "{message}");
    fixture.evict("p0").await.unwrap();
}

#[tokio::test]
async fn a_budget_that_cannot_be_counted_says_why() {
    let fixture = fixture(1).await;
    let condition = json!({"type": "DisruptionAllowed", "status": "False", "reason": "SyncFailed", "message": "who knows",
        "lastTransitionTime": "2026-01-01T00:00:00Z"});
    fixture.count(0, json!({"conditions": [condition]})).await;
    let (_, _, message) = fixture.evict("p0").await.unwrap_err();
    assert!(message.contains("who knows"), "{message}");
}
