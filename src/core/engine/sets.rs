//! Comparing sets: decides when to announce our set to a peer, when a round begins, what its
//! outcome means, and when the sketch is rebuilt.

use super::{Effect, Engine, KnownSet, SETTLE_MS};
use crate::core::close::CloseCode;
use crate::core::ids::{Hash, NodeId};
use crate::core::limits::SCAN_RETRY_MS;
use crate::core::message::Message;
use crate::core::peers::ConnId;
use crate::core::reconcile::{
    Answer, Output, Query, ReconcileError, Reconciler, SetSummary, Since, Snapshot, Way,
};
use crate::core::session::Session;

/// The shortest pause between comparisons beside a large transfer: what was missed meanwhile should
/// not wait for the end of the transfer, which may be hours away ...
const BESIDE_MS_MIN: u64 = 60_000;

/// ... and how much longer for each asset known to be missing here, which costs 62 bytes to find
/// again: a kilobyte a second.
const BESIDE_MS_PER_ASSET: u64 = 60;

/// The most rounds with one peer that may begin to read the whole index before one of them
/// completes: connections break. Beginnings are counted, because a peer that breaks off pays
/// nothing.
const SCANS_BEGUN_MAX: u32 = 3;

/// The most entries logged while the sketch is rebuilt; beyond, the rebuild starts over.
const REBUILD_LOG_MAX: usize = 100_000;

/// A scan of the index for a new sketch.
#[derive(Debug)]
pub(super) struct Rebuild {
    /// What was indexed since the scan began.
    log: Vec<(u64, Hash)>,
    /// The connection whose messages made the sketch look wrong.
    accuser: ConnId,
}

impl Rebuild {
    /// Logs an entry indexed during the scan. Beyond the bound it stops, and the rebuild starts
    /// over.
    pub(super) fn note(&mut self, seq: u64, hash: Hash) {
        if self.log.len() <= REBUILD_LOG_MAX {
            self.log.push((seq, hash));
        }
    }
}

/// How often the whole index was recently read for rounds with one peer.
#[derive(Debug, Default)]
pub(super) struct Scans {
    since_ms: Option<u64>,
    begun: u32,
}

impl Scans {
    fn may_begin(&self, now_ms: u64) -> bool {
        self.begun < SCANS_BEGUN_MAX || self.are_long_ago(now_ms)
    }

    fn begin(&mut self, now_ms: u64) {
        if self.are_long_ago(now_ms) {
            *self = Self { since_ms: Some(now_ms), begun: 0 };
        }
        self.begun += 1;
    }

    /// Counts a completed scan: no further one may begin for a while.
    fn finish(&mut self, now_ms: u64) {
        *self = Self { since_ms: Some(now_ms), begun: SCANS_BEGUN_MAX };
    }

    fn are_long_ago(&self, now_ms: u64) -> bool {
        self.since_ms.is_none_or(|at_ms| now_ms >= at_ms + SCAN_RETRY_MS)
    }
}

impl Engine {
    /// Announces our set to the peer when all is quiet, and compares when the sets differ. Does so
    /// from time to time beside large transfers too: assets under way are found again but not
    /// requested twice.
    pub(super) fn settle_sets(
        &mut self,
        now_ms: u64,
        node_id: NodeId,
        fingerprint: &[u8; 32],
        out: &mut Vec<Effect>,
    ) {
        let Some(peer) = self.peers.get(&node_id) else { return };
        let Some(session) = &peer.session else { return };
        if session.plain.is_some() {
            return;
        }
        let is_quiet = self.is_quiet(node_id, session);
        let lacking = self.wants.source_load(node_id) + session.missing_there();
        let next_ms = now_ms + BESIDE_MS_MIN.max(lacking as u64 * BESIDE_MS_PER_ASSET);
        let beside_at_ms = session.compare.beside_at_ms.unwrap_or(next_ms);
        let is_beside = session.waits_for_large() && now_ms >= beside_at_ms;
        let conn = session.conn;
        let told = (*fingerprint, self.behind);
        let tell = (session.compare.announced != Some(told)).then(|| self.summary(peer.since));
        let equal = session.compare.equal_since(fingerprint).filter(|_| !self.behind);
        let is_settled = session.compare.is_due(now_ms);
        let compare = self.may_compare(session, fingerprint)
            && (is_settled || is_beside)
            && !self.waits_for_absent(node_id);
        let is_confirmed = equal.is_some() && self.knows_absent(node_id, session);
        let Some(session) = self.session(conn) else { return };
        session.compare.beside_at_ms = (!is_quiet).then_some(beside_at_ms);
        if !is_quiet && !is_beside {
            return;
        }
        if is_beside && (tell.is_some() || compare) {
            session.compare.beside_at_ms = Some(next_ms);
        }
        self.tell_absent(now_ms, node_id, out);
        if is_confirmed {
            self.confirm(now_ms, node_id, fingerprint, out);
        }
        let Some(peer) = self.peers.get_mut(&node_id) else { return };
        let Some(session) = &mut peer.session else { return };
        if let Some(summary) = tell {
            session.compare.announced = Some(told);
            out.push(Effect::Send { conn, message: Message::Summary(Box::new(summary)) });
        }
        if let Some(since) = equal
            && session.compare.note_equal(now_ms)
            && peer.since != Some(since)
        {
            session.compare.note_saved_cursor(now_ms);
            peer.since = Some(since);
            out.push(Effect::SaveCursor { peer: node_id, since });
        }
        if compare {
            self.start_compare(now_ms, node_id, out);
        }
    }

