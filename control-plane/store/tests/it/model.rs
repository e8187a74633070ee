//! Random operations against a map that remembers everything: every answer, past and present, must agree, also after reopening.

use std::{collections::BTreeMap, sync::Arc};

use control_plane_store::{Change, Error, Precondition, Range, Revision, Sqlite, Store, WriteError};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Put { key: usize, value: u8, precondition: Wanted },
    Delete { key: usize, precondition: Wanted },
    Compact { back: u64 },
    Reopen,
}

#[derive(Clone, Copy, Debug)]
enum Wanted {
    Any,
    Absent,
    Current,
    Stale,
}

const KEYS: [&str; 5] = ["/a/x", "/a/y", "/a/y/z", "/b/x", "/b/\u{10FFFF}"];

type Version = Option<(u8, u64, u64)>;

#[derive(Default)]
struct Model {
    /// State of every key after each revision; index 0 is the empty store.
    history: Vec<BTreeMap<&'static str, (u8, u64, u64)>>,
    compacted: u64,
}

impl Model {
    fn newest(&self) -> u64 {
        self.history.len() as u64 - 1
    }

    fn get(&self, key: &str, at: u64) -> Version {
        self.history[usize::try_from(at).unwrap()].get(key).copied()
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let wanted = prop_oneof![
        4 => Just(Wanted::Any),
        2 => Just(Wanted::Absent),
        3 => Just(Wanted::Current),
        1 => Just(Wanted::Stale)
    ];
    let step = prop_oneof![
        10 => (0..KEYS.len(), any::<u8>(), wanted.clone())
            .prop_map(|(key, value, precondition)| Step::Put { key, value, precondition }),
        5 => (0..KEYS.len(), wanted).prop_map(|(key, precondition)| Step::Delete { key, precondition }),
        1 => (0u64..6).prop_map(|back| Step::Compact { back }),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn agrees_with_a_map(steps in steps()) {
        super::runtime().block_on(run(steps));
    }
}

async fn run(steps: Vec<Step>) {
    let directory = tempfile::tempdir().unwrap();
    let mut store = super::open(directory.path());
    let mut model = Model { history: vec![BTreeMap::new()], compacted: 0 };
    for step in steps {
        match step {
            Step::Put { key, value, precondition } => {
                write(&store, &mut model, KEYS[key], Some(value), precondition).await;
            }
            Step::Delete { key, precondition } => write(&store, &mut model, KEYS[key], None, precondition).await,
            Step::Compact { back } => {
                let at = model.newest().saturating_sub(back);
                store.compact(Revision(at)).await.unwrap();
                model.compacted = model.compacted.max(at);
            }
            Step::Reopen => {
                drop(store);
                store = super::open(directory.path());
            }
        }
        assert_eq!(store.revision().await.unwrap(), Revision(model.newest()));
    }
    compare(&store, &model).await;
}

async fn write(store: &Sqlite, model: &mut Model, key: &'static str, value: Option<u8>, wanted: Wanted) {
    let current = model.get(key, model.newest());
    let (precondition, holds) = match wanted {
        Wanted::Any => (Precondition::Any, true),
        Wanted::Absent => (Precondition::Absent, current.is_none()),
        Wanted::Current => (Precondition::At(Revision(current.map_or(7777, |version| version.2))), current.is_some()),
        Wanted::Stale => (Precondition::At(Revision(8888)), false),
    };
    let change = value.map_or(Change::Delete, |value| Change::Put(vec![value].into()));
    let answer = store.write(Arc::from(key), precondition, change).await;
    match answer {
        Err(WriteError::Conflict { current: found }) => {
            assert!(!holds, "refused although {precondition:?} held");
            let found = found.map(|entry| (entry.value[0], entry.created.0, entry.revision.0));
            assert_eq!(found, current);
        }
        Err(error) => panic!("{error}"),
        Ok(revision) => {
            assert!(holds, "accepted although {precondition:?} did not hold");
            if value.is_none() && current.is_none() {
                assert_eq!(revision.0, model.newest());
                return;
            }
            assert_eq!(revision.0, model.newest() + 1);
            let mut state = model.history.last().unwrap().clone();
            match value {
                Some(value) => {
                    state.insert(key, (value, current.map_or(revision.0, |version| version.1), revision.0));
                }
                None => {
                    state.remove(key);
                }
            }
            model.history.push(state);
        }
    }
}

async fn compare(store: &Sqlite, model: &Model) {
    for at in 0..=model.newest() {
        let moment = Some(Revision(at));
        for key in KEYS {
            let found = store.get(key, moment).await;
            if at < model.compacted {
                assert!(matches!(found, Err(Error::Compacted { .. })), "{found:?}");
            } else {
                let found = found.unwrap().map(|entry| (entry.value[0], entry.created.0, entry.revision.0));
                assert_eq!(found, model.get(key, at), "{key} at {at}");
            }
        }
        if at < model.compacted {
            continue;
        }
        for prefix in ["", "/a/", "/a/y", "/b/", "/c"] {
            let state = &model.history[usize::try_from(at).unwrap()];
            let expect: Vec<&str> = state.keys().copied().filter(|key| key.starts_with(prefix)).collect();
            // One by one, as continue tokens do.
            let mut found = Vec::new();
            let mut after = None;
            loop {
                let range = Range { prefix: prefix.to_owned(), after: after.clone(), limit: Some(1) };
                let page = store.list(range, moment).await.unwrap();
                assert_eq!(page.revision.0, at);
                found.extend(page.entries.iter().map(|entry| entry.key.to_string()));
                after = found.last().cloned();
                if !page.more {
                    break;
                }
            }
            assert_eq!(found, expect, "{prefix} at {at}");
        }
    }
    assert!(matches!(store.get("/a/x", Some(Revision(model.newest() + 1))).await, Err(Error::Future { .. })));
}
