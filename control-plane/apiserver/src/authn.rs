//! Who asks: a client certificate, a bearer token, or nobody. Decides nothing about what they may do; see `authz.rs`.
//!
//! Order: bearer token, then certificate, then anonymous. A token that is sent and does not verify is refused, never
//! downgraded to anonymous. Impersonation headers are parsed here and authorized by the caller.

pub(crate) mod certificate;
pub(crate) mod key;
pub(crate) mod token;

use std::collections::BTreeMap;

use http::{HeaderMap, header};

/// An authenticated user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Which certificate or token it was, for whoever reads `kubectl auth whoami` or an audit.
pub(crate) const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";
pub(crate) const AUTHENTICATED: &str = "system:authenticated";
pub(crate) const UNAUTHENTICATED: &str = "system:unauthenticated";
pub(crate) const MASTERS: &str = "system:masters";
pub(crate) const NODES: &str = "system:nodes";

impl User {
    /// A named user in these groups, and in `system:authenticated`.
    pub fn new(name: &str, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
        if !groups.iter().any(|group| group == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        Self { name: name.to_owned(), groups, ..Self::default() }
    }

    pub fn anonymous() -> Self {
        Self { name: "system:anonymous".to_owned(), groups: vec![UNAUTHENTICATED.to_owned()], ..Self::default() }
    }

    pub fn is_anonymous(&self) -> bool {
        self.name == "system:anonymous"
    }

    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }

    /// The node's name when this is a kubelet's user.
    pub(crate) fn node_name(&self) -> Option<&str> {
        let name = self.name.strip_prefix("system:node:")?;
        (self.in_group(NODES) && !name.is_empty()).then_some(name)
    }

    /// Namespace and name when this is a service account.
    pub(crate) fn service_account(&self) -> Option<(&str, &str)> {
        self.name.strip_prefix("system:serviceaccount:")?.split_once(':')
    }
}

/// The bearer token of a request, if it sends one: in the header, or as a WebSocket subprotocol (browsers cannot set headers).
pub(crate) fn bearer_token(headers: &HeaderMap) -> Option<String> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let value = value.to_str().ok()?;
        let (scheme, token) = value.split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned());
    }
    let protocols = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let encoded = protocols
        .flat_map(|list| list.split(','))
        .find_map(|protocol| protocol.trim().strip_prefix("base64url.bearer.authorization.k8s.io."))?;
    use base64::Engine as _;
    let token = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded).ok()?;
    String::from_utf8(token).ok()
}

/// Whom the caller wants to act as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Impersonation {
    pub(crate) user: User,
}

/// A mistake in the impersonation headers.
#[derive(Debug, thiserror::Error)]
#[error("requested groups, uid or extra without impersonating a user; send Impersonate-User too")]
pub(crate) struct ImpersonationError;

pub(crate) fn impersonation(headers: &HeaderMap) -> Result<Option<Impersonation>, ImpersonationError> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
    let list = |name: &str| -> Vec<String> {
        headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).map(str::to_owned).collect()
    };
    let mut user = User {
        name: text("impersonate-user"),
        uid: text("impersonate-uid"),
        groups: list("impersonate-group"),
        extra: BTreeMap::new(),
    };
    for (name, value) in headers {
        if let Some(key) = name.as_str().strip_prefix("impersonate-extra-")
            && let Ok(value) = value.to_str()
        {
            let key = crate::request::percent_decode(key);
            user.extra.entry(key).or_default().push(value.to_owned());
        }
    }
    if user.name.is_empty() {
        let asks = !user.uid.is_empty() || !user.groups.is_empty() || !user.extra.is_empty();
        return if asks { Err(ImpersonationError) } else { Ok(None) };
    }
    Ok(Some(Impersonation { user }))
}

impl Impersonation {
    /// The user to act as, with the groups that everybody of that sort is in.
    pub(crate) fn into_user(self) -> User {
        let mut user = self.user;
        if user.groups.is_empty()
            && let Some((namespace, _)) = user.service_account()
        {
            user.groups = token::service_account_groups(namespace);
        }
        if user.is_anonymous() {
            if !user.in_group(UNAUTHENTICATED) {
                user.groups.push(UNAUTHENTICATED.to_owned());
            }
        } else if !user.in_group(AUTHENTICATED) {
            user.groups.push(AUTHENTICATED.to_owned());
        }
        user
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_found_where_clients_put_them() {
        let check = |name: &'static str, value: &'static str, expect: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            assert_eq!(bearer_token(&headers).as_deref(), expect, "{value}");
        };
        check("authorization", "Bearer abc", Some("abc"));
        check("authorization", "bearer  abc ", Some("abc"));
        check("authorization", "Basic abc", None);
        check("sec-websocket-protocol", "v5, base64url.bearer.authorization.k8s.io.YWJj", Some("abc"));
        check("sec-websocket-protocol", "v5", None);
    }

    #[test]
    fn impersonation_needs_a_user() {
        let mut headers = HeaderMap::new();
        assert_eq!(impersonation(&headers).unwrap(), None);
        headers.insert("impersonate-group", "g".parse().unwrap());
        assert!(impersonation(&headers).is_err());
        headers.insert("impersonate-user", "system:serviceaccount:a:b".parse().unwrap());
        headers.remove("impersonate-group");
        let user = impersonation(&headers).unwrap().unwrap().into_user();
        assert_eq!(user.groups, ["system:serviceaccounts", "system:serviceaccounts:a", "system:authenticated"]);
    }
}
