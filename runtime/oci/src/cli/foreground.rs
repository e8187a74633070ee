//! Standing in for a process in the foreground: signals go to it, its terminal's bytes come and go, its end is ours.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use runtime_linux::terminal::{self, RawMode};
use runtime_linux::{pidfd, process};

use super::Error;

/// What moves between a terminal and us at once.
const BUFFER_BYTES: usize = 16 * 1024;

/// All signals that can be taken, from this moment on.
#[derive(Debug)]
pub(crate) struct Signals(SignalFd);

impl Signals {
    pub(crate) fn take() -> Result<Self, Error> {
        let mut set = SigSet::all();
        // Faults of our own are ours, and stopping a job is the terminal's business.
        for own in [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGTRAP, Signal::SIGABRT] {
            set.remove(own);
        }
        set.thread_block().map_err(Error::errno("block signals"))?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        SignalFd::with_flags(&set, flags).map(Self).map_err(Error::errno("open a signalfd"))
    }

    /// Hands on what has come.
    fn forward(&self, pidfd: &OwnedFd, console: Option<&Console>) -> Result<(), Errno> {
        while let Some(info) = self.0.read_signal()? {
            let number = i32::try_from(info.ssi_signo).unwrap_or(0);
            if number == Signal::SIGCHLD as i32 || number == Signal::SIGPIPE as i32 || number == Signal::SIGURG as i32 {
                continue;
            }
            if number == Signal::SIGWINCH as i32
                && let Some(console) = console
            {
                console.follow_size();
                continue;
            }
            // One that has just ended gets no more signals.
            let _ended = pidfd::send_signal(pidfd, number);
        }
        Ok(())
    }
}

/// Our own terminal, relayed to the process's.
#[derive(Debug)]
pub(crate) struct Console {
    master: OwnedFd,
    _raw: Option<RawMode>,
    reads_stdin: bool,
}

impl Console {
    /// `None` for a process without a terminal that is ours to relay.
    pub(crate) fn new(master: Option<OwnedFd>, is_wanted: bool) -> Result<Option<Self>, Error> {
        let Some(master) = master.filter(|_| is_wanted) else { return Ok(None) };
        // As from a program without a terminal: our own one, where we have one, makes lines of it.
        terminal::clear_newline_translation(&master).map_err(Error::errno("set up the container's terminal"))?;
        let raw = match process::standard_stream(0).map(RawMode::enter_for_input) {
            Some(Ok(raw)) => Some(raw),
            // Standard input is a file or a pipe: it is relayed as it is.
            Some(Err(Errno::ENOTTY)) | None => None,
            Some(Err(errno)) => return Err(Error::errno("set the terminal to raw mode")(errno)),
        };
        let console = Self { master, _raw: raw, reads_stdin: true };
        console.follow_size();
        Ok(Some(console))
    }

    fn follow_size(&self) {
        // Without a terminal of our own there is no size to follow.
        if let Some(Ok(size)) = process::standard_stream(0).map(terminal::size) {
            let _gone = terminal::set_size(&self.master, size);
        }
    }

    /// What is left to be read when the process has ended, or could not be started.
    pub(crate) fn drain(&mut self) {
        let is_waiting = |master: &OwnedFd| {
            let mut ready = [PollFd::new(master.as_fd(), PollFlags::POLLIN)];
            poll(&mut ready, PollTimeout::ZERO).is_ok_and(|count| count > 0)
        };
        while is_waiting(&self.master) && self.relay(true, false) {}
    }

    /// Moves bytes where they wait; false when the process's side has closed.
    fn relay(&mut self, from_master: bool, from_stdin: bool) -> bool {
        if from_stdin
            && let Some(stdin) = process::standard_stream(0)
            && !copy(stdin, self.master.as_fd())
        {
            self.reads_stdin = false;
            // The end of input as a terminal says it.
            let _gone = nix::unistd::write(&self.master, &[4]);
        }
        !from_master || process::standard_stream(1).is_some_and(|stdout| copy(self.master.as_fd(), stdout))
    }
}

/// One buffer; false at the end.
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> bool {
    let mut buffer = [0; BUFFER_BYTES];
    let length = match nix::unistd::read(from, &mut buffer) {
        // EIO: the last slave has closed.
        Ok(0) | Err(Errno::EIO) => return false,
        Ok(length) => length,
        Err(Errno::EINTR | Errno::EAGAIN) => return true,
        Err(_) => return false,
    };
    let mut rest = &buffer[..length];
    while !rest.is_empty() {
        match nix::unistd::write(to, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let mut ready = [PollFd::new(to, PollFlags::POLLOUT)];
                let _interrupted = poll(&mut ready, PollTimeout::NONE);
            }
            Err(_) => return false,
        }
    }
    true
}

/// Until the process ends: its exit code, 128 + signal for a signal.
pub(crate) fn wait(process: &OwnedFd, signals: &Signals, mut console: Option<Console>) -> Result<u8, Error> {
    let wait = || Error::errno("wait for the process");
    let mut is_open = console.is_some();
    loop {
        let (ended, signalled, from_master, from_stdin) = {
            let mut descriptors = vec![
                PollFd::new(process.as_fd(), PollFlags::POLLIN),
                PollFd::new(signals.0.as_fd(), PollFlags::POLLIN),
            ];
            if let Some(console) = console.as_ref().filter(|_| is_open) {
                descriptors.push(PollFd::new(console.master.as_fd(), PollFlags::POLLIN));
                if let Some(stdin) = process::standard_stream(0).filter(|_| console.reads_stdin) {
                    descriptors.push(PollFd::new(stdin, PollFlags::POLLIN));
                }
            }
            match poll(&mut descriptors, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(wait()(errno)),
            }
            let ready = |index: usize| descriptors.get(index).is_some_and(|fd| fd.any() == Some(true));
            (ready(0), ready(1), ready(2), ready(3))
        };
        if signalled {
            signals.forward(process, console.as_ref()).map_err(wait())?;
        }
        if let Some(console) = console.as_mut().filter(|_| is_open) {
            is_open = console.relay(from_master, from_stdin);
        }
        // What the process wrote last is still to be read.
        if ended && !(is_open && from_master) {
            break;
        }
    }
    drop(console);
    let code = pidfd::wait(process).map_err(wait())?.code();
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}
