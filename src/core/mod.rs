//! The pure core: every decision, and no side effect. No async, clock, lock, random source or I/O
//! here; time and randomness are arguments. `tests/tidy.rs` enforces this.

pub mod attributes;
pub mod close;
pub mod copies;
pub mod doctor;
pub mod engine;
pub mod export_name;
pub mod expression;
pub mod fetches;
pub mod folder;
pub mod foreign_text;
pub mod forgetting;
pub mod ids;
pub mod joining;
pub mod journal;
pub mod leases;
pub mod limits;
pub mod lookup;
pub mod lt_hash;
pub mod message;
pub mod names;
pub mod pairing;
pub mod peers;
pub mod proof;
pub mod ranges;
pub mod rate;
pub mod reconcile;
pub mod scrub;
pub mod session;
pub mod silence;
pub mod sketch;
pub mod spans;
pub mod units;
pub mod want;
pub mod wants;
pub mod why;
