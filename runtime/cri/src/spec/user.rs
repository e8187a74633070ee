//! Who a container runs as: the configuration's or the image's user, looked up in the image's own passwd and group files.
//!
//! The files are read through a rooted path inside the image, so a symlink in it leads nowhere else. What they
//! mean, see `runtime_oci::accounts`.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use runtime_cri_api::v1::{ContainerUser, LinuxContainerSecurityContext, LinuxContainerUser, SupplementalGroupsPolicy};
use runtime_linux::mount::{Filesystem, Overlay, attribute};
use runtime_linux::rooted::Root;
use runtime_oci::accounts::{self, Account};

use super::SpecError;

/// Longest passwd or group file that is read.
const FILE_BYTES_MAX: u64 = 4 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Without duplicates, the primary group first.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

impl User {
    pub(crate) fn told(&self) -> ContainerUser {
        let supplemental_groups = self.groups.iter().map(|gid| i64::from(*gid)).collect();
        ContainerUser {
            linux: Some(LinuxContainerUser { uid: self.uid.into(), gid: self.gid.into(), supplemental_groups }),
        }
    }
}

/// The image's `/etc/passwd` and `/etc/group`; empty where it has none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Accounts {
    pub(crate) passwd: String,
    pub(crate) group: String,
}

impl Accounts {
    pub(crate) fn load(image: &Overlay) -> Result<Self, SpecError> {
        let failed = |file| move |source| SpecError::Image { file, source };
        let roots = roots(image).map_err(failed("its root"))?;
        Ok(Self {
            passwd: read_first(&roots, "/etc/passwd").map_err(failed("/etc/passwd"))?,
            group: read_first(&roots, "/etc/group").map_err(failed("/etc/group"))?,
        })
    }
}

/// The layers as one read-only tree, never attached anywhere; on a kernel without `lowerdir+` (6.8) each for itself.
pub(crate) fn roots(image: &Overlay) -> Result<Vec<Root>, Errno> {
    if image.lower.len() > 1 {
        let merged = || -> Result<OwnedFd, Errno> {
            let filesystem = Filesystem::open("overlay")?;
            for layer in &image.lower {
                filesystem.set("lowerdir+", layer)?;
            }
            filesystem.mount(attribute::RDONLY | attribute::NODEV | attribute::NOSUID | attribute::NOEXEC)
        };
        if let Ok(tree) = merged() {
            return Ok(vec![Root::new(tree)]);
        }
    }
    image.lower.iter().map(|layer| Root::open_dir(layer)).collect()
}

fn read_first(roots: &[Root], path: &str) -> Result<String, Errno> {
    for root in roots {
        match root.open(Path::new(path), OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK) {
            Ok(fd) => {
                let file = std::fs::File::from(fd);
                let metadata = file.metadata().map_err(|error| errno(&error))?;
                // A whiteout or a device where the file should be: the image has none.
                if !metadata.is_file() {
                    return Ok(String::new());
                }
                let mut bytes = Vec::new();
                file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(|error| errno(&error))?;
                return Ok(String::from_utf8_lossy(&bytes).into_owned());
            }
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(String::new())
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// The configuration's user before the image's; CRI: a group alone is refused.
pub(crate) fn resolve(
    security: &LinuxContainerSecurityContext,
    image_user: Option<&str>,
    files: &Accounts,
) -> Result<User, SpecError> {
    let by_id = security.run_as_user.map(|id| number("run_as_user", id.value)).transpose()?;
    let group = security.run_as_group.map(|id| number("run_as_group", id.value)).transpose()?;
    let (wanted, image_group) = match (by_id, security.run_as_username.as_str()) {
        (Some(uid), _) => (uid.to_string(), None),
        (None, "") if group.is_some() && image_user.is_none_or(str::is_empty) => {
            return Err(SpecError::field("run_as_group", "needs run_as_user or run_as_username"));
        }
        (None, "") => {
            let (user, group) = image_user.unwrap_or_default().split_once(':').map_or_else(
                || (image_user.unwrap_or_default(), None),
                |(user, group)| (user, Some(group).filter(|group| !group.is_empty())),
            );
            (if user.is_empty() { "0".to_owned() } else { user.to_owned() }, group)
        }
        (None, name) => (name.to_owned(), None),
    };
    let account = find(&wanted, files)?;
    let gid = match (group, image_group) {
        (Some(gid), _) => gid,
        (None, Some(name)) => group_id(name, files)?,
        (None, None) => account.gid,
    };
    let mut all = vec![gid];
    if security.supplemental_groups_policy() == SupplementalGroupsPolicy::Merge && !account.name.is_empty() {
        let member = |members: &str| members.split(',').any(|member| member.trim() == account.name);
        all.extend(accounts::groups(&files.group).filter(|(_, _, members)| member(members)).map(|(_, gid, _)| gid));
    }
    for gid in &security.supplemental_groups {
        all.push(number("supplemental_groups", *gid)?);
    }
    let mut seen = std::collections::HashSet::new();
    all.retain(|gid| seen.insert(*gid));
    let home = if account.home.is_empty() { "/" } else { account.home };
    Ok(User { uid: account.uid, gid, groups: all, home: home.to_owned() })
}

fn find<'a>(wanted: &str, files: &'a Accounts) -> Result<Account<'a>, SpecError> {
    accounts::account(wanted, &files.passwd).ok_or_else(|| SpecError::NoUser { name: wanted.to_owned() })
}

fn group_id(name: &str, files: &Accounts) -> Result<u32, SpecError> {
    accounts::group_id(name, &files.group).ok_or_else(|| SpecError::NoGroup { name: name.to_owned() })
}

/// CVE-2026-30892 and its like: an id is a number that fits, or an error; never wrapped, never zero by mistake.
fn number(field: &'static str, id: i64) -> Result<u32, SpecError> {
    u32::try_from(id)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| SpecError::field(field, format!("{id} is not an id: give 0 to 4294967294")))
}

