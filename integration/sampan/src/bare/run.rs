//! `sampan run`: an image and a command become a pod of one container.

use std::collections::HashMap;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use runtime_cri_api::v1;

use super::follow::{self, Signals};
use super::session::{NAME_LABEL, Session, said};
use super::stream::{self, Standard};
use super::{NAMESPACE, image, remove};
use crate::bare_removal;
use crate::report::{failure, print, say};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Image by name, digest or id; what stands behind it is the command and its arguments instead of the image's
    // One list, since everything behind the image is the container's, also what looks like a flag of ours.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_names = ["IMAGE", "COMMAND"])]
    image_and_command: Vec<String>,
    /// Name of the container [default: made up]
    #[arg(long)]
    name: Option<String>,
    /// Leave it running in the background and print its id
    #[arg(short, long)]
    detach: bool,
    /// Remove it when it ends
    #[arg(long)]
    rm: bool,
    /// Pass on standard input
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Set a variable: KEY=VALUE, or KEY to pass on ours
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    env: Vec<String>,
    /// Mount a directory or file: SOURCE:TARGET[:ro]
    #[arg(short, long, value_name = "SOURCE:TARGET[:ro]")]
    volume: Vec<String>,
    /// Publish a port of the host: HOST:CONTAINER[/udp]
    #[arg(short, long, value_name = "HOST:CONTAINER[/PROTOCOL]")]
    publish: Vec<String>,
    /// Working directory instead of the image's
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User instead of the image's: NAME, UID or UID:GID
    #[arg(short, long)]
    user: Option<String>,
    /// Memory limit, like 64M or 1G
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<String>,
    /// CPU limit in cores, like 0.5
    #[arg(long, value_name = "CORES")]
    cpus: Option<f64>,
    /// Network: `pod` has its own address, `host` shares this machine's
    #[arg(long, value_enum, default_value = "pod")]
    network: Network,
    /// Host name inside [default: the container's name]
    #[arg(long)]
    hostname: Option<String>,
    /// Program instead of the image's entrypoint
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Root file system without write access
    #[arg(long)]
    read_only: bool,
    /// All capabilities and devices; little is left of the isolation
    #[arg(long)]
    privileged: bool,
    /// When to fetch the image
    #[arg(long, value_enum, default_value = "missing")]
    pull: image::When,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Network {
    Pod,
    Host,
}

impl Args {
    fn image(&self) -> Result<&str> {
        match self.image_and_command.first().map(String::as_str) {
            Some(flag) if flag.starts_with('-') => bail!("there is no option {flag}: `sampan run --help` lists them"),
            Some(image) if !image.is_empty() => Ok(image),
            _ => bail!("give an image"),
        }
    }

    fn command(&self) -> &[String] {
        self.image_and_command.get(1..).unwrap_or_default()
    }
}

/// What scripts know from docker and podman (docker-run(1), "Exit Status"); any other code is the container's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// `run` itself failed.
    Ours = 125,
    /// The command is there and cannot be run.
    NotExecutable = 126,
    /// The command is not there.
    NotFound = 127,
}

/// Tells of an error that kept the container from running, with the code that says whose it is.
pub(super) fn failed(error: &anyhow::Error) -> ExitCode {
    say(&failure(error));
    ExitCode::from(whose(&format!("{error:#}")) as u8)
}

/// By the words that the runtime's error for `execve` ends with; only a container's start has them.
fn whose(error: &str) -> Failure {
    let error = error.to_ascii_lowercase();
    if !error.contains("start the container") {
        Failure::Ours
    } else if error.contains("no such file or directory") || error.contains("not found") {
        Failure::NotFound
    } else if error.contains("permission denied")
        || error.contains("exec format error")
        || error.contains("is a directory")
    {
        Failure::NotExecutable
    } else {
        Failure::Ours
    }
}

pub(super) async fn run(session: &Session, args: &Args) -> ExitCode {
    match run_container(session, args).await {
        Ok(code) => code,
        Err(error) => failed(&error),
    }
}

