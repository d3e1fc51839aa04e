//! The store's HTTP server seen from outside: which requests are allowed, what people and agents
//! get, and how connections end.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use can_sync::core::attributes::Attributes;
use can_sync::core::ids::{Hash, HashAlgorithm};
use can_sync::http::places::STRANGERS_MAX;
use can_sync::http::serve::{HEADER_DEADLINE, STOP_DEADLINE};
use can_sync::http::store_api::{self, Features};
use can_sync::store::embedded::{EmbeddedStore, Options};
use can_sync::store::{Metadata, Store, StoreError};
use can_sync::wire::proto::store as proto;
use common::http::{Served, guarded, served};
use common::{asset, content, digest};
use prost::Message as _;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

const WAIT: Duration = Duration::from_secs(20);
const PROTOBUF: &str = "application/x-protobuf";

async fn full() -> (Served, EmbeddedStore) {
    served(HashAlgorithm::Blake3, Features::default()).await
}

/// Sends bytes on a new connection and returns everything received until the server closes.
async fn raw(served: &Served, request: &str) -> String {
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    // The server may close before it has read everything.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = timeout(WAIT, stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// A request with the given header lines, closed after the answer.
async fn status(served: &Served, line: &str, headers: &[String]) -> (u16, String) {
    let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    let request = format!("{line} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n");
    let answer = raw(served, &request).await;
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    (code.unwrap_or(0), answer)
}

fn key_line(served: &Served) -> String {
    format!("Authorization: Bearer {}", served.key.expose())
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    walkdir::WalkDir::new(folder)
        .into_iter()
        .map(Result::unwrap)
        .filter(|entry| entry.file_type().is_file())
        .map(walkdir::DirEntry::into_path)
        .collect()
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < WAIT, "{what} does not come about");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn only_requests_to_a_loopback_name_with_the_key_are_answered() {
    let (served, _store) = full().await;
    let port = served.address.port();
    let key = key_line(&served);
    let host = |host: &str| format!("Host: {host}");
    let ours = host(&format!("127.0.0.1:{port}"));
    let get = "GET /sync/info";

    for name in ["127.0.0.1", "[::1]", "localhost"] {
        for suffix in [String::new(), format!(":{port}")] {
            let headers = [host(&format!("{name}{suffix}")), key.clone()];
            assert_eq!(status(&served, get, &headers).await.0, 200, "{headers:?}");
        }
    }
    let wrong_port = host("127.0.0.1:1");
    let refused: Vec<(&str, Vec<String>)> = vec![
        (get, vec![key.clone()]),
        (get, vec![host(""), key.clone()]),
        (get, vec![host("evil.com"), key.clone()]),
        (get, vec![host("127.0.0.1.evil.com"), key.clone()]),
        (get, vec![host("127.1"), key.clone()]),
        (get, vec![wrong_port, key.clone()]),
        (get, vec![ours.clone(), ours.clone(), key.clone()]),
        (get, vec![ours.clone(), host("evil.com"), key.clone()]),
        ("GET http://evil.com/sync/info", vec![ours.clone(), key.clone()]),
        (get, vec![ours.clone(), key.clone(), "Origin: null".into()]),
        (get, vec![ours.clone(), key.clone(), format!("Origin: http://127.0.0.1:{port}")]),
        (get, vec![ours.clone(), key.clone(), "Referer: http://127.0.0.1/".into()]),
        ("GET /no/such/path", vec![host("evil.com")]),
        ("OPTIONS /assets", vec![ours.clone(), "Origin: https://evil.com".into()]),
    ];
    for (line, headers) in refused {
        let (code, answer) = status(&served, line, &headers).await;
        assert_eq!(code, 403, "{line} {headers:?}: {answer}");
        assert!(answer.contains("application/problem+json"));
        assert!(!answer.to_lowercase().contains("access-control"));
    }
    let mut bodies = Vec::new();
    for headers in [
        vec![ours.clone()],
        vec![ours.clone(), "Authorization: Bearer wrong".into()],
        vec![ours.clone(), "Authorization: Basic eDp5".into()],
        vec![ours.clone(), format!("Cookie: key={}", served.key.expose())],
    ] {
        let (code, answer) = status(&served, "GET /no/such/path", &headers).await;
        assert_eq!(code, 401, "{headers:?}");
        bodies.push(answer.split("\r\n\r\n").nth(1).unwrap().to_owned());
    }
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "the answers tell apart why: {bodies:?}");

    let in_query = format!("GET /sync/info?key={}", served.key.expose());
    assert_eq!(status(&served, &in_query, std::slice::from_ref(&ours)).await.0, 401);
}

#[tokio::test]
async fn a_header_of_a_megabyte_is_refused_and_harms_nobody() {
    let (served, _store) = full().await;
    let host = format!("Host: 127.0.0.1:{}", served.address.port());
    let huge = format!("X-Huge: {}", "x".repeat(1024 * 1024));
    let (code, _) = status(&served, "GET /sync/info", &[host, huge]).await;
    assert!(code == 431 || code == 0, "{code}");
    let fine = served.request(Method::GET, "/sync/info").send().await;
    assert_eq!(fine.unwrap().status(), 200);
}

