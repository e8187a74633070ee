//! Containers on a bare host: `run`, `ps`, `logs`, `exec`, `stop`, `rm` and images without a cluster; then `up` takes over.

use std::fs;

use anyhow::{Result, ensure};
use integration_e2e::cluster::{Cluster, LOCALHOST, Said, eventually, http_get};
use integration_e2e::terminal::Terminal;

const IMAGE: &str = "e2e.local/busybox:1";

fn ok(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    let said = cluster.sampan(arguments)?;
    ensure!(said.code == 0, "sampan {} ended with {}: {}", arguments.join(" "), said.code, said.all());
    Ok(said.stdout.trim_end_matches('\n').to_owned())
}

#[test]
fn a_bare_host() -> Result<()> {
    let cluster = Cluster::prepare()?;
    cluster.import_busybox()?;
    let run = |rest: &[&str]| -> Result<Said> { cluster.sampan(&[&["run", "--rm"], rest].concat()) };
    let said = run(&[IMAGE, "sh", "-c", "echo out; echo err >&2; exit 7"])?;
    assert_eq!((&*said.stdout, said.code), ("out\n", 7), "{said:?}");
    assert!(said.stderr.contains("err\n"), "{said:?}");
    let said = cluster.sampan_with_input(&["run", "--rm", "-i", IMAGE, "cat"], Some("typed\n"))?;
    assert_eq!((&*said.stdout, said.code), ("typed\n", 0), "{said:?}");
    let said = run(&[IMAGE, "/nowhere"])?;
    assert!(said.code != 0 && said.stderr.contains("/nowhere"), "{said:?}");
    let said = run(&["--pull=never", "e2e.local/none:1", "true"])?;
    assert!(said.code != 0 && said.stderr.contains("e2e.local/none:1 is not here"), "{said:?}");
    assert_eq!(ok(&cluster, &["ps", "-a", "-q"])?, "", "--rm leaves nothing");

    let mut terminal =
        Terminal::start(&cluster.sampan_command(&["run", "--rm", "-it", "--name", "seen", IMAGE, "sh"]))?;
    terminal.expect("# ")?;
    terminal.type_line("stty size; hostname; exit 5")?;
    terminal.expect("24 80")?;
    terminal.expect("seen")?;
    assert_eq!(terminal.end()?.1, 5);

    let shared = tempfile::tempdir()?;
    fs::write(shared.path().join("given"), "given\n")?;
    let volume = format!("{}:/shared", shared.path().display());
    let script = "cp /shared/given /shared/taken; cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; echo $WORD; id -u; touch /x";
    let limited =
        ["-v", &volume, "-m", "64M", "-e", "WORD=hello", "-u", "1000", "--read-only", IMAGE, "sh", "-c", script];
    let said = run(&limited)?;
    assert!(said.stdout.ends_with("67108864\nhello\n1000\n"), "{said:?}");
    assert!(said.code == 1 && said.stderr.contains("Read-only file system"), "{said:?}");
    Ok(())
}

#[test]
fn containers_and_images_until_up_takes_over() -> Result<()> {
    let cluster = Cluster::prepare()?;
    cluster.import_busybox()?;
    let serve = "mkdir /w; echo page > /w/index.html; echo serving; exec httpd -f -p 80 -h /w";
    let id = ok(&cluster, &["run", "-d", "--name", "web", "-p", "8080:80", IMAGE, "sh", "-c", serve])?;
    let page = || http_get((LOCALHOST, 8080), "/");
    assert_eq!(eventually(10, "the published port", page)?, "page\n");
    let said = cluster.sampan(&["run", "-d", "--name", "web", IMAGE, "true"])?;
    assert!(said.code != 0 && said.stderr.contains("there is a container web already"), "{said:?}");
    let listed = ok(&cluster, &["ps"])?;
    assert!(listed.contains("web") && listed.contains(&id[..12]), "{listed}");
    assert_eq!(ok(&cluster, &["logs", "web"])?, "serving");
    assert_eq!(ok(&cluster, &["exec", "web", "cat", "/w/index.html"])?, "page");
    assert_eq!(cluster.sampan(&["exec", "web", "sh", "-c", "exit 6"])?.code, 6);

    let said = cluster.sampan(&["rm", "web"])?;
    assert!(said.code != 0 && said.stderr.contains("is running"), "{said:?}");
    ok(&cluster, &["run", "-d", "--name", "other", IMAGE, "sleep", "600"])?;
    ok(&cluster, &["stop", "-t", "1", "other"])?;
    let ended = ok(&cluster, &["ps", "-a"])?;
    assert!(ended.lines().any(|line| line.contains("other") && line.contains("exited")), "{ended}");
    ok(&cluster, &["rm", "other"])?;

    let file = cluster.root().join("saved.tar").to_string_lossy().into_owned();
    ok(&cluster, &["export", "-f", &file, IMAGE])?;
    ok(&cluster, &["rm", "--force", "web"])?;
    ok(&cluster, &["rmi", IMAGE])?;
    assert!(!ok(&cluster, &["images"])?.contains("busybox"));
    ok(&cluster, &["import", &file])?;
    assert!(ok(&cluster, &["images"])?.contains(IMAGE));

    ok(&cluster, &["run", "-d", "--name", "web", "-p", "8080:80", IMAGE, "sh", "-c", serve])?;
    eventually(10, "the published port", page)?;
    ok(&cluster, &["up", "--no-kubeconfig"])?;
    assert_eq!(page()?, "page\n", "what ran before goes on");
    assert_eq!(ok(&cluster, &["exec", "web", "hostname"])?, "web");
    assert_eq!(cluster.kubectl(&["get", "pods", "-A", "-o", "name"])?, "", "no pod of the cluster");
    Ok(())
}
