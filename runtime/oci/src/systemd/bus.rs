//! The connection to systemd's manager: D-Bus specification, "Authentication Protocol" and "Message Bus".

use std::io::{ErrorKind, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::message::{self, Incoming, Object, Writer};
use super::said;
use crate::error::Error;

/// What a call may take; a job has as long again. runc waits 30 s for a job.
const PATIENCE: Duration = Duration::from_secs(30);
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";
/// Longest line of the authentication.
const LINE_BYTES_MAX: usize = 4096;

const BUS: Object =
    Object { destination: "org.freedesktop.DBus", path: "/org/freedesktop/DBus", interface: "org.freedesktop.DBus" };
pub(super) const MANAGER: Object = Object {
    destination: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
};
const PROPERTIES: Object = Object { interface: "org.freedesktop.DBus.Properties", ..MANAGER };

const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

#[derive(Debug)]
pub(super) struct Bus {
    stream: UnixStream,
    serial: u32,
    deadline: Instant,
    /// Ends of jobs that came while something else was waited for: job, result.
    ended: Vec<(String, String)>,
    is_subscribed: bool,
}

pub(super) fn is_no_such_unit(error: &Error) -> bool {
    matches!(error, Error::Systemd { what, .. } if what.contains(NO_SUCH_UNIT))
}

fn failed(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Systemd { what: what.into(), source: Some(source) }
}

/// Whether units are a user's own systemd's. Root of a user namespace may be a user with a podman, who has a session, or the root of a
/// system in a container, which has none.
pub(super) fn is_users() -> bool {
    let has_session = || variable("DBUS_SESSION_BUS_ADDRESS").or_else(|| variable("XDG_RUNTIME_DIR")).is_some();
    !nix::unistd::geteuid().is_root() || !runtime_linux::idmap::is_initial() && has_session()
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Where the bus listens.
#[derive(Debug, PartialEq, Eq)]
enum Address {
    Path(PathBuf),
    Abstract(String),
}

impl Address {
    fn find() -> Result<Self, Error> {
        if !is_users() {
            return match variable("DBUS_SYSTEM_BUS_ADDRESS") {
                Some(text) => Self::parse(&text),
                None => Ok(Self::Path(SYSTEM_BUS.into())),
            };
        }
        if let Some(text) = variable("DBUS_SESSION_BUS_ADDRESS") {
            return Self::parse(&text);
        }
        let directory = variable("XDG_RUNTIME_DIR").ok_or_else(|| {
            said(
                "the user's bus is not known: set DBUS_SESSION_BUS_ADDRESS or XDG_RUNTIME_DIR (loginctl enable-linger)",
            )
        })?;
        Ok(Self::Path(Path::new(&directory).join("bus")))
    }

    /// D-Bus specification, "Server Addresses": alternatives by semicolon; only unix sockets are taken.
    fn parse(text: &str) -> Result<Self, Error> {
        let keys = text.split(';').filter_map(|one| one.strip_prefix("unix:")).flat_map(|keys| keys.split(','));
        for key in keys {
            match key.split_once('=') {
                Some(("path", path)) => return Ok(Self::Path(unescape(path).into())),
                Some(("abstract", name)) => return Ok(Self::Abstract(unescape(name))),
                _ => {}
            }
        }
        Err(said(format!("the bus address \"{text}\" has no unix:path= or unix:abstract=")))
    }

    fn connect(&self) -> Result<UnixStream, Error> {
        let help = "is systemd running, with a D-Bus daemon? Without them leave --systemd-cgroup out";
        match self {
            Self::Path(path) => {
                UnixStream::connect(path).map_err(failed(format!("cannot be reached at {} ({help})", path.display())))
            }
            Self::Abstract(name) => SocketAddr::from_abstract_name(name)
                .and_then(|address| UnixStream::connect_addr(&address))
                .map_err(failed(format!("cannot be reached at @{name} ({help})"))),
        }
    }
}

/// `%2f` and its like.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = tail
            .get(..2)
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (first, code) {
            (b'%', Some(code)) => {
                bytes.push(code);
                rest = &tail[2..];
            }
            (byte, _) => {
                bytes.push(*byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Bus {
    pub(super) fn open() -> Result<Self, Error> {
        let stream = Address::find()?.connect()?;
        let deadline = Instant::now().checked_add(PATIENCE).expect("a clock that is not near its end");
        let mut bus = Self { stream, serial: 0, deadline, ended: Vec::new(), is_subscribed: false };
        bus.authenticate()?;
        bus.call(BUS, "Hello", "", &Writer::default())?;
        Ok(bus)
    }

    /// EXTERNAL, without a name: the socket says who we are, and in a user namespace our own number would be wrong.
    fn authenticate(&mut self) -> Result<(), Error> {
        self.send(b"\0AUTH EXTERNAL\r\nDATA\r\n")?;
        let asked = self.line()?;
        let answer = if asked == "DATA" { self.line()? } else { asked };
        if !answer.starts_with("OK ") {
            return Err(said(format!("the bus refuses uid {}: {answer}", nix::unistd::geteuid())));
        }
        self.send(b"BEGIN\r\n")
    }

    fn line(&mut self) -> Result<String, Error> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.receive(&mut byte)?;
            line.push(byte[0]);
            if line.len() > LINE_BYTES_MAX {
                return Err(said("the bus answers the authentication with something else"));
            }
        }
        Ok(String::from_utf8_lossy(&line).trim().to_owned())
    }

    fn left(&self) -> Result<Duration, Error> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(said(format!("did not answer within {} s", PATIENCE.as_secs())));
        }
        Ok(left)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.stream.set_write_timeout(Some(self.left()?)).map_err(failed("set a deadline"))?;
        self.stream.write_all(bytes).map_err(failed("send"))
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        let mut filled = 0;
        while filled < buffer.len() {
            self.stream.set_read_timeout(Some(self.left()?)).map_err(failed("set a deadline"))?;
            match self.stream.read(&mut buffer[filled..]) {
                Ok(0) => return Err(said("the bus closed the connection")),
                Ok(count) => filled += count,
                // The deadline is looked at above.
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
                Err(error) => return Err(failed("receive")(error)),
            }
        }
        Ok(())
    }

    fn next(&mut self) -> Result<Incoming, Error> {
        let mut bytes = vec![0; 16];
        self.receive(&mut bytes)?;
        let broken = || said("the bus sends what is no D-Bus message");
        bytes.resize(message::length(&bytes).ok_or_else(broken)?, 0);
        self.receive(&mut bytes[16..])?;
        message::parse(&bytes).ok_or_else(broken)
    }

    pub(super) fn call(&mut self, to: Object, member: &str, signature: &str, body: &Writer) -> Result<Incoming, Error> {
        self.deadline = Instant::now().checked_add(PATIENCE).expect("a clock that is not near its end");
        self.serial += 1;
        self.send(&message::call(self.serial, to, member, signature, body))?;
        loop {
            let message = self.next()?;
            match message.kind {
                Incoming::REPLY if message.reply_to == self.serial => return Ok(message),
                Incoming::ERROR if message.reply_to == self.serial => {
                    let words = message.reader().string().unwrap_or_default();
                    return Err(said(format!("refuses {member}: {words} ({})", message.error)));
                }
                _ => self.note(&message),
            }
        }
    }

    /// JobRemoved(u id, o job, s unit, s result).
    fn note(&mut self, message: &Incoming) {
        if message.kind == Incoming::SIGNAL && message.member == "JobRemoved" && message.signature == "uoss" {
            let mut reader = message.reader();
            let mut read = || Some((reader.number()?, reader.string()?, reader.string()?, reader.string()?));
            if let Some((_, job, _, result)) = read() {
                self.ended.push((job, result));
            }
        }
    }

    fn subscribe(&mut self) -> Result<(), Error> {
        if self.is_subscribed {
            return Ok(());
        }
        let mut rule = Writer::default();
        rule.string(&format!("type='signal',interface='{}',member='JobRemoved'", MANAGER.interface));
        self.call(BUS, "AddMatch", "s", &rule)?;
        // Without a subscriber systemd sends no signals.
        self.call(MANAGER, "Subscribe", "", &Writer::default())?;
        self.is_subscribed = true;
        Ok(())
    }

    /// A call that starts a job, and the job's end.
    pub(super) fn run_job(&mut self, unit: &str, member: &str, signature: &str, body: &Writer) -> Result<(), Error> {
        self.subscribe()?;
        let reply = self.call(MANAGER, member, signature, body)?;
        let job = reply.reader().string().ok_or_else(|| said(format!("answers {member} without a job")))?;
        self.deadline = Instant::now().checked_add(PATIENCE).expect("a clock that is not near its end");
        loop {
            if let Some((_, result)) = self.ended.iter().find(|(ended, _)| *ended == job) {
                return match result.as_str() {
                    "done" => Ok(()),
                    result => Err(said(format!("{member} {unit} ended as \"{result}\": see systemctl status {unit}"))),
                };
            }
            let message = self.next()?;
            self.note(&message);
        }
    }

    /// A failed unit is kept by systemd for people to look at; one that is not there, or did not fail, is fine.
    pub(super) fn forget_failed(&mut self, unit: &str) -> Result<(), Error> {
        let mut body = Writer::default();
        body.string(unit);
        match self.call(MANAGER, "ResetFailedUnit", "s", &body) {
            Err(error) if is_no_such_unit(&error) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Below which cgroup this manager keeps its units.
    pub(super) fn manager_cgroup(&mut self) -> Result<String, Error> {
        let mut body = Writer::default();
        body.string(MANAGER.interface).string("ControlGroup");
        let reply = self.call(PROPERTIES, "Get", "ss", &body)?;
        let mut reader = reply.reader();
        match reader.signature().as_deref() {
            Some("s") => reader.string().ok_or_else(|| said("does not say where its cgroup is")),
            _ => Err(said("does not say where its cgroup is")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, expect) in [
            ("unix:path=/run/x", Some(Address::Path("/run/x".into()))),
            ("tcp:host=x;unix:path=/a%20b,guid=1", Some(Address::Path("/a b".into()))),
            ("unix:abstract=/tmp/x,guid=1", Some(Address::Abstract("/tmp/x".to_owned()))),
            ("tcp:host=x", None),
            ("", None),
        ] {
            assert_eq!(Address::parse(text).ok(), expect, "{text}");
        }
    }
}
