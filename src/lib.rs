//! can-sync: a peer-to-peer sync agent over QUIC. This page is the map; start here.
//!
//! # What flows where
//!
//! ```text
//!   people, other programs                            the other devices
//!            |  HTTP on loopback                              |  QUIC
//!   +--------v--------+                              +--------v--------+
//!   |    api, cli     |                              |       net       |
//!   +--------+--------+                              +---+---------+---+
//!            | requests            control stream, facts |         | batch streams
//!            | <- status                     <- messages |         |
//!   +--------v-------------------------------------------v---+     |
//!   |  agent: one loop                                       |     |
//!   |     facts --> core::engine (decides) --> effects       |     |
//!   +----+---------------------^------------------------+----+     |
//!        | group, index        | the store's changes    | batches  |
//!   +----v----+        +-------+--------+        +------v----------v---+
//!   |  state  |        | agent (follow) |        |   transfer   |
//!   +---------+        +-------^--------+        +----------+----------+
//!                              |                            | verified contents
//!                     +--------+----------------------------v---+
//!                     |  store: embedded, or another program's  |
//!                     +-----------------------------------------+
//! ```
//!
//! The control plane is the loop: it is told facts (a peer connected, a message came, an asset was
//! stored), the pure engine answers with effects, and tasks carry these out and report back. The
//! data plane is the transfers: contents go between a QUIC stream and the store and never through
//! the loop.
//!
//! An asset's way: it enters a store and is durable there; the feed says so; it is taken into the
//! index; the engine offers it to every connected peer; the peer wants it, checks it against its
//! hash, commits it and acknowledges; and the peer's own feed carries it on. A peer that was away
//! compares sets when it connects, finds what differs, and asks for it.
//!
//! # Reading order
//!
//! 1. `proto/peer.proto` and `proto/store.proto`: the two contracts; their comments are the spec.
//! 2. [`core::ids`], [`core::message`], then [`core::engine`]: every decision, with no I/O. Below
//!    it [`core::peers`] (connections), [`core::wants`] (who is asked for what), [`core::fetches`]
//!    (what somebody waits for), [`core::spans`] (who sends which part of a large asset),
//!    [`core::session`] (batches), [`core::reconcile`] and [`core::sketch`] (the difference of two
//!    sets).
//! 3. [`agent`]: `agent/run.rs` is the loop, `agent/effects.rs` does what the engine orders,
//!    [`transfer`] moves the bytes.
//! 4. [`store`]: the one trait of the house, and its two implementations.
//! 5. [`net`], [`wire`] and [`state`], as questions lead there; [`api`] and [`cli`] last.
//!
//! Imports point down: `core` <- `wire` <- `store`, `net`, `state` <- `replica` <- `transfer` <-
//! `agent` <- `api` <- `cli`, and `store` <- `http` <- `api`. `store`, `net` and `state` do not know
//! each other; [`db`] lies below `store` and `state`; [`clock`] is the only reader of time, and below
//! all that need it.
//!
//! # Where the promises live
//!
//! Each file's head numbers the invariants it holds. The ones everything rests on:
//!
//! | promise | held by |
//! |---|---|
//! | What is acknowledged survives a power cut | [`store`] I1, [`transfer`] I1 |
//! | Bytes are kept and sent under their own hash only | [`store`] I2, [`transfer`] I2 |
//! | Nothing is missed, whatever is lost on the way | [`core::engine`] I1, [`store`] I3 |
//! | Each asset crosses once | [`core::wants`] I1, [`core::spans`] S1 |
//! | Only members come in; a removal is final | [`state::journal`], [`net`] |
//! | No peer fills our memory or holds up another | [`core::limits`], [`core::session`] I1 |
//! | Every task has an owner, and stopping ends all of them | `agent/run.rs` I2, I3 |
//! | The sources keep these borders | `tests/tidy.rs` |
//!
//! # One word per thing
//!
//! | word | is |
//! |---|---|
//! | device | one installation: one home, one key |
//! | node ID | a device's public key, its name on the network |
//! | peer | another device of the group |
//! | group | the devices that were paired with each other |
//! | member | a device that is in the group, and was not removed |
//! | ticket | an invitation into the group, good once; what is kept of it is its token |
//! | introduction | the ops by which a device is a member: the founder's, then who added whom |
//! | home | the folders of one agent |
//! | store | the content store beside the agent |
//! | asset | immutable bytes, named by their hash |
//! | hash | the name of an asset: BLAKE3 or SHA-256 of its whole content |
//! | digest | hash and size of an asset |
//! | metadata | what people write about an asset: description, tags, trashed |
//! | cursor | a place in a store's change feed |
//! | index | the hashes the store holds, as this agent has taken them in |
//! | sketch | a set of hashes folded into a constant size |
//! | fingerprint | one number for a whole set: equal sets, equal fingerprints |
//! | reconcile | find the difference of two devices' sets |
//! | batch | assets moved on one stream |
//! | offer, want, ack | what a sender has, what the receiver takes of it, what it has committed |
//! | solicit | ask a peer for assets it is known to hold |
//! | lane | batches of one kind to one peer: live (small and new here), small, large, wanted now |
//! | fetch | ask for an asset because somebody waits for it |
//! | partial | a large asset under way, as far as it was verified |
//! | source, span | a peer that sends a large asset, alone or with others; a part it is asked for |
//! | quarantine | hashes left alone for a while because their content was wrong |
//! | fact, effect | what the engine is told, what it orders |

pub mod agent;
pub mod api;
pub mod cli;
pub mod clock;
pub mod core;
pub mod db;
pub mod http;
pub mod net;
pub mod replica;
pub mod state;
pub mod store;
pub mod transfer;
pub mod wire;
