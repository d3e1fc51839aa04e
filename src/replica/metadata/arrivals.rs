//! Arrivals: assets from other devices are stored with the journal's metadata, and the shadow
//! records it before. So the metadata does not look like an edit by this user, and the arrival is
//! logged as received. Without metadata nothing could look like an edit; then shadow and asset
//! become durable at the same time, and only after a crash between the two is the arrival logged as
//! if the user had added it.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};
use parking_lot::Mutex;

use super::look::metadata;
use crate::core::ids::{GroupId, Hash, NodeId};
use crate::core::journal::asset::{Row, Shadow};
use crate::core::limits::METADATA_BYTES_MAX;
use crate::replica::journal::JournalHandle;
use crate::state::journal;
use crate::store::Metadata;
use crate::store::messages::TAGS_MAX;

/// How many senders are remembered until the arrival is logged: far more assets than are under way.
const SENDERS_MAX: usize = 64 * 1024;

/// Prepares the arrival of assets from other devices, so that their metadata does not look like an
/// edit by this user.
#[derive(Clone)]
pub struct Arrivals {
    journal: JournalHandle,
    from: Option<NodeId>,
    senders: Arc<Mutex<BTreeMap<Hash, NodeId>>>,
}

/// The metadata with which assets are to be stored.
pub(crate) struct Expected<'a> {
    /// In the order of the request.
    pub(crate) metadata: Vec<Metadata>,
    noted: BoxFuture<'a, ()>,
}

impl Expected<'_> {
    /// Empty metadata for `count` assets.
    pub(crate) fn bare(count: usize) -> Self {
        Self { metadata: vec![Metadata::default(); count], noted: Box::pin(ready(())) }
    }

    /// Returns when the journal has recorded the expected assets. Await it in parallel with the
    /// store.
    pub(crate) async fn noted(self) {
        self.noted.await;
    }
}

impl Arrivals {
    pub(crate) fn new(journal: JournalHandle) -> Self {
        Self { journal, from: None, senders: Arc::default() }
    }

    /// The arrivals from this device.
    pub(crate) fn from(&self, from: NodeId) -> Self {
        Self { from: Some(from), ..self.clone() }
    }

    /// Must be called before assets are stored; returns their metadata in order. If the journal
    /// fails they are stored without metadata and get it later. The rows are read in parallel with
    /// the writer, which may be busy with a commit: a later change is handled like any other.
    pub(crate) async fn expect(&self, hashes: Vec<Hash>) -> Expected<'_> {
        self.remember_sender(&hashes);
        let count = hashes.len();
        let read = self.journal.read(move |reader| {
            let rows = hashes.into_iter().map(|hash| {
                let row = reader.asset(&hash)?.row().canonical();
                // A row that the store would refuse must not stop the asset.
                Ok((hash, if fits(&row) { row } else { Row::default() }))
            });
            Ok((reader.group()?, rows.collect::<journal::Result<Vec<_>>>()?))
        });
        let (group, rows) = match read.await {
            Ok(read) => read,
            Err(error) => {
                tracing::warn!(%error, "cannot read the metadata of arriving assets from the journal");
                return Expected::bare(count);
            }
        };
        let shadows = rows.iter().cloned().map(|(hash, row)| (hash, Shadow::expected(row)));
        let noted = self.note(group, shadows.collect());
        if rows.iter().all(|(_, row)| *row == Row::default()) {
            let noted = Box::pin(noted.map(|_| ()));
            return Expected { noted, ..Expected::bare(count) };
        }
        if !noted.await {
            return Expected::bare(count);
        }
        let metadata = rows.into_iter().map(|(_, row)| metadata(Some(row))).collect();
        Expected { metadata, noted: Box::pin(ready(())) }
    }

    /// Records the expected assets. Returns false when this device is in another group by now.
    async fn note(&self, group: Option<GroupId>, shadows: Vec<(Hash, Shadow)>) -> bool {
        let noted = self.journal.run(move |journal, now_ms| {
            if journal.group() != group {
                return Ok(false);
            }
            journal.write_with_shadows(&[], &[], &shadows, now_ms)?;
            Ok(true)
        });
        noted.await.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot record arriving assets in the journal");
            false
        })
    }

    fn remember_sender(&self, hashes: &[Hash]) {
        let Some(from) = self.from else { return };
        let mut senders = self.senders.lock();
        if senders.len() + hashes.len() > SENDERS_MAX {
            // Left over from assets that never arrived. Some later arrivals are then logged without
            // a sender.
            senders.clear();
        }
        senders.extend(hashes.iter().map(|hash| (*hash, from)));
    }

    pub(super) fn sender(&self, hash: &Hash) -> Option<NodeId> {
        self.senders.lock().get(hash).copied()
    }

    pub(super) fn arrived(&self, hash: &Hash) {
        self.senders.lock().remove(hash);
    }
}

/// Whether a store accepts a row of this size.
pub(super) fn fits(row: &Row) -> bool {
    row.text_bytes() <= METADATA_BYTES_MAX && row.tags.len() <= TAGS_MAX
}
