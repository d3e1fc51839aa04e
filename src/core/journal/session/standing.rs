//! What a peer lacks of one log, by its clock's entry and what we hold.

use crate::core::journal::message::{ClockEntry, Xor16};

/// What we hold of the log an entry is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Here {
    /// Our clock.
    pub seq: u64,
    /// The hash of our op at `seq`.
    pub head: Xor16,
    /// Over our live ops above the *entry's* number, over all of them when the entry is forked.
    /// `None`: not worth finding out.
    pub above: Option<Xor16>,
    /// The hashes of the ops held at the entry's number; none when it was dropped.
    pub at: Vec<Xor16>,
    /// We know two ops of one number.
    pub forked: bool,
}

/// What the peer needs of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing of what we hold now; of what arrives later, what is above this.
    Settled(u64),
    /// What is above this.
    Above(u64),
    /// Everything: its ops are not ours.
    All,
}

/// Judges an entry of a peer's clock. Whether forked logs match is judged elsewhere, when nothing
/// else is left to send.
pub fn need(entry: &ClockEntry, here: &Here) -> Need {
    let other_op = |hash: &Xor16| entry.seq > 0 && *hash != entry.head;
    let forked = entry.forked || here.forked;
    let same_place = entry.seq == here.seq && other_op(&here.head);
    if !forked && (same_place || here.at.iter().any(other_op)) {
        return Need::All;
    }
    if here.above != Some(entry.above) || forked != (entry.forked && here.forked) {
        return Need::Above(entry.seq);
    }
    if entry.seq < here.seq {
        // It holds what is alive, and lacks only the op at our clock, up to which it may then jump.
        return Need::Above(here.seq - 1);
    }
    Need::Settled(entry.seq)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::LogId;

    const A: Xor16 = Xor16([1; 16]);
    const B: Xor16 = Xor16([2; 16]);

    fn entry(seq: u64, head: Xor16, above: Xor16) -> ClockEntry {
        ClockEntry { log: LogId([7; 16]), seq, head, above, forked: false }
    }

    fn here(seq: u64, head: Xor16, above: Xor16, at: &[Xor16]) -> Here {
        Here { seq, head, above: Some(above), at: at.to_vec(), forked: false }
    }

    #[test]
    fn a_peer_that_is_behind_gets_what_is_above_its_clock() {
        let got = need(&entry(3, A, Xor16::default()), &here(9, B, A, &[A]));
        assert_eq!(got, Need::Above(3));
    }

    #[test]
    fn a_peer_that_holds_all_that_lives_gets_the_op_at_our_clock_alone() {
        assert_eq!(need(&entry(3, A, B), &here(9, B, B, &[A])), Need::Above(8));
    }

    #[test]
    fn a_lasting_gap_is_not_sent_again() {
        assert_eq!(need(&entry(3, A, B), &here(3, A, B, &[A])), Need::Settled(3));
        assert_eq!(need(&entry(5, A, B), &here(3, A, B, &[])), Need::Settled(5));
    }

    #[test]
    fn another_op_at_the_same_number_calls_for_everything() {
        assert_eq!(need(&entry(3, A, B), &here(9, B, B, &[B])), Need::All);
        assert_eq!(need(&entry(3, A, B), &here(3, B, B, &[])), Need::All);
    }

    #[test]
    fn nothing_at_number_zero_is_no_other_op() {
        let nothing = Xor16::default();
        assert_eq!(need(&entry(0, nothing, A), &here(0, nothing, A, &[])), Need::Settled(0));
    }

    #[test]
    fn a_log_forked_on_one_side_is_never_settled() {
        let forked = ClockEntry { forked: true, ..entry(3, A, B) };
        assert_eq!(need(&forked, &here(3, A, B, &[A])), Need::Above(3));
        let both = Here { forked: true, ..here(3, A, B, &[A]) };
        assert_eq!(need(&forked, &both), Need::Settled(3));
        assert_eq!(need(&entry(3, A, B), &both), Need::Above(3));
    }
}
