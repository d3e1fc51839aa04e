//! The task of a connection that speaks the plain protocol, `can-sync/1`: Hello in both directions on
//! its only control stream, then the exchange of whole sets on the same stream. What came of the
//! exchange becomes an input of the engine. `agent/telling.rs` then tells the peer metadata.
//!
//! `core/session/plain.rs` says what the protocol can do, `transfer/plain.rs` has its streams.

use std::sync::Arc;

use tokio::io::AsyncRead;
use tokio::sync::mpsc;

use crate::core::close::CloseCode;
use crate::core::engine::Input;
use crate::core::message::Message;
use crate::core::peers::ConnId;
use crate::net::frame::{FrameReader, FrameWriter, TakeBytes};
use crate::transfer::report::plain_done;
use crate::transfer::{Context, Counters, plain};
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
                let hears = matches!(&message, Message::Hello(hello) if hello.metadata);
                facts.send(Fact::Input(Input::Message { conn, message })).await;
                Ok(hears)
            }
            Ok(None) => Err(fault(CloseCode::Protocol, "the stream ended before Hello")),
            Err(error) => Err(frame_fault(error)),
        }
    };
    let (said, heard) = tokio::join!(hello, greeting);
    let hears = heard?;
    if let Err(error) = said {
        return Err(frame_fault(error));
    }
    match plain::run_plain(ctx, reader, writer, counters).await {
        Ok(report) => {
            facts.send(Fact::Input(plain_done(conn, report))).await;
            if hears {
                facts.send(Fact::Hears(conn)).await;
            }
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
