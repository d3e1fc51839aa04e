//! The journal's rules: what an op is, how cells merge, how time is told, who belongs to the group.
//! `proto/journal.proto` tells the whole story.
//!
//! | file | decides |
//! |---|---|
//! | [`stamp`] | the order of all writes, and which op is too far in the future |
//! | [`op`] | what an op says, and what is out of bounds |
//! | [`draft`] | what a local writer may ask for |
//! | [`cell`] | which cells an op writes, and which of two values stays |
//! | [`members`] | who may author, who may connect |
//! | [`message`] | what two devices say to each other |
//! | [`budget`] | how many bytes of ops are taken, of whom |
//! | [`set_hash`] | the digest of a set that grows and shrinks |
//! | [`session`] | what is sent to a peer, what of its words is believed, and when |
//! | [`asset`] | how an asset's metadata in the store and in the journal become one |
//! | [`brake`] | whose metadata is written too often |
//! | [`log`] | what devices tell of themselves: events, and the record of their state |

pub mod asset;
pub mod brake;
pub mod budget;
pub mod cell;
pub mod draft;
pub mod log;
pub mod members;
pub mod message;
pub mod op;
pub mod session;
pub mod set_hash;
pub mod stamp;
