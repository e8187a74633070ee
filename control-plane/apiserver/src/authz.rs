//! May this user do this? Masters, then the node authorizer for kubelets, then RBAC; whatever nobody allows is refused.
//! Knows no HTTP; a decision is a value with its reason.

pub(crate) mod authorized;
pub(crate) mod defaults;
mod denials;
pub(crate) mod node;
pub(crate) mod rbac;

use std::sync::Arc;

use control_plane_api::{Status, selector::FieldSelector};

use crate::{
    authn::{MASTERS, User},
    cache::Cache,
    request::{RequestInfo, Verb},
    status::Outcome,
};

/// What is asked, in RBAC's terms.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attributes {
    pub(crate) verb: String,
    pub(crate) target: Target,
    /// What a list, watch or deletecollection is narrowed to: the node authorizer goes by it.
    pub(crate) fields: FieldSelector,
}

#[derive(Clone, Debug)]
pub(crate) enum Target {
    Resource { group: String, resource: String, subresource: String, namespace: String, name: String },
    Path(String),
}

impl Default for Target {
    fn default() -> Self {
        Self::Path(String::new())
    }
}

impl Attributes {
    pub(crate) fn of(info: &RequestInfo) -> Self {
        let verb = info.verb.as_str().to_owned();
        let fields = info.fields.clone();
        match &info.resource {
            None => Self { verb, target: Target::Path(info.path.clone()), fields },
            Some(path) => Self {
                verb,
                fields,
                target: Target::Resource {
                    group: path.group.clone(),
                    resource: path.resource.clone(),
                    subresource: path.subresource.clone(),
                    namespace: path.namespace.clone(),
                    name: path.name.clone(),
                },
            },
        }
    }

    pub(crate) fn resource(verb: &str, group: &str, resource: &str, namespace: &str, name: &str) -> Self {
        let target = Target::Resource {
            group: group.to_owned(),
            resource: resource.to_owned(),
            subresource: String::new(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        Self { verb: verb.to_owned(), target, fields: FieldSelector::default() }
    }
}

/// Allowed or not, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) allowed: bool,
    pub(crate) reason: String,
}

impl Decision {
    fn allow(reason: impl Into<String>) -> Self {
        Self { allowed: true, reason: reason.into() }
    }

    fn refuse(reason: impl Into<String>) -> Self {
        Self { allowed: false, reason: reason.into() }
    }
}

#[derive(Debug)]
pub(crate) struct Authorizer {
    cache: Arc<Cache>,
    rbac: rbac::Rbac,
    denials: denials::Denials,
}

impl Authorizer {
    pub(crate) fn new(cache: Arc<Cache>) -> Self {
        Self { rbac: rbac::Rbac::new(Arc::clone(&cache)), cache, denials: denials::Denials::default() }
    }

    pub(crate) fn rbac(&self) -> &rbac::Rbac {
        &self.rbac
    }

    pub(crate) fn decide(&self, user: &User, attributes: &Attributes) -> Decision {
        if user.in_group(MASTERS) {
            return Decision::allow("");
        }
        let mut refused = String::new();
        if let Some(node) = user.node_name() {
            let decision = node::decide(&self.cache, node, attributes);
            if decision.allowed {
                return decision;
            }
            refused = decision.reason;
        }
        match self.rbac.index().allows(user, attributes) {
            Some(binding) => Decision::allow(binding),
            None => Decision::refuse(refused),
        }
    }

    /// Refuses with the words clients know.
    pub(crate) fn require(&self, user: &User, attributes: &Attributes) -> Outcome<()> {
        let decision = self.decide(user, attributes);
        self.denials.count(decision.allowed);
        if decision.allowed {
            return Ok(());
        }
        self.denials.log(user, attributes, &decision.reason, std::time::Instant::now());
        Err(forbidden(user, attributes, &decision.reason).into())
    }

    /// How many requests were allowed and denied.
    pub(crate) fn counts(&self) -> (u64, u64) {
        self.denials.counts()
    }
}

/// The 403 for a refused request.
pub(crate) fn forbidden(user: &User, attributes: &Attributes, reason: &str) -> Status {
    let suffix = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    match &attributes.target {
        Target::Path(path) => {
            let why = format!("User \"{}\" cannot {} path \"{path}\"{suffix}", user.name, attributes.verb);
            Status::forbidden("", "", "", &why)
        }
        Target::Resource { group, resource, subresource, namespace, name } => {
            let full = if subresource.is_empty() { resource.clone() } else { format!("{resource}/{subresource}") };
            let scope = if namespace.is_empty() {
                "at the cluster scope".to_owned()
            } else {
                format!("in the namespace \"{namespace}\"")
            };
            let why = format!(
                "User \"{}\" cannot {} resource \"{full}\" in API group \"{group}\" {scope}{suffix}",
                user.name, attributes.verb
            );
            Status::forbidden(group, resource, name, &why)
        }
    }
}

/// What a WebSocket needs beyond reading: it carries input, so `create` is required too, as since upstream 1.35.
pub(crate) fn upgrade_attributes(info: &RequestInfo) -> Option<Attributes> {
    let path = info.resource.as_ref()?;
    let connects = path.resource == "pods" && matches!(path.subresource.as_str(), "exec" | "attach" | "portforward");
    if !connects || info.verb != Verb::Get {
        return None;
    }
    Some(Attributes { verb: Verb::Create.as_str().to_owned(), ..Attributes::of(info) })
}
