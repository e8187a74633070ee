//! checkpoint and restore, by criu: its options, and its part of a container's life.

use std::fs::{File, OpenOptions};
use std::path::Path;

use runtime_oci::{Bundle, Criu, CriuOptions, Deletion, Dump, ManageCgroups, NetworkLock, PageServer, StateRoot};

use super::arguments::{CgroupsMode, Checkpoint, Dumping, Global, LockMethod, Restore};
use super::lifecycle::{self, Wait, parse_id};
use super::report::Reporter;
use super::{Error, foreground};

pub(crate) fn checkpoint(root: &StateRoot, global: &Global, checkpoint: &Checkpoint) -> Result<u8, Error> {
    let id = parse_id(&checkpoint.id)?;
    let mut options = options(&checkpoint.dumping)?;
    if let Some(parent) = &checkpoint.parent_path {
        check_parent(&checkpoint.dumping.image_path, parent)?;
        options.parent_img = Some(parent.display().to_string());
    }
    options.tcp_skip_in_flight = Some(checkpoint.tcp_skip_in_flight);
    options.link_remap = Some(checkpoint.link_remap);
    options.track_mem = Some(checkpoint.pre_dump || checkpoint.parent_path.is_some());
    options.ps = checkpoint.page_server.as_deref().map(page_server).transpose()?;
    let ready = checkpoint.status_fd.map(descriptor).transpose()?;
    let dump = match (checkpoint.pre_dump, checkpoint.leave_running) {
        (true, _) => Dump::PreDump,
        (false, true) => Dump::LeaveRunning,
        (false, false) => Dump::Stop,
    };
    runtime_oci::checkpoint(root, &id, &criu(global, &checkpoint.dumping, options)?, dump, ready)?;
    Ok(0)
}

pub(crate) fn restore(root: &StateRoot, global: &Global, restore: &Restore, reporter: &Reporter) -> Result<u8, Error> {
    let id = parse_id(&restore.id)?;
    let bundle = Bundle::load(&restore.bundle)?;
    let terminal = bundle.spec().process().as_ref().is_some_and(|process| process.terminal() == Some(true));
    lifecycle::check_console(terminal, restore.detach, restore.console_socket.as_ref())?;
    let mut options = options(&restore.dumping)?;
    options.tcp_close = Some(restore.tcp_close);
    options.lsm_profile.clone_from(&restore.lsm_profile);
    options.lsm_mount_context.clone_from(&restore.lsm_mount_context);
    let signals = if restore.detach { None } else { Some(foreground::Signals::take()?) };
    let criu = criu(global, &restore.dumping, options)?;
    let mut created = runtime_oci::restore(root, &id, &bundle, &criu, lifecycle::cgroups(global))?;
    reporter.warnings(&created.warnings);
    let undo = |error: Error| {
        // The first error is the one to tell.
        let _second = runtime_oci::delete(root, &id, Deletion::Force);
        error
    };
    if let (Some(socket), Some(master)) = (&restore.console_socket, created.console.take_if(|_| restore.detach)) {
        runtime_oci::send_console(socket, &master).map_err(|error| undo(error.into()))?;
    }
    lifecycle::write_pid_file(restore.pid_file.as_deref(), created.pid).map_err(undo)?;
    let Some(signals) = signals else { return Ok(0) };
    let console = foreground::Console::new(created.console, terminal).map_err(undo)?;
    Wait { root, id: &id, process: &created.pidfd, signals: &signals, keep: false, reporter }.for_end(console)
}

/// Paths are ours to resolve: criu works in another directory.
fn criu(global: &Global, dumping: &Dumping, options: CriuOptions) -> Result<Criu, Error> {
    let absolute = |path: &Path| std::path::absolute(path).map_err(Error::io(format!("find {}", path.display())));
    Ok(Criu {
        program: global.criu.clone(),
        images: absolute(&dumping.image_path)?,
        work: dumping.work_path.as_deref().map(absolute).transpose()?,
        options,
    })
}

fn options(dumping: &Dumping) -> Result<CriuOptions, Error> {
    if let Some(namespace) = dumping.empty_ns.iter().find(|namespace| *namespace != "network") {
        return Err(Error::Usage(format!("--empty-ns {namespace}: criu can make an empty network namespace only")));
    }
    let network = nix::sched::CloneFlags::CLONE_NEWNET.bits().cast_unsigned();
    let mode = match dumping.manage_cgroups_mode {
        CgroupsMode::Soft => ManageCgroups::Soft,
        CgroupsMode::Full => ManageCgroups::Full,
        CgroupsMode::Strict => ManageCgroups::Strict,
        CgroupsMode::Ignore => ManageCgroups::Ignore,
    };
    let lock = |method| match method {
        LockMethod::Iptables => NetworkLock::Iptables as i32,
        LockMethod::Nftables => NetworkLock::Nftables as i32,
        LockMethod::Skip => NetworkLock::Skip as i32,
    };
    let mut options = CriuOptions::default();
    options.tcp_established = Some(dumping.tcp_established);
    options.ext_unix_sk = Some(dumping.ext_unix_sk);
    options.shell_job = Some(dumping.shell_job);
    options.file_locks = Some(dumping.file_locks);
    options.lazy_pages = Some(dumping.lazy_pages);
    options.auto_dedup = Some(dumping.auto_dedup);
    options.manage_cgroups_mode = Some(mode as i32);
    options.network_lock = dumping.network_lock.map(lock);
    options.empty_ns = (!dumping.empty_ns.is_empty()).then_some(network);
    Ok(options)
}

fn page_server(text: &str) -> Result<PageServer, Error> {
    let usage = |why: &str| Error::Usage(format!("--page-server {text}: {why}"));
    let (address, port) = text
        .rsplit_once(':')
        .filter(|(address, _)| !address.is_empty())
        .ok_or_else(|| usage("it is told as ADDRESS:PORT"))?;
    let port: u16 = port.parse().map_err(|_| usage(&format!("{port} is not a port")))?;
    Ok(PageServer { address: Some(address.to_owned()), port: Some(port.into()) })
}

/// One that the caller has left open for us.
fn descriptor(number: i32) -> Result<File, Error> {
    let path = format!("/proc/self/fd/{number}");
    OpenOptions::new().write(true).open(path).map_err(Error::io(format!("open --status-fd {number}")))
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
