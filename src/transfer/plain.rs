//! The plain protocol, `can-sync/1`: whole sets and contents both ways on one stream.
//!
//! ```text
//! each side:  Page ... -> Contents, Piece ... -> Done -> Ack ...
//! ```
//! Each side has an outgoing and an incoming half that run in parallel. The incoming half tells the
//! outgoing one what the peer lacks, from its pages, and the outcomes of its contents, for the
//! Acks. Neither half waits for the peer to read, so two sides never wait for each other.
//!
//! I1  The sets are merged while they pass. Memory grows with the difference, and that is bounded.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::context::{Context, blocking, index_failed};
use super::intake::Intake;
use super::meter::{Counters, Meter};
use super::outcome::{Outcome, Receipt, Received, TransferError};
use super::pace::{READ_STALL, WRITE_STALL, keeping_alive, out_of_place};
use super::receive::take_contents;
use super::send::{Asset, LastProof, Lost, send_contents};
use crate::core::ids::{Digest, Hash};
use crate::core::limits::{HASHES_PER_FRAME_MAX, OFFER_ENTRIES_MAX, PLAIN_ASSETS_MAX};
use crate::net::frame::{FrameReader, FrameWriter, TakeBytes};
use crate::wire::batch::{Label, Naming, Verdict, encode_ack};
use crate::wire::frame::Kind;
use crate::wire::plain::{SetPage, decode_plain_ack};
use crate::wire::proto::peer;

/// The result of a plain stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainReport {
    /// The assets that the peer lacked, with their outcomes there.
    pub sent: Vec<(Digest, Outcome)>,
    /// The assets that the peer sent, with their outcomes here.
    pub received: Vec<Received>,
    /// False when the peer lacks more than one stream carries: connect again.
    pub is_complete: bool,
}

/// Brings both sides to the same set. Reader and writer are positioned after the Hellos; the caller
/// has set their stall deadlines.
///
/// # Cancel safety
/// Dropping it ends the stream; what was committed stays.
///
/// # Errors
/// [`TransferError`]; what was committed stays, but it is not known what the peer holds now.
pub async fn run_plain<R, W>(
    ctx: &Context,
    reader: FrameReader<R>,
    writer: FrameWriter<W>,
    counters: &Arc<Counters>,
) -> Result<PlainReport, TransferError>
where
    R: AsyncRead + Unpin + Send,
    W: TakeBytes + Send,
{
    let (their_lack, lack) = oneshot::channel();
    let (their_verdicts, verdicts) = oneshot::channel();
    let stop = CancellationToken::new();
    // Not `try_join`: when writing fails, what was read is still stored.
    let (outgoing, incoming) = tokio::join!(
        stop.run_until_cancelled(outgoing(ctx, writer, lack, verdicts, counters)),
        async {
            // When reading fails or is dropped, writing is pointless.
            let stop_writing = stop.clone().drop_guard();
            let incoming = incoming(ctx, reader, their_lack, their_verdicts, counters).await;
            if incoming.is_ok() {
                stop_writing.disarm();
            }
            incoming
        },
    );
    let (incoming, outgoing) = match (incoming, outgoing) {
        (Ok(incoming), Some(outgoing)) => (incoming, outgoing?),
        (Ok(_), None) => return Err(TransferError::Ended("its own end")),
        (Err(e), Some(Err(first))) if !e.is_violation() => return Err(first),
        (Err(e), _) => return Err(e),
    };
    let Outgoing { sent, lost, is_complete } = outgoing;
    let Incoming { received, acked } = incoming;
    Ok(PlainReport { sent: outcomes(sent, lost, acked), received, is_complete })
}

/// Sends assets that were just stored, on a stream of their own. Returns the outcome of each.
///
/// # Cancel safety
/// Dropping it ends the stream.
///
/// # Errors
/// [`TransferError`]: it is not known whether anything arrived.
pub async fn send_plain_live<R, W>(
    ctx: &Context,
    reader: R,
    writer: W,
    digests: &[Digest],
    counters: &Arc<Counters>,
) -> Result<Vec<Outcome>, TransferError>
where
    R: AsyncRead + Unpin + Send,
    W: TakeBytes + Send,
{
    let mut reader = FrameReader::new(reader, Some(READ_STALL));
    let mut writer = FrameWriter::new(writer, WRITE_STALL);
    let mut meter = counters.sending();
    let assets = digests.iter().copied();
    let lost = send_named(ctx, &mut writer, assets, &mut meter).await?;
    writer.write(Kind::Done, &peer::Done {}).await?;
    writer.finish().await?;
    let acked = read_acks(&mut reader, digests.len()).await?;
    let outcomes = outcomes(digests.to_vec(), lost, acked).into_iter();
    Ok(outcomes.map(|(_, outcome)| outcome).collect())
}

