//! Deletes the copies here of which enough other devices have promised theirs.
//!
//! E1  An intent is durable before a device is asked, and ends when the outcome is known. One that
//!     a crash leaves is settled by the next start, before anything is promised.
//! E2  A copy is deleted only while enough leases run. The store checks that in the transaction
//!     that deletes.
//! E4  The content of a file of a bound folder is not evicted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::Notify;
use tokio::task::spawn_blocking;

use super::blocking;
use super::judge::Judge;
use crate::clock::{boot_ms, wall_ms};
use crate::core::engine::Input;
use crate::core::ids::{Digest, Hash, NodeId};
use crate::core::leases::Promised;
use crate::folders::handle::Folders;
use crate::state::copies::Copies;
use crate::store::{Permit, Store};

/// Deletes copies here.
pub(crate) struct Evictor<F> {
    pub(crate) store: Arc<dyn Store>,
    /// Whether contents may be deleted: the store is this agent's own.
    pub(crate) can_evict: bool,
    pub(crate) copies: Copies,
    pub(crate) folders: Folders,
    pub(crate) judge: Judge<F>,
    /// Makes the catalogue list the store.
    pub(crate) nudge: Arc<Notify>,
}

impl<F: From<Input>> Evictor<F> {
    /// Begins evictions, see E1. Returns for each asset, in their order, why it cannot be evicted, if so. A
    /// dry run writes nothing.
    ///
    /// # Errors
    /// The bound folders or `copies.db` failed, in words.
    pub(super) async fn begin(
        &self,
        digests: &[Digest],
        dry_run: bool,
        name: impl Fn(&NodeId) -> String,
    ) -> Result<Vec<Result<(), String>>, String> {
        let hashes: Vec<Hash> = digests.iter().map(|digest| digest.hash).collect();
        let used = self.folders.uses(hashes.iter().copied().collect()).await;
        let used = used.map_err(|error| format!("looking at the bound folders: {error}"))?;
        let free: Vec<Hash> = hashes.iter().copied().filter(|h| !used.contains_key(h)).collect();
        let copies = self.copies.clone();
        let asked = free.clone();
        let begin = move || match dry_run {
            true => copies.could_begin(&asked, boot_ms()),
            false => copies.begin_evictions(asked, boot_ms(), wall_ms()),
        };
        let begun = blocking(begin).await;
        let begun = begun.map_err(|error| format!("writing down the intent: {error}"))?;
        let mut begun: BTreeMap<Hash, Result<(), Promised>> = free.into_iter().zip(begun).collect();
        let answer = |hash: &Hash| match (used.get(hash), begun.remove(hash)) {
            (Some(path), _) => Err(format!("the bound folders here need it: {path}")),
            (None, Some(Err(promised))) => Err(Self::promised(promised, &name(&promised.device))),
            (None, _) => Ok(()),
        };
        Ok(hashes.iter().map(answer).collect())
    }

    fn promised(promised: Promised, name: &str) -> String {
        let minutes = promised.until_ms.saturating_sub(boot_ms()).div_ceil(60_000);
        format!("{name} relies on the copy here for another {minutes} min: try again then")
    }

    /// Deletes the contents of the given assets, each before its time in ms, see E2. Returns the deleted
    /// ones, and why the others were not deleted.
    pub(super) async fn delete(
        &self,
        may_go: &BTreeMap<Hash, u64>,
    ) -> (BTreeSet<Hash>, Option<String>) {
        let Some(before_ms) = may_go.values().min().copied() else { return Default::default() };
        let hashes = may_go.keys().copied().collect();
        self.delete_if(hashes, Box::new(move || boot_ms() < before_ms)).await
    }

    /// Deletes the contents of the given assets if `permit` says so at the last moment. Returns the deleted
    /// ones, and why the others were not deleted.
    pub(super) async fn delete_if(
        &self,
        hashes: BTreeSet<Hash>,
        permit: Permit,
    ) -> (BTreeSet<Hash>, Option<String>) {
        let deleted = self.judge.delete(&*self.store, hashes.clone(), permit).await;
        if !deleted.as_ref().is_ok_and(|gone| gone.len() == hashes.len()) {
            self.nudge.notify_one();
        }
        match deleted {
            Ok(gone) => {
                let why = "it was damaged, or the proofs were too old by then: try again";
                (gone.into_iter().collect(), Some(why.to_owned()))
            }
            Err(error) => {
                tracing::warn!("deleting evicted contents: {error:#}");
                // The store may have committed the deletion before it failed.
                let mut gone = BTreeSet::new();
                for hash in hashes {
                    if let Ok(Some(asset)) = self.store.lookup(hash).await
                        && asset.is_evicted
                    {
                        gone.insert(hash);
                    }
                }
                (gone, Some(format!("{error:#}")))
            }
        }
    }

    /// Ends the intents of evictions. The assets in `gone` count as evicted, the others as kept.
    pub(super) async fn end(&self, hashes: &[Hash], gone: &BTreeSet<Hash>) {
        let ended = hashes.iter().map(|hash| (*hash, !gone.contains(hash))).collect();
        let copies = self.copies.clone();
        if let Err(error) = blocking(move || copies.end_evictions(ended, wall_ms())).await {
            tracing::warn!(%error, "ending an eviction: the next start does it");
        }
    }
}

/// Settles evictions that a crash interrupted, before anything is promised; see E1.
///
/// # Errors
/// The store or the database failed: the caller must not promise anything.
pub(crate) async fn restart(copies: &Copies, store: &dyn Store) -> anyhow::Result<()> {
    let reading = copies.clone();
    let intents = spawn_blocking(move || reading.intents()).await??;
    let mut settled = Vec::with_capacity(intents.len());
    for hash in intents {
        let is_gone = store.lookup(hash).await?.is_some_and(|asset| asset.is_evicted);
        tracing::info!(%hash, is_gone, "an eviction was interrupted");
        settled.push((hash, !is_gone));
    }
    let writing = copies.clone();
    spawn_blocking(move || writing.restart_leases(settled, boot_ms(), wall_ms())).await??;
    Ok(())
}
