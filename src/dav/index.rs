//! What directories hold, for listing them: the journal knows paths by their hashes alone.
//!
//! X1  Everything here is derived from the journal and can be made again. It is in a temporary
//!     database of SQLite, which has no name, is gone with the process, and keeps little in memory.
//! X2  Every answer includes what the journal held when it was asked: the index catches up first.
//! X3  A directory exists while it has a version of its own or anything is in it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use tokio::sync::Mutex as Turn;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};

use super::shelves::{SHELVES, set_asset};
use crate::core::folder::path::FolderPath;
use crate::core::folder::version::Content;
use crate::core::ids::{FolderId, Hash};
use crate::core::journal::asset::ASSET_MODEL;
use crate::replica::folders::{Cursor, FolderJournal};
use crate::replica::journal::JournalHandle;

/// How long a request waits for the index to catch up. The first one after the start may have to
/// wait longer, and is told to come again.
const CATCH_UP_WAIT: Duration = Duration::from_secs(25);

/// Changes that are taken up at once.
const CHANGES_PER_STEP: usize = 1000;

/// Entries of a directory that are read at once.
pub(super) const ENTRIES_PER_PAGE: usize = 500;

/// The pages of memory that the database may use, of 4 KiB each.
const CACHE_PAGES: u32 = 2000;

const SCHEMA: &str = "
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    CREATE TABLE entries (
        folder BLOB NOT NULL,
        parent BLOB NOT NULL,
        name BLOB NOT NULL,
        is_dir INTEGER NOT NULL,
        -- Of a file.
        hash BLOB,
        size_bytes INTEGER,
        modified_ms INTEGER,
        is_executable INTEGER,
        -- Of a directory: whether it has a version of its own, and how many entries are in it.
        is_own INTEGER NOT NULL DEFAULT 0,
        children INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (folder, parent, name, is_dir)
    ) WITHOUT ROWID;
";

/// The index. Clones share it.
#[derive(Clone)]
pub(super) struct Index {
    journal: JournalHandle,
    folders: FolderJournal,
    state: Arc<Mutex<State>>,
    /// Held while the index catches up.
    turn: Arc<Turn<()>>,
}

/// Locked on threads that may block alone.
#[derive(Default)]
struct State {
    /// `None` until it is needed, and after an error.
    connection: Option<Connection>,
    files: Option<Cursor>,
    assets: Option<Cursor>,
}

/// The part of the index that an answer needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// What is in the folders.
    Folders,
    /// Assets by date and by tag.
    Assets,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Late;

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) kind: EntryKind,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EntryKind {
    /// A directory.
    Directory,
    /// A file.
    File(FileFacts),
}

/// What is known of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileFacts {
    pub(super) hash: Hash,
    pub(super) size_bytes: u64,
    pub(super) modified_ms: i64,
    pub(super) is_executable: bool,
}

impl Index {
    pub(super) fn new(journal: JournalHandle, folders: FolderJournal) -> Self {
        Self { journal, folders, state: Arc::default(), turn: Arc::default() }
    }

    /// Takes up what is new in the journal. [`Late`] when that takes too long: what was done is kept,
    /// and the next call goes on from there.
    pub(super) async fn catch_up(&self, part: Part) -> Result<std::result::Result<(), Late>> {
        let until = Instant::now() + CATCH_UP_WAIT;
        let Ok(_turn) = timeout_at(until, self.turn.lock()).await else { return Ok(Err(Late)) };
        loop {
            let has_more = match part {
                Part::Folders => self.take_up_files().await?,
                Part::Assets => self.take_up_assets().await?,
            };
            match has_more {
                false => return Ok(Ok(())),
                true if Instant::now() > until => return Ok(Err(Late)),
                true => {}
            }
        }
    }

    /// Returns whether there is more.
    async fn take_up_files(&self) -> Result<bool> {
        let since = self.on(|state| Ok(state.files)).await?;
        let page = self.folders.changes(since, CHANGES_PER_STEP).await?;
        self.on(move |state| {
            if page.is_restart {
                *state = State::default();
                return Ok(true);
            }
            let tx = state.connection()?.transaction()?;
            for row in &page.rows {
                set(&tx, row.folder, &row.version.path, &row.version.content)?;
            }
            tx.commit()?;
            state.files = Some(page.cursor);
            Ok(page.more)
        })
        .await
    }

