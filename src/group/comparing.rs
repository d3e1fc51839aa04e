//! The pairings that the status shows: those whose digits people compare, and the recent ones.

use tokio::sync::oneshot;

use crate::replica::status::{PairingState, PairingStatus};

/// The most pairings in the status. Strangers have at most four connections at a time, and people
/// make one pairing at a time.
const PAIRINGS_MAX: usize = 8;

/// How long the status shows a completed pairing.
const SHOWN_MS: u64 = 10 * 60 * 1000;

/// A report of a pairing to the agent's loop.
#[derive(Debug)]
pub(crate) enum PairingEvent {
    /// People have to compare the digits of a pairing; `decided` receives whether they agree.
    Compare { id: u64, pairing: PairingStatus, decided: oneshot::Sender<bool> },
    /// A pairing ended; `paired` is what the status shows of it if it succeeded.
    Ended { id: u64, paired: Option<PairingStatus> },
}

/// The pairings that the status shows.
#[derive(Debug, Default)]
pub(crate) struct Comparing(Vec<Pairing>);

#[derive(Debug)]
struct Pairing {
    id: u64,
    status: PairingStatus,
    /// Receives whether the digits agree.
    decided: Option<oneshot::Sender<bool>>,
    /// When the pairing was completed, if it was.
    paired_ms: Option<u64>,
}

impl Comparing {
    /// Shows what a pairing reports.
    pub(crate) fn note(&mut self, now_ms: u64, event: PairingEvent) {
        match event {
            PairingEvent::Compare { id, pairing, decided } => self.begin(id, pairing, decided),
            PairingEvent::Ended { id, paired } => self.end(now_ms, id, paired),
        }
    }

    /// Shows a pairing whose digits people have to compare. Without room the pairing is not shown,
    /// and the dropped `decided` reports that to the receiver.
    fn begin(&mut self, id: u64, status: PairingStatus, decided: oneshot::Sender<bool>) {
        if let Some(through) = self.0.iter().position(|pairing| pairing.paired_ms.is_some())
            && self.0.len() >= PAIRINGS_MAX
        {
            self.0.remove(through);
        }
        if self.0.len() < PAIRINGS_MAX {
            self.0.push(Pairing { id, status, decided: Some(decided), paired_ms: None });
        }
    }

    /// Records a user's answer whether the other device shows `short_code`; white space does not
    /// count. Returns the pairing, or `None` if no pairing waits for these digits.
    pub(crate) fn decide(&mut self, short_code: &str, same: bool) -> Option<PairingStatus> {
        let digits = |text: &str| text.split_whitespace().collect::<String>();
        let meant = digits(short_code);
        let waits = |pairing: &&mut Pairing| {
            pairing.status.state == PairingState::Compare
                && digits(&pairing.status.short_code) == meant
        };
        let pairing = self.0.iter_mut().find(waits)?;
        // The receiver is gone when the pairing has just ended.
        pairing.decided.take()?.send(same).ok()?;
        if same {
            pairing.status.state = PairingState::Confirmed;
        }
        Some(pairing.status.clone())
    }

    /// Ends a pairing; `paired` is what the status shows of it from now on.
    fn end(&mut self, now_ms: u64, id: u64, paired: Option<PairingStatus>) {
        self.0.retain(|pairing| pairing.id != id);
        let Some(status) = paired else { return };
        if self.0.len() >= PAIRINGS_MAX {
            self.0.remove(0);
        }
        self.0.push(Pairing { id, status, decided: None, paired_ms: Some(now_ms) });
    }

    /// The pairings to show now.
    pub(crate) fn shown(&mut self, now_ms: u64) -> Vec<PairingStatus> {
        self.0.retain(|pairing| pairing.paired_ms.is_none_or(|at| at + SHOWN_MS > now_ms));
        self.0.iter().map(|pairing| pairing.status.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::core::ids::NodeId;

    fn status(short_code: &str, state: PairingState) -> PairingStatus {
        let (node_id, name) = (NodeId([7; 32]), "phone".to_owned());
        PairingStatus { node_id, name, short_code: short_code.to_owned(), state }
    }

    fn begin(comparing: &mut Comparing, id: u64, code: &str) -> oneshot::Receiver<bool> {
        let (decided, waits) = oneshot::channel();
        comparing.begin(id, status(code, PairingState::Compare), decided);
        waits
    }

    #[test]
    fn digits_decide_the_pairing_that_shows_them_once() {
        let mut comparing = Comparing::default();
        let mut one = begin(&mut comparing, 1, "1111 2222 3333");
        let mut two = begin(&mut comparing, 2, "4444 5555 6666");
        assert_eq!(comparing.decide("1111 2222 3334", true), None);
        assert_eq!(comparing.decide("444455556666", true).unwrap().state, PairingState::Confirmed);
        assert_eq!(two.try_recv(), Ok(true));
        assert!(one.try_recv().is_err());
        assert_eq!(comparing.decide("4444 5555 6666", true), None);
        assert_eq!(comparing.decide("1111 2222 3333", false).unwrap().state, PairingState::Compare);
        assert_eq!(one.try_recv(), Ok(false));
    }

    #[test]
    fn a_pairing_is_shown_for_a_while_after_it_is_through() {
        let mut comparing = Comparing::default();
        let _waits = begin(&mut comparing, 1, "1");
        comparing.end(5, 1, Some(status("1", PairingState::Paired)));
        assert_eq!(comparing.shown(5), [status("1", PairingState::Paired)]);
        assert!(comparing.shown(5 + SHOWN_MS).is_empty());
        let _waits = begin(&mut comparing, 2, "2");
        comparing.end(6, 2, None);
        assert!(comparing.shown(6).is_empty());
    }

    #[test]
    fn pairings_are_bounded() {
        let mut comparing = Comparing::default();
        let waits: Vec<_> = (0..100).map(|id| begin(&mut comparing, id, &id.to_string())).collect();
        assert_eq!(comparing.shown(0).len(), PAIRINGS_MAX);
        comparing.end(0, 200, Some(status("200", PairingState::Paired)));
        assert_eq!(comparing.shown(0).len(), PAIRINGS_MAX);
        drop(waits);
    }
}
