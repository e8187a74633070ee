//! The CNI protocol: configuration, results of every version, numbered errors, calling a chain of plugins.
