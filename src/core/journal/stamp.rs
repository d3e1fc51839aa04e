//! Stamps: one order for all writes of all devices (hybrid logical clocks, Kulkarni et al. 2014).
//!
//! S1  A device's next time is above every time that it gave out or admitted, whatever its wall
//!     clock does. So a device that has seen a value can overwrite it.
//! S2  An op stamped more than [`FUTURE_MS_MAX`] ahead is held back until its time is near. Its
//!     stamp is never altered: devices would alter it differently.

use std::fmt;

use crate::core::ids::LogId;
use crate::core::limits::FUTURE_MS_MAX;

/// A wall clock below this (2025-01-01) was never set. A device with such a clock must not write
/// ops.
pub const CLOCK_FLOOR_MS: u64 = 1_735_689_600_000;

/// A hybrid time: milliseconds since the Unix epoch, then a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Hlc(pub u64);

/// The place of a write among all writes. Unique as long as its author does not fork its log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    /// The time of the write.
    pub hlc: Hlc,
    /// The log of the op.
    pub log: LogId,
    /// The op's number in its log.
    pub seq: u64,
}

impl Hlc {
    const COUNTER_BITS: u32 = 16;

    /// The earliest time: the stamp of what a device brings into a group when it joins.
    pub const DAWN: Self = Self(1);

    /// The greatest time that the databases and the protocol can hold.
    pub const MAX: Self = Self(i64::MAX as u64);

    /// The first time within a millisecond.
    pub fn from_ms(ms: u64) -> Self {
        Self(ms.min(Self::MAX.0 >> Self::COUNTER_BITS) << Self::COUNTER_BITS)
    }

    /// The stamp's milliseconds since the Unix epoch.
    pub fn ms(self) -> u64 {
        self.0 >> Self::COUNTER_BITS
    }

    /// The next time to give out, where `self` is the greatest time given out or admitted. A full
    /// counter carries into the milliseconds. `None` at the end of time.
    pub fn next(self, now_ms: u64) -> Option<Self> {
        let next = Self(self.0.saturating_add(1).max(Self::from_ms(now_ms).0));
        (next <= Self::MAX).then_some(next)
    }

    /// The wall-clock ms from which an op with this time may be admitted; `None` if it may be now.
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const NOW_MS: u64 = 1_900_000_000_000;

    #[test]
    fn time_never_goes_back_when_the_wall_clock_does() {
        let mut last = Hlc::default();
        for now_ms in [NOW_MS, NOW_MS, NOW_MS + 1, NOW_MS - 3_600_000, 0, NOW_MS - 1, NOW_MS + 2] {
            let next = last.next(now_ms).unwrap();
            assert!(next > last, "{next:?} after {last:?}");
            last = next;
        }
        assert_eq!(last.ms(), NOW_MS + 2);
    }

    #[test]
    fn a_full_counter_carries_into_the_milliseconds() {
        let mut last = Hlc(Hlc::from_ms(NOW_MS).0 | 0xffff);
        last = last.next(NOW_MS).unwrap();
        assert_eq!(last, Hlc::from_ms(NOW_MS + 1));
        assert_eq!(Hlc::MAX.next(0), None);
    }

    #[test]
    fn ten_minutes_are_six_hundred_thousand_milliseconds() {
        for (ahead_ms, held) in [(0, false), (600, false), (600_000, false), (600_001, true)] {
            let hlc = Hlc::from_ms(NOW_MS + ahead_ms);
            assert_eq!(hlc.held_back_until_ms(NOW_MS).is_some(), held, "{ahead_ms} ms ahead");
        }
        let year = Hlc::from_ms(NOW_MS + 365 * 24 * 3_600_000);
        let until_ms = year.held_back_until_ms(NOW_MS).unwrap();
        assert_eq!(year.held_back_until_ms(until_ms), None);
        assert!(year.held_back_until_ms(until_ms - 1).is_some());
        assert!(Hlc(u64::MAX).held_back_until_ms(NOW_MS).is_some());
    }

    #[test]
    fn stamps_compare_by_time_then_log_then_number() {
        let stamp = |hlc, log, seq| Stamp { hlc: Hlc(hlc), log: LogId([log; 16]), seq };
        let ascending = [stamp(1, 9, 9), stamp(2, 1, 9), stamp(2, 2, 1), stamp(2, 2, 2)];
        assert!(ascending.is_sorted());
    }
}
