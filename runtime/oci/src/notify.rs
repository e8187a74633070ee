//! `NOTIFY_SOCKET`: a container's word that it is ready, handed on to the service manager that waits for it (sd_notify(3)).
//!
//! The manager's own socket never gets into the container: a directory of the container's state is bound there, and whoever starts the
//! container listens in it. Invariant: of what the container says only `READY=` is handed on, and once.

use std::fs::{DirBuilder, Permissions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use runtime_linux::clone::{Cloned, clone, exit_now};
use runtime_linux::{local_socket, pidfd};

use crate::create::parent;
use crate::error::Error;
use crate::record::Place;
use crate::{ContainerId, StateRoot};

/// Where the container finds the directory of a manager whose socket has no path.
const INSIDE: &str = "/run/notify";
const SOCKET: &str = "notify";
/// Longer messages are cut; a READY= comes first or in a short one.
const MESSAGE_BYTES_MAX: usize = 4096;

/// The directory on the host that is bound into the container.
pub(crate) fn directory(place: &Place) -> PathBuf {
    place.path("notify")
}

pub(crate) fn make_directory(place: &Place) -> Result<(), Error> {
    let path = directory(place);
    DirBuilder::new().mode(0o755).create(&path).map_err(|source| Error::Write { path, source })
}

/// The directory inside: at the path of the manager's socket, as with crun; an abstract one (`@name`) has none.
pub(crate) fn inside(host: &Path) -> &Path {
    if host.is_absolute() { host } else { Path::new(INSIDE) }
}

/// The container's variable.
pub(crate) fn variable(host: &Path) -> String {
    format!("NOTIFY_SOCKET={}", inside(host).join(SOCKET).display())
}

/// Listens for one container, on behalf of the manager at `host`.
#[derive(Debug)]
pub struct Readiness {
    inside: OwnedFd,
    host: PathBuf,
    container: OwnedFd,
    pid: i32,
}

impl Readiness {
    /// Before the container is started; `None` for one that was created without a manager to tell.
    pub fn listen(root: &StateRoot, id: &ContainerId, host: &Path) -> Result<Option<Self>, Error> {
        let place = Place::new(root, id);
        let dir = directory(&place);
        if !dir.is_dir() {
            return Ok(None);
        }
        let path = dir.join(SOCKET);
        let inside = local_socket::bind_datagram(&path).map_err(parent(format!("listen at {}", path.display())))?;
        // The container's user need not be root.
        let mode = Permissions::from_mode(0o666);
        std::fs::set_permissions(&path, mode).map_err(|source| Error::Write { path, source })?;
        let pid = place.load()?.pid;
        let container = pidfd::open(pid).map_err(parent("open the container's init"))?;
        Ok(Some(Self { inside, host: host.to_owned(), container, pid }))
    }

    /// Waits until the container is ready or has ended, and tells the manager which process is the service's.
    pub fn relay(&self) -> Result<(), Error> {
        match self.wait()? {
            Some(ready) => self.tell(&format!("{ready}\nMAINPID={}", self.pid)),
            None => Ok(()),
        }
    }

    /// The same in a process of its own, for who stays in the foreground and is the service's main process itself.
    pub fn relay_beside(self) -> Result<(), Error> {
        match clone(0, None).map_err(parent("clone for the manager's notification"))? {
            Cloned::Parent { .. } => Ok(()),
            Cloned::Child => {
                let told = self.wait().and_then(|ready| ready.map_or(Ok(()), |ready| self.tell(&ready)));
                exit_now(i32::from(told.is_err()))
            }
        }
    }

    fn wait(&self) -> Result<Option<String>, Error> {
        let mut buffer = [0; MESSAGE_BYTES_MAX];
        loop {
            let mut both = [
                PollFd::new(self.inside.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.container.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut both, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(parent("wait for the container's readiness")(errno)),
            }
            let (has_message, has_ended) = (both[0].any() == Some(true), both[1].any() == Some(true));
            if has_message {
                let length = nix::unistd::read(&self.inside, &mut buffer).map_err(parent("read a notification"))?;
                if let Some(ready) = ready(&buffer[..length]) {
                    return Ok(Some(ready));
                }
            } else if has_ended {
                return Ok(None);
            }
        }
    }

    fn tell(&self, message: &str) -> Result<(), Error> {
        let step = format!("tell the service manager at {}", self.host.display());
        local_socket::send_datagram(&self.host, message.as_bytes()).map_err(parent(step))
    }
}

/// The line that says so.
fn ready(message: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(message).ok()?;
    text.lines().find(|line| line.starts_with("READY=")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_names_a_path_inside() {
        assert_eq!(variable(Path::new("/run/systemd/notify")), "NOTIFY_SOCKET=/run/systemd/notify/notify");
        assert_eq!(variable(Path::new("@abstract")), "NOTIFY_SOCKET=/run/notify/notify");
    }

    #[test]
    fn only_readiness_is_taken() {
        assert_eq!(ready(b"STATUS=starting\nREADY=1\nMAINPID=1").as_deref(), Some("READY=1"));
        assert_eq!(ready(b"STATUS=READY=1"), None);
        assert_eq!(ready(b"\xffREADY=1"), None);
    }
}
