//! What a transfer works with.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::core::ids::{Hash, HashAlgorithm, NodeId};
use crate::replica::metadata::{Arrivals, Expected};
use crate::state::index::{Index, IndexError};
use crate::state::partials::Partials;
use crate::store::Store;

use super::damaged::Damaged;
use super::gather::Gatherings;
use super::outcome::{TransferError, with_causes};

/// What a transfer works with. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// The store that assets are read from and written to.
    pub store: Arc<dyn Store>,
    /// The index of the hashes that the store holds.
    pub index: Index,
    /// The partials in which large assets are collected.
    pub partials: Partials,
    /// The large assets that are being received.
    pub gatherings: Gatherings,
    /// The store's assets that are not read for a while because their content was wrong.
    pub damaged: Damaged,
    /// A private folder for outboards that live as long as one transfer.
    pub scratch_folder: PathBuf,
    /// The group's hash algorithm.
    pub algorithm: HashAlgorithm,
    /// Told about assets before they are stored; `None`: they are stored without metadata.
    pub arrivals: Option<Arrivals>,
    /// The device at the other end; set for each transfer.
    pub source: Option<NodeId>,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

impl Context {
    /// The context of transfers with this peer.
    pub(crate) fn with_peer(&self, peer: NodeId) -> Self {
        let arrivals = self.arrivals.as_ref().map(|arrivals| arrivals.from(peer));
        Self { arrivals, source: Some(peer), ..self.clone() }
    }

    /// The metadata to store the assets with.
    pub(super) async fn expect(&self, hashes: Vec<Hash>) -> Expected<'_> {
        match &self.arrivals {
            Some(arrivals) => arrivals.expect(hashes).await,
            None => Expected::bare(hashes.len()),
        }
    }

    /// Whether the index holds each of the hashes, in their order.
    pub(super) async fn known(&self, hashes: Vec<Hash>) -> Result<Vec<bool>, TransferError> {
        let index = self.index.clone();
        blocking(move || index.held(&hashes)).await?.map_err(index_failed)
    }
}

pub(super) fn index_failed(error: IndexError) -> TransferError {
    TransferError::Local(format!("the index failed: {}", with_causes(error)))
}

/// Runs `work` on a blocking thread. Dropping the future does not stop the work, which is short.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, TransferError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| TransferError::Local(format!("a worker thread failed: {e}")))
}
