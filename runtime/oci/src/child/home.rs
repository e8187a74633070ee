//! `HOME` for a process whose configuration brings none: what the container's own /etc/passwd says of its user.
//!
//! Runs when the root has changed and the user is who it is to be, so it reads no more than the user itself could. Invariant: whatever the
//! image has at that path, it neither blocks nor reads without end.

use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use nix::libc::O_NONBLOCK;

/// Longer files are read so far; a user behind that has no home.
const PASSWD_BYTES_MAX: u64 = 1 << 20;

/// `HOME=/...`; `None` where the environment has one: of several the last holds, and an empty one is none.
pub(super) fn variable(environment: &[String]) -> Option<CString> {
    let given = environment.iter().rev().find_map(|variable| variable.strip_prefix("HOME="));
    if given.is_some_and(|home| !home.is_empty()) {
        return None;
    }
    let uid = nix::unistd::getuid().as_raw();
    // As with runc and crun: who is not listed is at home at the root.
    let home = passwd().and_then(|text| find(&text, uid)).unwrap_or_else(|| "/".to_owned());
    CString::new(format!("HOME={home}")).ok()
}

fn passwd() -> Option<String> {
    let file = File::options().read(true).custom_flags(O_NONBLOCK).open("/etc/passwd").ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(PASSWD_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// passwd(5): name:password:uid:gid:comment:home:shell.
fn find(text: &str, uid: u32) -> Option<String> {
    text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let is_user = fields.len() >= 6 && fields[2].parse() == Ok(uid);
        (is_user && fields[5].starts_with('/')).then(|| fields[5].to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_are_found_by_number() {
        let text = "root:x:0:0:root:/root:/bin/sh\nbroken\nodd:x:zero:0::/odd:\nempty:x:5:5:::\nuser:x:1000:1000:a:/home/user:/bin/sh";
        for (uid, home) in [(0, Some("/root")), (1000, Some("/home/user")), (5, None), (7, None)] {
            assert_eq!(find(text, uid).as_deref(), home, "{uid}");
        }
        assert_eq!(variable(&["A=1".to_owned(), "HOME=/x".to_owned()]), None);
        // runc's reading: nobody's home is nowhere.
        assert!(variable(&["HOME=".to_owned()]).is_some());
        assert!(variable(&["HOME=/x".to_owned(), "HOME=".to_owned()]).is_some());
        assert_eq!(variable(&["HOME=".to_owned(), "HOME=/x".to_owned()]), None);
        assert!(variable(&[]).is_some_and(|home| home.as_bytes().starts_with(b"HOME=/")));
    }
}
