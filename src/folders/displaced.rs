//! Edits that were made in the moment in which a version was brought to the directory. The exchange of
//! the two files moved them out of the directory.
//!
//! T1  It is released only after its content is in the store and its version in the journal.

use anyhow::{Context as _, Result};

use super::disk::Displaced;
use super::driver::Driver;
use super::ingest::{self, NotStored, ToStore};
use super::look;
use super::reconcile::change;
use super::shared::blocking;
use crate::core::folder::path::FolderPath;
use crate::core::folder::three_way::Edit;

impl Driver {
    /// Takes in what was written to something after it was replaced. Of what an earlier run kept it is
    /// not known whether it was written to: it is safe if the store holds it.
    pub(super) async fn take_leftover(&mut self, leftover: Displaced, is_old: bool) -> Result<()> {
        let folder = self.binding.folder;
        let row = self.shared.journal.version_of_key(folder, leftover.key).await?;
        match row {
            Some(_) if is_old && self.is_safe(&leftover).await? => {
                if let Some(root) = self.root.clone() {
                    blocking(move || {
                        root.release(leftover);
                        Ok(())
                    })
                    .await?;
                }
                Ok(())
            }
            Some(row) => self.take_displaced(&row.version.path, leftover).await,
            None => {
                let text = format!(
                    "{} holds the content of a path that the folder does not know",
                    leftover.kept
                );
                self.problem("kept", Some(text));
                Ok(())
            }
        }
    }

    /// Whether the store holds what is kept.
    async fn is_safe(&self, leftover: &Displaced) -> Result<bool> {
        let root = self.root.clone().context("the directory is not open")?;
        let (kept, seen) = (leftover.kept.clone(), leftover.seen);
        let algorithm = self.shared.algorithm()?;
        let read = blocking(move || Ok(look::content_of(&root, &kept, &seen, algorithm).ok()));
        let Some((content, _)) = read.await? else { return Ok(false) };
        let Some(hash) = ingest::hash(&content) else { return Ok(false) };
        let found = self.shared.store.lookup(hash).await;
        Ok(found.is_ok_and(|asset| asset.is_some_and(|asset| asset.is_held())))
    }

    /// Takes in what the user wrote in the moment in which a version was brought to the directory: an
    /// edit of what was there before.
    pub(super) async fn take_displaced(
        &mut self,
        path: &FolderPath,
        edit: Displaced,
    ) -> Result<()> {
        let root = self.root.clone().context("the directory is not open")?;
        let (db, id, algorithm) = (self.shared.db.clone(), self.id, self.shared.algorithm()?);
        let (kept, seen, at) = (edit.kept.clone(), edit.seen, path.clone());
        let read = blocking({
            let root = root.clone();
            move || {
                let base = db.bases(id, &[at])?.pop().flatten();
                Ok((base, look::content_of(&root, &kept, &seen, algorithm)))
            }
        });
        let (base, read) = read.await?;
        let Ok((content, bytes)) = read else {
            // A process still writes to the file: a later round handles it.
            root.release(edit);
            return Ok(());
        };
        let before = base.map(|base| base.version);
        let item = ToStore {
            path: edit.kept.clone(),
            seen: Some(edit.seen),
            content: content.clone(),
            bytes,
        };
        let stored = ingest::store(&self.shared, &root, &[item]).await?.pop();
        if let Some(Err(NotStored::Why(why))) = stored {
            // It stays where it is kept, and the next start finds it.
            self.problem(
                "kept",
                Some(format!("an edit is kept in {} until it can be stored: {why}", edit.kept)),
            );
            return Ok(());
        }
        let vector = before.as_ref().map(|before| before.vector.clone()).unwrap_or_default();
        let change = change(path, &Edit { content, vector, before });
        match self.shared.journal.write(self.binding.folder, vec![change]).await {
            Ok(_) => root.release(edit),
            Err(error) => self.problem(
                "kept",
                Some(format!("an edit is kept in {} until it can be recorded: {error}", edit.kept)),
            ),
        }
        Ok(())
    }
}
