//! What the store does when the machine misbehaves: crashes at any moment, a full disk, a damaged or foreign file, a second opener.

use std::{path::Path, sync::Arc};

use control_plane_store::{Change, Error, Precondition, Range, Revision, Sqlite, SqliteConfig, Store, WriteError};

/// Copies the database and its log as a crash would leave them, without asking the store.
fn image(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    // The write-ahead log first: a checkpoint between the two copies would otherwise leave a log older than the file it belongs to.
    for name in ["state.db-wal", "state.db"] {
        let source = from.join(name);
        if source.exists() {
            std::fs::copy(&source, to.join(name)).unwrap();
        }
    }
}

#[test]
fn crash_images_hold_every_acknowledged_write() {
    super::runtime().block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let live = directory.path().join("live");
        let store = super::open(&live);
        for round in 0..12u64 {
            let writers: Vec<_> = (0..20)
                .map(|index| {
                    let store = store.clone();
                    tokio::spawn(async move { super::put(&store, &format!("/k/{round}/{index}"), "v").await.unwrap() })
                })
                .collect();
            for writer in writers {
                writer.await.unwrap();
            }
            let acknowledged = (round + 1) * 20;
            let crashed = directory.path().join(format!("crash-{round}"));
            image(&live, &crashed);
            let reopened = super::open(&crashed);
            assert_eq!(reopened.revision().await.unwrap(), Revision(acknowledged));
            let page = reopened.list(Range::all("/k/"), None).await.unwrap();
            assert_eq!(page.entries.len() as u64, acknowledged);
        }
    });
}

#[test]
fn a_torn_log_loses_only_what_came_after_the_tear() {
    super::runtime().block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let live = directory.path().join("live");
        let store = super::open(&live);
        for index in 0..40 {
            super::put(&store, &format!("/k/{index:02}"), &"v".repeat(300)).await.unwrap();
        }
        let wal = std::fs::read(live.join("state.db-wal")).unwrap();
        let mut before = 0;
        for cut in (0..=24).map(|part| wal.len() * part / 24) {
            let crashed = directory.path().join(format!("torn-{cut}"));
            image(&live, &crashed);
            std::fs::write(crashed.join("state.db-wal"), &wal[..cut]).unwrap();
            let reopened = super::open(&crashed);
            let revision = reopened.revision().await.unwrap().0;
            let page = reopened.list(Range::all("/k/"), None).await.unwrap();
            let keys: Vec<String> = page.entries.iter().map(|entry| entry.key.to_string()).collect();
            let expect: Vec<String> = (0..revision).map(|index| format!("/k/{index:02}")).collect();
            assert_eq!(keys, expect, "a prefix of the history, without holes");
            assert!(revision >= before, "more log cannot mean less history");
            before = revision;
        }
        assert_eq!(before, 40);
    });
}

#[test]
fn a_full_disk_is_named_and_harms_nothing() {
    super::runtime().block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let config = SqliteConfig { pages_max: Some(40), ..SqliteConfig::new(directory.path().join("state.db")) };
        let store = Sqlite::open(&config).unwrap();
        let mut written = 0;
        let error = loop {
            match super::put(&store, &format!("/k/{written:04}"), &"v".repeat(2000)).await {
                Ok(_) => written += 1,
                Err(error) => break error,
            }
            assert!(written < 1000, "the limit must bite");
        };
        assert!(matches!(error, WriteError::Store(Error::DiskFull { .. })), "{error:?}");
        let page = store.list(Range::all("/k/"), None).await.unwrap();
        assert_eq!(page.entries.len(), written);
        // Making room makes it writable again.
        for index in 0..written {
            let key = Arc::from(format!("/k/{index:04}"));
            let deleted = store.write(key, Precondition::Any, Change::Delete).await;
            if deleted.is_err() {
                break;
            }
        }
        store.compact(store.revision().await.unwrap()).await.unwrap();
        super::put(&store, "/k/again", "v").await.unwrap();
    });
}

#[test]
fn a_foreign_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    std::fs::write(&path, "this is not a database, and long enough to have a header of one".repeat(40)).unwrap();
    let error = Sqlite::open(&SqliteConfig::new(&path)).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error:?}");
    assert!(error.to_string().contains("state.db"));
}

#[test]
fn a_damaged_page_is_an_error_when_read() {
    super::runtime().block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let store = super::open(directory.path());
        for index in 0..200 {
            super::put(&store, &format!("/k/{index}"), &"v".repeat(500)).await.unwrap();
        }
        drop(store);
        let mut bytes = std::fs::read(&path).unwrap();
        for page in bytes.chunks_mut(4096).skip(3) {
            page[..64].fill(0xEE);
        }
        std::fs::write(&path, bytes).unwrap();
        let error = match Sqlite::open(&SqliteConfig::new(&path)) {
            Ok(store) => store.list(Range::all("/k/"), None).await.unwrap_err(),
            Err(error) => error,
        };
        assert!(matches!(error, Error::Corrupt { .. }), "{error:?}");
    });
}

#[test]
fn a_newer_format_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    drop(super::open(directory.path()));
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let error = Sqlite::open(&SqliteConfig::new(&path)).unwrap_err();
    assert!(matches!(error, Error::Format { found: 99, .. }), "{error:?}");
}

#[test]
fn a_second_opener_is_refused_until_the_first_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let first = super::open(directory.path());
    let error = Sqlite::open(&SqliteConfig::new(directory.path().join("state.db"))).unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error:?}");
    drop(first);
    drop(super::open(directory.path()));
}
