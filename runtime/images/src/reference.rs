//! What a person types for an image -> what it means: registry, repository, tag, digest.
//! Pure; knows no registry. Invariant: a `Reference` is fully qualified and has a tag or a digest (or both).
//! The grammar is that of the Docker reference library: familiar names get `docker.io` and `library/`.

use std::fmt;
use std::str::FromStr;

use crate::digest::{self, Digest};

const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";
const NAME_LENGTH_MAX: usize = 255;
const TAG_LENGTH_MAX: usize = 128;

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: Box<str>,
    repository: Box<str>,
    tag: Option<Box<str>>,
    digest: Option<Digest>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("an image name is empty")]
    Empty,
    #[error("image {0:?} names no repository")]
    NoRepository(String),
    #[error("image {image:?}: registry {registry:?} is not a host name with an optional port")]
    Registry { image: String, registry: String },
    #[error(
        "image {image:?}: repository {repository:?} may hold only lower-case letters, digits and single separators (. _ - /)"
    )]
    Repository { image: String, repository: String },
    #[error("image {image:?}: a name may not be longer than {NAME_LENGTH_MAX} characters")]
    TooLong { image: String },
    #[error("image {0:?} looks like an image id; write a name, or the id with sha256: in front")]
    LooksLikeId(String),
    #[error(
        "image {image:?}: tag {tag:?} must be up to {TAG_LENGTH_MAX} letters, digits, '_', '.' or '-', not starting with '.' or '-'"
    )]
    Tag { image: String, tag: String },
    #[error("image {image:?}")]
    Digest {
        image: String,
        #[source]
        source: digest::ParseError,
    },
}

impl Reference {
    /// Parses `nginx`, `nginx:1.27`, `localhost:5000/team/app@sha256:...`, and so on.
    pub fn parse(image: &str) -> Result<Self, ParseError> {
        if image.is_empty() {
            return Err(ParseError::Empty);
        }
        let (rest, digest) = match image.split_once('@') {
            None => (image, None),
            Some((rest, digest)) => {
                let parsed = Digest::parse(digest);
                (rest, Some(parsed.map_err(|source| ParseError::Digest { image: image.into(), source })?))
            }
        };
        // A colon after the last slash starts a tag; one before it belongs to the registry's port.
        let name_end = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[name_end..].find(':') {
            None => (rest, None),
            Some(colon) => (&rest[..name_end + colon], Some(&rest[name_end + colon + 1..])),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(ParseError::Tag { image: image.into(), tag: tag.into() });
        }
        let (registry, repository) = split_name(image, name)?;
        if registry.len() + 1 + repository.len() > NAME_LENGTH_MAX {
            return Err(ParseError::TooLong { image: image.into() });
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.into()),
            (None, Some(_)) => None,
            (None, None) => Some(DEFAULT_TAG.into()),
        };
        Ok(Self { registry: registry.into(), repository: repository.into(), tag, digest })
    }

    /// Host with optional port; `docker.io` for familiar names.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// `library/nginx`, `team/app`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// `docker.io/library/nginx`, without tag or digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The last part of a manifest's address: the digest if there is one, for a digest is stronger than a tag.
    pub fn target(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.to_string(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }

    /// What the image is called in the list: `name:tag`, unless it was asked for by digest.
    pub fn tagged_name(&self) -> Option<String> {
        match (&self.digest, &self.tag) {
            (None, Some(tag)) => Some(format!("{}:{tag}", self.name())),
            _ => None,
        }
    }

    /// The same repository, by digest alone.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// The shortest form a person would type: `nginx:1.27`.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        let short = full.strip_prefix("docker.io/").map(|rest| rest.strip_prefix("library/").unwrap_or(rest));
        short.unwrap_or(&full).to_owned()
    }
}

fn split_name<'a>(image: &str, name: &'a str) -> Result<(&'a str, String), ParseError> {
    let (registry, path) = match name.split_once('/') {
        Some((first, rest)) if is_registry_like(first) => (first, rest),
        _ => (DEFAULT_REGISTRY, name),
    };
    let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
    if path.is_empty() {
        return Err(ParseError::NoRepository(image.into()));
    }
    if !is_registry(registry) {
        return Err(ParseError::Registry { image: image.into(), registry: registry.into() });
    }
    if !path.split('/').all(is_path_component) {
        return Err(ParseError::Repository { image: image.into(), repository: path.into() });
    }
    let familiar = registry == DEFAULT_REGISTRY && !path.contains('/');
    if familiar && path.len() == 64 && path.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(ParseError::LooksLikeId(image.into()));
    }
    Ok((registry, if familiar { format!("library/{path}") } else { path.to_owned() }))
}

