//! Failed attempts to pair, for the log: a device that tries without end costs one line a minute.

use std::collections::BTreeMap;

/// The shortest time between two lines.
const LINE_EVERY_MS: u64 = 60_000;

/// The most sources that are counted separately. Further ones share one count, so that a device
/// that changes its address often costs no memory.
const SOURCES_MAX: usize = 64;

/// The failed attempts to pair since the start, counted by source address.
#[derive(Debug, Default)]
pub(crate) struct Knocks {
    tries: BTreeMap<String, u64>,
    others: u64,
    next_line_ms: u64,
}

impl Knocks {
    /// Counts an attempt. Returns the attempts from that source if a line is due.
    pub(crate) fn note(&mut self, now_ms: u64, source: &str) -> Option<u64> {
        let is_full = self.tries.len() >= SOURCES_MAX;
        let tries = match self.tries.get_mut(source) {
            Some(tries) => tries,
            None if is_full => &mut self.others,
            None => self.tries.entry(source.to_owned()).or_default(),
        };
        *tries += 1;
        let tries = *tries;
        if now_ms < self.next_line_ms {
            return None;
        }
        self.next_line_ms = now_ms + LINE_EVERY_MS;
        Some(tries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_tries_on_costs_a_line_a_minute_and_is_counted() {
        let mut knocks = Knocks::default();
        assert_eq!(knocks.note(0, "10.0.0.1"), Some(1));
        for now_ms in 1..100 {
            assert_eq!(knocks.note(now_ms, "10.0.0.1"), None);
        }
        assert_eq!(knocks.note(LINE_EVERY_MS, "10.0.0.1"), Some(101));
        assert_eq!(knocks.note(2 * LINE_EVERY_MS, "10.0.0.2"), Some(1));
    }

    #[test]
    fn sources_are_bounded() {
        let mut knocks = Knocks::default();
        for n in 0..10 * SOURCES_MAX {
            knocks.note(0, &n.to_string());
        }
        assert_eq!(knocks.tries.len(), SOURCES_MAX);
        assert_eq!(knocks.note(LINE_EVERY_MS, "another"), Some(9 * SOURCES_MAX as u64 + 1));
    }
}
