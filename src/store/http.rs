//! The HTTP client of a foreign store.
