//! Enforces the rate limits on batch streams.
//!
//! T1  A stream moves a portion and pays for it before the next one; it pays for the last before it
//!     ends, or when it is dropped. So streams share a limit in portions, in the order in which
//!     they pay.
//! T2  What must not wait (offers, small new assets) is paid ahead, as far as the debt allows; the
//!     streams in line then wait for it.
//! T3  Without a limit a stream is passed through: one atomic is read, but no clock and no lock.
//! T4  Limits change while streams move: a stream follows with its next portion, one in line within
//!     [`LOOK`].
//!
//! To receive more slowly it is enough to read more slowly: QUIC's flow control then slows the
//! sender.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::sleep;

use crate::clock::{Clock, local_week_minute};
use crate::core::limits::SMALL_BYTES_MAX;
use crate::core::rate::{Bucket, RateLimits, Rates, Timetable, Turn};
use crate::core::session::Lane;
use crate::net::frame::TakeBytes;
use crate::net::{Connection, PathKind};
use crate::replica::status::RateLimitStatus;

/// What each stream may pay ahead: the longest offer that is sent, and a small content or two.
const AHEAD_BYTES: u64 = 32 * 1024;

/// Content that somebody waits for moves this many portions at a time. A full bucket holds as many.
const NOW_PORTIONS: u64 = 4;

/// How often a stream in line checks whether another limit is in force.
const LOOK: Duration = Duration::from_secs(1);

/// How often a connection's path is checked while the local network is exempt.
const PATH_LOOK_MS: u64 = 1_000;

/// The rate limits of an agent. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Throttle {
    limits: Arc<Limits>,
    clock: Clock,
    /// The limits up and down for all peers together.
    all: [Arc<Gate>; 2],
}

/// The configured limits, which may be replaced at any time.
#[derive(Debug)]
struct Limits {
    /// Whether there is any limit.
    is_limited: AtomicBool,
    configured: Mutex<Arc<RateLimits>>,
}

/// The limits of one connection. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct LinkThrottle(Option<Arc<Link>>);

#[derive(Debug)]
struct Link {
    limits: Arc<Limits>,
    /// First the peer's, then the agent's: a stream that waits for a slow peer holds up no other
    /// peer.
    gates: [[Arc<Gate>; 2]; 2],
    clock: Clock,
    /// The connection whose path is checked while the local network is exempt.
    connection: Connection,
    path: Mutex<PathLook>,
}

#[derive(Debug, Default)]
struct PathLook {
    is_lan: bool,
    again_ms: u64,
}

#[derive(Debug, Clone, Copy)]
enum Way {
    Up,
    Down,
}

/// The peers whom a limit is for.
#[derive(Debug, Clone, Copy)]
enum Scope {
    All,
    Each,
}

impl Limits {
    fn is_limited(&self) -> bool {
        self.is_limited.load(Ordering::Relaxed)
    }

    fn configured(&self) -> Arc<RateLimits> {
        self.configured.lock().clone()
    }
}

impl Throttle {
    /// Enforces these limits from the start.
    pub(crate) fn new(limits: RateLimits) -> Self {
        let clock = Clock::start();
        let limits = Arc::new(Limits {
            is_limited: AtomicBool::new(!limits.is_empty()),
            configured: Mutex::new(Arc::new(limits)),
        });
        let all = Gate::pair(&limits, Scope::All, clock);
        Self { limits, clock, all }
    }

    /// Enforces these limits from now on, on the streams under way too.
    pub(crate) fn set_limits(&self, limits: RateLimits) {
        let is_limited = !limits.is_empty();
        *self.limits.configured.lock() = Arc::new(limits);
        self.limits.is_limited.store(is_limited, Ordering::Relaxed);
    }

    /// The limits of a connection.
    pub(crate) fn link(&self, connection: &Connection) -> LinkThrottle {
        let each = Gate::pair(&self.limits, Scope::Each, self.clock);
        let gates = [0, 1].map(|way| [each[way].clone(), self.all[way].clone()]);
        let (limits, clock) = (self.limits.clone(), self.clock);
        let (connection, path) = (connection.clone(), Mutex::default());
        LinkThrottle(Some(Arc::new(Link { limits, gates, clock, connection, path })))
    }

    /// The configured limits.
    pub(crate) fn limits(&self) -> Arc<RateLimits> {
        self.limits.configured()
    }

