//! A pod as the node sees it: parsed once where it enters, so that inside every name, kind and policy is known to exist.
//! Not its state; see sync/observed.rs.

use std::fmt;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sha2::{Digest, Sha256};

/// Annotations of static pods and their mirrors; the names are upstream's protocol.
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";
pub const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";
pub const CONFIG_SEEN: &str = "kubernetes.io/config.seen";

/// No container gets longer to end (68 years); what is above it counts as this, so that sums with times of our days exist.
pub const GRACE_SECONDS_MAX: i64 = i32::MAX as i64;

/// A grace period as it is acted on: as upstream, a negative one is one second.
#[must_use]
pub fn bounded_grace(seconds: i64) -> i64 {
    if seconds < 0 { 1 } else { seconds.min(GRACE_SECONDS_MAX) }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("pod without {field}")]
    Missing { field: &'static str },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Init,
    /// An init container with `restartPolicy: Always`.
    Sidecar,
    Regular,
    Ephemeral,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    fn parse(text: Option<&str>) -> RestartPolicy {
        match text {
            Some("OnFailure") => RestartPolicy::OnFailure,
            Some("Never") => RestartPolicy::Never,
            _ => RestartPolicy::Always,
        }
    }

    #[must_use]
    pub fn restarts(self, exit_code: i32) -> bool {
        match self {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => exit_code != 0,
            RestartPolicy::Never => false,
        }
    }
}

/// One container of the spec with its place in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    pub kind: Kind,
    pub container: Container,
    /// Names what would have to be made anew if it changed: the name and the image.
    pub hash: String,
    /// Names what it may use; a running container has the one that it was made with.
    pub resources_hash: String,
    pub restart_policy: RestartPolicy,
}

impl Member {
    #[must_use]
    pub fn name(&self) -> &str {
        &self.container.name
    }

    #[must_use]
    pub fn image(&self) -> &str {
        self.container.image.as_deref().unwrap_or_default()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Api,
    File,
}

/// `namespace/name`, for logs and maps.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct LocalPod {
    pub key: Key,
    pub uid: String,
    pub source: Source,
    pub object: Pod,
    pub spec: PodSpec,
    /// Init, regular, then ephemeral containers, each in the order written.
    pub members: Vec<Member>,
    pub restart_policy: RestartPolicy,
}

impl LocalPod {
    /// # Errors
    /// If what the API server always sets is not there.
    pub fn parse(object: Pod, source: Source) -> Result<LocalPod, Error> {
        let meta = &object.metadata;
        let key = Key {
            namespace: meta.namespace.clone().ok_or(Error::Missing { field: "namespace" })?,
            name: meta.name.clone().ok_or(Error::Missing { field: "name" })?,
        };
        let uid = meta.uid.clone().ok_or(Error::Missing { field: "uid" })?;
        let spec = object.spec.clone().ok_or(Error::Missing { field: "spec" })?;
        let restart_policy = RestartPolicy::parse(spec.restart_policy.as_deref());
        let members = members(&spec, restart_policy);
        Ok(LocalPod { key, uid, source, object, spec, members, restart_policy })
    }

    #[must_use]
    pub fn meta(&self) -> &ObjectMeta {
        &self.object.metadata
    }

    #[must_use]
    pub fn status(&self) -> Option<&PodStatus> {
        self.object.status.as_ref()
    }

    #[must_use]
    pub fn member(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|m| m.name() == name)
    }

    pub fn of(&self, kinds: &'static [Kind]) -> impl DoubleEndedIterator<Item = &Member> {
        self.members.iter().filter(move |m| kinds.contains(&m.kind))
    }

    #[must_use]
    pub fn deletion(&self) -> Option<Timestamp> {
        self.meta().deletion_timestamp.as_ref().map(|t| t.0)
    }

    /// Seconds that containers get to end: what the deletion asked for, else the spec's.
    #[must_use]
    pub fn grace_seconds(&self) -> i64 {
        let meta = self.meta();
        let asked = match (meta.deletion_timestamp.as_ref(), meta.deletion_grace_period_seconds) {
            (Some(_), Some(seconds)) => seconds,
            _ => self.spec.termination_grace_period_seconds.unwrap_or(30),
        };
        bounded_grace(asked)
    }

    #[must_use]
    pub fn host_network(&self) -> bool {
        self.spec.host_network.unwrap_or(false)
    }

    /// The phase in the API is one from which a pod never comes back.
    #[must_use]
    pub fn ended_in_api(&self) -> bool {
        matches!(self.status().and_then(|s| s.phase.as_deref()), Some("Failed" | "Succeeded"))
    }

    #[must_use]
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.meta().annotations.as_ref()?.get(name).map(String::as_str)
    }

    #[must_use]
    pub fn is_mirror(&self) -> bool {
        self.annotation(CONFIG_MIRROR).is_some()
    }
}

fn members(spec: &PodSpec, policy: RestartPolicy) -> Vec<Member> {
    let inits = spec.init_containers.iter().flatten().map(|c| {
        let sidecar = c.restart_policy.as_deref() == Some("Always");
        let own = match (sidecar, policy) {
            (true, _) => RestartPolicy::Always,
            (false, RestartPolicy::Never) => RestartPolicy::Never,
            (false, _) => RestartPolicy::OnFailure,
        };
        member(if sidecar { Kind::Sidecar } else { Kind::Init }, c.clone(), own)
    });
    let regular = spec.containers.iter().map(|c| {
        let own = c.restart_policy.as_deref().map_or(policy, |own| RestartPolicy::parse(Some(own)));
        member(Kind::Regular, c.clone(), own)
    });
    let ephemeral = spec.ephemeral_containers.iter().flatten().filter_map(|c| {
        // The two types share all fields but `targetContainerName`.
        let container = serde_json::from_value(serde_json::to_value(c).ok()?).ok()?;
        Some(member(Kind::Ephemeral, container, RestartPolicy::Never))
    });
    inits.chain(regular).chain(ephemeral).collect()
}

fn member(kind: Kind, container: Container, restart_policy: RestartPolicy) -> Member {
    let hash = hash(&[&container.name, container.image.as_deref().unwrap_or_default()]);
    let needs = container.resources.as_ref().and_then(|r| serde_json::to_string(&(&r.requests, &r.limits)).ok());
    let resources_hash = self::hash(&[needs.as_deref().unwrap_or_default()]);
    Member { kind, container, hash, resources_hash, restart_policy }
}

/// A short, stable fingerprint.
#[must_use]
pub fn hash(parts: &[&str]) -> String {
    let mut sha = Sha256::new();
    for part in parts {
        sha.update(part.len().to_be_bytes());
        sha.update(part.as_bytes());
    }
    sha.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect()
}