async fn run_container(session: &Session, args: &Args) -> Result<ExitCode> {
    // From here on, so that a signal while the pod is made does not leave half of it.
    let mut signals = Signals::catch()?;
    let image = image::ensure(session, args.image()?, args.pull).await?;
    let name = args.name.clone().unwrap_or_else(make_up_name);
    if let Ok(taken) = session.find(&name).await {
        bail!(
            "there is a container {name} already ({}): `sampan rm {name}` removes it",
            taken.id.get(..12).unwrap_or(&taken.id)
        );
    }
    let pod = pod_config(session, &name, args)?;
    let container = container_config(&name, &image, args)?;
    let mut runtime = session.runtime();
    let request = v1::RunPodSandboxRequest { config: Some(pod.clone()), runtime_handler: String::new() };
    let pod_sandbox_id =
        runtime.run_pod_sandbox(request).await.map_err(said).context("make the pod")?.into_inner().pod_sandbox_id;
    let result = start(session, &pod_sandbox_id, pod, container, args, &mut signals).await;
    match result {
        Ok(Some(code)) => {
            if args.rm {
                remove::remove_pod(session, &pod_sandbox_id).await?;
            }
            // A shell's codes: 128 and the signal's number beyond what fits.
            Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
        }
        Ok(None) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            // What never ran is of no use to anybody.
            remove::remove_pod(session, &pod_sandbox_id).await.context("take back what was made")?;
            Err(error)
        }
    }
}

/// The exit code, or `None` for a container in the background.
async fn start(
    session: &Session,
    pod: &str,
    pod_config: v1::PodSandboxConfig,
    container: v1::ContainerConfig,
    args: &Args,
    signals: &mut Signals,
) -> Result<Option<i32>> {
    let mut runtime = session.runtime();
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: pod.to_owned(),
        config: Some(container),
        sandbox_config: Some(pod_config),
    };
    let id = runtime
        .create_container(request)
        .await
        .map_err(said)
        .context("create the container")?
        .into_inner()
        .container_id;
    let start = v1::StartContainerRequest { container_id: id.clone() };
    if args.detach {
        runtime.start_container(start).await.map_err(said).context("start the container")?;
        print(&format!("{id}\n")).context("write to standard output")?;
        return Ok(None);
    }
    let attach = v1::AttachRequest {
        container_id: id.clone(),
        stdin: args.interactive,
        tty: args.tty,
        stdout: true,
        stderr: !args.tty,
    };
    let url = runtime.attach(attach).await.map_err(said).context("attach")?.into_inner().url;
    // Connected before the start, so that not a byte is lost.
    let streams = stream::connect(&url, Standard { stdin: args.interactive, tty: args.tty }).await?;
    runtime.start_container(start).await.map_err(said).context("start the container")?;
    Ok(Some(follow::to_the_end(session, &id, streams, signals).await?))
}

fn pod_config(session: &Session, name: &str, args: &Args) -> Result<v1::PodSandboxConfig> {
    let network = if args.network == Network::Host { v1::NamespaceMode::Node } else { v1::NamespaceMode::Pod };
    let namespace_options = v1::NamespaceOption {
        network: network.into(),
        pid: v1::NamespaceMode::Container.into(),
        ipc: v1::NamespaceMode::Pod.into(),
        ..v1::NamespaceOption::default()
    };
    let security_context = v1::LinuxSandboxSecurityContext {
        namespace_options: Some(namespace_options),
        privileged: args.privileged,
        ..v1::LinuxSandboxSecurityContext::default()
    };
    Ok(v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: name.into(),
            uid: name.into(),
            namespace: NAMESPACE.into(),
            attempt: 0,
        }),
        hostname: if args.network == Network::Host {
            String::new()
        } else {
            args.hostname.clone().unwrap_or_else(|| name.into())
        },
        log_directory: session.layout.data.join("logs/run").join(name).to_string_lossy().into_owned(),
        port_mappings: args.publish.iter().map(|text| port_mapping(text)).collect::<Result<_>>()?,
        labels: labels(name, args),
        linux: Some(v1::LinuxPodSandboxConfig {
            security_context: Some(security_context),
            ..v1::LinuxPodSandboxConfig::default()
        }),
        ..v1::PodSandboxConfig::default()
    })
}

fn labels(name: &str, args: &Args) -> HashMap<String, String> {
    let mut labels = HashMap::from(
        [(NAME_LABEL, name), ("io.kubernetes.pod.namespace", NAMESPACE)]
            .map(|(key, value)| (key.to_owned(), value.to_owned())),
    );
    if args.rm {
        labels.insert(bare_removal::LABEL.to_owned(), bare_removal::own_mark());
    }
    labels
}

