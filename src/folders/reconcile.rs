//! Reconciles paths: what is in the directory, what was last equal, and what is in the journal. Decides
//! by `core::folder::three_way`, then performs: contents into the store, versions into the journal,
//! versions into the directory, and at last the new bases.
//!
//! R1  The order makes every crash harmless: a content is in the store before its version is in the
//!     journal, and a base is recorded after the disk and the journal hold what it says. What is about
//!     to be written is noted before, see `under_way`. Whatever is repeated finds its work done.
//! R2  Nothing is written, here or there, while the binding is paused or held.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use bytes::Bytes;

use super::apply::{self, Ended, ToPlace};
use super::db::{Became, UnderWay};
use super::disk::Seen;
use super::driver::Driver;
use super::guard::Counted;
use super::ingest::{self, NotStored, ToStore};
use super::look::{Disk, Look, Looker, Unusable};
use super::order::in_safe_order;
use super::shared::blocking;
use crate::clock::wall_ms;
use crate::core::folder::brake::Source;
use crate::core::folder::path::FolderPath;
use crate::core::folder::resolve::make_way;
use crate::core::folder::three_way::{Action, DiskSays, Edit, decide};
use crate::core::folder::version::{Content, Version};
use crate::core::ids::NodeId;
use crate::replica::folders::{FileChange, FileRow};

/// The most paths that are reconciled at once.
pub(super) const ROUND_PATHS: usize = 512;

/// An edit in the directory that is to be written to the journal.
struct Written {
    path: FolderPath,
    edit: Edit,
    /// Set for a base that the journal has forgotten: the device that wrote it, by its name then. Such a
    /// version is written as it is, because its conflict name must be the same on every device.
    base_of: Option<String>,
    seen: Option<Seen>,
    bytes: Option<Bytes>,
    /// The content that was at the path before.
    was: Option<Content>,
}

/// A version that is to be brought to the directory.
struct Brought {
    item: ToPlace,
    was: Option<Content>,
    from: NodeId,
    changed_at_ms: u64,
}

/// The changes that one round makes.
#[derive(Default)]
struct Plan {
    writes: Vec<Written>,
    brings: Vec<Brought>,
    /// Edits in a directory that only shows the folder: keep them beside.
    asides: Vec<(FolderPath, Seen, Version)>,
    /// Bases that the journal may have forgotten, and that no write of this plan tells it.
    keeps: Vec<Version>,
    became: Vec<(FolderPath, Became)>,
}

impl Plan {
    /// The changes that the brake counts, to hold back very many at once.
    fn counted(&self) -> Vec<Counted<'_>> {
        let here = self.writes.iter().map(|write| Counted {
            path: &write.path,
            was: write.was.as_ref(),
            now: &write.edit.content,
            by: Source::Disk,
            changed_at_ms: 0,
        });
        let there = self.brings.iter().map(|bring| Counted {
            path: &bring.item.path,
            was: bring.was.as_ref(),
            now: &bring.item.version.content,
            by: Source::Device(bring.from),
            changed_at_ms: bring.changed_at_ms,
        });
        here.chain(there).collect()
    }

    /// The paths that are about to be written.
    fn under_way(&self) -> Vec<UnderWay> {
        let edits = self.writes.iter().filter(|write| write.base_of.is_none());
        let edits = edits.map(|Written { path, edit, .. }| UnderWay {
            version: Version {
                path: path.clone(),
                content: edit.content.clone(),
                vector: edit.vector.clone(),
                device_name: String::new(),
            },
            is_edit: true,
        });
        let brought = self.brings.iter().map(|bring| &bring.item.version);
        let brought = brought.chain(self.asides.iter().map(|(_, _, version)| version));
        let brought = brought.map(|version| UnderWay { version: version.clone(), is_edit: false });
        edits.chain(brought).collect()
    }
}

