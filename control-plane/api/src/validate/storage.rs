//! Persistent volumes and claims.

use std::collections::BTreeSet;

use serde_json::Value;

use super::field::Field;
use super::{Causes, IMMUTABLE, pod, resources, selector, syntax, volume};
use crate::{Cause, Object, Quantity, name};

const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const VOLUME_MODES: &[&str] = &["Block", "Filesystem"];
/// What of a persistent volume is no source.
const NO_SOURCE: &[&str] = &["capacity", "claimRef", "nodeAffinity"];

fn check_modes(spec: &Field<'_, '_>, detail: &str, causes: &mut Causes) {
    let modes = spec.key("accessModes");
    if modes.list().is_empty() {
        modes.required(detail, causes);
    }
    for mode in modes.items().filter(|mode| !MODES.contains(&mode.text())) {
        causes.push(Cause::not_supported(modes.path(), mode.value, MODES));
    }
    let kinds: BTreeSet<&str> = modes.items().map(|mode| mode.text()).collect();
    if kinds.contains("ReadWriteOncePod") && kinds.len() > 1 {
        modes.forbidden("may not use ReadWriteOncePod with other access modes", causes);
    }
}

fn not_positive(amount: &Field<'_, '_>, causes: &mut Causes) {
    if let Some(quantity) = amount.quantity()
        && quantity <= Quantity::ZERO
    {
        amount.invalid_as(&quantity.to_string().into(), "must be greater than zero", causes);
    }
}

pub(super) fn check_volume(object: &Object, causes: &mut Causes) {
    let spec = Field::top(object, "spec");
    check_modes(&spec, "", causes);
    let capacity = spec.key("capacity");
    if capacity.entries().next().is_none() {
        capacity.required("", causes);
    }
    if !capacity.entry("storage").is_set() || capacity.entries().count() > 1 {
        capacity.unsupported(&["storage"], causes);
    }
    for (_, amount) in capacity.entries() {
        if amount.quantity().is_none() {
            amount.invalid(&crate::quantity::Error::Format.to_string(), causes);
        }
        not_positive(&amount, causes);
    }
    spec.key("persistentVolumeReclaimPolicy").one_of(&["Delete", "Recycle", "Retain"], causes);
    let affinity = spec.key("nodeAffinity");
    if affinity.is_set() {
        if affinity.key("required").is_set() {
            pod::check_node_selector(&affinity.key("required"), causes);
        } else {
            affinity.key("required").required("must specify required node constraints", causes);
        }
    }
    check_sources(&spec, object.name(), causes);
    spec.key("storageClassName").may_be(name::dns1123_subdomain, causes);
    spec.key("volumeMode").one_of_if_set(VOLUME_MODES, causes);
    let class = spec.key("volumeAttributesClassName");
    if class.is_set() {
        if class.text().is_empty() {
            class.required("an empty string is disallowed", causes);
        } else {
            class.must_be(name::dns1123_subdomain, causes);
        }
        if !spec.key("csi").is_set() {
            spec.key("csi").required("has to be specified when using volumeAttributesClassName", causes);
        }
    }
}

fn check_sources(spec: &Field<'_, '_>, volume: &str, causes: &mut Causes) {
    let mut sources = spec.entries().filter(|(key, one)| one.value.is_object() && !NO_SOURCE.contains(key));
    let Some((kind, _)) = sources.next() else {
        spec.required("must specify a volume type", causes);
        return;
    };
    for (more, _) in sources {
        spec.key(more).forbidden("may not specify more than 1 volume type", causes);
    }
    let source = spec.key(kind);
    match kind {
        "hostPath" => {
            volume::check_host_path(&source, causes);
            let root = source.key("path").text().split('/').all(|part| part.is_empty() || part == ".");
            let policy = spec.key("persistentVolumeReclaimPolicy");
            if root && policy.text() == "Recycle" {
                policy.forbidden("may not be 'recycle' for a hostPath mount of '/'", causes);
            }
        }
        "local" => {
            let path = source.key("path");
            super::path::no_backsteps(&path, path.text(), causes);
            if !spec.key("nodeAffinity").is_set() {
                spec.key("nodeAffinity").required("Local volume requires node affinity", causes);
            }
        }
        "csi" => {
            volume::check_csi_driver(&source.key("driver"), causes);
            for secret in [
                "controllerPublishSecretRef",
                "nodePublishSecretRef",
                "nodeStageSecretRef",
                "controllerExpandSecretRef",
                "nodeExpandSecretRef",
            ] {
                let reference = source.key(secret);
                for key in ["name", "namespace"] {
                    if reference.is_set() && reference.key(key).text().is_empty() {
                        reference.key(key).required("", causes);
                    }
                }
            }
        }
        _ => volume::check_network_source(kind, &source, volume, causes),
    }
}

