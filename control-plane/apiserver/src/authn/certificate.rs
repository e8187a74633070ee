//! A verified client certificate, read: common name -> user, organizations -> groups. Verification itself is TLS's; see `server.rs`.

use jiff::Timestamp;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::{AUTHENTICATED, CREDENTIAL_ID, User};

/// Why a certificate names nobody.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("parse the client certificate")]
    Parse(#[source] x509_parser::nom::Err<x509_parser::error::X509Error>),
    #[error("the client certificate has no common name; issue one with CN set to the user's name")]
    NoName,
    #[error("the client certificate has several common names; issue one with a single CN")]
    SeveralNames,
    #[error("a name in the client certificate's subject cannot be read as text; issue one with UTF-8 names")]
    Unreadable,
    #[error("the client certificate has expired or is not valid yet")]
    Expired,
}

/// The user that a verified certificate names. Its validity is looked at again: a connection may outlive it.
pub(crate) fn user(der: &[u8], now: Timestamp) -> Result<User, Error> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(Error::Parse)?;
    let validity = certificate.validity();
    if !(validity.not_before.timestamp()..=validity.not_after.timestamp()).contains(&now.as_second()) {
        return Err(Error::Expired);
    }
    let subject = certificate.subject();
    let text = |name: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        name.as_str().map(str::to_owned).map_err(|_| Error::Unreadable)
    };
    let mut names = subject.iter_common_name().map(text);
    let name = names.next().transpose()?.filter(|name| !name.is_empty()).ok_or(Error::NoName)?;
    if names.next().is_some() {
        return Err(Error::SeveralNames);
    }
    let mut groups: Vec<String> = subject.iter_organization().map(text).collect::<Result<_, _>>()?;
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
        let user = user(certificate.der(), Timestamp::now()).unwrap();
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
        let now = Timestamp::now();
        assert!(matches!(user(certificate.der(), now), Err(Error::NoName)));
        assert!(matches!(user(b"nonsense", now), Err(Error::Parse(_))));
        for time in ["1970-01-01T00:00:00Z", "9000-01-01T00:00:00Z"] {
            assert!(matches!(user(certificate.der(), time.parse().unwrap()), Err(Error::Expired)), "{time}");
        }
    }
}
