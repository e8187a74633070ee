//! Service accounts of pods: the default one, its token as a projected volume, its image pull secrets.

use control_plane_api::{Object, Status};
use serde_json::{Value, json};

use crate::{authz::node, status::Outcome, verb::Call};

const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME: &str = "kube-api-access-";
/// The token in the volume is asked for with this life; kubelets renew it long before.
const TOKEN_SECONDS: i64 = 3607;
const MIRROR: &str = "kubernetes.io/config.mirror";

pub(super) async fn complete(call: &Call, pod: &mut Object) -> Outcome<()> {
    // A mirror pod shows a static one; it has no account and may name no secrets.
    if pod.annotation(MIRROR).is_some() {
        return match node::reference(pod) {
            Some(what) => Err(refused(pod, &format!("a mirror pod may not reference {what}")).into()),
            None => Ok(()),
        };
    }
    let given = pod.str_at(&["spec", "serviceAccountName"]).filter(|name| !name.is_empty());
    let given = given.or_else(|| pod.str_at(&["spec", "serviceAccount"]).filter(|name| !name.is_empty()));
    let name = given.unwrap_or("default").to_owned();
    pod.set(&["spec", "serviceAccountName"], name.as_str());
    pod.set(&["spec", "serviceAccount"], name.as_str());
    let accounts = call.kernel.cache.of("", "serviceaccounts");
    let namespace = pod.namespace().to_owned();
    let mut account = accounts.and_then(|accounts| accounts.get(&namespace, &name));
    if account.is_none() {
        call.kernel.cache.catch_up().await?;
        account = accounts.and_then(|accounts| accounts.get(&namespace, &name));
    }
    let Some(account) = account else {
        let why = format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found");
        return Err(refused(pod, &why).into());
    };
    let account = account.object();
    let own = pod.bool_at(&["spec", "automountServiceAccountToken"]);
    let mounts = own.or_else(|| account.bool_at(&["automountServiceAccountToken"])).unwrap_or(true);
    if mounts {
        mount(pod);
    }
    if pod.list_at(&["spec", "imagePullSecrets"]).is_empty() {
        let secrets = account.list_at(&["imagePullSecrets"]);
        if !secrets.is_empty() {
            pod.set(&["spec", "imagePullSecrets"], secrets.to_vec());
        }
    }
    Ok(())
}

fn refused(pod: &Object, why: &str) -> Status {
    Status::forbidden("", "pods", pod.name(), why)
}

fn mount(pod: &mut Object) {
    let existing = pod.list_at(&["spec", "volumes"]).iter().find_map(|volume| {
        volume.get("name").and_then(Value::as_str).filter(|name| name.starts_with(VOLUME)).map(str::to_owned)
    });
    let name = existing.clone().unwrap_or_else(|| {
        // Five letters of the pod's own UID serve as the random part.
        let random: String = pod.uid().chars().filter(char::is_ascii_alphanumeric).take(5).collect();
        format!("{VOLUME}{random}")
    });
    let mut used = false;
    for list in ["initContainers", "containers"] {
        let mut containers = pod.list_at(&["spec", list]).to_vec();
        for container in &mut containers {
            let Some(container) = container.as_object_mut() else { continue };
            let mounts = container.entry("volumeMounts").or_insert(json!([]));
            if mounts.is_null() {
                *mounts = json!([]);
            }
            let Some(mounts) = mounts.as_array_mut() else { continue };
            if mounts.iter().any(|mount| mount.get("mountPath").and_then(Value::as_str) == Some(MOUNT)) {
                continue;
            }
            mounts.push(json!({"name": name, "readOnly": true, "mountPath": MOUNT}));
            used = true;
        }
        if !containers.is_empty() {
            pod.set(&["spec", list], containers);
        }
    }
    if used && existing.is_none() {
        let mut volumes = pod.list_at(&["spec", "volumes"]).to_vec();
        volumes.push(volume(&name));
        pod.set(&["spec", "volumes"], volumes);
    }
}

fn volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [
            {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_once_in_every_container() {
        let mut pod = Object::from_value(json!({"metadata": {"uid": "0a1b2c3d-x"}, "spec": {
            "initContainers": [{"name": "i"}],
            "containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"name": "own", "mountPath": MOUNT}]}],
        }}))
        .unwrap();
        mount(&mut pod);
        assert_eq!(pod.list_at(&["spec", "volumes"]).len(), 1);
        assert_eq!(pod.list_at(&["spec", "volumes"])[0]["name"], "kube-api-access-0a1b2");
        assert_eq!(pod.list_at(&["spec", "initContainers"])[0]["volumeMounts"][0]["mountPath"], MOUNT);
        assert_eq!(pod.list_at(&["spec", "containers"])[1]["volumeMounts"].as_array().unwrap().len(), 1);
        let once = pod.clone();
        mount(&mut pod);
        assert_eq!(pod, once);
    }
}
