//! Bytes, keys and revisions, durable before visible; knows no kind.
