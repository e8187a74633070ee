//! The name that a pod template gives to its ReplicaSet: ten letters that change when the template does.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use sha2::{Digest, Sha256};

use super::normal;

/// No vowels and no look-alikes, so that no word comes out.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
const LENGTH: usize = 10;

/// Equal templates, equal names; `collisions` makes another one when the name is taken by a different template.
pub(super) fn of_template(template: &PodTemplateSpec, collisions: i32) -> String {
    // Keys come sorted, so that templates that mean the same have the same bytes.
    let bytes = normal::form(template).to_string();
    let mut digest = Sha256::new();
    digest.update(bytes);
    if collisions > 0 {
        digest.update(collisions.to_le_bytes());
    }
    digest
        .finalize()
        .iter()
        .take(LENGTH)
        .map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]))
        .collect()
}
