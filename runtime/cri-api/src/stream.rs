//! Where a stream (exec, attach, port-forward) is to be had: the URL of ExecResponse and its like, taken apart. Pure.
//!
//! The interface leaves the URL to the runtime. Every runtime knows `http://HOST:PORT/PATH`; between processes of one host a
//! socket of the file system needs no port that others could take or stand in front of: `unix://SOCKET#PATH`.

use std::fmt;
use std::path::{Path, PathBuf};

/// The place, and what is asked for there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamUrl {
    /// `authority` is `host:port`, `target` path and query with the leading slash.
    Http { authority: String, target: String },
    /// `socket` is absolute.
    Unix { socket: PathBuf, target: String },
}

impl StreamUrl {
    /// `None` for what is neither.
    #[must_use]
    pub fn parse(url: &str) -> Option<Self> {
        if let Some(rest) = url.strip_prefix("unix://") {
            // A target has no '#', a path may.
            let (socket, target) = rest.rsplit_once('#')?;
            let is_whole = socket.starts_with('/') && socket.len() > 1 && target.starts_with('/');
            return is_whole.then(|| Self::Unix { socket: socket.into(), target: target.to_owned() });
        }
        let rest = url.strip_prefix("http://")?;
        let (authority, target) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        let is_whole = !authority.is_empty() && !authority.contains(['@', '#', '?', ' ']);
        is_whole.then(|| Self::Http { authority: authority.to_owned(), target: target.to_owned() })
    }

    /// Path and query.
    #[must_use]
    pub fn target(&self) -> &str {
        match self {
            Self::Http { target, .. } | Self::Unix { target, .. } => target,
        }
    }

    /// What stands in the request's `Host`.
    #[must_use]
    pub fn host(&self) -> &str {
        match self {
            Self::Http { authority, .. } => authority,
            Self::Unix { .. } => "localhost",
        }
    }

    #[must_use]
    pub fn unix(socket: &Path, target: String) -> Self {
        Self::Unix { socket: socket.to_owned(), target }
    }
}

impl fmt::Display for StreamUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http { authority, target } => write!(f, "http://{authority}{target}"),
            Self::Unix { socket, target } => write!(f, "unix://{}#{target}", socket.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_streams() {
        let check = |url: &str, expect: Option<(&str, &str)>| {
            let found = StreamUrl::parse(url);
            let told = found.as_ref().map(|url| (url.host(), url.target()));
            assert_eq!(told, expect, "{url}");
            if let Some(found) = found {
                assert_eq!(StreamUrl::parse(&found.to_string()), Some(found));
            }
        };
        check("http://127.0.0.1:1234/exec/t", Some(("127.0.0.1:1234", "/exec/t")));
        check("http://[::1]:1", Some(("[::1]:1", "/")));
        check("unix:///run/sampan/streams.sock#/exec/t", Some(("localhost", "/exec/t")));
        check("unix:///a#b/s#/exec/t?x=1", Some(("localhost", "/exec/t?x=1")));
        for wrong in
            ["", "unix://", "unix://#/x", "unix:///s", "unix://s#/x", "unix:///s#x", "https://h/x", "http:///x"]
        {
            check(wrong, None);
        }
        for wrong in ["http://user@h:1/x", "ftp://h/x", "/exec/t"] {
            check(wrong, None);
        }
    }
}
