//! The sending side: reads assets from the store, verifies them and writes them to the stream.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use sha2::Digest as _;
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::context::{Context, blocking};
use super::meter::{Counters, Meter};
use super::outcome::{Outcome, TransferError, is_large, with_causes};
use super::pace::{
    ANSWER_WAIT, KEEP_ALIVE, READ_STALL, WRITE_STALL, expect_frame, keep_alive, keeping_alive,
};
use crate::bao::{self, EncodeError, encode_piece, encode_piece_of_file};
use crate::core::ids::{Digest, Hash, HashAlgorithm};
use crate::core::limits::{INLINE_BYTES_MAX, OFFER_ENTRIES_MAX};
use crate::net::frame::{FrameReader, FrameWriter, TakeBytes};
use crate::store::{BaoFiles, Condition, READ_BYTES_MAX, StoreError};
use crate::wire::batch::{
    Content, Label, Offer, OfferEntry, Piece, Want, WantEntry, decode_ack, encode_contents,
    encode_drop,
};
use crate::wire::frame::Kind;
use crate::wire::proto::peer;

/// Content bytes in one piece. Measured over a pipe, both ends: half of it costs a third more
/// processor time; twice of it saves a tenth, and doubles memory and what must be sent again after
/// a cut.
pub(super) const PIECE_BYTES: u64 = 256 * 1024;

/// Content bytes in one frame of small contents, unless a single content is larger.
const CONTENTS_BYTES: u64 = 256 * 1024;

/// How many frames are read, verified and encoded while another one is written. Two keep a local
/// store's disk and a stream busy; the third is for a store that answers over HTTP.
const PIECES_AHEAD: usize = 3;

/// Offers `digests` to the peer and sends those that it wants. Returns the outcome of each, in
/// order.
///
/// `digests` holds no hash twice, and no more than an offer may (`core::limits`). With `inline`,
/// small contents follow the offer at once, up to [`INLINE_BYTES_MAX`]: worth it when the peer
/// probably lacks them. `solicited`: the peer solicited all of them.
///
/// # Cancel safety
/// Dropping it ends the stream; the peer keeps what it has committed by then.
///
/// # Errors
/// [`TransferError`]: it is not known whether anything arrived.
pub async fn send_batch<R, W>(
    ctx: &Context,
    reader: R,
    writer: W,
    digests: &[Digest],
    solicited: bool,
    inline: bool,
    counters: &Arc<Counters>,
) -> Result<Vec<Outcome>, TransferError>
where
    R: AsyncRead + Unpin + Send,
    W: TakeBytes + Send,
{
    let mut reader = FrameReader::new(reader, Some(READ_STALL));
    let mut writer = FrameWriter::new(writer, WRITE_STALL);
    let offer = offer(digests, solicited, inline);
    writer.write(Kind::Offer, &offer.encode()).await?;

    let mut meter = counters.sending();
    let at_once = offer.entries.iter().enumerate().filter(|(_, e)| e.inline);
    let at_once: Vec<_> = at_once.map(|(index, e)| Asset::entry(index, e.digest)).collect();
    meter.expect(at_once.iter().map(Asset::left_bytes).sum());
    let mut proof = LastProof::default();
    // The Want is read while inline contents are written, so that the sides do not wait for each
    // other.
    let (mut lost, mut want) = tokio::try_join!(
        send_contents(ctx, &mut writer, at_once, &mut meter, &mut proof),
        read_want(ctx, &mut reader, &offer),
    )?;
    let mut begun = BTreeSet::new();
    loop {
        let mut wanted = Vec::new();
        for WantEntry { index, range } in want.entries {
            let asset = Asset { range, ..Asset::entry(index, offer.entries[index].digest) };
            // A peer that requests a part will probably request everything after it.
            if begun.insert(index) {
                let part_bytes = asset.digest.size_bytes - asset.range.start;
                meter.expect(if want.more { part_bytes } else { asset.left_bytes() });
            }
            // After a Drop nothing more of an asset is sent.
            if lost.iter().all(|lost| lost.label != asset.label) {
                wanted.push(asset);
            }
        }
        lost.extend(send_contents(ctx, &mut writer, wanted, &mut meter, &mut proof).await?);
        if !want.more {
            break;
        }
        let next = read_want(ctx, &mut reader, &offer);
        want = keeping_alive(&mut writer, next).await??;
    }
    writer.write(Kind::Done, &peer::Done {}).await?;
    writer.finish().await?;

    let ack = expect_frame(&mut reader, Kind::Ack, "Ack", ANSWER_WAIT).await?;
    let verdicts = decode_ack(ack.payload, offer.entries.len())?;
    let mut outcomes: Vec<_> = verdicts.into_iter().map(Outcome::from).collect();
    for Lost { label, outcome } in lost {
        if let Label::Entry(index) = label {
            outcomes[index] = outcome;
        }
    }
    Ok(outcomes)
}

