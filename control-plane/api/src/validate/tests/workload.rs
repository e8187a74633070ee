//! Rules of what makes pods.

use serde_json::{Value, json};

use super::{changes, rules};

fn template() -> Value {
    json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

fn base() -> Value {
    json!({"metadata": {"name": "w"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template()}})
}

/// What each kind that keeps pods running has in common, by its rules in upstream.
#[test]
fn what_keeps_pods_running() {
    for (resource, source, word) in [
        ("deployments", "ValidateDeploymentSpec", "ReplicaSet"),
        ("replicasets", "ValidateReplicaSetSpec", "ReplicaSet"),
        ("statefulsets", "ValidateStatefulSetSpec", "StatefulSet"),
        ("daemonsets", "ValidateDaemonSetSpec", "DaemonSet"),
    ] {
        let mut table = vec![
            ("a selector is given", source, "/spec/selector", Value::Null, "spec.selector Required"),
            ("a selector selects not everything", source, "/spec/selector", json!({}), "spec.selector Invalid"),
            ("a selector is one", source, "/spec/selector", json!({"matchExpressions": [{"key": "a", "operator": "X"}]}), "spec.selector.matchExpressions[0].operator Invalid"),
            ("a selector selects the template's pods", "ValidatePodTemplateSpecForReplicaSet", "/spec/selector", json!({"matchLabels": {"a": "c"}}), "spec.template.metadata.labels Invalid"),
            ("the template's labels are labels", "ValidatePodTemplateSpec", "/spec/template/metadata/labels", json!({"a": "b", "c d": ""}), "spec.template.labels Invalid"),
            ("the template's annotations are annotations", "ValidatePodTemplateSpec", "/spec/template/metadata/annotations", json!({"c d": ""}), "spec.template.annotations Invalid"),
            ("the template's spec is a pod's", "ValidatePodSpec", "/spec/template/spec/containers/0/name", json!("A"), "spec.template.spec.containers[0].name Invalid"),
            ("the pods are started again", source, "/spec/template/spec/restartPolicy", json!("Never"), "spec.template.spec.restartPolicy NotSupported"),
            ("the pods have no deadline", word, "/spec/template/spec/activeDeadlineSeconds", json!(5), "spec.template.spec.activeDeadlineSeconds Forbidden"),
            ("templates are not debugged", "ValidatePodTemplateSpec", "/spec/template/spec/ephemeralContainers", json!([{"name": "e", "image": "i"}]), "spec.template.spec.ephemeralContainers Forbidden"),
            ("pods are ready for a time that is not negative", source, "/spec/minReadySeconds", json!(-1), "spec.minReadySeconds Invalid"),
        ];
        if resource != "daemonsets" {
            table.push(("pods are counted", source, "/spec/replicas", json!(-1), "spec.replicas Invalid"));
        }
        if resource != "replicasets" {
            table.push(("histories are counted", source, "/spec/revisionHistoryLimit", json!(-1), "spec.revisionHistoryLimit Invalid"));
        }
        rules("apps", "v1", resource, &base(), &table);
    }
    let controller = json!({"metadata": {"name": "w"}, "spec": {"selector": {"a": "b"}, "template": template()}});
    rules("", "v1", "replicationcontrollers", &controller, &[
        ("a selector selects the template's pods", "ValidatePodTemplateSpecForRC", "/spec/selector", json!({"a": "c"}), "spec.template.metadata.labels Invalid"),
        ("pods are counted", "ValidateReplicationControllerSpec", "/spec/replicas", json!(-1), "spec.replicas Invalid"),
    ]);
}

#[test]
fn strategies() {
    let rolling = |kind: &str, down: Value, up: Value| json!({"type": kind, "rollingUpdate": {"maxUnavailable": down, "maxSurge": up}});
    let rule = "ValidateRollingUpdateDeployment";
    let at = "spec.strategy.rollingUpdate";
    rules("apps", "v1", "deployments", &base(), &[
        ("a strategy is one of two", "ValidateDeploymentStrategy", "/spec/strategy", json!({"type": "X"}), "spec.strategy.type NotSupported"),
        ("who starts anew rolls nothing", "ValidateDeploymentStrategy", "/spec/strategy", rolling("Recreate", json!(1), json!(1)), "spec.strategy.rollingUpdate Forbidden"),
        ("something moves", rule, "/spec/strategy", rolling("RollingUpdate", json!(0), json!(0)), &format!("{at}.maxUnavailable Invalid")),
        ("a share is a percentage", "ValidatePositiveIntOrPercent", "/spec/strategy", rolling("RollingUpdate", json!("x"), json!(1)), &format!("{at}.maxUnavailable Invalid")),
        ("a share is no signed percentage", "IsValidPercent", "/spec/strategy", rolling("RollingUpdate", json!("+5%"), json!(1)), &format!("{at}.maxUnavailable Invalid")),
        ("a share is not negative", "ValidatePositiveIntOrPercent", "/spec/strategy", rolling("RollingUpdate", json!(1), json!(-1)), &format!("{at}.maxSurge Invalid")),
        ("no more than all are missing", "IsNotMoreThan100Percent", "/spec/strategy", rolling("RollingUpdate", json!("101%"), json!(1)), &format!("{at}.maxUnavailable Invalid")),
        ("more than all may be added", "ValidateRollingUpdateDeployment", "/spec/strategy", rolling("RollingUpdate", json!(1), json!("200%")), ""),
        ("a deadline is after readiness", "ValidateDeploymentSpec", "/spec", json!({"selector": {"matchLabels": {"a": "b"}}, "template": template(), "minReadySeconds": 5, "progressDeadlineSeconds": 5}), "spec.progressDeadlineSeconds Invalid"),
    ]);
    let at = "spec.updateStrategy.rollingUpdate";
    rules("apps", "v1", "daemonsets", &base(), &[
        ("a strategy is one of two", "ValidateDaemonSetUpdateStrategy", "/spec/updateStrategy", json!({"type": "X"}), "spec.updateStrategy.type NotSupported"),
        ("something moves", "ValidateRollingUpdateDaemonSet", "/spec/updateStrategy", rolling("RollingUpdate", json!(0), json!(0)), &format!("{at}.maxUnavailable Required")),
        ("one way at a time", "ValidateRollingUpdateDaemonSet", "/spec/updateStrategy", rolling("RollingUpdate", json!(1), json!(1)), &format!("{at}.maxSurge Invalid")),
    ]);
    let mut sets = base();
    sets["spec"]["serviceName"] = "s".into();
    sets["spec"]["volumeClaimTemplates"] = json!([{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]);
    sets["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/d"}]);
    rules("apps", "v1", "statefulsets", &sets, &[
        ("pods come in one of two orders", "ValidateStatefulSetSpec", "/spec/podManagementPolicy", json!("X"), "spec.podManagementPolicy Invalid"),
        ("a strategy is one of two", "ValidateStatefulSetSpec", "/spec/updateStrategy", json!({"type": "X"}), "spec.updateStrategy Invalid"),
        ("who waits rolls nothing", "ValidateStatefulSetSpec", "/spec/updateStrategy", json!({"type": "OnDelete", "rollingUpdate": {"partition": 1}}), "spec.updateStrategy.rollingUpdate Invalid"),
        ("a partition is not negative", "ValidateStatefulSetSpec", "/spec/updateStrategy", json!({"type": "RollingUpdate", "rollingUpdate": {"partition": -1}}), "spec.updateStrategy.rollingUpdate.partition Invalid"),
        ("claims are kept in one of two ways", "ValidatePersistentVolumeClaimRetentionPolicy", "/spec/persistentVolumeClaimRetentionPolicy", json!({"whenDeleted": "X"}), "spec.persistentVolumeClaimRetentionPolicy.whenDeleted NotSupported"),
        ("numbers begin at none that is negative", "ValidateStatefulSetSpec", "/spec/ordinals", json!({"start": -1}), "spec.ordinals.start Invalid"),
        ("a Service's name is a label", "ValidateStatefulSetSpec", "/spec/serviceName", json!("a.b"), "spec.serviceName Invalid"),
        ("a mount is a volume's or a claim's", "ValidateVolumeMounts", "/spec/template/spec/containers/0/volumeMounts/0/name", json!("other"), "spec.template.spec.containers[0].volumeMounts[0].name NotFound"),
        ("a claim is one", "ValidatePersistentVolumeClaimSpec", "/spec/volumeClaimTemplates/0/spec/accessModes", json!([]), "spec.volumeClaimTemplates[0].spec.accessModes Required"),
    ]);
    changes(("apps", "v1", "statefulsets"), "", &sets, &[
        ("pods are counted anew", "ValidateStatefulSetUpdate", "/spec/replicas", json!(5), ""),
        ("the claims stay", "ValidateStatefulSetUpdate", "/spec/volumeClaimTemplates/0/spec/resources/requests/storage", json!("2Gi"), "spec Forbidden"),
        ("the Service stays", "ValidateStatefulSetUpdate", "/spec/serviceName", json!("t"), "spec Forbidden"),
    ]);
}

