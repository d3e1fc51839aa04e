//! Lists what is in a bound directory.
//!
//! C1  The memory is bounded by the directories next to the path under way, about 20 bytes each, not
//!     by the number of files.
//! C2  What is below a path that is skipped as unreadable is unknown, not gone.
//! C3  A directory is watched before it is listed: a change in it is either in the list or hinted.
//! C4  A scan removes the unfinished temporary files of earlier runs, and reports what such a run
//!     replaced and did not account for.

use std::io;
use std::ops::ControlFlow;

use rustix::fs::{AtFlags, Dir, unlinkat};
use thiserror::Error;

use super::keep::Displaced;
use super::moves::show_directory;
use super::names::{KEPT, Stage, Temp, parse_kept};
use super::root::{Root, RootError, is_absence, remembered_stat_at, stat_at};
use super::rules::Rules;
use super::seen::{Seen, SeenKind};
use super::watch::Watch;
use crate::core::folder::path::FolderPath;

/// What the name of a directory at the top begins with that an earlier run took from its name.
const RECOVERED: &[u8] = b"recovered";

/// One thing that a scan found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scanned {
    /// A file or a symbolic link.
    Entry(FolderPath, Seen),
    /// A directory with nothing in it that is synchronised.
    EmptyDirectory(FolderPath, Seen),
    /// Something that cannot be synchronised. The path need not be one of a folder.
    Skipped(Vec<u8>, Skip),
    /// What an earlier run replaced and did not account for. See [`Root::release`].
    Leftover(Displaced),
}

/// Why something is skipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Skip {
    /// A FIFO, a socket or a device.
    Special,
    /// The name or the path is too long for a folder.
    TooLong,
    /// The operating system refuses to show it. See C2.
    Unreadable(String),
}

/// Why a scan ended early. What it has not shown is unknown, not gone.
#[derive(Debug, Error)]
pub enum ScanError {
    /// The directory is gone or another one. See D2.
    #[error(transparent)]
    Root(#[from] RootError),
    /// The directory where the scan starts cannot be read.
    #[error("cannot list the directory: {0}")]
    Io(#[from] io::Error),
}

/// Takes what a scan finds; `Break` ends the scan.
pub type Each<'a> = dyn FnMut(Scanned) -> ControlFlow<()> + 'a;

/// A directory that is open in the walk: what is still to visit in it.
struct Level {
    path: Option<FolderPath>,
    seen: Option<Seen>,
    /// The names of its directories, each with a zero byte behind it.
    names: Vec<u8>,
    is_empty: bool,
}

struct Walk<'a> {
    root: &'a Root,
    rules: &'a Rules,
    watch: Option<&'a Watch>,
    each: &'a mut Each<'a>,
}

impl Root {
    /// Shows everything below `below` (`None`: in the whole directory) to `each`, and has `watch`
    /// watch all directories on the way.
    ///
    /// # Errors
    /// The bound directory is not there before or after the scan, or `below` cannot be read.
    pub fn scan<'a>(
        &'a self,
        below: Option<&FolderPath>,
        rules: &'a Rules,
        watch: Option<&'a Watch>,
        each: &'a mut Each<'a>,
    ) -> Result<(), ScanError> {
        self.check()?;
        let mut walk = Walk { root: self, rules, watch, each };
        if below.is_none() && walk.leftovers()?.is_break() {
            return Ok(());
        }
        if walk.run(below)?.is_break() {
            return Ok(());
        }
        Ok(self.check()?)
    }
}