fn container_config(name: &str, image: &str, args: &Args) -> Result<v1::ContainerConfig> {
    let mut security_context = v1::LinuxContainerSecurityContext {
        privileged: args.privileged,
        readonly_rootfs: args.read_only,
        no_new_privs: false,
        ..v1::LinuxContainerSecurityContext::default()
    };
    if !args.privileged {
        let profile_type = v1::security_profile::ProfileType::RuntimeDefault.into();
        security_context.seccomp = Some(v1::SecurityProfile { profile_type, localhost_ref: String::new() });
        let mut masked = security_context.masked_paths.split_off(0);
        masked.extend(MASKED.map(String::from));
        security_context.masked_paths = masked;
        security_context.readonly_paths = READ_ONLY.map(String::from).into();
    }
    set_user(&mut security_context, args.user.as_deref())?;
    Ok(v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(v1::ImageSpec {
            image: image.into(),
            user_specified_image: args.image()?.to_owned(),
            ..v1::ImageSpec::default()
        }),
        command: args.entrypoint.iter().cloned().collect(),
        args: args.command().to_vec(),
        working_dir: args.workdir.clone().unwrap_or_default(),
        envs: args.env.iter().map(|text| variable(text)).collect(),
        mounts: args.volume.iter().map(|text| mount(text)).collect::<Result<_>>()?,
        labels: labels(name, args),
        log_path: format!("{name}.log"),
        stdin: args.interactive,
        stdin_once: args.interactive,
        tty: args.tty,
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(resources(args)?),
            security_context: Some(security_context),
        }),
        ..v1::ContainerConfig::default()
    })
}

/// Files of /proc and /sys that tell about the host or change it; the set that container engines agree on.
const MASKED: [&str; 9] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn set_user(context: &mut v1::LinuxContainerSecurityContext, user: Option<&str>) -> Result<()> {
    let Some(user) = user else { return Ok(()) };
    let (name, group) = user.split_once(':').map_or((user, None), |(name, group)| (name, Some(group)));
    match name.parse() {
        Ok(value) => context.run_as_user = Some(v1::Int64Value { value }),
        Err(_) if group.is_none() => context.run_as_username = name.into(),
        Err(_) => bail!("--user {user}: a group goes with a number for the user, like 1000:1000"),
    }
    if let Some(group) = group {
        let value = group.parse().with_context(|| format!("--user {user}: the group must be a number"))?;
        context.run_as_group = Some(v1::Int64Value { value });
    }
    Ok(())
}

fn resources(args: &Args) -> Result<v1::LinuxContainerResources> {
    let mut resources = v1::LinuxContainerResources::default();
    if let Some(memory) = &args.memory {
        resources.memory_limit_in_bytes = bytes(memory)?;
    }
    if let Some(cpus) = args.cpus {
        if !(0.001..=100_000.0).contains(&cpus) {
            bail!("--cpus {cpus}: give a number of cores from 0.001 on");
        }
        resources.cpu_period = 100_000;
        #[expect(clippy::cast_possible_truncation, reason = "checked above: at most 10^10")]
        let quota = (cpus * 100_000.0).round() as i64;
        resources.cpu_quota = quota;
    }
    Ok(resources)
}

/// `512`, `64k`, `64M`, `1G`: powers of 1024.
fn bytes(text: &str) -> Result<i64> {
    let digits = text.trim_end_matches(|last: char| last.is_ascii_alphabetic());
    let factor = match text[digits.len()..].to_ascii_lowercase().trim_end_matches("ib").trim_end_matches('b') {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        _ => bail!("{text}: a size is a number and k, M, G or T, like 64M"),
    };
    let number: i64 =
        digits.parse().with_context(|| format!("{text}: a size is a number and k, M, G or T, like 64M"))?;
    number.checked_mul(factor).with_context(|| format!("{text} is more than there can be"))
}

fn variable(text: &str) -> v1::KeyValue {
    match text.split_once('=') {
        Some((key, value)) => v1::KeyValue { key: key.into(), value: value.into() },
        None => v1::KeyValue { key: text.into(), value: std::env::var(text).unwrap_or_default().into() },
    }
}

fn mount(text: &str) -> Result<v1::Mount> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, readonly) = match parts.as_slice() {
        [source, target] | [source, target, "rw"] => (*source, *target, false),
        [source, target, "ro"] => (*source, *target, true),
        _ => bail!("--volume {text}: write SOURCE:TARGET or SOURCE:TARGET:ro"),
    };
    if !Path::new(target).is_absolute() {
        bail!("--volume {text}: the target must be an absolute path");
    }
    let host_path = std::fs::canonicalize(source).with_context(|| format!("--volume {text}: {source}"))?;
    Ok(v1::Mount {
        host_path: host_path.to_string_lossy().into_owned(),
        container_path: target.into(),
        readonly,
        ..v1::Mount::default()
    })
}

