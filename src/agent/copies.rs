//! Carries out what the engine decides about copies, and judges absent assets again when the facts
//! of the judgement change.
//!
//! C1  Whoever writes known hashes into the index holds the gate until the engine is told, so that
//!     it hears of numbers in their order (see [`crate::replica::catalogue::Catalogue`]).
//! C2  Every absent asset is judged at the start, after a change of what is wanted, and when the
//!     journal has something new about it; all of them from time to time, if the answer depends on
//!     time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::fact::{Fact, Facts, Reload};
use super::handle::Reply;
use super::parts::Parts;
use super::tasks::Tasks;
use crate::clock::wall_ms;
use crate::core::copies::{Absence, AbsentPage, AbsentSet, SizedHash};
use crate::core::engine::{Effect, Input};
use crate::core::ids::{Digest, Hash, NodeId};
use crate::core::journal::asset::ASSET_MODEL;
use crate::core::limits::HASHES_PER_FRAME_MAX;
use crate::core::peers::ConnId;
use crate::core::want::Want;
use crate::folders::handle::Folders;
use crate::group::internal;
use crate::replica::copies::{Keeper, PAGE, sized};
use crate::replica::journal::JournalHandle;
use crate::state::index::{Epoch, Head, Index, IndexError};
use crate::state::journal::Cursor;
use crate::store::{Permit, Store};

/// How often absent assets are judged again when the answer depends on their age.
const JUDGE_EVERY: Duration = Duration::from_secs(600);

/// As long as nothing else is a reason to judge.
const NEVER: Duration = Duration::from_secs(1 << 32);

/// How often the state of the index is looked at for something to count.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A look takes this part of the time at most.
const LOOK_PART: u32 = 20;

/// The changes of the journal read at a time.
const CHANGES: usize = 256;

/// Performs an effect about copies. `own_epoch` is that of the set in the engine.
pub(super) fn perform(effect: Effect, judge: Judge, own_epoch: Epoch, tasks: &mut Tasks) {
    let (index, facts) = (judge.index.clone(), judge.facts.clone());
    match effect {
        Effect::ReadAbsent { conn, log, after_turn } => {
            tasks.spawn_blocking("index query", move || {
                let page = index.absent_page(log, after_turn, HASHES_PER_FRAME_MAX);
                let page = page.inspect_err(failed).ok();
                facts.blocking_send(Fact::Input(Input::AbsentRead { conn, page }));
            });
        }
        Effect::ReadSizes { conn, hashes } => {
            tasks.spawn_blocking("index query", move || {
                let sizes = index.sizes(&hashes).inspect_err(failed);
                let sizes = sizes.unwrap_or_else(|_| vec![None; hashes.len()]);
                facts.blocking_send(Fact::Input(Input::SizesRead { conn, sizes }));
            });
        }
        Effect::AskMissing { conn, peer, after } => {
            tasks.spawn_blocking("index query", move || {
                let page = index.missing_at(&peer, after, HASHES_PER_FRAME_MAX);
                let page = page.inspect_err(failed);
                let (hashes, next) = page.unwrap_or_default();
                facts.blocking_send(Fact::Input(Input::Missing { conn, hashes, next }));
            });
        }
        Effect::TakeAbsent { conn, peer, page } => {
            tasks.spawn("absent hashes of a peer", async move {
                let (belief, restarts) = match judge.take_absent(peer, *page).await {
                    Ok((belief, restarts)) => (Some(belief), restarts),
                    Err(error) => {
                        tracing::error!("taking up what a device lacks: {error:#}");
                        (None, false)
                    }
                };
                let believed = Input::Believed { conn, peer, belief, restarts };
                judge.facts.send(Fact::Input(believed)).await;
            });
        }
        Effect::Judge { conn, hashes } => {
            tasks.spawn("judge a difference", async move {
                let wanted = judge.split(hashes).await.unwrap_or_else(|error| {
                    tracing::error!("judging what another device has: {error:#}");
                    Vec::new()
                });
                judge.facts.send(Fact::Input(Input::Judged { conn, wanted })).await;
            });
        }
        Effect::Confirm { peer, to_seq, absent } => {
            tasks.spawn_blocking("confirm a holder", move || {
                match index.confirm(&own_epoch, &peer, to_seq, &absent, wall_ms()) {
                    Ok(true) => {
                        facts.blocking_send(Fact::Input(Input::Confirmed { peer }));
                    }
                    Ok(false) => {}
                    Err(error) => tracing::warn!("saving what a device holds: {error:#}"),
                }
            });
        }
        Effect::Doubt { peer, hashes } => {
            tasks.spawn_blocking("doubt a holder", move || {
                if let Err(error) = index.doubt(&peer, &hashes) {
                    tracing::warn!("saving what a device lacks: {error:#}");
                }
            });
        }
        _ => {}
    }
}

