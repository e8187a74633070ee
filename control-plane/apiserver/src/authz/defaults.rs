//! The default roles and bindings, as objects. Reads `default_roles.txt`; stores nothing, see `bootstrap.rs`.
//!
//! Invariant: the text parses; a test holds it to that.

use serde_json::{Value, json};

const GROUP: &str = "rbac.authorization.k8s.io";
const TEXT: &str = include_str!("default_roles.txt");

/// One object to ensure.
#[derive(Debug)]
pub(crate) struct Default {
    pub(crate) resource: &'static str,
    /// Empty for a cluster-wide one.
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) object: Value,
}

pub(crate) fn all() -> Vec<Default> {
    let mut out: Vec<Default> = Vec::new();
    for line in TEXT.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if line.starts_with(' ') {
            let role = out.last_mut().expect("a rule follows a role");
            let rules = role.object["rules"].as_array_mut().expect("roles have rules");
            rules.push(rule(&words));
            continue;
        }
        match words[..] {
            ["role", name, ..] => {
                let mut one = role("clusterroles", "ClusterRole", "", name);
                for key in words[2..].iter().filter(|word| **word != "label") {
                    one.object["metadata"]["labels"][*key] = "true".into();
                }
                out.push(one);
            }
            ["aggregate", name, key] => {
                let mut one = role("clusterroles", "ClusterRole", "", name);
                one.object["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {key: "true"}}]});
                out.push(one);
            }
            ["label", name, key] => {
                let one = out.iter_mut().find(|one| one.resource == "clusterroles" && one.name == name);
                one.expect("a labelled role was named before").object["metadata"]["labels"][key] = "true".into();
            }
            ["controller", name] => {
                let (role_name, account) = (format!("system:controller:{name}"), format!("s:kube-system:{name}"));
                let to = ("ClusterRole", role_name.as_str());
                out.push(binding("clusterrolebindings", "ClusterRoleBinding", "", &role_name, to, &[&account]));
                // Last, so that the rules find it.
                out.push(role("clusterroles", "ClusterRole", "", &role_name));
            }
            ["nsrole", namespace, name] => out.push(role("roles", "Role", namespace, name)),
            ["bind", name, ..] => {
                out.push(binding(
                    "clusterrolebindings",
                    "ClusterRoleBinding",
                    "",
                    name,
                    ("ClusterRole", name),
                    &words[2..],
                ));
            }
            ["nsbind", namespace, name, role, ..] => {
                out.push(binding("rolebindings", "RoleBinding", namespace, name, ("Role", role), &words[4..]));
            }
            _ => unreachable!("the text is part of the program and tested: {line}"),
        }
    }
    out
}

fn role(resource: &'static str, kind: &str, namespace: &str, name: &str) -> Default {
    object(resource, kind, namespace, name, json!({"rules": []}))
}

fn object(resource: &'static str, kind: &str, namespace: &str, name: &str, mut body: Value) -> Default {
    body["apiVersion"] = format!("{GROUP}/v1").into();
    body["kind"] = kind.into();
    body["metadata"] = json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
    });
    if !namespace.is_empty() {
        body["metadata"]["namespace"] = namespace.into();
    }
    Default { resource, namespace: namespace.to_owned(), name: name.to_owned(), object: body }
}

fn binding(
    resource: &'static str,
    kind: &str,
    namespace: &str,
    name: &str,
    (role_kind, role): (&str, &str),
    subjects: &[&str],
) -> Default {
    let subjects: Vec<Value> = subjects
        .iter()
        .map(|subject| match subject.split_at(2) {
            ("u:", name) => json!({"apiGroup": GROUP, "kind": "User", "name": name}),
            ("g:", name) => json!({"apiGroup": GROUP, "kind": "Group", "name": name}),
            (_, account) => {
                let (namespace, name) = account.split_once(':').expect("an account has a namespace");
                json!({"kind": "ServiceAccount", "name": name, "namespace": namespace})
            }
        })
        .collect();
    let reference = json!({"apiGroup": GROUP, "kind": role_kind, "name": role});
    object(resource, kind, namespace, name, json!({"subjects": subjects, "roleRef": reference}))
}

fn rule(words: &[&str]) -> Value {
    let list = |text: &str| -> Vec<String> {
        text.split(',').map(|one| if one == "core" { String::new() } else { one.to_owned() }).collect()
    };
    match words {
        [verbs, "url", paths] => json!({"verbs": list(verbs), "nonResourceURLs": list(paths)}),
        [verbs, groups, resources] => {
            json!({"verbs": list(verbs), "apiGroups": list(groups), "resources": list(resources)})
        }
        [verbs, groups, resources, names] => json!({"verbs": list(verbs), "apiGroups": list(groups),
            "resources": list(resources), "resourceNames": list(names)}),
        _ => unreachable!("the text is part of the program and tested: {words:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_parses_and_names_are_unique() {
        let all = all();
        let mut names: Vec<_> = all.iter().map(|one| (one.resource, &one.namespace, &one.name)).collect();
        names.sort();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        for expect in ["admin", "edit", "view", "cluster-admin", "system:node", "system:discovery"] {
            assert!(all.iter().any(|one| one.resource == "clusterroles" && one.name == expect), "{expect}");
        }
        let job =
            all.iter().find(|one| one.name == "system:controller:job-controller" && one.resource == "clusterroles");
        assert_eq!(job.unwrap().object["rules"].as_array().unwrap().len(), 5);
        let edit = all.iter().find(|one| one.resource == "clusterroles" && one.name == "edit").unwrap();
        assert_eq!(edit.object["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-admin"], "true");
    }
}
