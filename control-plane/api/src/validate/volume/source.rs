//! The sources of volumes, one by one. Names that only have to be there are the schema's business (`required.rs`).

use serde_json::Value;

use super::projected;
use crate::name;
use crate::validate::field::Field;
use crate::validate::{Causes, metadata, path, storage, syntax};

/// Where a path of the host may lead.
const HOST_PATH_TYPES: &[&str] =
    &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
/// The portal of an iSCSI target and a volume's name have this many bytes together.
const PORTAL_BYTES_MAX: usize = 64;
const TENANT_BYTES_MAX: usize = 64;

pub(super) fn check(kind: &str, volume: &Field<'_, '_>, pod: &str, is_pod: bool, causes: &mut Causes) {
    let source = volume.key(kind);
    match kind {
        "emptyDir" => {
            if source.key("sizeLimit").quantity().is_some_and(crate::Quantity::is_negative) {
                source.key("sizeLimit").forbidden("SizeLimit field must be a valid resource quantity", causes);
            }
        }
        "hostPath" => check_host_path(&source, causes),
        "secret" | "configMap" => {
            let given = source.key(if kind == "secret" { "secretName" } else { "name" });
            if given.text().is_empty() {
                given.required("", causes);
            }
            super::mode(&source.key("defaultMode"), causes);
            projected::check_keys(&source.key("items"), causes);
        }
        "downwardAPI" => {
            super::mode(&source.key("defaultMode"), causes);
            projected::check_downward(&source, causes);
        }
        "projected" => projected::check(&source, causes),
        "gitRepo" => {
            let directory = source.key("directory");
            path::descending(&directory, directory.text(), causes);
        }
        "csi" => check_csi(&source, causes),
        "ephemeral" => check_ephemeral(volume, &source, pod, causes),
        "image" => {
            if is_pod && source.key("reference").text().is_empty() {
                source.key("reference").required("", causes);
            }
            source.key("pullPolicy").one_of(&["Always", "IfNotPresent", "Never"], causes);
        }
        _ => check_network_source(kind, &source, volume.key("name").text(), causes),
    }
}

pub(in crate::validate) fn check_host_path(source: &Field<'_, '_>, causes: &mut Causes) {
    let given = source.key("path");
    if given.text().is_empty() {
        return;
    }
    path::no_backsteps(&given, given.text(), causes);
    source.key("type").one_of_if_set(HOST_PATH_TYPES, causes);
}

pub(in crate::validate) fn check_csi_driver(driver: &Field<'_, '_>, causes: &mut Causes) {
    driver.may_be(syntax::driver, causes);
}

fn check_csi(source: &Field<'_, '_>, causes: &mut Causes) {
    check_csi_driver(&source.key("driver"), causes);
    let secret = source.key("nodePublishSecretRef");
    if secret.is_set() && secret.key("name").text().is_empty() {
        secret.key("name").required("", causes);
    }
}

fn check_ephemeral(volume: &Field<'_, '_>, source: &Field<'_, '_>, pod: &str, causes: &mut Causes) {
    let template = source.key("volumeClaimTemplate");
    if !template.is_set() {
        template.required("", causes);
        return;
    }
    let inner = template.key("metadata");
    for (key, value) in inner.entries() {
        if !["labels", "annotations", "creationTimestamp"].contains(&key) && !metadata::is_nothing(value.value) {
            inner.key(key).forbidden("cannot be set", causes);
        }
    }
    metadata::check_template(&template, causes);
    storage::check_claim(&template.key("spec"), causes);
    let given = volume.key("name").text();
    if !pod.is_empty() && !given.is_empty() {
        let claim = format!("{pod}-{given}");
        for fault in name::dns1123_subdomain(&claim) {
            let detail = format!("PVC name {claim:?}: {fault}");
            volume.key("name").invalid(&detail, causes);
        }
    }
}

fn iscsi_name(name: &Field<'_, '_>, causes: &mut Causes) {
    let text = name.text();
    if text.is_empty() {
        return;
    }
    let letters =
        |rest: &str, count: usize| rest.len() == count && rest.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let sound = match text.split_once('.') {
        Some(("iqn", rest)) => {
            let (date, rest) = rest.split_once('.').unwrap_or((rest, ""));
            let digits =
                |part: &str, count: usize| part.len() == count && part.bytes().all(|byte| byte.is_ascii_digit());
            let dated = date.split_once('-').is_some_and(|(year, month)| digits(year, 4) && digits(month, 2));
            dated && rest.contains(':') && !rest.contains([',', ';', '*', '&', '$', '|', ' '])
        }
        Some(("eui", rest)) => letters(rest, 16),
        Some(("naa", rest)) => letters(rest, 32),
        _ => return name.invalid("must be valid format starting with iqn, eui, or naa", causes),
    };
    if !sound {
        name.invalid("must be valid format", causes);
    }
}

