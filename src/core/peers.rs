//! Decides when a peer is dialled and which of several connections to it is used.
//!
//! I1  At most one connection is current; the session runs on it.
//! I2  Of two connections that crossed, both sides choose the one dialled by the lower node ID, and
//!     only the device that dialled the other one closes it.
//! I3  A retry is never further away than [`RETRY_MS_MAX`].
//! I4  A connection carries one session in its life: the peer treats a second Hello as a violation.
//! I5  A connection that is doubted stays current; another one is dialled beside it until one is up or
//!     the doubt is over.

/// The pause before the first retry; it doubles with each failure.
pub const RETRY_MS_MIN: u64 = 1_000;

/// How long the device with the higher node ID leaves the first dial to the other: two connections
/// that cross cost 10 KB and some time on both sides. Enough for a handshake within a city.
const YIELD_MS: u64 = 100;

/// The longest pause between two attempts, jitter included.
pub const RETRY_MS_MAX: u64 = 35_000;

/// Where the doubling ends, before jitter of up to a fifth either way.
const RETRY_MS_PLATEAU: u64 = 30_000;

/// A connection that lived this long was healthy: the next retry starts at the minimum again.
const HEALTHY_MS: u64 = 60_000;

/// Two dials can cross only within this time, which is longer than a dial's deadline. A second
/// connection that comes later means that the peer lost the first.
const CROSSING_MS: u64 = 12_000;

/// Of two crossing connections the peer closes its own within one or two round trips. A connection
/// that it has left open for this long is its only one.
const STANDBY_MS_MAX: u64 = 2_000;

/// The number of failures that a protocol violation counts for: the peer will not be fixed within a
/// second.
const VIOLATION_FAILURES: u32 = 4;

/// The agent's number for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// Exponential backoff with jitter.
#[derive(Debug, Clone, Copy, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause after one more failure; `random` gives the jitter.
    pub fn next_ms(&mut self, random: u64) -> u64 {
        let base = (RETRY_MS_MIN << self.failures.min(5)).min(RETRY_MS_PLATEAU);
        self.failures = self.failures.saturating_add(1);
        let jitter = random % (base * 2 / 5 + 1);
        (base * 4 / 5 + jitter).min(RETRY_MS_MAX)
    }

    /// Starts over at the shortest pause.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// One live connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conn {
    /// The connection's number.
    pub id: ConnId,
    /// Whether this device dialled.
    pub dialed: bool,
    /// Whether the connection speaks the plain protocol.
    pub plain: bool,
    /// When it came up, monotonic ms.
    pub since_ms: u64,
}

/// A connection that waits for the peer to close it, or for the current one to end.
#[derive(Debug, Clone, Copy)]
struct Standby {
    conn: Conn,
    since_ms: u64,
    /// Whether a session has already run on it.
    was_current: bool,
}

/// What to do after a change of a link's connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// Start the session on this connection.
    pub run: Option<Conn>,
    /// Close this connection.
    pub close: Option<ConnId>,
}

/// What to do with a connection that came up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// Start the session on it, and close `close` if given.
    Current {
        /// The connection that the new one replaces, if this device has to close that.
        close: Option<ConnId>,
    },
    /// Keep it open: the peer closes it, or it becomes the current one.
    Standby {
        /// The connection that stood by before, if there was one.
        close: Option<ConnId>,
    },
    /// Close it as a duplicate.
    Duplicate,
}

/// The link to one peer: its connections and the next dial.
#[derive(Debug, Clone)]
pub struct Link {
    we_are_lower: bool,
    current: Option<Conn>,
    standby: Option<Standby>,
    dialing: bool,
    /// Whether the current connection has been silent for too long.
    doubted: bool,
    retry_at_ms: u64,
    backoff: Backoff,
    /// Until then announcements are ignored.
    deaf_until_ms: u64,
    announcements: Backoff,
}

