//! A container's streams: from its pipes or terminal to the log and to whoever is attached, and from them to its standard input.
//!
//! ```text
//!   container stdout/stderr --> log file
//!                          \--> queue of each attached client --> its pipe
//!   container stdin <-- one queue <-- each attached client's pipe
//! ```
//!
//! While an attached client lags by [`LAG_BYTES_MAX`], the container's output is not read, so the container waits as it would for a slow
//! terminal. A client that takes nothing for [`STALL`] is detached, and the container goes on: a dead client never stops it for good.

use super::clock;
use super::log::{Log, Stream};
use super::reactor::{Reactor, Watched};
use super::server::Source;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::EpollFlags;
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How much of the output a client may lag behind before the container has to wait.
const LAG_BYTES_MAX: usize = 256 * 1024;
/// How long a client that lags may take nothing before it is detached.
pub(crate) const STALL: Duration = Duration::from_secs(10);
/// How much input waits for the container; beyond it, clients' inputs are not read.
const INPUT_BYTES_MAX: usize = 64 * 1024;
/// More attached clients are refused.
pub(crate) const ATTACHED_MAX: usize = 16;
/// At an exit, what is already in the pipes is taken before anyone is told; beyond this it is taken afterwards.
const DRAIN_BYTES_MAX: usize = 1 << 20;
const READ_BYTES: usize = 32 * 1024;

type Watch = Watched<OwnedFd, Source>;

#[derive(Debug)]
pub(crate) struct Stdio {
    id: Rc<str>,
    outputs: [Option<Watch>; 2],
    input: Option<Watch>,
    input_queue: VecDeque<u8>,
    /// The input is closed once its queue is delivered.
    input_ends: bool,
    once: bool,
    pub(crate) log: Option<Log>,
    attached: BTreeMap<u64, Attached>,
    next: u64,
    held: bool,
    ended: bool,
}

#[derive(Debug)]
struct Attached {
    input: Option<Watch>,
    sinks: [Option<Sink>; 2],
}

#[derive(Debug)]
struct Sink {
    pipe: Watch,
    queue: VecDeque<u8>,
    took: Instant,
}

/// What a container's streams are made of, on the shim's side.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

pub(crate) fn set_nonblocking(fd: impl AsFd) -> Result<(), Errno> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

impl Stdio {
    pub(crate) fn new(
        id: Rc<str>,
        ends: Ends,
        log: Option<Log>,
        once: bool,
        reactor: &mut Reactor<Source>,
    ) -> Result<Self, Errno> {
        let mut outputs = [None, None];
        for (stream, fd) in [(Stream::Stdout, ends.stdout), (Stream::Stderr, ends.stderr)] {
            let Some(fd) = fd else { continue };
            set_nonblocking(&fd)?;
            let mut watched = Watched::new(fd, Source::Output(id.clone(), stream));
            watched.watch(reactor, EpollFlags::EPOLLIN)?;
            outputs[stream as usize] = Some(watched);
        }
        let input = match ends.stdin {
            Some(fd) => {
                set_nonblocking(&fd)?;
                Some(Watched::new(fd, Source::Input(id.clone())))
            }
            None => None,
        };
        Ok(Self {
            id,
            outputs,
            input,
            input_queue: VecDeque::new(),
            input_ends: false,
            once,
            log,
            attached: BTreeMap::new(),
            next: 0,
            held: false,
            ended: false,
        })
    }

    pub(crate) fn attached(&self) -> usize {
        self.attached.len()
    }

    /// The terminal's master side, for its size.
    pub(crate) fn terminal(&self) -> Option<&OwnedFd> {
        self.outputs[0].as_ref().map(Watched::get)
    }

    pub(crate) fn attach(&mut self, ends: Ends, reactor: &mut Reactor<Source>) -> Result<(), Errno> {
        let number = self.next;
        self.next += 1;
        let mut attached = Attached { input: None, sinks: [None, None] };
        if let Some(fd) = ends.stdin {
            set_nonblocking(&fd)?;
            let mut pipe = Watched::new(fd, Source::AttachedInput(self.id.clone(), number));
            // EPERM: a regular file or directory cannot be waited for.
            pipe.watch(reactor, EpollFlags::EPOLLIN)?;
            attached.input = Some(pipe);
        }
        for (stream, fd) in [(Stream::Stdout, ends.stdout), (Stream::Stderr, ends.stderr)] {
            let Some(fd) = fd else { continue };
            let watched = set_nonblocking(&fd).and_then(|()| {
                let mut pipe = Watched::new(fd, Source::AttachedOutput(self.id.clone(), number, stream));
                // Nothing to send yet: only that the reader has gone is of interest, and always told.
                pipe.watch(reactor, EpollFlags::empty()).map(|()| pipe)
            });
            match watched {
                Ok(pipe) => {
                    let sink = Sink { pipe, queue: VecDeque::new(), took: Instant::now() };
                    attached.sinks[stream as usize] = Some(sink);
                }
                Err(errno) => {
                    attached.close(reactor);
                    return Err(errno);
                }
            }
        }
        if self.ended {
            attached.close(reactor);
        } else {
            self.attached.insert(number, attached);
        }
        Ok(())
    }

