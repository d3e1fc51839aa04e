//! Decides which absent assets are wanted here, and writes that into the index.
//!
//! C1  Whoever writes known hashes into the index holds the gate until the engine is told, so that
//!     it hears of numbers in their order (see [`crate::replica::catalogue::Catalogue`]).

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::sync::{Mutex, mpsc};
use tokio::task::spawn_blocking;

use crate::core::copies::{Absence, AbsentPage, AbsentSet, SizedHash};
use crate::core::engine::Input;
use crate::core::ids::{Digest, Hash, NodeId};
use crate::core::peers::ConnId;
use crate::replica::copies::{Keeper, PAGE, sized};
use crate::state::index::{Head, Index};
use crate::store::{Permit, Store};

/// Decides which absent assets are wanted, writes that into the index, and tells the engine.
pub(crate) struct Judge<F> {
    pub(crate) keeper: Keeper,
    pub(crate) index: Index,
    /// The catalogue's gate, see C1.
    pub(crate) gate: Arc<Mutex<()>>,
    /// The queue of the agent's loop.
    pub(crate) inputs: mpsc::Sender<F>,
}

// Derived, it would ask for `F: Clone`.
impl<F> Clone for Judge<F> {
    fn clone(&self) -> Self {
        let (keeper, index) = (self.keeper.clone(), self.index.clone());
        Self { keeper, index, gate: self.gate.clone(), inputs: self.inputs.clone() }
    }
}

impl<F: From<Input>> Judge<F> {
    /// Sends the engine an input; waits while the queue is full. After the end of the loop the input
    /// is dropped.
    pub(crate) async fn send(&self, input: Input) {
        let _ = self.inputs.send(input.into()).await;
    }

    /// Splits assets that are not known here: notes those that are not wanted, and returns the others.
    pub(crate) async fn split(&self, assets: Vec<SizedHash>) -> Result<Vec<Hash>> {
        let verdicts = self.keeper.judge(assets.clone()).await?;
        let (mut wanted, mut unwanted) = (Vec::new(), Vec::new());
        for (asset, verdict) in assets.into_iter().zip(verdicts) {
            match verdict.why {
                Absence::Missing => wanted.push(asset.0),
                Absence::Unwanted => unwanted.push((asset, Absence::Unwanted)),
            }
        }
        if !unwanted.is_empty() {
            let index = self.index.clone();
            let _gate = self.gate.lock().await;
            let noted = spawn_blocking(move || index.note(&unwanted)).await?;
            let noted = noted.context("writing the index")?;
            self.tell(noted.entries, noted.head).await;
        }
        Ok(wanted)
    }

    /// Splits offered assets into those that are wanted, by their place, and tells the engine of the
    /// others.
    pub(crate) async fn offered(&self, conn: ConnId, digests: &[Digest]) -> Vec<bool> {
        if !self.keeper.chooses() {
            return vec![true; digests.len()];
        }
        let assets: Vec<SizedHash> =
            digests.iter().map(|digest| (digest.hash, Some(digest.size_bytes))).collect();
        let split = match self.split(assets).await {
            Ok(wanted) => wanted,
            Err(error) => {
                tracing::error!("judging what another device offers: {error:#}");
                Vec::new()
            }
        };
        let wanted: BTreeSet<Hash> = split.into_iter().collect();
        let is_wanted: Vec<bool> =
            digests.iter().map(|digest| wanted.contains(&digest.hash)).collect();
        let unwanted = digests.iter().filter(|digest| !wanted.contains(&digest.hash));
        let hashes: Vec<Hash> = unwanted.map(|digest| digest.hash).collect();
        if !hashes.is_empty() {
            self.send(Input::Unwanted { conn, hashes }).await;
        }
        is_wanted
    }

    /// Saves which hashes are absent at a peer. Returns the peer's absent set as known now, and whether it
    /// has to be read again from the start.
    pub(crate) async fn take_absent(
        &self,
        peer: NodeId,
        page: AbsentPage,
    ) -> Result<(AbsentSet, bool)> {
        let verdicts = self.keeper.judge(page.absent.clone()).await?;
        let why: Vec<Absence> = verdicts.into_iter().map(|verdict| verdict.why).collect();
        let index = self.index.clone();
        let _gate = self.gate.lock().await;
        let believed = spawn_blocking(move || index.believe(&peer, &page, &why)).await?;
        let believed = believed.context("writing the index")?;
        self.tell(believed.noted.entries, believed.noted.head).await;
        Ok((believed.belief, believed.restarts))
    }

    /// Tells the engine what the index knows now. The gate must be held.
    async fn tell(&self, entries: Vec<(u64, Hash)>, head: Head) {
        let Head { absent, missing, .. } = head;
        self.send(Input::Noted { entries, absent, missing }).await;
    }

    /// Marks assets as absent and not wanted, and deletes their contents. Peers learn of that, and
    /// the set of known hashes stays as it is. Returns the deleted assets. If some are missing from
    /// these, the catalogue has to list the store again.
    pub(super) async fn delete(
        &self,
        store: &dyn Store,
        hashes: BTreeSet<Hash>,
        permit: Permit,
    ) -> Result<Vec<Hash>> {
        let (index, released) = (self.index.clone(), hashes.clone());
        {
            let _gate = self.gate.lock().await;
            let released: Vec<Hash> = released.into_iter().collect();
            let hashes = released.clone();
            let head = spawn_blocking(move || index.release(&released)).await?;
            let head = head.context("writing the index")?;
            self.send(Input::Released { hashes }).await;
            self.tell(Vec::new(), head).await;
        }
        Ok(store.evict(hashes, permit).await?)
    }

    /// Judges assets again that are no longer evicted, or are from now on.
    pub(crate) async fn reconsider(&self, hashes: Vec<Hash>) -> Result<()> {
        // Their sizes are not known to the index.
        self.again(hashes.into_iter().map(|hash| (hash, None)).collect()).await
    }

    /// Judges rows of absent assets again.
    pub(super) async fn again(&self, assets: Vec<SizedHash>) -> Result<()> {
        if assets.is_empty() {
            return Ok(());
        }
        let verdicts = self.keeper.judge(assets.clone()).await?;
        let verdicts: Vec<_> = assets
            .into_iter()
            .zip(verdicts)
            .map(|((hash, _), verdict)| (hash, verdict.why, verdict.copies))
            .collect();
        let index = self.index.clone();
        let _gate = self.gate.lock().await;
        let head = spawn_blocking(move || index.judge(&verdicts)).await?;
        self.tell(Vec::new(), head.context("writing the index")?).await;
        Ok(())
    }

    pub(super) async fn all_again(&self) -> Result<()> {
        let mut after = 0;
        loop {
            let index = self.index.clone();
            let rows = spawn_blocking(move || index.rows(true, after, PAGE)).await?;
            let (rows, more) = rows.context("reading the index")?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.seq;
            self.again(sized(&rows)).await?;
            if !more {
                return Ok(());
            }
        }
    }
}
