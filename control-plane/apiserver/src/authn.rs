//! Who asks: a client certificate, a bearer token, or nobody. Decides nothing about what they may do; see `authz.rs`.
//!
//! Order: bearer token, then certificate, then anonymous. A token that is sent and does not verify is refused, never
//! downgraded to the certificate or to anonymous. Impersonation headers are parsed here and authorized by the caller.
//! Invariant: a header that says who somebody is and cannot be understood refuses the request.

pub(crate) mod certificate;
pub(crate) mod key;
pub(crate) mod token;

use std::collections::BTreeMap;

use control_plane_api::name;
use http::{HeaderMap, HeaderName, HeaderValue, header};

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
        let (namespace, name) = self.account_parts()?;
        // Anything else with this beginning is a user of that name, and authorized as such.
        let is_account = name::dns1123_label(namespace).is_empty() && name::dns1123_subdomain(name).is_empty();
        is_account.then_some((namespace, name))
    }

    /// The two parts of a service account's user name, for comparing: nobody looked at whether an account could be called so.
    pub(crate) fn account_parts(&self) -> Option<(&str, &str)> {
        self.name.strip_prefix("system:serviceaccount:")?.split_once(':')
    }
}

/// What a request brings to prove who sends it, beside its connection's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Credential {
    None,
    Bearer(String),
    /// Another scheme, which nothing here knows: the certificate decides, and without one the request is refused.
    OtherScheme,
    /// Something that was meant as a token and cannot be read. Refused: the caller would otherwise be taken for somebody else.
    Unreadable,
}

/// The subprotocol that carries a token where no header can: in browsers.
const BEARER_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// The bearer token of a request, if it sends one: in the header, or as a WebSocket subprotocol.
pub(crate) fn credential(headers: &HeaderMap) -> Credential {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let Ok(value) = std::str::from_utf8(value.as_bytes()) else { return Credential::Unreadable };
        let (scheme, token) = value.trim().split_once(' ').unwrap_or((value.trim(), ""));
        return match (scheme.eq_ignore_ascii_case("bearer"), token.trim()) {
            (false, _) => Credential::OtherScheme,
            (true, "") => Credential::Unreadable,
            (true, token) => Credential::Bearer(token.to_owned()),
        };
    }
    let mut found = Credential::None;
    for value in headers.get_all(header::SEC_WEBSOCKET_PROTOCOL) {
        let encoded = protocols(value).filter_map(|protocol| protocol.strip_prefix(BEARER_PROTOCOL.as_bytes()));
        for encoded in encoded {
            use base64::Engine as _;
            let token = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded).ok();
            let token = token.and_then(|token| String::from_utf8(token).ok()).filter(|token| !token.is_empty());
            // Two tokens are two callers: neither is believed.
            found = match (found, token) {
                (Credential::None, Some(token)) => Credential::Bearer(token),
                _ => Credential::Unreadable,
            };
        }
    }
    found
}

fn protocols(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// Takes out of the headers what proves or claims who the caller is: nothing behind the server has a use for it, and whoever is
/// asked through the proxy could use it as the caller.
pub(crate) fn strip_credentials(headers: &mut HeaderMap) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| is_credential(name)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
    let values: Vec<HeaderValue> = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().cloned().collect();
    headers.remove(header::SEC_WEBSOCKET_PROTOCOL);
    for value in values {
        let kept: Vec<&[u8]> = protocols(&value).filter(|one| !one.starts_with(BEARER_PROTOCOL.as_bytes())).collect();
        let kept = kept.join(&b", "[..]);
        if !kept.is_empty()
            && let Ok(value) = HeaderValue::from_bytes(&kept)
        {
            headers.append(header::SEC_WEBSOCKET_PROTOCOL, value);
        }
    }
}

/// Headers by which somebody says who he, or another, is. The last are those of authenticating proxies: what stands behind the
/// server may believe them, and nobody checked them here.
fn is_credential(name: &HeaderName) -> bool {
    matches!(*name, header::AUTHORIZATION | header::PROXY_AUTHORIZATION)
        || ["impersonate-", "x-remote-user", "x-remote-uid", "x-remote-group", "x-remote-extra-"]
            .iter()
            .any(|prefix| name.as_str().starts_with(prefix))
}

