//! The leases of one network, on disk as the reference plugin keeps them: a file for each address, named by it, with the
//! container's id and link; `last_reserved_ip.N` with the address that was given last from range set N; a lock.
//!
//! Every change is one file made or removed under the lock, so whoever is killed leaves a lease or none. A file that says
//! nobody's name (a full disk, a power failure) keeps its own address from being given and disturbs no other; GC frees it.
//! In a directory that this plugin made, leases of an earlier boot are dropped: no container outlives the machine. An
//! earlier version's single record is taken over.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use cni_spec::Attachment;
use nix::fcntl::{Flock, FlockArg};
use serde::Deserialize;

use super::range::{Range, RangeSet};

/// How long another plugin may hold the lock; it needs a millisecond.
const LOCK_WAIT: Duration = Duration::from_secs(10);
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Ours alone; the reference plugin reads every file and finds no container in it.
const BOOT_FILE: &str = "boot_id";
const LAST: &str = "last_reserved_ip.";
/// Between id and link, as the reference plugin writes it.
const LINE_BREAK: &str = "\r\n";
/// A lease is a container's id and a link's name.
const LEASE_BYTES_MAX: u64 = 4096;
/// The record of the earlier version: all leases of a network in one file.
const EARLIER_FILE: &str = "leases.json";
const EARLIER_VERSION: u32 = 1;
const EARLIER_BYTES_MAX: u64 = 16 << 20;

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
    #[error("{path} has version {found}, this program knows {EARLIER_VERSION}")]
    Version { path: PathBuf, found: u32 },
    #[error("write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("no free address in {ranges}")]
    Exhausted { ranges: String },
    #[error("the requested address {address} belongs to {owner}")]
    Taken { address: IpAddr, owner: String },
}

/// The record of the earlier version.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Earlier {
    version: u32,
    boot_id: String,
    #[serde(default)]
    last: BTreeMap<usize, IpAddr>,
    leases: BTreeMap<IpAddr, Attachment>,
}

/// The leases of one network, locked as long as this lives.
#[derive(Debug)]
pub(super) struct Leases {
    directory: PathBuf,
    _lock: Flock<File>,
}

/// Whether the set has no address but these.
pub(super) fn is_exhausted(set: &RangeSet, taken: &BTreeSet<IpAddr>) -> bool {
    set.candidates(None).all(|(address, _)| taken.contains(&address))
}

impl Leases {
    /// `earlier` is another directory where an earlier version may have left its record.
    pub(super) fn open(directory: &Path, earlier: Option<&Path>) -> Result<Self, LeaseError> {
        let is_new = !directory.exists();
        let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(directory);
        made.map_err(|source| LeaseError::Directory { path: directory.to_owned(), source })?;
        let lock = lock(&directory.join("lock"))?;
        let leases = Self { directory: directory.to_owned(), _lock: lock };
        let boot_id = fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned();
        leases.drop_earlier_boots(&boot_id, is_new)?;
        for place in [Some(directory), earlier].into_iter().flatten() {
            leases.take_over(&place.join(EARLIER_FILE), &boot_id)?;
        }
        Ok(leases)
    }

