//! The journal's rules: what an op is, how cells merge, how writes are stamped, who belongs to the
//! group. `proto/journal.proto` describes the whole.
//!
//! | file | decides |
//! |---|---|
//! | [`stamp`] | the order of all writes, and which op is too far in the future |
//! | [`op`] | what an op contains, and which bounds it has |
//! | [`draft`] | which changes a local writer may request |
//! | [`cell`] | which cells an op writes, and which of two values stays |
//! | [`members`] | who may author, who may connect |
//! | [`message`] | which messages two devices exchange |
//! | [`budget`] | how many bytes of ops are accepted from each device |
//! | [`set_hash`] | the digest of a set that grows and shrinks |
//! | [`session`] | what is sent to a peer and when, and which of its messages are accepted |
//! | [`asset`] | how an asset's metadata in the store and in the journal are merged |
//! | [`told`] | which of the metadata that a peer of the plain protocol tells are adopted |
//! | [`brake`] | which assets have their metadata written too often |
//! | [`device_events`] | what devices report about themselves: events, and a record of their state |

pub mod asset;
pub mod brake;
pub mod budget;
pub mod cell;
pub mod device_events;
pub mod draft;
pub mod members;
pub mod message;
pub mod op;
pub mod session;
pub mod set_hash;
pub mod stamp;
pub mod told;
