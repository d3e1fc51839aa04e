//! What all SQLite files share: schema migration ([`migrate`]).

pub mod migrate;
