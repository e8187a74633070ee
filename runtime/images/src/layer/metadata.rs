//! Owner, mode, times and extended attributes of an entry, from its tar header and PAX records.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmod, fchmodat, futimens, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat};
use tar::Entry;

use super::Error;
use super::rooted::path_in;

const PAX_XATTR: &str = "SCHILY.xattr.";
/// Overlayfs keeps its own state in these; an archive that set them could redirect lookups to foreign files.
const OVERLAY_XATTRS: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

#[derive(Clone, Debug)]
pub(super) struct Metadata {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: TimeSpec,
    pub(super) xattrs: Vec<(OsString, Vec<u8>)>,
}

impl Metadata {
    pub(super) fn of<R: Read>(path: &[u8], entry: &mut Entry<'_, R>) -> Result<Self, Error> {
        let header = entry.header();
        let fields = header.as_old();
        let number = |field: &[u8], parsed: std::io::Result<u64>, what| match parsed {
            Ok(value) => Ok(value),
            // A field that was never filled in means zero to every tar.
            Err(_) if field.iter().all(|byte| matches!(byte, 0 | b' ')) => Ok(0),
            Err(_) => Err(Error::entry(path, what)),
        };
        let narrow = |value: u64| u32::try_from(value).map_err(|_| Error::entry(path, "has an owner beyond 32 bits"));
        let mode = number(&fields.mode, header.mode().map(u64::from), "has an unreadable mode")?;
        let uid = number(&fields.uid, header.uid(), "has an unreadable owner")?;
        let gid = number(&fields.gid, header.gid(), "has an unreadable group")?;
        let seconds = number(&fields.mtime, header.mtime(), "has an unreadable time")?;
        let mut metadata = Self {
            mode: u32::try_from(mode & 0o7777).unwrap_or_default(),
            uid: narrow(uid)?,
            gid: narrow(gid)?,
            mtime: TimeSpec::new(i64::try_from(seconds).unwrap_or(i64::MAX), 0),
            xattrs: Vec::new(),
        };
        let Some(records) = entry.pax_extensions().map_err(Error::read)? else { return Ok(metadata) };
        for record in records {
            let record = record.map_err(Error::read)?;
            let Ok(key) = record.key() else { continue };
            let text = || String::from_utf8_lossy(record.value_bytes());
            let id = || text().parse::<u32>().map_err(|_| Error::entry(path, "has an unreadable PAX owner"));
            match key {
                "uid" => metadata.uid = id()?,
                "gid" => metadata.gid = id()?,
                "mtime" => metadata.mtime = pax_time(&text()).unwrap_or(metadata.mtime),
                "GNU.sparse.major" | "GNU.sparse.map" => {
                    return Err(Error::entry(path, "is a PAX sparse file, which is not supported"));
                }
                key => {
                    if let Some(name) = key.strip_prefix(PAX_XATTR)
                        && !is_overlay_xattr(name.as_bytes())
                    {
                        metadata.xattrs.push((name.into(), record.value_bytes().to_owned()));
                    }
                }
            }
        }
        Ok(metadata)
    }

    /// Of an open regular file. Owner before mode: chown clears set-uid bits, and file capabilities likewise.
    pub(super) fn apply_to_file(&self, path: &[u8], file: BorrowedFd<'_>) -> Result<(), Error> {
        let failed = |action| move |errno: Errno| Error::write(action, path, errno);
        fchown(file, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
            .map_err(failed("change owner of"))?;
        fchmod(file, Mode::from_bits_truncate(self.mode)).map_err(failed("change mode of"))?;
        if !self.xattrs.is_empty() {
            self.apply_xattrs(path, file, b"")?;
        }
        futimens(file, &self.mtime, &self.mtime).map_err(failed("change time of"))
    }

    /// Of `name` in `dir`, which is no symbolic link for `mode` to apply.
    pub(super) fn apply_in(&self, path: &[u8], dir: BorrowedFd<'_>, name: &[u8], link: bool) -> Result<(), Error> {
        let failed = |action| move |errno: Errno| Error::write(action, path, errno);
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        let os_name = OsStr::from_bytes(name);
        fchownat(dir, os_name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(failed("change owner of"))?;
        if !link {
            fchmodat(dir, os_name, Mode::from_bits_truncate(self.mode), FchmodatFlags::FollowSymlink)
                .map_err(failed("change mode of"))?;
        }
        self.apply_xattrs(path, dir, name)?;
        self.apply_time_in(path, dir, name)
    }

    pub(super) fn apply_time_in(&self, path: &[u8], dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Error> {
        utimensat(dir, OsStr::from_bytes(name), &self.mtime, &self.mtime, UtimensatFlags::NoFollowSymlink)
            .map_err(|errno| Error::write("change time of", path, errno))
    }

    fn apply_xattrs(&self, path: &[u8], dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Error> {
        if self.xattrs.is_empty() {
            return Ok(());
        }
        let target = path_in(dir, name);
        for (key, value) in &self.xattrs {
            let set =
                if name.is_empty() { xattr::set_deref(&target, key, value) } else { xattr::set(&target, key, value) };
            match set {
                Ok(()) => {}
                // The filesystem or this kind of file knows no such attribute; labels of another machine's policy.
                Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {
                    tracing::debug!(entry = %String::from_utf8_lossy(path), key = ?key, "attribute is not supported here");
                }
                Err(error) => return Err(Error::write("set an extended attribute of", path, error)),
            }
        }
        Ok(())
    }
}

pub(super) fn is_overlay_xattr(name: &[u8]) -> bool {
    OVERLAY_XATTRS.iter().any(|prefix| name.starts_with(prefix))
}

/// `1700000000.123456789`, possibly negative; digits beyond nanoseconds are cut.
fn pax_time(text: &str) -> Option<TimeSpec> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: i64 = digits.parse().ok()?;
    if whole.starts_with('-') && nanoseconds > 0 {
        return Some(TimeSpec::new(seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some(TimeSpec::new(seconds, nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let check = |text: &str, expect: Option<(i64, i64)>| {
            assert_eq!(pax_time(text), expect.map(|(s, n)| TimeSpec::new(s, n)), "{text}");
        };
        check("12", Some((12, 0)));
        check("12.5", Some((12, 500_000_000)));
        check("12.1234567891", Some((12, 123_456_789)));
        check("-1.5", Some((-2, 500_000_000)));
        check("x", None);
        check("-9223372036854775808.5", None);
        check("9223372036854775807.5", Some((i64::MAX, 500_000_000)));
    }
}