    /// The limits in force now as the status shows them; `None` when none is configured.
    pub(crate) fn status(&self) -> Option<RateLimitStatus> {
        let limits = self.limits.configured();
        let [all, each] = self.in_force();
        (!limits.is_empty()).then_some(RateLimitStatus {
            up_bytes: all.up,
            down_bytes: all.down,
            up_per_peer_bytes: each.up,
            down_per_peer_bytes: each.down,
            lan_exempt: limits.lan_exempt,
        })
    }

    /// The limits in force now: for all peers together, and for each.
    fn in_force(&self) -> [Rates; 2] {
        if !self.limits.is_limited() {
            return Default::default();
        }
        let (limits, minute) = (self.limits.configured(), local_week_minute());
        let at = |table: &Option<Timetable>| table.as_ref().map(|table| table.at(minute));
        [at(&limits.all), at(&limits.each)].map(Option::unwrap_or_default)
    }
}

impl LinkThrottle {
    /// Throttles a stream that is written, of this lane; `None`: of the plain protocol.
    pub(crate) fn up<W>(&self, stream: W, lane: Option<Lane>) -> Throttled<W> {
        let (ahead_bytes, portions) = match lane {
            // A small new asset is sent at once; several of them wait in line like everything else.
            Some(Lane::Live) => (SMALL_BYTES_MAX, 1),
            Some(Lane::Now | Lane::NowLarge) => (SMALL_BYTES_MAX, NOW_PORTIONS),
            Some(Lane::LiveLarge | Lane::Small | Lane::Large) | None => (AHEAD_BYTES, 1),
        };
        self.throttled(stream, Way::Up, ahead_bytes, portions)
    }

    /// Throttles a stream that is read.
    pub(crate) fn down<R>(&self, stream: R) -> Throttled<R> {
        self.throttled(stream, Way::Down, AHEAD_BYTES, 1)
    }

    fn throttled<S>(&self, stream: S, way: Way, ahead_bytes: u64, portions: u64) -> Throttled<S> {
        let link = self.0.clone();
        Throttled { stream, link, way, ahead_bytes, portions, owed_bytes: 0, paying: None }
    }
}

impl Link {
    fn gates(&self, way: Way) -> &[Arc<Gate>] {
        &self.gates[way as usize]
    }

    /// The most bytes to move before paying; `None`: there is no limit now.
    fn portion_bytes(&self, way: Way) -> Option<u64> {
        if !self.limits.is_limited() || self.is_exempt() {
            return None;
        }
        self.gates(way).iter().filter_map(|gate| gate.portion_bytes()).min()
    }

    fn is_exempt(&self) -> bool {
        if !self.limits.configured().lan_exempt {
            return false;
        }
        let mut look = self.path.lock();
        let now_ms = self.clock.now_ms();
        if now_ms >= look.again_ms {
            look.is_lan = self.connection.path().is_some_and(|path| path.kind == PathKind::Lan);
            look.again_ms = now_ms + PATH_LOOK_MS;
        }
        look.is_lan
    }

    async fn pay(self: Arc<Self>, way: Way, bytes: u64, turn: Turn) {
        for gate in self.gates(way) {
            gate.pay(bytes, turn).await;
        }
    }
}

// --- one limit, one way ---------------------------------------------------------------------------

#[derive(Debug)]
struct Gate {
    limits: Arc<Limits>,
    scope: Scope,
    way: Way,
    clock: Clock,
    /// `None` while there is no limit.
    bucket: Mutex<Option<Bucket>>,
    /// Held by the next stream to pay. Fair: the others wait in order.
    line: tokio::sync::Mutex<()>,
}

impl Gate {
    fn pair(limits: &Arc<Limits>, scope: Scope, clock: Clock) -> [Arc<Self>; 2] {
        [Way::Up, Way::Down].map(|way| {
            let (bucket, line) = (Mutex::default(), tokio::sync::Mutex::default());
            Arc::new(Self { limits: limits.clone(), scope, way, clock, bucket, line })
        })
    }

    /// Returns when `bytes` are paid for.
    ///
    /// # Cancel safety
    /// If dropped, nothing is paid.
    async fn pay(&self, bytes: u64, turn: Turn) {
        if turn == Turn::Ahead && self.take(bytes, turn) == 0 {
            return;
        }
        let _line = self.line.lock().await;
        loop {
            match self.take(bytes, Turn::InLine) {
                0 => return,
                wait_ms => sleep(Duration::from_millis(wait_ms).min(LOOK)).await,
            }
        }
    }

    fn take(&self, bytes: u64, turn: Turn) -> u64 {
        let mut bucket = self.bucket.lock();
        let now_ms = self.clock.now_ms();
        self.in_force(&mut bucket, now_ms).map_or(0, |bucket| bucket.take(now_ms, bytes, turn))
    }

