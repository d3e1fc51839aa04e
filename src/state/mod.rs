//! What the agent itself stores on disk. All of it blocks: call it from a blocking thread.
//!
//! | file | what | if lost |
//! |---|---|---|
//! | `key` ([`identity`]) | the device's secret key | the device is a stranger to its group |
//! | `index.db` ([`index`]) | the hashes the store knows, numbered | rebuilt from the store |
//! | `journal.db` ([`journal`]) | the group, its records and events | the device must pair again |
//! | `copies.db` ([`copies`]) | what this device wants | it wants everything |
//! | `partials/` ([`partials`], [`crate::bao`]) | large transfers under way | transferred again |
//!
//! [`home`] defines where these files are and who may read them.

pub mod checkup;
pub mod copies;
pub mod databases;
pub mod home;
pub mod identity;
pub mod index;
pub mod journal;
pub mod partials;
pub mod socket;