/// Sets what this device wants, and has the engine rebuilt so that it acts on nothing else.
pub(super) fn set_want(judge: Judge, want: Want, reply: Reply<()>, tasks: &mut Tasks) {
    tasks.spawn("want", async move {
        match judge.keeper.set_want(want).await {
            Ok(()) => judge.facts.send(Fact::Reload(Reload::OtherWant { reply })).await,
            Err(error) => {
                // The requester may have gone.
                let _ = reply.send(Err(internal("saving what is wanted", &error)));
            }
        }
    });
}

fn failed(error: &IndexError) {
    tracing::error!("reading the index: {error:#}");
}

/// Decides about assets, and writes the decisions into the index.
#[derive(Clone)]
pub(super) struct Judge {
    keeper: Keeper,
    index: Index,
    gate: Arc<Mutex<()>>,
    facts: Facts,
}

impl Judge {
    /// What judges for an agent. `gate` is the one of its catalogue.
    pub(super) fn of(parts: &Parts, gate: Arc<Mutex<()>>) -> Self {
        let (index, facts) = (parts.ctx.index.clone(), parts.facts.clone());
        Self { keeper: parts.keeper.clone(), index, gate, facts }
    }

    /// Splits assets that are not known here: notes those that are not wanted, and returns the others.
    pub(super) async fn split(&self, assets: Vec<SizedHash>) -> Result<Vec<Hash>> {
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
    pub(super) async fn offered(&self, conn: ConnId, digests: &[Digest]) -> Vec<bool> {
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
            self.facts.send(Fact::Input(Input::Unwanted { conn, hashes })).await;
        }
        is_wanted
    }

