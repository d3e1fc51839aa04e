//! Introductions: a device that was added by one member shows that to another, which refused it
//! because it has not heard.
//!
//! One stream, opened by the newcomer: `Introduction ->`; the member closes, with OK when the newcomer
//! may dial again.
//!
//! I1  A refusal tells a stranger nothing: one code, whatever is wrong.
//! I2  Each step has a deadline, and the message a bound.

use std::time::Duration;

use prost::Message;
use tokio::time::timeout;

use crate::core::close::CloseCode;
use crate::core::ids::NodeId;
use crate::core::joining::Introduction;
use crate::wire::frame::Kind;
use crate::wire::pairing::{introduction_from_wire, introduction_to_wire};
use crate::wire::proto::peer;

use super::connection::{Connection, Protocol};
use super::endpoint::Net;
use super::frame::{FrameReader, FrameWriter};

/// How long the member waits for the introduction.
const NEWCOMER_DEADLINE: Duration = Duration::from_secs(5);

/// How long the newcomer waits for the answer: the member writes to its disk first.
const MEMBER_DEADLINE: Duration = Duration::from_secs(15);

/// Shows a member who added this device. Whether it may dial that member again.
///
/// # Cancel safety
/// Safe: the attempt is given up, or was taken in.
pub async fn introduce(
    net: &Net,
    member: NodeId,
    addresses: &[String],
    introduction: &Introduction,
) -> bool {
    let dialed = net.dial_for(&[Protocol::Introduction], member, addresses).await;
    let Ok(connection) = dialed else { return false };
    let shown = async {
        let (send, _recv) = connection.open_stream(0).await.ok()?;
        let mut writer = FrameWriter::new(send, NEWCOMER_DEADLINE);
        let wire = introduction_to_wire(introduction);
        writer.write(Kind::Introduction, &wire).await.ok()?;
        writer.finish().await.ok()
    };
    // Who let this device in meanwhile closes before it has read anything.
    let _ = timeout(NEWCOMER_DEADLINE, shown).await;
    match timeout(MEMBER_DEADLINE, connection.closed()).await {
        Ok(ended) => ended.by_peer && ended.code == Some(CloseCode::Ok),
        Err(_) => {
            connection.close(CloseCode::Slow, "");
            false
        }
    }
}

/// Answers a newcomer. `take_in` checks the introduction, takes it in durably and says whether the
/// newcomer is a member now.
pub async fn host<TakeIn, TakingIn>(connection: Connection, take_in: TakeIn)
where
    TakeIn: FnOnce(Introduction) -> TakingIn,
    TakingIn: Future<Output = bool>,
{
    let introduction = async {
        let (_send, recv) = connection.accept_stream(0).await.ok()?;
        let frame = FrameReader::new(recv, None).read().await.ok()??;
        if frame.kind != Kind::Introduction {
            return None;
        }
        introduction_from_wire(&peer::Introduction::decode(frame.payload).ok()?).ok()
    };
    let taken_in = match timeout(NEWCOMER_DEADLINE, introduction).await {
        Ok(Some(introduction)) => take_in(introduction).await,
        Ok(None) | Err(_) => false,
    };
    connection.close(if taken_in { CloseCode::Ok } else { CloseCode::NotMember }, "");
}