pub(super) fn check_volume_update(new: &Object, old: &Object, causes: &mut Causes) {
    let (spec, before) = (Field::top(new, "spec"), Field::top(old, "spec"));
    let sources = |spec: &Field<'_, '_>| {
        let mut map = spec.value.as_object().cloned().unwrap_or_default();
        map.retain(|key, value| value.is_object() && !NO_SOURCE.contains(&key.as_str()));
        // A secret for expansion may be added once.
        if !before.key("csi").key("controllerExpandSecretRef").is_set()
            && let Some(csi) = map.get_mut("csi").and_then(Value::as_object_mut)
        {
            csi.remove("controllerExpandSecretRef");
        }
        map
    };
    if sources(&spec) != sources(&before) {
        let detail = "spec.persistentvolumesource is immutable after creation";
        spec.key("persistentvolumesource").forbidden(detail, causes);
    }
    if spec.key("volumeMode").value != before.key("volumeMode").value {
        causes.push(Cause::invalid("volumeMode", spec.key("volumeMode").value, IMMUTABLE));
    }
    let affinity = spec.key("nodeAffinity");
    if before.key("nodeAffinity").is_set() && affinity.value != before.key("nodeAffinity").value {
        let detail = format!("{IMMUTABLE}, except for updating from beta label to GA");
        causes.push(Cause::invalid("nodeAffinity", affinity.value, &detail));
    }
}

/// The spec of a claim, or of a template for claims.
pub(super) fn check_claim(spec: &Field<'_, '_>, causes: &mut Causes) {
    check_modes(spec, "at least 1 access mode is required", causes);
    selector::check(&spec.key("selector"), causes);
    let resources = spec.key("resources");
    let requests = resources.key("requests");
    resources::check_amounts(resources::Use::Any, &requests, causes);
    let size = requests.entry("storage");
    let place = resources.entry("storage");
    if !size.is_set() {
        place.required("", causes);
    } else if size.quantity().is_some_and(|size| size <= Quantity::ZERO) {
        let shown = size.quantity().unwrap_or(Quantity::ZERO).to_string();
        place.invalid_as(&shown.into(), "must be greater than zero", causes);
    }
    for class in ["storageClassName", "volumeAttributesClassName"] {
        spec.key(class).may_be(name::dns1123_subdomain, causes);
    }
    spec.key("volumeMode").one_of_if_set(VOLUME_MODES, causes);
    for key in ["dataSource", "dataSourceRef"] {
        check_data_source(&spec.key(key), causes);
    }
    let (source, reference) = (spec.key("dataSource"), spec.key("dataSourceRef"));
    if source.is_set() && reference.is_set() {
        let same = ["apiGroup", "kind", "name"].iter().all(|key| source.key(key).value == reference.key(key).value);
        let detail = match reference.key("namespace").text() {
            "" if same => return,
            "" => "must match dataSourceRef",
            _ => "may not be specified when dataSourceRef.namespace is specified",
        };
        spec.invalid_as(&source.path().into(), detail, causes);
    }
}

fn check_data_source(source: &Field<'_, '_>, causes: &mut Causes) {
    if !source.is_set() {
        return;
    }
    let group = source.key("apiGroup");
    if group.text().is_empty() && source.key("kind").text() != "PersistentVolumeClaim" {
        let detail = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        source.invalid_as(source.key("kind").value, detail, causes);
    }
    group.may_be(name::dns1123_subdomain, causes);
    source.key("namespace").may_be(name::dns1123_label, causes);
}

