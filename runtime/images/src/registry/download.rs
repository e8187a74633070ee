//! One blob, piece by piece, resumed with `Range` where it broke off. Pieces go through a bounded channel to whoever hashes
//! and unpacks them; nothing is kept here.

use bytes::Bytes;
use http::header::{CONTENT_RANGE, RANGE};
use http::{HeaderName, Method, StatusCode};
use tokio::sync::mpsc::Sender;
use tokio::time::{Duration, Instant};

use super::Error;
use super::session::{Ask, Live, Session, next_frame};
use super::transport::no_body;
use crate::digest::Digest;

const BACKOFF_START: Duration = Duration::from_millis(150);
/// A registry that sends less than this in that time is as good as silent: what drips would hold a place among the downloads for ever.
const PACE_WINDOW: Duration = Duration::from_secs(60);
const PACE_BYTES_MIN: u64 = 64 << 10;

/// Who is asked for a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Everyone,
    /// After what a mirror sent turned out corrupt.
    RegistryOnly,
}

/// Sends the bytes of `blob` from `offset` to `size` into `out`. Returns early, without an error, when nobody receives.
pub(crate) async fn download(
    session: &Session,
    asked: Asked,
    blob: &Digest,
    size: u64,
    offset: u64,
    out: &Sender<Bytes>,
) -> Result<(), Error> {
    let mut position = offset;
    let mut failures = Vec::new();
    let able = |live: &&Live| live.endpoint.pull && (asked == Asked::Everyone || !live.endpoint.mirror);
    for live in session.endpoints.iter().filter(able) {
        let mut backoff = BACKOFF_START;
        let mut attempts = 0;
        loop {
            if position >= size || out.is_closed() {
                return Ok(());
            }
            let before = position;
            match stream(session, live, blob, &mut position, out).await {
                Ok(()) if position >= size => return Ok(()),
                // Fewer bytes than promised, and no error: whoever verifies sizes tells.
                Ok(()) => return Ok(()),
                Err(error) => {
                    // What only drips is no progress.
                    attempts = if position.saturating_sub(before) >= PACE_BYTES_MIN { 1 } else { attempts + 1 };
                    let give_up = attempts >= if live.endpoint.mirror { 2 } else { error.attempts_max() };
                    let pause = error.retry_after().unwrap_or(backoff);
                    if !error.is_transient() || give_up {
                        tracing::debug!(blob = %blob, endpoint = live.endpoint.authority, %error, "download failed");
                        failures.push((live.endpoint.authority.clone(), error));
                        break;
                    }
                    tokio::time::sleep(pause).await;
                    backoff = backoff.saturating_mul(2);
                }
            }
        }
    }
    Err(session.failed(failures))
}

async fn stream(
    session: &Session,
    live: &Live,
    blob: &Digest,
    position: &mut u64,
    out: &Sender<Bytes>,
) -> Result<(), Error> {
    let host = &live.endpoint.authority;
    let what = format!("blob {blob}");
    let target = format!("blobs/{blob}");
    let range: Vec<(HeaderName, String)> =
        if *position > 0 { vec![(RANGE, format!("bytes={position}-"))] } else { Vec::new() };
    let ask = Ask { method: Method::GET, target: &target, headers: &range, body: &no_body, what: &what };
    let answer = session.send(live, &ask).await?;
    let mut skip = match answer.status() {
        StatusCode::PARTIAL_CONTENT => {
            let start = answer.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).and_then(range_start);
            if start != Some(*position) {
                let reason = format!("it answered another range than the one from {position}");
                return Err(Error::Protocol { host: host.clone(), what, reason });
            }
            0
        }
        // The server knows no ranges: pass over what we have.
        status if status.is_success() => *position,
        _ => {
            let unknown = Error::BlobUnknown {
                host: host.clone(),
                repository: session.repository.clone(),
                digest: blob.to_string(),
            };
            return Err(session.refusal(live, &what, answer, unknown).await);
        }
    };
    let mut body = answer.into_body();
    // Time in which the registry was waited for, and what came in it; a slow disk of ours is not its fault.
    let (mut waited, mut came) = (Duration::ZERO, 0);
    loop {
        let asked = Instant::now();
        let Some(mut piece) = next_frame(host, &what, &mut body).await? else { break };
        waited = waited.saturating_add(asked.elapsed());
        came += piece.len() as u64;
        if came >= PACE_BYTES_MIN {
            (waited, came) = (Duration::ZERO, 0);
        } else if waited > PACE_WINDOW {
            return Err(Error::Stalled { host: host.clone(), what, seconds: PACE_WINDOW.as_secs() });
        }
        if skip > 0 {
            let passed = usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len());
            skip -= passed as u64;
            piece = piece.slice(passed..);
        }
        if piece.is_empty() {
            continue;
        }
        let length = piece.len() as u64;
        if out.send(piece).await.is_err() {
            return Ok(());
        }
        *position += length;
    }
    Ok(())
}

/// `bytes 200-1000/67589` -> 200
fn range_start(value: &str) -> Option<u64> {
    value.strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        assert_eq!(range_start("bytes 200-1000/67589"), Some(200));
        assert_eq!(range_start("bytes */67589"), None);
        assert_eq!(range_start("items 1-2"), None);
    }
}
