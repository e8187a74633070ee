//! Who we are towards a registry. Never printed: `Debug` hides the secrets.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Auth {
    Basic {
        username: String,
        password: String,
    },
    /// An OAuth2 refresh token, exchanged for a bearer token at the registry's realm.
    IdentityToken(String),
    /// A bearer token sent as it is.
    RegistryToken(String),
}

/// What a pull secret or a CRI `AuthConfig` carries; an empty field is an absent one.
#[derive(Clone, Default)]
pub struct AuthFields {
    pub username: String,
    pub password: String,
    /// base64 of `username:password`.
    pub auth: String,
    pub identity_token: String,
    pub registry_token: String,
    /// The registry that these are for, as a host or a URL; empty for whichever is asked.
    pub server_address: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the auth field of the registry credentials is not base64")]
    Base64,
    #[error("the auth field of the registry credentials does not hold username:password")]
    NoColon,
}

impl Auth {
    pub fn basic(username: &str, password: &str) -> Self {
        Self::Basic { username: username.to_owned(), password: password.to_owned() }
    }

    /// `None` when every field is empty, which means anonymous, or when they are for another registry than `registry`, which must
    /// not see them.
    pub fn from_fields(fields: AuthFields, registry: &str) -> Result<Option<Self>, Error> {
        if !fields.server_address.is_empty() && host(&fields.server_address) != host(registry) {
            return Ok(None);
        }
        if !fields.username.is_empty() {
            return Ok(Some(Self::Basic { username: fields.username, password: fields.password }));
        }
        if !fields.identity_token.is_empty() {
            return Ok(Some(Self::IdentityToken(fields.identity_token)));
        }
        if !fields.registry_token.is_empty() {
            return Ok(Some(Self::RegistryToken(fields.registry_token)));
        }
        if fields.auth.is_empty() {
            return Ok(None);
        }
        let decoded = STANDARD.decode(fields.auth.trim()).map_err(|_| Error::Base64)?;
        let decoded = String::from_utf8(decoded).map_err(|_| Error::Base64)?;
        let (username, password) = decoded.split_once(':').ok_or(Error::NoColon)?;
        // Docker pads old entries with NUL bytes.
        Ok(Some(Self::basic(username, password.trim_end_matches('\0'))))
    }

    /// The value of an `Authorization` header for HTTP basic authentication (RFC 7617).
    pub(crate) fn basic_header(username: &str, password: &str) -> String {
        format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
    }
}

/// The host and port of an address that may be a URL; docker.io's several names are one.
fn host(address: &str) -> String {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    let host = rest.split(['/', '?']).next().unwrap_or_default().to_ascii_lowercase();
    match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".into(),
        _ => host,
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Basic { username, .. } => write!(f, "Basic({username}, ***)"),
            Self::IdentityToken(_) => f.write_str("IdentityToken(***)"),
            Self::RegistryToken(_) => f.write_str("RegistryToken(***)"),
        }
    }
}

impl fmt::Debug for AuthFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthFields").field("username", &self.username).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields() {
        let of = |username: &str, auth: &str, identity: &str| {
            Auth::from_fields(
                AuthFields {
                    username: username.into(),
                    password: "p".into(),
                    auth: auth.into(),
                    identity_token: identity.into(),
                    ..AuthFields::default()
                },
                "q.io",
            )
        };
        assert_eq!(of("", "", ""), Ok(None));
        assert_eq!(of("u", "", "t"), Ok(Some(Auth::basic("u", "p"))));
        assert_eq!(of("", "", "t"), Ok(Some(Auth::IdentityToken("t".into()))));
        assert_eq!(of("", "dTpwOnc=", ""), Ok(Some(Auth::basic("u", "p:w"))));
        assert_eq!(of("", "***", ""), Err(Error::Base64));
        assert_eq!(of("", "dQ==", ""), Err(Error::NoColon));
    }

    #[test]
    fn credentials_go_only_to_the_registry_that_they_are_for() {
        let check = |server: &str, registry: &str, expect: bool| {
            let fields = AuthFields {
                username: "u".into(),
                password: "p".into(),
                server_address: server.into(),
                ..AuthFields::default()
            };
            assert_eq!(Auth::from_fields(fields, registry).unwrap().is_some(), expect, "{server} for {registry}");
        };
        check("", "q.io", true);
        check("q.io", "q.io", true);
        check("https://Q.io/v2/", "q.io", true);
        check("https://index.docker.io/v1/", "docker.io", true);
        check("other.io", "q.io", false);
        check("q.io:5000", "q.io", false);
        check("https://q.io.evil.example", "q.io", false);
        check("https://evil.example/q.io", "q.io", false);
    }

    #[test]
    fn secrets_are_not_printed() {
        assert!(!format!("{:?}", Auth::basic("u", "hunter2")).contains("hunter2"));
        assert!(!format!("{:?}", Auth::IdentityToken("hunter2".into())).contains("hunter2"));
    }
}
