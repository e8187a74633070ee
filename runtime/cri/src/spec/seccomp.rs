//! Which seccomp filter a container gets. Reads a Localhost profile from disk.

use std::path::PathBuf;

use oci_spec::runtime::{Capability, LinuxSeccomp};
use runtime_cri_api::v1::{LinuxContainerSecurityContext, SecurityProfile, security_profile::ProfileType};

use super::{SpecError, capabilities};

/// The largest profiles in use are some ten kilobytes.
const PROFILE_BYTES_MAX: usize = 1 << 20;

/// `None` is unconfined: asked for, privileged, or nothing said (the kubelet says it for pods that want the default).
pub(crate) fn load(security: &LinuxContainerSecurityContext) -> Result<Option<LinuxSeccomp>, SpecError> {
    let Some(profile) = profile(security) else { return Ok(None) };
    if security.privileged {
        return Ok(None);
    }
    match profile.profile_type() {
        ProfileType::Unconfined => Ok(None),
        ProfileType::RuntimeDefault => {
            let wanted = security.capabilities.clone().unwrap_or_default();
            let held: Vec<Capability> = capabilities::plan(&wanted, false)?.held.into_iter().collect();
            Ok(Some(runtime_oci::seccomp::default_profile(&held)))
        }
        ProfileType::Localhost => {
            let path = PathBuf::from(profile.localhost_ref.trim_start_matches("localhost/"));
            if !path.is_absolute() {
                return Err(SpecError::field("seccomp.localhost_ref", format!("{} is not absolute", path.display())));
            }
            let text = crate::private::read(&path, PROFILE_BYTES_MAX)
                .map_err(|source| SpecError::ReadProfile { path: path.clone(), source })?;
            serde_json::from_slice(&text).map(Some).map_err(|source| SpecError::ParseProfile { path, source })
        }
    }
}

fn profile(security: &LinuxContainerSecurityContext) -> Option<SecurityProfile> {
    #[expect(deprecated, reason = "older kubelets send only this field")]
    let old = security.seccomp_profile_path.as_str();
    let kind = |kind: ProfileType, path: &str| {
        Some(SecurityProfile { profile_type: kind.into(), localhost_ref: path.to_owned() })
    };
    match (&security.seccomp, old) {
        (Some(profile), _) => Some(profile.clone()),
        (None, "" | "unconfined") => None,
        (None, "runtime/default" | "docker/default") => kind(ProfileType::RuntimeDefault, ""),
        (None, path) => kind(ProfileType::Localhost, path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles() {
        let with = |kind: ProfileType, path: &str, privileged| {
            load(&LinuxContainerSecurityContext {
                seccomp: Some(SecurityProfile { profile_type: kind.into(), localhost_ref: path.into() }),
                privileged,
                ..Default::default()
            })
        };
        assert!(load(&LinuxContainerSecurityContext::default()).unwrap().is_none());
        assert!(with(ProfileType::RuntimeDefault, "", false).unwrap().is_some());
        assert!(with(ProfileType::RuntimeDefault, "", true).unwrap().is_none());
        assert!(with(ProfileType::Unconfined, "", false).unwrap().is_none());
        assert!(matches!(with(ProfileType::Localhost, "/no/such", false), Err(SpecError::ReadProfile { .. })));
        assert!(matches!(with(ProfileType::Localhost, "relative", false), Err(SpecError::Field { .. })));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.json");
        std::fs::write(&path, r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#).unwrap();
        assert!(with(ProfileType::Localhost, path.to_str().unwrap(), false).unwrap().is_some());
        std::fs::write(&path, "{}x").unwrap();
        assert!(matches!(
            with(ProfileType::Localhost, path.to_str().unwrap(), false),
            Err(SpecError::ParseProfile { .. })
        ));
    }
}
