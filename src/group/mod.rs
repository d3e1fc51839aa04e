//! Who belongs to the group, and how that changes: tickets and pairing on both sides, introductions,
//! removal, renaming, leaving. Each function does its whole work and returns; the agent runs it as a
//! task and answers the request.
//!
//! I1  A change of the group is written to disk first, and the loop learns of it afterwards
//!     ([`follow`]). So everything that the engine knows of the group is durable.

mod answers;
pub(crate) mod changes;
pub(crate) mod comparing;
mod error;
pub(crate) mod follow;
pub(crate) mod introductions;
pub(crate) mod knocks;
pub(crate) mod pairing;

pub use answers::{
    LeaveReply, PairReply, RemoveReply, RemoveRequest, RemovedToo, RenameReply, RevokeReply,
    TicketReply, TicketTerms,
};
pub use error::RequestError;
pub(crate) use error::{internal, journal_error};
