//! How the HTTP client handles a store that lies, hangs, breaks off or is another program.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use can_sync::core::ids::{Digest, Hash, HashAlgorithm};
use can_sync::http::store_api::Features;
use can_sync::store::http::{Deadlines, HttpStore, Stated};
use can_sync::store::key::StoreKey;
use can_sync::store::{
    Condition, Filter, Metadata, NewAsset, Store, StoreError, Stored, Touched, VerifiedFile,
};
use can_sync::wire::proto::store as proto;
use common::{asset, content, file};
use futures_util::StreamExt as _;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const WAIT: Duration = Duration::from_secs(20);
const BLAKE3: HashAlgorithm = HashAlgorithm::Blake3;

/// Short enough for a test, long enough for a busy machine to answer.
const SHORT: Deadlines = Deadlines {
    connect: Duration::from_millis(500),
    header: Duration::from_millis(500),
    body: Duration::from_millis(500),
    slowest_bytes_per_s: 1 << 40,
};

/// How a bad store answers a request.
#[derive(Clone)]
enum Reply {
    /// Sends these bytes and closes.
    Send(Vec<u8>),
    /// Sends these bytes and then nothing for ever.
    Hang(Vec<u8>),
    /// Sends the first bytes, then the others again and again with pauses.
    Drip(Vec<u8>, Vec<u8>, Duration),
}

/// A server that answers as told and records the heads of requests.
struct BadStore {
    address: SocketAddr,
    key_file: PathBuf,
    dir: TempDir,
    heads: Arc<Mutex<Vec<String>>>,
    _connections: JoinSet<()>,
}

impl BadStore {
    /// `reply` gets `METHOD PATH` and the whole head.
    async fn new(reply: impl Fn(&str, &str) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let key_file = dir.path().join("key");
        StoreKey::create(&key_file).unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let mut connections = JoinSet::new();
        let (seen, reply) = (heads.clone(), Arc::new(reply));
        connections.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, reply) = (seen.clone(), reply.clone());
                open.spawn(async move {
                    let _ = answer(stream, &seen, &*reply).await;
                });
            }
        });
        Self { address, key_file, dir, heads, _connections: connections }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn client(&self) -> HttpStore {
        self.client_of(Stated::default())
    }

    /// A client of a store that does not tell its hash algorithm.
    fn client_of_core_only(&self) -> HttpStore {
        self.client_of(Stated { hash_algorithm: Some(BLAKE3), key_header: None })
    }

    fn client_of(&self, stated: Stated) -> HttpStore {
        HttpStore::with_deadlines(&self.url(), &self.key_file, SHORT, stated).unwrap()
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

async fn answer(
    mut stream: TcpStream,
    seen: &Mutex<Vec<String>>,
    reply: &(dyn Fn(&str, &str) -> Reply + Send + Sync),
) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let length = head
        .lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(0, |(_, value)| value.parse().unwrap());
    let target = head.rsplit_once(" HTTP/1.1").map_or("", |_| head.lines().next().unwrap());
    let target = target.trim_end_matches(" HTTP/1.1").to_owned();
    seen.lock().unwrap().push(head.clone());
    while bytes.len() < end + length {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    }
    match reply(&target, &head) {
        Reply::Send(bytes) => stream.write_all(&bytes).await?,
        Reply::Hang(bytes) => {
            stream.write_all(&bytes).await?;
            std::future::pending::<()>().await;
        }
        Reply::Drip(first, again, pause) => {
            stream.write_all(&first).await?;
            loop {
                stream.write_all(&again).await?;
                sleep(pause).await;
            }
        }
    }
    stream.shutdown().await
}

