//! `sampan down`: ends the daemon, then every pod, then takes away what `up` and the pods made, and proves it.
//!
//! Every step is tried; what failed is said at the end, and what is left is found by comparing with what was there before
//! the first `up`.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use runtime_cri_api::v1;
use runtime_cri_api::v1::runtime_service_server::RuntimeService;
use runtime_linux::cgroup::{Cgroup, Hierarchy};
use runtime_linux::tree;
use tonic::Request;

use crate::daemon;
use crate::host;
use crate::instance::{Instance, Layout};
use crate::inventory::Inventory;
use crate::kubeconfig;
use crate::node::address;
use crate::parts::Parts;
use crate::pki::Pki;
use crate::programs::Programs;
use crate::report::{Report, say, seconds};

/// How long pods may take to end after SIGTERM when the whole node goes down.
const POD_GRACE: Duration = Duration::from_secs(5);
/// How long a cgroup may take to become empty after SIGKILL.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also remove all data: the cluster's state, images, volumes, logs and certificates
    #[arg(long)]
    purge: bool,
}

pub(crate) fn run(layout: &Layout, args: &Args) -> Result<()> {
    host::require_root()?;
    let Some(instance) = Instance::load(layout)? else {
        say("Nothing to do: no instance was ever brought up here.");
        return Ok(());
    };
    let mut report = Report::new();
    if let Some(pid) = daemon::running(layout)? {
        daemon::stop(layout, pid)?;
        report.step("daemon ended", &format!("process {pid}"));
    }
    let parts = Parts { layout: layout.clone(), instance, pki: Pki::paths(layout), programs: Programs::find()? };
    let mut failures = Vec::new();
    let mut attempt = |what: &str, result: Result<String>| match result {
        Ok(detail) => report.step(what, &detail),
        Err(error) => failures.push(format!("{what}: {error:#}")),
    };
    attempt("pods ended", end_pods(&parts));
    attempt("cgroups removed", remove_cgroups(&parts.instance));
    attempt("network removed", remove_network(&parts));
    attempt("mounts removed", unmount_below(layout));
    let proof = prove(layout, &parts.instance);
    attempt("contexts removed", remove_contexts(layout, &parts.instance));
    attempt("files removed", remove_files(layout, args.purge));
    attempt("compared with before", proof);
    if !failures.is_empty() {
        bail!(
            "not everything could be taken away; `{}` may be run again:\n  {}",
            layout.command("down"),
            failures.join("\n  ")
        );
    }
    let kept =
        if args.purge { "" } else { "; the cluster's state stays for the next `up` (`down --purge` removes it)" };
    say(&format!("\nSampan is down in {}{kept}.", seconds(report.total())));
    Ok(())
}

/// Through CRI, so that volumes, addresses and records go in order.
fn end_pods(parts: &Parts) -> Result<String> {
    // Gone with the run directory after a reboot, and wanted to give back what the records of pods say.
    parts.programs.link_plugins(&parts.layout.run.join("cni-bin"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let config = parts.cri();
    let ended = runtime.block_on(async move {
        let server = runtime_cri::Server::new(config).await.context("take over the pods")?;
        stop_containers(&server).await?;
        let listed = server.list_pod_sandbox(Request::new(v1::ListPodSandboxRequest::default())).await?;
        let sandboxes = listed.into_inner().items;
        let count = sandboxes.len();
        each(sandboxes, |sandbox| {
            let server = server.clone();
            async move {
                let pod_sandbox_id = sandbox.id;
                let stop = v1::StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
                server.stop_pod_sandbox(Request::new(stop)).await?;
                server.remove_pod_sandbox(Request::new(v1::RemovePodSandboxRequest { pod_sandbox_id })).await?;
                Ok(())
            }
        })
        .await?;
        anyhow::Ok(format!("{count}"))
    })?;
    // With no kubelet left, nobody else unmounts what was mounted for the pods. Their files stay: they may come back.
    kubelet::volumes::unmount(&parts.layout.data.join("pods")).context("unmount the volumes of the pods")?;
    Ok(ended)
}

/// All at once, each with the same grace.
async fn stop_containers(server: &runtime_cri::Server) -> Result<()> {
    let state = v1::ContainerStateValue { state: v1::ContainerState::ContainerRunning.into() };
    let filter = v1::ContainerFilter { state: Some(state), ..v1::ContainerFilter::default() };
    let listed = server.list_containers(Request::new(v1::ListContainersRequest { filter: Some(filter) })).await?;
    each(listed.into_inner().containers, |container| {
        let server = server.clone();
        async move {
            let timeout = i64::try_from(POD_GRACE.as_secs()).unwrap_or(i64::MAX);
            server
                .stop_container(Request::new(v1::StopContainerRequest { container_id: container.id, timeout }))
                .await?;
            Ok(())
        }
    })
    .await
}

/// Runs all of them side by side and collects every failure.
async fn each<T, F>(items: Vec<T>, end: impl Fn(T) -> F) -> Result<()>
where
    F: Future<Output = Result<(), tonic::Status>> + Send + 'static,
{
    let mut ending = tokio::task::JoinSet::new();
    for item in items {
        ending.spawn(end(item));
    }
    let mut failed = Vec::new();
    while let Some(ended) = ending.join_next().await {
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(status)) => failed.push(status.message().to_owned()),
            Err(error) => failed.push(error.to_string()),
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("; ")) }
}

