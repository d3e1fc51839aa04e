//! When a connection that looks alive is doubted. A path that broke tells nobody: the connection is
//! lost only at its idle timeout, and until then whatever is new waits for it.
//!
//! S1  Both sides send keep-alives, so a healthy connection is never silent for [`SILENT_MS_MAX`].
//! S2  After the network changed or the device slept the peer is made to answer, and the connection is
//!     doubted after [`ANSWER_MS_MAX`] without a byte of it.
//! S3  A connection that leaves from an address which this device lost is doubted at once.
//! S4  A doubted connection stays in use; another one is dialled beside it. One byte ends the doubt.

/// The keep-alive interval, 5 s (`net/endpoint.rs`), and what a busy machine may add.
const SILENT_MS_MAX: u64 = 7_000;

/// How long a peer may take to answer after the network changed: a slow relay and back.
const ANSWER_MS_MAX: u64 = 1_000;

/// A change between a silent connection and one on which data arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// The connection has been silent for too long.
    Silent,
    /// The connection was silent for too long, and data arrives again.
    Again,
}

/// How long a connection has been silent.
#[derive(Debug, Clone, Copy)]
pub struct Silence {
    received_bytes: u64,
    heard_ms: u64,
    /// By when the peer must have answered.
    answer_by_ms: Option<u64>,
    is_doubted: bool,
}

impl Silence {
    /// A connection that has just begun.
    pub fn begin(now_ms: u64) -> Self {
        Self { received_bytes: 0, heard_ms: now_ms, answer_by_ms: None, is_doubted: false }
    }

    /// A message was sent now that the peer must answer.
    pub fn asked(&mut self, now_ms: u64) {
        self.answer_by_ms = Some(now_ms + ANSWER_MS_MAX);
    }

    /// The address that the connection leaves from is gone. Says so, unless it is doubted already.
    pub fn stranded(&mut self) -> Option<Heard> {
        (!std::mem::replace(&mut self.is_doubted, true)).then_some(Heard::Silent)
    }

    /// Takes the number of bytes received so far. Says when that begins or ends a doubt.
    pub fn look(&mut self, now_ms: u64, received_bytes: u64) -> Option<Heard> {
        if received_bytes != self.received_bytes {
            (self.received_bytes, self.heard_ms) = (received_bytes, now_ms);
            self.answer_by_ms = None;
            return std::mem::take(&mut self.is_doubted).then_some(Heard::Again);
        }
        let is_overdue = self.answer_by_ms.is_some_and(|by_ms| now_ms >= by_ms);
        if self.is_doubted || !(is_overdue || now_ms >= self.heard_ms + SILENT_MS_MAX) {
            return None;
        }
        self.is_doubted = true;
        Some(Heard::Silent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_with_keep_alives_is_never_doubted() {
        let mut silence = Silence::begin(0);
        for second in 1..600 {
            assert_eq!(silence.look(second * 1_000, second / 5 * 40), None, "{second}");
        }
    }

    #[test]
    fn silence_is_said_once_and_so_is_its_end() {
        let mut silence = Silence::begin(0);
        assert_eq!(silence.look(1_000, 40), None);
        let said: Vec<_> = (2..20).filter_map(|s| silence.look(s * 1_000, 40)).collect();
        assert_eq!(said, [Heard::Silent]);
        assert_eq!(silence.look(20_000, 80), Some(Heard::Again));
        assert_eq!(silence.look(21_000, 80), None);
    }

    #[test]
    fn a_connection_from_an_address_that_is_gone_is_doubted_until_it_is_heard() {
        let mut silence = Silence::begin(0);
        silence.look(1_000, 40);
        assert_eq!(silence.stranded(), Some(Heard::Silent));
        assert_eq!(silence.stranded(), None);
        assert_eq!(silence.look(1_100, 40), None);
        assert_eq!(silence.look(1_200, 80), Some(Heard::Again));
    }

    #[test]
    fn a_peer_that_was_made_to_answer_has_a_second() {
        let mut silence = Silence::begin(0);
        silence.look(500, 40);
        silence.asked(1_000);
        assert_eq!(silence.look(1_500, 40), None);
        assert_eq!(silence.look(2_000, 40), Some(Heard::Silent));
        silence.look(2_100, 80);
        silence.asked(3_000);
        assert_eq!(silence.look(3_500, 120), None, "it answered");
        assert_eq!(silence.look(5_000, 120), None);
    }
}
