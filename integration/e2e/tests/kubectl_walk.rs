//! Stock kubectl, command by command: what it prints and how it ends, after the scripts in `tests/kubectl/`.
//!
//!     $ COMMAND        ends with 0
//!     ! CODE COMMAND   ends with that
//!     ? COMMAND        ends with 0 and prints all below it, in a while
//!       TEXT           is printed
//!     = WORDS          a printed line consists of these; the last may end in `*`
//!     - TEXT           is not printed
//!
//! Words with blanks stand in single quotes; words of the form NAME=VALUE before the command are its environment. `{dir}` is the
//! scripts' directory, `{root}` the cluster's, `{tmp}` one for what a command writes.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use integration_e2e::cluster::{Cluster, Said, eventually};
use integration_e2e::image::busybox;

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kubectl");
/// How long a line that begins with `?` may take to become true.
const PATIENCE_SECONDS: u64 = 40;

#[derive(Debug)]
enum Expect {
    Text(String),
    Line(String),
    Absent(String),
}

#[derive(Debug)]
struct Step {
    number: usize,
    command: String,
    code: i32,
    patient: bool,
    expects: Vec<Expect>,
}

fn parse(script: &str) -> Result<Vec<Step>> {
    let mut steps: Vec<Step> = Vec::new();
    for (index, line) in script.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        let number = index + 1;
        let (mark, rest) = line.split_at_checked(2).with_context(|| format!("line {number} has no mark"))?;
        let (code, command) = match mark {
            "! " => {
                let (code, command) = rest.split_once(' ').with_context(|| format!("line {number}: CODE COMMAND"))?;
                (code.parse()?, command)
            }
            _ => (0, rest),
        };
        let expect = match mark {
            "$ " | "! " | "? " => {
                let command = command.to_owned();
                steps.push(Step { number, command, code, patient: mark == "? ", expects: Vec::new() });
                continue;
            }
            "  " => Expect::Text(rest.to_owned()),
            "= " => Expect::Line(rest.to_owned()),
            "- " => Expect::Absent(rest.to_owned()),
            _ => bail!("line {number} begins with none of the marks: {line:?}"),
        };
        steps.last_mut().with_context(|| format!("line {number} belongs to no command"))?.expects.push(expect);
    }
    Ok(steps)
}

/// Splits at blanks outside of single quotes; the quotes go.
fn words(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for one in command.chars() {
        match one {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            other => words.last_mut().expect("there is always a word").push(other),
        }
    }
    words
}

fn is_environment(word: &str) -> bool {
    let name = word.split_once('=').map_or("", |(name, _)| name);
    !name.is_empty() && name.chars().all(|one| one.is_ascii_uppercase() || one == '_')
}

fn says(line: &str, words: &str) -> bool {
    let mut found = line.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.strip_suffix('*') {
        Some(start) => {
            found.push(' ');
            found.starts_with(start)
        }
        None => found == words,
    }
}

impl Step {
    fn run(&self, cluster: &Cluster, place: impl Fn(&str) -> String) -> Result<()> {
        let all: Vec<String> = words(&self.command).iter().map(|word| place(word)).collect();
        let (environment, arguments) = all.split_at(all.iter().take_while(|word| is_environment(word)).count());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut command = cluster.kubectl_command(&arguments);
        command.envs(environment.iter().filter_map(|word| word.split_once('=')));
        command.stdin(std::process::Stdio::null());
        let output = command.output().context("start kubectl")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code().unwrap_or(-1);
        self.check(&Said { stdout: text(&output.stdout), stderr: text(&output.stderr), code })
    }

    fn check(&self, said: &Said) -> Result<()> {
        let text = said.all();
        let Self { number, command, code, .. } = self;
        let about = || format!("line {number}: kubectl {command}\n--- it said:\n{text}---");
        ensure!(said.code == *code, "{} ended with {}, not {code}", about(), said.code);
        for expect in &self.expects {
            match expect {
                Expect::Text(part) => ensure!(text.contains(part.as_str()), "{} lacks {part:?}", about()),
                Expect::Line(words) => {
                    ensure!(text.lines().any(|line| says(line, words)), "{} lacks the line {words:?}", about());
                }
                Expect::Absent(part) => ensure!(!text.contains(part.as_str()), "{} has {part:?}", about()),
            }
        }
        Ok(())
    }
}

fn walk(script: &str) -> Result<()> {
    let text = std::fs::read_to_string(Path::new(SCRIPTS).join(script)).with_context(|| format!("read {script}"))?;
    let steps = parse(&text)?;
    let cluster = Cluster::start()?;
    cluster.import_busybox()?;
    cluster.import(&busybox()?.label("version", "2"), "e2e.local/busybox:2")?;
    let written = tempfile::tempdir()?;
    let place = |word: &str| {
        let tmp = written.path().to_string_lossy();
        word.replace("{dir}", SCRIPTS).replace("{root}", &cluster.root().to_string_lossy()).replace("{tmp}", &tmp)
    };
    for step in &steps {
        if step.patient {
            eventually(PATIENCE_SECONDS, &step.command, || step.run(&cluster, place))
        } else {
            step.run(&cluster, place)
        }
        .with_context(|| script.to_owned())?;
    }
    Ok(())
}

#[test]
fn objects() -> Result<()> {
    walk("objects.txt")
}

#[test]
fn workloads() -> Result<()> {
    walk("workloads.txt")
}

#[test]
fn nodes_budgets_and_permissions() -> Result<()> {
    walk("cluster.txt")
}
