//! Intake: the assets of one received stream on their way into the store. Decides which are wanted,
//! what is requested, what is verified, and when small assets or a whole large one are committed.
//!
//! Each asset of the transfer has a [`Slot`]. Content for a slot with an outcome is dropped.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use bytes::Bytes;
use futures_util::future::select_all;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use super::context::{Context, blocking};
use super::gather::{Corrupt, Part, Source, refusal, stored_as};
use super::meter::Meter;
use super::outcome::{Outcome, Receipt, Received, TransferError, is_large, with_causes};
use super::pace::{KEEP_ALIVE, out_of_place};
use super::slot::{Expects, Slot};
use crate::core::ids::{Digest, Hash};
use crate::core::limits::{PIECE_ALIGN_BYTES, PLAIN_ASSETS_MAX};
use crate::core::spans::{SPAN_BYTES_MAX, SPANS_AHEAD};
use crate::net::frame::Frame;
use crate::state::partials::PieceError;
use crate::store::{Metadata, NewAsset, StoreError};
use crate::wire::batch::{
    Content, Label, Naming, Offer, Piece, Verdict, WantEntry, decode_contents, decode_drop,
};
use crate::wire::frame::Kind;

/// A group of small assets is passed to the store when it has this many bytes ...
pub(super) const PUT_BYTES_MAX: u64 = 1024 * 1024;

/// ... or this many assets, which make the fixed cost of a commit small.
const PUT_ASSETS_MAX: usize = 512;

/// How many groups the store works on while the next is collected.
const PUTS_IN_FLIGHT: usize = 1;

/// How many bytes of a batch's large assets are read only to be dropped, because something failed
/// after they were wanted: what is requested from one source at a time. Beyond that the stream is
/// given up.
pub(super) const DISCARD_BYTES_MAX: u64 = SPANS_AHEAD as u64 * SPAN_BYTES_MAX;

/// A commit that the store has finished.
struct Committed {
    /// Whether the commit was a group of small assets; otherwise one large asset.
    is_group: bool,
    /// The outcomes, by slot.
    results: Vec<(usize, Result<Outcome, Corrupt>)>,
}

/// The assets of one stream on their way into the store.
pub(super) struct Intake<'a> {
    ctx: &'a Context,
    meter: Meter,
    slots: Vec<Slot>,
    /// Slots by hash; only in the plain protocol, which has no offer.
    by_hash: BTreeMap<Hash, usize>,
    /// Small assets collected for the next commit.
    group: Vec<(usize, Bytes)>,
    group_bytes: u64,
    /// The piece that is being verified and written while the next is being read.
    writing: Option<(usize, JoinHandle<Result<(), PieceError>>)>,
    commits: JoinSet<Committed>,
    puts_in_flight: usize,
    discarded_bytes: u64,
    /// The peer's first fault that did not end the stream.
    fault: Option<TransferError>,
}

impl<'a> Intake<'a> {
    pub(super) fn new(ctx: &'a Context, meter: Meter) -> Self {
        Self {
            ctx,
            meter,
            slots: Vec::new(),
            by_hash: BTreeMap::new(),
            group: Vec::new(),
            group_bytes: 0,
            writing: None,
            commits: JoinSet::new(),
            puts_in_flight: 0,
            discarded_bytes: 0,
            fault: None,
        }
    }

    /// Finishes everything under way and returns the outcome of each asset.
    pub(super) async fn close(mut self, end: Result<(), TransferError>) -> Receipt {
        let end = match end {
            Ok(()) => self.fault.take().map_or(Ok(()), Err),
            // Assets that arrived as a whole are stored, whatever ended the stream.
            Err(e) => {
                self.settle().await;
                let fault = self.fault.take();
                Err(if e.is_violation() { e } else { fault.unwrap_or(e) })
            }
        };
        self.log_failures();
        let received = std::mem::take(&mut self.slots).into_iter().map(|slot| Received {
            digest: slot.digest,
            outcome: slot.outcome.unwrap_or(Outcome::Interrupted),
        });
        Receipt { received: received.collect(), end }
    }

    /// Logs the first asset that was not accepted: the others usually have the same reason.
    fn log_failures(&self) {
        let mut failed = self.slots.iter().filter_map(|slot| match &slot.outcome {
            Some(
                Outcome::Later(reason) | Outcome::StoreDown(reason) | Outcome::Refused(reason),
            ) => Some((slot.digest, reason)),
            _ => None,
        });
        if let Some((digest, reason)) = failed.next() {
            let others = failed.count();
            tracing::info!(hash = digest.hash.short(), reason, others, "assets were not accepted");
        }
    }

