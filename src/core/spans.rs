//! Decides which bytes of an asset are requested from which source, while one or several peers send
//! it.
//!
//! Spans are handed out one after another, in the order of the content, to each source that is
//! ready for more. So each source sends as fast as it can, and nobody has to predict its speed. A
//! span is what its source moves in about [`SPAN_MS`].
//!
//! S1  A byte is held, free, or requested from one source: never from two.
//! S2  What a source leaves unsent becomes free for the others; what it sent stays.
//! S3  When nothing is free, an idle source takes over what a late source has not sent, and the
//!     late one is left behind. So the slowest source does not hold up the others.
//! S4  An asset that is not worth a second source from the start can still be taken over by one
//!     that joins later, when the first is slow.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use crate::core::ids::{Digest, HashAlgorithm};
use crate::core::limits::SHARED_BYTES_MIN;
use crate::core::ranges::Ranges;

/// How many sources may send an asset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// One. It is requested to send everything that is free in one span.
    Alone,
    /// One, which is requested to send everything in one span until a second joins. Then each sends
    /// a part.
    Later,
    /// Several, each of which sends a part.
    Together,
}

impl Sharing {
    /// How an asset may be shared among its sources. Only with BLAKE3 can a part be verified
    /// without the rest.
    pub fn of(digest: &Digest, algorithm: HashAlgorithm) -> Self {
        match algorithm {
            HashAlgorithm::Sha256 => Self::Alone,
            HashAlgorithm::Blake3 if is_shared(digest, algorithm) => Self::Together,
            HashAlgorithm::Blake3 => Self::Later,
        }
    }
}

/// Whether several peers may send an asset at a time: its parts can be verified one by one, and it
/// is large enough to be worth it.
pub fn is_shared(digest: &Digest, algorithm: HashAlgorithm) -> bool {
    algorithm == HashAlgorithm::Blake3 && digest.size_bytes >= SHARED_BYTES_MIN
}

/// Spans begin and end at multiples of this, or at the end of the asset.
pub const SPAN_BYTES_MIN: u64 = 256 * 1024;

/// The largest span. Times [`SPANS_AHEAD`] it is the most requested from one source at a time, and
/// fills 80 MB/s at a round trip of 100 ms.
pub const SPAN_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The number of spans requested from a source at a time: one arrives while the request for the
/// next is on its way.
pub const SPANS_AHEAD: usize = 2;

/// The first span of a source; later ones double or halve with its speed.
const SPAN_BYTES_FIRST: u64 = 1024 * 1024;

/// How long a span should take: short, because the others must wait for a span whose source stops.
const SPAN_MS: u64 = 1_000;

/// A source that takes this long for one span is late.
const LATE_MS: u64 = 5_000;

/// One peer's part in sending an asset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceId(u64);

#[derive(Debug, Clone)]
struct Source {
    /// The spans requested that have not arrived, in order.
    asked: VecDeque<Range<u64>>,
    span_bytes: u64,
    /// When the source could begin to send its first open span.
    begun_ms: u64,
}

impl Source {
    fn asked_bytes(&self) -> u64 {
        self.asked.iter().map(|span| span.end - span.start).sum()
    }

    fn late_ms(&self) -> Option<u64> {
        (!self.asked.is_empty()).then_some(self.begun_ms + LATE_MS)
    }

    /// The source's first open span has arrived: adapts the span length and begins the next.
    fn came_through(&mut self, now_ms: u64) {
        let took_ms = now_ms.saturating_sub(self.begun_ms);
        if took_ms < SPAN_MS / 2 {
            self.span_bytes = (self.span_bytes * 2).min(SPAN_BYTES_MAX);
        } else if took_ms > SPAN_MS * 2 {
            self.span_bytes = (self.span_bytes / 2).max(SPAN_BYTES_MIN);
        }
        self.begun_ms = now_ms;
        self.asked.pop_front();
    }
}

/// The bytes of one asset that have not arrived yet. See the module's head.
#[derive(Debug, Clone)]
pub struct Spans {
    free: Ranges,
    sources: BTreeMap<SourceId, Source>,
    sharing: Sharing,
    last_id: u64,
}

impl Spans {
    /// Starts with the `missing` bytes.
    pub fn new(missing: Ranges, sharing: Sharing) -> Self {
        Self { free: missing, sources: BTreeMap::new(), sharing, last_id: 0 }
    }

