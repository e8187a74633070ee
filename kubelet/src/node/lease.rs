//! The node's lease, by which the control plane sees that somebody is at home. Renewed by a task of its own.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use tokio::sync::watch;

const LEASES: &str = "kube-node-lease";

/// Renews the lease for ever. A renewal that has no answer by the time of the next is given up.
pub(super) async fn keep(client: Client, name: String, uid: watch::Receiver<Option<String>>, renewal: Duration) {
    let mut ticks = tokio::time::interval(renewal);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let owner = uid.borrow().clone();
        match tokio::time::timeout(renewal, renew(&client, &name, owner.as_deref(), renewal)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "lease not renewed"),
            Err(_) => tracing::warn!(?renewal, "lease not renewed: the API server does not answer"),
        }
    }
}

async fn renew(client: &Client, name: &str, uid: Option<&str>, renewal: Duration) -> Result<(), kube::Error> {
    let api: Api<Lease> = Api::namespaced(client.clone(), LEASES);
    let now = MicroTime(Timestamp::now());
    let change = serde_json::json!({"spec": {"renewTime": now, "holderIdentity": name}});
    match api.patch(name, &PatchParams::default(), &Patch::Merge(change)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        result => return result.map(drop),
    }
    let owner = uid.map(|uid| {
        vec![OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: name.into(),
            uid: uid.into(),
            ..OwnerReference::default()
        }]
    });
    let seconds = i32::try_from(renewal.as_secs().max(1).saturating_mul(4)).unwrap_or(40);
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some(LEASES.into()),
            owner_references: owner,
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.into()),
            lease_duration_seconds: Some(seconds),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    };
    api.create(&PostParams::default(), &lease).await.map(drop)
}
