//! Rules of workload.
