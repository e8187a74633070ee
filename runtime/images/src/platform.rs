//! Which operating system and processor an image is for, and which manifest of an index suits this machine. Pure.

use std::fmt;

use oci_spec::image::Descriptor;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    /// `v7`, `v8`; empty when the architecture has no variants.
    pub variant: String,
}

impl Platform {
    /// The platform this program was built for, in the names Go and therefore OCI use.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "aarch64" => ("arm64", "v8"),
            "arm" => ("arm", "v7"),
            "x86" => ("386", ""),
            "powerpc64" => ("ppc64le", ""),
            "loongarch64" => ("loong64", ""),
            other => (other, ""),
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: variant.into() }
    }

    /// Lower is better; `None` does not run here.
    fn distance(&self, os: &str, architecture: &str, variant: &str) -> Option<u8> {
        if os != self.os || architecture != self.architecture {
            return None;
        }
        let normal = |variant: &str| match (architecture, variant) {
            ("arm64", "") => 8,
            ("arm", "") => 7,
            (_, "") => 0,
            (_, variant) => variant.trim_start_matches('v').parse::<u8>().unwrap_or(u8::MAX),
        };
        let (want, have) = (normal(&self.variant), normal(variant));
        // An older variant of ARM runs on a newer one; amd64/v2 and later may use instructions we cannot vouch for.
        (have <= want).then(|| want - have)
    }

    pub(crate) fn suits(&self, os: &str, architecture: &str) -> bool {
        self.os == os && self.architecture == architecture
    }

    /// The best manifest of an index, or the platforms it offers instead.
    pub(crate) fn choose<'a>(&self, manifests: &'a [Descriptor]) -> Result<&'a Descriptor, Vec<String>> {
        let describe = |descriptor: &Descriptor| {
            descriptor.platform().as_ref().map(|p| {
                let variant = p.variant().clone().unwrap_or_default();
                (p.os().to_string(), p.architecture().to_string(), variant)
            })
        };
        let mut best: Option<(u8, &Descriptor)> = None;
        for descriptor in manifests {
            let distance = match describe(descriptor) {
                Some((os, architecture, variant)) => self.distance(&os, &architecture, &variant),
                // An index written by hand may name no platform; it is the last choice.
                None => Some(u8::MAX),
            };
            if let Some(distance) = distance
                && best.is_none_or(|(found, _)| distance < found)
            {
                best = Some((distance, descriptor));
            }
        }
        best.map(|(_, descriptor)| descriptor).ok_or_else(|| {
            let offered = manifests.iter().filter_map(describe);
            // Attestations are listed as unknown/unknown; nobody can run them.
            let offered = offered.filter(|(os, _, _)| os != "unknown");
            offered.map(|(os, architecture, variant)| Self { os, architecture, variant }.to_string()).collect()
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::image::ImageIndex;

    fn check(host: (&str, &str), offered: &[&str], expect: Result<usize, &[&str]>) {
        let manifests: Vec<serde_json::Value> = offered
            .iter()
            .enumerate()
            .map(|(index, platform)| {
                let mut parts = platform.split('/');
                let mut next = || parts.next().unwrap_or_default();
                let mut value = serde_json::json!({
                    "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "digest": format!("sha256:{index:064}"), "size": 1,
                });
                if !platform.is_empty() {
                    value["platform"] = serde_json::json!({"os": next(), "architecture": next(), "variant": next()});
                }
                value
            })
            .collect();
        let index: ImageIndex =
            serde_json::from_value(serde_json::json!({"schemaVersion": 2, "manifests": manifests})).unwrap();
        let platform = Platform { os: "linux".into(), architecture: host.0.into(), variant: host.1.into() };
        let chosen = platform.choose(index.manifests());
        match expect {
            Ok(position) => assert_eq!(chosen.unwrap().digest().to_string(), format!("sha256:{position:064}")),
            Err(list) => assert_eq!(chosen.unwrap_err(), list),
        }
    }

    #[test]
    fn choices() {
        check(("amd64", ""), &["linux/arm64", "linux/amd64", "windows/amd64"], Ok(1));
        check(("amd64", ""), &["linux/amd64/v3", "linux/amd64"], Ok(1));
        check(("amd64", ""), &["linux/amd64/v3", "unknown/unknown"], Err(&["linux/amd64/v3"]));
        check(("arm64", "v8"), &["linux/arm/v7", "linux/arm64"], Ok(1));
        check(("arm", "v7"), &["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"], Ok(1));
        check(("amd64", ""), &["", "linux/amd64"], Ok(1));
        check(("amd64", ""), &["linux/s390x", ""], Ok(1));
        check(("amd64", ""), &["linux/s390x"], Err(&["linux/s390x"]));
    }
}
