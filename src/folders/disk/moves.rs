//! Moves of names within a bound directory that never replace what somebody else put there.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, RenameFlags, linkat, renameat_with, unlinkat};
use rustix::io::Errno;

use crate::core::folder::path::COMPONENT_BYTES_MAX;

/// The most names tried for a directory that appeared in place of a file.
const NAMES_TRIED_MAX: u32 = 1000;

/// Renames a file that only we know of, unless something has the new name already (`AlreadyExists`).
pub(super) fn rename_new(
    from_dir: &impl AsFd,
    from: &[u8],
    to_dir: &impl AsFd,
    to: &[u8],
) -> io::Result<()> {
    match renameat_with(from_dir, from, to_dir, to, RenameFlags::NOREPLACE) {
        // Network file systems do not know the flag. A link does not replace either.
        Err(error) if is_unsupported(error) => {}
        other => return Ok(other?),
    }
    match linkat(from_dir, from, to_dir, to, AtFlags::empty()) {
        Ok(()) => Ok(unlinkat(from_dir, from, AtFlags::empty())?),
        Err(Errno::PERM | Errno::OPNOTSUPP) => Err(Errno::INVAL.into()),
        Err(error) => Err(error.into()),
    }
}

/// Exchanges two names of a directory in one step. `Unsupported` where the file system cannot.
pub(super) fn exchange(dir: &OwnedFd, one: &[u8], other: &[u8]) -> io::Result<()> {
    match renameat_with(dir, one, dir, other, RenameFlags::EXCHANGE) {
        Err(error) if is_unsupported(error) => Err(io::ErrorKind::Unsupported.into()),
        other => Ok(other?),
    }
}

/// Gives a directory of the user, which was at `name` in `to_dir` in a moment in which only a file was
/// expected, a visible name beside it. The next scan finds it.
pub(super) fn show_directory(from_dir: &OwnedFd, from: &[u8], to_dir: &OwnedFd, name: &[u8]) {
    for count in 1..=NAMES_TRIED_MAX {
        let suffix = format!(" (kept {count})");
        let stem_bytes = name.len().min(COMPONENT_BYTES_MAX - suffix.len());
        let to = [&name[..stem_bytes], suffix.as_bytes()].concat();
        match rename_new(from_dir, from, to_dir, &to) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Ok(()) => return,
            Err(error) => {
                tracing::error!(%error, "a directory that appeared in place of a file is hidden");
                return;
            }
        }
    }
}

/// Whether an error means that the file system does not know a flag of rename.
fn is_unsupported(error: Errno) -> bool {
    matches!(error, Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP)
}
