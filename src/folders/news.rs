//! Brings to the directory what is new outside of it: changes of the journal, and contents that
//! arrived. What could not be brought is tried again.

use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;

use super::db::Pendings;
use super::driver::Driver;
use super::quiet::RETRY_FIRST;
use super::reconcile::ROUND_PATHS;
use super::shared::blocking;
use crate::core::folder::path::FolderPath;
use crate::core::ids::{FolderId, Hash};
use crate::core::units::counted;

/// How often what could not be brought to the directory is tried again at last.
const RETRY_LAST: Duration = Duration::from_secs(60);

/// How long the cursor waits to be written down, so that a live change does not wait for the disk once
/// more.
const SAVE_CURSOR_AFTER: Duration = Duration::from_secs(1);

/// Assets of the index that are compared with what is missing, at once.
const ARRIVED_MAX: usize = 4096;

impl Driver {
    /// Tries again what could not be brought to the directory.
    pub(super) async fn retry(&mut self) -> Result<()> {
        self.retry_pause = (self.retry_pause * 2).min(RETRY_LAST);
        self.retry_at = Some(Instant::now() + self.retry_pause);
        let mut after = None;
        loop {
            let (db, id, from) = (self.shared.db.clone(), self.id, after.clone());
            let paths = blocking(move || Ok(db.to_retry(id, from.as_ref(), ROUND_PATHS)?)).await?;
            let Some(last) = paths.last() else { break };
            after = Some(last.clone());
            self.reconcile(paths).await?;
        }
        self.note_pending(Pendings::of(&self.shared.db, self.id).await?);
        Ok(())
    }

    /// Notes what is pending.
    pub(super) fn note_pending(&mut self, pendings: Pendings) {
        self.has_pending = pendings.any;
        if !pendings.to_retry {
            (self.retry_at, self.retry_pause) = (None, RETRY_FIRST);
        } else if self.retry_at.is_none() {
            self.retry_at = Some(Instant::now() + RETRY_FIRST);
        }
    }

    /// Takes up what is new in the journal.
    pub(super) async fn take_changes(&mut self) -> Result<()> {
        loop {
            if self.is_idle() {
                return Ok(());
            }
            let page = self.shared.journal.changes(self.cursor, ROUND_PATHS).await?;
            if page.is_restart {
                self.check_folder().await?;
                self.compare_bases().await?;
            }
            self.tell_unreadable(&page.unreadable);
            let rows = page.rows.into_iter().filter(|row| row.folder == self.binding.folder);
            let (versions, paths): (Vec<_>, Vec<_>) =
                rows.map(|row| (row.version.clone(), row.version.path)).unzip();
            if !paths.is_empty() && self.binding.mode.writes() {
                let (db, id, asked) = (self.shared.db.clone(), self.id, paths.clone());
                let bases = blocking(move || Ok(db.bases(id, &asked)?)).await?;
                let news = paths.into_iter().zip(versions).zip(bases);
                let news = news.filter_map(|((path, version), base)| {
                    let is_known = match &base {
                        Some(base) => base.version.is_same(&version),
                        None => version.is_absent(),
                    };
                    (!is_known).then_some(path)
                });
                self.reconcile(news.collect()).await?;
                if self.is_idle() {
                    return Ok(());
                }
            }
            if self.cursor != Some(page.cursor) {
                self.cursor = Some(page.cursor);
                self.save_cursor_at.get_or_insert_with(|| Instant::now() + SAVE_CURSOR_AFTER);
            }
            if !page.more {
                return Ok(());
            }
            self.save_cursor().await?;
        }
    }

    /// Writes the cursor down. One that is too old costs a look at what came after it.
    pub(super) async fn save_cursor(&mut self) -> Result<()> {
        self.save_cursor_at = None;
        let Some(cursor) = self.cursor else { return Ok(()) };
        let (db, id) = (self.shared.db.clone(), self.id);
        blocking(move || Ok(db.move_to(id, cursor)?)).await
    }

    /// Reports records that are not versions of paths. If there are very many, the log gets one line.
    fn tell_unreadable(&mut self, records: &[(FolderId, String)]) {
        let mut own = records.iter().filter(|(folder, _)| *folder == self.binding.folder);
        let Some((_, why)) = own.next() else { return };
        let is_first = self.unreadable == 0;
        self.unreadable += 1 + own.count() as u64;
        let text = format!(
            "{} of the folder cannot be read, the first because {why}: update can-sync on all devices",
            counted(self.unreadable, "change", "changes")
        );
        if is_first {
            tracing::warn!(dir = %self.binding.dir.display(), "{text}");
        }
        self.problem("records", Some(text));
    }

