//! Why the types refuse a configuration, in words that name the field, where the reader's own ("missing field `mode`") leave that open.
//!
//! Looks only at what has been refused already; what it finds nothing in keeps the reader's words.

use oci_spec::runtime::{MemoryPolicyFlagType, MemoryPolicyModeType};
use serde::de::DeserializeOwned;
use serde_json::Value;

pub(super) fn why(config: &Value) -> Option<String> {
    let policy = config.pointer("/linux/memoryPolicy")?;
    let Some(mode) = policy.get("mode") else {
        return Some("linux.memoryPolicy.mode: invalid memory policy mode: it is missing".to_owned());
    };
    if let Some(words) = refused::<MemoryPolicyModeType>(mode) {
        return Some(format!("linux.memoryPolicy.mode: invalid memory policy mode {mode}: {words}"));
    }
    policy.get("flags").and_then(Value::as_array).into_iter().flatten().find_map(|flag| {
        let words = refused::<MemoryPolicyFlagType>(flag)?;
        Some(format!("linux.memoryPolicy.flags: invalid memory policy flag {flag}: {words}"))
    })
}

fn refused<T: DeserializeOwned>(value: &Value) -> Option<String> {
    T::deserialize(value).err().map(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::parse;

    #[test]
    fn memory_policies_are_refused_by_name() {
        for (policy, words) in [
            ("{}", "linux.memoryPolicy.mode: invalid memory policy mode: it is missing"),
            (r#"{"mode":"BIND"}"#, "invalid memory policy mode \"BIND\": unknown variant"),
            (
                r#"{"mode":"MPOL_BIND","flags":["MPOL_F_X"]}"#,
                "invalid memory policy flag \"MPOL_F_X\": unknown variant",
            ),
            (r#"{"mode":"MPOL_BIND","nodes":7}"#, "invalid type: integer `7`"),
        ] {
            let text = format!(r#"{{"ociVersion":"1.3.0","linux":{{"memoryPolicy":{policy}}}}}"#);
            let error = parse(text.as_bytes()).expect_err("refused").to_string();
            assert!(error.contains(words), "{policy}: {error}");
        }
    }
}
