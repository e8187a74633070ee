//! What a stream of either framing becomes: bytes in, bytes out, and the verdict at the end.
//!
//! Invariant: the verdict is the last thing said on a session, after all output.

use bytes::Bytes;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use super::queue;
use super::spdy::{StreamReader, StreamWriter};

/// Bytes from the client.
#[derive(Debug)]
pub(crate) enum Input {
    Spdy(StreamReader),
    WebSocket(queue::Receiver),
}

/// Bytes to the client.
#[derive(Clone, Debug)]
pub(crate) enum Output {
    Spdy(StreamWriter),
    WebSocket { channel: u8, messages: mpsc::Sender<Message> },
}

/// The client is gone.
#[derive(Debug, thiserror::Error)]
#[error("the client closed the stream")]
pub(crate) struct Gone;

impl Input {
    /// `None` once the client has closed its side.
    pub(crate) async fn read(&mut self) -> Option<Bytes> {
        match self {
            Self::Spdy(reader) => reader.read().await,
            Self::WebSocket(receiver) => receiver.recv().await,
        }
    }
}

impl Output {
    pub(crate) async fn write(&self, data: Bytes) -> Result<(), Gone> {
        match self {
            Self::Spdy(writer) => writer.write(data).await.map_err(|_| Gone),
            Self::WebSocket { channel, messages } => {
                let mut message = Vec::with_capacity(1 + data.len());
                message.push(*channel);
                message.extend_from_slice(&data);
                messages.send(Message::Binary(message.into())).await.map_err(|_| Gone)
            }
        }
    }

    /// Ends this direction, where the framing can say so for one stream.
    pub(crate) async fn finish(&self) {
        if let Self::Spdy(writer) = self {
            let _ = writer.finish().await;
        }
    }
}

/// How the error stream speaks: JSON since v4, plain text before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdicts {
    Text,
    Json,
}

/// A remote command's streams.
#[derive(Debug)]
pub(crate) struct Channels {
    pub(crate) stdin: Option<Input>,
    pub(crate) stdout: Option<Output>,
    pub(crate) stderr: Option<Output>,
    pub(crate) resize: Option<Input>,
    pub(crate) error: Option<Output>,
    pub(crate) verdicts: Verdicts,
}

/// How a remote command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Exited(i32),
    Failed(String),
}

impl Verdict {
    /// The `Status` object or the text that clients wait for; `None` where silence means success.
    pub(crate) fn words(&self, verdicts: Verdicts) -> Option<String> {
        let object = match (self, verdicts) {
            (Self::Exited(0), Verdicts::Text) => return None,
            (Self::Exited(code), Verdicts::Text) => return Some(exit_text(*code)),
            (Self::Failed(message), Verdicts::Text) => return Some(message.clone()),
            (Self::Exited(0), Verdicts::Json) => json!({ "metadata": {}, "status": "Success" }),
            (Self::Exited(code), Verdicts::Json) => json!({
                "metadata": {},
                "status": "Failure",
                "message": exit_text(*code),
                "reason": "NonZeroExitCode",
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            }),
            (Self::Failed(message), Verdicts::Json) => json!({
                "metadata": {},
                "status": "Failure",
                "message": message,
                "reason": "InternalError",
                "details": { "causes": [{ "message": message }] },
                "code": 500,
            }),
        };
        Some(object.to_string())
    }
}

/// Clients show it as it is.
fn exit_text(code: i32) -> String {
    format!("command terminated with non-zero exit code: exit status {code}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        let check = |verdict: Verdict, verdicts, expect: Option<&str>| {
            let words = verdict.words(verdicts);
            match expect {
                Some(part) => assert!(words.as_ref().is_some_and(|words| words.contains(part)), "{words:?}"),
                None => assert_eq!(words, None),
            }
        };
        check(Verdict::Exited(0), Verdicts::Text, None);
        check(Verdict::Exited(0), Verdicts::Json, Some(r#""status":"Success""#));
        check(Verdict::Exited(3), Verdicts::Text, Some("exit status 3"));
        check(Verdict::Exited(3), Verdicts::Json, Some(r#"{"message":"3","reason":"ExitCode"}"#));
        check(Verdict::Failed("no".into()), Verdicts::Json, Some(r#""code":500"#));
    }
}
