//! Errors, warnings and what is done: to standard error for people, and to `--log` for machines.
//!
//! The JSON line is stable, see COMMANDS.md: `level`, `msg`, `time` as runc has them, and for an error `step`, `errno` and `path`
//! where there is one.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use nix::errno::Errno;

use super::Error;
use super::arguments::{Global, LogFormat, LogLevel, program_name};

/// Where syslogd and journald listen.
const SYSLOG: &str = "/dev/log";
const JOURNAL: &str = "/run/systemd/journal/socket";
/// The facility `user`; syslog(3).
const FACILITY: u8 = 1 << 3;

#[derive(Debug, Default)]
enum Destination {
    /// Standard error alone.
    #[default]
    Stderr,
    File(PathBuf),
    Syslog(String),
    Journal(String),
}

#[derive(Debug)]
pub(crate) struct Reporter {
    destination: Destination,
    format: LogFormat,
    level: LogLevel,
}

impl Default for Reporter {
    fn default() -> Self {
        Self { destination: Destination::Stderr, format: LogFormat::Text, level: LogLevel::Warning }
    }
}

impl LogLevel {
    fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Debug => "debug",
        }
    }

    /// syslog(3), "level".
    fn priority(self) -> u8 {
        match self {
            Self::Error => 3,
            Self::Warning => 4,
            Self::Debug => 7,
        }
    }
}

impl Reporter {
    pub(crate) fn new(global: &Global) -> Result<Self, Error> {
        let destination = global.log.as_deref().map(destination).unwrap_or_default();
        if let Destination::File(path) = &destination {
            let opened = OpenOptions::new().append(true).create(true).mode(0o644).open(path);
            opened.map_err(Error::io(format!("open the log {}", path.display())))?;
        }
        Ok(Self { destination, format: global.log_format, level: global.level() })
    }

    /// For an error in the command line itself: as far as the words can be understood.
    pub(crate) fn from_words(words: impl Iterator<Item = String>) -> Self {
        let words: Vec<String> = words.collect();
        let value = |flag: &str| {
            words.iter().enumerate().find_map(|(at, word)| match word.strip_prefix(flag) {
                Some("") => words.get(at + 1).map(String::as_str),
                Some(rest) => rest.strip_prefix('='),
                None => None,
            })
        };
        let format = if value("--log-format") == Some("json") { LogFormat::Json } else { LogFormat::Text };
        Self { destination: value("--log").map(destination).unwrap_or_default(), format, level: LogLevel::Warning }
    }

    /// The whole chain, once.
    pub(crate) fn error(&self, error: &Error, prefix: &str) {
        let mut text = format!("{prefix}{error}");
        let mut source = std::error::Error::source(error);
        let mut errno = None;
        while let Some(cause) = source {
            let number = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
            match number {
                // In the same words whatever C library this was linked with.
                Some(number) => text.push_str(&format!(": {} (os error {number})", Errno::from_raw(number).desc())),
                None => text.push_str(&format!(": {cause}")),
            }
            errno = errno.or(number);
            source = cause.source();
        }
        let (step, own_errno, path) = match error {
            Error::Oci(error) => (error.step(), error.errno(), error.path()),
            _ => (None, None, None),
        };
        let path = path.map(|path| path.to_string_lossy().into_owned());
        self.say(LogLevel::Error, &text, &Facts { step, errno: own_errno.or(errno), path });
    }

    pub(crate) fn warnings(&self, warnings: &[String]) {
        for warning in warnings {
            self.say(LogLevel::Warning, warning, &Facts::default());
        }
    }

    /// What is done. The words are only made where somebody wants them.
    pub(crate) fn debug(&self, text: impl FnOnce() -> String) {
        if self.level == LogLevel::Debug {
            self.say(LogLevel::Debug, &text(), &Facts::default());
        }
    }

