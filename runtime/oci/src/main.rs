//! The `sampan-oci` binary: runc's command line over the library. Says what went wrong once, here, and sets the exit code.

mod cli;

use std::process::ExitCode;

/// musl's own allocator maps and unmaps pages for almost every list that grows: 220 of the 1,270 system calls of a `run`.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    cli::main()
}
