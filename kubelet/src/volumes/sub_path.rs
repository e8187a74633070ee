//! A place inside a volume that cannot lead out of it: resolved by the kernel below the volume, then bound to a path of ours, so
//! that a link swapped in later has no effect.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, mkdirat};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("subPath {path} leads out of the volume")]
    Escapes { path: String },
    #[error("{step} {path}")]
    Io {
        step: &'static str,
        path: String,
        #[source]
        source: std::io::Error,
    },
}

fn io(step: &'static str, path: &Path, source: impl Into<std::io::Error>) -> Error {
    Error::Io { step, path: path.display().to_string(), source: source.into() }
}

/// Binds of earlier attempts that are taken away before a new one; there is one per start of the container at most.
const STALE_MAX: u32 = 64;

/// Binds `volume/sub_path` to `target`, making missing directories, and returns `target`.
pub(super) fn bind(volume: &Path, sub_path: &str, target: &Path) -> Result<PathBuf, Error> {
    let found = resolve(volume, sub_path)?;
    let is_dir = is_dir(&fstat(&found).map_err(|e| io("stat", volume, e))?);
    unbind(target)?;
    let parent = target.parent().unwrap_or(target);
    fs::create_dir_all(parent).map_err(|e| io("create", parent, e))?;
    if fs::symlink_metadata(target).is_ok_and(|old| old.is_dir() != is_dir) {
        runtime_linux::tree::remove(target).map_err(|e| io("remove", target, e.into_io()))?;
    }
    if is_dir {
        fs::create_dir_all(target).map_err(|e| io("create", target, e))?;
    } else {
        fs::OpenOptions::new().create(true).append(true).open(target).map_err(|e| io("create", target, e))?;
    }
    let source = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    mount(Some(&source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(|e| io("bind to", target, e))?;
    Ok(target.to_owned())
}

/// Takes away what an earlier start has bound: nothing can be mounted over a file that has been deleted since, as that of a
/// ConfigMap is when it changes. Containers keep what they have; their mounts are their own.
fn unbind(target: &Path) -> Result<(), Error> {
    for _ in 0..STALE_MAX {
        match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            // Not a mount point, or not there.
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(io("unmount", target, errno)),
        }
    }
    Ok(())
}

fn is_dir(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR
}

fn resolve(volume: &Path, sub_path: &str) -> Result<OwnedFd, Error> {
    let escapes = || Error::Escapes { path: sub_path.into() };
    let parts: Vec<&std::ffi::OsStr> = Path::new(sub_path)
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(Ok(name)),
            Component::CurDir => None,
            _ => Some(Err(escapes())),
        })
        .collect::<Result<_, _>>()?;
    let root_how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC);
    let root = openat2(AT_FDCWD, volume, root_how).map_err(|e| io("open", volume, e))?;
    let how = |flags| {
        OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS)
    };
    // From the volume each time, so that a link between two parts is judged as a whole.
    let mut walked = PathBuf::new();
    let mut current = None;
    for part in parts {
        let above: PathBuf = walked.clone();
        walked.push(part);
        let opened = match openat2(&root, &walked, how(OFlag::O_PATH)) {
            Err(Errno::ENOENT) => {
                let parent = if above.as_os_str().is_empty() {
                    openat2(&root, ".", how(OFlag::O_PATH | OFlag::O_DIRECTORY))
                } else {
                    openat2(&root, &above, how(OFlag::O_PATH | OFlag::O_DIRECTORY))
                };
                let parent = parent.map_err(|e| io("open", &above, e))?;
                match mkdirat(&parent, part, Mode::S_IRWXU) {
                    Ok(()) => {
                        like_root(&parent, Path::new(part), &root).map_err(|e| io("set the mode of", &walked, e))?
                    }
                    Err(Errno::EEXIST) => {}
                    Err(errno) => return Err(io("create", &walked, errno)),
                }
                openat2(&root, &walked, how(OFlag::O_PATH))
            }
            other => other,
        };
        current = Some(match opened {
            Ok(fd) => fd,
            Err(Errno::EXDEV | Errno::ELOOP) => return Err(escapes()),
            Err(errno) => return Err(io("open", &walked, errno)),
        });
    }
    Ok(current.unwrap_or(root))
}

/// A directory made here has the mode of the volume's root, as upstream's, so that whoever may write there may write here too.
/// The group is the root's by its set-group-id bit.
fn like_root(parent: &OwnedFd, name: &Path, root: &OwnedFd) -> Result<(), Errno> {
    let mode = Mode::from_bits_truncate(fstat(root)?.st_mode & 0o7777);
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    fchmod(openat2(parent, name, how)?, mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_inside_is_bound() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        fs::create_dir_all(volume.join("real")).unwrap();
        fs::write(volume.join("real/f"), "x").unwrap();
        std::os::unix::fs::symlink("/etc", volume.join("out")).unwrap();
        std::os::unix::fs::symlink("real", volume.join("in")).unwrap();
        for (path, good) in [
            ("real", true),
            ("in/f", true),
            ("new/deep", true),
            ("out", false),
            ("out/x", false),
            ("../v", false),
            ("/etc", false),
        ] {
            assert_eq!(resolve(&volume, path).is_ok(), good, "{path}");
        }
        assert!(volume.join("new/deep").is_dir());
        for (mode, expect) in [(0o777, 0o777), (0o2770, 0o2770), (0o700, 0o700)] {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&volume, fs::Permissions::from_mode(mode)).unwrap();
            let path = format!("m{mode:o}/below");
            resolve(&volume, &path).unwrap();
            for place in [volume.join(&path), volume.join(format!("m{mode:o}"))] {
                assert_eq!(fs::metadata(place).unwrap().permissions().mode() & 0o7777, expect, "{mode:o}");
            }
        }
        let target = dir.path().join("pod/volume-subpaths/v/c/0");
        bind(&volume, "in", &target).unwrap();
        assert_eq!(fs::read_to_string(target.join("f")).unwrap(), "x");
        // A file is replaced by a new one, as those of ConfigMaps are: the next start gets the new one.
        let file = dir.path().join("pod/volume-subpaths/v/c/1");
        for text in ["1", "2", "3"] {
            fs::write(volume.join("new.txt"), text).unwrap();
            fs::rename(volume.join("new.txt"), volume.join("key")).unwrap();
            bind(&volume, "key", &file).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
        }
        fs::remove_file(volume.join("key")).unwrap();
        bind(&volume, "key", &file).unwrap();
        assert!(file.is_dir(), "what was a file is a directory now");
        super::super::teardown(&dir.path().join("pod")).unwrap();
        assert!(volume.join("real/f").exists());
    }
}
