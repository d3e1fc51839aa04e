//! Follows the store: takes its change feed into the index and tells the loop.
//!
//! I1  The listing is the truth; feed events only say when to list. Nothing is missed, whatever the
//!     feed drops, repeats or reorders.
//! I2  A store that is down, slow or restarting is tried again with backoff, for ever; peers stay
//!     connected meanwhile.
//! I3  The whole store is listed anew on a timer, on `reset`, and when its cursor went back.

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::StreamExt;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep, timeout};

use crate::core::engine::Input;
use crate::core::ids::Digest;
use crate::core::peers::Backoff;
use crate::state::index::Index;
use crate::store::{Changes, Cursor, FeedEvent, PAGE_ENTRIES_MAX, Store};

use super::fact::{Fact, Facts};

/// How often everything is listed anew, in case the store changed without saying so.
const RELIST_EVERY: Duration = Duration::from_secs(3600);

/// A feed that says nothing at all for this long is asked for again. Stores send a comment every
/// 15 s, which the client sees and we do not; so this bounds a feed that died silently.
const FEED_QUIET_MAX: Duration = Duration::from_secs(300);

/// No single store call of the follower takes longer.
const CALL_WAIT: Duration = Duration::from_secs(120);

/// Runs until dropped. `nudge` makes it list at once.
pub(super) async fn follow(
    store: std::sync::Arc<dyn Store>,
    index: Index,
    facts: Facts,
    nudge: std::sync::Arc<Notify>,
) {
    let mut backoff = Backoff::default();
    loop {
        let started = Instant::now();
        let Err(error) = follow_once(&*store, &index, &facts, &nudge).await;
        if started.elapsed() > RELIST_EVERY.min(Duration::from_secs(60)) {
            backoff.reset();
        }
        let error = format!("{error:#}");
        tracing::debug!(error, "store lost");
        facts.send(Fact::StoreDown { error }).await;
        let pause = Duration::from_millis(backoff.next_ms(rand::random()));
        tokio::select! {
            () = sleep(pause) => {}
            () = nudge.notified() => sleep(pause.min(Duration::from_millis(500))).await,
        }
    }
}

async fn follow_once(
    store: &dyn Store,
    index: &Index,
    facts: &Facts,
    nudge: &Notify,
) -> Result<std::convert::Infallible> {
    let info = timeout(CALL_WAIT, store.info()).await.context("asking the store what it is")??;
    let newest = info.newest_cursor;
    let (reply, from) = oneshot::channel();
    facts.send(Fact::StoreUp { info, reply }).await;
    let mut cursor = from.await.context("the agent is stopping")?;
    if newest < cursor {
        tracing::warn!(cursor, newest, "the store's feed went back: listing it anew");
        cursor = 0;
    }
    let mut relist_at = Instant::now() + RELIST_EVERY;
    let mut feed = store.follow(cursor);
    loop {
        cursor = take_in(store, index, facts, cursor).await?;
        facts.send(Fact::TakenIn { cursor }).await;
        tokio::select! {
            event = timeout(FEED_QUIET_MAX, feed.next()) => match event {
                Ok(Some(event)) => if event? == FeedEvent::Reset {
                    tracing::info!("the store's feed was reset: listing it anew");
                    cursor = 0;
                },
                Ok(None) => anyhow::bail!("the store ended its feed"),
                Err(_) => feed = store.follow(cursor),
            },
            () = nudge.notified() => {}
            () = tokio::time::sleep_until(relist_at) => {
                relist_at = Instant::now() + RELIST_EVERY;
                cursor = 0;
            }
        }
    }
}

/// Lists what came after `cursor`, page by page, into the index.
async fn take_in(
    store: &dyn Store,
    index: &Index,
    facts: &Facts,
    mut cursor: Cursor,
) -> Result<Cursor> {
    loop {
        let page = timeout(CALL_WAIT, store.changes(cursor, PAGE_ENTRIES_MAX))
            .await
            .context("listing the store")??;
        let Changes { entries, next, has_more } = page;
        let digests: Vec<Digest> = entries.into_iter().map(|entry| entry.digest).collect();
        let index = index.clone();
        let entries = tokio::task::spawn_blocking(move || index.insert(&digests, next))
            .await?
            .context("writing the index")?;
        facts.send(Fact::Input(Input::Indexed { entries, behind: has_more })).await;
        anyhow::ensure!(!has_more || next > cursor, "the store's listing does not move on");
        cursor = next;
        if !has_more {
            return Ok(cursor);
        }
    }
}
