//! Exec and attach: bytes between a session's channels and a process, its terminal's size, and the verdict at the end.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::channels::{Channels, Input, Output, Verdict};
use super::process::{Resizer, Running, Sink, Source};
use crate::status::{Error, chain};

/// Bytes read from a process at once.
const CHUNK_BYTES: usize = 32 * 1024;

/// After the command's end, how long what it left running may hold its output open without writing.
const LINGER: Duration = Duration::from_secs(1);

/// Longest run of bytes on the resize channel without a whole message.
const RESIZE_BYTES_MAX: usize = 4096;

/// Runs a session to its end; `running` may have failed to start, which the client is told.
pub(super) async fn run(channels: Channels, running: Result<Running, Error>) {
    let Channels { stdin, stdout, stderr, resize, error, verdicts } = channels;
    let outputs: Vec<Output> = [&stdout, &stderr].into_iter().flatten().cloned().collect();
    let verdict = match running {
        Ok(running) => drive(running, stdin, stdout, stderr, resize).await,
        Err(error) => Verdict::Failed(chain(&error)),
    };
    for output in outputs {
        output.finish().await;
    }
    if let Some(error) = error {
        if let Some(words) = verdict.words(verdicts) {
            let _ = error.write(Bytes::from(words)).await;
        }
        error.finish().await;
    }
}

async fn drive(
    running: Running,
    stdin: Option<Input>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    resize: Option<Input>,
) -> Verdict {
    let mut inputs: Vec<JoinHandle<()>> = Vec::new();
    let (say_fed, mut is_fed) = watch::channel(false);
    if let (Some(input), Some(sink)) = (stdin, running.stdin) {
        inputs.push(tokio::spawn(async move {
            feed(input, sink).await;
            say_fed.send_replace(true);
        }));
    }
    let leaves_after_stdin = running.leaves_after_stdin;
    if let (Some(input), Some(resizer)) = (resize, running.resizer) {
        inputs.push(tokio::spawn(follow_size(input, resizer)));
    }
    let mut exit = running.exit;
    let (say_ended, has_ended) = watch::channel(false);
    let outputs = async {
        let drain = |source: Option<Source>, output: Option<Output>| async {
            if let (Some(source), Some(output)) = (source, output) {
                relay(source, output, has_ended.clone()).await;
            }
        };
        tokio::join!(drain(running.stdout, stdout), drain(running.stderr, stderr));
    };
    tokio::pin!(outputs);
    let verdict = match &mut exit {
        // Attached: the end of output is the container's end.
        None => {
            let left = async {
                if !leaves_after_stdin || is_fed.wait_for(|fed| *fed).await.is_err() {
                    std::future::pending::<()>().await;
                }
                // What it answers to its last input is still seen, if it is quick.
                tokio::time::sleep(LINGER).await;
            };
            tokio::select! {
                () = &mut outputs => {}
                () = left => {}
            }
            Verdict::Exited(0)
        }
        Some(exit) => {
            let mut drained = false;
            let ended = loop {
                tokio::select! {
                    () = &mut outputs, if !drained => drained = true,
                    ended = exit.wait() => break ended,
                }
            };
            if !drained {
                say_ended.send_replace(true);
                outputs.await;
            }
            match ended {
                Ok(record) => Verdict::Exited(record.code),
                Err(error) => Verdict::Failed(chain(&error)),
            }
        }
    };
    for input in inputs {
        input.abort();
    }
    verdict
}

/// Client to process; the sink closes when the client's side does.
async fn feed(mut input: Input, mut sink: Sink) {
    while let Some(data) = input.read().await {
        if sink.write_all(&data).await.is_err() {
            return;
        }
    }
    let _ = sink.shutdown().await;
}

/// Process to client, until either is gone. What it wrote before its end is in the pipe already and goes to the client however
/// slowly that one reads; what lives on behind it and is silent is not waited for.
async fn relay(mut source: Source, output: Output, mut has_ended: watch::Receiver<bool>) {
    loop {
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        let read = tokio::select! {
            biased;
            read = source.read_buf(&mut chunk) => read,
            () = linger(&mut has_ended) => return,
        };
        if matches!(read, Ok(0) | Err(_)) || output.write(chunk.freeze()).await.is_err() {
            return;
        }
    }
}

async fn linger(has_ended: &mut watch::Receiver<bool>) {
    if has_ended.wait_for(|ended| *ended).await.is_err() {
        // Nobody will say so any more: then only the streams tell of the end.
        return std::future::pending().await;
    }
    tokio::time::sleep(LINGER).await;
}

#[derive(Deserialize)]
struct Size {
    #[serde(rename = "Width")]
    width: u16,
    #[serde(rename = "Height")]
    height: u16,
}

/// The sizes in the buffer, whole ones taken off its front; `None` when it can never become one.
fn sizes(buffer: &mut Vec<u8>) -> Option<Vec<(u16, u16)>> {
    let mut found = Vec::new();
    let mut stream = serde_json::Deserializer::from_slice(buffer).into_iter::<Size>();
    let taken = loop {
        let taken = stream.byte_offset();
        match stream.next() {
            Some(Ok(size)) => found.push((size.width, size.height)),
            Some(Err(error)) if error.is_eof() => break taken,
            Some(Err(_)) => return None,
            None => break stream.byte_offset(),
        }
    };
    buffer.drain(..taken);
    (buffer.len() <= RESIZE_BYTES_MAX).then_some(found)
}

async fn follow_size(mut input: Input, resizer: Resizer) {
    let mut buffer = Vec::new();
    while let Some(data) = input.read().await {
        buffer.extend_from_slice(&data);
        let Some(found) = sizes(&mut buffer) else { return };
        for (columns, rows) in found {
            resizer.resize(columns, rows).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Attaches to a container that never ends; true if the session does once its input has.
    async fn ends_with_input(leaves_after_stdin: bool) -> bool {
        let (client, input) = crate::streaming::queue::Room::new().channel();
        let (sink, _container) = tokio::io::duplex(64);
        let (_silent, source) = tokio::io::duplex(64);
        let (messages, _seen) = tokio::sync::mpsc::channel(1);
        let running = Running {
            stdin: Some(Box::pin(sink)),
            stdout: Some(Box::pin(source)),
            stderr: None,
            resizer: None,
            exit: None,
            leaves_after_stdin,
        };
        assert!(client.send(Bytes::from_static(b"last words")).await);
        drop(client);
        let output = Output::WebSocket { channel: 1, messages };
        let session = drive(running, Some(Input::WebSocket(input)), Some(output), None, None);
        let patience = if leaves_after_stdin { Duration::from_secs(60) } else { LINGER.saturating_mul(2) };
        tokio::time::timeout(patience, session).await.is_ok()
    }

    #[tokio::test]
    async fn who_attached_leaves_when_the_input_has_ended_and_stays_open_for_others() {
        assert!(ends_with_input(true).await);
        assert!(!ends_with_input(false).await);
    }

    #[test]
    fn sizes_may_come_in_pieces_or_together() {
        let mut buffer = br#"{"Width":80,"Height":24}{"Width":1"#.to_vec();
        assert_eq!(sizes(&mut buffer), Some(vec![(80, 24)]));
        buffer.extend_from_slice(b"00,\"Height\":30}\n");
        assert_eq!(sizes(&mut buffer), Some(vec![(100, 30)]));
        assert!(buffer.iter().all(u8::is_ascii_whitespace));
        assert_eq!(sizes(&mut b"[]".to_vec()), None);
        assert_eq!(sizes(&mut [b"{\"", vec![b'x'; 5000].as_slice()].concat()), None);
    }
}