impl Link {
    /// A link to a peer that may be reachable now. `we_are_lower`: our node ID is the lower one.
    pub fn new(now_ms: u64, we_are_lower: bool) -> Self {
        let mut link = Self {
            we_are_lower,
            current: None,
            standby: None,
            dialing: false,
            doubted: false,
            retry_at_ms: u64::MAX,
            backoff: Backoff::default(),
            deaf_until_ms: 0,
            announcements: Backoff::default(),
        };
        link.hurry(now_ms);
        link
    }

    /// The connection in use.
    pub fn current(&self) -> Option<Conn> {
        self.current
    }

    /// When to dial next, monotonic ms; `None` while connected or dialling.
    pub fn retry_at_ms(&self) -> Option<u64> {
        (self.current.is_none() && !self.dialing).then_some(self.retry_at_ms)
    }

    /// When [`Self::take_dial`] has something to do, monotonic ms.
    pub fn dial_at_ms(&self) -> Option<u64> {
        ((self.current.is_none() || self.doubted) && !self.dialing).then_some(self.retry_at_ms)
    }

    /// The current connection `id` has been silent for too long: dials beside it.
    pub fn doubt(&mut self, now_ms: u64, id: ConnId) {
        if self.current.is_some_and(|conn| conn.id == id) && !self.doubted {
            self.doubted = true;
            self.retry_at_ms = now_ms;
        }
    }

    /// The connection `id` is heard again.
    pub fn trust(&mut self, id: ConnId) {
        self.doubted &= self.current.is_none_or(|conn| conn.id != id);
    }

    /// Whether a dial is under way.
    pub fn is_dialing(&self) -> bool {
        self.dialing
    }

    /// Returns true once when it is time to dial; the caller dials.
    pub fn take_dial(&mut self, now_ms: u64) -> bool {
        let due = self.dial_at_ms().is_some_and(|at| at <= now_ms);
        self.dialing |= due;
        due
    }

    /// The peer seems reachable: dial now. The device with the higher node ID waits a moment.
    pub fn hurry(&mut self, now_ms: u64) {
        let yield_ms = if self.we_are_lower { 0 } else { YIELD_MS };
        self.retry_at_ms = self.retry_at_ms.min(now_ms + yield_ms);
        self.backoff.reset();
    }

    /// The peer was announced in the local network, unauthenticated. Dials soon, but announcements
    /// that lead to no connection are heeded less and less.
    pub fn announced(&mut self, now_ms: u64, random: u64) {
        if now_ms >= self.deaf_until_ms && self.current.is_none() {
            let backoff = self.backoff;
            self.hurry(now_ms);
            self.backoff = backoff;
            self.deaf_until_ms = now_ms + self.announcements.next_ms(random);
        }
    }

    /// A dial failed: schedules the next one.
    pub fn dial_failed(&mut self, now_ms: u64, random: u64) {
        self.dialing = false;
        let pause_ms = match self.doubted {
            true => RETRY_MS_MIN,
            false => self.backoff.next_ms(random),
        };
        self.retry_at_ms = now_ms + pause_ms;
    }

    /// A connection came up: decides which one stays.
    pub fn connected(&mut self, new: Conn) -> Placed {
        self.dialing &= !new.dialed;
        self.deaf_until_ms = 0;
        self.announcements.reset();
        let Some(old) = self.current else {
            self.current = Some(new);
            return Placed::Current { close: None };
        };
        // A connection that is doubted did not cross: it is as good as lost.
        let crossed = !self.doubted
            && old.dialed != new.dialed
            && new.since_ms.saturating_sub(old.since_ms) < CROSSING_MS;
        if !crossed {
            (self.current, self.doubted) = (Some(new), false);
            return Placed::Current { close: Some(old.id) };
        }
        if new.dialed == self.we_are_lower {
            self.current = Some(new);
            if old.dialed {
                return Placed::Current { close: Some(old.id) };
            }
            let close = self.stand_by(old, new.since_ms, true);
            return Placed::Current { close };
        }
        if new.dialed {
            return Placed::Duplicate;
        }
        Placed::Standby { close: self.stand_by(new, new.since_ms, false) }
    }