fn offer(digests: &[Digest], solicited: bool, inline: bool) -> Offer {
    let mut budget = if inline { INLINE_BYTES_MAX } else { 0 };
    let entries = digests.iter().map(|&digest| {
        let inline = inline && !is_large(&digest) && digest.size_bytes <= budget;
        if inline {
            budget -= digest.size_bytes;
        }
        OfferEntry { digest, inline }
    });
    Offer { entries: entries.collect(), solicited }
}

/// A Want follows only if something was offered that is not inline.
async fn read_want<R: AsyncRead + Unpin>(
    ctx: &Context,
    reader: &mut FrameReader<R>,
    offer: &Offer,
) -> Result<Want, TransferError> {
    if offer.entries.iter().all(|e| e.inline) {
        return Ok(Want::default());
    }
    let frame = expect_frame(reader, Kind::Want, "Want", ANSWER_WAIT).await?;
    let want = Want::decode(frame.payload, offer)?;
    let is_part = |e: &WantEntry| e.range.end < offer.entries[e.index].digest.size_bytes;
    // With SHA-256 the whole asset is hashed while it is sent, and a part cannot be verified.
    if ctx.algorithm == HashAlgorithm::Sha256 && want.entries.iter().any(is_part) {
        return Err(TransferError::Protocol("a part of an asset wanted, with SHA-256".into()));
    }
    Ok(want)
}

/// An asset to send, or a part of a large one.
#[derive(Debug, Clone)]
pub(super) struct Asset {
    label: Label,
    digest: Digest,
    range: Range<u64>,
}

impl Asset {
    fn entry(index: usize, digest: Digest) -> Self {
        Self { label: Label::Entry(index), digest, range: 0..digest.size_bytes }
    }

    /// An asset sent by its hash in the plain protocol.
    pub(super) fn named(digest: Digest) -> Self {
        Self { label: Label::Named(digest), digest, range: 0..digest.size_bytes }
    }

    pub(super) fn left_bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn lost(&self, outcome: Outcome) -> Lost {
        Lost { label: self.label, outcome }
    }
}

/// The proof of the large asset sent last: its next part needs it again.
#[derive(Debug, Default)]
pub(super) struct LastProof(Option<(Hash, Proof)>);

/// The files that the pieces of a large asset are made from.
#[derive(Debug, Clone)]
struct Proof {
    outboard: Arc<File>,
    /// `None`: the content is read from the store range by range.
    content: Option<Arc<File>>,
}

/// An asset that cannot be sent, or not completely.
#[derive(Debug)]
pub(super) struct Lost {
    /// The asset's name in the stream.
    pub(super) label: Label,
    /// The outcome: Unavailable, Damaged or Later.
    pub(super) outcome: Outcome,
}

/// What to write to the stream next.
enum Prepared {
    Contents(Vec<Content>),
    Piece(Piece),
    Lost(Lost),
}

/// Sends the contents of `assets`, small ones first; returns those that could not be sent. On
/// return everything is written.
pub(super) async fn send_contents<W: TakeBytes>(
    ctx: &Context,
    writer: &mut FrameWriter<W>,
    assets: Vec<Asset>,
    meter: &mut Meter,
    proof: &mut LastProof,
) -> Result<Vec<Lost>, TransferError> {
    // Reading, verifying and encoding run ahead of writing by the length of the queue.
    let (queue, prepared) = mpsc::channel(1);
    let (_, lost) =
        tokio::try_join!(prepare(ctx, assets, queue, proof), write_out(writer, prepared, meter))?;
    Ok(lost)
}

