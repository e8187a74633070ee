//! What a plan may ask for. A closed set, so that one executor serves every controller.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::ApiResource;
use serde_json::Value;

use crate::kind::Kind;

/// What to do now, and when to look again though nothing changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub again_at: Option<Timestamp>,
}

impl Plan {
    pub(crate) fn push(&mut self, action: Action) {
        self.actions.push(action);
    }

    /// The earliest time wins.
    pub(crate) fn look_again_at(&mut self, time: Timestamp) {
        self.again_at = Some(self.again_at.map_or(time, |earlier| earlier.min(time)));
    }
}

impl From<Vec<Action>> for Plan {
    fn from(actions: Vec<Action>) -> Self {
        Self { actions, again_at: None }
    }
}

/// Which part of an object a patch goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    Status,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    /// Without waiting for anybody's grace period: the node that would end the pod is gone.
    Now,
}

/// An event about another object, said once an object's name is known.
#[derive(Clone, Debug, PartialEq)]
pub struct Announcement {
    pub regarding: Box<ObjectReference>,
    pub reason: &'static str,
    /// The name of the object follows.
    pub prefix: &'static str,
    /// What follows the name.
    pub suffix: String,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Create {
        kind: Kind,
        namespace: String,
        body: Value,
        announce: Option<Announcement>,
    },
    /// A merge patch (RFC 7386). A `metadata.uid` or `metadata.resourceVersion` inside is a precondition.
    Patch {
        kind: Kind,
        namespace: String,
        name: String,
        part: Part,
        patch: Value,
    },
    Delete {
        kind: Kind,
        namespace: String,
        name: String,
        uid: String,
        how: Propagation,
        announce: Option<Announcement>,
    },
    /// A delete of whatever kind: the garbage collector's.
    DeleteAny {
        resource: Box<ApiResource>,
        namespace: String,
        name: String,
        uid: String,
        how: Propagation,
    },
    /// A merge patch of whatever kind.
    PatchAny {
        resource: Box<ApiResource>,
        namespace: String,
        name: String,
        patch: Value,
    },
    /// One sweep of a namespace that ends; see `namespace::empty`.
    EmptyNamespace {
        name: String,
    },
    /// The lists beside each other, the actions of a list one after the other; none if the API server knows the node.
    UnlessNodeExists {
        node: String,
        then: Vec<Vec<Action>>,
    },
    Event {
        regarding: Box<ObjectReference>,
        is_warning: bool,
        reason: &'static str,
        note: String,
    },
}
