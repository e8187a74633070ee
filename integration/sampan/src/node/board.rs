//! How the parts of the daemon do: written by their supervisor, read by `status` as a file, and by `up` through the daemon.
//!
//! Invariant: what `status` reads is of the daemon that runs; a file of one that died is told by its process id.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::warn;

use crate::files;
use crate::instance::Layout;

const RECORD_VERSION: u32 = 1;
/// Bytes of a part's last error that are kept.
const ERROR_BYTES_MAX: usize = 1024;
/// Bytes of the file that are read.
const FILE_BYTES_MAX: u64 = 64 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Running,
    /// It ended and is about to be started again.
    Resting,
    /// It was told to end.
    Stopped,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Part {
    pub name: String,
    pub state: State,
    /// How often it was started again since the daemon began.
    pub restarts: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_ended_at: Option<Timestamp>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    pid: u32,
    parts: Vec<Part>,
}

#[derive(Debug)]
pub(crate) struct Board {
    parts: Mutex<BTreeMap<&'static str, Part>>,
    /// Raised with each change.
    changes: watch::Sender<u64>,
    file: Option<PathBuf>,
}

impl Default for Board {
    fn default() -> Self {
        Self { parts: Mutex::default(), changes: watch::Sender::new(0), file: None }
    }
}

fn path(layout: &Layout) -> PathBuf {
    layout.run.join("parts.json")
}

impl Board {
    /// That of the one daemon of an instance.
    pub(crate) fn of(layout: &Layout) -> Self {
        Self { file: Some(path(layout)), ..Self::default() }
    }

    pub(crate) fn running(&self, name: &'static str) {
        self.change(name, |part| part.state = State::Running);
    }

    pub(crate) fn stopped(&self, name: &'static str) {
        self.change(name, |part| part.state = State::Stopped);
    }

    pub(crate) fn ended(&self, name: &'static str, mut reason: String) {
        reason.truncate(reason.floor_char_boundary(ERROR_BYTES_MAX));
        self.change(name, |part| {
            part.state = State::Resting;
            part.restarts = part.restarts.saturating_add(1);
            part.last_error = Some(reason);
            part.last_ended_at = Timestamp::from_second(Timestamp::now().as_second()).ok();
        });
    }

    pub(crate) fn parts(&self) -> Vec<Part> {
        self.lock().values().cloned().collect()
    }

    /// Returns, with the reason, once some part has ended so many times.
    pub(crate) async fn trouble(&self, ends: u64) -> String {
        let mut changes = self.changes.subscribe();
        loop {
            if let Some(part) = self.parts().into_iter().find(|part| part.restarts >= ends) {
                let times = if part.restarts == 1 { String::new() } else { format!(" {} times", part.restarts) };
                return format!("the {} ended{times}: {}", part.name, part.last_error.unwrap_or_default());
            }
            // The sender lives as long as this board.
            let _never_closed = changes.changed().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Part>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, name: &'static str, change: impl FnOnce(&mut Part)) {
        let parts: Vec<Part> = {
            let mut parts = self.lock();
            change(parts.entry(name).or_insert_with(|| Part {
                name: name.to_owned(),
                state: State::Stopped,
                restarts: 0,
                last_error: None,
                last_ended_at: None,
            }));
            parts.values().cloned().collect()
        };
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
        if let Some(path) = &self.file {
            let record = Record { version: RECORD_VERSION, pid: std::process::id(), parts };
            let bytes = serde_json::to_vec(&record).unwrap_or_default();
            if let Err(error) = files::replace(path, &bytes, 0o600) {
                warn!(%error, path = %path.display(), "`sampan status` will not know how the parts do");
            }
        }
    }
}

/// How the parts of process `pid` do; `None` if nobody says.
pub(crate) fn read(layout: &Layout, pid: i32) -> Option<Vec<Part>> {
    let record = read_record(&path(layout))?;
    (i64::from(record.pid) == i64::from(pid) && record.version == RECORD_VERSION).then_some(record.parts)
}

fn read_record(path: &Path) -> Option<Record> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).ok()?;
    std::io::Read::read_to_end(&mut std::io::Read::take(file, FILE_BYTES_MAX), &mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_reads_what_the_daemon_wrote() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(Some(directory.path().into())).unwrap();
        layout.create().unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        assert_eq!(read(&layout, pid), None, "nothing is there yet");
        let board = Board::of(&layout);
        board.running("kubelet");
        board.ended("kubelet", "é".repeat(ERROR_BYTES_MAX));
        let parts = read(&layout, pid).unwrap();
        assert_eq!(parts, board.parts());
        assert_eq!((parts[0].state, parts[0].restarts), (State::Resting, 1));
        assert!(parts[0].last_error.as_ref().unwrap().len() <= ERROR_BYTES_MAX);
        assert_eq!(read(&layout, pid.wrapping_add(1)), None, "another daemon's");
    }

    #[tokio::test]
    async fn trouble_is_told_once_it_is_there() {
        let board = Board::default();
        board.running("scheduler");
        board.ended("scheduler", "no".into());
        assert_eq!(board.trouble(1).await, "the scheduler ended: no");
        board.ended("scheduler", "no".into());
        assert_eq!(board.trouble(2).await, "the scheduler ended 2 times: no");
    }

    #[test]
    fn reads_the_first_record_version() {
        let text = r#"{"version":1,"pid":7,"parts":[{"name":"kubelet","state":"running","restarts":2,"lastError":"no","lastEndedAt":"2026-01-01T00:00:00Z"}]}"#;
        let record: Record = serde_json::from_str(text).unwrap();
        assert_eq!((record.pid, record.parts[0].restarts, record.parts[0].state), (7, 2, State::Running));
    }
}
