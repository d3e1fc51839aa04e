//! Reconcile: finds the difference of two devices' sets of known hashes, that is, what each lacks
//! and the other has.
//!
//! A [`Reconciler`] is one round between two devices, as seen by one of them. Its inputs are the
//! peer's messages and the answers of the device's own index; its outputs say what to send, what to
//! query, and which hashes are missing here. `proto/peer.proto` describes the order of messages,
//! [`Way`] the ways to find a difference, and [`crate::core::sketch`] the coded cells.
//!
//! I1  A round compares the two sets as of their summaries: cells come from a snapshot of the
//!     sketch, and every [`Query`] covers hashes up to the summary's `head_seq`. Hashes added later
//!     are pushed live.
//! I2  Memory does not grow with the sets: it holds one page, or the cells of one sketch, at a
//!     time.
//! I3  Every message is bounded by what was announced or requested. Anything beyond is a
//!     [`ReconcileError`]: its sender broke the protocol.
//! I4  At most one [`Output::Ask`] is open, and exactly one [`Output::Finished`] ends the round.
//! I5  `complete` is set only for a difference that was checked against what was announced.

mod cells;
mod cost;
mod decode;
mod error;
mod message;
mod pages;
mod plan;
mod query;

use std::collections::VecDeque;

use crate::core::ids::Hash;
use crate::core::limits::{HASHES_PER_FRAME_MAX, SKETCH_CELLS};
use crate::core::sketch::Cell;

use self::cells::{CellServer, Recovery, Span, Step};
use self::pages::{PageServer, Puller};

pub use self::cost::Way;
pub use self::error::ReconcileError;
pub use self::message::{Cursor, ReconcileMessage, SetSummary, Since, Snapshot};
pub use self::query::{Answer, Query, shard_range};

/// What a [`Reconciler`] wants its caller to do.
pub enum Output {
    /// Send this on the control stream.
    Send(ReconcileMessage),
    /// Query the device's index, off the loop, and pass the answer to [`Reconciler::on_answer`].
    Ask(Query),
    /// The peer has these hashes and we do not.
    WeLack(Vec<Hash>),
    /// The round is over; no output follows.
    Finished(Outcome),
}

/// The result of a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The way used last.
    pub way: Way,
    /// Whether both sides know the whole difference of the two summaries. Once all that was missing
    /// has arrived, our set holds the peer's up to `peer`.
    pub complete: bool,
    /// Whether the sketch must be rebuilt: our index differs from the set that the sketch was made
    /// of, or the peer lies. If the new sketch equals the old one, it was the peer.
    pub stale_sketch: bool,
    /// Whether our whole index was read for this round.
    pub scanned: bool,
    /// With [`Way::Busy`]: how long to wait before the next try.
    pub retry_ms: Option<u64>,
    /// The peer's newest position at its summary.
    pub peer: Since,
}

/// One round with one peer, as seen by this device.
pub struct Reconciler {
    round: u64,
    role: Role,
    ours: Snapshot,
    /// The dialer learns it from the Plan.
    theirs: Option<SetSummary>,
    nonce: [u8; 16],
    scan_allowed: bool,
    way: Way,
    estimate: u64,
    rekeys: u32,
    stage: Stage,
    asks: VecDeque<Ask>,
    asked: Option<Ask>,
    /// The number of hashes in `asks` and `asked` that may turn out to be missing here.
    in_check: usize,
    room: usize,
    done_sent: bool,
    peer_done: bool,
    incomplete: bool,
    stale_sketch: bool,
    scanned: bool,
    retry_ms: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Dialer,
    Acceptor,
}

enum Stage {
    /// The dialer between a Compare or Rekey and its Plan; the acceptor between a Plan for shards
    /// and the Rekey.
    Planning,
    Pages {
        puller: Puller,
        server: PageServer,
    },
    Recover(Recovery),
    Serve(CellServer),
    /// Broken off: later messages are ignored.
    Leaving,
    Ended,
}

enum Ask {
    Page(Query),
    Shard(Query),
    Known(Check, Vec<Hash>),
}

