//! Two devices in memory that reconcile over encoded frames, with everything counted. Shared by
//! `tests/reconcile.rs` and `benches/reconcile.rs`.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use can_sync::core::ids::{GroupId, Hash};
use can_sync::core::reconcile::{
    Answer, Outcome, Output, Query, ReconcileError, ReconcileMessage, Reconciler, SetSummary,
    Since, Snapshot, Way, shard_range,
};
use can_sync::core::sketch::{CodedCells, Sketch, SketchKey};
use can_sync::wire::frame::HEADER_BYTES;
use can_sync::wire::reconcile::{decode_reconcile, encode_reconcile};

/// The hash of a number; hashes of different numbers are unrelated.
pub(crate) fn hash(n: u64) -> Hash {
    Hash(*blake3::hash(&n.to_le_bytes()).as_bytes())
}

/// A device: an index of hashes and the sketch of it.
#[derive(Clone)]
pub(crate) struct Device {
    pub(crate) epoch: [u8; 16],
    pub(crate) since: Option<Since>,
    pub(crate) sketch: Sketch,
    pub(crate) scan_allowed: bool,
    /// Makes every query of the index fail.
    pub(crate) index_fails: bool,
    by_hash: BTreeMap<Hash, u64>,
    by_seq: Vec<Hash>,
}

impl Device {
    pub(crate) fn new(epoch: u8, numbers: impl IntoIterator<Item = u64>) -> Self {
        let mut device = Self {
            epoch: [epoch; 16],
            since: None,
            sketch: Sketch::new(SketchKey::derive(&GroupId([5; 32]))),
            scan_allowed: true,
            index_fails: false,
            by_hash: BTreeMap::new(),
            by_seq: Vec::new(),
        };
        numbers.into_iter().for_each(|n| device.insert(hash(n)));
        device
    }

    pub(crate) fn insert(&mut self, hash: Hash) {
        self.insert_into_index_only(hash);
        self.sketch.insert(&hash);
    }

    pub(crate) fn insert_into_index_only(&mut self, hash: Hash) {
        self.by_seq.push(hash);
        let before = self.by_hash.insert(hash, self.by_seq.len() as u64);
        assert!(before.is_none(), "a hash is inserted once");
    }

    pub(crate) fn head_seq(&self) -> u64 {
        self.by_seq.len() as u64
    }

    pub(crate) fn holds(&self, hash: &Hash) -> bool {
        self.by_hash.contains_key(hash)
    }

    /// The hashes in ascending order.
    pub(crate) fn hashes(&self) -> Vec<Hash> {
        self.by_hash.keys().copied().collect()
    }

    pub(crate) fn lacking_of(&self, other: &Device) -> Vec<Hash> {
        other.by_hash.keys().filter(|hash| !self.holds(hash)).copied().collect()
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot::new(self.sketch.clone(), self.epoch, self.head_seq(), self.since, false)
    }

    pub(crate) fn answer(&self, query: Query) -> Answer {
        if self.index_fails {
            return Answer::Failed;
        }
        match query {
            Query::Since { after_seq, up_to_seq, limit } => {
                let after = (after_seq as usize).min(self.by_seq.len());
                let end = (up_to_seq as usize).min(self.by_seq.len());
                let numbered = (after_seq + 1..).zip(self.by_seq[after..end].iter().copied());
                let items: Vec<(u64, Hash)> = numbered.take(limit).collect();
                Answer::Since { more: after + items.len() < end, items }
            }
            Query::Above { after, up_to_seq, limit } => {
                use std::ops::Bound::{Excluded, Unbounded};
                let from = after.map_or(Unbounded, Excluded);
                let above = self.by_hash.range((from, Unbounded));
                let known = above.filter(|(_, seq)| **seq <= up_to_seq).map(|(hash, _)| *hash);
                let mut hashes: Vec<Hash> = known.take(limit + 1).collect();
                let more = hashes.len() > limit;
                hashes.truncate(limit);
                Answer::Above { hashes, more }
            }
            Query::Known { hashes } => {
                let seq = |hash| self.by_hash.get(hash).copied();
                Answer::Known(hashes.iter().map(seq).collect())
            }
            Query::Shard { key, shard_bits, shard, up_to_seq } => {
                let mut cells = CodedCells::new(key);
                for (hash, seq) in self.by_hash.range(shard_range(shard_bits, shard)) {
                    if *seq <= up_to_seq {
                        cells.insert(hash);
                    }
                }
                Answer::Shard(cells)
            }
        }
    }
}

