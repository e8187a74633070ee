//! Tokens: once, in time, and not without bound.

use super::*;

fn sandbox() -> Pending {
    // A token's work is never looked at by the table; the cheapest kind will do.
    let dir = tempfile::tempdir().unwrap();
    let record: crate::record::SandboxRecord =
        serde_json::from_str(r#"{"version":1,"id":"s","config":{},"created_at_ns":0}"#).unwrap();
    Pending::PortForward { sandbox: Arc::new(Sandbox::for_tests(dir.path(), record)), ports: Vec::new() }
}

fn streams() -> Streams {
    Streams::new(Place::Loopback(([127, 0, 0, 1], 1234).into()))
}

#[test]
fn a_token_works_once() {
    let streams = streams();
    let url = streams.url(sandbox());
    let token = url.strip_prefix("http://127.0.0.1:1234/portforward/").unwrap();
    assert!(streams.take("portforward", "guess").is_none());
    assert!(streams.take("portforward", token).is_some());
    assert!(streams.take("portforward", token).is_none());
}

#[test]
fn a_token_of_one_kind_opens_no_other_and_is_gone() {
    let streams = streams();
    let url = streams.url(sandbox());
    let token = url.rsplit('/').next().unwrap();
    assert!(streams.take("exec", token).is_none());
    assert!(streams.take("portforward", token).is_none());
}

#[test]
fn a_socket_of_the_file_system_has_no_port() {
    let streams = Streams::new(Place::Socket("/run/sampan/streams.sock".into()));
    assert!(streams.url(sandbox()).starts_with("unix:///run/sampan/streams.sock#/portforward/"));
    assert_eq!((streams.port(), self::streams().port()), (None, Some(1234)));
}

#[test]
fn the_oldest_gives_way() {
    let streams = streams();
    let first = streams.url(sandbox());
    for _ in 0..TOKENS_MAX {
        streams.url(sandbox());
    }
    assert!(streams.take("portforward", first.rsplit('/').next().unwrap()).is_none());
    assert_eq!(streams.waiting.lock().unwrap().len(), TOKENS_MAX);
}