    /// Whether the peer last told the same set as ours, and neither is still being indexed.
    pub(super) fn has_equal_set(&self, session: &Session, fingerprint: &[u8; 32]) -> bool {
        !self.behind && session.compare.equal_since(fingerprint).is_some()
    }

    pub(super) fn is_in_sync(
        &self,
        node_id: NodeId,
        session: &Session,
        fingerprint: &[u8; 32],
    ) -> bool {
        if self.behind
            || session.closing.is_some()
            || session.hello.is_none()
            || !self.is_quiet(node_id, session)
        {
            return false;
        }
        if let Some(plain) = &session.plain {
            return plain.is_in_sync();
        }
        let told = session.compare.announced == Some((*fingerprint, false));
        let has_missing = self.peers.get(&node_id).is_some_and(|peer| peer.talk.has_missing());
        told && !has_missing && self.has_equal_set(session, fingerprint)
    }

    pub(super) fn summary(&self, since: Option<Since>) -> SetSummary {
        self.snapshot_since(since).summary.announced()
    }

    fn snapshot(&self, node_id: NodeId) -> Snapshot {
        self.snapshot_since(self.peers.get(&node_id).and_then(|peer| peer.since))
    }

    fn snapshot_since(&self, since: Option<Since>) -> Snapshot {
        let KnownSet { sketch, epoch, head_seq } = self.known.clone();
        Snapshot::new(sketch, epoch, head_seq, since, self.behind)
    }

    fn may_compare(&self, session: &Session, fingerprint: &[u8; 32]) -> bool {
        let differ = session.compare.differs_from(fingerprint);
        let is_ready = !self.behind && self.store_up && self.rebuilding.is_none();
        session.dialed && session.plain.is_none() && differ && is_ready
    }

    /// When [`Self::settle_sets`] has something to do, if no input comes before.
    pub(super) fn sets_deadline(&self, node_id: NodeId, session: &Session) -> Option<u64> {
        let fingerprint = self.known.sketch.fingerprint();
        let compare = self.may_compare(session, &fingerprint) && !self.waits_for_absent(node_id);
        if self.is_quiet(node_id, session) {
            return compare.then_some(session.compare.not_before_ms());
        }
        let tell = session.plain.is_none()
            && session.compare.announced != Some((fingerprint, self.behind));
        let beside_at_ms = session.compare.beside_at_ms.filter(|_| session.waits_for_large());
        beside_at_ms.filter(|_| compare || tell)
    }

    /// Forgets the peer's cursor when a round by cursor left the sets unequal. Then the sequence
    /// numbers of one device are no longer what they were, as after an unnoticed restore from a
    /// backup. The next rounds find the difference without cursors until the sets are equal.
    fn distrust_cursor(&mut self, node_id: NodeId) {
        let Some(peer) = self.peers.get_mut(&node_id) else { return };
        if peer.session.as_mut().is_some_and(|session| session.compare.take_was_delta()) {
            peer.since = None;
        }
    }

    fn start_compare(&mut self, now_ms: u64, node_id: NodeId, out: &mut Vec<Effect>) {
        self.distrust_cursor(node_id);
        let snapshot = self.snapshot(node_id);
        let (random, nonce) = (self.dice.next_u64(), self.dice.next_bytes());
        let Some(peer) = self.peers.get_mut(&node_id) else { return };
        let scan_allowed = peer.scans.may_begin(now_ms);
        let Some(session) = &mut peer.session else { return };
        let round = session.compare.begin_round(now_ms, random);
        let mut outputs = Vec::new();
        let reconciler = Reconciler::initiate(round, snapshot, nonce, scan_allowed, &mut outputs);
        session.compare.reconciler = Some(reconciler);
        let conn = session.conn;
        self.carry_out(now_ms, conn, outputs, out);
    }

    pub(super) fn on_compare(
        &mut self,
        now_ms: u64,
        conn: ConnId,
        round: u64,
        theirs: SetSummary,
        out: &mut Vec<Effect>,
    ) {
        let Some((node_id, session)) = self.session_of(conn) else { return };
        if session.dialed {
            self.close(conn, CloseCode::Protocol, "Compare comes from the dialer", out);
            return;
        }
        if round <= session.compare.round() {
            self.close(conn, CloseCode::Protocol, "a round of the past", out);
            return;
        }
        session.compare.follow_round(round);
        self.distrust_cursor(node_id);
        let scan_allowed =
            self.peers.get(&node_id).is_some_and(|peer| peer.scans.may_begin(now_ms));
        let snapshot = self.snapshot(node_id);
        let nonce = self.dice.next_bytes();
        let mut outputs = Vec::new();
        match Reconciler::respond(round, snapshot, theirs, nonce, scan_allowed, &mut outputs) {
            Ok(reconciler) => {
                if let Some(session) = self.session(conn) {
                    session.compare.reconciler = Some(reconciler);
                }
                self.carry_out(now_ms, conn, outputs, out);
            }
            Err(error) => self.close(conn, CloseCode::Protocol, &error.to_string(), out),
        }
    }