/// Why hashes are looked up in the index.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Check {
    /// The peer listed the hashes in a page: some may be known here.
    Listed,
    /// The hashes were recovered from cells: they were missing here when the summary was made.
    Recovered,
    /// They were recovered from cells: we have them, and the peer lacks them.
    Ours,
}

impl Ask {
    fn query(&self) -> Query {
        match self {
            Self::Page(query) | Self::Shard(query) => query.clone(),
            Self::Known(_, hashes) => Query::Known { hashes: hashes.clone() },
        }
    }
}

impl Reconciler {
    /// Starts a round as the dialer by sending Compare. `nonce` is random; `scan_allowed` says
    /// whether our whole index may be read if need be.
    pub fn initiate(
        round: u64,
        ours: Snapshot,
        nonce: [u8; 16],
        scan_allowed: bool,
        out: &mut Vec<Output>,
    ) -> Self {
        let summary = ours.summary.clone();
        out.push(Output::Send(ReconcileMessage::Compare { round, summary }));
        Self::new(round, Role::Dialer, ours, nonce, scan_allowed)
    }

    /// Answers a Compare in the cheapest way.
    ///
    /// # Errors
    /// [`ReconcileError::NoCounters`].
    pub fn respond(
        round: u64,
        ours: Snapshot,
        theirs: SetSummary,
        nonce: [u8; 16],
        scan_allowed: bool,
        out: &mut Vec<Output>,
    ) -> Result<Self, ReconcileError> {
        let estimate = estimate(&ours.summary, &theirs)?;
        let way = cost::cheapest(&ours.summary, &theirs, estimate);
        Self::respond_by(way, round, ours, theirs, nonce, scan_allowed, out)
    }

    /// Answers a Compare in the given way, whatever it costs.
    ///
    /// # Errors
    /// [`ReconcileError::NoCounters`]; [`ReconcileError::NoCursor`] for a delta.
    pub fn respond_by(
        way: Way,
        round: u64,
        ours: Snapshot,
        theirs: SetSummary,
        nonce: [u8; 16],
        scan_allowed: bool,
        out: &mut Vec<Output>,
    ) -> Result<Self, ReconcileError> {
        let mut this = Self::new(round, Role::Acceptor, ours, nonce, scan_allowed);
        this.estimate = estimate(&this.ours.summary, &theirs)?;
        this.theirs = Some(theirs.announced());
        this.take_way(way, out)?;
        this.advance(out);
        Ok(this)
    }

    fn new(round: u64, role: Role, ours: Snapshot, nonce: [u8; 16], scan_allowed: bool) -> Self {
        Self {
            round,
            role,
            ours,
            theirs: None,
            nonce,
            scan_allowed,
            way: Way::Equal,
            estimate: 0,
            rekeys: 0,
            stage: Stage::Planning,
            asks: VecDeque::new(),
            asked: None,
            in_check: 0,
            room: 0,
            done_sent: false,
            peer_done: false,
            incomplete: false,
            stale_sketch: false,
            scanned: false,
            retry_ms: None,
        }
    }

    /// The number of the round.
    pub fn round(&self) -> u64 {
        self.round
    }

    /// Sets how many more missing hashes the caller can accept now; a round starts with 0. A page
    /// is pulled, and a shard begun, only when there is room for all that it may bring. The result
    /// of one sketch of the whole set, at most [`SKETCH_CELLS`], needs no room.
    pub fn resume(&mut self, room: usize, out: &mut Vec<Output>) {
        self.room = room;
        self.advance(out);
    }

