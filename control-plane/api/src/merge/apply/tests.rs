//! Apply and update as a sequence of writes by several managers.

use serde_json::{Value, json};

use super::*;
use crate::schema::find;
use crate::schema::sample::{Sample, null_in_struct};
use crate::{defaults, rows};
use proptest::prelude::*;

fn writer(manager: &str) -> Writer<'_> {
    Writer { manager, api_version: "apps/v1", subresource: "", now: "2026-01-02T03:04:05Z".parse().unwrap() }
}

fn of() -> &'static Type {
    find("apps.v1.Deployment").unwrap()
}

fn object(value: Value) -> Object {
    Object::from_value(value).unwrap()
}

fn nothing() -> Object {
    Object::new("apps/v1", "Deployment")
}

fn run(live: &Object, intent: Value, manager: &str, force: bool) -> Result<Object, Error> {
    apply(of(), live, &object(intent), writer(manager), &["status"], force, |_| {})
}

fn intent(replicas: i64, image: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "labels": {"a": "b"}},
        "spec": {"replicas": replicas, "template": {"spec": {"containers": [{"name": "c", "image": image,
            "ports": [{"containerPort": 80}]}]}}}})
}

#[test]
fn an_intent_is_owned_field_by_field() {
    let made = run(&nothing(), intent(1, "x"), "one", false).unwrap();
    assert_eq!(made.i64_at(&["spec", "replicas"]), Some(1));
    let entry = &made.managed_fields()[0];
    assert_eq!(entry["operation"], "Apply");
    assert_eq!(
        entry["fieldsV1"],
        json!({"f:metadata": {"f:labels": {"f:a": {}}}, "f:spec": {"f:replicas": {}, "f:template": {"f:spec":
            {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:name": {}, "f:image": {}, "f:ports":
                {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}}}}}}})
    );
    // The same intent again changes nothing at all.
    assert_eq!(run(&made, intent(1, "x"), "one", false).unwrap(), made);
}

#[test]
fn a_field_of_another_is_a_conflict_and_force_takes_it() {
    let made = run(&nothing(), intent(1, "x"), "one", false).unwrap();
    let Err(Error::Conflict(causes)) = run(&made, json!({"spec": {"replicas": 3}}), "two", false) else {
        panic!("no conflict")
    };
    assert_eq!(causes.len(), 1);
    assert_eq!((causes[0].field.as_str(), causes[0].message.as_str()), (".spec.replicas", "conflict with \"one\""));
    let taken = run(&made, json!({"spec": {"replicas": 3}}), "two", true).unwrap();
    assert_eq!(taken.i64_at(&["spec", "replicas"]), Some(3));
    let one = taken.managed_fields().iter().find(|entry| entry["manager"] == "one").unwrap();
    assert_eq!(one["fieldsV1"]["f:spec"].get("f:replicas"), None);
    // Agreeing with the owner is shared ownership, without force.
    let shared = run(&made, json!({"spec": {"replicas": 1}}), "two", false).unwrap();
    assert_eq!(shared.managed_fields().len(), 2);
}

#[test]
fn what_a_manager_gives_up_goes_unless_another_owns_it() {
    let made = run(&nothing(), intent(1, "x"), "one", false).unwrap();
    let shared = run(&made, json!({"spec": {"replicas": 1}}), "two", false).unwrap();
    let left = run(&shared, json!({"metadata": {"name": "d"}, "spec": {}}), "one", false).unwrap();
    assert_eq!(left.i64_at(&["spec", "replicas"]), Some(1));
    assert_eq!(left.at(&["metadata", "labels"]), None);
    assert_eq!(left.at(&["spec", "template"]), None);
    let gone = run(&left, json!({"metadata": {"name": "d"}}), "two", false).unwrap();
    assert_eq!(gone.at(&["spec", "replicas"]), None);
}

#[test]
fn defaults_of_the_server_stay_until_their_item_goes() {
    let mut live = run(&nothing(), intent(1, "x"), "one", false).unwrap();
    let two = json!([{"name": "c", "image": "x", "imagePullPolicy": "Always"}, {"name": "side", "image": "s"}]);
    live.set(&["spec", "template", "spec", "containers"], two);
    let next = run(&live, intent(1, "y"), "one", false).unwrap();
    let containers = next.list_at(&["spec", "template", "spec", "containers"]);
    assert_eq!((containers.len(), &containers[0]["imagePullPolicy"]), (2, &json!("Always")));
    let mut without = intent(1, "y");
    without["spec"]["template"]["spec"]["containers"] = json!([{"name": "new", "image": "n"}]);
    let replaced = run(&next, without, "one", false).unwrap();
    let names: Vec<&Value> =
        replaced.list_at(&["spec", "template", "spec", "containers"]).iter().map(|one| &one["name"]).collect();
    assert_eq!(names, ["side", "new"]);
}

