//! What release 0.1's daemons and shims put on the wire (protocol 1), byte for byte: it must be understood for ever.

use super::*;

/// Every request of protocol 1.
const REQUESTS_1: [&str; 16] = [
    r#"{"seq":1,"request":{"op":"info"}}"#,
    r#"{"seq":1,"request":{"op":"create","id":"c1","bundle":"/b/c1","terminal":false,"stdin":true,"stdin_once":false,"log_path":"/l/0.log","rootfs":{"lower":["/i/1","/i/2"],"upper":"/u","work":"/w"}}}"#,
    r#"{"seq":1,"request":{"op":"start","id":"c1"}}"#,
    r#"{"seq":1,"request":{"op":"signal","id":"c1","signal":15,"all":false}}"#,
    r#"{"seq":1,"request":{"op":"signal","id":"c1","exec_id":"e1","signal":9,"all":false}}"#,
    r#"{"seq":1,"request":{"op":"delete","id":"c1","force":true}}"#,
    r#"{"seq":1,"request":{"op":"exec","id":"c1","exec_id":"e1","process":{"terminal":true,"user":{"uid":1,"gid":2},"args":["/bin/sh"],"env":["A=b"],"cwd":"/"},"stdin":false,"stdout":true,"stderr":true}}"#,
    r#"{"seq":1,"request":{"op":"wait","id":"c1","exec_id":"e1"}}"#,
    r#"{"seq":1,"request":{"op":"wait","id":"c1"}}"#,
    r#"{"seq":1,"request":{"op":"attach","id":"c1","stdin":true,"stdout":true,"stderr":false}}"#,
    r#"{"seq":1,"request":{"op":"resize","id":"c1","columns":80,"rows":24}}"#,
    r#"{"seq":1,"request":{"op":"reopen_log","id":"c1"}}"#,
    r#"{"seq":1,"request":{"op":"close_stdin","id":"c1"}}"#,
    r#"{"seq":1,"request":{"op":"update","id":"c1","resources":{"pids":{"limit":7}}}}"#,
    r#"{"seq":1,"request":{"op":"subscribe"}}"#,
    r#"{"seq":1,"request":{"op":"shutdown","force":true}}"#,
];

/// Every answer and event of protocol 1.
const MESSAGES_1: [&str; 9] = [
    r#"{"reply":{"seq":1,"result":{"Ok":"done"}}}"#,
    r#"{"reply":{"seq":1,"result":{"Ok":{"info":{"protocol":1,"pod_id":"p","shim_pid":5,"started_at_ns":3,"pause_pid":6,"namespaces":[["network","/p/ns/net"]],"containers":[{"id":"c1","pid":7,"bundle":"/b/c1","state":"exited","terminal":false,"log_path":null,"created_at_ns":1,"started_at_ns":1,"exit":{"version":1,"id":"c1","pid":7,"code":137,"signal":9,"oom_killed":false,"started_at_ns":1,"exited_at_ns":2},"oom_kills":0,"log_dropped_bytes":0,"attached":0,"execs":[{"exec_id":"e1","pid":8,"exit":null}]}]}}}}}"#,
    r#"{"reply":{"seq":1,"result":{"Ok":{"created":{"pid":7,"warnings":["w"]}}}}}"#,
    r#"{"reply":{"seq":1,"result":{"Ok":{"executed":{"pid":8}}}}}"#,
    r#"{"reply":{"seq":1,"result":{"Ok":{"exited":{"version":1,"id":"c1","exec_id":"e1","pid":7,"code":137,"signal":9,"oom_killed":false,"started_at_ns":1,"exited_at_ns":2}}}}}"#,
    r#"{"reply":{"seq":1,"result":{"Err":{"code":"not_found","message":"no"}}}}"#,
    r#"{"event":{"event":"exited","version":1,"id":"c1","pid":7,"code":137,"signal":9,"oom_killed":false,"started_at_ns":1,"exited_at_ns":2}}"#,
    r#"{"event":{"event":"oom","id":"c1","kills":2}}"#,
    r#"{"event":{"event":"lost","events":3}}"#,
];

#[test]
fn what_protocol_1_said_is_understood_and_said_the_same_way() {
    for text in REQUESTS_1 {
        let call: Call = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(serde_json::to_string(&call).unwrap(), text);
    }
    for text in MESSAGES_1 {
        let message: Message = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(serde_json::to_string(&message).unwrap(), text);
    }
}

#[test]
fn an_unknown_field_of_a_request_is_refused_and_one_of_an_answer_is_not() {
    for text in REQUESTS_1 {
        let unit = text.contains("\"info\"") || text.contains("\"subscribe\"");
        let with = text.replacen("\"op\":", "\"novelty\":true,\"op\":", 1);
        // A request without fields has nothing that a field could limit.
        assert_eq!(serde_json::from_str::<Call>(&with).is_ok(), unit, "{with}");
    }
    for text in MESSAGES_1.iter().filter(|text| text.contains("\"pid\":7")) {
        let with = text.replacen("\"pid\":7", "\"novelty\":true,\"pid\":7", 1);
        serde_json::from_str::<Message>(&with).unwrap_or_else(|error| panic!("{with}: {error}"));
    }
}

#[test]
fn an_event_and_a_code_of_a_newer_shim_are_known_to_be_unknown() {
    let message = serde_json::from_str(r#"{"event":{"event":"novelty","id":"c1"}}"#).unwrap();
    assert!(matches!(message, Message::Event(Event::Unknown)));
    let message =
        serde_json::from_str(r#"{"reply":{"seq":1,"result":{"Err":{"code":"novel","message":""}}}}"#).unwrap();
    let Message::Reply { result: Err(failure), .. } = message else { panic!("{message:?}") };
    assert_eq!(failure.code, FailureCode::Unknown);
}
