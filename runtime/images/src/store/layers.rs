//! Content on its way in: blobs kept by digest, layers unpacked aside, settled on the layers below and moved into place.
//! Order on disk, so that a power cut leaves nothing half believed: files, `syncfs`, layer records, the image's record.

use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, Read, Write as _};
use std::path::{Path, PathBuf};

use nix::unistd::syncfs;

use super::{Inner, Layer, LayerRecord, remove_tree};
use crate::content::{Hashing, Intake, Verdict};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Kind};
use crate::layer::{self, Unpacked, decompressed, settle, unpack};
use crate::record;

const PLAIN_BUFFER_BYTES: usize = 128 << 10;

/// A blob as a descriptor promises it.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    /// `None` where an archive does not say.
    pub(crate) size: Option<u64>,
    /// What to call it in a message.
    pub(crate) subject: String,
}

/// A layer that is unpacked but not yet in its place. Removed when dropped.
#[derive(Debug)]
pub(crate) struct Aside {
    pub(crate) dir: PathBuf,
    pub(crate) unpacked: Unpacked,
    installed: bool,
}

impl Drop for Aside {
    fn drop(&mut self) {
        if !self.installed {
            // Swept at the next start otherwise.
            let _ = remove_tree(&self.dir);
        }
    }
}

impl Inner {
    pub(crate) fn has_blob(&self, blob: &Blob) -> bool {
        fs::metadata(self.paths.blob(&blob.digest)).is_ok_and(|meta| blob.size.is_none_or(|size| size == meta.len()))
    }

    /// A descriptor whose size is not its blob's is refused, also when the blob is here already.
    pub(crate) fn check_size(&self, blob: &Blob) -> Result<(), Error> {
        match (fs::metadata(self.paths.blob(&blob.digest)), blob.size) {
            (Ok(meta), Some(expected)) if meta.len() != expected => {
                Err(Error::SizeMismatch { subject: blob.subject.clone(), expected, actual: meta.len() })
            }
            // Its archive may not be kept here; then only its digest speaks for it.
            _ => Ok(()),
        }
    }

