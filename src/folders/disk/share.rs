//! Copies a content, where possible by sharing the blocks on the disk (reflink): btrfs, XFS, bcachefs,
//! APFS.

use std::fs::File;
use std::io::{self, Seek as _};

/// Makes `into`, an empty file, share the blocks of `from`.
///
/// # Errors
/// The file system cannot, or the files are on two of them.
#[cfg(target_os = "linux")]
pub fn reflink(from: &File, into: &File) -> io::Result<()> {
    Ok(rustix::fs::ioctl_ficlone(into, from)?)
}

/// Makes `into`, an empty file, share the blocks of `from`. Not on this system yet.
///
/// # Errors
/// Always.
#[cfg(not(target_os = "linux"))]
pub fn reflink(_: &File, _: &File) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Fills `into`, an empty file, with the content of `from`: by a reflink if possible. Returns the
/// length.
///
/// # Errors
/// A file cannot be read or written.
pub fn reflink_or_copy(mut from: &File, mut into: &File) -> io::Result<u64> {
    if reflink(from, into).is_ok() {
        return Ok(into.metadata()?.len());
    }
    from.rewind()?;
    io::copy(&mut from, &mut into)
}
