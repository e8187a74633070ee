//! The volumes that an image declares (`VOLUME`): a directory per container and volume, with what the image has at that path.
//!
//! As containerd has it: made at the container's creation, writable also below a read-only root, gone with the container; a mount of the
//! container's configuration at the same path stands for the volume. Invariant: of the image nothing is opened but below its own
//! root (`openat2`), and nothing is followed.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag, mknod};
use runtime_cri_api::v1::Mount;
use runtime_images::Image;
use runtime_linux::mount::Overlay;
use runtime_linux::rooted::Root;
use runtime_linux::tree;

use crate::node::Node;
use crate::private;
use crate::spec::{self, SpecError};
use crate::status::Error;

/// Directories of one image's volume; it was unpacked once, so this bounds a mistake and not a use.
const DIRECTORIES_MAX: usize = 1 << 20;

/// A volume and the directory that is mounted there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Volume {
    pub(crate) target: PathBuf,
    pub(crate) source: PathBuf,
}

/// Where a container's volumes lie.
fn place(node: &Node, id: &str) -> PathBuf {
    node.config.data_dir.join("volumes").join(id)
}

/// Makes what the image declares and the configuration does not mount itself.
pub(crate) fn make(
    node: &Node,
    id: &str,
    image: &Image,
    mounts: &[Mount],
    overlay: &Overlay,
) -> Result<Vec<Volume>, Error> {
    let declared = image.config.config().as_ref().and_then(|config| config.volumes().clone()).unwrap_or_default();
    let targets = wanted(&declared, mounts)?;
    if targets.is_empty() {
        return Ok(Vec::new());
    }
    let parent = place(node, id);
    private::directory(&parent).map_err(Error::io("make", &parent))?;
    let roots = spec::user::roots(overlay).map_err(|source| SpecError::Image { file: "its volumes", source })?;
    let mut volumes = Vec::new();
    for (number, target) in targets.into_iter().enumerate() {
        let source = parent.join(number.to_string());
        fill(&roots, &target, &source).map_err(Error::io("make the volume", &target))?;
        volumes.push(Volume { target, source });
    }
    Ok(volumes)
}

/// The targets, clean and each once.
fn wanted(declared: &[String], mounts: &[Mount]) -> Result<Vec<PathBuf>, SpecError> {
    let mounted: HashSet<PathBuf> = mounts.iter().map(|mount| spec::clean(&mount.container_path)).collect();
    let mut seen = HashSet::new();
    let mut targets = Vec::new();
    for path in declared {
        let target = spec::clean(path);
        if target == Path::new("/") {
            return Err(SpecError::field("image", format!("its volume {path:?} would hide all of it")));
        }
        if !mounted.contains(&target) && seen.insert(target.clone()) {
            targets.push(target);
        }
    }
    targets.sort();
    Ok(targets)
}

