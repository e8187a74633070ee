//! exec: the container's own process with changes, or a whole process from a file.

use oci_spec::runtime::{Capability, LinuxCapabilities, Process};
use runtime_oci::{ExecOptions, Execed, StateRoot, SubCgroup};

use super::arguments::Exec;
use super::lifecycle::{check_console, listen_fds, parse_id, secure_self, write_pid_file};
use super::report::Reporter;
use super::{Error, foreground};

pub(crate) fn exec(root: &StateRoot, exec: &Exec, reporter: &Reporter) -> Result<u8, Error> {
    let id = parse_id(&exec.id)?;
    let preserve = secure_self(exec.preserve_fds.saturating_add(listen_fds()))?;
    // Before the process is known, so that "no such container" comes first.
    runtime_oci::state(root, &id)?;
    warn_of_unused(exec, reporter);
    let process = process(runtime_oci::configured_process(root, &id)?, exec, reporter)?;
    let terminal = process.terminal() == Some(true);
    check_console(terminal, exec.detach, exec.console_socket.as_ref())?;
    let signals = if exec.detach { None } else { Some(foreground::Signals::take()?) };
    let options = ExecOptions {
        preserve_fds: preserve,
        sub_cgroups: sub_cgroups(&exec.cgroup)?,
        ignore_paused: exec.ignore_paused,
        ..ExecOptions::default()
    };
    let Execed { pid, pidfd, mut console, warnings } = runtime_oci::exec(root, &id, &process, options)?;
    reporter.warnings(&warnings);
    if let (Some(socket), Some(master)) = (&exec.console_socket, console.take_if(|_| exec.detach)) {
        runtime_oci::send_console(socket, &master)?;
    }
    if let Some(socket) = &exec.pidfd_socket {
        runtime_oci::send_pidfd(socket, &pidfd)?;
    }
    write_pid_file(exec.pid_file.as_deref(), pid)?;
    reporter.debug(|| format!("process {pid} runs in container {id}"));
    let Some(signals) = signals else { return Ok(0) };
    let console = foreground::Console::new(console, terminal)?;
    foreground::wait(&pidfd, &signals, console)
}

/// A process from a file is taken whole, as runc takes it. Of --tty nothing is said: conmon gives it beside a file that says the same.
fn warn_of_unused(exec: &Exec, reporter: &Reporter) {
    let given = [
        ("--cwd", exec.cwd.is_some()),
        ("--env", !exec.env.is_empty()),
        ("--user", exec.user.is_some()),
        ("--additional-gids", !exec.additional_gids.is_empty()),
        ("--cap", !exec.cap.is_empty()),
        ("--apparmor", exec.apparmor.is_some()),
        ("--process-label", exec.process_label.is_some()),
        ("--no-new-privs", exec.no_new_privs),
        ("the command", !exec.command.is_empty()),
    ];
    if exec.process.is_some() {
        let unused = given.iter().filter(|(_, is_given)| *is_given);
        let warnings: Vec<_> =
            unused.map(|(flag, _)| format!("{flag} has no effect beside --process: put it into that file")).collect();
        reporter.warnings(&warnings);
    }
}

/// `PATH` for every hierarchy, or `CONTROLLER[,CONTROLLER]:PATH` for some, each once.
fn sub_cgroups(texts: &[String]) -> Result<Vec<SubCgroup>, Error> {
    let bad = |text: &str, why: &str| Err(Error::Usage(format!("invalid --cgroup argument {text}: {why}")));
    let mut all: Vec<SubCgroup> = Vec::new();
    for text in texts {
        let Some((controllers, path)) = text.split_once(':') else {
            if texts.len() != 1 {
                return bad(text, "of several, each needs its controller in front, as memory:PATH");
            }
            return Ok(vec![SubCgroup { controllers: Vec::new(), path: text.clone() }]);
        };
        let controllers: Vec<String> = controllers.split(',').map(str::to_owned).collect();
        if controllers.iter().any(String::is_empty) {
            return bad(text, "a controller's name is empty");
        }
        if all.iter().any(|other| other.controllers.iter().any(|controller| controllers.contains(controller))) {
            return bad(text, "a controller is named twice");
        }
        all.push(SubCgroup { controllers, path: path.to_owned() });
    }
    Ok(all)
}

/// A process without a user is root's, as runc reads it.
fn with_user(text: Vec<u8>) -> Result<Vec<u8>, serde_json::Error> {
    let mut value: serde_json::Value = serde_json::from_slice(&text)?;
    match value.as_object_mut() {
        Some(process) if process.get("user").is_none_or(serde_json::Value::is_null) => {
            process.insert("user".to_owned(), serde_json::json!({ "uid": 0, "gid": 0 }));
            serde_json::to_vec(&value)
        }
        _ => Ok(text),
    }
}

