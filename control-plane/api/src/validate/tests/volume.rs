//! Rules of a pod's volumes.

use serde_json::{Value, json};

use super::rules;

#[track_caller]
fn check(table: &[super::Rule<'_>]) {
    let base = json!({"metadata": {"name": "p"}, "spec": {"serviceAccountName": "a", "volumes": [{"name": "v", "emptyDir": {}}],
        "containers": [{"name": "c", "image": "i"}]}});
    rules("", "v1", "pods", &base, table);
}

fn volume(source: Value) -> Value {
    let mut volume = source;
    volume["name"] = "v".into();
    volume
}

const AT: &str = "/spec/volumes/0";

#[test]
fn every_volume() {
    check(&[
        ("a volume has a name", "ValidateVolumes", "/spec/volumes/0/name", json!(""), "spec.volumes[0].name Required"),
        ("a name is a label", "ValidateVolumes", "/spec/volumes/0/name", json!("a.b"), "spec.volumes[0].name Invalid"),
        ("names are unique", "ValidateVolumes", "/spec/volumes/1", json!({"name": "v", "emptyDir": {}}), "spec.volumes[1].name Duplicate"),
        ("a volume has one source", "validateVolumeSource", AT, volume(json!({"emptyDir": {}, "hostPath": {"path": "/x"}})), "spec.volumes[0].hostPath Forbidden"),
        ("without a source it is an empty directory", "SetDefaults_Volume", AT, volume(json!({})), ""),
    ]);
}

#[test]
fn directories_and_disks() {
    let at = "spec.volumes[0]";
    check(&[
        ("a size is not negative", "validateVolumeSource", AT, volume(json!({"emptyDir": {"sizeLimit": "-1"}})), &format!("{at}.emptyDir.sizeLimit Forbidden")),
        ("a path of the host is given", "validateHostPathVolumeSource", AT, volume(json!({"hostPath": {"path": ""}})), &format!("{at}.hostPath.path Required")),
        ("a path of the host does not lead upwards", "validatePathNoBacksteps", AT, volume(json!({"hostPath": {"path": "/a/../b"}})), &format!("{at}.hostPath.path Invalid")),
        ("a path of the host is of a known type", "validateHostPathType", AT, volume(json!({"hostPath": {"path": "/a", "type": "X"}})), &format!("{at}.hostPath.type NotSupported")),
        ("a path of a share is absolute", "validateNFSVolumeSource", AT, volume(json!({"nfs": {"server": "s", "path": "a"}})), &format!("{at}.nfs.path Invalid")),
        ("a share has a server", "validateNFSVolumeSource", AT, volume(json!({"nfs": {"server": "", "path": "/a"}})), &format!("{at}.nfs.server Required")),
        ("a claim has a name", "validatePersistentClaimVolumeSource", AT, volume(json!({"persistentVolumeClaim": {"claimName": ""}})), &format!("{at}.persistentVolumeClaim.claimName Required")),
        ("a repository's directory stays below", "validateGitRepoVolumeSource", AT, volume(json!({"gitRepo": {"repository": "r", "directory": "../a"}})), &format!("{at}.gitRepo.directory Invalid")),
        ("a partition is of 0 to 255", "validateGCEPersistentDiskVolumeSource", AT, volume(json!({"gcePersistentDisk": {"pdName": "d", "partition": 256}})), &format!("{at}.gcePersistentDisk.partition Invalid")),
        ("a target's name is of a known form", "validateISCSIVolumeSource", AT, volume(json!({"iscsi": {"targetPortal": "p", "iqn": "x", "lun": 0}})), &format!("{at}.iscsi.iqn Invalid")),
        ("a unit is of 0 to 255", "validateISCSIVolumeSource", AT, volume(json!({"iscsi": {"targetPortal": "p", "iqn": "iqn.2015-02.example.com:test", "lun": 256}})), &format!("{at}.iscsi.lun Invalid")),
        ("who authenticates has a secret", "validateISCSIVolumeSource", AT, volume(json!({"iscsi": {"targetPortal": "p", "iqn": "iqn.2015-02.example.com:test", "lun": 0, "chapAuthSession": true}})), &format!("{at}.iscsi.secretRef Required")),
        ("a channel has names or ids", "validateFCVolumeSource", AT, volume(json!({"fc": {"lun": 1}})), &format!("{at}.fc.targetWWNs Required")),
        ("a channel's names have a unit", "validateFCVolumeSource", AT, volume(json!({"fc": {"targetWWNs": ["a"]}})), &format!("{at}.fc.lun Required")),
        ("a dataset is named once", "validateFlockerVolumeSource", AT, volume(json!({"flocker": {"datasetName": "a", "datasetUUID": "b"}})), &format!("{at}.flocker Invalid")),
        ("reserved options are not set", "validateFlexVolumeSource", AT, volume(json!({"flexVolume": {"driver": "d", "options": {"x.kubernetes.io/a": "b"}}})), &format!("{at}.flexVolume.options[x.kubernetes.io/a] Invalid")),
        ("a disk is cached in known ways", "validateAzureDisk", AT, volume(json!({"azureDisk": {"diskName": "d", "diskURI": "https://d", "cachingMode": "X"}})), &format!("{at}.azureDisk.cachingMode NotSupported")),
        ("a driver's name is one", "ValidateCSIDriverName", AT, volume(json!({"csi": {"driver": "a b"}})), &format!("{at}.csi.driver Invalid")),
        ("a driver's secret has a name", "validateCSIVolumeSource", AT, volume(json!({"csi": {"driver": "d", "nodePublishSecretRef": {}}})), &format!("{at}.csi.nodePublishSecretRef.name Required")),
        ("an image has a reference", "validateImageVolumeSource", AT, volume(json!({"image": {"reference": ""}})), &format!("{at}.image.reference Required")),
        ("an image is pulled in one of three ways", "validateImageVolumeSource", AT, volume(json!({"image": {"reference": "i", "pullPolicy": "X"}})), &format!("{at}.image.pullPolicy NotSupported")),
        ("a claim of its own has a template", "validateEphemeralVolumeSource", AT, volume(json!({"ephemeral": {}})), &format!("{at}.ephemeral.volumeClaimTemplate Required")),
        ("a template has no name", "ValidatePersistentVolumeClaimTemplate", AT, volume(json!({"ephemeral": {"volumeClaimTemplate": {"metadata": {"name": "x"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}}})), &format!("{at}.ephemeral.volumeClaimTemplate.metadata.name Forbidden")),
        ("a claim that comes into being is not named", "ValidateVolumes", "/spec/volumes", json!([
            {"name": "e", "ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}}},
            {"name": "v", "persistentVolumeClaim": {"claimName": "p-e"}}]), "spec.volumes[1].persistentVolumeClaim.claimName Invalid"),
    ]);
}

#[test]
fn files_from_the_api() {
    let at = "spec.volumes[0]";
    let projected = |source: Value| volume(json!({"projected": {"sources": [source]}}));
    let keys = |path: &str| json!([{"key": "k", "path": path}]);
    let downward = |item: Value| volume(json!({"downwardAPI": {"items": [item]}}));
    check(&[
        ("a Secret has a name", "validateSecretVolumeSource", AT, volume(json!({"secret": {}})), &format!("{at}.secret.secretName Required")),
        ("a ConfigMap has a name", "validateConfigMapVolumeSource", AT, volume(json!({"configMap": {}})), &format!("{at}.configMap.name Required")),
        ("a mode is of nine bits", "validateSecretVolumeSource", AT, volume(json!({"secret": {"secretName": "s", "defaultMode": 512}})), &format!("{at}.secret.defaultMode Invalid")),
        ("a mode is not negative", "validateConfigMapVolumeSource", AT, volume(json!({"configMap": {"name": "s", "defaultMode": -1}})), &format!("{at}.configMap.defaultMode Invalid")),
        ("a file's path is relative", "validateKeyToPath", AT, volume(json!({"secret": {"secretName": "s", "items": keys("/a")}})), &format!("{at}.secret.items[0].path Invalid")),
        ("a file's path stays below", "validateKeyToPath", AT, volume(json!({"secret": {"secretName": "s", "items": keys("a/../../b")}})), &format!("{at}.secret.items[0].path Invalid")),
        ("a file's path is not the kubelet's", "ValidateLocalNonReservedPath", AT, volume(json!({"secret": {"secretName": "s", "items": keys("..data")}})), &format!("{at}.secret.items[0].path Invalid")),
        ("a file's mode is of nine bits", "validateKeyToPath", AT, volume(json!({"secret": {"secretName": "s", "items": [{"key": "k", "path": "p", "mode": 512}]}})), &format!("{at}.secret.items[0].mode Invalid")),
        ("a file holds something", "validateDownwardAPIVolumeFile", AT, downward(json!({"path": "p"})), &format!("{at}.downwardAPI Required")),
        ("a file holds one thing", "validateDownwardAPIVolumeFile", AT, downward(json!({"path": "p", "fieldRef": {"fieldPath": "metadata.name"}, "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu"}})), &format!("{at}.downwardAPI Invalid")),
        ("a file holds a field that files may", "validateObjectFieldSelector", AT, downward(json!({"path": "p", "fieldRef": {"fieldPath": "status.podIP"}})), &format!("{at}.downwardAPI.items[0].fieldRef.fieldPath NotSupported")),
        ("a file names the container", "validateContainerResourceFieldSelector", AT, downward(json!({"path": "p", "resourceFieldRef": {"resource": "limits.cpu"}})), &format!("{at}.downwardAPI.items[0].resourceFieldRef.containerName Required")),
        ("a file's path stays below", "validateDownwardAPIVolumeFile", AT, downward(json!({"path": "../p", "fieldRef": {"fieldPath": "metadata.name"}})), &format!("{at}.downwardAPI.path Invalid")),
        ("a projected Secret has a name", "validateProjectionSources", AT, projected(json!({"secret": {}})), &format!("{at}.projected.sources[0].secret.name Required")),
        ("a source is of one kind", "validateProjectionSources", AT, projected(json!({"secret": {"name": "a"}, "configMap": {"name": "a"}})), &format!("{at}.projected.sources[0] Forbidden")),
        ("paths are unique", "validateProjectionSources", AT, projected(json!({"secret": {"name": "a", "items": [{"key": "a", "path": "p"}, {"key": "b", "path": "p"}]}})), &format!("{at}.projected Invalid")),
        ("a token's path stays below", "validateProjectionSources", AT, projected(json!({"serviceAccountToken": {"path": "../../x"}})), &format!("{at}.projected.path Invalid")),
        ("a token lives ten minutes", "validateProjectionSources", AT, projected(json!({"serviceAccountToken": {"path": "t", "expirationSeconds": 599}})), &format!("{at}.projected.sources[0].serviceAccountToken.expirationSeconds Invalid")),
        ("a token does not live for ever", "validateProjectionSources", AT, projected(json!({"serviceAccountToken": {"path": "t", "expirationSeconds": i64::MAX}})), &format!("{at}.projected.sources[0].serviceAccountToken.expirationSeconds Invalid")),
        ("a bundle is found by one thing", "validateProjectionSources", AT, projected(json!({"clusterTrustBundle": {"path": "b"}})), &format!("{at}.projected.sources[0].clusterTrustBundle Required")),
        ("a mode is of nine bits", "validateProjectedVolumeSource", AT, volume(json!({"projected": {"defaultMode": 512, "sources": []}})), &format!("{at}.projected.defaultMode Invalid")),
    ]);
}

#[test]
fn persistent_volumes_and_claims() {
    let claim = json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let rule = "ValidatePersistentVolumeClaimSpec";
    rules("", "v1", "persistentvolumeclaims", &claim, &[
        ("a mode is given", rule, "/spec/accessModes", json!([]), "spec.accessModes Required"),
        ("a mode is one of four", rule, "/spec/accessModes", json!(["X"]), "spec.accessModes NotSupported"),
        ("one pod means one mode", rule, "/spec/accessModes", json!(["ReadWriteOnce", "ReadWriteOncePod"]), "spec.accessModes Forbidden"),
        ("a size is given", rule, "/spec/resources", json!({}), "spec.resources[storage] Required"),
        ("a size is positive", "ValidatePositiveQuantityValue", "/spec/resources/requests", json!({"storage": "0"}), "spec.resources[storage] Invalid"),
        ("a class' name is a subdomain", rule, "/spec/storageClassName", json!("A"), "spec.storageClassName Invalid"),
        ("a volume is of one of two modes", rule, "/spec/volumeMode", json!("X"), "spec.volumeMode NotSupported"),
        ("a selector is one", "ValidateLabelSelector", "/spec/selector", json!({"matchExpressions": [{"key": "a", "operator": "X"}]}), "spec.selector.matchExpressions[0].operator Invalid"),
        ("a source of the core is a claim", "validateDataSource", "/spec/dataSource", json!({"kind": "Pod", "name": "p"}), "spec.dataSource Invalid"),
    ]);
    super::changes(("", "v1", "persistentvolumeclaims"), "", &claim, &[
        ("a volume is given once", "ValidatePersistentVolumeClaimUpdate", "/spec/volumeName", json!("v"), ""),
        ("the modes stay", "ValidatePersistentVolumeClaimUpdate", "/spec/accessModes", json!(["ReadOnlyMany"]), "spec Forbidden"),
    ]);
    let rule = "ValidatePersistentVolumeSpec";
    let volume = json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/x"}}});
    rules("", "v1", "persistentvolumes", &volume, &[
        ("a mode is given", rule, "/spec/accessModes", json!([]), "spec.accessModes Required"),
        ("a capacity is given", rule, "/spec/capacity", json!({}), "spec.capacity Required; spec.capacity NotSupported"),
        ("a capacity is storage", rule, "/spec/capacity", json!({"cpu": "1"}), "spec.capacity NotSupported"),
        ("a capacity is positive", rule, "/spec/capacity", json!({"storage": "-1"}), "spec.capacity[storage] Invalid"),
        ("a source is given", rule, "/spec/hostPath", Value::Null, "spec Required"),
        ("one source is given", rule, "/spec/nfs", json!({"server": "s", "path": "/a"}), "spec.nfs Forbidden"),
        ("it is reclaimed in one of three ways", rule, "/spec/persistentVolumeReclaimPolicy", json!("X"), "spec.persistentVolumeReclaimPolicy NotSupported"),
        ("the root of the host is not recycled", rule, "/spec", json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/"}, "persistentVolumeReclaimPolicy": "Recycle"}), "spec.persistentVolumeReclaimPolicy Forbidden"),
        ("what is in one place says where", rule, "/spec", json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "local": {"path": "/x"}}), "spec.nodeAffinity Required"),
        ("where is said by terms", "validateVolumeNodeAffinity", "/spec/nodeAffinity", json!({}), "spec.nodeAffinity.required Required"),
    ]);
    super::changes(("", "v1", "persistentvolumes"), "", &volume, &[
        ("the source stays", "ValidatePersistentVolumeUpdate", "/spec/hostPath/path", json!("/y"), "spec.persistentvolumesource Forbidden"),
        ("the capacity may change", "ValidatePersistentVolumeUpdate", "/spec/capacity/storage", json!("2Gi"), ""),
    ]);
    let class = json!({"provisioner": "a.b/c"});
    rules("storage.k8s.io", "v1", "storageclasses", &class, &[
        ("a provisioner is given", "validateProvisioner", "/provisioner", json!(""), "provisioner Required"),
        ("a provisioner is a qualified name", "validateProvisioner", "/provisioner", json!("a b"), "provisioner Invalid"),
        ("it is reclaimed in one of two ways", "validateReclaimPolicy", "/reclaimPolicy", json!("Recycle"), "reclaimPolicy NotSupported"),
        ("it is bound in one of two ways", "validateVolumeBindingMode", "/volumeBindingMode", json!("X"), "volumeBindingMode NotSupported"),
    ]);
    super::changes(("storage.k8s.io", "v1", "storageclasses"), "", &class, &[
        ("the provisioner stays", "ValidateStorageClassUpdate", "/provisioner", json!("a.b/d"), "provisioner Forbidden"),
        ("the parameters stay", "ValidateStorageClassUpdate", "/parameters", json!({"a": "b"}), "parameters Forbidden"),
    ]);
}
