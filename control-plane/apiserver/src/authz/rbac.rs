//! Role-based access: roles and bindings, compiled from the cache when they change, matched per request. Stores nothing.
//!
//! Invariant: the index is that of the newest snapshots; aggregated cluster roles carry their parts' rules without a controller.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwapOption;
use control_plane_api::{Object, selector::Selector};
use control_plane_store::Revision;
use serde::Deserialize;
use serde_json::Value;

use super::{Attributes, Target};
use crate::{authn::User, cache::Cache};

pub(crate) const GROUP: &str = "rbac.authorization.k8s.io";
const RESOURCES: [&str; 4] = ["clusterroles", "clusterrolebindings", "roles", "rolebindings"];

/// A PolicyRule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Rule {
    pub(crate) verbs: Vec<String>,
    pub(crate) api_groups: Vec<String>,
    pub(crate) resources: Vec<String>,
    pub(crate) resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    pub(crate) non_resource_urls: Vec<String>,
}

#[derive(Clone, Debug)]
enum Subject {
    User(String),
    Group(String),
    Account { namespace: String, name: String },
}

#[derive(Debug)]
struct Binding {
    name: String,
    subjects: Vec<Subject>,
    rules: Arc<Vec<Rule>>,
    role: String,
}

/// All bindings, ready to match.
#[derive(Debug)]
pub(crate) struct Index {
    changed: [Revision; 4],
    cluster: Vec<Binding>,
    namespaced: HashMap<String, Vec<Binding>>,
    cluster_roles: HashMap<String, Arc<Vec<Rule>>>,
    roles: HashMap<(String, String), Arc<Vec<Rule>>>,
}

#[derive(Debug)]
pub(crate) struct Rbac {
    cache: Arc<Cache>,
    index: ArcSwapOption<Index>,
    rebuild: Mutex<()>,
}

impl Rbac {
    pub(crate) fn new(cache: Arc<Cache>) -> Self {
        Self { cache, index: ArcSwapOption::empty(), rebuild: Mutex::new(()) }
    }

    fn changed(&self) -> [Revision; 4] {
        RESOURCES.map(|resource| self.cache.of(GROUP, resource).map_or(Revision(0), |one| one.snapshot().changed))
    }

    /// The compiled index, rebuilt when a role or binding has changed.
    pub(crate) fn index(&self) -> Arc<Index> {
        if let Some(index) = self.index.load_full()
            && index.changed == self.changed()
        {
            return index;
        }
        let _one_at_a_time = self.rebuild.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = self.changed();
        if let Some(index) = self.index.load_full()
            && index.changed == changed
        {
            return index;
        }
        let index = Arc::new(Index::build(changed, |resource| {
            let collection = self.cache.of(GROUP, resource);
            collection.map(|one| one.snapshot().all().map(|cached| cached.object()).collect()).unwrap_or_default()
        }));
        self.index.store(Some(Arc::clone(&index)));
        index
    }
}

pub(crate) fn rules_of(object: &Object) -> Vec<Rule> {
    object.list_at(&["rules"]).iter().filter_map(|rule| Rule::deserialize(rule).ok()).collect()
}

impl Index {
    fn build(changed: [Revision; 4], objects: impl Fn(&str) -> Vec<Object>) -> Self {
        let parts = objects("clusterroles");
        let mut cluster_roles = HashMap::new();
        for role in &parts {
            cluster_roles.insert(role.name().to_owned(), Arc::new(aggregated(role, &parts, &mut Vec::new())));
        }
        let roles: HashMap<_, _> = objects("roles")
            .iter()
            .map(|role| ((role.namespace().to_owned(), role.name().to_owned()), Arc::new(rules_of(role))))
            .collect();
        let mut index = Self { changed, cluster: Vec::new(), namespaced: HashMap::new(), cluster_roles, roles };
        index.cluster = objects("clusterrolebindings").iter().filter_map(|one| index.binding(one)).collect();
        for object in objects("rolebindings") {
            if let Some(binding) = index.binding(&object) {
                index.namespaced.entry(object.namespace().to_owned()).or_default().push(binding);
            }
        }
        index
    }

