//! A pseudo terminal for a program that wants one, as a person would sit before it.
//!
//!     let mut terminal = Terminal::start(&cluster.kubectl_command(&["exec", "-it", "web", "--", "sh"]))?;
//!     terminal.type_line("stty size")?;
//!     terminal.expect("24 80")?;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::pty::{Winsize, openpty};

use crate::cluster::end;

const PATIENCE: Duration = Duration::from_secs(15);
const CHUNK_BYTES: usize = 4096;

/// A running program and its terminal.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    /// All that was shown and that no `expect` has passed.
    shown: String,
    path: PathBuf,
}

impl Terminal {
    /// Starts the command before a terminal of 24 rows and 80 columns that it controls.
    pub fn start(command: &Command) -> Result<Self> {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(&size, None).context("open a pseudo terminal")?;
        let path = nix::unistd::ttyname(&pair.slave).context("the terminal's name")?;
        let mut leader = Command::new("setsid");
        leader.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => leader.env(key, value),
                None => leader.env_remove(key),
            };
        }
        let slave = File::from(pair.slave);
        leader.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
        let child = leader.spawn().with_context(|| format!("start {leader:?}"))?;
        // Our copies of the other side go with it: the screen ends when the program does.
        drop(leader);
        let keyboard = File::from(pair.master);
        let mut master = keyboard.try_clone()?;
        let (shows, screen) = channel();
        thread::spawn(move || {
            let mut chunk = [0; CHUNK_BYTES];
            // EIO: nobody has the other side open any more.
            while let Ok(length @ 1..) = master.read(&mut chunk) {
                if shows.send(chunk[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, keyboard, screen, shown: String::new(), path })
    }

    pub fn type_line(&mut self, line: &str) -> Result<()> {
        self.type_bytes(format!("{line}\n").as_bytes())
    }

    pub fn type_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.keyboard.write_all(bytes).context("type")
    }

    /// What a window manager does: the size changes and the foreground program hears of it.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let mut stty = Command::new("stty");
        stty.arg("-F").arg(&self.path).args(["rows", &rows.to_string(), "cols", &columns.to_string()]);
        ensure!(stty.status()?.success(), "{stty:?} failed");
        Ok(())
    }

    /// Waits until the text is shown; returns what was before it.
    pub fn expect(&mut self, text: &str) -> Result<String> {
        let deadline = Instant::now().checked_add(PATIENCE).expect("a clock that is not near its end");
        loop {
            if let Some((before, after)) = self.shown.split_once(text) {
                let found = (before.to_owned(), after.to_owned());
                self.shown = found.1;
                return Ok(found.0);
            }
            match self.screen.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.shown.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Timeout) => bail!("never shown: {text:?}; but this was: {:?}", self.shown),
                Err(RecvTimeoutError::Disconnected) => bail!("ended without {text:?}, having shown {:?}", self.shown),
            }
        }
    }

    /// Waits for the end: what was shown last, and the exit code.
    pub fn end(mut self) -> Result<(String, i32)> {
        let deadline = Instant::now().checked_add(PATIENCE).expect("a clock that is not near its end");
        loop {
            match self.screen.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.shown.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Timeout) => bail!("it does not end; shown so far: {:?}", self.shown),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let status = self.child.wait()?;
        Ok((std::mem::take(&mut self.shown), status.code().unwrap_or(-1)))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ended_already = end(&mut self.child);
    }
}
