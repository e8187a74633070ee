//! Mirror pods: what the API shows of static pods. The manifest decides; a mirror that differs or was deleted is made anew.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};

use crate::pod::{CONFIG_HASH, CONFIG_MIRROR, Key, LocalPod};

/// Tries while the API server is away, and the pause between them.
const TRIES: u32 = 60;
const PAUSE: Duration = Duration::from_secs(2);

#[derive(Clone)]
pub struct Mirrors {
    client: Client,
    node_name: String,
}

impl Debug for Mirrors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mirrors").field("node_name", &self.node_name).finish_non_exhaustive()
    }
}

impl Mirrors {
    #[must_use]
    pub fn new(client: Client, node_name: String) -> Mirrors {
        Mirrors { client, node_name }
    }

    /// The uid of the pod's mirror, made if need be.
    pub async fn ensure(&self, pod: &LocalPod) -> Option<String> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.key.namespace);
        for _ in 0..TRIES {
            match self.try_ensure(&api, pod).await {
                Ok(uid) => return uid,
                Err(error) => tracing::debug!(pod = %pod.key, %error, "mirror pod not made yet"),
            }
            tokio::time::sleep(PAUSE).await;
        }
        tracing::warn!(pod = %pod.key, "mirror pod given up; the pod runs unseen by the API");
        None
    }

    async fn try_ensure(&self, api: &Api<Pod>, pod: &LocalPod) -> Result<Option<String>, kube::Error> {
        let found = match api.get_opt(&pod.key.name).await {
            // What is not bound to this node is not shown to it, whether it is there or not.
            Err(kube::Error::Api(status)) if status.code == 403 => None,
            found => found?,
        };
        if let Some(found) = found {
            if is_mirror_of(&found, pod) {
                return Ok(found.metadata.uid);
            }
            api.delete(&pod.key.name, &DeleteParams::default().grace_period(0)).await?;
        }
        let mut object = pod.object.clone();
        object.status = None;
        object.metadata.uid = None;
        let hash = pod.annotation(CONFIG_HASH).unwrap_or_default().to_owned();
        object.metadata.annotations.get_or_insert_default().insert(CONFIG_MIRROR.into(), hash);
        let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(self.client.clone());
        if let Some(uid) = nodes.get_opt(&self.node_name).await?.and_then(|n| n.metadata.uid) {
            object.metadata.owner_references = Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: self.node_name.clone(),
                uid,
                controller: Some(true),
                block_owner_deletion: None,
            }]);
        }
        let made = api.create(&PostParams::default(), &object).await?;
        Ok(made.metadata.uid)
    }

    /// A mirror is in the API: the uids of the static pods it shows. One that nothing stands behind is deleted.
    pub async fn seen(&self, mirror: &LocalPod, manifests: &BTreeMap<String, LocalPod>) -> Vec<String> {
        let behind = manifests.values().find(|p| p.key == mirror.key);
        match behind {
            Some(pod) if is_mirror_of(&mirror.object, pod) && mirror.deletion().is_none() => vec![pod.uid.clone()],
            _ => {
                self.delete(&mirror.key).await;
                Vec::new()
            }
        }
    }

    /// A mirror has been deleted: if its pod lives on, it is made again.
    pub async fn lost(&self, mirror: &LocalPod, manifests: &BTreeMap<String, LocalPod>) -> Vec<String> {
        let Some(pod) = manifests.values().find(|p| p.key == mirror.key) else { return Vec::new() };
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.key.namespace);
        if let Err(error) = self.try_ensure(&api, pod).await {
            tracing::warn!(pod = %pod.key, %error, "deleted mirror pod not made again");
        }
        // Its coming into being is heard by the watch.
        vec![pod.uid.clone()]
    }

    pub async fn delete(&self, key: &Key) {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        match api.delete(&key.name, &DeleteParams::default().grace_period(0)).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => tracing::warn!(pod = %key, %error, "mirror pod not deleted"),
        }
    }
}

fn is_mirror_of(object: &Pod, pod: &LocalPod) -> bool {
    let annotation = object.metadata.annotations.as_ref().and_then(|a| a.get(CONFIG_MIRROR));
    annotation.is_some() && annotation.map(String::as_str) == pod.annotation(CONFIG_HASH)
}