#[tokio::test]
async fn every_error_is_a_problem_document() {
    let (served, _store) = full().await;
    let unknown = format!("/assets/{}", Hash([7; 32]));
    for (method, path, expected) in [
        (Method::GET, "/", 404),
        (Method::GET, "/sync/nothing", 404),
        (Method::GET, "/sync/push", 405),
        (Method::DELETE, "/assets", 405),
        (Method::OPTIONS, "/assets", 405),
        (Method::GET, "/assets/XYZ", 400),
        (Method::GET, unknown.as_str(), 404),
        (Method::GET, "/assets?limit=0", 400),
        (Method::GET, "/assets?limit=1001", 400),
        (Method::GET, "/assets?limt=5", 400),
        (Method::GET, "/assets?trashed=maybe", 400),
        (Method::GET, "/assets?hash=XY", 400),
        (Method::POST, "/sync/hashes?after=x", 400),
        (Method::POST, "/sync/push", 415),
        (Method::PUT, "/sync/blobs/00", 400),
    ] {
        let answer = served.request(method.clone(), path).send().await.unwrap();
        assert_eq!(answer.status(), expected, "{method} {path}");
        let kind = answer.headers()["content-type"].clone();
        assert_eq!(kind, "application/problem+json", "{method} {path}");
        assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
        let body: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        assert_eq!(body["status"], expected);
        assert!(body["title"].is_string() && body["detail"].is_string());
    }
}

#[tokio::test]
async fn only_the_exact_content_type_is_read() {
    let (served, store) = full().await;
    let bundle = proto::Bundle {
        digest: Some(proto::Digest {
            hash: HashAlgorithm::Blake3.hash(b"x").0.to_vec().into(),
            size_bytes: 1,
            ..proto::Digest::default()
        }),
        content: b"x".as_slice().into(),
        metadata: None,
    };
    for kind in [
        None,
        Some("text/plain"),
        Some("application/x-www-form-urlencoded"),
        Some("application/x-protobuf; x=y"),
        Some("application/json"),
    ] {
        let mut request = served.request(Method::POST, "/sync/push").body(bundle.encode_to_vec());
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        assert_eq!(request.send().await.unwrap().status(), 415, "{kind:?}");
    }
    for kind in ["multipart/form-data; boundary=x", "application/x-www-form-urlencoded"] {
        let request = served.request(Method::POST, "/assets").body("x");
        let answer = request.header("content-type", kind).send().await.unwrap();
        assert_eq!(answer.status(), 415, "{kind}");
    }
    assert_eq!(store.info().await.unwrap().asset_count, 0);
    let answer = served
        .request(Method::POST, "/sync/push")
        .header("content-type", PROTOBUF)
        .body(bundle.encode_to_vec())
        .send()
        .await;
    assert_eq!(answer.unwrap().status(), 200);
    let hash = HashAlgorithm::Blake3.hash(b"x");
    let answer = served
        .request(Method::PATCH, &format!("/assets/{hash}/meta"))
        .header("content-type", "application/json; charset=utf-8")
        .body("{}")
        .send()
        .await;
    assert_eq!(answer.unwrap().status(), 415);
}

async fn add(served: &Served, query: &str, content: &[u8]) -> (StatusCode, Value) {
    let request = served.request(Method::POST, &format!("/assets{query}"));
    let answer = request.body(content.to_vec()).send().await.unwrap();
    let status = answer.status();
    (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap())
}

async fn rows(served: &Served, query: &str) -> Value {
    let path = format!("/assets{query}");
    let answer = served.request(Method::GET, &path).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{query}");
    serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap()
}

