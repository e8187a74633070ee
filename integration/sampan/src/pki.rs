//! The cluster's certificates: one authority, and a leaf for each who speaks TLS.
//!
//! `ensure` makes what is missing and renews a leaf that ends within a month, that is not valid yet (it was made while the
//! clock was ahead) or that no longer names all of the instance's addresses. The authority's key and the service accounts'
//! key are made once; the authority's certificate is made again for the same key when the clock says that it is not valid,
//! so that what it signed stays good. Keys are P-256 and readable by root
//! only. Names follow the upstream conventions (kubernetes.io, "PKI certificates and requirements"), since RBAC and the
//! node authorizer read them: `system:masters`, `system:nodes`.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::instance::{Instance, Layout};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
const LEAF_LIFETIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// A certificate and its key, as PEM files.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Pair {
    fn new(directory: &Path, name: &str) -> Self {
        Self { certificate: directory.join(format!("{name}.crt")), key: directory.join(format!("{name}.key")) }
    }
}

/// Every key and certificate of an instance.
#[derive(Clone, Debug)]
pub(crate) struct Pki {
    pub authority: Pair,
    /// The API server, towards its clients.
    pub apiserver: Pair,
    /// The API server, towards kubelets.
    pub apiserver_kubelet_client: Pair,
    /// The kubelet, towards the API server.
    pub kubelet: Pair,
    /// The kubelet of a machine that runs it alone, towards the API server.
    pub kubelet_client: Pair,
    /// Who ran `up`.
    pub admin: Pair,
    /// Signs service account tokens (ES256).
    pub service_account_key: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum PkiError {
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("make the certificate {name}")]
    Make { name: String, source: rcgen::Error },
    #[error("{path} is no usable certificate or key; move it away to have a new one made")]
    Unusable { path: PathBuf },
}

struct Leaf {
    common_name: String,
    organization: Option<&'static str>,
    names: Vec<String>,
    usage: ExtendedKeyUsagePurpose,
}

impl Pki {
    pub(crate) fn paths(layout: &Layout) -> Self {
        let directory = layout.config.join("pki");
        let pair = |name| Pair::new(&directory, name);
        Self {
            authority: pair("ca"),
            apiserver: pair("apiserver"),
            apiserver_kubelet_client: pair("apiserver-kubelet-client"),
            kubelet: pair("kubelet"),
            kubelet_client: pair("kubelet-client"),
            admin: pair("admin"),
            service_account_key: directory.join("sa.key"),
        }
    }

    /// All files there, valid for the instance at `now`; what is fine is not touched.
    pub(crate) fn ensure(layout: &Layout, instance: &Instance, now: SystemTime) -> Result<Self, PkiError> {
        let pki = Self::paths(layout);
        let issuer = pki.ensure_authority(instance, now)?;
        let client = |common_name: &str, organization| Leaf {
            common_name: common_name.into(),
            organization,
            names: Vec::new(),
            usage: ExtendedKeyUsagePurpose::ClientAuth,
        };
        let server = |common_name: &str, organization, names| Leaf {
            common_name: common_name.into(),
            organization,
            names,
            usage: ExtendedKeyUsagePurpose::ServerAuth,
        };
        let node_user = format!("system:node:{}", instance.node_name);
        for (pair, leaf) in [
            (&pki.apiserver, server("kube-apiserver", None, apiserver_names(instance))),
            (&pki.apiserver_kubelet_client, client("kube-apiserver-kubelet-client", Some("system:masters"))),
            (&pki.kubelet, server(&node_user, Some("system:nodes"), kubelet_names(instance))),
            (&pki.kubelet_client, client(&node_user, Some("system:nodes"))),
            (&pki.admin, client("kubernetes-admin", Some("system:masters"))),
        ] {
            if needs_making(pair, &leaf.names, now) {
                make_leaf(pair, &leaf, &issuer, now)?;
            }
        }
        if !pki.service_account_key.exists() {
            let key = KeyPair::generate().map_err(|source| PkiError::Make { name: "sa".into(), source })?;
            write(&pki.service_account_key, key.serialize_pem().as_bytes(), 0o600)?;
        }
        Ok(pki)
    }