    fn binding(&self, object: &Object) -> Option<Binding> {
        let name = object.str_at(&["roleRef", "name"])?;
        let kind = object.str_at(&["roleRef", "kind"])?;
        let rules = self.role(kind, object.namespace(), name)?;
        let subjects = object.list_at(&["subjects"]).iter().filter_map(subject).collect();
        Some(Binding { name: object.name().to_owned(), subjects, rules, role: format!("{kind} \"{name}\"") })
    }

    /// A role's rules, by its reference.
    pub(crate) fn role(&self, kind: &str, namespace: &str, name: &str) -> Option<Arc<Vec<Rule>>> {
        match kind {
            "ClusterRole" => self.cluster_roles.get(name).cloned(),
            "Role" => self.roles.get(&(namespace.to_owned(), name.to_owned())).cloned(),
            _ => None,
        }
    }

    /// The binding that allows it, in a sentence.
    pub(crate) fn allows(&self, user: &User, attributes: &Attributes) -> Option<String> {
        let namespace = match &attributes.target {
            Target::Resource { namespace, .. } => namespace.as_str(),
            Target::Path(_) => "",
        };
        let found =
            self.bindings(user, namespace).find(|(_, one)| one.rules.iter().any(|rule| rule.allows(attributes)));
        found.map(|(kind, one)| format!("RBAC: allowed by {kind} \"{}\" of {} to {}", one.name, one.role, user.name))
    }

    /// Bindings whose subject is the user: cluster-wide ones, then the namespace's.
    fn bindings<'a>(&'a self, user: &'a User, namespace: &'a str) -> impl Iterator<Item = (&'static str, &'a Binding)> {
        let local = self.namespaced.get(namespace).map_or(&[][..], Vec::as_slice);
        let cluster = self.cluster.iter().map(|one| ("ClusterRoleBinding", one));
        cluster
            .chain(local.iter().map(|one| ("RoleBinding", one)))
            .filter(move |(_, one)| one.subjects.iter().any(|subject| subject.is(user)))
    }

    /// All rules the user has in a namespace; cluster-wide ones only when it is empty.
    pub(crate) fn rules_for<'a>(&'a self, user: &'a User, namespace: &'a str) -> impl Iterator<Item = &'a Rule> {
        self.bindings(user, namespace).flat_map(|(_, one)| one.rules.iter())
    }

    /// The rules that the user does not have himself: what keeps anyone from granting more than he holds.
    pub(crate) fn not_covered<'a>(&self, user: &User, namespace: &str, wanted: &'a [Rule]) -> Vec<&'a Rule> {
        let own: Vec<&Rule> = self.rules_for(user, namespace).collect();
        wanted.iter().filter(|rule| !rule.atoms().iter().all(|atom| own.iter().any(|own| own.covers(atom)))).collect()
    }
}

fn subject(value: &Value) -> Option<Subject> {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
    match text("kind").as_str() {
        "User" => Some(Subject::User(text("name"))),
        "Group" => Some(Subject::Group(text("name"))),
        "ServiceAccount" => Some(Subject::Account { namespace: text("namespace"), name: text("name") }),
        _ => None,
    }
}

impl Subject {
    fn is(&self, user: &User) -> bool {
        match self {
            Self::User(name) => *name == user.name,
            Self::Group(name) => user.in_group(name),
            Self::Account { namespace, name } => user.account_parts() == Some((namespace, name)),
        }
    }
}

/// A cluster role's own rules, or for an aggregating one those of every role its selectors match, followed to the end.
fn aggregated(role: &Object, all: &[Object], seen: &mut Vec<String>) -> Vec<Rule> {
    let selectors = role.list_at(&["aggregationRule", "clusterRoleSelectors"]);
    if selectors.is_empty() {
        return rules_of(role);
    }
    if seen.iter().any(|name| name == role.name()) {
        return Vec::new();
    }
    seen.push(role.name().to_owned());
    let selectors: Vec<Selector> = selectors.iter().filter_map(|one| Selector::from_value(one).ok()).collect();
    let mut rules = Vec::new();
    for part in all {
        if part.name() != role.name() && selectors.iter().any(|one| one.matches_object(part)) {
            for rule in aggregated(part, all, seen) {
                if !rules.contains(&rule) {
                    rules.push(rule);
                }
            }
        }
    }
    rules
}

