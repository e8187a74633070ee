//! What flows between stock kubectl and a container: logs, exec, attach, port-forward, cp, proxy, debug.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use integration_e2e::cluster::{Cluster, LOCALHOST, end, eventually, http_get};
use integration_e2e::terminal::Terminal;

/// More than any buffer on the way holds.
const LARGE_BYTES: usize = 3_000_000;
/// More than the buffers hold between a process and a reader that takes its time.
const SLOW_BYTES: usize = 16_000_000;

/// `web` serves files over HTTP, `clock` writes a line every tenth of a second; `echo` answers on TCP with what it is told.
const WEB: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: e2e.local/busybox:1
    command: [sh, -c, 'mkdir /www; echo hello > /www/index.html; exec httpd -f -p 80 -h /www']
    ports: [{containerPort: 80, name: http}]
    readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
  - name: clock
    image: e2e.local/busybox:1
    command: [sh, -c, 'i=0; while true; do echo tick $i; i=$((i+1)); sleep 0.1; done']
  - name: echo
    image: e2e.local/busybox:1
    command: [nc, -ll, -p, '7', -e, cat]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 8000, targetPort: http}]
";

fn with_web() -> Result<Cluster> {
    let cluster = Cluster::start()?;
    cluster.import_busybox()?;
    cluster.apply(WEB)?;
    cluster.pod_ready("web")?;
    Ok(cluster)
}

/// Bytes that do not repeat soon, the same in each run.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..length).map(next).collect()
}

/// Runs with bytes instead of text on the standard streams.
fn pipe(mut command: Command, input: &[u8]) -> Result<(Vec<u8>, i32)> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("stdin")?;
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output()
    })?;
    Ok((output.stdout, output.status.code().unwrap_or(-1)))
}

