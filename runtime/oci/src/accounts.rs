//! Who a user string means: ids, and an image's passwd and group files. Pure; who reads the files is the caller.
//!
//! Invariant: an id is one that somebody can have. 2^32 - 1 is "no change" to setresuid(2), which would leave root (CVE-2026-30892 and
//! its like), and what is all digits is never a name: an image's account of that name would be root, whatever number was asked for
//! (CVE-2026-46680).

/// A line of passwd(5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account<'a> {
    pub name: &'a str,
    pub uid: u32,
    pub gid: u32,
    /// May be empty.
    pub home: &'a str,
}

/// Digits only, and an id that somebody can have.
pub fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| is_number(text) && *id != u32::MAX)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The accounts of a passwd file; lines that are none are passed over.
pub fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [name, _, uid, gid, rest @ ..] = fields.as_slice() else { return None };
        let home = rest.get(1).copied().unwrap_or_default();
        Some(Account { name, uid: id(uid)?, gid: id(gid)?, home })
    })
}

/// Name, id and members of each group of a group file; lines that are none are passed over.
pub fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [name, _, gid, members @ ..] = fields.as_slice() else { return None };
        Some((*name, id(gid)?, members.first().copied().unwrap_or_default()))
    })
}

/// The account that a string means. A name must be in the file; a number need not be, and then has no name, group 0 and no home.
pub fn account<'a>(wanted: &str, passwd: &'a str) -> Option<Account<'a>> {
    if !is_number(wanted) {
        return accounts(passwd).find(|account| account.name == wanted);
    }
    let uid = id(wanted)?;
    let found = accounts(passwd).find(|account| account.uid == uid);
    Some(found.unwrap_or(Account { name: "", uid, gid: 0, home: "" }))
}

/// The group that a string means; as [`account`].
pub fn group_id(wanted: &str, group: &str) -> Option<u32> {
    if is_number(wanted) {
        return id(wanted);
    }
    groups(group).find(|(known, _, _)| *known == wanted).map(|(_, gid, _)| gid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34::/var/www:\n100:x:0:0::/h:\nevil:x:4294967295:0::/:\n";

    #[test]
    fn users() {
        let check = |wanted: &str, expect: Option<(u32, u32)>| {
            assert_eq!(account(wanted, PASSWD).map(|account| (account.uid, account.gid)), expect, "{wanted:?}");
        };
        check("root", Some((0, 0)));
        check("web", Some((33, 34)));
        check("33", Some((33, 34)));
        check("100", Some((100, 0)));
        for wrong in ["", "-1", "+1", "evil", "ghost", "4294967295", "4294967296", "0x1", " 0"] {
            check(wrong, None);
        }
    }

    #[test]
    fn group_strings() {
        for (wanted, expect) in [("www", Some(34)), ("34", Some(34)), ("7", Some(7)), ("8", Some(8)), ("+0", None)] {
            assert_eq!(group_id(wanted, "www:x:34:\n8:x:0:\n"), expect, "{wanted:?}");
        }
    }
}
