//! The seeds of the corpus: each message as this version encodes it, cut short, and one beyond a
//! bound. Seeds named `...-cut` or `...-bad` must be refused, all others accepted.

use std::collections::BTreeSet;

use bytes::Bytes;
use can_sync::bao::{GROUP_BYTES, build_outboard, encode_piece};
use can_sync::core::copies::{AbsentPage, AbsentSet};
use can_sync::core::folder::path::FolderPath;
use can_sync::core::folder::version::{Content as FileContent, ShortId, Vector, Version};
use can_sync::core::ids::{Digest, GroupId, Hash, HashAlgorithm, LogId, NodeId, OpHash, StoreId};
use can_sync::core::joining::{Introduction, PairAccept, PairOffer, PairRequest};
use can_sync::core::journal::message::{
    Clock, ClockEntry, Head, Hello as JournalHello, JournalMessage, Ops, Refuse, RefuseCode,
    StateDigest, VERSION,
};
use can_sync::core::journal::op::{
    Body, Change, Elem, Event, Key, LogInfo, MemberChange, Put, Removal, SignedOp, Value,
};
use can_sync::core::journal::set_hash::SetDigest;
use can_sync::core::journal::stamp::{Hlc, Stamp};
use can_sync::core::journal::told::{Told, ToldTag, ToldValue};
use can_sync::core::leases::Lack;
use can_sync::core::limits::{OP_CHANGES_MAX, PIECE_ALIGN_BYTES};
use can_sync::core::message::{Hello, Message};
use can_sync::core::proof::{Proof, Prove};
use can_sync::core::reconcile::{Cursor, ReconcileMessage, SetSummary, Since, Way};
use can_sync::core::sketch::Cell;
use can_sync::net::ticket::Ticket;
use can_sync::wire::batch::{
    Content, Label, Piece, Verdict, Want, WantEntry, encode_ack, encode_contents, encode_drop,
};
use can_sync::wire::folder::{HistoryEvent, history_to_bytes, version_to_bytes};
use can_sync::wire::frame::{Header, Kind};
use can_sync::wire::plain::{SetPage, encode_meta};
use can_sync::wire::{control, journal, pairing, proof};
use prost::Message as _;

use super::targets::{PROOFS, offer, piece_content, piece_digest};

