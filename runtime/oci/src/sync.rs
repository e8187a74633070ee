//! The messages between the runtime and the process that it made, over a socket pair that keeps message boundaries.
//!
//! Either side's death is the other's end of file, so neither ever waits for a dead peer: a child that loses its parent before it is
//! committed exits.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use runtime_linux::fd_passing;

/// Longest message, detail text included; longer details are cut.
const MESSAGE_BYTES_MAX: usize = 4096;

/// From the parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Maps are written, the cgroup is joined: go on. With the child's pid as the runtime sees it.
    Go(i32),
    /// The runtime's hooks have run.
    HooksDone,
    /// The record says that you exist: wait for start.
    Commit,
    /// The ids of a tree are mapped.
    IdsMapped,
    /// To a process that is being watched: on to the next step.
    Continue,
}

/// From the child.
#[derive(Debug)]
pub(crate) enum Report {
    /// From the process in between, where there is one: the init's pid, and its pidfd.
    Spawned {
        pid: i32,
        pidfd: OwnedFd,
    },
    NeedHooks,
    /// A detached tree, by its source's place in the plan, whose ids only the runtime may map.
    NeedIds {
        source: u32,
        tree: OwnedFd,
    },
    Console(OwnedFd),
    Warning(String),
    Failed(Fault),
    /// A step is done; only where somebody watches.
    Done {
        step: u32,
        nanoseconds: u64,
    },
    Ready,
}

/// A step that failed, by its place in the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Place among the steps before the wait, then those after it; `u32::MAX` for the time before the first step.
    pub step: u32,
    pub errno: i32,
    pub detail: String,
}

/// No step: joining namespaces, waiting for the parent.
pub(crate) const BEFORE_STEPS: u32 = u32::MAX;

pub(crate) fn send_order(socket: impl AsFd, order: Order) -> Result<(), Errno> {
    let mut message = [0; 5];
    message[0] = match order {
        Order::Go(_) => b'G',
        Order::HooksDone => b'H',
        Order::IdsMapped => b'I',
        Order::Commit => b'K',
        Order::Continue => b'C',
    };
    if let Order::Go(pid) = order {
        message[1..].copy_from_slice(&pid.to_ne_bytes());
    }
    fd_passing::send(socket, &message, &[]).map(drop)
}

pub(crate) fn receive_order(socket: impl AsFd) -> Result<Order, Errno> {
    let mut message = [0; 5];
    let length = retry(|| nix::unistd::read(socket.as_fd(), &mut message))?;
    match (message[0], length) {
        (b'G', 5) => Ok(Order::Go(i32::from_ne_bytes([message[1], message[2], message[3], message[4]]))),
        (b'H', 5) => Ok(Order::HooksDone),
        (b'I', 5) => Ok(Order::IdsMapped),
        (b'K', 5) => Ok(Order::Commit),
        (b'C', 5) => Ok(Order::Continue),
        (_, 0) => Err(Errno::EPIPE),
        _ => Err(Errno::EPROTO),
    }
}

pub(crate) fn send_report(socket: impl AsFd, report: &Report) -> Result<(), Errno> {
    let mut message = Vec::with_capacity(64);
    let mut descriptors: Vec<BorrowedFd<'_>> = Vec::new();
    match report {
        Report::Spawned { pid, pidfd } => {
            message.push(b'P');
            message.extend(pid.to_ne_bytes());
            descriptors.push(pidfd.as_fd());
        }
        Report::NeedHooks => message.push(b'H'),
        Report::NeedIds { source, tree } => {
            message.push(b'I');
            message.extend(source.to_ne_bytes());
            descriptors.push(tree.as_fd());
        }
        Report::Console(master) => {
            message.push(b'C');
            descriptors.push(master.as_fd());
        }
        Report::Warning(text) => {
            message.push(b'W');
            message.extend(text.as_bytes());
        }
        Report::Failed(fault) => {
            message.push(b'F');
            message.extend(fault.step.to_ne_bytes());
            message.extend(fault.errno.to_ne_bytes());
            message.extend(fault.detail.as_bytes());
        }
        Report::Done { step, nanoseconds } => {
            message.push(b'D');
            message.extend(step.to_ne_bytes());
            message.extend(nanoseconds.to_ne_bytes());
        }
        Report::Ready => message.push(b'R'),
    }
    message.truncate(MESSAGE_BYTES_MAX);
    fd_passing::send(socket, &message, &descriptors).map(drop)
}

