//! Moving an interface into another network namespace, with its name, its lasting addresses and its being up.
//!
//! Done from outside, over one socket here and one there, so that the container's own side has no part in it. Invariant: a device that
//! could not be set up there comes back under its old name.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;

use super::message::{self, ACKNOWLEDGE, CREATE_NEW, DUMP, GET_ADDRESS, GET_LINK, NEW_ADDRESS, NEW_LINK, Request};
use crate::namespace::{self, Kind};

const NAME: u16 = 3; // IFLA_IFNAME
const NAMESPACE: u16 = 28; // IFLA_NET_NS_FD
const UP: u32 = 1; // IFF_UP

/// `struct ifaddrmsg`, then its attributes: IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_FLAGS, IFA_RT_PRIORITY, IFA_PROTO.
const ADDRESS_FIXED: usize = 8;
const ADDRESS_KEPT: [u16; 6] = [1, 2, 4, 8, 9, 11];
const ADDRESS_PERMANENT: u8 = 0x80;
const SCOPE_UNIVERSE: u8 = 0;

const LINK_FIXED: usize = 16;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("there is no network device {name}")]
    Missing { name: String },
    #[error("the container's network namespace has a device {name} already")]
    Exists { name: String },
    #[error("{what}: {}", errno.desc())]
    Refused { what: &'static str, errno: Errno },
}

fn refused(what: &'static str) -> impl FnOnce(Errno) -> Error {
    move |errno| Error::Refused { what, errno }
}

/// A device that is in its new namespace; goes back when dropped, unless it is [`Self::settle`]d.
#[derive(Debug)]
pub struct Moved {
    there: OwnedFd,
    home: OwnedFd,
    index: u32,
    old_name: String,
    is_settled: bool,
}

impl Moved {
    /// It stays. At the namespace's end the kernel moves physical devices back and destroys virtual ones; network_namespaces(7).
    pub fn settle(mut self) {
        self.is_settled = true;
    }
}

impl Drop for Moved {
    fn drop(&mut self) {
        if !self.is_settled {
            // Whoever undoes a container tells the first error; the kernel moves what can be moved at the namespace's end anyway.
            let _kept = relocate(&self.there, self.index, &self.home, &self.old_name);
        }
    }
}

/// runtime-spec 1.3, "Network Devices". `new_name` may be a template like `net%d`.
pub fn move_device(name: &str, target: &OwnedFd, new_name: &str) -> Result<Moved, Error> {
    let here = message::open().map_err(refused("open a netlink socket"))?;
    let home =
        namespace::open_path(Path::new("/proc/self/ns/net")).map_err(refused("open the own network namespace"))?;
    let there =
        open_in(target, &home).map_err(refused("open a netlink socket in the container's network namespace"))?;
    let index = find(&here, name).map_err(refused("look for the device"))?;
    let index = index.ok_or_else(|| Error::Missing { name: name.to_owned() })?;
    let is_template = new_name.contains("%d");
    if !is_template && find(&there, new_name).map_err(refused("look for the new name"))?.is_some() {
        return Err(Error::Exists { name: new_name.to_owned() });
    }
    let addresses = addresses(&here, index).map_err(refused("list addresses"))?;
    let before = indices(&there).map_err(refused("list devices"))?;
    relocate(&here, index, target, new_name).map_err(|errno| match errno {
        Errno::EEXIST => Error::Exists { name: new_name.to_owned() },
        errno => Error::Refused { what: "move the device", errno },
    })?;
    let after = indices(&there).map_err(refused("list devices"))?;
    let arrived = after.into_iter().find(|index| !before.contains(index));
    let index = arrived.ok_or(Error::Refused { what: "find the device again", errno: Errno::ENODEV })?;
    let moved = Moved { there, home, index, old_name: name.to_owned(), is_settled: false };
    for address in addresses {
        add(&moved.there, index, &address).map_err(refused("keep an address"))?;
    }
    let up = Request::link(NEW_LINK, ACKNOWLEDGE, index, UP);
    up.exchange(&moved.there).map_err(refused("bring the device up"))?;
    Ok(moved)
}

/// A socket belongs to the namespace that it was opened in. The caller has one thread, so nobody else is moved along.
fn open_in(target: &OwnedFd, home: &OwnedFd) -> Result<OwnedFd, Errno> {
    namespace::join(target, Kind::Network.flag())?;
    let socket = message::open();
    namespace::join(home, Kind::Network.flag())?;
    socket
}

fn relocate(socket: &OwnedFd, index: u32, target: &OwnedFd, name: &str) -> Result<(), Errno> {
    let descriptor = target.as_fd().as_raw_fd().to_ne_bytes();
    let request = Request::link(NEW_LINK, ACKNOWLEDGE, index, 0).attribute(NAMESPACE, &descriptor).text(NAME, name);
    request.exchange(socket).map(drop)
}

fn find(socket: &OwnedFd, name: &str) -> Result<Option<u32>, Errno> {
    match Request::link(GET_LINK, ACKNOWLEDGE, 0, 0).text(NAME, name).exchange(socket) {
        Ok(links) => Ok(links.first().and_then(|(_, link)| link_index(link))),
        Err(Errno::ENODEV) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn link_index(link: &[u8]) -> Option<u32> {
    link.get(..LINK_FIXED)?.get(4..8)?.try_into().ok().map(u32::from_ne_bytes)
}

fn indices(socket: &OwnedFd) -> Result<Vec<u32>, Errno> {
    let links = Request::link(GET_LINK, DUMP, 0, 0).exchange(socket)?;
    Ok(links.iter().filter_map(|(_, link)| link_index(link)).collect())
}

/// The permanent addresses of global scope, as the kernel tells them.
fn addresses(socket: &OwnedFd, index: u32) -> Result<Vec<Vec<u8>>, Errno> {
    let all = Request::new(GET_ADDRESS, DUMP, &[0; ADDRESS_FIXED]).exchange(socket)?;
    let is_kept = |address: &[u8]| {
        let Some(fixed) = address.get(..ADDRESS_FIXED) else { return false };
        fixed[4..8] == index.to_ne_bytes() && fixed[2] & ADDRESS_PERMANENT != 0 && fixed[3] == SCOPE_UNIVERSE
    };
    Ok(all.into_iter().map(|(_, address)| address).filter(|address| is_kept(address)).collect())
}

fn add(socket: &OwnedFd, index: u32, address: &[u8]) -> Result<(), Errno> {
    let mut fixed: [u8; ADDRESS_FIXED] =
        address.get(..ADDRESS_FIXED).and_then(|fixed| fixed.try_into().ok()).ok_or(Errno::EPROTO)?;
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    let kept = message::attributes(address, ADDRESS_FIXED).filter(|(kind, _)| ADDRESS_KEPT.contains(kind));
    let request = Request::new(NEW_ADDRESS, ACKNOWLEDGE | CREATE_NEW, &fixed);
    kept.fold(request, |request, (kind, value)| request.attribute(kind, value)).exchange(socket).map(drop)
}
