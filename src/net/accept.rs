//! Who comes in: every incoming connection is judged here, before any of its streams is read.
//!
//! I1  A device that is not a member gets one and the same close, whatever it says or asks for.
//! I2  Unauthenticated work is bounded in number and time, and stalled handshakes give way to new
//!     ones, so that nobody keeps a member out by hanging on.
//! I3  Strangers cost no disk, a bounded share of memory and at most one log line a minute.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use iroh::endpoint::{Incoming, IncomingAddr, ServerConfig};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, timeout};

use crate::core::close::CloseCode;
use crate::core::ids::NodeId;

use super::connection::{Connection, Protocol};
use super::endpoint::Net;

/// Handshakes at once. One takes milliseconds unless the other side stalls.
const HANDSHAKES_MAX: usize = 8;

/// Handshakes of one source at once: who stalls as many as it can leaves room for others.
const HANDSHAKES_PER_SOURCE_MAX: usize = 6;

/// From this many handshakes on, a caller must show that its address is its own (QUIC Retry).
const HANDSHAKES_UNVALIDATED_MAX: usize = 4;

/// How long a handshake may take.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// How long a handshake is safe from giving way to a new one: three round trips of a slow path.
const HANDSHAKE_UNDISTURBED: Duration = Duration::from_secs(1);

/// The span that refusals are counted over. The QUIC library remembers a device it has shaken hands
/// with for as long, at 18 KiB each (measured), member or not.
const REFUSALS_COUNTED_FOR: Duration = Duration::from_secs(60);

/// Refused devices from one source in that span; more are turned away without a handshake.
const REFUSED_PER_SOURCE_MAX: u32 = 512;

/// Refused devices in all in that span: what they cost stays below 150 MiB.
const REFUSED_MAX: u32 = 8192;

/// What a device is to this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// In the group.
    Member,
    /// Was in the group and has been removed; it is told so.
    Removed,
    /// Anyone else.
    Stranger,
}

/// Who may come in; asked for every connection, when its handshake is done.
pub struct Admission {
    /// Judges a device.
    pub verdict: Box<dyn Fn(NodeId) -> Verdict + Send + Sync>,
    /// Whether a ticket is outstanding.
    pub pairing_open: Box<dyn Fn() -> bool + Send + Sync>,
    /// Whether somebody else may have added a device that is a stranger here.
    pub introductions_open: Box<dyn Fn() -> bool + Send + Sync>,
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admission").finish_non_exhaustive()
    }
}

/// A connection that came in.
#[derive(Debug)]
pub enum Accepted {
    /// A member's, for a session.
    Session(Connection),
    /// Anyone's, to redeem a ticket with [`super::pairing::host`].
    Pairing(Connection),
    /// Anyone's, to be introduced with [`super::introduction::host`].
    Introduction(Connection),
}

/// The accept loop, from [`Net::acceptor`]. Dropped, nobody comes in any more.
#[derive(Debug)]
pub struct Acceptor {
    net: Net,
    admission: Arc<Admission>,
    stranger_config: Arc<ServerConfig>,
    handshakes: JoinSet<Outcome>,
    /// The handshakes, oldest first.
    begun: Vec<Begun>,
    refusals: Refusals,
}

#[derive(Debug)]
struct Begun {
    handshake: AbortHandle,
    source: Option<IpAddr>,
    since: Instant,
}

#[derive(Debug)]
enum Outcome {
    Accepted(Accepted),
    /// Its sender may be anyone, whenever it likes: counted like those who were refused.
    Introduction {
        connection: Connection,
        source: Option<IpAddr>,
    },
    Refused {
        source: Option<IpAddr>,
    },
    Failed,
}

impl Net {
    /// Begins to accept. One acceptor at a time, and it must be asked for the next connection all
    /// the time: that is what answers or refuses everyone who knocks.
    pub fn acceptor(&self, admission: Admission) -> Acceptor {
        Acceptor {
            net: self.clone(),
            admission: Arc::new(admission),
            stranger_config: Arc::new(self.stranger_config()),
            handshakes: JoinSet::new(),
            begun: Vec::new(),
            refusals: Refusals::new(),
        }
    }
}

