//! Planning a round: the acceptor answers Compare and Rekey with a Plan. The dialer follows it, and
//! requests another when the cells that it received cannot be decoded.

use super::cells::{CellServer, Recovery, Sharding};
use super::cost::{self, Way};
use super::pages::{PageServer, Puller, at_most};
use super::{
    Cursor, Output, ReconcileError, ReconcileMessage, Reconciler, Role, SetSummary, Stage, send,
    unexpected,
};
use crate::core::limits::{REKEYS_MAX, SCAN_RETRY_MS, SHARD_BITS_MAX};
use crate::core::sketch::SketchKey;

impl Reconciler {
    /// The acceptor chooses `way` and sends the Plan.
    ///
    /// # Errors
    /// [`ReconcileError::NoCursor`], for a delta.
    pub(super) fn take_way(
        &mut self,
        way: Way,
        out: &mut Vec<Output>,
    ) -> Result<(), ReconcileError> {
        if way == Way::Busy || way == Way::Shards && !self.scan_allowed {
            self.put_off(out);
            return Ok(());
        }
        self.say_plan(way, out);
        match way {
            Way::Equal => self.finish(out),
            Way::Busy => {} // See above.
            Way::Delta | Way::List => self.stage = self.pages()?,
            Way::Cells => {
                let mut server = CellServer::of_set(&self.ours.sketch);
                let frames = server.serve_first(cost::first_cells(self.estimate));
                self.stage = Stage::Serve(server);
                self.send_frames(frames.unwrap_or_default(), out);
            }
            Way::Shards => {} // The Rekey follows, or has led here.
        }
        Ok(())
    }

    /// The acceptor ends the round: no full scan is possible now.
    pub(super) fn put_off(&mut self, out: &mut Vec<Output>) {
        self.incomplete = true;
        self.retry_ms = Some(SCAN_RETRY_MS);
        self.say_plan(Way::Busy, out);
        self.finish(out);
    }

    fn say_plan(&mut self, way: Way, out: &mut Vec<Output>) {
        self.way = way;
        let is_rekeyed = way == Way::Shards && self.rekeys > 0;
        send(
            ReconcileMessage::Plan {
                round: self.round,
                way,
                summary: self.ours.summary.announced(),
                retry_ms: self.retry_ms.unwrap_or_default(),
                nonce: is_rekeyed.then_some(self.nonce),
                estimate: self.estimate,
            },
            out,
        );
    }

    pub(super) fn on_plan(
        &mut self,
        way: Way,
        summary: SetSummary,
        retry_ms: u64,
        nonce: Option<[u8; 16]>,
        out: &mut Vec<Output>,
    ) -> Result<(), ReconcileError> {
        match (&self.stage, self.role) {
            (Stage::Leaving, Role::Dialer) => return Ok(()),
            (Stage::Planning, Role::Dialer) => {}
            (Stage::Recover(_), Role::Dialer) if way == Way::Busy => {}
            _ => return Err(unexpected("Plan")),
        }
        if self.theirs.as_ref().is_some_and(|theirs| *theirs != summary) {
            return Err(ReconcileError::SetChanged);
        }
        let is_equal = summary.fingerprint == self.ours.summary.fingerprint;
        self.theirs = Some(summary);
        self.way = way;
        match way {
            Way::Equal if is_equal => self.finish(out),
            Way::Equal => return Err(ReconcileError::NotEqual),
            Way::Busy => {
                self.incomplete = true;
                self.retry_ms = Some(retry_ms.min(SCAN_RETRY_MS));
                self.finish(out);
            }
            Way::Delta | Way::List => self.stage = self.pages()?,
            Way::Cells if self.rekeys > 0 => return Err(unexpected("Plan for cells")),
            Way::Cells => {
                let requested = cost::first_cells(self.estimate);
                let recovery = Recovery::of_set(&self.ours.sketch, self.theirs(), requested);
                self.stage = Stage::Recover(recovery);
            }
            Way::Shards if self.rekeys == 0 => self.rekey(self.estimate, out),
            Way::Shards if self.rekeys > 1 => return Err(unexpected("Plan for shards")),
            Way::Shards if !self.scan_allowed => {
                self.retry_ms = Some(SCAN_RETRY_MS);
                self.break_off();
            }
            Way::Shards => {
                let Some(nonce) = nonce else {
                    return Err(unexpected("Plan for shards without a nonce"));
                };
                let key = SketchKey::of_nonces(&self.nonce, &nonce);
                let sharding = Sharding { key, bits: self.shard_bits() };
                let recovery = Recovery::of_shards(&self.ours.sketch, self.theirs(), sharding);
                self.stage = Stage::Recover(recovery);
            }
        }
        Ok(())
    }

    fn pages(&self) -> Result<Stage, ReconcileError> {
        let (ours, theirs) = (&self.ours.summary, self.theirs());
        if self.way == Way::List {
            return Ok(Stage::Pages {
                puller: Puller::of_list(theirs),
                server: PageServer::new(Cursor::Hash(None), ours.head_seq, ours.count),
            });
        }
        let cursors = (ours.since, theirs.since);
        let added = (theirs.added_since(ours.since), ours.added_since(theirs.since));
        let ((Some(ours_at), Some(theirs_at)), (Some(to_pull), Some(_))) = (cursors, added) else {
            return Err(ReconcileError::NoCursor);
        };
        Ok(Stage::Pages {
            puller: Puller::of_delta(ours_at.seq, to_pull, theirs),
            server: PageServer::new(Cursor::Seq(theirs_at.seq), ours.head_seq, ours.count),
        })
    }

    /// The dialer requests a way that does not depend on the cells that it received.
    pub(super) fn rekey(&mut self, estimate: u64, out: &mut Vec<Output>) {
        if self.rekeys == REKEYS_MAX {
            self.break_off();
            return;
        }
        self.rekeys += 1;
        self.estimate = estimate;
        self.stage = Stage::Planning;
        send(
            ReconcileMessage::Rekey {
                round: self.round,
                nonce: self.nonce,
                shard_bits: self.shard_bits(),
            },
            out,
        );
    }

    fn shard_bits(&self) -> u32 {
        cost::shard_bits(self.estimate).unwrap_or(SHARD_BITS_MAX)
    }

    pub(super) fn on_rekey(
        &mut self,
        nonce: [u8; 16],
        bits: u32,
        out: &mut Vec<Output>,
    ) -> Result<(), ReconcileError> {
        let is_announced = matches!(self.stage, Stage::Planning);
        if self.role != Role::Acceptor || !is_announced && !matches!(self.stage, Stage::Serve(_)) {
            return Err(unexpected("Rekey"));
        }
        self.rekeys += 1;
        at_most("Rekeys", self.rekeys.into(), REKEYS_MAX.into())?;
        at_most("shard_bits", bits.into(), SHARD_BITS_MAX.into())?;
        let count = self.ours.summary.count.saturating_add(self.theirs().count);
        let is_worth_it = is_announced || cost::shards_beat_list(self.estimate, bits, count);
        let way = if self.rekeys == 1 && is_worth_it { Way::Shards } else { Way::List };
        self.take_way(way, out)?;
        if self.way == Way::Shards {
            let sharding = Sharding { key: SketchKey::of_nonces(&nonce, &self.nonce), bits };
            self.stage = Stage::Serve(CellServer::of_shards(&self.ours.sketch, sharding));
        }
        Ok(())
    }
}
