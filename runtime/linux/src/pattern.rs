//! Patterns over short texts: POSIX extended regular expressions by the C library, so that no engine of our own makes the binary larger.

use std::ffi::CString;
use std::mem::MaybeUninit;

/// A compiled pattern; it matches anywhere in a text unless it says `^` and `$`.
pub struct Pattern(libc::regex_t);

impl std::fmt::Debug for Pattern {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Pattern")
    }
}

impl Pattern {
    /// `None` for what is not a regular expression.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let text = CString::new(text).ok()?;
        let mut compiled = MaybeUninit::<libc::regex_t>::zeroed();
        // SAFETY: the pattern is NUL-terminated and the memory is large enough for what regcomp writes.
        let failed =
            unsafe { libc::regcomp(compiled.as_mut_ptr(), text.as_ptr(), libc::REG_EXTENDED | libc::REG_NOSUB) };
        if failed != 0 {
            return None;
        }
        // SAFETY: regcomp succeeded, so it has written all of it.
        Some(Self(unsafe { compiled.assume_init() }))
    }

    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        let Ok(text) = CString::new(text) else { return false };
        // SAFETY: the pattern is compiled and the text NUL-terminated; with REG_NOSUB no match array is written.
        unsafe { libc::regexec(&raw const self.0, text.as_ptr(), 0, std::ptr::null_mut(), 0) == 0 }
    }
}

impl Drop for Pattern {
    fn drop(&mut self) {
        // SAFETY: compiled by regcomp and freed once.
        unsafe { libc::regfree(&raw mut self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_posix_says() {
        for (pattern, text, expect) in [
            ("b", "abc", true),
            ("^b", "abc", false),
            ("^test-(1|2)$", "test-2", true),
            ("^test-(1|2)$", "test-3", false),
        ] {
            assert_eq!(Pattern::new(pattern).map(|p| p.matches(text)), Some(expect), "{pattern} {text}");
        }
        assert!(Pattern::new("(").is_none() && Pattern::new("a\0").is_none());
    }
}