    pub(super) fn on_answer(
        &mut self,
        now_ms: u64,
        conn: ConnId,
        round: u64,
        answer: Answer,
        out: &mut Vec<Effect>,
    ) {
        if let Some(session) = self.session(conn) {
            session.compare.end_query();
        }
        self.drive(now_ms, conn, out, |reconciler, out| {
            if reconciler.round() == round {
                reconciler.on_answer(answer, out);
            }
            Ok(())
        });
    }

    /// Lets the connection's reconcile take a step and performs its outputs.
    pub(super) fn drive(
        &mut self,
        now_ms: u64,
        conn: ConnId,
        out: &mut Vec<Effect>,
        step: impl FnOnce(&mut Reconciler, &mut Vec<Output>) -> Result<(), ReconcileError>,
    ) {
        let Some(session) = self.session(conn) else { return };
        let Some(reconciler) = &mut session.compare.reconciler else { return };
        let mut outputs = Vec::new();
        match step(reconciler, &mut outputs) {
            Ok(()) => self.carry_out(now_ms, conn, outputs, out),
            Err(error) => self.close(conn, CloseCode::Protocol, &error.to_string(), out),
        }
    }

    pub(super) fn carry_out(
        &mut self,
        now_ms: u64,
        conn: ConnId,
        outputs: Vec<Output>,
        out: &mut Vec<Effect>,
    ) {
        for output in outputs {
            let Some((node_id, session)) = self.session_of(conn) else { return };
            match output {
                Output::Send(message) => {
                    out.push(Effect::Send { conn, message: Message::Reconcile(message) });
                }
                Output::Ask(query) => {
                    if !session.compare.begin_query() {
                        self.close(conn, CloseCode::TooLarge, "too many rounds at once", out);
                        return;
                    }
                    let round = session.compare.round();
                    let is_scan = matches!(query, Query::Shard { .. });
                    out.push(Effect::Ask { conn, round, query });
                    if is_scan
                        && session.compare.begin_scan()
                        && let Some(peer) = self.peers.get_mut(&node_id)
                    {
                        peer.scans.begin(now_ms);
                    }
                }
                Output::WeLack(hashes) => {
                    self.on_difference(now_ms, conn, node_id, hashes, out);
                }
                Output::Finished(outcome) => {
                    let compare = &mut session.compare;
                    compare.end_round(now_ms, outcome.way == Way::Delta, outcome.retry_ms);
                    compare.touch(now_ms + SETTLE_MS.max(outcome.retry_ms.unwrap_or(0)));
                    if outcome.scanned
                        && let Some(peer) = self.peers.get_mut(&node_id)
                    {
                        peer.scans.finish(now_ms);
                    }
                    if outcome.stale_sketch {
                        self.rebuild(now_ms, conn, out);
                    }
                }
            }
        }
    }

    /// Starts a rebuild of the sketch, unless the last one was short ago: the messages of `accuser`
    /// may be lies, and no sets are compared during a rebuild.
    pub(super) fn rebuild(&mut self, now_ms: u64, accuser: ConnId, out: &mut Vec<Effect>) {
        let is_soon = self.rebuilt_ms.is_some_and(|at_ms| now_ms < at_ms + SCAN_RETRY_MS);
        if self.rebuilding.is_some() || is_soon {
            return;
        }
        self.rebuilding = Some(Rebuild { log: Vec::new(), accuser });
        out.push(Effect::RebuildSketch);
    }

    pub(super) fn on_rebuilt(&mut self, now_ms: u64, known: KnownSet, out: &mut Vec<Effect>) {
        let Some(Rebuild { log, accuser }) = self.rebuilding.take() else { return };
        if log.len() > REBUILD_LOG_MAX {
            self.rebuilding = Some(Rebuild { log: Vec::new(), accuser });
            out.push(Effect::RebuildSketch);
            return;
        }
        self.rebuilt_ms = Some(now_ms);
        let before = self.known.sketch.fingerprint();
        let head_seq = self.known.head_seq.max(known.head_seq);
        let scanned = known.head_seq;
        self.known = KnownSet { head_seq, ..known };
        for (_, hash) in log.into_iter().filter(|(seq, _)| *seq > scanned) {
            self.known.sketch.insert(&hash);
        }
        if self.known.sketch.fingerprint() == before {
            self.close(accuser, CloseCode::Protocol, "what it says of our set is not so", out);
        }
    }

    pub(super) fn on_rebuild_failed(&mut self, now_ms: u64) {
        self.rebuilding = None;
        self.rebuilt_ms = Some(now_ms);
    }
}
