//! The filter of an event listing or feed, and the check of its cursor.

use serde_json::Value;

use super::places::EventPlace;
use crate::core::ids::{Hash, LogId, NodeId};
use crate::state::journal::{Cursor, EventRow, JournalError, JournalReader};

/// The requested events; all given conditions must hold.
#[derive(Debug, Clone, Default)]
pub(super) struct EventFilter {
    pub(super) since_ms: Option<u64>,
    pub(super) author: Option<NodeId>,
    pub(super) hash: Option<Hash>,
}

impl EventFilter {
    pub(super) fn fits(&self, event: &EventRow) -> bool {
        self.since_ms.is_none_or(|since_ms| event.hlc.ms() >= since_ms)
            && self.author.is_none_or(|author| author == event.author)
            && self.hash.is_none_or(|hash| {
                let data: Option<Value> = serde_json::from_slice(&event.data).ok();
                data.is_some_and(|data| data["hash"] == hash.to_string())
            })
    }
}

/// The journal's epoch; `None` when the journal does not know the cursor.
pub(super) fn epoch_for(
    journal: &JournalReader,
    after: Option<EventPlace>,
) -> Result<Option<LogId>, JournalError> {
    let epoch = journal.cursor_now()?.ok_or(JournalError::NoGroup)?.epoch;
    let is_known = match after {
        Some(EventPlace { epoch, arr, .. }) => journal.knows(&Cursor { epoch, arr })?,
        None => true,
    };
    Ok(is_known.then_some(epoch))
}
