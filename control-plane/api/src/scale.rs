//! The `scale` subresource: reading an `autoscaling/v1` Scale out of a workload, and writing one back.

use serde_json::{Value, json};

use crate::object::map_entry;
use crate::selector::Selector;
use crate::{Cause, Object};

/// The Scale of a Deployment, ReplicaSet, StatefulSet or ReplicationController.
pub fn read(object: &Object) -> Object {
    let mut scale = Object::new("autoscaling/v1", "Scale");
    let meta = scale.metadata_mut();
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object.metadata().and_then(|from| from.get(key)) {
            meta.insert(key.into(), value.clone());
        }
    }
    let replicas = object.i64_at(&["spec", "replicas"]).unwrap_or(0);
    scale.set(&["spec"], if replicas == 0 { json!({}) } else { json!({"replicas": replicas}) });
    let mut status = json!({"replicas": object.i64_at(&["status", "replicas"]).unwrap_or(0)});
    let selector = match object.at(&["spec", "selector"]) {
        // A controller's selector is a plain map; the others' is a LabelSelector.
        Some(Value::Object(map)) if object.kind() == "ReplicationController" => Selector::from_map(map).ok(),
        Some(value) => Selector::from_value(value).ok(),
        None => None,
    };
    if let Some(selector) = selector.filter(|selector| !selector.is_empty()) {
        status["selector"] = selector.to_string().into();
    }
    scale.set(&["status"], status);
    scale
}

/// Puts the scale's wish into the workload. The scale's resourceVersion, when given, becomes the workload's.
pub fn write(object: &mut Object, scale: &Object) -> Result<(), Vec<Cause>> {
    let replicas = scale.i64_at(&["spec", "replicas"]).unwrap_or(0);
    if replicas < 0 {
        let cause = Cause::invalid("spec.replicas", &replicas.into(), "must be greater than or equal to 0");
        return Err(vec![cause]);
    }
    if !scale.resource_version().is_empty() {
        let revision = scale.resource_version().to_owned();
        object.metadata_mut().insert("resourceVersion".into(), revision.into());
    }
    map_entry(object.as_map_mut(), "spec").insert("replicas".into(), replicas.into());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes() {
        let mut deployment = Object::from_value(json!({"kind": "Deployment", "metadata": {"name": "d", "uid": "u"},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}}, "status": {"replicas": 1}}))
        .unwrap();
        let mut scale = read(&deployment);
        assert_eq!(scale.str_at(&["status", "selector"]), Some("a=b"));
        assert_eq!((scale.uid(), scale.i64_at(&["spec", "replicas"])), ("u", Some(2)));
        scale.set(&["spec", "replicas"], 5);
        write(&mut deployment, &scale).unwrap();
        assert_eq!(deployment.i64_at(&["spec", "replicas"]), Some(5));
        scale.set(&["spec", "replicas"], -1);
        assert!(write(&mut deployment, &scale).is_err());
    }
}