fn process(mut process: Process, exec: &Exec, reporter: &Reporter) -> Result<Process, Error> {
    if let Some(path) = &exec.process {
        let what = || format!("read process {}", path.display());
        let text = std::fs::read(path).map_err(Error::io(what()))?;
        let text = with_user(text).map_err(|source| Error::Json { what: what(), source })?;
        let (process, warnings) =
            runtime_oci::parse_process(&text).map_err(|source| Error::Json { what: what(), source })?;
        reporter.warnings(&warnings);
        return Ok(process);
    }
    if exec.command.is_empty() {
        return Err(Error::Usage("what is to be run? Give a command after the id, or --process".to_owned()));
    }
    process.set_args(Some(exec.command.clone())).set_terminal(Some(exec.tty)).set_console_size(None);
    if let Some(cwd) = &exec.cwd {
        process.set_cwd(cwd.clone());
    }
    if exec.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if exec.apparmor.is_some() {
        process.set_apparmor_profile(exec.apparmor.clone());
    }
    if exec.process_label.is_some() {
        process.set_selinux_label(exec.process_label.clone());
    }
    let mut environment = process.env().clone().unwrap_or_default();
    environment.extend(exec.env.iter().cloned());
    process.set_env(Some(environment));
    let mut user = process.user().clone();
    if let Some(text) = &exec.user {
        let (uid, gid) = parse_user(text)?;
        user.set_uid(uid);
        if let Some(gid) = gid {
            user.set_gid(gid);
        }
    }
    if !exec.additional_gids.is_empty() {
        let mut groups = user.additional_gids().clone().unwrap_or_default();
        groups.extend(&exec.additional_gids);
        user.set_additional_gids(Some(groups));
    }
    process.set_user(user);
    if !exec.cap.is_empty() {
        let sets = add_capabilities(process.capabilities().clone().unwrap_or_default(), &exec.cap)?;
        process.set_capabilities(Some(sets));
    }
    Ok(process)
}

/// Digits only: what is not exactly an id is an error, never root (CVE-2026-30892).
fn parse_user(text: &str) -> Result<(u32, Option<u32>), Error> {
    let number = |part: &str| {
        let is_plain = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        // 2^32 - 1 is "no change" to setuid(2), so nobody has it.
        part.parse::<u32>().ok().filter(|id| is_plain && *id != u32::MAX).ok_or_else(|| {
            Error::Usage(format!("--user \"{text}\" is not UID or UID:GID, both numbers below 4294967295"))
        })
    };
    match text.split_once(':') {
        Some((uid, gid)) => Ok((number(uid)?, Some(number(gid)?))),
        None => Ok((number(text)?, None)),
    }
}

/// Never the inheritable set (CVE-2022-29162), and the ambient one only as far as what is inheritable is asked for.
fn add_capabilities(mut sets: LinuxCapabilities, names: &[String]) -> Result<LinuxCapabilities, Error> {
    let mut added = Vec::new();
    for name in names {
        let upper = name.to_ascii_uppercase();
        let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let capability: Capability =
            short.parse().map_err(|_| Error::Usage(format!("--cap {name} is not a capability")))?;
        added.push(capability);
    }
    let with = |old: &Option<oci_spec::runtime::Capabilities>| {
        let mut set = old.clone().unwrap_or_default();
        set.extend(added.iter().copied());
        Some(set)
    };
    let (bounding, effective, permitted) = (with(sets.bounding()), with(sets.effective()), with(sets.permitted()));
    let inheritable = sets.inheritable().clone().unwrap_or_default();
    let mut ambient = sets.ambient().clone().unwrap_or_default();
    ambient.extend(added.iter().copied().filter(|capability| inheritable.contains(capability)));
    sets.set_bounding(bounding).set_effective(effective).set_permitted(permitted).set_ambient(Some(ambient));
    Ok(sets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sub_cgroups_are_named_once() {
        let parse = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|&text| text.to_owned()).collect();
            sub_cgroups(&texts).ok().map(|all| all.iter().map(|sub| sub.controllers.len()).collect::<Vec<_>>())
        };
        assert_eq!(parse(&["/a"]), Some(vec![0]));
        assert_eq!(parse(&["memory:a", "cpu,cpuacct:b"]), Some(vec![1, 2]));
        for bad in [&["a", "b"][..], &[":a"], &["cpu:a", "cpu:b"], &["cpu,:a"]] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn users_are_exact() {
        for (text, expect) in [
            ("1", Some((1, None))),
            ("0", Some((0, None))),
            ("1:2", Some((1, Some(2)))),
            ("4294967294", Some((4_294_967_294, None))),
            ("1:", None),
            (":1", None),
            ("", None),
            ("root", None),
            ("1:2:3", None),
            ("-1", None),
            ("+1", None),
            ("4294967295", None),
            ("4294967296", None),
            (" 0", None),
            ("0x1", None),
            ("nobody:nogroup", None),
        ] {
            assert_eq!(parse_user(text).ok(), expect, "{text:?}");
        }
    }
}
