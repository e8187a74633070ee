//! A number of places, of which no client has more than its share.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The places.
#[derive(Debug)]
pub(super) struct Shares {
    all_max: usize,
    one_max: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    all: usize,
    by_client: HashMap<IpAddr, usize>,
}

/// One place, given back when dropped.
#[derive(Debug)]
pub(super) struct Share<'a> {
    shares: &'a Shares,
    client: IpAddr,
}

impl Shares {
    pub(super) fn new(all_max: usize, one_max: usize) -> Self {
        Self { all_max, one_max, held: Mutex::default() }
    }

    /// `None` when there is none left, or none for this client.
    pub(super) fn take(&self, client: IpAddr) -> Option<Share<'_>> {
        let mut held = self.lock();
        let own = held.by_client.get(&client).copied().unwrap_or_default();
        if held.all >= self.all_max || own >= self.one_max {
            return None;
        }
        held.all += 1;
        held.by_client.insert(client, own + 1);
        Some(Share { shares: self, client })
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // Counts are right after every statement.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let mut held = self.shares.lock();
        held.all = held.all.saturating_sub(1);
        if let Some(own) = held.by_client.get_mut(&self.client) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                held.by_client.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_more_than_a_share() {
        let (one, other, third) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), [10, 0, 0, 3].into());
        let shares = Shares::new(3, 2);
        let (first, _second) = (shares.take(one).unwrap(), shares.take(one).unwrap());
        assert!(shares.take(one).is_none(), "a third of one client");
        let _other = shares.take(other).unwrap();
        assert!(shares.take(third).is_none(), "a fourth of all");
        drop(first);
        assert!(shares.take(third).is_some());
        assert_eq!(shares.lock().by_client.len(), 2, "who has none is forgotten");
    }
}
