//! Where a pod may go: node selectors, and the company it wants or shuns.

use std::collections::BTreeSet;

use crate::name;
use crate::validate::field::Field;
use crate::validate::{Causes, selector};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

pub(super) fn check(affinity: &Field<'_, '_>, causes: &mut Causes) {
    let nodes = affinity.key("nodeAffinity");
    if nodes.key(REQUIRED).is_set() {
        check_node_selector(&nodes.key(REQUIRED), causes);
    }
    for weighted in nodes.key(PREFERRED).items() {
        check_weight(&weighted, causes);
        // A value that no node can have is taken here, as upstream does: it only never counts.
        check_node_term(&weighted.key("preference"), false, causes);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let pods = affinity.key(kind);
        for term in pods.key(REQUIRED).items() {
            check_pod_term(&term, causes);
        }
        for weighted in pods.key(PREFERRED).items() {
            check_weight(&weighted, causes);
            check_pod_term(&weighted.key("podAffinityTerm"), causes);
        }
    }
}

fn check_weight(weighted: &Field<'_, '_>, causes: &mut Causes) {
    let weight = weighted.key("weight");
    if !(1..=100).contains(&weight.int()) {
        weight.invalid_as(&weight.int().into(), "must be in the range 1-100", causes);
    }
}

/// Terms of which a node must meet one: of pods, and of volumes that are in one place.
pub(in crate::validate) fn check_node_selector(selector: &Field<'_, '_>, causes: &mut Causes) {
    let terms = selector.key("nodeSelectorTerms");
    if terms.list().is_empty() {
        terms.required("must have at least one node selector term", causes);
    }
    for term in terms.items() {
        check_node_term(&term, true, causes);
    }
}

fn check_node_term(term: &Field<'_, '_>, required: bool, causes: &mut Causes) {
    for one in term.key("matchExpressions").items() {
        let values = one.key("values");
        let count = values.list().len();
        match one.key("operator").text() {
            "In" | "NotIn" if count == 0 => {
                values.required("must be specified when `operator` is 'In' or 'NotIn'", causes);
            }
            "Gt" | "Lt" if count != 1 => {
                values.required("must be specified single value when `operator` is 'Lt' or 'Gt'", causes);
            }
            "Exists" | "DoesNotExist" if count != 0 => {
                values.forbidden("may not be specified when `operator` is 'Exists' or 'DoesNotExist'", causes);
            }
            "In" | "NotIn" | "Gt" | "Lt" | "Exists" | "DoesNotExist" => {}
            _ => not_an_operator(&one, causes),
        }
        one.key("key").must_be(name::qualified, causes);
        if required {
            for value in values.items() {
                value.must_be(name::label_value, causes);
            }
        }
    }
    for one in term.key("matchFields").items() {
        let values = one.key("values");
        if !["In", "NotIn"].contains(&one.key("operator").text()) {
            not_an_operator(&one, causes);
        } else if values.list().len() != 1 {
            let detail = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            values.required(detail, causes);
        }
        if one.key("key").text() == "metadata.name" {
            for value in values.items() {
                value.must_be(name::dns1123_subdomain, causes);
            }
        } else {
            one.key("key").invalid_as(&one.key("key").text().into(), "not a valid field selector key", causes);
        }
    }
}

fn not_an_operator(requirement: &Field<'_, '_>, causes: &mut Causes) {
    let operator = requirement.key("operator");
    operator.invalid_as(&operator.text().into(), "not a valid selector operator", causes);
}

fn check_pod_term(term: &Field<'_, '_>, causes: &mut Causes) {
    let labels = term.key("labelSelector");
    selector::check(&labels, causes);
    selector::check(&term.key("namespaceSelector"), causes);
    for namespace in term.key("namespaces").items() {
        for fault in name::dns1123_label(namespace.text()) {
            term.key("namespace").invalid_as(namespace.value, &fault, causes);
        }
    }
    let (matched, mismatched) = (term.key("matchLabelKeys"), term.key("mismatchLabelKeys"));
    for keys in [&matched, &mismatched] {
        if !keys.list().is_empty() && !labels.is_set() {
            keys.forbidden("must not be specified when labelSelector is not set", causes);
            continue;
        }
        for key in keys.items() {
            key.must_be(name::qualified, causes);
        }
    }
    let shunned: BTreeSet<&str> = mismatched.items().map(|key| key.text()).collect();
    for key in matched.items().filter(|key| shunned.contains(key.text())) {
        key.invalid("exists in both matchLabelKeys and mismatchLabelKeys", causes);
    }
    let topology = term.key("topologyKey");
    if topology.text().is_empty() {
        topology.required("can not be empty", causes);
    }
    topology.must_be(name::qualified, causes);
}
