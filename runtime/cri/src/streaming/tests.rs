//! Tokens: once, in time, and not without bound.

use super::*;

fn sandbox() -> Pending {
    // A token's work is never looked at by the table; the cheapest kind will do.
    let dir = tempfile::tempdir().unwrap();
    let record: crate::record::SandboxRecord =
        serde_json::from_str(r#"{"version":1,"id":"s","config":{},"created_at_ns":0}"#).unwrap();
    Pending::PortForward { sandbox: Arc::new(Sandbox::for_tests(dir.path(), record)), ports: Vec::new() }
}

#[test]
fn a_token_works_once() {
    let streams = Streams::new(([127, 0, 0, 1], 1234).into());
    let url = streams.url("portforward", sandbox());
    let token = url.strip_prefix("http://127.0.0.1:1234/portforward/").unwrap();
    assert!(streams.take("guess").is_none());
    assert!(streams.take(token).is_some());
    assert!(streams.take(token).is_none());
}

#[test]
fn the_oldest_gives_way() {
    let streams = Streams::new(([127, 0, 0, 1], 1234).into());
    let first = streams.url("exec", sandbox());
    for _ in 0..TOKENS_MAX {
        streams.url("exec", sandbox());
    }
    assert!(streams.take(first.rsplit('/').next().unwrap()).is_none());
    assert_eq!(streams.waiting.lock().unwrap().len(), TOKENS_MAX);
}