    fn ensure_authority(&self, instance: &Instance, now: SystemTime) -> Result<Issuer<'static, KeyPair>, PkiError> {
        let Pair { certificate, key } = &self.authority;
        if certificate.exists() && validity(certificate).is_none() {
            return Err(PkiError::Unusable { path: certificate.clone() });
        }
        if !is_valid(certificate, now) {
            let failed = |source| PkiError::Make { name: "ca".into(), source };
            let pair = match fs::read_to_string(key) {
                Ok(text) => KeyPair::from_pem(&text).map_err(|_| PkiError::Unusable { path: key.clone() })?,
                Err(error) if error.kind() == io::ErrorKind::NotFound && !certificate.exists() => {
                    KeyPair::generate().map_err(failed)?
                }
                Err(source) => return Err(PkiError::Read { path: key.clone(), source }),
            };
            let mut params = CertificateParams::new(Vec::new()).map_err(failed)?;
            params.distinguished_name = name(&format!("{}-ca", instance.name), None);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages =
                vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
            set_lifetime(&mut params, now, AUTHORITY_LIFETIME);
            let authority = params.self_signed(&pair).map_err(failed)?;
            // The key first: a certificate without its key would be kept, and useless.
            write(key, pair.serialize_pem().as_bytes(), 0o600)?;
            write(certificate, authority.pem().as_bytes(), 0o644)?;
        }
        let pair = KeyPair::from_pem(&read(key)?).map_err(|_| PkiError::Unusable { path: key.clone() })?;
        Issuer::from_ca_cert_pem(&read(certificate)?, pair)
            .map_err(|_| PkiError::Unusable { path: certificate.clone() })
    }
}

fn apiserver_names(instance: &Instance) -> Vec<String> {
    let mut names: Vec<String> = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
        "127.0.0.1",
    ]
    .map(String::from)
    .into();
    names.push(instance.service_cidr.nth(1).to_string());
    names.extend(kubelet_names(instance));
    names
}

fn kubelet_names(instance: &Instance) -> Vec<String> {
    vec![instance.node_name.clone(), instance.node_ip.to_string()]
}

fn make_leaf(pair: &Pair, leaf: &Leaf, issuer: &Issuer<'_, KeyPair>, now: SystemTime) -> Result<(), PkiError> {
    let failed = |source| PkiError::Make { name: leaf.common_name.clone(), source };
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::new(leaf.names.clone()).map_err(failed)?;
    params.distinguished_name = name(&leaf.common_name, leaf.organization);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![leaf.usage.clone()];
    params.use_authority_key_identifier_extension = true;
    set_lifetime(&mut params, now, LEAF_LIFETIME);
    let certificate = params.signed_by(&key, issuer).map_err(failed)?;
    write(&pair.key, key.serialize_pem().as_bytes(), 0o600)?;
    write(&pair.certificate, certificate.pem().as_bytes(), 0o644)
}

fn name(common_name: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name
}

/// From a day ago, for clients whose clock is behind.
fn set_lifetime(params: &mut CertificateParams, now: SystemTime, lifetime: Duration) {
    params.not_before = now.checked_sub(DAY).unwrap_or(UNIX_EPOCH).into();
    params.not_after = now.checked_add(lifetime).unwrap_or(now).into();
}

/// Whether a certificate can be read and its time has come and not passed at `now`.
fn is_valid(certificate: &Path, now: SystemTime) -> bool {
    let now = unix_seconds(now);
    validity(certificate).is_some_and(|(from, to)| from <= now && now < to)
}

/// From when to when a certificate is valid, in seconds since 1970; `None` for what is no certificate.
fn validity(certificate: &Path) -> Option<(i64, i64)> {
    let text = fs::read(certificate).ok()?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&text).ok()?;
    let validity = pem.parse_x509().ok()?.validity().clone();
    Some((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// What of an instance's certificates no client takes at `now`: each file's name.
pub(crate) fn invalid(layout: &Layout, now: SystemTime) -> Vec<PathBuf> {
    let pki = Pki::paths(layout);
    [&pki.authority, &pki.apiserver, &pki.apiserver_kubelet_client, &pki.kubelet, &pki.kubelet_client, &pki.admin]
        .into_iter()
        .map(|pair| pair.certificate.clone())
        .filter(|certificate| certificate.exists() && !is_valid(certificate, now))
        .collect()
}

fn unix_seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// A missing, unreadable, future, ending or differently named certificate is made anew; so is one whose key is gone.
fn needs_making(pair: &Pair, names: &[String], now: SystemTime) -> bool {
    let Ok(text) = fs::read(&pair.certificate) else { return true };
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(&text) else { return true };
    let Ok(certificate) = pem.parse_x509() else { return true };
    let renew_at = now.checked_add(RENEW_BEFORE).map_or(i64::MAX, unix_seconds);
    let validity = certificate.validity();
    !pair.key.exists()
        || validity.not_before.timestamp() > unix_seconds(now)
        || validity.not_after.timestamp() < renew_at
        || alternative_names(&certificate) != sorted(names)
}

fn alternative_names(certificate: &x509_parser::certificate::X509Certificate<'_>) -> Vec<String> {
    use x509_parser::extensions::GeneralName;
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    let names: Vec<String> = extension
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => {
                <[u8; 4]>::try_from(*bytes).ok().map(|octets| Ipv4Addr::from(octets).to_string())
            }
            _ => None,
        })
        .collect();
    sorted(&names)
}

