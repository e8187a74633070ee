//! The rows themselves, in the order of discovery.
//!
//! Kinds whose machinery does not exist here (custom resources, aggregation, webhooks, flow control) have no row: a
//! server that stored them would promise what it does not do.

use super::{Row, Storage, Subresource};

const ALL: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const NO_COLLECTION_DELETE: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];
const CREATE: &[&str] = &["create"];
const READ: &[&str] = &["get", "list"];
const EDIT: &[&str] = &["get", "patch", "update"];

const fn sub(
    name: &'static str,
    (group, version, kind): (&'static str, &'static str, &'static str),
    verbs: &'static [&'static str],
) -> Subresource {
    Subresource { name, group, version, kind, verbs }
}

const fn status(kind: (&'static str, &'static str, &'static str)) -> [Subresource; 1] {
    [sub("status", kind, EDIT)]
}

const SCALE: Subresource = sub("scale", ("autoscaling", "v1", "Scale"), EDIT);
const CONNECT: &[&str] = &["create", "get"];
const PROXY_VERBS: &[&str] = &["create", "delete", "get", "patch", "update"];

const POD: (&str, &str, &str) = ("", "v1", "Pod");
const PODS: &[Subresource] = &[
    sub("attach", ("", "v1", "PodAttachOptions"), CONNECT),
    sub("binding", ("", "v1", "Binding"), CREATE),
    sub("ephemeralcontainers", POD, EDIT),
    sub("eviction", ("policy", "v1", "Eviction"), CREATE),
    sub("exec", ("", "v1", "PodExecOptions"), CONNECT),
    sub("log", POD, &["get"]),
    sub("portforward", ("", "v1", "PodPortForwardOptions"), CONNECT),
    sub("proxy", ("", "v1", "PodProxyOptions"), PROXY_VERBS),
    sub("resize", POD, EDIT),
    sub("status", POD, EDIT),
];

/// What most rows share; the rest is set by the chained calls below.
fn kind(
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    kind: &'static str,
    singular: &'static str,
) -> Row {
    Row {
        group,
        version,
        resource,
        kind,
        singular,
        short_names: &[],
        categories: &[],
        namespaced: true,
        verbs: ALL,
        subresources: &[],
        storage: Storage { group, version },
        schema: format!("{}.{version}.{kind}", crate::schema::short_group(group)),
    }
}

impl Row {
    fn short(mut self, names: &'static [&'static str]) -> Self {
        self.short_names = names;
        self
    }

    fn in_all(mut self) -> Self {
        self.categories = &["all"];
        self
    }

    fn cluster(mut self) -> Self {
        self.namespaced = false;
        self
    }

    fn verbs(mut self, verbs: &'static [&'static str]) -> Self {
        self.verbs = verbs;
        self
    }

    fn subs(mut self, subresources: &'static [Subresource]) -> Self {
        self.subresources = subresources;
        self
    }

    fn stored_as(mut self, group: &'static str, version: &'static str) -> Self {
        self.storage = Storage { group, version };
        self
    }
}

pub(super) fn build() -> Vec<Row> {
    let mut rows = core();
    rows.extend(workloads());
    rows.extend(reviews());
    rows.extend(cluster_services());
    rows.extend(policies());
    rows
}

