//! The CRI server: one file per RPC, facts checkpointed, status derived.
