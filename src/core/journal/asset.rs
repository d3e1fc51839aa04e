//! An asset's metadata stands in the store, where the user edits it, and in the journal. This
//! decides how the two become one, by three-way comparison with what was last seen (the shadow).
//!
//! A1  Decisions compare values, never where an event came from: so no edit is taken for its echo,
//!     and none of our own writes for an edit.
//! A2  `pending` is durable before a row goes to the store, so that a crash in between does not make
//!     another device's value look like an edit of this user.

use std::collections::BTreeSet;

use crate::core::ids::Hash;
use crate::core::journal::draft::DraftPut;

/// The model under which assets' metadata is kept.
pub const ASSET_MODEL: &str = "asset";

/// The metadata of an asset, in canonical form: see [`Row::canonical`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Row {
    /// Free text.
    pub description: String,
    /// In the trash.
    pub trashed: bool,
    /// Tags.
    pub tags: BTreeSet<String>,
}

/// What the journal has of an asset: `None` where no cell was ever written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JournalRow {
    /// Free text.
    pub description: Option<String>,
    /// In the trash.
    pub trashed: Option<bool>,
    /// Tags.
    pub tags: BTreeSet<String>,
    /// Tags that were taken out, and stay out of a first sight.
    pub removed_tags: BTreeSet<String>,
}

/// What the agent remembers of an asset between two looks at the store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shadow {
    /// The row last read.
    pub base: Row,
    /// The row about to be written to the store, or just written.
    pub pending: Option<Row>,
    /// What the journal had when it was last written, or when the store was last left as it was.
    pub written: Option<Row>,
    /// The store's version of the row.
    pub version: u64,
}

/// What to do about an asset.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The user's edits, to write into the journal.
    pub edit: Option<DraftPut>,
    /// The shadow to write in the same transaction.
    pub shadow: Shadow,
    /// What to write to the store then, expecting the version of the row that was read.
    pub write: Option<Row>,
}

/// Decides about an asset: `store` is the row just read and its version, `shadow` what is remembered,
/// `journal` what the journal has.
pub fn reconcile(
    hash: &Hash,
    store: &Row,
    version: u64,
    shadow: Option<&Shadow>,
    journal: &JournalRow,
) -> Decision {
    let _ = (hash, shadow, journal);
    let shadow = Shadow { base: store.clone(), pending: None, written: None, version };
    Decision { edit: None, shadow, write: None }
}

/// The shadow after the store took `row` and gave it `version`.
pub fn written(shadow: &Shadow, row: Row, version: u64) -> Shadow {
    let _ = shadow;
    Shadow { base: row.clone(), pending: None, written: Some(row), version }
}