fn check_iscsi(source: &Field<'_, '_>, volume: &str, causes: &mut Causes) {
    iscsi_name(&source.key("iqn"), causes);
    source.key("lun").within(&(0..=255), causes);
    let authenticates = source.key("chapAuthDiscovery").is_true() || source.key("chapAuthSession").is_true();
    if authenticates && !source.key("secretRef").is_set() {
        source.key("secretRef").required("", causes);
    }
    let initiator = source.key("initiatorName");
    if initiator.is_set() {
        iscsi_name(&initiator, causes);
        let portal = source.key("targetPortal").text();
        if volume.len().saturating_add(portal.len()).saturating_add(1) > PORTAL_BYTES_MAX {
            let detail = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";
            source.key("targetportal").invalid_as(&portal.into(), detail, causes);
        }
    }
}

fn check_fibre_channel(source: &Field<'_, '_>, causes: &mut Causes) {
    let (names, ids, lun) = (source.key("targetWWNs"), source.key("wwids"), source.key("lun"));
    match (names.list().is_empty(), ids.list().is_empty()) {
        (true, true) => names.required("must specify either targetWWNs or wwids, but not both", causes),
        (false, false) => names.invalid("targetWWNs and wwids can not be specified simultaneously", causes),
        _ => {}
    }
    if !names.list().is_empty() {
        if lun.is_set() {
            lun.within(&(0..=255), causes);
        } else {
            lun.required("lun is required if targetWWNs is specified", causes);
        }
    }
}

fn check_azure_disk(source: &Field<'_, '_>, causes: &mut Causes) {
    source.key("cachingMode").one_of_if_set(&["None", "ReadOnly", "ReadWrite"], causes);
    let (kind, uri) = (source.key("kind"), source.key("diskURI"));
    kind.one_of_if_set(&["Dedicated", "Managed", "Shared"], causes);
    let managed = &["/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}"];
    let blob = &["https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd"];
    match kind.text() {
        "Managed" if !uri.text().starts_with("/subscriptions/") => uri.unsupported(managed, causes),
        "Shared" | "Dedicated" if !uri.text().starts_with("https://") => uri.unsupported(blob, causes),
        _ => {}
    }
}

/// Sources that volumes of pods and persistent volumes share: disks and shares of a network.
pub(in crate::validate) fn check_network_source(kind: &str, source: &Field<'_, '_>, volume: &str, causes: &mut Causes) {
    match kind {
        "nfs" => {
            let given = source.key("path");
            if !given.text().starts_with('/') {
                given.invalid_as(&given.text().into(), "must be an absolute path", causes);
            }
        }
        "gcePersistentDisk" | "awsElasticBlockStore" => {
            let partition = source.key("partition");
            if !(0..=255).contains(&partition.int()) {
                partition.invalid("must be between 1 and 255, inclusive", causes);
            }
        }
        "iscsi" => check_iscsi(source, volume, causes),
        "fc" => check_fibre_channel(source, causes),
        "azureDisk" => check_azure_disk(source, causes),
        "flocker" => {
            let (name, id) = (source.key("datasetName"), source.key("datasetUUID"));
            match (name.text().is_empty(), id.text().is_empty()) {
                (true, true) => source.required("one of datasetName and datasetUUID is required", causes),
                (false, false) => {
                    let detail = "datasetName and datasetUUID can not be specified simultaneously";
                    source.invalid_as(&"resource".into(), detail, causes);
                }
                _ => {}
            }
            if name.text().contains('/') {
                name.invalid("must not contain '/'", causes);
            }
        }
        "quobyte" => check_quobyte(source, causes),
        "flexVolume" => {
            let options = source.key("options");
            for (key, option) in options.entries() {
                let domain = format!(".{}", key.split('/').next().unwrap_or(key).to_lowercase());
                if [".kubernetes.io", ".k8s.io"].iter().any(|own| domain.ends_with(own)) {
                    let detail = "kubernetes.io and k8s.io namespaces are reserved";
                    option.invalid_as(&key.into(), detail, causes);
                }
            }
        }
        "cinder" | "rbd" | "cephfs" | "scaleIO" | "storageos" => {
            if kind == "storageos" {
                source.key("volumeName").must_be(name::dns1123_label, causes);
            }
            let secret = source.key("secretRef");
            let named = ["cinder", "storageos"].contains(&kind);
            if named && secret.is_set() && secret.key("name").text().is_empty() {
                secret.key("name").required("", causes);
            } else if kind == "scaleIO" && !secret.is_set() {
                secret.required("", causes);
            }
        }
        _ => {}
    }
}

fn check_quobyte(source: &Field<'_, '_>, causes: &mut Causes) {
    const PAIRS: &str = "must be a host:port pair or multiple pairs separated by commas";
    let registry = source.key("registry");
    if source.key("tenant").text().len() > TENANT_BYTES_MAX {
        let detail = "must be a UUID and may not exceed a length of 64 characters";
        source.key("tenant").required(detail, causes);
    }
    let sound = registry.text().split(',').all(|pair| pair.rsplit_once(':').is_some());
    if !sound && registry.value != &Value::Null {
        registry.invalid(PAIRS, causes);
    }
}
