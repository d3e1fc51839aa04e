//! The frames of the journal's stream. [`body`] has the bodies of ops.

use bytes::Bytes;
use prost::Message as _;

use crate::core::foreign_text::visible;
use crate::core::ids::{GroupId, LogId, NodeId};
use crate::core::journal::message::{
    Clock, ClockEntry, Head, Hello, JournalMessage, Ops, Refuse, RefuseCode, StateDigest,
};
use crate::core::journal::op::{LogInfo, SignedOp};
use crate::core::journal::set_hash::SetDigest;
use crate::core::limits::{
    INTRO_OPS_MAX, LOGS_MAX, OP_BODY_BYTES_MAX, OPS_PER_FRAME_MAX, REASON_CHARS_MAX,
};
use crate::wire::frame::Kind;
use crate::wire::proto::journal as proto;
use crate::wire::{Repeated, WireError, parse_counted};

mod body;

pub use body::{decode_body, encode_body};

const HELLO: [Repeated; 3] = [
    Repeated { path: &[4], max: 1 },
    Repeated { path: &[4, 1], max: INTRO_OPS_MAX },
    Repeated { path: &[4, 2], max: INTRO_OPS_MAX },
];

const INTRO: [Repeated; 2] =
    [Repeated { path: &[1], max: INTRO_OPS_MAX }, Repeated { path: &[2], max: INTRO_OPS_MAX }];

const CLOCK: [Repeated; 1] = [Repeated { path: &[1], max: LOGS_MAX }];

const OPS: [Repeated; 2] = [
    Repeated { path: &[1], max: OPS_PER_FRAME_MAX },
    Repeated { path: &[2], max: OPS_PER_FRAME_MAX },
];

/// The kinds of changes of a sender that does not state which it understands.
const FIRST_KINDS: u32 = 1;

/// Encodes a message as its frame: kind and payload.
pub fn encode_message(message: &JournalMessage) -> (Kind, Bytes) {
    let (kind, payload) = match message {
        JournalMessage::Hello(hello) => (Kind::JournalHello, hello_to_wire(hello).encode_to_vec()),
        JournalMessage::Clock(clock) => (Kind::JournalClock, clock_to_wire(clock).encode_to_vec()),
        JournalMessage::Ops(Ops { ops, has_more }) => {
            let (logs, ops) = ops_to_wire(ops);
            let ops = proto::Ops { logs, ops, has_more: *has_more };
            (Kind::JournalOps, ops.encode_to_vec())
        }
        JournalMessage::Refuse(refuse) => {
            (Kind::JournalRefuse, refuse_to_wire(refuse).encode_to_vec())
        }
    };
    (kind, payload.into())
}

/// Reads a frame of the journal's stream.
///
/// # Errors
/// [`WireError`] for anything out of bounds, and for frames of other streams.
pub fn decode_message(kind: Kind, payload: Bytes) -> Result<JournalMessage, WireError> {
    match kind {
        Kind::JournalHello => Ok(JournalMessage::Hello(hello_from_wire(parse_counted(
            "journal Hello",
            payload,
            &HELLO,
        )?)?)),
        Kind::JournalClock => Ok(JournalMessage::Clock(clock_from_wire(parse_counted(
            "journal Clock",
            payload,
            &CLOCK,
        )?)?)),
        Kind::JournalOps => {
            let ops: proto::Ops = parse_counted("journal Ops", payload, &OPS)?;
            let has_more = ops.has_more;
            let ops = ops_from_wire("Ops.ops", &ops.logs, ops.ops, OPS_PER_FRAME_MAX)?;
            Ok(JournalMessage::Ops(Ops { ops, has_more }))
        }
        Kind::JournalRefuse => Ok(JournalMessage::Refuse(refuse_from_wire(parse_counted(
            "journal Refuse",
            payload,
            &[],
        )?)?)),
        other => {
            let detail = format!("a {other:?} frame does not belong on the journal's stream");
            Err(malformed("frame", &detail))
        }
    }
}

