//! The house rules as a test, code generation, distribution builds: the `xtask` binary.

fn main() {}