    /// Lets a connection stand by. Returns the one that stood by before.
    fn stand_by(&mut self, conn: Conn, since_ms: u64, was_current: bool) -> Option<ConnId> {
        let standby = Standby { conn, since_ms, was_current };
        self.standby.replace(standby).map(|before| before.conn.id)
    }

    /// The standby connection.
    pub fn standby(&self) -> Option<Conn> {
        self.standby.map(|standby| standby.conn)
    }

    /// When [`Self::end_standby`] has something to do, monotonic ms.
    pub fn standby_until_ms(&self) -> Option<u64> {
        self.standby.map(|standby| standby.since_ms + STANDBY_MS_MAX)
    }

    /// Handles a standby connection that the peer did not close. If no session ran on it, it is the
    /// peer's only one, because the peer restarted and the current one is dead: it becomes current.
    /// If its session is over, it is closed.
    pub fn end_standby(&mut self, now_ms: u64) -> Change {
        let due = self.standby_until_ms().is_some_and(|at| at <= now_ms);
        let Some(Standby { conn, was_current, .. }) = self.standby.take_if(|_| due) else {
            return Change::default();
        };
        if was_current {
            return Change { run: None, close: Some(conn.id) };
        }
        self.doubted = false;
        let old = self.current.replace(conn).map(|conn| conn.id);
        Change { run: Some(conn), close: old }
    }