async fn write_out<W: TakeBytes>(
    writer: &mut FrameWriter<W>,
    mut prepared: mpsc::Receiver<Prepared>,
    meter: &mut Meter,
) -> Result<Vec<Lost>, TransferError> {
    let mut lost = Vec::new();
    loop {
        if prepared.is_empty() {
            writer.flush().await?;
        }
        let next = match timeout(KEEP_ALIVE, prepared.recv()).await {
            Ok(Some(next)) => next,
            Ok(None) => return Ok(lost),
            Err(_) => {
                keep_alive(writer).await?;
                continue;
            }
        };
        match next {
            Prepared::Contents(contents) => {
                let bytes = contents.iter().map(|c| c.bytes.len() as u64).sum();
                writer.write(Kind::Contents, &encode_contents(contents)).await?;
                meter.moved(bytes);
            }
            Prepared::Piece(piece) => {
                let bytes = piece.length_bytes.into();
                let (head, encoded) = piece.encode_apart();
                writer.write_bulk(Kind::Piece, &head, encoded).await?;
                meter.moved(bytes);
            }
            Prepared::Lost(asset) => {
                // The plain protocol has no Drop: the asset is not sent, or ends early.
                if let Label::Entry(index) = asset.label {
                    writer.write(Kind::Drop, &encode_drop(index)).await?;
                }
                lost.push(asset);
            }
        }
    }
}

type Queue = mpsc::Sender<Prepared>;

/// Ignores a closed queue: `write_out` has ended then, and this future is dropped too.
async fn enqueue(queue: &Queue, prepared: Prepared) {
    let _ = queue.send(prepared).await;
}

async fn prepare(
    ctx: &Context,
    assets: Vec<Asset>,
    queue: Queue,
    proof: &mut LastProof,
) -> Result<(), TransferError> {
    let is_resting = |asset: &Asset| ctx.damaged.is_resting(&asset.digest.hash);
    let (resting, assets): (Vec<_>, Vec<_>) = assets.into_iter().partition(is_resting);
    for asset in resting {
        enqueue(&queue, Prepared::Lost(asset.lost(Outcome::Unavailable))).await;
    }
    let (large, small): (Vec<_>, Vec<_>) = assets.into_iter().partition(|a| is_large(&a.digest));
    let mut groups =
        stream::iter(groups(small)).map(|group| read_group(ctx, group)).buffered(PIECES_AHEAD);
    while let Some(group) = groups.next().await {
        let (contents, lost) = group?;
        if !contents.is_empty() {
            enqueue(&queue, Prepared::Contents(contents)).await;
        }
        for asset in lost {
            enqueue(&queue, Prepared::Lost(asset)).await;
        }
    }
    for asset in large {
        let sent = match ctx.algorithm {
            HashAlgorithm::Blake3 => {
                prepare_verified_pieces(ctx, asset.clone(), &queue, proof).await?
            }
            HashAlgorithm::Sha256 => prepare_raw_pieces(ctx, &asset, &queue).await?,
        };
        match sent {
            Ok(()) if asset.range.end < asset.digest.size_bytes => {}
            Ok(()) => healed(ctx, &asset.digest.hash).await,
            Err(outcome) => {
                let outcome = made_sure(ctx, &asset.digest, outcome).await;
                enqueue(&queue, Prepared::Lost(asset.lost(outcome))).await;
            }
        }
    }
    Ok(())
}

// --- small contents -----------------------------------------------------------------------------

/// Splits small assets into groups that fill one frame each.
fn groups(assets: Vec<Asset>) -> Vec<Vec<Asset>> {
    let mut groups: Vec<Vec<Asset>> = Vec::new();
    let mut bytes = 0;
    for asset in assets {
        bytes += asset.digest.size_bytes;
        match groups.last_mut() {
            Some(group) if bytes <= CONTENTS_BYTES && group.len() < OFFER_ENTRIES_MAX => {
                group.push(asset);
            }
            _ => {
                bytes = asset.digest.size_bytes;
                groups.push(vec![asset]);
            }
        }
    }
    groups
}

async fn read_group(
    ctx: &Context,
    group: Vec<Asset>,
) -> Result<(Vec<Content>, Vec<Lost>), TransferError> {
    let digests: Vec<_> = group.iter().map(|a| a.digest).collect();
    let read = match ctx.store.read_small(&digests).await {
        Ok(read) => read.into_iter().map(Ok).collect(),
        // One unreadable asset must not hold up the others.
        Err(e) if !e.is_temporary() => read_one_by_one(ctx, &digests).await,
        Err(e) => return Err(e.into()),
    };
    let algorithm = ctx.algorithm;
    let judged: Vec<_> = blocking(move || {
        let judge = |(asset, read): (Asset, _)| {
            let judged = judge(algorithm, &asset.digest, read);
            (asset, judged)
        };
        group.into_iter().zip(read).map(judge).collect()
    })
    .await?;
    let mut contents = Vec::with_capacity(judged.len());
    let mut lost = Vec::new();
    for (asset, judged) in judged {
        match judged {
            Ok(bytes) => {
                healed(ctx, &asset.digest.hash).await;
                contents.push(Content { label: asset.label, bytes });
            }
            Err(outcome) => {
                let outcome = made_sure(ctx, &asset.digest, outcome).await;
                lost.push(asset.lost(outcome));
            }
        }
    }
    Ok((contents, lost))
}

