//! Stock kubectl against a real cluster: what it does and prints, with nginx and redis out of a real registry.
//! Streams (`exec`, `attach`, `port-forward`, `cp`) are tested elsewhere.

use anyhow::{Context as _, Result, ensure};
use integration_e2e::cluster::{Cluster, eventually, http_get, ip};
use integration_e2e::image::{busybox, nginx, redis};
use integration_e2e::registry::Registry;

const IMMUTABLE: &str = "field is immutable";

/// A command line in words; `''` is not understood, arguments with spaces go to [`fails`] and [`says`] as they are.
fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// It succeeds, and both streams together hold every part.
#[track_caller]
fn says(cluster: &Cluster, line: &str, parts: &[&str]) -> String {
    let said = cluster.try_kubectl(&words(line), None).expect("kubectl starts");
    assert_eq!(said.code, 0, "kubectl {line}: {}", said.all());
    let text = said.all();
    for part in parts {
        assert!(text.contains(part), "kubectl {line} does not say {part:?}:\n{text}");
    }
    text
}

/// It fails, and both streams together hold every part.
#[track_caller]
fn fails(cluster: &Cluster, line: &str, input: Option<&str>, parts: &[&str]) {
    let said = cluster.try_kubectl(&words(line), input).expect("kubectl starts");
    assert_ne!(said.code, 0, "kubectl {line} succeeds: {}", said.all());
    let text = said.all();
    for part in parts {
        assert!(text.contains(part), "kubectl {line} does not say {part:?}:\n{text}");
    }
}

/// The words of a table's first line.
fn columns(table: &str) -> Vec<&str> {
    table.lines().next().unwrap_or_default().split("  ").map(str::trim).filter(|word| !word.is_empty()).collect()
}

