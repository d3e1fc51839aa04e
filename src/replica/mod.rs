//! What this device knows and reports to the group: the catalogue of the store, the journal's writer
//! and streams, metadata reconciled between store and journal, device events, queries of the index,
//! and the status for people.
//!
//! [`catalogue`] is the only reader of the store's feed, [`journal`] the only writer of the journal,
//! [`replicate`] syncs two journals, [`metadata`] carries edits between the store's rows and the
//! journal, [`folders`] reads and writes the versions of shared folders, [`scrub`] reads every asset
//! again, [`loading`] builds the engine, [`disk`] watches the free space, [`status`] is what the agent publishes and [`picture`]
//! builds it. [`copies`] decides which assets are wanted here, and counts copies.

pub(crate) mod catalogue;
pub mod copies;
pub(crate) mod device;
pub(crate) mod disk;
pub(crate) mod events;
pub mod folders;
pub mod journal;
pub(crate) mod loading;
pub mod metadata;
pub(crate) mod picture;
pub(crate) mod query;
pub mod replicate;
pub(crate) mod scrub;
pub mod status;
