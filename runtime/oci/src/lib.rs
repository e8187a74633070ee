//! OCI runtime: a bundle becomes a plan, the child executes it.
//!
//! The library door, linked by the shim, and the room of the `sampan-oci` binary. It is not a daemon: every call is one operation on
//! one container. Invariant: a caller has one thread (rule 33 of the house), and a container is created whole or not at all.

pub mod accounts;
mod bundle;
mod cgroup_view;
mod checkpoint;
mod child;
mod confine;
mod conversation;
mod create;
mod delete;
mod devices;
mod error;
mod exec;
mod explain;
mod hooks;
mod host_mounts;
mod id;
mod more_mounts;
mod net_devices;
mod notify;
mod operations;
mod options;
mod plan;
mod record;
mod resctrl;
mod root;
pub mod seccomp;
mod sources;
mod spawn;
mod start;
mod status;
mod streams;
mod subordinate;
mod sync;
mod systemd;

pub use bundle::{Bundle, parse_process};
pub use checkpoint::{Criu, CriuOptions, Dump, ManageCgroups, NetworkLock, PageServer, checkpoint, restore};
pub use conversation::Conversation;
pub use create::{Creating, create, create_observed, send_console, send_pidfd};
pub use delete::{Deletion, delete};
pub use error::{Error, Failure};
pub use exec::{Executing, configured_process, exec};
pub use explain::{Explained, Observer, Side, Tell, explain};
pub use id::ContainerId;
pub use more_mounts::{add_mounts, remove_mounts};
pub use notify::Readiness;
pub use operations::{Listed, Schemata, Target, cgroup, kill, list, pause, processes, resume, state, update};
pub use options::{Cgroups, CreateOptions, Created, ExecOptions, Execed, RootChange, Stdio};
pub use plan::{UNSAFE_ANNOTATIONS, mount_option_names};
pub use record::timestamp;
pub use root::StateRoot;
pub use runtime_linux::cgroup::SubCgroup;
pub use start::{Starting, start, start_observed};
pub use status::{State, Status};
pub use sync::is_report;
