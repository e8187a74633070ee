//! Watches: from the past, across the seam to live, behind the broadcast, past a compaction.

use std::sync::Arc;

use control_plane_store::{Change, Error, Precondition, Range, Revision, Sqlite, Store};
use futures::StreamExt;

async fn collect(store: &Sqlite, prefix: &str, from: u64, count: usize) -> Vec<u64> {
    let mut watch = store.watch(prefix, Revision(from));
    let mut seen = Vec::new();
    while seen.len() < count {
        let batch = watch.next().await.unwrap().unwrap();
        seen.extend(batch.iter().map(|event| event.revision.0));
    }
    seen
}

#[test]
fn the_seam_between_log_and_live_loses_nothing() {
    super::runtime().block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let store = super::open(directory.path());
        const WRITES: u64 = 3000;
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let store = store.clone();
                tokio::spawn(async move {
                    for index in 0..WRITES / 4 {
                        super::put(&store, &format!("/k/{writer}/{}", index % 7), "v").await.unwrap();
                    }
                })
            })
            .collect();
        let watchers: Vec<_> = (0..8)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move {
                    let from = store.revision().await.unwrap().0;
                    let count = usize::try_from(WRITES - from).unwrap();
                    (from, collect(&store, "/k/", from, count).await)
                })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
        for watcher in watchers {
            let (from, seen) = watcher.await.unwrap();
            assert_eq!(seen, (from + 1..=WRITES).collect::<Vec<_>>());
        }
    });
}

#[test]
fn a_watcher_that_fell_behind_the_broadcast_reads_the_log() {
    super::runtime().block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let store = super::open(directory.path());
        let mut watch = store.watch("/k/", Revision(0));
        super::put(&store, "/k/first", "v").await.unwrap();
        assert_eq!(watch.next().await.unwrap().unwrap()[0].revision, Revision(1));
        // One commit each, and more of them than the broadcast keeps.
        for index in 0..1500 {
            super::put(&store, &format!("/k/{index}"), "v").await.unwrap();
        }
        let mut next = 2;
        while next <= 1501 {
            for event in watch.next().await.unwrap().unwrap().iter() {
                assert_eq!(event.revision.0, next);
                next += 1;
            }
        }
    });
}

#[test]
fn events_carry_what_was_there_before() {
    super::runtime().block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let store = super::open(directory.path());
        super::put(&store, "/k/a", "1").await.unwrap();
        super::put(&store, "/k/a", "2").await.unwrap();
        store.write(Arc::from("/k/a"), Precondition::Any, Change::Delete).await.unwrap();
        super::put(&store, "/k/a", "3").await.unwrap();
        let mut watch = store.watch("/k/", Revision(0));
        let batch = watch.next().await.unwrap().unwrap();
        let told: Vec<_> = batch
            .iter()
            .map(|event| {
                let text = |entry: &control_plane_store::Entry| {
                    format!("{}@{}", String::from_utf8_lossy(&entry.value), entry.created)
                };
                (event.previous.as_ref().map(text), event.entry.as_ref().map(text))
            })
            .collect();
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(told, [(None, some("1@1")), (some("1@1"), some("2@1")), (some("2@1"), None), (None, some("3@4"))]);
    });
}

#[test]
fn what_was_compacted_is_said_so() {
    super::runtime().block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let store = super::open(directory.path());
        for _ in 0..10 {
            super::put(&store, "/k/a", "v").await.unwrap();
        }
        store.compact(Revision(5)).await.unwrap();
        let mut watch = store.watch("/k/", Revision(4));
        assert!(matches!(watch.next().await, Some(Err(Error::Compacted { .. }))));
        assert!(watch.next().await.is_none());
        assert_eq!(collect(&store, "/k/", 5, 5).await, [6, 7, 8, 9, 10]);
        let mut future = store.watch("/k/", Revision(11));
        assert!(matches!(future.next().await, Some(Err(Error::Future { .. }))));
        let listed = store.list(Range::all("/k/"), None).await.unwrap();
        assert_eq!((listed.entries.len(), listed.revision), (1, Revision(10)));
    });
}

#[test]
fn a_deletion_as_the_newest_revision_survives_compaction_and_reopening() {
    super::runtime().block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let store = super::open(directory.path());
        super::put(&store, "/k/a", "v").await.unwrap();
        store.write(Arc::from("/k/a"), Precondition::Any, Change::Delete).await.unwrap();
        store.compact(Revision(2)).await.unwrap();
        drop(store);
        let store = super::open(directory.path());
        assert_eq!(store.revision().await.unwrap(), Revision(2));
        assert_eq!(super::put(&store, "/k/a", "v").await.unwrap(), Revision(3));
    });
}
