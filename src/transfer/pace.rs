//! How long each side of a stream waits, and how it says that it still works.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::net::frame::{Frame, FrameReader, FrameWriter};
use crate::wire::frame::Kind;

use super::outcome::TransferError;

/// A peer that sends nothing for this long, not even a keep-alive, is given up.
pub(super) const READ_STALL: Duration = Duration::from_secs(30);

/// A peer that accepts nothing for this long is given up. Longer than [`READ_STALL`]: a receiver
/// does not read while its store commits a group, and each call to the store has a deadline of its
/// own.
pub(super) const WRITE_STALL: Duration = Duration::from_secs(90);

/// A side that works for this long without anything to send sends [`KEEP_ALIVE_KIND`].
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The keep-alive: an empty extension frame, which every reader skips.
const KEEP_ALIVE_KIND: Kind = Kind::Extension(128);

/// The longest wait for a Want, an Ack or content, even with keep-alives. Before a Want a receiver
/// may have to verify a large partial again; before the next one, wait for what other senders
/// leave; before an Ack, hash and sync a large asset. A sender reads the whole of a large asset
/// before its first or its last piece.
pub(super) const ANSWER_WAIT: Duration = Duration::from_secs(15 * 60);

/// Runs `work` and sends keep-alives to the peer meanwhile.
pub(super) async fn keeping_alive<W: AsyncWrite + Unpin, T>(
    writer: &mut FrameWriter<W>,
    work: impl Future<Output = T>,
) -> Result<T, TransferError> {
    let mut work = std::pin::pin!(work);
    loop {
        match timeout(KEEP_ALIVE, &mut work).await {
            Ok(done) => return Ok(done),
            Err(_) => keep_alive(writer).await?,
        }
    }
}

pub(super) async fn keep_alive<W: AsyncWrite + Unpin>(
    writer: &mut FrameWriter<W>,
) -> Result<(), TransferError> {
    writer.write(KEEP_ALIVE_KIND, &()).await?;
    Ok(writer.flush().await?)
}

/// Reads the next frame, which must be of `kind` and arrive within `wait`.
pub(super) async fn expect_frame<R: AsyncRead + Unpin>(
    reader: &mut FrameReader<R>,
    kind: Kind,
    what: &'static str,
    wait: Duration,
) -> Result<Frame, TransferError> {
    let frame = timeout(wait, reader.read())
        .await
        .map_err(|_| TransferError::Overdue { what, after: wait })??
        .ok_or(TransferError::Ended(what))?;
    if frame.kind != kind {
        return Err(out_of_place(&frame, what));
    }
    Ok(frame)
}

pub(super) fn out_of_place(frame: &Frame, expected: &str) -> TransferError {
    TransferError::Protocol(format!("a {:?} frame where {expected} was expected", frame.kind))
}
