//! `--explain`, `--dry-run` and `--step` of create and run: the plan in words, before it is done or while it is.
//!
//! A dry run is data and goes to standard output; the telling of a run goes to standard error, since standard output is the
//! container's. As JSON it is one object per line, the same in both.

use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::ops::ControlFlow;
use std::time::Duration;

use runtime_oci::{Explained, Side};

use super::arguments::{ExplainFormat, Telling};
use super::{Error, print};

/// Where the answers to `--step` come from when there is no terminal to ask at.
const TERMINAL: &str = "/dev/tty";

/// The plan alone, on standard output.
pub(crate) fn print_plan(telling: &Telling, steps: &[Explained]) -> Result<(), Error> {
    let mut text = String::new();
    let mut side = None;
    for step in steps {
        text.push_str(&match telling.format() {
            ExplainFormat::Json => json(step, None, None)?,
            ExplainFormat::Text => heading(&mut side, step) + &words(step, steps.len(), None, None),
        });
    }
    print(&text)
}

/// Tells each step on standard error as it is done, and asks for the next one with `--step`.
#[derive(Debug)]
pub(crate) struct Teller {
    format: ExplainFormat,
    total: usize,
    side: Option<Side>,
    answers: Option<BufReader<File>>,
}

impl Teller {
    pub(crate) fn new(telling: &Telling, total: usize) -> Result<Self, Error> {
        let answers = telling.step.then(answers).transpose()?;
        Ok(Self { format: telling.format(), total, side: None, answers })
    }

    pub(crate) fn pauses(&self) -> bool {
        self.answers.is_some()
    }

    pub(crate) fn tell(&mut self, step: &Explained, pid: Option<i32>, took: Option<Duration>) -> ControlFlow<()> {
        let text = match self.format {
            ExplainFormat::Json => json(step, pid, took).unwrap_or_default(),
            ExplainFormat::Text => heading(&mut self.side, step) + &words(step, self.total, pid, took),
        };
        // Whoever closed standard error does not want to hear of it; the container is made all the same.
        let _closed = std::io::stderr().write_all(text.as_bytes());
        // Nothing can be held up once the program runs.
        let is_running = took.is_none() || step.number == self.total;
        if is_running { ControlFlow::Continue(()) } else { self.ask() }
    }

    fn ask(&mut self) -> ControlFlow<()> {
        let Some(answers) = &mut self.answers else { return ControlFlow::Continue(()) };
        let _closed = std::io::stderr().write_all(b"      Enter for the next step, q to give up: ");
        let mut answer = String::new();
        match answers.read_line(&mut answer) {
            Ok(length) if length > 0 && !answer.trim().eq_ignore_ascii_case("q") => ControlFlow::Continue(()),
            // The end of the answers is a person who has left.
            _ => ControlFlow::Break(()),
        }
    }
}

fn answers() -> Result<BufReader<File>, Error> {
    if let Ok(terminal) = File::open(TERMINAL) {
        return Ok(BufReader::new(terminal));
    }
    if std::io::stdin().is_terminal() {
        return Err(Error::Usage(format!("--step asks at the terminal, and {TERMINAL} cannot be opened")));
    }
    let stdin = std::os::fd::AsFd::as_fd(&std::io::stdin()).try_clone_to_owned();
    stdin.map(|fd| BufReader::new(File::from(fd))).map_err(Error::io("copy standard input"))
}

fn heading(side: &mut Option<Side>, step: &Explained) -> String {
    if side.replace(step.side) == Some(step.side) {
        return String::new();
    }
    let title = match step.side {
        Side::Runtime => "the runtime, on the host",
        Side::Init => "the container's process, until it waits to be started",
        Side::Start => "the container's process, after start",
    };
    format!("\n== {title}\n")
}

fn words(step: &Explained, total: usize, pid: Option<i32>, took: Option<Duration>) -> String {
    let width = total.to_string().len();
    let time = took.map(|took| format!("  [{}]", time(took))).unwrap_or_default();
    let mut text = format!("{:>width$}/{total} {}{time}\n", step.number, step.step);
    for (name, value) in
        [("call", step.call.as_str()), ("isolates", step.isolates), ("why", step.why), ("look", &step.look(pid))]
    {
        if !value.is_empty() {
            text.push_str(&format!("      {name:<9}{value}\n"));
        }
    }
    text
}

fn time(took: Duration) -> String {
    let microseconds = took.as_micros();
    if microseconds < 1000 { format!("{microseconds} us") } else { format!("{:.2} ms", took.as_secs_f64() * 1000.0) }
}

fn json(step: &Explained, pid: Option<i32>, took: Option<Duration>) -> Result<String, Error> {
    let encoded = || -> Result<String, serde_json::Error> {
        let mut object = serde_json::to_value(step)?;
        object["look"] = step.look(pid).into();
        if let Some(pid) = pid {
            object["pid"] = pid.into();
        }
        if let Some(took) = took {
            object["microseconds"] = serde_json::to_value(took.as_secs_f64() * 1e6)?;
        }
        serde_json::to_string(&object)
    };
    encoded().map(|line| line + "\n").map_err(|source| Error::Json { what: "encode a step".to_owned(), source })
}
