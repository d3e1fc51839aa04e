//! Assets that come from other devices are put into the store with the journal's metadata, and the
//! shadow knows it before: so that it is no edit of this user, and the arrival is logged as one. With
//! no metadata nothing could be taken for an edit: shadow and asset become durable at the same time,
//! and only a crash between the two has the arrival logged as if the user had added it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};

use super::look::metadata;
use crate::core::ids::{GroupId, Hash, NodeId};
use crate::core::journal::asset::{Row, Shadow};
use crate::replica::journal::JournalHandle;
use crate::state::journal;
use crate::store::Metadata;
use crate::store::messages::{METADATA_BYTES_MAX, TAGS_MAX};

/// Assets whose sender is remembered until their arrival is logged: far more than are under way.
const SENDERS_MAX: usize = 64 * 1024;

/// Prepares for assets that come from other devices: they are put into the store with the
/// journal's metadata, and that is no edit of this user.
#[derive(Clone)]
pub struct Arrivals {
    journal: JournalHandle,
    from: Option<NodeId>,
    senders: Arc<Mutex<BTreeMap<Hash, NodeId>>>,
}

/// What assets are to be put into the store with.
pub(crate) struct Expected<'a> {
    /// In the order asked.
    pub(crate) metadata: Vec<Metadata>,
    noted: BoxFuture<'a, ()>,
}

impl Expected<'_> {
    /// Of assets that nobody has said anything of.
    pub(crate) fn bare(count: usize) -> Self {
        Self { metadata: vec![Metadata::default(); count], noted: Box::pin(ready(())) }
    }

    /// Returns when the journal has noted that they come. To be waited for beside the store.
    pub(crate) async fn noted(self) {
        self.noted.await;
    }
}

impl Arrivals {
    pub(crate) fn new(journal: JournalHandle) -> Self {
        Self { journal, from: None, senders: Arc::default() }
    }

    /// Those that come from this device.
    pub(crate) fn from(&self, from: NodeId) -> Self {
        Self { from: Some(from), ..self.clone() }
    }

    /// To be called before assets are put into the store: what to put them with, in their order.
    /// Without the journal they arrive bare, and get their metadata afterwards. The rows are read
    /// beside the writer, which may be busy with a commit: what comes in after them is a change like
    /// any other.
    pub(crate) async fn expect(&self, hashes: Vec<Hash>) -> Expected<'_> {
        self.remember_sender(&hashes);
        let count = hashes.len();
        let read = self.journal.read(move |reader| {
            let rows = hashes.into_iter().map(|hash| {
                let row = reader.asset(&hash)?.row().canonical();
                // An asset must not be refused for its row.
                Ok((hash, if fits(&row) { row } else { Row::default() }))
            });
            Ok((reader.group()?, rows.collect::<journal::Result<Vec<_>>>()?))
        });
        let (group, rows) = match read.await {
            Ok(read) => read,
            Err(error) => {
                tracing::warn!(%error, "assets arrive and the journal could not be asked");
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

    /// Whether the journal has noted them; not when this device is in another group by now.
    async fn note(&self, group: Option<GroupId>, shadows: Vec<(Hash, Shadow)>) -> bool {
        let noted = self.journal.run(move |journal, now_ms| {
            if journal.group() != group {
                return Ok(false);
            }
            journal.write_with_shadows(&[], &[], &shadows, now_ms)?;
            Ok(true)
        });
        noted.await.unwrap_or_else(|error| {
            tracing::warn!(%error, "assets arrive and the journal could not be told");
            false
        })
    }

    fn remember_sender(&self, hashes: &[Hash]) {
        let Some(from) = self.from else { return };
        let mut senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
        if senders.len() + hashes.len() > SENDERS_MAX {
            // Left by assets that never arrived; the log then does not say who sent the rest.
            senders.clear();
        }
        senders.extend(hashes.iter().map(|hash| (*hash, from)));
    }

    pub(super) fn sender(&self, hash: &Hash) -> Option<NodeId> {
        self.senders.lock().unwrap_or_else(PoisonError::into_inner).get(hash).copied()
    }

    pub(super) fn arrived(&self, hash: &Hash) {
        self.senders.lock().unwrap_or_else(PoisonError::into_inner).remove(hash);
    }
}

/// Whether a store takes the row at all.
pub(super) fn fits(row: &Row) -> bool {
    let bytes = row.description.len() + row.tags.iter().map(String::len).sum::<usize>();
    bytes <= METADATA_BYTES_MAX && row.tags.len() <= TAGS_MAX
}
