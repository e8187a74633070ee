//! Service-account tokens: claims made and checked. A token is as good as what it is bound to: the account, and the pod, node or
//! secret named in it, must still exist with the same UID. Looks them up through a [`Lookup`], and signs through `key.rs`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{AUTHENTICATED, User, key::SigningKey};

/// What a token may be bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bound {
    /// `pod`, `secret` or `node`: the claim's name.
    pub(crate) claim: &'static str,
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// What to put in a token.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) namespace: String,
    pub(crate) account: String,
    pub(crate) account_uid: String,
    pub(crate) audiences: Vec<String>,
    pub(crate) seconds: i64,
    pub(crate) bound: Option<Bound>,
    /// The node of the pod it is bound to, with the node's UID when known.
    pub(crate) node: Option<(String, String)>,
}

/// The UID of a live object, by resource, namespace and name.
pub(crate) trait Lookup {
    fn uid(&self, resource: &str, namespace: &str, name: &str) -> Option<String>;
}

/// Issues and checks tokens.
#[derive(Debug)]
pub(crate) struct Tokens {
    pub(crate) key: SigningKey,
    pub(crate) issuer: String,
    /// Accepted when a request comes to this server; also the default for new tokens.
    pub(crate) audiences: Vec<String>,
    /// Fixed tokens, for bootstrap and tests.
    pub(crate) fixed: BTreeMap<String, User>,
}

/// A token that verified.
#[derive(Clone, Debug)]
pub(crate) struct Verified {
    pub(crate) user: User,
    /// The audiences that both sides named.
    pub(crate) audiences: Vec<String>,
}

/// Groups of every service account in a namespace.
pub(crate) fn service_account_groups(namespace: &str) -> Vec<String> {
    vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")]
}

impl Tokens {
    /// The claims of a new token, RFC 7519 with upstream's private claim.
    pub(crate) fn claims(&self, request: &Request, now: Timestamp) -> Value {
        let mut private = Map::new();
        private.insert("namespace".into(), request.namespace.as_str().into());
        private.insert("serviceaccount".into(), json!({"name": request.account, "uid": request.account_uid}));
        if let Some(bound) = &request.bound {
            private.insert(bound.claim.into(), json!({"name": bound.name, "uid": bound.uid}));
        }
        if let Some((name, uid)) = &request.node {
            let mut node = Map::new();
            node.insert("name".into(), name.as_str().into());
            if !uid.is_empty() {
                node.insert("uid".into(), uid.as_str().into());
            }
            private.insert("node".into(), node.into());
        }
        json!({
            "aud": request.audiences,
            "exp": now.as_second().saturating_add(request.seconds),
            "iat": now.as_second(),
            "nbf": now.as_second(),
            "iss": self.issuer,
            "jti": uuid::Uuid::new_v4().to_string(),
            "kubernetes.io": private,
            "sub": format!("system:serviceaccount:{}:{}", request.namespace, request.account),
        })
    }

    /// Who sent the token, if it is good now for one of the audiences.
    pub(crate) fn verify(
        &self,
        token: &str,
        audiences: &[String],
        lookup: &dyn Lookup,
        now: Timestamp,
    ) -> Result<Verified, Refused> {
        if let Some(user) = self.fixed.get(token) {
            return Ok(Verified { user: user.clone(), audiences: audiences.to_vec() });
        }
        let claims = self.key.verify(token).ok_or(Refused::Signature)?;
        self.check(&claims, audiences, lookup, now)
    }

