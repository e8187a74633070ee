//! What stock kubectl does against the server, command by command.

use crate::server::Server;

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: registry.k8s.io/pause:3.10}]}
";

async fn with_account(server: &Server) {
    // The controller that makes it does not run here.
    server.kubectl("create serviceaccount default").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn looks_around() {
    let server = Server::start().await;
    assert!(server.kubectl("version").await.contains("Server Version: v1.36"));
    let resources = server.kubectl("api-resources").await;
    assert!(resources.contains("deployments") && resources.contains("deploy "), "{resources}");
    assert!(server.kubectl("api-versions").await.contains("rbac.authorization.k8s.io/v1\n"));
    assert!(server.kubectl("get --raw /readyz?verbose").await.contains("readyz check passed"));
    assert!(server.kubectl("cluster-info").await.contains("is running at"));
    let namespaces = server.kubectl("get namespaces").await;
    assert!(namespaces.lines().next().unwrap().starts_with("NAME"), "{namespaces}");
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        assert!(namespaces.contains(name), "{namespaces}");
    }
    let service = server.kubectl("get service kubernetes -o jsonpath={.spec.clusterIP}").await;
    assert_eq!(service, "10.43.0.1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn makes_changes_and_deletes() {
    let server = Server::start().await;
    with_account(&server).await;
    let file = server.file("web.yaml", DEPLOYMENT);
    assert_eq!(server.kubectl(&format!("apply --validate=false -f {file}")).await, "deployment.apps/web created\n");
    assert_eq!(server.kubectl(&format!("apply --validate=false -f {file}")).await, "deployment.apps/web unchanged\n");
    server.kubectl("scale deploy web --replicas=1").await;
    assert_eq!(server.kubectl("get deploy web -o jsonpath={.spec.replicas}").await, "1");
    server.kubectl("set image deploy/web c=registry.k8s.io/pause:3.9").await;
    assert_eq!(server.kubectl("get deploy web -o jsonpath={.metadata.generation}").await, "3");
    server.kubectl("label deploy web x=y").await;
    server.kubectl("create configmap cm1 --from-literal=a=b").await;
    assert_eq!(server.kubectl("get cm cm1 -o jsonpath={.data.a}").await, "b");
    server.kubectl("run p1 --image=registry.k8s.io/pause:3.10").await;
    assert_eq!(server.kubectl("get pod p1 -o jsonpath={.status.phase}").await, "Pending");
    assert!(server.refused("run p1 --image=x").await.contains("pods \"p1\" already exists"));
    server.kubectl("delete pod p1").await;
    assert!(server.refused("get pod p1").await.contains("pods \"p1\" not found"));
    server.kubectl("delete deploy web").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_what() {
    let server = Server::start().await;
    assert_eq!(server.kubectl("auth can-i list pods").await, "yes\n");
    assert!(server.kubectl("auth whoami").await.contains("system:masters"));
    // A user with a token and no rights beyond discovery.
    let viewer = "--user=none --token=viewer-token";
    let denied = server.refused(&format!("{viewer} get pods")).await;
    let expect = "pods is forbidden: User \"viewer\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"";
    assert!(denied.contains(expect), "{denied}");
    server.kubectl("create rolebinding v --clusterrole=view --user=viewer").await;
    server.kubectl(&format!("{viewer} get pods")).await;
    assert!(server.refused(&format!("{viewer} get secrets")).await.contains("forbidden"));
    assert!(server.refused(&format!("{viewer} get nodes")).await.contains("at the cluster scope"));
    assert!(server.kubectl(&format!("{viewer} auth can-i --list")).await.contains("configmaps"));
    // Nobody gives away what he does not have.
    server.kubectl("create rolebinding a --clusterrole=admin --user=viewer").await;
    let grant =
        server.refused(&format!("{viewer} create rolebinding x --clusterrole=cluster-admin --user=viewer")).await;
    assert!(grant.contains("attempting to grant RBAC permissions not currently held"), "{grant}");
    // Credentials of a sort that is not known here, and wrong ones. (Without any, kubectl asks for a password.)
    let basic = server.refused("--user=none --username=a --password=b get pods").await;
    assert!(basic.contains("Unauthorized") || basic.contains("provide credentials"), "{basic}");
    let wrong = server.refused("--user=none --token=wrong get pods").await;
    assert!(wrong.contains("Unauthorized") || wrong.contains("provide credentials"), "{wrong}");
    assert!(server.kubectl("--as=somebody auth whoami").await.contains("somebody"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn service_account_tokens_work_until_their_account_is_gone() {
    let server = Server::start().await;
    server.kubectl("create serviceaccount robot").await;
    server.kubectl("create rolebinding r --clusterrole=view --serviceaccount=default:robot").await;
    let token = server.kubectl("create token robot").await;
    let with = format!("--user=none --token={}", token.trim());
    server.kubectl(&format!("{with} get pods")).await;
    assert!(server.kubectl(&format!("{with} auth whoami")).await.contains("system:serviceaccount:default:robot"));
    server.kubectl("delete serviceaccount robot").await;
    let gone = server.refused(&format!("{with} get pods")).await;
    assert!(gone.contains("Unauthorized") || gone.contains("provide credentials"), "{gone}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let server = Server::start().await;
    server.kubectl("create configmap kept --from-literal=a=b").await;
    server.kubectl("create service nodeport np --tcp=80:80 --node-port=30123").await;
    let server = server.restart().await;
    assert_eq!(server.kubectl("get cm kept -o jsonpath={.data.a}").await, "b");
    let taken = server.refused("create service nodeport other --tcp=80:80 --node-port=30123").await;
    assert!(taken.contains("provided port is already allocated"), "{taken}");
    server.kubectl("delete service np").await;
    server.kubectl("create service nodeport other --tcp=80:80 --node-port=30123").await;
}