fn respond(status: u16, headers: &str, body: &[u8]) -> Reply {
    let mut bytes = format!(
        "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    Reply::Send(bytes)
}

fn message(message: &impl prost::Message) -> Reply {
    respond(200, "Content-Type: application/x-protobuf\r\n", &message.encode_to_vec())
}

fn info(id: u8) -> Reply {
    message(&proto::StoreInfo {
        store_id: vec![id; 16].into(),
        api_version: 1,
        hash_algorithm: proto::HashAlgorithm::Blake3.into(),
        newest_cursor: 7,
        features: ["blobs", "batch", "assets", "unheard-of"].map(str::to_owned).to_vec(),
        ..proto::StoreInfo::default()
    })
}

/// A store that answers `GET /sync/info` correctly and everything else with `reply`.
async fn bad(reply: impl Fn(&str, &str) -> Reply + Send + Sync + 'static) -> BadStore {
    BadStore::new(move |target, head| match target {
        "GET /sync/info" => info(1),
        _ => reply(target, head),
    })
    .await
}

fn small(seed: u64) -> NewAsset {
    asset(BLAKE3, content(seed, 100))
}

/// The name of each call.
const CALLS: [&str; 10] = [
    "changes",
    "lookup",
    "list",
    "read",
    "read_small",
    "put one",
    "put two",
    "adopt",
    "set_metadata",
    "touched",
];

async fn call(name: &str, client: &HttpStore, folder: &Path) -> Result<(), StoreError> {
    let hash = Hash([1; 32]);
    let digest = Digest { hash, size_bytes: 5 };
    let first = |mut results: Vec<Result<Stored, StoreError>>| results.remove(0);
    match name {
        "changes" => client.changes(0, 10).await.map(drop),
        "lookup" => client.lookup(hash).await.map(drop),
        "list" => client.list(&Filter::default(), 0, 10).await.map(drop),
        "read" => client.read(hash, 0..5).await.map(drop),
        "read_small" => client.read_small(&[digest]).await.map(drop),
        "put one" => first(client.put(vec![small(1)]).await?).map(drop),
        "put two" => first(client.put(vec![small(1), small(2)]).await?).map(drop),
        "adopt" => {
            let large = file(BLAKE3, folder, &content(9, 300_000));
            client.adopt(large).await.map(drop)
        }
        "set_metadata" => {
            let metadata = Metadata::default();
            client.set_metadata(hash, &metadata, None).await.map(drop)
        }
        "touched" => client.touched(0).next().await.unwrap().map(drop),
        _ => panic!("there is no call {name}"),
    }
}

async fn every_call_fails(store: &BadStore, is_right: impl Fn(&StoreError) -> bool) {
    let client = store.client();
    let calls = CALLS.map(async |name| {
        let result = timeout(WAIT, call(name, &client, store.dir.path())).await;
        let error = result.expect(name).unwrap_err();
        assert!(is_right(&error), "{name}: {error:?}");
    });
    futures_util::future::join_all(calls).await;
    let kept = std::fs::read_dir(store.dir.path()).unwrap().count();
    assert_eq!(kept, 2, "after a temporary failure the file to adopt stays");
}

#[tokio::test]
async fn a_store_in_trouble_is_to_be_tried_again() {
    for status in [429, 500, 502, 503, 504] {
        for headers in ["", "Retry-After: 120\r\n", "Content-Type: text/html\r\n"] {
            let store = bad(move |_, _| respond(status, headers, b"<h1>trouble</h1>")).await;
            every_call_fails(&store, |error| {
                error.is_temporary() && error.to_string().contains(&status.to_string())
            })
            .await;
        }
        let store = BadStore::new(move |_, _| respond(status, "", b"")).await;
        assert!(store.client().info().await.unwrap_err().is_temporary());
    }
}

#[tokio::test]
async fn a_store_that_is_down_is_to_be_tried_again() {
    let store = bad(|_, _| respond(500, "", b"")).await;
    let client = store.client();
    client.info().await.unwrap();
    drop(store);
    let error = client.info().await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable(_)), "{error}");
}

#[tokio::test]
async fn a_full_store_is_told_apart() {
    let problem = b"{\"detail\":\"no space\\u001b[31m\"}";
    let store = bad(move |target, _| match target.starts_with("HEAD") {
        true => respond(404, "", b""),
        false => respond(507, "", problem),
    })
    .await;
    every_call_fails(
        &store,
        |error| matches!(error, StoreError::Full(text) if text.ends_with("no space[31m")),
    )
    .await;
}

#[tokio::test]
async fn one_full_result_of_a_batch_is_that_assets_alone() {
    let store = bad(|_, _| {
        let result = |seed, status| proto::PushResult {
            hash: small(seed).digest.hash.0.to_vec().into(),
            status,
            detail: String::new(),
        };
        message(&proto::PushBatchResponse {
            results: vec![result(1, 200), result(2, 507), result(3, 208)],
        })
    })
    .await;
    let put = store.client().put(vec![small(1), small(2), small(3)]).await;
    let results = put.unwrap();
    assert!(matches!(results[0], Ok(Stored::New)));
    assert!(matches!(results[1], Err(StoreError::Full(_))));
    assert!(matches!(results[2], Ok(Stored::Existed)));
}