    /// Writes down what a peer does not hold.
    async fn take_absent(&self, peer: NodeId, page: AbsentPage) -> Result<(AbsentSet, bool)> {
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
        self.facts.send(Fact::Input(Input::Noted { entries, absent, missing })).await;
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
            let head = spawn_blocking(move || index.release(&released)).await?;
            self.tell(Vec::new(), head.context("writing the index")?).await;
        }
        Ok(store.evict(hashes, permit).await?)
    }

    /// Judges assets again that are no longer evicted, or are from now on.
    pub(super) async fn reconsider(&self, hashes: Vec<Hash>) -> Result<()> {
        // Their sizes are not known to the index.
        self.again(hashes.into_iter().map(|hash| (hash, None)).collect()).await
    }

    /// Judges rows of absent assets again.
    async fn again(&self, assets: Vec<SizedHash>) -> Result<()> {
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

    async fn all_again(&self) -> Result<()> {
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

/// The task that judges again and counts copies.
pub(super) struct Follow {
    pub(super) judge: Judge,
    pub(super) journal: JournalHandle,
    pub(super) folders: Folders,
}

impl Follow {
    /// Runs until dropped.
    pub(super) async fn run(self) {
        let keeper = self.judge.keeper.clone();
        let (mut wants, mut commits) = (keeper.wants(), self.journal.commits());
        let mut cursor = self.newest().await;
        let (mut judge_at, mut look_at) = (Instant::now(), Instant::now());
        let (mut counted, mut shown) = (None, keeper.view());
        let mut is_group_new = true;
        loop {
            if Instant::now() >= judge_at {
                let expression = keeper.want().expression;
                let is_timed = expression.is_some_and(|expression| expression.depends_on_age());
                judge_at = Instant::now() + if is_timed { JUDGE_EVERY } else { NEVER };
                wants.mark_unchanged();
                report(self.judge.all_again().await);
            }
            let begun = Instant::now();
            if begun >= look_at {
                if std::mem::take(&mut is_group_new) {
                    report(keeper.read_group().await);
                }
                if keeper.chooses() {
                    report(self.judge_waited_for().await);
                }
                let (head, view) = (self.judge.index.head(), keeper.view());
                let holders = self.judge.index.holders_changed();
                let state = (head.seq, head.held, head.absent, holders, view.goal, view.sites);
                if counted.as_ref() != Some(&state) {
                    let expression = keeper.want().expression;
                    if expression.is_some_and(|expression| expression.depends_on_copies()) {
                        report(self.judge.all_again().await);
                    }
                    report(keeper.count().await);
                    counted = Some(state);
                }
                let took = Instant::now() - begun;
                look_at = Instant::now() + LOOK_EVERY.max(took * LOOK_PART);
            }
            if shown != keeper.view() {
                shown = keeper.view();
                self.judge.facts.send(Fact::Copies).await;
            }
            tokio::select! {
                changed = wants.changed() => {
                    if changed.is_err() { return }
                    // Nothing was followed while everything was wanted.
                    cursor = self.newest().await;
                    judge_at = Instant::now();
                }
                changed = commits.changed() => {
                    if changed.is_err() { return }
                    is_group_new = true;
                    if keeper.chooses() {
                        match self.take_changes(cursor).await {
                            Ok(next) => cursor = next,
                            Err(error) => report(Err(error)),
                        }
                    }
                }
                () = sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// The end of the journal's changes.
    async fn newest(&self) -> Option<Cursor> {
        self.journal.read(|reader| reader.cursor_now()).await.ok().flatten()
    }

    /// Judges the assets again that files of bound directories wait for.
    async fn judge_waited_for(&self) -> Result<()> {
        let mut after = None;
        loop {
            let (folders, index) = (self.folders.clone(), self.judge.index.clone());
            let (last, rows) = spawn_blocking(move || {
                let hashes = folders.waited_for(after, PAGE)?;
                anyhow::Ok((hashes.last().copied(), index.absent_rows(&hashes)?))
            })
            .await??;
            let unwanted = rows.into_iter().filter(|row| row.why == Some(Absence::Unwanted));
            self.judge.again(sized(&unwanted.collect::<Vec<_>>())).await?;
            match last {
                Some(last) => after = Some(last),
                None => return Ok(()),
            }
        }
    }

    /// Judges the assets again of which the journal tells something new.
    async fn take_changes(&self, mut cursor: Option<Cursor>) -> Result<Option<Cursor>> {
        loop {
            let since = cursor;
            let page = self
                .journal
                .read(move |reader| reader.changes(Some(ASSET_MODEL), since.as_ref(), CHANGES))
                .await?;
            let Some(page) = page else {
                // The journal began anew.
                let newest = self.newest().await;
                self.judge.all_again().await?;
                return Ok(newest);
            };
            let hashes = page.changes.iter().filter_map(|change| Hash::from_slice(&change.id));
            let hashes: Vec<Hash> = hashes.collect();
            let index = self.judge.index.clone();
            let rows = spawn_blocking(move || index.absent_rows(&hashes)).await?;
            self.judge.again(sized(&rows.context("reading the index")?)).await?;
            cursor = Some(page.cursor);
            if !page.more {
                return Ok(cursor);
            }
        }
    }
}

fn report(result: Result<()>) {
    if let Err(error) = result {
        tracing::warn!("looking after copies: {error:#}");
    }
}
