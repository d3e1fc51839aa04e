//! Binding a directory to a folder, and unbinding it.
//!
//! K1  A binding is made all or nothing: its row, the marker in the directory, and of a new folder its
//!     record.
//! K2  Nothing is bound that overlaps with another bound directory or with the agent's own files.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::Binding;
use super::db::StoredBinding;
use super::disk::{MARKER, Root, RootError, Rules, Scanned, SeenKind};
use super::handle::{FolderError, Folders, Result, absolute, not_bound, resolved, temporary};
use super::manager::Request;
use super::shared::blocking;
use super::status::{BindRequest, Bound, FolderView, SkipCount};
use crate::core::folder::version::Content;
use crate::core::ids::FolderId;
use crate::replica::folders::Folder;

/// The longest name of a folder, bytes.
const NAME_BYTES_MAX: usize = 200;

/// The versions of a folder that are compared with a directory at once.
const PAGE: usize = 512;

impl Folders {
    /// Makes a folder of a directory.
    pub async fn add(&self, request: BindRequest) -> Result<Bound> {
        self.bind(None, request).await
    }

    /// Binds a directory to an existing folder.
    pub async fn join(&self, folder: &str, request: BindRequest) -> Result<Bound> {
        let folder = self.find(folder).await?;
        if self.bound(folder.id).await?.is_some() {
            return Err(FolderError::Refused(format!(
                "a directory of this device is bound to {:?} already",
                folder.name
            )));
        }
        self.bind(Some(folder), request).await
    }

    async fn bind(&self, folder: Option<Folder>, request: BindRequest) -> Result<Bound> {
        let _one_at_a_time = self.binding.lock().await;
        let given = absolute(&request.dir)?;
        let (is_preview, is_new) = (request.dry_run, folder.is_none());
        let dir = blocking(move || {
            let dir = match std::fs::canonicalize(&given) {
                // A directory to join is made when it is bound.
                Err(error) if is_preview && !is_new && error.kind() == io::ErrorKind::NotFound => {
                    Ok(resolved(&given))
                }
                other => other,
            };
            Ok(dir.map_err(|error| (given, error)))
        });
        let dir = dir.await?.map_err(|(given, error)| {
            FolderError::Invalid(format!("cannot open {}: {error}", given.display()))
        })?;
        self.check_place(&dir).await?;
        let name = match (&folder, &request.name) {
            (Some(folder), _) => folder.name.clone(),
            (None, Some(name)) => name.clone(),
            (None, None) => dir.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        };
        check_name(&name)?;
        let id = folder.as_ref().map_or_else(|| FolderId(rand::random()), |folder| folder.id);
        let mut bound = self.survey(dir.clone(), request.symlinks).await?;
        bound.name = name.clone();
        bound.id = folder.as_ref().map(|folder| folder.id);
        if folder.is_some() && request.mode.writes() {
            self.count_arriving(id, &dir, &mut bound).await?;
        }
        if request.mode.reads() && bound.needed_bytes > 0 {
            let space = self.shared.store.check_space(bound.needed_bytes).await;
            space.map_err(|error| {
                FolderError::Refused(format!(
                    "the directory has {} bytes in {} files, and the store keeps a copy of each: \
                     {error}",
                    bound.bytes, bound.files
                ))
            })?;
        }
        if request.dry_run {
            return Ok(bound);
        }
        let BindRequest { mode, keep, symlinks, .. } = request;
        let binding = Binding { folder: id, dir, mode, keep, symlinks };
        let new_name = folder.is_none().then_some(name);
        let stored = self.begin(binding, new_name).await?;
        self.ask(|reply| Request::Start(Box::new(stored), reply)).await?;
        bound.id = Some(id);
        Ok(bound)
    }

    /// Binds a directory, all or nothing: the binding, the marker, and of a new folder its record.
    async fn begin(&self, binding: Binding, new_name: Option<String>) -> Result<StoredBinding> {
        let (folder, dir, mark) =
            (binding.folder, binding.dir.clone(), binding.mark(self.shared.me));
        let db = self.shared.db.clone();
        let stored = blocking(move || db.begin(binding)).await?;
        if let Err(error) = blocking(move || Ok(Root::mark(&dir, mark))).await? {
            self.shared.take_back(stored).await?;
            return Err(refused(error));
        }
        if let Some(name) = new_name
            && let Err(error) = self.shared.journal.create(folder, &name).await
        {
            let settled = self.shared.settle_begun(stored).await?;
            return settled.ok_or_else(|| temporary(error));
        }
        let (db, id) = (self.shared.db.clone(), stored.id);
        blocking(move || Ok(db.finish(id)?)).await?;
        Ok(StoredBinding { is_begun: false, ..stored })
    }

    /// Refuses a directory that overlaps with another bound one or with the agent's own files.
    async fn check_place(&self, dir: &Path) -> Result<()> {
        let home = self.shared.home.clone();
        let own = blocking(move || {
            let own = [home.state_dir().to_owned(), home.store_dir()];
            Ok(own.map(|dir| std::fs::canonicalize(&dir).unwrap_or(dir)))
        });
        let shown = dir.display();
        for own in own.await? {
            if own.starts_with(dir) || dir.starts_with(&own) {
                return Err(FolderError::Refused(format!(
                    "{shown} overlaps with {}, where can-sync keeps its own files: bind another \
                     directory",
                    own.display()
                )));
            }
        }
        for bound in self.bindings().await? {
            let other = &bound.binding.dir;
            if other == dir {
                return Err(FolderError::Refused(format!("{shown} is bound to a folder already")));
            }
            if other.starts_with(dir) || dir.starts_with(other) {
                return Err(FolderError::Refused(format!(
                    "{shown} overlaps with {}, which is bound to a folder: bind one of them only",
                    other.display()
                )));
            }
        }
        Ok(())
    }

