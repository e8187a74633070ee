//! The one program a person runs: the `sampan` binary.

fn main() {}
