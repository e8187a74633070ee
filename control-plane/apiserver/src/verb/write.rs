//! CREATE, UPDATE and PATCH: every write of a stored object goes through here, the server's own too.
//!
//!     create: decode -> metadata -> defaults -> admission -> strategy -> validate -> claim -> managed fields -> store(Absent)
//!     change: read -> produce -> metadata -> defaults -> admission -> strategy -> validate -> managed fields -> store(At) --conflict--> read
//!
//! Invariant: what is answered is what was stored; a dry run does everything but store.

pub(crate) mod patch;

use std::{collections::BTreeSet, sync::Arc};

use control_plane_api::{Cause, Object, Status, name};
use control_plane_store::{Change, Precondition, Revision, WriteError};
use http::{Response, StatusCode};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};

use super::{
    commit::{self, Commit},
    respond,
};
use crate::{
    admission::{self, Operation},
    behaviour,
    body::Body,
    status::Outcome,
    verb::Call,
};

pub(crate) use patch::serve as patch;

/// Times a change is made again on a newer version before the caller is told that it is contended.
const ATTEMPTS_MAX: usize = 10;
/// Letters that make no words by accident; as upstream's.
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LENGTH: usize = 5;
/// The longest base that a generated name keeps.
const GENERATED_BASE_MAX: usize = 58;

/// Makes a new object. The given one is completed in place.
pub(crate) async fn create(call: &mut Call, object: &mut Object) -> Outcome<Object> {
    let dry_run = call.dry_run()?;
    let manager = call.field_manager()?;
    begin(call, object)?;
    // Before the server adds anything of its own.
    admission::inert::warn_of_fields(call, object, None);
    let generated = object.name().is_empty();
    if generated {
        let base: String = object.generate_name().chars().take(GENERATED_BASE_MAX).collect();
        if base.is_empty() {
            let cause = Cause::required("metadata.name", "name or generateName is required");
            return Err(Status::invalid(call.row.group, call.row.kind, "", vec![cause]).into());
        }
        object.set_name(&format!("{base}{}", suffix()?));
    }
    let mut attempt = 0;
    loop {
        attempt += 1;
        let mut candidate = object.clone();
        match create_once(call, &mut candidate, &manager, dry_run).await {
            Err(failure)
                if generated
                    && failure.0.reason == control_plane_api::Reason::AlreadyExists
                    && attempt < ATTEMPTS_MAX =>
            {
                let base: String = object.generate_name().chars().take(GENERATED_BASE_MAX).collect();
                object.set_name(&format!("{base}{}", suffix()?));
            }
            Err(failure) => return Err(failure),
            Ok(()) => return Ok(candidate),
        }
    }
}

async fn create_once(call: &mut Call, object: &mut Object, manager: &str, dry_run: bool) -> Outcome<()> {
    behaviour::defaults(call.row, object);
    admission::mutate(call, Operation::Create, "", object, None).await?;
    behaviour::prepare_for_create(call.row, object);
    behaviour::defaults(call.row, object);
    behaviour::normalize(call.row, object);
    let causes = behaviour::validate_create(call.row, object);
    if !causes.is_empty() {
        return Err(Status::invalid(call.row.group, call.row.kind, object.name(), causes).into());
    }
    // After validation: giving out takes away what the type has no use for, and that is to be told.
    let claim = call.kernel.allocators.claim_for_create(call.row, object, dry_run)?;
    admission::validate(call, Operation::Create, "", object, None).await?;
    // An applied object brings its fields with it; every other writer's are found by comparing.
    if !call.is_apply() {
        behaviour::track(call, None, object, manager, "");
    }
    let collection = call.collection()?.clone();
    let key = collection.key(object.namespace(), object.name());
    let name = object.name().to_owned();
    let exists = || Status::already_exists(call.row.group, call.row.resource, &name);
    let bytes = commit::bytes(call.row, object, 0)?;
    if dry_run {
        call.kernel.cache.catch_up().await?;
        if collection.snapshot().get(&key).is_some() {
            return Err(exists().into());
        }
        return Ok(());
    }
    let change = Change::Put(bytes);
    let commit = Commit { row: call.row, key, precondition: Precondition::Absent, change, claim, released: None };
    match commit.run(&call.kernel).await {
        Ok(revision) => {
            object.set_resource_version(revision.0);
            Ok(())
        }
        Err(WriteError::Conflict { .. }) => Err(exists().into()),
        Err(WriteError::Store(error)) => Err(error.into()),
    }
}

/// Metadata of a new object: what the path says and what the server gives.
fn begin(call: &Call, object: &mut Object) -> Outcome<()> {
    if !object.resource_version().is_empty() {
        return Err(Status::bad_request("resourceVersion should not be set on objects to be created").into());
    }
    place(call, object)?;
    let now = call.now;
    let metadata = object.metadata_mut();
    for field in ["resourceVersion", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"] {
        metadata.remove(field);
    }
    object.set_uid(&uuid::Uuid::new_v4().to_string());
    object.set_creation_timestamp(now);
    Ok(())
}