fn manifest(image: &str, replicas: i32) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: app, labels: {{app: app}}}}\nspec:\n  replicas: {replicas}\n  \
         selector: {{matchLabels: {{app: app}}}}\n  template:\n    metadata: {{labels: {{app: app}}}}\n    \
         spec: {{containers: [{{name: c, image: \"{image}\"}}], terminationGracePeriodSeconds: 1}}\n"
    )
}

#[test]
fn workloads_run_roll_and_go() -> Result<()> {
    let cluster = Cluster::start()?;
    let registry = Registry::start()?;
    let first = registry.push(&nginx()?, "nginx:1")?;
    let second = registry.push(&nginx()?.label("version", "2"), "nginx:2")?;
    let redis = registry.push(&redis()?, "redis:1")?;
    let c = &cluster;

    says(c, &format!("run single --image={first} --port=80 -l app=single"), &["pod/single created"]);
    says(c, &format!("create deployment web --image={first} --replicas=3 --port=80"), &["deployment.apps/web created"]);
    says(c, &format!("create deployment redis --image={redis}"), &["deployment.apps/redis created"]);
    says(c, "rollout status deploy/web --timeout=60s", &["deployment \"web\" successfully rolled out"]);
    says(c, "expose deployment web --type=NodePort --port=80", &["service/web exposed"]);
    says(c, "wait --for=condition=Ready pod --all --timeout=60s", &["pod/single condition met"]);
    looks(c)?;
    serves(c)?;

    says(c, "scale deploy web --replicas=5", &["deployment.apps/web scaled"]);
    says(c, "scale deploy redis --replicas=0", &["deployment.apps/redis scaled"]);
    says(c, "rollout status deploy/web --timeout=60s", &[]);
    eventually(20, "no pod of redis", || {
        let pods = c.kubectl(&["get", "pods", "-l", "app=redis", "-o", "name"])?;
        ensure!(pods.is_empty(), "{pods}");
        Ok(())
    })?;
    rolls(c, &second, &registry)?;
    goes(c, &first)
}

/// `get`, `describe`, `logs`, `events` in all their forms.
fn looks(c: &Cluster) -> Result<()> {
    let pods = says(c, "get pods -o wide -l app=web --sort-by=.metadata.name", &["1/1", "Running", "node-1"]);
    assert_eq!(
        columns(&pods),
        ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE", "NOMINATED NODE", "READINESS GATES"]
    );
    let names: Vec<&str> = pods.lines().skip(1).collect();
    assert!(names.len() == 3 && names.is_sorted(), "{pods}");
    let deployments = says(c, "get deploy -o wide", &["3/3"]);
    assert_eq!(
        columns(&deployments),
        ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE", "CONTAINERS", "IMAGES", "SELECTOR"]
    );
    let services = says(c, "get svc", &["kubernetes", "443/TCP", "NodePort"]);
    assert_eq!(columns(&services), ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"]);
    says(c, "get all", &["pod/single", "service/web", "deployment.apps/web", "replicaset.apps/web-"]);
    says(c, "get deploy web -o yaml", &["kind: Deployment", "maxSurge: 25%", "terminationMessagePath:"]);
    let addresses = c.kubectl(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].status.podIP}"])?;
    assert_eq!(addresses.split(' ').count(), 3, "{addresses}");

    says(c, "describe pod single", &["Node:             node-1/", "QoS Class:                   BestEffort"]);
    let pod = says(c, "describe pod single", &[]);
    let events = pod.split_once("Events:").context("no events")?.1;
    let at = |reason: &str| events.find(reason).unwrap_or_else(|| panic!("no {reason}: {events}"));
    let order = ["Scheduled", "Pulling image", "Successfully pulled image", "Created container", "Started container"];
    assert!(order.map(at).is_sorted(), "out of order: {events}");
    says(c, "describe node node-1", &["Capacity:", "Non-terminated Pods:", "NodeReady"]);
    says(
        c,
        "describe deploy web",
        &[
            "3 desired | 3 updated | 3 total | 3 available",
            "ScalingReplicaSet",
            "Scaled up replica set web-",
            "from 0 to 3",
        ],
    );
    says(c, "describe rs -l app=web", &["Controlled By:  Deployment/web", "SuccessfulCreate"]);
    let mut sorted: Vec<std::net::IpAddr> = addresses.split(' ').map(ip).collect::<Result<_>>()?;
    sorted.sort();
    let listed = c.kubectl(&["get", "endpoints", "web", "-o", "jsonpath={.subsets[0].addresses[*].ip}"])?;
    assert_eq!(listed.split(' ').map(ip).collect::<Result<Vec<_>>>()?, sorted);
    says(c, "describe svc web", &["NodePort:                 <unset>", "Endpoints:                10."]);
    says(c, "logs deploy/web", &["Found 3 pods, using pod/web-", "start worker process"]);
    says(c, "logs -l app=web --tail=1 --prefix", &["[pod/web-"]);
    says(c, "get events --sort-by=.lastTimestamp --field-selector involvedObject.name=single", &["Scheduled"]);
    says(c, "events --for=deploy/web", &["ScalingReplicaSet"]);
    let watched = c.kubectl(&["get", "pods", "-w", "--request-timeout=1s", "-l", "app=single"])?;
    assert!(watched.lines().count() >= 2, "{watched}");
    Ok(())
}

/// The node port answers, and follows when a pod is deleted.
fn serves(c: &Cluster) -> Result<()> {
    let node = ip(&c.kubectl(&["get", "node", "node-1", "-o", "jsonpath={.status.addresses[0].address}"])?)?;
    let port = c.kubectl(&["get", "svc", "web", "-o", "jsonpath={.spec.ports[0].nodePort}"])?.parse()?;
    let page = eventually(10, "a page", || http_get((node, port), "/"))?;
    assert!(page.contains("Welcome to nginx!"), "{page}");
    let pods = c.kubectl(&["get", "pods", "-l", "app=web", "-o", "name"])?;
    let victim = pods.lines().next().context("a pod")?;
    says(c, &format!("delete {victim} --grace-period=1"), &["deleted"]);
    says(c, "rollout status deploy/web --timeout=60s", &[]);
    let now = c.kubectl(&["get", "pods", "-l", "app=web", "-o", "name"])?;
    assert!(now.lines().count() == 3 && !now.contains(victim), "{now}");
    for _ in 0..10 {
        assert!(http_get((node, port), "/hostname")?.starts_with("web-"));
    }
    Ok(())
}

fn rolls(c: &Cluster, second: &str, registry: &Registry) -> Result<()> {
    says(c, &format!("set image deploy/web nginx={second}"), &["deployment.apps/web image updated"]);
    says(c, "rollout status deploy/web --timeout=60s", &["successfully rolled out"]);
    says(c, "rollout history deploy/web", &["REVISION  CHANGE-CAUSE", "1         <none>", "2         <none>"]);
    says(c, "rollout history deploy/web --revision=2", &[second]);
    says(c, "events --for=deploy/web", &["from 3 to 5", "from 0 to ", "Scaled down replica set web-"]);
    says(c, "rollout undo deploy/web", &["deployment.apps/web rolled back"]);
    says(c, "rollout pause deploy/web", &["paused"]);
    says(c, "rollout resume deploy/web", &["resumed"]);
    says(c, "rollout restart deploy/web", &["restarted"]);
    says(c, "rollout status deploy/web --timeout=60s", &["successfully rolled out"]);

    let broken = format!("{}/nginx:none", registry.address());
    says(c, &format!("set image deploy/web nginx={broken}"), &[]);
    fails(c, "rollout status deploy/web --timeout=2s", None, &["timed out waiting for the condition"]);
    let pods = says(c, "get pods -l app=web", &["ImagePull"]);
    assert!(pods.lines().filter(|line| line.contains("Running")).count() >= 4, "too few still serve: {pods}");
    says(c, "rollout undo deploy/web", &[]);
    says(c, "rollout status deploy/web --timeout=60s", &["successfully rolled out"]);
    Ok(())
}

/// Everything that removes.
fn goes(c: &Cluster, image: &str) -> Result<()> {
    let text = manifest(image, 1);
    c.apply(&text)?;
    says(c, "wait --for=condition=Available deploy/app --timeout=30s", &["condition met"]);
    says(c, "delete deploy app --cascade=orphan", &["deployment.apps \"app\" deleted"]);
    says(c, "get rs,pods -l app=app", &["replicaset.apps/app-", "pod/app-"]);
    c.apply(&text)?;
    says(c, "wait --for=condition=Available deploy/app --timeout=30s", &[]);
    says(c, "delete deploy app --cascade=foreground", &[]);
    let left = c.kubectl(&["get", "rs,pods", "-l", "app=app", "-o", "name"])?;
    assert_eq!(left, "", "foreground leaves nothing");
    says(c, "delete pod single --grace-period=0 --force", &["Immediate deletion", "pod \"single\" force deleted"]);
    says(c, "cordon node-1", &["node/node-1 cordoned"]);
    says(c, "get nodes", &["Ready,SchedulingDisabled"]);
    says(
        c,
        "drain node-1 --ignore-daemonsets --force --timeout=30s --grace-period=1",
        &["evicting pod default/web-", "node/node-1 drained"],
    );
    says(c, "uncordon node-1", &["node/node-1 uncordoned"]);
    says(c, "taint node node-1 a=b:NoSchedule", &["node/node-1 tainted"]);
    says(c, "taint node node-1 a-", &["node/node-1 untainted"]);
    says(c, "delete deploy -l app=redis", &["deployment.apps \"redis\" deleted"]);
    says(
        c,
        "delete all --all --grace-period=1",
        &["service \"kubernetes\" deleted", "deployment.apps \"web\" deleted"],
    );
    eventually(20, "the Service kubernetes is back", || c.kubectl(&["get", "svc", "kubernetes"]).map(drop))?;
    // What the garbage collector ends has its whole grace of 30 s: a first process that is asked to end before it listens does not.
    eventually(45, "nothing else is left", || {
        let left = c.kubectl(&["get", "pods,rs,deploy", "-o", "name"])?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })
}

#[test]
fn objects_are_written_in_every_way() -> Result<()> {
    let cluster = Cluster::start()?;
    let registry = Registry::start()?;
    let image = registry.push(&busybox()?, "busybox:1")?;
    let c = &cluster;
    let directory = tempfile::tempdir()?;
    let file = |name: &str, text: &str| -> Result<String> {
        let path = directory.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    };
    let zero = manifest(&image, 0);
    let (none, one) = (file("none.yaml", &zero)?, file("one.yaml", &manifest(&image, 1))?);

    says(c, &format!("apply -f {none}"), &["deployment.apps/app created"]);
    says(c, &format!("apply -f {none}"), &["deployment.apps/app unchanged"]);
    fails(c, &format!("diff -f {one}"), None, &["-  replicas: 0", "+  replicas: 1"]);
    says(c, &format!("apply -f {one}"), &["deployment.apps/app configured"]);
    fails(
        c,
        &format!("apply --server-side -f {none}"),
        None,
        &["Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using apps/v1", ".spec.replicas"],
    );
    says(c, &format!("apply --server-side --force-conflicts -f {none}"), &["deployment.apps/app serverside-applied"]);
    let mut edit = c.kubectl_command(&["edit", "deploy", "app"]);
    let edited =
        edit.env("KUBE_EDITOR", "sed -i s/progressDeadlineSeconds:.600/progressDeadlineSeconds:\\ 500/").output()?;
    assert!(String::from_utf8_lossy(&edited.stdout).contains("deployment.apps/app edited"), "{edited:?}");
    says(c, "get deploy app -o jsonpath={.spec.progressDeadlineSeconds}", &["500"]);
    says(c, "label deploy app x=y", &["deployment.apps/app labeled"]);
    fails(c, "label deploy app x=z", None, &["'x' already has a value (y), and --overwrite is false"]);
    says(c, "label deploy app x-", &["deployment.apps/app unlabeled"]);
    says(c, "annotate deploy app note=hi", &["deployment.apps/app annotated"]);
    says(c, r#"patch deploy app -p {"spec":{"minReadySeconds":1}}"#, &["deployment.apps/app patched"]);
    says(
        c,
        r#"patch deploy app --type=json -p [{"op":"replace","path":"/spec/minReadySeconds","value":2}]"#,
        &["deployment.apps/app patched"],
    );
    says(c, r#"patch deploy app --subresource=scale --type=merge -p {"spec":{"replicas":0}}"#, &["app patched"]);
    says(c, &format!("replace -f {none}"), &["deployment.apps/app replaced"]);
    says(c, "create deployment x --image=b --dry-run=server", &["deployment.apps/x created (server dry run)"]);
    fails(c, "get deploy x", None, &["Error from server (NotFound): deployments.apps \"x\" not found"]);

    let typo = zero.replace("replicas:", "replicsa:");
    fails(c, "apply -f -", Some(&typo), &["strict decoding error: unknown field \"spec.replicsa\""]);
    let said = c.try_kubectl(&["apply", "--validate=warn", "-f", "-"], Some(&typo))?;
    assert!(said.code == 0 && said.stderr.contains("Warning: unknown field \"spec.replicsa\""), "{said:?}");
    fails(c, "apply -f -", Some(&zero.replace("matchLabels: {app: app}", "matchLabels: {app: b}")), &[IMMUTABLE]);
    fails(c, "create deployment app --image=x", None, &["deployments.apps \"app\" already exists"]);
    fails(c, "run Bad_Name --image=x", None, &["The Pod \"Bad_Name\" is invalid", "RFC 1123"]);
    fails(c, "get nope", None, &["the server doesn't have a resource type \"nope\""]);
    fails(c, "delete pod nope", None, &["Error from server (NotFound): pods \"nope\" not found"]);
    says(c, "autoscale deploy app --max=3 --cpu-percent=50", &["horizontalpodautoscaler.autoscaling/app autoscaled"]);
    says(c, &format!("delete -f {none}"), &["deployment.apps \"app\" deleted"]);
    creates(c, &image);
    permits(c)?;
    explains(c)
}

fn creates(c: &Cluster, image: &str) {
    says(c, "create configmap settings --from-literal=a=b", &["configmap/settings created"]);
    says(c, "describe cm settings", &["a:\n----\nb"]);
    says(c, "create secret generic hidden --from-literal=p=q", &["secret/hidden created"]);
    says(c, "describe secret hidden", &["Type:  Opaque", "p:  1 bytes"]);
    says(c, &format!("create job once --image={image} -- echo hi"), &["job.batch/once created"]);
    says(c, "create quota q --hard=pods=2", &["resourcequota/q created"]);
    says(c, "delete quota q", &[]);
    says(c, "create pdb p --selector=app=web --min-available=1", &["poddisruptionbudget.policy/p created"]);
    says(c, "create ingress i --rule=a.b/=web:80", &["ingress.networking.k8s.io/i created"]);
    says(c, "delete cm --all", &["configmap \"settings\" deleted"]);
    says(c, "create namespace other", &["namespace/other created"]);
    says(c, &format!("create deployment inside -n other --image={image} -- sleep 1000"), &["created"]);
    says(c, "wait --for=condition=Available deploy/inside -n other --timeout=30s", &["condition met"]);
    says(c, "delete ns other --timeout=60s", &["namespace \"other\" deleted"]);
    fails(c, "get ns other", None, &["namespaces \"other\" not found"]);
    says(c, "get all -n other", &["No resources found in other namespace."]);
}

fn permits(c: &Cluster) -> Result<()> {
    const VIEWER: &str = "system:serviceaccount:default:viewer";
    says(c, "create sa viewer", &["serviceaccount/viewer created"]);
    says(c, "create rolebinding v --clusterrole=view --serviceaccount=default:viewer", &["created"]);
    says(c, "auth can-i create pods", &["yes"]);
    says(c, &format!("auth can-i get pods --as={VIEWER}"), &["yes"]);
    fails(c, &format!("auth can-i create pods --as={VIEWER}"), None, &["no"]);
    fails(c, &format!("auth can-i list nodes --as={VIEWER}"), None, &["no"]);
    says(c, &format!("auth can-i --list --as={VIEWER}"), &["configmaps", "[get list watch]"]);
    says(c, "auth whoami", &["kubernetes-admin"]);
    let token = c.kubectl(&["create", "token", "viewer"])?;
    // The administrator's certificate would come first.
    let server = c.kubectl(&["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"])?;
    let as_viewer = format!("--kubeconfig=/dev/null --server={server} --insecure-skip-tls-verify --token={token}");
    says(c, &format!("auth whoami {as_viewer}"), &[VIEWER]);
    says(c, &format!("get pods {as_viewer}"), &[]);
    fails(
        c,
        &format!("get nodes {as_viewer}"),
        None,
        &["nodes is forbidden: User \"system:serviceaccount:default:viewer\" cannot list resource \"nodes\""],
    );
    Ok(())
}

fn explains(c: &Cluster) -> Result<()> {
    says(
        c,
        "explain pods.spec.containers",
        &["FIELD: containers <[]Container>", "List of containers belonging to the pod."],
    );
    says(c, "explain deployment", &["Specification of the desired behavior of the Deployment."]);
    says(
        c,
        "explain deployment --output=plaintext-openapiv2",
        &["KIND:     Deployment", "Deployment enables declarative updates", "Specification of the desired behavior"],
    );
    let resources = says(c, "api-resources", &["deployments", "deploy", "apps/v1"]);
    assert_eq!(columns(&resources), ["NAME", "SHORTNAMES", "APIVERSION", "NAMESPACED", "KIND"]);
    says(c, "api-versions", &["apps/v1\n", "rbac.authorization.k8s.io/v1\n"]);
    says(c, "cluster-info", &["Kubernetes control plane", "is running at"]);
    says(c, "version", &["Server Version: v1."]);
    says(c, "config get-contexts", &["CURRENT", "*"]);
    says(c, "get --raw /readyz?verbose", &["readyz check passed"]);
    let context = says(c, "config set-context --current --namespace=kube-system", &["modified."]);
    assert!(context.starts_with("Context "), "{context}");
    says(c, "config view --minify", &["namespace: kube-system"]);
    Ok(())
}
