//! This process's own terminal while a container has it.

use std::io;

use runtime_linux::terminal::{self, RawMode};

/// Raw until dropped. `None` where standard input is no terminal.
pub(super) fn raw() -> Option<RawMode> {
    RawMode::enter(io::stdin()).ok()
}

/// Columns and rows of the terminal, if there is one.
pub(super) fn size() -> Option<(u16, u16)> {
    let size = terminal::size(io::stdout()).ok()?;
    (size.columns > 0 && size.rows > 0).then_some((size.columns, size.rows))
}