impl Walk<'_> {
    fn run(&mut self, below: Option<&FolderPath>) -> io::Result<ControlFlow<()>> {
        let (first, flow) = self.list(below.cloned())?;
        if flow.is_break() {
            return Ok(flow);
        }
        let mut levels = vec![first];
        while let Some(level) = levels.last_mut() {
            let Some(name) = next_name(&mut level.names) else {
                if let Some(Level { path: Some(path), seen: Some(seen), is_empty: true, .. }) =
                    levels.pop()
                    && (self.each)(Scanned::EmptyDirectory(path, seen)).is_break()
                {
                    return Ok(ControlFlow::Break(()));
                }
                continue;
            };
            let bytes = joined(level.path.as_ref(), &name);
            let Ok(path) = FolderPath::from_bytes(&bytes) else {
                if (self.each)(Scanned::Skipped(bytes, Skip::TooLong)).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                continue;
            };
            match self.list(Some(path)) {
                Ok((below, flow)) => {
                    if flow.is_break() {
                        return Ok(flow);
                    }
                    levels.push(below);
                }
                Err(error) if is_absence(&error) => {}
                Err(error) => {
                    if self.skip(bytes, &error).is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Shows what is in one directory, except its directories, which it returns.
    fn list(&mut self, path: Option<FolderPath>) -> io::Result<(Level, ControlFlow<()>)> {
        if let Some(watch) = self.watch {
            watch.add(path.as_ref());
        }
        let dir = self.root.open_dir(path.as_ref())?;
        let seen = path.is_some().then(|| super::root::stat_file(&dir)).transpose()?;
        let mut level = Level { path, seen, names: Vec::new(), is_empty: true };
        for entry in Dir::read_from(&dir)? {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    level.is_empty = false;
                    let bytes = level.path.as_ref().map(|path| path.as_bytes().to_vec());
                    let flow = self.skip(bytes.unwrap_or_default(), &error.into());
                    return Ok((level, flow));
                }
            };
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let flow = match remembered_stat_at(&dir, name) {
                Ok(seen) => self.entry(&mut level, name, seen),
                Err(error) if is_absence(&error) => ControlFlow::Continue(()),
                Err(error) => {
                    level.is_empty = false;
                    self.skip(joined(level.path.as_ref(), name), &error)
                }
            };
            if flow.is_break() {
                return Ok((level, flow));
            }
        }
        Ok((level, ControlFlow::Continue(())))
    }

    fn entry(&mut self, level: &mut Level, name: &[u8], seen: Seen) -> ControlFlow<()> {
        let bytes = joined(level.path.as_ref(), name);
        if let Some(temp) = Temp::parse(name) {
            return self.temp(&bytes, temp, seen);
        }
        if self.rules.is_ignored_here(&bytes, seen.kind == SeenKind::Directory) {
            return ControlFlow::Continue(());
        }
        if seen.kind == SeenKind::Directory {
            level.is_empty = false;
            level.names.extend_from_slice(name);
            level.names.push(0);
            return ControlFlow::Continue(());
        }
        if seen.kind == SeenKind::Other {
            return (self.each)(Scanned::Skipped(bytes, Skip::Special));
        }
        let Ok(path) = FolderPath::from_bytes(&bytes) else {
            level.is_empty = false;
            return (self.each)(Scanned::Skipped(bytes, Skip::TooLong));
        };
        level.is_empty = false;
        (self.each)(Scanned::Entry(path, seen))
    }

    /// A temporary file: one of this run is in use, one of an earlier run is worthless unless it was
    /// exchanged.
    fn temp(&mut self, bytes: &[u8], temp: Temp, seen: Seen) -> ControlFlow<()> {
        let Ok(path) = FolderPath::from_bytes(bytes) else { return ControlFlow::Continue(()) };
        if temp.run == self.root.run {
            return ControlFlow::Continue(());
        }
        if temp.stage == Stage::New || temp.stage == Stage::Complete(seen.inode) {
            let remove = || -> io::Result<()> {
                let flags = match seen.kind {
                    SeenKind::Directory => AtFlags::REMOVEDIR,
                    _ => AtFlags::empty(),
                };
                Ok(unlinkat(self.root.open_parent(&path)?, path.name(), flags)?)
            };
            if let Err(error) = remove() {
                tracing::debug!(%error, "cannot remove a temporary file of an earlier run");
            }
            return ControlFlow::Continue(());
        }
        self.leftover(Displaced { kept: path, key: temp.key, seen })
    }

    /// Handles what an earlier run moved away from its name. A file goes to the caller, which
    /// compares it with the journal. A directory cannot be compared: it is moved to the top of the
    /// bound directory, where the user sees it.
    fn leftover(&mut self, displaced: Displaced) -> ControlFlow<()> {
        if displaced.seen.kind != SeenKind::Directory {
            return (self.each)(Scanned::Leftover(displaced));
        }
        match self.root.open_parent(&displaced.kept) {
            Ok(dir) => show_directory(&dir, displaced.kept.name(), self.root.top(), RECOVERED),
            Err(error) => tracing::warn!(%error, "cannot show a directory of an earlier run"),
        }
        ControlFlow::Continue(())
    }

    /// Handles kept content that earlier runs left behind.
    fn leftovers(&mut self) -> io::Result<ControlFlow<()>> {
        let kept = FolderPath::from_bytes(KEPT.as_bytes()).map_err(io::Error::other)?;
        let dir = match self.root.open_dir(Some(&kept)) {
            Ok(dir) => dir,
            Err(error) if is_absence(&error) => return Ok(ControlFlow::Continue(())),
            Err(error) => return Err(error),
        };
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            let Some((run, key)) = parse_kept(name) else { continue };
            let (Ok(path), Ok(seen)) = (kept.join(name), stat_at(&dir, name)) else { continue };
            if run == self.root.run {
                continue;
            }
            if self.leftover(Displaced { kept: path, key, seen }).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn skip(&mut self, path: Vec<u8>, error: &io::Error) -> ControlFlow<()> {
        (self.each)(Scanned::Skipped(path, Skip::Unreadable(error.to_string())))
    }
}

/// Takes the last name off a list of names.
fn next_name(names: &mut Vec<u8>) -> Option<Vec<u8>> {
    names.pop()?;
    let start = names.iter().rposition(|byte| *byte == 0).map_or(0, |at| at + 1);
    Some(names.split_off(start))
}

fn joined(path: Option<&FolderPath>, name: &[u8]) -> Vec<u8> {
    match path {
        Some(path) => [path.as_bytes(), b"/", name].concat(),
        None => name.to_vec(),
    }
}
