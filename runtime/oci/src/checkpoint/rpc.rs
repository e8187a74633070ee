//! criu's protocol: protobuf messages over a socket that `criu swrk` is started with (criu's images/rpc.proto; only what is used here).
//!
//! Its command line cannot tell of the moments in between (hooks, a terminal's master), which come as notices here. Invariant: a session
//! that is given up ends its criu.

use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use prost::Message;
use runtime_linux::{fd_passing, local_socket};

use crate::create::parent;
use crate::error::Error;

/// `criu_req_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Dump = 1,
    Restore = 2,
    Notify = 6,
    /// One pre-dump, after which criu ends; since criu 3.17.
    SinglePreDump = 13,
}

/// `criu_cg_mode`: what criu does about the cgroups of who is restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManageCgroups {
    Ignore = 0,
    Soft = 3,
    Full = 4,
    Strict = 5,
}

/// `criu_network_lock_method`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkLock {
    Iptables = 1,
    Nftables = 2,
    Skip = 3,
}

/// `criu_opts`. Which descriptors, which process and what of it is external is filled in by [`super::checkpoint`] and [`super::restore`].
#[derive(Clone, PartialEq, Message)]
pub struct CriuOptions {
    #[prost(int32, required, tag = "1")]
    pub(super) images_dir_fd: i32,
    #[prost(int32, optional, tag = "2")]
    pub(super) pid: Option<i32>,
    #[prost(bool, optional, tag = "3")]
    pub(super) leave_running: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    pub ext_unix_sk: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    pub tcp_established: Option<bool>,
    #[prost(bool, optional, tag = "6")]
    pub(super) evasive_devices: Option<bool>,
    #[prost(bool, optional, tag = "7")]
    pub shell_job: Option<bool>,
    #[prost(bool, optional, tag = "8")]
    pub file_locks: Option<bool>,
    #[prost(int32, optional, tag = "9")]
    pub(super) log_level: Option<i32>,
    #[prost(string, optional, tag = "10")]
    pub(super) log_file: Option<String>,
    #[prost(message, optional, tag = "11")]
    pub ps: Option<PageServer>,
    #[prost(bool, optional, tag = "12")]
    pub(super) notify_scripts: Option<bool>,
    #[prost(string, optional, tag = "13")]
    pub(super) root: Option<String>,
    /// Relative to the directory of the images.
    #[prost(string, optional, tag = "14")]
    pub parent_img: Option<String>,
    #[prost(bool, optional, tag = "15")]
    pub track_mem: Option<bool>,
    #[prost(bool, optional, tag = "16")]
    pub auto_dedup: Option<bool>,
    #[prost(int32, optional, tag = "17")]
    pub(super) work_dir_fd: Option<i32>,
    #[prost(bool, optional, tag = "18")]
    pub link_remap: Option<bool>,
    #[prost(bool, optional, tag = "24")]
    pub(super) manage_cgroups: Option<bool>,
    #[prost(message, repeated, tag = "25")]
    pub(super) cg_root: Vec<CgroupRoot>,
    #[prost(bool, optional, tag = "26")]
    pub(super) rst_sibling: Option<bool>,
    #[prost(message, repeated, tag = "27")]
    pub(super) inherit_fd: Vec<InheritFd>,
    #[prost(int32, optional, tag = "34")]
    pub manage_cgroups_mode: Option<i32>,
    #[prost(string, repeated, tag = "37")]
    pub(super) external: Vec<String>,
    /// `CLONE_NEW*` of namespaces whose content is neither saved nor restored; criu takes the network's only.
    #[prost(uint32, optional, tag = "38")]
    pub empty_ns: Option<u32>,
    #[prost(string, optional, tag = "44")]
    pub(super) freeze_cgroup: Option<String>,
    #[prost(bool, optional, tag = "46")]
    pub tcp_skip_in_flight: Option<bool>,
    #[prost(bool, optional, tag = "48")]
    pub lazy_pages: Option<bool>,
    #[prost(bool, optional, tag = "50")]
    pub(super) orphan_pts_master: Option<bool>,
    #[prost(string, optional, tag = "51")]
    pub(super) config_file: Option<String>,
    #[prost(bool, optional, tag = "52")]
    pub tcp_close: Option<bool>,
    /// `apparmor:NAME` or `selinux:LABEL`.
    #[prost(string, optional, tag = "53")]
    pub lsm_profile: Option<String>,
    #[prost(string, optional, tag = "63")]
    pub lsm_mount_context: Option<String>,
    #[prost(int32, optional, tag = "64")]
    pub network_lock: Option<i32>,
}

