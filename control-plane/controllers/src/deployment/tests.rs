//! A small world in memory: plans are executed by hand until nothing is left to do, pods become ready when told.

use super::*;

struct Rollout {
    deployment: Deployment,
    sets: Vec<Arc<ReplicaSet>>,
    now: Timestamp,
    /// What the API server makes of each template that it is given.
    stored: fn(&mut Value),
    /// Pods of sets whose name has this part never become ready.
    broken: Option<String>,
    fewest_available: i32,
    most_pods: i32,
}

impl Rollout {
    fn new(replicas: i32, strategy: Value) -> Self {
        let deployment = json!({
            "metadata": {"namespace": "d", "name": "web", "uid": "d1", "generation": 1},
            "spec": {"replicas": replicas, "strategy": strategy, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "v1"}]}}}});
        Self {
            deployment: serde_json::from_value(deployment).unwrap(),
            sets: Vec::new(),
            now: Timestamp::UNIX_EPOCH,
            stored: |_| {},
            broken: None,
            fewest_available: 0,
            most_pods: 0,
        }
    }

    fn set_image(&mut self, image: &str) {
        self.deployment.metadata.generation = self.deployment.metadata.generation.map(|generation| generation + 1);
        self.deployment.spec.as_mut().unwrap().template.spec.as_mut().unwrap().containers[0].image = Some(image.into());
    }

    fn plan(&self) -> Plan {
        plan(&self.deployment, &self.sets, &|set| replicas_of(set) > 0, self.now)
    }

    /// Executes one plan; false if there was nothing to do.
    fn step(&mut self) -> bool {
        let plan = self.plan();
        for action in &plan.actions {
            self.apply(action);
        }
        self.run_pods();
        let available: i32 = self.sets.iter().map(|set| available_of(set)).sum();
        self.fewest_available = self.fewest_available.min(available);
        self.most_pods = self.most_pods.max(self.sets.iter().map(|set| replicas_of(set)).sum());
        self.now = after(self.now, SignedDuration::from_secs(1));
        !plan.actions.is_empty()
    }

    fn settle(&mut self) {
        for _ in 0..200 {
            if !self.step() {
                return;
            }
        }
        panic!("no end in sight: {:?}", self.plan());
    }

    fn apply(&mut self, action: &Action) {
        match action {
            Action::Create { body, .. } => {
                let mut body = body.clone();
                (self.stored)(&mut body["spec"]["template"]);
                let mut set: ReplicaSet = serde_json::from_value(body).unwrap();
                set.metadata.namespace = Some("d".into());
                set.metadata.uid = Some(format!("s{}", self.sets.len()));
                set.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.now));
                self.sets.push(Arc::new(set));
            }
            Action::Patch { kind: Kind::ReplicaSet, name, patch, .. } => {
                let set = self.sets.iter_mut().find(|set| set.name_any() == *name).unwrap();
                *set = Arc::new(merged(set.as_ref(), patch));
            }
            Action::Patch { patch, .. } => self.deployment = merged(&self.deployment, patch),
            Action::Delete { name, .. } => self.sets.retain(|set| set.name_any() != *name),
            _ => {}
        }
    }

    fn run_pods(&mut self) {
        for set in &mut self.sets {
            let size = replicas_of(set);
            let image = set.spec.as_ref().unwrap().template.as_ref().unwrap().spec.as_ref().unwrap().containers[0]
                .image
                .clone();
            let serving = if image == self.broken { 0 } else { size };
            let status = json!({"status": {"replicas": size, "readyReplicas": serving, "availableReplicas": serving}});
            *set = Arc::new(merged(set.as_ref(), &status));
        }
    }

    fn sizes(&self) -> Vec<i32> {
        self.sets.iter().map(|set| replicas_of(set)).collect()
    }

    fn condition(&self, kind: &str) -> (String, String) {
        let status = self.deployment.status.as_ref().unwrap();
        let condition = status.conditions.iter().flatten().find(|condition| condition.type_ == kind).unwrap();
        (condition.status.clone(), condition.reason.clone().unwrap())
    }
}