/// `None` when the other side has gone.
pub(crate) fn receive_report(socket: impl AsFd) -> Result<Option<Report>, Errno> {
    let mut buffer = [0; MESSAGE_BYTES_MAX];
    let mut descriptors: Vec<OwnedFd> = Vec::new();
    let length = retry(|| fd_passing::receive(socket.as_fd(), &mut buffer, &mut descriptors))?;
    parse_report(&buffer[..length], descriptors)
}

/// The same without waiting: `EAGAIN` while nothing has been said.
pub(crate) fn receive_report_now(socket: impl AsFd) -> Result<Option<Report>, Errno> {
    let mut buffer = [0; MESSAGE_BYTES_MAX];
    let mut descriptors: Vec<OwnedFd> = Vec::new();
    let length = retry(|| fd_passing::receive_now(socket.as_fd(), &mut buffer, &mut descriptors))?;
    parse_report(&buffer[..length], descriptors)
}

/// What a message says, whoever wrote it; none is the other side's end.
pub(crate) fn parse_report(message: &[u8], mut descriptors: Vec<OwnedFd>) -> Result<Option<Report>, Errno> {
    let Some((tag, rest)) = message.split_first() else { return Ok(None) };
    let number = |at: usize| -> Result<i32, Errno> {
        let bytes = rest.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).ok_or(Errno::EPROTO)?;
        Ok(i32::from_ne_bytes(bytes))
    };
    let text = |at: usize| String::from_utf8_lossy(rest.get(at..).unwrap_or_default()).into_owned();
    Ok(Some(match tag {
        b'P' => Report::Spawned { pid: number(0)?, pidfd: descriptors.pop().ok_or(Errno::EPROTO)? },
        b'H' => Report::NeedHooks,
        b'I' => Report::NeedIds { source: number(0)?.cast_unsigned(), tree: descriptors.pop().ok_or(Errno::EPROTO)? },
        b'C' => Report::Console(descriptors.pop().ok_or(Errno::EPROTO)?),
        b'W' => Report::Warning(text(0)),
        b'F' => Report::Failed(Fault { step: number(0)?.cast_unsigned(), errno: number(4)?, detail: text(8) }),
        b'D' => {
            let bytes = rest.get(4..12).and_then(|bytes| bytes.try_into().ok()).ok_or(Errno::EPROTO)?;
            Report::Done { step: number(0)?.cast_unsigned(), nanoseconds: u64::from_ne_bytes(bytes) }
        }
        b'R' => Report::Ready,
        _ => return Err(Errno::EPROTO),
    }))
}

/// A message that any process could have sent, without descriptors: it is read, or refused in words. For the fuzzer.
#[must_use]
pub fn is_report(message: &[u8]) -> bool {
    matches!(parse_report(message, Vec::new()), Ok(Some(_)))
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            // A peer that died with unread messages resets the socket; to us it has gone.
            Err(Errno::ECONNRESET) => return Err(Errno::EPIPE),
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_as_they_went() {
        let (left, right) = runtime_linux::local_socket::pair().expect("pair");
        for order in [Order::Go(7), Order::HooksDone, Order::IdsMapped, Order::Commit, Order::Continue] {
            send_order(&left, order).expect("send");
            assert_eq!(receive_order(&right), Ok(order));
        }
        let fault = Fault { step: 3, errno: 13, detail: "x".repeat(9000) };
        send_report(&left, &Report::Failed(fault)).expect("send");
        match receive_report(&right).expect("receive") {
            Some(Report::Failed(fault)) => assert_eq!((fault.step, fault.errno, fault.detail.len()), (3, 13, 4087)),
            other => panic!("{other:?}"),
        }
        send_report(&left, &Report::Done { step: 4, nanoseconds: 1 << 40 }).expect("send");
        match receive_report(&right).expect("receive") {
            Some(Report::Done { step, nanoseconds }) => assert_eq!((step, nanoseconds), (4, 1 << 40)),
            other => panic!("{other:?}"),
        }
        drop(left);
        assert_eq!(receive_order(&right), Err(Errno::EPIPE));
    }
}
