//! The task of one connection: the control stream in both directions, and the streams that the peer
//! opens.
//!
//! I1  A peer that does not read or write stalls only this task: the loop queues messages without
//!     waiting, and closes a connection whose queue is full.
//! I2  Malformed bytes close the connection with a code and a description.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::core::close::CloseCode;
use crate::core::engine::Input;
use crate::core::peers::ConnId;
use crate::net::frame::{FrameReader, FrameWriter};
use crate::net::{Connection, Protocol, RecvStream, SendStream};
use crate::wire::control::decode_message;

use crate::transfer::throttle::LinkThrottle;
use crate::transfer::{Context, Counters};

use super::fact::{Fact, Facts};
use super::fault::{Fault, fault, frame_fault, wire_fault, write_message};
use super::live::Command;
use super::plain;

/// The most messages that wait to be written to one peer. The engine sends little at a time: the
/// queue has room for several rounds of 128 pages of hashes or of the coded cells of a whole
/// sketch.
pub(super) const CONTROL_QUEUE: usize = 256;

/// Control messages go before everything else on a connection.
pub(super) const CONTROL_PRIORITY: i32 = 100;

/// The priority of the answers on a batch's stream that the peer opened: which assets are wanted,
/// and which were stored. They are small and the peer waits for them.
const ANSWER_PRIORITY: i32 = 90;

/// The only stream of the plain protocol carries the assets too, so it goes behind new assets.
const PLAIN_PRIORITY: i32 = 0;

/// A peer that accepted a connection opens its control stream within this time.
const CONTROL_WAIT: Duration = Duration::from_secs(10);

/// A peer that accepts no byte of a message for this long is given up.
const WRITE_STALL: Duration = Duration::from_secs(60);

/// Runs the connection until it ends, and reports how it ended.
pub(super) async fn run(
    conn: ConnId,
    connection: Connection,
    mut commands: mpsc::Receiver<Command>,
    facts: Facts,
    ctx: Context,
    counters: std::sync::Arc<Counters>,
    throttle: LinkThrottle,
) {
    let work = async {
        let priority = match connection.protocol() {
            Protocol::Plain => PLAIN_PRIORITY,
            Protocol::Two | Protocol::Pairing | Protocol::Introduction => CONTROL_PRIORITY,
        };
        let streams = if connection.dialed() {
            connection.open_stream(priority).await
        } else {
            match timeout(CONTROL_WAIT, connection.accept_stream(priority)).await {
                Ok(streams) => streams,
                Err(_) => return Err(fault(CloseCode::Slow, "no control stream")),
            }
        };
        let Ok((send, recv)) = streams else { return Ok(()) };
        if connection.protocol() == Protocol::Plain {
            let reader = FrameReader::new(throttle.down(recv), None);
            let writer = FrameWriter::new(throttle.up(send, None), WRITE_STALL);
            plain::run(conn, reader, writer, &mut commands, &facts, &ctx, &counters).await?;
            return accept_streams(conn, &connection, &facts).await;
        }
        let mut reader = FrameReader::new(recv, None);
        let mut writer = FrameWriter::new(send, WRITE_STALL);
        tokio::select! {
            fault = read(conn, &mut reader, &facts) => fault,
            fault = write(&mut writer, &mut commands) => fault,
            fault = accept_streams(conn, &connection, &facts) => fault,
        }
    };
    let fault = tokio::select! {
        biased;
        _ = connection.closed() => None,
        ended = work => ended.err(),
    };
    // A stream that ended together with the connection is no fault of its own.
    let fault = fault.filter(|_| connection.ended().is_none());
    if let Some(fault) = &fault {
        tracing::warn!(peer = %connection.peer().short(), code = %fault.code, detail = fault.detail, "closing");
        connection.close(fault.code, &fault.detail);
    }
    let mut ended = connection.closed().await;
    if !ended.by_peer {
        ended.code = ended.code.or(fault.map(|fault| fault.code));
    }
    facts.send(Fact::Ended { conn, ended }).await;
}

async fn read(
    conn: ConnId,
    reader: &mut FrameReader<RecvStream>,
    facts: &Facts,
) -> Result<(), Fault> {
    loop {
        let frame = match reader.read().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return Err(fault(CloseCode::Protocol, "the control stream ended")),
            Err(error) => return Err(frame_fault(error)),
        };
        tracing::trace!(kind = ?frame.kind, bytes = frame.payload.len(), "control frame");
        let message = decode_message(frame.kind, frame.payload).map_err(wire_fault)?;
        facts.send(Fact::Input(Input::Message { conn, message })).await;
    }
}

async fn write(
    writer: &mut FrameWriter<SendStream>,
    commands: &mut mpsc::Receiver<Command>,
) -> Result<(), Fault> {
    while let Some(command) = commands.recv().await {
        let mut next = Some(command);
        while let Some(command) = next {
            if let Command::Send(message) = command
                && let Err(error) = write_message(writer, &message).await
            {
                return Err(frame_fault(error));
            }
            next = commands.try_recv().ok();
        }
        if let Err(error) = writer.flush().await {
            return Err(frame_fault(error));
        }
    }
    std::future::pending().await
}

/// Passes the streams that the peer opens to the loop. QUIC limits how many are open.
async fn accept_streams(conn: ConnId, connection: &Connection, facts: &Facts) -> Result<(), Fault> {
    while let Ok((send, recv)) = connection.accept_stream(ANSWER_PRIORITY).await {
        facts.send(Fact::Stream { conn, send, recv }).await;
    }
    Ok(())
}