    fn charge(&self, bytes: u64) {
        let mut bucket = self.bucket.lock();
        let now_ms = self.clock.now_ms();
        if let Some(bucket) = self.in_force(&mut bucket, now_ms) {
            bucket.charge(now_ms, bytes);
        }
    }

    fn portion_bytes(&self) -> Option<u64> {
        let mut bucket = self.bucket.lock();
        let now_ms = self.clock.now_ms();
        self.in_force(&mut bucket, now_ms).map(|bucket| bucket.portion_bytes())
    }

    /// The bucket at the rate of this minute.
    fn in_force<'a>(&self, bucket: &'a mut Option<Bucket>, now_ms: u64) -> Option<&'a mut Bucket> {
        let limits = self.limits.configured();
        let table = match self.scope {
            Scope::All => limits.all.as_ref(),
            Scope::Each => limits.each.as_ref(),
        };
        let rates = table.map(|table| table.at(local_week_minute())).unwrap_or_default();
        let rate = match self.way {
            Way::Up => rates.up,
            Way::Down => rates.down,
        };
        let Some(rate_bytes) = rate else {
            *bucket = None;
            return None;
        };
        let bucket = bucket.get_or_insert_with(|| Bucket::new(now_ms, rate_bytes));
        bucket.set_rate(now_ms, rate_bytes);
        Some(bucket)
    }
}

// --- a stream -------------------------------------------------------------------------------------

/// A stream with the limits of its connection.
pub(crate) struct Throttled<S> {
    stream: S,
    link: Option<Arc<Link>>,
    way: Way,
    /// The bytes that may still be paid ahead.
    ahead_bytes: u64,
    /// The number of portions that it moves before it pays.
    portions: u64,
    /// The bytes moved but not paid for.
    owed_bytes: u64,
    paying: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<S> Throttled<S> {
    /// Waits until the bytes of the last portion are paid, then returns how many bytes may move now.
    /// `None`: no limit.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Option<usize>> {
        let Some(link) = &self.link else { return Poll::Ready(None) };
        if self.owed_bytes > 0 {
            let (way, bytes) = (self.way, self.owed_bytes);
            let ahead_bytes = &mut self.ahead_bytes;
            let paying = self.paying.get_or_insert_with(|| {
                let turn = if bytes <= *ahead_bytes { Turn::Ahead } else { Turn::InLine };
                *ahead_bytes = ahead_bytes.saturating_sub(bytes);
                Box::pin(link.clone().pay(way, bytes, turn))
            });
            ready!(paying.as_mut().poll(cx));
            (self.paying, self.owed_bytes) = (None, 0);
        }
        let room = link.portion_bytes(self.way).map(|bytes| bytes.saturating_mul(self.portions));
        Poll::Ready(room.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)))
    }

    fn owe(&mut self, bytes: usize) {
        self.owed_bytes += bytes as u64;
    }
}

impl<S> Drop for Throttled<S> {
    fn drop(&mut self) {
        if let (Some(link), 1..) = (&self.link, self.owed_bytes) {
            link.gates(self.way).iter().for_each(|gate| gate.charge(self.owed_bytes));
        }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Throttled<R> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(room) = ready!(this.poll_room(cx)) else {
            return Pin::new(&mut this.stream).poll_read(cx, buffer);
        };
        let room = room.min(buffer.remaining());
        let mut portion = ReadBuf::new(buffer.initialize_unfilled_to(room));
        ready!(Pin::new(&mut this.stream).poll_read(cx, &mut portion))?;
        let read = portion.filled().len();
        buffer.advance(read);
        this.owe(read);
        Poll::Ready(Ok(()))
    }
}

impl<W: TakeBytes + Send> TakeBytes for Throttled<W> {
    async fn take(&mut self, bytes: &mut Bytes) -> io::Result<()> {
        let Some(room) = poll_fn(|cx| self.poll_room(cx)).await else {
            return self.stream.take(bytes).await;
        };
        let mut portion = bytes.slice(..room.min(bytes.len()));
        let before = portion.len();
        self.stream.take(&mut portion).await?;
        let taken = before - portion.len();
        bytes.advance(taken);
        self.owe(taken);
        Ok(())
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Throttled<W> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let Some(room) = ready!(this.poll_room(cx)) else {
            return Pin::new(&mut this.stream).poll_write(cx, bytes);
        };
        let portion = &bytes[..room.min(bytes.len())];
        let written = ready!(Pin::new(&mut this.stream).poll_write(cx, portion))?;
        this.owe(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_room(cx));
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}
