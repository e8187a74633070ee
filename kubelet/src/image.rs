//! Brings the image of a container onto the node: by policy, with the credentials that the pod may use.
//! Not the pause between tries; see worker.rs. Invariant: what fails says so with upstream's reason.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use runtime_cri_api::v1 as cri;

use crate::events::Severity;
use crate::kit::Kit;
use crate::operation::Failure;
use crate::pod::{LocalPod, Member};

/// The image that a container is to be made from.
#[derive(Clone, Debug)]
pub struct Found {
    pub image: cri::Image,
    pub reference: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    Always,
    IfNotPresent,
    Never,
}

fn policy(member: &Member) -> Policy {
    match member.container.image_pull_policy.as_deref() {
        Some("Always") => Policy::Always,
        Some("Never") => Policy::Never,
        Some("IfNotPresent") => Policy::IfNotPresent,
        _ if is_latest(member.image()) => Policy::Always,
        _ => Policy::IfNotPresent,
    }
}

fn is_latest(image: &str) -> bool {
    let last = image.rsplit('/').next().unwrap_or(image);
    !image.contains('@') && (!last.contains(':') || last.ends_with(":latest"))
}

/// The grammar of image references: `[host[:port]/]path[:tag][@digest]`, the path in lower case.
#[must_use]
pub fn is_valid(image: &str) -> bool {
    let (rest, digest) = image.split_once('@').map_or((image, None), |(rest, digest)| (rest, Some(digest)));
    if digest.is_some_and(|d| {
        d.split_once(':')
            .is_none_or(|(kind, hex)| kind.is_empty() || hex.len() < 32 || !hex.bytes().all(|b| b.is_ascii_hexdigit()))
    }) {
        return false;
    }
    let slash = rest.rfind('/').map_or(0, |at| at + 1);
    let (path, tag) = match rest[slash..].rfind(':') {
        Some(at) => (&rest[..slash + at], Some(&rest[slash + at + 1..])),
        None => (rest, None),
    };
    let tag_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if tag.is_some_and(|t| t.is_empty() || t.len() > 128 || !t.chars().all(tag_char) || t.starts_with(['.', '-'])) {
        return false;
    }
    let mut parts: Vec<&str> = path.split('/').collect();
    let is_host = |p: &str| p.contains(['.', ':']) || p == "localhost" || p.chars().any(|c| c.is_ascii_uppercase());
    if parts.len() > 1 && is_host(parts[0]) {
        let host = parts.remove(0);
        if !host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']' | '_')) {
            return false;
        }
    }
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    parts.iter().all(|part| {
        part.starts_with(edge) && part.ends_with(edge) && part.chars().all(|c| edge(c) || matches!(c, '.' | '_' | '-'))
    })
}

/// The image, pulled if the policy wants it.
///
/// # Errors
/// With the reason to be shown while the container waits.
pub async fn ensure(
    kit: &Kit,
    pod: &LocalPod,
    member: &Member,
    sandbox: &cri::PodSandboxConfig,
) -> Result<Found, Failure> {
    let name = member.image();
    let say = |severity, reason: &str, text: String| kit.recorder.pod(pod, Some(member.name()), severity, reason, text);
    if !is_valid(name) {
        let text = format!(
            "Failed to apply default image tag \"{name}\": couldn't parse image name \"{name}\": invalid reference format"
        );
        say(Severity::Warning, "InspectFailed", text.clone());
        say(Severity::Warning, "Failed", "Error: InvalidImageName".into());
        return Err(Failure::new("InvalidImageName", text));
    }
    let inspect = |e: crate::cri::Error| {
        let text = format!("Failed to inspect image \"{name}\": {e}");
        Failure::new("ImageInspectError", text)
    };
    let present = kit.runtime.image(name).await.map_err(inspect)?;
    match (policy(member), present) {
        (Policy::Never, None) => {
            let text = format!("Container image \"{name}\" is not present with pull policy of Never");
            say(Severity::Warning, "ErrImageNeverPull", text.clone());
            say(Severity::Warning, "Failed", "Error: ErrImageNeverPull".into());
            Err(Failure::new("ErrImageNeverPull", text))
        }
        (Policy::Never | Policy::IfNotPresent, Some(image)) => {
            say(Severity::Normal, "Pulled", format!("Container image \"{name}\" already present on machine"));
            Ok(Found { reference: image.id.clone(), image })
        }
        (Policy::Always | Policy::IfNotPresent, _) => pull(kit, pod, member, sandbox).await,
    }
}