    /// Adds a source. `None` if there is one already that must stay alone.
    pub fn join(&mut self) -> Option<SourceId> {
        if !self.sources.is_empty() {
            match self.sharing {
                Sharing::Alone => return None,
                Sharing::Later | Sharing::Together => self.sharing = Sharing::Together,
            }
        }
        self.last_id += 1;
        let id = SourceId(self.last_id);
        let source = Source { asked: VecDeque::new(), span_bytes: SPAN_BYTES_FIRST, begun_ms: 0 };
        self.sources.insert(id, source);
        Some(id)
    }

    /// The next span to request from the source, beside those that are open.
    pub fn next(&mut self, now_ms: u64, id: SourceId) -> Option<Range<u64>> {
        let asked = self.sources.get(&id)?.asked.len();
        if asked >= SPANS_AHEAD {
            return None;
        }
        if self.free.is_empty() && asked == 0 {
            self.leave_late_behind(now_ms);
        }
        let Range { start, mut end } = self.free.first()?;
        let source = self.sources.get_mut(&id)?;
        if self.sharing == Sharing::Together {
            let span_end = (start + source.span_bytes) / SPAN_BYTES_MIN * SPAN_BYTES_MIN;
            end = end.min(span_end);
        }
        if asked == 0 {
            source.begun_ms = now_ms;
        }
        source.asked.push_back(start..end);
        self.free.remove(&(start..end));
        Some(start..end)
    }

    /// Notes that a verified piece from the source has arrived.
    pub fn arrived(&mut self, now_ms: u64, id: SourceId, piece: Range<u64>) {
        let source = self.sources.get_mut(&id);
        let due = source.as_ref().and_then(|source| source.asked.front());
        let is_due = due.is_some_and(|due| due.start == piece.start && piece.end <= due.end);
        let Some(source) = source.filter(|_| is_due) else {
            // The source left, or was left behind, while the piece was being written.
            self.free.remove(&piece);
            return;
        };
        source.asked[0].start = piece.end;
        if source.asked[0].is_empty() {
            source.came_through(now_ms);
        }
    }

    /// Removes a source; its open spans become free.
    pub fn leave(&mut self, id: SourceId) {
        let Some(source) = self.sources.remove(&id) else { return };
        source.asked.into_iter().for_each(|span| self.free.insert(span));
    }

    /// The number of sources.
    pub fn sources(&self) -> usize {
        self.sources.len()
    }

    /// Whether the source takes part: it has not left and was not left behind.
    pub fn is_source(&self, id: SourceId) -> bool {
        self.sources.contains_key(&id)
    }

    /// Whether everything has arrived.
    pub fn is_whole(&self) -> bool {
        self.free.is_empty() && self.sources.values().all(|source| source.asked.is_empty())
    }

    /// Whether the source may be needed again: for what is free, for what other sources may leave,
    /// or to tell it that it was left behind.
    pub fn may_ask(&self, id: SourceId) -> bool {
        let is_needed = match self.sharing {
            Sharing::Together => !self.is_whole(),
            Sharing::Alone | Sharing::Later => !self.free.is_empty(),
        };
        is_needed || !self.is_source(id)
    }

    /// When an idle source should call [`Self::next`] again, if nothing happens before.
    pub fn late_ms(&self) -> Option<u64> {
        self.sources.values().filter_map(Source::late_ms).min()
    }

    /// How many bytes the source will probably still send: its open spans and its share of what is
    /// free.
    pub fn share_bytes(&self, id: SourceId) -> u64 {
        let Some(source) = self.sources.get(&id) else { return 0 };
        source.asked_bytes() + self.free.bytes() / self.sources.len() as u64
    }

