//! What a container mounts, and which block devices it sees.

use std::collections::BTreeSet;

use super::{Context, List};
use crate::validate::Causes;
use crate::validate::field::Field;
use crate::validate::path;

pub(super) fn check(container: &Field<'_, '_>, context: &Context<'_>, list: List, causes: &mut Causes) {
    let (mounts, devices) = (container.key("volumeMounts"), container.key("volumeDevices"));
    let privileged = container.key("securityContext").key("privileged").is_true();
    // Sets, because both lists are as long as their writer likes.
    let texts = |list: &Field<'_, '_>, key: &str| -> BTreeSet<String> {
        list.items().map(|one| one.key(key).text().to_owned()).filter(|text| !text.is_empty()).collect()
    };
    let (device_names, device_paths) = (texts(&devices, "name"), texts(&devices, "devicePath"));
    let mut paths = BTreeSet::new();
    for mount in mounts.items() {
        let (volume, target) = (mount.key("name"), mount.key("mountPath"));
        let source = context.volumes.get(volume.text());
        if source.is_none() && !volume.text().is_empty() {
            volume.not_found(causes);
        }
        if !target.text().is_empty() && !paths.insert(target.text()) {
            target.invalid("must be unique", causes);
        }
        if device_names.contains(volume.text()) {
            volume.invalid("must not already exist in volumeDevices", causes);
        }
        if device_paths.contains(target.text()) {
            target.invalid("must not already exist as a path in volumeDevices", causes);
        }
        check_subpaths(&mounts, &mount, source == Some(&"image"), list, causes);
        check_propagation(&mounts, &mount, privileged, causes);
    }
    if !devices.list().is_empty() {
        check_devices(&devices, (&texts(&mounts, "name"), &texts(&mounts, "mountPath")), context, causes);
    }
}

fn check_subpaths(mounts: &Field<'_, '_>, mount: &Field<'_, '_>, of_image: bool, list: List, causes: &mut Causes) {
    for key in ["subPath", "subPathExpr"] {
        let sub = mount.key(key);
        if sub.text().is_empty() {
            continue;
        }
        if of_image {
            sub.invalid("not allowed in image volume sources", causes);
        }
        if list == List::Ephemeral {
            sub.forbidden("cannot be set for an Ephemeral Container", causes);
        }
        // Upstream names no index here.
        path::descending(&mounts.named(key), sub.text(), causes);
    }
    let expression = mount.key("subPathExpr");
    if !expression.text().is_empty() && !mount.key("subPath").text().is_empty() {
        expression.invalid("subPathExpr and subPath are mutually exclusive", causes);
    }
}

/// Mounts that reach the host need a container that may do anything anyway.
fn check_propagation(mounts: &Field<'_, '_>, mount: &Field<'_, '_>, privileged: bool, causes: &mut Causes) {
    const MODES: &[&str] = &["Bidirectional", "HostToContainer", "None"];
    let (given, place) = (mount.key("mountPropagation"), mounts.named("mountPropagation"));
    if given.is_set() && !MODES.contains(&given.text()) {
        causes.push(crate::Cause::not_supported(place.path(), given.value, MODES));
    }
    if given.text() == "Bidirectional" && !privileged {
        place.forbidden("Bidirectional mount propagation is available only to privileged containers", causes);
    }
    let (recursive, place) = (mount.key("recursiveReadOnly"), mounts.named("recursiveReadOnly"));
    match recursive.text() {
        "Disabled" => {}
        "Enabled" | "IfPossible" => {
            if !mount.key("readOnly").is_true() {
                place.forbidden("may only be specified when readOnly is true", causes);
            }
            if !["", "None"].contains(&given.text()) {
                place.forbidden("may only be specified when mountPropagation is None or not specified", causes);
            }
        }
        _ if recursive.is_set() => {
            let supported = &["Disabled", "Enabled", "IfPossible"];
            causes.push(crate::Cause::not_supported(place.path(), recursive.value, supported));
        }
        _ => {}
    }
}

fn check_devices(
    devices: &Field<'_, '_>,
    (mount_names, mount_paths): (&BTreeSet<String>, &BTreeSet<String>),
    context: &Context<'_>,
    causes: &mut Causes,
) {
    let (mut names, mut paths) = (BTreeSet::new(), BTreeSet::new());
    for device in devices.items() {
        let (volume, target) = (device.key("name"), device.key("devicePath"));
        if !volume.text().is_empty() {
            if !names.insert(volume.text()) {
                volume.invalid("must be unique", causes);
            }
            match context.volumes.get(volume.text()) {
                None => volume.not_found(causes),
                Some(&("persistentVolumeClaim" | "ephemeral")) => {}
                Some(_) => {
                    let detail = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                    volume.invalid(detail, causes);
                }
            }
            if mount_names.contains(volume.text()) {
                volume.invalid("must not already exist in volumeMounts", causes);
            }
        }
        if !target.text().is_empty() {
            if !paths.insert(target.text()) {
                target.invalid("must be unique", causes);
            }
            if target.text().split('/').any(|part| part == "..") {
                target.invalid("can not contain backsteps ('..')", causes);
            }
            if mount_paths.contains(target.text()) {
                target.invalid("must not already exist as a path in volumeMounts", causes);
            }
        }
    }
}
