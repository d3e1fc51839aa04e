//! Frames over any byte stream, each read and write under a deadline.
//!
//! I1  The memory of a payload grows with the bytes that arrived, not with the announced length: no
//!     more is allocated ahead than the longest frame that the stream has brought before.
//! I2  Small frames are collected and written together, because a receiver's reassembly buffer
//!     counts pieces.

use std::io::{self, Cursor};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use prost::Message;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Chain};
use tokio::time::timeout;

use crate::core::close::CloseCode;
use crate::wire::frame::{HEADER_BYTES, Header, HeaderError, Kind};

/// How much of a stream's first long payload is allocated before it arrives.
const READ_AHEAD_BYTES: usize = 64 * 1024;

/// Collected frames are written when they reach this size.
const GATHER_BYTES: usize = 64 * 1024;

/// Why a frame could not be read or written.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The peer broke the framing.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame")]
    Truncated,
    /// No byte moved for this long.
    #[error("no progress for {0:?}")]
    Stalled(Duration),
    /// This side's message is longer than the other side accepts.
    #[error("a {kind:?} message of {bytes} bytes is too long to be sent")]
    Oversized {
        /// The kind of message.
        kind: Kind,
        /// Its length.
        bytes: usize,
    },
    /// The stream or its connection is gone.
    #[error("stream lost: {0}")]
    Io(#[from] io::Error),
}

impl FrameError {
    /// The close code for a connection whose stream must not break.
    pub fn close_code(&self) -> CloseCode {
        match self {
            Self::Header(HeaderError::TooLong { .. }) => CloseCode::TooLarge,
            Self::Header(HeaderError::UnknownKind(_)) | Self::Truncated | Self::Io(_) => {
                CloseCode::Protocol
            }
            Self::Stalled(_) => CloseCode::Slow,
            Self::Oversized { .. } => CloseCode::Internal,
        }
    }
}

/// A stream whose first byte was read, and is read again.
pub type Peeked<R> = Chain<Cursor<[u8; 1]>, R>;

/// Reads the first byte of a stream, the kind of its first frame. Returns `None` if the stream ends
/// before it or `deadline` passes.
///
/// # Cancel safety
/// Not safe: the byte may be lost.
pub async fn peek<R: AsyncRead + Unpin>(
    mut stream: R,
    deadline: Duration,
) -> Option<(u8, Peeked<R>)> {
    let kind = timeout(deadline, stream.read_u8()).await.ok()?.ok()?;
    Some((kind, Cursor::new([kind]).chain(stream)))
}

/// A frame that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The kind; never [`Kind::Extension`].
    pub kind: Kind,
    /// The encoded protobuf message.
    pub payload: Bytes,
}

/// Reads frames from a byte stream.
#[derive(Debug)]
pub struct FrameReader<R> {
    stream: R,
    buffer: BytesMut,
    stall: Option<Duration>,
    /// The longest frame so far, see I1. Growing step by step would copy what is there.
    longest_bytes: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads frames from `stream`. Every read must make progress within `stall`; `None` waits for
    /// ever, for streams whose connection has a keep-alive.
    pub fn new(stream: R, stall: Option<Duration>) -> Self {
        Self { stream, buffer: BytesMut::new(), stall, longest_bytes: READ_AHEAD_BYTES }
    }

    /// The next frame; `None` when the stream ended between two frames.
    ///
    /// # Cancel safety
    /// Safe: what has arrived stays buffered.
    ///
    /// # Errors
    /// [`FrameError`]; the stream cannot be used afterwards.
    pub async fn read(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            let Some(header) = self.fill_header().await? else { return Ok(None) };
            let end = HEADER_BYTES + header.length;
            while self.buffer.len() < end {
                let missing = end - self.buffer.len();
                self.buffer.reserve(missing.min(self.longest_bytes));
                if self.fill().await? == 0 {
                    return Err(FrameError::Truncated);
                }
            }
            self.longest_bytes = self.longest_bytes.max(end);
            let mut frame = self.buffer.split_to(end);
            let payload = frame.split_off(HEADER_BYTES).freeze();
            if let Kind::Extension(_) = header.kind {
                continue;
            }
            return Ok(Some(Frame { kind: header.kind, payload }));
        }
    }

    /// The part that has arrived of a frame that was cut off: its kind and the beginning of its
    /// payload. For use when [`Self::read`] has failed or is not called again.
    pub fn cut_off(&mut self) -> Option<Frame> {
        let header = Header::decode(*self.buffer.first_chunk()?).ok()?;
        let mut payload = self.buffer.split().split_off(HEADER_BYTES).freeze();
        payload.truncate(header.length);
        Some(Frame { kind: header.kind, payload })
    }

    async fn fill_header(&mut self) -> Result<Option<Header>, FrameError> {
        loop {
            if let Some(header) = self.buffer.first_chunk::<HEADER_BYTES>() {
                return Ok(Some(Header::decode(*header)?));
            }
            self.buffer.reserve(READ_AHEAD_BYTES);
            if self.fill().await? == 0 {
                if self.buffer.is_empty() {
                    return Ok(None);
                }
                return Err(FrameError::Truncated);
            }
        }
    }

    async fn fill(&mut self) -> Result<usize, FrameError> {
        let read = self.stream.read_buf(&mut self.buffer);
        match self.stall {
            Some(stall) => {
                Ok(timeout(stall, read).await.map_err(|_| FrameError::Stalled(stall))??)
            }
            None => Ok(read.await?),
        }
    }
}

