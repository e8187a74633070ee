//! checkpoint and restore, by criu: its options, and its part of a container's life.

use std::path::Path;

use clap::ValueEnum;
use runtime_oci::{Bundle, Criu, Dump, StateRoot};

use super::arguments::{Checkpoint, Dumping, Global, Restore};
use super::lifecycle::{self, Wait, parse_id};
use super::report::Reporter;
use super::{Error, foreground};

pub(crate) fn checkpoint(root: &StateRoot, global: &Global, checkpoint: &Checkpoint) -> Result<u8, Error> {
    let id = parse_id(&checkpoint.id)?;
    let mut options = options(&checkpoint.dumping)?;
    if let Some(parent) = &checkpoint.parent_path {
        check_parent(&checkpoint.dumping.image_path, parent)?;
        options.extend(["--prev-images-dir".to_owned(), parent.display().to_string()]);
    }
    for (flag, is_given) in [
        ("--skip-in-flight", checkpoint.tcp_skip_in_flight),
        ("--link-remap", checkpoint.link_remap),
        ("--track-mem", checkpoint.pre_dump || checkpoint.parent_path.is_some()),
    ] {
        options.extend(is_given.then(|| flag.to_owned()));
    }
    if let Some(descriptor) = checkpoint.status_fd {
        options.extend(["--status-fd".to_owned(), descriptor.to_string()]);
    }
    if let Some(server) = &checkpoint.page_server {
        let (address, port) = server
            .rsplit_once(':')
            .filter(|(address, _)| !address.is_empty())
            .ok_or_else(|| Error::Usage(format!("--page-server {server}: it is told as ADDRESS:PORT")))?;
        let port: u16 =
            port.parse().map_err(|_| Error::Usage(format!("--page-server {server}: {port} is not a port")))?;
        options.extend(["--page-server".to_owned(), "--address".to_owned(), address.to_owned()]);
        options.extend(["--port".to_owned(), port.to_string()]);
    }
    let dump = match (checkpoint.pre_dump, checkpoint.leave_running) {
        (true, _) => Dump::PreDump,
        (false, true) => Dump::LeaveRunning,
        (false, false) => Dump::Stop,
    };
    runtime_oci::checkpoint(root, &id, &criu(global, &checkpoint.dumping, options)?, dump)?;
    Ok(0)
}

pub(crate) fn restore(root: &StateRoot, global: &Global, restore: &Restore, reporter: &Reporter) -> Result<u8, Error> {
    let id = parse_id(&restore.id)?;
    if restore.console_socket.is_some() {
        return Err(Error::Usage(
            "--console-socket: criu's command line cannot hand on a terminal; restore containers without one"
                .to_owned(),
        ));
    }
    let bundle = Bundle::load(&restore.bundle)?;
    let mut options = options(&restore.dumping)?;
    options.extend(restore.tcp_close.then(|| "--tcp-close".to_owned()));
    for (flag, value) in [("--lsm-profile", &restore.lsm_profile), ("--lsm-mount-context", &restore.lsm_mount_context)]
    {
        if let Some(value) = value {
            options.extend([flag.to_owned(), value.clone()]);
        }
    }
    let signals = if restore.detach { None } else { Some(foreground::Signals::take()?) };
    let criu = criu(global, &restore.dumping, options)?;
    let created = runtime_oci::restore(root, &id, &bundle, &criu, lifecycle::cgroups(global))?;
    reporter.warnings(&created.warnings);
    lifecycle::write_pid_file(restore.pid_file.as_deref(), created.pid)?;
    let Some(signals) = signals else { return Ok(0) };
    Wait { root, id: &id, process: &created.pidfd, signals: &signals, keep: false, reporter }.for_end(None)
}

/// Paths are ours to resolve: criu works in another directory.
fn criu(global: &Global, dumping: &Dumping, options: Vec<String>) -> Result<Criu, Error> {
    let absolute = |path: &Path| std::path::absolute(path).map_err(Error::io(format!("find {}", path.display())));
    Ok(Criu {
        program: global.criu.clone(),
        images: absolute(&dumping.image_path)?,
        work: dumping.work_path.as_deref().map(absolute).transpose()?,
        options,
    })
}

fn options(dumping: &Dumping) -> Result<Vec<String>, Error> {
    let mut words = Vec::new();
    for (flag, is_given) in [
        ("--tcp-established", dumping.tcp_established),
        ("--ext-unix-sk", dumping.ext_unix_sk),
        ("--shell-job", dumping.shell_job),
        ("--file-locks", dumping.file_locks),
        ("--lazy-pages", dumping.lazy_pages),
        ("--auto-dedup", dumping.auto_dedup),
    ] {
        words.extend(is_given.then(|| flag.to_owned()));
    }
    words.push(format!("--manage-cgroups={}", name(&dumping.manage_cgroups_mode)));
    if let Some(method) = &dumping.network_lock {
        words.extend(["--network-lock".to_owned(), name(method)]);
    }
    for namespace in &dumping.empty_ns {
        if namespace != "network" {
            return Err(Error::Usage(format!("--empty-ns {namespace}: criu can make an empty network namespace only")));
        }
        words.extend(["--empty-ns".to_owned(), "net".to_owned()]);
    }
    Ok(words)
}

fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// criu keeps a link to it beside the new images, so it has to hold wherever they are moved.
fn check_parent(images: &Path, parent: &Path) -> Result<(), Error> {
    let invalid = |why: &str| Err(Error::Usage(format!("invalid --parent-path {}: {why}", parent.display())));
    if parent.is_absolute() {
        return invalid("it must be relative to --image-path");
    }
    match std::fs::metadata(images.join(parent)) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => invalid("it is not a directory"),
        Err(error) => invalid(&error.to_string()),
    }
}