impl Acceptor {
    /// The next connection that was let in; `None` when the endpoint is closed.
    ///
    /// # Cancel safety
    /// Safe: handshakes go on, and none is lost.
    pub async fn next(&mut self) -> Option<Accepted> {
        loop {
            tokio::select! {
                Some(ended) = self.handshakes.join_next() => match ended {
                    Ok(Outcome::Accepted(accepted)) => return Some(accepted),
                    Ok(Outcome::Introduction { connection, source }) => {
                        self.refusals.count(source);
                        return Some(Accepted::Introduction(connection));
                    }
                    Ok(Outcome::Refused { source }) => self.refusals.count_and_tell(source),
                    Ok(Outcome::Failed) | Err(_) => {}
                },
                incoming = self.net.endpoint().accept() => self.greet(incoming?),
            }
        }
    }

    /// Begins a handshake, or turns the caller away before any work is done for it.
    fn greet(&mut self, incoming: Incoming) {
        let source = source_of(&incoming.remote_addr());
        if self.refusals.too_many(source) {
            incoming.refuse();
            return;
        }
        self.begun.retain(|begun| !begun.handshake.is_finished());
        if self.begun.len() >= HANDSHAKES_UNVALIDATED_MAX && !incoming.remote_addr_validated() {
            // It comes back with a token at once; an address that was made up does not, and must not
            // push anyone out.
            if let Err(error) = incoming.retry() {
                error.into_incoming().refuse();
            }
            return;
        }
        let of_source = self.begun.iter().filter(|begun| begun.source == source).count();
        let has_its_share = of_source >= HANDSHAKES_PER_SOURCE_MAX;
        if has_its_share || self.begun.len() >= HANDSHAKES_MAX {
            let gives_way = |begun: &Begun| !has_its_share || begun.source == source;
            let oldest = self.begun.iter().position(gives_way).expect("one of those counted");
            if self.begun[oldest].since.elapsed() < HANDSHAKE_UNDISTURBED {
                incoming.refuse();
                return;
            }
            self.begun.remove(oldest).handshake.abort();
        }
        let stranger_config = asks_as_stranger(&incoming).then(|| self.stranger_config.clone());
        let handshake =
            receive(self.net.clone(), self.admission.clone(), incoming, stranger_config);
        let handshake = self.handshakes.spawn(handshake);
        self.begun.push(Begun { handshake, source, since: Instant::now() });
    }
}

/// How many devices were refused of late, in all and by source. Only a finished handshake is
/// counted, so a source cannot be blamed by others.
#[derive(Debug)]
struct Refusals {
    since: Instant,
    total: u32,
    by_source: BTreeMap<IpAddr, u32>,
    /// The log knows that there are some.
    told: bool,
}

impl Refusals {
    fn new() -> Self {
        Self { since: Instant::now(), total: 0, by_source: BTreeMap::new(), told: false }
    }

    fn count(&mut self, source: Option<IpAddr>) {
        self.begin_anew_when_due();
        self.total += 1;
        if let Some(source) = source {
            *self.by_source.entry(source).or_default() += 1;
        }
    }

    fn count_and_tell(&mut self, source: Option<IpAddr>) {
        self.count(source);
        if !std::mem::replace(&mut self.told, true) {
            tracing::info!(?source, "refused a device; more of them are not logged for a minute");
        }
    }

    fn too_many(&mut self, source: Option<IpAddr>) -> bool {
        self.begin_anew_when_due();
        let of_source = source.and_then(|source| self.by_source.get(&source)).copied();
        self.total >= REFUSED_MAX || of_source.unwrap_or(0) >= REFUSED_PER_SOURCE_MAX
    }