/// Receives a live stream.
///
/// # Cancel safety
/// Dropping it ends the stream; what was committed stays.
pub async fn receive_plain_live<R, W>(
    ctx: &Context,
    reader: R,
    writer: W,
    counters: &Arc<Counters>,
) -> Receipt
where
    R: AsyncRead + Unpin + Send,
    W: TakeBytes + Send,
{
    let mut intake = Intake::new(ctx, counters.receiving());
    let mut reader = FrameReader::new(reader, Some(READ_STALL));
    let mut writer = FrameWriter::new(writer, WRITE_STALL);
    let end = async {
        let taking = take_contents(&mut intake, &mut reader, Naming::Plain);
        keeping_alive(&mut writer, taking).await??;
        keeping_alive(&mut writer, intake.settle()).await?;
        write_acks(&mut writer, &intake.verdicts().collect::<Vec<_>>()).await?;
        Ok(writer.finish().await?)
    }
    .await;
    intake.close(end).await
}

// --- our half -----------------------------------------------------------------------------------

struct Outgoing {
    sent: Vec<Digest>,
    lost: Vec<Lost>,
    is_complete: bool,
}

async fn outgoing<W: TakeBytes>(
    ctx: &Context,
    mut writer: FrameWriter<W>,
    lack: oneshot::Receiver<Lack>,
    verdicts: oneshot::Receiver<Vec<(Digest, Verdict)>>,
    counters: &Arc<Counters>,
) -> Result<Outgoing, TransferError> {
    send_set(ctx, &mut writer).await?;
    let their_side = |_| TransferError::Ended("the peer's half");
    let Lack { hashes, is_complete } =
        keeping_alive(&mut writer, lack).await?.map_err(their_side)?;
    let (mut sent, mut lost) = (Vec::new(), Vec::new());
    let mut meter = counters.sending();
    for hashes in hashes.chunks(OFFER_ENTRIES_MAX) {
        let digests = digests(ctx, hashes.to_vec()).await?;
        let assets = digests.iter().copied();
        lost.extend(send_named(ctx, &mut writer, assets, &mut meter).await?);
        sent.extend(digests);
    }
    writer.write(Kind::Done, &peer::Done {}).await?;
    writer.flush().await?;
    let verdicts = keeping_alive(&mut writer, verdicts).await?.map_err(their_side)?;
    write_acks(&mut writer, &verdicts).await?;
    writer.finish().await?;
    Ok(Outgoing { sent, lost, is_complete })
}

async fn send_named<W: TakeBytes>(
    ctx: &Context,
    writer: &mut FrameWriter<W>,
    digests: impl Iterator<Item = Digest>,
    meter: &mut Meter,
) -> Result<Vec<Lost>, TransferError> {
    let assets: Vec<_> = digests.map(Asset::named).collect();
    meter.expect(assets.iter().map(Asset::left_bytes).sum());
    send_contents(ctx, writer, assets, meter, &mut LastProof::default()).await
}

async fn send_set<W: AsyncWrite + Unpin>(
    ctx: &Context,
    writer: &mut FrameWriter<W>,
) -> Result<(), TransferError> {
    let mut after = None;
    loop {
        let (hashes, more) = hashes_above(ctx, after).await?;
        after = hashes.last().copied();
        writer.write(Kind::Page, &SetPage { hashes, more }.encode()).await?;
        if !more {
            return Ok(writer.flush().await?);
        }
    }
}

async fn write_acks<W: AsyncWrite + Unpin>(
    writer: &mut FrameWriter<W>,
    verdicts: &[(Digest, Verdict)],
) -> Result<(), TransferError> {
    for verdicts in verdicts.chunks(OFFER_ENTRIES_MAX) {
        let named = verdicts.iter().map(|(digest, verdict)| (Some(digest.hash), verdict));
        writer.write(Kind::Ack, &encode_ack(named)).await?;
    }
    Ok(())
}

// --- their half ---------------------------------------------------------------------------------

struct Incoming {
    received: Vec<Received>,
    acked: BTreeMap<Hash, Verdict>,
}

async fn incoming<R: AsyncRead + Unpin>(
    ctx: &Context,
    mut reader: FrameReader<R>,
    their_lack: oneshot::Sender<Lack>,
    their_verdicts: oneshot::Sender<Vec<(Digest, Verdict)>>,
    counters: &Arc<Counters>,
) -> Result<Incoming, TransferError> {
    let lack = read_set(ctx, &mut reader).await?;
    let sent_max = lack.hashes.len();
    // The outgoing half is gone only when it failed; then its error is reported.
    let _ = their_lack.send(lack);
    let mut intake = Intake::new(ctx, counters.receiving());
    let taken = take_contents(&mut intake, &mut reader, Naming::Plain).await;
    intake.settle().await;
    let _ = their_verdicts.send(intake.verdicts().collect());
    let Receipt { received, end } = intake.close(taken).await;
    end?;
    let acked = read_acks(&mut reader, sent_max).await?;
    Ok(Incoming { received, acked })
}

