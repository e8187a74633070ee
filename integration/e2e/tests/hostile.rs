//! Attacks on a running node, by who may be expected to try: a tenant with rights in one namespace, containers, an image, another
//! user of the host. After each of them the same daemon serves the others as before.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use integration_e2e::cluster::{Cluster, Said, eventually, run};

const IMAGE: &str = "e2e.local/busybox:1";
/// Memory that an attack may cost the daemon at most; each of those here took hundreds of megabytes once.
const GROWTH_BYTES_MAX: u64 = 150 << 20;
const NOBODY: u32 = 65534;

/// A cluster that is watched: whoever attacks it, it stays the same process and goes on serving.
struct Watched {
    cluster: Cluster,
    pid: i32,
    memory: u64,
}

impl Watched {
    fn start() -> Result<Self> {
        let cluster = Cluster::start()?;
        cluster.import_busybox()?;
        let pid = cluster.daemon_pid()?;
        Ok(Self { memory: resident_bytes(pid)?, cluster, pid })
    }

    /// Nothing has happened to anybody else.
    fn goes_on(&self, attack: &str) -> Result<()> {
        let pid = self.cluster.daemon_pid()?;
        ensure!(pid == self.pid, "{attack}: the daemon was {} and is {pid}", self.pid);
        let grown = resident_bytes(pid)?.saturating_sub(self.memory);
        ensure!(grown < GROWTH_BYTES_MAX, "{attack}: the daemon grew by {grown} bytes");
        let name = format!("after-{attack}");
        self.cluster.apply(&pod(&name, "default", "exec sleep 600", "", ""))?;
        self.cluster.pod_ready(&name).with_context(|| format!("{attack}: another pod does not start"))?;
        self.cluster.kubectl(&["delete", "pod", &name, "--wait=false"])?;
        Ok(())
    }

    /// A kubeconfig-less kubectl with the token of a tenant who has `edit` in the namespace `tenant` and nothing else.
    fn tenant(&self) -> Result<String> {
        self.cluster.kubectl(&["create", "namespace", "tenant"])?;
        self.cluster.kubectl(&["create", "serviceaccount", "eve", "-n", "tenant"])?;
        let binding =
            ["create", "rolebinding", "eve", "-n", "tenant", "--clusterrole=edit", "--serviceaccount=tenant:eve"];
        self.cluster.kubectl(&binding)?;
        self.cluster.kubectl(&["create", "token", "eve", "-n", "tenant"])
    }

    /// What kubectl says with that token alone: the administrator's certificate would win over it.
    fn as_tenant(&self, token: &str, arguments: &[&str], input: Option<&str>) -> Result<Said> {
        let config = self.cluster.get_config()?;
        let mut command = Command::new("timeout");
        command.args(["60", "kubectl", "--server", &config, "--insecure-skip-tls-verify", "--token", token]);
        command.args(arguments).env("HOME", "/nonexistent").env("KUBECONFIG", "/dev/null");
        run(command, input)
    }
}

trait Server {
    fn get_config(&self) -> Result<String>;
}

impl Server for Cluster {
    fn get_config(&self) -> Result<String> {
        self.kubectl(&["config", "view", "--raw", "-o", "jsonpath={.clusters[0].cluster.server}"])
    }
}

fn resident_bytes(pid: i32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

fn pod(name: &str, namespace: &str, script: &str, volumes: &str, more: &str) -> String {
    let mounts = if volumes.is_empty() { "" } else { ", volumeMounts: [{name: v, mountPath: /v}]" };
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{terminationGracePeriodSeconds: 1, \
         restartPolicy: Never, volumes: [{volumes}], containers: [{{name: c, image: '{IMAGE}', command: [sh, -c, {}]{mounts}}}]{more}}}\n",
        serde_json::json!(script)
    )
}

