//! Rules of pods and their specs.

use serde_json::{Value, json};

use super::{changes, rules};

fn base() -> Value {
    json!({"metadata": {"name": "p"}, "spec": {"serviceAccountName": "a", "containers": [{"name": "c", "image": "i"}]}})
}

#[track_caller]
fn check(table: &[super::Rule<'_>]) {
    rules("", "v1", "pods", &base(), table);
}

#[test]
fn the_spec() {
    let rule = "ValidatePodSpec";
    check(&[
        ("a restart policy is one of three", "validateRestartPolicy", "/spec/restartPolicy", json!("Sometimes"), "spec.restartPolicy NotSupported"),
        ("a deadline is positive", rule, "/spec/activeDeadlineSeconds", json!(0), "spec.activeDeadlineSeconds Invalid"),
        ("a deadline has an end", rule, "/spec/activeDeadlineSeconds", json!(i64::MAX), "spec.activeDeadlineSeconds Invalid"),
        ("a grace may be negative: it is a second", "podStrategy.CheckGracefulDelete", "/spec/terminationGracePeriodSeconds", json!(-1), ""),
        ("a grace has no end, as upstream's", rule, "/spec/terminationGracePeriodSeconds", json!(i64::MAX), ""),
        ("a host name is a label", rule, "/spec/hostname", json!("a.b"), "spec.hostname Invalid"),
        ("a subdomain is a label", rule, "/spec/subdomain", json!("A"), "spec.subdomain Invalid"),
        ("a name of its own is a subdomain", rule, "/spec/hostnameOverride", json!("A"), "spec.hostnameOverride Invalid"),
        ("a node's name is a subdomain", rule, "/spec/nodeName", json!("A"), "spec.nodeName Invalid"),
        ("an account's name is a subdomain", rule, "/spec/serviceAccountName", json!("A"), "spec.serviceAccountName Invalid"),
        ("a priority class' name is a subdomain", rule, "/spec/priorityClassName", json!("A"), "spec.priorityClassName Invalid"),
        ("a runtime class' name is a subdomain", "ValidateRuntimeClassName", "/spec/runtimeClassName", json!("A"), "spec.runtimeClassName Invalid"),
        ("preemption is one of two", "ValidatePreemptionPolicy", "/spec/preemptionPolicy", json!("X"), "spec.preemptionPolicy NotSupported"),
        ("a node's labels are labels", "ValidateLabels", "/spec/nodeSelector", json!({"a b": "c"}), "spec.nodeSelector Invalid"),
        ("overhead is of resources", "validateOverhead", "/spec/overhead", json!({"foo": "1"}), "spec.overhead[foo] Invalid"),
        ("overhead is not negative", "validateOverhead", "/spec/overhead", json!({"cpu": "-1"}), "spec.overhead[cpu] Invalid"),
        ("a system is one of two", "validateOS", "/spec/os", json!({"name": "plan9"}), "spec.os NotSupported"),
        ("a system has a name", "validateOS", "/spec/os", json!({"name": ""}), "spec.os.name Required"),
        ("Linux has no Windows options", "validateLinux", "/spec", json!({"os": {"name": "linux"}, "securityContext": {"windowsOptions": {}}, "containers": [{"name": "c", "image": "i"}]}), "spec.securityContext.windowsOptions Forbidden"),
        ("Windows has no users of Linux", "validateWindows", "/spec", json!({"os": {"name": "windows"}, "securityContext": {"runAsUser": 1}, "containers": [{"name": "c", "image": "i"}]}), "spec.securityContext.runAsUser Forbidden"),
        ("a readiness gate is a qualified name", "validateReadinessGates", "/spec/readinessGates", json!([{"conditionType": "a b"}]), "spec.readinessGates[0].conditionType Invalid"),
        ("a scheduling gate is a qualified name", "validateSchedulingGates", "/spec/schedulingGates", json!([{"name": "a b"}]), "spec.schedulingGates[0] Invalid"),
        ("scheduling gates are unique", "validateSchedulingGates", "/spec/schedulingGates", json!([{"name": "a"}, {"name": "a"}]), "spec.schedulingGates[1] Duplicate"),
        ("a gated pod has no node", "ValidatePodCreate", "/spec", json!({"nodeName": "n", "schedulingGates": [{"name": "a"}], "containers": [{"name": "c", "image": "i"}]}), "spec.nodeName Forbidden"),
        ("debugging begins later", "ValidatePodCreate", "/spec/ephemeralContainers", json!([{"name": "e", "image": "i"}]), "spec.ephemeralContainers Forbidden"),
        ("a claim is one of two kinds", "validatePodResourceClaim", "/spec/resourceClaims", json!([{"name": "a"}]), "spec.resourceClaims[0] Invalid"),
        ("claims are unique", "validatePodResourceClaim", "/spec/resourceClaims", json!([{"name": "a", "resourceClaimName": "x"}, {"name": "a", "resourceClaimName": "x"}]), "spec.resourceClaims[1].name Duplicate"),
        ("a token is an account's", "validatePodMetadataAndSpec", "/spec", json!({"containers": [{"name": "c", "image": "i"}], "volumes": [{"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]}), "spec.volumes[0].projected.sources[0].serviceAccountToken Forbidden"),
    ]);
}

#[test]
fn names_on_the_network() {
    let dns = "validatePodDNSConfig";
    let many: Vec<String> = (0..33).map(|index| format!("d{index}")).collect();
    let long: Vec<String> = (0..9).map(|_| "a".repeat(63) + "." + &"b".repeat(63) + "." + &"c".repeat(63) + "." + &"d".repeat(50)).collect();
    check(&[
        ("a policy is one of four", "validateDNSPolicy", "/spec/dnsPolicy", json!("X"), "spec.dnsPolicy NotSupported"),
        ("without a policy there is a configuration", dns, "/spec/dnsPolicy", json!("None"), "spec.dnsConfig Required"),
        ("without a policy there is a server", dns, "/spec", json!({"dnsPolicy": "None", "dnsConfig": {"searches": ["a"]}, "containers": [{"name": "c", "image": "i"}]}), "spec.dnsConfig.nameservers Required"),
        ("three servers are asked", dns, "/spec/dnsConfig", json!({"nameservers": ["1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4"]}), "spec.dnsConfig.nameservers Invalid"),
        ("a server is an address", dns, "/spec/dnsConfig", json!({"nameservers": ["dns"]}), "spec.dnsConfig.nameservers[0] Invalid"),
        ("thirty-two domains are searched", dns, "/spec/dnsConfig", json!({"searches": many}), "spec.dnsConfig.searches Invalid"),
        ("searched domains have an end", dns, "/spec/dnsConfig", json!({"searches": long}), "spec.dnsConfig.searches Invalid"),
        ("a searched domain is one", dns, "/spec/dnsConfig", json!({"searches": ["a b"]}), "spec.dnsConfig.searches[0] Invalid"),
        ("a searched domain may have underscores, dots and be the root", dns, "/spec/dnsConfig", json!({"searches": ["_a._tcp.b_c", "x.", "."]}), ""),
        ("an option has a name", dns, "/spec/dnsConfig", json!({"options": [{"value": "1"}]}), "spec.dnsConfig.options[0] Required"),
        ("an alias has an address", "ValidateHostAliases", "/spec/hostAliases", json!([{"ip": "x", "hostnames": ["a"]}]), "spec.hostAliases[0].ip Invalid"),
        ("an alias' name is a subdomain", "ValidateHostAliases", "/spec/hostAliases", json!([{"ip": "1.1.1.1", "hostnames": ["a_b"]}]), "spec.hostAliases[0].hostnames[0] Invalid"),
        ("an alias' name is one line", "ValidateHostAliases", "/spec/hostAliases", json!([{"ip": "1.1.1.1", "hostnames": ["a\n10.0.0.1 b"]}]), "spec.hostAliases[0].hostnames[0] Invalid"),
    ]);
    let mut host = base();
    host["spec"]["hostNetwork"] = true.into();
    host["spec"]["containers"][0]["ports"] = json!([{"containerPort": 80}]);
    rules("", "v1", "pods", &host, &[
        ("the host's port is the container's", "validatePodHostNetworkDeps", "/spec/containers/0/ports", json!([{"containerPort": 80, "hostPort": 81}]), "spec.containers[0].ports[0].hostPort Invalid"),
        ("the host keeps its parameters of the network", "ValidateHostSysctl", "/spec/securityContext", json!({"sysctls": [{"name": "net.ipv4.ip_forward", "value": "1"}]}), "spec.securityContext.sysctls[0].name Invalid"),
    ]);
}

#[test]
fn security() {
    let rule = "validatePodSpecSecurityContext";
    let own = "/spec/securityContext";
    let sysctls = |names: &[&str]| json!({"sysctls": names.iter().map(|name| json!({"name": name, "value": "1"})).collect::<Vec<_>>()});
    check(&[
        ("groups are not negative", rule, own, json!({"supplementalGroups": [1, -1]}), "spec.securityContext.supplementalGroups[1] Invalid"),
        ("a group of files is not negative", rule, own, json!({"fsGroup": -1}), "spec.securityContext.fsGroup Invalid"),
        ("a user is not negative", rule, own, json!({"runAsUser": -1}), "spec.securityContext.runAsUser Invalid"),
        ("owners change in one of two ways", "validateFSGroupChangePolicy", own, json!({"fsGroupChangePolicy": "X"}), "spec.securityContext.fsGroupChangePolicy NotSupported"),
        ("groups add up in one of two ways", "validateSupplementalGroupsPolicy", own, json!({"supplementalGroupsPolicy": "X"}), "spec.securityContext.supplementalGroupsPolicy NotSupported"),
        ("labels change in one of two ways", "validateSELinuxChangePolicy", own, json!({"seLinuxChangePolicy": "X"}), "spec.securityContext.seLinuxChangePolicy NotSupported"),
        ("a profile is of one of three types", "validateSeccompProfileType", own, json!({"seccompProfile": {"type": "Nonsense"}}), "spec.securityContext.seccompProfile.type NotSupported"),
        ("a profile's path stays below", "validateLocalDescendingPath", own, json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "../x"}}), "spec.securityContext.seccompProfile.localhostProfile Invalid"),
        ("a parameter has a name", "validateSysctls", own, sysctls(&[""]), "spec.securityContext.sysctls[0].name Required"),
        ("a parameter's name leads nowhere else", "validateSysctls", own, sysctls(&["net/../kernel/core_pattern"]), "spec.securityContext.sysctls[0].name Invalid"),
        ("a parameter's name has no empty part", "validateSysctls", own, sysctls(&["net..x"]), "spec.securityContext.sysctls[0].name Invalid"),
        ("a parameter's name may have slashes", "IsValidSysctlName", own, sysctls(&["net/ipv4/conf/eth0.1/forwarding"]), ""),
        ("parameters are unique", "validateSysctls", own, sysctls(&["a.b", "a.b"]), "spec.securityContext.sysctls[1].name Duplicate"),
        ("a parameter's name has an end", "validateSysctls", own, sysctls(&[&"a".repeat(254)]), "spec.securityContext.sysctls[0].name Invalid"),
        ("the host's processes are not shared twice", rule, "/spec", json!({"hostPID": true, "shareProcessNamespace": true, "containers": [{"name": "c", "image": "i"}]}), "spec.securityContext.shareProcessNamespace Invalid"),
        ("own users have no host's network", "validateHostUsers", "/spec", json!({"hostNetwork": true, "hostUsers": false, "containers": [{"name": "c", "image": "i"}]}), "spec.hostNetwork Forbidden"),
        ("own users have no host's processes", "validateHostUsers", "/spec", json!({"hostPID": true, "hostUsers": false, "containers": [{"name": "c", "image": "i"}]}), "spec.HostPID Forbidden"),
        ("own users have no host's IPC", "validateHostUsers", "/spec", json!({"hostIPC": true, "hostUsers": false, "containers": [{"name": "c", "image": "i"}]}), "spec.HostIPC Forbidden"),
        ("the host keeps its parameters of IPC", "ValidateHostSysctl", "/spec", json!({"hostIPC": true, "securityContext": sysctls(&["kernel.shmmax"]), "containers": [{"name": "c", "image": "i"}]}), "spec.securityContext.sysctls[0].name Invalid"),
    ]);
}

#[test]
fn places() {
    let tolerations = "/spec/tolerations";
    let toleration = "ValidateTolerations";
    let node = |term: Value| json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}});
    let at = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    let expression = |key: &str, operator: &str, values: Value| node(json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]}));
    let requirement = "ValidateNodeSelectorRequirement";
    let pods = |term: Value| json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}});
    let pod_at = "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0]";
    let spread = |more: Value| {
        let mut one = json!({"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule"});
        for (key, value) in more.as_object().unwrap() {
            one[key] = value.clone();
        }
        json!([one])
    };
    let spread_at = "spec.topologySpreadConstraints[0]";
    check(&[
        ("a key is a label", toleration, tolerations, json!([{"key": "a b", "operator": "Exists"}]), "spec.tolerations[0].key Invalid"),
        ("without a key everything is borne", toleration, tolerations, json!([{"value": "x"}]), "spec.tolerations[0].operator Invalid"),
        ("only who is put out has time", toleration, tolerations, json!([{"key": "a", "operator": "Exists", "tolerationSeconds": 1}]), "spec.tolerations[0].effect Invalid"),
        ("time may be negative, as upstream's", toleration, tolerations, json!([{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": i64::MIN}]), ""),
        ("a value is a label's", toleration, tolerations, json!([{"key": "a", "value": "b c"}]), "spec.tolerations[0].operator Invalid"),
        ("what is there has no value", toleration, tolerations, json!([{"key": "a", "operator": "Exists", "value": "b"}]), "spec.tolerations[0].operator Invalid"),
        ("an operator is one of two", toleration, tolerations, json!([{"key": "a", "operator": "X"}]), "spec.tolerations[0].operator NotSupported"),
        ("an effect is one of three", "validateTaintEffect", tolerations, json!([{"key": "a", "operator": "Exists", "effect": "X"}]), "spec.tolerations[0].effect NotSupported"),
        ("there is a term", "ValidateNodeSelector", "/spec/affinity", json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}), &format!("{at} Required")),
        ("one of several has values", requirement, "/spec/affinity", expression("a", "In", json!([])), &format!("{at}[0].matchExpressions[0].values Required")),
        ("what is there has no values", requirement, "/spec/affinity", expression("a", "Exists", json!(["b"])), &format!("{at}[0].matchExpressions[0].values Forbidden")),
        ("more than one value is not compared", requirement, "/spec/affinity", expression("a", "Gt", json!(["1", "2"])), &format!("{at}[0].matchExpressions[0].values Required")),
        ("an operator is one of six", requirement, "/spec/affinity", expression("a", "X", json!([])), &format!("{at}[0].matchExpressions[0].operator Invalid")),
        ("a key is a label", requirement, "/spec/affinity", expression("a b", "Exists", json!([])), &format!("{at}[0].matchExpressions[0].key Invalid")),
        ("a value is a label's", requirement, "/spec/affinity", expression("a", "In", json!(["b c"])), &format!("{at}[0].matchExpressions[0].values[0] Invalid")),
        ("a field is the name", "ValidateNodeFieldSelectorRequirement", "/spec/affinity", node(json!({"matchFields": [{"key": "spec.x", "operator": "In", "values": ["a"]}]})), &format!("{at}[0].matchFields[0].key Invalid")),
        ("a name is one", "ValidateNodeFieldSelectorRequirement", "/spec/affinity", node(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a", "b"]}]})), &format!("{at}[0].matchFields[0].values Required")),
        ("a weight is of 1 to 100", "ValidatePreferredSchedulingTerms", "/spec/affinity", json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 101, "preference": {}}]}}), "spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight Invalid"),
        ("company is kept somewhere", "validatePodAffinityTerm", "/spec/affinity", pods(json!({"labelSelector": {}})), &format!("{pod_at}.topologyKey Required; {pod_at}.topologyKey Invalid")),
        ("company is selected", "ValidatePodAffinityTermSelector", "/spec/affinity", pods(json!({"topologyKey": "z", "labelSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}})), &format!("{pod_at}.labelSelector.matchExpressions[0].values Required")),
        ("a namespace is a label", "validatePodAffinityTerm", "/spec/affinity", pods(json!({"topologyKey": "z", "namespaces": ["A"]})), &format!("{pod_at}.namespace Invalid")),
        ("keys need a selector", "validateMatchLabelKeysAndMismatchLabelKeys", "/spec/affinity", pods(json!({"topologyKey": "z", "matchLabelKeys": ["a"]})), &format!("{pod_at}.matchLabelKeys Forbidden")),
        ("a skew is positive", "ValidateMaxSkew", "/spec/topologySpreadConstraints", spread(json!({"maxSkew": 0})), &format!("{spread_at}.maxSkew Invalid")),
        ("pods are spread over something", "ValidateTopologyKey", "/spec/topologySpreadConstraints", spread(json!({"topologyKey": ""})), &format!("{spread_at}.topologyKey Required")),
        ("it is done or not", "ValidateWhenUnsatisfiable", "/spec/topologySpreadConstraints", spread(json!({"whenUnsatisfiable": "X"})), &format!("{spread_at}.whenUnsatisfiable NotSupported")),
        ("domains are positive", "validateMinDomains", "/spec/topologySpreadConstraints", spread(json!({"minDomains": 0})), &format!("{spread_at}.minDomains Invalid")),
        ("domains are for who must", "validateMinDomains", "/spec/topologySpreadConstraints", spread(json!({"minDomains": 1, "whenUnsatisfiable": "ScheduleAnyway"})), &format!("{spread_at}.minDomains Invalid")),
        ("nodes count in one of two ways", "validateNodeInclusionPolicy", "/spec/topologySpreadConstraints", spread(json!({"nodeTaintsPolicy": "X"})), &format!("{spread_at}.nodeTaintsPolicy NotSupported")),
        ("a spread is said once", "ValidateSpreadConstraintNotRepeat", "/spec/topologySpreadConstraints", json!([spread(json!({}))[0], spread(json!({}))[0]]), "spec.topologySpreadConstraints[1].{topologyKey, whenUnsatisfiable} Duplicate"),
        ("keys are not selected twice", "validateMatchLabelKeysInTopologySpread", "/spec/topologySpreadConstraints", spread(json!({"matchLabelKeys": ["a"], "labelSelector": {"matchLabels": {"a": "b"}}})), &format!("{spread_at}.matchLabelKeys[0] Invalid")),
    ]);
}

#[test]
fn annotations() {
    let at = "/metadata/annotations";
    check(&[
        ("a mirror is somewhere", "ValidatePodSpecificAnnotations", at, json!({"kubernetes.io/config.mirror": "x"}), "metadata.annotations[kubernetes.io/config.mirror] Invalid"),
        ("a cost is a number", "GetDeletionCostFromPodAnnotations", at, json!({"controller.kubernetes.io/pod-deletion-cost": "+1"}), "metadata.annotations[controller.kubernetes.io/pod-deletion-cost] Invalid"),
        ("a profile is one", "ValidateSeccompProfile", at, json!({"seccomp.security.alpha.kubernetes.io/pod": "x"}), "metadata.annotations.seccomp.security.alpha.kubernetes.io/pod Invalid"),
        ("a profile's path stays below", "ValidateSeccompProfile", at, json!({"container.seccomp.security.alpha.kubernetes.io/c": "localhost/../x"}), "metadata.annotations.container.seccomp.security.alpha.kubernetes.io/c Invalid"),
        ("AppArmor's container is there", "ValidateAppArmorPodAnnotations", at, json!({"container.apparmor.security.beta.kubernetes.io/x": "unconfined"}), "metadata.annotations[container.apparmor.security.beta.kubernetes.io/x] Invalid"),
        ("AppArmor's profile is one", "ValidateAppArmorProfileFormat", at, json!({"container.apparmor.security.beta.kubernetes.io/c": "x"}), "metadata.annotations[container.apparmor.security.beta.kubernetes.io/c] Invalid"),
        ("both ways say the same", "validateAppArmorAnnotationsAndFieldsMatchOnCreate", "", json!({"metadata": {"name": "p", "annotations": {"container.apparmor.security.beta.kubernetes.io/c": "unconfined"}}, "spec": {"serviceAccountName": "a", "containers": [{"name": "c", "image": "i", "securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}}]}}), "spec.containers[0].securityContext.appArmorProfile.type Forbidden"),
    ]);
}

#[test]
fn what_is_said_of_a_pod() {
    let mut pod = base();
    pod["spec"]["restartPolicy"] = "Never".into();
    pod["status"] = json!({"phase": "Running"});
    let ips = |list: &[&str]| json!({"podIP": list[0], "podIPs": list.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>()});
    let status = |mut more: Value| {
        more["qosClass"] = "BestEffort".into();
        more
    };
    let mut table = vec![
        ("a pod has addresses", "validatePodIPs", "/status", status(ips(&["10.42.0.2", "fd00::2"])), "".to_owned()),
        ("an address is one", "validatePodIPs", "/status", status(json!({"podIPs": [{"ip": "x"}]})), "status.podIPs[0].ip Invalid".to_owned()),
        ("two of a family are too many", "validatePodIPs", "/status", status(json!({"podIPs": [{"ip": "10.42.0.2"}, {"ip": "10.42.0.3"}]})), "status.podIPs Invalid".to_owned()),
        ("the host's first address is its address", "validateHostIPs", "/status", status(json!({"hostIP": "10.0.0.1", "hostIPs": [{"ip": "10.0.0.2"}]})), "status.hostIPs[0].ip Invalid".to_owned()),
        ("a class stays", "ValidatePodStatusUpdate", "/status", json!({"qosClass": "Guaranteed"}), "status.qosClass Invalid".to_owned()),
        ("a condition is a qualified name", "validatePodConditions", "/status", status(json!({"conditions": [{"type": "a b", "status": "True"}]})), "status.conditions[0].Type Invalid".to_owned()),
        ("a nominated node is one", "ValidatePodStatusUpdate", "/status", status(json!({"nominatedNodeName": "A"})), "status.nominatedNodeName Invalid".to_owned()),
    ];
    for special in ["127.0.0.1", "::1", "169.254.1.1", "fe80::1", "224.0.0.9", "0.0.0.0"] {
        table.push(("a pod has no address of the node's", "ours: the proxy dials it", "/status", status(ips(&[special])), "status.podIP Invalid; status.podIPs[0].ip Invalid".to_owned()));
    }
    let table: Vec<super::Rule<'_>> = table.iter().map(|(a, b, c, d, e)| (*a, *b, *c, d.clone(), e.as_str())).collect();
    changes(("", "v1", "pods"), "status", &pod, &table);
}

#[test]
fn what_ended_stays_ended() {
    let row = crate::row("", "v1", "pods").unwrap();
    let pod = |policy: &str, state: Value| {
        let mut pod = base();
        pod["spec"]["restartPolicy"] = policy.into();
        pod["status"] = json!({"qosClass": "BestEffort", "containerStatuses": [{"name": "c", "state": state}]});
        pod["metadata"]["namespace"] = "d".into();
        crate::Object::from_value(pod).unwrap()
    };
    let ended = |code: i32| json!({"terminated": {"exitCode": code}});
    for (policy, code, refused) in
        [("Never", 0, true), ("Never", 1, true), ("OnFailure", 0, true), ("OnFailure", 1, false), ("Always", 0, false)]
    {
        let (new, old) = (pod(policy, json!({"running": {}})), pod(policy, ended(code)));
        let expect = if refused { "status.containerStatuses[0].state Forbidden" } else { "" };
        assert_eq!(super::found(&super::update(row, "status", &new, &old)), expect, "{policy} {code}");
    }
}
