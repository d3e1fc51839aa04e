//! The catalogue: the only reader of the store's change feed. It keeps the index equal to the
//! store, reports new assets to the agent's loop at once, and passes every asset that was stored or
//! edited to the metadata stage.
//!
//! I1  Only the listing is reliable; lines of the feed say when to list. So nothing is missed,
//!     whatever the feed drops, repeats or reorders.
//! I2  A store that is down, slow or restarting is retried with backoff, for ever; peers stay
//!     connected meanwhile.
//! I3  The whole store is listed again, and all metadata looked at, at intervals, after a gap in
//!     the feed, and when the store is not the one that was listed: its cursor went back, or it
//!     holds fewer assets. Assets that a whole listing does not contain, or that the feed reports
//!     gone, are removed from the index and fetched again from the peers that hold them.
//! I4  New assets reach the loop without waiting for the metadata stage, see [`Backlog`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tokio::sync::{Mutex, Notify, mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::core::copies::AbsentSet;
use crate::core::ids::{Digest, Hash};
use crate::core::peers::Backoff;
use crate::state::index::{Head, Index, IndexError, Listing};
use crate::store::{Changes, Cursor, PAGE_ENTRIES_MAX, Store, StoreError, StoreInfo, Touched};

pub(crate) use self::backlog::{Answer, Backlog, Opened, Work};

#[cfg(test)]
pub(crate) use self::backlog::LINES_MAX as BACKLOG_LINES_MAX;

mod backlog;
#[cfg(test)]
mod tests;

/// How often everything is listed, in case the store changed without an event.
const RELIST_EVERY: Duration = Duration::from_secs(3600);

/// A feed that is silent for this long is opened again. Stores send a comment every 15 s, which
/// only the HTTP client sees; so this detects a feed that died silently.
const FEED_QUIET_MAX: Duration = Duration::from_secs(300);

/// The most lines of the feed that share a listing.
const LINES_MAX: usize = 1000;

/// The deadline of a store call.
const CALL_WAIT: Duration = Duration::from_secs(120);

/// A store that was followed for this long is retried at once when it is lost.
const FOLLOWED_WELL: Duration = Duration::from_secs(60);

/// The shortest time between two removals from the index, however fast a disk fails: after each,
/// all peers begin anew.
const FORGET_EVERY: Duration = Duration::from_secs(10);

/// What the catalogue reports to the agent's loop.
#[derive(Debug)]
pub(crate) enum StoreEvent {
    /// The store answers, and the index is bound to it. The loop replies once the engine is bound
    /// too.
    Up { info: StoreInfo, reply: oneshot::Sender<()> },
    /// The store does not answer.
    Down { error: String },
    /// New entries of the index, with their sequence numbers. `behind`: more follow at once.
    Indexed { entries: Vec<(u64, Digest)>, behind: bool },
    /// Assets that were known and absent are held now.
    Absent { absent: AbsentSet, missing: u64 },
    /// The store was listed up to here.
    Listed { cursor: Cursor },
    /// The store no longer holds assets of the index. The loop replies once the engine is rebuilt.
    Lost { reply: oneshot::Sender<()> },
}

/// The task that reads the feed. Its events go straight into the loop's own queue, because their
/// order among the other facts counts, see `gate`.
pub(crate) struct Catalogue<F> {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) index: Index,
    pub(crate) events: mpsc::Sender<F>,
    pub(crate) backlog: Backlog,
    /// Makes the task list the store at once.
    pub(crate) nudge: Arc<Notify>,
    /// Held from a write of the index until its event is in the loop's queue. So whoever holds it
    /// reads exactly the state that was reported to the loop.
    pub(crate) gate: Arc<Mutex<()>>,
}

/// Lines of the feed; those that arrive together are one item.
type Feed = BoxStream<'static, Vec<Result<Touched, StoreError>>>;

