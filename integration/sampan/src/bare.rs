//! Containers on a bare host, without a cluster: `run`, `ps`, `logs`, `attach`, `exec`, `stop`, `rm`, and images.
//!
//! Each of them is a client of the CRI socket. Where nobody serves it, the container runtime is started in the background,
//! alone; `up` later takes over what it holds, and `down` ends it. A container that `run` made is a pod of one container in
//! the namespace `NAMESPACE`, called by its name.

mod attach;
mod exec;
mod follow;
mod image;
mod list;
mod logs;
mod remove;
mod run;
mod session;
mod stream;
mod terminal;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Subcommand;

use crate::host;
use crate::instance::Layout;
use crate::report::say;
use session::Session;

/// The pods' namespace in the container runtime; no Kubernetes namespace can be called like it.
const NAMESPACE: &str = "_run";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a command in a new container
    Run(Box<run::Args>),
    /// List containers
    Ps(list::Args),
    /// Print a container's output
    Logs(logs::Args),
    /// Connect to a running container's streams
    Attach(attach::Args),
    /// Run a command in a running container
    Exec(exec::Args),
    /// Stop containers: SIGTERM, then SIGKILL
    Stop(remove::StopArgs),
    /// Remove containers
    Rm(remove::RemoveArgs),
    /// List images
    Images(image::ListArgs),
    /// Fetch an image from its registry
    Pull(image::PullArgs),
    /// Remove images
    Rmi(image::RemoveArgs),
    /// Take in images from a file: an OCI layout, a docker-archive, or a static program
    Import(image::ImportArgs),
    /// Write images into a file
    Export(image::ExportArgs),
}

pub(crate) fn run(layout: &Layout, command: Command) -> Result<ExitCode> {
    host::require_root()?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the async runtime")?;
    let ended = runtime.block_on(async {
        if command.only_looks() {
            let Some(session) = Session::look(layout).await? else {
                say("There is nothing here yet: `sampan run IMAGE` makes a container, `sampan pull IMAGE` fetches an image.");
                return Ok(ExitCode::SUCCESS);
            };
            return run_in(&session, command).await;
        }
        let session = match Session::open(layout).await {
            Ok(session) => session,
            Err(error) if matches!(command, Command::Run(_)) => return Ok(run::failed(&error)),
            Err(error) => return Err(error),
        };
        run_in(&session, command).await
    });
    // A read of the terminal cannot be called back; without this, the end would wait for a key.
    runtime.shutdown_background();
    ended
}

impl Command {
    fn only_looks(&self) -> bool {
        matches!(self, Self::Ps(_) | Self::Images(_))
    }
}

async fn run_in(session: &Session, command: Command) -> Result<ExitCode> {
    match command {
        Command::Run(args) => return Ok(run::run(session, &args).await),
        Command::Attach(args) => return attach::run(session, &args).await,
        Command::Exec(args) => return exec::run(session, args).await,
        Command::Ps(args) => list::run(session, &args).await?,
        Command::Logs(args) => logs::run(session, &args).await?,
        Command::Stop(args) => remove::stop(session, &args).await?,
        Command::Rm(args) => remove::remove(session, &args).await?,
        Command::Images(args) => image::list(session, &args).await?,
        Command::Pull(args) => image::pull(session, &args).await?,
        Command::Rmi(args) => image::remove(session, &args).await?,
        Command::Import(args) => image::import(session, &args).await?,
        Command::Export(args) => image::export(session, &args).await?,
    }
    Ok(ExitCode::SUCCESS)
}
