//! The receiving side of a batch stream, from the offer to the acknowledgement.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::context::Context;
use super::intake::Intake;
use super::meter::Counters;
use super::outcome::{Receipt, TransferError};
use super::pace::{
    ANSWER_WAIT, READ_STALL, WRITE_STALL, expect_frame, keep_alive, keeping_alive, out_of_place,
};
use crate::core::ids::Digest;
use crate::net::frame::{FrameReader, FrameWriter};
use crate::store::SMALL_BYTES_MAX;
use crate::wire::batch::{Naming, Offer, Want, WantEntry, encode_ack};
use crate::wire::frame::Kind;

/// How long the first frame of a stream may take: a kilobyte per second at least, because several
/// offers may share a rate limit.
pub(super) const OFFER_WAIT: Duration = Duration::from_secs(20);

/// The least that a sender must send within [`ANSWER_WAIT`]: a kilobyte per second, slower than any
/// usable link.
const PROGRESS_BYTES_MIN: usize = 1024 * 1024;

/// Receives one batch. `decide` is called once with the offered assets that the index does not
/// hold, and whether they were solicited; for each it says whether to accept it from this peer.
///
/// # Cancel safety
/// Dropping it ends the stream; what was committed stays, and large assets are resumed later.
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
    let naming = Naming::Offered(offer.entries.len());
    let taken = async {
        if offer.entries.iter().any(|e| !e.inline) {
            ask(intake, &mut reader, &mut writer, naming, want).await?;
        }
        // Where a rate limit slows reading, the sender may have to wait long for the Ack.
        keeping_alive(&mut writer, take_contents(intake, &mut reader, naming)).await?
    };
    if let Err(e) = taken.await {
        if !e.is_violation() {
            intake.keep_cut_off(reader.cut_off(), naming).await;
        }
        return Err(e);
    }
    if let Ok(Ok(Some(frame))) = timeout(OFFER_WAIT, reader.read()).await {
        return Err(out_of_place(&frame, "the end of the stream"));
    }
    keeping_alive(&mut writer, intake.settle()).await?;
    let verdicts: Vec<_> = intake.verdicts().collect();
    writer.write(Kind::Ack, &encode_ack(verdicts.iter().map(|(_, v)| (None, v)))).await?;
    Ok(writer.finish().await?)
}

/// Requests what is wanted, and parts of large assets again and again as earlier ones arrive.
/// Returns when there is nothing more to request.
async fn ask<R, W>(
    intake: &mut Intake<'_>,
    reader: &mut FrameReader<R>,
    writer: &mut FrameWriter<W>,
    naming: Naming,
    mut entries: Vec<WantEntry>,
) -> Result<(), TransferError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut progress = Progress::new();
    loop {
        intake.check_use()?;
        intake.follow_gatherings()?;
        entries.extend(intake.next_spans());
        let more = intake.may_ask();
        if !more || !entries.is_empty() {
            let want = Want { entries: std::mem::take(&mut entries), more };
            writer.write(Kind::Want, &want.encode()).await?;
            writer.flush().await?;
            if more {
                continue;
            }
            return Ok(());
        }
        let look_at = intake.look_at();
        tokio::select! {
            frame = progress.within(reader.read()) => {
                let frame = frame??.ok_or(TransferError::Ended("Done"))?;
                progress.moved(frame.payload.len());
                if frame.kind == Kind::Done {
                    return Err(out_of_place(&frame, "content that was asked for"));
                }
                intake.take(frame, naming).await?;
            }
            () = intake.stirred() => {}
            // Where a rate limit slows reading, nothing may arrive for long either.
            () = sleep_until(look_at) => keep_alive(writer).await?,
        }
    }
}

/// Reads content frames up to and including Done.
pub(super) async fn take_contents<R: AsyncRead + Unpin>(
    intake: &mut Intake<'_>,
    reader: &mut FrameReader<R>,
    naming: Naming,
) -> Result<(), TransferError> {
    let mut progress = Progress::new();
    loop {
        let may_rest = match naming {
            Naming::Offered(_) => false,
            // Nothing here was requested, so no other peer is kept from sending it, except a large
            // asset that has begun.
            Naming::Plain => !intake.is_collecting(),
        };
        let frame = if may_rest {
            let frame = reader.read().await?;
            progress = Progress::new();
            frame
        } else {
            progress.within(reader.read()).await??
        };
        let frame = frame.ok_or(TransferError::Ended("Done"))?;
        progress.moved(frame.payload.len());
        if let Naming::Offered(_) = naming {
            intake.follow_gatherings()?;
        }
        match (frame.kind, naming) {
            (Kind::Done, Naming::Offered(_)) => return intake.check_complete(),
            (Kind::Done, Naming::Plain) => return Ok(()),
            _ => intake.take(frame, naming).await?,
        }
    }
}

/// Enforces a least speed on a sender, even one that sends keep-alives: what it owes is requested
/// from nobody else.
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
