//! The `sampan-cni` binary: reads one request from environment and standard input, prints one answer.

use std::io::{self, Read, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    let called_as = std::env::args_os().next().unwrap_or_default();
    let mut input = Vec::new();
    let read = io::stdin().take(cni_plugin::INPUT_BYTES_MAX).read_to_end(&mut input);
    let answer = cni_plugin::answer(called_as.as_ref(), |key| std::env::var_os(key), read.map(|_| input));
    let written = io::stdout().write_all(answer.output.as_bytes());
    if answer.is_success && written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
