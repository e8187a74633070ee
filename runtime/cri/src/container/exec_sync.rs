//! ExecSync: one command, its output in the reply. What probes use. It ends with its time, and with whoever asked for it.

use std::sync::Arc;
use std::time::Duration;

use runtime_cri_api::v1::{ExecSyncRequest, ExecSyncResponse};
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

use crate::node::{Container, Node};
use crate::status::Error;
use crate::streaming::process::{self, Command, Running, Source, Wanted};

/// Of each stream; what is beyond is read and dropped. Kubelets take 16 MiB per message.
const OUTPUT_BYTES_MAX: usize = 7 << 20;

/// After the command's end, how long what it left running may hold its output open.
const LINGER: Duration = Duration::from_secs(1);

pub(crate) async fn run(node: Arc<Node>, request: ExecSyncRequest) -> Result<ExecSyncResponse, Error> {
    let container = node.container(&request.container_id)?;
    super::must_run(&container, "run a command in")?;
    if request.cmd.is_empty() {
        return Err(Error::invalid("cmd", "is empty"));
    }
    // A task of its own: the end of the request is told to it, and it ends the command, also one that is only just starting.
    let caller_gone = CancellationToken::new();
    let _told = caller_gone.clone().drop_guard();
    tokio::spawn(perform(node, container, request, caller_gone)).await.unwrap_or(Err(Error::Panicked))
}

async fn perform(
    node: Arc<Node>,
    container: Arc<Container>,
    request: ExecSyncRequest,
    caller_gone: CancellationToken,
) -> Result<ExecSyncResponse, Error> {
    let wanted = Wanted { stdin: false, stdout: true, stderr: true, terminal: false };
    let Running { stdout, stderr, exit, .. } =
        process::start(&node, &container, Command { args: request.cmd, wanted }).await?;
    let Some(mut exit) = exit else { return Err(Error::Panicked) };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    // Zero and less mean: as long as it takes.
    let limit = u64::try_from(request.timeout).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs);
    let code = {
        let output = async { tokio::join!(collect(stdout, &mut out), collect(stderr, &mut err)) };
        tokio::pin!(output);
        let ended = async {
            let mut drained = false;
            let record = loop {
                tokio::select! {
                    _ = &mut output, if !drained => drained = true,
                    record = exit.wait() => break record,
                }
            };
            if !drained {
                let _ = tokio::time::timeout(LINGER, output).await;
            }
            record
        };
        tokio::select! {
            record = within(limit, ended) => match record {
                Some(record) => record.map(|record| record.code),
                None => Err(Error::Timeout { what: "the command", seconds: request.timeout }),
            },
            () = caller_gone.cancelled() => Err(Error::Abandoned { what: "the command" }),
        }
    };
    if matches!(code, Err(Error::Timeout { .. } | Error::Abandoned { .. })) {
        exit.kill(&node).await?;
        // Whoever looks after the answer finds it gone.
        let _ = tokio::time::timeout(LINGER, exit.wait()).await;
    }
    Ok(ExecSyncResponse { exit_code: code?, stdout: out, stderr: err })
}

/// `None` where it took longer.
async fn within<T>(limit: Option<Duration>, work: impl Future<Output = T>) -> Option<T> {
    match limit {
        None => Some(work.await),
        Some(limit) => tokio::time::timeout(limit, work).await.ok(),
    }
}

async fn collect(source: Option<Source>, into: &mut Vec<u8>) {
    let Some(mut source) = source else { return };
    let mut chunk = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = source.read(&mut chunk).await {
        let room = OUTPUT_BYTES_MAX.saturating_sub(into.len());
        into.extend_from_slice(&chunk[..count.min(room)]);
    }
}