    /// One address of each set for this owner: those it has, those it wants, else the next free ones. All or none.
    pub(super) fn allocate<'a>(
        &mut self,
        owner: &Attachment,
        sets: &'a [RangeSet],
        wanted: &[IpAddr],
    ) -> Result<Vec<(IpAddr, &'a Range)>, LeaseError> {
        let (taken, held) = (self.taken()?, self.held_by(owner)?);
        let mut chosen = Vec::new();
        for (number, set) in sets.iter().enumerate() {
            chosen.push(self.choose(owner, number, set, wanted, (&taken, &held))?);
        }
        let new: Vec<(usize, IpAddr)> =
            chosen.iter().enumerate().map(|(number, (address, _))| (number, *address)).collect();
        let new: Vec<(usize, IpAddr)> = new.into_iter().filter(|(_, address)| !held.contains(address)).collect();
        for (done, (number, address)) in new.iter().enumerate() {
            if let Err(error) = self.reserve(owner, *number, *address) {
                for (_, address) in new.iter().take(done + 1) {
                    // The first failure is the one that matters; what stays is its own owner's, who asks again or is deleted.
                    let _ = fs::remove_file(self.file(*address));
                }
                return Err(error);
            }
        }
        Ok(chosen)
    }

    fn choose<'a>(
        &self,
        owner: &Attachment,
        number: usize,
        set: &'a RangeSet,
        wanted: &[IpAddr],
        (taken, held): (&BTreeSet<IpAddr>, &[IpAddr]),
    ) -> Result<(IpAddr, &'a Range), LeaseError> {
        if let Some((address, range)) =
            wanted.iter().find_map(|address| set.range_of(*address).map(|range| (*address, range)))
        {
            if !taken.contains(&address) || held.contains(&address) {
                return Ok((address, range));
            }
            let holder = self.holder(address)?.unwrap_or_default().replace(LINE_BREAK, " ");
            let holder = if holder.is_empty() {
                format!("nobody, by a damaged lease; not {}", owner.container_id)
            } else {
                holder
            };
            return Err(LeaseError::Taken { address, owner: holder });
        }
        if let Some(found) = held.iter().find_map(|address| Some((*address, set.range_of(*address)?))) {
            return Ok(found);
        }
        set.candidates(self.last(number))
            .find(|(address, _)| !taken.contains(address))
            .ok_or_else(|| LeaseError::Exhausted { ranges: set.to_string() })
    }

    pub(super) fn release(&mut self, owner: &Attachment) -> Result<(), LeaseError> {
        for address in self.held_by(owner)? {
            self.free(address)?;
        }
        Ok(())
    }

    /// Frees what belongs to none of these.
    pub(super) fn retain(&mut self, valid: &[Attachment]) -> Result<(), LeaseError> {
        for address in self.taken()? {
            let Some(holder) = self.holder(address)? else { continue };
            if !valid.iter().any(|owner| belongs_to(&holder, owner)) {
                self.free(address)?;
            }
        }
        Ok(())
    }

    pub(super) fn held_by(&self, owner: &Attachment) -> Result<Vec<IpAddr>, LeaseError> {
        let mut held = Vec::new();
        for address in self.taken()? {
            match self.holder(address)? {
                Some(holder) if holder.is_empty() => {
                    // Whoever called sees standard error; the address stays taken, since somebody may use it.
                    eprintln!("{} says nobody's name; address {address} is not given", self.file(address).display());
                }
                Some(holder) if belongs_to(&holder, owner) => held.push(address),
                _ => {}
            }
        }
        Ok(held)
    }

    /// All addresses that are given, whoever has them.
    pub(super) fn taken(&self) -> Result<BTreeSet<IpAddr>, LeaseError> {
        let failed = |source| LeaseError::Read { path: self.directory.clone(), source };
        let mut taken = BTreeSet::new();
        for entry in fs::read_dir(&self.directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            taken.extend(name.to_str().and_then(|name| name.parse::<IpAddr>().ok()));
        }
        Ok(taken)
    }

    /// What the file of an address says; `None` when it is gone.
    fn holder(&self, address: IpAddr) -> Result<Option<String>, LeaseError> {
        let path = self.file(address);
        match read_bounded(&path, LEASE_BYTES_MAX) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(LeaseError::Read { path, source }),
        }
    }

    fn last(&self, number: usize) -> Option<IpAddr> {
        let bytes = read_bounded(&self.directory.join(format!("{LAST}{number}")), LEASE_BYTES_MAX).ok()?;
        String::from_utf8_lossy(&bytes).trim().parse().ok()
    }

    fn reserve(&self, owner: &Attachment, number: usize, address: IpAddr) -> Result<(), LeaseError> {
        let text = format!("{}{LINE_BREAK}{}", owner.container_id, owner.if_name);
        let path = self.file(address);
        let made = File::options().write(true).create_new(true).mode(0o600).open(&path);
        let written = made.and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|source| LeaseError::Write { path, source })?;
        let path = self.directory.join(format!("{LAST}{number}"));
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&path);
        let written = file.and_then(|mut file| file.write_all(address.to_string().as_bytes()));
        written.map_err(|source| LeaseError::Write { path, source })
    }

    fn free(&self, address: IpAddr) -> Result<(), LeaseError> {
        let path = self.file(address);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(LeaseError::Write { path, source: error }),
            _ => Ok(()),
        }
    }

    fn file(&self, address: IpAddr) -> PathBuf {
        self.directory.join(address.to_string())
    }

    /// Only where the mark is ours: in the reference plugin's directory nothing says when a lease was made.
    fn drop_earlier_boots(&self, boot_id: &str, is_new: bool) -> Result<(), LeaseError> {
        let path = self.directory.join(BOOT_FILE);
        let failed = |source| LeaseError::Write { path: path.clone(), source };
        match read_bounded(&path, LEASE_BYTES_MAX) {
            Ok(bytes) if bytes == boot_id.as_bytes() => return Ok(()),
            Ok(_) => {
                for address in self.taken()? {
                    self.free(address)?;
                }
            }
            Err(_) if !is_new => return Ok(()),
            Err(_) => {}
        }
        fs::write(&path, boot_id).map_err(failed)
    }

    /// Makes leases of an earlier version's record, once. A damaged one is set aside; every address that can be found in it
    /// counts as taken until GC says otherwise.
    fn take_over(&self, record: &Path, boot_id: &str) -> Result<(), LeaseError> {
        let bytes = match read_bounded(record, EARLIER_BYTES_MAX) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(LeaseError::Read { path: record.to_owned(), source }),
            Ok(bytes) => bytes,
        };
        let failed = |source| LeaseError::Write { path: record.to_owned(), source };
        let Ok(earlier) = serde_json::from_slice::<Earlier>(&bytes) else {
            let aside = record.with_extension("damaged");
            eprintln!("{} is damaged and is set aside as {}", record.display(), aside.display());
            for address in addresses_in(&String::from_utf8_lossy(&bytes)) {
                if !self.file(address).exists() {
                    fs::write(self.file(address), "damaged").map_err(failed)?;
                }
            }
            return fs::rename(record, aside).map_err(failed);
        };
        if earlier.version != EARLIER_VERSION {
            return Err(LeaseError::Version { path: record.to_owned(), found: earlier.version });
        }
        if earlier.boot_id == boot_id {
            for (address, owner) in earlier.leases.iter().filter(|(address, _)| !self.file(**address).exists()) {
                self.reserve(owner, 0, *address)?;
            }
            for (number, address) in earlier.last {
                let path = self.directory.join(format!("{LAST}{number}"));
                fs::write(&path, address.to_string()).map_err(|source| LeaseError::Write { path, source })?;
            }
        }
        fs::write(self.directory.join(BOOT_FILE), boot_id).map_err(failed)?;
        fs::remove_file(record).map_err(failed)
    }
}

