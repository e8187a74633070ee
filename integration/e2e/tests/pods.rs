//! What the kubelet makes of a pod's fields: lives and deaths, probes, environment, volumes, security, limits, static pods.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use integration_e2e::cluster::{Cluster, eventually};
use serde_json::Value;

fn cluster() -> Result<Cluster> {
    let cluster = Cluster::start()?;
    cluster.import_busybox()?;
    Ok(cluster)
}

/// A pod of one container `c` that runs a script: extra fields of the pod and of the container in YAML flow style.
fn pod(name: &str, script: &str, pod_fields: &str, container_fields: &str) -> String {
    let script = serde_json::json!(script);
    let comma = |fields: &str| if fields.is_empty() { String::new() } else { format!(", {fields}") };
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}, annotations: {{note: hello}}}}\n\
         spec: {{terminationGracePeriodSeconds: 1{}, containers: [{{name: c, image: 'e2e.local/busybox:1', \
         command: [sh, -c, {script}]{}}}]}}\n",
        comma(pod_fields),
        comma(container_fields)
    )
}

/// Waits until the pod's only container (or the one named) is as `pointer` below its status should be.
fn status(cluster: &Cluster, name: &str, pointer: &str, expect: &Value) -> Result<Value> {
    eventually(25, &format!("{name}: {pointer} = {expect}"), || {
        let pod = cluster.get(&["pod", name])?;
        let found = pod["status"].pointer(pointer).unwrap_or(&Value::Null);
        ensure!(found == expect, "{found} in {}", pod["status"]);
        Ok(pod["status"].clone())
    })
}

fn logs(cluster: &Cluster, name: &str) -> Result<String> {
    status(cluster, name, "/phase", &"Succeeded".into())
        .with_context(|| cluster.try_kubectl(&["logs", name], None).map(|said| said.all()).unwrap_or_default())?;
    cluster.kubectl(&["logs", name])
}

fn has_event(cluster: &Cluster, name: &str, reason: &str, part: &str) -> Result<()> {
    eventually(15, &format!("an event {reason} of {name}"), || {
        let selector = format!("involvedObject.name={name},reason={reason}");
        let said =
            cluster.kubectl(&["get", "events", "--field-selector", &selector, "-o", "jsonpath={.items[*].message}"])?;
        ensure!(!said.is_empty() && said.contains(part), "{said:?}");
        Ok(())
    })
}

