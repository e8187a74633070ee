//! `sampan up`: from nothing to a Ready node, each step with its time; the daemon goes on in the background.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::daemon::{self, Progress};
use crate::host;
use crate::instance::{Instance, Layout, Wishes};
use crate::kubeconfig;
use crate::pki::Pki;
use crate::report::{Report, say, seconds};
use crate::turn;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    wishes: Wishes,
    /// Stay in the foreground and log to standard error; Ctrl-C ends the daemon, not the pods
    #[arg(long)]
    foreground: bool,
    /// Merge a context into this kubeconfig [default: $KUBECONFIG, or ~/.kube/config]
    #[arg(long, value_name = "PATH")]
    kubeconfig: Option<PathBuf>,
    /// Leave every kubeconfig but the instance's own alone
    #[arg(long, conflicts_with = "kubeconfig")]
    no_kubeconfig: bool,
}

pub(crate) fn run(layout: &Layout, args: &Args) -> Result<()> {
    host::check()?;
    let mut report = Report::new();
    layout.create().context("make the instance's directories")?;
    if let Some(pid) = daemon::running(layout)?
        && is_runtime_alone(pid)
    {
        daemon::stop(layout, pid)?;
        report.step("containers taken over", &format!("from process {pid}"));
    }
    if let Some(pid) = daemon::running(layout)? {
        let kept = Instance::load(layout)?;
        let address = kept.map_or_else(String::new, |instance| format!(" at {}", instance.api_url()));
        say(&format!("Sampan is already up (process {pid}{address}); `sampan status` shows how it does."));
        return Ok(());
    }
    // Held until the node is Ready: until then nobody sees what this instance has taken.
    let mut turn = turn::take();
    let instance = Instance::load_or_decide(layout, &args.wishes)?;
    instance.check_ports()?;
    instance.check_networks()?;
    report.step("host checked", &format!("{} ({})", instance.node_name, instance.node_ip));
    if args.foreground {
        return crate::foreground(crate::Daemon::Node, layout.clone(), &mut |progress| match progress {
            Progress::Step { name, detail } => report.step(&name, &detail),
            Progress::Failed { reason } => say(&reason),
            Progress::Ready => {
                turn = None;
                say("Ready. Ctrl-C ends the daemon; pods go on, and the next `up` finds them.");
            }
            Progress::NotReady { reason } => say(&format!("The node is not Ready: {reason}. It is tried again.")),
        });
    }
    daemon::start(layout, &["node", "--detached"], |name, detail| report.step(name, detail))?;
    drop(turn);
    let context = merge_context(layout, &instance, args)?;
    say(&format!("\nSampan is up in {}. Next:", seconds(report.total())));
    match context {
        Some(path) => {
            report_next(&format!("kubectl --context {} get nodes", instance.name));
            say(&format!("  (context {} is in {})", instance.name, path.display()));
        }
        None => report_next(&format!("kubectl --kubeconfig {} get nodes", layout.kubeconfig().display())),
    }
    Ok(())
}

/// Whether the daemon is what `sampan run` started, without a control plane.
fn is_runtime_alone(pid: i32) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).any(|word| word == b"cri")
}

fn report_next(command: &str) {
    say(&format!("  {command}"));
    say("  sampan status");
}

/// The file that now has the context, if any was to have it.
fn merge_context(layout: &Layout, instance: &Instance, args: &Args) -> Result<Option<PathBuf>> {
    if args.no_kubeconfig {
        return Ok(None);
    }
    let Some(path) = args.kubeconfig.clone().or_else(kubeconfig::user_path) else { return Ok(None) };
    let config = kubeconfig::admin(instance, &Pki::paths(layout))?;
    kubeconfig::merge_into(&path, &config)?;
    Ok(Some(path))
}

/// `sampan kubeconfig`: the administrator's kubeconfig on standard output.
pub(crate) fn print_kubeconfig(layout: &Layout) -> Result<()> {
    let Some(instance) = Instance::load(layout)? else {
        bail!("there is no instance here yet: `sampan up` makes one");
    };
    let config = kubeconfig::admin(&instance, &Pki::paths(layout))?;
    crate::report::print(&kubeconfig::to_yaml(&config)?).context("write to standard output")
}
