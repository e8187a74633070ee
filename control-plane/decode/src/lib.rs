//! One object of a list or a watch, decoded alone: one that cannot be read costs its reader nothing but itself.
//!
//! `kube` decodes a list as a whole, so that a single object that does not fit its type (a null in a list, a number where a
//! text belongs) keeps everything else of its kind from every reader. `Api<Decoded<K>>` is read in place of `Api<K>`: each
//! item is cut out of the answer first and decoded by itself. Invariant: decoding a `Decoded` fails only for what is no JSON.
//!
//! ```text
//!   Api<Decoded<K>> ── list, watch ──> Decoded<K> ──┬─> K
//!                                                   └─> Unreadable: who it is and why; `Skipped` says so once
//! ```
//! It holds no policy: whether an unreadable object counts as absent, or as what was last known of it, is its reader's to say.

#![cfg_attr(test, allow(clippy::needless_pass_by_value, reason = "test inputs read better by value"))]

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::runtime::watcher::Event;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use tracing::warn;

/// Objects that `Skipped` remembers to have told of; beyond it, it forgets them all and may tell of one again.
const TOLD_MAX: usize = 4096;
/// Bytes of a decoder's words that are kept: they may quote the object.
const REASON_BYTES_MAX: usize = 512;

/// An object, or the one that could not be read.
#[derive(Clone, Debug)]
pub struct Decoded<K>(Result<K, Box<Unreadable>>);

/// An object that does not fit its type.
#[derive(Clone, Debug)]
pub struct Unreadable {
    /// Name, namespace, uid and resource version; nothing else.
    pub metadata: ObjectMeta,
    pub reason: String,
}

impl<K> Decoded<K> {
    pub fn into_result(self) -> Result<K, Box<Unreadable>> {
        self.0
    }
}

impl<K> From<K> for Decoded<K> {
    fn from(object: K) -> Self {
        Self(Ok(object))
    }
}

/// What `serde_json` calls a value that is wanted as text. A deserializer that does not know it (the buffer of an event whose
/// `object` stands before its `type`) hands on the value itself, which costs a second pass and no more.
const AS_TEXT: &str = "$serde_json::private::RawValue";

impl<'de, K: DeserializeOwned> Deserialize<'de> for Decoded<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_newtype_struct(AS_TEXT, Text(PhantomData))
    }
}

struct Text<K>(PhantomData<K>);

impl<K: DeserializeOwned> Text<K> {
    fn read(text: &str) -> Decoded<K> {
        Decoded(serde_json::from_str(text).map_err(|error| Box::new(Unreadable::new(text, &error))))
    }
}

impl<'de, K: DeserializeOwned> Visitor<'de> for Text<K> {
    type Value = Decoded<K>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if key == AS_TEXT {
                return Ok(Self::read(&map.next_value::<String>()?));
            }
            object.insert(key, map.next_value()?);
        }
        Ok(Self::read(&Value::Object(object).to_string()))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        Ok(Self::read(&Value::deserialize(deserializer)?.to_string()))
    }
}

/// What every object has, whatever else is wrong with it: the API server wrote it.
#[derive(Default, Deserialize)]
struct Head {
    #[serde(default)]
    metadata: Identity,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Identity {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
}

impl Unreadable {
    fn new(text: &str, error: &serde_json::Error) -> Self {
        let Head { metadata: Identity { name, namespace, uid, resource_version } } =
            serde_json::from_str(text).unwrap_or_default();
        let mut reason = error.to_string();
        reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
        Self { metadata: ObjectMeta { name, namespace, uid, resource_version, ..ObjectMeta::default() }, reason }
    }

    /// An object that has nothing but the identity of this one: enough to forget what was known of it.
    fn stand_in<K: DeserializeOwned>(&self) -> Option<K> {
        serde_json::from_value(serde_json::json!({"metadata": self.metadata})).ok()
    }
}

/// A decoded object is addressed as the kind that it is.
impl<K: Resource> Resource for Decoded<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(kind: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(kind)
    }

    fn group(kind: &Self::DynamicType) -> Cow<'_, str> {
        K::group(kind)
    }

    fn version(kind: &Self::DynamicType) -> Cow<'_, str> {
        K::version(kind)
    }

    fn api_version(kind: &Self::DynamicType) -> Cow<'_, str> {
        K::api_version(kind)
    }

    fn plural(kind: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(kind)
    }

    fn metadata_api() -> bool {
        K::metadata_api()
    }

    fn meta(&self) -> &ObjectMeta {
        match &self.0 {
            Ok(object) => object.meta(),
            Err(unreadable) => &unreadable.metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match &mut self.0 {
            Ok(object) => object.meta_mut(),
            Err(unreadable) => &mut unreadable.metadata,
        }
    }
}

/// Says of each version of an object once that its reader skips it.
#[derive(Debug)]
pub struct Skipped {
    reader: &'static str,
    told: HashSet<(Option<String>, Option<String>)>,
    count: u64,
}

impl Skipped {
    /// `reader` is who skips: the part, as its log names it.
    pub fn new(reader: &'static str) -> Self {
        Self { reader, told: HashSet::new(), count: 0 }
    }

