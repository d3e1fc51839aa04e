//! The store's folder: its lock, and contents too large for the database.
//!
//! ```text
//! DIR/lock  DIR/store.db  DIR/content/AB/HASH[.outboard]  DIR/temp/  DIR/staging/
//! ```
//!
//! One level of folders, all created at the start. Each further level would be one more folder to
//! sync for every file; a million files are four thousand per folder.
//!
//! F1  A name under `content/` is given only to a file that is complete and durable; the name is
//!     durable (file, then folder) before [`Files::place`] returns.
//! F2  A failed fsync is never retried and stops the store ([`Health`]).
//! F3  Only the owner can access the folder: folders 0700, files 0600.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, bail};
use parking_lot::Mutex;
use rustix::io::Errno;

use super::health::Health;
use crate::core::ids::{Digest, Hash};
use crate::core::limits::{FREE_FLOOR_BYTES, FREE_FLOOR_FRACTION};
use crate::store::StoreError;

const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

type Result<T> = std::result::Result<T, StoreError>;

/// The open folder, locked until this is dropped.
pub(super) struct Files {
    dir: PathBuf,
    floor_bytes: Option<u64>,
    temp_count: AtomicU64,
    health: Arc<Health>,
    lock: Mutex<Option<File>>,
}

impl Files {
    /// Opens or creates the folder and takes its lock.
    pub(super) fn open(
        dir: &Path,
        floor_bytes: Option<u64>,
        health: Arc<Health>,
    ) -> anyhow::Result<Self> {
        let cannot = || format!("cannot open the store folder {}", dir.display());
        if !dir.exists() {
            create_dir(dir, true).with_context(cannot)?;
        }
        let dir = dir.canonicalize().with_context(cannot)?;
        check_folder(&dir).with_context(cannot)?;
        let lock = take_lock(&dir)?;
        let files = Self {
            dir,
            floor_bytes,
            temp_count: AtomicU64::new(0),
            health,
            lock: Mutex::new(Some(lock)),
        };
        files.make_folders().with_context(cannot)?;
        Ok(files)
    }

    /// Creates the folders inside, durably before a database relies on them.
    fn make_folders(&self) -> anyhow::Result<()> {
        let is_new = !self.database().exists();
        for name in ["content", "temp", "staging"] {
            create_dir(&self.dir.join(name), false)?;
        }
        let content = self.dir.join("content");
        for fan in 0..=u8::MAX {
            create_dir(&content.join(format!("{fan:02x}")), false)?;
        }
        if is_new {
            self.sync_dir(&content)?;
            self.sync_dir(&self.dir)?;
            // The folders above may be new too. Not all of them can be opened, so errors are
            // ignored.
            for above in self.dir.ancestors().skip(1) {
                let _ = File::open(above).and_then(|folder| folder.sync_all());
            }
        }
        Ok(())
    }

    pub(super) fn database(&self) -> PathBuf {
        self.dir.join("store.db")
    }

    pub(super) fn staging(&self) -> PathBuf {
        self.dir.join("staging")
    }

    pub(super) fn content(&self, hash: Hash) -> PathBuf {
        let hex = hash.to_string();
        let mut path = self.dir.join("content");
        path.extend([&hex[..2], &hex]);
        path
    }

    pub(super) fn outboard(&self, hash: Hash) -> PathBuf {
        self.content(hash).with_extension("outboard")
    }

    /// Releases the lock for another process (or another open).
    pub(super) fn unlock(&self) {
        self.lock.lock().take();
    }

    /// Removes what an earlier run left unfinished: temporary and staged files, and files of hashes
    /// that it was about to record (`unrecorded`) but did not.
    pub(super) fn sweep(&self, unrecorded: &[Hash]) -> Result<()> {
        for name in ["temp", "staging"] {
            let folder = self.dir.join(name);
            let entries = fs::read_dir(&folder).map_err(|e| failed("list", &folder, &e))?;
            for entry in entries {
                let entry = entry.map_err(|e| failed("list", &folder, &e))?;
                let path = entry.path();
                let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
                if is_dir {
                    fs::remove_dir_all(&path).map_err(|e| failed("remove", &path, &e))?;
                } else {
                    remove(&path)?;
                }
            }
        }
        self.delete(unrecorded)
    }

    /// Removes the files of hashes durably, if there are any.
    pub(super) fn delete(&self, hashes: &[Hash]) -> Result<()> {
        let mut changed = BTreeSet::new();
        for hash in hashes {
            let content = self.content(*hash);
            remove(&content)?;
            remove(&self.outboard(*hash))?;
            changed.extend(content.parent().filter(|folder| folder.exists()).map(Path::to_owned));
        }
        changed.iter().try_for_each(|folder| self.sync_dir(folder))
    }

