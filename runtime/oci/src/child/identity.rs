//! What the process is: limits, scheduling, user, capabilities, working directory, program.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, makedev, stat, umask};
use nix::unistd::{AccessFlags, faccessat};
use runtime_linux::capability::{self, Set, Sets};
use runtime_linux::{process, rlimit};

use super::{Child, Done, Held, Refusal, home};
use crate::plan::{Step, search_path};
use crate::sync::{self, Report};

/// linux/sched.h
const SCHED_DEADLINE: u32 = 6;

const CAP_SYS_ADMIN: u8 = 21;

pub(super) fn execute(step: &Step, child: &mut Child<'_>, held: &mut Held) -> Done {
    match step {
        Step::AppArmor(profile) => app_armor(profile, held)?,
        Step::Selinux(label) => selinux(label, held)?,
        Step::Stdio { owner } => standard_streams(*owner)?,
        Step::Rlimit { resource, soft, hard, .. } => rlimit::set(*resource, *soft, *hard)?,
        Step::Scheduler(scheduling) => process::set_scheduling(scheduling).map_err(|errno| {
            // sched_setattr(2), EPERM: a deadline takes an affinity of all CPUs.
            let words =
                "process scheduler can't be used together with AllowedCPUs: a deadline needs all CPUs of the host";
            if errno == Errno::EPERM && scheduling.policy == SCHED_DEADLINE {
                Refusal::said(errno, words)
            } else {
                errno.into()
            }
        })?,
        Step::IoPriority { class, level } => process::set_io_priority(*class, *level)?,
        Step::Affinity(cpus) => process::set_cpu_affinity(0, cpus)?,
        Step::MemoryPolicy { mode, nodes } => process::set_memory_policy(*mode, nodes)?,
        Step::Personality(value) => process::set_personality(*value)?,
        Step::NoNewPrivileges => nix::sys::prctl::set_no_new_privs()?,
        Step::Identity { uid, gid, groups, capabilities, keep_admin } => {
            held.is_in_directory = enter_early(child);
            identity(*uid, *gid, groups.as_deref(), *capabilities, *keep_admin)?;
            tell_of_ambient(child, *capabilities)?;
        }
        Step::FinalCapabilities(capabilities) => apply(*capabilities, Set::EMPTY)?,
        Step::Umask(mask) => drop(umask(Mode::from_bits_truncate(*mask))),
        Step::WorkingDirectory(path) => match working_directory(path) {
            // We are there already: the user may not go to its own working directory, and runc lets it begin there.
            Err(refusal) if held.is_in_directory && refusal.is(Errno::EACCES) => {}
            other => other?,
        },
        Step::FindProgram => {
            held.program = Some(find_program(child)?);
            held.home = home::variable(child.environment);
        }
        Step::CloseDescriptors => {
            // Nothing of the host's is open when the working directory is chosen (CVE-2024-21626).
            *held = Held::default();
            process::close_on_exec_from(3)?;
        }
        Step::KeepDescriptors(numbers) => process::keep_over_exec(numbers)?,
        other => return Err(Refusal::words(format!("{other} is not a step of a process"))),
    }
    Ok(())
}

/// Goes to the working directory with the rights that are still there, and before the user could be refused.
fn enter_early(child: &Child<'_>) -> bool {
    let directory = child.setup.iter().find_map(|step| match step {
        Step::WorkingDirectory(path) => Some(path.as_path()),
        _ => None,
    });
    // Whoever lacks our rights to it may have its own: it is tried again as the user.
    directory.is_some_and(|path| path != Path::new("/") && working_directory(path).is_ok())
}

/// Those that the other sets do not hold cannot be raised: the container works without, and whoever asked hears of it.
fn tell_of_ambient(child: &Child<'_>, wanted: Sets) -> Done {
    let possible = wanted.ambient.intersection(wanted.permitted).intersection(wanted.inheritable);
    let lost = wanted.ambient.difference(possible);
    if lost.is_empty() {
        return Ok(());
    }
    for (number, name) in (0..).zip(capability::names()) {
        if lost.contains(number) {
            let text = format!("can't raise ambient capability {name}: it is not both permitted and inheritable");
            sync::send_report(&child.sync, &Report::Warning(text))?;
        }
    }
    Ok(())
}

fn app_armor(profile: &str, held: &Held) -> Done {
    let proc = super::proc(held)?;
    let value = format!("exec {profile}");
    let file = if proc.open("self/attr/apparmor/exec", OFlag::O_PATH).is_ok() {
        "self/attr/apparmor/exec"
    } else {
        "self/attr/exec"
    };
    proc.write(file, value.as_bytes())
        .map_err(|errno| Refusal::said(errno, "does this host have AppArmor, and the profile loaded?"))
}

fn selinux(label: &str, held: &Held) -> Done {
    let written = super::proc(held)?.write("self/attr/exec", label.as_bytes());
    written.map_err(|errno| Refusal::said(errno, "does this host have SELinux, and does its policy know the label?"))
}