/// A pause of 20 ms between one chunk and the next.
fn read_slowly(mut output: ChildStdout) -> Result<usize> {
    let (mut chunk, mut total) = (vec![0; 64 * 1024], 0);
    loop {
        match output.read(&mut chunk)? {
            0 => return Ok(total),
            count => total += count,
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

#[test]
fn logs() -> Result<()> {
    let cluster = with_web()?;
    cluster.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: brief}
spec:
  restartPolicy: Never
  containers:
  - {name: c, image: 'e2e.local/busybox:1', command: [sh, -c, 'for i in 1 2 3 4 5 6 7 8; do echo line $i; sleep 0.2; done; echo -n unfinished']}
---
apiVersion: v1
kind: Pod
metadata: {name: crash}
spec:
  containers:
  - {name: c, image: 'e2e.local/busybox:1', command: [sh, -c, 'echo out; echo err >&2; cat /proc/sys/kernel/random/uuid; [ -e /data/again ] && exec sleep 600; touch /data/again; exit 3'], volumeMounts: [{name: d, mountPath: /data}]}
  volumes: [{name: d, emptyDir: {}}]
",
    )?;
    let followed = cluster.try_kubectl(&["logs", "-f", "brief", "--pod-running-timeout=20s"], None);
    let followed = match followed {
        // It had not started yet.
        Ok(said) if said.code != 0 => {
            eventually(20, "the pod to run", || cluster.kubectl(&["logs", "brief"]))?;
            cluster.try_kubectl(&["logs", "-f", "brief"], None)?
        }
        other => other?,
    };
    let expect = (1..=8).map(|i| format!("line {i}\n")).collect::<String>() + "unfinished";
    assert_eq!((followed.stdout, followed.code), (expect, 0), "a follow ends with the container");
    assert_eq!(cluster.kubectl(&["logs", "brief", "--tail=3"])?, "line 7\nline 8\nunfinished");
    assert_eq!(cluster.kubectl(&["logs", "brief", "--tail=0"])?, "");
    assert_eq!(cluster.kubectl(&["logs", "brief", "--limit-bytes=10"])?, "line 1\nlin");
    let stamped = cluster.kubectl(&["logs", "brief", "--timestamps", "--tail=2"])?;
    let (time, text) = stamped.lines().next().and_then(|line| line.split_once(' ')).context("a stamped line")?;
    assert!(time.starts_with("20") && time.contains('T') && time.ends_with('Z') && text == "line 8", "{stamped}");
    let since = cluster.kubectl(&["logs", "brief", &format!("--since-time={time}")])?;
    // kubectl sends whole seconds.
    assert!(since.ends_with("line 8\nunfinished") && since.lines().count() < 8, "since {time}: {since}");

    let ticks = cluster.kubectl(&["logs", "web", "-c", "clock", "--since=1s"])?;
    assert!((1..=25).contains(&ticks.lines().count()), "a second of ticks: {ticks}");
    let mut follow = cluster.kubectl_command(&["logs", "-f", "web", "-c", "clock", "--tail=1"]);
    let mut child = follow.stdout(Stdio::piped()).spawn()?;
    let numbers: Vec<u32> = BufReader::new(child.stdout.take().context("stdout")?)
        .lines()
        .take(8)
        .map(|line| Ok(line?.trim_start_matches("tick ").parse()?))
        .collect::<Result<_>>()?;
    end(&mut child)?;
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "each once and in order: {numbers:?}");

    let all = cluster.kubectl(&["logs", "web", "--all-containers", "--prefix", "--tail=2"])?;
    assert!(all.contains("[pod/web/clock] tick "), "{all}");
    let said = cluster.try_kubectl(&["logs", "web", "-c", "nobody"], None)?;
    assert!(said.code == 1 && said.stderr.contains("container nobody is not valid for pod web"), "{said:?}");
    let labelled = cluster.kubectl(&["logs", "-l", "app=web", "-c", "clock", "--tail=1"])?;
    assert!(labelled.starts_with("tick "), "{labelled}");

    let before = eventually(20, "a restart", || {
        let count =
            cluster.kubectl(&["get", "pod", "crash", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"])?;
        ensure!(count == "1", "{count} restarts");
        cluster.kubectl(&["logs", "crash", "--previous"])
    })?;
    let has = |text: &str| before.lines().any(|line| line == text);
    assert!(has("out") && has("err"), "{before}");
    let now = cluster.kubectl(&["logs", "crash"])?;
    assert_ne!(now.lines().last(), before.lines().last(), "another life, another log");
    let said = cluster.try_kubectl(&["logs", "web", "-c", "clock", "-p"], None)?;
    assert!(said.code == 1 && said.stderr.contains("previous terminated container"), "{said:?}");
    Ok(())
}

#[test]
fn exec_and_attach() -> Result<()> {
    let cluster = with_web()?;
    for fallback in [false, true] {
        let exec = |arguments: &[&str]| {
            let mut command = cluster.kubectl_command(&["exec", "-i", "web", "-c", "web", "--"]);
            command.args(arguments).env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", (!fallback).to_string());
            command
        };
        let (said, code) = pipe(exec(&["sh", "-c", "echo out; exit 7"]), b"")?;
        assert_eq!((&*said, code), (&b"out\n"[..], 7), "SPDY: {fallback}");
        let large = noise(LARGE_BYTES);
        let (said, code) = pipe(exec(&["cat"]), &large)?;
        assert!(said == large && code == 0, "SPDY: {fallback}, {} bytes, {code}", said.len());
        // It has ended long before its reader is through.
        let mut child = exec(&["head", "-c", &SLOW_BYTES.to_string(), "/dev/zero"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let read = read_slowly(child.stdout.take().context("standard output")?)?;
        assert!(read == SLOW_BYTES && child.wait()?.success(), "SPDY: {fallback}, {read} bytes");
        let output = exec(&["sh", "-c", "echo out; echo err >&2"]).stdin(Stdio::null()).output()?;
        assert_eq!((&*output.stdout, &*output.stderr), (&b"out\n"[..], &b"err\n"[..]), "SPDY: {fallback}");
        let output = exec(&["/nowhere"]).stdin(Stdio::null()).output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        let code = output.status.code();
        assert!(code == Some(127) || code == Some(126) || code == Some(1), "{output:?}");
        assert!(stderr.contains("/nowhere") && stderr.contains("no such file"), "{stderr}");

        let mut command = cluster.kubectl_command(&["exec", "-it", "web", "-c", "web", "--", "sh"]);
        command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", (!fallback).to_string());
        let mut terminal = Terminal::start(&command)?;
        terminal.expect("# ").with_context(|| format!("a prompt, SPDY: {fallback}"))?;
        terminal.type_line("stty size; echo T=$TERM $(tty)")?;
        terminal.expect("24 80\r\n")?;
        terminal.expect("T=")?;
        terminal.expect("/dev/pts/0")?;
        terminal.resize(33, 101)?;
        eventually(10, "the new size inside", || {
            terminal.type_line("stty size")?;
            let shown = {
                terminal.expect("stty size\r\n")?;
                terminal.expect("\r\n")?
            };
            ensure!(shown.ends_with("33 101"), "{shown:?}");
            Ok(())
        })?;
        terminal.type_line("sh -c 'echo go$((1)); exec sleep 60'")?;
        terminal.expect("go1\r\n")?;
        // ^C goes to what runs inside, and the shell lives on.
        terminal.type_bytes(&[3])?;
        terminal.expect("# ")?;
        terminal.type_line("exit 9")?;
        let (shown, code) = terminal.end()?;
        assert_eq!(code, 9, "SPDY: {fallback}: {shown:?}");
    }
    let said = cluster.try_kubectl(&["exec", "web", "-c", "web", "--", "sh", "-c", "kill -9 $$"], None)?;
    assert_eq!(said.code, 137, "{said:?}");

    cluster.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: shell}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: 'e2e.local/busybox:1', command: [sh], stdin: true, tty: true}]
",
    )?;
    cluster.pod_ready("shell")?;
    for marker in ["first", "second"] {
        let mut terminal = Terminal::start(&cluster.kubectl_command(&["attach", "-it", "shell"]))?;
        terminal.expect("command prompt")?;
        terminal.type_line(&format!("echo {marker}-$((20+3))"))?;
        terminal.expect(&format!("{marker}-23"))?;
    }
    Ok(())
}