    /// Returns whether there is more.
    async fn take_up_assets(&self) -> Result<bool> {
        let since = self.on(|state| Ok(state.assets)).await?;
        let page = self
            .journal
            .read(move |reader| reader.changes(Some(ASSET_MODEL), since.as_ref(), CHANGES_PER_STEP))
            .await?;
        self.on(move |state| {
            let Some(page) = page else {
                *state = State::default();
                // Without a group there is nothing to list.
                return Ok(since.is_some());
            };
            let tx = state.connection()?.transaction()?;
            for change in &page.changes {
                if let Some(hash) = Hash::from_slice(&change.id) {
                    set_asset(&tx, hash, change.record.as_ref())?;
                }
            }
            tx.commit()?;
            state.assets = Some(page.cursor);
            Ok(page.more)
        })
        .await
    }

    /// What is at a path of a folder.
    pub(super) async fn entry(
        &self,
        folder: FolderId,
        path: FolderPath,
    ) -> Result<Option<EntryKind>> {
        self.ask(move |connection| {
            let (parent, name) = split(&path);
            // Where a file and a directory have one name, the directory is shown.
            let mut query = connection.prepare_cached(
                "SELECT name, is_dir, hash, size_bytes, modified_ms, is_executable FROM entries
                 WHERE folder = ?1 AND parent = ?2 AND name = ?3 ORDER BY is_dir DESC LIMIT 1",
            )?;
            let found = query.query_row(params![folder.0, parent, name], entry).optional()?;
            Ok(found.map(|entry| entry.kind))
        })
        .await
    }

    /// The entries of a directory of a folder after a name; at most [`ENTRIES_PER_PAGE`]. The path is
    /// empty at the top of the folder.
    pub(super) async fn entries(
        &self,
        folder: FolderId,
        path: Vec<u8>,
        after: Vec<u8>,
    ) -> Result<Vec<Entry>> {
        self.ask(move |connection| {
            let mut query = connection.prepare_cached(
                "SELECT name, max(is_dir), hash, size_bytes, modified_ms, is_executable FROM entries
                 WHERE folder = ?1 AND parent = ?2 AND name > ?3
                 GROUP BY name ORDER BY name LIMIT ?4",
            )?;
            let limit = ENTRIES_PER_PAGE as i64;
            let rows = query.query_map(params![folder.0, path, after, limit], entry)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
    }

    /// The files below a directory of a folder after a path, at most [`ENTRIES_PER_PAGE`], and the
    /// directories that have versions of their own.
    pub(super) async fn below(
        &self,
        folder: FolderId,
        path: FolderPath,
    ) -> Result<Vec<(FolderPath, EntryKind)>> {
        self.ask(move |connection| {
            let mut query = connection.prepare_cached(
                "SELECT parent, name, is_dir, hash, size_bytes, modified_ms, is_executable FROM entries
                 WHERE folder = ?1 AND (parent = ?2 OR parent >= ?3 AND parent < ?4)
                     AND (is_dir = 0 OR is_own = 1)
                 ORDER BY parent, name LIMIT ?5",
            )?;
            let (path, limit) = (path.as_bytes(), ENTRIES_PER_PAGE as i64);
            // All that start with `path/`: `0` follows `/`.
            let (first, last) = ([path, b"/"].concat(), [path, b"0"].concat());
            let mut rows = query.query(params![folder.0, path, first, last, limit])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                let (parent, name): (Vec<u8>, Vec<u8>) = (row.get(0)?, row.get(1)?);
                let kind = kind(row, 2)?;
                found.push((
                    FolderPath::from_bytes(&[&parent, b"/".as_slice(), &name].concat())?,
                    kind,
                ));
            }
            Ok(found)
        })
        .await
    }

    /// Whether an entry is the last one in its directory, and the directory has no version of its
    /// own: it would go with the entry.
    pub(super) async fn holds_its_directory(
        &self,
        folder: FolderId,
        path: FolderPath,
    ) -> Result<bool> {
        self.ask(move |connection| {
            let Some(parent) = path.parent() else { return Ok(false) };
            let (above, name) = split(&parent);
            let mut query = connection.prepare_cached(
                "SELECT 1 FROM entries WHERE folder = ?1 AND parent = ?2 AND name = ?3
                     AND is_dir = 1 AND is_own = 0 AND children = 1",
            )?;
            Ok(query.exists(params![folder.0, above, name])?)
        })
        .await
    }

    /// Asks the database.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.on(move |state| work(state.connection()?)).await
    }