impl Driver {
    /// Reconciles these paths and those that hang together with them.
    pub(super) async fn reconcile(&mut self, paths: Vec<FolderPath>) -> Result<()> {
        if paths.is_empty() {
            return Ok(());
        }
        let root = self.root.clone().context("the directory is not open")?;
        let (rules, db, id) = (self.rules.clone(), self.shared.db.clone(), self.id);
        let (symlinks, folding) = (self.binding.symlinks, self.folding);
        let algorithm = self.shared.algorithm()?;
        let looker = (root.clone(), rules, db);
        let (mut queue, is_whole) = blocking({
            let (root, rules, db) = looker.clone();
            move || {
                Looker { root: &root, rules: &rules, db: &db, id, symlinks, folding, algorithm }
                    .with_relatives(paths)
            }
        })
        .await?;
        if !is_whole {
            self.scan_soon();
        }
        while !queue.is_empty() {
            let (root, rules, db) = looker.clone();
            let (looks, rest) = blocking(move || {
                let looker = Looker {
                    root: &root,
                    rules: &rules,
                    db: &db,
                    id,
                    symlinks,
                    folding,
                    algorithm,
                };
                let looks = looker.look(&mut queue, ROUND_PATHS)?;
                Ok((looks, queue))
            })
            .await?;
            queue = rest;
            self.round(looks).await?;
        }
        Ok(())
    }

    async fn round(&mut self, looks: Vec<Look>) -> Result<()> {
        if looks.is_empty() || self.is_idle() {
            return Ok(());
        }
        let paths = looks.iter().map(|look| look.path.clone()).collect();
        let rows = self.shared.journal.versions_at(self.binding.folder, paths).await?;
        let mut plan = Plan::default();
        for (look, row) in looks.into_iter().zip(rows) {
            self.judge(look, row, &mut plan);
        }
        if let Some(source) = self.over_limit(&plan.counted()).await? {
            return self.hold(source).await;
        }
        if !plan.writes.is_empty() || !plan.brings.is_empty() || !plan.asides.is_empty() {
            let root = self.root.clone().context("the directory is not open")?;
            let (db, id, under_way) = (self.shared.db.clone(), self.id, plan.under_way());
            blocking(move || {
                root.check().map_err(Unusable)?;
                db.note_under_way(id, under_way).context("writing folders.db")
            })
            .await?;
        }
        let Plan { writes, brings, asides, keeps, mut became } = plan;
        if !keeps.is_empty() {
            self.shared.journal.keep(self.binding.folder, keeps).await?;
        }
        self.write(writes, &mut became).await?;
        let mut brings: Vec<ToPlace> = brings.into_iter().map(|bring| bring.item).collect();
        self.set_aside(asides, &mut brings).await?;
        self.bring(brings, &mut became).await?;
        self.record(became).await
    }