fn merged<T: serde::Serialize + serde::de::DeserializeOwned>(object: &T, patch: &Value) -> T {
    fn merge(onto: &mut Value, patch: &Value) {
        let Value::Object(patch) = patch else { return onto.clone_from(patch) };
        if !onto.is_object() {
            *onto = json!({});
        }
        for (key, value) in patch {
            if value.is_null() {
                onto.as_object_mut().unwrap().remove(key);
            } else {
                merge(&mut onto[key], value);
            }
        }
    }
    let mut value = serde_json::to_value(object).unwrap();
    merge(&mut value, patch);
    serde_json::from_value(value).unwrap()
}

#[test]
fn rolls_within_its_limits() {
    let check = |strategy: Value, most: i32, fewest: i32| {
        let mut rollout = Rollout::new(4, strategy.clone());
        rollout.settle();
        assert_eq!(rollout.sizes(), [4]);
        (rollout.fewest_available, rollout.most_pods) = (4, 4);
        rollout.set_image("v2");
        rollout.settle();
        assert_eq!(rollout.sizes(), [0, 4], "{strategy}");
        assert!(rollout.most_pods <= most, "{strategy}: {} pods", rollout.most_pods);
        assert!(rollout.fewest_available >= fewest, "{strategy}: {} available", rollout.fewest_available);
        assert_eq!(rollout.condition("Progressing").1, "NewReplicaSetAvailable");
        assert_eq!(annotation::revision(&rollout.deployment), 2);
    };
    check(json!(null), 5, 3);
    check(json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}), 5, 4);
    check(json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}), 4, 3);
    check(json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "100%", "maxUnavailable": "50%"}}), 8, 2);
    check(json!({"type": "Recreate"}), 4, 0);
}

#[test]
fn a_broken_image_leaves_the_old_pods_serving() {
    let mut rollout = Rollout::new(4, json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}));
    rollout.settle();
    rollout.broken = Some("v2".into());
    rollout.set_image("v2");
    rollout.settle();
    assert_eq!(rollout.sizes(), [4, 1]);
    assert_eq!(rollout.condition("Available").0, "True");
    let again = rollout.plan().again_at.expect("looks again at the deadline");
    rollout.now = again;
    rollout.settle();
    assert_eq!(rollout.condition("Progressing"), ("False".into(), "ProgressDeadlineExceeded".into()));
    assert_eq!(rollout.sizes(), [4, 1], "nothing is torn down");
}

#[test]
fn rollback_reuses_the_old_set_with_a_new_revision() {
    let mut rollout = Rollout::new(2, json!(null));
    rollout.settle();
    rollout.set_image("v2");
    rollout.settle();
    rollout.set_image("v1");
    rollout.settle();
    assert_eq!(rollout.sizes(), [2, 0]);
    assert_eq!(annotation::revision(rollout.sets[0].as_ref()), 3);
    assert_eq!(rollout.sets[0].annotations()["deployment.kubernetes.io/revision-history"], "1");
}

