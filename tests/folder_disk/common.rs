//! A bound directory for a test.

use std::fs::File;
use std::io::Read as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use can_sync::core::folder::path::FolderPath;
use can_sync::core::ids::{FolderId, NodeId};
use can_sync::folders::disk::{
    Displaced, Mark, Place, PlaceError, Placed, Placement, Root, Rules, Scanned, Seen, Source,
};

pub(crate) const ID: FolderId = FolderId([7; 16]);

/// What the marker says.
pub(crate) const MARK: Mark = Mark { folder: ID, device: NodeId([8; 32]) };

/// A directory that is marked and open.
pub(crate) struct Bound {
    pub(crate) root: Root,
    pub(crate) dir: PathBuf,
    pub(crate) _temp: tempfile::TempDir,
}

impl Bound {
    pub(crate) fn new() -> Self {
        Self::within(&std::env::temp_dir())
    }

    /// In memory where possible: for tests of thousands of files.
    pub(crate) fn quick() -> Self {
        Self::within(&quick_dir())
    }

    pub(crate) fn within(parent: &Path) -> Self {
        let temp = tempfile::tempdir_in(parent).unwrap();
        let dir = temp.path().join("bound");
        std::fs::create_dir(&dir).unwrap();
        Root::mark(&dir, MARK).unwrap();
        Self { root: Root::open(&dir, MARK).unwrap(), dir, _temp: temp }
    }

    /// A directory beside the bound one, on the same file system.
    pub(crate) fn outside(&self) -> PathBuf {
        self.dir.parent().unwrap().to_owned()
    }

    pub(crate) fn write(&self, at: &str, content: &str) -> Seen {
        let file = self.dir.join(at);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, content).unwrap();
        self.seen(at).unwrap()
    }

    pub(crate) fn read(&self, at: &str) -> String {
        std::fs::read_to_string(self.dir.join(at)).unwrap()
    }

    pub(crate) fn seen(&self, at: &str) -> Option<Seen> {
        self.root.stat(&path(at)).unwrap()
    }

    /// Places a file with this content.
    pub(crate) fn place(
        &self,
        at: &str,
        content: &str,
        expected: Option<Seen>,
    ) -> Result<Placed, PlaceError> {
        let (path, mut reader) = (path(at), content.as_bytes());
        let what = file(&mut reader, content.len());
        self.root.place(Placement { path: &path, what, expected })
    }

    /// Places something else than a file.
    pub(crate) fn place_other(
        &self,
        at: &str,
        what: Place<'_>,
        expected: Option<Seen>,
    ) -> Result<Placed, PlaceError> {
        // What is placed may live longer than this call.
        let path = Box::leak(Box::new(path(at)));
        self.root.place(Placement { path, what, expected })
    }

    pub(crate) fn scan(&self) -> Vec<Scanned> {
        let rules = Rules::load(&self.root).unwrap();
        let mut found = Vec::new();
        let mut each = |scanned| {
            found.push(scanned);
            ControlFlow::Continue(())
        };
        self.root.scan(None, &rules, None, &mut each).unwrap();
        found
    }

    /// The paths of all entries of a scan, sorted, with `/` behind empty directories.
    pub(crate) fn listed(&self) -> Vec<String> {
        let mut listed: Vec<_> = self
            .scan()
            .into_iter()
            .filter_map(|scanned| match scanned {
                Scanned::Entry(path, _) => Some(path.to_string()),
                Scanned::EmptyDirectory(path, _) => Some(format!("{path}/")),
                _ => None,
            })
            .collect();
        listed.sort();
        listed
    }

    pub(crate) fn leftovers(&self) -> Vec<Displaced> {
        let scanned = self.scan().into_iter();
        scanned
            .filter_map(|one| match one {
                Scanned::Leftover(displaced) => Some(displaced),
                _ => None,
            })
            .collect()
    }

    /// The names in a directory that are our own, except the marker.
    pub(crate) fn own_names(&self, at: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.join(at)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(".can-sync-") && name != ".can-sync-folder").collect()
    }

    /// The names of what is kept.
    pub(crate) fn kept(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.join(".can-sync-kept")).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

pub(crate) fn quick_dir() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

pub(crate) fn path(text: &str) -> FolderPath {
    FolderPath::from_bytes(text.as_bytes()).unwrap()
}

pub(crate) fn file<'a>(content: &'a mut &[u8], size_bytes: usize) -> Place<'a> {
    Place::File {
        source: Source::Reader(content),
        size_bytes: size_bytes as u64,
        modified_ms: 1_000_000_123,
        is_executable: false,
    }
}

/// The content of kept or placed things, once it stands still.
pub(crate) fn content(root: &Root, at: &FolderPath) -> Vec<u8> {
    for _ in 0..10_000 {
        let Some(seen) = root.stat(at).unwrap() else { panic!("{at} is not there") };
        let Ok(mut stable) = root.open_stable(at, &seen) else { continue };
        let mut content = Vec::new();
        stable.read_to_end(&mut content).unwrap();
        if stable.finish().is_ok() {
            return content;
        }
    }
    panic!("{at} never stands still");
}

pub(crate) fn done(placed: Result<Placed, PlaceError>) -> Option<Seen> {
    match placed.unwrap() {
        Placed::Done(seen) => seen,
        displaced @ Placed::Displaced { .. } => panic!("{displaced:?}"),
    }
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// An empty file that is gone when it is closed.
pub(crate) fn scratch() -> File {
    tempfile::tempfile().unwrap()
}