    /// Compares all bases with the journal, which may have forgotten some.
    async fn compare_bases(&mut self) -> Result<()> {
        let mut after = 0;
        loop {
            let (db, id) = (self.shared.db.clone(), self.id);
            let page = blocking(move || Ok(db.page(id, after, ROUND_PATHS)?)).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.row;
            let paths = page.iter().map(|base| base.version.path.clone()).collect();
            let rows = self.shared.journal.versions_at(self.binding.folder, paths).await?;
            let differ = page.into_iter().zip(rows).filter(|(base, row)| {
                row.as_ref().is_none_or(|row| !row.version.is_same(&base.version))
            });
            self.reconcile(differ.map(|(base, _)| base.version.path).collect()).await?;
        }
    }

    /// Brings what waited for assets that are here now.
    pub(super) async fn take_arrived(&mut self) -> Result<()> {
        let head = self.shared.index.head();
        let from = match self.arrived {
            Some((epoch, seq)) if epoch == head.epoch => seq,
            // Everything that is missing is compared with the index.
            _ => {
                self.arrived_turn = head.absent.turn;
                return self.look_for_missing(head.epoch, head.seq).await;
            }
        };
        let (mut at, index) = (from, self.shared.index.clone());
        while at < head.seq {
            let (index, after) = (index.clone(), at);
            let page = blocking(move || Ok(index.since(after, head.seq, ARRIVED_MAX)?)).await?;
            let (entries, has_more) = page;
            at = entries.last().map_or(head.seq, |(seq, _)| *seq);
            let hashes: Vec<Hash> = entries.into_iter().map(|(_, hash)| hash).collect();
            if self.has_pending {
                self.bring_waiting(hashes).await?;
            }
            if !has_more {
                break;
            }
        }
        // A hash that the index knew before its content arrived keeps its old sequence number, so
        // the loop above misses it: ask for the arrivals too.
        while self.has_pending && self.arrived_turn < head.absent.turn {
            let (index, after) = (self.shared.index.clone(), self.arrived_turn);
            let page = blocking(move || Ok(index.arrived(after, ARRIVED_MAX)?)).await?;
            let (entries, has_more) = page;
            self.arrived_turn = match has_more {
                true => entries.last().map_or(head.absent.turn, |(turn, _)| *turn),
                false => head.absent.turn,
            };
            self.bring_waiting(entries.into_iter().map(|(_, hash)| hash).collect()).await?;
        }
        if !self.is_behind {
            self.arrived = Some((head.epoch, head.seq));
        }
        Ok(())
    }

    async fn bring_waiting(&mut self, hashes: Vec<Hash>) -> Result<()> {
        let (db, id) = (self.shared.db.clone(), self.id);
        let waiting = blocking(move || Ok(db.waiting_for(id, &hashes, ARRIVED_MAX)?)).await?;
        if waiting.len() == ARRIVED_MAX {
            // Perhaps more wait for the same few contents.
            self.is_behind = true;
            self.arrived = None;
        }
        for paths in waiting.chunks(ROUND_PATHS) {
            self.reconcile(paths.to_vec()).await?;
        }
        Ok(())
    }

    async fn look_for_missing(&mut self, epoch: [u8; 16], seq: u64) -> Result<()> {
        let mut after = None;
        loop {
            let (db, index, id) = (self.shared.db.clone(), self.shared.index.clone(), self.id);
            let from: Option<FolderPath> = after.clone();
            let found = blocking(move || {
                let page = db.pending(id, from.as_ref(), ROUND_PATHS)?;
                let last = page.last().map(|(path, _)| path.clone());
                let missing: Vec<_> =
                    page.into_iter().filter_map(|(path, hash)| Some((path, hash?))).collect();
                let hashes: Vec<Hash> = missing.iter().map(|(_, hash)| *hash).collect();
                let known = index.held(&hashes)?;
                let here = missing.into_iter().zip(known).filter(|(_, is_known)| *is_known);
                Ok((last, here.map(|((path, _), _)| path).collect::<Vec<_>>()))
            });
            let (last, here) = found.await?;
            if last.is_none() {
                break;
            }
            after = last;
            self.reconcile(here).await?;
        }
        self.arrived = Some((epoch, seq));
        Ok(())
    }
}
