//! `sampan up`: from nothing to a Ready node, each step with its time; the daemon goes on in the background.

use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};

use crate::daemon::{self, DaemonError, Progress};
use crate::host;
use crate::instance::{Instance, Layout, Wishes};
use crate::kubeconfig;
use crate::pki::{self, Pki};
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
        && daemon::is_runtime_alone(pid)
    {
        daemon::stop(layout, pid)?;
        report.step("containers taken over", &format!("from process {pid}"));
    }
    if let Some(pid) = daemon::running(layout)? {
        let kept = Instance::load(layout)?;
        let address = kept.map_or_else(String::new, |instance| format!(" at {}", instance.api_url()));
        say(&format!(
            "Sampan is already up (process {pid}{address}); `{}` shows how it does.",
            layout.command("status")
        ));
        return complain_of_certificates(layout, pid);
    }
    // Held until the node is Ready: until then nobody sees what this instance has taken.
    let mut turn = turn::take();
    let decision = Decision::new(layout)?;
    let instance = Instance::load_or_decide(layout, &args.wishes)?;
    instance.check_ports()?;
    instance.check_networks()?;
    report.step("host checked", &format!("{} ({})", instance.node_name, instance.node_ip));
    if args.foreground {
        decision.keep();
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
    let started = daemon::start(layout, &["node", "--detached"], |name, detail| report.step(name, detail));
    // Only a daemon that is known to have ended, or never began, has nothing to lose.
    if !matches!(started, Err(DaemonError::Ended { .. } | DaemonError::Failed { .. } | DaemonError::Start { .. })) {
        decision.keep();
    }
    started?;
    drop(turn);
    let context = match merge_context(layout, &instance, args) {
        Ok(context) => context,
        Err(error) => {
            // The cluster is up all the same, and its own kubeconfig serves.
            say(&format!("no context was merged: {error:#}"));
            None
        }
    };
    say(&format!("\nSampan is up in {}. Next:", seconds(report.total())));
    match context {
        Some(path) => {
            report_next(layout, &format!("kubectl --context {} get nodes", instance.name));
            say(&format!("  (context {} is in {})", instance.name, path.display()));
        }
        None => report_next(layout, &format!("kubectl --kubeconfig {} get nodes", layout.kubeconfig().display())),
    }
    Ok(())
}

fn report_next(layout: &Layout, command: &str) {
    say(&format!("  {command}"));
    say(&format!("  {}", layout.command("status")));
}

/// What a first `up` decided, until it is known to stand: a wish that failed is not kept for the next one.
struct Decision<'a> {
    layout: &'a Layout,
    is_provisional: bool,
}

impl<'a> Decision<'a> {
    fn new(layout: &'a Layout) -> Result<Self> {
        // A store without a record was put there by somebody, perhaps from a backup: it stays.
        let is_provisional = Instance::load(layout)?.is_none() && !layout.data.join("state.db").exists();
        Ok(Self { layout, is_provisional })
    }

    fn keep(mut self) {
        self.is_provisional = false;
    }
}

impl Drop for Decision<'_> {
    fn drop(&mut self) {
        if self.is_provisional
            && let Err(error) = Instance::take_back(self.layout)
        {
            say(&format!("what this `up` decided is kept: {error}"));
        }
    }
}

/// A daemon reads its certificates when it starts; a clock that was wrong then is found out here.
fn complain_of_certificates(layout: &Layout, pid: i32) -> Result<()> {
    let invalid = pki::invalid(layout, SystemTime::now());
    let Some(first) = invalid.first() else { return Ok(()) };
    bail!(
        "no client takes this instance's certificates at the time that this machine's clock shows ({} and {} more): set the \
         clock right, or have them made anew: end the daemon (`kill {pid}`, its containers go on), then `{}`",
        first.display(),
        invalid.len() - 1,
        layout.command("up")
    )
}

/// The file that now has the context, if any was to have it.
fn merge_context(layout: &Layout, instance: &Instance, args: &Args) -> Result<Option<PathBuf>> {
    if args.no_kubeconfig {
        return Ok(None);
    }
    let Some(path) = args.kubeconfig.clone().or_else(kubeconfig::user_path) else { return Ok(None) };
    let config = kubeconfig::admin(instance, &Pki::paths(layout))?;
    kubeconfig::merge_and_remember(layout, &path, &config)?;
    Ok(Some(path))
}

/// `sampan kubeconfig`: the administrator's kubeconfig on standard output.
pub(crate) fn print_kubeconfig(layout: &Layout) -> Result<()> {
    host::require_root()?;
    let Some(instance) = Instance::load(layout)? else {
        bail!("there is no instance here yet: `{}` makes one", layout.command("up"));
    };
    let config = kubeconfig::admin(&instance, &Pki::paths(layout))?;
    crate::report::print(&kubeconfig::to_yaml(&config)?).context("write to standard output")
}
