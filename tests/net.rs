//! The network layer over real QUIC on loopback: which connections are admitted, what a connection
//! carries, what a hostile peer can and cannot do, and pairing.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use can_sync::core::close::CloseCode;
use can_sync::core::ids::{GroupId, HashAlgorithm, NodeId};
use can_sync::core::joining::{
    Introduced, Introduction, PairAccept, PairOffer, PairRequest, commitment,
};
use can_sync::core::journal::op::{LogInfo, SignedOp};
use can_sync::core::pairing::{pair_proof, proof_matches, ticket_key};
use can_sync::net::frame::{FrameReader, FrameWriter};
use can_sync::net::introduction;
use can_sync::net::pairing::{HostError, Hosting, JoinError, Joiner, ask, receive};
use can_sync::net::ticket::Ticket;
use can_sync::net::{
    Accepted, Acceptor, Admission, Connection, DialError, Ended, Net, NetConfig, NetEvent,
    PathKind, Protocol, Relay, SecretKey, Verdict,
};
use can_sync::wire::frame::{Header, Kind};
use can_sync::wire::proto::peer;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

/// Much longer than anything here takes, much shorter than a hang.
const SOON: Duration = Duration::from_secs(20);

/// Long enough to show that something does not happen.
const A_WHILE: Duration = Duration::from_millis(300);

fn config() -> NetConfig {
    NetConfig {
        offline: true,
        bind: Some("127.0.0.1:0".parse().unwrap()),
        ..NetConfig::new(SecretKey::generate())
    }
}

async fn bind() -> Net {
    Net::bind(config()).await.unwrap()
}

fn node_of(key: &SecretKey) -> NodeId {
    NodeId(*key.public().as_bytes())
}

fn admitting(members: &[NodeId]) -> Admission {
    let members: BTreeSet<_> = members.iter().copied().collect();
    Admission {
        verdict: Box::new(move |node| match members.contains(&node) {
            true => Verdict::Member,
            false => Verdict::Stranger,
        }),
        pairing_open: Box::new(|| false),
        introductions_open: Box::new(|| false),
    }
}

/// Two devices and the connection between them, as each sees it.
struct Pair {
    dialer: Net,
    acceptor: Net,
    dialed: Connection,
    accepted: Connection,
}

impl Pair {
    async fn connect() -> Self {
        Self::connect_with(config(), config()).await
    }

    async fn connect_with(dialer: NetConfig, acceptor: NetConfig) -> Self {
        let dialer = Net::bind(dialer).await.unwrap();
        let acceptor = Net::bind(acceptor).await.unwrap();
        let mut incoming = acceptor.acceptor(admitting(&[dialer.node_id()]));
        let addresses = acceptor.addresses();
        let both =
            async { tokio::join!(dialer.dial(acceptor.node_id(), &addresses), incoming.next()) };
        let (dialed, accepted) = timeout(SOON, both).await.unwrap();
        let Some(Accepted::Session(accepted)) = accepted else { panic!("{accepted:?}") };
        Self { dialer, acceptor, dialed: dialed.unwrap(), accepted }
    }

    async fn close(self) {
        tokio::join!(self.dialer.close(), self.acceptor.close());
    }
}

/// Accepts for ever and keeps accepted connections alive.
fn keep_accepting(mut acceptor: Acceptor) -> (JoinHandle<()>, Arc<Mutex<Vec<Connection>>>) {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keep = kept.clone();
    let task = tokio::spawn(async move {
        while let Some(accepted) = acceptor.next().await {
            let (Accepted::Session(connection)
            | Accepted::Pairing(connection)
            | Accepted::Introduction(connection)) = accepted;
            keep.lock().unwrap().push(connection);
        }
    });
    (task, kept)
}

async fn ended(connection: &Connection) -> Ended {
    timeout(SOON, connection.closed()).await.unwrap()
}

/// Held by tests that measure this process's memory and by those that use much of it.
static MEMORY: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// A peer that speaks QUIC as this program does, but breaks the protocol.
struct Raw(iroh::Endpoint);

impl Raw {
    async fn bind(key: &SecretKey) -> Self {
        let builder = iroh::Endpoint::builder(iroh::endpoint::presets::Minimal)
            .secret_key(key.clone())
            .clear_ip_transports();
        Self(builder.bind_addr("127.0.0.1:0").unwrap().bind().await.unwrap())
    }

    async fn connect(
        &self,
        at: &Net,
        alpns: &[&[u8]],
    ) -> Result<iroh::endpoint::Connection, String> {
        let id = iroh::EndpointId::from_bytes(at.node_id().as_bytes()).unwrap();
        let socket = at.addresses()[0].parse().unwrap();
        let address = iroh::EndpointAddr::new(id).with_ip_addr(socket);
        let others = alpns[1..].iter().map(|alpn| alpn.to_vec()).collect();
        let options = iroh::endpoint::ConnectOptions::new().with_additional_alpns(others);
        let connecting = self.0.connect_with_opts(address, alpns[0], options).await.unwrap();
        connecting.await.map_err(|error| format!("{error:?}"))
    }
}

// ---- connections -----------------------------------------------------------------------------

#[tokio::test]
async fn a_session_speaks_the_newest_protocol_both_know() {
    use Protocol::{Plain, Two};
    for (dialer, acceptor, expected) in [
        (vec![Two, Plain], vec![Two, Plain], Two),
        (vec![Two, Plain], vec![Plain], Plain),
        (vec![Plain], vec![Two, Plain], Plain),
        (vec![Plain, Two], vec![Two, Plain], Two),
    ] {
        let pair = Pair::connect_with(
            NetConfig { protocols: dialer, ..config() },
            NetConfig { protocols: acceptor, ..config() },
        )
        .await;
        assert_eq!((pair.dialed.protocol(), pair.accepted.protocol()), (expected, expected));
        assert_eq!(pair.dialed.peer(), pair.acceptor.node_id());
        assert_eq!(pair.accepted.peer(), pair.dialer.node_id());
        assert!(pair.dialed.dialed() && !pair.accepted.dialed());
        pair.close().await;
    }
}

#[tokio::test]
async fn devices_without_a_common_protocol_are_told_so_at_once() {
    let only = |protocol| NetConfig { protocols: vec![protocol], ..config() };
    let dialer = Net::bind(only(Protocol::Two)).await.unwrap();
    let acceptor = Net::bind(only(Protocol::Plain)).await.unwrap();
    let (task, kept) = keep_accepting(acceptor.acceptor(admitting(&[dialer.node_id()])));
    let refused = dialer.dial(acceptor.node_id(), &acceptor.addresses()).await;
    assert_eq!(refused.unwrap_err(), DialError::NoCommonProtocol);
    assert!(kept.lock().unwrap().is_empty());
    tokio::join!(dialer.close(), acceptor.close());
    timeout(SOON, task).await.unwrap().unwrap();
}

