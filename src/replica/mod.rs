//! What this device knows and tells the group: the journal's writer and streams, metadata settled
//! between store and journal, device events, the index's answers, and the status that people read.
//!
//! [`catalogue`] is the one reader of the store's feed, [`journal`] is the one writer of the journal,
//! [`replicate`] brings two journals into step, [`metadata`] carries edits between the store's rows
//! and the journal, [`status`] is the picture the agent publishes.

pub(crate) mod catalogue;
pub(crate) mod device;
pub(crate) mod events;
pub mod journal;
pub mod metadata;
pub(crate) mod query;
pub mod replicate;
pub mod status;