/// So that a container's user can open /dev/stderr again when it is a pipe, and that nothing of the host's file systems stays open: a
/// checkpoint could not name it.
fn standard_streams(owner: Option<(u32, u32)>) -> Done {
    let mut null = None;
    for number in 0..=2 {
        let Some(stream) = process::standard_stream(number) else { continue };
        let status = fstat(stream)?;
        if is_null(&status) {
            null = null.or_else(own_null);
            if let Some(null) = &null {
                process::place(null.as_fd(), number)?;
            }
            continue;
        }
        let Some((uid, gid)) = owner.filter(|(uid, _)| *uid != status.st_uid) else { continue };
        match process::give(stream, uid, Some(gid)) {
            // Not ours to give: a read-only file system, an id that is not mapped, somebody else's file.
            Ok(()) | Err(Errno::EROFS | Errno::EINVAL | Errno::EPERM) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn is_null(status: &FileStat) -> bool {
    SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR && status.st_rdev == makedev(1, 3)
}

/// The container's /dev/null, where it has a real one.
fn own_null() -> Option<OwnedFd> {
    let open = |flags| {
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = nix::fcntl::open(Path::new("/dev/null"), flags, Mode::empty()).ok()?;
        fstat(&file).is_ok_and(|status| is_null(&status)).then_some(file)
    };
    // Looked at before it is opened, since the image may have put anything there, and afterwards, since somebody inside may have meanwhile.
    open(OFlag::O_PATH)?;
    open(OFlag::O_RDWR | OFlag::O_NOCTTY)
}

fn identity(uid: u32, gid: u32, groups: Option<&[u32]>, wanted: Sets, keep_admin: bool) -> Done {
    // Like runc, what the host itself does not have is left out.
    let (_, have) = capability::current()?;
    capability::limit_bounding(wanted.bounding)?;
    nix::sys::prctl::set_keepcaps(true)?;
    match process::set_identity(uid, gid, groups) {
        // setgroups is denied in a user namespace that an unprivileged user mapped; without groups there is nothing to set.
        Err(Errno::EPERM) if groups.is_some_and(<[u32]>::is_empty) => process::set_identity(uid, gid, None)?,
        other => other?,
    }
    let wanted = Sets {
        bounding: wanted.bounding,
        effective: wanted.effective.intersection(have),
        permitted: wanted.permitted.intersection(have),
        inheritable: wanted.inheritable.intersection(have),
        ambient: wanted.ambient.intersection(have),
    };
    let mut extra = Set::EMPTY;
    if keep_admin {
        extra.insert(CAP_SYS_ADMIN);
    }
    apply(wanted, extra.intersection(have))?;
    Ok(())
}

fn apply(wanted: Sets, extra: Set) -> Done {
    let (_, have) = capability::current()?;
    let limit = |set: Set| set.intersection(have);
    let permitted = limit(wanted.permitted).union(limit(extra));
    let effective = limit(wanted.effective).intersection(permitted).union(limit(extra));
    let inheritable = limit(wanted.inheritable);
    capability::set(effective, permitted, inheritable)?;
    // Ambient capabilities that the other sets do not hold would be refused; runc drops them too.
    let ambient = wanted.ambient.intersection(permitted).intersection(inheritable);
    Ok(capability::set_ambient(ambient)?)
}

/// The directory must be inside the root: a descriptor of the host's, inherited, would lead out (CVE-2024-21626).
fn working_directory(path: &Path) -> Done {
    nix::unistd::chdir(path)?;
    verify_working_directory()
}

/// getcwd(2): "(unreachable)" in front for a directory outside the root, or ENOENT for one that was removed.
pub(super) fn verify_working_directory() -> Done {
    let current = nix::unistd::getcwd()?;
    if current.is_absolute() { Ok(()) } else { Err(Refusal::said(Errno::ENOENT, "it is outside the container's root")) }
}

fn find_program(child: &Child<'_>) -> Result<CString, Refusal> {
    let name = child.arguments.first().ok_or(Errno::EINVAL)?;
    let finish = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(|_| Refusal::from(Errno::EINVAL));
    if name.contains('/') {
        return match runnable(Path::new(name)) {
            Ok(()) => finish(Path::new(name)),
            Err(errno @ Errno::ENOENT) => Err(Refusal::said(errno, format!("\"{name}\": stat {name}"))),
            Err(errno) => Err(Refusal::said(errno, format!("\"{name}\""))),
        };
    }
    let mut denied = None;
    for dir in search_path(child.environment) {
        let path: PathBuf = dir.join(name);
        match runnable(&path) {
            Ok(()) => return finish(&path),
            Err(errno @ (Errno::EACCES | Errno::EPERM)) => denied = Some(errno),
            Err(_) => {}
        }
    }
    match denied {
        Some(errno) => Err(Refusal::said(errno, format!("\"{name}\""))),
        // The words that podman and the kubelet know.
        None => Err(Refusal::words(format!("\"{name}\": executable file not found in $PATH"))),
    }
}

fn runnable(path: &Path) -> Result<(), Errno> {
    let status = stat(path)?;
    if SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return Err(Errno::EACCES);
    }
    // By the effective user with its capabilities, as execve(2) will see it; access(2) leaves those of who is not root out.
    faccessat(AT_FDCWD, path, AccessFlags::X_OK, AtFlags::AT_EACCESS)
}