impl<F: From<StoreEvent>> Catalogue<F> {
    /// Runs until dropped.
    pub(crate) async fn run(self) {
        let mut backoff = Backoff::default();
        let mut relist_at = Instant::now() + RELIST_EVERY;
        loop {
            let started = Instant::now();
            let Err(error) = self.session(&mut relist_at).await;
            if started.elapsed() > FOLLOWED_WELL {
                backoff.reset();
            }
            let is_full = is_disk_full(&error);
            let error = format!("{error:#}");
            // The store itself works, and its assets can be sent: see `DiskWatch`.
            if is_full {
                tracing::warn!(
                    error,
                    "cannot add the store's new assets to the index: the disk is full"
                );
            } else {
                tracing::debug!(error, "store lost");
                self.backlog.close(error.clone());
                self.tell(StoreEvent::Down { error }).await;
            }
            let pause = Duration::from_millis(backoff.next_ms(rand::random()));
            tokio::select! {
                () = sleep(pause) => {}
                () = self.nudge.notified() => sleep(pause.min(Duration::from_millis(500))).await,
            }
        }
    }

    /// Sends an event; waits while the loop's queue is full. After the end of the loop the event is
    /// dropped.
    async fn tell(&self, event: StoreEvent) {
        let _ = self.events.send(event.into()).await;
    }

    /// Reads the feed of one store until the store is lost.
    async fn session(&self, relist_at: &mut Instant) -> Result<std::convert::Infallible> {
        let asked = timeout(CALL_WAIT, self.store.info()).await;
        let info = asked.context("asking the store what it is")??;
        self.bind(&info).await?;
        let (reply, known) = oneshot::channel();
        self.tell(StoreEvent::Up { info: info.clone(), reply }).await;
        known.await.context("the agent is stopping")?;
        let head = self.index.head();
        let mut feed = self.feed(self.backlog.open(&info));
        let mut listed = head.store_cursor;
        let mut list_from = Some(listed);
        if is_not_what_was_listed(&info, &head) {
            // An index that is new has nothing that the store could have lost.
            if head.held > 0 {
                tracing::info!(
                    cursor = listed,
                    newest = info.newest_cursor,
                    known = head.held,
                    held = info.asset_count,
                    "the store may have lost assets: listing it again"
                );
            }
            list_from = Some(self.begin_whole());
        }
        // If an error loses this set, the store's asset count shows the difference at the next
        // start.
        let mut gone = BTreeSet::new();
        let mut forget_at = Instant::now();
        loop {
            if let Some(from) = list_from {
                listed = self.take_in(from, &mut gone).await?;
                self.tell(StoreEvent::Listed { cursor: listed }).await;
            }
            list_from = tokio::select! {
                lines = timeout(FEED_QUIET_MAX, feed.next()) => match lines {
                    Ok(Some(lines)) => self.hand_over(lines, listed)?,
                    Ok(None) => anyhow::bail!("the store ended its feed"),
                    Err(_) => {
                        feed = self.feed(self.backlog.read_to());
                        Some(listed)
                    }
                },
                () = self.nudge.notified() => Some(listed),
                () = sleep_until(forget_at), if !gone.is_empty() => {
                    self.forget(std::mem::take(&mut gone)).await?;
                    forget_at = Instant::now() + FORGET_EVERY;
                    Some(listed)
                }
                () = sleep_until(*relist_at) => {
                    *relist_at = Instant::now() + RELIST_EVERY;
                    Some(self.begin_whole())
                }
            }
        }
    }

    fn feed(&self, from: Cursor) -> Feed {
        self.store.touched(from).ready_chunks(LINES_MAX).boxed()
    }

    /// Requests a comparison of all metadata. Returns the cursor for a full listing.
    fn begin_whole(&self) -> Cursor {
        self.backlog.add(Touched::Gap);
        0
    }

    /// Passes lines of the feed to the metadata stage. Returns the cursor to list the store from if
    /// the lines report something that was not listed.
    fn hand_over(
        &self,
        lines: Vec<Result<Touched, StoreError>>,
        listed: Cursor,
    ) -> Result<Option<Cursor>> {
        let mut list_from = None;
        for line in lines {
            let line = line?;
            match line {
                Touched::Gap => {
                    tracing::info!("the store's feed has a gap: listing the store again");
                    list_from = Some(0);
                }
                Touched::Stored { cursor, .. } | Touched::Edited { cursor, .. }
                    if (1..=listed).contains(&cursor) => {}
                Touched::Stored { .. } | Touched::Edited { .. } | Touched::Changed => {
                    list_from = list_from.or(Some(listed));
                }
            }
            self.backlog.add(line);
        }
        Ok(list_from)
    }