    /// Takes output that is there; false when the stream has nothing more now.
    pub(crate) fn output_ready(&mut self, stream: Stream, reactor: &mut Reactor<Source>) -> usize {
        let Some(output) = &self.outputs[stream as usize] else { return 0 };
        let mut buffer = [0; READ_BYTES];
        match nix::unistd::read(output.get(), &mut buffer) {
            Ok(count @ 1..) => {
                let bytes = &buffer[..count];
                if let Some(log) = &mut self.log {
                    log.push(stream, bytes, clock::now_ns(), &mut Vec::new());
                }
                for attached in self.attached.values_mut() {
                    attached.push(stream, bytes, reactor);
                }
                self.tidy(reactor);
                count
            }
            Err(Errno::EAGAIN | Errno::EINTR) => 0,
            // EIO is a terminal's way of ending: its last slave was closed.
            Ok(0) | Err(_) => {
                if let Some(log) = &mut self.log {
                    log.finish(stream, clock::now_ns(), &mut Vec::new());
                }
                if let Some(output) = self.outputs[stream as usize].take() {
                    output.close(reactor);
                }
                0
            }
        }
    }

    /// The container has ended: takes what it left in its pipes, then lets the attached go.
    pub(crate) fn end(&mut self, reactor: &mut Reactor<Source>) {
        let mut budget = DRAIN_BYTES_MAX;
        for stream in [Stream::Stdout, Stream::Stderr] {
            loop {
                let count = self.output_ready(stream, reactor);
                budget = budget.saturating_sub(count);
                if count == 0 || budget == 0 {
                    break;
                }
            }
        }
        self.ended = true;
        self.close_input(reactor);
        for attached in self.attached.values_mut() {
            attached.close_input(reactor);
        }
        self.tidy(reactor);
    }

    /// Closes everything, queues or not.
    pub(crate) fn close(&mut self, reactor: &mut Reactor<Source>) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            if let Some(log) = &mut self.log {
                log.finish(stream, clock::now_ns(), &mut Vec::new());
            }
            if let Some(output) = self.outputs[stream as usize].take() {
                output.close(reactor);
            }
        }
        self.close_input(reactor);
        while let Some((_, attached)) = self.attached.pop_first() {
            attached.close(reactor);
        }
    }

    pub(crate) fn attached_output_ready(
        &mut self,
        number: u64,
        stream: Stream,
        flags: EpollFlags,
        reactor: &mut Reactor<Source>,
    ) {
        let Some(attached) = self.attached.get_mut(&number) else { return };
        let slot = &mut attached.sinks[stream as usize];
        if let Some(sink) = slot {
            let gone = flags.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
            if (gone || sink.flush(reactor).is_err())
                && let Some(sink) = slot.take()
            {
                sink.pipe.close(reactor);
            }
        }
        self.tidy(reactor);
    }

    pub(crate) fn attached_input_ready(&mut self, number: u64, reactor: &mut Reactor<Source>) {
        let Some(attached) = self.attached.get_mut(&number) else { return };
        let Some(pipe) = &attached.input else { return };
        let mut buffer = [0; READ_BYTES];
        match nix::unistd::read(pipe.get(), &mut buffer) {
            Ok(count @ 1..) => {
                // Without an input, or after its end, what a client types goes nowhere.
                if self.input.is_some() && !self.input_ends {
                    self.input_queue.extend(&buffer[..count]);
                    self.input_ready(reactor);
                }
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Ok(0) | Err(_) => {
                attached.close_input(reactor);
                if self.once {
                    self.end_input(reactor);
                }
                self.tidy(reactor);
            }
        }
    }

    /// Closes the container's input after what waits for it.
    pub(crate) fn end_input(&mut self, reactor: &mut Reactor<Source>) {
        self.input_ends = true;
        self.input_ready(reactor);
    }

    /// Delivers input.
    pub(crate) fn input_ready(&mut self, reactor: &mut Reactor<Source>) {
        let Some(input) = &mut self.input else { return };
        let outcome = flush(input.get(), &mut self.input_queue);
        if outcome.is_err() || (self.input_queue.is_empty() && self.input_ends) {
            self.close_input(reactor);
        } else if self.input_queue.is_empty() {
            input.unwatch(reactor);
        } else if input.watch(reactor, EpollFlags::EPOLLOUT).is_err() {
            self.close_input(reactor);
        }
        let full = self.input_queue.len() >= INPUT_BYTES_MAX;
        for attached in self.attached.values_mut() {
            attached.hold_input(full, reactor);
        }
    }

    fn close_input(&mut self, reactor: &mut Reactor<Source>) {
        if let Some(input) = self.input.take() {
            input.close(reactor);
        }
        self.input_queue = VecDeque::new();
    }

    /// Drops what is done and holds or releases the container's output. Runs after every change.
    fn tidy(&mut self, reactor: &mut Reactor<Source>) {
        let ended = self.ended;
        for attached in self.attached.values_mut() {
            attached.drop_finished(ended, reactor);
        }
        self.attached.retain(|_, attached| attached.input.is_some() || attached.sinks.iter().any(Option::is_some));
        let lag = self.attached.values().flat_map(Attached::sinks).map(|sink| sink.queue.len()).max().unwrap_or(0);
        // Released only at half, so that it does not flutter.
        let hold = if self.held { lag > LAG_BYTES_MAX / 2 } else { lag > LAG_BYTES_MAX };
        if hold != self.held {
            self.held = hold;
            for output in self.outputs.iter_mut().flatten() {
                if hold {
                    output.unwatch(reactor);
                } else if output.watch(reactor, EpollFlags::EPOLLIN).is_err() {
                    // Without memory for a watch the output is taken when the container ends.
                    self.held = true;
                }
            }
        }
    }

    /// When a client that lags is to be detached, if it goes on taking nothing.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.attached
            .values()
            .flat_map(Attached::sinks)
            .filter(|sink| !sink.queue.is_empty())
            .map(|sink| sink.took.checked_add(STALL).unwrap_or(sink.took))
            .min()
    }

    /// Detaches clients that have taken nothing for too long.
    pub(crate) fn expire(&mut self, now: Instant, reactor: &mut Reactor<Source>) {
        for attached in self.attached.values_mut() {
            for slot in &mut attached.sinks {
                if slot
                    .as_ref()
                    .is_some_and(|sink| !sink.queue.is_empty() && now.saturating_duration_since(sink.took) >= STALL)
                    && let Some(sink) = slot.take()
                {
                    sink.pipe.close(reactor);
                }
            }
        }
        self.tidy(reactor);
    }
}

