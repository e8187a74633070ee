//! Benchmarks: each figure a ratio against the peer in the same run: the `bench` binary.

fn main() {}