    /// What is in a directory, and what it costs to bind it.
    async fn survey(&self, dir: PathBuf, symlinks: bool) -> Result<Bound> {
        let store_dir = self.shared.staging_dir.clone();
        let surveyed = blocking(move || {
            let mut bound = Bound { dir: dir.to_string_lossy().into_owned(), ..Bound::default() };
            if !dir.exists() {
                return Ok(Ok(bound));
            }
            let root = match Root::open_unmarked(&dir) {
                Ok(root) => root,
                Err(error) => return Ok(Err(error)),
            };
            let rules = Rules::load(&root).context("reading .cansyncignore")?;
            let shares_blocks = root.traits(&store_dir).is_ok_and(|traits| traits.can_reflink);
            let (mut files, mut bytes, mut skipped) = (0, 0, SkipCount::default());
            root.scan(None, &rules, None, &mut |scanned| {
                match scanned {
                    Scanned::Entry(path, seen) => match seen.kind {
                        SeenKind::Symlink if !symlinks => {
                            skipped.add(super::scan::LINKS, path.to_text());
                        }
                        _ => {
                            files += 1;
                            bytes += seen.size_bytes;
                        }
                    },
                    Scanned::Skipped(path, skip) => super::scan::count(&mut skipped, &path, &skip),
                    Scanned::EmptyDirectory(..) | Scanned::Leftover(_) => {}
                }
                ControlFlow::Continue(())
            })?;
            bound.needed_bytes = if shares_blocks { 0 } else { bytes };
            (bound.files, bound.bytes, bound.shares_blocks) = (files, bytes, shares_blocks);
            bound.skipped = skipped.told();
            Ok(Ok(bound))
        });
        surveyed.await?.map_err(refused)
    }

    /// Counts what the folder brings to a directory, and what is in both. Refuses what will not fit.
    async fn count_arriving(&self, folder: FolderId, dir: &Path, bound: &mut Bound) -> Result<()> {
        let mut after = None;
        loop {
            let page = self.shared.journal.versions(folder, after, PAGE).await?;
            let dir = dir.to_owned();
            let counted = blocking(move || {
                let (mut arriving, mut arriving_bytes, mut in_both) = (0, 0, 0);
                let root = if dir.exists() { Some(Root::open_unmarked(&dir)?) } else { None };
                for row in page.rows {
                    let Content::File { size_bytes, .. } = row.version.content else { continue };
                    let there = root.as_ref().and_then(|root| root.stat(&row.version.path).ok());
                    match there.flatten() {
                        Some(_) => in_both += 1,
                        None => {
                            arriving += 1;
                            arriving_bytes += size_bytes;
                        }
                    }
                }
                Ok((arriving, arriving_bytes, in_both, page.next))
            });
            let (arriving, arriving_bytes, in_both, next) = counted.await?;
            bound.arriving_files += arriving;
            bound.arriving_bytes += arriving_bytes;
            bound.in_both += in_both;
            after = next;
            if after.is_none() {
                break;
            }
        }
        let (dir, needed_bytes) = (dir.to_owned(), bound.arriving_bytes);
        let free_bytes = blocking(move || {
            // Of a directory that is not made yet, the one that it will be in.
            let there = dir.ancestors().find(|dir| dir.exists()).unwrap_or(&dir);
            let disk = rustix::fs::statvfs(there).context("asking for the free space")?;
            Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
        });
        let free_bytes = free_bytes.await?;
        if needed_bytes > free_bytes {
            return Err(FolderError::Refused(format!(
                "the folder brings {needed_bytes} bytes in {} files, and the disk of {} has {free_bytes} \
                 bytes free: free some space, or join it on another disk",
                bound.arriving_files, bound.dir
            )));
        }
        Ok(())
    }

    /// Ends a binding. The directory stays as it is, but for its marker.
    pub async fn remove(&self, folder: &str) -> Result<FolderView> {
        let folder = self.find(folder).await?;
        let Some(bound) = self.bound(folder.id).await? else { return Err(not_bound(&folder)) };
        let was = self.ask(|reply| Request::Remove(folder.id, reply)).await?;
        if !was {
            return Err(not_bound(&folder));
        }
        let mark = bound.binding.mark(self.shared.me);
        // A directory that is not there keeps its marker, which does no harm.
        blocking(move || Ok(Root::unmark(&bound.binding.dir, mark).is_ok())).await?;
        self.view(folder, None).await
    }
}

fn check_name(name: &str) -> Result<()> {
    if name.trim().is_empty() || name.len() > NAME_BYTES_MAX {
        let text = format!("a folder's name has 1 to {NAME_BYTES_MAX} bytes, got {name:?}");
        return Err(FolderError::Invalid(text));
    }
    Ok(())
}

fn refused(error: RootError) -> FolderError {
    FolderError::Refused(match &error {
        RootError::OtherFolder { dir, found } => format!(
            "{} belongs to the folder {found} already: `can-sync folder join {found} DIR`, or remove \
             the file {MARKER} in it if that folder is gone",
            dir.display()
        ),
        RootError::OtherDevice { .. } => format!(
            "{error}: two devices that keep one directory in step would take each other's work for \
             yours. Bind another directory, or remove the file {MARKER} in it if that device does \
             not use it any more"
        ),
        _ => error.to_string(),
    })
}
