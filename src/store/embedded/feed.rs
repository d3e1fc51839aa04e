//! The feed as its readers see it: its lines, preceded by a hint that there are new ones.

use std::sync::{Arc, Weak};

use tokio::sync::watch;

use super::db::closed;
use super::health::Health;
use super::listing::{FeedKind, FeedLine};
use super::{EmbeddedStore, Shared};
use crate::store::{Cursor, StoreError, Touched};

/// The most lines of the feed read at once.
const TOUCHED_PAGE_ROWS: usize = 1000;

/// A reader of the feed. It does not keep the store open.
pub(super) struct Touching {
    pub(super) shared: Weak<Shared>,
    pub(super) newest: watch::Receiver<Cursor>,
    pub(super) health: Arc<Health>,
    /// All lines up to here were returned.
    pub(super) after: Cursor,
    /// A hint was returned that there are lines up to here.
    pub(super) announced: Cursor,
}

impl Touching {
    pub(super) async fn next(mut self) -> Result<Option<(Vec<Touched>, Self)>, StoreError> {
        loop {
            let newest = *self.newest.borrow_and_update();
            if newest < self.after {
                self.after = newest;
                return Ok(Some((vec![Touched::Gap], self)));
            }
            if newest > self.after && newest > self.announced {
                // A listing need not wait until the lines are read.
                self.announced = newest;
                return Ok(Some((vec![Touched::Changed], self)));
            }
            if newest > self.after {
                let store = EmbeddedStore(self.shared.upgrade().ok_or_else(closed)?);
                let lines = store.feed(self.after, TOUCHED_PAGE_ROWS).await?;
                self.after = lines.last().map_or(newest, |line| line.cursor);
                return Ok(Some((lines.iter().map(FeedLine::touched).collect(), self)));
            }
            if self.newest.changed().await.is_err() {
                return Err(self.health.check().err().unwrap_or_else(closed));
            }
        }
    }
}

impl FeedLine {
    fn touched(&self) -> Touched {
        let cursor = self.cursor;
        match self.kind {
            FeedKind::Asset { digest, .. } => Touched::Stored { hash: digest.hash, cursor },
            FeedKind::Meta { hash, .. } => Touched::Edited { hash, cursor },
            FeedKind::Gone { .. } => Touched::Changed,
        }
    }
}
