//! An API server in memory, as a `tower` service below the `kube` client: objects by path, watches, merge patches, deletion with
//! grace. No more of its rules than the kubelet leans on.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::broadcast;

#[derive(Default)]
struct World {
    revision: u64,
    /// By collection path and name.
    objects: BTreeMap<(String, String), Value>,
    down: bool,
    status_patches: usize,
    tokens: usize,
    /// Requests about this object panic in the caller's own task.
    panics_at: Option<String>,
    /// Watches from before this revision are refused.
    compacted: u64,
    /// Nobody is told of changes.
    deaf: bool,
}

#[derive(Clone)]
pub(crate) struct Api {
    world: Arc<Mutex<World>>,
    changes: Arc<Mutex<broadcast::Sender<Change>>>,
}

/// Collection path, type of event, object.
type Change = (String, &'static str, Value);

type Answer = Response<http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>>;

fn reply(code: u16, value: &Value) -> Answer {
    let body = Full::new(Bytes::from(value.to_string())).boxed_unsync();
    Response::builder().status(code).header("content-type", "application/json").body(body).unwrap()
}

fn failure(code: u16, reason: &str) -> Answer {
    reply(
        code,
        &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": reason, "code": code}),
    )
}

/// `(collection, name, subresource)`: collections have an odd place in the path.
fn split(path: &str) -> (String, Option<String>, Option<String>) {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let root = if parts[0] == "api" { 2 } else { 3 };
    let namespaced = parts.get(root) == Some(&"namespaces") && parts.len() > root + 2;
    let kind = if namespaced { root + 2 } else { root };
    let name = parts.get(kind + 1).map(|s| (*s).to_owned());
    (parts[..=kind].join("/"), name, parts.get(kind + 2).map(|s| (*s).to_owned()))
}

fn merge(target: &mut Value, change: &Value) {
    match (target, change) {
        (Value::Object(target), Value::Object(change)) => {
            for (key, value) in change {
                match (key.as_str(), value) {
                    (_, Value::Null) => drop(target.remove(key)),
                    ("conditions", Value::Array(new)) => {
                        let list = target.entry(key).or_insert(json!([]));
                        let list = list.as_array_mut().unwrap();
                        for condition in new {
                            list.retain(|c| c["type"] != condition["type"]);
                            list.push(condition.clone());
                        }
                    }
                    _ => merge(target.entry(key).or_insert(Value::Null), value),
                }
            }
        }
        (target, change) => *target = change.clone(),
    }
}

fn selected(object: &Value, query: &str) -> bool {
    let selector = query.split('&').find_map(|p| p.strip_prefix("fieldSelector=")).unwrap_or_default();
    let selector = selector.replace("%3D", "=");
    selector.split_once('=').is_none_or(|(path, wanted)| {
        let found = path.split('.').fold(object, |v, key| &v[key]);
        found.as_str().unwrap_or_default() == wanted
    })
}

impl Api {
    pub(crate) fn new() -> Api {
        Api { world: Arc::default(), changes: Arc::new(Mutex::new(broadcast::channel(1024).0)) }
    }

    pub(crate) fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { api.answer(request).await }
        });
        kube::Client::new(service, "default")
    }

    async fn answer(&self, request: Request<Body>) -> Result<Answer, std::io::Error> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        if self.world.lock().unwrap().down {
            return Err(std::io::Error::other("the API server is away"));
        }
        let (collection, name, sub) = split(parts.uri.path());
        Ok(match (parts.method, name, sub.as_deref()) {
            (Method::GET, None, _) if query.contains("watch=true") => self.watch(&collection, &query),
            (Method::GET, None, _) => self.list(&collection, &query),
            (Method::GET, Some(name), _) => match self.find(&collection, &name) {
                Some(object) => reply(200, &object),
                None => failure(404, "NotFound"),
            },
            (Method::POST, Some(_), Some("token")) => {
                let mut answer = body;
                let mut world = self.world.lock().unwrap();
                world.tokens += 1;
                let life = jiff::SignedDuration::from_secs(answer["spec"]["expirationSeconds"].as_i64().unwrap());
                let expires = jiff::Timestamp::now().checked_add(life).unwrap();
                answer["status"] =
                    json!({"token": format!("token-{}", world.tokens), "expirationTimestamp": expires.to_string()});
                reply(201, &answer)
            }
            (Method::POST, None, _) => reply(201, &self.create(&collection, body)),
            (Method::PATCH, Some(name), sub) => {
                let panics = self.world.lock().unwrap().panics_at.as_ref() == Some(&name);
                assert!(!panics, "on purpose");
                if sub == Some("status") && collection.ends_with("pods") {
                    self.world.lock().unwrap().status_patches += 1;
                }
                match self.update(&collection, &name, |object| merge(object, &body)) {
                    Some(object) => reply(200, &object),
                    None => failure(404, "NotFound"),
                }
            }
            (Method::DELETE, Some(name), _) => self.delete(&collection, &name, body["gracePeriodSeconds"].as_i64()),
            (method, name, sub) => panic!("the fake API does not know {method} {collection} {name:?} {sub:?}"),
        })
    }

    fn find(&self, collection: &str, name: &str) -> Option<Value> {
        self.world.lock().unwrap().objects.get(&(collection.to_owned(), name.to_owned())).cloned()
    }

    /// Reads, changes and writes in one step, as no other request could come between.
    fn update(&self, collection: &str, name: &str, change: impl FnOnce(&mut Value)) -> Option<Value> {
        let mut world = self.world.lock().unwrap();
        let mut object = world.objects.get(&(collection.to_owned(), name.to_owned())).cloned()?;
        change(&mut object);
        Some(self.put_into(&mut world, collection, name, object, "MODIFIED"))
    }

    fn put(&self, collection: &str, name: &str, object: Value, change: &'static str) -> Value {
        self.put_into(&mut self.world.lock().unwrap(), collection, name, object, change)
    }

    fn put_into(
        &self,
        world: &mut World,
        collection: &str,
        name: &str,
        mut object: Value,
        change: &'static str,
    ) -> Value {
        world.revision += 1;
        object["metadata"]["resourceVersion"] = json!(world.revision.to_string());
        let key = (collection.to_owned(), name.to_owned());
        if change == "DELETED" {
            world.objects.remove(&key);
        } else {
            world.objects.insert(key, object.clone());
        }
        if !world.deaf {
            let _ = self.changes.lock().unwrap().send((collection.to_owned(), change, object.clone()));
        }
        object
    }

    pub(crate) fn create(&self, collection: &str, mut object: Value) -> Value {
        let name = object["metadata"]["name"].as_str().unwrap_or("review").to_owned();
        let uid = format!("uid-{}-{name}", self.world.lock().unwrap().revision);
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(uid);
        }
        if let Some((_, namespace)) = collection.split_once("namespaces/") {
            object["metadata"]["namespace"] = json!(namespace.split('/').next().unwrap());
        }
        self.put(collection, &name, object, "ADDED")
    }

    pub(crate) fn delete(&self, collection: &str, name: &str, grace: Option<i64>) -> Answer {
        let Some(mut object) = self.find(collection, name) else { return failure(404, "NotFound") };
        if collection.ends_with("pods") && grace != Some(0) && !object["spec"]["nodeName"].is_null() {
            let grace = grace.unwrap_or(30);
            object["metadata"]["deletionTimestamp"] = json!(jiff::Timestamp::now().to_string());
            object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
            return reply(200, &self.put(collection, name, object, "MODIFIED"));
        }
        reply(200, &self.put(collection, name, object, "DELETED"))
    }

    /// In a collection, or below it in any namespace.
    fn within(collection: &str, place: &str) -> bool {
        if collection == place {
            return true;
        }
        let (root, kind) = collection.rsplit_once('/').unwrap();
        place
            .strip_prefix(root)
            .is_some_and(|rest| rest.starts_with("/namespaces/") && rest.ends_with(&format!("/{kind}")))
    }

    fn list(&self, collection: &str, query: &str) -> Answer {
        let world = self.world.lock().unwrap();
        let items: Vec<&Value> = world
            .objects
            .iter()
            .filter(|((c, _), o)| Self::within(collection, c) && selected(o, query))
            .map(|(_, o)| o)
            .collect();
        reply(
            200,
            &json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": world.revision.to_string()}, "items": items}),
        )
    }

    fn watch(&self, collection: &str, query: &str) -> Answer {
        let from: u64 =
            query.split('&').find_map(|p| p.strip_prefix("resourceVersion=")).and_then(|v| v.parse().ok()).unwrap_or(0);
        let (collection, query) = (collection.to_owned(), query.to_owned());
        if from < self.world.lock().unwrap().compacted {
            // As API servers say it: in the stream.
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired",
                "message": "too old resource version", "code": 410});
            let line = format!("{{\"type\":\"ERROR\",\"object\":{status}}}\n");
            let body = Full::new(Bytes::from(line)).boxed_unsync();
            return Response::builder().status(200).header("content-type", "application/json").body(body).unwrap();
        }
        let changes = self.changes.lock().unwrap().subscribe();
        // What happened between the list and this watch; deletions in between do not occur in these tests.
        let missed: Vec<(String, &'static str, Value)> = {
            let world = self.world.lock().unwrap();
            let newer = |o: &Value| {
                o["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse::<u64>().ok()).unwrap_or(0) > from
            };
            world
                .objects
                .iter()
                .filter(|(_, o)| newer(o))
                .map(|((c, _), o)| (c.clone(), "MODIFIED", o.clone()))
                .collect()
        };
        let live = tokio_stream::wrappers::BroadcastStream::new(changes).filter_map(|c| async { c.ok() });
        let all = futures::stream::iter(missed).chain(live).filter_map(move |(place, change, object)| {
            let hit = Self::within(&collection, &place) && selected(&object, &query);
            // The type first, as API servers write it: who reads an object as it stands need not keep it until its type comes.
            let line = format!("{{\"type\":\"{change}\",\"object\":{object}}}\n");
            async move { hit.then(|| Ok::<_, Infallible>(Frame::data(Bytes::from(line)))) }
        });
        let body = StreamBody::new(all).boxed_unsync();
        Response::builder().status(200).header("content-type", "application/json").body(body).unwrap()
    }

    pub(crate) fn get(&self, collection: &str, name: &str) -> Option<Value> {
        self.find(collection, name)
    }

    pub(crate) fn set_down(&self, down: bool) {
        self.world.lock().unwrap().down = down;
    }

    /// What `change` does nobody is told of, and all watches end: only a new list shows it.
    pub(crate) fn overrun(&self, change: impl FnOnce(&Api)) {
        self.world.lock().unwrap().deaf = true;
        change(self);
        let mut world = self.world.lock().unwrap();
        world.deaf = false;
        world.compacted = world.revision;
        *self.changes.lock().unwrap() = broadcast::channel(1024).0;
    }

    pub(crate) fn panic_at(&self, name: Option<&str>) {
        self.world.lock().unwrap().panics_at = name.map(str::to_owned);
    }

    /// Somebody else changes an object.
    pub(crate) fn change(&self, collection: &str, name: &str, change: impl FnOnce(&mut Value)) {
        self.update(collection, name, change).unwrap();
    }

    pub(crate) fn status_patches(&self) -> usize {
        self.world.lock().unwrap().status_patches
    }

    /// Reasons of all events, in order of time.
    pub(crate) fn event_reasons(&self) -> Vec<String> {
        let world = self.world.lock().unwrap();
        let mut events: Vec<&Value> =
            world.objects.iter().filter(|((c, _), _)| c.ends_with("/events")).map(|(_, o)| o).collect();
        events.sort_by_key(|e| e["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse::<u64>().ok()));
        events.iter().map(|e| e["reason"].as_str().unwrap_or_default().to_owned()).collect()
    }
}
