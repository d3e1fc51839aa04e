//! The pure core: it decides, and does nothing. No async, clock, lock, random source or I/O here;
//! time and randomness are arguments. `tests/tidy.rs` holds this.

pub mod ids;
pub mod limits;
pub mod pairing;
pub mod peers;
pub mod wants;
