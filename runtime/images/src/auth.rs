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

    /// `None` when every field is empty, which means anonymous.
    pub fn from_fields(fields: AuthFields) -> Result<Option<Self>, Error> {
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
            Auth::from_fields(AuthFields {
                username: username.into(),
                password: "p".into(),
                auth: auth.into(),
                identity_token: identity.into(),
                registry_token: String::new(),
            })
        };
        assert_eq!(of("", "", ""), Ok(None));
        assert_eq!(of("u", "", "t"), Ok(Some(Auth::basic("u", "p"))));
        assert_eq!(of("", "", "t"), Ok(Some(Auth::IdentityToken("t".into()))));
        assert_eq!(of("", "dTpwOnc=", ""), Ok(Some(Auth::basic("u", "p:w"))));
        assert_eq!(of("", "***", ""), Err(Error::Base64));
        assert_eq!(of("", "dQ==", ""), Err(Error::NoColon));
    }

    #[test]
    fn secrets_are_not_printed() {
        assert!(!format!("{:?}", Auth::basic("u", "hunter2")).contains("hunter2"));
        assert!(!format!("{:?}", Auth::IdentityToken("hunter2".into())).contains("hunter2"));
    }
}