    /// Fails when `more_bytes` would not fit above the free-space floor.
    pub(super) fn check_space(&self, more_bytes: u64) -> Result<()> {
        let disk = rustix::fs::statvfs(&self.dir)
            .map_err(|e| failed("measure the disk of", &self.dir, &e.into()))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let total = disk.f_blocks.saturating_mul(disk.f_frsize);
        let default = FREE_FLOOR_BYTES.min(total / FREE_FLOOR_FRACTION);
        let floor = self.floor_bytes.unwrap_or(default);
        if free >= floor.saturating_add(more_bytes) {
            return Ok(());
        }
        Err(StoreError::Full(format!(
            "the disk of {} has {free} bytes free, {more_bytes} more are needed and {floor} are \
             kept free: free some space, or move the store to a larger disk",
            self.dir.display()
        )))
    }

    /// Creates an empty file in `temp/`, removed when dropped unless it was placed.
    pub(super) fn temp(&self) -> Result<(Temp, File)> {
        let number = self.temp_count.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join("temp").join(number.to_string());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(FILE_MODE)
            .open(&path)
            .map_err(|e| failed("create", &path, &e))?;
        Ok((Temp(path), file))
    }

    /// Makes a synced copy in a temporary file.
    pub(super) fn copy_temp(&self, path: &Path) -> Result<Temp> {
        let mut source = File::open(path).map_err(|e| failed("read", path, &e))?;
        let (temp, mut file) = self.temp()?;
        io::copy(&mut source, &mut file).map_err(|e| failed("copy here", path, &e))?;
        self.sync(&file, &temp.0)?;
        Ok(temp)
    }

    /// Whether `path` can be moved into the store without copying. Tries it, because comparing
    /// devices is not enough: files cannot move between two mounts of one device.
    pub(super) fn can_move(&self, path: &Path) -> bool {
        let number = self.temp_count.fetch_add(1, Ordering::Relaxed);
        let probe = Temp(self.dir.join("temp").join(number.to_string()));
        let linked = fs::hard_link(path, &probe.0);
        !linked.is_err_and(|error| error.kind() == io::ErrorKind::CrossesDevices)
    }

    /// Makes a file that another program wrote private and durable. If that fails it is removed,
    /// because the page cache would still show it and the next sync would succeed.
    pub(super) fn own(&self, path: &Path) -> Result<()> {
        fs::set_permissions(path, Permissions::from_mode(FILE_MODE))
            .map_err(|e| failed("make private", path, &e))?;
        let file = File::open(path).map_err(|e| failed("read", path, &e))?;
        self.sync(&file, path).inspect_err(|_| {
            if let Err(error) = remove(path) {
                tracing::warn!(%error, "cannot remove a file that did not reach the disk");
            }
        })
    }