fn port_mapping(text: &str) -> Result<v1::PortMapping> {
    let usage = || format!("--publish {text}: write HOST:CONTAINER or HOST:CONTAINER/udp");
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => v1::Protocol::Tcp,
        "udp" => v1::Protocol::Udp,
        "sctp" => v1::Protocol::Sctp,
        _ => bail!(usage()),
    };
    let (host, container) = ports.rsplit_once(':').with_context(usage)?;
    let (host_ip, host) = host.rsplit_once(':').unwrap_or(("", host));
    let port = |text: &str| text.parse::<u16>().map(i32::from).with_context(usage);
    Ok(v1::PortMapping {
        protocol: protocol.into(),
        container_port: port(container)?,
        host_port: port(host)?,
        host_ip: host_ip.into(),
    })
}

/// Unlike any other: from the clock and the process.
fn make_up_name() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("run-{:x}{:x}", now.as_micros() & 0xffff_ffff, std::process::id())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn everything_behind_the_image_is_the_containers() {
        let check = |line: &str, image: &str, command: &[&str], tty: bool| {
            let words = ["run"].into_iter().chain(line.split(' '));
            let args = Line::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}")).args;
            assert_eq!(
                (args.image().unwrap(), args.command(), args.tty),
                (image, command.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>().as_slice(), tty),
                "{line}"
            );
        };
        check("nginx -t", "nginx", &["-t"], false);
        check("-t nginx", "nginx", &[], true);
        check("redis --help", "redis", &["--help"], false);
        check("--rm --name a busybox sh -c id --rm", "busybox", &["sh", "-c", "id", "--rm"], false);
        check("-e A=1 busybox -- x", "busybox", &["--", "x"], false);
        assert!(Line::try_parse_from(["run"]).is_err());
        let unknown = Line::try_parse_from(["run", "--nonsense", "busybox"]).unwrap().args;
        assert!(unknown.image().unwrap_err().to_string().contains("--nonsense"));
    }

    #[test]
    fn exit_codes_say_whose_failure_it_is() {
        let check = |error: &str, expect: Failure| assert_eq!(whose(error), expect, "{error}");
        check("start the container: exec: No such file or directory (os error 2)", Failure::NotFound);
        check("start the container: exec /etc: permission denied", Failure::NotExecutable);
        check("start the container: out of memory", Failure::Ours);
        check("pull busybox: not found", Failure::Ours);
    }

    #[test]
    fn sizes() {
        let check = |text: &str, expect: Option<i64>| assert_eq!(bytes(text).ok(), expect, "{text}");
        check("512", Some(512));
        check("64M", Some(64 << 20));
        check("64MiB", Some(64 << 20));
        check("1g", Some(1 << 30));
        check("M", None);
        check("1x", None);
        check("99999999999T", None);
    }

    #[test]
    fn ports() {
        let check = |text: &str, expect: Option<(&str, i32, i32)>| {
            let found = port_mapping(text).ok();
            let found = found.as_ref().map(|port| (port.host_ip.as_str(), port.host_port, port.container_port));
            assert_eq!(found, expect, "{text}");
        };
        check("8080:80", Some(("", 8080, 80)));
        check("127.0.0.1:8080:80/udp", Some(("127.0.0.1", 8080, 80)));
        check("80", None);
        check("70000:80", None);
        check("8080:80/icmp", None);
    }

    #[test]
    fn users() {
        let check = |user: &str, expect: Option<(Option<i64>, &str, Option<i64>)>| {
            let mut context = v1::LinuxContainerSecurityContext::default();
            let found = set_user(&mut context, Some(user)).ok().map(|()| {
                let value = |number: Option<v1::Int64Value>| number.map(|number| number.value);
                (value(context.run_as_user), context.run_as_username.as_str(), value(context.run_as_group))
            });
            assert_eq!(found, expect, "{user}");
        };
        check("1000", Some((Some(1000), "", None)));
        check("1000:100", Some((Some(1000), "", Some(100))));
        check("nobody", Some((None, "nobody", None)));
        check("nobody:nogroup", None);
        check("1:x", None);
    }
}