#[tokio::test]
async fn bytes_go_both_ways_and_a_close_arrives_with_its_words() {
    let pair = Pair::connect().await;
    let (mut send, mut recv) = pair.dialed.open_stream(1).await.unwrap();
    send.write_all(b"ping").await.unwrap();
    send.shutdown().await.unwrap();
    let (mut answer, mut question) = pair.accepted.accept_stream(0).await.unwrap();
    let mut asked = String::new();
    question.read_to_string(&mut asked).await.unwrap();
    assert_eq!(asked, "ping");
    answer.write_all(b"pong").await.unwrap();
    answer.shutdown().await.unwrap();
    let mut answered = String::new();
    recv.read_to_string(&mut answered).await.unwrap();
    assert_eq!(answered, "pong");

    pair.accepted.close(CloseCode::HashAlgorithm, "this one uses blake3\u{1b}[2J");
    let end = ended(&pair.dialed).await;
    assert!(end.by_peer);
    assert_eq!(end.code, Some(CloseCode::HashAlgorithm));
    assert_eq!(
        end.text,
        "closed by the peer: the stores use different hash algorithms (HASH_ALGORITHM): \
         this one uses blake3[2J"
    );
    assert!(!ended(&pair.accepted).await.by_peer);
    assert_eq!(pair.dialed.ended(), Some(end));
    pair.close().await;
}

#[tokio::test]
async fn an_answer_goes_before_what_its_side_has_to_send() {
    const BULK_BYTES: usize = 1024 * 1024;
    let pair = Pair::connect().await;
    let (mut ask, mut answered) = pair.dialed.open_stream(0).await.unwrap();
    ask.write_all(b"?").await.unwrap();
    let (mut answer, _question) = pair.accepted.accept_stream(90).await.unwrap();
    let (mut bulk, _) = pair.accepted.open_stream(10).await.unwrap();
    bulk.write_all(&vec![0; BULK_BYTES]).await.unwrap();
    answer.write_all(b"!").await.unwrap();
    let (_, mut bulky) = pair.dialed.accept_stream(0).await.unwrap();
    let (mut bulk_bytes, mut chunk) = (0, vec![0; 4096]);
    while bulk_bytes < BULK_BYTES {
        tokio::select! {
            biased;
            byte = answered.read_u8() => {
                assert_eq!(byte.unwrap(), b'!');
                break;
            }
            bytes = bulky.read(&mut chunk) => bulk_bytes += bytes.unwrap(),
        }
    }
    assert!(bulk_bytes < BULK_BYTES, "the answer came last");
    pair.close().await;
}

#[tokio::test]
async fn every_close_code_arrives_as_itself() {
    for code in CloseCode::all().chain([CloseCode::Unknown(4711)]) {
        let pair = Pair::connect().await;
        pair.dialed.close(code, "");
        let end = ended(&pair.accepted).await;
        assert_eq!(end.code, Some(code));
        assert!(end.text.contains(&code.to_string()), "{}", end.text);
        pair.close().await;
    }
}

#[tokio::test]
async fn a_stopping_device_says_so() {
    let pair = Pair::connect().await;
    pair.dialer.close().await;
    assert_eq!(ended(&pair.accepted).await.code, Some(CloseCode::Shutdown));
    let refused = pair.dialer.dial(pair.acceptor.node_id(), &pair.acceptor.addresses()).await;
    assert_eq!(refused.unwrap_err(), DialError::Stopping);
    pair.acceptor.close().await;
}

#[tokio::test]
async fn a_reset_or_dropped_stream_fails_while_the_connection_lives() {
    let pair = Pair::connect().await;
    let (mut send, recv) = pair.dialed.open_stream(0).await.unwrap();
    send.write_all(b"half").await.unwrap();
    let (mut send_back, mut received) = pair.accepted.accept_stream(0).await.unwrap();
    send.reset(CloseCode::Slow);
    assert!(timeout(SOON, received.read_to_end(&mut Vec::new())).await.unwrap().is_err());
    drop(recv);
    let refused = async { while send_back.write_all(&[0; 1024]).await.is_ok() {} };
    timeout(SOON, refused).await.unwrap();
    assert_eq!(pair.dialed.ended(), None);
    pair.close().await;
}

#[tokio::test]
async fn the_path_is_the_local_network_and_the_peers_address_is_known() {
    let pair = Pair::connect().await;
    let path = pair.dialed.path().unwrap();
    assert_eq!(path.kind, PathKind::Lan);
    assert!(path.rtt_ms > 0.0 && path.rtt_ms < 1000.0, "{path:?}");
    assert_eq!(pair.dialed.remote_addresses(), pair.acceptor.addresses());
    assert_eq!(pair.accepted.remote_addresses(), pair.dialer.addresses());
    pair.close().await;
}

#[tokio::test]
async fn a_dial_that_cannot_succeed_fails_soon_and_says_why() {
    let net = bind().await;
    let other = node_of(&SecretKey::generate());
    let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    assert_eq!(net.dial(net.node_id(), &[]).await.unwrap_err(), DialError::Itself);
    assert_eq!(net.dial(other, &[]).await.unwrap_err(), DialError::NoAddress);
    // Forged addresses: all are dropped except one where nobody answers.
    let mut addresses: Vec<_> = (1..1000).map(|n| format!("224.0.0.1:{n}")).collect();
    addresses.push("0.0.0.0:1".to_owned());
    assert_eq!(net.dial(other, &addresses).await.unwrap_err(), DialError::NoAddress);
    addresses.push(silent.local_addr().unwrap().to_string());
    let started = Instant::now();
    assert!(matches!(net.dial(other, &addresses).await, Err(DialError::NoAnswer(_))));
    assert!(started.elapsed() < Duration::from_secs(7));
    net.close().await;
}

#[tokio::test]
async fn an_id_that_is_no_public_key_is_refused() {
    let net = bind().await;
    let is_key = |id: &NodeId| iroh::EndpointId::from_bytes(id.as_bytes()).is_ok();
    let no_key = (0..).map(|n| NodeId([n; 32])).find(|id| !is_key(id)).unwrap();
    assert_eq!(net.dial(no_key, &[]).await.unwrap_err(), DialError::NotANodeId(no_key));
    net.close().await;
}

