//! Files of an instance that are written again at every start: whole or not at all, and only where something changes.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use runtime_linux::durable;

/// Replaces `path` in one step, durably; `mode` is the new file's, so that a key is never readable in between. A file that is
/// as it should be is left alone: a daemon must be able to start again while the disk is full.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    if is_already(path, content, mode) {
        return Ok(());
    }
    let directory = path.parent().ok_or_else(|| io::Error::other("a file needs a directory"))?;
    fs::create_dir_all(directory)?;
    durable::write_atomic(path, mode, content).map_err(durable::Error::into_io)
}

fn is_already(path: &Path, content: &[u8], mode: u32) -> bool {
    let has_mode = fs::metadata(path).is_ok_and(|found| found.mode() & 0o7777 == mode);
    has_mode && fs::read(path).is_ok_and(|found| found == content)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_that_is_as_it_should_be_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        replace(&path, b"one", 0o600).unwrap();
        replace(&path, b"two", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let inode = fs::metadata(&path).unwrap().ino();
        replace(&path, b"two", 0o600).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode, "written although nothing changes");
        replace(&path, b"two", 0o644).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    }
}