/// The result of a run for one side.
#[derive(Default)]
pub(crate) struct Side {
    pub(crate) lacks: Vec<Hash>,
    pub(crate) outcome: Option<Outcome>,
    pub(crate) sent_bytes: usize,
    /// Of these, the bytes that only tell the other side what it lacks.
    pub(crate) told_bytes: usize,
    pub(crate) sent_frames: usize,
    /// The time in the reconciler and the codec.
    pub(crate) work: Duration,
    /// The time in the device's index.
    pub(crate) index_work: Duration,
    inbox: VecDeque<ReconcileMessage>,
    reconciler: Option<Reconciler>,
}

/// The result of a run.
#[derive(Default)]
pub(crate) struct Run {
    pub(crate) dialer: Side,
    pub(crate) acceptor: Side,
    pub(crate) way: Option<Way>,
    /// Round trips until the dialer knew everything.
    pub(crate) round_trips: usize,
    /// Bytes in both directions until then, without those that only inform the acceptor.
    pub(crate) bytes_to_know: usize,
    pub(crate) ways: Vec<Way>,
}

type Meanwhile<'a> = Box<dyn FnMut(&mut Device, &mut Device) + 'a>;
type Tamper<'a> = Box<dyn FnMut(bool, ReconcileMessage) -> ReconcileMessage + 'a>;

/// The parameters of a run; the default is two healthy devices and the cheapest way.
pub(crate) struct Course<'a> {
    pub(crate) way: Option<Way>,
    pub(crate) room: usize,
    /// Called between flights of messages.
    pub(crate) meanwhile: Meanwhile<'a>,
    /// May change what is sent: (sent by the dialer, message).
    pub(crate) tamper: Tamper<'a>,
}

impl Default for Course<'_> {
    fn default() -> Self {
        Self {
            way: None,
            room: 100_000,
            meanwhile: Box::new(|_, _| {}),
            tamper: Box::new(|_, message| message),
        }
    }
}

pub(crate) const ROUND: u64 = 7;
const FLIGHTS_MAX: usize = 100_000;

/// Runs one round. Ends when no message is under way.
pub(crate) fn reconcile_by(
    mut course: Course<'_>,
    dialer: &mut Device,
    acceptor: &mut Device,
) -> Result<Run, ReconcileError> {
    let mut run = Run::default();
    let mut out = Vec::new();
    let start = Instant::now();
    let started =
        Reconciler::initiate(ROUND, dialer.snapshot(), [3; 16], dialer.scan_allowed, &mut out);
    run.dialer.work += start.elapsed();
    run.dialer.reconciler = Some(started);
    perform(out, dialer, &mut run.dialer, &mut run.acceptor.inbox, &mut |m| {
        (course.tamper)(true, m)
    })?;
    let mut dialer_knows = false;
    for _ in 0..FLIGHTS_MAX {
        (course.meanwhile)(dialer, acceptor);
        for message in std::mem::take(&mut run.acceptor.inbox) {
            let mut out = Vec::new();
            if let ReconcileMessage::Compare { round, summary } = message {
                let reconciler = respond(course.way, round, acceptor, summary, &mut run, &mut out)?;
                run.acceptor.reconciler = Some(reconciler);
            } else {
                on_message(&mut run.acceptor, message, &mut out)?;
            }
            for output in &out {
                if let Output::Send(ReconcileMessage::Plan { way, .. }) = output {
                    run.ways.push(*way);
                    run.way = Some(*way);
                }
            }
            perform(out, acceptor, &mut run.acceptor, &mut run.dialer.inbox, &mut |m| {
                (course.tamper)(false, m)
            })?;
        }
        resume(course.room, acceptor, &mut run.acceptor, &mut run.dialer.inbox, &mut |m| {
            (course.tamper)(false, m)
        })?;
        if !dialer_knows {
            run.round_trips += 1;
            let told_bytes = run.dialer.told_bytes;
            run.bytes_to_know = run.dialer.sent_bytes + run.acceptor.sent_bytes - told_bytes;
        }
        for message in std::mem::take(&mut run.dialer.inbox) {
            let mut out = Vec::new();
            on_message(&mut run.dialer, message, &mut out)?;
            perform(out, dialer, &mut run.dialer, &mut run.acceptor.inbox, &mut |m| {
                dialer_knows |= matches!(m, ReconcileMessage::Done { .. });
                (course.tamper)(true, m)
            })?;
        }
        resume(course.room, dialer, &mut run.dialer, &mut run.acceptor.inbox, &mut |m| {
            dialer_knows |= matches!(m, ReconcileMessage::Done { .. });
            (course.tamper)(true, m)
        })?;
        if run.acceptor.inbox.is_empty() && run.dialer.inbox.is_empty() {
            run.dialer.lacks.sort_unstable();
            run.acceptor.lacks.sort_unstable();
            return Ok(run);
        }
    }
    panic!("the round does not end");
}

