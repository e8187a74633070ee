//! The CRI v1 protobuf interface at the level of Kubernetes 1.36: messages, a client and a server trait.
//!
//! Generated from `proto/runtime/v1/api.proto` by `cargo xtask codegen cri`; holds no policy. Field names and numbers are the
//! interface's own, so any stock kubelet or `crictl` is a peer.

pub mod stream;
pub mod v1;
