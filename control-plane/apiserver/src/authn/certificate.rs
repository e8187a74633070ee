//! A verified client certificate, read: common name -> user, organizations -> groups. Verification itself is TLS's; see `server.rs`.

use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::{AUTHENTICATED, CREDENTIAL_ID, User};

/// Why a certificate names nobody.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("parse the client certificate")]
    Parse(#[source] x509_parser::nom::Err<x509_parser::error::X509Error>),
    #[error("the client certificate has no common name; issue one with CN set to the user's name")]
    NoName,
}

pub(crate) fn user(der: &[u8]) -> Result<User, Error> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(Error::Parse)?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().find_map(|name| name.as_str().ok()).filter(|name| !name.is_empty());
    let name = name.ok_or(Error::NoName)?.to_owned();
    let mut groups: Vec<String> =
        subject.iter_organization().filter_map(|name| name.as_str().ok()).map(str::to_owned).collect();
    if !groups.iter().any(|group| group == AUTHENTICATED) {
        groups.push(AUTHENTICATED.to_owned());
    }
    let digest = ring::digest::digest(&ring::digest::SHA256, der);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let extra = [(CREDENTIAL_ID.to_owned(), vec![format!("X509SHA256={hex}")])].into();
    Ok(User { name, groups, extra, ..User::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair};

    #[test]
    fn subject_becomes_user() {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "system:node:a");
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let user = user(certificate.der()).unwrap();
        assert_eq!(user.node_name(), Some("a"));
        assert!(user.in_group(AUTHENTICATED));
        let id = &user.extra[CREDENTIAL_ID][0];
        assert_eq!((id.len(), &id[..11]), (11 + 64, "X509SHA256="));
    }

    #[test]
    fn nameless_and_broken_certificates_are_refused() {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        assert!(matches!(user(certificate.der()), Err(Error::NoName)));
        assert!(matches!(user(b"nonsense"), Err(Error::Parse(_))));
    }
}