    fn judge(&mut self, look: Look, row: Option<FileRow>, plan: &mut Plan) {
        let Look { path, base, disk } = look;
        let journal = row.as_ref().map(|row| &row.version);
        let is_asked = journal.is_some_and(|journal| !journal.is_absent());
        let (says, seen, bytes) = match disk {
            Disk::Same(seen) => (DiskSays::Base, Some(seen), None),
            Disk::Occupied(seen) => (DiskSays::Occupied, Some(seen), None),
            Disk::Found { seen, content, bytes } => (DiskSays::Content(content), Some(seen), bytes),
            Disk::Gone => (DiskSays::Content(Content::Absent), None, None),
            Disk::Skipped(reason) => {
                self.skip(reason, &path);
                if is_asked {
                    plan.became.push((path, Became::Pending(None)));
                }
                return;
            }
            Disk::Unstable => return self.look_again(path),
            Disk::Failed(why) => {
                self.skip(&format!("cannot be read: {why}"), &path);
                plan.became.push((path, Became::Pending(None)));
                return;
            }
        };
        let action =
            decide(self.binding.mode, base.as_ref().map(|base| &base.version), &says, journal);
        let bases = base.iter().map(|base| &base.version);
        let lost = bases.filter(|base| journal.is_some_and(|next| action.must_keep(base, next)));
        plan.keeps.extend(lost.cloned());
        let was = base.as_ref().map(|base| base.version.content.clone());
        match action {
            Action::Nothing => {
                let became = match (base, seen, &says) {
                    // The file was touched, but its content is the same.
                    (Some(base), Some(seen), DiskSays::Content(content))
                        if content.is_like(&base.version.content) =>
                    {
                        Became::Equal(base.version, seen)
                    }
                    _ => Became::Left,
                };
                plan.became.push((path, became));
            }
            Action::Adopt => {
                let became = match (row, seen) {
                    (Some(row), Some(seen)) if !row.version.is_absent() => {
                        Became::Equal(row.version, seen)
                    }
                    _ => Became::Gone,
                };
                plan.became.push((path, became));
            }
            Action::Touch | Action::Apply => {
                let Some(FileRow { version, device, changed_at_ms, .. }) = row else { return };
                if matches!(version.content, Content::Symlink { .. }) && !self.binding.symlinks {
                    self.skip("symbolic links of the folder (bind it with --symlinks)", &path);
                    plan.became.push((path, Became::Left));
                    return;
                }
                let item = ToPlace { path, version, expected: seen };
                plan.brings.push(Brought { item, was, from: device, changed_at_ms });
            }
            Action::Write(edit) => {
                plan.writes.push(Written { path, edit, base_of: None, seen, bytes, was });
            }
            Action::WriteBase => {
                let Some(base) = base else { return };
                let Version { content, vector, device_name, .. } = base.version;
                let edit = Edit { content, vector, before: None };
                let base_of = Some(device_name);
                plan.writes.push(Written { path, edit, base_of, seen, bytes: None, was });
            }
            Action::SetAside => {
                let (Some(row), Some(seen)) = (row, seen) else { return };
                if says == DiskSays::Occupied {
                    self.skip("a directory with files is in the way", &path);
                    plan.became.push((path, Became::Pending(None)));
                    return;
                }
                plan.asides.push((path, seen, row.version));
            }
            Action::LeaveExtra => {
                self.skip("only in this directory, which shows the folder (mode out)", &path);
                plan.became.push((path, Became::Left));
            }
            Action::Hold => {
                self.skip("written by a later version of can-sync: update this device", &path);
                plan.became.push((path, Became::Left));
            }
        }
    }

    /// Writes edits to the journal, their contents before that to the store.
    async fn write(
        &mut self,
        mut writes: Vec<Written>,
        became: &mut Vec<(FolderPath, Became)>,
    ) -> Result<()> {
        if writes.is_empty() {
            return Ok(());
        }
        let root = self.root.clone().context("the directory is not open")?;
        let contents: Vec<ToStore> = writes
            .iter()
            .map(|write| ToStore {
                path: write.path.clone(),
                seen: write.seen,
                // The asset of a base was stored with it.
                content: if write.base_of.is_some() {
                    Content::Absent
                } else {
                    write.edit.content.clone()
                },
                bytes: write.bytes.clone(),
            })
            .collect();
        let stored = ingest::store(&self.shared, &root, &contents).await?;
        drop(contents);
        let mut failed = None;
        let mut stored = stored.into_iter();
        writes.retain(|write| match stored.next() {
            Some(Ok(())) | None => true,
            Some(Err(NotStored::Unstable)) => {
                self.look_again(write.path.clone());
                false
            }
            Some(Err(NotStored::Why(why))) => {
                failed = Some(why);
                became.push((write.path.clone(), Became::Pending(None)));
                false
            }
        });
        self.problem("store", failed.map(|why| format!("files wait to be stored: {why}")));
        in_safe_order(&mut writes, |write| (&write.path, write.edit.content == Content::Absent));
        let (bases, edits): (Vec<Written>, Vec<Written>) =
            writes.into_iter().partition(|write| write.base_of.is_some());
        self.write_versions(bases, true, became).await?;
        self.write_versions(edits, false, became).await
    }

