//! The shim's own modules, none of them in the library: the loop (`server`), its requests, containers and their streams, the pod's
//! namespaces.

pub(crate) mod server;

mod request;

mod conversation;

mod deletion;

pub(crate) mod container;

mod stdio;

mod log;

pub(crate) mod pod;

mod pause;

mod connection;

mod reactor;

mod clock;
