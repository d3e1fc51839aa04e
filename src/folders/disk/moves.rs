//! Steps within a directory of a bound one: moves that never replace what somebody else put there,
//! permissions, durability.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, RenameFlags, linkat, mkdirat, renameat_with, unlinkat};
use rustix::io::Errno;

use super::root::{open_child, stat_at};
use super::seen::Seen;
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

/// Renames in one step, unless something has the new name already, or the file system does not know
/// how. What a program has open may be moved so: with a link, some file systems (FUSE) take the two
/// names for two files for a while, and a program that appends overwrites what another one wrote.
pub(super) fn rename_back(
    from_dir: &OwnedFd,
    from: &[u8],
    to_dir: &OwnedFd,
    to: &[u8],
) -> io::Result<()> {
    Ok(renameat_with(from_dir, from, to_dir, to, RenameFlags::NOREPLACE)?)
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

/// The stat of a name in a directory; `None` if there is no such name.
pub(super) fn stat_name(dir: &OwnedFd, name: &[u8]) -> io::Result<Option<Seen>> {
    match stat_at(dir, name) {
        Ok(seen) => Ok(Some(seen)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The permissions of a file: those of the file that it replaces, else as its directory can be read
/// and written.
pub(super) fn file_mode(
    dir: &OwnedFd,
    replaced: Option<Seen>,
    is_executable: bool,
) -> io::Result<u32> {
    let mode = match replaced {
        Some(seen) => seen.mode & 0o777,
        None => stat_at(dir, b".")?.mode & 0o666 | 0o600,
    };
    Ok(if is_executable { mode | 0o100 | (mode & 0o444) >> 2 } else { mode & !0o111 })
}

/// Creates a directory with the permissions of the one that it is in.
pub(super) fn make_dir(dir: &OwnedFd, name: &[u8]) -> io::Result<()> {
    mkdirat(dir, name, Mode::RWXU)?;
    let mode = Mode::from_raw_mode((stat_at(dir, b".")?.mode & 0o2777 | 0o700) as _);
    Ok(rustix::fs::fchmod(open_child(dir, name)?, mode)?)
}

/// Writes back the whole file system of a directory.
#[cfg(target_os = "linux")]
pub(super) fn sync_file_system(dir: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::syncfs(dir)?)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn sync_file_system(_: BorrowedFd<'_>) -> io::Result<()> {
    rustix::fs::sync();
    Ok(())
}
