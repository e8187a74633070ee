//! Walls: a panic behind one becomes a value, and is counted. For whoever serves many and must not end with one of them.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

static CAUGHT: AtomicU64 = AtomicU64::new(0);
/// Bytes of a panic's words that are kept: they may quote what somebody sent.
const MESSAGE_BYTES_MAX: usize = 512;

/// How many panics have been caught since the process began.
pub fn count() -> u64 {
    CAUGHT.load(Ordering::Relaxed)
}

/// What `work` came to, or its panic's message. What the work shares with others must be whole at every step.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| message(panic.as_ref()))
}

/// Counts a panic that was caught, and says what it said.
pub fn message(panic: &(dyn Any + Send)) -> String {
    CAUGHT.fetch_add(1, Ordering::Relaxed);
    let words = panic.downcast_ref::<&str>().copied();
    let words = words.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message");
    words[..words.floor_char_boundary(MESSAGE_BYTES_MAX)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_value() {
        let before = count();
        assert_eq!(caught(|| 1), Ok(1));
        assert_eq!(caught(|| panic!("now")), Err::<(), _>("now".to_owned()));
        assert_eq!(caught(|| panic!("no {}", 1)), Err::<(), _>("no 1".to_owned()));
        assert_eq!(caught(|| std::panic::panic_any(7)), Err::<(), _>("without a message".to_owned()));
        let long = "é".repeat(MESSAGE_BYTES_MAX);
        assert!(caught::<()>(|| panic!("{long}")).unwrap_err().len() <= MESSAGE_BYTES_MAX);
        assert!(count() >= before.saturating_add(4));
    }
}