fn hello_to_wire(hello: &Hello) -> proto::Hello {
    proto::Hello {
        version: hello.version,
        group_id: Bytes::copy_from_slice(&hello.group.0),
        now_ms: hello.now_ms,
        intro: Some(intro_to_wire(&hello.intro)),
        features: hello.features,
    }
}

fn hello_from_wire(hello: proto::Hello) -> Result<Hello, WireError> {
    let intro = hello.intro.unwrap_or_default();
    Ok(Hello {
        version: hello.version,
        group: GroupId::from_slice(&hello.group_id)
            .ok_or_else(|| malformed("Hello.group_id", "not 32 bytes"))?,
        now_ms: hello.now_ms,
        intro: intro_from_wire(intro)?,
        features: hello.features,
    })
}

/// Encodes an introduction, for pairing, which carries one beside the group's id.
pub fn intro_to_wire(ops: &[SignedOp]) -> proto::Intro {
    let (logs, ops) = ops_to_wire(ops);
    proto::Intro { logs, ops }
}

/// Decodes an introduction.
///
/// # Errors
/// [`WireError`].
pub fn decode_intro(bytes: &[u8]) -> Result<Vec<SignedOp>, WireError> {
    intro_from_wire(parse_counted("Intro", Bytes::copy_from_slice(bytes), &INTRO)?)
}

fn intro_from_wire(intro: proto::Intro) -> Result<Vec<SignedOp>, WireError> {
    ops_from_wire("Intro.ops", &intro.logs, intro.ops, INTRO_OPS_MAX)
}

fn ops_to_wire(ops: &[SignedOp]) -> (Vec<proto::LogInfo>, Vec<proto::WireOp>) {
    let mut places = std::collections::BTreeMap::new();
    let mut logs = Vec::new();
    let wire = ops.iter().map(|op| {
        let log = *places.entry(op.log).or_insert_with(|| {
            logs.push(proto::LogInfo {
                author: Bytes::copy_from_slice(&op.log.author.0),
                nonce: Bytes::copy_from_slice(&op.log.nonce),
            });
            logs.len() - 1
        });
        let log = u32::try_from(log).expect("fewer logs than ops, and a frame of those");
        proto::WireOp { log, body: op.body.clone(), sig: Bytes::copy_from_slice(&op.sig) }
    });
    let wire = wire.collect();
    (logs, wire)
}

fn ops_from_wire(
    what: &'static str,
    logs: &[proto::LogInfo],
    ops: Vec<proto::WireOp>,
    limit: usize,
) -> Result<Vec<SignedOp>, WireError> {
    at_most(what, ops.len(), limit)?;
    at_most("the number of logs", logs.len(), ops.len())?;
    let logs = logs.iter().map(log_info).collect::<Result<Vec<_>, _>>()?;
    ops.into_iter()
        .map(|op| {
            at_most("WireOp.body in bytes", op.body.len(), OP_BODY_BYTES_MAX)?;
            let log = *logs
                .get(op.log as usize)
                .ok_or_else(|| malformed("WireOp.log", "no log of this message"))?;
            let sig = <[u8; 64]>::try_from(&op.sig[..])
                .map_err(|_| malformed("WireOp.sig", "not 64 bytes"))?;
            Ok(SignedOp { log, body: op.body, sig })
        })
        .collect()
}

fn log_info(info: &proto::LogInfo) -> Result<LogInfo, WireError> {
    Ok(LogInfo {
        author: NodeId::from_slice(&info.author)
            .ok_or_else(|| malformed("LogInfo.author", "not 32 bytes"))?,
        nonce: <[u8; 16]>::try_from(&info.nonce[..])
            .map_err(|_| malformed("LogInfo.nonce", "not 16 bytes"))?,
    })
}

fn clock_to_wire(clock: &Clock) -> proto::Clock {
    let entry = |entry: &ClockEntry| proto::ClockEntry {
        log_id: Bytes::copy_from_slice(&entry.log.0),
        seq: entry.seq,
        head: head_to_wire(entry.head),
        above: set_to_wire(entry.above),
        forked: entry.forked,
        withheld: entry.withheld,
    };
    proto::Clock {
        entries: clock.entries.iter().map(entry).collect(),
        drained: clock.drained,
        restart: clock.restart,
        digest: clock.digest.map_or_else(Bytes::new, |d| Bytes::copy_from_slice(&d.sum.0)),
        kinds: clock.digest.map_or(0, |digest| digest.kinds),
    }
}

