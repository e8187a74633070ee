//! The CNI plugins bridge, host-local and loopback in one static binary: the `sampan-cni` binary.

fn main() {}