    /// Handles a message of the peer. Messages of other rounds are ignored.
    ///
    /// # Errors
    /// [`ReconcileError`]: the peer broke the protocol; the round cannot go on.
    pub fn on_message(
        &mut self,
        message: ReconcileMessage,
        out: &mut Vec<Output>,
    ) -> Result<(), ReconcileError> {
        if message.round() != self.round || matches!(self.stage, Stage::Ended) {
            return Ok(());
        }
        match message {
            ReconcileMessage::Compare { .. } => return Err(unexpected("Compare")),
            ReconcileMessage::Plan { way, summary, retry_ms, nonce, estimate, .. } => {
                if self.rekeys == 0 {
                    self.estimate = estimate;
                }
                self.on_plan(way, summary, retry_ms, nonce, out)?;
            }
            ReconcileMessage::Cells { shard, first, cells, .. } => {
                self.on_cells(shard, first as usize, cells, out)?;
            }
            ReconcileMessage::More { shard, first, n, .. } => {
                let Stage::Serve(server) = &mut self.stage else {
                    return Err(unexpected("More"));
                };
                server.on_more(Span { shard, first: first as usize, n: n as usize })?;
                self.send_cells(out);
            }
            ReconcileMessage::Decoded { lacking, .. } => {
                let Stage::Serve(server) = &mut self.stage else {
                    return Err(unexpected("Decoded"));
                };
                server.on_decoded(&lacking)?;
                self.check(Check::Recovered, &lacking);
            }
            ReconcileMessage::Rekey { nonce, shard_bits, .. } => {
                self.on_rekey(nonce, shard_bits, out)?;
            }
            ReconcileMessage::Pull { from, .. } => {
                let Stage::Pages { server, .. } = &mut self.stage else {
                    return Err(unexpected("Pull"));
                };
                let query = server.on_pull(from)?;
                self.asks.push_back(Ask::Page(query));
            }
            ReconcileMessage::Page { hashes, more, next_seq, .. } => {
                let Stage::Pages { puller, .. } = &mut self.stage else {
                    return Err(unexpected("Page"));
                };
                let page = pages::Page { hashes, more, next_seq };
                puller.on_page(&page)?;
                self.incomplete |= puller.has_ended() && !puller.is_whole();
                self.check(Check::Listed, &page.hashes);
            }
            ReconcileMessage::Done { incomplete, .. } => self.on_done(incomplete)?,
        }
        self.advance(out);
        Ok(())
    }

    /// Handles the answer to the open [`Output::Ask`]. An answer of the wrong kind counts as
    /// [`Answer::Failed`]; one that comes after the end is ignored.
    pub fn on_answer(&mut self, answer: Answer, out: &mut Vec<Output>) {
        let Some(ask) = self.asked.take().filter(|_| !matches!(self.stage, Stage::Ended)) else {
            return;
        };
        match ask {
            Ask::Page(_) => self.on_page_answer(answer, out),
            Ask::Shard(_) => self.on_shard_answer(answer, out),
            Ask::Known(check, hashes) => self.on_known(check, &hashes, answer, out),
        }
        self.advance(out);
    }

    // ---- cells -------------------------------------------------------------------------------

    fn on_cells(
        &mut self,
        shard: u32,
        first: usize,
        cells: Vec<Cell>,
        out: &mut Vec<Output>,
    ) -> Result<(), ReconcileError> {
        let step = match &mut self.stage {
            Stage::Leaving => return Ok(()),
            Stage::Recover(recovery) => recovery.on_cells(shard, first, cells)?,
            _ => return Err(unexpected("Cells")),
        };
        self.on_step(step, out);
        Ok(())
    }

    fn on_step(&mut self, step: Step, out: &mut Vec<Output>) {
        let Stage::Recover(recovery) = &self.stage else {
            return;
        };
        match step {
            Step::Wait => {}
            Step::More(span) => self.send_more(span, out),
            Step::Recovered(difference) => {
                if recovery.has_recovered() {
                    // With shards this is the first check of the whole set. If a sketch is wrong,
                    // the device whose index differs from its own sketch finds out.
                    self.stale_sketch |= !recovery.agrees_with(&self.ours.sketch);
                    self.incomplete |= !recovery.explains_theirs();
                }
                self.check(Check::Recovered, &difference.theirs);
                self.check(Check::Ours, &difference.ours);
            }
            Step::Undecodable => {
                let at_least = self.estimate.max(recovery.received() as u64);
                self.rekey(at_least.saturating_mul(2), out);
            }
        }
    }

    fn send_more(&self, span: Span, out: &mut Vec<Output>) {
        let Span { shard, first, n } = span;
        let (first, n) = (first as u32, n as u32);
        send(ReconcileMessage::More { round: self.round, shard, first, n }, out);
    }