#[tokio::test]
async fn another_device_at_the_dialled_address_is_not_taken_for_the_peer() {
    let (net, impostor) = (bind().await, bind().await);
    let (_task, kept) = keep_accepting(impostor.acceptor(admitting(&[net.node_id()])));
    let meant = node_of(&SecretKey::generate());
    assert!(net.dial(meant, &impostor.addresses()).await.is_err());
    assert!(kept.lock().unwrap().is_empty());
    tokio::join!(net.close(), impostor.close());
}

#[tokio::test]
async fn a_third_connection_of_the_same_peer_replaces_the_oldest() {
    // A peer that was killed and started again dials from a new endpoint with its old key.
    let key = SecretKey::generate();
    let at = bind().await;
    let mut incoming = at.acceptor(admitting(&[node_of(&key)]));
    let (mut nets, mut dialed, mut accepted) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..3 {
        let net = Net::bind(NetConfig { secret_key: key.clone(), ..config() }).await.unwrap();
        let addresses = at.addresses();
        let (dial, next) = tokio::join!(net.dial(at.node_id(), &addresses), incoming.next());
        let Some(Accepted::Session(connection)) = next else { panic!("{next:?}") };
        nets.push(net);
        dialed.push(dial.unwrap());
        accepted.push(connection);
    }
    assert_eq!(ended(&dialed[0]).await.code, Some(CloseCode::Duplicate));
    assert!(accepted[1..].iter().all(|connection| connection.ended().is_none()));
    for net in nets {
        net.close().await;
    }
    at.close().await;
}

#[tokio::test]
async fn a_member_that_pairs_again_keeps_its_connections() {
    let (net, at) = (bind().await, bind().await);
    let member = admitting(&[net.node_id()]);
    let mut incoming = at.acceptor(Admission { pairing_open: Box::new(|| true), ..member });
    let addresses = at.addresses();
    let (mut dialed, mut accepted) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let (dial, next) = tokio::join!(net.dial(at.node_id(), &addresses), incoming.next());
        let Some(Accepted::Session(connection)) = next else { panic!("{next:?}") };
        dialed.push(dial.unwrap());
        accepted.push(connection);
    }
    let ticket = Ticket { inviter: at.node_id(), addresses, secret: [7; 16], expires_ms: 60_000 };
    let turned_away = async {
        let next = incoming.next().await;
        let Some(Accepted::Pairing(connection)) = next else { panic!("{next:?}") };
        connection.close(CloseCode::NotMember, "");
    };
    let (refused, ()) = tokio::join!(ask(&net, &ticket, joiner(), 0), turned_away);
    assert_eq!(refused.unwrap_err(), JoinError::Refused);
    let alive = |connection: &Connection| connection.ended().is_none();
    assert!(dialed.iter().chain(&accepted).all(alive));
    tokio::join!(net.close(), at.close());
}

#[tokio::test]
async fn the_sixty_fifth_connection_is_refused_until_one_has_ended() {
    let _alone = MEMORY.lock().await;
    let at = bind().await;
    let admission = Admission { verdict: Box::new(|_| Verdict::Member), ..admitting(&[]) };
    let (_task, kept) = keep_accepting(at.acceptor(admission));
    let addresses = at.addresses();
    let mut members = Vec::new();
    let mut join_in = async || {
        let net = bind().await;
        let connection = net.dial(at.node_id(), &addresses).await.unwrap();
        members.push((net, connection.clone()));
        connection
    };
    for _ in 0..64 {
        join_in().await;
    }
    let end = ended(&join_in().await).await;
    assert_eq!(end.code, Some(CloseCode::Internal));
    assert!(end.text.ends_with("too many connections"), "{end}");
    assert_eq!(kept.lock().unwrap().len(), 64);

    kept.lock().unwrap()[0].close(CloseCode::Ok, "");
    let connection = join_in().await;
    let deadline = Instant::now() + SOON;
    while kept.lock().unwrap().len() < 65 {
        assert_eq!(connection.ended(), None);
        assert!(Instant::now() < deadline, "it does not come in");
        sleep(Duration::from_millis(1)).await;
    }
    for (net, _) in members {
        net.close().await;
    }
    at.close().await;
}

#[tokio::test]
async fn an_own_relay_must_be_given_by_its_url() {
    let relay = Relay::Url("relay.example.org".to_owned());
    let error = Net::bind(NetConfig { relay, offline: false, ..config() }).await.unwrap_err();
    assert!(error.to_string().contains("https://relay.example.org"), "{error}");
}

#[tokio::test]
async fn the_port_of_last_time_is_taken_again_unless_somebody_else_has_it() {
    let on_all = |port| NetConfig { bind: None, port, ..config() };
    let first = Net::bind(on_all(None)).await.unwrap();
    let port = first.port();
    first.close().await;
    drop(first);
    // A closed endpoint releases its sockets a moment later.
    let again = timeout(SOON, async {
        loop {
            let again = Net::bind(on_all(port)).await.unwrap();
            if again.port() == port {
                return again;
            }
            again.close().await;
        }
    });
    let again = again.await.expect("the port of last time");
    let other = Net::bind(on_all(port)).await.unwrap();
    assert_ne!(other.port(), port);
    again.close().await;
    other.close().await;
}

// ---- strangers -------------------------------------------------------------------------------

/// Dials as a stranger with `first_bytes` on the first stream; returns how it ended, and how soon.
async fn knock(net: &Net, at: &Net, first_bytes: &[u8]) -> (Ended, Duration) {
    let connection = net.dial(at.node_id(), &at.addresses()).await.unwrap();
    let connected = Instant::now();
    if let Ok((mut send, _recv)) = connection.open_stream(0).await {
        // The connection may be closed during any of these.
        let _ = send.write_all(first_bytes).await;
        let _ = send.shutdown().await;
    }
    (ended(&connection).await, connected.elapsed())
}