/// `criu_page_server_info`: where the memory goes instead of into the images.
#[derive(Clone, PartialEq, Message)]
pub struct PageServer {
    #[prost(string, optional, tag = "1")]
    pub address: Option<String>,
    #[prost(int32, optional, tag = "2")]
    pub port: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct InheritFd {
    #[prost(string, required, tag = "1")]
    pub key: String,
    /// A descriptor of criu's own, which it has got from us.
    #[prost(int32, required, tag = "2")]
    pub fd: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct CgroupRoot {
    /// A v1 controller; empty for cgroup v2.
    #[prost(string, optional, tag = "1")]
    pub ctrl: Option<String>,
    #[prost(string, required, tag = "2")]
    pub path: String,
}

#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(int32, required, tag = "1")]
    kind: i32,
    #[prost(message, optional, tag = "2")]
    options: Option<CriuOptions>,
    #[prost(bool, optional, tag = "3")]
    notify_success: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(int32, required, tag = "1")]
    kind: i32,
    #[prost(bool, required, tag = "2")]
    success: bool,
    #[prost(message, optional, tag = "4")]
    restored: Option<Restored>,
    #[prost(message, optional, tag = "5")]
    notice: Option<Notice>,
    #[prost(int32, optional, tag = "7")]
    errno: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Restored {
    #[prost(int32, required, tag = "1")]
    pid: i32,
}

/// A moment of criu's work, which waits for the answer.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Notice {
    /// `setup-namespaces`, `post-restore`, ...
    #[prost(string, optional, tag = "1")]
    pub script: Option<String>,
    /// The container's init, where there is one.
    #[prost(int32, optional, tag = "2")]
    pub pid: Option<i32>,
}

/// What becomes of a notice, with the descriptors that came along.
type Hear<'a> = dyn FnMut(&Notice, Vec<OwnedFd>) -> Result<(), Error> + 'a;

/// The longest answer: two numbers and a line of text.
const RESPONSE_BYTES_MAX: usize = 64 * 1024;
/// Of a log, in a message.
const ERRORS_MAX: usize = 4;
/// Everything that criu has to say.
const LOG_LEVEL: i32 = 4;

/// A criu that waits for its one request.
#[derive(Debug)]
pub(super) struct Session {
    socket: OwnedFd,
    criu: Child,
    /// Where it will write what it did.
    log: PathBuf,
}

impl Session {
    /// criu inherits the standard streams and `keep`.
    pub(super) fn start(program: &Path, log: PathBuf, keep: &[&OwnedFd]) -> Result<Self, Error> {
        let (socket, theirs) = local_socket::pair().map_err(parent("socketpair"))?;
        for descriptor in keep.iter().copied().chain([&theirs]) {
            fcntl(descriptor.as_fd(), FcntlArg::F_SETFD(FdFlag::empty())).map_err(parent("hand on a descriptor"))?;
        }
        let mut command = Command::new(program);
        let criu = command.arg("swrk").arg(theirs.as_raw_fd().to_string()).spawn().map_err(|error| {
            let program = program.display();
            let what = if error.kind() == ErrorKind::NotFound {
                format!("{program} is not installed: install criu, or name it with --criu")
            } else {
                format!("{program} cannot be run: {error}")
            };
            Error::Criu { what }
        })?;
        Ok(Self { socket, criu, log })
    }

    pub(super) fn pid(&self) -> i32 {
        self.criu.id().cast_signed()
    }

