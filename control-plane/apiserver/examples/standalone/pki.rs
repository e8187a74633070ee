//! Certificates for one development server, kept between starts. No rotation, no secrets store.

use std::{fs, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// A certificate and its key, PEM.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

#[derive(Clone, Debug)]
pub(crate) struct Pki {
    pub(crate) ca: String,
    pub(crate) server: Identity,
    /// In system:masters.
    pub(crate) admin: Identity,
    /// The kubelet of `node-1`.
    pub(crate) node: Identity,
    pub(crate) service_account_key: String,
}

type Error = Box<dyn std::error::Error>;

impl Pki {
    /// Reads the files, or makes all of them.
    pub(crate) fn ensure(directory: &Path) -> Result<Self, Error> {
        if !directory.join("done").exists() {
            Self::make()?.save(directory)?;
        }
        let read = |name: &str| fs::read_to_string(directory.join(name));
        let identity = |name: &str| -> Result<Identity, Error> {
            Ok(Identity { certificate: read(&format!("{name}.crt"))?, key: read(&format!("{name}.key"))? })
        };
        Ok(Self {
            ca: read("ca.crt")?,
            server: identity("server")?,
            admin: identity("admin")?,
            node: identity("node-1")?,
            service_account_key: read("service-account.key")?,
        })
    }

    fn save(&self, directory: &Path) -> Result<(), Error> {
        fs::create_dir_all(directory)?;
        fs::write(directory.join("ca.crt"), &self.ca)?;
        for (name, identity) in [("server", &self.server), ("admin", &self.admin), ("node-1", &self.node)] {
            fs::write(directory.join(format!("{name}.crt")), &identity.certificate)?;
            fs::write(directory.join(format!("{name}.key")), &identity.key)?;
        }
        fs::write(directory.join("service-account.key"), &self.service_account_key)?;
        fs::write(directory.join("done"), "")?;
        Ok(())
    }

    pub(crate) fn make() -> Result<Self, Error> {
        let ca_key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "standalone-ca");
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let ca = params.self_signed(&ca_key)?.pem();
        let issuer = Issuer::new(params, ca_key);
        let names =
            ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "127.0.0.1", "10.43.0.1"];
        let server = issue(&issuer, "kube-apiserver", None, &names)?;
        let admin = issue(&issuer, "admin", Some("system:masters"), &[])?;
        let node = issue(&issuer, "system:node:node-1", Some("system:nodes"), &["node-1", "127.0.0.1"])?;
        Ok(Self { ca, server, admin, node, service_account_key: KeyPair::generate()?.serialize_pem() })
    }

    pub(crate) fn kubeconfig(&self, url: &str, user: &str, identity: &Identity) -> String {
        let encode = |text: &str| STANDARD.encode(text);
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: standalone\n\
             clusters:\n- name: standalone\n  cluster:\n    server: {url}\n    certificate-authority-data: {}\n\
             contexts:\n- name: standalone\n  context:\n    cluster: standalone\n    user: {user}\n\
             users:\n- name: {user}\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
            encode(&self.ca),
            encode(&identity.certificate),
            encode(&identity.key),
        )
    }
}

fn issue(
    issuer: &Issuer<'_, KeyPair>,
    name: &str,
    organization: Option<&str>,
    names: &[&str],
) -> Result<Identity, Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(organization) = organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = params.signed_by(&key, issuer)?;
    Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
}
