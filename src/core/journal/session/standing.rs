//! Which ops of one log a peer lacks, by the entry in its clock and what we hold.

use crate::core::journal::message::{ClockEntry, Head};
use crate::core::journal::set_hash::SetDigest;

/// What we hold of the log of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Here {
    /// Our progress in the log.
    pub seq: u64,
    /// The hash of our op at `seq`.
    pub head: Head,
    /// The digest of our live ops above the *entry's* number, or of all live ops when the entry is
    /// forked. `None` when it is not worth reading.
    pub above: Option<SetDigest>,
    /// The hashes of our ops that have the entry's number (several if the log is forked); empty when
    /// they were dropped.
    pub at: Vec<Head>,
    /// Whether we hold two ops with one number.
    pub forked: bool,
}

/// The ops of a log that the peer needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// None that we hold now; of later arrivals those above this number.
    Settled(u64),
    /// Those above this number.
    Above(u64),
    /// All ops of the log, because the peer's differ from ours.
    All,
}

/// Judges an entry of a peer's clock. Whether the ops of forked logs match is judged when nothing
/// else is left to send.
pub fn need(entry: &ClockEntry, here: &Here) -> Need {
    let other_op = |hash: &Head| entry.seq > 0 && *hash != entry.head;
    let forked = entry.forked || here.forked;
    let same_place = entry.seq == here.seq && other_op(&here.head);
    if !forked && (same_place || here.at.iter().any(other_op)) {
        return Need::All;
    }
    if here.above != Some(entry.above) || forked != (entry.forked && here.forked) {
        return Need::Above(entry.seq);
    }
    if entry.seq < here.seq {
        // The peer has all live ops and lacks only the op at our clock, up to which it may then
        // jump.
        return Need::Above(here.seq - 1);
    }
    Need::Settled(entry.seq)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::LogId;

    const A: Head = Head([1; 16]);
    const B: Head = Head([2; 16]);
    const NONE: SetDigest = SetDigest([0; 32]);
    const C: SetDigest = SetDigest([3; 32]);
    const D: SetDigest = SetDigest([4; 32]);

    fn entry(seq: u64, head: Head, above: SetDigest) -> ClockEntry {
        ClockEntry { log: LogId([7; 16]), seq, head, above, forked: false, withheld: false }
    }

    fn here(seq: u64, head: Head, above: SetDigest, at: &[Head]) -> Here {
        Here { seq, head, above: Some(above), at: at.to_vec(), forked: false }
    }

    #[test]
    fn a_peer_that_is_behind_gets_what_is_above_its_clock() {
        let got = need(&entry(3, A, NONE), &here(9, B, C, &[A]));
        assert_eq!(got, Need::Above(3));
    }

    #[test]
    fn a_peer_that_holds_all_that_lives_gets_the_op_at_our_clock_alone() {
        assert_eq!(need(&entry(3, A, D), &here(9, B, D, &[A])), Need::Above(8));
    }

    #[test]
    fn a_lasting_gap_is_not_sent_again() {
        assert_eq!(need(&entry(3, A, D), &here(3, A, D, &[A])), Need::Settled(3));
        assert_eq!(need(&entry(5, A, D), &here(3, A, D, &[])), Need::Settled(5));
    }

    #[test]
    fn another_op_at_the_same_number_calls_for_everything() {
        assert_eq!(need(&entry(3, A, D), &here(9, B, D, &[B])), Need::All);
        assert_eq!(need(&entry(3, A, D), &here(3, B, D, &[])), Need::All);
    }

    #[test]
    fn nothing_at_number_zero_is_no_other_op() {
        let nothing = Head::default();
        assert_eq!(need(&entry(0, nothing, C), &here(0, nothing, C, &[])), Need::Settled(0));
    }

    #[test]
    fn a_log_forked_on_one_side_is_never_settled() {
        let forked = ClockEntry { forked: true, ..entry(3, A, D) };
        assert_eq!(need(&forked, &here(3, A, D, &[A])), Need::Above(3));
        let both = Here { forked: true, ..here(3, A, D, &[A]) };
        assert_eq!(need(&forked, &both), Need::Settled(3));
        assert_eq!(need(&entry(3, A, D), &both), Need::Above(3));
    }
}
