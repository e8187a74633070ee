//! mounts.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Change {
    Add,
    Remove,
}

#[derive(Debug, Args)]
pub(crate) struct Mounts {
    pub change: Change,
    pub id: String,
    /// File of an array of mounts as in config.json, `-` for standard input. To remove them only the destinations matter.
    #[arg(allow_hyphen_values = true)]
    pub file: PathBuf,
}