/// Lets the store confirm and mark damage; then the asset rests.
async fn made_sure(ctx: &Context, digest: &Digest, outcome: Outcome) -> Outcome {
    if outcome != Outcome::Damaged {
        return outcome;
    }
    match ctx.store.verify(digest.hash).await {
        Ok(Condition::Whole) => {
            return Outcome::Later("it was read wrong once and right the next time".into());
        }
        Ok(Condition::Absent) => return Outcome::Unavailable,
        Ok(Condition::Damaged(_)) => {}
        Err(error) => {
            tracing::warn!(hash = %digest.hash, %error, "cannot mark an asset as damaged")
        }
    }
    ctx.damaged.found(digest.hash);
    Outcome::Damaged
}

/// Notes that the asset was read as a whole. A store that had marked it as damaged checks it again.
async fn healed(ctx: &Context, hash: &Hash) {
    if ctx.damaged.healed(hash)
        && let Err(error) = ctx.store.verify(*hash).await
    {
        tracing::debug!(%hash, %error, "cannot check an asset that was damaged before");
    }
}

async fn read_one_by_one(
    ctx: &Context,
    digests: &[Digest],
) -> Vec<Result<Option<Bytes>, StoreError>> {
    let mut read = Vec::with_capacity(digests.len());
    for digest in digests {
        let one = ctx.store.read_small(std::slice::from_ref(digest)).await;
        read.push(one.map(|mut one| one.pop().flatten()));
    }
    read
}

fn judge(
    algorithm: HashAlgorithm,
    digest: &Digest,
    read: Result<Option<Bytes>, StoreError>,
) -> Result<Bytes, Outcome> {
    match read {
        Ok(Some(bytes)) => {
            let sound =
                bytes.len() as u64 == digest.size_bytes && algorithm.hash(&bytes) == digest.hash;
            if sound { Ok(bytes) } else { Err(Outcome::Damaged) }
        }
        Ok(None) | Err(StoreError::NotFound(_)) => Err(Outcome::Unavailable),
        Err(StoreError::Damaged(_)) => Err(Outcome::Damaged),
        Err(e) => Err(Outcome::Later(e.to_string())),
    }
}

// --- large contents -----------------------------------------------------------------------------

/// The pieces of `part`, cut at multiples of the piece length.
fn piece_ranges(part: Range<u64>) -> impl Iterator<Item = Range<u64>> + Send {
    let mut start = part.start;
    std::iter::from_fn(move || {
        let end = part.end.min((start / PIECE_BYTES + 1) * PIECE_BYTES);
        let range = start..end;
        start = end;
        (!range.is_empty()).then_some(range)
    })
}

/// Reads a range from our store; returns an outcome when that is impossible.
async fn read_range(
    ctx: &Context,
    digest: &Digest,
    range: Range<u64>,
) -> Result<Result<Bytes, Outcome>, TransferError> {
    let wanted = range.end - range.start;
    match ctx.store.read(digest.hash, range).await {
        Ok(Some(bytes)) if bytes.len() as u64 == wanted => Ok(Ok(bytes)),
        Ok(Some(_)) => Ok(Err(Outcome::Damaged)),
        Ok(None) | Err(StoreError::NotFound(_)) => Ok(Err(Outcome::Unavailable)),
        Err(StoreError::Damaged(_)) => Ok(Err(Outcome::Damaged)),
        Err(e) if e.is_temporary() => Err(e.into()),
        Err(e) => Ok(Err(Outcome::Later(e.to_string()))),
    }
}