/// The oldest versions of the reference plugin wrote the id alone.
fn belongs_to(holder: &str, owner: &Attachment) -> bool {
    match holder.split_once(LINE_BREAK) {
        Some((id, link)) => id == owner.container_id && link == owner.if_name,
        None => holder == owner.container_id,
    }
}

fn addresses_in(text: &str) -> BTreeSet<IpAddr> {
    let words = text.split(|c: char| !(c.is_ascii_hexdigit() || c == '.' || c == ':'));
    words.filter_map(|word| word.trim_matches(':').parse().ok()).collect()
}

fn read_bounded(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // Nobody's pipe is waited for.
    let file = File::options().read(true).custom_flags(O_NONBLOCK).open(path)?;
    file.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

const O_NONBLOCK: i32 = nix::fcntl::OFlag::O_NONBLOCK.bits();

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

    fn open(directory: &Path) -> Leases {
        Leases::open(directory, None).unwrap()
    }

    fn allocate(directory: &Path, id: &str) -> Result<String, LeaseError> {
        let sets = sets();
        Leases::open(directory, None)?.allocate(&owner(id), &sets, &[]).map(|found| found[0].0.to_string())
    }

    /// A directory that this plugin makes, unlike the one it is in.
    fn place() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("net");
        (directory, path)
    }

    #[test]
    fn addresses_are_unique_repeatable_and_rest_after_release() {
        let (_directory, path) = place();
        let given: Vec<String> = (0..5).map(|n| allocate(&path, &format!("c{n}")).unwrap()).collect();
        assert_eq!(given, ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
        assert_eq!(allocate(&path, "c1").unwrap(), "10.0.0.3");
        assert!(matches!(allocate(&path, "c9"), Err(LeaseError::Exhausted { .. })));
        open(&path).release(&owner("c0")).unwrap();
        open(&path).release(&owner("c3")).unwrap();
        assert_eq!(allocate(&path, "c9").unwrap(), "10.0.0.2", "the next one after .6");
    }

    #[test]
    fn leases_are_written_and_read_as_the_reference_plugin_does() {
        let (_directory, path) = place();
        allocate(&path, "ours").unwrap();
        assert_eq!(fs::read_to_string(path.join("10.0.0.2")).unwrap(), "ours\r\neth0");
        assert_eq!(fs::read_to_string(path.join("last_reserved_ip.0")).unwrap(), "10.0.0.2");
        // Theirs, of a newer and of an old version, and files that are no leases.
        fs::write(path.join("10.0.0.3"), "theirs\r\neth0").unwrap();
        fs::write(path.join("10.0.0.4"), "old").unwrap();
        fs::write(path.join("README"), "old").unwrap();
        assert_eq!(allocate(&path, "next").unwrap(), "10.0.0.5");
        assert_eq!(allocate(&path, "theirs").unwrap(), "10.0.0.3", "who has one keeps it");
        open(&path).release(&owner("theirs")).unwrap();
        open(&path).release(&owner("old")).unwrap();
        let names: Vec<String> = open(&path).taken().unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["10.0.0.2", "10.0.0.5"]);
        assert!(path.join("README").exists());
    }

    #[test]
    fn a_damaged_lease_costs_its_own_address_only() {
        let (_directory, path) = place();
        allocate(&path, "a").unwrap();
        fs::write(path.join("10.0.0.3"), "").unwrap();
        fs::write(path.join("10.0.0.4"), [0xff, 0xfe]).unwrap();
        fs::write(path.join("last_reserved_ip.0"), "nonsense").unwrap();
        assert_eq!(allocate(&path, "b").unwrap(), "10.0.0.5");
        open(&path).retain(&[owner("a"), owner("b")]).unwrap();
        let names: Vec<String> = open(&path).taken().unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["10.0.0.2", "10.0.0.5"], "GC frees them");
    }

    #[test]
    fn garbage_and_earlier_boots_are_dropped() {
        let (_directory, path) = place();
        for id in ["a", "b"] {
            allocate(&path, id).unwrap();
        }
        open(&path).retain(&[owner("b")]).unwrap();
        assert!(open(&path).held_by(&owner("a")).unwrap().is_empty());
        fs::write(path.join(BOOT_FILE), "another").unwrap();
        assert!(open(&path).held_by(&owner("b")).unwrap().is_empty());
        allocate(&path, "c").unwrap();
        assert_eq!(open(&path).held_by(&owner("c")).unwrap().len(), 1, "this boot's stay");
        // Nobody knows when the reference plugin made these.
        let theirs = tempfile::tempdir().unwrap();
        fs::write(theirs.path().join("10.0.0.2"), "a\r\neth0").unwrap();
        assert_eq!(open(theirs.path()).held_by(&owner("a")).unwrap().len(), 1);
        assert!(!theirs.path().join(BOOT_FILE).exists());
    }

    #[test]
    fn the_earlier_record_is_taken_over() {
        let boot_id = fs::read_to_string(BOOT_ID).unwrap().trim().to_owned();
        let record = |version: u32, boot_id: &str| {
            serde_json::json!({"version": version, "bootId": boot_id, "last": {"0": "10.0.0.3"},
                "leases": {"10.0.0.3": {"containerID": "a", "ifname": "eth0"}}})
            .to_string()
        };
        // Beside the new leases, or in the directory of before.
        for elsewhere in [false, true] {
            let (directory, path) = place();
            let old = if elsewhere { directory.path().join("old") } else { path.clone() };
            fs::create_dir_all(&old).unwrap();
            fs::write(old.join(EARLIER_FILE), record(1, &boot_id)).unwrap();
            let leases = Leases::open(&path, Some(&old)).unwrap();
            assert_eq!(leases.held_by(&owner("a")).unwrap(), ["10.0.0.3".parse::<IpAddr>().unwrap()]);
            drop(leases);
            assert!(!old.join(EARLIER_FILE).exists());
            assert_eq!(allocate(&path, "b").unwrap(), "10.0.0.4", "it goes on behind the last one");
        }
        let (_directory, path) = place();
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join(EARLIER_FILE), record(1, "another boot")).unwrap();
        assert!(open(&path).taken().unwrap().is_empty());
        fs::write(path.join(EARLIER_FILE), record(2, &boot_id)).unwrap();
        assert!(matches!(Leases::open(&path, None), Err(LeaseError::Version { found: 2, .. })));
        fs::write(path.join(EARLIER_FILE), &record(1, &boot_id)[..90]).unwrap();
        assert_eq!(allocate(&path, "c").unwrap(), "10.0.0.2", "a damaged one stops nobody");
        assert!(path.join("leases.damaged").exists());
        let text = r#"{"leases":{"10.0.0.5":{"containerID":"x"#;
        fs::write(path.join(EARLIER_FILE), text).unwrap();
        assert!(open(&path).taken().unwrap().contains(&"10.0.0.5".parse().unwrap()), "what it names stays taken");
    }

    #[test]
    fn a_wanted_address_is_given_unless_taken() {
        let (_directory, path) = place();
        let (sets, wanted) = (sets(), ["10.0.0.5".parse().unwrap()]);
        let mut leases = open(&path);
        assert_eq!(leases.allocate(&owner("a"), &sets, &wanted).unwrap()[0].0, wanted[0]);
        assert!(matches!(leases.allocate(&owner("b"), &sets, &wanted), Err(LeaseError::Taken { .. })));
    }

    #[test]
    fn many_threads_get_different_addresses() {
        let (_directory, path) = place();
        let mut given: Vec<String> = thread::scope(|scope| {
            let path = path.as_path();
            let threads: Vec<_> =
                (0..5).map(|n| scope.spawn(move || allocate(path, &format!("c{n}")).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        given.sort();
        given.dedup();
        assert_eq!(given.len(), 5);
    }
}
