//! What the file system of a bound directory can do, found by trying.

use std::io;
use std::path::Path;

use super::root::Root;
use super::seen::Seen;

/// What a file system can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traits {
    /// Names that differ only by case are the same file.
    pub folds_case: bool,
    /// Names that differ only by Unicode normalisation are the same file.
    pub folds_normalisation: bool,
    /// Files can share their blocks with files of the home.
    pub can_reflink: bool,
    /// Files can be hard links to files of the home.
    pub can_link: bool,
    /// Two names can be exchanged in one step, so that a file can be replaced without a moment in
    /// which an edit is lost.
    pub can_exchange: bool,
    /// Nothing can be written.
    pub is_read_only: bool,
    /// The space that this user may still fill.
    pub free_bytes: u64,
}

impl Root {
    /// Tries what the file system can do, also together with the file system of `home`.
    ///
    /// # Errors
    /// It cannot be tried.
    pub fn traits(&self, _home: &Path) -> io::Result<Traits> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Waits until a new change of a file would get another time than the one in `seen`.
    pub(super) fn await_tick(&self, _seen: &Seen) {}
}
