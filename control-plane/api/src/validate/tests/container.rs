//! Rules of containers.

use serde_json::{Value, json};

use super::rules;

fn base() -> Value {
    json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "image": {"reference": "i"}},
            {"name": "claim", "persistentVolumeClaim": {"claimName": "p"}}],
        "initContainers": [{"name": "init", "image": "i"}],
        "containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/m"}]}]}})
}

#[track_caller]
fn check(table: &[super::Rule<'_>]) {
    rules("", "v1", "pods", &base(), table);
}

#[test]
fn what_each_container_has() {
    let common = "validateContainerCommon";
    check(&[
        ("a container has a name", common, "/spec/containers/0/name", json!(""), "spec.containers[0].name Required"),
        ("a container's name is a label", common, "/spec/containers/0/name", json!("a.b"), "spec.containers[0].name Invalid"),
        ("names are unique", "validateContainers", "/spec/containers/1", json!({"name": "c", "image": "i"}), "spec.containers[1].name Duplicate"),
        ("names are unique among the lists", "validateInitContainers", "/spec/initContainers/0/name", json!("c"), "spec.initContainers[0].name Duplicate"),
        ("a container has an image", common, "/spec/containers/0/image", json!(""), "spec.containers[0].image Required"),
        ("an image has no space around it", "validateContainerOnlyForPod", "/spec/containers/0/image", json!(" i"), "spec.containers[0].image Invalid"),
        ("messages are read as one of two ways", common, "/spec/containers/0/terminationMessagePolicy", json!("X"), "spec.containers[0].terminationMessagePolicy NotSupported"),
        ("images are pulled in one of three ways", "validatePullPolicy", "/spec/containers/0/imagePullPolicy", json!("X"), "spec.containers[0].imagePullPolicy NotSupported"),
        ("a pod has a container", "validateContainers", "/spec/containers", json!([]), "spec.containers Required"),
        ("a restart policy is one of three", "validateContainerRestartPolicy", "/spec/containers/0/restartPolicy", json!("X"), "spec.containers[0].restartPolicy NotSupported"),
        ("rules need a policy", "validateContainerRestartPolicy", "/spec/containers/0/restartPolicyRules", json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}}]), "spec.containers[0].restartPolicy Required"),
        ("a resource is resized in one way", "validateResizePolicy", "/spec/containers/0/resizePolicy", json!([{"resourceName": "cpu", "restartPolicy": "NotRequired"}, {"resourceName": "cpu", "restartPolicy": "NotRequired"}]), "spec.containers[0].resizePolicy[1] Duplicate"),
        ("cpu and memory are resized", "validateResizePolicy", "/spec/containers/0/resizePolicy", json!([{"resourceName": "disk", "restartPolicy": "NotRequired"}]), "spec.containers[0].resizePolicy NotSupported"),
    ]);
}

#[test]
fn ports() {
    let rule = "validateContainerPorts";
    let port = "/spec/containers/0/ports";
    check(&[
        ("a port has a number", rule, port, json!([{"name": "a"}]), "spec.containers[0].ports[0].containerPort Required"),
        ("a port's number is of 16 bits", rule, port, json!([{"containerPort": 65536}]), "spec.containers[0].ports[0].containerPort Invalid"),
        ("a port's number is positive", rule, port, json!([{"containerPort": -1}]), "spec.containers[0].ports[0].containerPort Invalid"),
        ("a host port's number is of 16 bits", rule, port, json!([{"containerPort": 1, "hostPort": 65536}]), "spec.containers[0].ports[0].hostPort Invalid"),
        ("a port's name has at most 15 bytes", rule, port, json!([{"containerPort": 1, "name": "a".repeat(16)}]), "spec.containers[0].ports[0].name Invalid"),
        ("port names are unique", rule, port, json!([{"containerPort": 1, "name": "a"}, {"containerPort": 2, "name": "a"}]), "spec.containers[0].ports[1].name Duplicate"),
        ("a protocol is one of three", rule, port, json!([{"containerPort": 1, "protocol": "ICMP"}]), "spec.containers[0].ports[0].protocol NotSupported"),
        ("host ports are unique", "AccumulateUniqueHostPorts", port, json!([{"containerPort": 1, "hostPort": 9}, {"containerPort": 2, "hostPort": 9}]), "spec.containers[0].ports[1].hostPort Duplicate"),
        ("a host's address is an address", "ours: a name binds nothing", port, json!([{"containerPort": 1, "hostPort": 9, "hostIP": "host"}]), "spec.containers[0].ports[0].hostIP Invalid"),
    ]);
}