/// Prepares pieces that each contain the proof of their own content.
async fn prepare_verified_pieces(
    ctx: &Context,
    mut asset: Asset,
    queue: &Queue,
    last: &mut LastProof,
) -> Result<Result<(), Outcome>, TransferError> {
    let hash = asset.digest.hash;
    let known = match last.0.take_if(|(of, _)| *of == hash) {
        Some((_, proof)) => Some(proof),
        None => match ctx.store.bao_files(hash).await {
            Ok(files) => files.map(|BaoFiles { content, outboard }| Proof {
                outboard: Arc::new(outboard),
                content: Some(Arc::new(content)),
            }),
            Err(StoreError::NotFound(_)) => return Ok(Err(Outcome::Unavailable)),
            Err(StoreError::Damaged(_)) => return Ok(Err(Outcome::Damaged)),
            Err(e) if e.is_temporary() => return Err(e.into()),
            Err(e) => return Ok(Err(Outcome::Later(e.to_string()))),
        },
    };
    if let Some(proof) = known {
        match send_verified_pieces(ctx, &mut asset, &proof, queue).await? {
            // Content or outboard is wrong. The store finds out which, and rebuilds a wrong
            // outboard for the next time; this time a temporary outboard is used.
            Err(Outcome::Damaged) => {
                if !matches!(ctx.store.verify(hash).await, Ok(Condition::Whole)) {
                    return Ok(Err(Outcome::Damaged));
                }
            }
            done => {
                last.0 = Some((hash, proof));
                return Ok(done);
            }
        }
    }
    let proof = match build_outboard(ctx, &asset.digest).await? {
        Ok(outboard) => Proof { outboard: Arc::new(outboard), content: None },
        Err(outcome) => return Ok(Err(outcome)),
    };
    let sent = send_verified_pieces(ctx, &mut asset, &proof, queue).await;
    last.0 = Some((hash, proof));
    sent
}

/// Sends verified pieces, and advances the asset's range with each piece queued.
async fn send_verified_pieces(
    ctx: &Context,
    asset: &mut Asset,
    proof: &Proof,
    queue: &Queue,
) -> Result<Result<(), Outcome>, TransferError> {
    let ranges = stream::iter(piece_ranges(asset.range.clone()));
    let read = asset.clone();
    let mut pieces = ranges
        .map(|range| read_verified_piece(ctx, &read, proof.clone(), range))
        .buffered(PIECES_AHEAD);
    while let Some(piece) = pieces.next().await {
        match piece? {
            Ok(piece) => {
                asset.range.start = piece.end_bytes();
                enqueue(queue, Prepared::Piece(piece)).await;
            }
            Err(outcome) => return Ok(Err(outcome)),
        }
    }
    Ok(Ok(()))
}

async fn read_verified_piece(
    ctx: &Context,
    asset: &Asset,
    proof: Proof,
    range: Range<u64>,
) -> Result<Result<Piece, Outcome>, TransferError> {
    let Asset { label, digest, .. } = *asset;
    let (offset_bytes, length_bytes) = (range.start, piece_length(&range));
    let Proof { outboard, content } = proof;
    let encoded = match content {
        Some(content) => {
            let encode = move || encode_piece_of_file(&digest, range, &content, Some(&outboard));
            blocking(encode).await?
        }
        None => {
            let bytes = match read_range(ctx, &digest, range).await? {
                Ok(bytes) => bytes,
                Err(outcome) => return Ok(Err(outcome)),
            };
            blocking(move || encode_piece(&digest, offset_bytes, &bytes, Some(&outboard))).await?
        }
    };
    Ok(match encoded {
        Ok(encoded) => Ok(Piece { label, offset_bytes, length_bytes, encoded: encoded.into() }),
        Err(e @ EncodeError::Content(_)) => {
            tracing::warn!(hash = %digest.hash, "{}", with_causes(e));
            Err(Outcome::Damaged)
        }
        Err(_) => Err(Outcome::Damaged),
    })
}

/// Builds an outboard for this transfer from the store's content, in an unnamed file.
async fn build_outboard(
    ctx: &Context,
    digest: &Digest,
) -> Result<Result<File, Outcome>, TransferError> {
    let (feed, source) = mpsc::channel(1);
    let (folder, size_bytes) = (ctx.scratch_folder.clone(), digest.size_bytes);
    let build = blocking(move || {
        let mut outboard = nameless_file(&folder)?;
        let hash = bao::build_outboard(QueueReader::new(source), size_bytes, &mut outboard)?;
        Ok((hash, outboard))
    });
    let (fed, built) = tokio::try_join!(feed_content(ctx, digest, feed), build)?;
    if let Err(outcome) = fed {
        return Ok(Err(outcome));
    }
    let built: std::io::Result<_> = built;
    let (hash, outboard) = built
        .map_err(|e| TransferError::Local(format!("building an outboard on disk failed: {e}")))?;
    Ok(if hash == digest.hash { Ok(outboard) } else { Err(Outcome::Damaged) })
}

