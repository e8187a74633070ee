//! Benchmarks: each figure a ratio against the peer in the same run: the `bench` binary.
//!
//! A group is a row of figures that share a set-up; groups run one after the other, so that none is another's load. Whole
//! clusters run in namespaces and directories of their own and are taken down again. A peer that is absent or that refuses
//! this host is named with its own words instead of a figure.

mod api;
mod cni;
mod container;
mod figure;
mod host;
mod layout;
mod node;
mod pod;
mod process;
mod takeover;

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use figure::Figure;

/// Measures Sampan against its peers on this machine. Needs root, and the binaries of `cargo xtask dist`.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Arguments {
    /// Only these groups (see --list); may be repeated.
    #[arg(long, value_name = "GROUP")]
    only: Vec<String>,
    /// The groups and what they measure.
    #[arg(long)]
    list: bool,
    /// Measure nothing; write the order of sampan-oci's functions for the linker, as runtime/oci/layout.ld has it.
    #[arg(long, value_name = "FILE")]
    layout: Option<PathBuf>,
    /// One JSON document instead of the table.
    #[arg(long)]
    json: bool,
    /// Rounds of each command of the container and CNI groups; peers take turns within a round.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// How long the idle group looks.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    idle_seconds: u64,
    /// The directory with sampan, sampan-oci, sampan-shim, sampan-cni, sampan-demo and sampan-bare; `dist` above this program unless told.
    #[arg(long, env = "SAMPAN_DIST")]
    dist: Option<PathBuf>,
}

/// What every group may ask for.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) dist: PathBuf,
    pub(crate) rounds: u32,
    pub(crate) idle_seconds: u64,
}

struct Group {
    name: &'static str,
    about: &'static str,
    measure: fn(&Settings) -> Result<Vec<Figure>>,
}

const GROUPS: [Group; 9] = [
    Group {
        name: "container",
        about: "run, state, exec, kill and delete -f against runc, crun and the bare kernel; memory; 100 starts at 8 in parallel",
        measure: container::measure,
    },
    Group { name: "cni", about: "ADD and DEL of the bridge plugin", measure: cni::measure },
    Group { name: "ready", about: "`sampan up` until the node is Ready", measure: node::ready },
    Group { name: "idle", about: "memory and CPU of a daemon without pods", measure: node::idle },
    Group {
        name: "pod",
        about: "a pod from create to Running, 100 times one after the other",
        measure: pod::one_by_one,
    },
    Group { name: "burst", about: "40 pods at once until all are Ready", measure: pod::at_once },
    Group { name: "memory", about: "memory and CPU at 50 pods, beyond their containers", measure: pod::memory_of_many },
    Group {
        name: "takeover",
        about: "a killed daemon started again, until 1, 10 and 50 pods are found",
        measure: takeover::measure,
    },
    Group { name: "api", about: "LIST of 1,000 objects; durable writes of 50 clients", measure: api::measure },
];

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.list {
        let lines: Vec<String> = GROUPS.iter().map(|group| format!("{:<10} {}", group.name, group.about)).collect();
        return print(&lines.join("\n"));
    }
    let known = |name: &String| GROUPS.iter().any(|group| group.name == name);
    if let Some(unknown) = arguments.only.iter().find(|name| !known(name)) {
        bail!("there is no group {unknown}; `bench --list` shows them");
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("benchmarks make containers and network namespaces: run them as root");
    }
    let dist = match arguments.dist {
        Some(told) => told,
        None => find_dist()?,
    };
    if let Some(file) = arguments.layout {
        let script = layout::script(&dist.join("sampan-oci"))?;
        return std::fs::write(&file, script).with_context(|| format!("write {}", file.display()));
    }
    let settings = Settings { dist, rounds: arguments.rounds, idle_seconds: arguments.idle_seconds };
    let mut figures = Vec::new();
    for group in &GROUPS {
        if !arguments.only.is_empty() && !arguments.only.iter().any(|name| name == group.name) {
            continue;
        }
        tell(&format!("{}: {}", group.name, group.about));
        figures.extend(in_own_thread(group, &settings).with_context(|| format!("measure {}", group.name))?);
    }
    let machine = host::describe();
    print(&if arguments.json { figure::json(&machine, &figures)? } else { figure::table(&machine, &figures) })
}

/// A group may move its thread into other namespaces; the thread ends with it.
fn in_own_thread(group: &Group, settings: &Settings) -> Result<Vec<Figure>> {
    std::thread::scope(|scope| {
        let running = scope.spawn(|| (group.measure)(settings));
        running.join().unwrap_or_else(|_| bail!("the measurement panicked; what it said is above"))
    })
}

/// Where `cargo xtask dist` puts the binaries: beside the profile directory that this program was built into.
fn find_dist() -> Result<PathBuf> {
    let own = std::env::current_exe().context("find this program's own file")?;
    let found = own.ancestors().map(|directory| directory.join("dist")).find(|dist| dist.join("sampan").is_file());
    found.context("no dist/sampan above this program: run `cargo xtask dist` first, or give --dist")
}

fn print(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").context("write to standard output")
}

/// Progress, for people.
pub(crate) fn tell(text: &str) {
    // A closed terminal is nobody to tell.
    let _closed = writeln!(std::io::stderr(), "{text}");
}
