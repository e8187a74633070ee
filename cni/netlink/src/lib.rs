//! Network namespaces, links, addresses, routes, nf_tables batches, conntrack and listening sockets over netlink.
//!
//! Mechanism only: no names, ranges or rules are chosen here. Every call blocks; nothing is async and no helper
//! program is run. A socket belongs to the namespace it was opened in for as long as it lives, whatever its owner's
//! thread does later, so work in another namespace means a socket from [`Namespace`], not a thread that moves about.

pub mod attributes;
pub mod conntrack;
pub mod legacy;
pub mod listening;
pub mod monitor;
pub mod namespace;
pub mod nft;
pub mod rtnetlink;
pub mod socket;
pub mod sysctl;

pub use namespace::Namespace;
pub use rtnetlink::{Batch, Link, Rtnetlink};
