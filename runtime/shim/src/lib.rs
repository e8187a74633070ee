//! The shim's protocol and its client: what `cri` says to the one `sampan-shim` process of each pod.
//!
//! Not the shim itself: the binary (`src/main.rs`) has its own modules and shares only these. Everything here is
//! synchronous; an async caller uses [`wire`] on its own stream, or calls the blocking [`Client`] on a blocking thread
//! (every request except `Wait` and `Subscribe` is answered within milliseconds).
//!
//! Invariants: an exit record is on disk before its event is sent; no client, slow or dead, ever blocks the shim.

pub mod client;
pub mod config;
pub mod orphan;
pub mod protocol;
pub mod record;
pub mod socket;
pub mod spawn;
pub mod wire;

pub use client::{Client, ClientError, Events, Execution, Stdio};
pub use config::{Config, NamespaceMode, PidMode, UserNamespace};
pub use protocol::{
    ContainerInfo, ContainerState, Create, Created, Event, Exec, ExecInfo, Failure, FailureCode, PodInfo, Reply,
    Request, Target,
};
pub use record::ExitRecord;
pub use spawn::{SpawnError, spawn};
