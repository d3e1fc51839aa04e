//! Sending coded cells: the acceptor serves its own, and the dialer recovers the difference from
//! them; for the whole set at once or, after a Rekey, for one shard after another.
//!
//! I1  Cells of a shard are sent in order, at most [`SKETCH_CELLS`] of them, in at most
//!     [`MORES_MAX`] further requests.
//! I2  A recovered difference is passed on only when it accounts for every cell received and, for a
//!     whole set, for the fingerprint that the acceptor announced.

use crate::core::ids::Hash;
use crate::core::limits::{CELLS_PER_FRAME_MAX, MORES_MAX, SKETCH_CELLS};
use crate::core::lt_hash::LtHash;
use crate::core::reconcile::cost::{first_cells, next_cells, usual_count};
use crate::core::reconcile::decode::{Decoder, Difference};
use crate::core::reconcile::pages::{ascending, at_most};
use crate::core::reconcile::{Query, ReconcileError, SetSummary};
use crate::core::sketch::{Cell, CodedCells, Sketch, SketchKey};

/// How the sets are split into shards after a Rekey.
#[derive(Clone, Copy)]
pub(super) struct Sharding {
    pub(super) key: SketchKey,
    pub(super) bits: u32,
}

impl Sharding {
    fn shards(self) -> u32 {
        1 << self.bits
    }

    fn query(self, shard: u32, up_to_seq: u64) -> Query {
        Query::Shard { key: self.key, shard_bits: self.bits, shard, up_to_seq }
    }
}

/// The cells `first .. first + n` of `shard`, as a request or as a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) shard: u32,
    pub(super) first: usize,
    pub(super) n: usize,
}

/// The dialer's next step.
pub(super) enum Step {
    /// Wait for cells or for the index.
    Wait,
    /// Request more cells.
    More(Span),
    /// The difference of the set or of this shard.
    Recovered(Difference),
    /// The cells cannot be decoded.
    Undecodable,
}

enum Phase {
    Decoding,
    BetweenShards,
    Recovered,
}

/// The dialer's side: recovers the difference.
pub(super) struct Recovery {
    sharding: Option<Sharding>,
    shard: u32,
    phase: Phase,
    /// The cells of our own set; `None` while the index builds the cells of a shard.
    own: Option<CodedCells>,
    decoder: Decoder,
    /// Cells received before our own were built.
    early: Vec<Cell>,
    requested: usize,
    mores: u32,
    /// The acceptor's average number of hashes per shard.
    count: u64,
    /// The fingerprint of the acceptor's whole set.
    fingerprint: [u8; 32],
    /// Our set with what was recovered so far; at the end it equals the acceptor's set.
    lt_hash: LtHash,
    scanned: Cell,
}

impl Recovery {
    /// A recovery of the whole set, with `requested` cells under way.
    pub(super) fn of_set(ours: &Sketch, theirs: &SetSummary, requested: usize) -> Self {
        let own = ours.cells().clone();
        Self {
            sharding: None,
            shard: 0,
            phase: Phase::Decoding,
            decoder: Decoder::new(*own.key()),
            own: Some(own),
            early: Vec::new(),
            requested,
            mores: 0,
            count: theirs.count,
            fingerprint: theirs.fingerprint,
            lt_hash: ours.lt_hash().clone(),
            scanned: Cell::default(),
        }
    }

    /// A recovery by shards; none has begun.
    pub(super) fn of_shards(ours: &Sketch, theirs: &SetSummary, sharding: Sharding) -> Self {
        Self {
            sharding: Some(sharding),
            phase: Phase::BetweenShards,
            own: None,
            decoder: Decoder::new(sharding.key),
            count: theirs.count >> sharding.bits,
            ..Self::of_set(ours, theirs, 0)
        }
    }

    pub(super) fn is_between_shards(&self) -> bool {
        matches!(self.phase, Phase::BetweenShards)
    }

    pub(super) fn has_recovered(&self) -> bool {
        matches!(self.phase, Phase::Recovered)
    }

    pub(super) fn received(&self) -> usize {
        self.decoder.received()
    }

    /// Whether our set and what was recovered make the acceptor's set.
    pub(super) fn explains_theirs(&self) -> bool {
        self.lt_hash.fingerprint() == self.fingerprint
    }

