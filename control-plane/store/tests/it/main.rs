//! The store against its promises: a model, crash images, a full disk, a damaged file, watchers that lag.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bounds;
mod faults;
mod model;
mod watches;

use std::{path::Path, sync::Arc};

use control_plane_store::{Change, Precondition, Revision, Sqlite, SqliteConfig, Store, WriteError};

fn open(directory: &Path) -> Sqlite {
    Sqlite::open(&SqliteConfig::new(directory.join("state.db"))).unwrap()
}

async fn put(store: &Sqlite, key: &str, value: &str) -> Result<Revision, WriteError> {
    store.write(Arc::from(key), Precondition::Any, Change::Put(value.to_owned().into())).await
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}
