//! Every field of what is acted on is in the table, and what is told is told once.

use std::collections::{BTreeSet, VecDeque};

use control_plane_api::schema;
use serde_json::json;

use super::super::{KINDS, RECORDS};
use super::*;

/// What the server itself writes into an object, and what every object has.
const OWN: [&str; 4] = ["apiVersion", "kind", "metadata", "status"];

/// Kinds that the table begins with: all that are served and neither without effect nor mere records.
fn roots() -> Vec<&'static Type> {
    let is_listed = |group: &str, resource: &str| {
        KINDS.iter().any(|(g, r, _)| (*g, *r) == (group, resource)) || RECORDS.contains(&(group, resource))
    };
    let rows = control_plane_api::rows().iter().filter(|row| !is_listed(row.group, row.resource));
    rows.map(|row| schema::find_kind(row.group, row.version, row.kind).unwrap_or_else(|| panic!("{}", row.kind)))
        .collect()
}

#[test]
fn every_field_is_acted_on_or_listed() {
    let mut todo: VecDeque<&Type> = roots().into();
    let (mut seen, mut wrong) = (BTreeSet::new(), Vec::new());
    while let Some(of) = todo.pop_front() {
        if of.name == METADATA || !seen.insert(of.name) {
            continue;
        }
        let Some(entry) = ENTRIES.get(of.name) else {
            wrong.push(format!("{} is not in fields.txt", of.name));
            continue;
        };
        let fields = of.fields.iter().filter(|field| !(of.is_kind && OWN.contains(&field.name)));
        let mut names = BTreeSet::new();
        for field in fields {
            names.insert(field.name);
            let (acts, inert) = (entry.acts.contains(field.name), entry.inert.contains_key(field.name));
            if acts == inert {
                wrong.push(format!("{}.{} is to be in fields.txt once", of.name, field.name));
            }
            todo.extend(field.kind.innermost_struct().filter(|_| !inert));
        }
        let listed = entry.acts.iter().chain(entry.inert.keys());
        wrong.extend(listed.filter(|name| !names.contains(*name)).map(|name| format!("{} has no {name}", of.name)));
        let conditions = entry.inert.values().filter_map(|inert| inert.unless);
        wrong.extend(conditions.filter(|(name, _)| !names.contains(name)).map(|(name, _)| format!("unless {name}")));
    }
    let unused = ENTRIES.keys().filter(|name| !seen.contains(*name));
    wrong.extend(unused.map(|name| format!("{name} is in fields.txt, but nothing leads there")));
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn fields_are_told_by_path() {
    let of = schema::find_kind("apps", "v1", "Deployment").unwrap();
    let check = |spec: Value, live: Option<Value>, expect: &[&str]| {
        let object = |spec: Value| json!({"spec": {"replicas": 1, "template": {"spec": spec}}});
        let (object, live) = (object(spec), live.map(object));
        let live = live.as_ref().and_then(Value::as_object);
        let told = find(of, object.as_object().unwrap(), live);
        let paths: Vec<&str> = told.iter().map(|line| line.split(": ").next().unwrap()).collect();
        assert_eq!(paths, expect, "{object}");
    };
    let spread = || json!({"topologySpreadConstraints": [{"topologyKey": "zone"}]});
    check(spread(), None, &["spec.template.spec.topologySpreadConstraints"]);
    check(spread(), Some(spread()), &[]);
    check(spread(), Some(json!({})), &["spec.template.spec.topologySpreadConstraints"]);
    check(json!({"topologySpreadConstraints": [], "affinity": {"podAffinity": {}}}), None, &[]);
    check(
        json!({"containers": [{"name": "a"}, {"name": "b", "resizePolicy": [{"resourceName": "cpu"}]}]}),
        None,
        &["spec.template.spec.containers[1].resizePolicy"],
    );
    let volumes =
        |medium: &str| json!({"volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi", "medium": medium}}]});
    check(volumes(""), None, &["spec.template.spec.volumes[0].emptyDir.sizeLimit"]);
    check(volumes("Memory"), None, &[]);
    let nfs = json!({"volumes": [{"name": "v", "nfs": {"server": "s", "path": "/"}}]});
    check(nfs, None, &["spec.template.spec.volumes[0].nfs"]);

    let object = json!({"metadata": {"annotations": {"kubernetes.io/egress-bandwidth": "1M", "note": "x"}}});
    let of = schema::find_kind("", "v1", "Pod").unwrap();
    let told = find(of, object.as_object().unwrap(), None);
    let expect = "metadata.annotations[kubernetes.io/egress-bandwidth]: kept, but Sampan does not act on it yet: \
                  traffic is not limited";
    assert_eq!(told, [expect]);
    assert!(find(of, object.as_object().unwrap(), object.as_object()).is_empty());
}
