//! Following an alias to its addresses: a Service of type ExternalName is a CNAME, and stub resolvers follow none themselves
//! (RFC 1034, section 5.3.1: a stub leaves that to the server). Within our zone or by the upstream servers.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::Inner;
use super::zone::Answer;

/// A longer chain is a loop or a mistake; what was found so far is the answer.
const ALIASES_MAX: usize = 8;

/// The answer with what its aliases lead to, and the code that goes with it.
pub(super) async fn follow(
    inner: &Inner,
    client: IpAddr,
    mut answer: Answer,
    kind: RecordType,
) -> (Answer, ResponseCode) {
    let code = |answer: &Answer| if answer.exists { ResponseCode::NoError } else { ResponseCode::NXDomain };
    if matches!(kind, RecordType::CNAME | RecordType::ANY) {
        let code = code(&answer);
        return (answer, code);
    }
    for _ in 0..ALIASES_MAX {
        let Some(target) = answer.records.last().and_then(alias) else { break };
        let query = Query::query(target, kind);
        if let Some(more) = inner.own(&query) {
            answer.exists = more.exists;
            answer.authority = more.authority;
            answer.records.extend(more.records);
            continue;
        }
        // RFC 6604, section 3: the code is that of the last name of the chain.
        return match ask(inner, client, query).await {
            Some(reply) => {
                answer.records.extend(reply.answers);
                (answer, reply.metadata.response_code)
            }
            None => (answer, ResponseCode::ServFail),
        };
    }
    let code = code(&answer);
    (answer, code)
}

fn alias(record: &Record) -> Option<Name> {
    match &record.data {
        RData::CNAME(target) => Some(target.0.clone()),
        _ => None,
    }
}

async fn ask(inner: &Inner, client: IpAddr, query: Query) -> Option<Message> {
    // Unguessable enough beside a fresh port for each question.
    let [high, low, ..] = RandomState::new().build_hasher().finish().to_ne_bytes();
    let mut request = Message::new(u16::from_be_bytes([high, low]), MessageType::Query, OpCode::Query);
    request.metadata.recursion_desired = true;
    request.add_query(query);
    let bytes = request.to_vec().ok()?;
    let by_udp = Message::from_vec(&inner.ask(&bytes, client, &request, false).await?).ok()?;
    if !by_udp.metadata.truncation {
        return Some(by_udp);
    }
    Message::from_vec(&inner.ask(&bytes, client, &request, true).await?).ok()
}
