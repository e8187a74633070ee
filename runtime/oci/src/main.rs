//! The `sampan-oci` binary: runc's command line over the library. Says what went wrong once, here, and sets the exit code.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
