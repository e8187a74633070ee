//! Pod templates by what they mean: `1024Mi` is `1Gi`, and what is left out is what it defaults to. Pure.
//!
//! A deployment is stored as somebody applied it, its sets as the API server normalizes what it is given. Compared as text
//! they may differ for ever, and each look would make another set.

use control_plane_api::{Object, defaults, schema};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::{Value, json};

use super::HASH_LABEL;

/// Without the label that tells a set's pods apart, and without what only one of the two ways to write it has.
pub(super) fn stripped(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(metadata) = &mut template.metadata {
        if let Some(labels) = &mut metadata.labels {
            labels.remove(HASH_LABEL);
        }
        // The API server keeps the field that a client may send as null.
        metadata.creation_timestamp = None;
    }
    template
}

/// Equal for templates that mean the same.
pub(super) fn form(template: &PodTemplateSpec) -> Value {
    let template = serde_json::to_value(stripped(template)).unwrap_or_default();
    let set = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {}, "spec": {"selector": {}, "template": template}});
    let (row, of) =
        (control_plane_api::row_for_kind("apps", "v1", "ReplicaSet"), schema::find_kind("apps", "v1", "ReplicaSet"));
    let (Some(row), Some(of), Ok(mut set)) = (row, of, Object::from_value(set)) else { return Value::Null };
    schema::normal::normalize(of, &mut set);
    defaults::apply(row, &mut set);
    // Once more, as the API server's answer is read: through the types, so that an empty thing is no thing.
    let mut value = set.into_value();
    let read: Option<ReplicaSet> = serde_json::from_value(value.clone()).ok();
    if let Some(template) = read.and_then(|set| set.spec).and_then(|spec| spec.template) {
        value["spec"]["template"] = serde_json::to_value(template).unwrap_or_default();
    }
    let mut template = value["spec"]["template"].take();
    prune(&mut template, 0);
    template
}

/// Deeper than any field of a template's type; what is below it is somebody's free form, and stays as it is.
const DEPTH_MAX: usize = 32;

/// Nulls, empty maps and lists, and maps of nothing but such, say as little as their absence, but for a few whose presence is
/// what they say (`emptyDir: {}`): those of volumes' sources.
fn prune(value: &mut Value, depth: usize) {
    if depth > DEPTH_MAX {
        return;
    }
    match value {
        Value::Object(map) => {
            map.retain(|key, value| {
                prune(value, depth.saturating_add(1));
                !(value.is_null()
                    || value.as_array().is_some_and(Vec::is_empty)
                    || (matches!(
                        key.as_str(),
                        "labels" | "annotations" | "securityContext" | "resources" | "nodeSelector"
                    ) && value.as_object().is_some_and(serde_json::Map::is_empty)))
            });
        }
        Value::Array(list) => list.iter_mut().for_each(|value| prune(value, depth.saturating_add(1))),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(container: Value, spec: Value) -> PodTemplateSpec {
        let mut one = json!({"name": "c", "image": "nginx"});
        for (key, value) in container.as_object().unwrap() {
            one[key] = value.clone();
        }
        let mut whole = json!({"containers": [one]});
        for (key, value) in spec.as_object().unwrap() {
            whole[key] = value.clone();
        }
        serde_json::from_value(json!({"metadata": {"labels": {"app": "web"}}, "spec": whole})).unwrap()
    }

    #[test]
    fn what_means_the_same_is_the_same() {
        let plain = form(&template(json!({}), json!({})));
        let check = |container: Value, spec: Value, is_same: bool| {
            assert_eq!(form(&template(container.clone(), spec.clone())) == plain, is_same, "{container} {spec}");
        };
        check(json!({"env": []}), json!({}), true);
        check(json!({"tty": false, "stdin": false}), json!({"hostNetwork": false, "hostPID": false}), true);
        check(json!({"terminationMessagePath": "/dev/termination-log"}), json!({"dnsPolicy": "ClusterFirst"}), true);
        check(json!({"resources": {}}), json!({"securityContext": {}, "restartPolicy": "Always"}), true);
        check(json!({"ports": [], "args": [], "volumeMounts": []}), json!({"volumes": [], "tolerations": []}), true);
        check(json!({"tty": true}), json!({}), false);
        check(json!({}), json!({"hostNetwork": true}), false);
        check(json!({"args": ["x"]}), json!({}), false);
        check(json!({}), json!({"terminationGracePeriodSeconds": 0}), false);
        check(json!({}), json!({"enableServiceLinks": false}), false);
    }

    #[test]
    fn quantities_are_amounts() {
        let memory = |text: &str| form(&template(json!({"resources": {"limits": {"memory": text}}}), json!({})));
        assert_eq!(memory("1024Mi"), memory("1Gi"));
        assert_ne!(memory("1024Mi"), memory("1025Mi"));
    }

    #[test]
    fn the_form_of_the_form_is_the_form() {
        let odd = template(
            json!({"env": [], "resources": {"requests": {"cpu": "1000m"}}}),
            json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
        );
        let once = form(&odd);
        let again = form(&serde_json::from_value(once.clone()).unwrap());
        assert_eq!(once, again);
        assert!(once["spec"]["volumes"][0]["emptyDir"].is_object(), "{once}");
    }
}