fn clock_from_wire(clock: proto::Clock) -> Result<Clock, WireError> {
    at_most("Clock.entries", clock.entries.len(), LOGS_MAX)?;
    let mut seen = std::collections::BTreeSet::new();
    let mut entries = Vec::with_capacity(clock.entries.len());
    for entry in clock.entries {
        let log = LogId::from_slice(&entry.log_id)
            .ok_or_else(|| malformed("ClockEntry.log_id", "not 16 bytes"))?;
        if !seen.insert(log) {
            return Err(malformed("Clock.entries", "a log stands there twice"));
        }
        body::op_seq("ClockEntry.seq", entry.seq)?;
        let head = head_from_wire("ClockEntry.head", &entry.head)?;
        let above = set_from_wire("ClockEntry.above", &entry.above)?;
        let (seq, forked, withheld) = (entry.seq, entry.forked, entry.withheld);
        entries.push(ClockEntry { log, seq, head, above, forked, withheld });
    }
    let digest = match clock.digest.len() {
        0 => None,
        _ => Some(StateDigest {
            kinds: clock.kinds.max(FIRST_KINDS),
            sum: set_from_wire("Clock.digest", &clock.digest)?,
        }),
    };
    Ok(Clock { entries, drained: clock.drained, restart: clock.restart, digest })
}

fn head_to_wire(head: Head) -> Bytes {
    if head.is_zero() { Bytes::new() } else { Bytes::copy_from_slice(&head.0) }
}

fn head_from_wire(what: &'static str, bytes: &[u8]) -> Result<Head, WireError> {
    if bytes.is_empty() {
        return Ok(Head::default());
    }
    let bytes = <[u8; 16]>::try_from(bytes).map_err(|_| malformed(what, "not 16 bytes"))?;
    Ok(Head(bytes))
}

fn set_to_wire(set: SetDigest) -> Bytes {
    if set.is_empty() { Bytes::new() } else { Bytes::copy_from_slice(&set.0) }
}

fn set_from_wire(what: &'static str, bytes: &[u8]) -> Result<SetDigest, WireError> {
    if bytes.is_empty() {
        return Ok(SetDigest::default());
    }
    let bytes = <[u8; 32]>::try_from(bytes).map_err(|_| malformed(what, "not 32 bytes"))?;
    Ok(SetDigest(bytes))
}

const CODES: [(proto::refuse::Code, RefuseCode); 9] = [
    (proto::refuse::Code::NotMember, RefuseCode::NotMember),
    (proto::refuse::Code::Removed, RefuseCode::Removed),
    (proto::refuse::Code::Group, RefuseCode::Group),
    (proto::refuse::Code::ClockSkew, RefuseCode::ClockSkew),
    (proto::refuse::Code::Future, RefuseCode::Future),
    (proto::refuse::Code::Quota, RefuseCode::Quota),
    (proto::refuse::Code::Version, RefuseCode::Version),
    (proto::refuse::Code::Author, RefuseCode::Author),
    (proto::refuse::Code::Full, RefuseCode::Full),
];

fn refuse_to_wire(refuse: &Refuse) -> proto::Refuse {
    let code = match refuse.code {
        RefuseCode::Other(code) => code,
        known => CODES
            .iter()
            .find(|(_, code)| *code == known)
            .map(|(number, _)| *number as i32)
            .expect("every code but Other stands in CODES"),
    };
    let (log_id, seq) =
        refuse.op.map_or((Bytes::new(), 0), |(log, seq)| (Bytes::copy_from_slice(&log.0), seq));
    proto::Refuse { code, text: refuse.text.chars().take(REASON_CHARS_MAX).collect(), log_id, seq }
}

