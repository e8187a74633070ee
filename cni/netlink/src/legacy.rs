//! What the older half of the kernel's firewalls says: the tables of `iptables-legacy`, read only.
//!
//! They are not seen by netlink and cannot be changed rule by rule; who may not pass them has to be told. Reads the table
//! `filter` of IPv4 where there is one, and never makes one (asking for a table that is not there would).

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// linux/netfilter_ipv4/ip_tables.h.
const IPT_SO_GET_INFO: libc::c_int = 64;
const IPT_SO_GET_ENTRIES: libc::c_int = 65;
const NAME_BYTES: usize = 32;
const INFO_BYTES: usize = 84;
/// `struct ipt_get_entries` before its first entry, which is aligned to eight bytes.
const ENTRIES_HEAD_BYTES: usize = 40;
const TABLE_BYTES_MAX: usize = 16 << 20;
const HOOK_INPUT: usize = 1;
const HOOK_FORWARD: usize = 2;
/// A verdict is stored as its negation less one: NF_DROP, NF_ACCEPT.
const DROP: i32 = -1;
const ACCEPT: i32 = -2;

/// What the table `filter` does with what no rule decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policies {
    /// What is for this machine is dropped, and no rule accepts what comes by the link.
    pub drops_input: bool,
    /// What is for others is dropped, and no rule accepts what comes by the link.
    pub drops_forward: bool,
}

/// `None` where there is no such table. Rules that accept everything from `link` count as a way through.
///
/// # Errors
/// The kernel refuses to tell.
pub fn policies(link: &str) -> io::Result<Option<Policies>> {
    let names = fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default();
    if !names.lines().any(|name| name == "filter") {
        return Ok(None);
    }
    let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
        .or_else(|_| raw_socket())
        .map_err(io::Error::from)?;
    let mut info = vec![0; INFO_BYTES];
    put_name(&mut info);
    get(&raw, IPT_SO_GET_INFO, &mut info)?;
    let number = |at: usize| word(&info, at).map(|value| value as usize);
    let size = number(80).filter(|size| *size <= TABLE_BYTES_MAX).ok_or_else(|| io::Error::other("a huge table"))?;
    let mut entries = vec![0; ENTRIES_HEAD_BYTES + size];
    put_name(&mut entries);
    let text = u32::try_from(size).unwrap_or(u32::MAX).to_ne_bytes();
    entries[NAME_BYTES..NAME_BYTES + 4].copy_from_slice(&text);
    get(&raw, IPT_SO_GET_ENTRIES, &mut entries)?;
    let table = &entries[ENTRIES_HEAD_BYTES..];
    let drops = |hook: usize| {
        let (first, last) = (number(36 + hook * 4).unwrap_or_default(), number(56 + hook * 4).unwrap_or_default());
        verdict(table, last) == Some(DROP) && !accepts(table, first, last, link)
    };
    Ok(Some(Policies { drops_input: drops(HOOK_INPUT), drops_forward: drops(HOOK_FORWARD) }))
}

fn raw_socket() -> nix::Result<OwnedFd> {
    use nix::sys::socket::SockProtocol;
    socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)
}

fn put_name(bytes: &mut [u8]) {
    bytes[..6].copy_from_slice(b"filter");
}

fn get(socket: &OwnedFd, option: libc::c_int, bytes: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(bytes.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes, which is the length of the exclusively borrowed buffer.
    let outcome = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, option, bytes.as_mut_ptr().cast(), &raw mut length)
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<usize> {
    let two = bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
    Some(usize::from(u16::from_ne_bytes(two)))
}

/// The verdict of the entry at this offset, when its target is a plain one.
fn verdict(table: &[u8], entry: usize) -> Option<i32> {
    let target = entry.checked_add(half(table, entry.checked_add(88)?)?)?;
    let is_standard = *table.get(target.checked_add(2)?)? == 0;
    let verdict = word(table, target.checked_add(32)?)?.cast_signed();
    is_standard.then_some(verdict)
}

/// Whether a rule between the two takes whatever comes by the link.
fn accepts(table: &[u8], first: usize, last: usize, link: &str) -> bool {
    let mut entry = first;
    while entry < last {
        let name = entry.checked_add(16).and_then(|at| table.get(at..at.checked_add(16)?));
        let name = name.map(crate::attributes::read_text).unwrap_or_default();
        if name == link && verdict(table, entry) == Some(ACCEPT) {
            return true;
        }
        match entry.checked_add(90).and_then(|at| half(table, at)) {
            Some(length) if length >= 112 => entry = entry.saturating_add(length),
            _ => return false,
        }
    }
    false
}
