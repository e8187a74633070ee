//! Coverage-guided fuzzing of what the network rooms parse: configurations and requests of runtimes, results of other plugins, the
//! kernel's netlink answers, DNS queries.
//!
//! Not a test of what a kernel does: nothing here opens a socket or makes a link. `cni/fuzz/run SECONDS` builds the engine's programs
//! and runs all of them at once; `corpus/TARGET` is what they start from, and what `tests/replay.rs` goes through without any engine.
//! Invariant: a target returns for every input, whatever is wrong with it.

use cni_spec::{AddResult, ConfigList, SpecVersion};
use serde_json::Value;

/// A configuration list becomes a list, a result one that is written as it was read, a request what each plugin plans from it.
pub fn config(data: &[u8]) {
    if let Ok(list) = ConfigList::parse(data) {
        assert!(!list.plugins.is_empty() && !list.name.contains('/'), "a list that is none");
    }
    if let Ok(value) = serde_json::from_slice::<Value>(data)
        && let Ok(result) = AddResult::parse(&value, SpecVersion::NEWEST)
    {
        let written = result.to_json(SpecVersion::NEWEST).expect("the newest version says everything");
        let read = AddResult::parse(&written, SpecVersion::NEWEST).expect("what was written is read");
        assert_eq!(read, result, "a result that changes when it is written");
    }
    for error in cni_plugin::plan_any(data) {
        assert!(!error.msg.is_empty(), "an error without words");
    }
}

/// The kernel's bytes: cut into messages, and each body read as every kind of answer.
pub fn netlink(data: &[u8]) {
    let count = cni_netlink::socket::count_messages(data).unwrap_or_default();
    assert!(count <= data.len() / 16, "{count} messages in {} bytes", data.len());
    let (head, body) = data.split_at(data.len().min(2));
    let kind = head.try_into().map(u16::from_ne_bytes).unwrap_or_default();
    cni_netlink::nft::read_any(body);
    cni_netlink::conntrack::read_any(body);
    cni_netlink::listening::read_any(body);
    cni_netlink::monitor::read_any(kind, body);
}

/// A packet to the cluster's DNS server is answered by one that fits, or not at all.
#[cfg(feature = "dns")]
pub fn dns(data: &[u8]) {
    cni_services::dns::answer_any(data);
}
