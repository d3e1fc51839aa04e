//! Accepting connections: every incoming connection is judged here before any of its streams is
//! read.
//!
//! I1  A device that is not a member always gets the same close code, whatever it sends or
//!     requests.
//! I2  Unauthenticated work is bounded in number and time, and a stalled handshake gives way to a
//!     new one, so that nobody keeps a member out by stalling.
//! I3  Strangers cost no disk, a bounded share of memory, and at most one log line per minute.
//! I4  Strangers, however many, use up no handshake and no refusal reserved for callers from an
//!     address where a member is known to be.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use iroh::endpoint::{Incoming, IncomingAddr, ServerConfig};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, Interval, interval, sleep, timeout};

use crate::core::close::CloseCode;
use crate::core::ids::NodeId;

use super::address::canonical;
use super::connection::{Connection, Protocol};
use super::contain::{self, Fate};
use super::dial::lose_if_dead;
use super::endpoint::Net;
use super::link_local;

/// The limits on callers of one kind, at once and within [`REFUSALS_COUNTED_FOR`].
#[derive(Debug)]
struct Limits {
    /// The most handshakes at once. One takes milliseconds unless the other side stalls.
    handshakes: usize,
    /// The most handshakes of one source at once: a source that stalls all of its own leaves room
    /// for others.
    handshakes_per_source: usize,
    /// From this many handshakes on, a caller must prove that its address is its own (QUIC Retry).
    handshakes_unvalidated: usize,
    /// The most refused devices in all; further ones are turned away without a handshake.
    refused: u32,
    /// The most refused devices from one source.
    refused_per_source: u32,
}

/// Limits for callers from an address where no member is known to be. The refused ones cost less
/// than 150 MiB.
const UNKNOWN: Limits = Limits {
    handshakes: 8,
    handshakes_per_source: 6,
    handshakes_unvalidated: 4,
    refused: 8192,
    refused_per_source: 512,
};

/// Limits for callers from an address where a member is known to be; each such address is a source.
/// Another device that has this address and port is refused a few times, and costs at most 18 MiB.
const KNOWN: Limits = Limits {
    handshakes: 8,
    handshakes_per_source: 2,
    handshakes_unvalidated: 2,
    refused: 1024,
    refused_per_source: 16,
};

/// A caller must prove its address first when its kind has used one part in this many of its
/// refusals.
const NEAR_BOUND: u32 = 2;

/// How long a handshake may take.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// How long a handshake is protected from giving way to a new one: three round trips of a slow
/// path.
const HANDSHAKE_UNDISTURBED: Duration = Duration::from_secs(1);

/// The period over which refusals are counted. The QUIC library remembers a device after a
/// handshake for as long, at 18 KiB each (measured), member or not.
const REFUSALS_COUNTED_FOR: Duration = Duration::from_secs(60);

/// When to look for poisoned locks after a panic: it unwinds within moments, later on a busy
/// machine.
const UNWINDING: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(100)];

/// How often connections are checked without a noticed panic.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The judgement about a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is in the group.
    Member,
    /// It was in the group and was removed; it gets to know that.
    Removed,
    /// It is any other device.
    Stranger,
}

/// Decides which devices are admitted. Called for every connection after its handshake.
pub struct Admission {
    /// Judges a device.
    pub verdict: Box<dyn Fn(NodeId) -> Verdict + Send + Sync>,
    /// Whether a ticket is outstanding.
    pub pairing_open: Box<dyn Fn() -> bool + Send + Sync>,
    /// Whether another member may have added a device that is unknown here.
    pub introductions_open: Box<dyn Fn() -> bool + Send + Sync>,
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admission").finish_non_exhaustive()
    }
}

/// A connection that was accepted.
#[derive(Debug)]
pub enum Accepted {
    /// Of a member, for a session.
    Session(Connection),
    /// Of any device, to redeem a ticket with [`super::pairing::receive`].
    Pairing(Connection),
    /// Of any device, to introduce itself with [`super::introduction::host`].
    Introduction(Connection),
}

