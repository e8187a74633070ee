//! `sampan attach`: the streams of a container that runs already.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use runtime_cri_api::v1;

use super::follow::{self, Signals};
use super::session::{Session, said};
use super::stream::{self, Standard};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Container by name or by the beginning of its id
    container: String,
    /// Do not pass on standard input
    #[arg(long)]
    no_stdin: bool,
}

pub(super) async fn run(session: &Session, args: &Args) -> Result<ExitCode> {
    let container = session.find(&args.container).await?;
    if container.state() != v1::ContainerState::ContainerRunning {
        bail!("{} is not running: `sampan logs {}` shows what it said", args.container, args.container);
    }
    let mut signals = Signals::catch()?;
    let made = made_with(session, &container.id).await?;
    let standard = Standard { stdin: made.stdin && !args.no_stdin, tty: made.tty };
    let request = v1::AttachRequest {
        container_id: container.id.clone(),
        stdin: standard.stdin,
        tty: standard.tty,
        stdout: true,
        stderr: !standard.tty,
    };
    let url = session.runtime().attach(request).await.map_err(said).context("attach")?.into_inner().url;
    let streams = stream::connect(&url, standard).await?;
    let code = follow::to_the_end(session, &container.id, streams, &mut signals).await?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}

/// Whether it has a terminal and standard input is known to the runtime alone.
async fn made_with(session: &Session, id: &str) -> Result<Standard> {
    let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
    let answer = session.runtime().container_status(request).await.map_err(said)?.into_inner();
    let text = answer.info.get("info").context("the container runtime tells nothing of the container")?;
    let info: serde_json::Value = serde_json::from_str(text).context("read what the container runtime tells")?;
    let is = |key: &str| info["config"][key].as_bool().unwrap_or(false);
    Ok(Standard { stdin: is("stdin"), tty: is("tty") })
}
