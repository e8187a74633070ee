//! SPDY/3.1, the server's side: what stock `kubectl`, `crictl` and kubelets still speak for exec, attach and port-forward.
//!
//! Not a web server: no requests, no pushes, only streams that the peer opens after an HTTP upgrade. `frame` and `headers` are
//! pure; `connection` owns the socket. Invariant: every header block is fed through the one zlib state in the order received,
//! even those of streams that are refused, or all later headers would be garbage.
//!
//! Flow control: we give the peer credit for what was read (WINDOW_UPDATE), and do not wait for credit ourselves, because the
//! client library behind kubectl never sends any; what we send is paced by the socket.

pub(crate) mod connection;
mod dictionary;
pub(crate) mod frame;
pub(crate) mod headers;

pub(crate) use connection::{Connection, Stream, StreamReader, StreamWriter};