    /// Runs work on the database. After an error the index starts over.
    async fn on<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut State) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let state = self.state.clone();
        let done = spawn_blocking(move || {
            let mut state = state.lock();
            work(&mut state).inspect_err(|_| *state = State::default())
        });
        done.await.context("the index of WebDAV was ended")?
    }
}

impl State {
    fn connection(&mut self) -> Result<&mut Connection> {
        if self.connection.is_none() {
            *self = Self { connection: Some(open()?), files: None, assets: None };
        }
        self.connection.as_mut().context("the index of WebDAV is not open")
    }
}

fn open() -> Result<Connection> {
    // An empty name: a temporary file without one.
    let connection = Connection::open("")?;
    connection.execute_batch(SCHEMA)?;
    connection.execute_batch(SHELVES)?;
    connection.pragma_update(None, "cache_size", CACHE_PAGES)?;
    Ok(connection)
}

/// The path of the directory, empty at the top, and the name in it.
fn split(path: &FolderPath) -> (Vec<u8>, Vec<u8>) {
    let parent = path.parent().map(|parent| parent.as_bytes().to_vec()).unwrap_or_default();
    (parent, path.name().to_vec())
}

/// Takes up what is at a path now.
fn set(db: &Connection, folder: FolderId, path: &FolderPath, content: &Content) -> Result<()> {
    let (parent, name) = split(path);
    let has_file = db
        .prepare_cached(
            "DELETE FROM entries WHERE folder = ?1 AND parent = ?2 AND name = ?3 AND is_dir = 0",
        )?
        .execute(params![folder.0, parent, name])?
        > 0;
    if let Content::File { hash, size_bytes, modified_ms, is_executable } = content {
        let size_bytes = i64::try_from(*size_bytes).unwrap_or(i64::MAX);
        db.prepare_cached(
            "INSERT INTO entries
                 (folder, parent, name, is_dir, hash, size_bytes, modified_ms, is_executable)
             VALUES (?1, ?2, ?3, 0, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![
            folder.0,
            parent,
            name,
            hash.0,
            size_bytes,
            modified_ms,
            is_executable
        ])?;
        if !has_file {
            add_child(db, folder, path.parent())?;
        }
    } else if has_file {
        drop_child(db, folder, path.parent())?;
    }
    let is_own = *content == Content::Directory;
    let changed = db
        .prepare_cached(
            "UPDATE entries SET is_own = ?4
             WHERE folder = ?1 AND parent = ?2 AND name = ?3 AND is_dir = 1",
        )?
        .execute(params![folder.0, parent, name, is_own])?;
    if changed == 0 && is_own {
        db.prepare_cached(
            "INSERT INTO entries (folder, parent, name, is_dir, is_own) VALUES (?1, ?2, ?3, 1, 1)",
        )?
        .execute(params![folder.0, parent, name])?;
        add_child(db, folder, path.parent())?;
    } else if changed > 0 && !is_own {
        drop_empty(db, folder, path)?;
    }
    Ok(())
}

/// An entry came to a directory, which exists from now on.
fn add_child(db: &Connection, folder: FolderId, directory: Option<FolderPath>) -> Result<()> {
    let Some(directory) = directory else { return Ok(()) };
    let (parent, name) = split(&directory);
    let children: i64 = db
        .prepare_cached(
            "INSERT INTO entries (folder, parent, name, is_dir, children) VALUES (?1, ?2, ?3, 1, 1)
             ON CONFLICT DO UPDATE SET children = children + 1 RETURNING children + is_own",
        )?
        .query_row(params![folder.0, parent, name], |row| row.get(0))?;
    if children == 1 {
        add_child(db, folder, directory.parent())?;
    }
    Ok(())
}

/// An entry went from a directory, which may go with it.
fn drop_child(db: &Connection, folder: FolderId, directory: Option<FolderPath>) -> Result<()> {
    let Some(directory) = directory else { return Ok(()) };
    let (parent, name) = split(&directory);
    db.prepare_cached(
        "UPDATE entries SET children = children - 1
         WHERE folder = ?1 AND parent = ?2 AND name = ?3 AND is_dir = 1",
    )?
    .execute(params![folder.0, parent, name])?;
    drop_empty(db, folder, &directory)
}

/// Removes a directory in which nothing is and which has no version of its own.
fn drop_empty(db: &Connection, folder: FolderId, directory: &FolderPath) -> Result<()> {
    let (parent, name) = split(directory);
    let gone = db
        .prepare_cached(
            "DELETE FROM entries WHERE folder = ?1 AND parent = ?2 AND name = ?3 AND is_dir = 1
                 AND children = 0 AND is_own = 0",
        )?
        .execute(params![folder.0, parent, name])?;
    if gone > 0 {
        drop_child(db, folder, directory.parent())?;
    }
    Ok(())
}

fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry { name: row.get(0)?, kind: kind(row, 1)? })
}