    fn send_cells(&mut self, out: &mut Vec<Output>) {
        let Stage::Serve(server) = &mut self.stage else {
            return;
        };
        let frames = server.serve().unwrap_or_default();
        self.send_frames(frames, out);
    }

    fn send_frames(&self, frames: Vec<(Span, Vec<Cell>)>, out: &mut Vec<Output>) {
        for (Span { shard, first, .. }, cells) in frames {
            let first = first as u32;
            send(ReconcileMessage::Cells { round: self.round, shard, first, cells }, out);
        }
    }

    // ---- the index's answers -----------------------------------------------------------------

    fn on_page_answer(&mut self, answer: Answer, out: &mut Vec<Output>) {
        let Stage::Pages { server, .. } = &mut self.stage else {
            return;
        };
        let is_answer = matches!(answer, Answer::Since { .. } | Answer::Above { .. });
        let (pages::Page { hashes, more, next_seq }, agrees) = server.on_answer(answer);
        self.incomplete |= !is_answer;
        self.stale_sketch |= is_answer && !agrees;
        let round = self.round;
        send(ReconcileMessage::Page { round, hashes, more, next_seq }, out);
    }

    fn on_shard_answer(&mut self, answer: Answer, out: &mut Vec<Output>) {
        match (&mut self.stage, answer) {
            (Stage::Recover(recovery), Answer::Shard(own)) => {
                let step = recovery.on_own(own);
                self.on_step(step, out);
            }
            (Stage::Serve(server), Answer::Shard(own)) => {
                server.on_own(own);
                self.stale_sketch |= !server.agrees_with(&self.ours.sketch);
                self.send_cells(out);
            }
            (Stage::Recover(_), _) => self.break_off(),
            (Stage::Serve(_), _) => self.put_off(out),
            (Stage::Planning | Stage::Pages { .. } | Stage::Leaving | Stage::Ended, _) => {}
        }
    }

    fn on_known(&mut self, check: Check, hashes: &[Hash], answer: Answer, out: &mut Vec<Output>) {
        if check != Check::Ours {
            self.in_check -= hashes.len();
        }
        let Answer::Known(seqs) = answer else {
            self.incomplete = true;
            return;
        };
        if seqs.len() != hashes.len() {
            self.incomplete = true;
            return;
        }
        let head_seq = self.ours.summary.head_seq;
        let select = |is_known: bool| {
            let both = hashes.iter().zip(&seqs);
            both.filter(|(_, seq)| seq.is_some() == is_known).map(|(hash, _)| *hash).collect()
        };
        if check == Check::Ours {
            let held: Vec<Hash> = select(true);
            self.stale_sketch |= held.len() < hashes.len();
            if !held.is_empty() {
                send(ReconcileMessage::Decoded { round: self.round, lacking: held }, out);
            }
            return;
        }
        if check == Check::Recovered {
            self.stale_sketch |= seqs.iter().flatten().any(|seq| *seq <= head_seq);
        }
        let lacking: Vec<Hash> = select(false);
        if !lacking.is_empty() {
            self.room = self.room.saturating_sub(lacking.len());
            out.push(Output::WeLack(lacking));
        }
    }

    /// Queues hashes for a lookup in the index.
    fn check(&mut self, check: Check, hashes: &[Hash]) {
        if check != Check::Ours {
            self.in_check += hashes.len();
        }
        let mut rest = hashes;
        if let Some(Ask::Known(last, queued)) = self.asks.back_mut()
            && *last == check
        {
            let fits = HASHES_PER_FRAME_MAX.saturating_sub(queued.len()).min(rest.len());
            queued.extend_from_slice(&rest[..fits]);
            rest = &rest[fits..];
        }
        for chunk in rest.chunks(HASHES_PER_FRAME_MAX) {
            self.asks.push_back(Ask::Known(check, chunk.to_vec()));
        }
    }

    // ---- progress and end ---------------------------------------------------------------------

