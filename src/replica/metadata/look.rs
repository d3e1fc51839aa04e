//! One look at an asset: decides what to do, and writes its row to the store.

use crate::core::ids::{Digest, Hash, NodeId};
use crate::core::journal::asset::{
    Decision, JournalRow, Row, Shadow, new_record, reconcile, written,
};
use crate::core::journal::device_events::LogEvent;
use crate::core::journal::draft::{Draft, DraftChange};
use crate::core::journal::op::Value;
use crate::core::limits::{OP_BODY_BYTES_MAX, OP_CHANGES_MAX};
use crate::store::{Asset, Metadata, Store, StoreError};

use super::arrivals::fits;
use super::call;

/// The size at which a draft is complete; the sizes of changes are estimates.
const DRAFT_BYTES: usize = OP_BODY_BYTES_MAX * 3 / 4;

/// An asset and its row in the store, to be judged against the journal.
pub(super) struct Asked {
    pub(super) asset: Asset,
    /// Whether its row in the store must not be written now.
    pub(super) frozen: bool,
    /// Whether this device has joined a group of others and has not looked at all assets since.
    pub(super) is_brought: bool,
    /// The device that sent it, if it was sent and the sender is known.
    pub(super) from: Option<NodeId>,
}

/// The result of a look at an asset.
pub(super) struct Look {
    asset: Asset,
    /// Metadata that this device brings into the group, or attributes given under an earlier version,
    /// for the journal.
    pub(super) fill: Option<DraftChange>,
    /// The user's edits and the events, for the journal.
    pub(super) changes: Vec<DraftChange>,
    /// Whether the row in the store differs from the one last seen or written there.
    pub(super) is_edit: bool,
    /// The shadow to record in the same transaction.
    pub(super) shadow: Shadow,
    /// The row to write to the store afterwards.
    pub(super) write: Option<Row>,
    /// Whether not everything fitted into one op: look again at once.
    pub(super) again: bool,
}

impl Asked {
    pub(super) fn hash(&self) -> Hash {
        self.asset.entry.digest.hash
    }

    /// Judges the asset; `None` when there is nothing to do.
    pub(super) fn judge(&self, shadow: Option<Shadow>, journal: &JournalRow) -> Option<Look> {
        let Asked { asset, frozen, is_brought, .. } = self;
        let hash = self.hash();
        let seen = shadow.as_ref().filter(|shadow| !shadow.is_forgotten());
        let store = row(&asset.metadata);
        if journal.is_too_large {
            return self.leave(shadow.as_ref());
        }
        let decision = reconcile(&hash, &store, version(&asset.metadata), seen, journal);
        let Decision { fill, mut edit, shadow: mut next, mut write, again } = decision;
        // While edits wait to be issued, the current row in the store shows them. So it is written
        // only when they are issued.
        let unfit = write.as_ref().is_some_and(|row| !fits(row));
        if (*frozen || again || unfit) && write.take().is_some() {
            next.pending = None;
        }
        let mut events: Vec<LogEvent> = self.arrival(shadow.as_ref()).into_iter().collect();
        if matches!(events[..], [LogEvent::AssetAdded { .. }]) && !journal.alive {
            // Its record says which device added it, even if there is nothing else to say.
            edit.get_or_insert_with(|| new_record(&hash));
        }
        if let (Some(edit), Some(_)) = (&edit, seen) {
            events.extend(LogEvent::of_edit(hash, edit, journal));
        }
        let is_edit = edit.is_some() && seen.is_some();
        let (fill, edit) = match edit {
            brought if *is_brought && !is_edit => (fill.or(brought), None),
            edit => (fill, edit),
        };
        let fill = fill.map(DraftChange::Put);
        let mut changes: Vec<DraftChange> = edit.map(DraftChange::Put).into_iter().collect();
        changes.extend(events.iter().map(LogEvent::to_change));
        // Another version of an equal row need not be recorded, nor that it has no attributes.
        let is_known = seen.is_some_and(|seen| {
            let Shadow { version, knows_attributes, .. } = *seen;
            !seen.is_expected() && *seen == Shadow { version, knows_attributes, ..next.clone() }
        });
        if changes.is_empty() && fill.is_none() && write.is_none() && !again && is_known {
            return None;
        }
        Some(Look { asset: asset.clone(), fill, changes, is_edit, shadow: next, write, again })
    }

    /// The result for an asset whose journal record is too large to read: logs its arrival, and
    /// leaves its row until the record is smaller.
    fn leave(&self, shadow: Option<&Shadow>) -> Option<Look> {
        let arrival = self.arrival(shadow)?;
        Some(Look {
            asset: self.asset.clone(),
            fill: None,
            changes: vec![arrival.to_change()],
            is_edit: false,
            shadow: Shadow { knows_attributes: true, ..Shadow::default() },
            write: None,
            again: false,
        })
    }

    /// The event of the asset's arrival, if it was not logged yet.
    fn arrival(&self, shadow: Option<&Shadow>) -> Option<LogEvent> {
        let Digest { hash, size_bytes } = self.asset.entry.digest;
        match shadow {
            None => Some(LogEvent::AssetAdded { hash, size_bytes }),
            Some(shadow) if shadow.is_expected() => {
                Some(LogEvent::AssetReceived { hash, size_bytes, from: self.from })
            }
            Some(_) => None,
        }
    }
}

impl Look {
    pub(super) fn hash(&self) -> Hash {
        self.asset.entry.digest.hash
    }
}

/// The result of writing a row to the store.
pub(super) enum Written {
    /// The store has written the row; the shadow to record.
    Row(Shadow),
    /// The store never accepts it, so it is not written again; the shadow to record.
    Refused(Shadow),
    /// The user changed the row meanwhile.
    Changed,
    /// The asset is gone.
    Gone,
}

