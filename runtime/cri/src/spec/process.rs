//! `process`: arguments, environment, working directory, user, rights. Pure.

use oci_spec::runtime::{LinuxCapabilities, Process, Spec, User as OciUser};
use runtime_cri_api::v1::{LinuxContainerSecurityContext, SecurityProfile, security_profile::ProfileType};

use super::{Inputs, SpecError, capabilities, container_resources};

/// For images that set none, as every runtime does.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) fn plan(inputs: &Inputs<'_>, security: &LinuxContainerSecurityContext) -> Result<Process, SpecError> {
    let image = inputs.image.config().clone().unwrap_or_default();
    let cwd = match (inputs.container.working_dir.as_str(), image.working_dir().as_deref()) {
        ("", None | Some("")) => "/",
        ("", Some(image)) => image,
        (own, _) => own,
    };
    if !cwd.starts_with('/') {
        return Err(SpecError::field("working_dir", format!("{cwd:?} is not an absolute path")));
    }
    let mut user = OciUser::default();
    user.set_uid(inputs.user.uid).set_gid(inputs.user.gid).set_additional_gids(Some(inputs.user.groups.clone()));
    let oom_score_adj = i32::try_from(container_resources(inputs.container).oom_score_adj)
        .ok()
        .filter(|score| (-1000..=1000).contains(score))
        .ok_or_else(|| SpecError::field("oom_score_adj", "is not between -1000 and 1000"))?;
    let mut process = Process::default();
    process
        .set_terminal(Some(inputs.container.tty))
        .set_user(user)
        .set_args(Some(args(inputs)?))
        .set_env(Some(env(inputs)))
        .set_cwd(cwd.into())
        .set_capabilities(Some(capabilities(security)?))
        .set_rlimits(None)
        .set_no_new_privileges(Some(security.no_new_privs))
        .set_oom_score_adj(Some(oom_score_adj))
        .set_apparmor_profile(apparmor(inputs, security)?)
        .set_selinux_label(selinux(inputs, security)?);
    Ok(process)
}

/// A further process of a container: its own process with other arguments.
pub(crate) fn exec_process(spec: &Spec, args: Vec<String>, terminal: bool) -> Process {
    let mut process = super::process_of(spec);
    let mut env = process.env().clone().unwrap_or_default();
    if terminal && !env.iter().any(|pair| pair.starts_with("TERM=")) {
        env.push("TERM=xterm".into());
    }
    process.set_args(Some(args)).set_terminal(Some(terminal)).set_env(Some(env));
    process
}

/// `command` stands for the image's entrypoint, `args` for its command; a given entrypoint drops the image's command.
fn args(inputs: &Inputs<'_>) -> Result<Vec<String>, SpecError> {
    let image = inputs.image.config().clone().unwrap_or_default();
    let (mut entrypoint, mut args) = (inputs.container.command.clone(), inputs.container.args.clone());
    if entrypoint.is_empty() {
        entrypoint = image.entrypoint().clone().unwrap_or_default();
        if args.is_empty() {
            args = image.cmd().clone().unwrap_or_default();
        }
    }
    entrypoint.extend(args);
    if entrypoint.first().is_none_or(String::is_empty) { Err(SpecError::NoCommand) } else { Ok(entrypoint) }
}

/// The image's, then the container's over it; what neither sets is filled in.
fn env(inputs: &Inputs<'_>) -> Vec<String> {
    let image = inputs.image.config().as_ref().and_then(|config| config.env().clone()).unwrap_or_default();
    let own = inputs.container.envs.iter().map(|env| format!("{}={}", env.key, String::from_utf8_lossy(&env.value)));
    let mut all: Vec<String> = Vec::new();
    let name = |pair: &str| pair.split_once('=').map_or(pair, |(name, _)| name).to_owned();
    for pair in image.into_iter().chain(own) {
        match all.iter_mut().find(|known| name(known) == name(&pair)) {
            Some(known) => *known = pair,
            None => all.push(pair),
        }
    }
    let mut default = |pair: String| {
        if !all.iter().any(|known| name(known) == name(&pair)) {
            all.push(pair);
        }
    };
    default(DEFAULT_PATH.into());
    if !inputs.sandbox.hostname.is_empty() {
        default(format!("HOSTNAME={}", inputs.sandbox.hostname));
    }
    if inputs.container.tty {
        default("TERM=xterm".into());
    }
    default(format!("HOME={}", inputs.user.home));
    all
}

fn capabilities(security: &LinuxContainerSecurityContext) -> Result<LinuxCapabilities, SpecError> {
    let wanted = security.capabilities.clone().unwrap_or_default();
    let planned = capabilities::plan(&wanted, security.privileged)?;
    let mut capabilities = LinuxCapabilities::default();
    capabilities
        .set_bounding(Some(planned.held.clone()))
        .set_effective(Some(planned.held.clone()))
        .set_permitted(Some(planned.held))
        // CVE-2022-24769: inheritable stays empty, but for what is asked to be ambient, which needs it.
        .set_inheritable(Some(planned.ambient.clone()))
        .set_ambient(Some(planned.ambient));
    Ok(capabilities)
}

fn apparmor(inputs: &Inputs<'_>, security: &LinuxContainerSecurityContext) -> Result<Option<String>, SpecError> {
    #[expect(deprecated, reason = "older kubelets send only this field")]
    let old = security.apparmor_profile.as_str();
    let profile = match (&security.apparmor, old) {
        (Some(profile), _) => profile.clone(),
        (None, "" | "runtime/default") => return Ok(None),
        (None, "unconfined") => SecurityProfile { profile_type: ProfileType::Unconfined.into(), ..Default::default() },
        (None, name) => SecurityProfile {
            profile_type: ProfileType::Localhost.into(),
            localhost_ref: name.trim_start_matches("localhost/").to_owned(),
        },
    };
    match profile.profile_type() {
        _ if security.privileged => Ok(None),
        // No profile of our own is loaded into the host, so the default is the one the runtime itself runs under.
        ProfileType::RuntimeDefault => Ok(None),
        ProfileType::Unconfined => Ok(inputs.host.apparmor.then(|| "unconfined".to_owned())),
        ProfileType::Localhost if !inputs.host.apparmor => Err(SpecError::field(
            "apparmor",
            format!("profile {:?} is asked for, but AppArmor is not enabled on this host", profile.localhost_ref),
        )),
        ProfileType::Localhost if profile.localhost_ref.is_empty() => {
            Err(SpecError::field("apparmor.localhost_ref", "is empty"))
        }
        ProfileType::Localhost => Ok(Some(profile.localhost_ref.trim_start_matches("localhost/").to_owned())),
    }
}

fn selinux(inputs: &Inputs<'_>, security: &LinuxContainerSecurityContext) -> Result<Option<String>, SpecError> {
    let Some(options) = &security.selinux_options else { return Ok(None) };
    let parts = [&options.user, &options.role, &options.r#type, &options.level];
    if security.privileged || parts.iter().all(|part| part.is_empty()) {
        return Ok(None);
    }
    if !inputs.host.selinux {
        return Err(SpecError::field("selinux_options", "are given, but SELinux is not enabled on this host"));
    }
    let part = |given: &str, default: &str| if given.is_empty() { default.to_owned() } else { given.to_owned() };
    Ok(Some(format!(
        "{}:{}:{}:{}",
        part(&options.user, "system_u"),
        part(&options.role, "system_r"),
        part(&options.r#type, "container_t"),
        part(&options.level, "s0"),
    )))
}