#[tokio::test]
async fn a_hang_before_or_within_an_answer_ends_by_deadline() {
    let head = "HTTP/1.1 200 X\r\nContent-Length: 1000\r\nContent-Type: text/event-stream\r\n\r\n";
    let cut = "HTTP/1.1 200 X\r\nContent-Le";
    for sent in ["", cut, head, &format!("{head}abc")] {
        let sent = sent.as_bytes().to_vec();
        let store = bad(move |target, _| match target.starts_with("HEAD") {
            // A HEAD answer has no body to hang in.
            true => Reply::Hang(Vec::new()),
            false => Reply::Hang(sent.clone()),
        })
        .await;
        let start = Instant::now();
        every_call_fails(&store, |error| {
            matches!(error, StoreError::Unreachable(_) | StoreError::Contract(_))
        })
        .await;
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}

#[tokio::test]
async fn a_trickle_is_a_hang_and_slow_is_not() {
    let size = 100_000;
    let head = format!("HTTP/1.1 206 X\r\nContent-Length: {size}\r\nContent-Range: bytes ");
    let head = format!("{head}0-{}/{size}\r\n\r\n", size - 1).into_bytes();
    let trickling = head.clone();
    let store =
        bad(move |_, _| Reply::Drip(trickling.clone(), vec![7], Duration::from_millis(20))).await;
    let result = store.client().read(Hash([1; 32]), 0..size).await;
    assert!(matches!(result, Err(StoreError::Unreachable(_))), "{result:?}");

    // Slower in all than the deadline, but never silent.
    let store =
        bad(move |_, _| Reply::Drip(head.clone(), vec![7; 8000], Duration::from_millis(100))).await;
    let start = Instant::now();
    let read = store.client().read(Hash([1; 32]), 0..size).await.unwrap();
    assert_eq!(read.unwrap(), vec![7; size as usize]);
    assert!(start.elapsed() > SHORT.body);
}

const STREAM: &str = "HTTP/1.1 200 X\r\nContent-Type: text/event-stream\r\n\r\n";

async fn first_lines(store: &BadStore, count: usize) -> Vec<Result<Touched, StoreError>> {
    let touched = store.client().touched(3);
    timeout(WAIT, touched.take(count).collect()).await.expect("lines in time")
}

#[tokio::test]
async fn an_event_stream_in_trouble_ends_with_an_error() {
    let silent = Reply::Hang(STREAM.into());
    let ended = Reply::Send(STREAM.into());
    let endless_line = Reply::Drip(STREAM.into(), vec![b'x'; 65_536], Duration::ZERO);
    let no_newline = Reply::Drip(STREAM.into(), b"x".into(), Duration::from_millis(20));
    let no_stream = respond(200, "Content-Type: text/html\r\n", b"data: x\n\n");
    let packed = respond(
        200,
        "Content-Type: text/event-stream\r\nContent-Encoding: gzip\r\n",
        b"data: x\n\n",
    );
    for (what, reply, is_contract) in [
        ("silent", silent, false),
        ("ended", ended, false),
        ("endless line", endless_line, true),
        ("no newline", no_newline, false),
        ("no stream", no_stream, true),
        ("packed", packed, true),
        ("missing", respond(404, "", b""), true),
    ] {
        let store = bad(move |_, _| reply.clone()).await;
        let lines = first_lines(&store, 5).await;
        assert_eq!(lines.len(), 1, "{what}: {lines:?}");
        match lines[0].as_ref().unwrap_err() {
            StoreError::Unreachable(_) => assert!(!is_contract, "{what}"),
            _ => assert!(is_contract, "{what}: {lines:?}"),
        }
    }
}

#[tokio::test]
async fn every_event_counts_and_comments_keep_the_stream_alive() {
    let (stored, edited) = (Hash([1; 32]), Hash([2; 32]));
    let text = format!(
        "\u{feff}: hello\r\rid: 3\revent: asset\rdata: {{\"hash\":\"zz\"}}\r\r\
         event: reset\r\ndata: {{}}\r\n\r\nevent: of-the-future\ndata: ?\n\n\
         id: 4\nevent: asset\ndata: {{\"hash\":\"{stored}\"}}\n\n\
         id: 5\nevent: meta\ndata: {{\"hash\":\"{edited}\"}}\n\n"
    );
    let first = format!("{STREAM}{text}").into_bytes();
    let store = bad(move |_, _| {
        Reply::Drip(first.clone(), b": alive\n".into(), Duration::from_millis(100))
    })
    .await;
    let client = store.client();
    let mut touched = client.touched(3);
    for expected in [
        Touched::Changed,
        Touched::Gap,
        Touched::Changed,
        Touched::Stored { hash: stored, cursor: 4 },
        Touched::Edited { hash: edited, cursor: 5 },
    ] {
        let line = timeout(WAIT, touched.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(line, expected);
    }
    // Much longer than the deadline, but not silent.
    let more = timeout(SHORT.body * 4, touched.next()).await;
    assert!(more.is_err(), "{more:?}");
    let head = store.heads().pop().unwrap().to_lowercase();
    assert!(head.contains("last-event-id: 3\r\n"), "{head}");
}

#[tokio::test]
async fn another_store_at_the_same_address_shows() {
    let id = Arc::new(Mutex::new(1));
    let said = id.clone();
    let store = BadStore::new(move |_, _| info(*said.lock().unwrap())).await;
    let client = store.client();
    let first = client.info().await.unwrap();
    assert_eq!(first.newest_cursor, 7);
    *id.lock().unwrap() = 2;
    assert_ne!(client.info().await.unwrap().store_id, first.store_id);
}

fn listed(cursors: &[u64], has_more: bool) -> proto::HashesResponse {
    proto::HashesResponse {
        digests: cursors
            .iter()
            .map(|cursor| proto::Digest {
                hash: vec![*cursor as u8; 32].into(),
                size_bytes: 1,
                timestamp_ms: 1,
                cursor: *cursor,
            })
            .collect(),
        has_more,
        next_cursor: 0,
        gone: Vec::new(),
    }
}

#[tokio::test]
async fn a_listing_that_breaks_the_contract_is_refused() {
    let mut short_hash = listed(&[6], false);
    short_hash.digests[0].hash = vec![1; 31].into();
    let mut backward = listed(&[6, 7], false);
    backward.next_cursor = 6;
    let many: Vec<u64> = (6..20).collect();
    for (what, page) in [
        ("unsorted", listed(&[7, 6], false)),
        ("repeated", listed(&[6, 6], false)),
        ("not after", listed(&[5], false)),
        ("no cursor", listed(&[0], false)),
        ("short hash", short_hash),
        ("goes back", backward),
        ("stands still", listed(&[], true)),
        ("more than asked for", listed(&many, false)),
    ] {
        let store = bad(move |_, _| message(&page)).await;
        let error = store.client().changes(5, 10).await.unwrap_err();
        assert!(matches!(error, StoreError::Contract(_)), "{what}: {error:?}");
    }
    let store = bad(|_, _| message(&listed(&[6, 9], true))).await;
    let changes = store.client().changes(5, 10).await.unwrap();
    assert_eq!((changes.entries.len(), changes.next, changes.has_more), (2, 9, true));
}

#[tokio::test]
async fn a_body_is_bounded_whatever_the_store_says() {
    let chunked = "HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut chunk = b"10000\r\n".to_vec();
    chunk.extend([0; 65_536]);
    chunk.extend(b"\r\n");
    let endless = Reply::Drip(chunked.into(), chunk, Duration::ZERO);
    let huge = Reply::Hang(b"HTTP/1.1 200 X\r\nContent-Length: 99999999999\r\n\r\n".into());
    let until_close =
        Reply::Drip(b"HTTP/1.1 200 X\r\n\r\n".into(), vec![0; 65_536], Duration::ZERO);
    let packed = respond(200, "Content-Encoding: gzip\r\n", b"");
    for (what, reply) in [
        ("endless", endless),
        ("huge", huge),
        ("until close", until_close),
        ("packed", packed),
        ("garbage", respond(200, "", &[0xff; 100])),
    ] {
        let store = bad(move |_, _| reply.clone()).await;
        let client = store.client();
        for result in [
            client.changes(0, 10).await.map(|_| ()),
            client.lookup(Hash([1; 32])).await.map(|_| ()),
            client.list(&Filter::default(), 0, 10).await.map(|_| ()),
        ] {
            let error = result.unwrap_err();
            assert!(matches!(error, StoreError::Contract(_)), "{what}: {error:?}");
        }
    }
    // Shorter than announced: the connection broke off.
    let store =
        bad(|_, _| Reply::Send(b"HTTP/1.1 200 X\r\nContent-Length: 9\r\n\r\nabc".into())).await;
    let error = store.client().changes(0, 10).await.unwrap_err();
    assert!(error.is_temporary(), "{error:?}");
}

fn bundle(hash: Hash, size_bytes: u64, content: &[u8]) -> proto::Bundle {
    proto::Bundle {
        digest: Some(proto::Digest {
            hash: hash.0.to_vec().into(),
            size_bytes,
            timestamp_ms: 1,
            cursor: 1,
        }),
        content: content.to_vec().into(),
        metadata: None,
    }
}

#[tokio::test]
async fn a_pull_that_breaks_the_contract_is_refused() {
    let hash = Hash([1; 32]);
    let other = Hash([2; 32]);
    let pulled = |bundles: Vec<proto::Bundle>, missing: Vec<Hash>| proto::PullResponse {
        bundles,
        missing: missing.iter().map(|hash| hash.0.to_vec().into()).collect(),
    };
    let mut no_digest = bundle(hash, 3, b"abc");
    no_digest.digest = None;
    for (what, reply) in [
        ("unasked", pulled(vec![bundle(other, 3, b"abc")], vec![])),
        ("unasked is missing", pulled(vec![], vec![other])),
        ("short", pulled(vec![bundle(hash, 3, b"ab")], vec![])),
        ("long", pulled(vec![bundle(hash, 3, b"abcd")], vec![])),
        ("another size", pulled(vec![bundle(hash, 4, b"abcd")], vec![])),
        ("no digest", pulled(vec![no_digest], vec![])),
        ("nothing", pulled(vec![], vec![])),
    ] {
        let store = bad(move |_, _| message(&reply)).await;
        let digest = Digest { hash, size_bytes: 3 };
        let error = store.client().read_small(&[digest]).await.unwrap_err();
        assert!(matches!(error, StoreError::Contract(_)), "{what}: {error:?}");
    }
    let twice = pulled(vec![bundle(hash, 3, b"abc"), bundle(hash, 3, b"abc")], vec![]);
    let store = bad(move |_, _| message(&twice)).await;
    let digest = Digest { hash, size_bytes: 3 };
    let read = store.client().read_small(&[digest, digest]).await.unwrap();
    assert!(read.iter().all(|content| content.as_deref() == Some(b"abc")));
}

#[tokio::test]
async fn a_range_that_is_not_the_one_asked_for_is_refused() {
    let cases = [
        ("no Content-Range", respond(206, "", b"abc")),
        ("another range", respond(206, "Content-Range: bytes 0-2/9\r\n", b"abc")),
        ("short", respond(206, "Content-Range: bytes 3-5/9\r\n", b"ab")),
        ("long", respond(206, "Content-Range: bytes 3-5/9\r\n", b"abcd")),
        ("whole", respond(200, "", b"abcdefghi")),
        ("teapot", respond(418, "", b"")),
    ];
    for (what, reply) in cases {
        let store = bad(move |_, _| reply.clone()).await;
        let error = store.client().read(Hash([1; 32]), 3..6).await.unwrap_err();
        assert!(matches!(error, StoreError::Contract(_)), "{what}: {error:?}");
    }
    let store = bad(|_, _| respond(206, "Content-Range: bytes 3-5/9\r\n", b"def")).await;
    let read = store.client().read(Hash([1; 32]), 3..6).await.unwrap();
    assert_eq!(read.as_deref(), Some(&b"def"[..]));
}

#[tokio::test]
async fn a_false_receipt_is_refused() {
    let other = Hash([2; 32]);
    let store = bad(move |target, _| match target {
        "POST /sync/push" => {
            message(&proto::PushResponse { hash: other.0.to_vec().into(), already_existed: false })
        }
        _ => message(&proto::PushBatchResponse::default()),
    })
    .await;
    let result = store.client().put(vec![small(1)]).await.unwrap().remove(0);
    assert!(matches!(result, Err(StoreError::Contract(_))), "{result:?}");
    let result = store.client().put(vec![small(1), small(2)]).await;
    assert!(matches!(result, Err(StoreError::Contract(_))), "{result:?}");

    // It claims that the content is wrong, but it is right.
    let store = bad(|target, _| match target.starts_with("HEAD") {
        true => respond(404, "", b""),
        false => respond(422, "", b""),
    })
    .await;
    let result = store.client().put(vec![small(1)]).await.unwrap().remove(0);
    assert!(matches!(result, Err(StoreError::Contract(_))), "{result:?}");
    let large = file(BLAKE3, store.dir.path(), &content(9, 300_000));
    let result = store.client().adopt(large).await;
    assert!(matches!(result, Err(StoreError::Contract(_))), "{result:?}");

    // The content really is wrong.
    let mut damaged: VerifiedFile = file(BLAKE3, store.dir.path(), &content(9, 300_000));
    damaged.digest.hash = other;
    let path = damaged.path.clone();
    let result = store.client().adopt(damaged).await;
    assert!(matches!(result, Err(StoreError::Mismatch { .. })), "{result:?}");
    assert!(!path.exists());

    // It holds something else under the hash.
    let store = bad(|_, _| respond(200, "", b"")).await;
    let large = file(BLAKE3, store.dir.path(), &content(9, 300_000));
    let result = store.client().adopt(large).await;
    assert!(matches!(result, Err(StoreError::Contract(_))), "{result:?}");
}

#[tokio::test]
async fn a_store_of_another_kind_is_refused() {
    let good = proto::StoreInfo {
        store_id: vec![1; 16].into(),
        api_version: 1,
        hash_algorithm: proto::HashAlgorithm::Sha256.into(),
        ..proto::StoreInfo::default()
    };
    for change in [
        |info: &mut proto::StoreInfo| info.api_version = 2,
        |info: &mut proto::StoreInfo| info.hash_algorithm = 99,
        |info: &mut proto::StoreInfo| info.hash_algorithm = 0,
        |info: &mut proto::StoreInfo| info.store_id = vec![1; 15].into(),
    ] {
        let mut wrong = good.clone();
        change(&mut wrong);
        let store = BadStore::new(move |_, _| message(&wrong)).await;
        let error = store.client().info().await.unwrap_err();
        assert!(matches!(error, StoreError::Contract(_)), "{error:?}");
    }
    let store = BadStore::new(move |_, _| message(&good)).await;
    let info = store.client().info().await.unwrap();
    assert_eq!(info.hash_algorithm, HashAlgorithm::Sha256);
}

#[tokio::test]
async fn a_rotated_key_is_read_again_and_tried_once() {
    let accepted = Arc::new(Mutex::new(String::new()));
    let known = accepted.clone();
    let store = BadStore::new(move |_, head| {
        let line = format!("Bearer {}\r\n", known.lock().unwrap());
        match head.contains(&line) {
            true => info(1),
            false => respond(401, "", b""),
        }
    })
    .await;
    let client = store.client();
    let error = client.info().await.unwrap_err();
    assert!(matches!(&error, StoreError::Unauthorized(text) if text.contains("key")));
    assert_eq!(store.heads().len(), 1, "the same key is not tried twice");

    std::fs::remove_file(&store.key_file).unwrap();
    let key = StoreKey::create(&store.key_file).unwrap();
    *accepted.lock().unwrap() = key.expose().to_owned();
    client.info().await.unwrap();
    assert_eq!(store.heads().len(), 3);
    client.info().await.unwrap();
    assert_eq!(store.heads().len(), 4, "the new key is remembered");

    // Other users can read the key file now: it is not used.
    use std::os::unix::fs::PermissionsExt as _;
    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(&store.key_file, open).unwrap();
    *accepted.lock().unwrap() = "another".into();
    let error = client.info().await.unwrap_err();
    assert!(error.to_string().contains("read by others"), "{error}");
    let refused = HttpStore::new(&store.url(), &store.key_file);
    assert!(matches!(refused, Err(StoreError::Unauthorized(_))));

    let store = bad(|_, _| respond(403, "", b"")).await;
    let error = store.client().changes(0, 10).await.unwrap_err();
    assert!(matches!(error, StoreError::Unauthorized(_)), "{error:?}");
}

#[tokio::test]
async fn no_redirect_is_followed() {
    let elsewhere = bad(|_, _| respond(200, "", b"")).await;
    for status in [301, 302, 303, 307, 308] {
        let headers = format!("Location: {}/sync/info\r\n", elsewhere.url());
        let store = BadStore::new(move |_, _| respond(status, &headers, b"")).await;
        let error = store.client().info().await.unwrap_err();
        assert!(matches!(&error, StoreError::Contract(text) if text.contains("redirect")));
    }
    assert!(elsewhere.heads().is_empty());
}

#[test]
fn only_literal_loopback_addresses_are_spoken_to() {
    let dir = tempfile::tempdir().unwrap();
    let key_file = dir.path().join("key");
    StoreKey::create(&key_file).unwrap();
    for url in ["http://localhost:1", "http://example.com", "https://127.0.0.1:1", "x"] {
        let error = HttpStore::new(url, &key_file).err().unwrap();
        assert!(error.to_string().contains("http://127.0.0.1:PORT"), "{error}");
    }
}

const PROXIES: [&str; 4] = ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];

#[test]
fn a_proxy_in_the_environment_is_ignored() {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--ignored", "--exact", "within_an_environment_with_a_proxy"]);
    // Nothing listens there: a request through the proxy would fail.
    child.envs(PROXIES.map(|name| (name, "http://127.0.0.1:1")));
    child.env_remove("NO_PROXY").env_remove("no_proxy");
    let output = child.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test]
#[ignore = "run by a_proxy_in_the_environment_is_ignored"]
async fn within_an_environment_with_a_proxy() {
    if std::env::var(PROXIES[0]).is_err() {
        return;
    }
    let store = BadStore::new(|_, _| info(1)).await;
    store.client().info().await.unwrap();
    assert!(store.heads()[0].starts_with("GET /sync/info HTTP/1.1\r\n"));
}

/// Set for the child process that plays another program on the store's port.
const SQUATTER: &str = "CAN_SYNC_TEST_SQUATTER";

/// The rest of the next line from `mark` on; `None` when the child has ended.
#[cfg(target_os = "linux")]
fn said(lines: &mut impl Iterator<Item = std::io::Result<String>>, mark: &str) -> Option<String> {
    lines.map_while(Result::ok).find_map(|line| Some(line.split_once(mark)?.1.trim().to_owned()))
}

#[test]
#[ignore = "run by a_squatter_on_the_stores_port_is_sent_nothing, as another user"]
#[allow(clippy::print_stdout)]
fn playing_a_squatter() {
    use std::io::Read as _;

    if std::env::var(SQUATTER).is_err() {
        return;
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    println!("PORT {}", listener.local_addr().unwrap().port());
    let (mut connection, _) = listener.accept().unwrap();
    let mut got = String::new();
    connection.read_to_string(&mut got).unwrap();
    println!("SENT {got:?}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
#[allow(clippy::print_stderr)]
async fn a_squatter_on_the_stores_port_is_sent_nothing() {
    use std::io::BufRead as _;

    let squatter = Command::new("setpriv")
        .args(["--reuid=65534", "--clear-groups"])
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "playing_a_squatter", "--nocapture"])
        .env(SQUATTER, "1")
        .current_dir("/")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut squatter) = squatter else {
        eprintln!("skipped: setpriv is not installed");
        return;
    };
    let mut lines = std::io::BufReader::new(squatter.stdout.take().unwrap()).lines();
    let Some(port) = said(&mut lines, "PORT ") else {
        eprintln!("skipped: only root can play another user");
        let _ = squatter.wait();
        return;
    };
    let port: u16 = port.parse().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let key_file = dir.path().join("key");
    StoreKey::create(&key_file).unwrap();
    let client = HttpStore::new(&format!("http://127.0.0.1:{port}"), &key_file).unwrap();
    let error = client.info().await.unwrap_err();
    assert!(matches!(&error, StoreError::Unauthorized(text) if text.contains("user 65534")));

    // It does record what it receives: this, and nothing before it.
    let mut probe = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    probe.write_all(b"probe").await.unwrap();
    drop(probe);
    assert_eq!(said(&mut lines, "SENT ").as_deref(), Some("\"probe\""));
    assert!(squatter.wait().unwrap().success());
}

/// A core-only store, with or without cursors.
async fn core_only(after: bool) -> common::http::Served {
    let features = Features { info: false, after, blobs: false, batch: false, assets: false };
    common::http::served(BLAKE3, features).await.0
}

#[tokio::test]
async fn a_core_only_store_can_be_listed_filled_and_read() {
    for after in [true, false] {
        let served = core_only(after).await;
        let client = served.client_with(BLAKE3);
        let info = client.info().await.unwrap();
        assert_eq!(info.hash_algorithm, BLAKE3);
        assert_eq!(client.info().await.unwrap().store_id, info.store_id);
        let changes = client.changes(0, 10).await.unwrap();
        assert_eq!((changes.entries.len(), changes.next), (0, 0));

        let first: Vec<NewAsset> = (0..25).map(small).collect();
        let results = client.put(first.clone()).await.unwrap();
        assert!(results.iter().all(Result::is_ok));
        let large = content(99, 3_000_000);
        let new = file(BLAKE3, served.dir.path(), &large);
        let hash = new.digest.hash;
        assert_eq!(client.adopt(new).await.unwrap(), Stored::New);

        let (mut seen, mut cursor) = (std::collections::BTreeSet::new(), 0);
        loop {
            let changes = client.changes(cursor, 10).await.unwrap();
            seen.extend(changes.entries.iter().map(|entry| entry.digest.hash));
            cursor = changes.next;
            if !changes.has_more {
                break;
            }
        }
        assert_eq!(seen.len(), 26);
        assert_eq!(client.info().await.unwrap().newest_cursor, cursor);

        client.put(vec![small(1000)]).await.unwrap().remove(0).unwrap();
        let changes = client.changes(cursor, 10).await.unwrap();
        let news = small(1000).digest.hash;
        assert!(changes.entries.iter().any(|entry| entry.digest.hash == news));
        assert!(changes.next >= cursor);

        for range in [0..10, 1_000_000..2_000_000, 2_999_999..3_000_000, 3_000_000..3_000_000] {
            let read = client.read(hash, range.clone()).await.unwrap().unwrap();
            assert_eq!(read, large[range.start as usize..range.end as usize]);
        }
        assert!(client.read(hash, 0..3_000_001).await.is_err());
        assert_eq!(client.read(Hash([9; 32]), 0..1).await.unwrap(), None);
        let row = client.lookup(hash).await.unwrap().unwrap();
        assert_eq!(row.entry.digest.size_bytes, 3_000_000);
        let listed = client.list(&Filter::default(), 0, 10).await;
        assert!(matches!(listed, Err(StoreError::Unsupported(_))));
        let mut touched = client.touched(cursor);
        let line = timeout(WAIT, touched.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(line, Touched::Changed, "it may not resume, and is to be listed");
        let hash = small(2000).digest.hash;
        client.put(vec![small(2000)]).await.unwrap().remove(0).unwrap();
        // The cursors of its events are not those of its listing.
        let stored = Touched::Stored { hash, cursor: 0 };
        let told = touched.any(async |line| line.unwrap() == stored);
        assert!(timeout(WAIT, told).await.unwrap());
    }
}

#[tokio::test]
async fn the_hashes_of_a_core_only_store_are_stated_or_found_out_and_never_assumed() {
    for algorithm in [BLAKE3, HashAlgorithm::Sha256] {
        let features =
            Features { info: false, after: true, blobs: false, batch: false, assets: false };
        let (served, store) = common::http::served(algorithm, features).await;
        let client = served.client();
        let said = client.info().await.unwrap_err().to_string();
        assert!(said.contains("state it with store_hash"), "{said}");
        assert!(
            client.put(vec![small(1)]).await.is_err(),
            "nothing is put under a hash of another kind"
        );
        assert_eq!(served.client_with(algorithm).info().await.unwrap().hash_algorithm, algorithm);
        let content = content(5, 100);
        let asset = common::asset(algorithm, content.clone());
        let hash = asset.digest.hash;
        store.put(vec![asset]).await.unwrap().remove(0).unwrap();
        assert_eq!(
            client.info().await.unwrap().hash_algorithm,
            algorithm,
            "its first asset shows it"
        );
        assert_eq!(client.verify(hash).await.unwrap(), Condition::Whole);
    }
    // A store that tells it is believed, unless the configuration says otherwise.
    let (served, _store) = common::http::served(BLAKE3, Features::default()).await;
    let said = served.client_with(HashAlgorithm::Sha256).info().await.unwrap_err().to_string();
    assert!(said.contains("blake3, and store_hash says otherwise"), "{said}");
}

#[tokio::test]
async fn a_store_may_take_its_key_in_another_header() {
    let key_in = |header: &'static str| async move {
        let store = BadStore::new(move |_, head| {
            let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(header));
            let has_key = line.is_some_and(|line| line.len() > header.len() + 20);
            respond(if has_key { 404 } else { 401 }, "", b"")
        })
        .await;
        let key_header = Some("X-Api-Key".to_owned());
        let stated = Stated { hash_algorithm: Some(BLAKE3), key_header };
        HttpStore::with_stated(&store.url(), &store.key_file, stated).unwrap().info().await
    };
    assert!(key_in("x-api-key").await.is_ok());
    let refused = key_in("authorization").await;
    assert!(matches!(refused, Err(StoreError::Unauthorized(_))), "{refused:?}");
}