    /// Begins the next shard, where `estimate` is the whole difference. Returns the query to our
    /// index and the request to the acceptor.
    pub(super) fn begin_shard(&mut self, estimate: u64, up_to_seq: u64) -> Option<(Query, Span)> {
        let sharding = self.sharding.filter(|_| self.is_between_shards())?;
        self.requested = first_cells((estimate >> sharding.bits).max(1));
        self.mores = 0;
        self.decoder = Decoder::new(sharding.key);
        self.phase = Phase::Decoding;
        let span = Span { shard: self.shard, first: 0, n: self.requested };
        Some((sharding.query(self.shard, up_to_seq), span))
    }

    /// Adds our own cells of the shard.
    pub(super) fn on_own(&mut self, own: CodedCells) -> Step {
        self.scanned = self.scanned.plus(own.cell(0));
        self.own = Some(own);
        let early = std::mem::take(&mut self.early);
        self.decode(&early)
    }

    /// Adds cells as sent, that is, with the expected counts subtracted.
    pub(super) fn on_cells(
        &mut self,
        shard: u32,
        first: usize,
        mut cells: Vec<Cell>,
    ) -> Result<Step, ReconcileError> {
        let received = self.received() + self.early.len();
        if !matches!(self.phase, Phase::Decoding) || received == self.requested {
            return Err(ReconcileError::Unexpected { message: "Cells", stage: "none asked for" });
        }
        expect("shard of Cells", u64::from(shard), u64::from(self.shard))?;
        expect("first of Cells", first as u64, received as u64)?;
        at_most("cells", (received + cells.len()) as u64, self.requested as u64)?;
        if cells.is_empty() {
            return Err(ReconcileError::NoProgress);
        }
        for (index, cell) in (first..).zip(&mut cells) {
            cell.count = cell.count.wrapping_add(usual_count(self.count, index));
        }
        Ok(self.decode(&cells))
    }

    fn decode(&mut self, cells: &[Cell]) -> Step {
        let Some(own) = &self.own else {
            self.early.extend_from_slice(cells);
            return Step::Wait;
        };
        self.decoder.push(cells, own);
        let received = self.received();
        if received < self.requested {
            return Step::Wait;
        }
        if self.decoder.is_solved() {
            return self.conclude();
        }
        if received == SKETCH_CELLS || self.mores == MORES_MAX {
            return Step::Undecodable;
        }
        self.mores += 1;
        self.requested = next_cells(received, self.decoder.estimate());
        Step::More(Span { shard: self.shard, first: received, n: self.requested - received })
    }

    fn conclude(&mut self) -> Step {
        let Some(difference) = self.decoder.difference() else {
            return Step::Undecodable;
        };
        difference.theirs.iter().for_each(|hash| self.lt_hash.add(hash));
        difference.ours.iter().for_each(|hash| self.lt_hash.subtract(hash));
        match self.sharding {
            None if !self.explains_theirs() => return Step::Undecodable,
            Some(sharding) if self.shard + 1 < sharding.shards() => {
                self.shard += 1;
                self.own = None;
                self.phase = Phase::BetweenShards;
            }
            None | Some(_) => self.phase = Phase::Recovered,
        }
        Step::Recovered(difference)
    }

    /// Whether the index, as read in shards, is the set that the sketch was made of.
    pub(super) fn agrees_with(&self, ours: &Sketch) -> bool {
        self.sharding.is_none() || same_set(&self.scanned, ours)
    }
}

/// The acceptor's side: serves cells.
pub(super) struct CellServer {
    sharding: Option<Sharding>,
    /// The shard being served; `None` before the first.
    shard: Option<u32>,
    own: Option<CodedCells>,
    /// The number of cells to serve once the index has built the shard.
    wanted: Option<usize>,
    sent: usize,
    mores: u32,
    count: u64,
    sent_in_all: u64,
    told: u64,
    last_told: Option<Hash>,
    scanned: Cell,
}

impl CellServer {
    /// Serves the cells of the whole set.
    pub(super) fn of_set(ours: &Sketch) -> Self {
        Self {
            sharding: None,
            shard: Some(0),
            own: Some(ours.cells().clone()),
            wanted: None,
            sent: 0,
            mores: 0,
            count: ours.count(),
            sent_in_all: 0,
            told: 0,
            last_told: None,
            scanned: Cell::default(),
        }
    }