    fn leave_late_behind(&mut self, now_ms: u64) {
        let late = self
            .sources
            .iter()
            .filter(|(_, source)| source.late_ms().is_some_and(|late_ms| now_ms >= late_ms));
        if let Some((id, _)) = late.max_by_key(|(_, source)| source.asked_bytes()) {
            let id = *id;
            self.leave(id);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1024 * 1024;
    /// The piece that a source reads, verifies and sends at once.
    const PIECE: u64 = SPAN_BYTES_MIN;

    fn whole(size_bytes: u64) -> Ranges {
        Ranges::default().gaps(size_bytes)
    }

    #[test]
    fn one_source_is_asked_for_all_in_a_row_and_no_other_joins() {
        let mut held = Ranges::default();
        held.insert(2 * MIB..3 * MIB);
        let mut spans = Spans::new(held.gaps(10 * MIB + 5), Sharing::Alone);
        let one = spans.join().unwrap();
        assert_eq!(spans.join(), None);
        assert_eq!(spans.next(0, one), Some(0..2 * MIB));
        assert!(spans.may_ask(one));
        assert_eq!(spans.next(0, one), Some(3 * MIB..10 * MIB + 5));
        assert!(!spans.may_ask(one), "it is asked for everything");
        assert_eq!(spans.next(1_000_000, one), None);
        spans.leave(one);
        let other = spans.join().unwrap();
        assert_eq!(spans.next(0, other), Some(0..2 * MIB));
    }

    #[test]
    fn what_a_source_leaves_goes_to_another_and_what_it_sent_stays() {
        let mut spans = Spans::new(whole(3 * MIB), Sharing::Together);
        let (one, other) = (spans.join().unwrap(), spans.join().unwrap());
        assert_eq!(spans.next(0, one), Some(0..MIB));
        assert_eq!(spans.next(0, other), Some(MIB..2 * MIB));
        spans.arrived(1, one, 0..PIECE);
        spans.leave(one);
        // The last piece was still being written.
        spans.arrived(2, one, PIECE..2 * PIECE);
        assert_eq!(spans.next(2, other), Some(2 * PIECE..MIB));
        assert_eq!(spans.next(2, other), None, "enough for now");
        assert!(!spans.is_source(one) && spans.is_source(other));
    }

    #[test]
    fn a_source_that_stalls_is_left_behind_when_another_has_nothing_to_do() {
        let mut spans = Spans::new(whole(2 * MIB), Sharing::Together);
        let (stalled, other) = (spans.join().unwrap(), spans.join().unwrap());
        assert_eq!(spans.next(0, stalled), Some(0..MIB));
        assert_eq!(spans.next(0, other), Some(MIB..2 * MIB));
        spans.arrived(100, other, MIB..2 * MIB);
        spans.arrived(200, stalled, 0..PIECE);
        assert_eq!(spans.next(LATE_MS - 1, other), None);
        assert!(spans.may_ask(other), "it waits for what the other may leave");
        assert_eq!(spans.late_ms(), Some(LATE_MS));
        assert_eq!(spans.next(LATE_MS, other), Some(PIECE..MIB));
        assert!(!spans.is_source(stalled));
        spans.arrived(LATE_MS + 1, other, PIECE..MIB);
        assert!(spans.is_whole() && !spans.may_ask(other));
        assert!(spans.may_ask(stalled), "it has yet to hear of it");
    }

    #[test]
    fn a_source_that_is_alone_is_never_left_behind() {
        let mut spans = Spans::new(whole(20 * MIB), Sharing::Together);
        let one = spans.join().unwrap();
        while spans.next(0, one).is_some() {}
        assert_eq!(spans.next(1_000_000, one), None);
        assert!(spans.is_source(one));
    }

    #[test]
    fn a_source_that_was_alone_and_is_late_is_taken_over_by_one_that_joins() {
        let mut spans = Spans::new(whole(5 * MIB), Sharing::Later);
        let slow = spans.join().unwrap();
        assert_eq!(spans.next(0, slow), Some(0..5 * MIB));
        assert!(!spans.may_ask(slow));
        spans.arrived(LATE_MS, slow, 0..PIECE);
        let other = spans.join().unwrap();
        assert!(spans.may_ask(other));
        assert_eq!(spans.next(LATE_MS, other), Some(PIECE..MIB + PIECE));
        assert!(!spans.is_source(slow));
    }

    #[test]
    fn spans_follow_a_sources_speed() {
        let mut spans = Spans::new(whole(1024 * MIB), Sharing::Together);
        let (fast, slow) = (spans.join().unwrap(), spans.join().unwrap());
        let mut sizes = [Vec::new(), Vec::new()];
        for (n, (id, ms)) in [(fast, 10), (slow, 3_000)].into_iter().enumerate() {
            let mut now_ms = 0;
            for _ in 0..6 {
                let span = spans.next(now_ms, id).unwrap();
                now_ms += ms;
                sizes[n].push(span.end - span.start);
                spans.arrived(now_ms, id, span);
            }
        }
        let expected = [1, 2, 4, 4, 4, 4].map(|mib| mib * MIB);
        assert_eq!(sizes[0], expected);
        let expected = [4, 2, 1, 1, 1, 1].map(|quarters| quarters * SPAN_BYTES_MIN);
        assert_eq!(sizes[1], expected);
    }

    /// A peer of the property below: its speed, and whether it stops.
    #[derive(Debug, Clone)]
    struct Peer {
        joins_ms: u64,
        bytes_per_ms: u64,
        /// The moment from which it sends nothing; true if it disconnects then.
        ends: Option<(u64, bool)>,
        /// How long a request and its answer travel.
        delay_ms: u64,
    }

    fn peer() -> impl Strategy<Value = Peer> {
        let speed = prop_oneof![1..20u64, 100..1_000u64, 10_000..200_000u64];
        let ends = prop::option::of((0..20_000u64, any::<bool>()));
        (0..3_000u64, speed, ends, 0..200u64).prop_map(
            |(joins_ms, bytes_per_ms, ends, delay_ms)| Peer {
                joins_ms,
                bytes_per_ms,
                ends,
                delay_ms,
            },
        )
    }

    /// The bytes that a peer of the property test was requested to send, and those that it has sent.
    #[derive(Debug, Default)]
    struct Sending {
        id: Option<SourceId>,
        is_over: bool,
        asked: VecDeque<(u64, Range<u64>)>,
        /// How much of the current piece was sent.
        sent_bytes: u64,
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn whatever_peers_do_every_byte_comes_once_and_soon(
            size_bytes in 16 * MIB..96 * MIB,
            held in prop::collection::vec((0..6_000u64, 1..300u64), 0..5),
            mut peers in prop::collection::vec(peer(), 0..5),
        ) {
            const STEP_MS: u64 = 20;
            // One peer never fails, or nothing would end.
            peers.push(Peer { joins_ms: 0, bytes_per_ms: 2_000, ends: None, delay_ms: 10 });
            let mut have = Ranges::default();
            for (group, groups) in held {
                let bytes = |groups: u64| (groups * 16 * 1024).min(size_bytes);
                have.insert(bytes(group)..bytes(group + groups));
            }
            let missing_bytes = size_bytes - have.bytes();
            let mut spans = Spans::new(have.gaps(size_bytes), Sharing::Together);
            let mut sending: Vec<Sending> = peers.iter().map(|_| Sending::default()).collect();
            let (mut moved_bytes, mut now_ms) = (0, 0);
            while !spans.is_whole() {
                now_ms += STEP_MS;
                // At worst it takes as long as if the lasting peer did all the work, and every
                // other peer were waited for on the way.
                prop_assert!(now_ms < 10_000 + missing_bytes / 1_000 + 6 * LATE_MS, "{spans:?}");
                for (peer, sending) in peers.iter().zip(&mut sending) {
                    let is_gone = peer.ends.is_some_and(|(at_ms, gone)| gone && now_ms >= at_ms);
                    let stalls = peer.ends.is_some_and(|(at_ms, _)| now_ms >= at_ms);
                    if sending.id.is_none() && now_ms >= peer.joins_ms {
                        sending.id = spans.join();
                    }
                    let Some(id) = sending.id.filter(|_| !sending.is_over) else { continue };
                    if is_gone {
                        spans.leave(id);
                    }
                    if !spans.is_source(id) {
                        // Its stream is cut: a part of a piece is lost.
                        moved_bytes += sending.sent_bytes;
                        sending.is_over = true;
                        continue;
                    }
                    while let Some(span) = spans.next(now_ms, id) {
                        prop_assert!(!span.is_empty() && span.end <= size_bytes);
                        sending.asked.push_back((now_ms + peer.delay_ms, span));
                    }
                    let mut room = if stalls { 0 } else { peer.bytes_per_ms * STEP_MS };
                    while let Some((begins_ms, span)) = sending.asked.front_mut()
                        && room > 0
                        && *begins_ms <= now_ms
                    {
                        let piece = span.start..span.end.min((span.start / PIECE + 1) * PIECE);
                        let left = piece.end - piece.start - sending.sent_bytes;
                        let sent = left.min(room);
                        room -= sent;
                        sending.sent_bytes += sent;
                        if sent < left {
                            break;
                        }
                        sending.sent_bytes = 0;
                        moved_bytes += piece.end - piece.start;
                        prop_assert!(have.gaps(size_bytes).contains(&piece), "twice: {piece:?}");
                        have.insert(piece.clone());
                        span.start = piece.end;
                        if span.is_empty() {
                            sending.asked.pop_front();
                        }
                        spans.arrived(now_ms, id, piece);
                    }
                }
            }
            prop_assert_eq!(have.bytes(), size_bytes);
            // Each break loses less than a piece, and there are fewer breaks than peers.
            let lost_bytes = peers.len() as u64 * PIECE;
            prop_assert!(moved_bytes < missing_bytes + lost_bytes);
            prop_assert!(moved_bytes * 100 <= (missing_bytes + 8 * MIB) * 105);
        }
    }
}