/// The object's namespace is the path's.
fn place(call: &Call, object: &mut Object) -> Outcome<()> {
    if !call.row.namespaced {
        object.metadata_mut().remove("namespace");
        return Ok(());
    }
    let given = object.namespace();
    if given.is_empty() {
        let namespace = call.path.namespace.clone();
        object.set_namespace(&namespace);
    } else if given != call.path.namespace {
        let why = "the namespace of the provided object does not match the namespace sent on the request";
        return Err(Status::bad_request(why).into());
    }
    Ok(())
}

fn suffix() -> Outcome<String> {
    let mut bytes = [0; SUFFIX_LENGTH];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Status::internal("the system gives no random bytes"))?;
    let letter = |byte: &u8| char::from(SUFFIX_ALPHABET[usize::from(*byte) % SUFFIX_ALPHABET.len()]);
    Ok(bytes.iter().map(letter).collect())
}

/// Kinds that PUT may bring into being.
const CREATED_BY_UPDATE: [&str; 12] = [
    "endpoints",
    "events",
    "leases",
    "limitranges",
    "services",
    "resourcequotas",
    "roles",
    "rolebindings",
    "clusterroles",
    "clusterrolebindings",
    "priorityclasses",
    "endpointslices",
];

/// Kinds whose PUT must say which version it replaces: upstream's AllowUnconditionalUpdate is false for them.
const NEVER_UNCONDITIONAL: [&str; 6] =
    ["leases", "poddisruptionbudgets", "csinodes", "csidrivers", "volumeattachments", "runtimeclasses"];

pub(crate) async fn update(call: &mut Call, mut sent: Object) -> Outcome<Response<Body>> {
    if sent.name().is_empty() {
        let name = &call.path.name;
        let why = format!("the name of the object ({name} based on URL) was undeterminable: name must be provided");
        return Err(Status::bad_request(why).into());
    }
    check_identity(call, &mut sent)?;
    let conditional = !matches!(sent.resource_version(), "" | "0");
    let must_be_conditional = NEVER_UNCONDITIONAL.contains(&call.row.resource);
    let produce = &mut |call: &mut Call, live: &Object| {
        if must_be_conditional && !conditional {
            let cause = Cause::invalid("metadata.resourceVersion", &json!(0), "must be specified for an update");
            return Err(Status::invalid(call.row.group, call.row.resource, live.name(), vec![cause]).into());
        }
        Ok(sent.clone())
    };
    match change(call, produce).await {
        Err(failure)
            if failure.0.reason == control_plane_api::Reason::NotFound
                && CREATED_BY_UPDATE.contains(&call.row.resource)
                && call.path.subresource.is_empty()
                && sent.uid().is_empty()
                && sent.resource_version().is_empty() =>
        {
            call.kernel.authorizer.require(
                &call.user,
                &crate::authz::Attributes::resource(
                    "create",
                    call.row.group,
                    call.row.resource,
                    &call.path.namespace,
                    &call.path.name,
                ),
            )?;
            let created = create(call, &mut sent).await?;
            respond::object(call, StatusCode::CREATED, &created)
        }
        outcome => respond::object(call, StatusCode::OK, &outcome?),
    }
}

/// Name and namespace in the body are those of the path.
pub(crate) fn check_identity(call: &Call, sent: &mut Object) -> Outcome<()> {
    if sent.name().is_empty() {
        sent.set_name(&call.path.name);
    } else if sent.name() != call.path.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({})",
            sent.name(),
            call.path.name
        ))
        .into());
    }
    place(call, sent)
}

/// What `change` calls to make the new version from the live one.
pub(crate) type Produce<'a> = dyn FnMut(&mut Call, &Object) -> Outcome<Object> + Send + 'a;

/// Changes the object that the path names: reads it, has the new version produced, and stores that unless somebody was quicker.
/// A produced resourceVersion that is not the live one is a conflict; without one the change is made again on what is there.
pub(crate) async fn change(call: &mut Call, produce: &mut Produce<'_>) -> Outcome<Object> {
    let dry_run = call.dry_run()?;
    let manager = call.field_manager()?;
    let collection = call.collection()?.clone();
    let key = collection.key(&call.path.namespace, &call.path.name);
    call.kernel.cache.catch_up().await?;
    for _ in 0..ATTEMPTS_MAX {
        let snapshot = collection.snapshot();
        let cached = snapshot.get(&key).ok_or_else(|| call.not_found())?;
        let mut live = call.in_version(cached);
        // An object of an earlier release may have been stored as it was written.
        behaviour::normalize(call.row, &mut live);
        let mut next = produce(call, &live)?;
        check_preconditions(call, &live, &next)?;
        if call.path.subresource.is_empty() {
            admission::inert::warn_of_fields(call, &next, Some(&live));
        }
        prepare(call, &live, &mut next, &manager).await?;
        if same(&live, &next) {
            return Ok(live);
        }
        let claim = call.kernel.allocators.claim_for_update(call.row, &live, &mut next, dry_run)?;
        // The last finalizer went, or the grace period did: the change completes the deletion.
        let (change, released) = match admission::is_deletion_complete(call.row, &live, &next) {
            true => (Change::Delete, Some(next.clone())),
            false => (Change::Put(commit::bytes(call.row, &next, cached.bytes.len())?), None),
        };
        if dry_run {
            return Ok(next);
        }
        let precondition = Precondition::At(cached.revision);
        let commit = Commit { row: call.row, key: Arc::clone(&key), precondition, change, claim, released };
        match commit.run(&call.kernel).await {
            Ok(revision) => {
                next.set_resource_version(revision.0);
                return Ok(next);
            }
            Err(WriteError::Conflict { current: None }) => return Err(call.not_found().into()),
            Err(WriteError::Conflict { current: Some(current) }) => {
                call.kernel.cache.wait_for(Revision(current.revision.0)).await?;
            }
            Err(WriteError::Store(error)) => return Err(error.into()),
        }
    }
    Err(Status::stale(call.row.group, call.row.resource, &call.path.name).into())
}

