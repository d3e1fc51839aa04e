//! Reconciles the metadata of assets between the store and the journal in both directions, and logs
//! the events of assets. `core::journal::asset` decides for each asset.
//!
//! M1  Level-triggered: the catalogue's backlog, the journal's commits, a scan of everything and
//!     the API only say which assets to look at. A look reconciles an asset whatever happened
//!     before.
//! M2  The user's edits, their events and the shadow that records them are one transaction: no
//!     crash loses an edit or issues it twice.
//! M3  A row is written to the store only over the row that the decision was based on
//!     (compare-and-set).
//! M4  At rest nothing is written, neither to the store nor to the journal.
//! M5  The arrival of an asset is logged in the transaction that makes its shadow: exactly once.
//! M6  The trash is a flag. Nothing here deletes bytes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::future::OptionFuture;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, sleep_until, timeout};

use crate::clock::Clock;
use crate::core::ids::{GroupId, Hash, LogId, StoreId};
use crate::core::journal::asset::ASSET_MODEL;
use crate::core::journal::brake::Brake;
use crate::core::peers::Backoff;
use crate::state::journal::Cursor;
use crate::store::{self, Filter, Store, StoreError};

use super::catalogue::{Answer, Backlog, Opened, Work};
use super::events::EventLog;
use super::journal::{AskError, JournalHandle};

mod arrivals;
mod carry;
mod look;

pub use self::arrivals::Arrivals;
pub(crate) use self::arrivals::Expected;

/// How long changes of the store are collected before a look: the asset itself is on its way to
/// other devices just then, and its metadata may come after it.
const GATHER: Duration = Duration::from_millis(5);

/// The most lines taken from the backlog at once.
const TAKE_LINES: usize = 4 * LOOK_ASSETS;

/// The most assets whose metadata is compared in one transaction. With the longest texts they take
/// 16 MiB of memory.
const LOOK_ASSETS: usize = 256;

/// The deadline of a store call.
const CALL_WAIT: Duration = Duration::from_secs(60);

/// When a failed write is retried; also the shortest time between two scans.
const SCAN_AGAIN_MS: u64 = 10 * 60 * 1000;

/// How long after a change the cursors of both feeds are saved. Lines that are read again after a
/// crash cost one look.
const SAVE_MS: u64 = 10 * 1000;

/// The name of the saved cursor of the store's feed: the store's id and a cursor, 0 until
/// everything was looked at.
const STORE_CURSOR: &str = "metadata-store";

/// The name of the saved cursor of the journal's changes.
const JOURNAL_CURSOR: &str = "metadata-journal";

/// The most calls of [`Settle`] that wait. People and scripts make them, and each waits for its
/// answer.
pub(crate) const SETTLES_MAX: usize = 64;

/// The journal has another epoch than before, as when a device joins a group, or another store
/// answers. Not a failure.
#[derive(Debug, thiserror::Error)]
#[error("the journal or the store was replaced")]
struct BegunAnew;

/// A request to reconcile one asset now and to report the end.
#[derive(Debug)]
pub struct Settle {
    pub(crate) hash: Hash,
    pub(crate) reply: oneshot::Sender<Result<(), String>>,
}

/// The task that reconciles metadata.
pub(crate) struct Settler {
    store: Arc<dyn Store>,
    backlog: Backlog,
    /// The store that answers, or why none does.
    answer: watch::Receiver<Answer>,
    journal: JournalHandle,
    arrivals: Arrivals,
    events: EventLog,
    settles: mpsc::Receiver<Settle>,
    /// A request that arrived while the journal began anew: it is handled first.
    put_off: Option<Settle>,
    frozen: watch::Sender<usize>,
    clock: Clock,
    brake: Brake,
    /// When everything was last looked at.
    scanned_ms: Option<u64>,
    at: Place,
}

/// The progress of a session with one store and one journal.
#[derive(Debug, Default)]
struct Place {
    /// See [`Opened::number`].
    number: u64,
    /// The group of the journal.
    group: Option<GroupId>,
    store: Option<Cursor>,
    journal: Option<Cursor>,
    /// The cursors as saved in the journal.
    saved: (Option<Cursor>, Option<Cursor>),
    save_at_ms: Option<u64>,
    /// Work from the backlog that is not finished.
    in_hand: Work,
    /// The position in the store's feed up to which lines of the backlog were looked at.
    looked_to: store::Cursor,
    scan: Option<Scan>,
    scan_at_ms: Option<u64>,
    /// Whether everything was looked at since this store first answered, so that the cursors are
    /// valid.
    is_whole: bool,
    /// Whether the journal has more changes than were read.
    journal_behind: bool,
}

