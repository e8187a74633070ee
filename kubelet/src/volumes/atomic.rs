//! Files that change all at once, as upstream's volumes do: `name -> ..data/name`, `..data -> ..<time>`; a new set is written
//! beside the old one and `..data` renamed over. Invariant: a reader sees the old set or the new one, never both.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use super::{Cause, File, Owner, io};
use crate::tree;

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// Makes `dir` hold exactly `files`. Does nothing if it does already.
pub(super) fn write(dir: &Path, files: &[File], owner: Owner) -> Result<(), Cause> {
    let data = dir.join(DATA);
    if is_current(&data, files) {
        return Ok(());
    }
    let old = fs::read_link(&data).ok();
    let stamp = jiff::Zoned::now().strftime("..%Y_%m_%d_%H_%M_%S.%N").to_string();
    let fresh = dir.join(&stamp);
    fs::create_dir(&fresh).map_err(io("create", &fresh))?;
    set_mode(&fresh, 0o755)?;
    for file in files {
        write_file(&fresh, file, owner)?;
    }
    own(&fresh, owner, true)?;
    let link = dir.join(DATA_NEW);
    // Left by a kubelet that died here.
    let _ = fs::remove_file(&link);
    symlink(&stamp, &link).map_err(io("link", &link))?;
    fs::rename(&link, &data).map_err(io("rename", &data))?;
    link_names(dir, files)?;
    if let Some(old) = old.filter(|old| old.as_os_str() != stamp.as_str()) {
        let old = dir.join(old);
        runtime_linux::tree::remove(&old).map_err(|error| io("remove", &old)(error.into_io()))?;
    }
    Ok(())
}

/// The first parts of the paths are what the container sees.
fn link_names(dir: &Path, files: &[File]) -> Result<(), Cause> {
    let wanted: BTreeSet<&str> = files.iter().filter_map(|f| f.path.split('/').next()).collect();
    for name in &wanted {
        let link = dir.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link).map_err(io("link", &link))?;
        }
    }
    for entry in fs::read_dir(dir).map_err(io("read", dir))? {
        let entry = entry.map_err(io("read", dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // What is no link is the mount point of another volume.
        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        if is_link && !name.starts_with("..") && !wanted.contains(name.as_str()) {
            let path = dir.join(name);
            fs::remove_file(&path).map_err(io("remove", &path))?;
        }
    }
    Ok(())
}

fn write_file(root: &Path, file: &File, owner: Owner) -> Result<(), Cause> {
    let path = root.join(&file.path);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(io("create", parent))?;
        for dir in parent.ancestors().take_while(|d| *d != root) {
            set_mode(dir, 0o755)?;
            own(dir, owner, true)?;
        }
    }
    fs::write(&path, &file.bytes).map_err(io("write", &path))?;
    set_mode(&path, file.mode)?;
    own(&path, owner, false)
}

/// Gives a path to the pod's user and group; the group can read it.
fn own(path: &Path, owner: Owner, dir: bool) -> Result<(), Cause> {
    if owner == Owner::default() {
        return Ok(());
    }
    chown(path, owner.user.filter(|_| !dir), owner.group).map_err(io("chown", path))?;
    if owner.group.is_some() {
        let mode = fs::metadata(path).map_err(io("stat", path))?.permissions().mode();
        let more = if dir { 0o2550 } else { 0o440 };
        set_mode(path, (mode & 0o7777) | more)?;
    }
    Ok(())
}

pub(super) fn set_mode(path: &Path, mode: u32) -> Result<(), Cause> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(io("chmod", path))
}

fn is_current(data: &Path, files: &[File]) -> bool {
    let same = |file: &File| fs::read(data.join(&file.path)).is_ok_and(|bytes| bytes == file.bytes);
    let Ok(real) = fs::canonicalize(data) else { return false };
    // As many entries as there are to be, so that none is too many.
    let mut names: BTreeSet<&Path> = BTreeSet::new();
    for file in files {
        names.extend(Path::new(&file.path).ancestors());
    }
    names.insert(Path::new(""));
    files.iter().all(same) && u64::try_from(names.len()).ok() == Some(tree::measure(&real).files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.into(), bytes: text.into(), mode: 0o640 }
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names.retain(|n| !n.starts_with("..2"));
        names
    }

    #[test]
    fn sets_change_whole_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        write(dir, &[file("a", "1"), file("sub/b", "2")], Owner::default()).unwrap();
        assert_eq!(names(dir), ["..data", "a", "sub"]);
        assert_eq!(fs::read_to_string(dir.join("sub/b")).unwrap(), "2");
        assert_eq!(fs::metadata(dir.join("a")).unwrap().permissions().mode() & 0o777, 0o640);
        let first = fs::read_link(dir.join("..data")).unwrap();
        write(dir, &[file("a", "1"), file("sub/b", "2")], Owner::default()).unwrap();
        assert_eq!(fs::read_link(dir.join("..data")).unwrap(), first, "nothing changed");
        write(dir, &[file("a", "3")], Owner { user: None, group: Some(1234) }).unwrap();
        assert_eq!(names(dir), ["..data", "a"]);
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "3");
        assert!(!dir.join(first).exists());
        write(dir, &[], Owner::default()).unwrap();
        assert_eq!(names(dir), ["..data"]);
    }
}