    fn begin_anew_when_due(&mut self) {
        if self.since.elapsed() >= REFUSALS_COUNTED_FOR {
            *self = Self::new();
        }
    }
}

/// Who to count a caller's refusals against: its IPv4 address or IPv6 subnet; nobody when it comes
/// through a relay, where addresses cost nothing.
fn source_of(address: &IncomingAddr) -> Option<IpAddr> {
    let IncomingAddr::Ip(socket) = address else { return None };
    Some(match socket.ip().to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    })
}

/// Whether the first packet offers a protocol for strangers. One that hides it is answered without
/// those, so that nobody has a stranger's rights and a member's windows.
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
    stranger_config: Option<Arc<ServerConfig>>,
) -> Outcome {
    let source = source_of(&incoming.remote_addr());
    let handshake = async {
        let connecting = match stranger_config {
            Some(config) => incoming.accept_with(config),
            None => incoming.accept(),
        }
        .map_err(|error| error.to_string())?;
        connecting.await.map_err(|error| error.to_string())
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
    let connection = Connection::new(quic, protocol);
    if let Some(code) = refusal(&admission, &connection) {
        connection.close(code, "");
        return Outcome::Refused { source };
    }
    if !net.admit(&connection) {
        match protocol {
            // Strangers still, who learn as little.
            Protocol::Pairing | Protocol::Introduction => {
                connection.close(CloseCode::NotMember, "");
            }
            Protocol::Two | Protocol::Plain => {
                connection.close(CloseCode::Internal, "too many connections");
            }
        }
        return Outcome::Refused { source };
    }
    Outcome::Accepted(match protocol {
        Protocol::Pairing => Accepted::Pairing(connection),
        Protocol::Introduction => return Outcome::Introduction { connection, source },
        Protocol::Two | Protocol::Plain => Accepted::Session(connection),
    })
}

fn refusal(admission: &Admission, connection: &Connection) -> Option<CloseCode> {
    // Always asked, so that every refusal takes the same steps.
    let verdict = (admission.verdict)(connection.peer());
    match connection.protocol() {
        Protocol::Pairing if (admission.pairing_open)() => None,
        Protocol::Pairing => Some(CloseCode::NotMember),
        Protocol::Introduction => match verdict {
            // It was introduced meanwhile.
            Verdict::Member => Some(CloseCode::Ok),
            Verdict::Removed => Some(CloseCode::Removed),
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

    fn from(address: &str) -> Option<IpAddr> {
        source_of(&IncomingAddr::Ip(address.parse().unwrap()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_of_many_strangers_is_turned_away_for_a_minute_and_others_are_not() {
        let mut refusals = Refusals::new();
        for port in 1..=REFUSED_PER_SOURCE_MAX {
            assert!(!refusals.too_many(from("192.0.2.7:1")));
            refusals.count(from(&format!("192.0.2.7:{port}")));
        }
        assert!(refusals.too_many(from("[::ffff:192.0.2.7]:9")));
        assert!(!refusals.too_many(from("192.0.2.8:1")) && !refusals.too_many(None));
        tokio::time::advance(REFUSALS_COUNTED_FOR).await;
        assert!(!refusals.too_many(from("192.0.2.7:1")));
    }

    #[tokio::test(start_paused = true)]
    async fn an_ipv6_subnet_is_one_source_and_all_together_have_a_limit() {
        let mut refusals = Refusals::new();
        for host in 0..REFUSED_PER_SOURCE_MAX {
            refusals.count(from(&format!("[2001:db8::{host:x}]:1")));
        }
        assert!(refusals.too_many(from("[2001:db8::ffff:1]:1")));
        assert!(!refusals.too_many(from("[2001:db8:0:1::1]:1")));
        for _ in REFUSED_PER_SOURCE_MAX..REFUSED_MAX {
            refusals.count(None);
        }
        assert!(refusals.too_many(from("[2001:db8:0:1::1]:1")) && refusals.too_many(None));
    }
}