/// The accept loop, from [`Net::acceptor`]. When it is dropped no connection is accepted any more.
#[derive(Debug)]
pub struct Acceptor {
    net: Net,
    admission: Arc<Admission>,
    /// For the current endpoint; `None`: made by the next call of [`Acceptor::next`].
    stranger_config: Option<Arc<ServerConfig>>,
    panics: watch::Receiver<u64>,
    look: Interval,
    look_at_link: Interval,
    /// The endpoint was given up for sockets at link-local addresses, not because it failed.
    is_for_link: bool,
    handshakes: JoinSet<Outcome>,
    unknown: Door,
    known: Door,
    /// Until then refused devices are not logged.
    quiet_until: Instant,
}

/// A caller, as its handshakes and refusals are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Caller {
    /// Whether a member is known to be at its address.
    known: bool,
    /// `None` when it comes through a relay, where addresses cost nothing.
    source: Option<SocketAddr>,
}

/// The limits of one kind of caller and how much of them is used.
#[derive(Debug)]
struct Door {
    limits: &'static Limits,
    /// The handshakes, oldest first.
    begun: Vec<Begun>,
    refusals: Refusals,
}

#[derive(Debug)]
struct Begun {
    handshake: AbortHandle,
    source: Option<SocketAddr>,
    since: Instant,
}

/// How to answer a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Greeting {
    /// Begin a handshake.
    Begin,
    /// Make it prove its address: it must return with a token, which a forged address cannot.
    ProveAddress,
    /// Refuse it, because there is no room now.
    Refuse,
}

#[derive(Debug)]
enum Outcome {
    Accepted(Accepted),
    /// From a device that may be anyone, at any time, so it counts like a refused one.
    Stranger {
        accepted: Accepted,
        caller: Caller,
    },
    Refused {
        caller: Caller,
    },
    Failed,
}

impl Net {
    /// Begins to accept connections. There must be one acceptor only, and [`Acceptor::next`] must
    /// be called all the time, because it answers or refuses every caller.
    pub fn acceptor(&self, admission: Admission) -> Acceptor {
        Acceptor {
            net: self.clone(),
            admission: Arc::new(admission),
            stranger_config: None,
            panics: contain::panics(),
            look: interval(LOOK_EVERY),
            look_at_link: interval(link_local::LOOK_EVERY),
            is_for_link: false,
            handshakes: JoinSet::new(),
            unknown: Door::new(&UNKNOWN),
            known: Door::new(&KNOWN),
            quiet_until: Instant::now(),
        }
    }
}

impl Acceptor {
    /// The next admitted connection; `None` when the endpoint is closed. Also binds the endpoint
    /// again after a failure of the QUIC library.
    ///
    /// # Cancel safety
    /// Safe: handshakes go on, and none is lost.
    pub async fn next(&mut self) -> Option<Accepted> {
        loop {
            if self.net.bound().fate.is_lost() {
                if self.net.is_closing() {
                    return None;
                }
                if !std::mem::take(&mut self.is_for_link) {
                    tracing::error!(
                        "the QUIC library failed: binding the endpoint again, and dialling all peers"
                    );
                }
                self.begin_anew().await;
            }
            if self.stranger_config.is_none() {
                self.stranger_config = self.net.stranger_config();
            }
            let bound = self.net.bound();
            tokio::select! {
                Some(ended) = self.handshakes.join_next() => match ended {
                    Ok(Outcome::Accepted(accepted)) => return Some(accepted),
                    Ok(Outcome::Stranger { accepted, caller }) => {
                        self.door(caller).refusals.count(caller.source);
                        return Some(accepted);
                    }
                    Ok(Outcome::Refused { caller }) => self.count_refusal(caller),
                    Ok(Outcome::Failed) | Err(_) => {}
                },
                incoming = bound.accept() => match incoming {
                    Some(incoming) => {
                        // A failure in here is noticed in the next iteration.
                        let _ = bound.fate.call(|| self.greet(incoming, &bound.fate));
                    }
                    None if self.net.is_closing() => return None,
                    None => bound.fate.lose(),
                },
                () = bound.fate.lost() => {}
                _ = self.panics.changed() => self.look_after_a_panic().await,
                _ = self.look.tick() => self.net.look_for_failures(),
                _ = self.look_at_link.tick() => {
                    if self.net.lacks_link_local().await {
                        tracing::info!("this machine has link-local addresses alone: binding them");
                        self.is_for_link = true;
                        bound.fate.lose();
                    }
                }
            }
        }
    }

