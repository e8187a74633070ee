//! RuntimeClasses of pods: one that does not exist is refused; what a class adds (overhead, where it runs) is added.

use control_plane_api::{Object, Quantity, Status};
use serde_json::{Map, Value};

use crate::{status::Outcome, verb::Call};

pub(super) fn complete(call: &Call, pod: &mut Object) -> Outcome<()> {
    let name = pod.str_at(&["spec", "runtimeClassName"]).filter(|name| !name.is_empty()).map(str::to_owned);
    let class = match &name {
        None => None,
        Some(name) => {
            let found = call.kernel.cache.of("node.k8s.io", "runtimeclasses").and_then(|classes| classes.get("", name));
            let why = || format!("pod rejected: RuntimeClass {name:?} not found");
            Some(found.ok_or_else(|| Status::forbidden("", "pods", pod.name(), &why()))?.object())
        }
    };
    apply(class.as_ref(), pod).map_err(|why| Status::forbidden("", "pods", pod.name(), &why).into())
}

/// Adds what the class brings; an error is why the pod contradicts it.
fn apply(class: Option<&Object>, pod: &mut Object) -> Result<(), String> {
    let own = pod.at(&["spec", "overhead"]).and_then(Value::as_object).filter(|map| !map.is_empty()).cloned();
    let fixed = class.and_then(|class| class.at(&["overhead", "podFixed"])).and_then(Value::as_object);
    match (fixed, own) {
        (Some(fixed), None) => pod.set(&["spec", "overhead"], fixed.clone()),
        (Some(fixed), Some(own)) if !equal(fixed, &own) => {
            return Err("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead".to_owned());
        }
        (None, Some(_)) => {
            return Err("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead".to_owned());
        }
        _ => {}
    }
    let Some(class) = class else { return Ok(()) };
    let wanted = class.at(&["scheduling", "nodeSelector"]).and_then(Value::as_object);
    for (key, value) in wanted.into_iter().flatten() {
        let path = ["spec", "nodeSelector", key.as_str()];
        match pod.at(&path) {
            Some(own) if own != value => {
                return Err(format!(
                    "pod rejected: conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; pod.spec.nodeSelector[{key}] = {own}"
                ));
            }
            Some(_) => {}
            None => pod.set(&path, value.clone()),
        }
    }
    let mut tolerations = pod.list_at(&["spec", "tolerations"]).to_vec();
    for toleration in class.list_at(&["scheduling", "tolerations"]) {
        if !tolerations.contains(toleration) {
            tolerations.push(toleration.clone());
        }
    }
    if !tolerations.is_empty() {
        pod.set(&["spec", "tolerations"], tolerations);
    }
    Ok(())
}

/// The same amounts of the same resources, however they are written.
fn equal(one: &Map<String, Value>, other: &Map<String, Value>) -> bool {
    let amount = |value: &Value| -> Option<Quantity> {
        value.as_str().map_or_else(|| value.to_string().parse().ok(), |text| text.parse().ok())
    };
    one.len() == other.len()
        && one.iter().all(|(name, value)| {
            other.get(name).is_some_and(|own| amount(own).is_some() && amount(own) == amount(value))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_class_adds_what_it_brings_and_nothing_contradicts_it() {
        let class = json!({"overhead": {"podFixed": {"memory": "64Mi"}},
            "scheduling": {"nodeSelector": {"a": "b"}, "tolerations": [{"key": "t", "operator": "Exists"}]}});
        let class = Object::from_value(class).unwrap();
        let plain = Object::from_value(json!({"handler": "h"})).unwrap();
        let check = |class: Option<&Object>, spec: Value, expect: Result<Value, &str>| {
            let mut pod = Object::from_value(json!({"spec": spec})).unwrap();
            match (apply(class, &mut pod), expect) {
                (Ok(()), Ok(expect)) => assert_eq!(pod.get("spec"), Some(&expect)),
                (Err(why), Err(part)) => assert!(why.contains(part), "{why}"),
                (found, expect) => panic!("{found:?} instead of {expect:?}"),
            }
        };
        let whole = json!({"overhead": {"memory": "64Mi"}, "nodeSelector": {"a": "b"},
            "tolerations": [{"key": "t", "operator": "Exists"}]});
        check(None, json!({"x": 1}), Ok(json!({"x": 1})));
        check(Some(&plain), json!({"x": 1}), Ok(json!({"x": 1})));
        check(Some(&class), json!({}), Ok(whole.clone()));
        check(Some(&class), whole.clone(), Ok(whole.clone()));
        check(Some(&class), json!({"overhead": {"memory": "65536Ki"}, "nodeSelector": {"a": "c"}}), Err("conflict"));
        check(Some(&class), json!({"overhead": {"memory": "1Mi"}}), Err("doesn't match"));
        check(Some(&plain), json!({"overhead": {"memory": "1Mi"}}), Err("without corresponding"));
        check(None, json!({"overhead": {"memory": "1Mi"}}), Err("without corresponding"));
    }
}
