//! The feed as followers see it: its lines, hints that there are new ones, and what they touch.

use std::sync::{Arc, Weak};

use tokio::sync::watch;

use super::db::closed;
use super::{EmbeddedStore, Health, Shared};
use crate::core::ids::{Digest, Hash};
use crate::store::{Cursor, FeedEvent, StoreError, Touched};

/// Lines of the feed read at once for one who is told of every change.
const TOUCHED_PAGE_ROWS: usize = 1000;

/// One line of the feed in full, for a server of it: what
/// [`Store::follow`](crate::store::Store::follow) only hints at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeedLine {
    /// Its position in the feed.
    pub cursor: Cursor,
    /// The change.
    pub kind: FeedKind,
}

/// The kind of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedKind {
    /// An asset was stored.
    Asset {
        /// The asset.
        digest: Digest,
        /// When it was stored, ms since the Unix epoch.
        timestamp_ms: i64,
    },
    /// An asset's metadata was changed. Only the last change of an asset is in the feed.
    Meta {
        /// The asset.
        hash: Hash,
        /// Its version since then.
        version: u64,
    },
    /// An asset is no longer held: its content was found damaged.
    Gone {
        /// The asset.
        hash: Hash,
    },
}

/// A follower between two hints.
pub(super) enum Following {
    /// Nothing said yet; knows the feed up to the cursor.
    Asked(watch::Receiver<Cursor>, Cursor, Arc<Health>),
    /// Knows what the receiver has marked as seen.
    Live(watch::Receiver<Cursor>, Arc<Health>),
    Ended,
}

impl Following {
    pub(super) async fn next(self) -> Option<(Result<FeedEvent, StoreError>, Self)> {
        let (mut newest, health) = match self {
            Self::Asked(mut newest, after, health) => {
                let seen = *newest.borrow_and_update();
                if seen != after {
                    let hint = match seen > after {
                        true => FeedEvent::Changed,
                        false => FeedEvent::Reset,
                    };
                    return Some((Ok(hint), Self::Live(newest, health)));
                }
                (newest, health)
            }
            Self::Live(newest, health) => (newest, health),
            Self::Ended => return None,
        };
        match newest.changed().await {
            Ok(()) => Some((Ok(FeedEvent::Changed), Self::Live(newest, health))),
            Err(_) => {
                let error = health.check().err().unwrap_or_else(closed);
                Some((Err(error), Self::Ended))
            }
        }
    }
}

/// Who is told of every change. Does not keep the store open either.
pub(super) struct Touching {
    pub(super) shared: Weak<Shared>,
    pub(super) newest: watch::Receiver<Cursor>,
    pub(super) health: Arc<Health>,
    pub(super) after: Cursor,
}

impl Touching {
    pub(super) async fn next(mut self) -> Result<Option<(Vec<Touched>, Self)>, StoreError> {
        loop {
            let newest = *self.newest.borrow_and_update();
            if newest < self.after {
                self.after = newest;
                return Ok(Some((vec![Touched::Gap], self)));
            }
            if newest > self.after {
                let store = EmbeddedStore(self.shared.upgrade().ok_or_else(closed)?);
                let lines = store.feed(self.after, TOUCHED_PAGE_ROWS).await?;
                self.after = lines.last().map_or(newest, |line| line.cursor);
                return Ok(Some((lines.iter().filter_map(FeedLine::touched).collect(), self)));
            }
            if self.newest.changed().await.is_err() {
                return Err(self.health.check().err().unwrap_or_else(closed));
            }
        }
    }
}

impl FeedLine {
    fn touched(&self) -> Option<Touched> {
        let hash = match self.kind {
            FeedKind::Asset { digest, .. } => digest.hash,
            FeedKind::Meta { hash, .. } => hash,
            // Nothing was stored, and nobody edited anything.
            FeedKind::Gone { .. } => return None,
        };
        Some(Touched::Asset { hash, cursor: self.cursor })
    }
}