    /// A lock is poisoned only when the panic has unwound to where it was taken.
    async fn look_after_a_panic(&self) {
        for pause in UNWINDING {
            sleep(pause).await;
            self.net.look_for_failures();
        }
    }

    async fn begin_anew(&mut self) {
        self.stranger_config = None;
        // Each of these holds the old endpoint. They are not awaited, because their threads may be
        // lost.
        self.handshakes = JoinSet::new();
        self.known.begun.clear();
        self.unknown.begun.clear();
        self.net.rebind().await;
    }

    /// Begins a handshake, or turns the caller away before any work is done for it.
    fn greet(&mut self, incoming: Incoming, fate: &Fate) {
        let caller = self.net.caller(&incoming.remote_addr());
        match self.door(caller).greeting(caller.source, incoming.remote_addr_validated()) {
            Greeting::Begin => {}
            Greeting::ProveAddress => {
                if let Err(error) = incoming.retry() {
                    error.into_incoming().refuse();
                }
                return;
            }
            Greeting::Refuse => {
                incoming.refuse();
                return;
            }
        }
        let as_stranger = asks_as_stranger(&incoming);
        let stranger_config = self.stranger_config.clone().filter(|_| as_stranger);
        if as_stranger && stranger_config.is_none() {
            incoming.refuse();
            return;
        }
        let (net, admission) = (self.net.clone(), self.admission.clone());
        let handshake = receive(net, admission, incoming, caller, stranger_config, fate.clone());
        let handshake = self.handshakes.spawn(handshake);
        let begun = Begun { handshake, source: caller.source, since: Instant::now() };
        self.door(caller).begun.push(begun);
    }

    fn door(&mut self, caller: Caller) -> &mut Door {
        if caller.known { &mut self.known } else { &mut self.unknown }
    }

    fn count_refusal(&mut self, caller: Caller) {
        self.door(caller).refusals.count(caller.source);
        let now = Instant::now();
        if now >= self.quiet_until {
            self.quiet_until = now + REFUSALS_COUNTED_FOR;
            let source = caller.source.map(|source| source.ip());
            tracing::info!(
                ?source,
                "refused a device; further refusals are not logged for a minute"
            );
        }
    }
}

impl Net {
    fn caller(&self, address: &IncomingAddr) -> Caller {
        match address {
            IncomingAddr::Ip(socket) if self.is_member_at(*socket) => {
                Caller { known: true, source: Some(canonical(*socket)) }
            }
            _ => Caller { known: false, source: source_of(address) },
        }
    }
}

impl Door {
    fn new(limits: &'static Limits) -> Self {
        Self { limits, begun: Vec::new(), refusals: Refusals::new() }
    }

    /// How to answer a caller. May abort a stalled handshake to make room for a new one.
    fn greeting(&mut self, source: Option<SocketAddr>, validated: bool) -> Greeting {
        let limits = self.limits;
        let (in_all, of_source) = self.refusals.counted(source);
        if in_all >= limits.refused || of_source >= limits.refused_per_source {
            return Greeting::Refuse;
        }
        self.begun.retain(|begun| !begun.handshake.is_finished());
        let near_bound = in_all >= limits.refused / NEAR_BOUND
            || of_source >= limits.refused_per_source / NEAR_BOUND
            || self.begun.len() >= limits.handshakes_unvalidated;
        if near_bound && !validated {
            // A forged address must not push anyone out.
            return Greeting::ProveAddress;
        }
        let begun_of_source = self.begun.iter().filter(|begun| begun.source == source).count();
        let has_its_share = begun_of_source >= limits.handshakes_per_source;
        if has_its_share || self.begun.len() >= limits.handshakes {
            let gives_way = |begun: &Begun| !has_its_share || begun.source == source;
            let oldest = self.begun.iter().position(gives_way).expect("one of those counted");
            if self.begun[oldest].since.elapsed() < HANDSHAKE_UNDISTURBED {
                return Greeting::Refuse;
            }
            self.begun.remove(oldest).handshake.abort();
        }
        Greeting::Begin
    }
}

