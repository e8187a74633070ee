//! Locks by digest, so that no blob is fetched and no layer unpacked twice at once. They vanish with their last holder.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use crate::digest::Digest;

pub(crate) type Guard = OwnedMutexGuard<()>;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Space {
    Layer,
    Blob,
}

type Key = (Space, Digest);

#[derive(Default)]
pub(crate) struct Locks {
    held: Mutex<HashMap<Key, Weak<AsyncMutex<()>>>>,
}

impl Locks {
    pub(crate) async fn layer(&self, chain_id: &Digest) -> Guard {
        self.lock(Space::Layer, chain_id).await
    }

    pub(crate) async fn blob(&self, digest: &Digest) -> Guard {
        self.lock(Space::Blob, digest).await
    }

    async fn lock(&self, space: Space, digest: &Digest) -> Guard {
        let lock = {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            held.retain(|_, lock| lock.strong_count() > 0);
            let key = (space, digest.clone());
            match held.get(&key).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    let lock = Arc::new(AsyncMutex::new(()));
                    held.insert(key, Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }
}
