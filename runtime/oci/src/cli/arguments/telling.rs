//! --explain, --dry-run and --step of create and run.

use clap::{Args, ValueEnum};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExplainFormat {
    Text,
    /// One object per step and line.
    Json,
}

// How a container comes to be, told to who wants to know. No docstring: clap would take it for what the command is about.
#[derive(Debug, Args)]
pub(crate) struct Telling {
    /// Tell each step on standard error as it is done: its system call, what it isolates, why, how long it took.
    #[arg(long, value_name = "FORMAT", num_args = 0..=1, require_equals = true, default_missing_value = "text")]
    explain: Option<ExplainFormat>,
    /// Print the steps on standard output and do none of them.
    #[arg(long)]
    pub dry_run: bool,
    /// Wait after each step, with a command to type elsewhere that shows its effect.
    #[arg(long, conflicts_with = "dry_run")]
    pub step: bool,
}

impl Telling {
    pub(crate) fn is_wanted(&self) -> bool {
        self.explain.is_some() || self.step
    }

    pub(crate) fn format(&self) -> ExplainFormat {
        self.explain.unwrap_or(ExplainFormat::Text)
    }
}