fn check_preconditions(call: &Call, live: &Object, next: &Object) -> Outcome<()> {
    let uid = next.uid();
    if !uid.is_empty() && uid != live.uid() {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", live.uid());
        return Err(Status::conflict(call.row.group, call.row.resource, live.name(), &why).into());
    }
    let version = next.resource_version();
    if !version.is_empty() && version != "0" && version != live.resource_version() {
        return Err(Status::stale(call.row.group, call.row.resource, live.name()).into());
    }
    Ok(())
}

/// Everything between the caller's intent and the store.
async fn prepare(call: &mut Call, live: &Object, next: &mut Object, manager: &str) -> Outcome<()> {
    let subresource = call.path.subresource.clone();
    keep_system_metadata(live, next);
    behaviour::defaults(call.row, next);
    admission::mutate(call, Operation::Update, &subresource, next, Some(live)).await?;
    behaviour::prepare_for_update(call.row, next, live, &subresource);
    behaviour::normalize(call.row, next);
    let mut causes = behaviour::validate_update(call.row, next, live, &subresource);
    causes.extend(new_finalizers(live, next));
    if !causes.is_empty() {
        return Err(Status::invalid(call.row.group, call.row.kind, live.name(), causes).into());
    }
    admission::validate(call, Operation::Update, &subresource, next, Some(live)).await?;
    if !call.is_apply() {
        behaviour::track(call, Some(live), next, manager, &subresource);
    }
    Ok(())
}

/// What no caller changes.
fn keep_system_metadata(live: &Object, next: &mut Object) {
    const KEPT: [&str; 8] = [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "selfLink",
        "name",
        "namespace",
    ];
    for field in KEPT {
        match live.metadata().and_then(|metadata| metadata.get(field)) {
            Some(value) => {
                let value = value.clone();
                next.metadata_mut().insert(field.into(), value);
            }
            None => {
                next.metadata_mut().remove(field);
            }
        }
    }
    next.metadata_mut().insert("resourceVersion".into(), live.resource_version().into());
    next.set_type(live.api_version(), live.kind());
}

/// Finalizers may be removed while deleting, never added.
fn new_finalizers(live: &Object, next: &Object) -> Option<Cause> {
    if !live.is_deleting() {
        return None;
    }
    let old = live.finalizers();
    let new: BTreeSet<&str> = next.finalizers().into_iter().filter(|one| !old.contains(one)).collect();
    let list: Vec<String> = new.iter().map(|one| format!("{one:?}")).collect();
    let why = format!(
        "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
        list.join(", ")
    );
    (!new.is_empty()).then(|| Cause::forbidden("metadata.finalizers", &why))
}

/// Whether a change changes nothing but the times in managedFields.
fn same(live: &Object, next: &Object) -> bool {
    let rest_same = || {
        let (one, other) = (live.as_map(), next.as_map());
        one.len() == other.len() && one.iter().all(|(key, value)| key == "metadata" || other.get(key) == Some(value))
    };
    let strip = |object: &Object| -> Value {
        let mut metadata = object.get("metadata").cloned().unwrap_or(json!({}));
        for entry in metadata.get_mut("managedFields").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(entry) = entry.as_object_mut() {
                entry.remove("time");
            }
        }
        metadata
    };
    rest_same() && strip(live) == strip(next)
}

/// A name in the path that no object can have is refused before anything is looked up.
pub(crate) fn check_name(call: &Call, text: &str) -> Outcome<()> {
    let complaints = name::path_segment(text);
    if complaints.is_empty() {
        return Ok(());
    }
    let causes = complaints.iter().map(|why| Cause::invalid_str("metadata.name", text, why)).collect();
    Err(Status::invalid(call.row.group, call.row.kind, text, causes).into())
}

impl Call {
    /// Whether this is a server-side apply, which brings its own managed fields.
    pub(crate) fn is_apply(&self) -> bool {
        self.applies
    }
}
