//! Volumes that hold files from the API: Secrets, ConfigMaps, fields of the pod, tokens, bundles.

use std::collections::BTreeSet;

use crate::name;
use crate::validate::field::Field;
use crate::validate::{Causes, container, path, selector};

/// Seconds that a token lives at least, and at most.
const TOKEN_SECONDS_MIN: i64 = 600;
const TOKEN_SECONDS_MAX: i64 = 1 << 32;

/// Files from the keys of a Secret or ConfigMap.
pub(super) fn check_keys(items: &Field<'_, '_>, causes: &mut Causes) {
    for item in items.items() {
        let target = item.key("path");
        path::not_reserved(&target, target.text(), causes);
        super::mode(&item.key("mode"), causes);
    }
}

/// Files from fields of the pod. Upstream reports them at the volume, without an index.
pub(super) fn check_downward(source: &Field<'_, '_>, causes: &mut Causes) {
    for file in source.key("items").items() {
        let target = file.key("path");
        path::not_reserved(&source.named("path"), target.text(), causes);
        let (field, resource) = (file.key("fieldRef"), file.key("resourceFieldRef"));
        match (field.is_set(), resource.is_set()) {
            (false, false) => source.required("one of fieldRef and resourceFieldRef is required", causes),
            (true, true) => {
                let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
                source.invalid_as(&"resource".into(), detail, causes);
            }
            (true, false) => container::check_file_field(&field, causes),
            (false, true) => container::check_file_resource(&resource, causes),
        }
        super::mode(&file.key("mode"), causes);
    }
}

pub(super) fn check(projected: &Field<'_, '_>, causes: &mut Causes) {
    super::mode(&projected.key("defaultMode"), causes);
    let mut paths = BTreeSet::new();
    for source in projected.key("sources").items() {
        for kind in ["secret", "configMap"] {
            let one = source.key(kind);
            if !one.is_set() {
                continue;
            }
            if one.key("name").text().is_empty() {
                one.key("name").required("", causes);
            }
            check_keys(&one.key("items"), causes);
            for item in one.key("items").items() {
                unique(projected, &mut paths, item.key("path").text(), causes);
            }
        }
        let downward = source.key("downwardAPI");
        if downward.is_set() {
            check_downward(&downward, causes);
            for item in downward.key("items").items() {
                unique(projected, &mut paths, item.key("path").text(), causes);
            }
        }
        check_token(projected, &source.key("serviceAccountToken"), causes);
        let bundle = source.key("clusterTrustBundle");
        if bundle.is_set() {
            check_bundle(&bundle, causes);
            unique(projected, &mut paths, bundle.key("path").text(), causes);
        }
        if source.entries().filter(|(_, one)| one.is_set()).count() > 1 {
            source.forbidden("may not specify more than 1 volume type per source", causes);
        }
    }
}

fn unique<'v>(projected: &Field<'_, '_>, paths: &mut BTreeSet<&'v str>, path: &'v str, causes: &mut Causes) {
    if !path.is_empty() && !paths.insert(path) {
        projected.invalid_as(&path.into(), "conflicting duplicate paths", causes);
    }
}

fn check_token(projected: &Field<'_, '_>, token: &Field<'_, '_>, causes: &mut Causes) {
    if !token.is_set() {
        return;
    }
    let seconds = token.key("expirationSeconds");
    if seconds.int() < TOKEN_SECONDS_MIN {
        seconds.invalid_as(&seconds.int().into(), "may not specify a duration less than 10 minutes", causes);
    } else if seconds.int() > TOKEN_SECONDS_MAX {
        seconds.invalid("may not specify a duration larger than 2^32 seconds", causes);
    }
    // Upstream reports the path at the volume.
    path::not_reserved(&projected.named("path"), token.key("path").text(), causes);
}

fn check_bundle(bundle: &Field<'_, '_>, causes: &mut Causes) {
    let (given, signer) = (bundle.key("name"), bundle.key("signerName"));
    match (given.is_set(), signer.is_set()) {
        (true, true) => bundle.invalid("only one of name and signerName may be used", causes),
        (false, false) => bundle.required("either name or signerName must be specified", causes),
        (true, false) => {
            if given.text().is_empty() {
                given.required("must be a valid object name", causes);
            } else {
                let plain = given.text().replace(':', ".");
                for fault in name::dns1123_subdomain(&plain) {
                    given.invalid(&format!("not a valid clustertrustbundlename: {fault}"), causes);
                }
            }
            if bundle.key("labelSelector").is_set() {
                bundle.key("labelSelector").invalid("labelSelector must be unset if name is specified", causes);
            }
        }
        (false, true) => {
            if signer.text().is_empty() {
                signer.required("must be a valid signer name", causes);
            }
            selector::check(&bundle.key("labelSelector"), causes);
        }
    }
    let target = bundle.key("path");
    path::not_reserved(&target, target.text(), causes);
}