/// A seed: its target, its name, its bytes.
pub(crate) type Seed = (&'static str, String, Vec<u8>);

/// All seeds.
pub(crate) fn seeds() -> Vec<Seed> {
    let mut seeds = Vec::new();
    for (name, message) in control_messages() {
        let (kind, payload) = control::encode_message(&message);
        add(&mut seeds, "control", name, [&[kind.number()][..], &payload].concat());
        framed(&mut seeds, name, kind, &payload);
    }
    for (name, message) in journal_messages() {
        let (kind, payload) = journal::encode_message(&message);
        add(&mut seeds, "journal", name, [&[kind.number()][..], &payload].concat());
        framed(&mut seeds, name, kind, &payload);
    }
    for (which, name, payload) in batch_messages() {
        add(&mut seeds, "batch", name, [&[which][..], &payload].concat());
    }
    for (which, name, payload) in proof_messages() {
        add(&mut seeds, "proof", name, [&[which][..], &payload].concat());
    }
    for (which, name, payload) in pairing_messages() {
        add(&mut seeds, "pairing", name, [&[which][..], &payload].concat());
    }
    for (name, body) in bodies() {
        add(&mut seeds, "op_body", name, journal::encode_body(&body).unwrap().to_vec());
    }
    for (which, name, bytes) in versions() {
        add(&mut seeds, "folder", name, [&[which][..], &bytes].concat());
    }
    bad_ones(&mut seeds);
    tickets(&mut seeds);
    pieces(&mut seeds);
    seeds
}

/// Adds a seed and a copy of it cut short.
fn add(seeds: &mut Vec<Seed>, target: &'static str, name: &str, bytes: Vec<u8>) {
    let cut = bytes[..bytes.len() - 1].to_vec();
    seeds.push((target, format!("{name}-cut"), cut));
    seeds.push((target, name.to_owned(), bytes));
}

fn framed(seeds: &mut Vec<Seed>, name: &str, kind: Kind, payload: &[u8]) {
    let header = Header::encode(kind, payload.len() as u32);
    add(seeds, "frame", name, [&header[..], payload].concat());
}

fn control_messages() -> Vec<(&'static str, Message)> {
    let round = 9;
    let summary = || SetSummary {
        epoch: [1; 16],
        head_seq: 77,
        count: 70,
        fingerprint: [2; 32],
        counters: None,
        since: Some(Since { epoch: [3; 16], seq: 5 }),
        busy: false,
    };
    let cell = Cell { sum: [1, 2, 3, 4], check: 5, count: -6 };
    let hello = Hello {
        group_id: GroupId([1; 32]),
        device_name: "laptop".to_owned(),
        store_id: StoreId([2; 16]),
        algorithm: HashAlgorithm::Sha256,
        build: "0.1.0".to_owned(),
        journal: true,
        proofs: true,
        thumbnails: true,
        copies: true,
        chooses: false,
        metadata: false,
    };
    let plan = ReconcileMessage::Plan {
        round,
        way: Way::Shards,
        summary: summary(),
        retry_ms: 3,
        nonce: Some([8; 16]),
        estimate: 1 << 40,
    };
    let reconcile = [
        ("compare", ReconcileMessage::Compare { round, summary: summary() }),
        ("plan", plan),
        ("cells", ReconcileMessage::Cells { round, shard: 3, first: 0, cells: vec![cell] }),
        ("more", ReconcileMessage::More { round, shard: 1, first: 5, n: 7 }),
        ("decoded", ReconcileMessage::Decoded { round, lacking: vec![Hash([4; 32])] }),
        ("rekey", ReconcileMessage::Rekey { round, nonce: [7; 16], shard_bits: 4 }),
        ("pull-seq", ReconcileMessage::Pull { round, from: Cursor::Seq(3) }),
        ("pull-hash", ReconcileMessage::Pull { round, from: Cursor::Hash(Some(Hash([0; 32]))) }),
        (
            "page",
            ReconcileMessage::Page {
                round,
                hashes: vec![Hash([5; 32])],
                more: true,
                next_seq: u64::MAX,
            },
        ),
        ("done", ReconcileMessage::Done { round, incomplete: true }),
    ];
    let absent = AbsentSet { log: [6; 16], turn: 1 << 33, digest: SetDigest([7; 32]) };
    let absent_page = AbsentPage {
        now: absent,
        is_start: true,
        absent: vec![(Hash([1; 32]), Some(1 << 40)), (Hash([2; 32]), None)],
        held: vec![Hash([3; 32])],
        next: 9,
        more: true,
    };
    let mut all = vec![
        ("absent", Message::Absent(absent)),
        ("absent-pull", Message::AbsentPull { log: [6; 16], after_turn: 5 }),
        ("absent-page", Message::AbsentPage(Box::new(absent_page))),
        ("size-pull", Message::SizePull(vec![Hash([1; 32]), Hash([2; 32])])),
        ("sizes", Message::Sizes(vec![Some(0), None, Some(1 << 40)])),
        ("hello", Message::Hello(hello)),
        ("summary", Message::Summary(Box::new(summary()))),
        ("solicit", Message::Solicit(vec![Hash([5; 32]), Hash([6; 32])])),
        ("lacking", Message::Lacking(vec![Hash([6; 32])])),
    ];
    all.extend(reconcile.map(|(name, message)| (name, Message::Reconcile(message))));
    all
}

fn op(n: u8) -> SignedOp {
    let log = LogInfo { author: NodeId([n; 32]), nonce: [n; 16] };
    SignedOp { log, body: Bytes::from(vec![n; 9]), sig: [n; 64] }
}

fn journal_messages() -> Vec<(&'static str, JournalMessage)> {
    let entry = |n: u8| ClockEntry {
        log: LogId([n; 16]),
        seq: u64::from(n) << 33,
        head: Head([n; 16]),
        above: SetDigest([!n; 32]),
        forked: n == 2,
        withheld: n == 1,
    };
    let clock = Clock {
        entries: vec![entry(1), entry(2)],
        drained: true,
        restart: true,
        digest: Some(StateDigest { kinds: 2, sum: SetDigest([9; 32]) }),
    };
    let group = GroupId([9; 32]);
    let hello =
        JournalHello { version: VERSION, group, now_ms: -1, intro: vec![op(1)], features: 3 };
    let refuse = Refuse {
        code: RefuseCode::Future,
        text: "too far".to_owned(),
        op: Some((LogId([3; 16]), 4)),
    };
    vec![
        ("journal-hello", JournalMessage::Hello(hello)),
        ("journal-clock", JournalMessage::Clock(clock)),
        ("journal-ops", JournalMessage::Ops(Ops { ops: vec![op(1), op(2)], has_more: true })),
        ("journal-refuse", JournalMessage::Refuse(refuse)),
    ]
}

fn batch_messages() -> Vec<(u8, &'static str, Vec<u8>)> {
    let content = |label| Content { label, bytes: Bytes::from_static(b"abc") };
    let piece = |label| Piece {
        label,
        offset_bytes: PIECE_ALIGN_BYTES,
        length_bytes: 3,
        encoded: Bytes::from_static(b"abc"),
    };
    let hash = Hash([7; 32]);
    let named = Label::Named(Digest { hash, size_bytes: 3 });
    let verdicts = [
        Verdict::Stored,
        Verdict::AlreadyHeld,
        Verdict::Elsewhere,
        Verdict::Later("disk full".to_owned()),
        Verdict::Refused("too large".to_owned()),
    ];
    let large = PIECE_ALIGN_BYTES..3 * PIECE_ALIGN_BYTES;
    let entries = vec![WantEntry { index: 1, range: 0..100 }, WantEntry { index: 3, range: large }];
    let want = Want { entries, more: true };
    let page = SetPage { hashes: vec![Hash([1; 32]), hash], more: true };
    let plain = verdicts.iter().map(|verdict| (Some(hash), verdict));
    vec![
        (0, "offer", offer().encode().encode_to_vec()),
        (1, "want", want.encode().encode_to_vec()),
        (2, "contents", encode_contents(vec![content(Label::Entry(1))]).encode_to_vec()),
        (3, "plain-contents", encode_contents(vec![content(named)]).encode_to_vec()),
        (4, "piece", piece(Label::Entry(4)).encode().encode_to_vec()),
        (5, "plain-piece", piece(named).encode().encode_to_vec()),
        (6, "drop", encode_drop(2).encode_to_vec()),
        (7, "ack", encode_ack(verdicts.iter().map(|verdict| (None, verdict))).encode_to_vec()),
        (8, "plain-ack", encode_ack(plain).encode_to_vec()),
        (9, "set-page", page.encode().encode_to_vec()),
        (10, "metadata", encode_meta(&[told(hash)]).encode_to_vec()),
    ]
}

fn told(hash: Hash) -> Told {
    let values = [
        ("description", Some(Value::Text("cat".into()))),
        ("trashed", Some(Value::Bool(true))),
        ("modified_ms", Some(Value::Int(-5))),
        ("name", None),
    ];
    let field = |(name, value)| (String::from(name), ToldValue { value, at: Hlc(7) });
    let tag = |(tag, removed)| (String::from(tag), ToldTag { removed, at: Hlc(8) });
    Told {
        hash,
        fields: values.map(field).into(),
        tags: [("new", false), ("old", true)].map(tag).into(),
    }
}

fn proof_messages() -> Vec<(u8, &'static str, Vec<u8>)> {
    let hashes = vec![Hash([1; 32]), Hash([2; 32])];
    let prove = Prove { nonce: [3; 32], hashes, lease: true, groups: Vec::new() };
    let groups =
        Prove { hashes: vec![Hash([1; 32])], groups: vec![0, PIECE_ALIGN_BYTES], ..prove.clone() };
    let lacks = [Lack::NotHeld, Lack::Damaged, Lack::Evicting, Lack::Busy].map(Proof::Lacks);
    let proofs: Vec<Proof> =
        lacks.into_iter().chain([Proof::Holds { proof: [4; 32], lease_ms: 900_000 }]).collect();
    assert_eq!(proofs.len(), PROOFS);
    vec![
        (0, "prove", proof::encode_prove(&prove).encode_to_vec()),
        (0, "prove-groups", proof::encode_prove(&groups).encode_to_vec()),
        (1, "proofs", proof::encode_proofs(&proofs).encode_to_vec()),
        (2, "group", proof::encode_group(PIECE_ALIGN_BYTES, vec![1, 2, 3]).encode_to_vec()),
    ]
}

fn pairing_messages() -> Vec<(u8, &'static str, Vec<u8>)> {
    let request = PairRequest {
        joiner: NodeId([1; 32]),
        proof: [2; 32],
        device_name: "laptop".to_owned(),
        addresses: vec!["10.0.0.1:7".to_owned()],
        hash_algorithm: HashAlgorithm::Sha256,
        commitment: [4; 32],
        verify: true,
    };
    let (group_id, intro) = (GroupId([3; 32]), vec![op(1), op(2)]);
    let accept = PairAccept { intro: intro.clone() };
    let offer = PairOffer {
        group_id,
        nonce: [5; 32],
        members: 7,
        device_name: "desk".to_owned(),
        now_ms: 1_800_000_000_000,
        verify: true,
    };
    let introduction = Introduction { group_id, intro };
    vec![
        (0, "request", pairing::pair_request_to_wire(&request).encode_to_vec()),
        (1, "accept", pairing::pair_accept_to_wire(&accept).encode_to_vec()),
        (2, "introduction", pairing::introduction_to_wire(&introduction).encode_to_vec()),
        (3, "offer", pairing::pair_offer_to_wire(&offer).encode_to_vec()),
        (4, "reveal", pairing::pair_reveal_to_wire(&[6; 32]).encode_to_vec()),
    ]
}

fn key() -> Key {
    Key { model: "note".to_owned(), id: vec![0, 255], owned: true }
}

fn bodies() -> Vec<(&'static str, Body)> {
    let values = [
        None,
        Some(Value::Bool(true)),
        Some(Value::Int(i64::MIN)),
        Some(Value::Double(f64::NAN)),
        Some(Value::Text("\u{fc}".to_owned())),
        Some(Value::Bytes(vec![1])),
    ];
    let tag = |elem: &str| Elem { field: "tags".to_owned(), elem: elem.to_owned() };
    let observed = Stamp { hlc: Hlc(76), log: LogId([4; 16]), seq: 9 };
    let put = Put {
        key: key(),
        create: true,
        set: values.into_iter().enumerate().map(|(n, value)| (format!("f{n}"), value)).collect(),
        add: vec![tag("a")],
        remove: vec![Removal { elem: tag("b"), observed }],
    };
    let event =
        Event { stream: "log".to_owned(), event_seq: 3, kind: "seen".to_owned(), data: vec![0; 5] };
    let device = NodeId([8; 32]);
    let members = vec![
        Change::Member(MemberChange::Genesis { nonce: [1; 16], name: "one".to_owned() }),
        Change::Member(MemberChange::Add { device, name: "two".to_owned() }),
        Change::Member(MemberChange::Remove { device, keep: vec![NodeId([9; 32])], fence: None }),
    ];
    let later = |changes| Body { seq: 2, hlc: Hlc(77), prev: Some(OpHash([5; 32])), changes };
    vec![
        ("put", later(vec![Change::Put(put)])),
        ("delete-and-event", later(vec![Change::Delete(key()), Change::Event(event)])),
        ("members", Body { seq: 1, prev: None, ..later(members) }),
    ]
}

fn versions() -> Vec<(u8, &'static str, Vec<u8>)> {
    let version = |content| Version {
        path: FolderPath::from_bytes(b"a/\xff b").unwrap(),
        content,
        vector: Vector([(ShortId(1), 5), (ShortId(u64::MAX), u64::MAX)].into()),
        device_name: "desk".to_owned(),
    };
    let file = version(FileContent::File {
        hash: Hash([7; 32]),
        size_bytes: 12,
        modified_ms: -5,
        is_executable: true,
    });
    let link = version(FileContent::Symlink { target: b"../x".to_vec() });
    // Field 9, two bytes.
    let later = version(FileContent::Later(vec![0x4a, 2, 1, 2]));
    let event =
        |change, is_undo| history_to_bytes(&HistoryEvent { before: file.clone(), change, is_undo });
    vec![
        (0, "file", version_to_bytes(&file)),
        (0, "link", version_to_bytes(&link)),
        (0, "directory", version_to_bytes(&version(FileContent::Directory))),
        (0, "removed", version_to_bytes(&version(FileContent::Absent))),
        (0, "later-content", version_to_bytes(&later)),
        (1, "event", event(None, false)),
        (1, "event-of-another", event(Some((7, NodeId([3; 32]))), false)),
        (1, "event-of-an-undo", event(None, true)),
    ]
}

fn bad_ones(seeds: &mut Vec<Seed>) {
    let too_long = Header::encode(Kind::PairRequest, u32::MAX);
    seeds.push(("frame", "too-long-bad".to_owned(), too_long.to_vec()));
    let one = Body { seq: 1, hlc: Hlc(7), prev: None, changes: vec![Change::Delete(key())] };
    let one = journal::encode_body(&one).unwrap();
    // The changes of a body are its last field: one change too many, and one of a later version.
    let change = one.iter().rposition(|byte| *byte == 0x22).unwrap();
    let many = [&one[..], &one[change..].repeat(OP_CHANGES_MAX)].concat();
    seeds.push(("op_body", "too-many-bad".to_owned(), many));
    let unknown = [&one[..], &[0x22, 4, 0xea, 4, 1, 0]].concat();
    seeds.push(("op_body", "later-kind".to_owned(), unknown));
    let mut twice = offer();
    twice.entries.push(twice.entries[0]);
    let twice = [&[0][..], &twice.encode().encode_to_vec()].concat();
    seeds.push(("batch", "offered-twice-bad".to_owned(), twice));
}

fn tickets(seeds: &mut Vec<Seed>) {
    let addresses = ["192.168.1.7:4433", "[fd00::7]:4433", "https://relay.example.org/"];
    let ticket = Ticket {
        inviter: NodeId([0xab; 32]),
        addresses: addresses.map(str::to_owned).to_vec(),
        secret: [0x5e; 16],
        expires_ms: 1_800_000_000_000,
    };
    let text = ticket.to_string();
    let bytes = data_encoding::BASE32_NOPAD.decode(&text.to_uppercase().as_bytes()[7..]).unwrap();
    add(seeds, "ticket", "text", text.into_bytes());
    seeds.push(("ticket", "content".to_owned(), bytes[..bytes.len() - 4].to_vec()));
    let nowhere = [&bytes[..1 + 32 + 16 + 8], &[0, 3], b"abc"].concat();
    seeds.push(("ticket", "no-url-bad".to_owned(), nowhere));
}

fn pieces(seeds: &mut Vec<Seed>) {
    let (content, digest) = (piece_content(), piece_digest());
    let mut outboard = tempfile::tempfile().unwrap();
    build_outboard(&content[..], digest.size_bytes, &mut outboard).unwrap();
    let last = &content[GROUP_BYTES as usize..];
    let encoded = encode_piece(&digest, GROUP_BYTES, last, Some(&outboard)).unwrap();
    add(seeds, "piece", "last-group", [&[1][..], &encoded].concat());
}

/// The names of all seeds are different.
pub(crate) fn names(seeds: &[Seed]) -> BTreeSet<(&'static str, &str)> {
    seeds.iter().map(|(target, name, _)| (*target, name.as_str())).collect()
}
