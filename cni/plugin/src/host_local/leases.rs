//! The record of leases of one network: a file replaced as a whole under a lock.
//!
//! Whoever is killed leaves the old file or the new one, never half of one. Leases of an earlier boot are dropped when
//! the file is read: no container outlives the machine, wherever the directory is.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use cni_spec::Attachment;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::range::{Range, RangeSet};

/// How long another plugin may hold the lock; it needs a millisecond.
const LOCK_WAIT: Duration = Duration::from_secs(10);
const VERSION: u32 = 1;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Why a lease cannot be had, read or kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum LeaseError {
    #[error("create directory {path}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("lock {path}")]
    Lock { path: PathBuf, source: io::Error },
    #[error("{path} is locked by another process for more than 10 s")]
    Busy { path: PathBuf },
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is damaged; when no container of this network runs, remove it")]
    Decode { path: PathBuf, source: serde_json::Error },
    #[error("{path} has version {found}, this program knows {VERSION}")]
    Version { path: PathBuf, found: u32 },
    #[error("write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("no free address in {ranges}")]
    Exhausted { ranges: String },
    #[error("the requested address {address} belongs to {owner}")]
    Taken { address: IpAddr, owner: String },
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    version: u32,
    boot_id: String,
    /// Address given last, by number of the range set.
    last: BTreeMap<usize, IpAddr>,
    leases: BTreeMap<IpAddr, Attachment>,
}

/// The leases of one network, locked as long as this lives.
#[derive(Debug)]
pub(super) struct Leases {
    path: PathBuf,
    record: Record,
    _lock: Flock<File>,
}

impl Leases {
    pub(super) fn open(directory: &Path) -> Result<Self, LeaseError> {
        fs::create_dir_all(directory).map_err(|source| LeaseError::Directory { path: directory.to_owned(), source })?;
        let lock = lock(&directory.join("lock"))?;
        let path = directory.join("leases.json");
        let boot_id = fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned();
        let fresh = Record { version: VERSION, boot_id: boot_id.clone(), ..Record::default() };
        let record = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => fresh,
            Err(source) => return Err(LeaseError::Read { path, source }),
            Ok(bytes) => {
                let record: Record = serde_json::from_slice(&bytes)
                    .map_err(|source| LeaseError::Decode { path: path.clone(), source })?;
                if record.version != VERSION {
                    return Err(LeaseError::Version { path, found: record.version });
                }
                if record.boot_id == boot_id { record } else { fresh }
            }
        };
        Ok(Self { path, record, _lock: lock })
    }

    /// One address of each set for this owner: those it has, those it wants, else the next free ones. All or none.
    pub(super) fn allocate<'a>(
        &mut self,
        owner: &Attachment,
        sets: &'a [RangeSet],
        wanted: &[IpAddr],
    ) -> Result<Vec<(IpAddr, &'a Range)>, LeaseError> {
        let mut chosen = Vec::new();
        for (number, set) in sets.iter().enumerate() {
            let (address, range) = self.choose(owner, number, set, wanted)?;
            if !self.record.leases.contains_key(&address) {
                self.record.last.insert(number, address);
            }
            chosen.push((address, range));
        }
        let mut changed = false;
        for (address, _) in &chosen {
            changed |= self.record.leases.insert(*address, owner.clone()).as_ref() != Some(owner);
        }
        if changed {
            self.write()?;
        }
        Ok(chosen)
    }

    fn choose<'a>(
        &self,
        owner: &Attachment,
        number: usize,
        set: &'a RangeSet,
        wanted: &[IpAddr],
    ) -> Result<(IpAddr, &'a Range), LeaseError> {
        if let Some((address, range)) =
            wanted.iter().find_map(|address| set.range_of(*address).map(|range| (*address, range)))
        {
            return match self.record.leases.get(&address) {
                Some(other) if other != owner => {
                    Err(LeaseError::Taken { address, owner: format!("{} {}", other.container_id, other.if_name) })
                }
                _ => Ok((address, range)),
            };
        }
        let held = self.record.leases.iter().filter(|(_, holder)| *holder == owner);
        if let Some(found) = held.into_iter().find_map(|(address, _)| Some((*address, set.range_of(*address)?))) {
            return Ok(found);
        }
        set.candidates(self.record.last.get(&number).copied())
            .find(|(address, _)| !self.record.leases.contains_key(address))
            .ok_or_else(|| LeaseError::Exhausted { ranges: set.to_string() })
    }

    pub(super) fn release(&mut self, owner: &Attachment) -> Result<(), LeaseError> {
        self.keep(|holder| holder != owner)
    }

    pub(super) fn retain(&mut self, valid: &[Attachment]) -> Result<(), LeaseError> {
        self.keep(|holder| valid.contains(holder))
    }

    pub(super) fn held_by(&self, owner: &Attachment) -> Vec<IpAddr> {
        let held = self.record.leases.iter().filter(|(_, holder)| *holder == owner);
        held.map(|(address, _)| *address).collect()
    }

    pub(super) fn is_exhausted(&self, set: &RangeSet) -> bool {
        set.candidates(None).all(|(address, _)| self.record.leases.contains_key(&address))
    }

    fn keep(&mut self, is_kept: impl Fn(&Attachment) -> bool) -> Result<(), LeaseError> {
        let before = self.record.leases.len();
        self.record.leases.retain(|_, holder| is_kept(holder));
        if self.record.leases.len() == before { Ok(()) } else { self.write() }
    }

    fn write(&self) -> Result<(), LeaseError> {
        let new = self.path.with_extension("new");
        let bytes = serde_json::to_vec(&self.record).map_err(io::Error::from);
        bytes
            .and_then(|bytes| fs::write(&new, bytes))
            .and_then(|()| fs::rename(&new, &self.path))
            .map_err(|source| LeaseError::Write { path: self.path.clone(), source })
    }
}

