//! The `sampan-oci` binary: runc's command line over the library. Says what went wrong once, here, and sets the exit code.

mod cli;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: runtime_linux::allocator::Allocator = runtime_linux::allocator::Allocator::new();

fn main() -> ExitCode {
    cli::main()
}