    fn say(&self, level: LogLevel, text: &str, facts: &Facts<'_>) {
        if level > self.level {
            return;
        }
        let line = self.line(level, text, facts);
        let is_logged = match &self.destination {
            Destination::Stderr => false,
            Destination::File(path) => {
                let opened = OpenOptions::new().append(true).create(true).mode(0o644).open(path);
                opened.and_then(|mut file| file.write_all(line.as_bytes())).is_ok()
            }
            Destination::Syslog(id) => {
                let message = format!("<{}>{id}[{}]: {text}", FACILITY | level.priority(), std::process::id());
                send(SYSLOG, message.as_bytes())
            }
            Destination::Journal(id) => send(JOURNAL, &journal_entry(id, level, text)),
        };
        if is_logged && level != LogLevel::Error {
            return;
        }
        let for_people = match (self.format, &self.destination, level) {
            (LogFormat::Json, Destination::Stderr, _) | (_, _, LogLevel::Debug) => line,
            (_, _, LogLevel::Warning) => format!("{}: warning: {text}\n", program_name()),
            // The kernel's answer to the container's program is the container's, as a shell would say it, and runc does.
            (_, _, LogLevel::Error) if text.starts_with("exec /") => format!("{text}\n"),
            (_, _, LogLevel::Error) => format!("{}: {text}\n", program_name()),
        };
        // Nobody is left to be told when standard error is closed.
        let _closed = std::io::stderr().write_all(for_people.as_bytes());
    }

    fn line(&self, level: LogLevel, text: &str, facts: &Facts<'_>) -> String {
        let (name, now) = (level.name(), runtime_oci::timestamp(std::time::SystemTime::now()));
        match self.format {
            LogFormat::Text => format!("time=\"{now}\" level={name} msg={text:?}\n"),
            LogFormat::Json => {
                let mut entry = serde_json::json!({ "level": name, "msg": text, "time": now });
                if let Some(step) = facts.step {
                    entry["step"] = step.into();
                }
                if let Some(errno) = facts.errno {
                    entry["errno"] = errno.into();
                }
                if let Some(path) = &facts.path {
                    entry["path"] = path.as_str().into();
                }
                format!("{entry}\n")
            }
        }
    }
}

/// What a machine wants to know of an error beside its words.
#[derive(Debug, Default)]
struct Facts<'a> {
    step: Option<&'a str>,
    errno: Option<i32>,
    path: Option<String>,
}

/// crun's forms; what has none is a file.
fn destination(text: &str) -> Destination {
    match text.split_once(':') {
        Some(("file", path)) => Destination::File(PathBuf::from(path)),
        Some(("syslog", id)) => Destination::Syslog(id.to_owned()),
        Some(("journald", id)) => Destination::Journal(id.to_owned()),
        _ => Destination::File(PathBuf::from(text)),
    }
}

fn send(socket: &str, message: &[u8]) -> bool {
    UnixDatagram::unbound().and_then(|sender| sender.send_to(message, socket)).is_ok()
}

/// The journal's native protocol: a text with line breaks goes with its length in front.
fn journal_entry(id: &str, level: LogLevel, text: &str) -> Vec<u8> {
    let mut entry = format!("PRIORITY={}\nSYSLOG_IDENTIFIER={id}\nMESSAGE\n", level.priority()).into_bytes();
    entry.extend(u64::try_from(text.len()).unwrap_or_default().to_le_bytes());
    entry.extend(text.as_bytes());
    entry.push(b'\n');
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations() {
        assert!(matches!(destination("/a:b"), Destination::File(path) if path == std::path::Path::new("/a:b")));
        assert!(matches!(destination("file:/a"), Destination::File(path) if path == std::path::Path::new("/a")));
        assert!(matches!(destination("syslog:c1"), Destination::Syslog(id) if id == "c1"));
        assert!(matches!(destination("journald:c1"), Destination::Journal(id) if id == "c1"));
    }

    #[test]
    fn words_that_are_not_understood_still_name_a_log() {
        let words = ["--log-format", "json", "--log=/x", "nope"].map(str::to_owned);
        let reporter = Reporter::from_words(words.into_iter());
        assert_eq!(reporter.format, LogFormat::Json);
        assert!(matches!(reporter.destination, Destination::File(path) if path == std::path::Path::new("/x")));
    }

    #[test]
    fn the_line_for_machines_is_stable() {
        let reporter = Reporter { format: LogFormat::Json, ..Reporter::default() };
        let facts = Facts { step: Some("mount x"), errno: Some(13), path: Some("/x".to_owned()) };
        let line: serde_json::Value = serde_json::from_str(&reporter.line(LogLevel::Error, "m", &facts)).expect("json");
        let mut keys: Vec<_> = line.as_object().expect("object").keys().cloned().collect();
        keys.sort();
        assert_eq!(keys, ["errno", "level", "msg", "path", "step", "time"]);
        assert_eq!((&line["step"], &line["errno"], &line["path"]), (&"mount x".into(), &13.into(), &"/x".into()));
    }
}
