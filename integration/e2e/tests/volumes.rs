//! Volumes over a pod's life: limits that are held, sources that come late, tokens and ConfigMaps that change, mounts that go.

use anyhow::{Result, ensure};
use integration_e2e::cluster::{Cluster, eventually};

const IMAGE: &str = "e2e.local/busybox:1";

fn cluster() -> Result<Cluster> {
    let cluster = Cluster::start()?;
    cluster.import_busybox()?;
    Ok(cluster)
}

/// A pod of one container `c` that runs a script, with its volumes and mounts in YAML flow style.
fn pod(name: &str, script: &str, volumes: &str, mounts: &str, more: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{terminationGracePeriodSeconds: 1, restartPolicy: Never, \
         volumes: [{volumes}], containers: [{{name: c, image: '{IMAGE}', command: [sh, -c, {}], volumeMounts: [{mounts}]{more}}}]}}\n",
        serde_json::json!(script)
    )
}

fn described(cluster: &Cluster, name: &str, parts: &[&str]) -> Result<()> {
    eventually(40, &format!("{name} is told to be {parts:?}"), || {
        let said = cluster.kubectl(&["describe", "pod", name])?;
        let missing: Vec<_> = parts.iter().filter(|part| !said.contains(**part)).collect();
        ensure!(missing.is_empty(), "{missing:?} not in: {said}");
        Ok(())
    })
}

#[test]
fn limits() -> Result<()> {
    let cluster = cluster()?;
    let write = "dd if=/dev/zero of=/v/x bs=1M count=3; exec sleep 600";
    let mount = "{name: v, mountPath: /v}";
    cluster.apply(
        &[
            pod("disk", write, "{name: v, emptyDir: {sizeLimit: 2Mi}}", mount, ""),
            pod("small", write, "{name: v, emptyDir: {sizeLimit: 8Mi}}", mount, ""),
            pod(
                "layer",
                "dd if=/dev/zero of=/x bs=1M count=3; exec sleep 600",
                "",
                "",
                ", resources: {limits: {ephemeral-storage: 1Mi}}",
            ),
            pod("memory", write, "{name: v, emptyDir: {medium: Memory, sizeLimit: 2Mi}}", mount, ""),
            // Without a limit of its own it has the pod's.
            pod(
                "shared",
                write,
                "{name: v, emptyDir: {medium: Memory}}",
                mount,
                ", resources: {limits: {memory: 16Mi}}",
            ),
        ]
        .concat(),
    )?;
    described(
        &cluster,
        "disk",
        &["Evicted", "Usage of EmptyDir volume \"v\" exceeds the limit \"2Mi\"", "DisruptionTarget"],
    )?;
    described(&cluster, "layer", &["Evicted", "local ephemeral storage limit \"1Mi\"", "Failed"]).or_else(|_| {
        described(&cluster, "layer", &["Evicted", "exceeds the total limit of containers 1Mi", "Failed"])
    })?;
    let path = "jsonpath={range .items[*]}{.metadata.name} {.status.phase} {.status.reason}{'\\n'}{end}";
    let status = cluster.kubectl(&["get", "pods", "-o", path])?;
    ensure!(status.contains("disk Failed Evicted") && status.contains("small Running"), "{status}");
    cluster.pod_ready("memory")?;
    eventually(10, "the end of the tmpfs", || {
        let said = cluster.kubectl(&["logs", "memory"])?;
        ensure!(said.contains("No space left on device"), "{said}");
        Ok(())
    })?;
    cluster.pod_ready("shared")?;
    let size = cluster.kubectl(&["exec", "shared", "--", "sh", "-c", "df -k /v | tail -1"])?;
    ensure!(size.split_whitespace().nth(1) == Some("16384"), "{size}");
    Ok(())
}

#[test]
fn sources_that_come_late() -> Result<()> {
    let cluster = cluster()?;
    let show = "cat /v/*; echo; exec sleep 600";
    let mount = "{name: v, mountPath: /v}";
    cluster.apply(
        &[
            pod("map", show, "{name: v, configMap: {name: late}}", mount, ""),
            pod("secret", show, "{name: v, secret: {secretName: late}}", mount, ""),
            pod("key", show, "{name: v, configMap: {name: late, items: [{key: other, path: p}]}}", mount, ""),
            pod("optional", "ls /v; echo none", "{name: v, configMap: {name: never, optional: true}}", mount, ""),
            pod("path", "true", "{name: v, hostPath: {path: /etc/passwd, type: Directory}}", mount, ""),
        ]
        .concat(),
    )?;
    described(
        &cluster,
        "map",
        &["FailedMount", "MountVolume.SetUp failed for volume \"v\" : configmap \"late\" not found"],
    )?;
    described(&cluster, "secret", &["FailedMount", "secret \"late\" not found", "ContainerCreating"])?;
    described(&cluster, "path", &["FailedMount", "hostPath type check failed: /etc/passwd is not a directory"])?;
    cluster.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: late}\ndata: {word: here}\n---\napiVersion: v1\nkind: Secret\nmetadata: {name: late}\nstringData: {word: hidden}\n")?;
    for (name, word) in [("map", "here"), ("secret", "hidden")] {
        cluster.pod_ready(name)?;
        eventually(10, "what it has read", || {
            let said = cluster.kubectl(&["logs", name])?;
            ensure!(said == word, "{said:?}");
            Ok(())
        })?;
    }
    described(&cluster, "key", &["references non-existent config key: other"])?;
    eventually(20, "the optional one", || {
        let said = cluster.kubectl(&["logs", "optional"])?;
        ensure!(said == "none", "{said}");
        Ok(())
    })
}

#[test]
fn static_pods_outlive_the_daemon_and_mounts_do_not_outlive_down() -> Result<()> {
    let cluster = cluster()?;
    let file = cluster.root().join("config/manifests/fixed.yaml");
    let volumes = "{name: m, emptyDir: {medium: Memory}}";
    std::fs::create_dir_all(file.parent().unwrap_or(&file))?;
    std::fs::write(&file, pod("fixed", "exec sleep 600", volumes, "{name: m, mountPath: /m}", ""))?;
    let container = || -> Result<String> {
        let path = "jsonpath={.status.containerStatuses[0].containerID} {.status.containerStatuses[0].state.running.startedAt}";
        eventually(30, "the static pod runs", || {
            let said = cluster.kubectl(&["get", "pod", "fixed-node-1", "-o", path])?;
            ensure!(said.contains('T'), "{said}");
            Ok(said)
        })
    };
    let before = container()?;
    for _ in 0..3 {
        let pid = nix::unistd::Pid::from_raw(cluster.daemon_pid()?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
        eventually(5, "the daemon is gone", || {
            let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            ensure!(state.is_empty() || state.contains(") Z "), "{state}");
            Ok(())
        })?;
        let said = cluster.sampan(&["up", "--no-kubeconfig"])?;
        ensure!(said.code == 0, "{}", said.all());
    }
    // What a late word of the runtime would show.
    cluster.kubectl(&["run", "later", "--image", IMAGE, "--image-pull-policy=Never", "--", "sleep", "600"])?;
    cluster.pod_ready("later")?;
    ensure!(container()? == before, "{before} became {}", container()?);
    let down = cluster.sampan(&["down"])?;
    let line = down.stderr.lines().find(|line| line.contains("mounts removed")).unwrap_or_default();
    ensure!(down.code == 0 && line.contains("none were left"), "{}", down.all());
    Ok(())
}
