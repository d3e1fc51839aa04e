//! What every SQLite file of ours shares: how its schema moves on ([`migrate`]).

pub mod migrate;