fn core() -> Vec<Row> {
    const NAMESPACE: &[Subresource] =
        &[sub("finalize", ("", "v1", "Namespace"), &["update"]), sub("status", ("", "v1", "Namespace"), EDIT)];
    const NODE: &[Subresource] =
        &[sub("proxy", ("", "v1", "NodeProxyOptions"), PROXY_VERBS), sub("status", ("", "v1", "Node"), EDIT)];
    const CLAIM: &[Subresource] = &status(("", "v1", "PersistentVolumeClaim"));
    const VOLUME: &[Subresource] = &status(("", "v1", "PersistentVolume"));
    const CONTROLLER: &[Subresource] = &[SCALE, sub("status", ("", "v1", "ReplicationController"), EDIT)];
    const QUOTA: &[Subresource] = &status(("", "v1", "ResourceQuota"));
    const ACCOUNT: &[Subresource] = &[sub("token", ("authentication.k8s.io", "v1", "TokenRequest"), CREATE)];
    const SERVICE: &[Subresource] =
        &[sub("proxy", ("", "v1", "ServiceProxyOptions"), PROXY_VERBS), sub("status", ("", "v1", "Service"), EDIT)];
    let core = |resource, name, singular| kind("", "v1", resource, name, singular);
    vec![
        core("bindings", "Binding", "binding").verbs(CREATE),
        core("componentstatuses", "ComponentStatus", "componentstatus").short(&["cs"]).cluster().verbs(READ),
        core("configmaps", "ConfigMap", "configmap").short(&["cm"]),
        core("endpoints", "Endpoints", "endpoints").short(&["ep"]),
        core("events", "Event", "event").short(&["ev"]),
        core("limitranges", "LimitRange", "limitrange").short(&["limits"]),
        core("namespaces", "Namespace", "namespace")
            .short(&["ns"])
            .cluster()
            .verbs(NO_COLLECTION_DELETE)
            .subs(NAMESPACE),
        core("nodes", "Node", "node").short(&["no"]).cluster().subs(NODE),
        core("persistentvolumeclaims", "PersistentVolumeClaim", "persistentvolumeclaim").short(&["pvc"]).subs(CLAIM),
        core("persistentvolumes", "PersistentVolume", "persistentvolume").short(&["pv"]).cluster().subs(VOLUME),
        core("pods", "Pod", "pod").short(&["po"]).in_all().subs(PODS),
        core("podtemplates", "PodTemplate", "podtemplate"),
        core("replicationcontrollers", "ReplicationController", "replicationcontroller")
            .short(&["rc"])
            .in_all()
            .subs(CONTROLLER),
        core("resourcequotas", "ResourceQuota", "resourcequota").short(&["quota"]).subs(QUOTA),
        core("secrets", "Secret", "secret"),
        core("serviceaccounts", "ServiceAccount", "serviceaccount").short(&["sa"]).subs(ACCOUNT),
        core("services", "Service", "service").short(&["svc"]).in_all().subs(SERVICE),
    ]
}

fn workloads() -> Vec<Row> {
    const DAEMON: &[Subresource] = &status(("apps", "v1", "DaemonSet"));
    const DEPLOYMENT: &[Subresource] = &[SCALE, sub("status", ("apps", "v1", "Deployment"), EDIT)];
    const REPLICA: &[Subresource] = &[SCALE, sub("status", ("apps", "v1", "ReplicaSet"), EDIT)];
    const STATEFUL: &[Subresource] = &[SCALE, sub("status", ("apps", "v1", "StatefulSet"), EDIT)];
    const SCALER_2: &[Subresource] = &status(("autoscaling", "v2", "HorizontalPodAutoscaler"));
    const SCALER_1: &[Subresource] = &status(("autoscaling", "v1", "HorizontalPodAutoscaler"));
    const CRON: &[Subresource] = &status(("batch", "v1", "CronJob"));
    const JOB: &[Subresource] = &status(("batch", "v1", "Job"));
    let apps = |resource, name, singular| kind("apps", "v1", resource, name, singular);
    let scaler = |version| {
        kind("autoscaling", version, "horizontalpodautoscalers", "HorizontalPodAutoscaler", "horizontalpodautoscaler")
            .short(&["hpa"])
            .in_all()
    };
    vec![
        apps("controllerrevisions", "ControllerRevision", "controllerrevision"),
        apps("daemonsets", "DaemonSet", "daemonset").short(&["ds"]).in_all().subs(DAEMON),
        apps("deployments", "Deployment", "deployment").short(&["deploy"]).in_all().subs(DEPLOYMENT),
        apps("replicasets", "ReplicaSet", "replicaset").short(&["rs"]).in_all().subs(REPLICA),
        apps("statefulsets", "StatefulSet", "statefulset").short(&["sts"]).in_all().subs(STATEFUL),
        kind("events.k8s.io", "v1", "events", "Event", "event").short(&["ev"]).stored_as("", "v1"),
        scaler("v2").subs(SCALER_2),
        scaler("v1").subs(SCALER_1).stored_as("autoscaling", "v2"),
        kind("batch", "v1", "cronjobs", "CronJob", "cronjob").short(&["cj"]).in_all().subs(CRON),
        kind("batch", "v1", "jobs", "Job", "job").in_all().subs(JOB),
    ]
}

