//! `runtime.v1`: the generated messages and stubs, and what they need by hand.

use std::fmt;

#[allow(
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    clippy::large_enum_variant,
    clippy::doc_markdown,
    missing_debug_implementations,
    reason = "generated code"
)]
mod generated {
    include!("generated/runtime.v1.rs");
}

pub use generated::*;

/// Secrets stay out of logs: only whether they are there is told.
impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthConfig")
            .field("server_address", &self.server_address)
            .field("username", &self.username)
            .field("password", &!self.password.is_empty())
            .field("auth", &!self.auth.is_empty())
            .field("identity_token", &!self.identity_token.is_empty())
            .field("registry_token", &!self.registry_token.is_empty())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_hides_secrets() {
        let auth = AuthConfig { username: "u".into(), password: "hunter2".into(), ..Default::default() };
        assert!(!format!("{auth:?}").contains("hunter2"));
        assert!(format!("{auth:?}").contains("password: true"));
    }
}
