//! One `up` of this machine at a time: each chooses ports and networks that are free, and must be seen to have them before the next
//! one chooses.
//!
//! Who has the turn holds a lock on a file in a directory that only root may write, one for each network namespace, as ports and
//! networks belong to that; it goes with the process. The file says who it is, and goes too when the turn is over.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::report::say;

/// Where the lock's file lies: like every place for locks and pids, for root only and gone at a reboot.
const DIRECTORY: &str = "/run";
/// An `up` takes seconds; one that takes longer is waiting for something else.
const PATIENCE: Duration = Duration::from_secs(60);
/// How much of the lock's file is read.
const PID_BYTES_MAX: u64 = 32;

/// Dropping it, also by dying, lets the next one go on.
#[derive(Debug)]
pub(crate) struct Turn {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Before the lock is let go: whoever waits for it sees that the file is not the one of this name any more.
        let _lies_about = fs::remove_file(&self.path);
    }
}

/// The turn, once it is free. `None` where it cannot be had: then `up` goes on without, as if it were alone.
pub(crate) fn take() -> Option<Turn> {
    let namespace = fs::metadata("/proc/self/ns/net").ok()?.ino();
    take_at(&Path::new(DIRECTORY).join(format!("sampan-up-{namespace}.lock")), PATIENCE)
}

fn take_at(path: &Path, patience: Duration) -> Option<Turn> {
    let mut file = open(path).ok()?;
    loop {
        let locked = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => locked,
            Err((mut taken, Errno::EWOULDBLOCK)) => {
                say(&format!("Waiting for another `sampan up` of this machine ({}).", holder(&mut taken)));
                wait(taken, patience)?
            }
            Err(_) => return None,
        };
        if is_at(&locked, path) {
            // What cannot be written is not told to the next one.
            let _untold = locked.set_len(0).and_then(|()| write!(&*locked, "{}", std::process::id()));
            return Some(Turn { path: path.to_owned(), _lock: locked });
        }
        // Its holder has removed it in between: the name means another file now, or none.
        file = open(path).ok()?;
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let _unread = Read::by_ref(file).take(PID_BYTES_MAX).read_to_string(&mut text);
    match text.trim().parse::<u32>() {
        Ok(pid) => format!("process {pid}"),
        Err(_) => "process unknown".into(),
    }
}

/// Waiting is a call that cannot be told when to stop, so it has a thread; one that gets the lock too late lets it go at once.
fn wait(file: File, patience: Duration) -> Option<Flock<File>> {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || drop(send.send(Flock::lock(file, FlockArg::LockExclusive))));
    receive.recv_timeout(patience).ok()?.ok()
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(held), Ok(named)) => (held.dev(), held.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn one_at_a_time_and_the_file_goes_with_the_last() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("up.lock");
        let first = take_at(&path, PATIENCE).unwrap();
        assert_eq!(holder(&mut open(&path).unwrap()), format!("process {}", std::process::id()));
        let second = std::thread::spawn({
            let path = path.clone();
            move || take_at(&path, PATIENCE).is_some()
        });
        assert!(!second.is_finished());
        drop(first);
        assert!(second.join().unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn who_never_lets_go_is_not_waited_for_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("up.lock");
        let _first = take_at(&path, PATIENCE).unwrap();
        assert!(take_at(&path, Duration::from_millis(20)).is_none());
    }

    #[test]
    fn other_users_cannot_hold_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("up.lock");
        let _turn = take_at(&path, PATIENCE).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o077, 0);
    }
}