/// The number of recently refused devices, in all and by source. Only finished handshakes count, so
/// nobody can make a source look bad.
#[derive(Debug)]
struct Refusals {
    since: Instant,
    total: u32,
    by_source: BTreeMap<SocketAddr, u32>,
}

impl Refusals {
    fn new() -> Self {
        Self { since: Instant::now(), total: 0, by_source: BTreeMap::new() }
    }

    fn count(&mut self, source: Option<SocketAddr>) {
        self.begin_anew_when_due();
        self.total += 1;
        if let Some(source) = source {
            *self.by_source.entry(source).or_default() += 1;
        }
    }

    /// The number of refusals in all and of this source.
    fn counted(&mut self, source: Option<SocketAddr>) -> (u32, u32) {
        self.begin_anew_when_due();
        let of_source = source.and_then(|source| self.by_source.get(&source)).copied();
        (self.total, of_source.unwrap_or(0))
    }

    fn begin_anew_when_due(&mut self) {
        if self.since.elapsed() >= REFUSALS_COUNTED_FOR {
            *self = Self::new();
        }
    }
}

/// The source of a caller at an address where no member is known: its IPv4 address or IPv6 subnet.
fn source_of(address: &IncomingAddr) -> Option<SocketAddr> {
    let IncomingAddr::Ip(socket) = address else { return None };
    let ip = match socket.ip().to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    };
    Some(SocketAddr::new(ip, 0))
}

/// Whether the first packet offers a protocol for strangers. If it hides that, such protocols are
/// not offered to it, so that nobody gets a member's windows with a stranger's protocol.
fn asks_as_stranger(incoming: &Incoming) -> bool {
    let Some(mut alpns) = incoming.decrypt().and_then(|initial| initial.alpns()) else {
        return false;
    };
    alpns.any(|alpn| {
        let protocol = alpn.ok().and_then(|alpn| Protocol::from_alpn(alpn.as_ref()));
        protocol.is_some_and(Protocol::is_for_strangers)
    })
}

async fn receive(
    net: Net,
    admission: Arc<Admission>,
    incoming: Incoming,
    caller: Caller,
    stranger_config: Option<Arc<ServerConfig>>,
    fate: Fate,
) -> Outcome {
    let handshake = async {
        let connecting = match stranger_config {
            Some(config) => incoming.accept_with(config),
            None => incoming.accept(),
        }
        .map_err(|error| error.to_string())?;
        let connected = connecting.await.inspect_err(|error| lose_if_dead(&fate, error));
        connected.map_err(|error| error.to_string())
    };
    let handshake = async {
        let handshake = contain::run(&fate, handshake).await;
        handshake.map_err(|panicked| panicked.to_string())?
    };
    let quic = match timeout(HANDSHAKE_DEADLINE, handshake).await {
        Ok(Ok(quic)) => quic,
        Ok(Err(error)) => {
            tracing::debug!(error, "a handshake failed");
            return Outcome::Failed;
        }
        Err(_) => {
            tracing::debug!("a handshake took too long");
            return Outcome::Failed;
        }
    };
    let Some(protocol) = Protocol::from_alpn(quic.alpn()) else { return Outcome::Failed };
    let Ok(connection) = Connection::new(quic, protocol, fate) else { return Outcome::Failed };
    if let Some(code) = refusal(&admission, &connection) {
        connection.close(code, "");
        return Outcome::Refused { caller };
    }
    if !net.admit(&connection) {
        match protocol {
            // These are still strangers and get to know as little.
            Protocol::Pairing | Protocol::Introduction => {
                connection.close(CloseCode::NotMember, "");
            }
            Protocol::Two | Protocol::Plain => {
                connection.close(CloseCode::Internal, "too many connections");
            }
        }
        return Outcome::Refused { caller };
    }
    match protocol {
        Protocol::Pairing => Outcome::Stranger { accepted: Accepted::Pairing(connection), caller },
        Protocol::Introduction => {
            Outcome::Stranger { accepted: Accepted::Introduction(connection), caller }
        }
        Protocol::Two | Protocol::Plain => Outcome::Accepted(Accepted::Session(connection)),
    }
}