#[cfg(test)]
mod tests {
    use runtime_cri_api::v1::Int64Value;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\nbroken\nweb:x:33:34:web:/var/www:/bin/false\nevil:x:4294967295:0::/:\n100:x:7:8::/h:\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nlog:x:40:root,web\nadm:x:41: web\n";

    fn check(
        change: impl FnOnce(&mut LinuxContainerSecurityContext),
        image: Option<&str>,
        expect: Result<(u32, u32, &[u32], &str), &str>,
    ) {
        let files = Accounts { passwd: PASSWD.into(), group: GROUP.into() };
        let mut security = LinuxContainerSecurityContext::default();
        change(&mut security);
        match (resolve(&security, image, &files), expect) {
            (Ok(user), Ok(expect)) => {
                assert_eq!((user.uid, user.gid, user.groups.as_slice(), user.home.as_str()), expect);
            }
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (found, expect) => panic!("{image:?}: {found:?}, expected {expect:?}"),
        }
    }

    #[test]
    fn users() {
        let id = |value| Some(Int64Value { value });
        check(|_| {}, None, Ok((0, 0, &[0, 40], "/root")));
        check(|_| {}, Some("web"), Ok((33, 34, &[34, 40, 41], "/var/www")));
        check(|_| {}, Some("web:log"), Ok((33, 40, &[40, 41], "/var/www")));
        check(|_| {}, Some("33:"), Ok((33, 34, &[34, 40, 41], "/var/www")));
        check(|_| {}, Some("1000:1001"), Ok((1000, 1001, &[1001], "/")));
        check(|_| {}, Some("1000"), Ok((1000, 0, &[0], "/")));
        // An image cannot make a number mean something else.
        check(|_| {}, Some("100"), Ok((100, 0, &[0], "/")));
        check(|security| security.run_as_user = id(100), None, Ok((100, 0, &[0], "/")));
        check(|_| {}, Some("ghost"), Err("no user \"ghost\""));
        check(|_| {}, Some("web:ghosts"), Err("no group \"ghosts\""));
        for wrong in ["-1", "+1", "4294967295", "4294967296", "0x1", " 0", "evil"] {
            check(|_| {}, Some(wrong), Err("no user"));
        }
        check(|_| {}, Some("0:4294967295"), Err("no group"));
        check(|_| {}, Some("0:+0"), Err("no group"));
        check(|security| security.run_as_user = id(33), Some("0"), Ok((33, 34, &[34, 40, 41], "/var/www")));
        check(|security| security.run_as_user = id(4_294_967_296), None, Err("4294967296"));
        check(|security| security.run_as_user = id(-1), None, Err("-1"));
        check(|security| security.run_as_username = "web".into(), None, Ok((33, 34, &[34, 40, 41], "/var/www")));
        check(|security| security.run_as_group = id(5), None, Err("run_as_group"));
        check(
            |security| {
                security.run_as_user = id(1000);
                security.run_as_group = id(5);
                security.supplemental_groups = vec![6, 5, 6];
            },
            None,
            Ok((1000, 5, &[5, 6], "/")),
        );
        check(
            |security| {
                security.run_as_user = id(33);
                security.supplemental_groups = vec![6];
                security.supplemental_groups_policy = SupplementalGroupsPolicy::Strict.into();
            },
            None,
            Ok((33, 34, &[34, 6], "/var/www")),
        );
    }

    #[test]
    fn files_come_from_the_topmost_layer_and_never_from_the_host() {
        let dir = tempfile::tempdir().unwrap();
        let (top, bottom) = (dir.path().join("top"), dir.path().join("bottom"));
        for layer in [&top, &bottom] {
            std::fs::create_dir_all(layer.join("etc")).unwrap();
        }
        std::fs::write(bottom.join("etc/passwd"), "a:x:1:1::/:").unwrap();
        std::fs::write(top.join("etc/passwd"), "b:x:2:2::/:").unwrap();
        std::os::unix::fs::symlink("/etc/hostname", bottom.join("etc/group")).unwrap();
        let overlay = |lower: Vec<std::path::PathBuf>| Overlay {
            lower,
            upper: dir.path().join("upper"),
            work: dir.path().join("work"),
        };
        let files = Accounts::load(&overlay(vec![top.clone(), bottom.clone()])).unwrap();
        assert_eq!((files.passwd.as_str(), files.group.as_str()), ("b:x:2:2::/:", ""));
        let files = Accounts::load(&overlay(vec![bottom])).unwrap();
        assert_eq!((files.passwd.as_str(), files.group.as_str()), ("a:x:1:1::/:", ""));
    }
}
