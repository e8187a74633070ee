//! Lines of volumes, claims and what provides them.

use jiff::Timestamp;
use serde_json::Value;

use super::{AGE, NAME, Printer, age, flag, list, name, number, plain, text, text_or, wide};
use crate::Object;

pub(super) fn printer(kind: &str) -> Option<Printer> {
    let printer = match kind {
        "PersistentVolume" => Printer {
            columns: const {
                &[
                    NAME,
                    text("Capacity"),
                    text("Access Modes"),
                    text("Reclaim Policy"),
                    text("Status"),
                    text("Claim"),
                    text("StorageClass"),
                    text("VolumeAttributesClass"),
                    text("Reason"),
                    AGE,
                    wide("VolumeMode"),
                ]
            },
            cells: volume,
        },
        "PersistentVolumeClaim" => Printer {
            columns: const {
                &[
                    NAME,
                    text("Status"),
                    text("Volume"),
                    text("Capacity"),
                    text("Access Modes"),
                    text("StorageClass"),
                    text("VolumeAttributesClass"),
                    AGE,
                    wide("VolumeMode"),
                ]
            },
            cells: claim,
        },
        "StorageClass" => Printer {
            columns: const {
                &[
                    NAME,
                    text("Provisioner"),
                    text("ReclaimPolicy"),
                    text("VolumeBindingMode"),
                    flag("AllowVolumeExpansion"),
                    AGE,
                ]
            },
            cells: class,
        },
        "CSIDriver" => Printer {
            columns: const {
                &[
                    NAME,
                    flag("AttachRequired"),
                    flag("PodInfoOnMount"),
                    flag("StorageCapacity"),
                    text("TokenRequests"),
                    flag("RequiresRepublish"),
                    text("Modes"),
                    AGE,
                ]
            },
            cells: driver,
        },
        "CSINode" => Printer {
            columns: const { &[NAME, number("Drivers"), AGE] },
            cells: |object, now| {
                vec![name(object), object.list_at(&["spec", "drivers"]).len().into(), age(object, now)]
            },
        },
        "CSIStorageCapacity" => Printer {
            columns: const { &[NAME, text("StorageClassName"), text("Capacity")] },
            cells: |object, _| {
                vec![name(object), text_or(object, &["storageClassName"], ""), plain(object.get("capacity"), "<unset>")]
            },
        },
        "VolumeAttachment" => Printer {
            columns: const { &[NAME, text("Attacher"), text("PV"), text("Node"), flag("Attached"), AGE] },
            cells: attachment,
        },
        "VolumeAttributesClass" => Printer {
            columns: const { &[NAME, text("DriverName"), AGE] },
            cells: |object, now| vec![name(object), text_or(object, &["driverName"], ""), age(object, now)],
        },
        _ => return None,
    };
    Some(printer)
}

/// `RWO,ROX,RWX,RWOP`, in upstream's order.
fn access_modes(object: &Object, path: &[&str]) -> Value {
    let modes = object.list_at(path);
    let known =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let shown = known.iter().filter(|(mode, _)| modes.iter().any(|one| one == mode)).map(|(_, short)| *short);
    shown.collect::<Vec<_>>().join(",").into()
}

/// The phase, or Terminating.
fn phase(object: &Object) -> Value {
    if object.is_deleting() { "Terminating".into() } else { text_or(object, &["status", "phase"], "") }
}

fn volume(object: &Object, now: Timestamp) -> Vec<Value> {
    let part = |path: &[&str]| object.str_at(path).unwrap_or_default();
    let (namespace, claim) = (part(&["spec", "claimRef", "namespace"]), part(&["spec", "claimRef", "name"]));
    let claim = if claim.is_empty() { String::new() } else { format!("{namespace}/{claim}") };
    vec![
        name(object),
        plain(object.at(&["spec", "capacity", "storage"]), "0"),
        access_modes(object, &["spec", "accessModes"]),
        part(&["spec", "persistentVolumeReclaimPolicy"]).into(),
        phase(object),
        claim.into(),
        part(&["spec", "storageClassName"]).into(),
        text_or(object, &["spec", "volumeAttributesClassName"], "<unset>"),
        part(&["status", "reason"]).into(),
        age(object, now),
        text_or(object, &["spec", "volumeMode"], "<unset>"),
    ]
}

fn claim(object: &Object, now: Timestamp) -> Vec<Value> {
    let bound = object.str_at(&["spec", "volumeName"]).is_some_and(|name| !name.is_empty());
    vec![
        name(object),
        phase(object),
        text_or(object, &["spec", "volumeName"], ""),
        if bound { plain(object.at(&["status", "capacity", "storage"]), "0") } else { "".into() },
        if bound { access_modes(object, &["status", "accessModes"]) } else { "".into() },
        text_or(object, &["spec", "storageClassName"], ""),
        text_or(object, &["spec", "volumeAttributesClassName"], "<unset>"),
        age(object, now),
        text_or(object, &["spec", "volumeMode"], "<unset>"),
    ]
}

fn class(object: &Object, now: Timestamp) -> Vec<Value> {
    let default = object.annotation("storageclass.kubernetes.io/is-default-class") == Some("true");
    let shown = if default { format!("{} (default)", object.name()) } else { object.name().to_owned() };
    vec![
        shown.into(),
        text_or(object, &["provisioner"], ""),
        text_or(object, &["reclaimPolicy"], "Delete"),
        text_or(object, &["volumeBindingMode"], "Immediate"),
        object.bool_at(&["allowVolumeExpansion"]).unwrap_or(false).into(),
        age(object, now),
    ]
}

fn driver(object: &Object, now: Timestamp) -> Vec<Value> {
    let spec = |key: &str, default: bool| Value::from(object.bool_at(&["spec", key]).unwrap_or(default));
    let audiences = object.list_at(&["spec", "tokenRequests"]).iter().filter_map(|one| one["audience"].as_str());
    let audiences: Vec<&str> = audiences.collect();
    vec![
        name(object),
        spec("attachRequired", true),
        spec("podInfoOnMount", false),
        spec("storageCapacity", false),
        if audiences.is_empty() { "<unset>".into() } else { list(audiences) },
        spec("requiresRepublish", false),
        list(object.list_at(&["spec", "volumeLifecycleModes"]).iter().filter_map(Value::as_str)),
        age(object, now),
    ]
}

fn attachment(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        text_or(object, &["spec", "attacher"], ""),
        text_or(object, &["spec", "source", "persistentVolumeName"], ""),
        text_or(object, &["spec", "nodeName"], ""),
        object.bool_at(&["status", "attached"]).unwrap_or(false).into(),
        age(object, now),
    ]
}