pub(super) async fn write_row(store: &dyn Store, look: Look) -> Result<Written, StoreError> {
    let (hash, before) = (look.hash(), look.asset.metadata);
    let Some(write) = look.write else { return Ok(Written::Changed) };
    if before.version == 0 {
        // The store may not compare versions, so compare here as late as possible.
        match call(store.lookup(hash)).await? {
            None => return Ok(Written::Gone),
            Some(asset) if asset.metadata != before => return Ok(Written::Changed),
            Some(_) => {}
        }
    }
    let row = metadata(Some(write.clone()));
    match call(store.set_metadata(hash, &row, Some(before.version))).await {
        Ok(stands) => {
            let version = version(&stands);
            Ok(Written::Row(written(&write, stands.attributes, version)))
        }
        Err(StoreError::Conflict(_)) => Ok(Written::Changed),
        Err(StoreError::NotFound(_)) => Ok(Written::Gone),
        Err(error @ (StoreError::TooLarge(_) | StoreError::Unsupported(_))) => {
            tracing::warn!(hash = hash.short(), %error, "the store refuses an asset's metadata");
            let (pending, written) = (None, Some(write));
            Ok(Written::Refused(Shadow { pending, written, ..look.shadow }))
        }
        Err(error) => Err(error),
    }
}

/// Packs changes into as few drafts as the bounds of an op allow; the changes of one asset stay
/// together.
pub(super) fn pack<'a>(assets: impl Iterator<Item = &'a [DraftChange]>) -> Vec<Draft> {
    let mut drafts: Vec<Draft> = Vec::new();
    let mut draft_bytes = 0;
    for changes in assets.filter(|changes| !changes.is_empty()) {
        let bytes: usize = changes.iter().map(change_bytes).sum();
        match drafts.last_mut() {
            Some(draft)
                if draft.changes.len() + changes.len() <= OP_CHANGES_MAX
                    && draft_bytes + bytes <= DRAFT_BYTES =>
            {
                draft.changes.extend_from_slice(changes);
                draft_bytes += bytes;
            }
            _ => {
                drafts.push(Draft { changes: changes.to_vec(), expect: Vec::new() });
                draft_bytes = bytes;
            }
        }
    }
    drafts
}

/// An upper estimate of the size of a change in an op's body.
pub(super) fn change_bytes(change: &DraftChange) -> usize {
    /// Field tags, lengths and a stamp.
    const EXTRA_BYTES: usize = 64;
    match change {
        DraftChange::Put(put) => {
            let set = put.set.iter().map(|(field, value)| {
                field.len() + value.as_ref().map_or(0, Value::size_bytes) + EXTRA_BYTES
            });
            let elems = put.add.iter().chain(&put.remove);
            let elems = elems.map(|elem| elem.field.len() + elem.elem.len() + EXTRA_BYTES);
            let key = put.key.model.len() + put.key.id.len() + EXTRA_BYTES;
            key + set.sum::<usize>() + elems.sum::<usize>()
        }
        DraftChange::Delete(key) => key.model.len() + key.id.len() + EXTRA_BYTES,
        DraftChange::Event { stream, kind, data } => {
            stream.len() + kind.len() + data.len() + EXTRA_BYTES
        }
    }
}

pub(super) fn metadata(row: Option<Row>) -> Metadata {
    let Row { description, trashed, tags, attributes } = row.unwrap_or_default();
    Metadata { description, trashed, tags: tags.into_iter().collect(), attributes, version: 0 }
}

pub(super) fn row(metadata: &Metadata) -> Row {
    Row {
        description: metadata.description.clone(),
        trashed: metadata.trashed,
        tags: metadata.tags.iter().cloned().collect(),
        attributes: metadata.attributes.clone(),
    }
}

/// The version for shadows: never 0, which marks an unseen asset, even if the store has no
/// versions.
pub(super) fn version(metadata: &Metadata) -> u64 {
    metadata.version.max(1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::core::journal::asset::asset_key;
    use crate::core::journal::draft::DraftPut;
    use crate::core::limits::VALUE_BYTES_MAX;

    pub(super) fn described(n: u8, length: usize) -> Vec<DraftChange> {
        let hash = Hash([n; 32]);
        let text = Some(Value::Text("x".repeat(length)));
        let put = DraftPut {
            key: asset_key(&hash),
            create: true,
            set: BTreeMap::from([("description".to_owned(), text)]),
            add: Default::default(),
            remove: Default::default(),
        };
        let added = LogEvent::AssetAdded { hash, size_bytes: 1 };
        vec![DraftChange::Put(put), added.to_change()]
    }

    #[test]
    pub(super) fn drafts_are_full_within_the_bounds_of_an_op() {
        let assets: Vec<_> = (0..100).map(|n| described(n, 5)).collect();
        let drafts = pack(assets.iter().map(Vec::as_slice));
        assert_eq!(drafts.len(), 200_usize.div_ceil(OP_CHANGES_MAX));
        assert!(drafts.iter().all(|draft| draft.check().is_ok()));
        assert_eq!(drafts.iter().map(|draft| draft.changes.len()).sum::<usize>(), 200);

        let assets: Vec<_> = (0..10).map(|n| described(n, VALUE_BYTES_MAX)).collect();
        let drafts = pack(assets.iter().map(Vec::as_slice));
        assert_eq!(drafts.len(), 5, "two of the longest texts fit one op");
        assert!(pack([].into_iter()).is_empty());
        assert!(pack([&[][..]].into_iter()).is_empty());
    }
}