fn respond(
    way: Option<Way>,
    round: u64,
    device: &Device,
    theirs: SetSummary,
    run: &mut Run,
    out: &mut Vec<Output>,
) -> Result<Reconciler, ReconcileError> {
    let (ours, nonce, scan) = (device.snapshot(), [4; 16], device.scan_allowed);
    let start = Instant::now();
    let responder = match way {
        Some(way) => Reconciler::respond_by(way, round, ours, theirs, nonce, scan, out),
        None => Reconciler::respond(round, ours, theirs, nonce, scan, out),
    };
    run.acceptor.work += start.elapsed();
    responder
}

fn on_message(
    side: &mut Side,
    message: ReconcileMessage,
    out: &mut Vec<Output>,
) -> Result<(), ReconcileError> {
    let start = Instant::now();
    let reconciler = side.reconciler.as_mut().expect("a round was begun");
    let result = reconciler.on_message(message, out);
    side.work += start.elapsed();
    result
}

fn resume(
    room: usize,
    device: &Device,
    side: &mut Side,
    peer_inbox: &mut VecDeque<ReconcileMessage>,
    tamper: &mut dyn FnMut(ReconcileMessage) -> ReconcileMessage,
) -> Result<(), ReconcileError> {
    let mut out = Vec::new();
    if let Some(reconciler) = &mut side.reconciler {
        reconciler.resume(room, &mut out);
    }
    perform(out, device, side, peer_inbox, tamper)
}

fn perform(
    out: Vec<Output>,
    device: &Device,
    side: &mut Side,
    peer_inbox: &mut VecDeque<ReconcileMessage>,
    tamper: &mut dyn FnMut(ReconcileMessage) -> ReconcileMessage,
) -> Result<(), ReconcileError> {
    let mut out = VecDeque::from(out);
    let mut open_asks = 0;
    while let Some(output) = out.pop_front() {
        assert!(side.outcome.is_none(), "nothing follows Finished");
        match output {
            Output::Send(message) => {
                let message = tamper(message);
                let start = Instant::now();
                let (kind, payload) = encode_reconcile(&message);
                side.sent_bytes += payload.len() + HEADER_BYTES;
                if matches!(message, ReconcileMessage::Decoded { .. }) {
                    side.told_bytes += payload.len() + HEADER_BYTES;
                }
                side.sent_frames += 1;
                let decoded = decode_reconcile(kind, payload);
                side.work += start.elapsed();
                let decoded = decoded.expect("our frames decode").expect("of a known kind");
                assert_eq!(decoded, message);
                peer_inbox.push_back(decoded);
            }
            Output::Ask(query) => {
                open_asks += 1;
                assert_eq!(open_asks, 1, "one question at a time");
                let start = Instant::now();
                let answer = device.answer(query);
                side.index_work += start.elapsed();
                let mut more = Vec::new();
                let start = Instant::now();
                let reconciler = side.reconciler.as_mut().expect("it asked");
                open_asks -= 1;
                reconciler.on_answer(answer, &mut more);
                side.work += start.elapsed();
                out.extend(more);
            }
            Output::WeLack(hashes) => side.lacks.extend(hashes),
            Output::Finished(outcome) => side.outcome = Some(outcome),
        }
    }
    Ok(())
}