fn reviews() -> Vec<Row> {
    let authn = |resource, name, singular| {
        kind("authentication.k8s.io", "v1", resource, name, singular).cluster().verbs(CREATE)
    };
    let authz =
        |resource, name, singular| kind("authorization.k8s.io", "v1", resource, name, singular).cluster().verbs(CREATE);
    let mut local = authz("localsubjectaccessreviews", "LocalSubjectAccessReview", "localsubjectaccessreview");
    local.namespaced = true;
    vec![
        authn("selfsubjectreviews", "SelfSubjectReview", "selfsubjectreview"),
        authn("tokenreviews", "TokenReview", "tokenreview"),
        local,
        authz("selfsubjectaccessreviews", "SelfSubjectAccessReview", "selfsubjectaccessreview"),
        authz("selfsubjectrulesreviews", "SelfSubjectRulesReview", "selfsubjectrulesreview"),
        authz("subjectaccessreviews", "SubjectAccessReview", "subjectaccessreview"),
    ]
}

fn cluster_services() -> Vec<Row> {
    const CERTIFICATES: &str = "certificates.k8s.io";
    const NETWORKING: &str = "networking.k8s.io";
    const SIGNING: &[Subresource] = &[
        sub("approval", (CERTIFICATES, "v1", "CertificateSigningRequest"), EDIT),
        sub("status", (CERTIFICATES, "v1", "CertificateSigningRequest"), EDIT),
    ];
    const INGRESS: &[Subresource] = &status((NETWORKING, "v1", "Ingress"));
    const SERVICE_CIDR: &[Subresource] = &status((NETWORKING, "v1", "ServiceCIDR"));
    let net = |resource, name, singular| kind(NETWORKING, "v1", resource, name, singular);
    vec![
        kind(
            CERTIFICATES,
            "v1",
            "certificatesigningrequests",
            "CertificateSigningRequest",
            "certificatesigningrequest",
        )
        .short(&["csr"])
        .cluster()
        .subs(SIGNING),
        net("ingressclasses", "IngressClass", "ingressclass").cluster(),
        net("ingresses", "Ingress", "ingress").short(&["ing"]).subs(INGRESS),
        net("ipaddresses", "IPAddress", "ipaddress").short(&["ip"]).cluster(),
        net("networkpolicies", "NetworkPolicy", "networkpolicy").short(&["netpol"]),
        net("servicecidrs", "ServiceCIDR", "servicecidr").cluster().subs(SERVICE_CIDR),
    ]
}

fn policies() -> Vec<Row> {
    const RBAC: &str = "rbac.authorization.k8s.io";
    const STORAGE: &str = "storage.k8s.io";
    const BUDGET: &[Subresource] = &status(("policy", "v1", "PodDisruptionBudget"));
    const ATTACHMENT: &[Subresource] = &status((STORAGE, "v1", "VolumeAttachment"));
    let rbac = |resource, name, singular| kind(RBAC, "v1", resource, name, singular);
    let storage = |resource, name, singular| kind(STORAGE, "v1", resource, name, singular);
    vec![
        kind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", "poddisruptionbudget")
            .short(&["pdb"])
            .subs(BUDGET),
        rbac("clusterrolebindings", "ClusterRoleBinding", "clusterrolebinding").cluster(),
        rbac("clusterroles", "ClusterRole", "clusterrole").cluster(),
        rbac("rolebindings", "RoleBinding", "rolebinding"),
        rbac("roles", "Role", "role"),
        storage("csidrivers", "CSIDriver", "csidriver").cluster(),
        storage("csinodes", "CSINode", "csinode").cluster(),
        storage("csistoragecapacities", "CSIStorageCapacity", "csistoragecapacity"),
        storage("storageclasses", "StorageClass", "storageclass").short(&["sc"]).cluster(),
        storage("volumeattachments", "VolumeAttachment", "volumeattachment").cluster().subs(ATTACHMENT),
        storage("volumeattributesclasses", "VolumeAttributesClass", "volumeattributesclass").short(&["vac"]).cluster(),
        kind("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", "priorityclass").short(&["pc"]).cluster(),
        kind("coordination.k8s.io", "v1", "leases", "Lease", "lease"),
        kind("node.k8s.io", "v1", "runtimeclasses", "RuntimeClass", "runtimeclass").cluster(),
        kind("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", "endpointslice"),
    ]
}
