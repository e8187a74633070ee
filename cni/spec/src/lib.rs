//! The CNI protocol: configuration, results of every version, numbered errors, calling a chain of plugins.
//!
//! Holds no policy and keeps nothing on disk: the caller of [`invoke`] records the result of an ADD (runtimes have their
//! own checkpoint) and hands it back to CHECK and DEL, so there is never a second record that could disagree.
//! Implements the CNI specification 0.1.0 to 1.1.0 (<https://www.cni.dev/docs/spec/>). All calls block.

pub mod cidr;
pub mod config;
pub mod environment;
pub mod error;
pub mod invoke;
pub mod result;
pub mod version;

pub use cidr::Cidr;
pub use config::{ConfigList, PluginConfig};
pub use environment::{Command, Environment};
pub use error::{Code, PluginError};
pub use invoke::{Attachment, Runtime};
pub use result::{AddResult, Dns, Interface, IpConfig, Route};
pub use version::{SpecVersion, VersionInfo};
