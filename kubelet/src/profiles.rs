//! Seccomp profiles of the node (`localhostProfile`): looked at before the runtime is told their path. Blocking.
//! Invariant: a pod names nothing outside `seccomp` below the data directory, and no word of a file is ever shown.

use std::path::{Component, Path};

use k8s_openapi::api::core::v1::{Container, SeccompProfile};
use oci_spec::runtime::LinuxSeccomp;
use runtime_linux::rooted::Root;

use crate::pod::LocalPod;

/// A profile larger than this is none.
const PROFILE_BYTES_MAX: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("seccomp profile {file:?} is no path below the node's directory of profiles")]
    Outside { file: String },
    #[error("read seccomp profile {file:?}: {kind}")]
    Read { file: String, kind: std::io::ErrorKind },
    /// Without the parser's words: they would show what the file holds.
    #[error("seccomp profile {file:?} is not valid")]
    Invalid { file: String },
}

/// # Errors
/// If the pod's own profile cannot be used.
pub fn check_pod(pod: &LocalPod, data_dir: &Path) -> Result<(), Error> {
    check(pod.spec.security_context.as_ref().and_then(|c| c.seccomp_profile.as_ref()), data_dir)
}

/// # Errors
/// If the profile that the container is to have cannot be used.
pub fn check_container(pod: &LocalPod, container: &Container, data_dir: &Path) -> Result<(), Error> {
    match container.security_context.as_ref().and_then(|c| c.seccomp_profile.as_ref()) {
        Some(own) => check(Some(own), data_dir),
        None => check_pod(pod, data_dir),
    }
}

fn check(profile: Option<&SeccompProfile>, data_dir: &Path) -> Result<(), Error> {
    let Some(profile) = profile.filter(|p| p.type_ == "Localhost") else { return Ok(()) };
    let file = profile.localhost_profile.clone().unwrap_or_default();
    let path = Path::new(&file);
    if file.is_empty() || !path.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(Error::Outside { file });
    }
    let root = Root::open_dir(&data_dir.join("seccomp")).map_err(std::io::Error::from);
    let bytes = root.and_then(|root| root.read_regular(path, PROFILE_BYTES_MAX));
    let bytes = bytes.map_err(|e| Error::Read { file: file.clone(), kind: e.kind() })?;
    match serde_json::from_slice::<LinuxSeccomp>(&bytes) {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::Invalid { file }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_profiles_of_the_node_are_taken_and_no_word_of_a_file_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("seccomp");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(root.join("good.json"), r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).unwrap();
        std::fs::write(root.join("sub/good.json"), r#"{"defaultAction": "SCMP_ACT_ERRNO"}"#).unwrap();
        std::fs::write(root.join("bad.json"), r#""word-of-the-file""#).unwrap();
        std::fs::write(dir.path().join("outside.json"), r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).unwrap();
        symlink("/etc/hostname", root.join("link.json")).unwrap();
        nix::unistd::mkfifo(&root.join("fifo.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let checked = |file: &str| {
            let profile = SeccompProfile { type_: "Localhost".into(), localhost_profile: Some(file.into()) };
            super::check(Some(&profile), dir.path()).map_or_else(|e| e.to_string(), |()| "good".into())
        };
        let outside = "is no path below";
        for (file, expect) in [
            ("good.json", "good"),
            ("sub/good.json", "good"),
            ("bad.json", "is not valid"),
            ("../outside.json", outside),
            ("/etc/passwd", outside),
            ("", outside),
            ("none.json", "read seccomp profile"),
            ("link.json", "read seccomp profile"),
            ("fifo.json", "read seccomp profile"),
        ] {
            let said = checked(file);
            assert!(said.contains(expect) && !said.contains("word-of-the-file"), "{file}: {said}");
        }
    }
}
