//! A paired device that breaks the protocol: it sends hand-made frames over real QUIC to a whole
//! agent, which closes the connection, lives on, and keeps syncing with an honest peer.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use can_sync::clock::wall_ms;
use can_sync::core::close::CloseCode;
use can_sync::core::ids::{GroupId, Hash, HashAlgorithm, NodeId};
use can_sync::core::joining::Introduced;
use can_sync::core::journal::message::{self as journal, JournalMessage, RefuseCode, VERSION};
use can_sync::net::frame::FrameReader;
use can_sync::net::introduction;
use can_sync::net::pairing::{JoinError, Joiner, ask};
use can_sync::net::ticket::Ticket;
use can_sync::net::{
    Accepted, Admission, Connection, Ended, Net, NetConfig, RecvStream, SecretKey, SendStream,
    Verdict,
};
use can_sync::replica::status::PeerState;
use can_sync::wire::frame::{Header, Kind};
use can_sync::wire::journal::{decode_message, encode_message};
use can_sync::wire::proto::peer;
use prost::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

mod common;

use common::group::{Device, SOON, all_in_sync, hashes_of, pair, until};
use common::logs::was_logged;
use common::{content, digest};

#[path = "hostile/alerts.rs"]
mod alerts;
#[path = "hostile/proofs.rs"]
mod proofs;
#[path = "hostile/sources.rs"]
mod sources;

/// Held by tests that measure the memory of the process, which all tests share.
static PROCESS: tokio::sync::RwLock<()> = tokio::sync::RwLock::const_new(());

/// The most memory that anything below may make the agent use.
const GROWTH_BYTES_MAX: usize = 48 * 1024 * 1024;

/// A member of the group that breaks the protocol.
struct Member {
    key: SecretKey,
    net: Net,
    group_id: GroupId,
    victim: NodeId,
    addresses: Vec<String>,
}

/// A hand-made control stream.
struct Control {
    connection: Connection,
    send: SendStream,
    recv: RecvStream,
}

async fn bind(key: &SecretKey) -> Net {
    let config = NetConfig {
        offline: true,
        bind: Some("127.0.0.1:0".parse().unwrap()),
        ..NetConfig::new(key.clone())
    };
    Net::bind(config).await.unwrap()
}

impl Member {
    async fn join(victim: &Device) -> Self {
        let reply = victim.handle().ticket(Duration::from_secs(60)).await.unwrap();
        Self::join_by(victim, &reply.ticket, reply.expires_ms - 60_000).await
    }

    async fn join_by(victim: &Device, ticket: &str, now_ms: u64) -> Self {
        let key = SecretKey::generate();
        let net = bind(&key).await;
        let ticket: Ticket = ticket.parse().unwrap();
        let own = Joiner {
            device_name: "hostile".into(),
            addresses: Vec::new(),
            hash_algorithm: HashAlgorithm::Blake3,
            verify: false,
        };
        let mut joining = ask(&net, &ticket, own, now_ms).await.unwrap();
        joining.confirm().await.unwrap();
        let group_id = joining.offer().group_id;
        assert!(joining.joined().await);
        let me = net.node_id();
        until("the member is known", &[victim], async || {
            victim.status().peers.iter().any(|peer| peer.node_id == me)
        })
        .await;
        let addresses = victim.status().device.addresses;
        Self { key, net, group_id, victim: victim.node_id, addresses }
    }

    fn hello(&self) -> peer::Hello {
        peer::Hello {
            group_id: Bytes::copy_from_slice(self.group_id.as_bytes()),
            device_name: "hostile".into(),
            store_id: Bytes::from_static(&[7; 16]),
            hash_algorithm: "blake3".into(),
            build: "0".into(),
            features: Vec::new(),
        }
    }

    /// Connects and opens a control stream without sending anything.
    async fn connect(&self) -> Control {
        let connection = self.net.dial(self.victim, &self.addresses).await.unwrap();
        let (send, recv) = connection.open_stream(0).await.unwrap();
        Control { connection, send, recv }
    }

    /// Connects and exchanges honest Hellos.
    async fn greet(&self) -> Control {
        let mut control = self.connect().await;
        control.send(Kind::Hello, &self.hello()).await;
        let mut reader = FrameReader::new(&mut control.recv, Some(SOON));
        let frame = reader.read().await.unwrap().unwrap();
        assert_eq!(frame.kind, Kind::Hello);
        control
    }

