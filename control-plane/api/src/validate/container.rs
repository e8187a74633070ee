//! Containers: what all three lists share, and what each of them may not have.

mod env;
mod mount;
mod port;
mod probe;
mod security;

pub(super) use env::{check_file_field, check_file_resource};
pub(super) use port::{PROTOCOLS, check_host_ports};
pub(super) use security::{check_apparmor, check_ids, check_seccomp, check_windows};

use std::collections::{BTreeMap, BTreeSet};

use super::field::Field;
use super::{Causes, resources};
use crate::name;

/// Rules about exit codes that a container may have; and codes in one of them.
const RESTART_RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;

/// What of the pod a container is judged by.
#[derive(Debug)]
pub(super) struct Context<'v> {
    /// The pod's volumes, by name, with the kind of their source.
    pub(super) volumes: &'v BTreeMap<&'v str, &'v str>,
    /// The resource claims of the pod.
    pub(super) claims: &'v BTreeSet<&'v str>,
    pub(super) restart_policy: &'v str,
    pub(super) os: &'v str,
    pub(super) host_network: bool,
    pub(super) host_users: bool,
    /// Seconds that the pod has to end.
    pub(super) grace_seconds: i64,
    /// A pod itself, not a template of pods.
    pub(super) is_pod: bool,
}

/// The list that a container stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum List {
    Init,
    Regular,
    Ephemeral,
}

/// What debugging may not change about a pod that runs; the rest is allowed.
const NOT_FOR_EPHEMERAL: &[&str] = &[
    "lifecycle",
    "livenessProbe",
    "ports",
    "readinessProbe",
    "resizePolicy",
    "resources",
    "restartPolicy",
    "restartPolicyRules",
    "startupProbe",
];

pub(super) fn check(list: List, container: &Field<'_, '_>, context: &Context<'_>, causes: &mut Causes) {
    check_common(container, context, list, causes);
    match list {
        List::Ephemeral => {
            for key in NOT_FOR_EPHEMERAL {
                let field = container.key(key);
                if !super::metadata::is_nothing(field.value) {
                    field.forbidden("cannot be set for an Ephemeral Container", causes);
                }
            }
        }
        List::Init if container.key("restartPolicy").text() != "Always" => {
            for key in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                let field = container.key(key);
                if field.is_set() {
                    field.forbidden("may not be set for init containers without restartPolicy=Always", causes);
                }
            }
        }
        List::Init | List::Regular => probe::check(container, context, causes),
    }
    if list != List::Ephemeral {
        check_restart(container, causes);
    }
}

fn check_common(container: &Field<'_, '_>, context: &Context<'_>, list: List, causes: &mut Causes) {
    container.key("name").may_be(name::dns1123_label, causes);
    let image = container.key("image");
    if image.text().is_empty() {
        image.required("", causes);
    } else if (context.is_pod || list == List::Ephemeral) && image.text() != image.text().trim() {
        image.invalid("must not have leading or trailing whitespace", causes);
    }
    container.key("terminationMessagePolicy").one_of(&["File", "FallbackToLogsOnError"], causes);
    container.key("imagePullPolicy").one_of(&["Always", "IfNotPresent", "Never"], causes);
    port::check(container, context, list, causes);
    env::check(container, context, causes);
    mount::check(container, context, list, causes);
    if list != List::Ephemeral {
        resources::check(resources::Use::Container, &container.key("resources"), context.claims, causes);
        check_resize_policy(&container.key("resizePolicy"), context, causes);
    }
    security::check(&container.key("securityContext"), context, causes);
}

fn check_resize_policy(policies: &Field<'_, '_>, context: &Context<'_>, causes: &mut Causes) {
    let mut seen = BTreeSet::new();
    for (index, policy) in policies.items().enumerate() {
        let (resource, restart) = (policy.key("resourceName"), policy.key("restartPolicy"));
        if !resource.text().is_empty() && !seen.insert(resource.text()) {
            causes.push(crate::Cause::duplicate(policies.index(index).path(), resource.value));
        }
        // Upstream reports both at the list itself.
        if !["", "cpu", "memory"].contains(&resource.text()) {
            causes.push(crate::Cause::not_supported(policies.path(), resource.value, &["cpu", "memory"]));
        }
        if !["", "NotRequired", "RestartContainer"].contains(&restart.text()) {
            let supported = &["NotRequired", "RestartContainer"];
            causes.push(crate::Cause::not_supported(policies.path(), restart.value, supported));
        }
        if context.restart_policy == "Never" && restart.text() == "RestartContainer" {
            let detail = "must be 'NotRequired' when `restartPolicy` is 'Never'";
            policies.invalid_as(restart.value, detail, causes);
        }
    }
}

/// A container's own restart policy, and its rules for exit codes.
fn check_restart(container: &Field<'_, '_>, causes: &mut Causes) {
    let policy = container.key("restartPolicy");
    policy.one_of_if_set(&["Always", "Never", "OnFailure"], causes);
    let rules = container.key("restartPolicyRules");
    if rules.list().is_empty() {
        return;
    }
    if !policy.is_set() {
        policy.required("must specify restartPolicy when restart rules are used", causes);
    }
    if rules.list().len() > RESTART_RULES_MAX {
        causes.push(crate::Cause::too_many(rules.path(), rules.list().len(), RESTART_RULES_MAX));
        return;
    }
    for rule in rules.items() {
        rule.key("action").one_of(&["Restart"], causes);
        let codes = rule.key("exitCodes");
        if !codes.is_set() {
            codes.required("must be specified", causes);
            continue;
        }
        codes.key("operator").one_of(&["In", "NotIn"], causes);
        let values = codes.key("values");
        if values.list().len() > EXIT_CODES_MAX {
            causes.push(crate::Cause::too_many(values.path(), values.list().len(), EXIT_CODES_MAX));
        }
    }
}