    /// Keeps a small blob whose digest was verified.
    pub(crate) fn put_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<(), Error> {
        let path = self.paths.blob(digest);
        if fs::metadata(&path).is_ok_and(|meta| meta.len() == bytes.len() as u64) {
            return Ok(());
        }
        let beside = self.fresh_temporary();
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&beside)?;
            file.write_all(bytes)?;
            // An image's record is believed only as long as its configuration can be read.
            file.sync_data()?;
            fs::rename(&beside, &path)
        };
        write().map_err(|source| {
            let _ = fs::remove_file(&beside);
            Error::io("write", &path, source)
        })
    }

    pub(crate) fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        let path = self.paths.blob(digest);
        fs::read(&path).map_err(|source| Error::io("read", &path, source))
    }

    /// The partial download of a blob and how much of it there is; an overlong one is begun anew.
    pub(crate) fn open_partial(&self, blob: &Blob) -> Result<(File, u64), Error> {
        let path = self.paths.partial(&blob.digest);
        let failed = |source| Error::io("open", &path, source);
        let file = OpenOptions::new().read(true).append(true).create(true).open(&path).map_err(failed)?;
        let mut have = file.metadata().map_err(failed)?.len();
        if blob.size.is_none_or(|size| have > size) {
            file.set_len(0).map_err(failed)?;
            have = 0;
        }
        Ok((file, have))
    }

    pub(crate) fn drop_partial(&self, digest: &Digest) -> Result<(), Error> {
        remove_tree(&self.paths.partial(digest))
    }

    /// The whole blob arrived in its partial file and was verified.
    pub(crate) fn keep_partial(&self, digest: &Digest) -> Result<(), Error> {
        let (from, to) = (self.paths.partial(digest), self.paths.blob(digest));
        fs::rename(&from, &to).map_err(|source| Error::io("keep", &to, source))
    }

    /// Reads a layer's archive to its end, unpacking and hashing on the way, and verifies both digests.
    pub(crate) fn unpack_aside(&self, blob: &Blob, diff_id: &Digest, intake: &mut Intake) -> Result<Aside, Error> {
        let dir = self.fresh_temporary();
        make_layer_dir(&dir)?;
        let mut aside = Aside { dir, unpacked: Unpacked::default(), installed: false };
        let mut hasher = Hasher::new(diff_id.algorithm());
        match unpack_stream(&mut *intake, &mut hasher, &aside.dir) {
            Ok(unpacked) => aside.unpacked = unpacked,
            Err(source) => {
                let failure = Error::Layer { layer: blob.digest.clone(), source };
                let failure = if failure.kind() == Kind::NoSpace {
                    Error::NoSpace { path: self.config.dir.clone() }
                } else {
                    failure
                };
                return Err(self.blame(blob, intake, failure));
            }
        }
        self.judge(blob, intake)?;
        let actual = hasher.finish();
        if actual != *diff_id {
            let subject = format!("unpacked {} (the image configuration says {diff_id})", blob.subject);
            return Err(Error::DigestMismatch { subject, actual });
        }
        Ok(aside)
    }

    /// Which of two errors to tell: an archive that cannot be read is mostly one that is not what its digest says.
    fn blame(&self, blob: &Blob, intake: &mut Intake, failure: Error) -> Error {
        if let Some(own) = intake.failure() {
            return own;
        }
        if failure.kind() != Kind::Corrupt {
            return failure;
        }
        self.judge(blob, intake).err().unwrap_or(failure)
    }

    /// Reads what is left of the blob and compares size and digest.
    pub(crate) fn judge(&self, blob: &Blob, intake: &mut Intake) -> Result<(), Error> {
        let subject = || blob.subject.clone();
        match intake.finish() {
            Verdict::Good => Ok(()),
            Verdict::Failed(error) => Err(error),
            Verdict::Size(actual) => {
                Err(Error::SizeMismatch { subject: subject(), expected: blob.size.unwrap_or(actual), actual })
            }
            Verdict::Digest(actual) => Err(Error::DigestMismatch { subject: subject(), actual }),
        }
    }

    /// Moves a layer into its place on top of `parent`, which is in place already.
    pub(crate) fn install_layer(
        &self,
        mut aside: Aside,
        chain_id: &Digest,
        diff_id: &Digest,
        parent: Option<&Digest>,
    ) -> Result<(), Error> {
        let below = self.layer_dirs(parent);
        let layer_error = |source: layer::Error| match source.kind() {
            Kind::NoSpace => Error::NoSpace { path: self.config.dir.clone() },
            _ => Error::Layer { layer: diff_id.clone(), source },
        };
        settle(&mut aside.unpacked, &aside.dir, &below).map_err(layer_error)?;
        let name = self.fresh_name();
        let place = self.paths.layer_dirs().join(&name);
        fs::rename(&aside.dir, &place).map_err(|source| Error::io("move into place", &place, source))?;
        aside.installed = true;
        let record = LayerRecord {
            chain_id: chain_id.clone(),
            diff_id: diff_id.clone(),
            parent: parent.cloned(),
            name,
            bytes: aside.unpacked.bytes,
            inodes: aside.unpacked.inodes,
        };
        self.state().layers.insert(chain_id.clone(), Layer { record, saved: false });
        Ok(())
    }

    pub(crate) fn has_layer(&self, chain_id: &Digest) -> bool {
        self.state().layers.contains_key(chain_id)
    }

    /// Topmost first.
    fn layer_dirs(&self, top: Option<&Digest>) -> Vec<PathBuf> {
        let state = self.state();
        let mut dirs = Vec::new();
        let mut next = top.and_then(|chain_id| state.layers.get(chain_id));
        while let Some(layer) = next {
            dirs.push(self.paths.layer_dirs().join(&layer.record.name));
            next = layer.record.parent.as_ref().and_then(|parent| state.layers.get(parent));
        }
        dirs
    }

    /// Makes the layers of a chain survive a power cut: their files first, then the records that vouch for them.
    pub(crate) fn save_layers(&self, chain: &[Digest]) -> Result<(), Error> {
        let unsaved: Vec<LayerRecord> = {
            let state = self.state();
            let layers = chain.iter().filter_map(|chain_id| state.layers.get(chain_id));
            layers.filter(|layer| !layer.saved).map(|layer| layer.record.clone()).collect()
        };
        if unsaved.is_empty() {
            return Ok(());
        }
        let dir = &self.config.dir;
        let handle = File::open(dir).map_err(|source| Error::io("open", dir, source))?;
        // One call for tens of thousands of files; syncing each costs more than unpacking it.
        syncfs(&handle).map_err(|errno| Error::io("sync", dir, errno.into()))?;
        for record in unsaved {
            record::save(&self.layer_record_path(&record.chain_id), &record)?;
            if let Some(layer) = self.state().layers.get_mut(&record.chain_id) {
                layer.saved = true;
            }
        }
        Ok(())
    }
}

fn make_layer_dir(dir: &Path) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt as _;
    let failed = |source| Error::io("create", dir, source);
    fs::create_dir(dir).map_err(failed)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).map_err(failed)
}

fn unpack_stream(intake: impl Read, hasher: &mut Hasher, dir: &Path) -> Result<Unpacked, layer::Error> {
    let plain = decompressed(intake).map_err(layer::Error::read)?;
    // Headers are read in pieces of 512 bytes; the hash wants larger ones.
    unpack(BufReader::with_capacity(PLAIN_BUFFER_BYTES, Hashing { source: plain, hasher }), dir)
}
