//! What the store and the journal of this device have of one asset, for the question why it is, or
//! is not, on each device.

use std::time::Duration;

use tokio::time::timeout;

use crate::core::copies::Absence;
use crate::core::ids::{Hash, NodeId};
use crate::core::pairing::shown_name;
use crate::core::why::{Here, Seen, Unwanted};
use crate::group::{RequestError, internal, journal_error};
use crate::replica::copies::Keeper;
use crate::replica::journal::JournalHandle;
use crate::store::Store;

/// The deadline of the store's answer. A store that does not answer is one of the reasons.
const STORE_WAIT: Duration = Duration::from_secs(5);

/// Looks an asset up. What the loop alone knows is left out.
///
/// # Errors
/// The journal or the index cannot be read. A store that does not answer is part of the result.
pub(crate) async fn seen(
    store: &dyn Store,
    journal: &JournalHandle,
    keeper: &Keeper,
    hash: Hash,
) -> Result<Seen, RequestError> {
    let added_by = added_by(journal, hash).await?;
    let (here, is_evicted, store_error) = here(store, hash).await;
    let found = keeper.holders(hash).await;
    let (absence, holders) =
        found.map_err(|error| internal("reading who holds the asset", &error))?;
    let unwanted = match absence {
        _ if is_evicted => Some(Unwanted::Evicted),
        Some(Some(Absence::Unwanted)) => Some(Unwanted::Expression),
        Some(Some(Absence::Missing) | None) | None => None,
    };
    let holders = holders.iter().map(|peer| (peer.node_id, peer.confirmed_ms)).collect();
    Ok(Seen { here, unwanted, holders, store_error, added_by, ..Seen::default() })
}

/// What the store has of the asset, whether its copy was deleted on purpose, and why the store does not
/// answer, if so.
async fn here(store: &dyn Store, hash: Hash) -> (Here, bool, Option<String>) {
    match timeout(STORE_WAIT, store.lookup(hash)).await {
        Ok(Ok(Some(asset))) if asset.is_evicted => (Here::Absent, true, None),
        Ok(Ok(Some(asset))) if asset.is_damaged => (Here::Damaged, false, None),
        Ok(Ok(Some(_))) => (Here::Whole, false, None),
        Ok(Ok(None)) => (Here::Absent, false, None),
        Ok(Err(error)) => (Here::Absent, false, Some(error.to_string())),
        Err(_) => {
            let seconds = STORE_WAIT.as_secs();
            (Here::Absent, false, Some(format!("it did not answer within {seconds} s")))
        }
    }
}

/// The device that added the asset, with its name.
async fn added_by(
    journal: &JournalHandle,
    hash: Hash,
) -> Result<Option<(NodeId, String)>, RequestError> {
    let found = journal.read(move |reader| {
        let Some(adder) = reader.adders(&[hash])?.into_iter().next().flatten() else {
            return Ok(None);
        };
        let member = reader.members()?.into_iter().find(|member| member.device == adder);
        let name = member.map_or_else(String::new, |member| member.name);
        Ok(Some((adder, shown_name(&name, &adder))))
    });
    found.await.map_err(|error| journal_error("reading who added the asset", &error))
}
