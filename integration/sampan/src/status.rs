//! `sampan status`: one look at an instance, for a person or as JSON.

use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context, Result};
use runtime_cri_api::v1;
use runtime_linux::cgroup::{Cgroup, Hierarchy};
use serde_json::{Value, json};

use crate::daemon;
use crate::endpoint;
use crate::host;
use crate::instance::{Instance, Layout};
use crate::node::board;
use crate::pki;
use crate::report::print;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How to print it
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

/// 0: up. 1: up, and a part of the daemon is not running. 3: not running, as service managers say it.
pub(crate) fn run(layout: &Layout, args: &Args) -> Result<ExitCode> {
    host::require_root()?;
    let Some(instance) = Instance::load(layout)? else {
        print(&format!("never brought up here: `{}` starts it\n", layout.command("up")))
            .context("write to standard output")?;
        return Ok(ExitCode::from(3));
    };
    let pid = daemon::running(layout)?;
    let is_runtime_alone = pid.is_some_and(daemon::is_runtime_alone);
    let invalid_certificates = if is_runtime_alone { Vec::new() } else { pki::invalid(layout, SystemTime::now()) };
    let pods = pid.and_then(|_| count_pods(layout).ok());
    let parts = pid.and_then(|pid| board::read(layout, pid)).unwrap_or_default();
    let is_whole = parts.iter().all(|part| part.state == board::State::Running);
    let facts = json!({
        "died": if pid.is_none() { daemon::died(layout) } else { None },
        "partStates": parts,
        "running": pid.is_some(),
        "pid": pid,
        "parts": pid.map(|_| if is_runtime_alone { "runtime" } else { "all" }),
        "podsLeft": pid.is_none() && pods_left(&instance),
        "invalidCertificates": invalid_certificates,
        "node": instance.node_name,
        "server": (!is_runtime_alone).then(|| instance.api_url()),
        "podCIDR": instance.pod_cidr,
        "serviceCIDR": instance.service_cidr,
        "pods": pods,
        "data": layout.data,
        "kubeconfig": layout.kubeconfig(),
        "log": layout.daemon_log(),
    });
    let text = match args.output {
        Output::Json => format!("{facts:#}\n"),
        Output::Text => describe(layout, &facts, &parts),
    };
    print(&text).context("write to standard output")?;
    Ok(match pid {
        Some(_) if is_whole => ExitCode::SUCCESS,
        Some(_) => ExitCode::FAILURE,
        None => ExitCode::from(3),
    })
}

/// Whether something of a pod is left without a daemon: a killed daemon's containers go on.
fn pods_left(instance: &Instance) -> bool {
    let left = Hierarchy::detect()
        .and_then(|hierarchy| Cgroup::new(&hierarchy, &instance.cgroup_root()))
        .map(|cgroup| cgroup.exists() && !cgroup.pids_recursive().unwrap_or_default().is_empty());
    left.unwrap_or(false)
}

fn describe(layout: &Layout, facts: &Value, parts: &[board::Part]) -> String {
    let (up, down) = (layout.command("up"), layout.command("down"));
    let state = match facts["pid"].as_i64() {
        Some(pid) if facts["parts"] == "runtime" => {
            format!("the container runtime alone is up (process {pid}); `{up}` makes it a cluster")
        }
        Some(pid) => format!("up (process {pid})"),
        None if facts["podsLeft"] == true => {
            format!("down, and pods still run: `{up}` takes them over, `{down}` ends them")
        }
        None => format!("down; `{up}` starts it again"),
    };
    let mut lines = format!("sampan      {state}\n");
    if let Some(pid) = facts["died"].as_i64() {
        lines.push_str(&format!("died        process {pid}, without being told to end: the end of the log says why\n"));
    }
    for part in parts.iter().filter(|part| part.restarts > 0) {
        lines.push_str(&describe_part(part));
    }
    for certificate in facts["invalidCertificates"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        lines.push_str(&format!("not valid   {certificate} (at the time of this machine's clock)\n"));
    }
    for (title, key) in [
        ("node", "node"),
        ("API server", "server"),
        ("pods", "pods"),
        ("pod range", "podCIDR"),
        ("Services", "serviceCIDR"),
        ("data", "data"),
        ("kubeconfig", "kubeconfig"),
        ("log", "log"),
    ] {
        match &facts[key] {
            Value::Null => {}
            Value::String(text) => lines.push_str(&format!("{title:<11} {text}\n")),
            other => lines.push_str(&format!("{title:<11} {other}\n")),
        }
    }
    lines
}

/// A part that has ended at least once.
fn describe_part(part: &board::Part) -> String {
    let state = match part.state {
        board::State::Running => "runs again",
        board::State::Resting => "is down and about to be started again",
        board::State::Stopped => "has been told to end",
    };
    let times = if part.restarts == 1 { "once".to_owned() } else { format!("{} times", part.restarts) };
    let at = part.last_ended_at.map(|time| format!(" at {time}")).unwrap_or_default();
    let reason = part.last_error.as_deref().unwrap_or("nobody knows why");
    format!("{:<11} {} {state}; it ended {times}, last{at}: {reason}\n", "part", part.name)
}

fn count_pods(layout: &Layout) -> Result<usize> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let channel = endpoint::connect(&layout.cri_socket()).await?;
        let mut client = v1::runtime_service_client::RuntimeServiceClient::new(channel);
        let filter = v1::PodSandboxFilter {
            state: Some(v1::PodSandboxStateValue { state: v1::PodSandboxState::SandboxReady.into() }),
            ..v1::PodSandboxFilter::default()
        };
        let listed = client.list_pod_sandbox(v1::ListPodSandboxRequest { filter: Some(filter) }).await?;
        Ok(listed.into_inner().items.len())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_told_as_it_is() {
        let layout = Layout::new(Some("/srv/x".into())).unwrap();
        let check = |facts: Value, expect: &str| {
            let text = describe(&layout, &facts, &[]);
            assert_eq!(text.lines().next(), Some(expect), "{facts}");
        };
        check(json!({"pid": 7, "parts": "all"}), "sampan      up (process 7)");
        check(
            json!({"pid": 7, "parts": "runtime"}),
            "sampan      the container runtime alone is up (process 7); `sampan --root /srv/x up` makes it a cluster",
        );
        check(
            json!({"pid": null, "podsLeft": true}),
            "sampan      down, and pods still run: `sampan --root /srv/x up` takes them over, `sampan --root /srv/x down` ends them",
        );
        check(json!({"pid": null, "podsLeft": false}), "sampan      down; `sampan --root /srv/x up` starts it again");
    }

    #[test]
    fn what_has_ended_is_told() {
        let layout = Layout::new(Some("/srv/x".into())).unwrap();
        let part = |name: &str, state, restarts| board::Part {
            name: name.into(),
            state,
            restarts,
            last_error: (restarts > 0).then(|| "bind: in use".to_owned()),
            last_ended_at: None,
        };
        let parts = [part("scheduler", board::State::Running, 0), part("kubelet", board::State::Resting, 2)];
        let text = describe(&layout, &json!({"pid": 7, "parts": "all"}), &parts);
        assert!(
            text.contains(
                "part        kubelet is down and about to be started again; it ended 2 times, last: bind: in use"
            ),
            "{text}"
        );
        assert!(!text.contains("scheduler"), "{text}");
        let text = describe(&layout, &json!({"pid": null, "died": 9}), &[]);
        assert!(text.contains("died        process 9"), "{text}");
    }
}