    /// Writes versions to the journal: as changes of this device, or as they are.
    async fn write_versions(
        &mut self,
        writes: Vec<Written>,
        as_they_are: bool,
        became: &mut Vec<(FolderPath, Became)>,
    ) -> Result<()> {
        if writes.is_empty() {
            return Ok(());
        }
        let changes = writes.iter().map(|write| {
            let mut change = change(&write.path, &write.edit);
            change.version.device_name = write.base_of.clone().unwrap_or_default();
            change
        });
        let changes = changes.collect();
        let (journal, folder) = (&self.shared.journal, self.binding.folder);
        let versions = match as_they_are {
            true => journal.write_as_they_are(folder, changes).await,
            false => journal.write(folder, changes).await,
        };
        let versions = match versions {
            Ok(versions) => {
                self.problem("journal", None);
                versions
            }
            Err(error) => {
                self.problem("journal", Some(format!("changes wait to be recorded: {error}")));
                became.extend(writes.into_iter().map(|w| (w.path, Became::Pending(None))));
                return Ok(());
            }
        };
        for (write, version) in writes.into_iter().zip(versions) {
            let is_new = write.was.is_none();
            let end = match write.seen {
                Some(seen) if !version.is_absent() => Became::Equal(version, seen),
                _ => Became::Gone,
            };
            self.count_file(is_new, &end);
            became.push((write.path, end));
        }
        Ok(())
    }

    /// Keeps edits in a directory that only shows the folder under another name, which is not synced.
    async fn set_aside(
        &mut self,
        asides: Vec<(FolderPath, Seen, Version)>,
        brings: &mut Vec<ToPlace>,
    ) -> Result<()> {
        for (path, seen, version) in asides {
            let root = self.root.clone().context("the directory is not open")?;
            let from = path.clone();
            let set = blocking(move || {
                let to = apply::aside(&from, wall_ms());
                Ok(to.is_some_and(|to| root.set_aside(&from, &to, &seen).is_ok()))
            });
            if set.await? {
                brings.push(ToPlace { path, version, expected: None });
            } else {
                self.look_again(path);
            }
        }
        Ok(())
    }

    /// Brings versions to the directory.
    async fn bring(
        &mut self,
        mut brings: Vec<ToPlace>,
        became: &mut Vec<(FolderPath, Became)>,
    ) -> Result<()> {
        if brings.is_empty() {
            return Ok(());
        }
        let root = self.root.clone().context("the directory is not open")?;
        in_safe_order(&mut brings, |item| (&item.path, item.version.is_absent()));
        let ended = apply::place(&self.shared, &root, self.binding.keep, brings).await?;
        let mut emptied = BTreeSet::new();
        for (item, end) in ended {
            let ToPlace { path, version, expected } = item;
            let end = match end {
                Ended::Done(seen) => placed(version, seen),
                Ended::Displaced(seen, edit) => {
                    self.take_displaced(&path, edit).await?;
                    placed(version, seen)
                }
                Ended::Missing(hash) => Became::Pending(Some(hash)),
                Ended::Changed => {
                    self.look_again(path.clone());
                    Became::Pending(None)
                }
                Ended::Blocked => {
                    self.make_way(&path, &version).await?;
                    Became::Pending(None)
                }
                Ended::Failed(why) => {
                    self.skip(&format!("cannot be written: {why}"), &path);
                    Became::Pending(None)
                }
            };
            if matches!(end, Became::Gone) {
                emptied.extend(path.parent());
            }
            self.count_file(expected.is_none(), &end);
            became.push((path, end));
        }
        self.remove_empty(emptied).await
    }