#[test]
fn run_and_debug() -> Result<()> {
    let cluster = with_web()?;
    let run = ["run", "once", "--rm", "-i", "--image=e2e.local/busybox:1", "--restart=Never", "--quiet", "--"];
    let said = cluster
        .try_kubectl(&[&run[..], &["sh", "-c", "read line; echo got $line; exit 4"]].concat(), Some("input\n"))?;
    assert!(said.stdout.contains("got input"), "{said:?}");
    assert_eq!(said.code, 4, "{said:?}");
    let mut command = cluster.kubectl_command(&["run", "seen", "--rm", "-it", "--image=e2e.local/busybox:1"]);
    command.args(["--restart=Never", "--", "sh"]);
    let mut terminal = Terminal::start(&command)?;
    terminal.expect("command prompt")?;
    terminal.type_line("echo $((40+2)) $(hostname)")?;
    terminal.expect("42 seen")?;
    terminal.type_line("exit")?;
    let (shown, code) = terminal.end()?;
    assert!(code == 0 && shown.contains("pod \"seen\" deleted"), "{code} {shown:?}");
    assert!(cluster.kubectl(&["get", "pods", "-o", "name"])?.trim() == "pod/web", "--rm leaves nothing");

    let mut command = cluster.kubectl_command(&["debug", "-it", "web", "--image=e2e.local/busybox:1", "--target=web"]);
    command.args(["-c", "doctor", "--profile=general", "--", "sh"]);
    let mut terminal = Terminal::start(&command)?;
    terminal.expect("command prompt")?;
    terminal.type_line("wget -q -O - http://127.0.0.1/")?;
    terminal.expect("hello")?;
    // --target shares the PID namespace of that container.
    terminal.type_line("cat /proc/1/cmdline | tr '\\0' ' '; cat /proc/1/root/www/index.html")?;
    terminal.expect("httpd -f -p 80")?;
    terminal.expect("hello")?;
    terminal.type_line("exit 3")?;
    terminal.end()?;
    eventually(10, "the ephemeral container's end in the status", || {
        let path = "jsonpath={.status.ephemeralContainerStatuses[0].state.terminated.exitCode}";
        let code = cluster.kubectl(&["get", "pod", "web", "-o", path])?;
        ensure!(code == "3", "{code:?}");
        Ok(())
    })?;
    let logs = cluster.kubectl(&["logs", "web", "-c", "doctor"])?;
    assert!(logs.contains("httpd"), "{logs}");
    Ok(())
}

/// A `kubectl port-forward` that listens.
struct Forward {
    child: Child,
    stdout: BufReader<ChildStdout>,
    address: SocketAddr,
}

impl Forward {
    fn start(cluster: &Cluster, arguments: &[&str], websockets: bool) -> Result<Self> {
        let mut command = cluster.kubectl_command(&["port-forward"]);
        command.args(arguments).env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets.to_string());
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let mut stdout = BufReader::new(child.stdout.take().context("stdout")?);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        let port = line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|rest| rest.split_once(' '));
        let port = port.with_context(|| format!("port-forward said {line:?}"))?.0.parse()?;
        Ok(Self { child, stdout, address: (LOCALHOST, port).into() })
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ended_already = end(&mut self.child);
        let _what_it_said = self.stdout.read_to_string(&mut String::new());
    }
}

/// Sends all and receives the same through the forwarded echo port.
fn echo(address: SocketAddr, bytes: &[u8]) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut writer = stream.try_clone()?;
    let mut answer = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(move || writer.write_all(bytes).and_then(|()| writer.shutdown(Shutdown::Write)));
        stream.read_to_end(&mut answer)
    })
    .with_context(|| format!("{} bytes echoed", answer.len()))?;
    ensure!(answer == bytes, "{} bytes came back of {}", answer.len(), bytes.len());
    Ok(())
}

