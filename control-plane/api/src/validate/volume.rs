//! A pod's volumes: one source each, and a sound one.

mod projected;
mod source;

pub(super) use source::{check_csi_driver, check_host_path, check_network_source};

use std::collections::{BTreeMap, BTreeSet};

use super::Causes;
use super::field::Field;
use crate::name;

/// Judges the volumes, and returns their names with the kinds of their sources. `pod` is the name of the pod when it is one.
pub(super) fn check<'v>(
    volumes: &Field<'v, '_>,
    pod: &str,
    is_pod: bool,
    causes: &mut Causes,
) -> BTreeMap<&'v str, &'v str> {
    let mut kinds = BTreeMap::new();
    // Claims that come into being for the pod's own volumes.
    let made: BTreeSet<String> = volumes
        .items()
        .filter(|volume| !pod.is_empty() && volume.key("ephemeral").is_set())
        .map(|volume| format!("{pod}-{}", volume.key("name").text()))
        .collect();
    for volume in volumes.items() {
        let given = volume.key("name");
        let mut sources = volume.entries().filter(|(key, source)| *key != "name" && source.is_set());
        let first = sources.next().map(|(kind, _)| kind);
        for (kind, _) in sources {
            volume.key(kind).forbidden("may not specify more than 1 volume type", causes);
        }
        match first {
            None => volume.required("must specify a volume type", causes),
            Some(kind) => source::check(kind, &volume, pod, is_pod, causes),
        }
        if given.text().is_empty() {
            continue;
        }
        given.must_be(name::dns1123_label, causes);
        if kinds.insert(given.text(), first.unwrap_or_default()).is_some() {
            given.duplicate(causes);
        }
        let claim = volume.key("persistentVolumeClaim").key("claimName").text();
        if made.contains(claim) {
            let detail = "must not reference a PVC that gets created for an ephemeral volume";
            volume.key("persistentVolumeClaim").key("claimName").invalid(detail, causes);
        }
    }
    kinds
}

/// The bits of a file's mode.
pub(super) fn mode(mode: &Field<'_, '_>, causes: &mut Causes) {
    if mode.number().is_some_and(|bits| !(0..=0o777).contains(&bits)) {
        mode.invalid("must be a number between 0 and 0777 (octal), both inclusive", causes);
    }
}
