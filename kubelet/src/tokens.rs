//! Tokens of service accounts, bound to a pod, asked of the API server and kept until four fifths of their life are over.
//! Invariant: a token never outlives its pod here; `forget` is called when the pod ends.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ServiceAccount, ServiceAccountTokenProjection};
use kube::api::PostParams;
use kube::{Api, Client};

use crate::pod::LocalPod;

/// Upstream's default life of a projected token.
const LIFE_SECONDS: i64 = 3600;
/// However long it lives, a token is renewed after a day.
const AGE_MAX: SignedDuration = SignedDuration::from_hours(24);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to fetch token for service account {namespace}/{account}")]
    Request { namespace: String, account: String, source: Box<kube::Error> },
    #[error("the API server answered without a token for service account {namespace}/{account}")]
    Empty { namespace: String, account: String },
}

#[derive(Clone, Debug)]
pub struct Token {
    pub value: String,
    pub renew_at: Timestamp,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    pod_uid: String,
    audience: String,
    seconds: i64,
}

#[derive(Clone)]
pub struct Tokens {
    client: Client,
    kept: Arc<Mutex<HashMap<Key, Token>>>,
}

impl Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

impl Tokens {
    #[must_use]
    pub fn new(client: Client) -> Tokens {
        Tokens { client, kept: Arc::default() }
    }

    /// A token that still has a fifth of its life before it.
    ///
    /// # Errors
    /// If the API server gives none.
    pub async fn get(
        &self,
        pod: &LocalPod,
        wanted: &ServiceAccountTokenProjection,
        now: Timestamp,
    ) -> Result<Token, Error> {
        let audience = wanted.audience.clone().unwrap_or_default();
        let seconds = wanted.expiration_seconds.unwrap_or(LIFE_SECONDS);
        let key = Key { pod_uid: pod.uid.clone(), audience: audience.clone(), seconds };
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(token) = kept.filter(|t| t.renew_at > now) {
            return Ok(token);
        }
        let account =
            pod.spec.service_account_name.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| "default".into());
        let namespace = pod.key.namespace.clone();
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(audience).filter(|a| !a.is_empty()).map(|a| vec![a]),
                expiration_seconds: Some(seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: Some(pod.key.name.clone()),
                    uid: Some(pod.uid.clone()),
                }),
            }),
            ..TokenRequest::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &namespace);
        let answer: Result<TokenRequest, _> =
            api.create_subresource("token", &account, &PostParams::default(), &request).await;
        let failed = |source| Error::Request {
            namespace: namespace.clone(),
            account: account.clone(),
            source: Box::new(source),
        };
        let status = answer.map_err(failed)?.status;
        let given = status.and_then(|s| Some((s.token.filter(|t| !t.is_empty())?, s.expiration_timestamp?.0)));
        let Some((value, expires_at)) = given else { return Err(Error::Empty { namespace, account }) };
        let life = expires_at.duration_since(now);
        let renew_at =
            now.saturating_add(life.saturating_mul(4).checked_div(5).unwrap_or(life).min(AGE_MAX)).unwrap_or(now);
        let token = Token { value, renew_at };
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).insert(key, token.clone());
        Ok(token)
    }

    pub fn forget(&self, pod_uid: &str) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, _| key.pod_uid != pod_uid);
    }
}