/// The assets that the peer lacks.
struct Lack {
    /// In ascending order, at most [`PLAIN_ASSETS_MAX`].
    hashes: Vec<Hash>,
    /// Whether no more follow.
    is_complete: bool,
}

/// Reads the peer's set and merges it with our own while it passes.
async fn read_set<R: AsyncRead + Unpin>(
    ctx: &Context,
    reader: &mut FrameReader<R>,
) -> Result<Lack, TransferError> {
    let mut ours = OwnSet { ctx, ahead: VecDeque::new(), after: None, more: true };
    let mut lack = Lack { hashes: Vec::new(), is_complete: true };
    let mut after = None;
    loop {
        let frame = reader.read().await?.ok_or(TransferError::Ended("Page"))?;
        if frame.kind != Kind::Page {
            return Err(out_of_place(&frame, "Page"));
        }
        let page = SetPage::decode(frame.payload, after)?;
        for theirs in &page.hashes {
            while let Some(own) = ours.next_up_to(Some(*theirs)).await? {
                if own < *theirs {
                    lack.push(own);
                }
            }
        }
        after = page.hashes.last().copied().or(after);
        if !page.more {
            break;
        }
    }
    while lack.is_complete
        && let Some(own) = ours.next_up_to(None).await?
    {
        lack.push(own);
    }
    Ok(lack)
}

impl Lack {
    fn push(&mut self, hash: Hash) {
        if self.hashes.len() < PLAIN_ASSETS_MAX {
            self.hashes.push(hash);
        } else {
            self.is_complete = false;
        }
    }
}

/// Our own set in ascending order, a page at a time.
struct OwnSet<'a> {
    ctx: &'a Context,
    ahead: VecDeque<Hash>,
    after: Option<Hash>,
    more: bool,
}

impl OwnSet<'_> {
    /// The next hash if it is not above `last`.
    async fn next_up_to(&mut self, last: Option<Hash>) -> Result<Option<Hash>, TransferError> {
        if self.ahead.is_empty() && self.more {
            let (hashes, more) = hashes_above(self.ctx, self.after).await?;
            self.after = hashes.last().copied().or(self.after);
            self.more = more;
            self.ahead = hashes.into();
        }
        let is_due = |next: &Hash| last.is_none_or(|last| *next <= last);
        if self.ahead.front().is_some_and(is_due) { Ok(self.ahead.pop_front()) } else { Ok(None) }
    }
}

/// Reads Acks to the end of the stream, of at most `sent_max` assets.
async fn read_acks<R: AsyncRead + Unpin>(
    reader: &mut FrameReader<R>,
    sent_max: usize,
) -> Result<BTreeMap<Hash, Verdict>, TransferError> {
    let mut acked = BTreeMap::new();
    while let Some(frame) = reader.read().await? {
        if frame.kind != Kind::Ack {
            return Err(out_of_place(&frame, "Ack or the end of the stream"));
        }
        acked.extend(decode_plain_ack(frame.payload)?);
        if acked.len() > sent_max {
            let detail = format!("an Ack of {} assets, {sent_max} were sent", acked.len());
            return Err(TransferError::Protocol(detail));
        }
    }
    Ok(acked)
}

fn outcomes(
    sent: Vec<Digest>,
    lost: Vec<Lost>,
    mut acked: BTreeMap<Hash, Verdict>,
) -> Vec<(Digest, Outcome)> {
    let mut lost: BTreeMap<Hash, Outcome> = lost
        .into_iter()
        .filter_map(|lost| match lost.label {
            Label::Named(digest) => Some((digest.hash, lost.outcome)),
            Label::Entry(_) => None,
        })
        .collect();
    let outcome = |digest: Digest| {
        let outcome = lost
            .remove(&digest.hash)
            .or_else(|| acked.remove(&digest.hash).map(Outcome::from))
            .unwrap_or_else(|| Outcome::Later("the peer did not acknowledge it".into()));
        (digest, outcome)
    };
    sent.into_iter().map(outcome).collect()
}

// --- our index ----------------------------------------------------------------------------------

async fn hashes_above(
    ctx: &Context,
    after: Option<Hash>,
) -> Result<(Vec<Hash>, bool), TransferError> {
    let index = ctx.index.clone();
    blocking(move || index.held_above(after, HASHES_PER_FRAME_MAX)).await?.map_err(index_failed)
}

async fn digests(ctx: &Context, hashes: Vec<Hash>) -> Result<Vec<Digest>, TransferError> {
    let index = ctx.index.clone();
    let sized = move || {
        let sizes = index.sizes(&hashes)?;
        let digests = hashes.into_iter().zip(sizes);
        Ok(digests
            .filter_map(|(hash, size)| size.map(|size_bytes| Digest { hash, size_bytes }))
            .collect())
    };
    blocking(sized).await?.map_err(index_failed)
}
