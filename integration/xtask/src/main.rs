//! `cargo xtask`: the house rules as a test, code generation, distribution builds.
//!
//! One subcommand, one module. Nothing here runs on a user's machine after the build.

mod codegen;
mod dist;
mod tidy;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "xtask", about = "House rules, code generation and distribution builds of Sampan")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check the house rules: arrows, doors, unsafe, headers, sizes, names.
    Tidy,
    /// Build `sampan` and the tiny static binaries into one directory.
    Dist(dist::Args),
    /// Write generated code again.
    #[command(subcommand)]
    Codegen(codegen::Target),
}

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Tidy => tidy::run(&workspace_root()),
        Command::Dist(args) => dist::run(&workspace_root(), &args),
        Command::Codegen(target) => codegen::run(&workspace_root(), &target),
    }
}

/// The directory of the workspace's `Cargo.toml`: two levels above this package.
fn workspace_root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("this package lies in the workspace")
}