#[test]
fn lives_and_deaths() -> Result<()> {
    let cluster = cluster()?;
    let never = "restartPolicy: Never";
    let init = "restartPolicy: Never, volumes: [{name: d, emptyDir: {}}], initContainers: [\
                {name: one, image: 'e2e.local/busybox:1', command: [sh, -c, 'sleep 0.3; echo one >> /d/order'], volumeMounts: [{name: d, mountPath: /d}]}, \
                {name: side, image: 'e2e.local/busybox:1', restartPolicy: Always, command: [sh, -c, 'echo side >> /d/order; exec sleep 600'], volumeMounts: [{name: d, mountPath: /d}], startupProbe: {exec: {command: [grep, side, /d/order]}, periodSeconds: 1}}, \
                {name: two, image: 'e2e.local/busybox:1', command: [sh, -c, 'echo two >> /d/order'], volumeMounts: [{name: d, mountPath: /d}]}]";
    let mounted = "volumeMounts: [{name: d, mountPath: /d}]";
    let survives = "[ -e /d/again ] && exec sleep 600; touch /d/again; exit 5";
    cluster.apply(&[
        pod("ordered", "cat /d/order", init, mounted),
        pod("fails", "echo sorry > /dev/termination-log; exit 3", never, ""),
        pod("speaks", "echo last words; exit 4", never, "terminationMessagePolicy: FallbackToLogsOnError"),
        pod("crashes", "exit 2", "", ""),
        pod("retried", survives, "restartPolicy: OnFailure, volumes: [{name: d, emptyDir: {}}]", mounted),
        pod("greedy", "tail /dev/zero", never, "resources: {limits: {memory: 16Mi}}"),
        pod("tardy", "exec sleep 600", "activeDeadlineSeconds: 1", ""),
        pod("absent", "true", never, "imagePullPolicy: Never").replace("busybox:1", "none:1"),
        pod("unknown", "true", never, "imagePullPolicy: Always").replace("e2e.local/busybox:1", "127.0.0.1:1/none:1"),
        pod("init-fails", "true", "restartPolicy: Never, initContainers: [{name: i, image: 'e2e.local/busybox:1', command: [sh, -c, exit 6]}]", ""),
        pod("no-command", "true", never, "").replace("command: [sh, -c, \"true\"]", "command: [/nowhere]"),
        pod("no-config", "true", never, "envFrom: [{configMapRef: {name: none}}]"),
        pod("rooted", "true", "securityContext: {runAsNonRoot: true}", ""),
    ].concat())?;
    assert_eq!(logs(&cluster, "ordered")?, "one\nside\ntwo");
    let ended = status(&cluster, "fails", "/containerStatuses/0/state/terminated/exitCode", &3.into())?;
    assert_eq!(ended["phase"], "Failed");
    assert_eq!(ended["containerStatuses"][0]["state"]["terminated"]["reason"], "Error");
    assert_eq!(ended["containerStatuses"][0]["state"]["terminated"]["message"], "sorry\n");
    let ended = status(&cluster, "speaks", "/containerStatuses/0/state/terminated/exitCode", &4.into())?;
    assert_eq!(ended["containerStatuses"][0]["state"]["terminated"]["message"], "last words\n");
    let ended = status(&cluster, "greedy", "/containerStatuses/0/state/terminated/reason", &"OOMKilled".into())?;
    assert_eq!(ended["containerStatuses"][0]["state"]["terminated"]["exitCode"], 137);
    let ended = status(&cluster, "retried", "/containerStatuses/0/restartCount", &1.into())?;
    assert_eq!(ended["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 5);
    let ended = status(&cluster, "crashes", "/containerStatuses/0/state/waiting/reason", &"CrashLoopBackOff".into())?;
    assert_eq!(ended["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 2);
    has_event(&cluster, "crashes", "BackOff", "Back-off restarting failed container c in pod crashes")?;
    let ended = status(&cluster, "tardy", "/reason", &"DeadlineExceeded".into())?;
    assert_eq!(ended["phase"], "Failed");
    status(&cluster, "absent", "/containerStatuses/0/state/waiting/reason", &"ErrImageNeverPull".into())?;
    status(&cluster, "unknown", "/containerStatuses/0/state/waiting/reason", &"ImagePullBackOff".into())?;
    has_event(&cluster, "unknown", "Failed", "127.0.0.1:1")?;
    let ended = status(&cluster, "init-fails", "/initContainerStatuses/0/state/terminated/exitCode", &6.into())?;
    assert_eq!(ended["phase"], "Failed");
    let shown = cluster.kubectl(&["get", "pod", "init-fails", "--no-headers"])?;
    assert!(shown.contains("Init:Error"), "{shown}");
    let reason = "/containerStatuses/0/state/terminated/reason";
    let ended = status(&cluster, "no-command", reason, &"StartError".into())?;
    assert_eq!(ended["phase"], "Failed");
    assert_eq!(ended["containerStatuses"][0]["state"]["terminated"]["exitCode"], 128);
    let message = ended["containerStatuses"][0]["state"]["terminated"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("/nowhere: no such file or directory"), "{message}");
    for name in ["no-config", "rooted"] {
        status(&cluster, name, "/containerStatuses/0/state/waiting/reason", &"CreateContainerConfigError".into())?;
    }
    Ok(())
}

#[test]
fn probes_and_endings() -> Result<()> {
    let cluster = cluster()?;
    let serve = "mkdir /w; echo ok > /w/ready; touch /w/alive; trap 'echo TERM; exit 0' TERM; httpd -p 80 -h /w; while true; do sleep 0.1; done";
    cluster.apply(&[
        pod("live", serve, "", "livenessProbe: {exec: {command: [test, -e, /w/alive]}, periodSeconds: 1, failureThreshold: 1}"),
        pod("ready", serve, "", "readinessProbe: {httpGet: {path: /ready, port: 80}, periodSeconds: 1, failureThreshold: 1}"),
        pod("startup", serve, "", "startupProbe: {tcpSocket: {port: 80}, periodSeconds: 1}, livenessProbe: {httpGet: {path: /none, port: 80}, periodSeconds: 1, failureThreshold: 1}"),
        pod("hooks", "echo main; exec sleep 600", "volumes: [{name: d, hostPath: {path: /tmp}}]", "lifecycle: {postStart: {exec: {command: [sh, -c, 'echo started > /started']}}, preStop: {exec: {command: [sh, -c, 'echo stopping > /proc/1/fd/1']}}}"),
        pod("deaf", "trap 'echo heard' TERM; echo up; while true; do sleep 0.1; done", "", ""),
        "---\napiVersion: v1\nkind: Service\nmetadata: {name: ready}\nspec: {selector: {app: ready}, ports: [{port: 80}]}\n".to_owned(),
    ].concat())?;
    let address = cluster.pod_ready("ready")?.to_string();
    let endpoints = || {
        cluster.kubectl(&[
            "get",
            "endpointslices",
            "-l",
            "kubernetes.io/service-name=ready",
            "-o",
            "jsonpath={range .items[*].endpoints[?(@.conditions.ready==true)]}{.addresses[0]}{end}",
        ])
    };
    let expect = |expect: &str| {
        eventually(15, "the Service's endpoints", || {
            let found = endpoints()?;
            ensure!(found == expect, "{found:?} instead of {expect:?}");
            Ok(())
        })
    };
    expect(&address)?;
    cluster.kubectl(&["exec", "ready", "--", "rm", "/w/ready"])?;
    expect("")?;
    cluster.kubectl(&["exec", "ready", "--", "touch", "/w/ready"])?;
    expect(&address)?;
    status(&cluster, "ready", "/containerStatuses/0/restartCount", &0.into())?;

    status(&cluster, "live", "/containerStatuses/0/ready", &true.into())?;
    cluster.kubectl(&["exec", "live", "--", "rm", "/w/alive"])?;
    status(&cluster, "live", "/containerStatuses/0/restartCount", &1.into())?;
    has_event(&cluster, "live", "Unhealthy", "Liveness probe failed")?;
    has_event(&cluster, "live", "Killing", "failed liveness probe")?;
    assert_eq!(cluster.kubectl(&["logs", "live", "-p"])?, "TERM");
    // Its liveness fails only after its startup probe succeeded.
    has_event(&cluster, "startup", "Unhealthy", "HTTP probe failed with statuscode: 404")?;

    cluster.pod_ready("hooks")?;
    assert_eq!(cluster.kubectl(&["exec", "hooks", "--", "cat", "/started"])?, "started");
    let mut follow = cluster.kubectl_command(&["logs", "-f", "hooks"]);
    let child = follow.stdout(std::process::Stdio::piped()).spawn()?;
    cluster.kubectl(&["delete", "pod", "hooks"])?;
    assert_eq!(String::from_utf8_lossy(&child.wait_with_output()?.stdout), "main\nstopping\n");

    cluster.pod_ready("deaf")?;
    let mut follow = cluster.kubectl_command(&["logs", "-f", "deaf"]);
    let child = follow.stdout(std::process::Stdio::piped()).spawn()?;
    let mut watch = cluster.kubectl_command(&[
        "get",
        "pod",
        "deaf",
        "-w",
        "-o",
        "jsonpath={.status.containerStatuses[0].state.terminated.exitCode} ",
    ]);
    let watching = watch.stdout(std::process::Stdio::piped()).spawn()?;
    cluster.kubectl(&["delete", "pod", "deaf"])?;
    assert_eq!(String::from_utf8_lossy(&child.wait_with_output()?.stdout), "up\nheard\n");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(watching.id())?),
        nix::sys::signal::Signal::SIGTERM,
    )?;
    let codes = String::from_utf8_lossy(&watching.wait_with_output()?.stdout).into_owned();
    assert!(codes.contains("137"), "{codes:?}");
    Ok(())
}

const SOURCES: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {color: blue, shape: round}
---
apiVersion: v1
kind: Secret
metadata: {name: hush}
stringData: {word: sesame}
---
apiVersion: v1
kind: Service
metadata: {name: known}
spec: {clusterIP: 10.43.7.7, ports: [{port: 81}]}
";

#[test]
fn environment_and_volumes() -> Result<()> {
    let cluster = cluster()?;
    cluster.apply(SOURCES)?;
    let env = "env: [{name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}, {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}, \
               {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}, {name: NOTE, valueFrom: {fieldRef: {fieldPath: 'metadata.annotations[''note'']'}}}, \
               {name: MEM, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}, {name: WORD, valueFrom: {secretKeyRef: {name: hush, key: word}}}, \
               {name: BOTH, value: $(NAME)-$(WORD)-$$(NAME)}], envFrom: [{configMapRef: {name: conf}, prefix: CM_}], resources: {limits: {memory: 64Mi}}";
    let script = "echo $NAME $NODE $NOTE $MEM $WORD $BOTH $CM_color $KNOWN_SERVICE_HOST $KNOWN_PORT_81_TCP_PORT; [ $IP = $(hostname -i) ] && echo same";
    let volumes = "volumes: [{name: e, emptyDir: {}}, {name: m, emptyDir: {medium: Memory}}, {name: c, configMap: {name: conf, defaultMode: 0640}}, \
                   {name: s, secret: {secretName: hush, items: [{key: word, path: a/b}]}}, {name: d, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}, \
                   {name: p, projected: {sources: [{configMap: {name: conf}}, {secret: {name: hush}}, {serviceAccountToken: {path: token, audience: elsewhere}}]}}], securityContext: {fsGroup: 4321}";
    let mounts = "volumeMounts: [{name: e, mountPath: /e}, {name: m, mountPath: /m}, {name: c, mountPath: /c}, {name: c, mountPath: /one/color, subPath: color}, \
                  {name: s, mountPath: /s, readOnly: true}, {name: d, mountPath: /d}, {name: p, mountPath: /p}]";
    let look = "set -e; stat -c '%g %a' /e; grep -c ' /m tmpfs' /proc/mounts; cat /c/color; echo; stat -Lc %a /c/color; cat /one/color; echo; cat /s/a/b; echo; \
                cat /d/labels; echo; ls /p; touch /s/x 2>&1 || true; touch /e/x; stat -c %g /e/x; id -G";
    let never = "restartPolicy: Never";
    cluster.apply(&[
        pod("env", script, never, env),
        pod("look", look, &format!("{never}, {volumes}"), mounts),
        pod("live", "exec sleep 600", "volumes: [{name: c, configMap: {name: conf}}]", "volumeMounts: [{name: c, mountPath: /c}]"),
        pod("token", "D=/var/run/secrets/kubernetes.io/serviceaccount; cat $D/namespace; echo; wget -q -S --no-check-certificate --header \"Authorization: Bearer $(cat $D/token)\" -O - https://kubernetes.default.svc/api 2>&1 | grep -o 'APIVersions'", never, ""),
    ].concat())?;
    assert_eq!(logs(&cluster, "env")?, "env node-1 hello 64 sesame env-sesame-$(NAME) blue 10.43.7.7 81\nsame");
    let looked = logs(&cluster, "look")?;
    let expect = "4321 2777\n1\nblue\n640\nblue\nsesame\napp=\"look\"\ncolor\nshape\ntoken\nword\ntouch: /s/x: Read-only file system\n4321\n0 4321";
    assert_eq!(looked, expect);
    cluster.pod_ready("live")?;
    cluster.kubectl(&["patch", "configmap", "conf", "-p", "{\"data\":{\"color\":\"green\"}}"])?;
    eventually(20, "the changed file", || {
        let color = cluster.kubectl(&["exec", "live", "--", "cat", "/c/color"])?;
        ensure!(color == "green", "{color}");
        Ok(())
    })?;
    // The token is taken straight out of the pod: busybox's wget may have no TLS.
    let token =
        cluster.kubectl(&["exec", "live", "--", "cat", "/var/run/secrets/kubernetes.io/serviceaccount/token"])?;
    let said = cluster.try_kubectl(
        &[
            "--token",
            token.trim(),
            "--kubeconfig",
            "/dev/null",
            "--insecure-skip-tls-verify",
            "--server",
            &cluster.kubectl(&["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"])?,
            "auth",
            "whoami",
        ],
        None,
    )?;
    assert!(said.stdout.contains("system:serviceaccount:default:default"), "{said:?}");
    Ok(())
}

#[test]
fn isolation() -> Result<()> {
    let cluster = cluster()?;
    let never = "restartPolicy: Never";
    let host = tempfile::tempdir()?;
    fs::write(host.path().join("hello"), "from the host\n")?;
    let host_path =
        format!("{never}, volumes: [{{name: h, hostPath: {{path: {}, type: Directory}}}}]", host.path().display());
    let limits = "resources: {requests: {cpu: 100m, memory: 16Mi}, limits: {cpu: 500m, memory: 64Mi}}";
    cluster.apply(&[
        pod("user", "id -u; id -g; id -G; grep -E 'NoNewPrivs|CapEff|Seccomp:' /proc/self/status; touch /x 2>&1; true",
            &format!("{never}, securityContext: {{runAsUser: 1001, runAsGroup: 1002, supplementalGroups: [7], seccompProfile: {{type: RuntimeDefault}}}}"),
            "securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}"),
        pod("capable", "grep CapEff /proc/self/status", never, "securityContext: {capabilities: {drop: [ALL], add: [NET_ADMIN, SYS_TIME]}}"),
        pod("names", "hostname; hostname -f; grep -c 'the.alias' /etc/hosts; cat /etc/resolv.conf",
            &format!("{never}, hostname: me, subdomain: sub, hostAliases: [{{ip: 10.9.8.7, hostnames: [the.alias]}}], dnsPolicy: None, dnsConfig: {{nameservers: [10.1.2.3], searches: [my.search], options: [{{name: ndots, value: '3'}}]}}"), ""),
        pod("dns", "cat /etc/resolv.conf", never, ""),
        pod("host-net", "ip -o link show | wc -l; hostname", &format!("{never}, hostNetwork: true"), ""),
        pod("host-path", "cat /h/hello; touch /h/made", &host_path, "volumeMounts: [{name: h, mountPath: /h}]"),
        pod("limited", "exec sleep 600", "", limits),
        pod("guaranteed", "exec sleep 600", "", "resources: {limits: {cpu: 100m, memory: 32Mi}}"),
        pod("effort", "exec sleep 600", "", ""),
        pod("shared", "exec sleep 600", "shareProcessNamespace: true", "").replace("containers: [", "containers: [{name: other, image: 'e2e.local/busybox:1', command: [sleep, '777']}, "),
        pod("ported", "mkdir /w; echo ported > /w/index.html; exec httpd -f -p 80 -h /w", "", "ports: [{containerPort: 80, hostPort: 8088}]"),
    ].concat())?;
    let said = logs(&cluster, "user")?;
    assert!(said.starts_with("1001\n1002\n1002 7\n"), "{said}");
    assert!(
        said.contains("CapEff:\t0000000000000000") && said.contains("NoNewPrivs:\t1") && said.contains("Seccomp:\t2"),
        "{said}"
    );
    assert!(said.contains("Read-only file system"), "{said}");
    assert_eq!(logs(&cluster, "capable")?, "CapEff:\t0000000002001000");
    let said = logs(&cluster, "names")?;
    assert!(said.starts_with("me\nme.sub.default.svc.cluster.local\n1\n"), "{said}");
    assert!(
        said.contains("nameserver 10.1.2.3") && said.contains("search my.search") && said.contains("options ndots:3"),
        "{said}"
    );
    let said = logs(&cluster, "dns")?;
    assert!(said.contains("search default.svc.cluster.local svc.cluster.local cluster.local"), "{said}");
    assert!(said.contains("nameserver 10.43.0.10") && said.contains("ndots:5"), "{said}");
    let said = logs(&cluster, "host-net")?;
    let links: u32 = said.lines().next().unwrap_or_default().parse()?;
    assert!(links > 2, "{said}");
    assert_eq!(logs(&cluster, "host-path")?, "from the host");
    assert!(host.path().join("made").exists());
    for (name, class) in [("limited", "Burstable"), ("guaranteed", "Guaranteed"), ("effort", "BestEffort")] {
        status(&cluster, name, "/qosClass", &class.into())?;
    }
    cluster.pod_ready("limited")?;
    let v1 = Path::new("/sys/fs/cgroup/memory").exists();
    let (memory, cpu) = if v1 {
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
    } else {
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/cpu.max")
    };
    assert_eq!(cluster.kubectl(&["exec", "limited", "--", "cat", memory])?, "67108864");
    assert!(cluster.kubectl(&["exec", "limited", "--", "cat", cpu])?.starts_with("50000"));
    cluster.pod_ready("shared")?;
    let seen = cluster.kubectl(&["exec", "shared", "-c", "c", "--", "ps"])?;
    assert!(seen.contains("sleep 777") && seen.contains("sleep 600"), "{seen}");
    cluster.pod_ready("ported")?;
    let node = cluster.kubectl(&["get", "node", "node-1", "-o", "jsonpath={.status.addresses[0].address}"])?;
    let page = eventually(5, "the host port", || {
        integration_e2e::cluster::http_get((integration_e2e::cluster::ip(&node)?, 8088), "/")
    })?;
    assert_eq!(page, "ported\n");
    Ok(())
}

#[test]
fn static_pods() -> Result<()> {
    let cluster = cluster()?;
    let file = cluster.root().join("config/manifests/fixed.yaml");
    fs::create_dir_all(file.parent().context("a directory")?)?;
    fs::write(&file, pod("fixed", "exec sleep 600", "", ""))?;
    let running = || status(&cluster, "fixed-node-1", "/phase", &"Running".into());
    running()?;
    let mirror = cluster.get(&["pod", "fixed-node-1"])?;
    assert!(mirror["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string(), "{mirror}");
    cluster.kubectl(&["delete", "pod", "fixed-node-1", "--wait=false"])?;
    let first = &mirror["metadata"]["uid"];
    eventually(15, "the mirror to come back", || {
        let again = cluster.get(&["pod", "fixed-node-1"])?;
        ensure!(&again["metadata"]["uid"] != first, "the deleted one is still there");
        Ok(())
    })?;
    assert_eq!(running()?["containerStatuses"][0]["restartCount"], 0, "its container does not notice");
    fs::remove_file(&file)?;
    eventually(15, "the static pod to go with its file", || {
        let left = cluster.kubectl(&["get", "pods", "-o", "name"])?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })
}
