//! Ids that a user may hand out: /etc/subuid and /etc/subgid (subuid(5)), and the two set-uid programs that write maps with them.
//!
//! newuidmap(1) and newgidmap(1) are the exception to "no helper program is run": the kernel lets an unprivileged user map only its own
//! id, and they alone may do more for it.

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::unistd::{User, getegid, geteuid};
use runtime_linux::idmap::{Maps, Range};

use crate::error::Error;

/// The caller's own id as root, and its subordinate ids behind it: for a new user namespace whose configuration has no maps.
pub(crate) fn default_maps() -> Maps {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let name = User::from_uid(geteuid()).ok().flatten().map(|user| user.name).unwrap_or_default();
    let behind = |own: u32, file: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let mut ranges = vec![Range { inside: 0, outside: own, length: 1 }];
        let mut next = 1u32;
        for (outside, length) in parse(&text, &name, uid) {
            // What is there already cannot be mapped twice; user_namespaces(7).
            let overlaps = own >= outside && own - outside < length;
            let Some(end) = next.checked_add(length).filter(|_| !overlaps && length > 0) else { continue };
            ranges.push(Range { inside: next, outside, length });
            next = end;
        }
        ranges
    };
    Maps { uids: behind(uid, "/etc/subuid"), gids: behind(gid, "/etc/subgid") }
}

/// Lines of `user:first:count`, where user is a name or a number.
fn parse(text: &str, name: &str, uid: u32) -> Vec<(u32, u32)> {
    let line = |line: &str| {
        let mut fields = line.split(':');
        let (user, first, count) = (fields.next()?, fields.next()?.parse().ok()?, fields.next()?.trim().parse().ok()?);
        (!name.is_empty() && user == name || user == uid.to_string()).then_some((first, count))
    };
    text.lines().filter_map(line).collect()
}

/// Whether the kernel would refuse these maps from us, so that the helpers are needed.
pub(crate) fn needs_helpers(maps: &Maps) -> bool {
    let is_own = |ranges: &[Range], own: u32| matches!(ranges, [range] if range.length == 1 && range.outside == own);
    !(geteuid().is_root() || is_own(&maps.uids, geteuid().as_raw()) && is_own(&maps.gids, getegid().as_raw()))
}

/// Has the helpers write both maps of `pid`.
pub(crate) fn write_maps(pid: i32, maps: &Maps) -> Result<(), Error> {
    for (program, ranges) in [("newuidmap", &maps.uids), ("newgidmap", &maps.gids)] {
        let failed = |reason: String| Error::IdMaps { program, reason };
        let output = Command::new(find(program))
            .arg(pid.to_string())
            .args(
                ranges
                    .iter()
                    .flat_map(|range| [range.inside, range.outside, range.length])
                    .map(|number| number.to_string()),
            )
            .env_clear()
            .output()
            .map_err(|error| failed(format!("{error}; install it (Debian: uidmap)")))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(failed(format!("{}; are the ids in /etc/subuid and /etc/subgid?", said.trim())));
        }
    }
    Ok(())
}

/// Set-uid programs are taken from where the system keeps them, whatever PATH says.
fn find(program: &str) -> String {
    let places = ["/usr/bin", "/bin", "/usr/local/bin", "/run/wrappers/bin"];
    let found = places.iter().map(|dir| format!("{dir}/{program}")).find(|path| Path::new(path).exists());
    found.unwrap_or_else(|| format!("/usr/bin/{program}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_one_user() {
        let text = "root:100:5\nother:1:1\n1000:500:10\nme:70000:65536\n# me:1:1\nme:bad:1\n";
        assert_eq!(parse(text, "me", 1000), [(500, 10), (70_000, 65_536)]);
        assert_eq!(parse(text, "", 0), []);
    }

    #[test]
    fn root_writes_its_own_maps() {
        let maps = default_maps();
        assert_eq!(maps.uids[0], Range { inside: 0, outside: geteuid().as_raw(), length: 1 });
        assert_eq!(needs_helpers(&maps), !geteuid().is_root() && maps.uids.len() > 1);
    }
}
