//! The only reader of time. Exception: deadlines of tokio are on its own clock, which tests can
//! pause.
//!
//! Durations are measured on the monotonic clock, which never goes back. The wall clock is for
//! people, for the expiry of tickets, and for noticing that the device slept.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chrono::{Datelike as _, Local, Timelike as _};

/// How far the wall clock must get ahead of the monotonic one to show that the device slept.
const SLEPT_MS: u64 = 10_000;

/// A monotonic clock that starts at zero.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: Instant,
}

impl Clock {
    /// Starts at zero.
    pub fn start() -> Self {
        Self { started: Instant::now() }
    }

    /// Milliseconds since the start.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The instant at a time of this clock.
    pub fn instant(&self, at_ms: u64) -> Instant {
        // A century ahead is as good as never and does not overflow.
        const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
        self.started + Duration::from_millis(at_ms).min(NEVER)
    }
}

/// The time of the monotonic clock, for deadlines within the life of the process.
pub fn instant_now() -> Instant {
    Instant::now()
}

/// Milliseconds since some moment, on a clock that counts the time that the device sleeps, and that
/// nobody sets. It goes on when this process ends, and may start over with the system.
pub fn boot_ms() -> u64 {
    // The monotonic clock of Linux stands still while the device sleeps, that of others does not.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let clock = rustix::time::ClockId::Boottime;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let clock = rustix::time::ClockId::Monotonic;
    let now = rustix::time::clock_gettime(clock);
    let (secs, nanos) = (now.tv_sec.cast_unsigned(), now.tv_nsec.cast_unsigned());
    secs.saturating_mul(1000).saturating_add(nanos / 1_000_000)
}

/// The time of the wall clock, for the age of files.
pub fn wall_now() -> SystemTime {
    SystemTime::now()
}

/// Milliseconds since the Unix epoch; 0 when the clock is before it.
pub fn wall_ms() -> u64 {
    let since = wall_now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The current minute of the week in local time, counted from Sunday, 00:00.
pub fn local_week_minute() -> u16 {
    let now = Local::now();
    let minute = (now.weekday().num_days_from_sunday() * 24 + now.hour()) * 60 + now.minute();
    u16::try_from(minute).expect("a week has 10,080 minutes")
}

/// [`wall_ms`] as databases hold it.
pub fn wall_ms_signed() -> i64 {
    i64::try_from(wall_ms()).unwrap_or(i64::MAX)
}

/// Notices that the device slept: the wall clock advanced while the monotonic one stood still.
#[derive(Debug)]
pub struct SleepWatch {
    mono_ms: u64,
    wall_ms: u64,
}

impl SleepWatch {
    /// Starts watching.
    pub fn new(mono_ms: u64, wall_ms: u64) -> Self {
        Self { mono_ms, wall_ms }
    }

    /// Whether the device slept, or its clock was set far ahead, since the last call.
    pub fn slept(&mut self, mono_ms: u64, wall_ms: u64) -> bool {
        let mono = mono_ms.saturating_sub(self.mono_ms);
        let wall = wall_ms.saturating_sub(self.wall_ms);
        *self = Self { mono_ms, wall_ms };
        wall > mono + SLEPT_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_is_noticed_and_time_passing_or_a_clock_set_back_is_not() {
        let mut watch = SleepWatch::new(0, 1_000_000);
        assert!(!watch.slept(5_000, 1_005_000));
        assert!(watch.slept(10_000, 30_000_000));
        assert!(!watch.slept(15_000, 10_000_000));
        assert!(!watch.slept(20_000, 10_005_000));
    }
}