/// The kernel frees the lock when its holder dies.
fn lock(path: &Path) -> Result<Flock<File>, LeaseError> {
    let failed = |source| LeaseError::Lock { path: path.to_owned(), source };
    let file = File::options().create(true).truncate(false).write(true).open(path).map_err(failed)?;
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => return Ok(lock),
        Err((file, nix::Error::EWOULDBLOCK)) => file,
        Err((_, errno)) => return Err(failed(errno.into())),
    };
    // flock(2) has no timeout. The thread may stay behind after one; the process is about to end then.
    let (send, receive) = mpsc::channel();
    thread::spawn(move || send.send(Flock::lock(file, FlockArg::LockExclusive)));
    match receive.recv_timeout(LOCK_WAIT) {
        Ok(Ok(lock)) => Ok(lock),
        Ok(Err((_, errno))) => Err(failed(errno.into())),
        Err(_) => Err(LeaseError::Busy { path: path.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RangeConfig;

    fn owner(id: &str) -> Attachment {
        Attachment { container_id: id.into(), if_name: "eth0".into() }
    }

    fn sets() -> Vec<RangeSet> {
        let range = RangeConfig { subnet: Some("10.0.0.0/29".parse().unwrap()), ..RangeConfig::default() };
        super::super::range::plan(&[vec![range]]).unwrap()
    }

    fn allocate(directory: &Path, id: &str) -> Result<String, LeaseError> {
        let sets = sets();
        Leases::open(directory)?.allocate(&owner(id), &sets, &[]).map(|found| found[0].0.to_string())
    }

    #[test]
    fn addresses_are_unique_repeatable_and_rest_after_release() {
        let directory = tempfile::tempdir().unwrap();
        let given: Vec<String> = (0..5).map(|n| allocate(directory.path(), &format!("c{n}")).unwrap()).collect();
        assert_eq!(given, ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
        assert_eq!(allocate(directory.path(), "c1").unwrap(), "10.0.0.3");
        assert!(matches!(allocate(directory.path(), "c9"), Err(LeaseError::Exhausted { .. })));
        Leases::open(directory.path()).unwrap().release(&owner("c0")).unwrap();
        Leases::open(directory.path()).unwrap().release(&owner("c3")).unwrap();
        assert_eq!(allocate(directory.path(), "c9").unwrap(), "10.0.0.2", "the next one after .6");
    }

    #[test]
    fn garbage_and_earlier_boots_are_dropped() {
        let directory = tempfile::tempdir().unwrap();
        for id in ["a", "b"] {
            allocate(directory.path(), id).unwrap();
        }
        Leases::open(directory.path()).unwrap().retain(&[owner("b")]).unwrap();
        assert!(Leases::open(directory.path()).unwrap().held_by(&owner("a")).is_empty());
        let file = directory.path().join("leases.json");
        let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        record["bootId"] = "another".into();
        fs::write(&file, record.to_string()).unwrap();
        assert!(Leases::open(directory.path()).unwrap().held_by(&owner("b")).is_empty());
        record["version"] = 2.into();
        fs::write(&file, record.to_string()).unwrap();
        assert!(matches!(Leases::open(directory.path()), Err(LeaseError::Version { found: 2, .. })));
        fs::write(&file, "{").unwrap();
        assert!(matches!(Leases::open(directory.path()), Err(LeaseError::Decode { .. })));
    }

    #[test]
    fn a_wanted_address_is_given_unless_taken() {
        let directory = tempfile::tempdir().unwrap();
        let (sets, wanted) = (sets(), ["10.0.0.5".parse().unwrap()]);
        let mut leases = Leases::open(directory.path()).unwrap();
        assert_eq!(leases.allocate(&owner("a"), &sets, &wanted).unwrap()[0].0, wanted[0]);
        assert!(matches!(leases.allocate(&owner("b"), &sets, &wanted), Err(LeaseError::Taken { .. })));
    }

    #[test]
    fn many_threads_get_different_addresses() {
        let directory = tempfile::tempdir().unwrap();
        let mut given: Vec<String> = thread::scope(|scope| {
            let path = directory.path();
            let threads: Vec<_> =
                (0..5).map(|n| scope.spawn(move || allocate(path, &format!("c{n}")).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        given.sort();
        given.dedup();
        assert_eq!(given.len(), 5);
    }
}
