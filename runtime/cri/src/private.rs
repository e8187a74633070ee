//! Files and directories of this user alone, and files of a bounded size.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::fcntl::OFlag;

/// Ensures a directory that nobody else can enter, also where an older program or another umask left it open. Parents are made the
/// same way, but what is there of them stays as it is.
pub(crate) fn directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    if fs::metadata(path)?.permissions().mode() & 0o7777 != 0o700 {
        fs::set_permissions(path, Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Ensures a directory that is for others to enter, such as the source of a mount: 0755 whatever the umask.
pub(crate) fn public_directory(path: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
    for ancestor in missing.iter().rev() {
        match fs::create_dir(ancestor) {
            Ok(()) => fs::set_permissions(ancestor, Permissions::from_mode(0o755))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && ancestor.is_dir() => {}
            Err(error) => return Err(error),
        }
    }
    if path.is_dir() { Ok(()) } else { Err(io::ErrorKind::NotADirectory.into()) }
}

/// Writes a file that lives no longer than this boot, with its mode from its first byte on, whatever the umask.
pub(crate) fn write(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(mode).open(path)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    io::Write::write_all(&mut file, bytes)
}

/// The content of a regular file; more than `bytes_max` is `FileTooLarge`. A FIFO or a device is not waited for.
pub(crate) fn read(path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags.bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, limit.saturating_add(1)), &mut bytes)?;
    if bytes.len() > bytes_max { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn directories_have_their_modes_also_where_they_were_there() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a/b");
        directory(&inner).unwrap();
        assert_eq!((mode(&dir.path().join("a")), mode(&inner)), (0o700, 0o700));
        fs::set_permissions(&inner, Permissions::from_mode(0o755)).unwrap();
        directory(&inner).unwrap();
        assert_eq!(mode(&inner), 0o700);
        let shared = inner.join("c/d");
        public_directory(&shared).unwrap();
        public_directory(&shared).unwrap();
        assert_eq!((mode(&inner.join("c")), mode(&shared), mode(&inner)), (0o755, 0o755, 0o700));
        fs::write(inner.join("file"), "").unwrap();
        assert!(public_directory(&inner.join("file")).is_err());
    }

    #[test]
    fn a_file_has_its_mode_and_what_is_no_file_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        write(&path, 0o600, b"one").unwrap();
        write(&path, 0o644, b"three").unwrap();
        assert_eq!((mode(&path), read(&path, 5).unwrap().as_slice()), (0o644, b"three".as_slice()));
        assert_eq!(read(&path, 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert_eq!(read(&fifo, 5).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