impl Rule {
    fn allows(&self, attributes: &Attributes) -> bool {
        if !has(&self.verbs, &attributes.verb) {
            return false;
        }
        match &attributes.target {
            Target::Path(path) => self.non_resource_urls.iter().any(|pattern| path_matches(pattern, path)),
            Target::Resource { group, resource, subresource, name, .. } => {
                has(&self.api_groups, group)
                    && self.resources.iter().any(|pattern| resource_matches(pattern, resource, subresource))
                    && (self.resource_names.is_empty() || self.resource_names.contains(name))
            }
        }
    }

    /// One rule per verb, group, resource and name: the unit that is compared.
    fn atoms(&self) -> Vec<Rule> {
        let names: Vec<Vec<String>> = if self.resource_names.is_empty() {
            vec![Vec::new()]
        } else {
            self.resource_names.iter().map(|name| vec![name.clone()]).collect()
        };
        let mut atoms = Vec::new();
        for verb in &self.verbs {
            for group in &self.api_groups {
                for resource in &self.resources {
                    for names in &names {
                        atoms.push(Rule {
                            verbs: vec![verb.clone()],
                            api_groups: vec![group.clone()],
                            resources: vec![resource.clone()],
                            resource_names: names.clone(),
                            non_resource_urls: Vec::new(),
                        });
                    }
                }
            }
            for url in &self.non_resource_urls {
                atoms.push(Rule { verbs: vec![verb.clone()], non_resource_urls: vec![url.clone()], ..Rule::default() });
            }
        }
        atoms
    }

    fn covers(&self, atom: &Rule) -> bool {
        let all = |own: &[String], wanted: &[String]| wanted.iter().all(|one| has(own, one));
        if !all(&self.verbs, &atom.verbs) {
            return false;
        }
        if !atom.non_resource_urls.is_empty() {
            return atom
                .non_resource_urls
                .iter()
                .all(|url| self.non_resource_urls.iter().any(|own| own == url || path_matches(own, url)));
        }
        let resource = |wanted: &String| {
            let (resource, subresource) = wanted.split_once('/').unwrap_or((wanted, ""));
            self.resources.iter().any(|own| own == wanted || resource_matches(own, resource, subresource))
        };
        all(&self.api_groups, &atom.api_groups)
            && atom.resources.iter().all(resource)
            && (self.resource_names.is_empty()
                || (!atom.resource_names.is_empty()
                    && atom.resource_names.iter().all(|name| self.resource_names.contains(name))))
    }
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|one| one == "*" || one == wanted)
}

fn path_matches(pattern: &str, path: &str) -> bool {
    pattern == "*" || pattern == path || pattern.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix))
}

