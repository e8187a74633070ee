//! The CNI plugins bridge, host-local and loopback in one static binary.
