//! can-sync: a peer-to-peer sync agent over QUIC. This page is the map; start here.
//!
//! # What flows where
//!
//! ```text
//!   people, other programs                            the other devices
//!            |  HTTP on loopback                              |  QUIC
//!   +--------v--------+                              +--------v--------+
//!   | api, page, cli  |                              |       net       |
//!   +--------+--------+                              +---+---------+---+
//!            | requests            control stream, facts |         | batch streams
//!            | <- status                     <- messages |         |
//!   +--------v-------------------------------------------v---+     |
//!   |  agent: one loop                                       |     |
//!   |     facts --> core::engine (decides) --> effects       |     |
//!   +----+---------------------^------------------------+----+     |
//!        | group, index        | the store's changes    | batches  |
//!   +----v----+     +----------+----------+      +------v----------v---+
//!   |  state  |     | replica (catalogue) |      |      transfer       |
//!   +---------+     +----------^----------+      +----------+----------+
//!                              |                            | verified contents
//!                     +--------+----------------------------v---+
//!                     |  store: embedded, or another program's  |
//!                     +-----------------------------------------+
//! ```
//!
//! The control plane is the loop: facts come in (a peer connected, a message arrived, an asset was
//! stored), the pure engine answers with effects, and tasks perform these and report back. The data
//! plane is the transfers: contents pass between a QUIC stream and the store and never through the
//! loop.
//!
//! How an asset travels: it is put into a store and is durable there; the store's feed announces it;
//! it is added to the index; the engine offers it to every connected peer. Such a peer wants it,
//! verifies it against its hash, commits it and acknowledges, and the peer's own feed announces it
//! there. A peer that was away compares sets when it connects, finds the difference and solicits the
//! assets that it lacks.
//!
//! # Reading order
//!
//! 1. `proto/peer.proto` and `proto/store.proto`: the two contracts; their comments are the
//!    specification.
//! 2. [`core::ids`], [`core::message`], then [`core::engine`]: every decision, with no I/O. Below
//!    it [`core::peers`] (connections), [`core::wants`] (which peer is asked for which asset),
//!    [`core::fetches`] (assets that somebody waits for), [`core::spans`] (which peer sends which
//!    part of a large asset), [`core::session`] (batches), [`core::reconcile`] and [`core::sketch`]
//!    (the difference of two sets).
//! 3. [`agent`]: `agent/run.rs` is the loop, `agent/effects.rs` performs the engine's effects,
//!    [`transfer`] moves contents, [`replica`] is what this device knows and reports, [`group`]
//!    changes who belongs to the group, [`copies`] decides which copies are wanted and deletes those
//!    that others hold.
//! 4. [`store`]: the trait of content stores, and its two implementations.
//! 5. [`net`], [`wire`] and [`state`] when you need them; [`api`], [`page`] and [`cli`] last.
//!
//! Imports go one way; `a` <- `b` means that `b` may import `a`:
//! `core` <- `wire` <- `store`, `net`, `state` <- `replica` <- `transfer`, `group` <- `copies` <-
//! `agent` <- `api` <- `page` <- `cli`; `folders` <- `alerts` <- `agent`; `transfer` <- `thumbnails` <-
//! `agent`; `store` <- `http` <- `api`; and `config` <- `api`. `store`, `net` and `state` do not import each other. [`db`] and [`bao`] are
//! below `store` and `state`. [`clock`] alone reads the time, and is below all that need it.
//!
//! # Where the guarantees are
//!
//! The head of each file numbers the invariants that it holds. These matter most:
//!
//! | guarantee | held by |
//! |---|---|
//! | What is acknowledged survives a power cut | [`store`] I1, [`transfer`] I1 |
//! | Content is stored and sent under its own hash only | [`store`] I2, [`transfer`] I2 |
//! | Nothing is missed, whatever is lost on the way | [`core::engine`] I1, [`store`] I3 |
//! | A peer counts as a holder only of assets that it holds, not of those it only knows | [`core::copies`] P1, [`state::index`] |
//! | Each asset crosses once | [`core::wants`] I1, [`core::spans`] S1 |
//! | Only members are admitted; a removal is final | [`state::journal`], [`net`] |
//! | No peer fills our memory or holds up another | [`core::limits`], [`core::session`] I1 |
//! | Every task has an owner, and stopping ends all of them | `agent/run.rs` I2, I3 |
//! | The sources keep these rules | `tests/tidy.rs` |
//!
//! # One word per thing
//!
//! | word | is |
//! |---|---|
//! | device | one installation: one home, one key |
//! | node ID | a device's public key, its name on the network |
//! | peer | another device of the group |
//! | group | the devices that were paired with each other |
//! | member | a device that is in the group and was not removed |
//! | ticket | an invitation into the group, valid once; the inviter keeps its token |
//! | introduction | the ops that made a device a member: the founder's, then each add on the way to it |
//! | home | the folders of one agent |
//! | setting | a value of the configuration, named by its key |
//! | store | the content store beside the agent |
//! | asset | immutable bytes, named by their hash |
//! | hash | the name of an asset: BLAKE3 or SHA-256 of its whole content |
//! | digest | hash and size of an asset |
//! | metadata | what is known about an asset: description, tags, trashed, attributes |
//! | attribute | what is known of the file that an asset came from: name, path, type, times, application, user |
//! | cursor | a position in a store's change feed |
//! | index | the hashes that this device knows: those that the store holds, as far as this agent has read the store's feed, and absent ones |
//! | absent | known and not held: missing if it is wanted, else unwanted |
//! | want | the expression of the assets whose contents come to this device |
//! | holder | a peer that was confirmed to hold an asset |
//! | site | a place whose devices may be lost together |
//! | goal | the number of copies of each asset that a group wants, and of sites that hold them |
//! | sketch | a set of hashes folded into a constant size |
//! | fingerprint | one number for a whole set: equal sets, equal fingerprints |
//! | reconcile | find the difference of two devices' sets |
//! | plain protocol | `can-sync/1`: two devices exchange whole sets and contents on one stream |
//! | batch | assets moved on one stream |
//! | offer, want, ack | the assets that a sender has, those that the receiver wants, those that it committed |
//! | solicit | request assets from a peer that is known to hold them |
//! | lane | batches of one kind to one peer: live (small and new here), small, large, wanted now |
//! | fetch | the request for an asset that somebody waits for |
//! | partial | the verified part of a large asset under way |
//! | source, span | a peer that sends a large asset, alone or with others; a part requested from it |
//! | scrub | read every asset of the store again, to find damage |
//! | cycle | one pass of the scrub over the whole store |
//! | stray | a file in the store's folder that belongs to no asset |
//! | rest | a pause in which an asset is not requested from one peer, because it failed from there |
//! | quarantine | hashes that are not requested for a while, because their content was wrong |
//! | folder | a set of paths that all devices of the group share; each path has a version in the journal |
//! | version | what is at a path of a folder, with a vector that says which versions it contains |
//! | vector | for each device the last of its changes that a version contains |
//! | base | the version of a path that was last equal in the directory and in the journal |
//! | conflict copy | the version that lost to a concurrent one, kept beside it |
//! | bound directory, binding | a directory on this device that is kept in step with a folder |
//! | marker | the file `.can-sync-folder` in a bound directory: which folder it is bound to |
//! | kept content | what was replaced in a bound directory, kept until nobody writes to it any more |
//! | hint | a notice of the operating system that something changed in a bound directory |
//! | history | the earlier versions of a folder's paths |
//! | held | a folder that does not sync until the user decides, because very many files changed at once |
//! | proof | the hash of a whole content under a fresh key, which only a holder can compute |
//! | lease | a device's promise to keep an asset for a while, given with a proof |
//! | evict | delete the copy of an asset here, while enough other devices have proven theirs |
//! | intent | the record that this device is evicting an asset |
//! | page | what the agent shows to people in a browser |
//! | thumbnail | a small picture of an asset |
//! | shelf | a directory of WebDAV with the assets of a month, or of a tag |
//! | sign-in code, session | opens a session of the page, once; a browser that is signed in |
//! | alert | a condition that needs the user's attention; stands until it is over |
//! | fact, effect | an input of the engine, and what it tells the shell to do |

pub mod agent;
pub mod alerts;
pub mod api;
pub mod bao;
pub mod cli;
pub mod clock;
pub mod config;
pub mod copies;
pub mod core;
pub mod dav;
pub mod db;
pub mod folders;
pub mod group;
pub mod http;
pub mod net;
pub mod page;
pub mod replica;
pub mod state;
pub mod store;
pub mod thumbnails;
pub mod transfer;
pub mod wire;
