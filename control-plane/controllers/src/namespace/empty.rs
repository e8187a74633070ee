//! One sweep of a namespace that ends: what is in it is deleted, what remains is counted, and its conditions say so.
//!
//! Pods go first and alone: a policy, a Secret or a Service that guards or serves them must not go before them (KEP-5080).
//! Invariant: judged by what the API server lists now, never by what an earlier sweep did.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::FINALIZER;
use super::conditions::{self, Remaining};
use crate::garbage::resource_of;
use crate::kind::Kind;

/// Metadata in one answer while the remaining objects are counted.
const PAGE: u32 = 500;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{what} of namespace {namespace}")]
    Api { what: String, namespace: String, source: Box<kube::Error> },
    /// Nothing is wrong: it is looked at again.
    #[error("namespace {namespace} still has {what}")]
    Remains { namespace: String, what: String },
    #[error("the namespace changed meanwhile")]
    Conflict,
}

/// Deletes and counts; the namespace itself goes when nothing is left.
pub(crate) async fn run(client: &kube::Client, name: &str) -> Result<(), Error> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |source| Error::Api { what, namespace: name.to_owned(), source: Box::new(source) }
    };
    let namespaces: Api<DynamicObject> = Api::all_with(client.clone(), &Kind::Namespace.resource());
    let Some(namespace) = namespaces.get_opt(name).await.map_err(failed("get"))? else { return Ok(()) };
    if namespace.metadata.deletion_timestamp.is_none() || !finalizers(&namespace).iter().any(|one| one == FINALIZER) {
        return Ok(());
    }
    let mut remaining = Remaining::default();
    let (pods, others): (Vec<ApiResource>, Vec<ApiResource>) =
        contents().partition(|resource| resource.plural == "pods" && resource.group.is_empty());
    sweep(client, name, pods, &mut remaining).await;
    if remaining.is_empty() {
        sweep(client, name, others, &mut remaining).await;
    }
    write_conditions(&namespaces, &namespace, &remaining).await.map_err(failed("write the conditions"))?;
    if let Some(what) = remaining.summary() {
        return Err(Error::Remains { namespace: name.to_owned(), what });
    }
    finalize(&namespaces, name).await
}

/// Every kind that lives in a namespace and can be deleted.
fn contents() -> impl Iterator<Item = ApiResource> {
    let rows = control_plane_api::rows().iter().filter(|row| {
        row.namespaced && row.has_verb("deletecollection") && row.storage_api_version() == row.api_version()
    });
    rows.map(resource_of)
}

async fn sweep(client: &kube::Client, namespace: &str, resources: Vec<ApiResource>, remaining: &mut Remaining) {
    for resource in resources {
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
        if let Err(error) = delete_and_count(&api, &resource, remaining).await {
            remaining.fail(&resource, &error);
        }
    }
}

async fn delete_and_count(
    api: &Api<DynamicObject>,
    resource: &ApiResource,
    remaining: &mut Remaining,
) -> Result<(), kube::Error> {
    if is_empty(api).await? {
        return Ok(());
    }
    api.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let list = api.list_metadata(&page).await?;
        for object in &list.items {
            remaining.count(resource, object.metadata.finalizers.as_deref().unwrap_or_default());
        }
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = ListParams::default().limit(PAGE).continue_token(&token),
            None => return Ok(()),
        }
    }
}

async fn is_empty(api: &Api<DynamicObject>) -> Result<bool, kube::Error> {
    Ok(api.list_metadata(&ListParams::default().limit(1)).await?.items.is_empty())
}

fn finalizers(namespace: &DynamicObject) -> Vec<String> {
    let list = namespace.data.pointer("/spec/finalizers").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).map(String::from).collect()
}

async fn write_conditions(
    namespaces: &Api<DynamicObject>,
    namespace: &DynamicObject,
    remaining: &Remaining,
) -> Result<(), kube::Error> {
    let old = namespace.data.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    let Some(conditions) = conditions::updated(&old, remaining, Timestamp::now()) else { return Ok(()) };
    let metadata = json!({"uid": namespace.metadata.uid, "resourceVersion": namespace.metadata.resource_version});
    let patch = json!({"metadata": metadata, "status": {"conditions": conditions}});
    let name = namespace.metadata.name.clone().unwrap_or_default();
    match namespaces.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(()),
        // Somebody wrote meanwhile: the next sweep says it.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(error),
    }
}

/// PUT of what the API server has now, without our finalizer.
async fn finalize(namespaces: &Api<DynamicObject>, name: &str) -> Result<(), Error> {
    let failed = |source| Error::Api { what: "finalize".into(), namespace: name.to_owned(), source: Box::new(source) };
    let Some(mut live) = namespaces.get_opt(name).await.map_err(failed)? else { return Ok(()) };
    let others: Vec<String> = finalizers(&live).into_iter().filter(|one| one != FINALIZER).collect();
    live.data["spec"]["finalizers"] = json!(others);
    let body: BTreeMap<String, Value> = match serde_json::to_value(&live) {
        Ok(Value::Object(map)) => map.into_iter().collect(),
        _ => return Ok(()),
    };
    match namespaces.replace_subresource("finalize", name, &PostParams::default(), &body).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Err(Error::Conflict),
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_in_a_namespace_is_swept() {
        let plurals: Vec<String> = contents().map(|resource| resource.plural).collect();
        for wanted in ["pods", "configmaps", "secrets", "deployments", "replicasets", "services", "events", "leases"] {
            assert!(plurals.iter().any(|plural| plural == wanted), "{wanted} of {plurals:?}");
        }
        assert!(!plurals.iter().any(|plural| plural == "nodes"));
    }
}
