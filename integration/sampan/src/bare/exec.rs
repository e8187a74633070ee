//! `sampan exec`: a further command in a running container.

use std::process::ExitCode;

use anyhow::{Context, Result};
use runtime_cri_api::v1;

use super::session::{Session, said};
use super::stream::{self, Standard};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Container by name or by the beginning of its id
    container: String,
    /// Command and arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
    /// Pass on standard input
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
}

pub(super) async fn run(session: &Session, args: Args) -> Result<ExitCode> {
    let container = session.find(&args.container).await?;
    let request = v1::ExecRequest {
        container_id: container.id,
        cmd: args.command,
        tty: args.tty,
        stdin: args.interactive,
        stdout: true,
        stderr: !args.tty,
    };
    let url = session.runtime().exec(request).await.map_err(said)?.into_inner().url;
    let streams = stream::connect(&url, Standard { stdin: args.interactive, tty: args.tty }).await?;
    let code = streams.pump().await?.context("the stream ended before the command did")?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}
