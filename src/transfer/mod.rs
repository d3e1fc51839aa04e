//! The data plane of a session: how assets cross a stream.
//!
//! ```text
//! send_batch     Offer, small ones inline ->          receive_batch
//!                <- Want ...                          (`decide` says what is wanted)
//!                Contents, Piece ... , Done ->        verifies and stores meanwhile
//!                <- Ack                               after the store committed
//! ```
//! A large asset may arrive on several streams at once, a part on each ([`gather`]). [`plain`] does
//! the same over one stream for both directions, without Offer and Want. Everything works on any
//! byte stream; nothing here decides which assets move, or when.
//!
//! I1  A receiver acknowledges only what its store has committed.
//! I2  A sender sends only content that it has verified against the asset's hash, and a receiver
//!     stores only such content. With SHA-256 the last piece of a large asset waits until the whole
//!     is verified.
//! I3  Memory is bounded whatever the assets' sizes: a sender prepares `PIECES_AHEAD` pieces or
//!     frames of small contents ahead (at most 3 MiB); a receiver holds one frame, one piece being
//!     written and two groups of `PUT_BYTES_MAX` and a content (at most 5 MiB).
//! I4  No side is silent for longer than `KEEP_ALIVE` while it works, nor waits longer than
//!     `READ_STALL` for a silent peer.
//! I5  Dropping a future here ends the stream and keeps what was verified: groups already given to
//!     the store are committed as a whole or not at all, and partial large assets are resumed by
//!     the next transfer from any peer. A stream that breaks costs one chunk group that has to be
//!     sent again.

mod context;
mod damaged;
mod gather;
mod intake;
mod meter;
mod outcome;
pub(crate) mod outgoing;
mod pace;
pub mod plain;
pub mod prove;
mod receive;
pub(crate) mod report;
mod send;
mod slot;
pub(crate) mod throttle;
pub(crate) mod told;
pub mod totals;
pub(crate) mod turns;

pub use context::Context;
pub use damaged::Damaged;
pub use gather::Gatherings;
pub use meter::Counters;
pub use outcome::{Outcome, Receipt, Received, TransferError};
pub use receive::receive_batch;
pub use send::send_batch;

#[cfg(test)]
mod tests;