#[tokio::test]
async fn what_people_add_comes_back_whole_and_in_ranges() {
    let (served, store) = full().await;
    for (seed, size) in [(1, 0), (2, 10), (3, 256 * 1024), (4, 256 * 1024 + 1), (5, 3_000_000)] {
        let bytes = content(seed, size);
        let (status, said) = add(&served, "?name=a%20b.bin", &bytes).await;
        assert_eq!(status, 201);
        let hash = HashAlgorithm::Blake3.hash(&bytes).to_string();
        assert_eq!(said, json!({"hash": hash, "size": size, "existed": false}));
        let (status, said) = add(&served, "?name=other", &bytes).await;
        assert_eq!((status.as_u16(), &said["existed"]), (200, &json!(true)));

        let path = format!("/assets/{hash}");
        let answer = served.request(Method::GET, &path).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let headers = answer.headers().clone();
        assert_eq!(headers["etag"], format!("\"{hash}\""));
        assert_eq!(headers["content-type"], "application/octet-stream");
        assert_eq!(headers["content-security-policy"], "sandbox");
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(headers["content-length"], size.to_string());
        let disposition = headers["content-disposition"].to_str().unwrap();
        assert!(disposition.starts_with("attachment; filename=\"a b.bin\""));
        assert!(answer.bytes().await.unwrap() == bytes, "{size} bytes");

        let head = served.request(Method::HEAD, &path).send().await.unwrap();
        assert_eq!(head.headers()["content-length"], size.to_string());
        let known =
            served.request(Method::GET, &path).header("if-none-match", format!("\"{hash}\""));
        assert_eq!(known.send().await.unwrap().status(), 304);
    }
    let bytes = content(5, 3_000_000);
    let hash = HashAlgorithm::Blake3.hash(&bytes);
    for path in [format!("/assets/{hash}"), format!("/sync/blobs/{hash}")] {
        for (range, expected) in [
            ("bytes=0-0", 0..1),
            ("bytes=5-1500004", 5..1_500_005),
            ("bytes=-7", 2_999_993..3_000_000),
            ("bytes=2999990-", 2_999_990..3_000_000),
            ("bytes=2999990-99999999", 2_999_990..3_000_000),
        ] {
            let request = served.request(Method::GET, &path).header("range", range);
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), 206);
            let end = expected.end - 1;
            let said = format!("bytes {}-{end}/3000000", expected.start);
            assert_eq!(answer.headers()["content-range"], said);
            assert!(answer.bytes().await.unwrap() == bytes[expected], "{range}");
        }
        let request = served.request(Method::GET, &path).header("range", "bytes=3000000-");
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 416);
        assert_eq!(answer.headers()["content-range"], "bytes */3000000");
        let stale = served
            .request(Method::GET, &path)
            .header("range", "bytes=0-0")
            .header("if-range", "\"another\"");
        assert_eq!(stale.send().await.unwrap().status(), 200);
    }
    assert_eq!(files(store.staging_dir()), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn people_list_describe_and_trash() {
    let (served, _store) = full().await;
    let mut hashes = Vec::new();
    for n in 0..5 {
        let query = format!("?name=file{n}.png&type=image/png&tag=a&tag=n{n}&description=the+{n}");
        let (_, said) = add(&served, &query, format!("content {n}").as_bytes()).await;
        hashes.push(said["hash"].as_str().unwrap().to_owned());
    }
    let all = rows(&served, "").await;
    assert_eq!(all["assets"].as_array().unwrap().len(), 5);
    assert_eq!(all["next"], Value::Null);
    let first = &all["assets"][0];
    assert_eq!(first["hash"], hashes[0]);
    assert_eq!(first["size"], 9);
    assert_eq!(first["name"], "file0.png");
    assert_eq!(first["type"], "image/png");
    assert_eq!(first["description"], "the 0");
    assert_eq!(first["tags"], json!(["a", "n0"]));
    assert_eq!(first["trashed"], false);
    assert!(first["timestamp"].is_i64() && first["cursor"].is_u64() && first["version"].is_u64());

    let (mut after, mut paged) = (json!(0), Vec::new());
    while !after.is_null() {
        let page = rows(&served, &format!("?limit=2&after={after}")).await;
        paged.extend(page["assets"].as_array().unwrap().clone());
        after = page["next"].clone();
    }
    assert_eq!(json!(paged), all["assets"]);
    for (query, expected) in [
        ("?tag=n3", 1),
        ("?tag=a", 5),
        ("?tag=b", 0),
        ("?type=image/", 5),
        ("?type=text/plain", 0),
        ("?q=FILE2", 1),
        ("?trashed=true", 0),
        ("?trashed=false&tag=n1", 1),
    ] {
        let found = rows(&served, query).await;
        assert_eq!(found["assets"].as_array().unwrap().len(), expected, "{query}");
    }
    let found = rows(&served, &format!("?hash={}", &hashes[2][..12])).await;
    assert_eq!(found["assets"][0]["hash"], hashes[2]);

    let path = format!("/assets/{}/meta", hashes[0]);
    let answer = served.request(Method::GET, &path).send().await.unwrap();
    let etag = answer.headers()["etag"].clone();
    let patch = |body: Value, etag: Option<reqwest::header::HeaderValue>| {
        let mut request = served
            .request(Method::PATCH, &path)
            .header("content-type", "application/json")
            .body(body.to_string());
        if let Some(etag) = etag {
            request = request.header("if-match", etag);
        }
        async { request.send().await.unwrap() }
    };
    let answer = patch(json!({"description": "new"}), Some(etag.clone())).await;
    assert_eq!(answer.status(), 200);
    assert_ne!(answer.headers()["etag"], etag);
    let row: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    assert_eq!((&row["description"], &row["tags"]), (&json!("new"), &json!(["a", "n0"])));
    assert_eq!(row["name"], "file0.png");
    let answer = patch(json!({"description": "lost"}), Some(etag)).await;
    assert_eq!(answer.status(), 412);
    let answer = patch(json!({"tags": [" b ", "a", "b"]}), None).await;
    let row: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    assert_eq!((&row["description"], &row["tags"]), (&json!("new"), &json!(["a", "b"])));
    for bad in [json!({"descripton": "x"}), json!([]), json!({"tags": "x"})] {
        assert_eq!(patch(bad, None).await.status(), 400);
    }
    assert_eq!(patch(json!({"description": "x".repeat(16_385)}), None).await.status(), 400);
    let huge = json!({"description": "x".repeat(600_000)});
    assert_eq!(patch(huge, None).await.status(), 413);

    let path = format!("/assets/{}", hashes[1]);
    let answer = served.request(Method::DELETE, &path).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(rows(&served, "?trashed=true").await["assets"][0]["hash"], hashes[1]);
    let still = served.request(Method::GET, &path).send().await.unwrap();
    assert_eq!(still.bytes().await.unwrap(), "content 1");
}

#[tokio::test]
async fn edits_at_once_are_all_kept() {
    let (served, _store) = full().await;
    let (_, said) = add(&served, "", b"x").await;
    let path = format!("/assets/{}/meta", said["hash"].as_str().unwrap());
    let patch = |body: Value| {
        let request = served
            .request(Method::PATCH, &path)
            .header("content-type", "application/json")
            .body(body.to_string());
        async { request.send().await.unwrap() }
    };
    for round in 0..20 {
        let (one, two) = tokio::join!(
            patch(json!({"description": format!("d{round}")})),
            patch(json!({"tags": [format!("t{round}")]})),
        );
        assert_eq!((one.status().as_u16(), two.status().as_u16()), (200, 200));
        let row = served.request(Method::GET, &path).send().await.unwrap();
        let row: Value = serde_json::from_slice(&row.bytes().await.unwrap()).unwrap();
        assert_eq!(row["description"], format!("d{round}"));
        assert_eq!(row["tags"], json!([format!("t{round}")]));
    }
}

#[tokio::test]
async fn what_could_run_in_a_browser_is_a_plain_download() {
    let (served, _store) = full().await;
    for (kind, served_as, inline) in [
        ("text/html", "application/octet-stream", "attachment"),
        ("image/svg%2Bxml", "application/octet-stream", "attachment"),
        ("a%0D%0ASet-Cookie:x", "application/octet-stream", "attachment"),
        ("application/pdf", "application/pdf", "attachment"),
        ("image/png", "image/png", "inline"),
        ("text/plain", "text/plain; charset=utf-8", "inline"),
    ] {
        let (_, said) = add(&served, &format!("?type={kind}"), kind.as_bytes()).await;
        let path = format!("/assets/{}?inline=1", said["hash"].as_str().unwrap());
        let answer = served.request(Method::GET, &path).send().await.unwrap();
        assert_eq!(answer.headers()["content-type"], served_as, "{kind}");
        assert_eq!(answer.headers()["content-disposition"], inline, "{kind}");
        assert_eq!(answer.headers()["content-security-policy"], "sandbox");
        assert!(!answer.headers().contains_key("set-cookie"));
    }
}

#[tokio::test]
async fn an_upload_that_cannot_fit_is_refused_before_its_first_byte() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { free_floor_bytes: Some(u64::MAX / 2), ..Options::default() };
    let store = EmbeddedStore::open(&dir.path().join("store"), options).unwrap();
    let served = guarded(dir, store_api::router(store.clone(), Features::default())).await;
    let hash = Hash([1; 32]);
    for line in ["POST /assets".to_owned(), format!("PUT /sync/blobs/{hash}")] {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        let request = format!(
            "{line} HTTP/1.1\r\nHost: 127.0.0.1\r\n{}\r\nContent-Length: 1000000\r\n\
             Content-Type: application/octet-stream\r\nExpect: 100-continue\r\n\r\n",
            key_line(&served)
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = [0; 12];
        timeout(WAIT, stream.read_exact(&mut head)).await.unwrap().unwrap();
        assert_eq!(&head, b"HTTP/1.1 507", "{line}");
    }
    assert_eq!(files(store.staging_dir()), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_broken_upload_leaves_nothing_of_itself() {
    let (served, store) = full().await;
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    let head = format!(
        "POST /assets HTTP/1.1\r\nHost: 127.0.0.1\r\n{}\r\nContent-Length: 1000000\r\n\r\n",
        key_line(&served)
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&[7; 700_000]).await.unwrap();
    eventually("a file for the upload", async || !files(store.staging_dir()).is_empty()).await;
    drop(stream);
    eventually("an empty folder", async || files(store.staging_dir()).is_empty()).await;
    assert_eq!(store.info().await.unwrap().asset_count, 0);
}

#[tokio::test]
async fn a_damaged_asset_is_never_served_whole() {
    let (served, _store) = full().await;
    let bytes = content(1, 2_500_000);
    let (_, said) = add(&served, "", &bytes).await;
    let hash = said["hash"].as_str().unwrap();
    let stored = stored(&served, hash);
    let mut damaged = bytes.to_vec();
    damaged[1_234_567] ^= 1;
    let ranges = ["0-999999", "1100000-1200000", "0-", "5-", "1234560-1234570"];
    for path in [format!("/assets/{hash}"), format!("/sync/blobs/{hash}")] {
        for range in std::iter::once(None).chain(ranges.map(Some)) {
            std::fs::write(&stored, &damaged).unwrap();
            let mut request = served.request(Method::GET, &path);
            if let Some(range) = range {
                request = request.header("range", format!("bytes={range}"));
            }
            let answer = request.send().await.unwrap();
            let (status, came) = (answer.status(), answer.bytes().await);
            let parts = [(0..1_000_000, ranges[0]), (1_100_000..1_200_001, ranges[1])];
            match parts.iter().find(|(_, part)| range == Some(*part)) {
                Some((part, _)) => {
                    assert!(came.unwrap() == bytes[part.clone()], "{path} {range:?}")
                }
                // Refused at once, or cut off at the wrong piece.
                None => {
                    assert!(status.is_client_error() || came.is_err(), "{path} {range:?}");
                    let gone = served.request(Method::GET, &path).send().await.unwrap().status();
                    let expected = if path.starts_with("/assets") { 410 } else { 404 };
                    assert_eq!(gone, expected, "it is known now: {path}");
                    assert_eq!(add(&served, "", &bytes).await.0, 201, "it is stored anew");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_part_is_proven_also_where_no_hash_pairs_are_kept_and_where_they_have_rotted() {
    for algorithm in [HashAlgorithm::Sha256, HashAlgorithm::Blake3] {
        let (served, _store) = served(algorithm, Features::default()).await;
        let bytes = content(1, 2_500_000);
        let (_, said) = add(&served, "", &bytes).await;
        let hash = said["hash"].as_str().unwrap();
        let stored = stored(&served, hash);
        if algorithm == HashAlgorithm::Blake3 {
            let outboard = stored.with_extension("outboard");
            let mut rotten = std::fs::read(&outboard).unwrap();
            *rotten.last_mut().unwrap() ^= 1;
            std::fs::write(&outboard, rotten).unwrap();
        }
        let part = async |range: std::ops::Range<usize>| {
            let header = format!("bytes={}-{}", range.start, range.end - 1);
            let path = format!("/assets/{hash}");
            let request = served.request(Method::GET, &path).header("range", header);
            let answer = request.send().await.unwrap();
            (answer.status().as_u16(), answer.bytes().await)
        };
        for range in [5..6, 1_048_570..1_048_580, 2_499_999..2_500_000, 1_000_000..2_400_000] {
            let (status, came) = part(range.clone()).await;
            assert!(status == 206 && came.unwrap() == bytes[range], "{algorithm:?}");
        }
        let mut damaged = bytes.to_vec();
        damaged[2_000_000] ^= 1;
        std::fs::write(&stored, damaged).unwrap();
        let (status, came) = part(1_999_990..2_000_010).await;
        assert!(status == 410 || came.is_err(), "{algorithm:?} {status}");
    }
}

/// The file of a stored content.
fn stored(served: &Served, hash: &str) -> PathBuf {
    files(&served.dir.path().join("store"))
        .into_iter()
        .find(|path| path.file_name().is_some_and(|name| name == hash))
        .unwrap()
}

fn put(served: &Served, hash: Hash) -> reqwest::RequestBuilder {
    served
        .request(Method::PUT, &format!("/sync/blobs/{hash}"))
        .header("content-type", "application/octet-stream")
}

async fn offset(served: &Served, hash: Hash) -> Option<u64> {
    let path = format!("/sync/blobs/{hash}");
    let answer = served.request(Method::HEAD, &path).send().await.unwrap();
    let header = answer.headers().get("upload-offset")?;
    Some(header.to_str().unwrap().parse().unwrap())
}

#[tokio::test]
async fn a_broken_off_upload_goes_on_where_it_stopped() {
    for algorithm in [HashAlgorithm::Blake3, HashAlgorithm::Sha256] {
        let (served, store) = served(algorithm, Features::default()).await;
        let bytes = content(1, 3_000_000);
        let hash = algorithm.hash(&bytes);
        assert_eq!(offset(&served, hash).await, None);

        let mut stream = TcpStream::connect(served.address).await.unwrap();
        let head = format!(
            "PUT /sync/blobs/{hash} HTTP/1.1\r\nHost: 127.0.0.1\r\n{}\r\n\
             Content-Type: application/octet-stream\r\nContent-Length: 3000000\r\n\r\n",
            key_line(&served)
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&bytes[..1_000_000]).await.unwrap();
        eventually("a kept part", async || offset(&served, hash).await > Some(500_000)).await;
        drop(stream);
        // This waits until the first upload ends.
        let request = put(&served, hash).header("content-range", "bytes 1-1/3000000");
        assert_eq!(request.body("x").send().await.unwrap().status(), 409);

        let held = offset(&served, hash).await.unwrap();
        let half = 2_000_000;
        let range = format!("bytes {held}-{}/3000000", half - 1);
        let request = put(&served, hash).header("content-range", range);
        let part = bytes.slice(held as usize..half);
        let answer = request.body(part).send().await.unwrap();
        assert_eq!(answer.status(), 202);
        assert_eq!(answer.headers()["upload-offset"], "2000000");
        assert!(store.lookup(hash).await.unwrap().is_none());
        let request = put(&served, hash)
            .header("content-range", "bytes 2000000-2999999/3000000")
            .body(bytes.slice(half..));
        assert_eq!(request.send().await.unwrap().status(), 201);
        let read = store.read(hash, 1_999_990..2_000_010).await.unwrap().unwrap();
        assert_eq!(read, bytes[1_999_990..2_000_010]);
        assert_eq!(files(store.staging_dir()), Vec::<PathBuf>::new());
        let again = put(&served, hash).body(bytes).send().await.unwrap();
        assert_eq!(again.status(), 200);
    }
}

#[tokio::test]
async fn an_upload_with_the_wrong_hash_keeps_nothing() {
    let (served, store) = full().await;
    for size in [0, 10, 1_000_000] {
        let answer = put(&served, Hash([1; 32])).body(vec![0; size]).send().await;
        assert_eq!(answer.unwrap().status(), 422);
    }
    assert_eq!(offset(&served, Hash([1; 32])).await, None);
    assert_eq!(files(store.staging_dir()), Vec::<PathBuf>::new());
    assert_eq!(store.info().await.unwrap().asset_count, 0);
}

#[tokio::test]
async fn unfinished_uploads_are_bounded() {
    let (served, store) = full().await;
    for n in 0..80_u8 {
        let answer = put(&served, Hash([n; 32]))
            .header("content-range", "bytes 0-0/2")
            .body("x")
            .send()
            .await;
        assert_eq!(answer.unwrap().status(), 202);
    }
    assert_eq!(files(store.staging_dir()).len(), 64);
    assert_eq!(offset(&served, Hash([0; 32])).await, None);
    assert_eq!(offset(&served, Hash([79; 32])).await, Some(1));
}

async fn post<T: prost::Message + Default>(
    served: &Served,
    path: &str,
    message: &impl prost::Message,
) -> (StatusCode, T) {
    let answer = served
        .request(Method::POST, path)
        .header("content-type", PROTOBUF)
        .body(message.encode_to_vec())
        .send()
        .await
        .unwrap();
    let status = answer.status();
    let body = answer.bytes().await.unwrap();
    (status, T::decode(body).unwrap_or_default())
}

fn bundle(content: &[u8]) -> proto::Bundle {
    let digest = digest(HashAlgorithm::Blake3, content);
    proto::Bundle {
        digest: Some(proto::Digest {
            hash: digest.hash.0.to_vec().into(),
            size_bytes: digest.size_bytes,
            ..proto::Digest::default()
        }),
        content: content.to_vec().into(),
        metadata: None,
    }
}

#[tokio::test]
async fn a_batch_answers_for_each_bundle() {
    let (served, store) = full().await;
    let mut wrong = bundle(b"wrong");
    wrong.content = b"gnorw".as_slice().into();
    let mut hashless = bundle(b"hashless");
    hashless.digest = None;
    let large = bundle(&content(1, 300_000));
    let request = proto::PushBatchRequest {
        bundles: vec![bundle(b"a"), wrong, bundle(b"a"), large, hashless, bundle(b"b")],
    };
    let (status, said): (_, proto::PushBatchResponse) =
        post(&served, "/sync/push-batch", &request).await;
    assert_eq!(status, 200);
    let statuses: Vec<u32> = said.results.iter().map(|result| result.status).collect();
    assert_eq!(statuses, [200, 422, 208, 413, 400, 200]);
    assert_eq!(store.info().await.unwrap().asset_count, 2);
    let request = proto::PushBatchRequest { bundles: vec![proto::Bundle::default(); 1025] };
    let (status, _): (_, proto::PushBatchResponse) =
        post(&served, "/sync/push-batch", &request).await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn messages_are_bounded_in_both_directions() {
    let (served, store) = full().await;
    let too_long = bundle(&vec![0; 16 * 1024 * 1024 + 1]);
    let (status, _): (_, proto::PushResponse) = post(&served, "/sync/push", &too_long).await;
    assert_eq!(status, 413);
    let mut hashes = Vec::new();
    for seed in 0..3 {
        let bundle = bundle(&content(seed, 7_000_000));
        hashes.push(bundle.digest.clone().unwrap().hash);
        let (status, said): (_, proto::PushResponse) = post(&served, "/sync/push", &bundle).await;
        assert_eq!((status.as_u16(), said.already_existed), (200, false));
    }
    let request = proto::PullRequest { hashes: hashes.clone(), metadata_only: false };
    let (_, said): (_, proto::PullResponse) = post(&served, "/sync/pull", &request).await;
    assert_eq!((said.bundles.len(), said.missing.len()), (2, 0));
    let request = proto::PullRequest { hashes, metadata_only: true };
    let (_, said): (_, proto::PullResponse) = post(&served, "/sync/pull", &request).await;
    assert_eq!(said.bundles.len(), 3);
    assert!(said.bundles.iter().all(|bundle| bundle.content.is_empty()));

    let (_, added) = add(&served, "", &content(9, 17_000_000)).await;
    let hash: Hash = added["hash"].as_str().unwrap().parse().unwrap();
    let request = proto::PullRequest { hashes: vec![hash.0.to_vec().into()], metadata_only: false };
    let (status, _): (_, proto::PullResponse) = post(&served, "/sync/pull", &request).await;
    assert_eq!(status, 413);
    assert_eq!(store.info().await.unwrap().asset_count, 4);
    let garbage = served
        .request(Method::POST, "/sync/pull")
        .header("content-type", PROTOBUF)
        .body("\u{1}\u{2}\u{3}");
    assert_eq!(garbage.send().await.unwrap().status(), 400);
}

/// Reads an event stream until `count` events have arrived; skips keep-alives.
async fn events(mut answer: reqwest::Response, count: usize) -> Vec<String> {
    assert_eq!(answer.status(), 200);
    let mut text = String::new();
    let read = async {
        while text.matches("\n\n").count() < count {
            let chunk = answer.chunk().await.unwrap().expect("more events");
            text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    };
    timeout(WAIT, read).await.expect("events in time");
    text.split_terminator("\n\n").map(str::to_owned).collect()
}

fn follow(served: &Served, id: Option<&str>) -> reqwest::RequestBuilder {
    let request = served.request(Method::GET, "/sync/events");
    match id {
        Some(id) => request.header("last-event-id", id),
        None => request,
    }
}

#[tokio::test]
async fn events_resume_by_cursor_with_nothing_lost() {
    let (served, store) = full().await;
    for seed in 0..600 {
        let new = asset(HashAlgorithm::Blake3, content(seed, 10));
        store.put(vec![new]).await.unwrap().remove(0).unwrap();
    }
    let hash = HashAlgorithm::Blake3.hash(&content(3, 10));
    let edit = Metadata { trashed: true, ..Metadata::default() };
    let edited = store.set_metadata(hash, &edit, None).await.unwrap();

    let all = events(follow(&served, Some("0")).send().await.unwrap(), 601).await;
    assert!(all[0].contains("event: asset"));
    assert!(all[0].lines().any(|line| line == "id: 1"), "{}", all[0]);
    let data = all[3].split("data: ").nth(1).unwrap();
    let data: Value = serde_json::from_str(data.lines().next().unwrap()).unwrap();
    assert_eq!((&data["hash"], &data["size"]), (&json!(hash.to_string()), &json!(10)));
    assert!(data["timestamp"].is_i64());
    assert!(all[600].contains("event: meta") && all[600].contains("id: 601"));
    let version = format!("\"version\":{}", edited.version);
    assert!(all[600].contains(&version), "{}", all[600]);

    let rest = events(follow(&served, Some("598")).send().await.unwrap(), 3).await;
    assert_eq!(rest[..], all[598..]);

    let live = follow(&served, None).send().await.unwrap();
    let new = asset(HashAlgorithm::Blake3, content(9_000, 10));
    store.put(vec![new]).await.unwrap().remove(0).unwrap();
    let live = events(live, 1).await;
    assert!(live[0].contains("id: 602"), "{live:?}");
}

#[tokio::test]
async fn an_edit_of_an_agent_that_knows_no_attributes_leaves_them_as_they_are() {
    let (served, store) = full().await;
    let mut new = asset(HashAlgorithm::Blake3, content(1, 10));
    new.metadata.attributes = Attributes::named("a.txt");
    let hash = new.digest.hash;
    store.put(vec![new]).await.unwrap().remove(0).unwrap();
    let old = proto::MetaRequest {
        hash: hash.0.to_vec().into(),
        description: "new".into(),
        ..proto::MetaRequest::default()
    };
    let (status, said): (_, proto::MetaResponse) = post(&served, "/sync/meta", &old).await;
    let row = said.metadata.unwrap();
    assert_eq!(
        (status, row.description, row.file_name),
        (StatusCode::OK, "new".into(), "a.txt".into())
    );

    let attributes = proto::Attributes { modified_ms: Some(-1), ..proto::Attributes::default() };
    let request = proto::MetaRequest { attributes: Some(attributes), ..old.clone() };
    let (_, said): (_, proto::MetaResponse) = post(&served, "/sync/meta", &request).await;
    let row = said.metadata.unwrap();
    assert_eq!((row.file_name, row.modified_ms), (String::new(), Some(-1)), "these are all");
    let stale = proto::MetaRequest { expected_version: Some(1), ..old };
    let (status, _): (_, proto::MetaResponse) = post(&served, "/sync/meta", &stale).await;
    assert_eq!(status, StatusCode::CONFLICT);
}

#[tokio::test]
async fn an_unknown_cursor_is_told_to_list_anew() {
    let (served, _store) = full().await;
    add(&served, "", b"x").await;
    for id in ["2", "99999999999999999999999", "-1", "abc"] {
        let said = events(follow(&served, Some(id)).send().await.unwrap(), 1).await;
        assert!(said[0].contains("event: reset"), "{id}: {said:?}");
        assert!(said[0].contains("data: {}") && said[0].contains("id: 1"));
    }
}

#[tokio::test]
async fn an_event_source_of_a_browser_can_give_the_key_in_the_query() {
    let (served, _store) = full().await;
    add(&served, "", b"x").await;
    let url = format!("{}/sync/events?key={}", served.url(), served.key.expose());
    let request = common::http::client().get(url).header("last-event-id", "0");
    let said = events(request.send().await.unwrap(), 1).await;
    assert!(said[0].contains("event: asset"));
}

#[tokio::test]
async fn a_new_connection_takes_the_place_of_the_one_idle_longest() {
    let (served, _store) = full().await;
    let stream = follow(&served, None).send().await.unwrap();
    let mut idle = Vec::new();
    for _ in 0..STRANGERS_MAX + 10 {
        idle.push(TcpStream::connect(served.address).await.unwrap());
    }
    let mut byte = [0];
    let closed = timeout(HEADER_DEADLINE / 2, idle[0].read(&mut byte)).await;
    assert_eq!(closed.expect("closed at once, not by the deadline").unwrap_or(0), 0);
    let request = served.request(Method::GET, "/sync/info");
    let answer = timeout(WAIT, request.send()).await.unwrap().unwrap();
    assert_eq!(answer.status(), 200);
    // The stream was busy, not idle, and lives.
    add(&served, "", b"x").await;
    assert_eq!(events(stream, 1).await.len(), 1);
}

#[tokio::test]
async fn requests_without_the_key_do_not_shut_the_server_for_its_owner() {
    let (served, _store) = full().await;
    let mut strangers = Vec::new();
    let head = "POST /assets HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000000\r\n\r\n";
    for _ in 0..STRANGERS_MAX + 16 {
        let mut stranger = TcpStream::connect(served.address).await.unwrap();
        stranger.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        timeout(WAIT, stranger.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(&answer, b"HTTP/1.1 401");
        // It continues to send its body and never ends it.
        stranger.write_all(b"x").await.unwrap();
        strangers.push(stranger);
    }
    for _ in 0..8 {
        let request = served.request(Method::GET, "/sync/info");
        assert_eq!(timeout(WAIT, request.send()).await.unwrap().unwrap().status(), 200);
    }
}

#[tokio::test]
async fn a_header_that_does_not_come_ends_the_connection() {
    let (served, _store) = full().await;
    let start = Instant::now();
    let mut silent = TcpStream::connect(served.address).await.unwrap();
    let mut slow = TcpStream::connect(served.address).await.unwrap();
    slow.write_all(b"GET /sync/info HTTP/1.1\r\nHost: 127").await.unwrap();
    let mut rest = Vec::new();
    for stream in [&mut silent, &mut slow] {
        let _ = timeout(WAIT, stream.read_to_end(&mut rest)).await.expect("closed in time");
    }
    assert!(start.elapsed() >= HEADER_DEADLINE - Duration::from_millis(100));
}

#[tokio::test]
async fn a_stop_ends_streams_at_once_and_everything_in_time() {
    let (mut served, _store) = full().await;
    let mut stream = follow(&served, None).send().await.unwrap();
    let mut hanging = TcpStream::connect(served.address).await.unwrap();
    let head = format!(
        "POST /assets HTTP/1.1\r\nHost: 127.0.0.1\r\n{}\r\nContent-Length: 100\r\n\r\nabc",
        key_line(&served)
    );
    hanging.write_all(head.as_bytes()).await.unwrap();
    // The hanging upload is under way once another request is answered.
    served.request(Method::GET, "/sync/info").send().await.unwrap();

    let start = Instant::now();
    served.stop.cancel();
    let end = timeout(WAIT, stream.chunk()).await.expect("the stream ends");
    assert!(matches!(end, Ok(None)), "{end:?}");
    assert!(start.elapsed() < STOP_DEADLINE / 2);
    timeout(WAIT, &mut served.ended).await.unwrap().unwrap().unwrap();
    assert!(start.elapsed() < STOP_DEADLINE + Duration::from_secs(1));
    assert!(TcpStream::connect(served.address).await.is_err());
}

#[tokio::test]
async fn only_loopback_is_served() {
    let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let result = can_sync::http::serve::serve(listener, axum::Router::new(), stop).await;
    assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
}

#[tokio::test]
async fn an_early_refusal_of_a_large_body_reaches_the_client() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { free_floor_bytes: Some(u64::MAX / 2), ..Options::default() };
    let store = EmbeddedStore::open(&dir.path().join("store"), options).unwrap();
    let served = guarded(dir, store_api::router(store, Features::default())).await;
    let client = served.client();
    for round in 0..20 {
        let bytes = content(round, 20_000_000);
        let new = common::file(HashAlgorithm::Blake3, served.dir.path(), &bytes);
        let error = client.adopt(new).await.unwrap_err();
        assert!(matches!(error, StoreError::Full(_)), "{round}: {error:?}");
    }
}