/// A byte stream that can take over a buffer: a QUIC stream keeps it until it is acknowledged, but
/// must copy a slice.
pub trait TakeBytes: AsyncWrite + Unpin {
    /// Takes at least one byte from the front of `bytes`.
    ///
    /// # Cancel safety
    /// Safe: what was taken is no longer in `bytes`.
    ///
    /// # Errors
    /// The stream or its connection is gone.
    fn take(&mut self, bytes: &mut Bytes) -> impl Future<Output = io::Result<()>> + Send;
}

/// Writes frames to a byte stream.
#[derive(Debug)]
pub struct FrameWriter<W> {
    stream: W,
    buffer: BytesMut,
    stall: Duration,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Writes frames to `stream`; every write must make progress within `stall`.
    pub fn new(stream: W, stall: Duration) -> Self {
        Self { stream, buffer: BytesMut::new(), stall }
    }

    /// Adds a frame, which may stay collected until [`Self::flush`].
    ///
    /// # Errors
    /// [`FrameError`]; the stream cannot be used afterwards.
    pub async fn write(&mut self, kind: Kind, message: &impl Message) -> Result<(), FrameError> {
        self.begin(kind, message.encoded_len())?;
        message.encode(&mut self.buffer).expect("BytesMut grows");
        self.flush_if_full().await
    }

    /// Adds a frame with an encoded message.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn write_payload(&mut self, kind: Kind, payload: &[u8]) -> Result<(), FrameError> {
        self.begin(kind, payload.len())?;
        self.buffer.extend_from_slice(payload);
        self.flush_if_full().await
    }

    fn begin(&mut self, kind: Kind, bytes: usize) -> Result<(), FrameError> {
        let header = u32::try_from(bytes).ok().map(|length| Header::encode(kind, length));
        let header = header.filter(|header| Header::decode(*header).is_ok());
        self.buffer.extend_from_slice(&header.ok_or(FrameError::Oversized { kind, bytes })?);
        Ok(())
    }

    async fn flush_if_full(&mut self) -> Result<(), FrameError> {
        if self.buffer.len() >= GATHER_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    /// Writes all collected frames to the stream.
    ///
    /// # Errors
    /// [`FrameError`]; the stream cannot be used afterwards.
    pub async fn flush(&mut self) -> Result<(), FrameError> {
        let mut written = 0;
        while written < self.buffer.len() {
            let write = self.stream.write(&self.buffer[written..]);
            let n =
                timeout(self.stall, write).await.map_err(|_| FrameError::Stalled(self.stall))??;
            if n == 0 {
                return Err(io::Error::from(io::ErrorKind::WriteZero).into());
            }
            written += n;
        }
        self.buffer.clear();
        Ok(())
    }

    /// Flushes and ends the stream.
    ///
    /// # Errors
    /// [`FrameError`].
    pub async fn finish(mut self) -> Result<(), FrameError> {
        self.flush().await?;
        Ok(self.stream.shutdown().await?)
    }
}

impl<W: TakeBytes> FrameWriter<W> {
    /// Writes all collected frames and then a frame with the payload `head` and `bulk`, of which
    /// `bulk` is not copied.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn write_bulk(
        &mut self,
        kind: Kind,
        head: &[u8],
        mut bulk: Bytes,
    ) -> Result<(), FrameError> {
        self.begin(kind, head.len() + bulk.len())?;
        self.buffer.extend_from_slice(head);
        self.flush().await?;
        while !bulk.is_empty() {
            let take = self.stream.take(&mut bulk);
            timeout(self.stall, take).await.map_err(|_| FrameError::Stalled(self.stall))??;
        }
        Ok(())
    }
}