    fn on_done(&mut self, incomplete: bool) -> Result<(), ReconcileError> {
        let may_end = match self.stage {
            Stage::Pages { .. } | Stage::Serve(_) | Stage::Leaving => true,
            Stage::Recover(_) => self.done_sent,
            Stage::Planning => self.role == Role::Acceptor,
            Stage::Ended => false,
        };
        if !may_end || self.peer_done {
            return Err(unexpected("ReconcileDone"));
        }
        self.peer_done = true;
        self.incomplete |= incomplete;
        if matches!(self.stage, Stage::Planning) {
            self.stage = Stage::Leaving;
        }
        Ok(())
    }

    /// Starts what there is room for, emits the next query, and ends the round when nothing is
    /// left.
    fn advance(&mut self, out: &mut Vec<Output>) {
        let (head_seq, round) = (self.ours.summary.head_seq, self.round);
        let is_idle = self.asks.is_empty() && self.asked.is_none();
        let room = self.room.saturating_sub(self.in_check);
        match &mut self.stage {
            Stage::Pages { puller, .. } if room >= HASHES_PER_FRAME_MAX => {
                if let Some(from) = puller.pull() {
                    send(ReconcileMessage::Pull { round, from }, out);
                }
            }
            Stage::Recover(recovery) if is_idle && room >= SKETCH_CELLS => {
                if let Some((query, span)) = recovery.begin_shard(self.estimate, head_seq) {
                    self.scanned = true;
                    self.asks.push_back(Ask::Shard(query));
                    self.send_more(span, out);
                }
            }
            Stage::Serve(server) if is_idle && room >= SKETCH_CELLS => {
                if let Some(query) = server.query(head_seq) {
                    self.scanned = true;
                    self.asks.push_back(Ask::Shard(query));
                }
            }
            Stage::Planning
            | Stage::Pages { .. }
            | Stage::Recover(_)
            | Stage::Serve(_)
            | Stage::Leaving
            | Stage::Ended => {}
        }
        if self.asked.is_none() {
            self.asked = self.asks.pop_front();
            if let Some(ask) = &self.asked {
                out.push(Output::Ask(ask.query()));
            }
        }
        if !self.done_sent && self.has_learnt_all() {
            self.done_sent = true;
            let incomplete = self.incomplete || self.stale_sketch;
            send(ReconcileMessage::Done { round, incomplete }, out);
        }
        if self.done_sent && self.peer_done {
            self.finish(out);
        }
    }

    fn has_learnt_all(&self) -> bool {
        let is_stage_over = match &self.stage {
            Stage::Pages { puller, .. } => puller.has_ended(),
            Stage::Recover(recovery) => recovery.has_recovered(),
            Stage::Serve(_) => self.peer_done,
            Stage::Leaving => return true,
            Stage::Planning | Stage::Ended => false,
        };
        let is_checking = |ask: &Ask| matches!(ask, Ask::Known(..));
        is_stage_over && !self.asks.iter().chain(&self.asked).any(is_checking)
    }

    fn break_off(&mut self) {
        self.incomplete = true;
        self.stage = Stage::Leaving;
        self.asks.clear();
    }

    fn finish(&mut self, out: &mut Vec<Output>) {
        if matches!(self.stage, Stage::Ended) {
            return;
        }
        self.stage = Stage::Ended;
        self.asks.clear();
        let SetSummary { epoch, head_seq, .. } = *self.theirs();
        out.push(Output::Finished(Outcome {
            way: self.way,
            complete: !self.incomplete && !self.stale_sketch,
            stale_sketch: self.stale_sketch,
            scanned: self.scanned,
            retry_ms: self.retry_ms,
            peer: Since { epoch, seq: head_seq },
        }));
    }

    fn theirs(&self) -> &SetSummary {
        self.theirs.as_ref().expect("only a dialer before its Plan does not know the other set")
    }
}

fn send(message: ReconcileMessage, out: &mut Vec<Output>) {
    out.push(Output::Send(message));
}

fn estimate(ours: &SetSummary, theirs: &SetSummary) -> Result<u64, ReconcileError> {
    let (Some(a), Some(b)) = (&ours.counters, &theirs.counters) else {
        return Err(ReconcileError::NoCounters);
    };
    Ok(cost::estimate(a, b, (ours.count, theirs.count)))
}

fn unexpected(message: &'static str) -> ReconcileError {
    ReconcileError::Unexpected { message, stage: "not at this point of the round" }
}