/// Whom the caller wants to act as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Impersonation {
    pub(crate) user: User,
}

/// A mistake in the impersonation headers: whatever is in them that cannot be followed to the letter.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ImpersonationError {
    #[error("requested groups, uid or extra without impersonating a user; send Impersonate-User too")]
    NoUser,
    #[error("the header {name} is not valid UTF-8")]
    NotText { name: String },
    #[error("the header {name} is empty; leave it out or give it a value")]
    Empty { name: String },
    #[error("the header {name} was sent more than once")]
    Repeated { name: String },
    #[error(
        "the header {name} is none that this server knows; it could mean that the request should be served as somebody else"
    )]
    Unknown { name: String },
}

const IMPERSONATE: &str = "impersonate-";

/// Reads the impersonation headers. `None` when there are none; a header that is there is followed or refused, never passed over.
pub(crate) fn impersonation(headers: &HeaderMap) -> Result<Option<Impersonation>, ImpersonationError> {
    let mut user = User::default();
    let mut asks = false;
    for (name, value) in headers {
        let Some(what) = name.as_str().strip_prefix(IMPERSONATE) else { continue };
        asks = true;
        let name = || name.as_str().to_owned();
        let text = std::str::from_utf8(value.as_bytes()).map_err(|_| ImpersonationError::NotText { name: name() })?;
        // The value of an extra may be empty; a user, a group and a uid may not.
        let one = |target: &mut String| match (text.is_empty(), target.is_empty()) {
            (true, _) => Err(ImpersonationError::Empty { name: name() }),
            (false, false) => Err(ImpersonationError::Repeated { name: name() }),
            (false, true) => {
                text.clone_into(target);
                Ok(())
            }
        };
        match what.strip_prefix("extra-") {
            Some("") => return Err(ImpersonationError::Unknown { name: name() }),
            Some(key) => {
                let key = crate::request::percent_decode_strict(key);
                let key = key.ok_or_else(|| ImpersonationError::NotText { name: name() })?;
                user.extra.entry(key).or_default().push(text.to_owned());
            }
            None => match what {
                "user" => one(&mut user.name)?,
                "uid" => one(&mut user.uid)?,
                "group" if text.is_empty() => return Err(ImpersonationError::Empty { name: name() }),
                "group" => user.groups.push(text.to_owned()),
                _ => return Err(ImpersonationError::Unknown { name: name() }),
            },
        }
    }
    match (asks, user.name.is_empty()) {
        (false, _) => Ok(None),
        (true, true) => Err(ImpersonationError::NoUser),
        (true, false) => Ok(Some(Impersonation { user })),
    }
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
        } else if !user.in_group(AUTHENTICATED) && !user.in_group(UNAUTHENTICATED) {
            user.groups.push(AUTHENTICATED.to_owned());
        }
        user
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&'static str, &[u8])]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in all {
            headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap());
        }
        headers
    }

    #[test]
    fn tokens_are_found_where_clients_put_them() {
        let bearer = |token: &str| Credential::Bearer(token.to_owned());
        let check = |all: &[(&'static str, &[u8])], expect: Credential| {
            assert_eq!(credential(&headers(all)), expect, "{all:?}");
        };
        check(&[], Credential::None);
        check(&[("authorization", b"Bearer abc")], bearer("abc"));
        check(&[("authorization", b"bearer  abc ")], bearer("abc"));
        check(&[("authorization", b"Basic abc")], Credential::OtherScheme);
        check(&[("authorization", b"Bearer")], Credential::Unreadable);
        check(&[("authorization", b"Bearer \xff")], Credential::Unreadable);
        let token: &[u8] = b"v5, base64url.bearer.authorization.k8s.io.YWJj";
        check(&[("sec-websocket-protocol", token)], bearer("abc"));
        check(&[("sec-websocket-protocol", b"v5")], Credential::None);
        check(&[("sec-websocket-protocol", token), ("sec-websocket-protocol", token)], Credential::Unreadable);
        check(&[("sec-websocket-protocol", b"base64url.bearer.authorization.k8s.io.Y!")], Credential::Unreadable);
        check(&[("sec-websocket-protocol", b"base64url.bearer.authorization.k8s.io.")], Credential::Unreadable);
    }

    #[test]
    fn nothing_that_says_who_somebody_is_travels_on() {
        let mut all = headers(&[
            ("authorization", b"Bearer abc"),
            ("proxy-authorization", b"Basic abc"),
            ("impersonate-user", b"u"),
            ("impersonate-extra-scopes", b"s"),
            ("x-remote-user", b"u"),
            ("x-remote-extra-scopes", b"s"),
            ("sec-websocket-protocol", b"base64url.bearer.authorization.k8s.io.YWJj"),
            ("sec-websocket-protocol", b"v5, base64url.bearer.authorization.k8s.io.YWJj,v4"),
            ("cookie", b"of=the application"),
            ("x-request-id", b"1"),
        ]);
        strip_credentials(&mut all);
        let mut left: Vec<(&str, &str)> =
            all.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        left.sort_unstable();
        let expect = [("cookie", "of=the application"), ("sec-websocket-protocol", "v5, v4"), ("x-request-id", "1")];
        assert_eq!(left, expect);
    }

    #[test]
    fn impersonation_is_followed_to_the_letter_or_refused() {
        let user = |name: &str, groups: &[&str]| User {
            name: name.to_owned(),
            groups: groups.iter().map(|one| (*one).to_owned()).collect(),
            ..User::default()
        };
        let check = |all: &[(&'static str, &[u8])], expect: Result<Option<User>, &str>| {
            let found = impersonation(&headers(all)).map(|found| found.map(Impersonation::into_user));
            let found = found.map_err(|error| error.to_string());
            match (&found, &expect) {
                (Err(error), Err(part)) => assert!(error.contains(part), "{all:?}: {error}"),
                _ => assert_eq!(found, expect.map_err(str::to_owned), "{all:?}"),
            }
        };
        check(&[], Ok(None));
        check(&[("impersonate-user", "müller".as_bytes())], Ok(Some(user("müller", &[AUTHENTICATED]))));
        check(&[("impersonate-user", b"m\xfcller")], Err("not valid UTF-8"));
        check(&[("impersonate-user", b"")], Err("is empty"));
        check(&[("impersonate-user", b"a"), ("impersonate-user", b"b")], Err("more than once"));
        check(&[("impersonate-group", b"g")], Err("without impersonating a user"));
        check(&[("impersonate-uid", b"g")], Err("without impersonating a user"));
        check(&[("impersonate-extra-a", b"g")], Err("without impersonating a user"));
        check(&[("impersonate-user", b""), ("impersonate-group", b"g")], Err("is empty"));
        check(&[("impersonate-user", b"a"), ("impersonate-group", b"")], Err("is empty"));
        check(&[("impersonate-user", b"a"), ("impersonate-group", b"\xff")], Err("not valid UTF-8"));
        check(
            &[("impersonate-user", b"a"), ("impersonate-uid", b"1"), ("impersonate-uid", b"1")],
            Err("more than once"),
        );
        check(&[("impersonate-user", b"a"), ("impersonate-groups", b"g")], Err("none that this server knows"));
        check(&[("impersonate-user", b"a"), ("impersonate-extra-", b"g")], Err("none that this server knows"));
        check(&[("impersonate-user", b"a"), ("impersonate-extra-%ff", b"g")], Err("not valid UTF-8"));
        let account = ["system:serviceaccounts", "system:serviceaccounts:a", AUTHENTICATED];
        check(
            &[("impersonate-user", b"system:serviceaccount:a:b")],
            Ok(Some(user("system:serviceaccount:a:b", &account))),
        );
        // Neither namespace nor name may hold a colon: this is a user.
        check(
            &[("impersonate-user", b"system:serviceaccount:a:b:c")],
            Ok(Some(user("system:serviceaccount:a:b:c", &[AUTHENTICATED]))),
        );
        let all: &[(&'static str, &[u8])] = &[
            ("impersonate-user", b"a"),
            ("impersonate-group", b"g"),
            ("impersonate-group", "größe".as_bytes()),
            ("impersonate-extra-a%2fb", b"x"),
        ];
        let mut expect = user("a", &["g", "größe", AUTHENTICATED]);
        expect.extra = [("a/b".to_owned(), vec!["x".to_owned()])].into();
        check(all, Ok(Some(expect)));
    }
}