/// A pipe in memory must copy.
#[cfg(test)]
impl TakeBytes for tokio::io::DuplexStream {
    async fn take(&mut self, bytes: &mut Bytes) -> io::Result<()> {
        self.write_buf(bytes).await.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::wire::proto::peer;

    const STALL: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn frames_arrive_in_order_and_extensions_are_skipped() {
        let (a, b) = tokio::io::duplex(64);
        let mut writer = FrameWriter::new(a, STALL);
        let mut reader = FrameReader::new(b, Some(STALL));
        let entry = peer::WantEntry { index: 7, offset_bytes: 9, length_bytes: 8 };
        let want = peer::Want { entries: vec![entry; 40], more: true };
        let sent = want.clone();
        let write = async move {
            writer.write(Kind::Extension(200), &sent).await.unwrap();
            writer.write(Kind::Want, &sent).await.unwrap();
            writer.write(Kind::Done, &peer::Done {}).await.unwrap();
            writer.finish().await.unwrap();
        };
        let read = async move {
            let frame = reader.read().await.unwrap().unwrap();
            assert_eq!(frame.kind, Kind::Want);
            assert_eq!(peer::Want::decode(frame.payload).unwrap(), want);
            assert_eq!(reader.read().await.unwrap().unwrap().kind, Kind::Done);
            assert_eq!(reader.read().await.unwrap(), None);
        };
        tokio::join!(write, read);
    }

    #[tokio::test]
    async fn a_bulk_follows_what_was_gathered_and_ends_its_frame() {
        let (a, b) = tokio::io::duplex(64);
        let mut writer = FrameWriter::new(a, STALL);
        let mut reader = FrameReader::new(b, Some(STALL));
        let bulk = Bytes::from(vec![7; 1000]);
        let sent = bulk.clone();
        let write = async move {
            writer.write(Kind::Done, &peer::Done {}).await.unwrap();
            writer.write_bulk(Kind::Piece, b"head", sent).await.unwrap();
            writer.write(Kind::Done, &peer::Done {}).await.unwrap();
            writer.finish().await.unwrap();
        };
        let read = async move {
            assert_eq!(reader.read().await.unwrap().unwrap().kind, Kind::Done);
            let frame = reader.read().await.unwrap().unwrap();
            assert_eq!(frame.kind, Kind::Piece);
            assert_eq!(frame.payload, [b"head", &bulk[..]].concat());
            assert_eq!(reader.read().await.unwrap().unwrap().kind, Kind::Done);
        };
        tokio::join!(write, read);
    }

    #[tokio::test]
    async fn a_stream_cut_inside_a_frame_is_an_error_at_every_byte() {
        let mut bytes = Header::encode(Kind::Want, 3).to_vec();
        bytes.extend_from_slice(&[0x0a, 0x01, 0x00]);
        for cut in 1..bytes.len() {
            let mut reader = FrameReader::new(&bytes[..cut], Some(STALL));
            assert!(matches!(reader.read().await, Err(FrameError::Truncated)), "cut at {cut}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_sender_is_given_up_at_the_deadline() {
        for sent in 0..HEADER_BYTES + 1 {
            let (mut a, b) = tokio::io::duplex(64);
            let mut bytes = Header::encode(Kind::Contents, 1000).to_vec();
            bytes.push(0);
            a.write_all(&bytes[..sent]).await.unwrap();
            let mut reader = FrameReader::new(b, Some(STALL));
            assert!(matches!(reader.read().await, Err(FrameError::Stalled(_))), "after {sent}");
        }
    }

    #[tokio::test]
    async fn an_announced_length_is_not_allocated_before_its_bytes_arrive() {
        let (mut a, b) = tokio::io::duplex(64);
        a.write_all(&Header::encode(Kind::Contents, 1024 * 1024)).await.unwrap();
        a.write_all(&[0; 10]).await.unwrap();
        let mut reader = FrameReader::new(b, Some(Duration::from_millis(20)));
        assert!(matches!(reader.read().await, Err(FrameError::Stalled(_))));
        assert!(reader.buffer.capacity() <= 3 * READ_AHEAD_BYTES, "{}", reader.buffer.capacity());
    }
}
