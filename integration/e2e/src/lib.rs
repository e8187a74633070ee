//! Whole-system tests against real peers.