    async fn bind(&self, info: &StoreInfo) -> Result<()> {
        let _gate = self.gate.lock().await;
        let (index, store_id, algorithm) = (self.index.clone(), info.store_id, info.hash_algorithm);
        spawn_blocking(move || index.bind(&store_id, algorithm))
            .await?
            .context("tying the index to the store")?;
        Ok(())
    }

    /// Removes assets from the index that the store no longer holds.
    async fn forget(&self, gone: BTreeSet<Hash>) -> Result<()> {
        let gate = self.gate.lock().await;
        let index = self.index.clone();
        let hashes: Vec<Hash> = gone.into_iter().collect();
        let lost = spawn_blocking(move || index.forget(&hashes)).await?;
        drop(gate);
        match lost.context("writing the index")? {
            0 => Ok(()),
            lost => self.begin_anew(lost).await,
        }
    }

    /// Demands a rebuilt engine without the assets that the store lost.
    async fn begin_anew(&self, lost: u64) -> Result<()> {
        tracing::warn!(assets = lost, "the store no longer holds some assets that it held");
        let (reply, known) = oneshot::channel();
        self.tell(StoreEvent::Lost { reply }).await;
        known.await.context("the agent is stopping")
    }

    /// Lists the changes after `cursor` into the index, page by page. Adds to `gone` what is no
    /// longer held, and removes from it what is held again.
    async fn take_in(&self, mut cursor: Cursor, gone: &mut BTreeSet<Hash>) -> Result<Cursor> {
        let is_whole = cursor == 0 && self.index.head().held > 0;
        let mut listing = is_whole.then(Listing::default);
        loop {
            let page = timeout(CALL_WAIT, self.store.changes(cursor, PAGE_ENTRIES_MAX))
                .await
                .context("listing the store")??;
            let Changes { entries, gone: page_gone, next, has_more } = page;
            anyhow::ensure!(!has_more || next > cursor, "the store's listing does not move on");
            let digests: Vec<Digest> = entries.into_iter().map(|entry| entry.digest).collect();
            gone.retain(|hash| digests.iter().all(|digest| digest.hash != *hash));
            gone.extend(page_gone);
            let gate = self.gate.lock().await;
            let before = self.index.head().absent;
            let index = self.index.clone();
            let write = move || {
                let Some(shown) = &mut listing else {
                    return anyhow::Ok((index.insert(&digests, next)?, 0, listing));
                };
                let entries = index.insert_listed(shown, &digests)?;
                let lost = if has_more { 0 } else { index.finish_listing(shown, next)? };
                Ok((entries, lost, listing))
            };
            let written = spawn_blocking(write).await?.context("writing the index")?;
            let (mut entries, lost);
            (entries, lost, listing) = written;
            if lost > 0 {
                drop(gate);
                self.begin_anew(lost).await?;
                // Leave these entries out: the rebuilt engine has read them from the index.
                entries.clear();
            }
            let head = self.index.head();
            if head.absent != before {
                let (absent, missing) = (head.absent, head.missing);
                self.tell(StoreEvent::Absent { absent, missing }).await;
            }
            self.tell(StoreEvent::Indexed { entries, behind: has_more }).await;
            cursor = next;
            if !has_more {
                return Ok(cursor);
            }
        }
    }
}

/// Whether the index could not be written for lack of space.
fn is_disk_full(error: &anyhow::Error) -> bool {
    let mut of_index = error.chain().filter_map(|cause| cause.downcast_ref::<IndexError>());
    of_index.any(IndexError::is_disk_full)
}

/// Whether the store lost assets since it was listed up to the index's cursor, as after a restored
/// backup. A store that does not report its asset count is assumed to have lost some.
fn is_not_what_was_listed(info: &StoreInfo, head: &Head) -> bool {
    info.asset_count == 0
        || info.newest_cursor < head.store_cursor
        || info.asset_count < head.held
        || info.newest_cursor == head.store_cursor && info.asset_count != head.held
}