    /// Moves synced files to their names; all moves are durable on return. On an error some may
    /// have moved: the caller has reserved their hashes.
    pub(super) fn place(&self, moves: &[Move<'_>]) -> Result<()> {
        let mut changed = BTreeSet::new();
        for Move { from, to } in moves {
            fs::rename(from, to).map_err(|e| failed("move into the store", from, &e))?;
            changed.extend(to.parent());
        }
        changed.into_iter().try_for_each(|folder| self.sync_dir(folder))
    }

    /// The names in one folder of contents.
    pub(super) fn names(&self, fan: u8) -> Result<Vec<(PathBuf, Option<Hash>)>> {
        let folder = self.dir.join("content").join(format!("{fan:02x}"));
        let entries = fs::read_dir(&folder).map_err(|e| failed("list", &folder, &e))?;
        let named = entries.map(|entry| {
            let path = entry.map_err(|e| failed("list", &folder, &e))?.path();
            let hash: Option<Hash> = path
                .file_stem()
                .and_then(|stem| stem.to_str()?.parse().ok())
                .filter(|hash| path == self.content(*hash) || path == self.outboard(*hash));
            Ok((path, hash))
        });
        named.collect()
    }

    /// Makes files of the store and their names durable, whoever wrote them. A missing one is left
    /// out.
    pub(super) fn make_durable(&self, paths: &[PathBuf]) -> Result<()> {
        let mut changed = BTreeSet::new();
        for path in paths.iter().filter(|path| path.exists()) {
            self.sync(&open(path)?, path)?;
            changed.extend(path.parent());
        }
        changed.into_iter().try_for_each(|folder| self.sync_dir(folder))
    }

    /// Reverts [`Files::place`] as far as it got, for hashes that are certainly not recorded.
    pub(super) fn unplace(&self, moves: &[Move<'_>]) {
        for Move { from, to } in moves {
            if !from.exists()
                && let Err(error) = fs::rename(to, from)
            {
                let path = to.display();
                tracing::warn!(%error, %path, "cannot take back an unrecorded file; it stays until the next start");
            }
        }
    }

    /// Reads exactly `range` of a content file.
    pub(super) fn read(&self, hash: Hash, range: std::ops::Range<u64>) -> Result<Vec<u8>> {
        let path = self.content(hash);
        let length = usize::try_from(range.end - range.start)
            .map_err(|_| StoreError::TooLarge(format!("a range of {range:?}")))?;
        let mut bytes = vec![0; length];
        let read = File::open(&path).and_then(|file| file.read_exact_at(&mut bytes, range.start));
        read.map_err(|e| self.read_failed(hash, &e))?;
        Ok(bytes)
    }

    /// Opens a content file for reading and checks its length.
    pub(super) fn open_content(&self, digest: Digest) -> Result<File> {
        let path = self.content(digest.hash);
        let open = || {
            let file = File::open(&path)?;
            let status = file.metadata()?;
            Ok((file, status))
        };
        let (file, status) = open().map_err(|e| self.read_failed(digest.hash, &e))?;
        if !status.is_file() || status.len() != digest.size_bytes {
            return Err(StoreError::Damaged(digest.hash));
        }
        Ok(file)
    }

    /// Whether there is a content file of the right length.
    pub(super) fn has_content(&self, digest: Digest) -> Result<bool> {
        match fs::symlink_metadata(self.content(digest.hash)) {
            Ok(status) => Ok(status.is_file() && status.len() == digest.size_bytes),
            Err(error) => match self.read_failed(digest.hash, &error) {
                StoreError::Damaged(_) => Ok(false),
                other => Err(other),
            },
        }
    }

    /// Maps an error of reading a content: either this file is lost, or the disk or this process is
    /// in trouble.
    pub(super) fn read_failed(&self, hash: Hash, error: &io::Error) -> StoreError {
        let path = self.content(hash);
        let error = match failed("read", &path, error) {
            StoreError::Disk(text) => text,
            other => return other,
        };
        // If its folder is missing too, more than one asset is affected.
        match path.parent().map(File::open) {
            Some(Ok(_)) => {
                tracing::warn!(error, "cannot read the content of an asset");
                StoreError::Damaged(hash)
            }
            _ => StoreError::Disk(error),
        }
    }

    /// Waits until the file is durable. After a full disk the data is lost; after any other failure
    /// it is not known what else is lost (fsyncgate).
    pub(super) fn sync(&self, file: &File, path: &Path) -> Result<()> {
        self.health.check()?;
        file.sync_all().map_err(|e| match failed("sync", path, &e) {
            full @ StoreError::Full(_) => full,
            other => self.health.fail(&other.to_string()),
        })
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        self.health.check()?;
        let folder = File::open(dir).map_err(|e| failed("open", dir, &e))?;
        folder.sync_all().map_err(|e| self.health.fail(&failed("sync", dir, &e).to_string()))
    }
}

/// A synced file, and its future name under `content/`.
pub(super) struct Move<'a> {
    from: &'a Path,
    to: PathBuf,
}

impl<'a> Move<'a> {
    pub(super) fn new(from: &'a Path, to: PathBuf) -> Self {
        Self { from, to }
    }
}

/// A file in `temp/`, removed when dropped.
pub(super) struct Temp(pub(super) PathBuf);

impl Drop for Temp {
    fn drop(&mut self) {
        // Already moved, or removed at the next start.
        let _ = fs::remove_file(&self.0);
    }
}

/// Opens a file of the store for reading.
pub(super) fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| failed("read", path, &e))
}

/// The error of a file operation on a path.
pub(super) fn failed(doing: &str, path: &Path, error: &io::Error) -> StoreError {
    let text = format!("cannot {doing} {}: {error}", path.display());
    match Errno::from_io_error(error) {
        Some(Errno::NOSPC | Errno::DQUOT) => {
            StoreError::Full(format!("{text}: free some space on its disk"))
        }
        Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::INTR | Errno::AGAIN) => {
            StoreError::Unreachable(format!("{text}: try again"))
        }
        _ => StoreError::Disk(text),
    }
}

/// Removes a file if it exists.
pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove", path, &error))
        }
        _ => Ok(()),
    }
}

fn create_dir(dir: &Path, parents: bool) -> io::Result<()> {
    let made = DirBuilder::new().recursive(parents).mode(DIR_MODE).create(dir);
    match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Refuses a folder of another user, and makes an own one private.
fn check_folder(dir: &Path) -> anyhow::Result<()> {
    let metadata = fs::metadata(dir)?;
    if !metadata.is_dir() {
        bail!("it is not a folder: choose another path");
    }
    let (owner, me) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner != me {
        bail!("it belongs to user {owner} and this process runs as user {me}: run as its owner");
    }
    let mut entries = fs::read_dir(dir)?;
    let ours = ["lock", "store.db"].map(|name| dir.join(name).exists());
    if ours == [false, false] && entries.next().is_some() {
        bail!("it holds other things and no store: choose an empty or a new folder");
    }
    if metadata.permissions().mode() & 0o777 != DIR_MODE {
        fs::set_permissions(dir, Permissions::from_mode(DIR_MODE))?;
    }
    Ok(())
}

/// Takes the lock that keeps out a second process; the error names the holder.
fn take_lock(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only for the message: a lock file that cannot be read is still a lock.
            let _ = file.read_to_string(&mut holder);
            bail!(
                "the store {} is in use by process {}: stop that one first, or choose another \
                 folder",
                dir.display(),
                holder.trim()
            );
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    let mut write = || -> io::Result<()> {
        file.rewind()?;
        file.set_len(0)?;
        writeln!(file, "{}", std::process::id())
    };
    write().with_context(|| format!("cannot write {}", path.display()))?;
    Ok(file)
}