    /// How many versions of objects have been skipped.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// True if it was not told before.
    pub fn tell(&mut self, kind: &str, Unreadable { metadata, reason }: &Unreadable) -> bool {
        if self.told.len() >= TOLD_MAX {
            self.told.clear();
        }
        if !self.told.insert((metadata.uid.clone(), metadata.resource_version.clone())) {
            return false;
        }
        self.count = self.count.saturating_add(1);
        let (namespace, name) = (metadata.namespace.as_deref(), metadata.name.as_deref());
        warn!(
            reader = self.reader,
            kind,
            namespace,
            name,
            reason,
            skipped = self.count,
            "an object cannot be read and is skipped"
        );
        true
    }

    /// The object, if it can be read.
    pub fn read<K: Resource<DynamicType = ()>>(&mut self, decoded: Decoded<K>) -> Option<K> {
        match decoded.0 {
            Ok(object) => Some(object),
            Err(unreadable) => {
                self.tell(&K::kind(&()), &unreadable);
                None
            }
        }
    }

    /// The event of a watch without the objects that cannot be read. One that is gone is gone, readable or not: it then has
    /// nothing but its identity.
    pub fn event<K>(&mut self, event: Event<Decoded<K>>) -> Option<Event<K>>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned,
    {
        Some(match event {
            Event::Init => Event::Init,
            Event::InitDone => Event::InitDone,
            Event::InitApply(decoded) => Event::InitApply(self.read(decoded)?),
            Event::Apply(decoded) => Event::Apply(self.read(decoded)?),
            Event::Delete(Decoded(Ok(object))) => Event::Delete(object),
            Event::Delete(Decoded(Err(unreadable))) => Event::Delete(unreadable.stand_in()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Node, Pod, Service};
    use kube::core::{ObjectList, WatchEvent};
    use serde_json::json;

    use super::*;

    fn pod(name: &str, spec: Value) -> Value {
        let metadata = json!({"namespace": "d", "name": name, "uid": name, "resourceVersion": "7"});
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    }

    fn poisoned(name: &str) -> Value {
        let required = json!({"nodeSelectorTerms": [null]});
        let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}});
        pod(name, json!({"containers": [], "affinity": affinity}))
    }

    #[test]
    fn one_unreadable_object_costs_a_list_nothing_else() {
        let items = [pod("a", json!({"containers": []})), poisoned("b"), pod("c", json!({"containers": []}))];
        let text = json!({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": items}).to_string();
        assert!(serde_json::from_str::<ObjectList<Pod>>(&text).is_err(), "or there would be no need of this package");
        let list: ObjectList<Decoded<Pod>> = serde_json::from_str(&text).unwrap();
        let mut skipped = Skipped::new("test");
        let names: Vec<_> =
            list.items.into_iter().filter_map(|item| skipped.read(item)).filter_map(|pod| pod.metadata.name).collect();
        assert_eq!((names, skipped.count()), (vec!["a".to_owned(), "c".to_owned()], 1));
    }

    #[test]
    fn a_watch_event_keeps_who_it_is_about() {
        let check = |object: Value, is_readable: bool| {
            // Whichever stands first.
            for line in [
                format!(r#"{{"type":"MODIFIED","object":{object}}}"#),
                format!(r#"{{"object":{object},"type":"MODIFIED"}}"#),
            ] {
                let event: WatchEvent<Decoded<Pod>> = serde_json::from_str(&line).unwrap();
                let WatchEvent::Modified(decoded) = event else { panic!("{line}") };
                assert_eq!(decoded.meta().resource_version.as_deref(), Some("7"), "a watch goes on from here");
                assert_eq!(decoded.meta().name.as_deref(), Some("a"));
                assert_eq!(decoded.into_result().is_ok(), is_readable);
            }
        };
        check(pod("a", json!({"containers": []})), true);
        check(poisoned("a"), false);
        check(pod("a", json!("no object")), false);
        let mut no_finalizer = pod("a", json!({"containers": []}));
        no_finalizer["metadata"]["finalizers"] = json!([null]);
        check(no_finalizer, false);
    }

    #[test]
    fn each_version_is_told_once() {
        let unreadable = |version: &str| {
            let mut object = poisoned("a");
            object["metadata"]["resourceVersion"] = version.into();
            serde_json::from_value::<Decoded<Pod>>(object).unwrap().into_result().unwrap_err()
        };
        let mut skipped = Skipped::new("test");
        let told = ["1", "1", "2", "1"].map(|version| skipped.tell("Pod", &unreadable(version)));
        assert_eq!(told, [true, false, true, false]);
    }

    #[test]
    fn what_is_gone_is_gone_readable_or_not() {
        fn check<K: Resource<DynamicType = ()> + DeserializeOwned>() {
            let object = json!({"metadata": {"namespace": "d", "name": "a", "uid": "u", "resourceVersion": "7"}, "spec": 1, "status": 1});
            let decoded = serde_json::from_value::<Decoded<K>>(object).unwrap();
            let Some(Event::Delete(gone)) = Skipped::new("test").event(Event::Delete(decoded)) else {
                panic!("{} is lost", K::kind(&()))
            };
            assert_eq!(gone.meta().uid.as_deref(), Some("u"));
        }
        check::<Pod>();
        check::<Node>();
        check::<Service>();
    }
}