async fn pull(kit: &Kit, pod: &LocalPod, member: &Member, sandbox: &cri::PodSandboxConfig) -> Result<Found, Failure> {
    let name = member.image();
    let say = |severity, reason: &str, text: String| kit.recorder.pod(pod, Some(member.name()), severity, reason, text);
    say(Severity::Normal, "Pulling", format!("Pulling image \"{name}\""));
    let began = Instant::now();
    let spec =
        cri::ImageSpec { image: name.to_owned(), user_specified_image: name.to_owned(), ..cri::ImageSpec::default() };
    let mut tries = credentials(kit, pod, name).await;
    if tries.is_empty() {
        tries.push(None);
    }
    let mut last = None;
    for auth in tries {
        let request = cri::PullImageRequest { image: Some(spec.clone()), auth, sandbox_config: Some(sandbox.clone()) };
        match kit.runtime.pull(request).await {
            Ok(reference) => {
                let image = kit.runtime.image(name).await.ok().flatten().unwrap_or_default();
                let took = duration(began.elapsed());
                let size = image.size;
                say(
                    Severity::Normal,
                    "Pulled",
                    format!(
                        "Successfully pulled image \"{name}\" in {took} ({took} including waiting). Image size: {size} bytes."
                    ),
                );
                let reference = if image.id.is_empty() { reference } else { image.id.clone() };
                return Ok(Found { image, reference });
            }
            Err(error) => last = Some(error),
        }
    }
    let cause = last.map(|e| e.to_string()).unwrap_or_default();
    say(Severity::Warning, "Failed", format!("Failed to pull image \"{name}\": {cause}"));
    say(Severity::Warning, "Failed", "Error: ErrImagePull".into());
    Err(Failure::new("ErrImagePull", format!("failed to pull image \"{name}\": {cause}")))
}

fn duration(elapsed: Duration) -> String {
    if elapsed.as_secs() == 0 { format!("{}ms", elapsed.as_millis()) } else { format!("{:.3}s", elapsed.as_secs_f64()) }
}

/// What the pod's pull secrets say about the image's registry, most precise first.
async fn credentials(kit: &Kit, pod: &LocalPod, image: &str) -> Vec<Option<cri::AuthConfig>> {
    let mut found: Vec<(usize, cri::AuthConfig)> = Vec::new();
    for reference in pod.spec.image_pull_secrets.iter().flatten() {
        match kit.access.references.secret(&pod.key.namespace, &reference.name, &pod.uid).await {
            Ok(Some(secret)) => found.extend(matching(&secret, image)),
            Ok(None) => {
                let text = format!(
                    "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                    reference.name
                );
                kit.recorder.pod(pod, None, Severity::Warning, "FailedToRetrieveImagePullSecret", text);
            }
            Err(error) => tracing::warn!(pod = %pod.key, %error, "pull secret not read"),
        }
    }
    found.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    found.into_iter().map(|(_, auth)| Some(auth)).collect()
}