#[test]
fn scaling_in_the_middle_keeps_the_shares() {
    let mut rollout = Rollout::new(10, json!({"rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}}));
    rollout.settle();
    rollout.broken = Some("v2".into());
    rollout.set_image("v2");
    rollout.settle();
    assert_eq!(rollout.sizes(), [8, 5]);
    rollout.deployment.spec.as_mut().unwrap().replicas = Some(15);
    for action in &rollout.plan().actions {
        rollout.apply(action);
    }
    assert_eq!(rollout.sizes(), [11, 7], "kubernetes.io, Deployment, proportional scaling: 18 in all");
}

#[test]
fn paused_does_not_roll_but_scales() {
    let mut rollout = Rollout::new(2, json!(null));
    rollout.settle();
    rollout.deployment.spec.as_mut().unwrap().paused = Some(true);
    rollout.set_image("v2");
    rollout.settle();
    assert_eq!(rollout.sizes(), [2]);
    rollout.deployment.spec.as_mut().unwrap().replicas = Some(5);
    rollout.settle();
    assert_eq!(rollout.sizes(), [5]);
}

#[test]
fn history_is_limited() {
    let mut rollout = Rollout::new(1, json!(null));
    rollout.deployment.spec.as_mut().unwrap().revision_history_limit = Some(2);
    for version in 1..=6 {
        rollout.set_image(&format!("v{version}"));
        rollout.settle();
    }
    assert_eq!(rollout.sizes(), [0, 0, 1]);
}

#[test]
fn an_orphan_with_the_template_is_adopted_and_not_doubled() {
    let mut rollout = Rollout::new(2, json!(null));
    rollout.settle();
    let orphan = merged(rollout.sets[0].as_ref(), &json!({"metadata": {"ownerReferences": null}}));
    rollout.sets[0] = Arc::new(orphan);
    rollout.deployment.status = None;
    let adoption = rollout.plan();
    assert!(matches!(adoption.actions.as_slice(), [Action::Patch { kind: Kind::ReplicaSet, .. }]), "{adoption:?}");
    rollout.settle();
    assert_eq!(rollout.sizes(), [2]);
}

#[test]
fn a_template_in_another_form_makes_one_set() {
    let check = |change: Value| {
        let mut rollout = Rollout::new(2, json!(null));
        rollout.deployment = merged(&rollout.deployment, &json!({"spec": {"template": {"spec": change}}}));
        // As the API server writes a set's template: without what says nothing, with what it defaults to.
        rollout.stored = |template| {
            let container = template["spec"]["containers"][0].as_object_mut().unwrap();
            container.retain(|_, value| *value != json!([]) && *value != json!(false));
            if let Some(limits) = container.get_mut("resources").and_then(|resources| resources.get_mut("limits")) {
                limits["memory"] = json!("1Gi");
            }
            container.entry("terminationMessagePath").or_insert(json!("/dev/termination-log"));
            template["spec"].as_object_mut().unwrap().retain(|_, value| *value != json!(false));
            template["spec"]["dnsPolicy"] = json!("ClusterFirst");
        };
        rollout.settle();
        assert_eq!(rollout.sizes(), [2], "{change}");
        assert_eq!(rollout.deployment.status.as_ref().unwrap().collision_count, None, "{change}");
    };
    let container = |extra: Value| json!({"containers": [merged(&json!({"name": "c", "image": "v1"}), &extra)]});
    check(container(json!({"resources": {"limits": {"memory": "1024Mi"}}})));
    check(container(json!({"env": [], "tty": false})));
    check(json!({"hostNetwork": false}));
}

#[test]
fn should_templates_never_be_equal_sets_are_few() {
    let mut rollout = Rollout::new(1, json!(null));
    rollout.stored = |template| template["spec"]["hostname"] = json!("never-what-was-written");
    for _ in 0..1000 {
        rollout.step();
    }
    assert!(rollout.sets.len() <= 11, "{} sets in a thousand seconds", rollout.sets.len());
    assert!(rollout.deployment.status.unwrap().collision_count.unwrap() <= 11);
}

#[test]
fn a_name_that_another_set_has_is_not_waited_for() {
    let mut rollout = Rollout::new(1, json!(null));
    rollout.settle();
    let theirs = merged(
        rollout.sets[0].as_ref(),
        &json!({"metadata": {"uid": "theirs", "ownerReferences": null, "labels": null}}),
    );
    rollout.sets = vec![Arc::new(theirs)];
    rollout.settle();
    assert_eq!(rollout.sets.len(), 2);
    assert_ne!(rollout.sets[0].name_any(), rollout.sets[1].name_any());
    assert_eq!(rollout.deployment.status.unwrap().collision_count, Some(1));
}
