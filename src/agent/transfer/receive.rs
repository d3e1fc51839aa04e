//! The receiving half: what a peer sends is checked, and stored while the stream goes on.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout, timeout_at};

use super::plain::PLAIN_ASSETS_MAX;
use super::{
    ANSWER_WAIT, Context, Counters, DISCARD_BYTES_MAX, Meter, OFFER_WAIT, Outcome,
    PROGRESS_BYTES_MIN, PUT_ASSETS_MAX, PUT_BYTES_MAX, PUTS_IN_FLIGHT, READ_STALL, TransferError,
    WRITE_STALL, blocking, expect_frame, is_large, keeping_alive, out_of_place, with_causes,
};
use crate::core::ids::{Digest, Hash};
use crate::core::limits::PIECE_ALIGN_BYTES;
use crate::net::frame::{FrameReader, FrameWriter};
use crate::state::partials::{FinishError, OpenError, Partial, PieceError};
use crate::store::{Metadata, NewAsset, SMALL_BYTES_MAX, StoreError, Stored, VerifiedFile};
use crate::wire::batch::{
    Content, Label, Naming, Offer, Piece, Verdict, WantEntry, decode_contents, decode_drop,
    encode_ack, encode_want,
};
use crate::wire::frame::Kind;

/// An asset of a received batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Which asset, as the peer announced it.
    pub digest: Digest,
    /// What became of it here.
    pub outcome: Outcome,
}

/// What a received batch came to. What arrived before a stream broke is stored all the same.
#[derive(Debug)]
pub struct Receipt {
    /// What was offered, in order; empty when no offer arrived.
    pub received: Vec<Received>,
    /// How the stream ended, or the worst the peer did in it.
    pub end: Result<(), TransferError>,
}

/// Receives one batch. `decide` is asked once, with the offered assets that the index does not
/// know and whether they were solicited; it says of each whether it is wanted from this peer.
///
/// # Cancel safety
/// Dropping it ends the stream; what was committed stays, large assets go on later where they were.
pub async fn receive_batch<R, W, D, F>(
    ctx: &Context,
    reader: R,
    writer: W,
    decide: D,
    counters: &Arc<Counters>,
) -> Receipt
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
    D: FnOnce(Vec<Digest>, bool) -> F,
    F: Future<Output = Vec<bool>>,
{
    let mut intake = Intake::new(ctx, counters.receiving());
    let end = run_batch(&mut intake, reader, writer, decide).await;
    intake.close(end).await
}

async fn run_batch<R, W, D, F>(
    intake: &mut Intake<'_>,
    reader: R,
    writer: W,
    decide: D,
) -> Result<(), TransferError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
    D: FnOnce(Vec<Digest>, bool) -> F,
    F: Future<Output = Vec<bool>>,
{
    let mut reader = FrameReader::new(reader, Some(READ_STALL));
    let mut writer = FrameWriter::new(writer, WRITE_STALL);
    let frame = expect_frame(&mut reader, Kind::Offer, "Offer", OFFER_WAIT).await?;
    let offer = Offer::decode(frame.payload, SMALL_BYTES_MAX)?;

    let want = keeping_alive(&mut writer, intake.admit(&offer, decide)).await??;
    if offer.entries.iter().any(|e| !e.inline) {
        writer.write(Kind::Want, &encode_want(&want)).await?;
        writer.flush().await?;
    }
    // Where reading is held to a rate limit, the sender may have to wait long for the Ack.
    let taking = take_contents(intake, &mut reader, Naming::Offered(offer.entries.len()));
    keeping_alive(&mut writer, taking).await??;
    if let Ok(Ok(Some(frame))) = timeout(OFFER_WAIT, reader.read()).await {
        return Err(out_of_place(&frame, "the end of the stream"));
    }
    keeping_alive(&mut writer, intake.settle()).await?;
    let verdicts: Vec<_> = intake.verdicts().collect();
    writer.write(Kind::Ack, &encode_ack(verdicts.iter().map(|(_, v)| (None, v)))).await?;
    Ok(writer.finish().await?)
}

