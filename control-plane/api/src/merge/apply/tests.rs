//! Apply and update as a sequence of writes by several managers.

use serde_json::{Value, json};

use super::*;
use crate::schema::find;

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
    apply(of(), live, &object(intent), writer(manager), &["status"], force)
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
    for containers in [json!([{"image": "x"}]), json!([{"name": "a"}, {"name": "a"}])] {
        let bad = json!({"spec": {"template": {"spec": {"containers": containers}}}});
        assert!(run(&nothing(), bad, "one", false).is_err());
    }
    let managed = json!({"metadata": {"managedFields": [{"manager": "x"}]}});
    assert!(matches!(run(&nothing(), managed, "one", false), Err(Error::ManagedFields)));
}
