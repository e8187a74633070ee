//! What a person gets wrong: every message says what happened, why, and what to do.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use integration_e2e::cluster::{Cluster, eventually};
use integration_e2e::{image, registry::Registry};
use nix::mount::{MsFlags, mount};

#[test]
fn in_manifests() -> Result<()> {
    let cluster = Cluster::start()?;
    let refused = |manifest: &str, wanted: &[&str]| -> Result<()> {
        let said = cluster.try_kubectl(&["apply", "-f", "-"], Some(manifest))?;
        ensure!(said.code != 0, "taken: {manifest}");
        let missing: Vec<_> = wanted.iter().filter(|part| !said.all().contains(**part)).collect();
        ensure!(missing.is_empty(), "{missing:?} not in: {}", said.all());
        Ok(())
    };
    let pod = |container: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n  containers:\n  - {{name: c, image: x, {container}}}\n"
        )
    };
    refused(&pod("imagePullPolicie: Always"), &["unknown field", "spec.containers[0].imagePullPolicie"])?;
    refused(&pod("imagePullPolicy: Sometimes"), &["spec.containers[0].imagePullPolicy", "Sometimes", "Always"])?;
    refused(&pod("resources: {requests: {memory: 1Gb}}"), &["quantit"])?;
    refused("apiVersion: v1\nkind: Pood\nmetadata: {name: p}\n", &["Pood", "no matches for kind"])?;
    refused(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: P_1}\nspec: {containers: [{name: c, image: x}]}\n",
        &["metadata.name", "P_1", "lowercase RFC 1123"],
    )?;
    refused(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: nowhere}\nspec: {containers: [{name: c, image: x}]}\n",
        &["namespaces \"nowhere\" not found"],
    )
}

#[test]
fn in_images() -> Result<()> {
    let cluster = Cluster::start()?;
    let registry = Registry::start()?;
    let good = registry.push(&image::busybox()?, "team/busybox:1")?;
    let repository = good.trim_end_matches(":1");
    let told = |name: &str, image: &str, wanted: &[&str]| -> Result<()> {
        cluster.kubectl(&["run", name, "--image", image, "--restart=Never"])?;
        eventually(30, "the reason in describe", || {
            let said = cluster.kubectl(&["describe", "pod", name])?;
            let missing: Vec<_> = wanted.iter().filter(|part| !said.contains(**part)).collect();
            ensure!(missing.is_empty(), "{missing:?} not in: {said}");
            Ok(())
        })?;
        let status = cluster.kubectl(&["get", "pod", name, "--no-headers"])?;
        ensure!(status.contains("ErrImagePull") || status.contains("ImagePullBackOff"), "{status}");
        Ok(())
    };
    told(
        "missing",
        &format!("{repository}:2"),
        &["ImagePullBackOff", "Failed to pull image", "has no team/busybox:2 (404)", "check repository and tag"],
    )?;
    let wrong = format!("{repository}@sha256:{}", "0".repeat(64));
    let missing = format!("has no team/busybox@sha256:{} (404)", "0".repeat(64));
    told("digest", &wrong, &["ErrImagePull", &missing, "check repository and digest"])?;
    told("unreachable", "127.0.0.1:1/x:1", &["ErrImagePull", "127.0.0.1:1", "refused"])?;
    // `kubectl run` would refuse it itself.
    cluster.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: name}\nspec: {containers: [{name: c, image: 'Team/Busybox:1'}]}\n",
    )?;
    eventually(20, "InvalidImageName", || {
        let said = cluster.kubectl(&["describe", "pod", "name"])?;
        ensure!(said.contains("InvalidImageName") && said.contains("couldn't parse image name"), "{said}");
        Ok(())
    })
}

#[test]
fn too_large_for_any_node() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: whale}\nspec:\n  containers:\n  \
         - {name: c, image: x, resources: {requests: {memory: 900Ti}}}\n",
    )?;
    eventually(10, "why it waits", || {
        let said = cluster.kubectl(&["describe", "pod", "whale"])?;
        ensure!(said.contains("FailedScheduling"), "{said}");
        ensure!(said.contains("0/1 nodes are available: 1 Insufficient memory"), "{said}");
        Ok(())
    })
}

#[test]
fn on_the_command_line() -> Result<()> {
    let cluster = Cluster::prepare()?;
    let up = |arguments: &[&str]| {
        let mut all = vec!["up", "--no-kubeconfig"];
        all.extend(arguments);
        cluster.sampan(&all)
    };
    for (arguments, wanted) in [
        (&["--api-port", "70000"][..], &["70000", "--api-port", "65535"][..]),
        (&["--frobnicate"], &["--frobnicate", "--help"]),
        (&["--pod-cidr", "10.42.0.0"], &["10.42.0.0", "--pod-cidr"]),
    ] {
        let said = up(arguments)?;
        ensure!(said.code == 2, "{said:?}");
        let missing: Vec<_> = wanted.iter().filter(|part| !said.stderr.contains(**part)).collect();
        ensure!(missing.is_empty(), "{missing:?} not in: {}", said.stderr);
    }
    let holder = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 7443))?;
    let said = up(&["--api-port", "7443"])?;
    ensure!(said.code != 0 && said.stderr.contains("port 7443"), "{said:?}");
    ensure!(said.stderr.contains("API server") && said.stderr.contains("--api-port"), "{said:?}");
    drop(holder);
    let first = up(&["--api-port", "7443", "--node-name", "n1"])?;
    ensure!(first.code == 0, "{first:?}");
    let second = up(&[])?;
    ensure!(second.code == 0 && second.all().contains("already up"), "{second:?}");
    ensure!(second.all().contains(" status` shows"), "{second:?}");
    cluster.sampan(&["down"])?;
    let other = up(&["--node-name", "n2"])?;
    ensure!(other.code != 0 && other.stderr.contains("n1") && other.stderr.contains("n2"), "{other:?}");
    ensure!(other.stderr.contains("--purge"), "{other:?}");
    Ok(())
}

