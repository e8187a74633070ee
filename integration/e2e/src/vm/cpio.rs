//! The archive that a kernel unpacks as its first root: cpio in the "newc" format, as Documentation/driver-api/early-userspace/
//! buffer-format.rst of the kernel gives it. In memory; later files replace earlier ones of the same name.

use std::collections::BTreeMap;
use std::path::Path;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const TRAILER: &str = "TRAILER!!!";

#[derive(Debug, Default)]
pub(super) struct Archive {
    /// Mode with type, and content, by path without a leading slash. Sorted, so a directory comes before what it holds.
    entries: BTreeMap<String, (u32, Vec<u8>)>,
}

impl Archive {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// With those above it.
    pub(super) fn directory(&mut self, path: &str) {
        for above in Path::new(path).ancestors().filter(|above| *above != Path::new("")) {
            let above = above.to_string_lossy().into_owned();
            self.entries.entry(above).or_insert((DIRECTORY | 0o755, Vec::new()));
        }
    }

    pub(super) fn file(&mut self, path: &str, mode: u32, content: Vec<u8>) {
        self.insert(path, REGULAR | mode, content);
    }

    pub(super) fn symlink(&mut self, path: &str, target: &str) {
        self.insert(path, SYMLINK | 0o777, target.into());
    }

    fn insert(&mut self, path: &str, mode: u32, content: Vec<u8>) {
        if let Some(above) = Path::new(path).parent() {
            self.directory(&above.to_string_lossy());
        }
        self.entries.insert(path.to_owned(), (mode, content));
    }

    pub(super) fn finish(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (number, (path, (mode, content))) in (1u32..).zip(&self.entries) {
            write_entry(&mut bytes, number, path, *mode, content);
        }
        write_entry(&mut bytes, 0, TRAILER, 0, &[]);
        bytes
    }
}

fn write_entry(bytes: &mut Vec<u8>, inode: u32, path: &str, mode: u32, content: &[u8]) {
    let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
    let name_length = path.len() + 1;
    // Magic, inode, mode, uid, gid, links, modification time, size, device and special device as major and minor, name length, check.
    let header = format!(
        "070701{inode:08X}{mode:08X}{:08X}{:08X}{links:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{name_length:08X}{:08X}",
        0,
        0,
        0,
        content.len(),
        0,
        0,
        0,
        0,
        0
    );
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(path.as_bytes());
    bytes.push(0);
    pad(bytes);
    bytes.extend_from_slice(content);
    pad(bytes);
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    /// Busybox, which knows the format too, unpacks the same tree.
    #[test]
    fn another_reader_unpacks_it() {
        let mut archive = Archive::new();
        archive.file("a/b/odd", 0o640, b"seven b".to_vec());
        archive.file("a/b/odd", 0o750, b"replaced".to_vec());
        archive.file("empty", 0o600, Vec::new());
        archive.symlink("a/link", "b/odd");
        let directory = tempfile::tempdir().unwrap();
        let mut reader = Command::new("/bin/busybox")
            .args(["cpio", "-i", "-d"])
            .current_dir(directory.path())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        reader.stdin.take().unwrap().write_all(&archive.finish()).unwrap();
        assert!(reader.wait().unwrap().success());
        assert_eq!(std::fs::read(directory.path().join("a/link")).unwrap(), b"replaced");
        assert_eq!(std::fs::read(directory.path().join("empty")).unwrap(), b"");
        let status = std::fs::metadata(directory.path().join("a/b/odd")).unwrap();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&status.permissions()), 0o100_750);
    }
}
