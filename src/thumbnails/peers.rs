//! Thumbnails between devices, on a stream of their own for each: `ThumbnailRequest ->`, and back
//! `Thumbnail`.
//!
//! A device answers of what it holds itself. A peer gets one thumbnail at a time, in its turn, and
//! occupies a processor at most four fifths of the time. A peer that does not answer within
//! [`ANSWER_DEADLINE`], or not with a picture, rests for [`REST`], so that a page with many tiles does not
//! wait for it again and again.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep, timeout};

use super::Thumbnails;
use crate::core::close::CloseCode;
use crate::core::ids::{Hash, NodeId};
use crate::core::thumbnail::Answer;
use crate::net::Connection;
use crate::net::frame::{FrameReader, FrameWriter};
use crate::transfer::TransferError;
use crate::wire::frame::Kind;
use crate::wire::thumbnail::{decode_answer, decode_request, encode_answer, encode_request};

/// The most requests to peers at a time: less than the streams that a peer may have open, beside
/// those of its contents.
pub(super) const ASKING_MAX: usize = 4;

/// The most peers asked for one thumbnail.
const PEERS_ASKED_MAX: usize = 8;

/// How long a peer may take to answer. A browser waits for the tile meanwhile.
const ANSWER_DEADLINE: Duration = Duration::from_secs(8);

/// How long a request may take in all, whoever answers.
const ASK_DEADLINE: Duration = Duration::from_secs(10);

/// How long a peer rests.
const REST: Duration = Duration::from_secs(60);

/// The longest pause after a thumbnail for a peer.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// How long a peer may take to send its request, or to take the answer.
const STALL: Duration = Duration::from_secs(30);

/// The priority of the streams, see `Connection::open_stream`: people wait for them.
const PRIORITY: i32 = 15;

impl Thumbnails {
    /// Answers the request on a stream that `peer` opened.
    ///
    /// # Errors
    /// The stream broke, or the peer broke the protocol.
    pub async fn serve<R, W>(&self, peer: NodeId, recv: R, send: W) -> Result<(), TransferError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut reader = FrameReader::new(recv, Some(STALL));
        let mut writer = FrameWriter::new(send, STALL);
        let hash = decode_request(expect(&mut reader, Kind::ThumbnailRequest).await?)?;
        let turn = self.turns.take(peer).await;
        let began = Instant::now();
        let answer = match &turn {
            Some(_) => self.make_once(hash, &self.for_peers).await,
            None => Answer::Busy,
        };
        writer.write(Kind::Thumbnail, &encode_answer(&answer)).await?;
        writer.finish().await?;
        if turn.is_some() {
            sleep((began.elapsed() / 4).min(PAUSE_MAX)).await;
        }
        Ok(())
    }

    /// Asks peers for a thumbnail, one after the other.
    pub async fn ask(&self, hash: Hash, peers: Vec<Connection>) -> Answer {
        let asked = async {
            let Ok(_asking) = self.asking.acquire().await else { return Answer::Busy };
            if let Some(kept) = self.kept_of_peer(hash).await {
                return kept;
            }
            let mut last = Answer::NotHeld;
            let rested = peers.into_iter().filter(|peer| !self.rests(&peer.peer()));
            for peer in rested.take(PEERS_ASKED_MAX) {
                match self.ask_one(hash, &peer).await {
                    Answer::NotHeld => {}
                    made @ Answer::Made(_) => return made,
                    answer => last = answer,
                }
            }
            last
        };
        timeout(ASK_DEADLINE, asked).await.unwrap_or(Answer::Busy)
    }

    async fn ask_one(&self, hash: Hash, peer: &Connection) -> Answer {
        let answered = timeout(ANSWER_DEADLINE, exchange(peer, hash)).await;
        let overdue = |_| TransferError::Overdue { what: "a thumbnail", after: ANSWER_DEADLINE };
        let error = match answered.map_err(overdue).flatten() {
            Ok(Answer::Made(sent)) => match self.take_in(hash, &sent).await {
                Ok(made) => return made,
                Err(error) => format!("{error:#}"),
            },
            Ok(answer) => return answer,
            Err(error) => {
                if error.is_violation() {
                    peer.close(CloseCode::Protocol, &error.to_string());
                }
                error.to_string()
            }
        };
        tracing::info!(peer = %peer.peer().short(), error, "a device sent no thumbnail");
        self.resting.lock().insert(peer.peer(), Instant::now() + REST);
        Answer::Busy
    }

    fn rests(&self, peer: &NodeId) -> bool {
        let mut resting = self.resting.lock();
        resting.retain(|_, until| Instant::now() < *until);
        resting.contains_key(peer)
    }
}

async fn exchange(peer: &Connection, hash: Hash) -> Result<Answer, TransferError> {
    let opened = peer.open_stream(PRIORITY).await;
    let (send, recv) =
        opened.map_err(|error| TransferError::Local(format!("opening a stream: {error}")))?;
    let mut writer = FrameWriter::new(send, STALL);
    writer.write(Kind::ThumbnailRequest, &encode_request(&hash)).await?;
    writer.finish().await?;
    let mut reader = FrameReader::new(recv, Some(STALL));
    Ok(decode_answer(expect(&mut reader, Kind::Thumbnail).await?)?)
}

/// The payload of the next frame, which must be of this kind.
async fn expect<R: AsyncRead + Unpin>(
    reader: &mut FrameReader<R>,
    kind: Kind,
) -> Result<bytes::Bytes, TransferError> {
    let frame = reader.read().await?.ok_or(TransferError::Ended("a frame about a thumbnail"))?;
    match frame.kind == kind {
        true => Ok(frame.payload),
        false => Err(TransferError::Protocol(format!("{:?} instead of {kind:?}", frame.kind))),
    }
}