fn refusal(admission: &Admission, connection: &Connection) -> Option<CloseCode> {
    // Always called, so that every refusal takes the same steps.
    let verdict = (admission.verdict)(connection.peer());
    match connection.protocol() {
        Protocol::Pairing if (admission.pairing_open)() => None,
        Protocol::Pairing => Some(CloseCode::NotMember),
        Protocol::Introduction => match verdict {
            // Another introduction admitted it meanwhile.
            Verdict::Member => Some(CloseCode::Ok),
            // It requests the signed removal.
            Verdict::Removed => None,
            Verdict::Stranger if (admission.introductions_open)() => None,
            Verdict::Stranger => Some(CloseCode::NotMember),
        },
        Protocol::Two | Protocol::Plain => match verdict {
            Verdict::Member => None,
            Verdict::Removed => Some(CloseCode::Removed),
            Verdict::Stranger => Some(CloseCode::NotMember),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn from(address: &str) -> Option<SocketAddr> {
        source_of(&IncomingAddr::Ip(address.parse().unwrap()))
    }

    fn is_refused(door: &mut Door, source: Option<SocketAddr>) -> bool {
        door.greeting(source, true) == Greeting::Refuse
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_of_many_strangers_is_turned_away_for_a_minute_and_others_are_not() {
        let mut door = Door::new(&UNKNOWN);
        for port in 1..=UNKNOWN.refused_per_source {
            assert!(!is_refused(&mut door, from("192.0.2.7:1")));
            door.refusals.count(from(&format!("192.0.2.7:{port}")));
        }
        assert!(is_refused(&mut door, from("[::ffff:192.0.2.7]:9")));
        assert!(!is_refused(&mut door, from("192.0.2.8:1")) && !is_refused(&mut door, None));
        tokio::time::advance(REFUSALS_COUNTED_FOR).await;
        assert!(!is_refused(&mut door, from("192.0.2.7:1")));
    }

    #[tokio::test(start_paused = true)]
    async fn an_ipv6_subnet_is_one_source_and_all_together_have_a_limit() {
        let mut door = Door::new(&UNKNOWN);
        for host in 0..UNKNOWN.refused_per_source {
            door.refusals.count(from(&format!("[2001:db8::{host:x}]:1")));
        }
        assert!(is_refused(&mut door, from("[2001:db8::ffff:1]:1")));
        assert!(!is_refused(&mut door, from("[2001:db8:0:1::1]:1")));
        for _ in UNKNOWN.refused_per_source..UNKNOWN.refused {
            door.refusals.count(None);
        }
        assert!(is_refused(&mut door, from("[2001:db8:0:1::1]:1")) && is_refused(&mut door, None));
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_must_be_proved_before_the_bound_on_refusals_is_near() {
        let mut door = Door::new(&UNKNOWN);
        let source = from("192.0.2.7:1");
        for _ in 0..UNKNOWN.refused_per_source / NEAR_BOUND {
            assert_eq!(door.greeting(source, false), Greeting::Begin);
            door.refusals.count(source);
        }
        assert_eq!(door.greeting(source, false), Greeting::ProveAddress);
        assert_eq!(door.greeting(source, true), Greeting::Begin);
        assert_eq!(door.greeting(from("192.0.2.8:1"), false), Greeting::Begin);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_has_taken_over_a_members_address_is_refused_a_few_times_only() {
        let mut door = Door::new(&KNOWN);
        let [taken, other] = ["192.0.2.7:4433", "192.0.2.7:4434"].map(|a| a.parse().ok());
        for _ in 0..KNOWN.refused_per_source {
            assert!(!is_refused(&mut door, taken));
            door.refusals.count(taken);
        }
        assert!(is_refused(&mut door, taken) && !is_refused(&mut door, other));
    }
}
