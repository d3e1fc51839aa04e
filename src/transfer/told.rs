//! Streams of the plain protocol that carry metadata, one frame each way at a time.
//!
//! What is told becomes ops of this device, so it is adopted only of assets that this device knows: a
//! peer cannot fill the journal with metadata of assets that do not exist.

use tokio::io::{AsyncRead, AsyncWrite};

use super::context::{Context, blocking, index_failed};
use super::outcome::TransferError;
use super::pace::{
    ANSWER_WAIT, READ_STALL, WRITE_STALL, expect_frame, keeping_alive, out_of_place,
};
use crate::clock::wall_ms;
use crate::core::ids::Hash;
use crate::core::journal::told::Told;
use crate::net::frame::{FrameReader, FrameWriter};
use crate::replica::journal::JournalHandle;
use crate::wire::batch::{Verdict, encode_ack};
use crate::wire::frame::Kind;
use crate::wire::plain::{decode_meta, decode_plain_ack, encode_meta};
use crate::wire::proto::peer;

/// Tells metadata that fit into a frame. Returns the assets that the peer wants to be told of again
/// later.
///
/// # Cancel safety
/// Dropping it ends the stream.
///
/// # Errors
/// [`TransferError`]: it is not known what the peer adopted.
pub(crate) async fn tell(
    reader: impl AsyncRead + Unpin,
    writer: impl AsyncWrite + Unpin,
    told: &[Told],
) -> Result<Vec<Hash>, TransferError> {
    let mut reader = FrameReader::new(reader, Some(READ_STALL));
    let mut writer = FrameWriter::new(writer, WRITE_STALL);
    writer.write(Kind::MetaUpdate, &encode_meta(told)).await?;
    writer.write(Kind::Done, &peer::Done {}).await?;
    writer.finish().await?;
    let ack = expect_frame(&mut reader, Kind::Ack, "Ack", ANSWER_WAIT).await?;
    let verdicts = decode_plain_ack(ack.payload)?.into_iter();
    let later = verdicts.filter(|(_, verdict)| matches!(verdict, Verdict::Later(_)));
    Ok(later.map(|(hash, _)| hash).collect())
}

/// Receives metadata and adopts what is later than what this device has.
///
/// # Cancel safety
/// Dropping it ends the stream; what was adopted stays.
///
/// # Errors
/// [`TransferError`]; what was adopted stays.
pub(crate) async fn hear(
    ctx: &Context,
    journal: &JournalHandle,
    reader: impl AsyncRead + Unpin,
    writer: impl AsyncWrite + Unpin,
) -> Result<(), TransferError> {
    let mut reader = FrameReader::new(reader, Some(READ_STALL));
    let mut writer = FrameWriter::new(writer, WRITE_STALL);
    loop {
        let frame = reader.read().await?.ok_or(TransferError::Ended("Done"))?;
        match frame.kind {
            Kind::MetaUpdate => {
                let told = decode_meta(frame.payload)?;
                let adopting = adopt(ctx, journal, told);
                let verdicts = keeping_alive(&mut writer, adopting).await??;
                let named = verdicts.iter().map(|(hash, verdict)| (Some(*hash), verdict));
                writer.write(Kind::Ack, &encode_ack(named)).await?;
                writer.flush().await?;
            }
            Kind::Done => return Ok(writer.finish().await?),
            _ => return Err(out_of_place(&frame, "MetaUpdate or Done")),
        }
    }
}

async fn adopt(
    ctx: &Context,
    journal: &JournalHandle,
    told: Vec<Told>,
) -> Result<Vec<(Hash, Verdict)>, TransferError> {
    let hashes: Vec<Hash> = told.iter().map(|told| told.hash).collect();
    let index = ctx.index.clone();
    let seqs = blocking(move || index.seqs(&hashes)).await?.map_err(index_failed)?;
    let now_ms = wall_ms();
    let (mut taken, mut verdicts) = (Vec::new(), Vec::new());
    for (told, seq) in told.into_iter().zip(seqs) {
        let later = match (seq, told.latest().held_back_until_ms(now_ms)) {
            (None, _) => Some("this device does not know the asset yet"),
            (_, Some(_)) => Some("written in the future: the clocks differ"),
            (Some(_), None) => None,
        };
        match later {
            Some(why) => verdicts.push((told.hash, Verdict::Later(why.to_owned()))),
            None => taken.push(told),
        }
    }
    let hashes: Vec<Hash> = taken.iter().map(|told| told.hash).collect();
    let adopted = journal.run(move |journal, now_ms| journal.adopt(&taken, now_ms)).await;
    let results = adopted.map_err(|error| TransferError::Local(error.to_string()))?;
    verdicts.extend(hashes.into_iter().zip(results).map(|(hash, result)| match result {
        Ok(()) => (hash, Verdict::Stored),
        Err(error) => (hash, Verdict::Refused(error.to_string())),
    }));
    Ok(verdicts)
}