/// A scan of the store's assets in the order of its feed.
#[derive(Debug)]
struct Scan {
    /// Assets up to this cursor were looked at.
    after: store::Cursor,
    /// Whether the scan began at the first asset.
    is_whole: bool,
}

impl Settler {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        backlog: Backlog,
        journal: JournalHandle,
        arrivals: Arrivals,
        events: EventLog,
        settles: mpsc::Receiver<Settle>,
        frozen: watch::Sender<usize>,
    ) -> Self {
        Self {
            store,
            answer: backlog.answer(),
            backlog,
            journal,
            arrivals,
            events,
            settles,
            put_off: None,
            frozen,
            clock: Clock::start(),
            brake: Brake::default(),
            scanned_ms: None,
            at: Place::default(),
        }
    }

    /// Runs until dropped, or until the journal is closed.
    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::default();
        loop {
            let started_ms = self.clock.now_ms();
            let Err(error) = self.session().await;
            self.put_back();
            if matches!(error.downcast_ref(), Some(AskError::Closed)) {
                return;
            }
            if error.is::<BegunAnew>() {
                continue;
            }
            if self.clock.now_ms() > started_ms + 60_000 {
                backoff.reset();
            }
            let error = format!("{error:#}");
            tracing::debug!(error, "cannot reconcile metadata now");
            let pause = sleep(Duration::from_millis(backoff.next_ms(rand::random())));
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    Ok(()) = self.answer.changed() => break,
                    Some(settle) = self.settles.recv() => {
                        // The requester may have gone.
                        let _ = settle.reply.send(Err(error.clone()));
                    }
                }
            }
        }
    }

    /// Reconciles one store and one journal until either is lost or replaced.
    async fn session(&mut self) -> Result<std::convert::Infallible> {
        let opened = self.opened().await?;
        self.take_place(opened).await?;
        let mut commits = self.journal.commits();
        commits.mark_changed();
        if let Some(settle) = self.put_off.take() {
            self.settle(settle).await?;
        }
        loop {
            let timers = [self.at.save_at_ms, self.brake.next_thaw_ms(), self.at.scan_at_ms];
            let wake_ms = timers.into_iter().flatten().min();
            let wake = wake_ms.map(|at_ms| sleep_until(self.clock.instant(at_ms).into()));
            tokio::select! {
                biased;
                Some(settle) = self.settles.recv() => self.settle(settle).await?,
                changed = commits.changed(), if !self.at.journal_behind => {
                    changed.map_err(|_| AskError::Closed)?;
                    self.at.journal_behind = true;
                }
                Ok(()) = self.answer.changed() => self.check_store()?,
                () = self.backlog.ready() => {
                    sleep(GATHER).await;
                    self.work_off().await?;
                }
                () = std::future::ready(()), if self.at.journal_behind => self.read_journal().await?,
                Some(()) = OptionFuture::from(wake) => self.on_time().await?,
                () = std::future::ready(()), if self.at.scan.is_some() => self.scan().await?,
            }
        }
    }

    async fn settle(&mut self, settle: Settle) -> Result<()> {
        if self.brake.release(&settle.hash) {
            self.frozen.send_replace(self.brake.frozen());
        }
        let settled = self.look(vec![settle.hash]).await;
        if settled.as_ref().is_err_and(|error| error.is::<BegunAnew>()) {
            self.put_off = Some(settle);
            return settled;
        }
        let told = settled.as_ref().copied().map_err(|error| format!("{error:#}"));
        // The requester may have gone.
        let _ = settle.reply.send(told);
        settled
    }

    /// Waits until it is known whether a store answers.
    async fn opened(&mut self) -> Result<Opened> {
        loop {
            let answer = self.answer.borrow_and_update().clone();
            match answer {
                Some(answer) => return answer.map_err(anyhow::Error::msg),
                // The backlog holds the sender, and `self` the backlog.
                None => self.answer.changed().await?,
            }
        }
    }

    /// Ends the session when another store answers.
    fn check_store(&mut self) -> Result<()> {
        match &*self.answer.borrow_and_update() {
            Some(Ok(opened)) if opened.number != self.at.number => Err(BegunAnew.into()),
            // Calls to a store that is down fail by themselves.
            _ => Ok(()),
        }
    }

    /// Decides where to continue in the backlog and the journal, or that everything has to be
    /// looked at.
    async fn take_place(&mut self, opened: Opened) -> Result<()> {
        let info = call(self.store.info()).await?;
        anyhow::ensure!(info.store_id == opened.store_id, "another store answers by now");
        let (group, store, journal, now) = self
            .journal
            .read(|reader| {
                let (store, journal) =
                    (reader.cursor(STORE_CURSOR)?, reader.cursor(JOURNAL_CURSOR)?);
                Ok((reader.group()?, store, journal, reader.cursor_now()?))
            })
            .await?;
        let now = now.context("this device is in no group")?;
        self.at =
            Place { number: opened.number, group, saved: (store, journal), ..Place::default() };
        let epoch = LogId(info.store_id.0);
        let is_same = store.is_some_and(|at| at.epoch == epoch);
        // A store that does not report its asset count does not report its newest cursor either.
        let went_back = info.asset_count > 0 && store.is_some_and(|at| at.arr > info.newest_cursor);
        if !is_same || went_back {
            // Done before anything else is recorded for it: a shadow belongs to one store.
            let is_other = store.is_some();
            let begun = Cursor { epoch, arr: 0 };
            self.journal
                .run(move |journal, _| {
                    if is_other {
                        tracing::info!(
                            "another store, or an older state of it: writing all metadata again"
                        );
                        journal.forget_shadows()?;
                    }
                    journal.set_cursor(STORE_CURSOR, &begun)
                })
                .await?;
            self.at.saved.0 = Some(begun);
        }
        match (self.at.saved.0, journal) {
            (Some(store), Some(journal)) if store.arr > 0 && journal.epoch == now.epoch => {
                (self.at.store, self.at.journal) = (Some(store), Some(journal));
                self.at.is_whole = true;
            }
            _ => {
                // The backlog and the journal report what changes from here on; the scan looks at
                // what is there.
                self.at.store = Some(Cursor { epoch, arr: info.newest_cursor });
                self.at.journal = Some(now);
                self.at.scan = Some(Scan::whole());
            }
        }
        Ok(())
    }

    /// Returns unfinished work to the backlog, for the next session.
    fn put_back(&mut self) {
        let mut unfinished = std::mem::take(&mut self.at.in_hand);
        match self.at.scan.take() {
            Some(Scan { is_whole: true, .. }) => unfinished.is_gap = true,
            Some(Scan { after, .. }) => unfinished.list_from = Some(after),
            None => {}
        }
        self.backlog.put_back(self.at.number, unfinished);
    }

    /// Looks at assets of the backlog.
    async fn work_off(&mut self) -> Result<()> {
        let work = self.backlog.take(self.at.number, TAKE_LINES).ok_or(BegunAnew)?;
        let Work { lines, list_from, is_gap } = work;
        self.at.in_hand.lines = lines;
        if is_gap {
            self.at.in_hand.is_gap = true;
            // A store that disconnects often must not cause a scan each time.
            self.scan_at(self.scanned_ms.map_or(0, |at| at + SCAN_AGAIN_MS));
        }
        if let Some(from) = list_from {
            let scan = self.at.scan.get_or_insert(Scan { after: from, is_whole: false });
            scan.after = scan.after.min(from);
        }
        let lines = &self.at.in_hand.lines;
        let hashes = lines.iter().map(|(hash, _)| *hash).collect();
        self.look(hashes).await?;
        if let Some((_, cursor)) = self.at.in_hand.lines.back() {
            self.at.looked_to = self.at.looked_to.max(*cursor);
        }
        self.at.in_hand.lines.clear();
        self.move_on();
        Ok(())
    }

    /// Advances the cursor of the store, unless an asset below it is yet to be looked at.
    fn move_on(&mut self) {
        let looked_to = self.at.looked_to;
        if self.at.scan.is_some() || self.at.in_hand.is_gap {
            return;
        }
        if let Some(at) = &mut self.at.store
            && looked_to > at.arr
        {
            at.arr = looked_to;
            self.save_soon();
        }
    }

    /// Reads a page of the journal's changes, and looks at their assets.
    async fn read_journal(&mut self) -> Result<()> {
        let since = self.at.journal;
        let page = self
            .journal
            .read(move |reader| reader.changes(Some(ASSET_MODEL), since.as_ref(), LOOK_ASSETS))
            .await?;
        let page = page.ok_or(BegunAnew)?;
        let hashes: Vec<Hash> =
            page.changes.iter().filter_map(|change| Hash::from_slice(&change.id)).collect();
        let something = !hashes.is_empty();
        self.look(hashes).await?;
        self.at.journal = Some(page.cursor);
        self.at.journal_behind = page.more;
        if something {
            self.save_soon();
        }
        Ok(())
    }

    /// Looks at the next page of the current scan.
    async fn scan(&mut self) -> Result<()> {
        let Some(Scan { after, is_whole }) = self.at.scan else { return Ok(()) };
        let next = match call(self.store.list(&Filter::default(), after, LOOK_ASSETS)).await {
            Ok(assets) => {
                let next = assets.last().map(|asset| asset.entry.cursor);
                let again = self.bring_together(assets).await?;
                self.look(again).await?;
                next
            }
            // Not searchable: look up each asset.
            Err(StoreError::Unsupported(_)) => {
                let page = call(self.store.changes(after, LOOK_ASSETS)).await?;
                let hashes: Vec<Hash> =
                    page.entries.iter().map(|entry| entry.digest.hash).collect();
                self.look(hashes).await?;
                page.has_more.then_some(page.next)
            }
            Err(error) => return Err(error.into()),
        };
        self.at.scan = next.filter(|next| *next > after).map(|after| Scan { after, is_whole });
        if self.at.scan.is_none() {
            if is_whole {
                self.scanned_ms = Some(self.clock.now_ms());
                self.at.is_whole = true;
                self.save_soon();
            }
            self.move_on();
        }
        Ok(())
    }

    /// Schedules a scan of everything, at the latest at `at_ms`.
    fn scan_at(&mut self, at_ms: u64) {
        self.at.scan_at_ms = Some(self.at.scan_at_ms.map_or(at_ms, |at| at.min(at_ms)));
    }

    async fn on_time(&mut self) -> Result<()> {
        let now_ms = self.clock.now_ms();
        if self.at.scan_at_ms.is_some_and(|at| at <= now_ms) {
            self.at.scan_at_ms = None;
            self.at.in_hand.is_gap = false;
            self.at.scan = Some(Scan::whole());
        }
        let thawed = self.brake.thaw(now_ms);
        if !thawed.is_empty() {
            self.frozen.send_replace(self.brake.frozen());
            self.look(thawed).await?;
        }
        if self.at.save_at_ms.is_some_and(|at| at <= now_ms) {
            self.save().await?;
        }
        Ok(())
    }

    fn save_soon(&mut self) {
        if self.at.is_whole && self.at.save_at_ms.is_none() {
            self.at.save_at_ms = Some(self.clock.now_ms() + SAVE_MS);
        }
    }

    async fn save(&mut self) -> Result<()> {
        self.at.save_at_ms = None;
        let (before, now) = (self.at.saved, (self.at.store, self.at.journal));
        self.journal
            .run(move |journal, _| {
                for (name, before, now) in
                    [(STORE_CURSOR, before.0, now.0), (JOURNAL_CURSOR, before.1, now.1)]
                {
                    if let Some(now) = now.filter(|_| before != now) {
                        journal.set_cursor(name, &now)?;
                    }
                }
                Ok(())
            })
            .await?;
        self.at.saved = now;
        Ok(())
    }
}

impl Scan {
    fn whole() -> Self {
        Self { after: 0, is_whole: true }
    }
}

/// Reads the settler's saved position and its store from the journal; `None` when everything has to
/// be looked at.
///
/// # Errors
/// The journal cannot be read.
pub(crate) async fn read_to(
    journal: &JournalHandle,
) -> Result<Option<(StoreId, store::Cursor)>, AskError> {
    let noted = journal.read(|reader| reader.cursor(STORE_CURSOR)).await?;
    let noted = noted.filter(|at| at.arr > 0);
    Ok(noted.map(|at| (StoreId(at.epoch.0), at.arr)))
}

/// Calls the store with a deadline.
async fn call<T>(call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    timeout(CALL_WAIT, call).await.unwrap_or_else(|_| {
        Err(StoreError::Unreachable(format!("no answer within {} s", CALL_WAIT.as_secs())))
    })
}

#[cfg(test)]
mod tests;
