//! Stamps: one order for all writes of all devices (hybrid logical clocks, Kulkarni et al. 2014).
//!
//! S1  A device's next time is above every time it gave or admitted, whatever its wall clock does;
//!     so whoever has seen a value can overwrite it.
//! S2  A time more than [`FUTURE_MS_MAX`] ahead is held back until it is not, and never altered:
//!     devices would alter it differently.

use std::fmt;

use crate::core::ids::LogId;
use crate::core::limits::FUTURE_MS_MAX;

/// A wall clock below this (2025-01-01) was never set; with it we must not author.
pub const CLOCK_FLOOR_MS: u64 = 1_735_689_600_000;

/// A hybrid time: milliseconds since the Unix epoch, then a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Hlc(pub u64);

/// The place of a write among all writes. Unique as long as its author does not fork its log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    /// When.
    pub hlc: Hlc,
    /// In which log.
    pub log: LogId,
    /// The op's number there.
    pub seq: u64,
}

impl Hlc {
    const COUNTER_BITS: u32 = 16;

    /// The greatest that databases can keep and the protocol allows.
    pub const MAX: Self = Self(i64::MAX as u64);

    /// The first time of a millisecond.
    pub fn from_ms(ms: u64) -> Self {
        Self(ms.min(Self::MAX.0 >> Self::COUNTER_BITS) << Self::COUNTER_BITS)
    }

    /// Its milliseconds since the Unix epoch.
    pub fn ms(self) -> u64 {
        self.0 >> Self::COUNTER_BITS
    }

    /// The next time to give out when `self` is the greatest given or admitted. A full counter
    /// carries into the milliseconds. `None` at the end of time.
    pub fn next(self, now_ms: u64) -> Option<Self> {
        let next = Self((self.0 + 1).max(Self::from_ms(now_ms).0));
        (next <= Self::MAX).then_some(next)
    }

    /// When it may be admitted: `None` for now, else the wall-clock ms from which on it may.
    pub fn held_back_until_ms(self, now_ms: u64) -> Option<u64> {
        let from_ms = self.ms().saturating_sub(FUTURE_MS_MAX);
        (from_ms > now_ms).then_some(from_ms)
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}-{}", self.hlc.0, self.log, self.seq)
    }
}

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stamp({self})")
    }
}
