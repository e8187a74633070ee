//! Netlink against the real kernel, each test in network namespaces of its own (root).

mod links;
mod nft;
