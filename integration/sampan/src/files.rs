//! Writing files so that a reader, or a machine that loses power, sees the old or the new content and nothing between.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Replaces `path` in one step, durably; `mode` is the new file's, so that a key is never readable in between. A file that is
/// as it should be is left alone: a daemon must be able to start again while the disk is full.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    if is_already(path, content, mode) {
        return Ok(());
    }
    let directory = path.parent().ok_or_else(|| io::Error::other("a file needs a directory"))?;
    fs::create_dir_all(directory)?;
    let staged = path.with_extension(format!("new-{}", std::process::id()));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&staged)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&staged, path)?;
        File::open(directory)?.sync_all()
    })();
    if written.is_err() {
        // The error that matters is the first one; a leftover is overwritten by the next try.
        let _leftover = fs::remove_file(&staged);
    }
    written
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
    fn replaces_whole_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        replace(&path, b"one", 0o600).unwrap();
        replace(&path, b"two", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing staged stays behind");
        let inode = fs::metadata(&path).unwrap().ino();
        replace(&path, b"two", 0o600).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode, "written although nothing changes");
        replace(&path, b"two", 0o644).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    }
}