fn remove_cgroups(instance: &Instance) -> Result<String> {
    let hierarchy = Hierarchy::detect().context("find this host's cgroups")?;
    let root = Cgroup::new(&hierarchy, &instance.cgroup_root()).context("the instance's cgroup")?;
    if !root.exists() {
        return Ok("none were left".into());
    }
    // Shims and whatever a killed daemon left: everything in here is ours.
    root.kill().context("end what is left in the cgroup")?;
    if !root.wait_empty(KILL_PATIENCE).context("wait for the cgroup to empty")? {
        let pids = root.pids_recursive().unwrap_or_default();
        bail!("processes {pids:?} do not end, not even by SIGKILL: they wait for the kernel");
    }
    root.remove().context("remove the cgroup")?;
    Ok(instance.cgroup_root())
}

fn remove_network(parts: &Parts) -> Result<String> {
    let instance = &parts.instance;
    if !cni_services::network::stands(&instance.name, &instance.bridge)? {
        return Ok("none was left".into());
    }
    // The bridge goes last: a second try finds what is left by it.
    address::remove(instance)?;
    parts.clean_network()?;
    Ok(format!("bridge {}, tables {}", parts.instance.bridge, parts.instance.name))
}

/// Innermost first. Nothing of the host is below these directories.
fn unmount_below(layout: &Layout) -> Result<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    let roots = [&layout.data, &layout.run].map(|path| format!("{}/", path.display()));
    let points: Vec<String> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| point.replace("\\040", " "))
        .filter(|point| roots.iter().any(|root| point.starts_with(root.as_str())))
        .collect();
    for point in points.iter().rev() {
        let flags = nix::mount::MntFlags::MNT_DETACH | nix::mount::MntFlags::UMOUNT_NOFOLLOW;
        nix::mount::umount2(Path::new(point), flags).with_context(|| format!("unmount {point}"))?;
    }
    Ok(if points.is_empty() { "none were left".into() } else { points.len().to_string() })
}

fn prove(layout: &Layout, instance: &Instance) -> Result<String> {
    let Some(before) = Inventory::before(layout)? else {
        return Ok("there is no record of what was there before".into());
    };
    let now = Inventory::take(layout, instance)?;
    let (ours, others) = now.since(&before, layout, instance);
    if !others.is_empty() {
        say(&format!("  {} links, mounts or tables came since `up` that are not ours; they stay.", others.len()));
    }
    if ours.is_empty() {
        return Ok(format!("nothing is left: {}", now.counts()));
    }
    bail!("left behind: {}", ours.join(", "))
}

/// A context that leads nowhere only confuses; the next `up` merges it again.
fn remove_contexts(layout: &Layout, instance: &Instance) -> Result<String> {
    let failures = kubeconfig::forget(layout, &instance.name);
    if failures.is_empty() {
        return Ok(instance.name.clone());
    }
    let reasons: Vec<String> = failures.into_iter().map(|error| format!("{:#}", anyhow::Error::from(error))).collect();
    bail!("{}; take the context {} out by hand", reasons.join("; "), instance.name)
}

/// What a person wrote stays: registries and static pods.
const WRITTEN_BY_HAND: [&str; 2] = ["registries.d", "manifests"];

fn remove_files(layout: &Layout, purge: bool) -> Result<String> {
    remove_dir(&layout.run)?;
    if !purge {
        return Ok(layout.run.display().to_string());
    }
    remove_dir(&layout.data)?;
    let mut removed = vec![layout.run.display().to_string(), layout.data.display().to_string()];
    match remove_config(&layout.config)? {
        kept if kept.is_empty() => removed.push(layout.config.display().to_string()),
        kept => removed.push(format!("{} but for your {}", layout.config.display(), kept.join(" and "))),
    }
    if let Some(root) = &layout.root {
        // Only if nothing else is in it: the person chose the directory.
        let _kept_if_not_empty = fs::remove_dir(root);
    }
    Ok(removed.join(", "))
}

/// Removes everything but what a person wrote; says what that is.
fn remove_config(config: &Path) -> Result<Vec<&'static str>> {
    let mut kept = Vec::new();
    for name in WRITTEN_BY_HAND {
        // Empty ones are those that `up` made.
        match fs::remove_dir(config.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => kept.push(name),
            _ => {}
        }
    }
    let entries = match fs::read_dir(config) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(kept),
        Err(error) => return Err(error).with_context(|| format!("list {}", config.display())),
    };
    for entry in entries {
        let name = entry.with_context(|| format!("list {}", config.display()))?.file_name();
        if !kept.iter().any(|kept| name == *kept) {
            remove_dir(&config.join(name))?;
        }
    }
    if kept.is_empty() {
        remove_dir(config)?;
    }
    Ok(kept)
}

fn remove_dir(path: &Path) -> Result<()> {
    tree::remove(path).with_context(|| format!("remove {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_purge_keeps_what_a_person_wrote() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config");
        for path in ["pki", "registries.d/example.org", "manifests"] {
            fs::create_dir_all(config.join(path)).unwrap();
        }
        fs::write(config.join("instance.json"), "{}").unwrap();
        assert_eq!(remove_config(&config).unwrap(), ["registries.d"]);
        let left: Vec<_> = fs::read_dir(&config).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["registries.d"]);
        fs::remove_dir(config.join("registries.d/example.org")).unwrap();
        assert!(remove_config(&config).unwrap().is_empty());
        assert!(!config.exists());
        assert!(remove_config(&config).unwrap().is_empty());
    }
}
