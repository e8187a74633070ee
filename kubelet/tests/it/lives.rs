//! Each test is the life of one pod, or of the kubelet under it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::runtime::Runtime;

const PODS: &str = "api/v1/namespaces/default/pods";
const PATIENCE: Duration = Duration::from_secs(30);

struct Node {
    api: Api,
    runtime: Runtime,
    dir: tempfile::TempDir,
    shutdown: CancellationToken,
    task: Option<tokio::task::JoinHandle<Result<(), kubelet::Error>>>,
}

impl Node {
    async fn start() -> Node {
        let dir = tempfile::tempdir().unwrap();
        let api = Api::new();
        let runtime = Runtime::serve(&dir.path().join("cri.sock"));
        let mut node = Node { api, runtime, dir, shutdown: CancellationToken::new(), task: None };
        node.run();
        node.eventually("node registered", |n| n.api.get("api/v1/nodes", "n1").is_some()).await;
        node.api.change("api/v1/nodes", "n1", |object| object["spec"] = json!({"podCIDR": "10.42.0.0/24"}));
        node.eventually("node ready", |n| condition(&n.api.get("api/v1/nodes", "n1").unwrap(), "Ready") == "True")
            .await;
        node
    }

    fn run(&mut self) {
        let socket = kubelet::CriEndpoint::Socket(self.dir.path().join("cri.sock"));
        let mut config = kubelet::Config::new(self.api.client(), "n1", socket, self.dir.path().join("data"));
        config.node_ips = vec!["192.0.2.1".parse().unwrap()];
        config.static_pod_dir = Some(self.manifests());
        config.cgroup_root =
            format!("/kubelet-it-{}-{}", std::process::id(), self.dir.path().file_name().unwrap().to_string_lossy());
        self.shutdown = CancellationToken::new();
        self.task = Some(tokio::spawn(kubelet::run(config, self.shutdown.clone())));
    }

    fn manifests(&self) -> PathBuf {
        self.dir.path().join("manifests")
    }

    async fn stop(&mut self) {
        self.shutdown.cancel();
        self.task.take().unwrap().await.unwrap().unwrap();
    }