#[tokio::test]
async fn a_core_only_store_without_events_is_polled() {
    let store = BadStore::new(|_, _| respond(404, "", b"")).await;
    let mut touched = store.client_of_core_only().touched(0);
    let line = timeout(WAIT, touched.next()).await.unwrap().unwrap();
    assert_eq!(line.unwrap(), Touched::Changed);
    tokio::time::pause();
    let start = tokio::time::Instant::now();
    for _ in 0..3 {
        assert_eq!(touched.next().await.unwrap().unwrap(), Touched::Changed);
    }
    let passed = start.elapsed().as_secs();
    assert!((89..=91).contains(&passed), "{passed} s for three polls");
}

#[tokio::test]
async fn listing_by_time_looks_back_a_little_and_never_stands_still() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    let store = BadStore::new(move |target, _| {
        if !target.starts_with("POST /sync/hashes") {
            return respond(404, "", b"");
        }
        seen.lock().unwrap().push(target.to_owned());
        let mut page = listed(&[1, 2, 3], false);
        for (digest, timestamp_ms) in page.digests.iter_mut().zip([50_000, 20_000, 50_000]) {
            digest.cursor = 0;
            digest.timestamp_ms = timestamp_ms;
        }
        message(&page)
    })
    .await;
    let client = store.client_of_core_only();
    let changes = client.changes(0, 2).await.unwrap();
    assert_eq!(changes.entries.len(), 3);
    assert!(changes.entries.is_sorted_by_key(|entry| entry.cursor));
    assert_eq!((changes.next, changes.has_more), (50_000, false));
    // The store's clock went back, but the cursor did not.
    let changes = client.changes(90_000, 2).await.unwrap();
    assert_eq!(changes.next, 90_000);
    let asked = asked.lock().unwrap().clone();
    assert_eq!(
        asked,
        [
            "POST /sync/hashes?after=0&limit=2",
            "POST /sync/hashes?since=0",
            "POST /sync/hashes?since=80000",
        ]
    );
}

