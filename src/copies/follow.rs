//! The task that judges absent assets again when the facts of the judgement change, and counts
//! copies.
//!
//! C2  Every absent asset is judged at the start, after a change of what is wanted, and when the
//!     journal has something new about it; all of them from time to time, if the answer depends on
//!     time.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use crate::core::copies::Absence;
use crate::core::engine::Input;
use crate::core::ids::Hash;
use crate::core::journal::asset::ASSET_MODEL;
use crate::folders::handle::Folders;
use crate::replica::copies::{PAGE, sized};
use crate::replica::journal::JournalHandle;
use crate::state::journal::Cursor;

use super::judge::Judge;

/// How often absent assets are judged again when the answer depends on their age.
const JUDGE_EVERY: Duration = Duration::from_secs(600);

/// Far longer than an agent runs: when the answer does not depend on age.
const NEVER: Duration = Duration::from_secs(1 << 32);

/// How often the task checks whether the index changed, so that copies have to be counted again.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Counting takes at most one part in this many of the time: the next check waits as long.
const LOOK_PART: u32 = 20;

/// The most changes of the journal read at a time.
const CHANGES: usize = 256;

/// The task that judges again and counts copies.
pub(crate) struct Follow<F> {
    pub(crate) judge: Judge<F>,
    pub(crate) journal: JournalHandle,
    pub(crate) folders: Folders,
}

impl<F: From<Input>> Follow<F> {
    /// Runs until dropped.
    pub(crate) async fn run(self) {
        let keeper = self.judge.keeper.clone();
        let (mut wants, mut commits) = (keeper.wants(), self.journal.commits());
        let mut cursor = self.newest().await;
        let (mut judge_at, mut look_at) = (Instant::now(), Instant::now());
        let mut counted = None;
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
                let awaited = keeper.awaited();
                let holders = self.judge.index.holders_changed();
                let group = (view.goal, view.sites, awaited.clone());
                let state = (head.seq, head.held, head.absent, holders, group);
                if counted.as_ref() != Some(&state) {
                    let expression = keeper.want().expression;
                    if expression.is_some_and(|expression| expression.depends_on_copies()) {
                        report(self.judge.all_again().await);
                    }
                    report(keeper.count(awaited.confirming).await);
                    counted = Some(state);
                }
                let took = Instant::now() - begun;
                look_at = Instant::now() + LOOK_EVERY.max(took * LOOK_PART);
            }
            tokio::select! {
                changed = wants.changed() => {
                    if changed.is_err() { return }
                    // The journal's changes were not read while everything was wanted.
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

    /// The position after the journal's newest change.
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

    /// Judges the assets again that the journal changed after `cursor`. Returns the new position.
    async fn take_changes(&self, mut cursor: Option<Cursor>) -> Result<Option<Cursor>> {
        loop {
            let since = cursor;
            let page = self
                .journal
                .read(move |reader| reader.changes(Some(ASSET_MODEL), since.as_ref(), CHANGES))
                .await?;
            let Some(page) = page else {
                // The journal was replaced, so the position means nothing: judge everything.
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