    /// The verdict on each asset of the transfer, in order.
    pub(super) fn verdicts(&self) -> impl Iterator<Item = (Digest, Verdict)> {
        self.slots.iter().map(|slot| (slot.digest, slot.verdict()))
    }

    // --- what is wanted -------------------------------------------------------------------------

    /// Decides on each entry of the offer; returns the small assets to request.
    pub(super) async fn admit<D, F>(
        &mut self,
        offer: &Offer,
        decide: D,
    ) -> Result<Vec<WantEntry>, TransferError>
    where
        D: FnOnce(Vec<Digest>, bool) -> F,
        F: Future<Output = Vec<bool>>,
    {
        let hashes = offer.entries.iter().map(|e| e.digest.hash).collect();
        let known = self.ctx.known(hashes).await?;
        let entries = offer.entries.iter().zip(&known);
        let unknown: Vec<_> =
            entries.filter(|(_, known)| !**known).map(|(e, _)| e.digest).collect();
        let mut wanted = Vec::new();
        if !unknown.is_empty() {
            wanted = decide(unknown, offer.solicited).await;
        }
        let mut wanted = wanted.into_iter();

        let mut want = Vec::new();
        for (index, (entry, known)) in offer.entries.iter().zip(known).enumerate() {
            let digest = entry.digest;
            let comes_anyway = if entry.inline { Expects::Whole } else { Expects::Nothing };
            let slot = if known {
                Slot::settled(digest, comes_anyway, Outcome::AlreadyHeld)
            } else if !wanted.next().unwrap_or(false) {
                Slot::settled(digest, comes_anyway, Outcome::Elsewhere)
            } else if is_large(&digest) {
                self.open_large(digest, Part::Asked).await
            } else {
                Slot::expecting(digest, Expects::Whole)
            };
            if let Expects::Whole = slot.expects
                && !entry.inline
            {
                want.push(WantEntry { index, range: 0..digest.size_bytes });
            }
            let slot = self.add(slot);
            self.commit_if_whole(slot);
        }
        Ok(want)
    }

    /// Makes slots for assets that the plain protocol sends without an offer, one after another:
    /// when the next begins, the last one is complete or never will be.
    async fn admit_named(
        &mut self,
        labels: impl Iterator<Item = Label>,
    ) -> Result<(), TransferError> {
        let mut new = BTreeMap::new();
        for label in labels {
            if let Label::Named(digest) = label
                && !self.by_hash.contains_key(&digest.hash)
            {
                new.insert(digest.hash, digest);
            }
        }
        if new.is_empty() {
            return Ok(());
        }
        if self.slots.len() + new.len() > PLAIN_ASSETS_MAX {
            return Err(TransferError::Protocol(format!("more than {PLAIN_ASSETS_MAX} assets")));
        }
        self.finish_writing().await;
        if let Some(last) = self.slots.last_mut()
            && !last.is_done()
        {
            last.expects = Expects::Nothing;
            last.conclude(Outcome::Unavailable);
            self.meter_slot(self.slots.len() - 1);
        }
        let known = self.ctx.known(new.keys().copied().collect()).await?;
        for (digest, known) in new.into_values().zip(known) {
            let slot = match (known, is_large(&digest)) {
                (false, false) => Slot::expecting(digest, Expects::Whole),
                (true, false) => Slot::settled(digest, Expects::Whole, Outcome::AlreadyHeld),
                (known, true) => self.admit_named_large(digest, known).await,
            };
            let index = self.add(slot);
            self.by_hash.insert(digest.hash, index);
        }
        Ok(())
    }

    /// A slot for a large asset that is sent from its beginning, whether it is wanted or not.
    async fn admit_named_large(&mut self, digest: Digest, known: bool) -> Slot {
        let mut slot = match known {
            true => Slot::settled(digest, Expects::Nothing, Outcome::AlreadyHeld),
            false => self.open_large(digest, Part::FromStart).await,
        };
        let source = match &mut slot.expects {
            Expects::Pieces { source, .. } => source.take(),
            Expects::Nothing | Expects::Whole => None,
        };
        // The whole asset is missing, so it is one range.
        let asked = source.as_ref().and_then(Source::next).unwrap_or(0..digest.size_bytes);
        slot.expects = Expects::Pieces { asked: VecDeque::from([asked]), source };
        slot
    }

    /// Whether a large asset of the plain protocol is being received, so that no other stream may
    /// send it.
    pub(super) fn is_collecting(&mut self) -> bool {
        self.slots.last_mut().is_some_and(|slot| !slot.is_done() && slot.source().is_some())
    }

