//! What strangers send to the vocabulary: garbage, and patches of anything on anything, are an answer or an error, never more.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use control_plane_api::merge::{json, strategic};
use control_plane_api::selector::{FieldSelector, Selector};
use control_plane_api::{budget, read, schema};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Values out of few names and texts, so that patches meet what they patch, directives among them.
fn value() -> impl Strategy<Value = Value> {
    let name = prop::sample::select(vec![
        "spec",
        "containers",
        "name",
        "ports",
        "env",
        "metadata",
        "finalizers",
        "labels",
        "a",
        "0",
        "$patch",
        "$retainKeys",
        "$setElementOrder/containers",
        "$deleteFromPrimitiveList/finalizers",
    ]);
    let text = prop::sample::select(vec!["a", "b", "delete", "replace", "merge", "", "1Gi"]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i8>().prop_map(Value::from),
        text.prop_map(Value::from)
    ];
    leaf.prop_recursive(6, 60, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(name.clone().prop_map(str::to_owned), inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn operation() -> impl Strategy<Value = Value> {
    let path = prop::sample::select(vec![
        "",
        "/spec",
        "/spec/containers",
        "/spec/containers/0",
        "/spec/containers/-",
        "/a",
        "/a/0",
    ]);
    let verb = prop::sample::select(vec!["add", "remove", "replace", "move", "copy", "test"]);
    (verb, path.clone(), path, value())
        .prop_map(|(op, from, path, value)| json!({"op": op, "from": from, "path": path, "value": value}))
}

proptest! {
    #[test]
    fn bodies(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[\\[\\]{}:,&*a \\n\\-\"'|>!<0-9]{0,80}") {
        for bytes in [bytes.as_slice(), text.as_bytes()] {
            for read in [read::json(bytes), read::yaml(bytes)].into_iter().flatten() {
                prop_assert!(budget::check(&read.0).is_ok());
            }
            let _any = json::Patch::parse(bytes);
        }
    }

    #[test]
    fn selectors(text in "[a-z!=<>(), \\\\./A-Z0-9]{0,60}") {
        if let Ok(selector) = Selector::parse(&text) {
            prop_assert_eq!(Selector::parse(&selector.to_string()).unwrap().to_string(), selector.to_string());
        }
        if let Ok(selector) = FieldSelector::parse(&text) {
            prop_assert_eq!(FieldSelector::parse(&selector.to_string()).unwrap(), selector);
        }
    }

    #[test]
    fn patches(document in value(), patch in value(), operations in prop::collection::vec(operation(), 0..12)) {
        let merged = json::merge(document.clone(), &patch);
        prop_assert!(budget::check(&merged).is_ok());
        for of in ["core.v1.Pod", "core.v1.PodSpec", "meta.v1.ObjectMeta"] {
            if let Ok(merged) = strategic::merge(schema::find(of).unwrap(), document.clone(), &patch) {
                prop_assert!(budget::check(&merged).is_ok());
            }
        }
        let parsed = json::Patch::parse(Value::from(operations).to_string().as_bytes()).unwrap();
        if let Ok(patched) = json::apply(document, &parsed) {
            prop_assert!(budget::check(&patched).is_ok());
        }
    }
}
