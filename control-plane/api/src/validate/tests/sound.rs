//! What charts and upstream's own tests are full of, and what must pass: no rule may be wider than upstream's.

use serde_json::{Value, json};

use super::{create, found, prepared, update};

fn sound() -> Vec<(&'static str, &'static str, &'static str, Value)> {
    let labels = json!({"app.kubernetes.io/name": "x", "app.kubernetes.io/instance": "y"});
    let probe = json!({"httpGet": {"path": "/healthz", "port": "http", "scheme": "HTTP", "httpHeaders": [{"name": "Host", "value": ""}]}, "initialDelaySeconds": 0, "periodSeconds": 10});
    let restricted = json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "runAsNonRoot": true, "runAsUser": 65534, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}, "seccompProfile": {"type": "RuntimeDefault"}, "seLinuxOptions": {"level": "s0:c123,c456"}, "procMount": "Default"});
    let web = json!({"metadata": {"labels": labels, "annotations": {"checksum/config": "0", "prometheus.io/scrape": "true"}}, "spec": {
        "automountServiceAccountToken": false, "enableServiceLinks": false, "dnsPolicy": "ClusterFirstWithHostNet", "dnsConfig": {"options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]},
        "terminationGracePeriodSeconds": 0, "priorityClassName": "system-cluster-critical", "hostname": "h", "subdomain": "s", "shareProcessNamespace": true,
        "securityContext": {"fsGroup": 0, "fsGroupChangePolicy": "OnRootMismatch", "supplementalGroups": [0, 1000], "sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}], "runAsNonRoot": true},
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": labels}, "matchLabelKeys": ["pod-template-hash"]}],
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["x"]}]}, "namespaceSelector": {}}}]}},
        "initContainers": [{"name": "init", "image": "busybox:1.36", "command": ["sh", "-c", "true"], "resources": {"requests": {"cpu": "10m"}}},
            {"name": "proxy", "image": "envoy", "restartPolicy": "Always", "startupProbe": probe, "ports": [{"name": "http", "containerPort": 15000}], "lifecycle": {"preStop": {"httpGet": {"path": "/quit", "port": 15000}}}}],
        "containers": [{"name": "web", "image": "registry.example:5000/a/b@sha256:0000000000000000000000000000000000000000000000000000000000000000", "args": ["--x=$(POD_IP)"], "workingDir": "/",
            "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}, {"name": "dns", "containerPort": 53, "protocol": "UDP"}, {"name": "dns-tcp", "containerPort": 53, "protocol": "TCP"}],
            "env": [{"name": "POD_IP", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}}, {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app.kubernetes.io/name']"}}}, {"name": "GOMAXPROCS", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}, {"name": "MEM", "valueFrom": {"resourceFieldRef": {"containerName": "web", "resource": "requests.memory", "divisor": "1Mi"}}}, {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k.ey", "optional": true}}}, {"name": "EMPTY", "value": ""}],
            "envFrom": [{"configMapRef": {"name": "c", "optional": true}}, {"prefix": "P_", "secretRef": {"name": "s"}}],
            "livenessProbe": probe, "readinessProbe": {"exec": {"command": ["true"]}, "successThreshold": 3}, "startupProbe": {"grpc": {"port": 9000}}, "lifecycle": {"postStart": {"exec": {"command": ["true"]}}},
            "resources": {"requests": {"cpu": "100m", "memory": "64Mi", "ephemeral-storage": "1Gi"}, "limits": {"memory": "128Mi", "nvidia.com/gpu": "1", "hugepages-2Mi": "4Mi"}}, "securityContext": restricted,
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "cfg", "mountPath": "/etc/x/x.conf", "subPath": "x.conf", "readOnly": true}, {"name": "cfg", "mountPath": "/etc/y", "subPathExpr": "$(POD_IP)"}, {"name": "all", "mountPath": "/var/run/secrets", "readOnly": true, "recursiveReadOnly": "IfPossible"}]}],
        "volumes": [{"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}}, {"name": "cfg", "configMap": {"name": "c", "defaultMode": 420, "items": [{"key": "x.conf", "path": "a/x.conf", "mode": 256}]}},
            {"name": "all", "projected": {"defaultMode": 420, "sources": [{"serviceAccountToken": {"path": "token", "audience": "vault", "expirationSeconds": 3607}}, {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}}, {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}, {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}, {"path": "cpu", "resourceFieldRef": {"containerName": "web", "resource": "limits.cpu", "divisor": "1m"}}]}}]}}],
        "tolerations": [{"operator": "Exists"}, {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}, {"key": "x", "operator": "Equal", "value": "", "effect": "NoExecute", "tolerationSeconds": 0}],
        "hostAliases": [{"ip": "127.0.0.1", "hostnames": ["foo.local", "bar.local"]}], "imagePullSecrets": [{"name": "r"}]}});
    let agent = json!({"metadata": {"labels": labels}, "spec": {"hostNetwork": true, "hostPID": true, "serviceAccountName": "agent", "nodeSelector": {"kubernetes.io/os": "linux"},
        "containers": [{"name": "agent", "image": "a", "securityContext": {"privileged": true, "runAsUser": 0}, "ports": [{"containerPort": 9100, "hostPort": 9100, "name": "metrics"}],
            "volumeMounts": [{"name": "root", "mountPath": "/host/root", "mountPropagation": "HostToContainer", "readOnly": true}, {"name": "kubelet", "mountPath": "/var/lib/kubelet", "mountPropagation": "Bidirectional"}]}],
        "volumes": [{"name": "root", "hostPath": {"path": "/"}}, {"name": "kubelet", "hostPath": {"path": "/var/lib/kubelet", "type": "DirectoryOrCreate"}}]}});
    let claim = json!({"metadata": {"name": "data", "labels": labels}, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "resources": {"requests": {"storage": "8Gi"}}}});
    let mut database = web.clone();
    database["spec"]["containers"][0]["volumeMounts"].as_array_mut().unwrap().push(json!({"name": "data", "mountPath": "/data"}));
    let selector = json!({"matchLabels": labels});
    let batch = json!({"metadata": {"labels": labels}, "spec": {"restartPolicy": "OnFailure", "containers": [{"name": "c", "image": "i"}]}});
    vec![
        ("", "v1", "pods", json!({"metadata": {"name": "web-0", "generateName": "web-"}, "spec": {"containers": [{"name": "c", "image": "i"}], "terminationGracePeriodSeconds": 5}})),
        ("apps", "v1", "deployments", json!({"metadata": {"name": "web", "annotations": {"meta.helm.sh/release-name": "x"}}, "spec": {"replicas": 0, "selector": selector, "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}}, "template": web}})),
        ("apps", "v1", "deployments", json!({"spec": {"selector": selector, "strategy": {"type": "Recreate"}, "template": agent}})),
        ("apps", "v1", "daemonsets", json!({"spec": {"selector": selector, "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}}, "template": agent}})),
        ("apps", "v1", "daemonsets", json!({"spec": {"selector": selector, "updateStrategy": {"type": "OnDelete"}, "template": agent}})),
        ("apps", "v1", "statefulsets", json!({"spec": {"selector": selector, "serviceName": "db-headless", "podManagementPolicy": "Parallel", "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}, "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Delete"}, "volumeClaimTemplates": [claim], "template": database}})),
        ("batch", "v1", "jobs", json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"backoffLimit": 0, "ttlSecondsAfterFinished": 0, "parallelism": 0, "activeDeadlineSeconds": 600, "template": batch}})),
        ("batch", "v1", "cronjobs", json!({"metadata": {"name": "c"}, "spec": {"schedule": "*/5 * * * 1-5", "timeZone": "America/Argentina/Buenos_Aires", "concurrencyPolicy": "Forbid", "startingDeadlineSeconds": 0, "successfulJobsHistoryLimit": 0, "jobTemplate": {"spec": {"template": batch}}}})),
        ("", "v1", "services", json!({"metadata": {"name": "web"}, "spec": {"selector": labels, "ports": [{"name": "http", "port": 80, "targetPort": "http", "appProtocol": "kubernetes.io/h2c"}, {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53}]}})),
        ("", "v1", "services", json!({"metadata": {"name": "db-headless"}, "spec": {"clusterIP": "None", "publishNotReadyAddresses": true, "selector": labels}})),
        ("", "v1", "services", json!({"metadata": {"name": "lb"}, "spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "loadBalancerSourceRanges": ["0.0.0.0/0"], "trafficDistribution": "PreferClose", "sessionAffinity": "ClientIP", "ports": [{"port": 443}]}})),
        ("", "v1", "services", json!({"metadata": {"name": "out"}, "spec": {"type": "ExternalName", "externalName": "db.example.com"}})),
        ("", "v1", "endpoints", json!({"subsets": [{"notReadyAddresses": [{"ip": "10.0.0.1", "nodeName": "n", "targetRef": {"kind": "Pod", "name": "p"}}]}]})),
        ("discovery.k8s.io", "v1", "endpointslices", json!({"addressType": "FQDN", "endpoints": [{"addresses": ["a.example.com."]}], "ports": [{"name": "", "port": null}]})),
        ("networking.k8s.io", "v1", "ingresses", json!({"spec": {"ingressClassName": "nginx", "tls": [{"hosts": ["*.example.com"], "secretName": "t"}, {}], "rules": [{"http": {"paths": [{"path": "/api(/|$)(.*)", "pathType": "ImplementationSpecific", "backend": {"service": {"name": "s", "port": {"name": "http"}}}}]}}, {"host": "example.com"}]}})),
        ("networking.k8s.io", "v1", "networkpolicies", json!({"spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "egress": [{"to": [{"namespaceSelector": {}, "podSelector": {}}, {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.169.254/32"]}}], "ports": [{"protocol": "UDP", "port": 53}, {"port": 32000, "endPort": 32768}, {}]}], "ingress": [{}]}})),
        ("policy", "v1", "poddisruptionbudgets", json!({"spec": {"maxUnavailable": "50%", "selector": {}}})),
        ("autoscaling", "v2", "horizontalpodautoscalers", json!({"spec": {"minReplicas": 1, "maxReplicas": 1, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}, "metrics": [{"type": "ContainerResource", "containerResource": {"container": "c", "name": "memory", "target": {"type": "AverageValue", "averageValue": "100Mi"}}}], "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0, "selectPolicy": "Disabled", "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]}}}})),
        ("autoscaling", "v1", "horizontalpodautoscalers", json!({"spec": {"maxReplicas": 5, "targetCPUUtilizationPercentage": 80, "scaleTargetRef": {"kind": "Deployment", "name": "d"}}})),
        ("", "v1", "resourcequotas", json!({"spec": {"hard": {"pods": "10", "requests.cpu": "1", "limits.memory": "1Gi", "count/deployments.apps": "2", "requests.nvidia.com/gpu": "4", "gold.storageclass.storage.k8s.io/requests.storage": "10Gi", "services.nodeports": "0"}}})),
        ("", "v1", "resourcequotas", json!({"spec": {"hard": {"pods": "10", "requests.cpu": "1"}, "scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}}})),
        ("", "v1", "limitranges", json!({"spec": {"limits": [{"type": "Pod", "max": {"cpu": "2"}}, {"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"}, "maxLimitRequestRatio": {"cpu": "10"}}, {"type": "PersistentVolumeClaim", "max": {"storage": "2Gi"}}]}})),
        ("", "v1", "persistentvolumes", json!({"spec": {"accessModes": ["ReadWriteMany"], "capacity": {"storage": "5Gi"}, "nfs": {"server": "s", "path": "/"}, "mountOptions": ["hard"]}})),
        ("", "v1", "secrets", json!({"type": "helm.sh/release.v1", "data": {"release": ""}})),
        ("rbac.authorization.k8s.io", "v1", "clusterroles", json!({"metadata": {"name": "system:x:y"}, "rules": [{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}, {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}], "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"a": "true"}}]}})),
        ("coordination.k8s.io", "v1", "leases", json!({"spec": {"holderIdentity": "", "leaseDurationSeconds": 1, "leaseTransitions": 0}})),
        ("storage.k8s.io", "v1", "storageclasses", json!({"provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer", "allowVolumeExpansion": true, "parameters": {"type": ""}})),
        ("", "v1", "namespaces", json!({"metadata": {"name": "n", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}})),
    ]
}

#[test]
fn what_charts_are_full_of_passes() {
    for (group, version, resource, given) in sound() {
        let (row, mut object) = prepared(group, version, resource, given);
        // As admission does before validation.
        for spec in ["/spec/template/spec", "/spec"] {
            let mut value = object.to_value();
            if let Some(spec) = value.pointer_mut(spec).filter(|spec| spec.get("containers").is_some())
                && spec.get("serviceAccountName").is_none()
            {
                spec["serviceAccountName"] = "default".into();
            }
            object = crate::Object::from_value(value).unwrap();
        }
        let causes = create(row, &object);
        assert_eq!(found(&causes), "", "{group}/{resource} {}: {causes:#?}", object.name());
        for subresource in ["", "status"] {
            let causes = update(row, subresource, &object, &object);
            assert_eq!(found(&causes), "", "{group}/{resource} {}, unchanged: {causes:#?}", object.name());
        }
    }
}