pub(super) fn check_claim_update(new: &Object, old: &Object, causes: &mut Causes) {
    let (spec, before) = (Field::top(new, "spec"), Field::top(old, "spec"));
    let bound = new.str_at(&["status", "phase"]) == Some("Bound");
    let fixed = |spec: &Field<'_, '_>| {
        let mut map = spec.value.as_object().cloned().unwrap_or_default();
        // A volume is given once, and a class to a claim that had none.
        for key in ["volumeName", "storageClassName"] {
            if !before.key(key).is_set() || (key == "volumeName" && before.key(key).text().is_empty()) {
                map.remove(key);
            }
        }
        if bound {
            map.remove("volumeAttributesClassName");
            if let Some(requests) = map.get_mut("resources").and_then(|all| all.get_mut("requests"))
                && let Some(requests) = requests.as_object_mut()
            {
                requests.remove("storage");
            }
        }
        map
    };
    if fixed(&spec) != fixed(&before) {
        let detail =
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        spec.forbidden(detail, causes);
    }
    let size = |spec: &Field<'_, '_>| spec.key("resources").key("requests").key("storage").quantity();
    let has = old.at(&["status", "capacity", "storage"]).and_then(Value::as_str);
    let has = has.and_then(|text| Quantity::parse(text).ok()).unwrap_or(Quantity::ZERO);
    if let (Some(now), Some(then)) = (size(&spec), size(&before))
        && now < then
        && now <= has
    {
        let detail = "field can not be less than status.capacity";
        causes.push(Cause::forbidden("spec.resources.requests.storage", detail));
    }
    let class = spec.key("volumeAttributesClassName");
    if !before.key("volumeAttributesClassName").text().is_empty() && class.text().is_empty() {
        class.forbidden("update from non-nil value to nil is forbidden", causes);
    }
}

/// Bytes of a class' parameters together, and their number.
const PARAMETERS_BYTES_MAX: usize = 256 * 1024;
const PARAMETERS_MAX: usize = 512;

pub(super) fn check_class(object: &Object, causes: &mut Causes) {
    let provisioner = Field::top(object, "provisioner");
    provisioner.may_be(syntax::qualified_any_case, causes);
    let parameters = Field::top(object, "parameters");
    let count = parameters.entries().count();
    if count > PARAMETERS_MAX {
        let detail = format!("must have at most {PARAMETERS_MAX} items");
        parameters.invalid_as(&count.into(), &detail, causes);
    }
    let mut bytes: usize = 0;
    for (key, value) in parameters.entries() {
        if key.is_empty() {
            parameters.invalid_as(&"".into(), "field can not be empty.", causes);
        }
        bytes = bytes.saturating_add(key.len()).saturating_add(value.text().len());
    }
    if bytes > PARAMETERS_BYTES_MAX {
        parameters.too_long(PARAMETERS_BYTES_MAX, causes);
    }
    Field::top(object, "reclaimPolicy").one_of_if_set(&["Delete", "Retain"], causes);
    Field::top(object, "volumeBindingMode").one_of_if_set(&["Immediate", "WaitForFirstConsumer"], causes);
    for term in Field::top(object, "allowedTopologies").items() {
        let mut seen = BTreeSet::new();
        for one in term.key("matchLabelExpressions").items() {
            one.key("key").may_be(name::qualified, causes);
            if !seen.insert(one.key("key").text()) {
                one.key("key").duplicate(causes);
            }
        }
    }
}

pub(super) fn check_class_update(new: &Object, old: &Object, causes: &mut Causes) {
    for key in ["parameters", "provisioner", "reclaimPolicy"] {
        if new.get(key) != old.get(key) {
            causes.push(Cause::forbidden(key, &format!("updates to {key} are forbidden.")));
        }
    }
    super::unchanged(new, old, &["volumeBindingMode"], causes);
}
