//! Makes volumes on the host and takes them away: directories, tmpfs mounts, checks of host paths. Blocking.

use std::fs;
use std::os::unix::fs::{FileTypeExt, chown};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{Cause, Content, File, Nested, Owner, atomic, io};
use crate::container_config::HostMount;

/// Room for files that the kubelet writes into memory; larger than any object the API server takes.
const FILES_BYTES_MAX: u64 = 64 << 20;

pub(super) fn make(
    pod_dir: &Path,
    name: &str,
    content: Content,
    owner: Owner,
    nested: &[Nested],
) -> Result<HostMount, Cause> {
    let volumes = pod_dir.join("volumes");
    match content {
        Content::EmptyDir { memory, size_bytes } => {
            let dir = volumes.join("kubernetes.io~empty-dir").join(name);
            empty_dir(&dir, memory, size_bytes, owner)?;
            Ok(HostMount { host_path: dir, read_only: false })
        }
        Content::HostPath { path, kind } => {
            host_path(&path, &kind)?;
            Ok(HostMount { host_path: path, read_only: false })
        }
        Content::Claimed { path, read_only } => {
            if !path.exists() {
                return Err(Cause::HostPathType { path: path.display().to_string(), expected: "there" });
            }
            Ok(HostMount { host_path: path, read_only })
        }
        Content::Files { kind, files, memory } => {
            let dir = volumes.join(kind).join(name);
            files_dir(&dir, &files, memory, owner, nested)?;
            // Upstream: what the kubelet writes, containers only read.
            Ok(HostMount { host_path: dir, read_only: true })
        }
    }
}

/// Places for other volumes inside this one, which its reader cannot make.
fn mount_points(dir: &Path, nested: &[Nested]) -> Result<(), Cause> {
    for point in nested {
        let path = dir.join(&point.path);
        if fs::symlink_metadata(&path).is_ok() {
            continue;
        }
        let parent = if point.is_file { path.parent().unwrap_or(dir) } else { &path };
        make_dirs(parent)?;
        if point.is_file {
            fs::OpenOptions::new().create(true).append(true).open(&path).map_err(io("create", &path))?;
            atomic::set_mode(&path, 0o644)?;
        }
    }
    Ok(())
}

/// Makes what is missing of `path`, each directory with mode 0755 whatever the umask.
fn make_dirs(path: &Path) -> Result<(), Cause> {
    let mut missing: Vec<&Path> = path.ancestors().take_while(|dir| !dir.exists()).collect();
    while let Some(dir) = missing.pop().filter(|dir| !dir.as_os_str().is_empty()) {
        match fs::create_dir(dir) {
            Ok(()) => atomic::set_mode(dir, 0o755)?,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(io("create", dir)(error)),
        }
    }
    Ok(())
}

fn files_dir(dir: &Path, files: &[File], memory: bool, owner: Owner, nested: &[Nested]) -> Result<(), Cause> {
    fs::create_dir_all(dir).map_err(io("create", dir))?;
    if memory {
        ensure_tmpfs(dir, Some(FILES_BYTES_MAX))?;
    }
    atomic::set_mode(dir, 0o777)?;
    mount_points(dir, nested)?;
    atomic::write(dir, files, owner)
}

fn empty_dir(dir: &Path, memory: bool, size_bytes: Option<u64>, owner: Owner) -> Result<(), Cause> {
    let existed = dir.exists();
    fs::create_dir_all(dir).map_err(io("create", dir))?;
    if memory {
        ensure_tmpfs(dir, size_bytes)?;
    }
    if existed {
        return Ok(());
    }
    atomic::set_mode(dir, 0o777)?;
    if let Some(group) = owner.group {
        chown(dir, None, Some(group)).map_err(io("chown", dir))?;
        atomic::set_mode(dir, 0o2777)?;
    }
    Ok(())
}

fn ensure_tmpfs(dir: &Path, size_bytes: Option<u64>) -> Result<(), Cause> {
    if mounts_below(dir).map_err(io("read mounts of", dir))?.iter().any(|m| m == dir) {
        return Ok(());
    }
    let options = size_bytes.map(|b| format!("size={b}"));
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), dir, Some("tmpfs"), flags, options.as_deref())
        .map_err(|errno| io("mount tmpfs on", dir)(errno.into()))
}

fn host_path(path: &Path, kind: &str) -> Result<(), Cause> {
    let wrong = |expected| Err(Cause::HostPathType { path: path.display().to_string(), expected });
    let found = fs::metadata(path).ok();
    let is = |check: fn(&fs::FileType) -> bool| found.as_ref().is_some_and(|m| check(&m.file_type()));
    match kind {
        "" => Ok(()),
        "DirectoryOrCreate" if found.is_none() => make_dirs(path),
        "FileOrCreate" if found.is_none() => {
            fs::OpenOptions::new().create(true).append(true).open(path).map_err(io("create", path))?;
            atomic::set_mode(path, 0o644)
        }
        "Directory" | "DirectoryOrCreate" if is(fs::FileType::is_dir) => Ok(()),
        "Directory" | "DirectoryOrCreate" => wrong("a directory"),
        "File" | "FileOrCreate" if is(fs::FileType::is_file) => Ok(()),
        "File" | "FileOrCreate" => wrong("a file"),
        "Socket" if is(fs::FileType::is_socket) => Ok(()),
        "Socket" => wrong("a socket"),
        "CharDevice" if is(fs::FileType::is_char_device) => Ok(()),
        "CharDevice" => wrong("a character device"),
        "BlockDevice" if is(fs::FileType::is_block_device) => Ok(()),
        "BlockDevice" => wrong("a block device"),
        other => Err(Cause::HostPathKind { path: path.display().to_string(), kind: other.into() }),
    }
}

