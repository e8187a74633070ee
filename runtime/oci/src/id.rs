//! Container ids, checked once at the door.
//!
//! Invariant: a `ContainerId` is one file name, so joining it to a directory never leaves that directory.

use std::fmt;

use crate::error::Error;

/// Longest id taken: what a file name holds. runc takes 1024 and then fails at mkdir.
const LENGTH_MAX: usize = 255;

/// A valid container id: `[A-Za-z0-9_+.-]`, neither empty nor with a dot in front.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(String);

impl ContainerId {
    pub fn parse(text: &str) -> Result<Self, Error> {
        let invalid = |reason| Err(Error::InvalidId { id: text.escape_debug().to_string(), reason });
        if text.is_empty() {
            return invalid("it is empty");
        }

        if text.len() > LENGTH_MAX {
            return invalid("it is longer than 255 bytes");
        }
        // "." and "..", and what a listing of the state directory would hide; crun refuses them as well.
        if text.starts_with('.') {
            return invalid("it begins with a dot");
        }
        if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte)) {
            return invalid("invalid character, only letters, digits and _ + - . are allowed");
        }
        Ok(Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        for good in ["a", "a.b", "A_1+2-3", "a..", &"x".repeat(255)] {
            assert_eq!(ContainerId::parse(good).map(|id| id.to_string()).ok().as_deref(), Some(good));
        }
        for bad in ["", ".", "..", ".a", "a/b", "a\n", "../a", "a b", "ä", &"x".repeat(1024)] {
            assert!(ContainerId::parse(bad).is_err(), "{bad:?}");
        }
    }
}