/// Reads `is_dir, hash, size_bytes, modified_ms, is_executable` from a column on.
fn kind(row: &Row<'_>, at: usize) -> rusqlite::Result<EntryKind> {
    if row.get(at)? {
        return Ok(EntryKind::Directory);
    }
    let size_bytes: i64 = row.get(at + 2)?;
    Ok(EntryKind::File(FileFacts {
        hash: Hash(row.get(at + 1)?),
        size_bytes: size_bytes.unsigned_abs(),
        modified_ms: row.get(at + 3)?,
        is_executable: row.get(at + 4)?,
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const FOLDER: FolderId = FolderId([7; 16]);

    fn path(text: &str) -> FolderPath {
        FolderPath::from_text(text).unwrap()
    }

    fn file() -> Content {
        Content::File { hash: Hash([1; 32]), size_bytes: 3, modified_ms: 9, is_executable: false }
    }

    /// Every entry, a directory with `/` and the number of its entries.
    fn all(db: &Connection) -> Vec<String> {
        let mut query = db
            .prepare("SELECT parent, name, is_dir, children FROM entries ORDER BY parent, name")
            .unwrap();
        let rows = query.query_map([], |row| {
            let text = |at| {
                Ok::<_, rusqlite::Error>(String::from_utf8(row.get::<_, Vec<u8>>(at)?).unwrap())
            };
            let (parent, name, children): (String, String, i64) = (text(0)?, text(1)?, row.get(3)?);
            let end = if row.get(2)? { format!("/{children}") } else { String::new() };
            Ok(format!("{parent}:{name}{end}"))
        });
        rows.unwrap().collect::<rusqlite::Result<_>>().unwrap()
    }

    #[test]
    fn a_directory_is_there_while_it_has_a_version_of_its_own_or_something_in_it() {
        let db = open().unwrap();
        let set = |text: &str, content: &Content| set(&db, FOLDER, &path(text), content).unwrap();
        set("a/b/c", &file());
        set("a/b/c", &file());
        assert_eq!(all(&db), [":a/1", "a:b/1", "a/b:c"]);
        set("a/b", &Content::Directory);
        set("a/b/c", &Content::Absent);
        set("a/b/c", &Content::Absent);
        assert_eq!(all(&db), [":a/1", "a:b/0"]);
        set("a/b", &Content::Absent);
        assert_eq!(all(&db), Vec::<String>::new());
        // The directory comes before or after what is in it.
        set("d", &Content::Directory);
        set("d/e", &file());
        set("d", &Content::Absent);
        assert_eq!(all(&db), [":d/1", "d:e"]);
        // A file becomes a directory.
        set("d/e", &Content::Directory);
        assert_eq!(all(&db), [":d/1", "d:e/0"]);
    }
}