fn refuse_from_wire(refuse: proto::Refuse) -> Result<Refuse, WireError> {
    let code = CODES
        .iter()
        .find(|(number, _)| *number as i32 == refuse.code)
        .map_or(RefuseCode::Other(refuse.code), |(_, code)| *code);
    let op = match refuse.log_id.len() {
        0 => None,
        _ => {
            let log = LogId::from_slice(&refuse.log_id)
                .ok_or_else(|| malformed("Refuse.log_id", "not 16 bytes"))?;
            Some((log, refuse.seq))
        }
    };
    Ok(Refuse { code, text: visible(&refuse.text, REASON_CHARS_MAX), op })
}

fn malformed(what: &'static str, detail: &str) -> WireError {
    WireError::Malformed { what, detail: detail.to_owned() }
}

fn at_most(what: &'static str, got: usize, limit: usize) -> Result<(), WireError> {
    if got > limit {
        return Err(WireError::OutOfBounds { what, got: got as u64, limit: limit as u64 });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::core::limits::OP_SEQ_MAX;

    fn back(message: &JournalMessage) -> JournalMessage {
        let (kind, payload) = encode_message(message);
        decode_message(kind, payload).unwrap()
    }

    fn op(author: u8, nonce: u8, body: &'static [u8]) -> SignedOp {
        let log = LogInfo { author: NodeId([author; 32]), nonce: [nonce; 16] };
        SignedOp { log, body: Bytes::from_static(body), sig: [author; 64] }
    }

    fn entry(log: u8, seq: u64) -> ClockEntry {
        ClockEntry {
            log: LogId([log; 16]),
            seq,
            head: Head([log; 16]),
            above: SetDigest::default(),
            forked: log == 2,
            withheld: log == 1,
        }
    }

    #[test]
    fn messages_come_back_as_they_were() {
        let hello = Hello {
            version: 1,
            group: GroupId([9; 32]),
            now_ms: -1,
            intro: vec![op(1, 1, b"a"), op(2, 1, b"b")],
            features: 5,
        };
        let clock = Clock {
            entries: vec![entry(1, 0), entry(2, 7)],
            drained: true,
            restart: false,
            digest: Some(StateDigest { kinds: 2, sum: SetDigest::default() }),
        };
        let no_digest = Clock { digest: None, restart: true, ..Clock::default() };
        let ops = vec![op(1, 1, b"x"), op(2, 2, b"y"), op(1, 1, b"z"), op(1, 2, b"w")];
        let mut messages = vec![
            JournalMessage::Hello(hello),
            JournalMessage::Clock(clock),
            JournalMessage::Clock(no_digest),
            JournalMessage::Ops(Ops { ops, has_more: true }),
        ];
        let codes = CODES.iter().map(|(_, code)| *code).chain([RefuseCode::Other(99)]);
        messages.extend(codes.map(|code| {
            let op = Some((LogId([3; 16]), 4));
            JournalMessage::Refuse(Refuse { code, text: "no".into(), op })
        }));
        for message in messages {
            assert_eq!(back(&message), message);
        }
    }

    #[test]
    fn a_digest_without_a_word_on_kinds_is_of_the_first_ones() {
        let wire = proto::Clock { digest: vec![7; 32].into(), ..Default::default() };
        let read = decode_message(Kind::JournalClock, wire.encode_to_vec().into()).unwrap();
        let JournalMessage::Clock(Clock { digest, .. }) = read else { panic!("{read:?}") };
        assert_eq!(digest, Some(StateDigest { kinds: 1, sum: SetDigest([7; 32]) }));
    }

    /// A frame as long as a message may be, with as many elements as fit and the last one broken. A
    /// decoder that does not count first would report the broken one.
    #[test]
    fn elements_are_counted_before_they_are_decoded() {
        let broken = [0x0a, 2, 0x08, 0x80];
        let frames: [(Kind, &[u8]); 3] = [
            (Kind::JournalClock, &[0x0a, 0]),
            (Kind::JournalOps, &[0x12, 0]),
            (Kind::JournalOps, &[0x0a, 0]),
        ];
        for (kind, element) in frames {
            let payload = [element.repeat(500_000), broken.to_vec()].concat();
            let read = decode_message(kind, payload.into());
            assert!(matches!(read, Err(WireError::OutOfBounds { .. })), "{kind:?}: {read:?}");
        }
        let intro =
            [&[0x22, 0xd0, 0x0f][..], &[0x12, 0].repeat(1_000), &[0x22, 4], &broken].concat();
        let read = decode_message(Kind::JournalHello, intro.into());
        assert!(matches!(read, Err(WireError::OutOfBounds { .. })), "{read:?}");
        let read = decode_intro(&[[0x12, 0].repeat(1_000), broken.to_vec()].concat());
        assert!(matches!(read, Err(WireError::OutOfBounds { .. })), "{read:?}");
    }

    #[test]
    fn an_ops_frame_names_each_log_once() {
        let ops = vec![op(1, 1, b"x"); 100];
        let (_, payload) = encode_message(&JournalMessage::Ops(Ops { ops, has_more: false }));
        assert_eq!(proto::Ops::decode(payload).unwrap().logs.len(), 1);
    }

    #[test]
    fn every_bound_of_a_frame_holds() {
        fn refused(message: &impl prost::Message, kind: Kind) {
            let read = decode_message(kind, message.encode_to_vec().into());
            assert!(read.is_err(), "{read:?}");
        }
        let wire_op = |log| proto::WireOp { log, body: Bytes::new(), sig: vec![0; 64].into() };
        let info = proto::LogInfo { author: vec![1; 32].into(), nonce: vec![1; 16].into() };
        let ops = |n: usize| proto::Ops {
            logs: vec![info.clone()],
            ops: vec![wire_op(0); n],
            has_more: false,
        };
        let good = decode_message(Kind::JournalOps, ops(512).encode_to_vec().into());
        assert!(good.is_ok());
        refused(&ops(513), Kind::JournalOps);
        let mut bad = ops(1);
        bad.ops[0].log = 1;
        refused(&bad, Kind::JournalOps);
        bad = ops(1);
        bad.ops[0].sig = vec![0; 63].into();
        refused(&bad, Kind::JournalOps);
        bad = ops(1);
        bad.ops[0].body = vec![0; OP_BODY_BYTES_MAX + 1].into();
        refused(&bad, Kind::JournalOps);
        bad = ops(1);
        bad.logs[0].nonce = vec![0; 17].into();
        refused(&bad, Kind::JournalOps);
        bad = ops(1);
        bad.logs = vec![info.clone(); 2];
        refused(&bad, Kind::JournalOps);

        let clock =
            |entries: Vec<proto::ClockEntry>| proto::Clock { entries, ..Default::default() };
        let entry = |n: u16, seq| proto::ClockEntry {
            log_id: [&n.to_be_bytes()[..], &[0; 14]].concat().into(),
            seq,
            ..Default::default()
        };
        refused(&clock(vec![entry(1, 1), entry(1, 2)]), Kind::JournalClock);
        let highest = clock(vec![entry(1, OP_SEQ_MAX)]);
        assert!(decode_message(Kind::JournalClock, highest.encode_to_vec().into()).is_ok());
        refused(&clock(vec![entry(1, OP_SEQ_MAX + 1)]), Kind::JournalClock);
        let many = (0..=u16::try_from(LOGS_MAX).unwrap()).map(|n| entry(n, 1)).collect();
        refused(&clock(many), Kind::JournalClock);
        let mut odd = clock(vec![entry(1, 1)]);
        odd.entries[0].head = vec![1; 15].into();
        refused(&odd, Kind::JournalClock);
        odd = clock(vec![]);
        odd.digest = vec![1; 17].into();
        refused(&odd, Kind::JournalClock);
        let hello = proto::Hello { group_id: vec![1; 31].into(), ..Default::default() };
        refused(&hello, Kind::JournalHello);
        assert!(decode_message(Kind::Hello, Bytes::new()).is_err());
    }

    proptest! {
        #[test]
        fn no_frame_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for kind in
                [Kind::JournalHello, Kind::JournalClock, Kind::JournalOps, Kind::JournalRefuse]
            {
                let _ = decode_message(kind, bytes.clone().into());
            }
        }
    }
}