#[test]
fn updates_are_noted_and_take_ownership() {
    let mut made = object(intent(1, "x"));
    update(of(), None, &mut made, writer("create"), &["status"]);
    let set = &made.managed_fields()[0]["fieldsV1"];
    assert_eq!(set["f:metadata"]["f:labels"], json!({".": {}, "f:a": {}}));
    assert_eq!(set["f:spec"].get("."), None);
    assert_eq!(made.managed_fields()[0]["operation"], "Update");
    let mut changed = made.clone();
    changed.set(&["spec", "replicas"], 5);
    update(of(), Some(&made), &mut changed, writer("scale"), &["status"]);
    assert_eq!(changed.managed_fields().len(), 2);
    assert_eq!(changed.managed_fields()[0]["fieldsV1"]["f:spec"].get("f:replicas"), None);
    let Err(Error::Conflict(causes)) = run(&changed, intent(1, "x"), "one", false) else { panic!("no conflict") };
    assert_eq!(causes[0].message, "conflict with \"scale\" using apps/v1 at 2026-01-02T03:04:05Z");
    // A write that changes nothing leaves the entries as they are, also when it does not send them.
    let mut same = changed.clone();
    same.set_managed_fields(Vec::new());
    update(of(), Some(&changed), &mut same, writer("other"), &["status"]);
    assert_eq!(same, changed);
}

#[test]
fn many_updaters_are_folded() {
    let mut live = object(json!({"apiVersion": "apps/v1", "kind": "Deployment"}));
    for index in 0..15 {
        let mut next = live.clone();
        next.set_label(&format!("l{index}"), "x");
        update(of(), Some(&live), &mut next, writer(&format!("m{index}")), &[]);
        live = next;
    }
    assert_eq!(live.managed_fields().len(), 10);
    assert!(live.managed_fields().iter().any(|entry| entry["manager"] == "ancient-changes"));
}

#[test]
fn refuses_intents_it_cannot_own() {
    for containers in [json!([{"image": "x"}]), json!([{"name": "a"}, {"name": "a"}]), json!([null])] {
        let bad = json!({"spec": {"template": {"spec": {"containers": containers}}}});
        assert!(run(&nothing(), bad, "one", false).is_err());
    }
    let managed = json!({"metadata": {"managedFields": [{"manager": "x"}]}});
    assert!(matches!(run(&nothing(), managed, "one", false), Err(Error::ManagedFields)));
}

#[test]
fn what_is_given_up_takes_the_defaults_below_it_along() {
    let mut probed = intent(1, "x");
    probed["spec"]["template"]["spec"]["containers"][0]["livenessProbe"] = json!({"httpGet": {"port": 80}});
    let mut live = run(&nothing(), probed, "one", false).unwrap();
    let probe =
        json!({"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10});
    let mut containers = live.list_at(&["spec", "template", "spec", "containers"]).to_vec();
    containers[0]["livenessProbe"] = probe;
    containers[0]["imagePullPolicy"] = json!("Always");
    live.set(&["spec", "template", "spec", "containers"], containers);
    let next = run(&live, intent(1, "x"), "one", false).unwrap();
    let container = &next.list_at(&["spec", "template", "spec", "containers"])[0];
    assert_eq!(container.get("livenessProbe"), None);
    assert_eq!(container["imagePullPolicy"], "Always", "what lies beside it stays");
    // What somebody else owns below keeps the whole.
    let theirs = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "livenessProbe": {"periodSeconds": 10}}]}}}});
    let shared = run(&live, theirs, "two", false).unwrap();
    let kept = run(&shared, intent(1, "x"), "one", false).unwrap();
    let container = &kept.list_at(&["spec", "template", "spec", "containers"])[0];
    assert_eq!(container["livenessProbe"], json!({"timeoutSeconds": 1, "periodSeconds": 10}));
}

#[test]
fn an_intent_is_compared_in_its_normal_form() {
    let mut odd = intent(1, "x");
    let pod = &mut odd["spec"]["template"]["spec"];
    pod["hostNetwork"] = json!(false);
    pod["containers"][0]["env"] = json!([]);
    pod["containers"][0]["tty"] = json!(false);
    pod["containers"][0]["resources"] = json!({"limits": {"memory": "1024Mi"}});
    let made = run(&nothing(), odd.clone(), "one", false).unwrap();
    let container = &made.list_at(&["spec", "template", "spec", "containers"])[0];
    assert_eq!((container.get("env"), container.get("tty")), (None, None));
    assert_eq!(container["resources"], json!({"limits": {"memory": "1Gi"}}));
    let owned = made.managed_fields()[0]["fieldsV1"].to_string();
    assert!(owned.contains("f:tty") && owned.contains("f:hostNetwork"), "{owned}");
    assert_eq!(run(&made, odd.clone(), "one", false).unwrap(), made, "the same intent changes nothing");
    // The same amount in other words is no conflict.
    odd["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"] = json!("1Gi");
    assert!(run(&made, odd, "two", false).is_ok());
}

fn drop_null_fields(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_null_fields);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_null_fields),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn what_was_applied_is_stored_in_the_normal_form_and_applied_again_changes_nothing(seed in any::<u64>()) {
        let mut sample = Sample::new(seed);
        for row in rows() {
            let of = find(&row.schema).unwrap();
            let mut intent = row.object();
            intent.as_map_mut().extend(sample.structure(of, 0));
            intent.remove(&["metadata", "managedFields"]);
            // An explicit null takes a value away each time, also the default that the last time left.
            intent.as_map_mut().values_mut().for_each(drop_null_fields);
            let run = |live: &Object| {
                apply(of, live, &intent, writer("one"), &["status"], false, |object| defaults::apply(row, object))
            };
            // Lists with null, repeated or missing keys are refused; that is said elsewhere.
            let Ok(made) = run(&row.object()) else { continue };
            let mut again = made.clone();
            normal::normalize(of, &mut again);
            defaults::apply(row, &mut again);
            prop_assert_eq!(&again, &made);
            prop_assert_eq!(null_in_struct(of, made.as_map(), ""), None);
            prop_assert_eq!(&run(&made).unwrap(), &made);
        }
    }
}
