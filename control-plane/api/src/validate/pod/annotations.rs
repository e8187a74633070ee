//! Annotations of a pod that mean something: mirrors, deletion costs, profiles from before they had fields.

use std::cell::LazyCell;
use std::collections::BTreeSet;

use crate::Cause;
use crate::validate::field::Field;
use crate::validate::{Causes, path};

use super::CONTAINER_LISTS;

const MIRROR: &str = "kubernetes.io/config.mirror";
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APPARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

pub(super) fn check(metadata: &Field<'_, '_>, spec: &Field<'_, '_>, causes: &mut Causes) {
    let annotations = metadata.key("annotations");
    let containers = LazyCell::new(|| names(spec));
    for (key, value) in annotations.entries() {
        match key {
            MIRROR if spec.key("nodeName").text().is_empty() => {
                value.invalid("must set spec.nodeName if mirror pod annotation is set", causes);
            }
            DELETION_COST if !is_cost(value.text()) => value.invalid("must be a 32bit integer", causes),
            SECCOMP_POD => check_seccomp(&annotations.key(key), causes),
            _ if key.starts_with(SECCOMP_CONTAINER) => check_seccomp(&annotations.key(key), causes),
            _ => {
                if let Some(container) = key.strip_prefix(APPARMOR) {
                    check_apparmor(&value, container, &containers, causes);
                }
            }
        }
    }
}

/// A number without a plus sign or leading zeros.
fn is_cost(text: &str) -> bool {
    let plain = text.strip_prefix('-').unwrap_or(text);
    text.parse::<i32>().is_ok() && !text.starts_with('+') && (plain == "0" || !plain.starts_with('0'))
}

fn check_seccomp(value: &Field<'_, '_>, causes: &mut Causes) {
    match value.text() {
        "runtime/default" | "docker/default" | "unconfined" => {}
        text => match text.strip_prefix("localhost/") {
            Some(profile) => path::descending(value, profile, causes),
            None => value.invalid("must be a valid seccomp profile", causes),
        },
    }
}

/// The names of all containers.
fn names<'v>(spec: &Field<'v, '_>) -> BTreeSet<&'v str> {
    let mut names = BTreeSet::new();
    for list in CONTAINER_LISTS {
        names.extend(spec.key(list).items().map(|one| one.key("name").text()));
    }
    names
}

fn check_apparmor(value: &Field<'_, '_>, container: &str, containers: &BTreeSet<&str>, causes: &mut Causes) {
    if !containers.contains(container) {
        value.invalid_as(&container.into(), "container not found", causes);
    }
    let text = value.text();
    if !["", "runtime/default", "unconfined"].contains(&text) && !text.starts_with("localhost/") {
        value.invalid(&format!("invalid AppArmor profile name: {text:?}"), causes);
    }
}

/// A profile that is given both ways is the same in both.
pub(super) fn check_profiles(metadata: &Field<'_, '_>, spec: &Field<'_, '_>, causes: &mut Causes) {
    let annotations = metadata.key("annotations");
    if !annotations.is_set() {
        return;
    }
    let whole = spec.key("securityContext");
    agree(&annotations.key(SECCOMP_POD), &whole.key("seccompProfile"), "seccomp", causes);
    for list in CONTAINER_LISTS {
        for container in spec.key(list).items() {
            let security = container.key("securityContext");
            let given = container.key("name").text();
            let key = format!("{SECCOMP_CONTAINER}{given}");
            agree(&annotations.key(&key), &security.key("seccompProfile"), "seccomp", causes);
            let key = format!("{APPARMOR}{given}");
            let own = security.key("appArmorProfile");
            if own.is_set() {
                agree(&annotations.key(&key), &own, "apparmor", causes);
            } else if !agrees(annotations.key(&key).text(), &whole.key("appArmorProfile")) {
                let detail = "apparmor type in annotation and field must match";
                causes.push(Cause::forbidden(own.key("type").path(), detail));
            }
        }
    }
}

/// Whether an annotation says what a profile's field says; either may be absent.
fn agrees(annotation: &str, profile: &Field<'_, '_>) -> bool {
    if annotation.is_empty() || !profile.is_set() {
        return true;
    }
    match profile.key("type").text() {
        "Unconfined" => annotation == "unconfined",
        "RuntimeDefault" => ["runtime/default", "docker/default"].contains(&annotation),
        "Localhost" => annotation.strip_prefix("localhost/") == Some(profile.key("localhostProfile").text()),
        _ => true,
    }
}

fn agree(annotation: &Field<'_, '_>, profile: &Field<'_, '_>, what: &str, causes: &mut Causes) {
    if agrees(annotation.text(), profile) {
        return;
    }
    let local = profile.key("type").text() == "Localhost" && annotation.text().starts_with("localhost/");
    let (key, part) = if local { ("localhostProfile", "profile") } else { ("type", "type") };
    profile.key(key).forbidden(&format!("{what} {part} in annotation and field must match"), causes);
}

/// Neither a mirror's mark nor a profile comes, changes or goes while a pod lives.
pub(super) fn check_update(new: &Field<'_, '_>, old: &Field<'_, '_>, causes: &mut Causes) {
    let (now, before) = (new.key("annotations"), old.key("annotations"));
    let what = |key: &str| match key {
        MIRROR => Some("mirror pod annotation"),
        _ if key.starts_with(APPARMOR) => Some("AppArmor annotations"),
        _ => None,
    };
    for (key, value) in before.entries() {
        if let Some(what) = what(key)
            && now.entry(key).value != value.value
        {
            now.entry(key).forbidden(&format!("may not remove or update {what}"), causes);
        }
    }
    for (key, value) in now.entries() {
        if let Some(what) = what(key)
            && !before.entry(key).is_set()
        {
            value.forbidden(&format!("may not add {what}"), causes);
        }
    }
}