/// The volume's directory with the image's content, owners and modes; an empty one where the image has no such directory.
fn fill(roots: &[Root], target: &Path, source: &Path) -> io::Result<()> {
    fs::create_dir(source)?;
    fs::set_permissions(source, Permissions::from_mode(0o755))?;
    for root in roots {
        match root.open(target, OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
            Ok(directory) => return copy(directory, source),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Copies the content of one directory into another, which is nobody else's. Without recursion: images nest as they like.
fn copy(from: OwnedFd, into: &Path) -> io::Result<()> {
    let root = Root::new(from.try_clone()?);
    settle(&File::from(from).metadata()?, into)?;
    let mut left = vec![PathBuf::new()];
    let mut count = 0_usize;
    while let Some(below) = left.pop() {
        count = count.saturating_add(1);
        if count > DIRECTORIES_MAX {
            return Err(io::Error::other(format!("the image has more than {DIRECTORIES_MAX} directories there")));
        }
        let here = Path::new("/").join(&below);
        let directory = root.open_plain(&here, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        for entry in Dir::from_fd(directory)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let below = below.join(name);
            if copy_entry(&root, &below, &into.join(&below))? {
                left.push(below);
            }
        }
    }
    Ok(())
}

/// Copies one entry; true for a directory, whose content is still to come.
fn copy_entry(root: &Root, below: &Path, target: &Path) -> io::Result<bool> {
    let at = Path::new("/").join(below);
    let entry = root.open_plain(&at, OFlag::O_PATH | OFlag::O_NOFOLLOW)?;
    let entry = File::from(entry);
    let metadata = entry.metadata()?;
    let kind = metadata.file_type();
    let special = if kind.is_fifo() {
        Some(SFlag::S_IFIFO)
    } else if kind.is_char_device() {
        Some(SFlag::S_IFCHR)
    } else if kind.is_block_device() {
        Some(SFlag::S_IFBLK)
    } else {
        None
    };
    if kind.is_dir() {
        fs::create_dir(target)?;
    } else if kind.is_file() {
        let mut copy = File::options().write(true).create_new(true).mode(0o600).open(target)?;
        io::copy(&mut root.open_plain_regular(&at)?, &mut copy)?;
    } else if kind.is_symlink() {
        symlink(nix::fcntl::readlinkat(&entry, "")?, target)?;
        lchown(target, Some(metadata.uid()), Some(metadata.gid()))?;
        return Ok(false);
    } else if let Some(special) = special {
        mknod(target, special, Mode::empty(), metadata.rdev())?;
    } else {
        // A socket: nobody listens on a copy.
        return Ok(false);
    }
    settle(&metadata, target)?;
    Ok(kind.is_dir())
}

/// Owner first: changing it takes set-user-ID away.
fn settle(metadata: &fs::Metadata, path: &Path) -> io::Result<()> {
    lchown(path, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::set_permissions(path, Permissions::from_mode(metadata.mode() & 0o7777))
}

/// Removes a container's volumes; gone is success.
pub(crate) fn remove(node: &Node, id: &str) -> Result<(), Error> {
    let path = place(node, id);
    tree::remove(&path).map_err(|error| Error::io("remove", &path)(error.into_io()))
}

/// Removes the volumes of no container; those of records that could not be read stay.
pub(crate) fn release_strays(node: &Node, unreadable: &HashSet<String>) {
    let Ok(entries) = fs::read_dir(node.config.data_dir.join("volumes")) else { return };
    for entry in entries.flatten() {
        let id = entry.file_name().to_string_lossy().into_owned();
        if !unreadable.contains(&id)
            && node.container(&id).is_err()
            && let Err(error) = remove(node, &id)
        {
            tracing::warn!(id, error = %crate::status::chain(&error), "volumes not removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_stands_for_a_volume_and_paths_are_cleaned() {
        let check = |declared: &[&str], mounted: &[&str], expect: Result<&[&str], &str>| {
            let declared: Vec<String> = declared.iter().map(ToString::to_string).collect();
            let mounts: Vec<Mount> =
                mounted.iter().map(|path| Mount { container_path: (*path).into(), ..Default::default() }).collect();
            match (wanted(&declared, &mounts), expect) {
                (Ok(targets), Ok(expect)) => {
                    assert_eq!(targets, expect.iter().map(PathBuf::from).collect::<Vec<_>>());
                }
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
                (found, expect) => panic!("{declared:?}: {found:?}, expected {expect:?}"),
            }
        };
        check(&["/data"], &[], Ok(&["/data"]));
        check(&["/data/"], &["/data"], Ok(&[]));
        check(&["data", "/data", "/b/../data"], &[], Ok(&["/data"]));
        check(&["/data"], &["/data/more"], Ok(&["/data"]));
        check(&["/b", "/a"], &["//a/"], Ok(&["/b"]));
        check(&["/x/.."], &[], Err("would hide all of it"));
    }

    #[test]
    fn a_volume_has_the_content_of_the_image_and_nothing_of_the_host() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        fs::create_dir_all(image.join("data/deep/er")).unwrap();
        fs::write(image.join("data/file"), "content").unwrap();
        fs::set_permissions(image.join("data/file"), Permissions::from_mode(0o4751)).unwrap();
        fs::set_permissions(image.join("data"), Permissions::from_mode(0o1777)).unwrap();
        lchown(image.join("data/deep"), Some(33), Some(34)).unwrap();
        symlink("/etc/passwd", image.join("data/deep/er/link")).unwrap();
        nix::unistd::mkfifo(&image.join("data/fifo"), Mode::S_IRUSR).unwrap();
        symlink("/data", image.join("alias")).unwrap();
        symlink(dir.path(), image.join("outside")).unwrap();
        let roots = [Root::open_dir(&image).unwrap()];
        let source = dir.path().join("volume");
        fill(&roots, Path::new("/alias"), &source).unwrap();
        let look = |below: &str| fs::symlink_metadata(source.join(below)).unwrap();
        assert_eq!(fs::read_to_string(source.join("file")).unwrap(), "content");
        assert_eq!((look("file").mode() & 0o7777, look("").mode() & 0o7777), (0o4751, 0o1777));
        assert_eq!((look("deep").uid(), look("deep").gid()), (33, 34));
        assert_eq!(fs::read_link(source.join("deep/er/link")).unwrap(), Path::new("/etc/passwd"));
        assert!(look("fifo").file_type().is_fifo());
        // A link that leaves the image leads nowhere: the volume is empty.
        let empty = dir.path().join("empty");
        fill(&roots, Path::new("/outside"), &empty).unwrap();
        assert_eq!(fs::read_dir(&empty).unwrap().count(), 0);
        let missing = dir.path().join("missing");
        fill(&roots, Path::new("/no/such"), &missing).unwrap();
        assert_eq!(fs::metadata(&missing).unwrap().mode() & 0o7777, 0o755);
    }
}
