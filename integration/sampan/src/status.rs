//! `sampan status`: one look at an instance, for a person or as JSON.

use std::process::ExitCode;

use anyhow::{Context, Result};
use runtime_cri_api::v1;
use serde_json::{Value, json};

use crate::daemon;
use crate::endpoint;
use crate::instance::{Instance, Layout};
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

/// 0: up. 3: not running, as service managers say it.
pub(crate) fn run(layout: &Layout, args: &Args) -> Result<ExitCode> {
    let Some(instance) = Instance::load(layout)? else {
        print("never brought up here: `sampan up` starts it\n").context("write to standard output")?;
        return Ok(ExitCode::from(3));
    };
    let pid = daemon::running(layout)?;
    let pods = pid.and_then(|_| count_pods(layout).ok());
    let facts = json!({
        "running": pid.is_some(),
        "pid": pid,
        "node": instance.node_name,
        "server": instance.api_url(),
        "podCIDR": instance.pod_cidr,
        "serviceCIDR": instance.service_cidr,
        "pods": pods,
        "data": layout.data,
        "kubeconfig": layout.kubeconfig(),
        "log": layout.daemon_log(),
    });
    let text = match args.output {
        Output::Json => format!("{facts:#}\n"),
        Output::Text => describe(&facts),
    };
    print(&text).context("write to standard output")?;
    Ok(if pid.is_some() { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

fn describe(facts: &Value) -> String {
    let state = match facts["pid"].as_i64() {
        Some(pid) => format!("up (process {pid})"),
        None => {
            "down; pods that ran when the daemon ended still run. `sampan up` takes them over, `sampan down` ends them"
                .into()
        }
    };
    let mut lines = format!("sampan      {state}\n");
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
