//! Places for connections: how many there are, and which connection gives up its place for a new
//! one.
//!
//! A connection is a stranger's until one of its requests has shown the key; from then on it is the
//! owner's. The two kinds have separate places:
//!
//! P1  A stranger never takes a place of the owner, whatever it does.
//! P2  A new connection always gets a stranger's place. If all are taken, one is closed for it: a
//!     stranger that had an answer, or otherwise the one silent for longest.
//! P3  If the owner's places are all taken, the connection idle for longest is closed. If all are
//!     busy, the request is refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The most open connections of the owner. An agent uses about ten, a browser six, a watcher one
/// that it holds for days; the rest is for scripts. Each costs a socket and about 10 KiB.
pub const CONNECTIONS_MAX: usize = 64;

/// The most open connections that have not shown the key. The owner's show it within a millisecond;
/// a stranger would have to open this many meanwhile to push one of them out.
pub const STRANGERS_MAX: usize = 64;

/// The places and their holders.
#[derive(Clone, Default)]
pub(super) struct Places(Arc<Mutex<Holders>>);

#[derive(Default)]
struct Holders {
    by_number: BTreeMap<u64, Holder>,
    /// Never reused: a connection that lost its place still has to return its number.
    next_number: u64,
}

struct Holder {
    standing: Standing,
    /// When its standing began.
    since: Instant,
    close: CancellationToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// A stranger's connection that has had an answer. Connections are closed in the order of these
    /// variants.
    Answered,
    New,
    /// A connection of the owner, between two requests.
    Idle,
    /// A connection of the owner, with a request under way.
    Busy,
}

impl Standing {
    fn is_stranger(self) -> bool {
        match self {
            Self::Answered | Self::New => true,
            Self::Idle | Self::Busy => false,
        }
    }
}

/// A place held by a connection; dropping it returns it.
pub(super) struct Place {
    places: Places,
    number: u64,
    /// Cancelled when another connection takes the place.
    pub(super) close: CancellationToken,
}

impl Places {
    /// Takes a stranger's place, if need be that of another connection.
    pub(super) fn take(&self) -> Arc<Place> {
        let mut holders = self.lock();
        holders.make_room(Standing::is_stranger, STRANGERS_MAX);
        let number = holders.next_number;
        holders.next_number += 1;
        let close = CancellationToken::new();
        let (standing, since) = (Standing::New, Instant::now());
        holders.by_number.insert(number, Holder { standing, since, close: close.clone() });
        Arc::new(Place { places: self.clone(), number, close })
    }

    fn lock(&self) -> MutexGuard<'_, Holders> {
        self.0.lock()
    }
}

impl Holders {
    /// Closes a connection of this kind if there are `limit` of them. Returns false if all are
    /// busy.
    fn make_room(&mut self, kind: impl Fn(Standing) -> bool, limit: usize) -> bool {
        let of_kind = self.by_number.iter().filter(|(_, holder)| kind(holder.standing));
        if of_kind.clone().count() < limit {
            return true;
        }
        let idle = of_kind.filter(|(_, holder)| holder.standing != Standing::Busy);
        let first = idle.min_by_key(|(number, holder)| (holder.standing, holder.since, **number));
        let Some(number) = first.map(|(number, _)| *number) else { return false };
        if let Some(holder) = self.by_number.remove(&number) {
            holder.close.cancel();
        }
        true
    }
}

impl Place {
    /// The connection has shown the key, and one of its requests begins. Returns false when all
    /// places of the owner are busy, or this one was taken.
    #[must_use]
    pub(super) fn let_in(&self) -> bool {
        let mut holders = self.places.lock();
        let Some(holder) = holders.by_number.get(&self.number) else { return false };
        if holder.standing.is_stranger()
            && !holders.make_room(|standing| !standing.is_stranger(), CONNECTIONS_MAX)
        {
            return false;
        }
        holders.set(self.number, Standing::Busy);
        true
    }

    /// Notes that a request got an answer, which may not be sent completely yet.
    pub(super) fn answered(&self) {
        self.turn(Standing::New, Standing::Answered);
    }

    /// Notes that an answer was sent completely, or that its connection ended.
    pub(super) fn sent(&self) {
        self.turn(Standing::Busy, Standing::Idle);
    }

    fn turn(&self, from: Standing, to: Standing) {
        let mut holders = self.places.lock();
        if holders.by_number.get(&self.number).is_some_and(|holder| holder.standing == from) {
            holders.set(self.number, to);
        }
    }
}

impl Holders {
    fn set(&mut self, number: u64, standing: Standing) {
        if let Some(holder) = self.by_number.get_mut(&number) {
            (holder.standing, holder.since) = (standing, Instant::now());
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().by_number.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(places: &Places) -> usize {
        places.lock().by_number.len()
    }

    fn owners(places: &Places) -> Vec<Arc<Place>> {
        let owner = || {
            let place = places.take();
            assert!(place.let_in());
            place
        };
        (0..CONNECTIONS_MAX).map(|_| owner()).collect()
    }

    #[test]
    fn strangers_never_take_a_place_of_the_owner() {
        let places = Places::default();
        let owners = owners(&places);
        owners.iter().for_each(|owner| owner.sent());
        let strangers: Vec<_> = (0..3 * STRANGERS_MAX).map(|_| places.take()).collect();
        assert!(owners.iter().all(|owner| !owner.close.is_cancelled()));
        assert_eq!(count(&places), CONNECTIONS_MAX + STRANGERS_MAX);
        drop(strangers);
        assert_eq!(count(&places), CONNECTIONS_MAX);
    }

    #[test]
    fn a_stranger_that_was_answered_goes_before_one_that_has_not_spoken_yet() {
        let places = Places::default();
        let strangers: Vec<_> = (0..STRANGERS_MAX).map(|_| places.take()).collect();
        strangers[5].answered();
        let _new = places.take();
        let closed = |strangers: &[Arc<Place>]| -> Vec<_> {
            (0..strangers.len()).filter(|n| strangers[*n].close.is_cancelled()).collect()
        };
        assert_eq!(closed(&strangers), [5]);
        let _new = places.take();
        assert_eq!(closed(&strangers), [0, 5]);
    }

    #[test]
    fn the_owners_idle_connection_goes_for_a_new_one_and_a_busy_one_never() {
        let places = Places::default();
        let owners = owners(&places);
        assert!(!places.take().let_in(), "all are busy");
        owners[3].sent();
        let new = places.take();
        assert!(new.let_in());
        assert!(owners[3].close.is_cancelled());
        assert!(!owners[3].let_in(), "its place is another's");
        assert_eq!(count(&places), CONNECTIONS_MAX);
    }

    #[test]
    fn a_connection_whose_place_was_taken_gives_back_no_other() {
        let places = Places::default();
        let mut held: Vec<_> = (0..STRANGERS_MAX).map(|_| places.take()).collect();
        held.push(places.take());
        assert!(held[0].close.is_cancelled());
        drop(held.remove(0));
        assert_eq!(count(&places), STRANGERS_MAX);
    }
}