#[test]
fn jobs() {
    let job = |more: Value| {
        let mut spec = json!({"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        spec
    };
    let base = json!({"metadata": {"name": "j", "uid": "u"}, "spec": job(json!({}))});
    let rule = "validateJobSpec";
    let rules_of = |rule: Value| json!({"podFailurePolicy": {"rules": [rule]}});
    let failure = "validatePodFailurePolicyRule";
    let at = "spec.podFailurePolicy.rules[0]";
    let mut table = vec![
        ("pods end", rule, "/spec/template/spec/restartPolicy", json!("Always"), "spec.template.spec.restartPolicy Required".to_owned()),
        ("a mode is one of two", rule, "/spec", job(json!({"completionMode": "X"})), "spec.completionMode NotSupported".to_owned()),
        ("an indexed job has an end", rule, "/spec", job(json!({"completionMode": "Indexed", "parallelism": 1})), "spec.completions Required".to_owned()),
        ("an indexed job has a bound", rule, "/spec", job(json!({"completionMode": "Indexed", "completions": 1, "parallelism": 100_001})), "spec.parallelism Invalid".to_owned()),
        ("only indexes have limits", rule, "/spec", job(json!({"backoffLimitPerIndex": 1})), "spec.backoffLimitPerIndex Invalid".to_owned()),
        ("who counts failed indexes limits them", rule, "/spec", job(json!({"completionMode": "Indexed", "completions": 5, "maxFailedIndexes": 1})), "spec.backoffLimitPerIndex Required".to_owned()),
        ("pods are replaced in one of two ways", rule, "/spec", job(json!({"podReplacementPolicy": "X"})), "spec.podReplacementPolicy NotSupported".to_owned()),
        ("a manager is a path of a domain", rule, "/spec", job(json!({"managedBy": "x"})), "spec.managedBy Invalid".to_owned()),
        ("a selector is made", "ValidateGeneratedSelector", "/spec", job(json!({"selector": {"matchLabels": {"a": "b"}}})), "spec.selector Invalid; spec.template.metadata.labels Invalid".to_owned()),
        ("an action is one of four", failure, "/spec", job(rules_of(json!({"action": "X", "onExitCodes": {"operator": "In", "values": [1]}}))), format!("{at}.action NotSupported")),
        ("a rule is about something", failure, "/spec", job(rules_of(json!({"action": "Ignore"}))), format!("{at} Invalid")),
        ("codes are given", failure, "/spec", job(rules_of(json!({"action": "Ignore", "onExitCodes": {"operator": "In", "values": []}}))), format!("{at}.onExitCodes.values Required")),
        ("success is no failure", failure, "/spec", job(rules_of(json!({"action": "Ignore", "onExitCodes": {"operator": "In", "values": [0]}}))), format!("{at}.onExitCodes.values[0] Invalid")),
        ("codes are in order", failure, "/spec", job(rules_of(json!({"action": "Ignore", "onExitCodes": {"operator": "In", "values": [2, 1]}}))), format!("{at}.onExitCodes.values Invalid")),
        ("codes are unique", failure, "/spec", job(rules_of(json!({"action": "Ignore", "onExitCodes": {"operator": "In", "values": [1, 1]}}))), format!("{at}.onExitCodes.values[1] Duplicate")),
        ("a rule's container is there", failure, "/spec", job(rules_of(json!({"action": "Ignore", "onExitCodes": {"containerName": "x", "operator": "In", "values": [1]}}))), format!("{at}.onExitCodes.containerName Invalid")),
        ("an index fails within a limit", failure, "/spec", job(rules_of(json!({"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [1]}}))), format!("{at}.action Invalid")),
        ("success is of indexes", rule, "/spec", job(json!({"successPolicy": {"rules": [{"succeededCount": 1}]}})), "spec.successPolicy Invalid".to_owned()),
        ("indexes rise", "validateIndexesFormat", "/spec", job(json!({"completionMode": "Indexed", "completions": 5, "successPolicy": {"rules": [{"succeededIndexes": "3,1"}]}})), "spec.successPolicy.rules[0].succeededIndexes Invalid".to_owned()),
    ];
    for key in ["parallelism", "completions", "backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"] {
        let mut more = json!({});
        more[key] = json!(-1);
        table.push(("numbers are not negative", rule, "/spec", job(more), format!("spec.{key} Invalid")));
    }
    let table: Vec<super::Rule<'_>> = table.iter().map(|(a, b, c, d, e)| (*a, *b, *c, d.clone(), e.as_str())).collect();
    rules("batch", "v1", "jobs", &base, &table);
    changes(("batch", "v1", "jobs"), "", &base, &[
        ("the template stays", "ValidateJobSpecUpdate", "/spec/template/spec/containers/0/image", json!("j"), "spec.template Invalid"),
        ("the mode stays", "ValidateJobSpecUpdate", "/spec/completionMode", json!("Indexed"), "spec.completionMode Invalid"),
        ("it runs wider", "ValidateJobSpecUpdate", "/spec/parallelism", json!(2), ""),
    ]);
    let mut waiting = base;
    waiting["spec"]["suspend"] = true.into();
    changes(("batch", "v1", "jobs"), "", &waiting, &[
        ("who waits is told where", "validatePodTemplateUpdate", "/spec/template/spec/nodeSelector", json!({"a": "b"}), ""),
        ("who waits is told nothing else", "validatePodTemplateUpdate", "/spec/template/spec/containers/0/image", json!("j"), "spec.template Invalid"),
    ]);
}

#[test]
fn schedules() {
    let base = json!({"metadata": {"name": "c"}, "spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": {"spec":
        {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}}}});
    let rule = "validateCronJobSpec";
    rules("batch", "v1", "cronjobs", &base, &[
        ("a schedule is given", rule, "/spec/schedule", json!(""), "spec.schedule Required"),
        ("a schedule is one", "validateScheduleFormat", "/spec/schedule", json!("x * * * *"), "spec.schedule Invalid"),
        ("a zone is given", "validateTimeZone", "/spec/timeZone", json!(""), "spec.timeZone Invalid"),
        ("a zone is no host's", "validateTimeZone", "/spec/timeZone", json!("Local"), "spec.timeZone Invalid"),
        ("a zone's name leads nowhere else", "validateTimeZone", "/spec/timeZone", json!("../etc/passwd"), "spec.timeZone Invalid"),
        ("a zone is one", "validateTimeZone", "/spec/timeZone", json!("Europe/Berlin"), ""),
        ("jobs meet in one of three ways", "validateConcurrencyPolicy", "/spec/concurrencyPolicy", json!("X"), "spec.concurrencyPolicy NotSupported"),
        ("a deadline is not negative", rule, "/spec/startingDeadlineSeconds", json!(-1), "spec.startingDeadlineSeconds Invalid"),
        ("successes are counted", rule, "/spec/successfulJobsHistoryLimit", json!(-1), "spec.successfulJobsHistoryLimit Invalid"),
        ("failures are counted", rule, "/spec/failedJobsHistoryLimit", json!(-1), "spec.failedJobsHistoryLimit Invalid"),
        ("jobs select by themselves", "ValidateJobTemplateSpec", "/spec/jobTemplate/spec/manualSelector", json!(true), "spec.jobTemplate.spec.manualSelector NotSupported"),
        ("a job is one", "ValidateJobTemplateSpec", "/spec/jobTemplate/spec/template/spec/restartPolicy", json!("Always"), "spec.jobTemplate.spec.template.spec.restartPolicy Required"),
    ]);
}

#[test]
fn counts_in_a_status() {
    let mut deployment = base();
    deployment["status"] = json!({"replicas": 2, "readyReplicas": 1, "availableReplicas": 1});
    let rule = "ValidateDeploymentStatus";
    changes(("apps", "v1", "deployments"), "status", &deployment, &[
        ("counts are not negative", rule, "/status", json!({"replicas": 1, "collisionCount": -1}), "status.collisionCount Invalid"),
        ("a part is no more than the whole", rule, "/status", json!({"replicas": 1, "readyReplicas": 2}), "status.readyReplicas Invalid"),
        ("who is available is ready", rule, "/status", json!({"replicas": 2, "readyReplicas": 1, "availableReplicas": 2}), "status.availableReplicas Invalid"),
    ]);
}