fn sorted(names: &[String]) -> Vec<String> {
    let mut names = names.to_vec();
    names.sort();
    names
}

fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|source| PkiError::Read { path: path.into(), source })
}

fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), PkiError> {
    crate::files::replace(path, content, mode).map_err(|source| PkiError::Write { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::instance::Wishes;

    fn fixture() -> (tempfile::TempDir, Layout, Instance) {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(Some(directory.path().into())).unwrap();
        layout.create().unwrap();
        let wishes = Wishes { node_name: Some("n1".into()), ..Wishes::default() };
        let instance = Instance::load_or_decide(&layout, &wishes).unwrap();
        (directory, layout, instance)
    }

    #[test]
    fn made_once_and_renewed_when_due() {
        let (_directory, layout, instance) = fixture();
        let now = SystemTime::now();
        let pki = Pki::ensure(&layout, &instance, now).unwrap();
        let (authority, leaf) =
            (fs::read(&pki.authority.certificate).unwrap(), fs::read(&pki.admin.certificate).unwrap());
        Pki::ensure(&layout, &instance, now).unwrap();
        assert_eq!(fs::read(&pki.admin.certificate).unwrap(), leaf, "nothing is due");
        Pki::ensure(&layout, &instance, now.checked_add(LEAF_LIFETIME).and_then(|end| end.checked_sub(DAY)).unwrap())
            .unwrap();
        assert_ne!(fs::read(&pki.admin.certificate).unwrap(), leaf, "due within a month");
        assert_eq!(fs::read(&pki.authority.certificate).unwrap(), authority, "the authority stays");
        let mode = fs::metadata(&pki.authority.key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_was_made_while_the_clock_was_ahead_is_made_again_for_the_same_authority() {
        let (_directory, layout, instance) = fixture();
        let now = SystemTime::now();
        let ahead = now.checked_add(AUTHORITY_LIFETIME.saturating_mul(2)).unwrap();
        let pki = Pki::ensure(&layout, &instance, ahead).unwrap();
        assert_eq!(invalid(&layout, now).len(), 6);
        let key = fs::read(&pki.authority.key).unwrap();
        Pki::ensure(&layout, &instance, now).unwrap();
        assert_eq!(invalid(&layout, now), Vec::<PathBuf>::new());
        assert_eq!(fs::read(&pki.authority.key).unwrap(), key, "what it signed stays good");
    }

    #[test]
    fn an_authority_that_is_none_is_left_to_its_owner() {
        let (_directory, layout, instance) = fixture();
        let pki = Pki::ensure(&layout, &instance, SystemTime::now()).unwrap();
        fs::write(&pki.authority.certificate, "not PEM").unwrap();
        let error = Pki::ensure(&layout, &instance, SystemTime::now()).unwrap_err();
        assert!(matches!(error, PkiError::Unusable { .. }), "{error}");
    }

    #[test]
    fn a_new_address_makes_a_new_certificate() {
        let (_directory, layout, mut instance) = fixture();
        let pki = Pki::ensure(&layout, &instance, SystemTime::now()).unwrap();
        let before = fs::read(&pki.apiserver.certificate).unwrap();
        instance.node_ip = Ipv4Addr::new(192, 0, 2, 99);
        Pki::ensure(&layout, &instance, SystemTime::now()).unwrap();
        assert_ne!(fs::read(&pki.apiserver.certificate).unwrap(), before);
    }
}