    /// A connection ended. If it was the current one, the standby may take over.
    pub fn ended(&mut self, id: ConnId, now_ms: u64, violation: bool, random: u64) -> Change {
        self.standby.take_if(|standby| standby.conn.id == id);
        let Some(lost) = self.current.take_if(|conn| conn.id == id) else {
            return Change::default();
        };
        self.doubted = false;
        let standby = self.standby.take();
        if let Some(Standby { conn: next, was_current: false, .. }) = standby {
            self.current = Some(next);
            return Change { run: Some(next), close: None };
        }
        if now_ms.saturating_sub(lost.since_ms) >= HEALTHY_MS {
            self.backoff.reset();
        }
        if violation {
            self.backoff.failures = self.backoff.failures.max(VIOLATION_FAILURES);
        }
        self.retry_at_ms = now_ms + self.backoff.next_ms(random);
        Change { run: None, close: standby.map(|standby| standby.conn.id) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn conn(id: u64, dialed: bool, since_ms: u64) -> Conn {
        Conn { id: ConnId(id), dialed, plain: false, since_ms }
    }

    #[test]
    fn a_doubted_connection_stays_until_another_one_is_up() {
        let mut link = Link::new(0, true);
        assert!(link.take_dial(0));
        assert_eq!(link.connected(conn(1, true, 0)), Placed::Current { close: None });
        assert!(!link.take_dial(20_000), "it is connected");
        link.doubt(20_000, ConnId(7));
        assert!(!link.take_dial(20_000), "another connection is silent");
        link.doubt(20_000, ConnId(1));
        assert_eq!((link.current().map(|c| c.id), link.retry_at_ms()), (Some(ConnId(1)), None));
        assert!(link.take_dial(20_000) && !link.take_dial(20_000));
        link.dial_failed(25_000, 0);
        assert!(!link.take_dial(25_500) && link.take_dial(26_000), "it is tried again soon");
        assert_eq!(
            link.connected(conn(2, true, 26_100)),
            Placed::Current { close: Some(ConnId(1)) }
        );
        assert!(!link.take_dial(99_000), "the new one is trusted");
        let mut fresh = Link::new(0, false);
        fresh.connected(conn(3, false, 0));
        fresh.doubt(5_000, ConnId(3));
        assert!(fresh.take_dial(5_000));
        let replaced = Placed::Current { close: Some(ConnId(3)) };
        assert_eq!(fresh.connected(conn(4, true, 5_100)), replaced, "also soon after it came up");
        link.doubt(99_000, ConnId(2));
        link.trust(ConnId(2));
        assert!(!link.take_dial(99_000), "it was heard again");
    }

    #[test]
    fn retries_double_from_one_second_and_never_exceed_the_limit() {
        for random in [0, 7, u64::MAX / 3, u64::MAX] {
            let mut backoff = Backoff::default();
            let first = backoff.next_ms(random);
            assert!((800..=1200).contains(&first), "{first}");
            for _ in 0..100 {
                assert!(backoff.next_ms(random) <= RETRY_MS_MAX);
            }
            assert!(backoff.next_ms(random) >= 24_000);
        }
    }

    #[test]
    fn of_two_crossing_connections_both_sides_keep_the_one_dialled_by_the_lower_id() {
        // Connection 1 was dialled by the lower device, 2 by the higher. They arrive in any order.
        for lower_order in [[1, 2], [2, 1]] {
            for higher_order in [[1, 2], [2, 1]] {
                let (mut lower, mut higher) = (Link::new(0, true), Link::new(0, false));
                let mut closed = Vec::new();
                let mut place = |link: &mut Link, id: u64, dialed: bool| match link
                    .connected(conn(id, dialed, 0))
                {
                    Placed::Current { close } => closed.extend(close),
                    Placed::Standby { close } => closed.extend(close),
                    Placed::Duplicate => closed.push(ConnId(id)),
                };
                for id in lower_order {
                    place(&mut lower, id, id == 1);
                }
                for id in higher_order {
                    place(&mut higher, id, id == 2);
                }
                assert_eq!(lower.current().map(|c| c.id), Some(ConnId(1)));
                assert_eq!(higher.current().map(|c| c.id), Some(ConnId(1)));
                assert_eq!(closed, [ConnId(2)], "only the higher device closes, and only its own");
            }
        }
    }

    #[test]
    fn a_restarted_peer_replaces_its_old_connection_at_once() {
        for dialed in [true, false] {
            let mut link = Link::new(0, true);
            link.connected(conn(1, dialed, 0));
            let placed = link.connected(conn(2, false, CROSSING_MS));
            assert_eq!(placed, Placed::Current { close: Some(ConnId(1)) });
        }
    }

    #[test]
    fn a_connection_that_stands_by_in_place_of_another_has_that_one_closed() {
        let mut link = Link::new(0, true);
        link.connected(conn(1, true, 0));
        assert_eq!(link.connected(conn(2, false, 5)), Placed::Standby { close: None });
        assert_eq!(link.connected(conn(3, false, 6)), Placed::Standby { close: Some(ConnId(2)) });
        // Also when it is the current connection that has to stand by.
        let mut link = Link::new(0, false);
        link.connected(conn(1, true, 0));
        assert_eq!(link.connected(conn(2, false, 5)), Placed::Current { close: Some(ConnId(1)) });
        let mut link = Link::new(0, true);
        link.connected(conn(1, false, 0));
        assert_eq!(link.connected(conn(2, true, 5)), Placed::Current { close: None });
        assert_eq!(link.standby(), Some(conn(1, false, 0)));
        assert_eq!(link.connected(conn(3, false, 6)), Placed::Standby { close: Some(ConnId(1)) });
    }

    #[test]
    fn a_connection_that_stood_by_takes_over() {
        let mut link = Link::new(0, true);
        link.connected(conn(1, true, 0));
        assert_eq!(link.connected(conn(2, false, 5)), Placed::Standby { close: None });
        let change = link.ended(ConnId(1), 30_000, false, 0);
        assert_eq!(change, Change { run: Some(conn(2, false, 5)), close: None });
        assert_eq!(link.ended(ConnId(2), 30_001, false, 0), Change::default());
        assert!(link.retry_at_ms().is_some());
    }

    #[test]
    fn a_connection_that_the_peer_leaves_standing_by_takes_over() {
        let mut link = Link::new(0, true);
        link.connected(conn(1, true, 0));
        link.connected(conn(2, false, 5));
        assert_eq!(link.end_standby(STANDBY_MS_MAX), Change::default());
        let at = link.standby_until_ms().unwrap();
        let change = Change { run: Some(conn(2, false, 5)), close: Some(ConnId(1)) };
        assert_eq!(link.end_standby(at), change);
        assert_eq!(link.current(), Some(conn(2, false, 5)));
        assert_eq!((link.end_standby(at), link.standby_until_ms()), (Change::default(), None));
    }

    #[test]
    fn a_dial_that_crosses_late_leaves_the_peer_time_to_close_the_other_connection() {
        let mut link = Link::new(0, true);
        link.connected(conn(2, false, 0));
        let late_ms = STANDBY_MS_MAX + 1_000;
        assert_eq!(link.connected(conn(1, true, late_ms)), Placed::Current { close: None });
        assert_eq!(link.end_standby(late_ms + STANDBY_MS_MAX - 1), Change::default());
        let at = link.standby_until_ms().unwrap();
        let change = Change { run: None, close: Some(ConnId(2)) };
        assert_eq!(link.end_standby(at), change, "its session is over");
        assert_eq!(link.current(), Some(conn(1, true, late_ms)));
    }

    #[test]
    fn a_connection_whose_session_is_over_does_not_take_over() {
        let mut link = Link::new(0, true);
        link.connected(conn(2, false, 0));
        link.connected(conn(1, true, 10));
        let change = link.ended(ConnId(1), 20, false, 0);
        assert_eq!(change, Change { run: None, close: Some(ConnId(2)) });
        assert!(link.retry_at_ms().is_some());
    }

    #[test]
    fn a_violation_is_retried_later_than_a_loss() {
        let (mut lost, mut bad) = (Link::new(0, true), Link::new(0, true));
        for (link, violation) in [(&mut lost, false), (&mut bad, true)] {
            link.connected(conn(1, true, 0));
            link.ended(ConnId(1), 10, violation, 0);
        }
        assert!(bad.retry_at_ms() > lost.retry_at_ms().map(|at| at + 5_000));
    }

    #[test]
    fn a_flood_of_announcements_leads_to_few_dials_until_the_peer_has_connected() {
        let mut link = Link::new(0, true);
        let mut dials = 0;
        for now_ms in 0..60_000 {
            link.announced(now_ms, now_ms);
            if link.take_dial(now_ms) {
                dials += 1;
                link.dial_failed(now_ms, now_ms);
            }
        }
        // Retries alone make six, and announcements add at most as many.
        assert!((6..=12).contains(&dials), "{dials}");
        link.connected(conn(1, true, 60_000));
        link.ended(ConnId(1), 60_001, true, 0);
        link.announced(60_002, 0);
        assert!(link.take_dial(60_002));
    }

    #[test]
    fn it_dials_once_until_the_attempt_ends() {
        let mut link = Link::new(0, true);
        assert!(link.take_dial(0));
        assert!(!link.take_dial(100_000));
        link.dial_failed(100_000, 0);
        assert!(!link.take_dial(100_001));
        assert!(link.take_dial(100_000 + RETRY_MS_MAX));
        link.dial_failed(200_000, 0);
        link.hurry(200_000);
        assert!(link.take_dial(200_000));
    }

    #[test]
    fn of_two_devices_that_see_each_other_the_higher_one_leaves_the_first_attempt_to_the_other() {
        let (mut lower, mut higher) = (Link::new(0, true), Link::new(0, false));
        assert!(lower.take_dial(0));
        assert!(!higher.take_dial(YIELD_MS - 1));
        // Further announcements do not put the dial off.
        higher.hurry(YIELD_MS - 1);
        assert!(higher.take_dial(YIELD_MS));
    }
}