#[tokio::test]
async fn a_stranger_gets_the_same_close_whatever_it_says() {
    let (stranger, at) = (bind().await, bind().await);
    let (task, kept) = keep_accepting(at.acceptor(admitting(&[])));
    let mut ends = BTreeSet::new();
    let kinds = (0..=255).step_by(5).chain([1, 2, 32, 64, 65]);
    for first in kinds.map(|kind| vec![kind, 0, 0, 0, 1, 7]).chain([vec![]]) {
        let (end, after) = knock(&stranger, &at, &first).await;
        assert_eq!(end.code, Some(CloseCode::NotMember));
        assert!(after < Duration::from_secs(1), "{after:?}");
        ends.insert(end.text);
    }
    assert_eq!(ends.len(), 1, "{ends:?}");
    // Pairing is refused too while no ticket is outstanding.
    let key = SecretKey::generate();
    let raw = Raw::bind(&key).await;
    let mut raw_ends = BTreeSet::new();
    for alpn in [&b"can-sync/pair/2"[..], b"can-sync/2", b"can-sync/1"] {
        let closed = raw.connect(&at, &[alpn]).await.unwrap().closed().await;
        raw_ends.insert(format!("{closed:?}"));
    }
    assert_eq!(raw_ends.len(), 1, "{raw_ends:?}");
    assert!(kept.lock().unwrap().is_empty());
    raw.0.close().await;
    tokio::join!(stranger.close(), at.close());
    timeout(SOON, task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_removed_device_is_told_that_it_was_removed() {
    let (removed, at) = (bind().await, bind().await);
    let admission = Admission { verdict: Box::new(|_| Verdict::Removed), ..admitting(&[]) };
    let (_task, kept) = keep_accepting(at.acceptor(admission));
    assert_eq!(knock(&removed, &at, b"").await.0.code, Some(CloseCode::Removed));
    assert!(kept.lock().unwrap().is_empty());
    tokio::join!(removed.close(), at.close());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_strangers_cost_little_memory_and_do_not_stop_a_members_transfer() {
    let _alone = MEMORY.lock().await;
    const STRANGERS: usize = 200;
    const ROUND: usize = 20;
    let pair = Pair::connect().await;
    let (task, kept) = keep_accepting(pair.acceptor.acceptor(admitting(&[])));
    let stop = Arc::new(AtomicBool::new(false));
    let sending = tokio::spawn({
        let (connection, stop) = (pair.dialed.clone(), stop.clone());
        async move {
            let (mut send, _recv) = connection.open_stream(0).await.unwrap();
            while !stop.load(Ordering::Relaxed) {
                send.write_all(&[5; 64 * 1024]).await.unwrap();
            }
            send.shutdown().await.unwrap();
        }
    });
    let received = Arc::new(AtomicUsize::new(0));
    let receiving = tokio::spawn({
        let (connection, received) = (pair.accepted.clone(), received.clone());
        async move {
            let (_send, mut recv) = connection.accept_stream(0).await.unwrap();
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let n = recv.read(&mut buffer).await.unwrap();
                if n == 0 {
                    return;
                }
                received.fetch_add(n, Ordering::Relaxed);
            }
        }
    });
    // The strangers' own endpoints are in this process too, so one at a time; the first round warms
    // up.
    let knocking = || async {
        let stranger = bind().await;
        let refused = timeout(SOON, knock(&stranger, &pair.acceptor, b"hello")).await;
        stranger.close().await;
        refused.unwrap().0.code
    };
    for _ in 0..ROUND {
        assert_eq!(knocking().await, Some(CloseCode::NotMember));
    }
    let before = resident_bytes();
    for _ in 0..STRANGERS / ROUND {
        let progress = received.load(Ordering::Relaxed);
        for _ in 0..ROUND {
            assert_eq!(knocking().await, Some(CloseCode::NotMember));
        }
        let progress = received.load(Ordering::Relaxed) - progress;
        assert!(progress > 1 << 20, "only {progress} bytes while {ROUND} strangers came");
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 32 << 20, "grew by {grown} bytes");
    assert!(kept.lock().unwrap().is_empty());
    stop.store(true, Ordering::Relaxed);
    timeout(SOON, sending).await.unwrap().unwrap();
    timeout(SOON, receiving).await.unwrap().unwrap();
    pair.close().await;
    timeout(SOON, task).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_comes_in_from_where_it_is_known_while_its_source_is_turned_away_for_strangers() {
    let _alone = MEMORY.lock().await;
    const REFUSED_PER_SOURCE_MAX: usize = 512;
    let (member, at) = (bind().await, bind().await);
    let (_task, kept) = keep_accepting(at.acceptor(admitting(&[member.node_id()])));
    let (node, addresses) = (at.node_id(), at.addresses());
    let refused = Arc::new(AtomicUsize::new(0));
    let mut strangers = JoinSet::new();
    for _ in 0..4 {
        let (stranger, addresses, refused) = (bind().await, addresses.clone(), refused.clone());
        strangers.spawn(async move {
            while refused.load(Ordering::Relaxed) < REFUSED_PER_SOURCE_MAX {
                match stranger.dial(node, &addresses).await {
                    Ok(connection) => {
                        ended(&connection).await;
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(DialError::Busy) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            stranger.close().await;
        });
    }
    while let Some(knocked) = timeout(3 * SOON, strangers.join_next()).await.unwrap() {
        knocked.unwrap();
    }
    let stranger = bind().await;
    for caller in [&stranger, &member] {
        assert_eq!(caller.dial(node, &addresses).await.unwrap_err(), DialError::Busy);
    }
    at.set_member_addresses(member.addresses().iter());
    member.dial(node, &addresses).await.unwrap();
    assert_eq!(stranger.dial(node, &addresses).await.unwrap_err(), DialError::Busy);
    let deadline = Instant::now() + SOON;
    while kept.lock().unwrap().is_empty() {
        assert!(Instant::now() < deadline, "the member never comes in");
        sleep(Duration::from_millis(1)).await;
    }
    tokio::join!(member.close(), stranger.close(), at.close());
}

/// Forwards a caller's packets to `at`, but of the answers only requests to prove its address. So
/// its handshake begins and never ends.
async fn carry_one_way(front: tokio::net::UdpSocket, at: String, retries: Arc<AtomicUsize>) {
    const RETRY_TYPE: u8 = 0xf0;
    let back = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    back.connect(at).await.unwrap();
    let (mut there, mut here) = (vec![0; 2048], vec![0; 2048]);
    let mut caller = None;
    loop {
        tokio::select! {
            Ok((n, from)) = front.recv_from(&mut there) => {
                caller = Some(from);
                back.send(&there[..n]).await.unwrap();
            }
            Ok(n) = back.recv(&mut here) => {
                if here[0] & RETRY_TYPE == RETRY_TYPE {
                    front.send_to(&here[..n], caller.unwrap()).await.unwrap();
                    retries.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
}

#[tokio::test]
async fn callers_that_never_finish_the_handshake_do_not_keep_a_member_out() {
    let (member, at) = (bind().await, bind().await);
    let (_task, kept) = keep_accepting(at.acceptor(admitting(&[member.node_id()])));
    let retries = Arc::new(AtomicUsize::new(0));
    let (mut carriers, mut callers) = (JoinSet::new(), JoinSet::new());
    for _ in 0..16 {
        let front = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let through = [front.local_addr().unwrap().to_string()];
        carriers.spawn(carry_one_way(front, at.addresses()[0].clone(), retries.clone()));
        let (caller, node) = (bind().await, at.node_id());
        callers.spawn(async move { caller.dial(node, &through).await.map(|_| ()) });
    }
    let began = Instant::now();
    let deadline = began + SOON;
    // The fault must exist: enough handshakes hang that proofs of address are requested.
    while retries.load(Ordering::Relaxed) == 0 {
        assert!(Instant::now() < deadline, "no handshake hangs");
        sleep(Duration::from_millis(1)).await;
    }
    while member.dial(at.node_id(), &at.addresses()).await.is_err() {
        assert!(Instant::now() < deadline, "the member is kept out");
        sleep(Duration::from_millis(100)).await;
    }
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    while kept.lock().unwrap().is_empty() {
        assert!(Instant::now() < deadline, "the member never comes in");
        sleep(Duration::from_millis(1)).await;
    }
    while let Some(called) = callers.join_next().await {
        assert!(called.unwrap().is_err());
    }
    tokio::join!(member.close(), at.close());
}

// ---- hostile and slow members ----------------------------------------------------------------

#[tokio::test]
async fn a_reader_that_stalls_on_many_small_frames_does_not_lose_the_connection() {
    let _alone = MEMORY.lock().await;
    const FRAMES: u64 = 60_000;
    let pair = Pair::connect().await;
    let connection = pair.dialed.clone();
    let writing = tokio::spawn(async move {
        let (send, _recv) = connection.open_stream(0).await.unwrap();
        let mut writer = FrameWriter::new(send, SOON);
        for round in 0..FRAMES {
            let pull = peer::Pull { round, ..Default::default() };
            writer.write(Kind::Pull, &pull).await.unwrap();
        }
        writer.finish().await.unwrap();
        connection.closed().await
    });
    let (_send, recv) = pair.accepted.accept_stream(0).await.unwrap();
    // The stall is what this tests.
    sleep(Duration::from_secs(3)).await;
    let mut reader = FrameReader::new(recv, Some(SOON));
    for round in 0..FRAMES {
        let frame = reader.read().await.unwrap().unwrap();
        let pull = peer::Pull::decode(frame.payload).unwrap();
        assert_eq!(pull.round, round);
    }
    assert_eq!(reader.read().await.unwrap(), None);
    pair.accepted.close(CloseCode::Ok, "");
    assert_eq!(timeout(SOON, writing).await.unwrap().unwrap().code, Some(CloseCode::Ok));
    pair.close().await;
}

#[tokio::test]
async fn a_stalled_bulk_stream_leaves_the_other_streams_alive() {
    let _alone = MEMORY.lock().await;
    const BULK: usize = 64 << 20;
    let pair = Pair::connect().await;
    let (mut send_bulk, _answer) = pair.dialed.open_stream(-1).await.unwrap();
    let bulk_sent = Arc::new(AtomicUsize::new(0));
    let bulk = tokio::spawn({
        let sent = bulk_sent.clone();
        async move {
            let piece = vec![1; 1 << 20];
            for _ in 0..BULK / piece.len() {
                send_bulk.write_all(&piece).await?;
                sent.fetch_add(piece.len(), Ordering::Relaxed);
            }
            send_bulk.shutdown().await
        }
    });
    let (_answer, mut stalled) = pair.accepted.accept_stream(0).await.unwrap();

    let (mut send, mut recv) = pair.dialed.open_stream(1).await.unwrap();
    let echo = tokio::spawn({
        let connection = pair.accepted.clone();
        async move {
            let (mut send, mut recv) = connection.accept_stream(0).await.unwrap();
            tokio::io::copy(&mut recv, &mut send).await.unwrap();
            send.shutdown().await.unwrap();
        }
    });
    let mut back = [0; 8];
    for round in 0..1000_u64 {
        send.write_all(&round.to_be_bytes()).await.unwrap();
        timeout(SOON, recv.read_exact(&mut back)).await.unwrap().unwrap();
        assert_eq!(u64::from_be_bytes(back), round);
    }
    send.shutdown().await.unwrap();
    timeout(SOON, echo).await.unwrap().unwrap();
    // The bulk has been sent no further than the windows allow, and continues once it is read.
    assert!(bulk_sent.load(Ordering::Relaxed) <= 16 << 20);
    let mut sink = tokio::io::sink();
    let read = timeout(SOON, tokio::io::copy(&mut stalled, &mut sink)).await.unwrap().unwrap();
    assert_eq!(read, BULK as u64);
    timeout(SOON, bulk).await.unwrap().unwrap().unwrap();
    pair.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_fills_every_stream_unread_gets_no_further_than_the_windows() {
    let _alone = MEMORY.lock().await;
    let pair = Pair::connect().await;
    let before = resident_bytes();
    let sent = Arc::new(AtomicUsize::new(0));
    let mut writers = JoinSet::new();
    for _ in 0..40 {
        let (connection, sent) = (pair.dialed.clone(), sent.clone());
        writers.spawn(async move {
            // From the seventeenth on this waits until the connection ends.
            let Ok((mut send, _recv)) = connection.open_stream(0).await else { return };
            while let Ok(n) = send.write(&[9; 16 * 1024]).await {
                sent.fetch_add(n, Ordering::Relaxed);
            }
        });
    }
    let deadline = Instant::now() + SOON;
    let mut last = 0;
    loop {
        sleep(A_WHILE).await;
        let now = sent.load(Ordering::Relaxed);
        if now == last && now > 0 {
            break;
        }
        assert!(Instant::now() < deadline, "it never stops: {now} bytes");
        last = now;
    }
    assert!((4 << 20..=16 << 20).contains(&last), "{last} bytes");
    // Sender and receiver are in one process here.
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 48 << 20, "grew by {grown} bytes");
    assert_eq!(pair.accepted.ended(), None);
    pair.close().await;
    timeout(SOON, writers.join_all()).await.unwrap();
}

#[tokio::test]
async fn the_seventeenth_stream_waits_until_others_have_ended() {
    let pair = Pair::connect().await;
    let mut open = Vec::new();
    for _ in 0..16 {
        let mut ours = pair.dialed.open_stream(0).await.unwrap();
        ours.0.write_all(b"x").await.unwrap();
        open.push((ours, pair.accepted.accept_stream(0).await.unwrap()));
    }
    let dialed = pair.dialed.clone();
    let mut waiting = std::pin::pin!(dialed.open_stream(0));
    assert!(timeout(A_WHILE, &mut waiting).await.is_err());
    // Ended streams are replaced in threes.
    for ((mut send, mut recv), (mut answer, mut question)) in open.drain(..3) {
        send.shutdown().await.unwrap();
        question.read_to_end(&mut Vec::new()).await.unwrap();
        answer.shutdown().await.unwrap();
        recv.read_to_end(&mut Vec::new()).await.unwrap();
    }
    timeout(SOON, waiting).await.unwrap().unwrap();
    pair.close().await;
}

#[tokio::test]
async fn unidirectional_streams_and_datagrams_are_not_to_be_had() {
    let (at, key) = (bind().await, SecretKey::generate());
    let (_task, kept) = keep_accepting(at.acceptor(admitting(&[node_of(&key)])));
    let raw = Raw::bind(&key).await;
    let connection = raw.connect(&at, &[b"can-sync/2"]).await.unwrap();
    assert!(timeout(A_WHILE, connection.open_uni()).await.is_err());
    assert_eq!(connection.max_datagram_size(), None);
    assert!(connection.send_datagram(b"x".to_vec().into()).is_err());
    assert!(connection.close_reason().is_none());
    assert_eq!(kept.lock().unwrap().len(), 1);
    raw.0.close().await;
    at.close().await;
}

#[tokio::test]
async fn other_protocols_are_refused_in_the_handshake() {
    let (at, key) = (bind().await, SecretKey::generate());
    let (_task, kept) = keep_accepting(at.acceptor(admitting(&[node_of(&key)])));
    let raw = Raw::bind(&key).await;
    for alpn in [&b"can-sync/3"[..], b"can-sync/", b"h3", b"can-sync/2\0", &[b'a'; 255]] {
        let error = raw.connect(&at, &[alpn]).await.unwrap_err();
        assert!(error.contains("known protocol"), "{error}");
    }
    assert!(kept.lock().unwrap().is_empty());
    raw.0.close().await;
    at.close().await;
}

#[tokio::test]
async fn a_frame_beyond_its_limit_is_refused_by_its_header() {
    let pair = Pair::connect().await;
    let (mut send, _recv) = pair.dialed.open_stream(0).await.unwrap();
    send.write_all(&Header::encode(Kind::PairRequest, 8 * 1024 + 1)).await.unwrap();
    let (_send, recv) = pair.accepted.accept_stream(0).await.unwrap();
    let mut reader = FrameReader::new(recv, Some(SOON));
    assert!(reader.read().await.unwrap_err().to_string().contains("the limit is 8192"));
    pair.close().await;
}

// ---- pairing ---------------------------------------------------------------------------------

const SECRET: [u8; 16] = [42; 16];

fn joiner() -> Joiner {
    Joiner {
        device_name: "laptop".to_owned(),
        addresses: vec!["10.0.0.1:7".to_owned()],
        hash_algorithm: HashAlgorithm::Blake3,
        verify: false,
    }
}

/// An inviter with one ticket, and the members that it has added.
struct Inviter {
    net: Net,
    ticket: Ticket,
    outstanding: Arc<AtomicBool>,
    incoming: Acceptor,
}

/// The step after which an inviter or a joiner disappears.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Asked,
    Offered,
    Confirmed,
    Accepted,
    Done,
}

impl Inviter {
    async fn new() -> Self {
        let net = bind().await;
        let ticket = Ticket {
            inviter: net.node_id(),
            addresses: net.addresses(),
            secret: SECRET,
            expires_ms: 1000,
        };
        let outstanding = Arc::new(AtomicBool::new(true));
        let open = outstanding.clone();
        let incoming = net.acceptor(Admission {
            verdict: Box::new(|_| Verdict::Stranger),
            pairing_open: Box::new(move || open.load(Ordering::Relaxed)),
            introductions_open: Box::new(|| false),
        });
        Self { net, ticket, outstanding, incoming }
    }

    async fn next(&mut self) -> Connection {
        let next = self.incoming.next().await;
        let Some(Accepted::Pairing(connection)) = next else { panic!("{next:?}") };
        connection
    }

    /// Hosts the next joiner. Returns its digits.
    async fn host(&mut self) -> Result<String, HostError> {
        self.host_until(Step::Done, 0).await
    }

    /// As [`Self::host`], but disappears after a step. Its clock shows `now_ms`.
    async fn host_until(&mut self, last: Step, now_ms: u64) -> Result<String, HostError> {
        let connection = self.next().await;
        let mut hosting = receive(connection).await?;
        let code = self.answer(&mut hosting, last, now_ms).await?;
        if last == Step::Done {
            hosting.done();
        }
        Ok(code)
    }

    async fn answer(
        &self,
        hosting: &mut Hosting,
        last: Step,
        now_ms: u64,
    ) -> Result<String, HostError> {
        let me = self.net.node_id();
        let PairRequest { joiner, proof, .. } = hosting.request().clone();
        assert!(proof_matches(&ticket_key(&SECRET), &me, &joiner, &proof));
        assert_eq!(hosting.request().addresses, ["10.0.0.1:7"]);
        let offer = PairOffer {
            group_id: GroupId([6; 32]),
            nonce: [7; 32],
            members: 2,
            device_name: "desk".to_owned(),
            now_ms,
            verify: hosting.request().verify,
        };
        if last == Step::Asked {
            return Ok(String::new());
        }
        let code = hosting.offer(me, &offer).await?;
        if last >= Step::Confirmed {
            hosting.confirmed(offer.verify).await?;
        }
        if last >= Step::Accepted {
            self.outstanding.store(false, Ordering::Relaxed);
            hosting.accept(&PairAccept { intro: Vec::new() }).await?;
        }
        Ok(code)
    }
}

/// Redeems a ticket, and disappears after a step. Returns the digits.
async fn join(
    net: &Net,
    ticket: &Ticket,
    own: Joiner,
    now_ms: u64,
    last: Step,
) -> Result<String, JoinError> {
    let mut joining = ask(net, ticket, own, now_ms).await?;
    let code = joining.short_code().to_owned();
    if last >= Step::Accepted {
        let accept = joining.confirm().await?;
        assert_eq!(accept.intro, []);
    }
    if last == Step::Done {
        assert!(joining.joined().await);
    }
    Ok(code)
}

#[tokio::test]
async fn an_introduction_is_answered_and_only_while_the_door_is_open() {
    let (member, newcomer) = (bind().await, bind().await);
    let open = Arc::new(AtomicBool::new(true));
    let is_open = open.clone();
    let mut incoming = member.acceptor(Admission {
        introductions_open: Box::new(move || is_open.load(Ordering::Relaxed)),
        ..admitting(&[])
    });
    let shown = Introduction { group_id: GroupId([6; 32]), intro: Vec::new() };
    let (id, addresses) = (member.node_id(), member.addresses());
    let log = LogInfo { author: id, nonce: [1; 16] };
    let removal = vec![SignedOp { log, body: vec![7; 300].into(), sig: [8; 64] }];
    for answer in [Introduced::LetIn, Introduced::Refused, Introduced::Removed(removal)] {
        let host = async {
            let next = incoming.next().await;
            let Some(Accepted::Introduction(connection)) = next else { panic!("{next:?}") };
            introduction::host(connection, async |read| {
                assert_eq!(read, shown);
                answer.clone()
            })
            .await;
        };
        let introduced = introduction::introduce(&newcomer, id, &addresses, &shown);
        assert_eq!(tokio::join!(introduced, host).0, answer);
    }
    open.store(false, Ordering::Relaxed);
    tokio::select! {
        answer = introduction::introduce(&newcomer, id, &addresses, &shown) => {
            assert_eq!(answer, Introduced::Refused);
        }
        next = incoming.next() => panic!("{next:?}"),
    }
    tokio::join!(member.close(), newcomer.close());
}

#[tokio::test]
async fn a_ticket_lets_one_device_in_and_a_second_use_is_refused() {
    let mut inviter = Inviter::new().await;
    let (first, second) = (bind().await, bind().await);
    let ticket: Ticket = inviter.ticket.to_string().parse().unwrap();
    let joining = join(&first, &ticket, joiner(), 999, Step::Done);
    let (joined, hosted) = tokio::join!(joining, inviter.host());
    assert_eq!(joined.unwrap(), hosted.unwrap(), "both show the same digits");

    // A used ticket: as if there had never been one.
    let refused = tokio::select! {
        refused = join(&second, &ticket, joiner(), 999, Step::Done) => refused,
        next = inviter.incoming.next() => panic!("{next:?}"),
    };
    assert_eq!(refused, Err(JoinError::Refused));
    tokio::join!(inviter.net.close(), first.close(), second.close());
}

#[tokio::test]
async fn the_digits_are_new_in_every_pairing() {
    let mut inviter = Inviter::new().await;
    let net = bind().await;
    let ticket = inviter.ticket.clone();
    let mut codes = BTreeSet::new();
    for _ in 0..3 {
        let joining = ask(&net, &ticket, joiner(), 0);
        let hosting = inviter.host_until(Step::Offered, 0);
        let (joining, hosted) = tokio::join!(joining, hosting);
        let code = hosted.unwrap();
        assert_eq!(joining.unwrap().short_code(), code);
        codes.insert(code);
    }
    assert_eq!(codes.len(), 3, "{codes:?}");
    tokio::join!(inviter.net.close(), net.close());
}

#[tokio::test]
async fn a_joiner_that_chooses_its_nonce_after_the_inviters_is_turned_away() {
    let mut inviter = Inviter::new().await;
    let raw = Raw::bind(&SecretKey::generate()).await;
    let at = inviter.net.clone();
    let me = NodeId(*raw.0.id().as_bytes());
    let request = peer::PairRequest {
        proof: pair_proof(&SECRET, &at.node_id(), &me).to_vec().into(),
        device_name: "thief".into(),
        addresses: vec!["10.0.0.1:7".into()],
        hash_algorithm: "blake3".into(),
        commitment: commitment(&[1; 32]).to_vec().into(),
        verify: true,
    };
    let reveal = peer::PairReveal { nonce: vec![2; 32].into() };
    let stealing = async {
        let connection = raw.connect(&at, &[b"can-sync/pair/2"]).await.unwrap();
        let (send, mut recv) = connection.open_bi().await.unwrap();
        let mut writer = FrameWriter::new(send, SOON);
        writer.write(Kind::PairRequest, &request).await.unwrap();
        writer.flush().await.unwrap();
        recv.read_exact(&mut [0]).await.unwrap();
        writer.write(Kind::PairReveal, &reveal).await.unwrap();
        writer.flush().await.unwrap();
        connection.closed().await
    };
    let (_, hosted) = tokio::join!(stealing, inviter.host());
    assert_eq!(hosted, Err(HostError::OtherNonce));
    raw.0.close().await;
    inviter.net.close().await;
}

#[tokio::test]
async fn a_pairing_may_break_off_at_each_step_and_both_sides_say_so() {
    let mut inviter = Inviter::new().await;
    let net = bind().await;
    let ticket = inviter.ticket.clone();
    for last in [Step::Asked, Step::Offered, Step::Confirmed] {
        let joining = join(&net, &ticket, joiner(), 0, Step::Done);
        let hosting = inviter.host_until(last, 0);
        let (joined, hosted) =
            timeout(SOON, async { tokio::join!(joining, hosting) }).await.unwrap();
        assert!(matches!(joined, Err(JoinError::Lost(_))), "{last:?}: {joined:?}");
        assert!(hosted.is_ok(), "{last:?}: {hosted:?}");
    }
    for last in [Step::Offered, Step::Accepted] {
        let joining = join(&net, &ticket, joiner(), 0, last);
        let (joined, hosted) =
            timeout(SOON, async { tokio::join!(joining, inviter.host()) }).await.unwrap();
        assert!(joined.is_ok(), "{last:?}: {joined:?}");
        let expected = matches!(
            (last, &hosted),
            (Step::Offered, Err(HostError::CalledOff(_)))
                | (Step::Accepted, Err(HostError::Unconfirmed(_)))
        );
        assert!(expected, "{last:?}: {hosted:?}");
    }
    tokio::join!(inviter.net.close(), net.close());
}

#[tokio::test]
async fn clocks_too_far_apart_are_named_before_anybody_is_added() {
    let mut inviter = Inviter::new().await;
    let net = bind().await;
    let ticket = Ticket { expires_ms: u64::MAX, ..inviter.ticket.clone() };
    let hour_ms = 3_600_000;
    for (joiners_ms, inviters_ms, words) in
        [(hour_ms, 0, "60 minutes ahead of"), (0, 3 * hour_ms, "3 hours behind")]
    {
        let joining = join(&net, &ticket, joiner(), joiners_ms, Step::Done);
        let hosting = inviter.host_until(Step::Done, inviters_ms);
        let (joined, hosted) = tokio::join!(joining, hosting);
        let error = joined.unwrap_err();
        assert!(
            matches!(error, JoinError::Clock { .. }) && error.to_string().contains(words),
            "{error}"
        );
        assert!(matches!(hosted, Err(HostError::CalledOff(_))), "{hosted:?}");
    }
    tokio::join!(inviter.net.close(), net.close());
}

#[tokio::test]
async fn a_joiner_is_told_why_only_when_its_proof_is_right() {
    let mut inviter = Inviter::new().await;
    let net = bind().await;
    let ticket = inviter.ticket.clone();
    for (code, words, expected) in [
        (CloseCode::NotMember, "", JoinError::Refused),
        (
            CloseCode::NotMember,
            "the group is full",
            JoinError::Declined("the group is full".into()),
        ),
        (CloseCode::Removed, "", JoinError::Removed),
        (CloseCode::HashAlgorithm, "", JoinError::HashAlgorithm { own: HashAlgorithm::Blake3 }),
    ] {
        let hosting = async {
            let connection = inviter.next().await;
            receive(connection).await.unwrap().refuse(code, words);
        };
        let joining = join(&net, &ticket, joiner(), 0, Step::Done);
        let (joined, ()) = tokio::join!(joining, hosting);
        assert_eq!(joined, Err(expected));
    }
    tokio::join!(inviter.net.close(), net.close());
}

#[tokio::test]
async fn tickets_that_cannot_work_are_refused_without_a_dial() {
    let inviter = Inviter::new().await;
    let own = join(&inviter.net, &inviter.ticket, joiner(), 0, Step::Done).await;
    assert_eq!(own, Err(JoinError::OwnTicket));
    let net = bind().await;
    let late = join(&net, &inviter.ticket, joiner(), 1000 + 3 * 60_000, Step::Done);
    let late = late.await.unwrap_err();
    assert_eq!(late, JoinError::Expired { ago_ms: 3 * 60_000 });
    assert!(late.to_string().contains("3 minutes ago"), "{late}");
    tokio::join!(inviter.net.close(), net.close());
}

#[tokio::test]
async fn an_inviter_that_is_gone_is_named_with_what_to_check() {
    let inviter = Inviter::new().await;
    inviter.net.close().await;
    let net = bind().await;
    let gone = join(&net, &inviter.ticket, joiner(), 0, Step::Done).await.unwrap_err();
    assert!(matches!(gone, JoinError::Unreachable { .. }), "{gone:?}");
    assert!(gone.to_string().contains(&inviter.net.node_id().short()), "{gone}");
    net.close().await;
}

#[tokio::test]
async fn a_joiner_that_says_nothing_or_nonsense_is_sent_away_without_a_hint() {
    let mut inviter = Inviter::new().await;
    let raw = Raw::bind(&SecretKey::generate()).await;
    let nonsense: [&[u8]; 4] =
        [b"", &[64, 0, 0, 0, 1, 7], &[64, 255, 255, 255, 255], &[1, 0, 0, 0, 0]];
    let mut ends = BTreeSet::new();
    let at = inviter.net.clone();
    for first in nonsense {
        let knocking = async {
            let connection = raw.connect(&at, &[b"can-sync/pair/2"]).await.unwrap();
            let (mut send, _recv) = connection.open_bi().await.unwrap();
            send.write_all(first).await.unwrap();
            connection.closed().await
        };
        let (closed, hosted) = tokio::join!(knocking, inviter.host());
        assert!(hosted.is_err());
        ends.insert(format!("{closed:?}"));
    }
    assert_eq!(ends.len(), 1, "{ends:?}");
    assert!(ends.first().unwrap().contains("error_code: 2"), "{ends:?}");
    raw.0.close().await;
    inviter.net.close().await;
}

#[tokio::test]
async fn a_joiner_cannot_make_the_inviter_hold_more_than_one_request() {
    let mut inviter = Inviter::new().await;
    let at = inviter.net.clone();
    let raw = Raw::bind(&SecretKey::generate()).await;
    // Offering the session's protocol as well does not help.
    let alpns: [&[u8]; 2] = [b"can-sync/2", b"can-sync/pair/2"];
    let (connection, accepted) = tokio::join!(raw.connect(&at, &alpns), inviter.incoming.next());
    assert!(matches!(accepted, Some(Accepted::Pairing(_))), "{accepted:?}");
    let connection = connection.unwrap();
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    let mut sent = 0;
    while let Ok(n) = timeout(A_WHILE, send.write(&[0; 64 * 1024])).await {
        sent += n.unwrap();
        assert!(sent <= 16 * 1024, "{sent} bytes");
    }
    assert!(sent > 0);
    assert!(timeout(A_WHILE, connection.open_bi()).await.is_err());
    raw.0.close().await;
    inviter.net.close().await;
}

// ---- the local network -----------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_of_one_local_network_find_each_other_by_id_alone() {
    let here = || NetConfig { bind: None, ..config() };
    let (dialer, acceptor) = (Net::bind(here()).await.unwrap(), Net::bind(here()).await.unwrap());
    if !dialer.warnings().is_empty() {
        // This machine is in no local network; only the warning can be checked.
        tokio::join!(dialer.close(), acceptor.close());
        return;
    }
    let mut events = dialer.events().await;
    let mut incoming = acceptor.acceptor(admitting(&[dialer.node_id()]));
    let met = async {
        while events.next().await != NetEvent::Seen(acceptor.node_id()) {}
        tokio::join!(dialer.dial(acceptor.node_id(), &[]), incoming.next())
    };
    let (dialed, accepted) = timeout(2 * SOON, met).await.unwrap();
    assert!(matches!(accepted, Some(Accepted::Session(_))), "{accepted:?}");
    assert_eq!(dialed.unwrap().path().unwrap().kind, PathKind::Lan);
    tokio::join!(dialer.close(), acceptor.close());
}

// ---- relay -----------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_that_know_only_a_relay_and_an_id_connect() {
    use iroh_relay::server::{RelayConfig, Server, ServerConfig};
    let mut relay = ServerConfig::default();
    relay.relay = Some(RelayConfig::new(([127, 0, 0, 1], 0)));
    let relay = Server::spawn(relay).await.unwrap();
    let url = format!("http://{}/", relay.http_addr().unwrap());
    let through = || NetConfig { offline: false, relay: Relay::Url(url.clone()), ..config() };
    let dialer = Net::bind(through()).await.unwrap();
    let acceptor = Net::bind(through()).await.unwrap();
    let mut incoming = acceptor.acceptor(admitting(&[dialer.node_id()]));
    let dial = async {
        let deadline = Instant::now() + 2 * SOON;
        loop {
            // The acceptor may not have reached its relay yet.
            match dialer.dial(acceptor.node_id(), std::slice::from_ref(&url)).await {
                Ok(connection) => return connection,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        }
    };
    let (dialed, accepted) = tokio::join!(dial, incoming.next());
    let Some(Accepted::Session(accepted)) = accepted else { panic!("{accepted:?}") };
    let (mut send, _recv) = dialed.open_stream(0).await.unwrap();
    send.write_all(b"through").await.unwrap();
    let (_send, mut recv) = accepted.accept_stream(0).await.unwrap();
    let mut received = [0; 7];
    timeout(SOON, recv.read_exact(&mut received)).await.unwrap().unwrap();
    assert_eq!(&received, b"through");
    assert!(acceptor.addresses().contains(&url), "{:?}", acceptor.addresses());
    tokio::join!(dialer.close(), acceptor.close());
    relay.shutdown().await.unwrap();
}
