//! Introductions: a device that one member added presents the ops that added it to another member,
//! which refused it because it does not know them yet. Removals: a device that learned of its
//! removal by a close code requests the signed removal in the same way.
//!
//! The newcomer opens one stream: `Introduction ->`. The member closes, with OK when the newcomer
//! may dial again. To a device that was removed it sends `<- Removal`, and then the device closes.
//!
//! I1  A refusal tells a stranger nothing: the code is the same whatever is wrong.
//! I2  Each step has a deadline, and the message a bound.

use std::time::Duration;

use prost::Message;
use tokio::time::timeout;

use crate::core::close::CloseCode;
use crate::core::ids::NodeId;
use crate::core::joining::{Introduced, Introduction};
use crate::wire::frame::Kind;
use crate::wire::pairing::{
    introduction_from_wire, introduction_to_wire, removal_from_wire, removal_to_wire,
};
use crate::wire::proto::peer;

use super::connection::{Connection, Protocol};
use super::endpoint::Net;
use super::frame::{FrameReader, FrameWriter};

/// How long the member waits for the introduction.
const NEWCOMER_DEADLINE: Duration = Duration::from_secs(5);

/// How long the newcomer waits for the answer: the member first writes to its disk.
const MEMBER_DEADLINE: Duration = Duration::from_secs(15);

/// Introduces this device to a member and returns the answer.
///
/// # Cancel safety
/// Safe: the attempt is given up, or was received.
pub async fn introduce(
    net: &Net,
    member: NodeId,
    addresses: &[String],
    introduction: &Introduction,
) -> Introduced {
    let dialed = net.dial_for(&[Protocol::Introduction], member, addresses).await;
    let Ok(connection) = dialed else { return Introduced::Refused };
    let removal = async {
        let (send, recv) = connection.open_stream(0).await.ok()?;
        let mut writer = FrameWriter::new(send, NEWCOMER_DEADLINE);
        let wire = introduction_to_wire(introduction);
        writer.write(Kind::Introduction, &wire).await.ok()?;
        writer.finish().await.ok()?;
        let frame = FrameReader::new(recv, None).read().await.ok()??;
        if frame.kind != Kind::Removal {
            return None;
        }
        removal_from_wire(&peer::Removal::decode(frame.payload).ok()?).ok()
    };
    // A member that admitted this device meanwhile closes before it reads anything.
    if let Ok(Some(ops)) = timeout(MEMBER_DEADLINE, removal).await {
        connection.close(CloseCode::Ok, "");
        return Introduced::Removed(ops);
    }
    match timeout(NEWCOMER_DEADLINE, connection.closed()).await {
        Ok(ended) if ended.by_peer && ended.code == Some(CloseCode::Ok) => Introduced::LetIn,
        Ok(_) => Introduced::Refused,
        Err(_) => {
            connection.close(CloseCode::Slow, "");
            Introduced::Refused
        }
    }
}

/// Answers a device that introduces itself. `judge` checks the introduction, applies it durably if
/// it is valid, and returns the device's standing.
pub async fn host<Judge, Judging>(connection: Connection, judge: Judge)
where
    Judge: FnOnce(Introduction) -> Judging,
    Judging: Future<Output = Introduced>,
{
    let introduction = async {
        let (send, recv) = connection.accept_stream(0).await.ok()?;
        let frame = FrameReader::new(recv, None).read().await.ok()??;
        if frame.kind != Kind::Introduction {
            return None;
        }
        let introduction = peer::Introduction::decode(frame.payload).ok()?;
        Some((send, introduction_from_wire(&introduction).ok()?))
    };
    let Ok(Some((send, introduction))) = timeout(NEWCOMER_DEADLINE, introduction).await else {
        connection.close(CloseCode::NotMember, "");
        return;
    };
    match judge(introduction).await {
        Introduced::LetIn => connection.close(CloseCode::Ok, ""),
        Introduced::Refused => connection.close(CloseCode::NotMember, ""),
        Introduced::Removed(ops) => {
            let told = async {
                let mut writer = FrameWriter::new(send, NEWCOMER_DEADLINE);
                writer.write(Kind::Removal, &removal_to_wire(&ops)).await.ok()?;
                writer.finish().await.ok()?;
                // The device closes, because it knows when it has everything.
                Some(connection.closed().await)
            };
            // A device that does not read is closed as well.
            let _ = timeout(NEWCOMER_DEADLINE, told).await;
            connection.close(CloseCode::Removed, "");
        }
    }
}