    /// Asks once and waits for the end, hearing of what happens in between; returns the pid of a restored init.
    pub(super) fn ask(
        &mut self,
        kind: Kind,
        mut options: CriuOptions,
        hear: &mut Hear<'_>,
    ) -> Result<Option<i32>, Error> {
        options.log_level = Some(LOG_LEVEL);
        options.log_file = self.log.file_name().map(|name| name.to_string_lossy().into_owned());
        self.send(&Request { kind: kind as i32, options: Some(options), notify_success: None })?;
        let mut refused = None;
        loop {
            let (response, descriptors) = self.receive()?;
            if response.kind != Kind::Notify as i32 {
                return match (response.success, refused) {
                    (_, Some(error)) => Err(error),
                    (true, None) => Ok(response.restored.map(|restored| restored.pid)),
                    (false, None) => Err(self.failed(&response)),
                };
            }
            let heard = hear(&response.notice.unwrap_or_default(), descriptors);
            let notify_success = Some(heard.is_ok());
            refused = refused.or(heard.err());
            self.send(&Request { kind: Kind::Notify as i32, options: None, notify_success })?;
        }
    }

    fn send(&self, request: &Request) -> Result<(), Error> {
        match fd_passing::send(&self.socket, &request.encode_to_vec(), &[]) {
            Ok(_) => Ok(()),
            Err(Errno::EPIPE | Errno::ECONNRESET) => Err(self.vanished()),
            Err(errno) => Err(parent("ask criu")(errno)),
        }
    }

    fn receive(&self) -> Result<(Response, Vec<OwnedFd>), Error> {
        let (mut buffer, mut descriptors) = (vec![0; RESPONSE_BYTES_MAX], Vec::new());
        let length = match fd_passing::receive(&self.socket, &mut buffer, &mut descriptors) {
            Ok(0) | Err(Errno::ECONNRESET) => return Err(self.vanished()),
            other => other.map_err(parent("hear criu"))?,
        };
        let response = Response::decode(&buffer[..length])
            .map_err(|error| Error::Criu { what: format!("its answer cannot be read: {error}") })?;
        Ok((response, descriptors))
    }

    fn vanished(&self) -> Error {
        Error::Criu { what: format!("it ended without an answer{}", self.told()) }
    }

    fn failed(&self, response: &Response) -> Error {
        let errno = response.errno.filter(|errno| *errno != 0).map(Errno::from_raw);
        let text = errno.map_or("it failed", Errno::desc);
        Error::Criu { what: format!("{text}{}", self.told()) }
    }

    /// The errors of its log, the last of which are the ones that matter, and where the rest is.
    fn told(&self) -> String {
        let Ok(log) = std::fs::read(&self.log) else { return String::new() };
        let log = String::from_utf8_lossy(&log);
        let mut errors: Vec<&str> = log.lines().rev().filter_map(|line| Some(line.split_once("Error ")?.1)).collect();
        errors.truncate(ERRORS_MAX);
        errors.reverse();
        format!("; see {}, which says: {}", self.log.display(), errors.join("; "))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // With its socket closed criu has nobody to work for; one that has answered is ending anyway.
        let _ended = self.criu.kill().and_then(|()| self.criu.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_the_protocol() {
        let options = CriuOptions {
            images_dir_fd: 5,
            pid: Some(300),
            external: vec!["mnt[/a]:/a".to_owned()],
            manage_cgroups_mode: Some(ManageCgroups::Soft as i32),
            ..CriuOptions::default()
        };
        let request = Request { kind: Kind::Dump as i32, options: Some(options), notify_success: None };
        // By hand from rpc.proto: a field is its number and wire type, then the value.
        let mut options = vec![0x08, 5, 0x10, 0xac, 0x02, 0x90, 0x02, 3, 0xaa, 0x02, 10];
        options.extend(b"mnt[/a]:/a");
        let mut expect = vec![0x08, 1, 0x12, 21];
        expect.extend(options);
        assert_eq!(request.encode_to_vec(), expect);
        let answer = [0x08, 6, 0x10, 1, 0x2a, 7, 0x0a, 2, b'o', b'k', 0x10, 0x80, 0x01];
        let response = Response::decode(&answer[..]).expect("decode");
        let notice = response.notice.expect("notice");
        assert_eq!((response.kind, notice.script.as_deref(), notice.pid), (6, Some("ok"), Some(128)));
    }
}
