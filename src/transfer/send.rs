//! The sending side: offers assets, reads which of them the peer wants, and sends these.
//! [`contents`] reads them from the store ahead of the stream; [`small`] and [`large`] verify and
//! encode them.

mod asset;
mod contents;
mod damage;
mod large;
mod small;

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::io::AsyncRead;

use super::context::Context;
use super::meter::Counters;
use super::outcome::{Outcome, TransferError, is_large};
use super::pace::{ANSWER_WAIT, READ_STALL, WRITE_STALL, expect_frame, keeping_alive};
use crate::core::ids::{Digest, HashAlgorithm};
use crate::core::limits::INLINE_BYTES_MAX;
use crate::net::frame::{FrameReader, FrameWriter, TakeBytes};
use crate::wire::batch::{Label, Offer, OfferEntry, Want, WantEntry, decode_ack};
use crate::wire::frame::Kind;
use crate::wire::proto::peer;

pub(super) use self::asset::{Asset, LastProof, Lost};
pub(super) use self::contents::send_contents;
#[cfg(test)]
pub(super) use self::large::PIECE_BYTES;

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
