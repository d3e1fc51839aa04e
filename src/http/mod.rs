//! Everything that serves HTTP, whatever the routes: the listener and its limits, the guard in
//! front of it, error documents, uploads and downloads, and who is signed in to the page.
//!
//! [`store_api`] serves the calls of `proto/store.proto` over the embedded store, [`people`] those
//! for people and programs over any store; the agent's own are in `api/`. All of them run behind a
//! [`guard`], on the connections of [`serve`].

pub(crate) mod added;
pub mod asset;
pub mod basic;
pub mod browser;
pub(crate) mod content;
pub(crate) mod describe;
pub(crate) mod events;
pub(crate) mod extract;
pub mod guard;
pub mod people;
pub mod places;
pub mod problem;
pub mod serve;
pub(crate) mod served;
pub mod sessions;
pub mod store_api;
pub mod target;
pub mod tls;
pub(crate) mod upload;
