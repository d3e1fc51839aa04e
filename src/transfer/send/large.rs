//! Large contents: in pieces, each with the proof of its own content (BLAKE3), or hashed as a whole
//! while they are sent (SHA-256).

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use sha2::Digest as _;
use tokio::sync::mpsc;

use super::asset::{Asset, LastProof, PIECES_AHEAD, Prepared, Proof, Queue, enqueue};
use crate::bao::{self, EncodeError, encode_piece, encode_piece_of_file};
use crate::core::ids::Digest;
use crate::store::{BaoFiles, Condition, READ_BYTES_MAX, StoreError};
use crate::transfer::context::{Context, blocking};
use crate::transfer::outcome::{Outcome, TransferError, with_causes};
use crate::wire::batch::Piece;

/// Content bytes in one piece. Measured over a pipe, both ends: half of it costs a third more
/// processor time; twice of it saves a tenth, and doubles memory and what must be sent again after
/// a cut.
pub(crate) const PIECE_BYTES: u64 = 256 * 1024;

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
pub(super) async fn prepare_verified_pieces(
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
pub(super) async fn prepare_raw_pieces(
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
}