    /// Checks that the victim closes a connection whose control stream begins with these bytes.
    async fn is_refused(&self, bytes: &[u8], code: CloseCode, why: &str) {
        let mut control = self.connect().await;
        control.raw(bytes).await;
        control.closed_with(code, why).await;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let runtime = tokio::runtime::Handle::current();
        tokio::task::block_in_place(|| runtime.block_on(self.net.close()));
    }
}

impl Control {
    async fn raw(&mut self, bytes: &[u8]) {
        // The victim may close in the middle.
        let _ = self.send.write_all(bytes).await;
        let _ = self.send.flush().await;
    }

    async fn send(&mut self, kind: Kind, message: &impl Message) {
        self.raw(&frame(kind, &message.encode_to_vec())).await;
    }

    async fn closed(&self, why: &str) -> Ended {
        let closed = timeout(SOON, self.connection.closed()).await;
        closed.unwrap_or_else(|_| panic!("the connection was not closed: {why}"))
    }

    async fn closed_with(&self, code: CloseCode, why: &str) {
        let ended = self.closed(why).await;
        assert!(ended.by_peer, "{why}: {ended:?}");
        assert_eq!(ended.code, Some(code), "{why}: {ended:?}");
    }
}

fn frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Header::encode(kind, payload.len() as u32).to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// Checks that the agent lives and syncs with its honest peer.
async fn still_syncs(victim: &Device, honest: &Device) {
    let added = victim.add([100, 300_000]).await;
    let more = honest.add([101, 300_001]).await;
    let expected = hashes_of(added.iter().chain(&more));
    until("the honest two sync", &[victim, honest], async || {
        honest.hashes().await.is_superset(&expected) && victim.hashes().await.is_superset(&expected)
    })
    .await;
}