    fn slot_of(&self, label: Label) -> usize {
        match label {
            Label::Entry(index) => index,
            Label::Named(digest) => self.by_hash[&digest.hash],
        }
    }

    fn add(&mut self, slot: Slot) -> usize {
        self.slots.push(slot);
        let index = self.slots.len() - 1;
        self.meter_slot(index);
        index
    }

    /// Updates the meter with what is expected of a slot now.
    fn meter_slot(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        let left_bytes = slot.left_bytes();
        self.meter.expect(left_bytes.saturating_sub(slot.metered_bytes));
        self.meter.forget(slot.metered_bytes.saturating_sub(left_bytes));
        slot.metered_bytes = left_bytes;
    }

    /// Counts content that arrived for a slot.
    fn moved(&mut self, index: usize, bytes: u64) {
        self.meter.moved(bytes);
        let slot = &mut self.slots[index];
        slot.metered_bytes = slot.metered_bytes.saturating_sub(bytes);
    }

    /// Prepares for the pieces of a large asset, or settles its outcome before the first byte.
    async fn open_large(&mut self, digest: Digest, part: Part) -> Slot {
        match self.ctx.gatherings.join(self.ctx, digest, part).await {
            Ok(source) => {
                let (asked, source) = (VecDeque::new(), Some(source));
                Slot::expecting(digest, Expects::Pieces { asked, source })
            }
            Err(outcome) => Slot::settled(digest, Expects::Nothing, outcome),
        }
    }

    // --- what is requested ----------------------------------------------------------------------

