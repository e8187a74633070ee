//! Rules of cluster.