#[test]
fn a_tenant() -> Result<()> {
    let watched = Watched::start()?;
    let cluster = &watched.cluster;
    let token = watched.tenant()?;
    let tenant = |arguments: &[&str], input: Option<&str>| watched.as_tenant(&token, arguments, input);

    // Numbers at their ends, accepted or not, end nothing.
    for (number, grace) in [i64::MAX, i64::MIN, -1].into_iter().enumerate() {
        let name = format!("grace-{number}");
        let text = pod(&name, "tenant", "exec sleep 600", "", "")
            .replace("terminationGracePeriodSeconds: 1", &format!("terminationGracePeriodSeconds: {grace}"));
        tenant(&["apply", "-f", "-"], Some(&text))?;
        tenant(&["delete", "pod", "-n", "tenant", &name, "--wait=false"], None)?;
    }
    watched.goes_on("graces")?;

    // Nulls where objects belong.
    let null = pod(
        "null",
        "tenant",
        "exec sleep 600",
        "",
        ", affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [null]}}}",
    );
    let _accepted_or_not = tenant(&["apply", "--validate=false", "-f", "-"], Some(&null))?;
    watched.goes_on("nulls")?;

    // A patch that doubles what it has with each operation.
    tenant(&["create", "configmap", "bomb", "-n", "tenant", "--from-literal=a=0123456789"], None)?;
    let copies: Vec<_> = (0..40)
        .map(|number| serde_json::json!({"op": "copy", "from": "/data", "path": format!("/data/k{number}")}))
        .collect();
    let copies = serde_json::Value::Array(copies).to_string();
    let said = tenant(&["patch", "configmap", "bomb", "-n", "tenant", "--type=json", "-p", &copies], None)?;
    ensure!(said.code != 0, "a patch that grows without end was taken: {}", said.all());
    watched.goes_on("copies")?;

    // An object too deep to be read again.
    let deep = format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{{\"name\":\"deep\",\"namespace\":\"tenant\",\"annotations\":{}1{}}}}}",
        "{\"a\":".repeat(5000),
        "}".repeat(5000)
    );
    let _refused = tenant(&["create", "--validate=false", "-f", "-"], Some(&deep))?;
    watched.goes_on("depth")?;

    // Secrets that a role does not name.
    cluster.kubectl(&["create", "secret", "generic", "allowed", "--from-literal=a=open"])?;
    cluster.kubectl(&["create", "secret", "generic", "hidden", "--from-literal=a=NOBODYS"])?;
    cluster.kubectl(&[
        "create",
        "role",
        "one",
        "--verb=get,list,watch",
        "--resource=secrets",
        "--resource-name=allowed",
    ])?;
    cluster.kubectl(&["create", "rolebinding", "one", "--role=one", "--serviceaccount=tenant:eve"])?;
    let hidden = "Tk9CT0RZUw==";
    for path in [
        "/api/v1/namespaces/default/secrets",
        "/api/v1/namespaces/default/secrets/hidden",
        "/api/v1/namespaces/default/secrets?fieldSelector=metadata.name%3Dhidden",
        "/api/v1/namespaces/default/secrets?fieldSelector=metadata.name!%3Dzzz",
        "/api/v1/namespaces/default/secrets/allowed?fieldSelector=metadata.name!%3Dzzz",
        "/api/v1/namespaces/default/secrets/allowed?watch=1&timeoutSeconds=2&fieldSelector=metadata.name!%3Dzzz",
        "/api/v1/watch/namespaces/default/secrets/allowed?timeoutSeconds=2&fieldSelector=metadata.name!%3Dzzz",
    ] {
        let said = tenant(&["get", "--raw", path], None)?;
        ensure!(!said.all().contains(hidden), "{path} shows a Secret that the role does not name");
    }
    let allowed = tenant(&["get", "--raw", "/api/v1/namespaces/default/secrets/allowed"], None)?;
    ensure!(allowed.code == 0, "what the role names is refused: {}", allowed.all());

    // Rights that nobody gave.
    for arguments in [
        &["get", "nodes"][..],
        &["get", "pods", "-A"],
        &["create", "clusterrolebinding", "me", "--clusterrole=cluster-admin", "--serviceaccount=tenant:eve"],
        &["label", "clusterrole", "cluster-admin", "rbac.authorization.k8s.io/aggregate-to-view=true"],
        &["get", "pods", "-n", "tenant", "--as=system:admin", "--as-group=system:masters"],
        &["get", "secrets", "-n", "kube-system"],
    ] {
        let said = tenant(arguments, None)?;
        ensure!(said.code != 0, "a tenant may {arguments:?}: {}", said.all());
    }
    watched.goes_on("rights")
}

#[test]
fn containers() -> Result<()> {
    let watched = Watched::start()?;
    let cluster = &watched.cluster;

    // Whatever enters the container is stopped before it runs.
    cluster.apply(&pod("stopper", "default", "trap '' TERM; while :; do kill -STOP -1; done", "", ""))?;
    cluster.pod_ready("stopper")?;
    let mut exec = cluster.kubectl_command(&["exec", "stopper", "--", "true"]);
    exec.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut exec = exec.spawn()?;
    watched.goes_on("stopped-exec")?;
    cluster.kubectl(&["delete", "pod", "stopper", "--timeout=60s"])?;
    integration_e2e::cluster::end(&mut exec)?;

    // A tree that cannot be walked by recursion.
    let nest = "cd /v; i=0; while [ $i -lt 6000 ]; do mkdir d && cd d || break; i=$((i+1)); done; echo nested > /dev/termination-log; exec sleep 600";
    cluster.apply(&pod("deep", "default", nest, "{name: v, emptyDir: {}}", ""))?;
    cluster.pod_ready("deep")?;
    eventually(60, "the directories are made", || {
        let said = cluster.kubectl(&["exec", "deep", "--", "cat", "/dev/termination-log"])?;
        ensure!(said.contains("nested"), "{said}");
        Ok(())
    })?;
    cluster.kubectl(&["delete", "pod", "deep", "--timeout=60s"])?;
    watched.goes_on("nested-directories")?;

    // A FIFO where the node reads a message.
    let fifo = pod("fifo", "default", "mkfifo /v/m; exit 3", "{name: v, emptyDir: {}}", "")
        .replace("volumeMounts", "terminationMessagePath: /v/m, volumeMounts");
    cluster.apply(&fifo)?;
    eventually(40, "the pod with a FIFO ends", || {
        let phase = cluster.kubectl(&["get", "pod", "fifo", "-o", "jsonpath={.status.phase}"])?;
        ensure!(phase == "Failed", "{phase}");
        Ok(())
    })?;
    cluster.kubectl(&["delete", "pod", "fifo", "--timeout=60s"])?;
    watched.goes_on("fifo")?;

    // The first process of a shared PID namespace is the node's own.
    let shared = "ls /proc/1/root/ /proc/1/cwd/ /proc/1/fd/ 2>&1; cat /proc/1/root/etc/hostname 2>&1; exec sleep 600";
    let more = ", shareProcessNamespace: true";
    let text = pod("shared", "default", shared, "", more)
        .replace("command:", "securityContext: {capabilities: {add: [SYS_PTRACE]}}, command:");
    cluster.apply(&text)?;
    cluster.pod_ready("shared")?;
    let seen = cluster.kubectl(&["logs", "shared"])?;
    for of_host in ["vmlinuz", "boot", "srv", "media"] {
        ensure!(!seen.lines().any(|line| line == of_host), "the host's root is seen through the first process: {seen}");
    }
    cluster.kubectl(&["delete", "pod", "shared", "--timeout=60s"])?;

    // More output than anybody reads, and more processes than there is room for.
    cluster.apply(&pod(
        "flood",
        "default",
        "yes 'a line that nobody reads' & sleep 5; kill $!; exec sleep 600",
        "",
        "",
    ))?;
    let forks = pod("forks", "default", "f() { f | f & }; f; sleep 2; exec sleep 600", "", "")
        .replace("command:", "resources: {limits: {memory: 32Mi, cpu: 200m}}, command:");
    cluster.apply(&forks)?;
    watched.goes_on("floods")?;
    cluster.kubectl(&["delete", "pod", "flood", "forks", "--timeout=80s"])?;
    Ok(())
}

#[test]
fn other_users_of_the_host() -> Result<()> {
    let watched = Watched::start()?;
    let cluster = &watched.cluster;
    cluster.kubectl(&["create", "secret", "generic", "s", "--from-literal=a=NOBODYS"])?;
    cluster.apply(&pod("secret", "default", "exec sleep 600", "{name: v, secret: {secretName: s}}", ""))?;
    cluster.pod_ready("secret")?;
    // The directory itself is the person's who gave it to --root; nothing inside is anybody else's.
    fs::set_permissions(cluster.root(), fs::Permissions::from_mode(0o755))?;
    let mut find = Command::new("find");
    find.arg(cluster.root()).args(["-mindepth", "2"]).uid(NOBODY).gid(NOBODY);
    let seen = run(find, None)?;
    ensure!(seen.stdout.is_empty(), "another user sees {}", seen.stdout);
    for directory in ["data", "run", "config"] {
        let mode = fs::metadata(cluster.root().join(directory))?.permissions().mode() & 0o7777;
        ensure!(mode == 0o700, "{directory} is {mode:o}");
    }
    // What they can hold keeps nobody from anything: `up` has its own lock.
    let said = cluster.sampan(&["up", "--no-kubeconfig"])?;
    ensure!(said.code == 0, "{}", said.all());
    watched.goes_on("other-users")
}

#[test]
fn images() -> Result<()> {
    let watched = Watched::start()?;
    let cluster = &watched.cluster;
    let directory = tempfile::tempdir()?;
    let bomb = directory.path().join("bomb.tar");
    // A long name of 300 MB, as zeros of a sparse file.
    let mut header = [0_u8; 512];
    header[..13].copy_from_slice(b"././@LongLink");
    header[100..108].copy_from_slice(b"0000644\0");
    header[124..136].copy_from_slice(format!("{:011o}\0", 300_u64 << 20).as_bytes());
    header[156] = b'L';
    header[257..265].copy_from_slice(b"ustar  \0");
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut file = fs::File::create(&bomb)?;
    file.write_all(&header)?;
    file.set_len((300 << 20) + 2048)?;
    let said = cluster.sampan(&["import", &bomb.to_string_lossy()])?;
    ensure!(said.code != 0 && said.all().len() < 4096, "{} bytes: {:.200}", said.all().len(), said.all());
    watched.goes_on("long-name")
}