    /// Commits assets that other sources completed; fails if they left this peer behind.
    pub(super) fn follow_gatherings(&mut self) -> Result<(), TransferError> {
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            if slot.source().is_some_and(|source| source.is_left_behind()) {
                return Err(TransferError::LeftBehind(slot.digest.hash));
            }
            self.commit_if_whole(index);
        }
        Ok(())
    }

    /// The next spans of large assets to request, at most one each.
    pub(super) fn next_spans(&mut self) -> Vec<WantEntry> {
        let mut next = Vec::new();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let Expects::Pieces { asked, source: Some(source) } = &mut slot.expects else {
                continue;
            };
            if let Some(range) = source.next() {
                asked.push_back(range.clone());
                next.push(WantEntry { index, range });
            }
        }
        next
    }

    /// Whether more may have to be requested, now or later.
    pub(super) fn may_ask(&mut self) -> bool {
        self.slots.iter_mut().filter_map(Slot::source).any(|source| source.may_ask())
    }

    /// When to look for more to request if nothing is expected to arrive; in any case soon enough
    /// to send a keep-alive.
    pub(super) fn look_at(&mut self) -> Instant {
        let alive_at = Instant::now() + KEEP_ALIVE;
        if self.slots.iter().any(|slot| !slot.is_done()) {
            return alive_at;
        }
        let is_writing = self.writing.is_some();
        let sources = self.slots.iter_mut().filter_map(Slot::source).filter(|_| !is_writing);
        let look_at = sources.filter_map(|source| source.look_at());
        look_at.fold(alive_at, Instant::min)
    }

    /// Returns when a piece was written or something changed for a source.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn stirred(&mut self) {
        if self.writing.is_some() {
            return self.finish_writing().await;
        }
        let sources = self.slots.iter_mut().filter_map(Slot::source);
        let changes: Vec<_> = sources.map(|source| Box::pin(source.changed())).collect();
        match changes.is_empty() {
            true => std::future::pending().await,
            false => drop(select_all(changes).await),
        }
    }

    // --- what arrives ---------------------------------------------------------------------------

    /// Handles a frame of content.
    pub(super) async fn take(&mut self, frame: Frame, naming: Naming) -> Result<(), TransferError> {
        match (frame.kind, naming) {
            (Kind::Contents, _) => self.contents(decode_contents(frame.payload, naming)?).await?,
            (Kind::Piece, _) => self.piece(Piece::decode(frame.payload, naming)?).await?,
            (Kind::Drop, Naming::Offered(entries)) => {
                self.dropped(decode_drop(frame.payload, entries)?)?;
            }
            _ => return Err(out_of_place(&frame, "Contents, Piece, Drop or Done")),
        }
        match naming {
            Naming::Offered(_) => self.check_use(),
            Naming::Plain => Ok(()),
        }
    }

    /// Fails with the peer's fault when nothing that it has yet to send can be used.
    pub(super) fn check_use(&mut self) -> Result<(), TransferError> {
        let mut open = self.slots.iter().filter(|slot| !slot.is_done()).peekable();
        let is_of_no_use = open.peek().is_some() && open.all(|slot| slot.outcome.is_some());
        self.fault.take_if(|_| is_of_no_use).map_or(Ok(()), Err)
    }

    async fn contents(&mut self, contents: Vec<Content>) -> Result<(), TransferError> {
        self.admit_named(contents.iter().map(|c| c.label)).await?;
        for Content { label, bytes } in contents {
            let index = self.slot_of(label);
            let slot = &mut self.slots[index];
            if !matches!(slot.expects, Expects::Whole) {
                let what = "a content that was not wanted, came before or is large";
                return Err(TransferError::Protocol(format!("{what}: {}", slot.digest.hash)));
            }
            slot.expects = Expects::Nothing;
            self.moved(index, bytes.len() as u64);
            let slot = &self.slots[index];
            if slot.outcome.is_some() {
                continue;
            }
            if bytes.len() as u64 != slot.digest.size_bytes {
                self.refuse_corrupt(index);
                continue;
            }
            self.group_bytes += bytes.len() as u64;
            // A copy, because a slice would keep the whole frame in memory.
            self.group.push((index, Bytes::copy_from_slice(&bytes)));
            if self.group_bytes >= PUT_BYTES_MAX || self.group.len() >= PUT_ASSETS_MAX {
                self.put_group().await;
            }
        }
        Ok(())
    }

    async fn piece(&mut self, piece: Piece) -> Result<(), TransferError> {
        self.admit_named(std::iter::once(piece.label)).await?;
        let index = self.slot_of(piece.label);
        self.finish_writing().await;
        let slot = &mut self.slots[index];
        let (length_bytes, end_bytes) = (u64::from(piece.length_bytes), piece.end_bytes());
        let Expects::Pieces { asked, source } = &mut slot.expects else {
            let what = "a piece of an asset that was not wanted or is small";
            return Err(TransferError::Protocol(format!("{what}: {}", slot.digest.hash)));
        };
        let due = asked.front_mut().filter(|due| {
            let cut_well = end_bytes == due.end
                || end_bytes < due.end && end_bytes.is_multiple_of(PIECE_ALIGN_BYTES);
            piece.offset_bytes == due.start && cut_well
        });
        let Some(due) = due else {
            let seen = format!("a piece from {} to {end_bytes}", piece.offset_bytes);
            let expected = format!("one that begins {:?}", asked.front());
            return Err(TransferError::Protocol(format!("{seen}, expected {expected}")));
        };
        due.start = end_bytes;
        if due.is_empty() {
            asked.pop_front();
        }
        if let Some(writer) = source.as_ref().map(Source::writer) {
            let job = tokio::task::spawn_blocking(move || writer.write(&piece));
            self.writing = Some((index, job));
        } else {
            self.discarded_bytes += length_bytes;
        }
        self.moved(index, length_bytes);
        self.meter_slot(index);
        if self.discarded_bytes > DISCARD_BYTES_MAX {
            let Slot { digest, outcome, .. } = &self.slots[index];
            return Err(TransferError::Local(format!("gave up on {}: {outcome:?}", digest.hash)));
        }
        Ok(())
    }

    /// Keeps the verified groups of a piece that was cut off: they need not be sent again.
    pub(super) async fn keep_cut_off(&mut self, frame: Option<Frame>, naming: Naming) {
        self.finish_writing().await;
        let Some(frame) = frame.filter(|frame| frame.kind == Kind::Piece) else { return };
        let Some(piece) = Piece::decode_cut_off(frame.payload, naming) else { return };
        let index = self.slot_of(piece.label);
        let Some(Slot { expects: Expects::Pieces { asked, source: Some(source) }, .. }) =
            self.slots.get(index)
        else {
            return;
        };
        let is_due =
            |due: &Range<u64>| due.start == piece.offset_bytes && piece.end_bytes() <= due.end;
        if !asked.front().is_some_and(is_due) {
            return;
        }
        let (writer, start) = (source.writer(), piece.offset_bytes);
        // The missing end of a cut-off piece is no fault of the peer.
        if let Ok(Err(PieceError::Corrupt { offset_bytes })) =
            blocking(move || writer.write(&piece)).await
        {
            self.moved(index, offset_bytes - start);
        }
    }

    fn dropped(&mut self, index: usize) -> Result<(), TransferError> {
        let slot = &mut self.slots[index];
        if slot.is_done() {
            return Err(TransferError::Protocol(format!("a Drop of {}", slot.digest.hash)));
        }
        slot.expects = Expects::Nothing;
        slot.conclude(Outcome::Unavailable);
        self.meter_slot(index);
        Ok(())
    }

    pub(super) fn check_complete(&self) -> Result<(), TransferError> {
        let missing = self.slots.iter().filter(|slot| !slot.is_done()).count();
        if missing > 0 {
            return Err(TransferError::Protocol(format!(
                "Done, and {missing} assets did not come"
            )));
        }
        Ok(())
    }

    // --- into the store -------------------------------------------------------------------------

    /// Waits until nothing of this transfer is on its way into the store.
    pub(super) async fn settle(&mut self) {
        self.finish_writing().await;
        (0..self.slots.len()).for_each(|index| self.commit_if_whole(index));
        self.put_group().await;
        while self.reap().await {}
    }

    async fn finish_writing(&mut self) {
        // Cleared only after the job ended: this future may be dropped while it waits, and called
        // again.
        let Some((index, job)) = &mut self.writing else { return };
        let (index, written) = (*index, job.await);
        self.writing = None;
        match written {
            Ok(Ok(())) => self.commit_if_whole(index),
            Ok(Err(e @ PieceError::Io(_))) => {
                self.slots[index].conclude(Outcome::Later(with_causes(e)));
            }
            Ok(Err(PieceError::Corrupt { .. } | PieceError::Misplaced { .. })) => {
                self.refuse_corrupt(index);
            }
            Err(e) => {
                let reason = format!("a worker thread failed: {e}");
                self.slots[index].conclude(Outcome::Later(reason));
            }
        }
    }

    fn commit_if_whole(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        // Spans that were requested beyond what was needed must arrive first.
        let Some(source) = slot.is_done().then(|| slot.source()).flatten() else { return };
        let Some(gathering) = source.whole() else { return };
        slot.expects = Expects::Nothing;
        let ctx = self.ctx.clone();
        self.commits.spawn(async move {
            Committed { is_group: false, results: vec![(index, gathering.commit(&ctx).await)] }
        });
    }

    /// Passes the collected small assets to the store; waits first when the store is busy enough.
    async fn put_group(&mut self) {
        if self.group.is_empty() {
            return;
        }
        while self.puts_in_flight >= PUTS_IN_FLIGHT && self.reap().await {}
        self.group_bytes = 0;
        let group = std::mem::take(&mut self.group);
        let assets: Vec<_> = group
            .into_iter()
            .map(|(index, content)| {
                let digest = self.slots[index].digest;
                (index, NewAsset { digest, content, metadata: Metadata::default() })
            })
            .collect();
        let ctx = self.ctx.clone();
        self.puts_in_flight += 1;
        self.commits
            .spawn(async move { Committed { is_group: true, results: put(ctx, assets).await } });
    }

    /// Waits for one commit to end; false when there is none.
    async fn reap(&mut self) -> bool {
        let Some(committed) = self.commits.join_next().await else { return false };
        let Ok(Committed { is_group, results }) = committed else {
            // A commit that panicked may have been a group: waiting for none is safe in both cases.
            self.puts_in_flight = 0;
            return true;
        };
        if is_group {
            self.puts_in_flight -= 1;
        }
        for (index, result) in results {
            match result {
                Ok(outcome) => self.slots[index].conclude(outcome),
                Err(Corrupt) => self.refuse_corrupt(index),
            }
        }
        true
    }

    fn refuse_corrupt(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        slot.conclude(Outcome::Refused("its bytes are not those of its hash".into()));
        self.fault.get_or_insert(TransferError::Corrupt(slot.digest.hash));
    }
}

async fn put(
    ctx: Context,
    mut assets: Vec<(usize, NewAsset)>,
) -> Vec<(usize, Result<Outcome, Corrupt>)> {
    let Context { store, algorithm, .. } = &ctx;
    let hashes = assets.iter().map(|(_, asset)| asset.digest.hash).collect();
    let mut expected = ctx.expect(hashes).await;
    for ((_, asset), metadata) in assets.iter_mut().zip(expected.metadata.drain(..)) {
        asset.metadata = metadata;
    }
    let put = store.put(assets.iter().map(|(_, asset)| asset.clone()).collect());
    let (stored, ()) = tokio::join!(put, expected.noted());
    let results: Vec<_> = match stored {
        Ok(results) => results,
        Err(e) => vec![Err(e); assets.len()],
    };
    let results = assets.into_iter().zip(results).map(|((index, asset), result)| {
        let result = match result {
            Ok(stored) => Ok(stored_as(stored)),
            // The store may be wrong: only our own hash proves a fault of the peer.
            Err(StoreError::Mismatch { .. })
                if algorithm.hash(&asset.content) != asset.digest.hash =>
            {
                Err(Corrupt)
            }
            Err(e) => Ok(refusal(&e)),
        };
        (index, result)
    });
    results.collect()
}
