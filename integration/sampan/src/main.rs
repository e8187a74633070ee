//! `sampan`: the one program a person runs.
//!
//! Reads what was typed, and calls the module that means it. Standard output is data, standard error is talk.

mod bare;
mod bare_removal;
mod cidr;
mod daemon;
mod down;
mod endpoint;
mod files;
mod host;
mod image_door;
mod instance;
mod inventory;
mod kubeconfig;
mod node;
mod parts;
mod pki;
mod programs;
mod report;
mod runtime;
mod status;
mod turn;
mod up;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::daemon::{Lock, Progress};
use crate::instance::Layout;

#[derive(Debug, Parser)]
#[command(name = "sampan", version, about = "Everything between `kubectl apply` and clone3(2)")]
struct Cli {
    /// Keep everything below this directory, so that several instances live side by side
    /// [default: /var/lib/sampan, /run/sampan and /etc/sampan]
    #[arg(long, global = true, env = "SAMPAN_ROOT", value_name = "DIR")]
    root: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a cluster on this machine and wait until its node is Ready
    Up(up::Args),
    /// Show how the instance does
    Status(status::Args),
    /// Print the administrator's kubeconfig
    Kubeconfig,
    /// End all pods and take away everything but the data
    Down(down::Args),
    /// Run every part in this process: what `up` starts in the background
    Node(NodeArgs),
    /// Run the container runtime alone: what `run` starts in the background on a host without a cluster
    Cri(CriArgs),
    #[command(flatten)]
    Bare(bare::Command),
}

#[derive(Debug, clap::Args)]
struct NodeArgs {
    /// Become a session of its own, and tell progress on standard output
    #[arg(long, hide = true)]
    detached: bool,
}

#[derive(Debug, clap::Args)]
struct CriArgs {
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    cni: instance::CniDirs,
}

fn main() -> ExitCode {
    // What is made here is root's alone; whoever makes something for others says its mode.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            report::say(&report::failure(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    let layout = Layout::new(cli.root).context("find the instance's directories")?;
    match cli.command {
        Command::Up(args) => up::run(&layout, &args)?,
        Command::Status(args) => return status::run(&layout, &args),
        Command::Kubeconfig => up::print_kubeconfig(&layout)?,
        Command::Down(args) => down::run(&layout, &args)?,
        Command::Node(args) => daemon(Daemon::Node, layout, &args)?,
        Command::Cri(args) => {
            host::require_root()?;
            layout.create().context("make the instance's directories")?;
            let wishes = instance::Wishes { cni: args.cni, ..instance::Wishes::default() };
            instance::Instance::load_or_decide(&layout, &wishes)?;
            daemon(Daemon::Runtime, layout, &args.node)?;
        }
        Command::Bare(command) => return bare::run(&layout, command),
    }
    Ok(ExitCode::SUCCESS)
}

/// What runs in the process.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Daemon {
    /// Everything.
    Node,
    /// Images, pods and containers, without a control plane.
    Runtime,
}

fn daemon(which: Daemon, layout: Layout, args: &NodeArgs) -> Result<()> {
    if args.detached {
        return detached(which, layout);
    }
    foreground(which, layout, &mut |progress| match progress {
        Progress::Step { name, detail } => report::say(&format!("{name} {detail}")),
        Progress::Failed { reason } => report::say(&reason),
        Progress::NotReady { reason } => report::say(&format!("not ready: {reason}")),
        Progress::Ready => report::say("ready"),
    })
}

/// The daemon below somebody's terminal.
pub(crate) fn foreground(which: Daemon, layout: Layout, tell: node::Tell<'_>) -> Result<()> {
    log_to_stderr();
    run_daemon(which, layout, tell)
}

/// The daemon in the background: its progress goes to the pipe that its starter reads, and then the pipe is let go.
fn detached(which: Daemon, layout: Layout) -> Result<()> {
    // Not the leader of a process group yet, so this cannot fail; a terminal that closes no longer ends us.
    nix::unistd::setsid().context("start a session")?;
    log_to_stderr();
    let mut tell = |progress| {
        let line = serde_json::to_string(&progress).unwrap_or_default();
        // Whoever started us may have lost patience; we go on.
        let _nobody_reads = writeln!(io::stdout(), "{line}").and_then(|()| io::stdout().flush());
        if matches!(progress, Progress::Ready | Progress::NotReady { .. })
            && let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null")
        {
            let _kept_open = nix::unistd::dup2_stdout(&null);
        }
    };
    let ended = run_daemon(which, layout, &mut tell);
    if let Err(error) = &ended {
        tell(Progress::Failed { reason: format!("{error:#}") });
    }
    ended
}

/// How long blocking work in flight may take once every part has ended.
const LAST_WORK_MAX: Duration = Duration::from_secs(2);

fn run_daemon(which: Daemon, layout: Layout, tell: node::Tell<'_>) -> Result<()> {
    host::require_root()?;
    // Never let go of here: the kernel does, when everything else of this process has ended.
    let lock: &'static Lock = Box::leak(Box::new(Lock::take(&layout)?));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the async runtime")?;
    let ended = runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("wait for SIGINT")?;
        let on_signal = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            lock.tell_ending();
            on_signal.cancel();
        });
        match which {
            Daemon::Node => node::run(layout, shutdown, tell).await,
            Daemon::Runtime => runtime::run_alone(layout, shutdown, tell).await,
        }
    });
    lock.tell_ending();
    // A container that is given its grace must not hold us: the next start finds it as it would after a kill.
    runtime.shutdown_timeout(LAST_WORK_MAX);
    ended
}

/// `SAMPAN_LOG` filters by part, like `info,kubelet=debug`.
fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("SAMPAN_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        // A line that cannot be written (disk full) would be complained of on standard error, which is the log, by panic.
        .log_internal_errors(false)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .init();
}