#[tokio::test]
async fn an_upload_is_resumed_and_starts_over_when_the_kept_part_is_damaged() {
    for is_damaged in [false, true] {
        let (served, store) = common::http::served(BLAKE3, Features::default()).await;
        let bytes = content(1, 3_000_000);
        let scratch = served.dir.path().join("scratch");
        std::fs::create_dir(&scratch).unwrap();
        let mut new = file(BLAKE3, &scratch, &bytes);
        new.metadata.description = "grüße".into();
        new.metadata.tags = vec!["a".into()];
        let hash = new.digest.hash;
        let mut kept = bytes[..1_000_000].to_vec();
        kept[500_000] ^= u8::from(is_damaged);
        let answer = served
            .request(reqwest::Method::PUT, &format!("/sync/blobs/{hash}"))
            .header("content-type", "application/octet-stream")
            .header("content-range", "bytes 0-999999/3000000")
            .body(kept)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 202);
        assert_eq!(served.client().adopt(new).await.unwrap(), Stored::New);
        let row = store.lookup(hash).await.unwrap().unwrap();
        assert_eq!(row.entry.digest.size_bytes, 3_000_000);
        assert_eq!(row.metadata.description, "grüße");
        assert_eq!(row.metadata.tags, ["a"]);
        let read = store.read(hash, 400_000..600_000).await.unwrap().unwrap();
        assert_eq!(read, bytes[400_000..600_000]);
    }
}

#[tokio::test]
async fn an_upload_goes_on_from_the_kept_offset() {
    let store = bad(|target, _| match target.starts_with("HEAD") {
        true => respond(404, "Upload-Offset: 250000\r\n", b""),
        false => respond(201, "", b""),
    })
    .await;
    let new = file(BLAKE3, store.dir.path(), &content(9, 300_000));
    assert_eq!(store.client().adopt(new).await.unwrap(), Stored::New);
    let head = store.heads().pop().unwrap().to_lowercase();
    assert!(head.contains("content-range: bytes 250000-299999/300000\r\n"), "{head}");
    assert!(head.contains("content-length: 50000\r\n"), "{head}");
}
