//! Reports the group as it is on disk after each change of it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{sleep, timeout};

use crate::core::ids::NodeId;
use crate::replica::journal::{AskError, Commits, JournalHandle};
use crate::state::journal::GroupState;

use super::{RequestError, internal, journal_error};

/// How long a change of names or addresses waits for further ones. A change of members does not
/// wait.
const COALESCE: Duration = Duration::from_millis(200);

/// How long to wait before the group is read again after a database error.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// Sends the group at the start, after every commit that changed the group, and after each
/// notification of `again`. Ends when the journal is
/// closed or nobody listens.
pub(crate) async fn follow<F: From<GroupState>>(
    journal: JournalHandle,
    node_id: NodeId,
    groups: mpsc::Sender<F>,
    again: Arc<Notify>,
) {
    let mut commits = journal.commits();
    let mut told = None;
    loop {
        // Marked as seen before the read, so that a commit during the read causes another one.
        commits.borrow_and_update();
        let version = journal.roster().version();
        match journal.read(move |reader| reader.group_state(&node_id)).await {
            Ok(Some(state)) if told.as_ref() != Some(&state) => {
                if groups.send(state.clone().into()).await.is_err() {
                    return;
                }
                told = Some(state);
            }
            Ok(_) => {}
            Err(AskError::Closed) => return,
            Err(error) => {
                tracing::error!("reading the group: {error:#}");
                sleep(READ_AGAIN).await;
                continue;
            }
        }
        tokio::select! {
            () = again.notified() => told = None,
            changed = commits.changed() => {
                if changed.is_err() {
                    return;
                }
                // Whether the members changed or the time is over, the group is read next.
                let _ = timeout(COALESCE, members_change(&journal, version, &mut commits)).await;
            }
        }
    }
}

async fn members_change(
    journal: &JournalHandle,
    version: u64,
    commits: &mut watch::Receiver<Commits>,
) {
    while journal.roster().version() == version && commits.changed().await.is_ok() {}
}

/// Writes at which addresses a member was reached. They are a hint, so an error is only logged.
pub(crate) async fn note_addresses(
    journal: &JournalHandle,
    device: NodeId,
    addresses: Vec<String>,
) {
    let noted = journal.run(move |journal, _| journal.reached(&device, &addresses));
    if let Err(error) = noted.await {
        tracing::warn!("writing a member's addresses: {error:#}");
    }
}

/// Reads this device's group.
pub(crate) async fn group_state(
    journal: &JournalHandle,
    me: NodeId,
) -> Result<GroupState, RequestError> {
    let state = journal.read(move |reader| reader.group_state(&me)).await;
    let state = state.map_err(|error| journal_error("reading the group", &error))?;
    state.context("this device is in no group").map_err(|error| internal("reading", &error))
}
