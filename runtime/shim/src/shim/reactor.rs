//! The epoll set: what is watched, under tokens that are never used twice.
//!
//! Invariant: a token dies with its watch, so an event left over in a batch finds nothing and does no harm.

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::collections::BTreeMap;
use std::os::fd::AsFd;

/// How many events are taken at once; more wait in the kernel.
const BATCH_EVENTS_MAX: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Token(u64);

#[derive(Debug)]
pub(crate) struct Reactor<S> {
    epoll: Epoll,
    sources: BTreeMap<Token, S>,
    next: u64,
}

impl<S: Clone> Reactor<S> {
    pub(crate) fn new() -> Result<Self, Errno> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { epoll, sources: BTreeMap::new(), next: 0 })
    }

    pub(crate) fn watch(&mut self, fd: impl AsFd, flags: EpollFlags, source: S) -> Result<Token, Errno> {
        let token = Token(self.next);
        self.epoll.add(fd, EpollEvent::new(flags, token.0))?;
        self.next += 1;
        self.sources.insert(token, source);
        Ok(token)
    }

    pub(crate) fn change(&self, token: Token, fd: impl AsFd, flags: EpollFlags) -> Result<(), Errno> {
        self.epoll.modify(fd, &mut EpollEvent::new(flags, token.0))
    }

    /// Ends a watch. Must come before the descriptor is closed: a copy elsewhere would keep it in the set.
    pub(crate) fn forget(&mut self, token: Token, fd: impl AsFd) {
        self.sources.remove(&token);
        // It was added, so this fails only for a descriptor that is no longer the same; then there is nothing to end.
        let _gone = self.epoll.delete(fd);
    }

    /// Waits for events; none after the timeout or a signal.
    pub(crate) fn wait(&self, timeout: EpollTimeout) -> Result<Vec<(Token, EpollFlags)>, Errno> {
        let mut events = [EpollEvent::empty(); BATCH_EVENTS_MAX];
        match self.epoll.wait(&mut events, timeout) {
            Ok(count) => Ok(events[..count].iter().map(|event| (Token(event.data()), event.events())).collect()),
            Err(Errno::EINTR) => Ok(Vec::new()),
            Err(errno) => Err(errno),
        }
    }

    pub(crate) fn source(&self, token: Token) -> Option<S> {
        self.sources.get(&token).cloned()
    }
}

/// A descriptor with its place in the epoll set, or out of it.
///
/// Out of the set is a state of its own: a watch for nothing still reports a hang-up, again and again.
#[derive(Debug)]
pub(crate) struct Watched<F, S> {
    fd: F,
    source: S,
    watch: Option<(Token, EpollFlags)>,
}

impl<F: AsFd, S: Clone> Watched<F, S> {
    pub(crate) fn new(fd: F, source: S) -> Self {
        Self { fd, source, watch: None }
    }

    pub(crate) fn get(&self) -> &F {
        &self.fd
    }

    pub(crate) fn watch(&mut self, reactor: &mut Reactor<S>, flags: EpollFlags) -> Result<(), Errno> {
        match self.watch {
            Some((_, present)) if present == flags => {}
            Some((token, _)) => {
                reactor.change(token, &self.fd, flags)?;
                self.watch = Some((token, flags));
            }
            None => {
                let token = reactor.watch(&self.fd, flags, self.source.clone())?;
                self.watch = Some((token, flags));
            }
        }
        Ok(())
    }

    pub(crate) fn unwatch(&mut self, reactor: &mut Reactor<S>) {
        if let Some((token, _)) = self.watch.take() {
            reactor.forget(token, &self.fd);
        }
    }

    pub(crate) fn close(mut self, reactor: &mut Reactor<S>) {
        self.unwatch(reactor);
    }
}