    fn check(
        &self,
        claims: &Value,
        audiences: &[String],
        lookup: &dyn Lookup,
        now: Timestamp,
    ) -> Result<Verified, Refused> {
        let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
        if text(claims, "iss") != self.issuer {
            return Err(Refused::Issuer);
        }
        let time = |key: &str| claims.get(key).and_then(Value::as_i64);
        let now = now.as_second();
        if time("exp").is_none_or(|expiry| expiry <= now) {
            return Err(Refused::Expired);
        }
        if time("nbf").is_some_and(|start| start > now + CLOCK_SKEW_SECONDS) {
            return Err(Refused::NotYet);
        }
        let named: Vec<&str> = match claims.get("aud") {
            Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
            Some(Value::String(one)) => vec![one],
            _ => Vec::new(),
        };
        let shared: Vec<String> = audiences.iter().filter(|own| named.contains(&own.as_str())).cloned().collect();
        if shared.is_empty() {
            return Err(Refused::Audience);
        }
        let private = claims.get("kubernetes.io").ok_or(Refused::Claims)?;
        let namespace = text(private, "namespace");
        let account = private.get("serviceaccount").ok_or(Refused::Claims)?;
        let (name, uid) = (text(account, "name"), text(account, "uid"));
        if lookup.uid("serviceaccounts", &namespace, &name).as_deref() != Some(uid.as_str()) {
            return Err(Refused::Gone { what: "service account" });
        }
        let mut user = User {
            name: format!("system:serviceaccount:{namespace}:{name}"),
            uid,
            groups: service_account_groups(&namespace),
            extra: BTreeMap::new(),
        };
        user.groups.push(AUTHENTICATED.to_owned());
        let id = text(claims, "jti");
        if !id.is_empty() {
            user.extra.insert(super::CREDENTIAL_ID.to_owned(), vec![format!("JTI={id}")]);
        }
        // A pod's token also names its node, for information: only the pod itself is checked then, as upstream does.
        let bound = [("pod", "pods"), ("secret", "secrets"), ("node", "nodes")]
            .into_iter()
            .find_map(|(claim, resource)| Some((claim, resource, private.get(claim)?)));
        if let Some((claim, resource, value)) = bound {
            let scope = if claim == "node" { "" } else { namespace.as_str() };
            if lookup.uid(resource, scope, &text(value, "name")) != Some(text(value, "uid")) {
                return Err(Refused::Gone { what: claim });
            }
        }
        for claim in ["pod", "node"] {
            let Some(value) = private.get(claim) else { continue };
            for key in ["name", "uid"] {
                let value = text(value, key);
                if !value.is_empty() {
                    user.extra.insert(format!("authentication.kubernetes.io/{claim}-{key}"), vec![value]);
                }
            }
        }
        Ok(Verified { user, audiences: shared })
    }
}

/// How far the clocks of two machines may differ.
const CLOCK_SKEW_SECONDS: i64 = 30;

/// Why a token is not accepted; told to the log, never to the caller.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("the token is not signed by this cluster's key")]
    Signature,
    #[error("the token is from another issuer")]
    Issuer,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    NotYet,
    #[error("the token is for another audience")]
    Audience,
    #[error("the token lacks the claims of a service account")]
    Claims,
    #[error("the {what} that the token is bound to is gone")]
    Gone { what: &'static str },
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Live(Vec<(&'static str, &'static str, &'static str, &'static str)>);

    impl Lookup for Live {
        fn uid(&self, resource: &str, namespace: &str, name: &str) -> Option<String> {
            let found = self.0.iter().find(|one| (one.0, one.1, one.2) == (resource, namespace, name))?;
            Some(found.3.to_owned())
        }
    }

    fn tokens() -> Tokens {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        Tokens {
            key: SigningKey::from_pem(pair.serialize_pem().as_bytes()).unwrap(),
            issuer: "https://issuer".to_owned(),
            audiences: vec!["api".to_owned()],
            fixed: BTreeMap::new(),
        }
    }

    #[test]
    fn a_token_is_as_good_as_what_it_is_bound_to() {
        let tokens = tokens();
        let now = Timestamp::from_second(1_000_000).unwrap();
        let request = Request {
            namespace: "n".to_owned(),
            account: "a".to_owned(),
            account_uid: "u".to_owned(),
            audiences: vec!["api".to_owned(), "vault".to_owned()],
            seconds: 600,
            bound: Some(Bound { claim: "pod", name: "p".to_owned(), uid: "pu".to_owned() }),
            node: Some(("node".to_owned(), "nu".to_owned())),
        };
        let token = tokens.key.sign(&tokens.claims(&request, now)).unwrap();
        let account = ("serviceaccounts", "n", "a", "u");
        let pod = ("pods", "n", "p", "pu");
        let check = |live: &[_], audience: &str, later: i64, expect: Result<(), Refused>| {
            let now = Timestamp::from_second(1_000_000 + later).unwrap();
            let outcome = tokens.verify(&token, &[audience.to_owned()], &Live(live.to_vec()), now);
            assert_eq!(outcome.map(|_| ()), expect);
        };
        check(&[account, pod], "api", 0, Ok(()));
        check(&[account, pod], "vault", 599, Ok(()));
        check(&[account, pod], "other", 0, Err(Refused::Audience));
        check(&[account, pod], "api", 600, Err(Refused::Expired));
        check(&[account, pod], "api", -100, Err(Refused::NotYet));
        check(&[account], "api", 0, Err(Refused::Gone { what: "pod" }));
        check(&[pod], "api", 0, Err(Refused::Gone { what: "service account" }));
        check(&[("serviceaccounts", "n", "a", "new"), pod], "api", 0, Err(Refused::Gone { what: "service account" }));
        let verified = tokens.verify(&token, &["api".to_owned()], &Live(vec![account, pod]), now).unwrap();
        assert_eq!(verified.user.name, "system:serviceaccount:n:a");
        assert_eq!(verified.user.extra["authentication.kubernetes.io/node-name"], ["node"]);
    }
}