/// Entries of a docker configuration whose address the image is below, with how much of it they name.
fn matching(secret: &Secret, image: &str) -> Vec<(usize, cri::AuthConfig)> {
    let data =
        |key: &str| secret.data.as_ref()?.get(key).and_then(|v| serde_json::from_slice::<serde_json::Value>(&v.0).ok());
    let auths = data(".dockerconfigjson").and_then(|v| v.get("auths").cloned()).or_else(|| data(".dockercfg"));
    let Some(serde_json::Value::Object(auths)) = auths else { return Vec::new() };
    let image = full_name(image);
    let mut out = Vec::new();
    for (address, entry) in auths {
        let address = address.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
        let address = address.strip_suffix("/v1").or_else(|| address.strip_suffix("/v2")).unwrap_or(address);
        let address = if address == "index.docker.io" { "docker.io" } else { address };
        let below = image.strip_prefix(address).is_some_and(|rest| rest.starts_with('/')) || glob_host(address, &image);
        if !below {
            continue;
        }
        let text = |key: &str| entry.get(key).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
        let (mut username, mut password) = (text("username"), text("password"));
        if username.is_empty() {
            use base64::Engine;
            let decoded = base64::engine::general_purpose::STANDARD.decode(text("auth")).unwrap_or_default();
            let decoded = String::from_utf8_lossy(&decoded).into_owned();
            if let Some((user, secret)) = decoded.split_once(':') {
                (username, password) = (user.to_owned(), secret.to_owned());
            }
        }
        let (identity_token, registry_token) = (text("identitytoken"), text("registrytoken"));
        let server_address = image.split('/').next().unwrap_or_default().to_owned();
        let auth = cri::AuthConfig {
            username,
            password,
            identity_token,
            registry_token,
            server_address,
            ..cri::AuthConfig::default()
        };
        out.push((address.len(), auth));
    }
    out
}

/// `*.example.com` covers one label.
fn glob_host(address: &str, image: &str) -> bool {
    let Some(domain) = address.strip_prefix('*') else { return false };
    let host = image.split('/').next().unwrap_or_default();
    host.strip_suffix(domain).is_some_and(|label| !label.is_empty() && !label.contains('.'))
}

/// With the registry that a short name means.
fn full_name(image: &str) -> String {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => image.to_owned(),
        Some(_) => format!("docker.io/{image}"),
        None => format!("docker.io/library/{image}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn references_are_judged() {
        for (image, good) in [
            ("busybox", true),
            ("busybox:1.36", true),
            ("a/b/c:x_1", true),
            ("localhost:5000/x", true),
            ("REGISTRY.io/x", true),
            ("x@sha256:0123456789012345678901234567890123456789012345678901234567890123", true),
            ("", false),
            ("Busybox", false),
            ("x:", false),
            ("x@sha256:12", false),
            ("a//b", false),
            ("x y", false),
            ("-x", false),
        ] {
            assert_eq!(is_valid(image), good, "{image}");
        }
    }

    #[test]
    fn latest_means_always() {
        for (image, latest) in [("a", true), ("a:latest", true), ("h:5/a", true), ("a:1", false), ("a@sha256:1", false)]
        {
            assert_eq!(is_latest(image), latest, "{image}");
        }
    }

    #[test]
    fn secrets_match_their_registry_only() {
        let config = json!({"auths": {"https://index.docker.io/v1/": {"auth": "dTpw"}, "reg.example:5000/team": {"username": "t", "password": "q"},
            "*.cloud.example": {"username": "w", "password": "w"}}});
        let secret = Secret {
            data: Some(
                [(".dockerconfigjson".to_owned(), k8s_openapi::ByteString(config.to_string().into_bytes()))].into(),
            ),
            ..Secret::default()
        };
        let names = |image: &str| {
            matching(&secret, image).into_iter().map(|(_, a)| a.username + ":" + &a.password).collect::<Vec<_>>()
        };
        assert_eq!(names("busybox"), ["u:p"]);
        assert_eq!(names("reg.example:5000/team/x"), ["t:q"]);
        assert_eq!(names("reg.example:5000/other/x"), Vec::<String>::new());
        assert_eq!(names("a.cloud.example/x"), ["w:w"]);
        assert_eq!(names("a.b.cloud.example/x"), Vec::<String>::new());
    }
}
