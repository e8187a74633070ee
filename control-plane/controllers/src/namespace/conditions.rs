//! What a namespace that ends says of itself: the five conditions of upstream's namespace controller, in its words. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::api::ApiResource;
use serde_json::{Value, json};

use crate::clock::whole_seconds;

/// Errors that are named; the rest is counted.
const ERRORS_NAMED: usize = 3;

/// What a sweep left behind.
#[derive(Debug, Default)]
pub(super) struct Remaining {
    objects: BTreeMap<String, usize>,
    finalizers: BTreeMap<String, usize>,
    errors: Vec<String>,
    errors_unnamed: usize,
}

impl Remaining {
    pub(super) fn count(&mut self, resource: &ApiResource, finalizers: &[String]) {
        let count = self.objects.entry(format!("{}.{}", resource.plural, resource.group)).or_insert(0);
        *count = count.saturating_add(1);
        for finalizer in finalizers {
            let count = self.finalizers.entry(finalizer.clone()).or_insert(0);
            *count = count.saturating_add(1);
        }
    }

    pub(super) fn fail(&mut self, resource: &ApiResource, error: &kube::Error) {
        let why = match error {
            kube::Error::Api(status) => status.message.clone(),
            other => other.to_string(),
        };
        if self.errors.len() < ERRORS_NAMED {
            self.errors.push(format!("{}: {why}", resource.plural));
        } else {
            self.errors_unnamed = self.errors_unnamed.saturating_add(1);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.errors.is_empty()
    }

    /// For a log; `None` if nothing is left.
    pub(super) fn summary(&self) -> Option<String> {
        (!self.is_empty()).then(|| {
            let objects = self.objects.iter().map(|(kind, count)| format!("{count} {}", kind.trim_end_matches('.')));
            objects.chain(self.errors.iter().cloned()).collect::<Vec<_>>().join(", ")
        })
    }

    fn verdicts(&self) -> [Verdict; 5] {
        let listed = |counts: &BTreeMap<String, usize>, words: fn(&str, usize) -> String| {
            counts.iter().map(|(name, count)| words(name, *count)).collect::<Vec<_>>().join(", ")
        };
        let failed = self.errors.len().saturating_add(self.errors_unnamed);
        [
            ("NamespaceDeletionDiscoveryFailure", None, "ResourcesDiscovered", "All resources successfully discovered"),
            (
                "NamespaceDeletionGroupVersionParsingFailure",
                None,
                "ParsedGroupVersions",
                "All legacy kube types successfully parsed",
            ),
            (
                "NamespaceDeletionContentFailure",
                (failed > 0).then(|| {
                    let what = self.errors.join(", ");
                    (
                        "ContentDeletionFailed",
                        format!("Failed to delete all resource types, {failed} remaining: {what}"),
                    )
                }),
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization",
            ),
            (
                "NamespaceContentRemaining",
                (!self.objects.is_empty()).then(|| {
                    let list = listed(&self.objects, |kind, count| format!("{kind} has {count} resource instances"));
                    ("SomeResourcesRemain", format!("Some resources are remaining: {list}"))
                }),
                "ContentRemoved",
                "All content successfully removed",
            ),
            (
                "NamespaceFinalizersRemaining",
                (!self.finalizers.is_empty()).then(|| {
                    let list = listed(&self.finalizers, |name, count| format!("{name} in {count} resource instances"));
                    ("SomeFinalizersRemain", format!("Some content in the namespace has finalizers remaining: {list}"))
                }),
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished",
            ),
        ]
    }
}

/// Type; reason and message if it is so; reason and message if it is not.
type Verdict = (&'static str, Option<(&'static str, String)>, &'static str, &'static str);

/// The conditions as they should be, if they are not yet; those of others stay.
pub(super) fn updated(old: &[Value], remaining: &Remaining, now: Timestamp) -> Option<Vec<Value>> {
    let mut conditions = old.to_vec();
    for (kind, is_so, reason, message) in remaining.verdicts() {
        let (status, reason, message) = match is_so {
            Some((reason, message)) => ("True", reason, message),
            None => ("False", reason, message.to_owned()),
        };
        let mut wanted = json!({"type": kind, "status": status, "reason": reason, "message": message});
        let index = conditions.iter().position(|one| one["type"] == kind);
        let before = index.and_then(|index| conditions.get(index));
        let same_status = before.filter(|one| one["status"] == status);
        wanted["lastTransitionTime"] =
            same_status.map_or_else(|| json!(whole_seconds(now)), |one| one["lastTransitionTime"].clone());
        match index {
            Some(index) => conditions[index] = wanted,
            None => conditions.push(wanted),
        }
    }
    (conditions != old).then_some(conditions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(group: &str, plural: &str) -> ApiResource {
        ApiResource {
            group: group.into(),
            version: "v1".into(),
            api_version: "v1".into(),
            kind: "X".into(),
            plural: plural.into(),
        }
    }

    fn message<'a>(conditions: &'a [Value], kind: &str) -> (&'a str, &'a str) {
        let one = conditions.iter().find(|one| one["type"] == kind).unwrap();
        (one["status"].as_str().unwrap(), one["message"].as_str().unwrap())
    }

    #[test]
    fn conditions_tell_what_remains() {
        let mut remaining = Remaining::default();
        for _ in 0..2 {
            remaining.count(&resource("", "pods"), &["example.com/keep".to_owned()]);
        }
        remaining.count(&resource("apps", "deployments"), &[]);
        let said = updated(&[], &remaining, Timestamp::UNIX_EPOCH).unwrap();
        let expect =
            "Some resources are remaining: deployments.apps has 1 resource instances, pods. has 2 resource instances";
        assert_eq!(message(&said, "NamespaceContentRemaining"), ("True", expect));
        let expect = "Some content in the namespace has finalizers remaining: example.com/keep in 2 resource instances";
        assert_eq!(message(&said, "NamespaceFinalizersRemaining"), ("True", expect));
        assert_eq!(message(&said, "NamespaceDeletionContentFailure").0, "False");
        assert_eq!(remaining.summary().unwrap(), "1 deployments.apps, 2 pods");
    }

    #[test]
    fn they_are_written_when_they_change() {
        let others = json!({"type": "Mine", "status": "True"});
        let first = updated(std::slice::from_ref(&others), &Remaining::default(), Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(first.len(), 6);
        assert_eq!(first[0], others, "others' conditions stay");
        let later = Timestamp::from_second(60).unwrap();
        assert_eq!(updated(&first, &Remaining::default(), later), None);
        let mut remaining = Remaining::default();
        remaining.count(&resource("", "pods"), &[]);
        let second = updated(&first, &remaining, later).unwrap();
        let times: Vec<_> = second.iter().skip(1).map(|one| one["lastTransitionTime"].as_str().unwrap()).collect();
        assert_eq!(times.iter().filter(|time| time.contains("00:01:00")).count(), 1, "only what changed: {times:?}");
    }

    #[test]
    fn a_kind_that_cannot_be_deleted_is_no_success() {
        let mut remaining = Remaining::default();
        for index in 0..5 {
            let error = kube::Error::LinesCodecMaxLineLengthExceeded;
            remaining.fail(&resource("", &format!("kind{index}")), &error);
        }
        assert!(!remaining.is_empty());
        let said = updated(&[], &remaining, Timestamp::UNIX_EPOCH).unwrap();
        let (status, text) = message(&said, "NamespaceDeletionContentFailure");
        assert_eq!(status, "True");
        assert!(text.starts_with("Failed to delete all resource types, 5 remaining: kind0: "), "{text}");
    }
}
