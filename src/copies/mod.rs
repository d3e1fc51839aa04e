//! The copies of assets on this device and on the others: which absent assets are wanted here, proofs
//! that other devices hold an asset, evictions, the wishes of the group to forget assets, and space that
//! this device frees by its own policy.
//!
//! Each file is one task or one request with its parts: [`judge`] and [`follow`] decide about absent
//! assets, [`gatherer`] answers `safe` and `evict` with [`asking`] and [`evicting`], [`forgetting`]
//! follows wishes, [`expiry`] frees what nothing holds any more, [`lookup`] finds what is known about one asset. The agent starts them.

use tokio::task::spawn_blocking;

pub(crate) mod asking;
pub(crate) mod evicting;
pub(crate) mod expiry;
pub(crate) mod follow;
pub mod forgetting;
pub mod gathered;
pub(crate) mod gatherer;
pub(crate) mod judge;
pub(crate) mod lookup;
mod open;

/// Runs blocking work; a failure comes as text.
async fn blocking<T: Send + 'static, E: std::fmt::Display + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, String> {
    let done = spawn_blocking(work).await.map_err(|error| error.to_string())?;
    done.map_err(|error| error.to_string())
}
