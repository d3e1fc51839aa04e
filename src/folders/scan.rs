//! The scan: compares the stat of every path of the directory with its base, and names the paths that
//! differ, those that are gone last. A bit for each base is all that it keeps in memory.

use std::ops::ControlFlow;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::sync::mpsc;

use super::db::{Base, BindingId, FoldersDb};
use super::disk::{Displaced, Root, Rules, Scanned, Seen, SeenKind, Skip, Watch};
use super::status::{LATER_MAX, SkipCount};
use crate::core::folder::path::FolderPath;
use crate::core::folder::version::Content;

/// The paths that are compared with the database at once, and the most in one message.
const PAGE_PATHS: usize = 512;

/// The most messages that wait for the driver.
const FOUND_MAX: usize = 4;

/// A message from a scan to the driver.
#[derive(Debug)]
pub(crate) enum Found {
    /// These paths differ from their bases.
    Paths(Vec<FolderPath>),
    /// An earlier run replaced this and did not account for it.
    Leftover(Displaced),
    /// The scan has ended; `is_whole`: it was one of the whole directory.
    End { is_whole: bool, skipped: Result<SkipCount> },
}

/// The input of a scan.
pub(crate) struct Scan {
    pub(crate) root: Arc<Root>,
    pub(crate) rules: Arc<Rules>,
    /// Watches the directories that are scanned.
    pub(crate) watch: Option<Arc<Watch>>,
    pub(crate) db: FoldersDb,
    pub(crate) id: BindingId,
    pub(crate) symlinks: bool,
    /// Only what is below this directory; then nothing is looked for that is gone.
    pub(crate) below: Option<FolderPath>,
}

/// Starts a scan on a thread of its own, which ends when the receiver is dropped.
pub(crate) fn start(scan: Scan) -> mpsc::Receiver<Found> {
    let (found, receiver) = mpsc::channel(FOUND_MAX);
    // The thread ends by itself: it is not waited for.
    drop(tokio::task::spawn_blocking(move || {
        let is_whole = scan.below.is_none();
        let skipped = Run { scan, found: &found, page: Vec::new(), seen: Vec::new() }.run();
        // The driver may be gone.
        let _ = found.blocking_send(Found::End { is_whole, skipped });
    }));
    receiver
}

struct Run<'a> {
    scan: Scan,
    found: &'a mpsc::Sender<Found>,
    page: Vec<(FolderPath, Seen)>,
    /// A bit for each row of the base that the directory still has.
    seen: Vec<u64>,
}

impl Run<'_> {
    fn run(mut self) -> Result<SkipCount> {
        // A scan of a part names each path that it leaves out, so that the driver adds it once to the
        // counts of the whole directory.
        let mut skipped = match self.scan.below {
            Some(_) => SkipCount::naming(LATER_MAX),
            None => SkipCount::default(),
        };
        let mut failed = None;
        let (root, rules) = (self.scan.root.clone(), self.scan.rules.clone());
        let (watch, below) = (self.scan.watch.clone(), self.scan.below.clone());
        let symlinks = self.scan.symlinks;
        let mut each = |scanned| {
            let entry = match scanned {
                Scanned::Entry(path, seen) if seen.kind == SeenKind::Symlink && !symlinks => {
                    skipped.add(LINKS, path.to_text());
                    return ControlFlow::Continue(());
                }
                Scanned::Entry(path, seen) | Scanned::EmptyDirectory(path, seen) => (path, seen),
                Scanned::Skipped(path, skip) => {
                    count(&mut skipped, &path, &skip);
                    return ControlFlow::Continue(());
                }
                Scanned::Leftover(leftover) => {
                    return match self.found.blocking_send(Found::Leftover(leftover)) {
                        Ok(()) => ControlFlow::Continue(()),
                        Err(_) => ControlFlow::Break(()),
                    };
                }
            };
            self.page.push(entry);
            if self.page.len() < PAGE_PATHS {
                return ControlFlow::Continue(());
            }
            match self.compare() {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        };
        root.scan(below.as_ref(), &rules, watch.as_deref(), &mut each)?;
        if let Some(error) = failed {
            return Err(error);
        }
        self.compare()?;
        if below.is_none() {
            self.find_gone()?;
        }
        Ok(skipped)
    }

    /// Compares the paths of a page with their bases.
    fn compare(&mut self) -> Result<()> {
        let (paths, seen): (Vec<FolderPath>, Vec<Seen>) = self.page.drain(..).unzip();
        let bases = self.scan.db.bases(self.scan.id, &paths).context("reading folders.db")?;
        let mut differ = Vec::new();
        for ((path, seen), base) in paths.into_iter().zip(seen).zip(bases) {
            match base {
                Some(base) => {
                    self.mark(base.row);
                    if !is_same(&base, &seen) {
                        differ.push(path);
                    }
                }
                None => differ.push(path),
            }
        }
        self.tell(differ)
    }

    fn find_gone(&mut self) -> Result<()> {
        let mut after = 0;
        loop {
            let page = self.scan.db.page(self.scan.id, after, PAGE_PATHS)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.row;
            let gone = page.into_iter().filter(|base| !self.is_marked(base.row));
            let gone = gone.map(|base| base.version.path).collect();
            self.tell(gone)?;
        }
    }

    fn tell(&self, paths: Vec<FolderPath>) -> Result<()> {
        if paths.is_empty() {
            return Ok(());
        }
        self.found.blocking_send(Found::Paths(paths)).context("nobody waits for the scan")
    }

    fn mark(&mut self, row: u64) {
        let at = usize::try_from(row / 64).unwrap_or(usize::MAX);
        if at >= self.seen.len() {
            self.seen.resize(at + 1, 0);
        }
        self.seen[at] |= 1 << (row % 64);
    }

    fn is_marked(&self, row: u64) -> bool {
        let at = usize::try_from(row / 64).unwrap_or(usize::MAX);
        self.seen.get(at).is_some_and(|bits| bits & (1 << (row % 64)) != 0)
    }
}

/// Why symbolic links are left out.
pub(crate) const LINKS: &str = "symbolic links (`folder add --symlinks` syncs them as links)";

/// Why special files are left out.
pub(crate) const SPECIAL: &str = "FIFOs, sockets and devices";

/// Why paths are left out that no folder can hold.
const TOO_LONG: &str = "paths that are too long";

/// The reasons that every scan finds again.
pub(crate) const OF_SCANS: [&str; 3] = [LINKS, SPECIAL, TOO_LONG];

/// Counts what a scan leaves out.
pub(crate) fn count(skipped: &mut SkipCount, path: &[u8], skip: &Skip) {
    skipped.add(&reason(skip), text(path));
}

fn reason(skip: &Skip) -> String {
    match skip {
        Skip::Special => SPECIAL.into(),
        Skip::TooLong => TOO_LONG.into(),
        Skip::Unreadable(why) => format!("cannot be read: {why}"),
    }
}

/// A path that need not be one of a folder, as text.
fn text(path: &[u8]) -> String {
    match FolderPath::from_bytes(path) {
        Ok(path) => path.to_text(),
        Err(_) => String::from_utf8_lossy(path).escape_debug().to_string(),
    }
}

/// Whether a stat shows what it showed for the base.
fn is_same(base: &Base, seen: &Seen) -> bool {
    match seen.kind {
        SeenKind::Directory => base.version.content == Content::Directory,
        _ => base.seen == *seen,
    }
}