    /// A server of shards.
    pub(super) fn of_shards(ours: &Sketch, sharding: Sharding) -> Self {
        Self {
            sharding: Some(sharding),
            shard: None,
            own: None,
            count: ours.count() >> sharding.bits,
            ..Self::of_set(ours)
        }
    }

    /// Records a request for more cells. [`CellServer::serve`] returns them, at once or when the
    /// index has built them.
    pub(super) fn on_more(&mut self, span: Span) -> Result<(), ReconcileError> {
        if self.wanted.is_some() {
            return Err(ReconcileError::Unexpected { message: "More", stage: "one is open" });
        }
        if self.shard == Some(span.shard) {
            self.mores += 1;
            at_most("requests for more cells", self.mores.into(), MORES_MAX.into())?;
        } else {
            let shards = self.sharding.map_or(0, Sharding::shards);
            let next = self.shard.map_or(0, |shard| shard + 1);
            expect("shard of More", span.shard.into(), next.into())?;
            at_most("shard of More", u64::from(span.shard) + 1, shards.into())?;
            self.shard = Some(span.shard);
            self.own = None;
            self.sent = 0;
            self.mores = 0;
        }
        expect("first of More", span.first as u64, self.sent as u64)?;
        at_most("cells asked for", span.n as u64, (SKETCH_CELLS - self.sent) as u64)?;
        if span.n == 0 {
            return Err(ReconcileError::NoProgress);
        }
        self.wanted = Some(span.n);
        Ok(())
    }

    /// The query for a shard that is requested but not built yet.
    pub(super) fn query(&self, up_to_seq: u64) -> Option<Query> {
        if self.wanted.is_none() || self.own.is_some() {
            return None;
        }
        Some(self.sharding?.query(self.shard?, up_to_seq))
    }

    /// Adds our own cells of the shard.
    pub(super) fn on_own(&mut self, own: CodedCells) {
        self.scanned = self.scanned.plus(own.cell(0));
        self.own = Some(own);
    }

    /// The requested cells as they are sent, in frames. `None` while there is nothing to serve.
    pub(super) fn serve(&mut self) -> Option<Vec<(Span, Vec<Cell>)>> {
        let (own, shard) = (self.own.as_ref()?, self.shard?);
        let end = self.sent + self.wanted.take()?;
        let mut frames = Vec::new();
        while self.sent < end {
            let n = (end - self.sent).min(CELLS_PER_FRAME_MAX);
            let span = Span { shard, first: self.sent, n };
            let cell = |index| {
                let mut cell = *own.cell(index);
                cell.count = cell.count.wrapping_sub(usual_count(self.count, index));
                cell
            };
            frames.push((span, (self.sent..self.sent + n).map(cell).collect()));
            self.sent += n;
            self.sent_in_all += n as u64;
        }
        Some(frames)
    }

    /// Serves the first `n` cells without a request.
    pub(super) fn serve_first(&mut self, n: usize) -> Option<Vec<(Span, Vec<Cell>)>> {
        self.wanted = Some(n);
        self.serve()
    }

    /// Checks hashes that the dialer says we lack: there cannot be more than cells sent.
    pub(super) fn on_decoded(&mut self, lacking: &[Hash]) -> Result<(), ReconcileError> {
        self.told += lacking.len() as u64;
        at_most("decoded hashes", self.told, self.sent_in_all)?;
        ascending(self.last_told, lacking)?;
        self.last_told = lacking.last().copied().or(self.last_told);
        Ok(())
    }

    /// Whether the index, as read in shards, equals the set from which the sketch was made. True before
    /// the last shard.
    pub(super) fn agrees_with(&self, ours: &Sketch) -> bool {
        let Some(sharding) = self.sharding else {
            return true;
        };
        let all_read = self.shard == Some(sharding.shards() - 1) && self.own.is_some();
        !all_read || same_set(&self.scanned, ours)
    }
}

/// Compares by cell 0, which holds every hash and whose sum does not depend on the key.
fn same_set(scanned: &Cell, ours: &Sketch) -> bool {
    let all = ours.cells().cell(0);
    (scanned.sum, scanned.count) == (all.sum, all.count)
}

fn expect(what: &'static str, got: u64, expected: u64) -> Result<(), ReconcileError> {
    if got != expected {
        return Err(ReconcileError::Mismatch { what, got, expected });
    }
    Ok(())
}