#[test]
fn environment() {
    let env = "/spec/containers/0/env";
    let from = |source: Value| json!([{"name": "A", "valueFrom": source}]);
    let field = |path: &str| from(json!({"fieldRef": {"fieldPath": path}}));
    let resource =
        |name: &str, divisor: &str| from(json!({"resourceFieldRef": {"resource": name, "divisor": divisor}}));
    let at = "spec.containers[0].env[0].valueFrom";
    check(&[
        ("a variable has a name", "ValidateEnv", env, json!([{"name": ""}]), "spec.containers[0].env[0].name Required"),
        ("a variable's name has no equals sign", "ValidateEnv", env, json!([{"name": "a=b"}]), "spec.containers[0].env[0].name Invalid"),
        ("a variable's name may have spaces", "IsRelaxedEnvVarName", env, json!([{"name": "a b"}]), ""),
        ("a source is given", "validateEnvVarValueFrom", env, from(json!({})), &format!("{at} Invalid")),
        ("one source is given", "validateEnvVarValueFrom", env, from(json!({"fieldRef": {"fieldPath": "metadata.name"}, "secretKeyRef": {"name": "s", "key": "k"}})), &format!("{at} Invalid")),
        ("a value or a source", "validateEnvVarValueFrom", env, json!([{"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]), &format!("{at} Invalid")),
        ("a field is known", "validateObjectFieldSelector", env, field("metadata.foo"), &format!("{at}.fieldRef.fieldPath Invalid")),
        ("a field is one that variables may have", "validateObjectFieldSelector", env, field("metadata.labels"), &format!("{at}.fieldRef.fieldPath NotSupported")),
        ("a label's key is a qualified name", "validateObjectFieldSelector", env, field("metadata.labels['a b']"), &format!("{at}.fieldRef Invalid")),
        ("one label may be had", "validateObjectFieldSelector", env, field("metadata.labels['a']"), ""),
        ("one annotation may be had", "validateObjectFieldSelector", env, field("metadata.annotations['X.io/Y']"), ""),
        ("no other field has keys", "validateObjectFieldSelector", env, field("metadata.name['a']"), &format!("{at}.fieldRef.fieldPath Invalid")),
        ("fields are those of v1", "ConvertDownwardAPIFieldLabel", env, from(json!({"fieldRef": {"apiVersion": "v2", "fieldPath": "metadata.name"}})), &format!("{at}.fieldRef.fieldPath Invalid")),
        ("a resource is known", "validateContainerResourceFieldSelector", env, resource("limits.gpu", "1"), &format!("{at}.resourceFieldRef.resource NotSupported")),
        ("cores are divided by 1 or 1m", "validateContainerResourceDivisor", env, resource("limits.cpu", "2"), &format!("{at}.resourceFieldRef.divisor Invalid")),
        ("bytes are divided by units", "validateContainerResourceDivisor", env, resource("limits.memory", "1m"), &format!("{at}.resourceFieldRef.divisor Invalid")),
        ("a key's map has a name", "validateConfigMapKeySelector", env, from(json!({"configMapKeyRef": {"key": "k"}})), &format!("{at}.configMapKeyRef.name Invalid")),
        ("a key is a key", "validateSecretKeySelector", env, from(json!({"secretKeyRef": {"name": "s", "key": "a/b"}})), &format!("{at}.secretKeyRef.key Invalid")),
        ("a key is given", "validateSecretKeySelector", env, from(json!({"secretKeyRef": {"name": "s"}})), &format!("{at}.secretKeyRef.key Required")),
        ("a file's volume is there", "validateFileKeySelector", env, from(json!({"fileKeyRef": {"volumeName": "x", "path": "p", "key": "K"}})), &format!("{at}.fileKeyRef.volumeName NotFound")),
        ("a file's path stays below", "validateFileKeySelector", env, from(json!({"fileKeyRef": {"volumeName": "v", "path": "../p", "key": "K"}})), &format!("{at}.fileKeyRef.path Invalid")),
        ("whole maps come from somewhere", "ValidateEnvFrom", "/spec/containers/0/envFrom", json!([{}]), "spec.containers[0].envFrom Invalid"),
        ("whole maps come from one place", "ValidateEnvFrom", "/spec/containers/0/envFrom", json!([{"secretRef": {"name": "a"}, "configMapRef": {"name": "a"}}]), "spec.containers[0].envFrom Invalid"),
        ("a whole map has a name", "validateSecretEnvSource", "/spec/containers/0/envFrom", json!([{"secretRef": {}}]), "spec.containers[0].envFrom[0].secretRef.name Required"),
        ("a whole map's name is one", "validateSecretEnvSource", "/spec/containers/0/envFrom", json!([{"secretRef": {"name": "A"}}]), "spec.containers[0].envFrom[0].secretRef.name Invalid"),
        ("a prefix is the start of a name", "ValidateEnvFrom", "/spec/containers/0/envFrom", json!([{"prefix": "a=", "secretRef": {"name": "a"}}]), "spec.containers[0].envFrom[0].prefix Invalid"),
    ]);
}

#[test]
fn mounts() {
    let rule = "ValidateVolumeMounts";
    let mounts = "/spec/containers/0/volumeMounts";
    let one = |more: Value| {
        let mut mount = json!({"name": "v", "mountPath": "/m"});
        for (key, value) in more.as_object().unwrap() {
            mount[key] = value.clone();
        }
        json!([mount])
    };
    let at = "spec.containers[0].volumeMounts";
    check(&[
        ("a mount names a volume", rule, mounts, one(json!({"name": ""})), &format!("{at}[0].name Required")),
        ("a mount's volume is there", rule, mounts, one(json!({"name": "x"})), &format!("{at}[0].name NotFound")),
        ("a mount has a path", rule, mounts, one(json!({"mountPath": ""})), &format!("{at}[0].mountPath Required")),
        ("paths are unique", rule, mounts, json!([{"name": "v", "mountPath": "/m"}, {"name": "v", "mountPath": "/m"}]), &format!("{at}[1].mountPath Invalid")),
        ("a path need not be clean", rule, mounts, one(json!({"mountPath": "/q/../z"})), ""),
        ("a path may have a colon", rule, mounts, one(json!({"mountPath": "/a:b"})), ""),
        ("a subpath is relative", "validateLocalDescendingPath", mounts, one(json!({"subPath": "/a"})), &format!("{at}.subPath Invalid")),
        ("a subpath stays below", "validateLocalDescendingPath", mounts, one(json!({"subPath": "a/../../b"})), &format!("{at}.subPath Invalid")),
        ("an expression stays below", "validateLocalDescendingPath", mounts, one(json!({"subPathExpr": "../$(A)"})), &format!("{at}.subPathExpr Invalid")),
        ("a subpath or an expression", rule, mounts, one(json!({"subPath": "a", "subPathExpr": "b"})), &format!("{at}[0].subPathExpr Invalid")),
        ("an image's volume has no subpath", rule, mounts, one(json!({"name": "w", "subPath": "a"})), &format!("{at}[0].subPath Invalid")),
        ("propagation is one of three", "validateMountPropagation", mounts, one(json!({"mountPropagation": "X"})), &format!("{at}.mountPropagation NotSupported")),
        ("only a privileged container mounts for the host", "validateMountPropagation", mounts, one(json!({"mountPropagation": "Bidirectional"})), &format!("{at}.mountPropagation Forbidden")),
        ("the host's mounts may be seen", "validateMountPropagation", mounts, one(json!({"mountPropagation": "HostToContainer"})), ""),
        ("only what is read only is so to its depth", "validateMountRecursiveReadOnly", mounts, one(json!({"recursiveReadOnly": "Enabled"})), &format!("{at}.recursiveReadOnly Forbidden")),
        ("recursion is one of three", "validateMountRecursiveReadOnly", mounts, one(json!({"recursiveReadOnly": "X"})), &format!("{at}.recursiveReadOnly NotSupported")),
        ("recursion propagates nothing", "validateMountRecursiveReadOnly", mounts, one(json!({"recursiveReadOnly": "IfPossible", "readOnly": true, "mountPropagation": "HostToContainer"})), &format!("{at}.recursiveReadOnly Forbidden")),
        ("a device is a claim's", "ValidateVolumeDevices", "/spec/containers/0/volumeDevices", json!([{"name": "w", "devicePath": "/d"}]), "spec.containers[0].volumeDevices[0].name Invalid"),
        ("a device's volume is there", "ValidateVolumeDevices", "/spec/containers/0/volumeDevices", json!([{"name": "x", "devicePath": "/d"}]), "spec.containers[0].volumeDevices[0].name NotFound"),
        ("a device's path stays below", "ValidateVolumeDevices", "/spec/containers/0/volumeDevices", json!([{"name": "claim", "devicePath": "/d/../x"}]), "spec.containers[0].volumeDevices[0].devicePath Invalid"),
        ("a device's path is no mount's", "ValidateVolumeDevices", "/spec/containers/0/volumeDevices", json!([{"name": "claim", "devicePath": "/m"}]), "spec.containers[0].volumeMounts[0].mountPath Invalid; spec.containers[0].volumeDevices[0].devicePath Invalid"),
    ]);
}

#[test]
fn probes_and_hooks() {
    let live = "/spec/containers/0/livenessProbe";
    let at = "spec.containers[0].livenessProbe";
    let with = |more: Value| {
        let mut probe = json!({"exec": {"command": ["a"]}});
        for (key, value) in more.as_object().unwrap() {
            probe[key] = value.clone();
        }
        probe
    };
    check(&[
        ("a probe has a handler", "validateHandler", live, json!({}), &format!("{at} Required")),
        ("a probe has one handler", "validateHandler", live, with(json!({"tcpSocket": {"port": 1}})), &format!("{at}.tcpSocket Forbidden")),
        ("a command is given", "validateExecAction", live, json!({"exec": {}}), &format!("{at}.exec.command Required")),
        ("a port's number is one", "ValidatePortNumOrName", live, json!({"tcpSocket": {"port": 0}}), &format!("{at}.tcpSocket.port Invalid")),
        ("a port's name is one", "ValidatePortNumOrName", live, json!({"tcpSocket": {"port": "a_b"}}), &format!("{at}.tcpSocket.port Invalid")),
        ("a scheme is one of two", "validateHTTPGetAction", live, json!({"httpGet": {"port": 1, "scheme": "X"}}), &format!("{at}.httpGet.scheme NotSupported")),
        ("a header's name is one", "validateHTTPGetAction", live, json!({"httpGet": {"port": 1, "httpHeaders": [{"name": "a b", "value": ""}]}}), &format!("{at}.httpGet.httpHeaders Invalid")),
        ("a grpc probe has a port", "validateGRPCAction", live, json!({"grpc": {}}), &format!("{at}.grpc.port Invalid")),
        ("delays are not negative", "validateProbe", live, with(json!({"initialDelaySeconds": -1})), &format!("{at}.initialDelaySeconds Invalid")),
        ("timeouts are not negative", "validateProbe", live, with(json!({"timeoutSeconds": -1})), &format!("{at}.timeoutSeconds Invalid")),
        ("periods are not negative", "validateProbe", live, with(json!({"periodSeconds": -1})), &format!("{at}.periodSeconds Invalid")),
        ("failures are not negative", "validateProbe", live, with(json!({"failureThreshold": -1})), &format!("{at}.failureThreshold Invalid")),
        ("life is shown by one success", "validateLivenessProbe", live, with(json!({"successThreshold": 2})), &format!("{at}.successThreshold Invalid")),
        ("a start is shown by one success", "validateStartupProbe", "/spec/containers/0/startupProbe", with(json!({"successThreshold": 2})), "spec.containers[0].startupProbe.successThreshold Invalid"),
        ("a grace is positive", "validateProbe", live, with(json!({"terminationGracePeriodSeconds": 0})), &format!("{at}.terminationGracePeriodSeconds Invalid")),
        ("readiness ends nothing", "validateReadinessProbe", "/spec/containers/0/readinessProbe", with(json!({"terminationGracePeriodSeconds": 1})), "spec.containers[0].readinessProbe.terminationGracePeriodSeconds Invalid"),
        ("what ends by itself is not probed", "validateInitContainers", "/spec/initContainers/0/livenessProbe", with(json!({})), "spec.initContainers[0].livenessProbe Forbidden"),
        ("what ends by itself has no hooks", "validateInitContainers", "/spec/initContainers/0/lifecycle", json!({"preStop": {"exec": {"command": ["a"]}}}), "spec.initContainers[0].lifecycle Forbidden"),
        ("a sidecar is probed", "validateInitContainers", "/spec/initContainers/0", json!({"name": "s", "image": "i", "restartPolicy": "Always", "livenessProbe": {"exec": {"command": ["a"]}}}), ""),
        ("a hook has a handler", "validateHandler", "/spec/containers/0/lifecycle", json!({"preStop": {}}), "spec.containers[0].lifecycle.preStop Required"),
        ("a hook sleeps no longer than the pod has", "validateSleepAction", "/spec/containers/0/lifecycle", json!({"preStop": {"sleep": {"seconds": 31}}}), "spec.containers[0].lifecycle.preStop.sleep Invalid"),
        ("a hook does not sleep backwards", "validateSleepAction", "/spec/containers/0/lifecycle", json!({"preStop": {"sleep": {"seconds": -1}}}), "spec.containers[0].lifecycle.preStop.sleep Invalid"),
        ("a signal needs a system", "validateStopSignal", "/spec/containers/0/lifecycle", json!({"stopSignal": "SIGUSR1"}), "spec.containers[0].lifecycle.stopSignal Forbidden"),
    ]);
}

#[test]
fn resources() {
    let amounts = "/spec/containers/0/resources";
    let at = "spec.containers[0].resources";
    check(&[
        ("a name without a domain is a standard one", "validateContainerResourceName", amounts, json!({"limits": {"foo": "1"}}), &format!("{at}.limits[foo] Invalid; {at}.requests[foo] Invalid")),
        ("a name is a qualified name", "validateResourceName", amounts, json!({"limits": {"a b": "1"}}), &format!("{at}.limits[a b] Invalid; {at}.requests[a b] Invalid")),
        ("an amount is not negative", "ValidateNonnegativeQuantity", amounts, json!({"limits": {"cpu": "-1"}}), &format!("{at}.limits[cpu] Invalid; {at}.requests[cpu] Invalid")),
        ("devices are counted", "ValidateResourceQuantityValue", amounts, json!({"limits": {"x.io/gpu": "1500m"}}), &format!("{at}.limits[x.io/gpu] Invalid; {at}.requests[x.io/gpu] Invalid")),
        ("a request is at most its limit", "validateResourceRequirements", amounts, json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}), &format!("{at}.requests Invalid")),
        ("a request of devices is its limit", "validateResourceRequirements", amounts, json!({"requests": {"x.io/gpu": "1"}, "limits": {"x.io/gpu": "2"}}), &format!("{at}.requests Invalid")),
        ("devices have a limit", "validateResourceRequirements", amounts, json!({"requests": {"x.io/gpu": "1"}}), &format!("{at}.limits Required")),
        ("huge pages need memory or cpu", "validateResourceRequirements", amounts, json!({"limits": {"hugepages-2Mi": "2Mi"}}), &format!("{at} Forbidden")),
        ("huge pages are whole", "validateResourceQuantityHugePageValue", amounts, json!({"limits": {"cpu": "1", "hugepages-2Mi": "3Mi"}}), &format!("{at}.limits[hugepages-2Mi] Invalid; {at}.requests[hugepages-2Mi] Invalid")),
        ("a claim is the pod's", "validateResourceClaimNames", amounts, json!({"claims": [{"name": "x"}]}), &format!("{at}.claims[0] NotFound")),
        ("a fraction of a byte is taken", "ValidateResourceQuantityValue", amounts, json!({"limits": {"memory": "100m"}}), ""),
        ("the pod's own names are few", "validatePodResourceName", "/spec/resources", json!({"limits": {"x.io/gpu": "1"}}), "spec.resources.limits[x.io/gpu] NotSupported"),
        ("the pod claims nothing itself", "validatePodResources", "/spec/resources", json!({"claims": [{"name": "x"}]}), "spec.resources.claims Forbidden; spec.resources.claims[0] NotFound"),
    ]);
}

#[test]
fn security() {
    let own = "/spec/containers/0/securityContext";
    let at = "spec.containers[0].securityContext";
    let rule = "ValidateSecurityContext";
    check(&[
        ("a user's number is not negative", rule, own, json!({"runAsUser": -1}), &format!("{at}.runAsUser Invalid")),
        ("a user's number is of 31 bits", rule, own, json!({"runAsUser": 2_147_483_648_i64}), &format!("{at}.runAsUser Invalid")),
        ("a group's number is not negative", rule, own, json!({"runAsGroup": -1}), &format!("{at}.runAsGroup Invalid")),
        ("proc is mounted in one of two ways", "ValidateProcMountType", own, json!({"procMount": "X"}), &format!("{at}.procMount NotSupported")),
        ("the host's proc stays masked", rule, own, json!({"procMount": "Unmasked"}), &format!("{at}.procMount Invalid")),
        ("a profile is of one of three types", "validateSeccompProfileType", own, json!({"seccompProfile": {"type": "Nonsense"}}), &format!("{at}.seccompProfile.type NotSupported")),
        ("a profile has a type", "validateSeccompProfileType", own, json!({"seccompProfile": {}}), &format!("{at}.seccompProfile.type Required")),
        ("a profile of the host has a path", "validateSeccompProfileField", own, json!({"seccompProfile": {"type": "Localhost"}}), &format!("{at}.seccompProfile.localhostProfile Required")),
        ("a profile's path is relative", "validateLocalDescendingPath", own, json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "/etc/shadow"}}), &format!("{at}.seccompProfile.localhostProfile Invalid")),
        ("a profile's path stays below", "validateLocalDescendingPath", own, json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "a/../../b"}}), &format!("{at}.seccompProfile.localhostProfile Invalid")),
        ("only a profile of the host has a path", "validateSeccompProfileField", own, json!({"seccompProfile": {"type": "RuntimeDefault", "localhostProfile": "a"}}), &format!("{at}.seccompProfile.localhostProfile Invalid")),
        ("AppArmor's profile is of one of three types", "ValidateAppArmorProfileField", own, json!({"appArmorProfile": {"type": "X"}}), &format!("{at}.appArmorProfile.type NotSupported")),
        ("AppArmor's profile of the host has a name", "ValidateAppArmorProfileField", own, json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": " "}}), &format!("{at}.appArmorProfile.localhostProfile Required")),
        ("AppArmor's profile has no space around it", "ValidateAppArmorProfileField", own, json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": "a "}}), &format!("{at}.appArmorProfile.localhostProfile Invalid")),
        ("AppArmor's profile is not longer than a path", "ValidateAppArmorProfileField", own, json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": "a".repeat(4096)}}), &format!("{at}.appArmorProfile.localhostProfile TooLong")),
        ("who is privileged can escalate", rule, own, json!({"privileged": true, "allowPrivilegeEscalation": false}), &format!("{at} Invalid")),
        ("an administrator can escalate", rule, own, json!({"allowPrivilegeEscalation": false, "capabilities": {"add": ["CAP_SYS_ADMIN"]}}), &format!("{at} Invalid")),
        ("SELinux's label is anything", rule, own, json!({"seLinuxOptions": {"level": "s0:c1,c2"}}), ""),
        ("a Windows account is one", "validateWindowsSecurityContextOptions", own, json!({"windowsOptions": {"runAsUserName": "a\\b\\c"}}), &format!("{at}.windowsOptions.runAsUserName Invalid")),
    ]);
    let mut apart = base();
    apart["spec"]["hostUsers"] = false.into();
    rules(
        "",
        "v1",
        "pods",
        &apart,
        &[("its own proc may be unmasked", rule, own, json!({"procMount": "Unmasked"}), "")],
    );
}
