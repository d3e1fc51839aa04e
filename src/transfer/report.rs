//! What the outcomes of a batch mean to the engine: what the peer holds, what arrived here, and
//! whether a store accepts anything.

use crate::core::engine::{Input, Sent};
use crate::core::ids::{Digest, Hash};
use crate::core::peers::ConnId;
use crate::core::wants::Arrival;

use super::outcome::{Outcome, Received, is_large};
use super::plain::PlainReport;

/// The reason why the peer accepts no assets for now, or `Some(None)` if it stored one; `None` when
/// the batch shows neither.
pub(crate) fn put_off(outcomes: &[Outcome]) -> Option<Option<String>> {
    if outcomes.contains(&Outcome::Stored) {
        return Some(None);
    }
    outcomes.iter().find_map(|outcome| match outcome {
        Outcome::Later(reason) => Some(Some(reason.clone())),
        _ => None,
    })
}

/// The assets that the peer refuses, each with the reason.
pub(crate) fn refused(digests: &[Digest], outcomes: &[Outcome]) -> Vec<(Hash, String)> {
    let each = digests.iter().zip(outcomes);
    each.filter_map(|(digest, outcome)| match outcome {
        Outcome::Refused(reason) => Some((digest.hash, reason.clone())),
        _ => None,
    })
    .collect()
}

/// The outcome of a sent asset, as the engine counts it.
pub(crate) fn sent_as(outcome: &Outcome) -> Sent {
    match outcome {
        Outcome::Stored | Outcome::AlreadyHeld => Sent::Held,
        Outcome::Elsewhere | Outcome::Later(_) | Outcome::StoreDown(_) | Outcome::Interrupted => {
            Sent::Elsewhere
        }
        Outcome::Refused(_) => Sent::Refused,
        Outcome::Unavailable | Outcome::Damaged => Sent::Unavailable,
    }
}

/// Whether the store accepts nothing: it does not answer or delays even a small asset, and stored
/// none of the batch.
pub(crate) fn store_failed(received: &[Received]) -> bool {
    let put_off = |one: &Received| match one.outcome {
        Outcome::StoreDown(_) => true,
        Outcome::Later(_) => !is_large(&one.digest),
        _ => false,
    };
    received.iter().any(put_off) && !received.iter().any(|one| one.outcome == Outcome::Stored)
}

/// What arrived in a received batch, for the engine.
pub(crate) fn arrivals(received: &[Received]) -> Vec<(Hash, Arrival)> {
    let each = received.iter();
    each.filter_map(|received| Some((received.digest.hash, arrival(received)?))).collect()
}

/// Converts the outcome of an asset of a received batch; `None` if it arrives from another peer.
fn arrival(received: &Received) -> Option<Arrival> {
    match &received.outcome {
        Outcome::Stored => Some(Arrival::Stored),
        Outcome::AlreadyHeld => Some(Arrival::Held),
        Outcome::Elsewhere => None,
        Outcome::Later(_) if is_large(&received.digest) => Some(Arrival::NoRoom),
        Outcome::Later(_) | Outcome::StoreDown(_) | Outcome::Interrupted => {
            Some(Arrival::Interrupted)
        }
        Outcome::Unavailable => Some(Arrival::Unavailable),
        Outcome::Refused(_) | Outcome::Damaged => Some(Arrival::Refused),
    }
}

/// Converts the result of a plain exchange to an input of the engine.
pub(crate) fn plain_done(conn: ConnId, report: PlainReport) -> Input {
    let PlainReport { sent, received, is_complete } = report;
    let received = received.into_iter().map(|received| (received.digest, received.outcome));
    let (mut held_there, mut stored_here, mut failed) = (Vec::new(), Vec::new(), false);
    for (digest, outcome) in sent {
        match sent_as(&outcome) {
            Sent::Held => held_there.push(digest.hash),
            Sent::Elsewhere | Sent::Refused | Sent::Unavailable => failed = true,
        }
    }
    for (digest, outcome) in received {
        match outcome {
            Outcome::Stored => stored_here.push(digest.hash),
            Outcome::AlreadyHeld => held_there.push(digest.hash),
            Outcome::Elsewhere
            | Outcome::Later(_)
            | Outcome::StoreDown(_)
            | Outcome::Refused(_)
            | Outcome::Unavailable
            | Outcome::Interrupted
            | Outcome::Damaged => failed = true,
        }
    }
    Input::PlainDone { conn, held_there, stored_here, failed, more: !is_complete }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::limits::SMALL_BYTES_MAX;

    fn received(size_bytes: u64, outcome: Outcome) -> Received {
        Received { digest: Digest { hash: Hash([1; 32]), size_bytes }, outcome }
    }

    #[test]
    fn only_a_store_that_takes_not_even_small_assets_has_failed() {
        let full = || Outcome::Later("full".into());
        let (small, large) = (1, SMALL_BYTES_MAX + 1);
        assert!(!store_failed(&[received(large, full())]));
        assert_eq!(arrival(&received(large, full())), Some(Arrival::NoRoom));
        assert!(store_failed(&[received(small, full())]));
        assert!(!store_failed(&[received(small, full()), received(small, Outcome::Stored)]));
        assert_eq!(arrival(&received(small, full())), Some(Arrival::Interrupted));
        // A store that did not answer accepts large assets again as soon as it answers.
        let down = || Outcome::StoreDown("nothing listens".into());
        assert!(store_failed(&[received(large, down())]));
        assert_eq!(arrival(&received(large, down())), Some(Arrival::Interrupted));
    }

    #[test]
    fn what_did_not_arrive_in_a_plain_exchange_counts_as_held_by_nobody() {
        let of = |n: u8, outcome| {
            (Digest { hash: Hash([n; 32]), size_bytes: 1 }, outcome) as (Digest, Outcome)
        };
        let later = || Outcome::Later("full".into());
        let sent = vec![of(1, Outcome::Stored), of(2, later())];
        let received = [of(3, Outcome::Stored), of(4, later()), of(5, Outcome::Unavailable)];
        let received = received.map(|(digest, outcome)| Received { digest, outcome }).to_vec();
        let report = PlainReport { sent, received, is_complete: true };
        let Input::PlainDone { held_there, stored_here, failed, more, .. } =
            plain_done(ConnId(1), report)
        else {
            panic!("another input");
        };
        assert_eq!((held_there, stored_here), (vec![Hash([1; 32])], vec![Hash([3; 32])]));
        assert!(failed && !more);
    }
}