/// Reads content frames up to and including Done.
pub(super) async fn take_contents<R: AsyncRead + Unpin>(
    intake: &mut Intake<'_>,
    reader: &mut FrameReader<R>,
    naming: Naming,
) -> Result<(), TransferError> {
    let mut progress = Progress::new();
    loop {
        let frame = match naming {
            Naming::Offered(_) => progress.within(reader.read()).await??,
            // Nothing here was asked for, so nobody else is kept from sending it.
            Naming::Plain => reader.read().await?,
        };
        let frame = frame.ok_or(TransferError::Ended("Done"))?;
        progress.moved(frame.payload.len());
        match (frame.kind, naming) {
            (Kind::Contents, _) => intake.contents(decode_contents(frame.payload, naming)?).await?,
            (Kind::Piece, _) => intake.piece(Piece::decode(frame.payload, naming)?).await?,
            (Kind::Drop, Naming::Offered(entries)) => {
                intake.dropped(decode_drop(frame.payload, entries)?)?;
            }
            (Kind::Done, Naming::Offered(_)) => return intake.check_complete(),
            (Kind::Done, Naming::Plain) => return Ok(()),
            _ => return Err(out_of_place(&frame, "Contents, Piece, Drop or Done")),
        }
    }
}

/// Holds a sender to a least speed, whatever else it says to seem alive: what it sends nobody else
/// is asked for.
struct Progress {
    until: Instant,
    bytes: usize,
}

impl Progress {
    fn new() -> Self {
        Self { until: Instant::now() + ANSWER_WAIT, bytes: 0 }
    }

    async fn within<T>(&self, work: impl Future<Output = T>) -> Result<T, TransferError> {
        let overdue = |_| TransferError::Overdue { what: "content", after: ANSWER_WAIT };
        timeout_at(self.until, work).await.map_err(overdue)
    }

    fn moved(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes >= PROGRESS_BYTES_MIN {
            *self = Self::new();
        }
    }
}

/// What may still come for an asset.
enum Expects {
    Nothing,
    Whole,
    /// From `next_bytes` to the end. `partial` is away while a piece is being written to it, and
    /// gone when the pieces are only read to be dropped.
    Pieces {
        next_bytes: u64,
        partial: Option<Box<Partial>>,
    },
}

/// An asset of the transfer.
struct Slot {
    digest: Digest,
    expects: Expects,
    /// Set once. Content that comes after it is dropped.
    outcome: Option<Outcome>,
}

impl Slot {
    fn expecting(digest: Digest, expects: Expects) -> Self {
        Self { digest, expects, outcome: None }
    }

    fn settled(digest: Digest, expects: Expects, outcome: Outcome) -> Self {
        Self { digest, expects, outcome: Some(outcome) }
    }

    /// Nothing more comes for it.
    fn is_done(&self) -> bool {
        self.left_bytes() == 0 && !matches!(self.expects, Expects::Whole)
    }

    fn left_bytes(&self) -> u64 {
        match self.expects {
            Expects::Nothing => 0,
            Expects::Whole => self.digest.size_bytes,
            Expects::Pieces { next_bytes, .. } => self.digest.size_bytes - next_bytes,
        }
    }

    fn conclude(&mut self, outcome: Outcome) {
        self.outcome.get_or_insert(outcome);
    }

    fn verdict(&self) -> Verdict {
        match &self.outcome {
            Some(Outcome::Stored) => Verdict::Stored,
            Some(Outcome::AlreadyHeld) => Verdict::AlreadyHeld,
            Some(Outcome::Elsewhere) => Verdict::Elsewhere,
            // Why is for this device alone: the reason may name its folders.
            Some(Outcome::Later(_) | Outcome::StoreDown(_)) => {
                Verdict::Later("the device cannot store it now".into())
            }
            Some(Outcome::Refused(_)) => Verdict::Refused("the device does not take it".into()),
            Some(Outcome::Unavailable | Outcome::Damaged) => {
                Verdict::Later("the sender could not go on with it".into())
            }
            Some(Outcome::Interrupted) | None => Verdict::Later("it did not arrive".into()),
        }
    }
}

/// What the store was busy with.
struct Committed {
    /// A group of small contents; one large asset otherwise.
    is_group: bool,
    /// By slot.
    results: Vec<(usize, Result<Stored, CommitError>)>,
}

enum CommitError {
    Store(StoreError),
    /// The bytes are not the hash's: the peer's fault, not the store's.
    Corrupt,
    Local(String),
}

/// A partial asset back from the thread that wrote a piece to it.
type Written = (Box<Partial>, Result<(), PieceError>);

