//! A place inside a volume that cannot lead out of it: resolved by the kernel below the volume, then bound to a path of ours, so
//! that a link swapped in later has no effect.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};

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

/// Binds `volume/sub_path` to `target`, making missing directories, and returns `target`.
pub(super) fn bind(volume: &Path, sub_path: &str, target: &Path) -> Result<PathBuf, Error> {
    let found = resolve(volume, sub_path)?;
    let is_dir = SFlag::from_bits_truncate(fstat(&found).map_err(|e| io("stat", volume, e))?.st_mode) & SFlag::S_IFMT
        == SFlag::S_IFDIR;
    let parent = target.parent().unwrap_or(target);
    fs::create_dir_all(parent).map_err(|e| io("create", parent, e))?;
    if is_dir {
        fs::create_dir_all(target).map_err(|e| io("create", target, e))?;
    } else {
        fs::OpenOptions::new().create(true).append(true).open(target).map_err(|e| io("create", target, e))?;
    }
    let source = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    // A bind of an earlier attempt is covered by the new one; teardown unmounts both.
    mount(Some(&source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(|e| io("bind to", target, e))?;
    Ok(target.to_owned())
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
                match mkdirat(&parent, part, Mode::from_bits_truncate(0o750)) {
                    Ok(()) | Err(Errno::EEXIST) => {}
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
        let target = dir.path().join("pod/volume-subpaths/v/c/0");
        bind(&volume, "in", &target).unwrap();
        assert_eq!(fs::read_to_string(target.join("f")).unwrap(), "x");
        super::super::teardown(&dir.path().join("pod")).unwrap();
        assert!(volume.join("real/f").exists());
    }
}