impl Attached {
    fn sinks(&self) -> impl Iterator<Item = &Sink> {
        self.sinks.iter().flatten()
    }

    fn push(&mut self, stream: Stream, bytes: &[u8], reactor: &mut Reactor<Source>) {
        let slot = &mut self.sinks[stream as usize];
        let Some(sink) = slot else { return };
        if sink.queue.is_empty() {
            sink.took = Instant::now();
        }
        sink.queue.extend(bytes);
        if sink.flush(reactor).is_err()
            && let Some(sink) = slot.take()
        {
            sink.pipe.close(reactor);
        }
    }

    fn hold_input(&mut self, hold: bool, reactor: &mut Reactor<Source>) {
        let Some(input) = &mut self.input else { return };
        if hold {
            input.unwatch(reactor);
        } else if input.watch(reactor, EpollFlags::EPOLLIN).is_err() {
            self.close_input(reactor);
        }
    }

    fn close_input(&mut self, reactor: &mut Reactor<Source>) {
        if let Some(input) = self.input.take() {
            input.close(reactor);
        }
    }

    /// Once the container has ended, a sink is done when its queue is empty.
    fn drop_finished(&mut self, ended: bool, reactor: &mut Reactor<Source>) {
        for slot in &mut self.sinks {
            if ended
                && slot.as_ref().is_some_and(|sink| sink.queue.is_empty())
                && let Some(sink) = slot.take()
            {
                sink.pipe.close(reactor);
            }
        }
    }

    fn close(mut self, reactor: &mut Reactor<Source>) {
        self.close_input(reactor);
        for sink in self.sinks.into_iter().flatten() {
            sink.pipe.close(reactor);
        }
    }
}

impl Sink {
    fn flush(&mut self, reactor: &mut Reactor<Source>) -> Result<(), Errno> {
        let before = self.queue.len();
        flush(self.pipe.get(), &mut self.queue)?;
        if self.queue.len() < before {
            self.took = Instant::now();
        }
        let flags = if self.queue.is_empty() { EpollFlags::empty() } else { EpollFlags::EPOLLOUT };
        self.pipe.watch(reactor, flags)
    }
}

/// Writes as much of a queue as is taken.
fn flush(fd: &OwnedFd, queue: &mut VecDeque<u8>) -> Result<(), Errno> {
    while !queue.is_empty() {
        match nix::unistd::write(fd, queue.as_slices().0) {
            Ok(count) => {
                queue.drain(..count);
            }
            Err(Errno::EAGAIN) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    if queue.capacity() > READ_BYTES {
        *queue = VecDeque::new();
    }
    Ok(())
}