/// The assets of one stream on their way into the store.
pub(super) struct Intake<'a> {
    ctx: &'a Context,
    meter: Meter,
    slots: Vec<Slot>,
    /// Slots by name; only in the plain protocol, where assets announce themselves.
    by_hash: BTreeMap<Hash, usize>,
    /// Small contents collected for the next commit.
    group: Vec<(usize, Bytes)>,
    group_bytes: u64,
    /// The piece being checked and written, while the next is being read.
    writing: Option<(usize, JoinHandle<Written>)>,
    commits: JoinSet<Committed>,
    puts_in_flight: usize,
    discarded_bytes: u64,
    /// The first thing the peer did wrong that did not end the stream.
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

    /// Settles everything that is under way and says what became of each asset.
    pub(super) async fn close(mut self, end: Result<(), TransferError>) -> Receipt {
        let end = match end {
            Ok(()) => self.fault.take().map_or(Ok(()), Err),
            // Assets that arrived whole are worth keeping, whatever ended the stream.
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

    /// Names the first asset that was not taken: the others have the same reason, as a rule.
    fn log_failures(&self) {
        let mut failed = self.slots.iter().filter_map(|slot| match &slot.outcome {
            Some(
                Outcome::Later(reason) | Outcome::StoreDown(reason) | Outcome::Refused(reason),
            ) => Some((slot.digest, reason)),
            _ => None,
        });
        if let Some((digest, reason)) = failed.next() {
            let others = failed.count();
            tracing::info!(hash = digest.hash.short(), reason, others, "assets were not taken");
        }
    }

    /// The verdict on every asset of the transfer, in order.
    pub(super) fn verdicts(&self) -> impl Iterator<Item = (Digest, Verdict)> {
        self.slots.iter().map(|slot| (slot.digest, slot.verdict()))
    }

    // --- what is wanted -------------------------------------------------------------------------

    /// Decides on every entry of the offer; returns what to ask for.
    async fn admit<D, F>(
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
                self.open_large(digest).await?
            } else {
                Slot::expecting(digest, Expects::Whole)
            };
            let offset_bytes = match slot.expects {
                Expects::Whole if !entry.inline => Some(0),
                Expects::Pieces { next_bytes, .. } if !slot.is_done() => Some(next_bytes),
                _ => None,
            };
            if let Some(offset_bytes) = offset_bytes {
                want.push(WantEntry { index, offset_bytes });
            }
            let slot = self.add(slot);
            self.commit_if_whole(slot);
        }
        Ok(want)
    }

    /// Makes slots for assets that the plain protocol announces by sending them, one after another:
    /// when the next begins, the last has come to its end or never will.
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
            self.meter.forget(last.left_bytes());
            last.expects = Expects::Nothing;
            last.conclude(Outcome::Unavailable);
        }
        let known = self.ctx.known(new.keys().copied().collect()).await?;
        for (digest, known) in new.into_values().zip(known) {
            let slot = match (known, is_large(&digest)) {
                (false, false) => Slot::expecting(digest, Expects::Whole),
                (true, false) => Slot::settled(digest, Expects::Whole, Outcome::AlreadyHeld),
                (known, true) => self.admit_named_large(digest, known).await?,
            };
            let index = self.add(slot);
            self.by_hash.insert(digest.hash, index);
        }
        Ok(())
    }

    /// The content comes whether it is wanted or not, and from its beginning.
    async fn admit_named_large(
        &mut self,
        digest: Digest,
        known: bool,
    ) -> Result<Slot, TransferError> {
        let dropped = Expects::Pieces { next_bytes: 0, partial: None };
        if known {
            return Ok(Slot::settled(digest, dropped, Outcome::AlreadyHeld));
        }
        let slot = self.open_large(digest).await?;
        match slot.expects {
            Expects::Pieces { next_bytes: 0, .. } => Ok(slot),
            Expects::Pieces { partial: Some(partial), .. } => {
                let discarded = blocking(move || partial.discard()).await?;
                discarded.map_err(|e| TransferError::Local(with_causes(e)))?;
                self.open_large(digest).await
            }
            _ => Ok(Slot { expects: dropped, ..slot }),
        }
    }

    fn slot_of(&self, label: Label) -> usize {
        match label {
            Label::Entry(index) => index,
            Label::Named(digest) => self.by_hash[&digest.hash],
        }
    }

    fn add(&mut self, slot: Slot) -> usize {
        if slot.outcome.is_none() {
            self.meter.expect(slot.left_bytes());
        }
        self.slots.push(slot);
        self.slots.len() - 1
    }

    /// Makes ready for a large asset's pieces, or says why not, before its first byte.
    async fn open_large(&mut self, digest: Digest) -> Result<Slot, TransferError> {
        let refuse = |outcome| Ok(Slot::settled(digest, Expects::Nothing, outcome));
        let size_bytes = digest.size_bytes;
        match self.ctx.store.info().await {
            Ok(info) if info.largest_asset_bytes.is_some_and(|largest| size_bytes > largest) => {
                return refuse(Outcome::Refused("it is too large for this device's store".into()));
            }
            Ok(_) => {}
            Err(e) => return refuse(refusal(&e)),
        }
        let (partials, algorithm) = (self.ctx.partials.clone(), self.ctx.algorithm);
        match blocking(move || partials.start(digest, algorithm)).await? {
            Ok(partial) => {
                if let Err(reason) = self.check_space(&partial).await? {
                    if partial.verified_prefix_bytes() == 0 {
                        let discarded = blocking(move || partial.discard()).await?;
                        discarded.map_err(|e| TransferError::Local(with_causes(e)))?;
                    }
                    return refuse(Outcome::Later(reason));
                }
                let next_bytes = partial.verified_prefix_bytes();
                let partial = Some(Box::new(partial));
                Ok(Slot::expecting(digest, Expects::Pieces { next_bytes, partial }))
            }
            // An earlier transfer of it is still ending; our store is well.
            Err(OpenError::InUse(_) | OpenError::TooMany) => refuse(Outcome::Interrupted),
            Err(e) => refuse(Outcome::Later(with_causes(e))),
        }
    }

    /// Whether there is room for the rest of it beside all that is under way: where partial assets
    /// are collected, and in the store.
    async fn check_space(&self, partial: &Partial) -> Result<Result<(), String>, TransferError> {
        let needed_bytes = partial.space_needed_bytes();
        let partials = self.ctx.partials.clone();
        if let Err(e) = blocking(move || partials.check_space(needed_bytes)).await? {
            return Ok(Err(with_causes(e)));
        }
        let checked = self.ctx.store.check_space(needed_bytes).await;
        Ok(checked.map_err(|e| e.to_string()))
    }

    // --- what arrives ---------------------------------------------------------------------------

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
            self.meter.moved(bytes.len() as u64);
            if slot.outcome.is_some() {
                continue;
            }
            if bytes.len() as u64 != slot.digest.size_bytes {
                self.refuse_corrupt(index);
                continue;
            }
            self.group_bytes += bytes.len() as u64;
            // A copy: a slice would keep its whole frame, and what was read with it, in memory.
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
        let (size_bytes, end_bytes) = (slot.digest.size_bytes, piece.end_bytes());
        let Expects::Pieces { next_bytes, partial } = &mut slot.expects else {
            let what = "a piece of an asset that was not wanted or is small";
            return Err(TransferError::Protocol(format!("{what}: {}", slot.digest.hash)));
        };
        let cut_well = end_bytes == size_bytes
            || end_bytes < size_bytes && end_bytes.is_multiple_of(PIECE_ALIGN_BYTES);
        if piece.offset_bytes != *next_bytes || !cut_well {
            let seen = format!("a piece from {} to {end_bytes}", piece.offset_bytes);
            let expected = format!("one from {next_bytes} on, of {size_bytes}");
            return Err(TransferError::Protocol(format!("{seen}, expected {expected}")));
        }
        *next_bytes = end_bytes;
        self.meter.moved(piece.length_bytes.into());
        if let Some(outcome) = &slot.outcome {
            self.discarded_bytes += u64::from(piece.length_bytes);
            if self.discarded_bytes > DISCARD_BYTES_MAX {
                let hash = slot.digest.hash;
                return Err(TransferError::Local(format!("gave up on {hash}: {outcome:?}")));
            }
            return Ok(());
        }
        let Some(mut partial) = partial.take() else {
            return Err(TransferError::Local("a partial asset went missing".into()));
        };
        let job = tokio::task::spawn_blocking(move || {
            let written =
                partial.write_piece(piece.offset_bytes, piece.length_bytes.into(), &piece.encoded);
            (partial, written)
        });
        self.writing = Some((index, job));
        Ok(())
    }

    fn dropped(&mut self, index: usize) -> Result<(), TransferError> {
        let slot = &mut self.slots[index];
        if slot.is_done() {
            return Err(TransferError::Protocol(format!("a Drop of {}", slot.digest.hash)));
        }
        if slot.outcome.is_none() {
            self.meter.forget(slot.left_bytes());
        }
        slot.expects = Expects::Nothing;
        slot.conclude(Outcome::Unavailable);
        Ok(())
    }

    fn check_complete(&self) -> Result<(), TransferError> {
        let missing = self.slots.iter().filter(|slot| !slot.is_done()).count();
        if missing > 0 {
            return Err(TransferError::Protocol(format!(
                "Done, and {missing} assets did not come"
            )));
        }
        Ok(())
    }

    // --- into the store -------------------------------------------------------------------------

    /// Waits until nothing of this transfer is on its way into the store any more.
    pub(super) async fn settle(&mut self) {
        self.finish_writing().await;
        self.put_group().await;
        while self.reap().await {}
    }

    async fn finish_writing(&mut self) {
        // Taken out only when through: this may be dropped while it waits, and asked again.
        let Some((index, job)) = &mut self.writing else { return };
        let (index, written) = (*index, job.await);
        self.writing = None;
        let slot = &mut self.slots[index];
        match written {
            Ok((written, Ok(()))) => {
                // The sender may have dropped the asset meanwhile; what is verified stays on disk.
                if let Expects::Pieces { partial, .. } = &mut slot.expects {
                    *partial = Some(written);
                }
                self.commit_if_whole(index);
            }
            Ok((_, Err(e @ PieceError::Io(_)))) => slot.conclude(Outcome::Later(with_causes(e))),
            Ok((_, Err(PieceError::Corrupt { .. } | PieceError::Misplaced { .. }))) => {
                self.refuse_corrupt(index);
            }
            Err(e) => slot.conclude(Outcome::Later(format!("a worker thread failed: {e}"))),
        }
    }

    fn commit_if_whole(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        let Expects::Pieces { next_bytes, partial } = &mut slot.expects else { return };
        if *next_bytes < slot.digest.size_bytes || slot.outcome.is_some() {
            return;
        }
        let Some(partial) = partial.take() else { return };
        slot.expects = Expects::Nothing;
        let ctx = self.ctx.clone();
        self.commits.spawn(async move {
            Committed { is_group: false, results: vec![(index, adopt(ctx, partial).await)] }
        });
    }

    /// Gives the collected small contents to the store, and waits when it has enough to do.
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

    /// Waits for one commit; false when there is none.
    async fn reap(&mut self) -> bool {
        let Some(committed) = self.commits.join_next().await else { return false };
        let Ok(Committed { is_group, results }) = committed else {
            // A commit that panicked was a group or not; waiting for none is safe in both cases.
            self.puts_in_flight = 0;
            return true;
        };
        if is_group {
            self.puts_in_flight -= 1;
        }
        for (index, result) in results {
            match result {
                Ok(Stored::New) => self.slots[index].conclude(Outcome::Stored),
                Ok(Stored::Existed) => self.slots[index].conclude(Outcome::AlreadyHeld),
                Err(CommitError::Corrupt) => self.refuse_corrupt(index),
                Err(CommitError::Store(e)) => self.slots[index].conclude(refusal(&e)),
                Err(CommitError::Local(e)) => self.slots[index].conclude(Outcome::Later(e)),
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
) -> Vec<(usize, Result<Stored, CommitError>)> {
    let Context { store, algorithm, .. } = &ctx;
    let expected = ctx.expect(assets.iter().map(|(_, asset)| asset.digest.hash).collect()).await;
    for ((_, asset), metadata) in assets.iter_mut().zip(expected) {
        asset.metadata = metadata;
    }
    let stored = store.put(assets.iter().map(|(_, asset)| asset.clone()).collect()).await;
    let results: Vec<_> = match stored {
        Ok(results) => results,
        Err(e) => vec![Err(e); assets.len()],
    };
    let results = assets.into_iter().zip(results).map(|((index, asset), result)| {
        let result = result.map_err(|e| match e {
            // The store may be wrong about it: only our own hash accuses the peer.
            StoreError::Mismatch { .. } if algorithm.hash(&asset.content) != asset.digest.hash => {
                CommitError::Corrupt
            }
            e => CommitError::Store(e),
        });
        (index, result)
    });
    results.collect()
}

async fn adopt(ctx: Context, partial: Box<Partial>) -> Result<Stored, CommitError> {
    let finished =
        blocking(move || partial.finish()).await.map_err(|e| CommitError::Local(e.to_string()))?;
    // Held until the store is done: nobody else may open the files meanwhile.
    let complete = finished.map_err(|e| match e {
        FinishError::Mismatch { .. } => CommitError::Corrupt,
        e => CommitError::Local(with_causes(e)),
    })?;
    let file = VerifiedFile {
        digest: complete.digest,
        path: complete.path.clone(),
        outboard: complete.outboard.clone(),
        metadata: ctx.expect(vec![complete.digest.hash]).await.pop().unwrap_or_default(),
    };
    ctx.store.adopt(file).await.map_err(CommitError::Store)
}

/// What a store's error means for the asset.
fn refusal(error: &StoreError) -> Outcome {
    match error {
        StoreError::TooLarge(_) | StoreError::Unsupported(_) => Outcome::Refused(error.to_string()),
        StoreError::Unreachable(_) => Outcome::StoreDown(error.to_string()),
        _ => Outcome::Later(error.to_string()),
    }
}
