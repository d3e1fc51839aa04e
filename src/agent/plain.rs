//! The task of a connection that speaks the plain protocol, `can-sync/1`: Hello in both directions on
//! its only control stream, then the exchange of whole sets on the same stream. What came of the
//! exchange becomes an input of the engine.
//!
//! `core/session/plain.rs` says what the protocol can do, `transfer/plain.rs` has its streams.

use std::sync::Arc;

use tokio::io::AsyncRead;
use tokio::sync::mpsc;

use crate::core::close::CloseCode;
use crate::core::engine::{Input, Sent};
use crate::core::peers::ConnId;
use crate::net::frame::{FrameReader, FrameWriter, TakeBytes};
use crate::transfer::plain::PlainReport;
use crate::transfer::report::sent_as;
use crate::transfer::{Context, Counters, Outcome, plain};
use crate::wire::control::decode_message;

use super::fact::{Fact, Facts};
use super::fault::{Fault, fault, frame_fault, wire_fault, write_message};
use super::live::Command;

/// Runs the only stream of the plain protocol: Hello in both directions, then whole sets and the
/// missing assets.
pub(super) async fn run(
    conn: ConnId,
    mut reader: FrameReader<impl AsyncRead + Unpin + Send>,
    mut writer: FrameWriter<impl TakeBytes + Send>,
    commands: &mut mpsc::Receiver<Command>,
    facts: &Facts,
    ctx: &Context,
    counters: &Arc<Counters>,
) -> Result<(), Fault> {
    let hello = async {
        while let Some(Command::Send(message)) = commands.recv().await {
            write_message(&mut writer, &message).await?;
            writer.flush().await?;
        }
        Ok(())
    };
    let greeting = async {
        match reader.read().await {
            Ok(Some(frame)) => {
                let message = decode_message(frame.kind, frame.payload).map_err(wire_fault)?;
                facts.send(Fact::Input(Input::Message { conn, message })).await;
                Ok(())
            }
            Ok(None) => Err(fault(CloseCode::Protocol, "the stream ended before Hello")),
            Err(error) => Err(frame_fault(error)),
        }
    };
    let (said, heard) = tokio::join!(hello, greeting);
    heard?;
    if let Err(error) = said {
        return Err(frame_fault(error));
    }
    match plain::run_plain(ctx, reader, writer, counters).await {
        Ok(report) => {
            facts.send(Fact::PlainDone { conn, report }).await;
            Ok(())
        }
        Err(error) if error.is_violation() => Err(fault(CloseCode::Protocol, &error.to_string())),
        Err(error) => {
            // The error may name folders of this device, so the peer does not get it.
            tracing::warn!(%error, "the exchange with a peer broke off");
            Err(fault(CloseCode::Internal, "the exchange broke off"))
        }
    }
}

/// Converts the result of a plain exchange to an input of the engine.
pub(super) fn done(conn: ConnId, report: PlainReport) -> Input {
    let PlainReport { sent, received, is_complete } = report;
    let received = received.into_iter().map(|received| (received.digest, received.outcome));
    let (mut held_there, mut stored_here, mut failed) = (Vec::new(), Vec::new(), false);
    for (digest, outcome) in sent {
        match sent_as(&outcome) {
            Sent::Held => held_there.push(digest.hash),
            Sent::Elsewhere | Sent::Refused | Sent::Unavailable => failed = true,
        }
    }
    for (digest, outcome) in received {
        match outcome {
            Outcome::Stored => stored_here.push(digest.hash),
            Outcome::AlreadyHeld => held_there.push(digest.hash),
            Outcome::Elsewhere
            | Outcome::Later(_)
            | Outcome::StoreDown(_)
            | Outcome::Refused(_)
            | Outcome::Unavailable
            | Outcome::Interrupted
            | Outcome::Damaged => failed = true,
        }
    }
    Input::PlainDone { conn, held_there, stored_here, failed, more: !is_complete }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::{Digest, Hash};
    use crate::transfer::Received;

    #[test]
    fn what_did_not_arrive_in_a_plain_exchange_counts_as_held_by_nobody() {
        let of = |n: u8, outcome| {
            (Digest { hash: Hash([n; 32]), size_bytes: 1 }, outcome) as (Digest, Outcome)
        };
        let later = || Outcome::Later("full".into());
        let sent = vec![of(1, Outcome::Stored), of(2, later())];
        let received = [of(3, Outcome::Stored), of(4, later()), of(5, Outcome::Unavailable)];
        let received = received.map(|(digest, outcome)| Received { digest, outcome }).to_vec();
        let report = PlainReport { sent, received, is_complete: true };
        let Input::PlainDone { held_there, stored_here, failed, more, .. } =
            done(ConnId(1), report)
        else {
            panic!("another input");
        };
        assert_eq!((held_there, stored_here), (vec![Hash([1; 32])], vec![Hash([3; 32])]));
        assert!(failed && !more);
    }
}
