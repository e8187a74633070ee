//! The vocabulary: one row per kind, the untyped object, quantities, selectors, status errors and merge keys.
