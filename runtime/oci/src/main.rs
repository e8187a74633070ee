//! OCI runtime: a bundle becomes a plan, the child executes it: the `sampan-oci` binary.

fn main() {}