/// The first component is a registry only if it could not be a user name.
fn is_registry_like(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn is_registry(registry: &str) -> bool {
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, "")) => (address, None),
            Some((address, after)) => match after.strip_prefix(':') {
                Some(port) => (address, Some(port)),
                None => return false,
            },
            None => return false,
        },
        None => match registry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (registry, None),
        },
    };
    let host_valid = if registry.starts_with('[') {
        host.parse::<std::net::Ipv6Addr>().is_ok()
    } else {
        host.split('.').all(|label| {
            let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
            !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
        })
    };
    host_valid && port.is_none_or(|port| !port.is_empty() && port.parse::<u16>().is_ok())
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    if !alphanumeric(first) || !alphanumeric(last) {
        return false;
    }
    let separators = component.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    separators.into_iter().all(|s| matches!(s, "" | "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let first = tag.bytes().next().is_some_and(word);
    first && tag.len() <= TAG_LENGTH_MAX && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Reference {
    type Err = ParseError;
    fn from_str(image: &str) -> Result<Self, ParseError> {
        Self::parse(image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SHA: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn check(input: &str, canonical: &str, familiar: &str) {
        let parsed = Reference::parse(input).unwrap_or_else(|error| panic!("{input}: {error}"));
        assert_eq!(parsed.to_string(), canonical, "{input}");
        assert_eq!(parsed.familiar(), familiar, "{input}");
        assert_eq!(Reference::parse(canonical).unwrap(), parsed, "{input} again");
        assert_eq!(Reference::parse(familiar).unwrap(), parsed, "{input} familiar again");
    }

    #[test]
    fn names_people_type() {
        check("nginx", "docker.io/library/nginx:latest", "nginx:latest");
        check("nginx:1.27", "docker.io/library/nginx:1.27", "nginx:1.27");
        check("team/app", "docker.io/team/app:latest", "team/app:latest");
        check("docker.io/nginx", "docker.io/library/nginx:latest", "nginx:latest");
        check("index.docker.io/library/nginx", "docker.io/library/nginx:latest", "nginx:latest");
        check("localhost/app", "localhost/app:latest", "localhost/app:latest");
        check("localhost:5000/app:v1", "localhost:5000/app:v1", "localhost:5000/app:v1");
        check("REGISTRY/app", "REGISTRY/app:latest", "REGISTRY/app:latest");
        check("[::1]:5000/a/b:c", "[::1]:5000/a/b:c", "[::1]:5000/a/b:c");
        check("ghcr.io/a/b-c__d.e", "ghcr.io/a/b-c__d.e:latest", "ghcr.io/a/b-c__d.e:latest");
        check(&format!("app@{SHA}"), &format!("docker.io/library/app@{SHA}"), &format!("app@{SHA}"));
        check(&format!("app:v1@{SHA}"), &format!("docker.io/library/app:v1@{SHA}"), &format!("app:v1@{SHA}"));
    }

    #[test]
    fn target_prefers_the_digest() {
        let both = Reference::parse(&format!("app:v1@{SHA}")).unwrap();
        assert_eq!(both.target(), SHA);
        assert_eq!(both.tagged_name(), None);
        assert_eq!(Reference::parse("app").unwrap().tagged_name().as_deref(), Some("docker.io/library/app:latest"));
    }

    #[test]
    fn refuses() {
        let long = "a".repeat(256);
        let hex = "a".repeat(64);
        let long_tag = format!("app:{}", "t".repeat(129));
        for bad in [
            "",
            "/",
            ":tag",
            "App",
            "app:",
            "app:-x",
            "a//b",
            "a/",
            "/a",
            "../etc",
            "a..b",
            "a___b",
            "a b",
            "app@",
            "app@sha256:x",
            "host:99999/app",
            "host:/app",
            "[::1/app",
            "[zz]/app",
            "-a.com/x",
            "a.com/",
            "a.-b/x",
            "app:a:b",
            "a/b@@x",
            "é",
            &long,
            &hex,
            &long_tag,
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_what_is_accepted_is_stable(text in "\\PC{0,80}") {
            if let Ok(parsed) = Reference::parse(&text) {
                prop_assert_eq!(Reference::parse(&parsed.to_string()).unwrap(), parsed);
            }
        }

        #[test]
        fn grammar_is_accepted(host in "[a-z]{1,8}\\.[a-z]{2,3}(:[1-9][0-9]{0,3})?", path in "[a-z0-9]{1,5}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,4}){0,3}", tag in "[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}") {
            let text = format!("{host}/{path}:{tag}");
            let parsed = Reference::parse(&text).unwrap();
            prop_assert_eq!(parsed.to_string(), text);
            prop_assert_eq!(parsed.registry(), host);
            prop_assert_eq!(parsed.tag(), Some(tag.as_str()));
        }

        #[test]
        fn a_name_cannot_leave_its_registry(text in "[a-z./:@%?#-]{0,40}") {
            if let Ok(parsed) = Reference::parse(&text) {
                prop_assert!(!parsed.repository().contains("..") && !parsed.repository().contains(['%', '?', '#', '@', ':']));
            }
        }
    }
}
