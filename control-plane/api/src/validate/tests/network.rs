//! Rules of network.
