//! What the store may take: its history in bytes and changes, its file, and what waits for those who follow it.

use std::{path::Path, time::Duration};

use control_plane_store::{Error, Range, Revision, Sqlite, Store};
use futures::StreamExt;

const LARGE: usize = 900 << 10;

/// Bytes of the file with its write-ahead log.
fn size(directory: &Path) -> u64 {
    let length = |name| std::fs::metadata(directory.join(name)).map_or(0, |metadata| metadata.len());
    length("state.db") + length("state.db-wal")
}

async fn write(store: &Sqlite, count: usize) {
    let value = "x".repeat(LARGE);
    for _ in 0..count {
        super::put(store, "/k/large", &value).await.unwrap();
    }
}

/// Waits until the writer has nothing left to tidy.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(60), async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what}"));
}

#[test]
fn updates_of_a_large_object_leave_a_small_file() {
    super::runtime().block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let store = super::open(directory.path());
        super::put(&store, "/k/other", "v").await.unwrap();
        write(&store, 300).await;
        assert!(size(directory.path()) < 160 << 20, "{} bytes while writing", size(directory.path()));
        // What is kept is a whole history; what was before says so.
        let newest = store.revision().await.unwrap();
        assert_eq!(newest, Revision(301));
        assert!(store.get("/k/large", Some(Revision(280))).await.unwrap().is_some());
        assert!(matches!(store.get("/k/large", Some(Revision(3))).await, Err(Error::Compacted { .. })));
        let page = store.list(Range::all("/k/"), None).await.unwrap();
        assert_eq!(page.entries.len(), 2);
        store.compact(newest).await.unwrap();
        let file = || std::fs::metadata(directory.path().join("state.db")).unwrap().len();
        eventually("the file shrinks", || file() < 16 << 20).await;
        drop(store);
        assert!(size(directory.path()) < 16 << 20, "{} bytes at rest", size(directory.path()));
        let store = super::open(directory.path());
        assert_eq!(store.revision().await.unwrap(), newest);
        assert_eq!(store.list(Range::all("/k/"), None).await.unwrap(), page);
    });
}

#[test]
fn a_follower_that_stood_still_is_told_everything() {
    super::runtime().block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let store = super::open(directory.path());
        let mut watch = store.watch("/k/", Revision(0));
        super::put(&store, "/k/first", "v").await.unwrap();
        assert_eq!(watch.next().await.unwrap().unwrap()[0].revision, Revision(1));
        // More than may wait in memory, and more than the history would keep without it.
        write(&store, 100).await;
        let mut next = 2;
        while next <= 101 {
            let batch = watch.next().await.unwrap().unwrap();
            for event in batch.iter() {
                assert_eq!(event.revision.0, next);
                next += 1;
            }
        }
    });
}

#[test]
fn the_history_is_read_in_small_parts() {
    super::runtime().block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let store = super::open(directory.path());
        write(&store, 6).await;
        let (mut seen, mut parts, mut after) = (0, 0, Revision(1));
        loop {
            let changes = store.changes("/k/", after).await.unwrap();
            assert!(changes.events.iter().all(|event| event.previous.is_some()));
            (seen, parts, after) = (seen + changes.events.len(), parts + 1, changes.complete_to);
            if !changes.more {
                break;
            }
        }
        assert_eq!((seen, after), (5, Revision(6)));
        assert!(parts > 1, "all at once");
        assert!(store.changes("/other/", Revision(1)).await.unwrap().events.is_empty());
        assert!(matches!(store.changes("/k/", Revision(9)).await, Err(Error::Future { .. })));
    });
}

#[test]
fn a_file_of_an_earlier_release_learns_to_shrink() {
    super::runtime().block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let old = rusqlite::Connection::open(&path).unwrap();
        old.execute_batch(
            "PRAGMA journal_mode=WAL;
             CREATE TABLE log (revision INTEGER PRIMARY KEY, key TEXT NOT NULL, created INTEGER NOT NULL, value BLOB) STRICT;
             CREATE UNIQUE INDEX log_by_key ON log (key, revision);
             CREATE TABLE compaction (only INTEGER PRIMARY KEY CHECK (only = 1), revision INTEGER NOT NULL,
                 newest INTEGER NOT NULL) STRICT;
             INSERT INTO compaction VALUES (1, 0, 0);
             PRAGMA user_version = 1;",
        )
        .unwrap();
        let mut insert = old.prepare("INSERT INTO log VALUES (?1, '/k/large', 1, ?2)").unwrap();
        for revision in 1..=120 {
            insert.execute(rusqlite::params![revision, vec![b'x'; LARGE]]).unwrap();
        }
        drop(insert);
        drop(old);
        let store = super::open(directory.path());
        assert_eq!(store.revision().await.unwrap(), Revision(120));
        // The limits hold from the first change on.
        super::put(&store, "/k/a", "v").await.unwrap();
        store.compact(Revision(121)).await.unwrap();
        let file = || std::fs::metadata(&path).unwrap().len();
        eventually("the file shrinks", || file() < 16 << 20).await;
        drop(store);
        let page = super::open(directory.path()).list(Range::all("/k/"), None).await.unwrap();
        assert_eq!(page.entries.len(), 2);
    });
}

#[test]
fn a_page_is_the_same_however_many_versions_its_keys_have() {
    super::runtime().block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let store = super::open(directory.path());
        for round in 0..20 {
            for key in ["/k/a", "/k/b", "/k/c", "/l/a"] {
                super::put(&store, key, &round.to_string()).await.unwrap();
            }
        }
        let check = |prefix: &str, after: Option<&str>, limit, expect: &[&str], more| {
            let range = Range { prefix: prefix.to_owned(), after: after.map(str::to_owned), limit };
            let store = store.clone();
            let expect: Vec<String> = expect.iter().map(|one| (*one).to_owned()).collect();
            async move {
                let page = store.list(range, None).await.unwrap();
                let found: Vec<String> = page.entries.iter().map(|entry| entry.key.to_string()).collect();
                assert_eq!((found, page.more), (expect, more));
                assert!(page.entries.iter().all(|entry| entry.value == "19"));
            }
        };
        check("/k/", None, Some(2), &["/k/a", "/k/b"], true).await;
        check("/k/", Some("/k/b"), Some(2), &["/k/c"], false).await;
        check("/k/", Some("/a"), Some(1), &["/k/a"], true).await;
        check("/k/", Some("/l/a"), None, &[], false).await;
        check("", None, None, &["/k/a", "/k/b", "/k/c", "/l/a"], false).await;
    });
}
