//! `sampan ps`.

use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};
use runtime_cri_api::v1;
use serde_json::json;

use super::session::{Session, name_of};
use crate::report::print;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also those that have ended
    #[arg(short, long)]
    all: bool,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// How to print it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Output {
    Table,
    Json,
}

pub(super) async fn run(session: &Session, args: &Args) -> Result<()> {
    let mut containers = session.containers().await?;
    containers.retain(|container| args.all || container.state() == v1::ContainerState::ContainerRunning);
    containers.sort_by_key(|container| std::cmp::Reverse(container.created_at));
    let text = match (args.quiet, args.output) {
        (true, _) => containers.iter().map(|container| format!("{}\n", short(&container.id))).collect(),
        (false, Output::Json) => format!("{:#}\n", json!(containers.iter().map(as_json).collect::<Vec<_>>())),
        (false, Output::Table) => table(&containers, Timestamp::now()),
    };
    print(&text).context("write to standard output")
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

fn state(container: &v1::Container) -> &'static str {
    match container.state() {
        v1::ContainerState::ContainerCreated => "created",
        v1::ContainerState::ContainerRunning => "running",
        v1::ContainerState::ContainerExited => "exited",
        v1::ContainerState::ContainerUnknown => "unknown",
    }
}

fn image(container: &v1::Container) -> &str {
    let spec = container.image.as_ref();
    spec.map_or("", |spec| if spec.user_specified_image.is_empty() { &spec.image } else { &spec.user_specified_image })
}

fn as_json(container: &v1::Container) -> serde_json::Value {
    json!({
        "id": container.id,
        "pod": container.pod_sandbox_id,
        "name": name_of(container),
        "image": image(container),
        "state": state(container),
        "createdAt": Timestamp::from_nanosecond(container.created_at.into()).ok().map(|time| time.to_string()),
    })
}

fn table(containers: &[v1::Container], now: Timestamp) -> String {
    let header = ["ID", "NAME", "IMAGE", "STATE", "AGE"].map(String::from);
    let rows = containers.iter().map(|container| {
        let created = Timestamp::from_nanosecond(container.created_at.into()).unwrap_or(now);
        [
            short(&container.id).to_owned(),
            name_of(container),
            image(container).to_owned(),
            state(container).to_owned(),
            age(now.duration_since(created)),
        ]
    });
    columns(&std::iter::once(header).chain(rows).collect::<Vec<_>>())
}

/// Left-aligned, two blanks apart.
pub(super) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] =
        std::array::from_fn(|index| rows.iter().map(|row| row[index].chars().count()).max().unwrap_or(0));
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// As kubectl says it: the largest unit that is not small.
pub(super) fn age(duration: SignedDuration) -> String {
    let seconds = duration.as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        let check = |seconds: i64, expect: &str| assert_eq!(age(SignedDuration::from_secs(seconds)), expect);
        check(-3, "0s");
        check(119, "119s");
        check(120, "2m");
        check(7200, "2h");
        check(172_800, "2d");
    }

    #[test]
    fn aligned() {
        let rows = [["A", "BB"], ["long", "x"]].map(|row| row.map(String::from));
        assert_eq!(columns(&rows), "A     BB\nlong  x\n");
    }
}