#[test]
fn as_nobody() -> Result<()> {
    let cluster = Cluster::prepare()?;
    // The build's directory may be closed to others; the program must be reachable for nobody.
    let directory = tempfile::tempdir()?;
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755))?;
    let program = directory.path().join("sampan");
    File::create(&program)?;
    mount(Some(&cluster.dist().join("sampan")), &program, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    for verb in ["up", "down"] {
        let output = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&program)
            .args(["--root", "/tmp/sampan-nobody", verb])
            .output()
            .context("start setpriv; it is in the Debian package util-linux")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && said.contains("root") && said.contains("sudo "), "{verb}: {said}");
    }
    nix::mount::umount(&program)?;
    Ok(())
}

#[test]
fn on_a_full_disk() -> Result<()> {
    let cluster = Cluster::prepare()?;
    let size = Some("size=24k,mode=755");
    mount(Some("tmpfs"), cluster.root(), Some("tmpfs"), MsFlags::empty(), size)?;
    let said = cluster.sampan(&["up", "--no-kubeconfig", "--node-name", "n1"])?;
    let shown = said.all();
    cluster.sampan(&["down", "--purge"])?;
    nix::mount::umount(cluster.root())?;
    ensure!(said.code != 0, "{shown}");
    ensure!(shown.contains("No space left on device"), "{shown}");
    ensure!(shown.contains(&*cluster.root().to_string_lossy()), "{shown}");
    Ok(())
}

/// A disk of a few megabytes below one cluster, filled while it runs.
#[test]
fn on_a_disk_that_fills_up() -> Result<()> {
    let cluster = Cluster::prepare()?;
    mount(Some("tmpfs"), cluster.root(), Some("tmpfs"), MsFlags::empty(), Some("size=24m,mode=755"))?;
    let tried = while_the_disk_fills(&cluster);
    cluster.sampan(&["down", "--purge"])?;
    nix::mount::umount(cluster.root())?;
    tried
}

fn while_the_disk_fills(cluster: &Cluster) -> Result<()> {
    let up = || cluster.sampan(&["up", "--no-kubeconfig", "--node-name", "n1"]);
    let said = up()?;
    ensure!(said.code == 0, "{}", said.all());
    let image = cluster.import_demo()?;
    let registry = Registry::start()?;
    let remote = registry.push(&image::busybox()?, "team/busybox:1")?;
    cluster.kubectl(&["run", "before", "--image", image, "--image-pull-policy=Never"])?;
    cluster.pod_ready("before")?;
    let fill = cluster.root().join("fill");
    let mut file = File::create(&fill)?;
    while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    drop(file);
    let told = |what: &str, said: &integration_e2e::cluster::Said| -> Result<()> {
        let text = said.all().to_lowercase();
        ensure!(said.code != 0, "{what} went through: {text}");
        ensure!(text.contains("no space left") || text.contains("is full"), "{what}: {text}");
        ensure!(text.contains("free some"), "{what} does not say what helps: {text}");
        Ok(())
    };
    told("pull", &cluster.sampan(&["pull", &remote])?)?;
    let binary = cluster.dist().join("sampan-oci");
    let import = ["import", "--name", "e2e.local/x:1", "--binary", &binary.to_string_lossy()];
    told("import", &cluster.sampan(&import)?)?;
    told("run", &cluster.sampan(&["run", "--rm", image])?)?;
    let large = format!("--from-literal=x={}", "x".repeat(100_000));
    // What was free inside the file of the database is used up first.
    eventually(20, "a full state.db", || {
        let name = format!("m-{}", std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos());
        told("create", &cluster.try_kubectl(&["create", "configmap", &name, &large], None)?)
    })?;
    // Reading goes on, and so do pods, also when the daemon has to start again.
    cluster.kubectl(&["get", "pod", "before"])?;
    let pid = nix::unistd::Pid::from_raw(cluster.daemon_pid()?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
    eventually(5, "the daemon is gone", || {
        ensure!(!std::path::Path::new(&format!("/proc/{pid}/exe")).exists(), "it lives");
        Ok(())
    })?;
    told("up", &up()?)?;
    let status = cluster.sampan(&["status"])?;
    ensure!(status.stdout.contains("up (process"), "the daemon did not go on: {}", status.all());
    std::fs::remove_file(&fill)?;
    let said = up()?;
    ensure!(said.code == 0, "{}", said.all());
    cluster.kubectl(&["run", "after", "--image", image, "--image-pull-policy=Never"])?;
    cluster.pod_ready("after")?;
    let restarts =
        cluster.kubectl(&["get", "pod", "before", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"])?;
    ensure!(restarts == "0", "the pod that was there before restarted {restarts} times");
    Ok(())
}
