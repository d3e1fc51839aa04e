//! Assets that come from other devices are put into the store with the journal's metadata, and the
//! shadow knows it before: so that it is no edit of this user, and the arrival is logged as one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::look::metadata;
use crate::agent::journal::JournalHandle;
use crate::core::ids::{Hash, NodeId};
use crate::core::journal::asset::{Row, Shadow};
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

impl Arrivals {
    pub(in crate::agent) fn new(journal: JournalHandle) -> Self {
        Self { journal, from: None, senders: Arc::default() }
    }

    /// Those that come from this device.
    pub(in crate::agent) fn from(&self, from: NodeId) -> Self {
        Self { from: Some(from), ..self.clone() }
    }

    /// To be called before assets are put into the store; the metadata to put them with, in their
    /// order. Without the journal they arrive bare, and get their metadata afterwards.
    pub(in crate::agent) async fn expect(&self, hashes: Vec<Hash>) -> Vec<Metadata> {
        let count = hashes.len();
        if let Some(from) = self.from {
            let mut senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
            if senders.len() + count > SENDERS_MAX {
                // Left by assets that never arrived; the log then does not say who sent the rest.
                senders.clear();
            }
            senders.extend(hashes.iter().map(|hash| (*hash, from)));
        }
        let expected = self.journal.run(move |journal, now_ms| {
            let mut shadows = Vec::with_capacity(hashes.len());
            let mut rows = Vec::with_capacity(hashes.len());
            for hash in hashes {
                let row = journal.asset(&hash)?.row().canonical();
                shadows.push((hash, Shadow::expected(row.clone())));
                rows.push(row);
            }
            journal.write_with_shadows(&[], &[], &shadows, now_ms)?;
            Ok(rows)
        });
        match expected.await {
            Ok(rows) => rows.into_iter().map(|row| Some(row).filter(fits)).map(metadata).collect(),
            Err(error) => {
                tracing::warn!(%error, "assets arrive without their metadata");
                vec![Metadata::default(); count]
            }
        }
    }

    pub(super) fn sender(&self, hash: &Hash) -> Option<NodeId> {
        self.senders.lock().unwrap_or_else(PoisonError::into_inner).get(hash).copied()
    }

    pub(super) fn arrived(&self, hash: &Hash) {
        self.senders.lock().unwrap_or_else(PoisonError::into_inner).remove(hash);
    }
}

/// Whether a store takes the row at all; an asset must not be refused for it.
fn fits(row: &Row) -> bool {
    let bytes = row.description.len() + row.tags.iter().map(String::len).sum::<usize>();
    bytes <= METADATA_BYTES_MAX && row.tags.len() <= TAGS_MAX
}
