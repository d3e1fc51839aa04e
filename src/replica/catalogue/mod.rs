//! The catalogue: the one reader of the store's change feed. It keeps the index in step with the
//! store, tells the agent's loop at once what is new, and hands every asset that was stored or edited
//! to the metadata stage.
//!
//! I1  The listing is the truth; lines of the feed only say when to list. Nothing is missed, whatever
//!     the feed drops, repeats or reorders.
//! I2  A store that is down, slow or restarting is tried again with backoff, for ever; peers stay
//!     connected meanwhile.
//! I3  The whole store is listed anew, and all metadata looked at, on a timer, on a gap in the feed,
//!     and when the store shows that it is not the one that was listed: its cursor went back, or it
//!     holds less. What a whole listing does not show, or the feed calls gone, is forgotten, and
//!     fetched again from the peers that hold it.
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

use crate::core::ids::{Digest, Hash};
use crate::core::peers::Backoff;
use crate::state::index::{Head, Index, Listing};
use crate::store::{Changes, Cursor, PAGE_ENTRIES_MAX, Store, StoreError, StoreInfo, Touched};

pub(crate) use self::backlog::{Answer, Backlog, Opened, Work};

#[cfg(test)]
pub(crate) use self::backlog::LINES_MAX as BACKLOG_LINES_MAX;

mod backlog;
#[cfg(test)]
mod tests;

/// How often everything is listed anew, in case the store changed without saying so.
const RELIST_EVERY: Duration = Duration::from_secs(3600);

/// A feed that says nothing at all for this long is asked for again. Stores send a comment every
/// 15 s, which the client sees and we do not; so this bounds a feed that died silently.
const FEED_QUIET_MAX: Duration = Duration::from_secs(300);

/// Lines of the feed read together: they share a listing.
const LINES_MAX: usize = 1000;

/// No single store call of the catalogue takes longer.
const CALL_WAIT: Duration = Duration::from_secs(120);

/// A store that was followed for this long is tried again at once when it is lost.
const FOLLOWED_WELL: Duration = Duration::from_secs(60);

/// To forget an asset is to begin anew with every peer: not done more often than this, however fast a
/// disk fails.
const FORGET_EVERY: Duration = Duration::from_secs(10);

/// What the catalogue tells the agent's loop.
#[derive(Debug)]
pub(crate) enum StoreEvent {
    /// The store answers, and the index is bound to it; the loop replies when the engine is, too.
    Up { info: StoreInfo, reply: oneshot::Sender<()> },
    /// The store does not answer.
    Down { error: String },
    /// New entries of the index, with their sequence numbers. `behind`: there are more to come at
    /// once.
    Indexed { entries: Vec<(u64, Digest)>, behind: bool },
    /// The store was listed up to here.
    Listed { cursor: Cursor },
    /// The store no longer holds what the index knew of: the loop replies when the engine was made
    /// anew.
    Lost { reply: oneshot::Sender<()> },
}

/// What the task works with. Its events go straight into the loop's own queue: their order among the
/// other facts there counts, see `gate`.
pub(crate) struct Catalogue<F> {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) index: Index,
    pub(crate) events: mpsc::Sender<F>,
    pub(crate) backlog: Backlog,
    /// Makes it list at once.
    pub(crate) nudge: Arc<Notify>,
    /// Held from a write of the index until the event that tells of it is in the loop's queue, so
    /// that whoever holds it reads what the loop has been told, no more and no less.
    pub(crate) gate: Arc<Mutex<()>>,
}

/// Lines of the feed, those together that are there at once.
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
            // The store itself is well, and what it holds can be sent: see `DiskWatch`.
            if is_full {
                tracing::warn!(error, "what is new in the store waits");
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

    /// Waits for room in the loop's queue. When the loop has ended nobody needs the event.
    async fn tell(&self, event: StoreEvent) {
        let _ = self.events.send(event.into()).await;
    }

    /// Reads the feed of one store until it is lost.
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
            tracing::info!(
                cursor = listed,
                newest = info.newest_cursor,
                known = head.count,
                held = info.asset_count,
                "the store may have lost something: listing it anew"
            );
            list_from = Some(self.begin_whole());
        }
        // Lost with an error, it shows in the store's count at the next start.
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

    /// Has everything looked at; returns the cursor to list everything from.
    fn begin_whole(&self) -> Cursor {
        self.backlog.add(Touched::Gap);
        0
    }

    /// Hands lines of the feed to the metadata stage. Returns where to list the store from, if they
    /// say more than was listed.
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
                    tracing::info!("the store's feed has a gap: listing it anew");
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

    /// Forgets assets that the store says it holds no longer.
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

    /// Has the engine made anew, without assets that the store lost.
    async fn begin_anew(&self, lost: u64) -> Result<()> {
        tracing::warn!(assets = lost, "the store no longer holds what it held");
        let (reply, known) = oneshot::channel();
        self.tell(StoreEvent::Lost { reply }).await;
        known.await.context("the agent is stopping")
    }

    /// Lists what came after `cursor`, page by page, into the index. What is not held any more is
    /// added to `gone`, and what is held again is taken out of it.
    async fn take_in(&self, mut cursor: Cursor, gone: &mut BTreeSet<Hash>) -> Result<Cursor> {
        let is_whole = cursor == 0 && self.index.head().count > 0;
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
                // Read from the index with the rest.
                entries.clear();
            }
            self.tell(StoreEvent::Indexed { entries, behind: has_more }).await;
            cursor = next;
            if !has_more {
                return Ok(cursor);
            }
        }
    }
}

/// Whether the index could not be written for want of space.
fn is_disk_full(error: &anyhow::Error) -> bool {
    let of_index = error.chain().filter_map(|cause| cause.downcast_ref::<rusqlite::Error>());
    let mut codes = of_index.filter_map(rusqlite::Error::sqlite_error_code);
    codes.any(|code| code == rusqlite::ErrorCode::DiskFull)
}

/// Whether the store lost something since it was listed up to the index's cursor, as after the
/// restoring of a backup. A store that does not tell its count is taken to have.
fn is_not_what_was_listed(info: &StoreInfo, head: &Head) -> bool {
    info.asset_count == 0
        || info.newest_cursor < head.store_cursor
        || info.asset_count < head.count
        || info.newest_cursor == head.store_cursor && info.asset_count != head.count
}
