//! The filter of an event listing or feed, the check of its cursor, and the names of the assets that
//! events are about.

use std::collections::BTreeMap;

use super::json::event_hash;
use super::places::EventPlace;
use crate::core::ids::{Hash, LogId, NodeId};
use crate::core::journal::device_events::DEVICE_STREAM;
use crate::core::names::full_name;
use crate::state::journal::{Cursor, EventRow, JournalError, JournalReader};

/// The requested events; all given conditions must hold.
#[derive(Debug, Clone, Default)]
pub(super) struct EventFilter {
    pub(super) since_ms: Option<u64>,
    pub(super) author: Option<NodeId>,
    pub(super) hash: Option<Hash>,
    /// The last op that arrived here.
    pub(super) until_arr: Option<u64>,
}

impl EventFilter {
    pub(super) fn fits(&self, event: &EventRow) -> bool {
        self.since_ms.is_none_or(|since_ms| event.hlc.ms() >= since_ms)
            && self.author.is_none_or(|author| author == event.author)
            && self.hash.is_none_or(|hash| event_hash(event) == Some(hash))
            && self.until_arr.is_none_or(|arr| event.arr <= arr)
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

/// The paths and names of the assets that events of `stream` are about, as far as they are known.
pub(super) fn asset_names(
    journal: &JournalReader,
    stream: &str,
    events: &[EventRow],
) -> Result<BTreeMap<Hash, String>, JournalError> {
    let mut names = BTreeMap::new();
    if stream != DEVICE_STREAM {
        return Ok(names);
    }
    for hash in events.iter().filter_map(event_hash) {
        let (path, name) = journal.path_and_name(&hash)?;
        if !name.is_empty() {
            names.insert(hash, full_name(&path, &name));
        }
    }
    Ok(names)
}