/// Opens a file that is deleted when it is closed.
fn nameless_file(folder: &Path) -> std::io::Result<File> {
    let path = folder.join(format!("outboard-{:016x}", rand::random::<u64>()));
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

async fn feed_content(
    ctx: &Context,
    digest: &Digest,
    feed: mpsc::Sender<Bytes>,
) -> Result<Result<(), Outcome>, TransferError> {
    let mut start = 0;
    while start < digest.size_bytes {
        let end = digest.size_bytes.min(start + READ_BYTES_MAX);
        match read_range(ctx, digest, start..end).await? {
            Ok(bytes) => {
                if feed.send(bytes).await.is_err() {
                    break;
                }
            }
            Err(outcome) => return Ok(Err(outcome)),
        }
        start = end;
    }
    Ok(Ok(()))
}

/// Reads from a queue that an async task fills, as a blocking reader.
struct QueueReader {
    source: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl QueueReader {
    fn new(source: mpsc::Receiver<Bytes>) -> Self {
        Self { source, current: Bytes::new() }
    }
}

impl std::io::Read for QueueReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.current.is_empty() {
            match self.source.blocking_recv() {
                Some(bytes) => self.current = bytes,
                None => return Ok(0),
            }
        }
        let n = buffer.len().min(self.current.len());
        buffer[..n].copy_from_slice(&self.current.split_to(n));
        Ok(n)
    }
}

/// Prepares pieces without proofs. The whole asset is hashed, and its last piece is held back until
/// the hash is right.
async fn prepare_raw_pieces(
    ctx: &Context,
    asset: &Asset,
    queue: &Queue,
) -> Result<Result<(), Outcome>, TransferError> {
    let (label, digest, offset_bytes) = (asset.label, asset.digest, asset.range.start);
    let ranges = piece_ranges(0..offset_bytes).chain(piece_ranges(asset.range.clone()));
    let mut reads = stream::iter(ranges)
        .map(|range| async move { (read_range(ctx, &digest, range.clone()).await, range) })
        .buffered(PIECES_AHEAD);
    let mut hasher = sha2::Sha256::new();
    while let Some((read, range)) = reads.next().await {
        let encoded = match read? {
            Ok(bytes) => bytes,
            Err(outcome) => return Ok(Err(outcome)),
        };
        let bytes = encoded.clone();
        hasher = blocking(move || hasher.chain_update(&bytes)).await?;
        let is_last = range.end == digest.size_bytes;
        if is_last && hasher.clone().finalize()[..] != digest.hash.0 {
            return Ok(Err(Outcome::Damaged));
        }
        if range.start >= offset_bytes {
            let length_bytes = piece_length(&range);
            let piece = Piece { label, offset_bytes: range.start, length_bytes, encoded };
            enqueue(queue, Prepared::Piece(piece)).await;
        }
    }
    Ok(Ok(()))
}

fn piece_length(range: &Range<u64>) -> u32 {
    u32::try_from(range.end - range.start).expect("a piece is at most PIECE_BYTES long")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pieces_cover_the_rest_of_an_asset_without_gap_or_overlap() {
        for size in [1, 2 * PIECE_BYTES - 1, 2 * PIECE_BYTES, 2 * PIECE_BYTES + 1] {
            for from in [0, 16 * 1024, PIECE_BYTES, PIECE_BYTES + 16 * 1024] {
                let mut next = from;
                for range in piece_ranges(from..size) {
                    assert_eq!(range.start, next);
                    assert!(range.end - range.start <= PIECE_BYTES);
                    assert!(range.end == size || range.end.is_multiple_of(PIECE_BYTES));
                    next = range.end;
                }
                assert!(next == size || from >= size);
            }
        }
    }

    #[test]
    fn groups_of_small_contents_fill_frames_and_never_overflow_one() {
        let asset = |size_bytes| Asset::entry(0, Digest { hash: Hash([0; 32]), size_bytes });
        for (size, count, per_group) in
            [(0, 1500, OFFER_ENTRIES_MAX), (CONTENTS_BYTES, 3, 1), (CONTENTS_BYTES / 4, 9, 4)]
        {
            let groups = groups(vec![asset(size); count]);
            assert_eq!(groups.iter().map(Vec::len).sum::<usize>(), count);
            assert_eq!(groups[0].len(), per_group);
        }
    }
}
