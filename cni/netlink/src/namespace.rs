//! Network namespaces: making, pinning to a path, opening, and working inside one.
//!
//! A process's main thread never moves: entering happens in a thread that ends with the work, so no caller can come
//! back into the wrong namespace.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

const OWN: &str = "/proc/thread-self/ns/net";

/// Why a namespace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The path is gone or unreadable.
    #[error("open network namespace {path}")]
    Open { path: PathBuf, source: io::Error },
    /// The path is something else.
    #[error("{path} is not a network namespace")]
    NotANamespace { path: PathBuf },
    /// No privilege, or too many namespaces.
    #[error("create a network namespace")]
    Create(#[source] io::Error),
    /// The file to pin to.
    #[error("create {path} to pin a network namespace to")]
    PinFile { path: PathBuf, source: io::Error },
    /// The bind mount.
    #[error("pin a network namespace to {path}")]
    Pin { path: PathBuf, source: io::Error },
    /// Removing the bind mount or its file.
    #[error("remove pinned network namespace {path}")]
    Unpin { path: PathBuf, source: io::Error },
    /// No privilege.
    #[error("enter a network namespace")]
    Enter(#[source] io::Error),
    /// No thread to enter with.
    #[error("start a thread for work in a network namespace")]
    Thread(#[source] io::Error),
}

/// An open network namespace; it lives at least as long as this.
#[derive(Debug)]
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// The calling thread's own.
    ///
    /// # Errors
    /// [`NamespaceError::Open`].
    pub fn current() -> Result<Self, NamespaceError> {
        let file = File::open(OWN).map_err(|source| NamespaceError::Open { path: OWN.into(), source })?;
        Ok(Self { file })
    }

    /// A path such as `/proc/<pid>/ns/net` or a pinned one.
    ///
    /// # Errors
    /// [`NamespaceError::Open`], with `NotFound` inside when it is gone; [`NamespaceError::NotANamespace`].
    pub fn open(path: &Path) -> Result<Self, NamespaceError> {
        let failed = |source| NamespaceError::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        // The plain file left by an unmounted pin would be "entered" with EINVAL much later.
        let kind = nix::sys::statfs::fstatfs(&file).map_err(|errno| failed(errno.into()))?.filesystem_type();
        if kind != nix::sys::statfs::NSFS_MAGIC && kind != nix::sys::statfs::PROC_SUPER_MAGIC {
            return Err(NamespaceError::NotANamespace { path: path.to_owned() });
        }
        Ok(Self { file })
    }

    /// A new one, with a loopback that is down.
    ///
    /// # Errors
    /// [`NamespaceError::Create`].
    pub fn create() -> Result<Self, NamespaceError> {
        on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| NamespaceError::Create(errno.into()))?;
            Self::current()
        })?
    }

    /// Keeps it alive under `path`, which must not exist.
    ///
    /// # Errors
    /// [`NamespaceError::PinFile`], [`NamespaceError::Pin`]; nothing is left behind.
    pub fn pin(&self, path: &Path) -> Result<(), NamespaceError> {
        File::create_new(path).map_err(|source| NamespaceError::PinFile { path: path.to_owned(), source })?;
        let source = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let mounted = mount(Some(source.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>);
        mounted.map_err(|errno| {
            let _ = fs::remove_file(path);
            NamespaceError::Pin { path: path.to_owned(), source: errno.into() }
        })
    }

    /// Ends a pin; what is gone already is success.
    ///
    /// # Errors
    /// [`NamespaceError::Unpin`].
    pub fn unpin(path: &Path) -> Result<(), NamespaceError> {
        let failed = |source| NamespaceError::Unpin { path: path.to_owned(), source };
        match umount2(path, MntFlags::MNT_DETACH) {
            // EINVAL: the file is there but nothing is mounted on it (killed between the two steps).
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        }
    }

    /// Runs `work` on a thread inside and waits for it.
    ///
    /// # Errors
    /// [`NamespaceError::Enter`], [`NamespaceError::Thread`].
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
        on_thread(|| {
            setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|errno| NamespaceError::Enter(errno.into()))?;
            Ok(work())
        })?
    }

    /// Another handle to the same namespace.
    ///
    /// # Errors
    /// No descriptor left.
    pub fn try_clone(&self) -> Result<Self, NamespaceError> {
        let file = self.file.try_clone().map_err(|source| NamespaceError::Open { path: OWN.into(), source })?;
        Ok(Self { file })
    }

    /// Whether both are the same namespace.
    #[must_use]
    pub fn is_same(&self, other: &Namespace) -> bool {
        let identity = |file: &File| file.metadata().map(|meta| (meta.dev(), meta.ino())).ok();
        identity(&self.file) == identity(&other.file)
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
    thread::scope(|scope| {
        let handle = thread::Builder::new().spawn_scoped(scope, work).map_err(NamespaceError::Thread)?;
        match handle.join() {
            Ok(value) => Ok(value),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
