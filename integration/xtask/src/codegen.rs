//! Code generation: what is written here is committed, so that a build needs no generator.

mod cri;
mod schema;

use std::path::Path;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum Target {
    /// `runtime/cri-api`: messages and service stubs from its `.proto` file.
    Cri,
    /// `control-plane/api`: the table of every built-in type's fields.
    Schema(schema::Args),
}

pub(crate) fn run(root: &Path, target: &Target) -> anyhow::Result<()> {
    match target {
        Target::Cri => cri::generate(root),
        Target::Schema(args) => schema::generate(root, args),
    }
}