/// Mount points at or below `dir`, in the order in which they were made.
fn mounts_below(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let dir = fs::canonicalize(dir)?;
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(|field| PathBuf::from(unescape(field)));
    Ok(points.filter(|point| point.starts_with(&dir)).collect())
}

/// proc(5): space, tab, newline and backslash are written as `\ooo`.
fn unescape(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// Unmounts everything below the directory of a pod, or of all; files stay. Idempotent; what is gone is done.
///
/// # Errors
/// If a mount stays.
pub fn unmount(pod_dir: &Path) -> Result<(), Cause> {
    if !pod_dir.exists() {
        return Ok(());
    }
    for point in mounts_below(pod_dir).map_err(io("read mounts of", pod_dir))?.iter().rev() {
        umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .map_err(|errno| io("unmount", point)(errno.into()))?;
    }
    if let Some(left) = mounts_below(pod_dir).map_err(io("read mounts of", pod_dir))?.first() {
        let busy = std::io::Error::from(std::io::ErrorKind::ResourceBusy);
        return Err(io("unmount", left)(busy));
    }
    Ok(())
}

/// Unmounts everything below a pod's directory, then removes it, whatever the pod has made of it. Idempotent; what is gone is done.
///
/// # Errors
/// If a mount stays or a file cannot be removed; nothing is deleted while a mount is left.
pub fn teardown(pod_dir: &Path) -> Result<(), Cause> {
    unmount(pod_dir)?;
    runtime_linux::tree::remove(pod_dir).map_err(|error| io("remove", pod_dir)(error.into_io()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_paths_are_what_they_claim() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "x").unwrap();
        let check = |path: &Path, kind: &str, good: bool| assert_eq!(host_path(path, kind).is_ok(), good, "{kind}");
        check(dir.path(), "Directory", true);
        check(&file, "Directory", false);
        check(&file, "File", true);
        check(&dir.path().join("new/er"), "DirectoryOrCreate", true);
        check(&dir.path().join("g"), "FileOrCreate", true);
        check(&dir.path().join("none"), "File", false);
        check(&dir.path().join("none"), "", true);
        check(Path::new("/dev/null"), "CharDevice", true);
        check(Path::new("/dev/null"), "BlockDevice", false);
        check(&file, "Socket", false);
        check(&file, "Nonsense", false);
    }

    #[test]
    fn a_volume_of_files_has_places_for_the_volumes_inside_it_and_keeps_them() {
        let dir = tempfile::tempdir().unwrap();
        let nested = [
            Nested { path: "more".into(), is_file: false },
            Nested { path: "a/b/c".into(), is_file: false },
            Nested { path: "extra.conf".into(), is_file: true },
        ];
        for text in ["1", "2"] {
            let files = vec![File { path: "key".into(), bytes: text.into(), mode: 0o644 }];
            let content = Content::Files { kind: "kubernetes.io~secret", files, memory: false };
            let made = make(dir.path(), "v", content, Owner::default(), &nested).unwrap();
            assert_eq!(fs::read_to_string(made.host_path.join("key")).unwrap(), text);
            assert!(made.host_path.join("more").is_dir() && made.host_path.join("a/b/c").is_dir());
            assert!(made.host_path.join("extra.conf").is_file());
        }
    }

    #[test]
    fn a_tree_of_any_depth_is_torn_down() {
        let dir = tempfile::tempdir().unwrap();
        let pod = dir.path().join("pod");
        let content = Content::EmptyDir { memory: false, size_bytes: None };
        let made = make(&pod, "v", content, Owner::default(), &[]).unwrap();
        let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_DIRECTORY;
        let mut at = nix::fcntl::open(&made.host_path, flags, nix::sys::stat::Mode::empty()).unwrap();
        for _ in 0..15_000 {
            nix::sys::stat::mkdirat(&at, "d", nix::sys::stat::Mode::S_IRWXU).unwrap();
            at = nix::fcntl::openat(&at, "d", flags, nix::sys::stat::Mode::empty()).unwrap();
        }
        drop(at);
        teardown(&pod).unwrap();
        assert!(!pod.exists());
    }

    #[test]
    fn memory_volumes_are_mounted_once_and_torn_down() {
        let dir = tempfile::tempdir().unwrap();
        let pod = dir.path().join("pod");
        let content = || Content::EmptyDir { memory: true, size_bytes: Some(1 << 20) };
        let made = make(&pod, "v", content(), Owner::default(), &[]).unwrap();
        fs::write(made.host_path.join("keep"), "1").unwrap();
        make(&pod, "v", content(), Owner::default(), &[]).unwrap();
        assert!(made.host_path.join("keep").exists());
        assert_eq!(mounts_below(&pod).unwrap().len(), 1);
        teardown(&pod).unwrap();
        assert!(!pod.exists());
        teardown(&pod).unwrap();
    }
}
