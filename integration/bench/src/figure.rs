//! A figure with its target and its peers, and how figures look to people and to programs.

use anyhow::Result;
use serde_json::{Value, json};

/// One measured quantity.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) value: f64,
    pub(crate) targets: Vec<Target>,
    pub(crate) peers: Vec<Peer>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    AtMost(f64),
    /// This many times what a peer takes in the same run.
    OfPeer(&'static str, f64),
}

/// The same quantity of somebody else, or why there is none.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) value: Result<f64, String>,
}

impl Figure {
    pub(crate) fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { name: name.into(), unit, value, targets: Vec::new(), peers: Vec::new() }
    }

    pub(crate) fn at_most(mut self, target: f64) -> Self {
        self.targets.push(Target::AtMost(target));
        self
    }

    pub(crate) fn at_most_of(mut self, peer: &'static str, times: f64) -> Self {
        self.targets.push(Target::OfPeer(peer, times));
        self
    }

    fn target_text(&self) -> String {
        let text = |target: &Target| {
            let words = match target {
                Target::AtMost(most) => format!("<= {most}"),
                Target::OfPeer(peer, times) => format!("<= {times} x {peer}"),
            };
            match self.is_met(*target) {
                Some(true) => words,
                Some(false) => words + " MISSED",
                None => words + " (unknown)",
            }
        };
        self.targets.iter().map(text).collect::<Vec<_>>().join(", ")
    }

    /// `None` without the peer's figure.
    fn is_met(&self, target: Target) -> Option<bool> {
        match target {
            Target::AtMost(most) => Some(self.value <= most),
            Target::OfPeer(name, times) => {
                let peer = self.peers.iter().find(|peer| peer.name == name)?;
                Some(self.value <= times * peer.value.as_ref().ok()?)
            }
        }
    }

    fn peer_text(&self, name: &str) -> String {
        match self.peers.iter().find(|peer| peer.name == name).map(|peer| &peer.value) {
            None => String::new(),
            Some(Err(_)) => "none".to_owned(),
            Some(Ok(value)) if self.value > 0.0 => format!("{} ({:.1}x)", number(*value), value / self.value),
            Some(Ok(value)) => number(*value),
        }
    }
}

/// The middle of a sample; zero for an empty one.
pub(crate) fn median(sample: &[f64]) -> f64 {
    percentile(sample, 50)
}

/// Nearest rank: the smallest value that `percent` of the sample do not exceed.
pub(crate) fn percentile(sample: &[f64], percent: usize) -> f64 {
    let mut sorted = sample.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0.0)
}

/// Three digits that matter.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 || size == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// In Markdown, as it stands in README.
pub(crate) fn table(machine: &str, figures: &[Figure]) -> String {
    let mut names: Vec<&str> = Vec::new();
    let mut refusals: Vec<String> = Vec::new();
    for peer in figures.iter().flat_map(|figure| &figure.peers) {
        if !names.contains(&peer.name.as_str()) {
            names.push(&peer.name);
        }
        if let Err(why) = &peer.value {
            let line = format!("{}: none: {why}", peer.name);
            if !refusals.contains(&line) {
                refusals.push(line);
            }
        }
    }
    let mut rows = vec![["", "sampan", "target"].iter().chain(&names).map(ToString::to_string).collect::<Vec<_>>()];
    for figure in figures {
        let own = format!("{} {}", number(figure.value), figure.unit);
        let mut row = vec![figure.name.clone(), own.trim_end().to_owned(), figure.target_text()];
        row.extend(names.iter().map(|name| figure.peer_text(name)));
        rows.push(row);
    }
    let columns = names.len() + 3;
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut lines = vec![machine.to_owned(), String::new()];
    for (index, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        lines.push(format!("| {} |", cells.join(" | ")));
        if index == 0 {
            let rules: Vec<String> = widths.iter().map(|width| "-".repeat((*width).max(3))).collect();
            lines.push(format!("| {} |", rules.join(" | ")));
        }
    }
    if !refusals.is_empty() {
        lines.push(String::new());
        lines.extend(refusals);
    }
    lines.join("\n")
}

pub(crate) fn json(machine: &str, figures: &[Figure]) -> Result<String> {
    let figures: Vec<Value> = figures.iter().map(as_json).collect();
    Ok(serde_json::to_string_pretty(&json!({"machine": machine, "figures": figures}))?)
}

fn as_json(figure: &Figure) -> Value {
    let peer = |peer: &Peer| match &peer.value {
        Ok(value) => json!({"name": peer.name, "value": value, "ratio": value / figure.value}),
        Err(why) => json!({"name": peer.name, "none": why}),
    };
    let peers: Vec<Value> = figure.peers.iter().map(peer).collect();
    let target = |target: &Target| match target {
        Target::AtMost(most) => json!({"atMost": most, "isMet": figure.is_met(*target)}),
        Target::OfPeer(peer, times) => json!({"peer": peer, "atMostTimes": times, "isMet": figure.is_met(*target)}),
    };
    let targets: Vec<Value> = figure.targets.iter().map(target).collect();
    json!({"name": figure.name, "unit": figure.unit, "value": figure.value, "targets": targets, "peers": peers})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&hundred, 50), 50.0);
        assert_eq!(percentile(&hundred, 99), 99.0);
        assert_eq!(percentile(&hundred, 100), 100.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[7.0]), 7.0);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn a_table_shows_ratios_misses_and_refusals() {
        let mut figure = Figure::new("run", 5.0, "ms").at_most(4.0).at_most_of("runc", 0.5).at_most_of("crun", 0.5);
        figure.peers.push(Peer { name: "runc".to_owned(), value: Ok(15.0) });
        figure.peers.push(Peer { name: "crun".to_owned(), value: Err("refuses hybrid cgroups".to_owned()) });
        let text = table("a machine", &[figure.clone(), Figure::new("bare", 0.25, "")]);
        let expect = "a machine\n\n\
            |      | sampan  | target                                              | runc        | crun |\n\
            | ---- | ------- | --------------------------------------------------- | ----------- | ---- |\n\
            | run  | 5.00 ms | <= 4 MISSED, <= 0.5 x runc, <= 0.5 x crun (unknown) | 15.0 (3.0x) | none |\n\
            | bare | 0.25    |                                                     |             |      |\n\n\
            crun: none: refuses hybrid cgroups";
        assert_eq!(text, expect);
        let document: Value = serde_json::from_str(&json("a machine", &[figure]).unwrap()).unwrap();
        let is_met = |index: usize| document["figures"][0]["targets"][index]["isMet"].as_bool();
        assert_eq!([is_met(0), is_met(1), is_met(2)], [Some(false), Some(true), None]);
        assert_eq!(document["figures"][0]["peers"][0]["ratio"], 3.0);
    }
}
