//! OCI runtime: a bundle becomes a plan, the child executes it.
//!
//! The library door, linked by the shim, and the room of the `sampan-oci` binary. It is not a daemon: every call is one operation on
//! one container. Invariant: a caller has one thread (rule 33 of the house), and a container is created whole or not at all.

mod bundle;
mod error;
mod id;
mod operations;
mod options;
mod root;

pub use bundle::Bundle;
pub use error::{Error, Failure};
pub use id::ContainerId;
pub use operations::{
    Deletion, Target, create, delete, exec, kill, list, pause, processes, resume, start, state, update,
};
pub use options::{CreateOptions, Created, ExecOptions, Execed, RootChange, Stdio};
pub use root::StateRoot;
pub use status::{State, Status};
pub mod seccomp;
mod status;