    /// Removes directories that are empty now and are not empty directories of the folder.
    async fn remove_empty(&mut self, mut dirs: BTreeSet<FolderPath>) -> Result<()> {
        // The innermost is the last.
        while let Some(dir) = dirs.pop_last() {
            let rows =
                self.shared.journal.versions_at(self.binding.folder, vec![dir.clone()]).await?;
            if rows.into_iter().flatten().any(|row| row.version.content == Content::Directory) {
                continue;
            }
            let root = self.root.clone().context("the directory is not open")?;
            let is_removed = blocking({
                let dir = dir.clone();
                move || Ok(root.remove_empty_directory(&dir).unwrap_or(false))
            });
            if is_removed.await? {
                dirs.extend(dir.parent());
            }
        }
        Ok(())
    }

    /// A file of the folder stands where another path of the folder needs a directory: the file gets
    /// its conflict name.
    async fn make_way(&mut self, path: &FolderPath, version: &Version) -> Result<()> {
        let mut above = Vec::new();
        let mut next = path.parent();
        while let Some(dir) = next {
            next = dir.parent();
            above.push(dir);
        }
        let folder = self.binding.folder;
        let rows = self.shared.journal.versions_at(folder, above).await?;
        let is_file =
            |content: &Content| matches!(content, Content::File { .. } | Content::Symlink { .. });
        let file_above = rows.into_iter().flatten().find(|row| is_file(&row.version.content));
        let in_the_way = match file_above {
            Some(row) => row.version,
            // The path itself is a file, and the directory in its place has files of the folder.
            None if is_file(&version.content) && self.has_below(path).await? => version.clone(),
            None => {
                self.skip("something that is not synced is in the way", path);
                return Ok(());
            }
        };
        let [copy, removal] = make_way(&in_the_way);
        let changes = vec![
            FileChange { version: copy, before: None, is_undo: false },
            FileChange { version: removal, before: Some(in_the_way), is_undo: false },
        ];
        let written = self.shared.journal.write_as_they_are(folder, changes).await;
        if let Err(error) = written {
            self.problem("journal", Some(format!("changes wait to be recorded: {error}")));
        }
        Ok(())
    }

    /// Whether the folder has files below this path.
    async fn has_below(&self, path: &FolderPath) -> Result<bool> {
        let (db, id, path) = (self.shared.db.clone(), self.id, path.clone());
        blocking(move || Ok(!db.below(id, &path, None, 1)?.is_empty())).await
    }

    pub(super) async fn record(&mut self, became: Vec<(FolderPath, Became)>) -> Result<()> {
        if became.is_empty() {
            return Ok(());
        }
        self.shared.reports.change(self.binding.folder, |report| {
            for (path, became) in &became {
                if matches!(became, Became::Equal(..) | Became::Gone) {
                    report.done(path);
                }
            }
        });
        let (db, id, folding) = (self.shared.db.clone(), self.id, self.folding);
        let pendings = blocking(move || {
            db.record(id, became, folding).context("writing folders.db")?;
            Ok(db.pendings(id)?)
        });
        self.note_pending(pendings.await?);
        Ok(())
    }

    fn count_file(&mut self, is_new: bool, end: &Became) {
        match end {
            Became::Equal(..) if is_new => self.files += 1,
            Became::Gone => self.files = self.files.saturating_sub(1),
            Became::Equal(..) | Became::Pending(_) | Became::Left => {}
        }
    }
}

/// An edit as the journal takes it, which adds the counter and the name of this device.
pub(super) fn change(path: &FolderPath, edit: &Edit) -> FileChange {
    let Edit { content, vector, before } = edit.clone();
    let version = Version { path: path.clone(), content, vector, device_name: String::new() };
    FileChange { version, before, is_undo: false }
}

fn placed(version: Version, seen: Option<Seen>) -> Became {
    match seen {
        Some(seen) if !version.is_absent() => Became::Equal(version, seen),
        _ => Became::Gone,
    }
}