async fn victim_and_honest() -> (Device, Device) {
    let (victim, honest) = (Device::start().await, Device::start().await);
    pair(&victim, &honest).await;
    all_in_sync(&[&victim, &honest], 1).await;
    (victim, honest)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_member_says_on_the_control_stream_it_gets_the_right_code() {
    let _shared = PROCESS.read().await;
    let (victim, honest) = victim_and_honest().await;
    let member = Member::join(&victim).await;
    let hello = member.hello();
    use CloseCode::{HashAlgorithm, Protocol, TooLarge, WrongGroup};

    // Frames of impossible lengths.
    for length in [1024 * 1024 + 1, 10_000_000, 0x7fff_ffff, 0xffff_ffff_u32] {
        let header = Header::encode(Kind::Hello, length);
        member.is_refused(&header, TooLarge, &format!("length {length}")).await;
    }
    let cases: [(&str, Vec<u8>, CloseCode); 13] = [
        ("a Hello that names no hash algorithm", frame(Kind::Hello, b""), HashAlgorithm),
        ("one byte", frame(Kind::Hello, b"\x0a"), Protocol),
        ("an unknown type", vec![100, 0, 0, 0, 0], Protocol),
        ("a truncated varint", frame(Kind::Hello, &[0x0a, 0xff, 0xff]), Protocol),
        ("a wrong wire type", frame(Kind::Hello, &[0x08, 0x01]), Protocol),
        ("invalid UTF-8", frame(Kind::Hello, &[0x12, 0x02, 0xff, 0xfe]), Protocol),
        ("groups nested deeply", frame(Kind::Hello, &[0x3b; 10_000]), Protocol),
        ("empty elements without end", frame(Kind::Solicit, &[0x0a, 0].repeat(500_000)), Protocol),
        ("a message before Hello", frame(Kind::Solicit, b""), Protocol),
        ("a batch on the control stream", frame(Kind::Offer, b""), Protocol),
        ("a second Hello", frame(Kind::Hello, &hello.encode_to_vec()).repeat(2), Protocol),
        (
            "another group",
            frame(
                Kind::Hello,
                &peer::Hello { group_id: vec![9; 32].into(), ..hello.clone() }.encode_to_vec(),
            ),
            WrongGroup,
        ),
        (
            "another algorithm",
            frame(
                Kind::Hello,
                &peer::Hello { hash_algorithm: "sha256".into(), ..hello.clone() }.encode_to_vec(),
            ),
            HashAlgorithm,
        ),
    ];
    for (why, bytes, code) in cases {
        member.is_refused(&bytes, code, why).await;
    }
    // Cut off inside the header.
    for cut in 1..5 {
        let mut control = member.connect().await;
        control.raw(&Header::encode(Kind::Hello, 10)[..cut]).await;
        control.send.shutdown().await.unwrap();
        control.closed_with(Protocol, "cut and ended").await;
    }
    // A stream that is reset.
    for greeted in [false, true] {
        let mut control = if greeted { member.greet().await } else { member.connect().await };
        control.raw(&[1, 0]).await;
        control.send.reset(CloseCode::Ok);
        assert!(control.closed("reset").await.by_peer);
    }
    // Frames that a later version may send are skipped.
    let mut control = member.connect().await;
    control.raw(&frame(Kind::Extension(200), &[1; 1000])).await;
    control.send(Kind::Hello, &hello).await;
    let mut reader = FrameReader::new(&mut control.recv, Some(SOON));
    assert_eq!(reader.read().await.unwrap().unwrap().kind, Kind::Hello);
    assert_eq!(reader.read().await.unwrap().unwrap().kind, Kind::SetSummary);
    assert_eq!(control.connection.ended(), None);
    control.connection.close(CloseCode::Ok, "");

    // The next connection would only stand by while the victim holds the one that was closed.
    until("the victim knows that it was closed", &[&victim], async || {
        let state = victim.sees_node(member.net.node_id()).state;
        matches!(state, PeerState::Offline | PeerState::Connecting)
    })
    .await;
    // A name that would manipulate a terminal.
    let name = "\u{1b}[2Jevil\n\0\u{202e}name".to_owned();
    let mut control = member.connect().await;
    control.send(Kind::Hello, &peer::Hello { device_name: name, ..hello }).await;
    until("the name shows", &[&victim], async || {
        victim.sees_node(member.net.node_id()).name.contains("evil")
    })
    .await;
    let shown = victim.sees_node(member.net.node_id()).name;
    assert!(!shown.contains(|c: char| c.is_control() || c == '\u{202e}'), "{shown:?}");
    control.connection.close(CloseCode::Ok, "");

    still_syncs(&victim, &honest).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_member_sends_in_a_batch_nothing_wrong_is_stored() {
    let _shared = PROCESS.read().await;
    let (victim, honest) = victim_and_honest().await;
    let member = Member::join(&victim).await;
    let entry = |hash: Hash, size_bytes: u64| peer::OfferEntry {
        hash: Bytes::copy_from_slice(hash.as_bytes()),
        size_bytes,
        inline: true,
    };
    let offer = |entries: Vec<peer::OfferEntry>| {
        frame(Kind::Offer, &peer::Offer { entries, solicited: false }.encode_to_vec())
    };
    let contents = |index: u32, bytes: &Bytes| {
        let content = peer::Content { index, bytes: bytes.clone(), hash: Bytes::new() };
        frame(Kind::Contents, &peer::Contents { contents: vec![content] }.encode_to_vec())
    };
    let done = frame(Kind::Done, b"");
    let wrong = content(1 << 41, 1000);
    // Each case uses another asset, because a damaged asset is not requested twice from one peer.
    type Case<'a> = (&'a str, &'a dyn Fn(&Bytes, &dyn Fn(u64) -> peer::OfferEntry) -> Vec<u8>);
    let cases: [Case<'_>; 9] = [
        ("wrong bytes", &|_, entry| {
            [offer(vec![entry(1000)]), contents(0, &wrong), done.clone()].concat()
        }),
        ("one byte less", &|good, entry| {
            [offer(vec![entry(999)]), contents(0, good), done.clone()].concat()
        }),
        ("one byte more", &|good, entry| {
            [offer(vec![entry(1001)]), contents(0, good), done.clone()].concat()
        }),
        ("what was not offered", &|good, entry| {
            [offer(vec![entry(1000)]), contents(1, good)].concat()
        }),
        ("no offer", &|good, _| contents(0, good)),
        ("the same hash twice", &|_, entry| offer(vec![entry(1000), entry(1000)])),
        ("nothing of what is inline", &|_, entry| {
            [offer(vec![entry(1000)]), done.clone()].concat()
        }),
        ("more after the end", &|_, entry| {
            let twice = [done.clone(), done.clone()].concat();
            [offer(vec![entry(1000)]), contents(0, &wrong), twice].concat()
        }),
        ("an impossible size", &|_, entry| {
            offer(vec![peer::OfferEntry { inline: false, ..entry(u64::MAX) }])
        }),
    ];
    for (number, (why, stream)) in cases.into_iter().enumerate() {
        let good = content((1 << 40) + number as u64, 1000);
        let named = digest(HashAlgorithm::Blake3, &good);
        let bytes = stream(&good, &|size_bytes| entry(named.hash, size_bytes));
        let control = member.greet().await;
        let (mut send, mut recv) = control.connection.open_stream(0).await.unwrap();
        let _ = send.write_all(&bytes).await;
        let _ = send.shutdown().await;
        let _ = timeout(SOON, recv.read_to_end(&mut Vec::new())).await.expect(why);
        control.closed_with(CloseCode::Protocol, why).await;
        assert!(!victim.hashes().await.contains(&named.hash), "{why}");
    }

    // An honest batch is accepted after all of that.
    let other = content(1 << 42, 1000);
    let hash = HashAlgorithm::Blake3.hash(&other);
    let control = member.greet().await;
    let (mut send, recv) = control.connection.open_stream(0).await.unwrap();
    send.write_all(&[offer(vec![entry(hash, 1000)]), contents(0, &other), done].concat())
        .await
        .unwrap();
    send.shutdown().await.unwrap();
    let mut reader = FrameReader::new(recv, Some(SOON));
    let ack = reader.read().await.unwrap().unwrap();
    let ack = peer::Ack::decode(ack.payload).unwrap();
    assert_eq!(ack.entries[0].outcome, peer::ack::Outcome::Stored as i32, "{ack:?}");
    control.connection.close(CloseCode::Ok, "");
    still_syncs(&victim, &honest).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn solicitations_of_nothing_and_of_the_same_are_answered_within_bounds() {
    let _shared = PROCESS.read().await;
    let (victim, honest) = victim_and_honest().await;
    let held = victim.add([1000]).await[0];
    victim.handle().check().await.unwrap();
    let member = Member::join(&victim).await;
    let mut control = member.greet().await;
    let raw = |byte: u8| Bytes::from(vec![byte; 32]);
    let held_hash = Bytes::copy_from_slice(held.hash.as_bytes());
    // Unknown, repeated and unsorted hashes, zero, and one that is held.
    let mut hashes: Vec<Bytes> = (0..2000).map(|n| raw((n * 7 % 5) as u8)).collect();
    hashes.push(held_hash);
    control.send(Kind::Solicit, &peer::Solicit { hashes, now: false }).await;
    let answered = async {
        let mut reader = FrameReader::new(&mut control.recv, Some(SOON));
        loop {
            let frame = reader.read().await.unwrap().expect("the stream goes on");
            if frame.kind == Kind::Lacking {
                return peer::Lacking::decode(frame.payload).unwrap().hashes;
            }
        }
    };
    let lacking = timeout(SOON, answered).await.unwrap();
    assert!(lacking.iter().all(|hash| hash[..] != held.hash.as_bytes()[..]));
    let (_, recv) = timeout(SOON, control.connection.accept_stream(0)).await.unwrap().unwrap();
    let mut reader = FrameReader::new(recv, Some(SOON));
    let offer = peer::Offer::decode(reader.read().await.unwrap().unwrap().payload).unwrap();
    assert_eq!(offer.entries.len(), 1);
    assert_eq!(offer.entries[0].hash[..], held.hash.as_bytes()[..]);
    // More at once than allowed.
    for n in 0..5_u8 {
        let hashes = (0..2048_u32).map(|i| {
            let mut hash = [n; 32];
            hash[..4].copy_from_slice(&i.to_le_bytes());
            Bytes::copy_from_slice(&hash)
        });
        let (hashes, now) = (hashes.collect(), n % 2 == 0);
        control.send(Kind::Solicit, &peer::Solicit { hashes, now }).await;
    }
    still_syncs(&victim, &honest).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_costs_a_member_its_streams_and_nobody_else_anything() {
    let _shared = PROCESS.read().await;
    let (victim, honest) = victim_and_honest().await;
    let member = Member::join(&victim).await;
    let silent = member.connect().await;
    let quiet = async {
        // No Hello.
        silent.closed_with(CloseCode::Slow, "no Hello").await;
        // Streams with half a header.
        let control = member.greet().await;
        let mut streams = Vec::new();
        for _ in 0..14 {
            let (mut send, recv) = control.connection.open_stream(0).await.unwrap();
            send.write_all(&[32, 0]).await.unwrap();
            streams.push((send, recv));
        }
        for (_send, mut recv) in streams {
            let ended = timeout(SOON, recv.read_to_end(&mut Vec::new())).await;
            ended.expect("the stream was not given up").ok();
        }
        assert_eq!(control.connection.ended(), None);
        control
    };
    let (control, ()) = tokio::join!(quiet, still_syncs(&victim, &honest));
    still_syncs(&victim, &honest).await;
    control.connection.close(CloseCode::Ok, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_ends_and_memory_is_bounded() {
    let _alone = PROCESS.write().await;
    let (victim, honest) = victim_and_honest().await;
    let member = Member::join(&victim).await;
    still_syncs(&victim, &honest).await;
    let before = resident_bytes();
    for seed in 0..60_u64 {
        let noise = content((1 << 50) + seed, 1 + (seed as usize * 997) % 20_000);
        let mut control = member.connect().await;
        let kinds = [Kind::Hello, Kind::Compare, Kind::Page, Kind::Cells, Kind::Solicit];
        let head = frame(kinds[seed as usize % kinds.len()], &noise);
        control.raw(if seed % 2 == 0 { &noise } else { &head }).await;
        let _ = control.send.shutdown().await;
        control.closed("noise").await;

        let mut control = member.greet().await;
        if seed % 3 == 0 {
            control.raw(&head).await;
        }
        let opened = timeout(SOON, control.connection.open_stream(0)).await.unwrap();
        if let Ok((mut send, _recv)) = opened {
            let kind = [Kind::Offer, Kind::Contents, Kind::Piece][seed as usize % 3];
            let _ = send.write_all(&frame(kind, &noise)).await;
            let _ = send.shutdown().await;
            control.closed_with(CloseCode::Protocol, "noise").await;
        }
    }
    // Frames of the longest length that never end.
    for kind in [Kind::Solicit, Kind::Cells, Kind::Page] {
        let mut control = member.greet().await;
        control.raw(&Header::encode(kind, 1024 * 1024)).await;
        control.raw(&[0; 512 * 1024]).await;
        control.connection.close(CloseCode::Ok, "");
    }
    still_syncs(&victim, &honest).await;
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < GROWTH_BYTES_MAX, "{grown} bytes more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_proofs_are_logged_and_void_no_ticket() {
    let _shared = PROCESS.read().await;
    let victim = Device::start().await;
    let reply = victim.handle().ticket(Duration::from_secs(60)).await.unwrap();
    let ticket: Ticket = reply.ticket.parse().unwrap();
    let config = NetConfig {
        offline: true,
        bind: Some("127.0.0.1:0".parse().unwrap()),
        ..NetConfig::new(SecretKey::generate())
    };
    let net = Net::bind(config).await.unwrap();
    let own = Joiner {
        device_name: "guesser".into(),
        addresses: Vec::new(),
        hash_algorithm: HashAlgorithm::Blake3,
        verify: false,
    };
    let now_ms = reply.expires_ms - 60_000;
    for guess in 0..12 {
        let guessed = Ticket { secret: [guess; 16], ..ticket.clone() };
        let refused = ask(&net, &guessed, own.clone(), now_ms).await.unwrap_err();
        assert_eq!(refused, JoinError::Refused);
    }
    assert!(was_logged(&[" WARN ", "without a valid ticket", "127.0.0.1", "tries=1 "]));
    assert!(!was_logged(&["without a valid ticket", "tries=2"]), "one line a minute");
    Member::join_by(&victim, &reply.ticket, now_ms).await;
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_says_removed_and_shows_no_removal_is_not_believed() {
    let _shared = PROCESS.read().await;
    let (victim, honest) = victim_and_honest().await;
    let member = Member::join(&victim).await;
    let mut incoming = member.net.acceptor(Admission {
        verdict: Box::new(|_| Verdict::Removed),
        pairing_open: Box::new(|| false),
        introductions_open: Box::new(|| false),
    });
    // The victim dials it, is closed with REMOVED, and requests the removal.
    let (id, addresses) = (member.net.node_id(), member.net.addresses());
    let journal = victim.handle().journal();
    journal.run(move |journal, _| journal.reached(&id, &addresses)).await.unwrap();
    let asked = timeout(SOON, incoming.next()).await.expect("the victim asks");
    let Some(Accepted::Introduction(connection)) = asked else { panic!("{asked:?}") };
    introduction::host(connection, async |_| Introduced::Removed(Vec::new())).await;
    until("it is noted", &[&victim], async || was_logged(&["proves no removal that counts"])).await;
    assert!(!victim.status().device.removed);
    still_syncs(&victim, &honest).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_version_of_the_journal_ends_its_stream_alone_and_status_says_so() {
    let _shared = PROCESS.read().await;
    let (victim, honest) = victim_and_honest().await;
    let member = Member::join(&victim).await;
    for version in [1, VERSION + 1, u32::MAX] {
        let control = member.greet().await;
        let (mut send, mut recv) = control.connection.open_stream(0).await.unwrap();
        let (group, now_ms) = (member.group_id, wall_ms() as i64);
        let hello = journal::Hello { version, group, now_ms, intro: Vec::new(), features: 0 };
        let (kind, payload) = encode_message(&JournalMessage::Hello(hello));
        send.write_all(&frame(kind, &payload)).await.unwrap();
        send.flush().await.unwrap();
        let mut reader = FrameReader::new(&mut recv, Some(SOON));
        let refused = loop {
            let frame = reader.read().await.unwrap().expect("a refusal before the end");
            if let JournalMessage::Refuse(refuse) =
                decode_message(frame.kind, frame.payload).unwrap()
            {
                break refuse.code;
            }
        };
        assert_eq!(refused, RefuseCode::Version, "version {version}");
        let member_id = member.net.node_id();
        until("status says so", &[&victim], async || {
            let obstacles = victim.sees_node(member_id).obstacles;
            obstacles.iter().any(|said| said.contains("versions of the journal's protocol"))
        })
        .await;
        still_syncs(&victim, &honest).await;
        assert_eq!(control.connection.ended(), None, "version {version}");
        control.connection.close(CloseCode::Ok, "");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_device_that_dials_on_and_on_costs_no_memory_and_no_word_in_the_journal() {
    let _alone = PROCESS.write().await;
    const DIALS: u64 = 300;
    let (victim, honest) = victim_and_honest().await;
    let member = Member::join(&victim).await;
    victim.handle().remove(member.net.node_id().to_string()).await.unwrap();
    still_syncs(&victim, &honest).await;
    let ops = async || {
        let stats = victim.handle().journal().read(|reader| reader.stats()).await.unwrap();
        stats.logs.iter().map(|log| log.seq).sum::<u64>()
    };
    let before = (ops().await, resident_bytes());
    for _ in 0..DIALS {
        // Refused during the handshake or right after it.
        if let Ok(connection) = member.net.dial(member.victim, &member.addresses).await {
            let ended = timeout(SOON, connection.closed()).await.expect("it is closed");
            assert_eq!(ended.code, Some(CloseCode::Removed), "{ended:?}");
        }
    }
    // Ops of the two honest devices may still have arrived.
    let (said, grown) = (ops().await - before.0, resident_bytes().saturating_sub(before.1));
    assert!(said < DIALS / 10, "{said} ops");
    assert!(grown < GROWTH_BYTES_MAX / 3, "{grown} bytes more");
    still_syncs(&victim, &honest).await;
}

/// Carries packets between a caller and `at`, each 700 ms late.
async fn carry_slowly(front: UdpSocket, at: String) {
    const LATE: Duration = Duration::from_millis(700);
    let front = Arc::new(front);
    let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    back.connect(at).await.unwrap();
    let (mut there, mut here) = (vec![0; 2048], vec![0; 2048]);
    let (mut caller, mut late) = (None, JoinSet::new());
    loop {
        tokio::select! {
            Ok((n, from)) = front.recv_from(&mut there) => {
                caller = Some(from);
                let (back, packet) = (back.clone(), there[..n].to_vec());
                late.spawn(async move { sleep(LATE).await; back.send(&packet).await });
            }
            Ok(n) = back.recv(&mut here) => {
                let (front, packet, to) = (front.clone(), here[..n].to_vec(), caller.unwrap());
                late.spawn(async move { sleep(LATE).await; front.send_to(&packet, to).await });
            }
            Some(_) = late.join_next() => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_stops_within_seconds_and_logs_no_error_when_a_far_peer_is_gone() {
    let victim = Device::start().await;
    let mut member = Member::join(&victim).await;
    let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut path = JoinSet::new();
    let through = front.local_addr().unwrap().to_string();
    path.spawn(carry_slowly(front, std::mem::replace(&mut member.addresses[0], through)));
    // Its new address is known to nobody, so that there is no path but the slow one.
    member.net.close().await;
    member.net = bind(&member.key).await;
    let mut control = member.connect().await;
    control.send(Kind::Hello, &member.hello()).await;
    until("the far peer is connected", &[&victim], async || {
        matches!(victim.status().peers[0].state, PeerState::Syncing | PeerState::Idle)
    })
    .await;
    path.shutdown().await;
    let began = Instant::now();
    drop(victim);
    assert!(began.elapsed() < SOON / 2, "{:?}", began.elapsed());
    assert!(was_logged(&["some peers did not learn"]), "the peer was too near");
}
