//! Sends contents on a stream: reading, verifying and encoding run ahead of writing.

use futures_util::stream::{self, StreamExt};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::asset::{Asset, LastProof, Lost, PIECES_AHEAD, Prepared, Queue, enqueue};
use super::damage::{healed, made_sure};
use super::large::{prepare_raw_pieces, prepare_verified_pieces};
use super::small::{groups, read_group};
use crate::core::ids::HashAlgorithm;
use crate::net::frame::{FrameWriter, TakeBytes};
use crate::transfer::context::Context;
use crate::transfer::meter::Meter;
use crate::transfer::outcome::{Outcome, TransferError, is_large};
use crate::transfer::pace::{KEEP_ALIVE, keep_alive};
use crate::wire::batch::{Label, encode_contents, encode_drop};
use crate::wire::frame::Kind;

/// Sends the contents of `assets`, small ones first; returns those that could not be sent. On
/// return everything is written.
pub(crate) async fn send_contents<W: TakeBytes>(
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