    async fn eventually(&self, what: &str, check: impl Fn(&Node) -> bool) {
        let began = Instant::now();
        while !check(self) {
            assert!(
                began.elapsed() < PATIENCE,
                "never: {what}; pods: {:#?}",
                self.api.get(PODS, "p").map(|p| p["status"].clone())
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn pod(&self, spec: Value) {
        let mut spec = spec;
        spec["nodeName"] = json!("n1");
        self.api.create(PODS, json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}));
    }

    fn status(&self) -> Value {
        self.api.get(PODS, "p").map_or(Value::Null, |p| p["status"].clone())
    }

    fn waiting(&self) -> String {
        self.status()["containerStatuses"][0]["state"]["waiting"]["reason"].as_str().unwrap_or_default().to_owned()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shutdown.cancel();
        let name =
            format!("/kubelet-it-{}-{}", std::process::id(), self.dir.path().file_name().unwrap().to_string_lossy());
        if let Ok(hierarchy) = runtime_linux::cgroup::Hierarchy::detect()
            && let Ok(group) = runtime_linux::cgroup::Cgroup::new(&hierarchy, &name)
        {
            let _ = group.remove();
        }
        for path in [self.dir.path().join("data"), self.dir.path().to_owned()] {
            let _ = nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

fn condition(object: &Value, kind: &str) -> String {
    let list = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    list.iter().find(|c| c["type"] == kind).map_or(String::new(), |c| c["status"].as_str().unwrap().to_owned())
}

fn simple() -> Value {
    json!({"containers": [{"name": "c", "image": "busybox:1", "imagePullPolicy": "IfNotPresent"}]})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_runs_restarts_and_is_deleted() {
    let node = Node::start().await;
    node.pod(simple());
    node.eventually("ready", |n| condition(&n.api.get(PODS, "p").unwrap(), "Ready") == "True").await;
    let status = node.status();
    assert_eq!(status["phase"], "Running");
    assert!(status["podIP"].as_str().unwrap().starts_with("10.42.0."), "{status}");
    assert_eq!(status["hostIP"], "192.0.2.1");
    let first = node.runtime.running("c")[0].clone();
    node.runtime.end(&first, 3);
    node.eventually("restarted", |n| n.status()["containerStatuses"][0]["restartCount"] == 1).await;
    node.eventually("running", |n| n.status()["containerStatuses"][0]["ready"] == true).await;
    assert_eq!(node.status()["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 3);
    node.runtime.end(&node.runtime.running("c")[0], 1);
    node.eventually("backing off", |n| n.waiting() == "CrashLoopBackOff").await;
    node.api.delete(PODS, "p", Some(1));
    node.eventually("gone", |n| n.api.get(PODS, "p").is_none() && n.runtime.is_empty()).await;
    let reasons = node.api.event_reasons();
    for reason in ["Pulled", "Created", "Started", "BackOff"] {
        assert!(reasons.contains(&reason.to_owned()), "{reason} not in {reasons:?}");
    }
    node.eventually("no directory left", |n| std::fs::read_dir(n.dir.path().join("data/pods")).unwrap().count() == 0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_waited_for() {
    let node = Node::start().await;
    node.api.create("api/v1/namespaces/default/secrets", json!({"metadata": {"name": "s"}, "data": {"k": "dg=="}}));
    node.pod(json!({"containers": [{"name": "c", "image": "busybox:1", "env": [
        {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}},
        {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}]}));
    node.eventually("config error", |n| n.waiting() == "CreateContainerConfigError").await;
    let message = node.status()["containerStatuses"][0]["state"]["waiting"]["message"].clone();
    assert_eq!(message, "configmap \"m\" not found");
    node.api.create("api/v1/namespaces/default/configmaps", json!({"metadata": {"name": "m"}, "data": {"k": "v"}}));
    node.eventually("running", |n| n.status()["phase"] == "Running").await;
    let environment = node.runtime.environment(&node.runtime.running("c")[0]);
    assert!(environment.starts_with("A=v;B=v;"), "{environment}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_pull_is_told_and_repeated() {
    let node = Node::start().await;
    node.runtime.refuse_pulls(true);
    node.pod(json!({"containers": [{"name": "c", "image": "none:1"}]}));
    node.eventually("backing off", |n| n.waiting() == "ImagePullBackOff").await;
    let message = node.status()["containerStatuses"][0]["state"]["waiting"]["message"].clone();
    assert!(message.as_str().unwrap().contains("registry refuses"), "{message}");
    node.runtime.refuse_pulls(false);
    node.eventually("running", |n| n.status()["phase"] == "Running").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_kubelet_restarts_nothing_and_clears_orphans() {
    let mut node = Node::start().await;
    node.pod(simple());
    node.eventually("running", |n| n.status()["phase"] == "Running").await;
    let id = node.runtime.running("c");
    node.stop().await;
    let patches = node.api.status_patches();
    node.run();
    node.eventually("node heard", |n| n.runtime.calls("Version") > 1).await;
    node.pod_named("q");
    node.eventually("the other runs", |n| n.api.get(PODS, "q").is_some_and(|p| p["status"]["phase"] == "Running"))
        .await;
    assert_eq!(node.runtime.calls("RunPodSandbox"), 2);
    assert!(id.iter().all(|i| node.runtime.running("c").contains(i)));
    assert!(node.api.status_patches() > patches);
    // Forced away while nobody looks.
    node.stop().await;
    node.api.delete(PODS, "p", Some(0));
    node.api.delete(PODS, "q", Some(0));
    node.run();
    node.eventually("orphans cleared", |n| n.runtime.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_api_server_costs_no_container() {
    let node = Node::start().await;
    node.pod(simple());
    node.eventually("running", |n| n.status()["phase"] == "Running").await;
    node.api.set_down(true);
    node.runtime.end(&node.runtime.running("c")[0], 1);
    node.eventually("restarted unseen", |n| n.runtime.running("c").len() == 1).await;
    node.api.set_down(false);
    node.eventually("told", |n| n.status()["containerStatuses"][0]["restartCount"] == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_decide_readiness_and_life() {
    let node = Node::start().await;
    let probe =
        |failures: i32| json!({"exec": {"command": ["check"]}, "periodSeconds": 1, "failureThreshold": failures});
    node.runtime.answer_exec(1);
    node.pod(json!({"terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": "busybox:1", "readinessProbe": probe(1), "livenessProbe": probe(3)}]}));
    node.eventually("running but unready", |n| {
        n.status()["phase"] == "Running" && condition(&n.api.get(PODS, "p").unwrap(), "Ready") == "False"
    })
    .await;
    node.eventually("killed and restarted", |n| n.status()["containerStatuses"][0]["restartCount"] == 1).await;
    node.runtime.answer_exec(0);
    node.eventually("ready", |n| condition(&n.api.get(PODS, "p").unwrap(), "Ready") == "True").await;
    assert!(node.api.event_reasons().contains(&"Unhealthy".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_renewed_before_it_ends() {
    let node = Node::start().await;
    let mut spec = simple();
    // Shorter than a real API server grants, so that nobody waits for eight minutes.
    let token = json!({"serviceAccountToken": {"path": "token", "expirationSeconds": 3}});
    spec["volumes"] = json!([{"name": "t", "projected": {"sources": [token]}}]);
    node.pod(spec);
    node.eventually("ready", |n| condition(&n.api.get(PODS, "p").unwrap(), "Ready") == "True").await;
    let uid = node.api.get(PODS, "p").unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    let file = node.dir.path().join("data/pods").join(uid).join("volumes/kubernetes.io~projected/t/token");
    let read = || std::fs::read_to_string(&file).unwrap();
    let first = read();
    assert!(first.starts_with("token-"), "{first}");
    node.eventually("another token", |_| read() != first).await;
    assert_eq!(node.status()["containerStatuses"][0]["restartCount"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_pod_has_a_mirror() {
    let node = Node::start().await;
    let manifest = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": simple()});
    let path = node.manifests().join("web.json");
    std::fs::write(&path, manifest.to_string()).unwrap();
    let mirror = |n: &Node| n.api.get(PODS, "web-n1");
    node.eventually("mirror running", |n| mirror(n).is_some_and(|m| m["status"]["phase"] == "Running")).await;
    node.api.delete(PODS, "web-n1", Some(0));
    node.eventually("mirror made again", |n| mirror(n).is_some_and(|m| m["status"]["phase"] == "Running")).await;
    assert_eq!(node.runtime.calls("RunPodSandbox"), 1);
    std::fs::remove_file(path).unwrap();
    node.eventually("all gone", |n| mirror(n).is_none() && n.runtime.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_with_the_longest_grace_of_all_is_deleted() {
    let node = Node::start().await;
    let probe = json!({"exec": {"command": ["check"]}, "periodSeconds": i32::MAX, "timeoutSeconds": i32::MAX,
        "failureThreshold": i32::MAX, "initialDelaySeconds": 0, "terminationGracePeriodSeconds": i64::MAX});
    node.pod(json!({"terminationGracePeriodSeconds": i64::MAX, "activeDeadlineSeconds": i64::MAX, "containers": [
        {"name": "c", "image": "busybox:1", "livenessProbe": probe,
         "lifecycle": {"preStop": {"sleep": {"seconds": 0}}}}]}));
    node.eventually("running", |n| n.status()["phase"] == "Running").await;
    node.api.delete(PODS, "p", Some(i64::MAX));
    node.eventually("gone", |n| n.api.get(PODS, "p").is_none() && n.runtime.is_empty()).await;
    assert!(!node.api.event_reasons().contains(&"FailedSync".to_owned()), "{:?}", node.api.event_reasons());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_panics_is_its_pods_alone_and_is_not_tried_at_once() {
    let node = Node::start().await;
    node.api.panic_at(Some("p"));
    node.pod(simple());
    node.pod_named("q");
    node.eventually("the other runs", |n| n.api.get(PODS, "q").is_some_and(|p| p["status"]["phase"] == "Running"))
        .await;
    node.eventually("told", |n| n.api.event_reasons().contains(&"FailedSync".to_owned())).await;
    node.api.panic_at(None);
    node.eventually("running", |n| n.status()["phase"] == "Running").await;
    let falls = node.api.event_reasons().iter().filter(|r| *r == "FailedSync").count();
    assert!(falls < 8, "{falls} falls");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_not_understood_leaves_the_others_alone() {
    let mut node = Node::start().await;
    node.pod(simple());
    node.eventually("running", |n| n.status()["phase"] == "Running").await;
    node.stop().await;
    let terms =
        json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [null]}}});
    node.api.change(PODS, "p", |pod| pod["spec"]["affinity"] = terms);
    node.run();
    node.pod_named("q");
    node.eventually("the other runs", |n| n.api.get(PODS, "q").is_some_and(|p| p["status"]["phase"] == "Running"))
        .await;
}

fn set_condition(object: &mut Value, kind: &str, status: &str) {
    for condition in object["status"]["conditions"].as_array_mut().unwrap() {
        if condition["type"] == kind {
            condition["status"] = json!(status);
        }
    }
}

/// What the control plane does while nobody is at home for a minute: the node looks lost, its pods leave their Services.
#[tokio::test(flavor = "multi_thread")]
async fn what_others_write_into_the_status_of_node_and_pods_is_repaired() {
    let node = Node::start().await;
    node.pod(simple());
    let is_ready = |n: &Node| condition(&n.api.get(PODS, "p").unwrap(), "Ready") == "True";
    node.eventually("ready", is_ready).await;
    for _ in 0..2 {
        node.api.change("api/v1/nodes", "n1", |node| set_condition(node, "Ready", "Unknown"));
        node.api.change(PODS, "p", |pod| set_condition(pod, "Ready", "False"));
        node.eventually("the node repaired", |n| {
            condition(&n.api.get("api/v1/nodes", "n1").unwrap(), "Ready") == "True"
        })
        .await;
        node.eventually("the pod repaired", is_ready).await;
    }
    // What is not the kubelet's stays.
    let gate = json!({"type": "example.com/gate", "status": "True"});
    node.api.change(PODS, "p", |pod| pod["status"]["conditions"].as_array_mut().unwrap().push(gate));
    node.api.change(PODS, "p", |pod| pod["status"]["phase"] = json!("Pending"));
    node.eventually("the phase repaired", |n| n.status()["phase"] == "Running").await;
    assert_eq!(condition(&node.api.get(PODS, "p").unwrap(), "example.com/gate"), "True");
    assert_eq!(node.status()["containerStatuses"][0]["restartCount"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_deleted_comes_again() {
    let node = Node::start().await;
    node.pod(simple());
    node.eventually("running", |n| n.status()["phase"] == "Running").await;
    node.api.delete("api/v1/nodes", "n1", None);
    node.eventually("registered and ready", |n| {
        n.api.get("api/v1/nodes", "n1").is_some_and(|object| condition(&object, "Ready") == "True")
    })
    .await;
    assert_eq!(node.runtime.running("c").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_while_the_watch_is_overrun_is_seen_by_the_next_list() {
    let node = Node::start().await;
    node.pod(simple());
    node.eventually("running", |n| n.status()["phase"] == "Running").await;
    node.api.overrun(|api| {
        api.delete(PODS, "p", Some(0));
        api.delete("api/v1/nodes", "n1", None);
        node.pod_named("q");
    });
    node.eventually("the new one runs", |n| n.api.get(PODS, "q").is_some_and(|p| p["status"]["phase"] == "Running"))
        .await;
    node.eventually("the old one has gone", |n| n.runtime.running("c").is_empty()).await;
    node.eventually("the node has come again", |n| n.api.get("api/v1/nodes", "n1").is_some()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_that_fails_is_tried_until_it_succeeds() {
    let node = Node::start().await;
    node.pod(simple());
    node.eventually("running", |n| n.status()["phase"] == "Running").await;
    for call in ["StopContainer", "StopPodSandbox", "RemovePodSandbox"] {
        node.runtime.refuse(Some(call));
        let before = node.runtime.calls(call);
        if call == "StopContainer" {
            node.api.delete(PODS, "p", Some(1));
        }
        node.eventually(call, |n| n.runtime.calls(call) >= before + 2).await;
        assert!(!node.runtime.is_empty(), "{call} was refused, and yet all has gone");
    }
    node.runtime.refuse(None);
    node.eventually("all gone", |n| n.api.get(PODS, "p").is_none() && n.runtime.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_and_what_failed_for_it_works_when_there_is_room() {
    let mut node = Node::start().await;
    node.stop().await;
    let data = node.dir.path().join("data");
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("tmpfs"), &data, Some("tmpfs"), flags, Some("size=1m")).unwrap();
    let fill = std::fs::write(data.join("filler"), vec![0; 2 << 20]);
    assert!(fill.is_err(), "the disk is full");
    // Whoever starts on a full disk needs its directories.
    std::fs::remove_file(data.join("filler")).unwrap();
    node.run();
    let pods = data.join("pods");
    node.eventually("its directories are there", |_| pods.exists()).await;
    let fill = std::fs::write(data.join("filler"), vec![0; 2 << 20]);
    assert!(fill.is_err(), "the disk is full");
    node.eventually("the pressure told", |n| {
        condition(&n.api.get("api/v1/nodes", "n1").unwrap(), "DiskPressure") == "True"
    })
    .await;
    node.pod(simple());
    node.eventually("it waits", |n| n.waiting() == "CreateContainerConfigError").await;
    assert_eq!(node.runtime.running("c").len(), 0);
    std::fs::remove_file(data.join("filler")).unwrap();
    node.eventually("running", |n| n.status()["phase"] == "Running").await;
    node.eventually("the pressure over", |n| {
        condition(&n.api.get("api/v1/nodes", "n1").unwrap(), "DiskPressure") == "False"
    })
    .await;
    node.stop().await;
    nix::mount::umount2(&data, nix::mount::MntFlags::MNT_DETACH).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_does_not_get_a_port_on_which_the_node_listens() {
    let node = Node::start().await;
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    node.pod(json!({"containers": [{"name": "c", "image": "busybox:1", "ports": [{"containerPort": 80, "hostPort": port}]}]}));
    node.eventually("refused", |n| n.status()["phase"] == "Failed").await;
    assert_eq!(node.status()["reason"], "NodePorts");
    node.eventually("told", |n| {
        let object = n.api.get("api/v1/nodes", "n1").unwrap();
        let told = object["metadata"]["annotations"]["sampan.dev/host-ports"].as_str().unwrap_or_default().to_owned();
        told.split(',').any(|l| l == format!("TCP:127.0.0.1:{port}"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_image_is_no_crash() {
    let node = Node::start().await;
    node.pod(simple());
    node.eventually("running", |n| n.status()["phase"] == "Running").await;
    for image in ["busybox:2", "busybox:3"] {
        node.api.change(PODS, "p", |pod| pod["spec"]["containers"][0]["image"] = json!(image));
        node.eventually("the new one runs", |n| {
            let status = n.status()["containerStatuses"][0].clone();
            status["ready"] == true && status["imageID"].as_str().is_some_and(|id| id.ends_with(image))
        })
        .await;
    }
    assert!(!node.api.event_reasons().contains(&"BackOff".to_owned()), "{:?}", node.api.event_reasons());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_map_that_changes_twice_at_once_is_shown_as_it_is_last() {
    let node = Node::start().await;
    const MAPS: &str = "api/v1/namespaces/default/configmaps";
    node.api.create(MAPS, json!({"metadata": {"name": "m"}, "data": {"k": "0"}}));
    let mut spec = simple();
    spec["volumes"] = json!([{"name": "v", "configMap": {"name": "m"}},
        {"name": "d", "downwardAPI": {"items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.labels['x']"}}]}}]);
    node.pod(spec);
    node.eventually("running", |n| n.status()["phase"] == "Running").await;
    let uid = node.api.get(PODS, "p").unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    let volumes = node.dir.path().join("data/pods").join(uid).join("volumes");
    let read = |path: &str| std::fs::read_to_string(volumes.join(path)).unwrap_or_default();
    for number in 1..=20 {
        node.api.change(MAPS, "m", |map| map["data"]["k"] = json!(number.to_string()));
    }
    node.api.change(PODS, "p", |pod| pod["metadata"]["labels"] = json!({"x": "y"}));
    node.eventually("the last of them", |_| read("kubernetes.io~configmap/v/k") == "20").await;
    node.eventually("the label", |_| read("kubernetes.io~downward-api/d/l") == "y").await;
}

impl Node {
    fn pod_named(&self, name: &str) {
        let mut spec = simple();
        spec["nodeName"] = json!("n1");
        spec["containers"][0]["name"] = json!("d");
        self.api.create(PODS, json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}));
    }
}
