//! The service-account key: signs tokens with RS256 or ES256 and verifies what it signed. Knows no claims; see `token.rs`.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    rand::SystemRandom,
    rsa,
    signature::{self, EcdsaKeyPair, KeyPair, UnparsedPublicKey},
};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Why a key cannot be used, or a signature was not made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read the service-account key; it must be a PEM private key, RSA or EC P-256")]
    Pem(#[source] rustls_pki_types::pem::Error),
    #[error("the service-account key is of an unsupported sort; use RSA of at least 2048 bits or EC P-256: {why}")]
    Unsupported { why: String },
    #[error("sign a token")]
    Sign,
}

enum Pair {
    Rsa(rsa::KeyPair),
    Ecdsa(EcdsaKeyPair),
}

pub(crate) struct SigningKey {
    pair: Pair,
    random: SystemRandom,
    id: String,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl SigningKey {
    pub(crate) fn from_pem(pem: &[u8]) -> Result<Self, Error> {
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(Error::Pem)?;
        let random = SystemRandom::new();
        let unsupported = |why: ring::error::KeyRejected| Error::Unsupported { why: why.to_string() };
        let ecdsa = |der: &[u8]| {
            EcdsaKeyPair::from_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, der, &random).map(Pair::Ecdsa)
        };
        let pair = match &key {
            PrivateKeyDer::Pkcs1(der) => rsa::KeyPair::from_der(der.secret_pkcs1_der()).map(Pair::Rsa),
            PrivateKeyDer::Pkcs8(der) => {
                let der = der.secret_pkcs8_der();
                ecdsa(der).or_else(|_| rsa::KeyPair::from_pkcs8(der).map(Pair::Rsa))
            }
            _ => return Err(Error::Unsupported { why: "EC keys must be in PKCS#8 form".to_owned() }),
        }
        .map_err(unsupported)?;
        let public = match &pair {
            Pair::Rsa(pair) => pair.public_key().as_ref().to_vec(),
            Pair::Ecdsa(pair) => pair.public_key().as_ref().to_vec(),
        };
        let id = URL_SAFE_NO_PAD.encode(Sha256::digest(&public));
        Ok(Self { pair, random, id })
    }

    fn algorithm(&self) -> &'static str {
        match self.pair {
            Pair::Rsa(_) => "RS256",
            Pair::Ecdsa(_) => "ES256",
        }
    }

    /// A compact JWT over these claims.
    pub(crate) fn sign(&self, claims: &Value) -> Result<String, Error> {
        let header = json!({"alg": self.algorithm(), "kid": self.id});
        let mut token = URL_SAFE_NO_PAD.encode(header.to_string());
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = match &self.pair {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&signature::RSA_PKCS1_SHA256, &self.random, token.as_bytes(), &mut signature)
                    .map_err(|_| Error::Sign)?;
                signature
            }
            Pair::Ecdsa(pair) => pair.sign(&self.random, token.as_bytes()).map_err(|_| Error::Sign)?.as_ref().to_vec(),
        };
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(signature));
        Ok(token)
    }

    /// The claims, when this key signed them. Expiry and audience are the caller's to check.
    pub(crate) fn verify(&self, token: &str) -> Option<Value> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        // The algorithm is the key's, not the token's: a token cannot choose a weaker one.
        if header.get("alg").and_then(Value::as_str) != Some(self.algorithm()) {
            return None;
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        let valid = match &self.pair {
            Pair::Rsa(pair) => {
                UnparsedPublicKey::new(&signature::RSA_PKCS1_2048_8192_SHA256, pair.public_key().as_ref())
                    .verify(signed.as_bytes(), &signature)
            }
            Pair::Ecdsa(pair) => {
                UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, pair.public_key().as_ref())
                    .verify(signed.as_bytes(), &signature)
            }
        };
        valid.ok()?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
    }

    /// The public key as a JSON Web Key Set, RFC 7517.
    pub(crate) fn jwks(&self) -> Value {
        let key = match &self.pair {
            Pair::Rsa(pair) => {
                let parts = rsa::PublicKeyComponents::<Vec<u8>>::from(pair.public());
                json!({"use": "sig", "kty": "RSA", "kid": self.id, "alg": "RS256",
                    "n": URL_SAFE_NO_PAD.encode(parts.n), "e": URL_SAFE_NO_PAD.encode(parts.e)})
            }
            Pair::Ecdsa(pair) => {
                // An uncompressed point: 0x04, then 32 bytes each of x and y.
                let point = pair.public_key().as_ref();
                json!({"use": "sig", "kty": "EC", "kid": self.id, "alg": "ES256", "crv": "P-256",
                    "x": URL_SAFE_NO_PAD.encode(&point[1..33]), "y": URL_SAFE_NO_PAD.encode(&point[33..])})
            }
        };
        json!({"keys": [key]})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SigningKey {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        SigningKey::from_pem(pair.serialize_pem().as_bytes()).unwrap()
    }

    #[test]
    fn verifies_what_it_signed_and_nothing_else() {
        let (one, other) = (key(), key());
        let claims = json!({"sub": "x"});
        let token = one.sign(&claims).unwrap();
        assert_eq!(one.verify(&token), Some(claims));
        assert_eq!(other.verify(&token), None);
        let (head, tail) = token.split_at(token.len() - 4);
        assert_eq!(one.verify(&format!("{head}AAAA{}", &tail[4..])), None);
        let unsigned = format!("{}.e30.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#));
        assert_eq!(one.verify(&unsigned), None);
        for junk in ["", ".", "..", "a.b.c", "\u{e9}.x.y"] {
            assert_eq!(one.verify(junk), None);
        }
    }

    #[test]
    fn an_unusable_key_is_refused() {
        assert!(matches!(SigningKey::from_pem(b"nothing"), Err(Error::Pem(_))));
        let ed25519 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let error = SigningKey::from_pem(ed25519.serialize_pem().as_bytes()).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }));
    }
}
