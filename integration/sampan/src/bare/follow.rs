//! A container in the foreground: its streams are ours, and so are our signals its, as docker and podman do it (`--sig-proxy`).

use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use runtime_cri_api::v1;
use runtime_linux::pidfd;
use serde_json::Value;
use tokio::signal::unix::{self, SignalKind, signal};

use super::session::{Session, said};
use super::stream::Streams;
use crate::report::say;

/// What is handed on. SIGWINCH goes with the terminal's size, SIGCHLD and SIGPIPE are our own.
const HANDED_ON: [Signal; 6] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGUSR2];
/// The first process of a container ignores what it has no handler for (pid_namespaces(7)): who asks for its end so often is
/// given it.
const PATIENCE: u32 = 3;
/// From the stop signal to SIGKILL, in seconds, then.
const GRACE_SECONDS: i64 = 10;

/// Our signals from now on, also those that come before there is a container to have them.
#[derive(Debug)]
pub(super) struct Signals {
    each: Vec<(Signal, unix::Signal)>,
}

impl Signals {
    pub(super) fn catch() -> Result<Self> {
        let listen = |which| Ok((which, signal(SignalKind::from_raw(which as i32)).context("listen for signals")?));
        Ok(Self { each: HANDED_ON.into_iter().map(listen).collect::<Result<_>>()? })
    }

    async fn next(&mut self) -> Signal {
        let waits = self.each.iter_mut().map(|(which, signal)| {
            Box::pin(async move {
                // `None` means that no more come.
                match signal.recv().await {
                    Some(()) => *which,
                    None => std::future::pending().await,
                }
            })
        });
        futures::future::select_all(waits).await.0
    }
}

/// Carries streams and signals until the container ends; its exit code.
pub(super) async fn to_the_end(session: &Session, id: &str, streams: Streams, signals: &mut Signals) -> Result<i32> {
    let end = async {
        streams.pump().await?;
        session.wait(id).await
    };
    tokio::select! {
        ended = end => ended,
        failed = hand_on(session, id, signals) => Err(failed),
    }
}

/// Returns only with an error.
async fn hand_on(session: &Session, id: &str, signals: &mut Signals) -> anyhow::Error {
    let mut asked = 0;
    loop {
        let signal = signals.next().await;
        if matches!(signal, Signal::SIGINT | Signal::SIGTERM) {
            asked += 1;
        }
        let handed = if asked >= PATIENCE { stop(session, id).await } else { send(session, id, signal).await };
        if let Err(error) = handed {
            return error;
        }
    }
}

async fn send(session: &Session, id: &str, signal: Signal) -> Result<()> {
    match process(session, id).await? {
        // It has just ended, which is told by its streams.
        None => Ok(()),
        Some(process) => match pidfd::send_signal(&process, signal as i32) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(errno) => Err(errno).context("hand a signal on to the container"),
        },
    }
}

async fn stop(session: &Session, id: &str) -> Result<()> {
    say("Stopping the container, which does not end by itself.");
    let request = v1::StopContainerRequest { container_id: id.to_owned(), timeout: GRACE_SECONDS };
    session.runtime().stop_container(request).await.map_err(said).context("stop the container")?;
    Ok(())
}

/// The container's first process, as seen from here.
async fn process(session: &Session, id: &str) -> Result<Option<OwnedFd>> {
    let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
    let answer = session.runtime().container_status(request).await.map_err(said)?.into_inner();
    let info: Value = answer.info.get("info").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let pid = info["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0);
    let Some(pid) = pid else { return Ok(None) };
    match pidfd::open(pid) {
        Ok(process) => Ok(Some(process)),
        Err(nix::errno::Errno::ESRCH) => Ok(None),
        Err(errno) => Err(errno).context("find the container's process"),
    }
}