fn resource_matches(pattern: &str, resource: &str, subresource: &str) -> bool {
    if pattern == "*" {
        return true;
    }
    match pattern.split_once('/') {
        None => subresource.is_empty() && pattern == resource,
        Some((own, sub)) => !subresource.is_empty() && sub == subresource && (own == "*" || own == resource),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::defaults;
    use serde_json::json;

    fn index() -> Index {
        let all = defaults::all();
        Index::build([Revision(0); 4], |resource| {
            let of_resource = all.iter().filter(|one| one.resource == resource);
            of_resource.map(|one| Object::from_value(one.object.clone()).unwrap()).collect()
        })
    }

    fn with_binding(mut index: Index, namespace: &str, role: &str, subject: Subject) -> Index {
        let rules = index.role("ClusterRole", "", role).unwrap();
        let binding = Binding { name: "b".to_owned(), subjects: vec![subject], rules, role: role.to_owned() };
        index.namespaced.entry(namespace.to_owned()).or_default().push(binding);
        index
    }

    #[test]
    fn view_reads_but_no_secrets_and_only_in_its_namespace() {
        let account = Subject::Account { namespace: "default".to_owned(), name: "viewer".to_owned() };
        let index = with_binding(index(), "default", "view", account);
        let user = User::new("system:serviceaccount:default:viewer", &[]);
        let check = |verb: &str, resource: &str, namespace: &str, expect: bool| {
            let attributes = Attributes::resource(verb, "", resource, namespace, "");
            assert_eq!(index.allows(&user, &attributes).is_some(), expect, "{verb} {resource} in {namespace}");
        };
        check("list", "pods", "default", true);
        check("get", "configmaps", "default", true);
        check("list", "secrets", "default", false);
        check("create", "pods", "default", false);
        check("list", "pods", "other", false);
        check("list", "nodes", "", false);
        let target = Target::Path("/api/v1".to_owned());
        let discovery = Attributes { verb: "get".to_owned(), target, ..Attributes::default() };
        assert!(index.allows(&user, &discovery).is_some());
    }

    #[test]
    fn admin_aggregates_edit_and_view() {
        let index = with_binding(index(), "n", "admin", Subject::User("a".to_owned()));
        let user = User::new("a", &[]);
        for (verb, group, resource) in
            [("create", GROUP, "rolebindings"), ("delete", "apps", "deployments"), ("watch", "", "pods")]
        {
            assert!(index.allows(&user, &Attributes::resource(verb, group, resource, "n", "")).is_some(), "{resource}");
        }
    }

    #[test]
    fn nobody_grants_more_than_he_has() {
        let index = with_binding(index(), "n", "edit", Subject::User("a".to_owned()));
        let user = User::new("a", &[]);
        let rule = |verbs: &[&str], resources: &[&str]| Rule {
            verbs: verbs.iter().map(|one| (*one).to_owned()).collect(),
            api_groups: vec![String::new()],
            resources: resources.iter().map(|one| (*one).to_owned()).collect(),
            ..Rule::default()
        };
        let fine = [rule(&["get", "create"], &["pods", "secrets"])];
        assert!(index.not_covered(&user, "n", &fine).is_empty());
        for wanted in [rule(&["get"], &["nodes"]), rule(&["*"], &["pods"]), rule(&["get"], &["*"])] {
            assert_eq!(index.not_covered(&user, "n", &[wanted]).len(), 1);
        }
        assert_eq!(index.not_covered(&user, "other", &fine).len(), 1);
    }

    #[test]
    fn a_subject_is_who_has_exactly_this_name() {
        let user = User::new("system:serviceaccount:n:a", &["g"]);
        let check = |subject: Value, expect: bool| {
            let subject = super::subject(&subject).unwrap();
            assert_eq!(subject.is(&user), expect, "{subject:?}");
            assert!(!subject.is(&User::anonymous()), "{subject:?}");
        };
        let named =
            |kind: &str, namespace: &str, name: &str| json!({"kind": kind, "namespace": namespace, "name": name});
        check(named("User", "", "system:serviceaccount:n:a"), true);
        check(named("User", "", "*"), false);
        check(named("User", "", ""), false);
        check(named("Group", "", "g"), true);
        check(named("Group", "", "*"), false);
        check(named("ServiceAccount", "n", "a"), true);
        check(named("ServiceAccount", "n", "*"), false);
        check(named("ServiceAccount", "*", "a"), false);
        check(named("ServiceAccount", "", "a"), false);
    }

    #[test]
    fn patterns() {
        assert!(path_matches("/healthz/*", "/healthz/etcd") && !path_matches("/healthz", "/healthz/etcd"));
        let check = |pattern: &str, resource: &str, sub: &str, expect: bool| {
            assert_eq!(resource_matches(pattern, resource, sub), expect, "{pattern} {resource}/{sub}");
        };
        check("pods", "pods", "", true);
        check("pods", "pods", "log", false);
        check("pods/log", "pods", "log", true);
        check("*/scale", "deployments", "scale", true);
        check("*/scale", "deployments", "", false);
        check("*", "pods", "log", true);
    }
}
