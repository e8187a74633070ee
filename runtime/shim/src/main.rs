//! One shim per pod: one epoll thread that holds stdio, writes CRI logs and keeps exit records: the `sampan-shim` binary.

fn main() {}