#[test]
fn port_forward() -> Result<()> {
    let cluster = with_web()?;
    cluster.kubectl(&[
        "create",
        "deployment",
        "front",
        "--image=e2e.local/busybox:1",
        "--port=80",
        "--",
        "sh",
        "-c",
        "mkdir /w; echo deployed > /w/index.html; exec httpd -f -p 80 -h /w",
    ])?;
    cluster.kubectl(&["rollout", "status", "deployment/front", "--timeout=30s"])?;
    for websockets in [true, false] {
        let web = Forward::start(&cluster, &["pod/web", ":80"], websockets)?;
        assert_eq!(http_get(web.address, "/").context("the pod")?, "hello\n", "WebSocket: {websockets}");
        let service = Forward::start(&cluster, &["svc/web", ":8000"], websockets)?;
        assert_eq!(http_get(service.address, "/").context("the Service")?, "hello\n", "WebSocket: {websockets}");
        let front = Forward::start(&cluster, &["deploy/front", ":80"], websockets)?;
        eventually(5, "the deployment's page", || http_get(front.address, "/"))?;
        let echoing = Forward::start(&cluster, &["web", ":7"], websockets)?;
        let large = noise(LARGE_BYTES);
        let started = Instant::now();
        std::thread::scope(|scope| {
            let all: Vec<_> = (1..=4)
                .map(|part| {
                    scope.spawn({
                        let piece = &large[..large.len() / part];
                        move || echo(echoing.address, piece)
                    })
                })
                .collect();
            all.into_iter().try_for_each(|one| one.join().map_err(|_panic| anyhow::anyhow!("a panic"))?)
        })
        .with_context(|| format!("four at once, WebSocket: {websockets}"))?;
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
        // A port that nobody serves ends that connection and leaves the others alone.
        let closed = Forward::start(&cluster, &["web", ":81"], websockets)?;
        assert!(http_get(closed.address, "/").is_err());
        assert_eq!(http_get(web.address, "/").context("the pod again")?, "hello\n");
    }
    Ok(())
}

#[test]
fn copies_and_proxies() -> Result<()> {
    let cluster = with_web()?;
    let here = tempfile::tempdir()?;
    let from = here.path().join("from");
    fs::create_dir_all(from.join("deep/er"))?;
    fs::write(from.join("large"), noise(LARGE_BYTES))?;
    fs::write(from.join("deep/er/small"), "small\n")?;
    let (from, to) = (from.to_string_lossy().into_owned(), here.path().join("to"));
    cluster.kubectl(&["cp", &from, "web:/tmp/there", "-c", "web"])?;
    let listed = cluster.kubectl(&["exec", "web", "-c", "web", "--", "find", "/tmp/there", "-type", "f"])?;
    assert_eq!(listed.lines().count(), 2, "{listed}");
    cluster.kubectl(&["cp", "web:/tmp/there", &to.to_string_lossy(), "-c", "web"])?;
    assert_eq!(fs::read(to.join("large"))?, noise(LARGE_BYTES));
    assert_eq!(fs::read_to_string(to.join("deep/er/small"))?, "small\n");

    for path in [
        "services/web:8000/proxy/",
        "services/web:http/proxy/",
        "services/web/proxy/index.html",
        "pods/web:80/proxy/",
        "pods/web/proxy/",
    ] {
        let said = cluster.try_kubectl(&["get", "--raw", &format!("/api/v1/namespaces/default/{path}")], None)?;
        assert_eq!((&*said.stdout, said.code), ("hello\n", 0), "{path}: {said:?}");
    }
    let said = cluster.try_kubectl(&["get", "--raw", "/api/v1/namespaces/default/pods/web/proxy/none"], None)?;
    assert!(said.code == 1 && said.stderr.contains("NotFound"), "{said:?}");

    let mut command = cluster.kubectl_command(&["proxy", "--port=0"]);
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("stdout")?).read_line(&mut line)?;
    let address: SocketAddr =
        line.trim().rsplit(' ').next().context("an address")?.parse().with_context(|| line.clone())?;
    let pods = http_get(address, "/api/v1/namespaces/default/pods");
    let page = http_get(address, "/api/v1/namespaces/default/services/web:8000/proxy/");
    end(&mut child)?;
    assert!(pods?.contains("\"kind\":\"PodList\""));
    assert_eq!(page?, "hello\n");
    Ok(())
}
