//! The local API as other programs use it: a real agent, real HTTP.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

#[path = "common/agent.rs"]
mod agent;

use agent::{Agent, DEADLINE, until};

/// An answer: status, ETag, body.
#[derive(Debug)]
struct Answer {
    status: u16,
    etag: Option<String>,
    body: Value,
}

fn call(agent: &Agent, method: &str, path: &str, body: Option<&Value>) -> Answer {
    call_if(agent, method, path, body, &[])
}

/// A call with additional headers.
fn call_if(
    agent: &Agent,
    method: &str,
    path: &str,
    body: Option<&Value>,
    headers: &[&str],
) -> Answer {
    let kind = body.map_or("", |_| "Content-Type: application/json\r\n");
    let body = body.map(Value::to_string).unwrap_or_default();
    let more: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let (status, answer) = agent.http(&format!(
        "{method} {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {}\r\n{kind}{more}\
         Content-Length: {}\r\n\r\n{body}",
        agent.token(),
        body.len()
    ));
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let header = |name: &str| {
        let is_it = |line: &&str| line.to_ascii_lowercase().starts_with(&format!("{name}: "));
        head.lines().find(is_it).map(|line| line[name.len() + 2..].to_owned())
    };
    if status >= 400 {
        assert_eq!(header("content-type").as_deref(), Some("application/problem+json"), "{answer}");
    }
    let body = serde_json::from_str(body).unwrap_or(Value::Null);
    Answer { status, etag: header("etag"), body }
}

fn get(agent: &Agent, path: &str) -> Value {
    let answer = call(agent, "GET", path, None);
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    answer.body
}

/// A write that succeeds; returns its ETag.
fn put(agent: &Agent, path: &str, body: &Value) -> String {
    let answer = call(agent, "PUT", path, Some(body));
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    answer.etag.unwrap()
}

/// An event stream.
struct Events(BufReader<TcpStream>);

#[derive(Debug)]
struct Event {
    name: String,
    id: Option<String>,
    data: Value,
}

impl Events {
    /// Opens a stream, or returns the status of the refusal.
    fn open(agent: &Agent, path: &str, headers: &[String]) -> Result<Self, u16> {
        let address = agent.ready()["api"].as_str().unwrap().strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let more: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
        let token = agent.token();
        // HTTP/1.0, so that the body is not chunked.
        let head = format!("GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n");
        write!(stream, "{head}Authorization: Bearer {token}\r\n{more}\r\n").unwrap();
        let mut events = Self(BufReader::new(stream));
        let status: u16 = events.line().split(' ').nth(1).unwrap().parse().unwrap();
        if status != 200 {
            return Err(status);
        }
        while !events.line().is_empty() {}
        Ok(events)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.0.read_line(&mut line).unwrap() > 0, "the stream ended");
        line.trim_end().to_owned()
    }

    fn next(&mut self) -> Event {
        let mut event = Event { name: String::new(), id: None, data: Value::Null };
        loop {
            let line = self.line();
            match line.split_once(": ") {
                Some(("event", name)) => event.name = name.to_owned(),
                Some(("id", id)) => event.id = Some(id.to_owned()),
                Some(("data", data)) => event.data = serde_json::from_str(data).unwrap(),
                _ if line.is_empty() && !event.name.is_empty() => return event,
                _ => {}
            }
        }
    }

    /// The events before `ready`.
    fn until_ready(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let event = self.next();
            if event.name == "ready" {
                return events;
            }
            events.push(event);
        }
    }
}

fn ids(page: &Value) -> Vec<&str> {
    page["records"].as_array().unwrap().iter().map(|r| r["id"].as_str().unwrap()).collect()
}

#[test]
fn a_record_comes_back_as_it_was_written_whatever_its_values_and_name() {
    let agent = Agent::start();
    let values = json!({
        "text": "milk \u{1f95b}", "int": -7, "large": i64::MAX, "double": 1.5, "whole": 2.0,
        "yes": true, "none": null, "bytes": { "bytes": "AP8=" }, "empty": "",
    });
    let path = "/v1/records/note/a%2Fb%20c%25%C3%BC";
    let body = json!({ "set": values, "add": { "tags": ["x", "y"] } });
    let etag = put(&agent, path, &body);
    let answer = call(&agent, "GET", path, None);
    assert_eq!(answer.etag.as_ref(), Some(&etag));
    let record = answer.body;
    assert_eq!(record["fields"], values);
    assert_eq!(record["sets"], json!({ "tags": ["x", "y"] }));
    assert_eq!(record["id"], "a/b c%ü");
    assert_eq!(record["model"], "note");
    assert_eq!(record["owner"], Value::Null);
    assert_eq!(format!("\"{}\"", record["etag"].as_str().unwrap()), etag);

    let remove = json!({ "remove": { "tags": ["x"] } });
    let patched = call(&agent, "PATCH", path, Some(&remove));
    assert_eq!(patched.status, 200);
    assert_ne!(patched.etag, Some(etag), "what is taken out changes the record too");
    assert_eq!(get(&agent, path)["sets"], json!({ "tags": ["y"] }));
    assert_eq!(call(&agent, "DELETE", path, None).status, 200);
    for method in ["GET", "DELETE"] {
        assert_eq!(call(&agent, method, path, None).status, 404, "{method}");
    }
    assert_eq!(call(&agent, "PATCH", path, Some(&remove)).status, 404);
    assert_eq!(put(&agent, path, &json!({})).len(), put(&agent, path, &json!({})).len());
    assert_eq!(get(&agent, path)["fields"], json!({}), "a deleted record comes back empty");
}

#[test]
fn what_is_answered_outlives_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    let mut agent = Agent::start_in(&home);
    let etag = put(&agent, "/v1/records/note/1", &json!({ "set": { "n": 1 } }));
    agent.stop_with("-KILL");
    let mut agent = Agent::start_in(&home);
    assert_eq!(call(&agent, "GET", "/v1/records/note/1", None).etag, Some(etag.clone()));
    let if_match = format!("If-Match: {etag}");
    let write = json!({ "set": { "n": 2 } });
    let path = "/v1/records/note/1";
    assert_eq!(call_if(&agent, "PUT", path, Some(&write), &[&if_match]).status, 200);
    assert_eq!(agent.stop_with("-TERM").code(), Some(0));
}

#[test]
fn a_conditional_write_is_made_only_on_what_its_writer_saw() {
    let agent = Agent::start();
    let path = "/v1/records/note/1";
    let write = |n: u32, condition: &str| {
        call_if(&agent, "PUT", path, Some(&json!({ "set": { "n": n } })), &[condition])
    };
    let first = write(1, "If-None-Match: *");
    assert_eq!(first.status, 200);
    assert_eq!(write(2, "If-None-Match: *").status, 412);
    let if_first = format!("If-Match: {}", first.etag.unwrap());
    let second = write(2, &if_first);
    assert_eq!(second.status, 200);
    assert_eq!(write(3, &if_first).status, 412);
    assert_eq!(call_if(&agent, "DELETE", path, None, &[&if_first]).status, 412);
    assert_eq!(get(&agent, path)["fields"]["n"], 2);
    let if_second = format!("If-Match: {}", second.etag.unwrap());
    assert_eq!(call_if(&agent, "DELETE", path, None, &[&if_second]).status, 200);
    assert_eq!(write(4, &if_second).status, 412);
    for condition in ["If-Match: *", "If-Match: \"x\"", "If-Match: 1", "If-None-Match: \"x\""] {
        assert_eq!(write(5, condition).status, 400, "{condition}");
    }
    let other = format!("If-Match: \"{}-1\"", "ab".repeat(16));
    assert_eq!(write(5, &other).status, 412);
}

#[test]
fn listings_are_paged_and_filtered_and_own_records_stand_apart() {
    let agent = Agent::start();
    let me = agent.ready()["node_id"].as_str().unwrap().to_owned();
    for id in ["a1", "a2", "a3", "b1"] {
        put(&agent, &format!("/v1/records/note/{id}"), &json!({ "set": { "id": id } }));
    }
    put(&agent, "/v1/own/note/mine", &json!({ "set": { "n": 1 } }));
    assert_eq!(ids(&get(&agent, "/v1/records/note")), ["a1", "a2", "a3", "b1"]);
    assert_eq!(ids(&get(&agent, "/v1/records/note?prefix=a")), ["a1", "a2", "a3"]);
    assert_eq!(ids(&get(&agent, "/v1/records/nothing")), Vec::<&str>::new());
    let mut seen = Vec::new();
    let mut next = String::new();
    loop {
        let page = get(&agent, &format!("/v1/records/note?limit=3{next}"));
        seen.extend(ids(&page).into_iter().map(str::to_owned));
        match page["next"].as_str() {
            Some(after) => next = format!("&after={after}"),
            None => break,
        }
    }
    assert_eq!(seen, ["a1", "a2", "a3", "b1"]);

    for owner in ["", "?owner=any", &format!("?owner={me}")] {
        let page = get(&agent, &format!("/v1/own/note{owner}"));
        assert_eq!(ids(&page), ["mine"], "{owner}");
        assert_eq!(page["records"][0]["owner"], me.as_str());
    }
    assert_eq!(get(&agent, &format!("/v1/own/note/mine?owner={me}"))["fields"]["n"], 1);
    let other = "ab".repeat(32);
    assert_eq!(ids(&get(&agent, &format!("/v1/own/note?owner={other}"))), Vec::<&str>::new());
    for bad in ["?limit=0", "?limit=1001", "?after=x", "?owner=any", "?unknown=1"] {
        assert_eq!(
            call(&agent, "GET", &format!("/v1/records/note{bad}"), None).status,
            400,
            "{bad}"
        );
    }
}

#[test]
fn what_is_malformed_or_too_large_is_refused_with_what_it_is() {
    let agent = Agent::start();
    let path = "/v1/records/note/1";
    let status = |body: Value| call(&agent, "PUT", path, Some(&body)).status;
    assert_eq!(status(json!({ "set": { "f": [] } })), 400);
    assert_eq!(status(json!({ "set": { "f": { "bytes": "!" } } })), 400);
    assert_eq!(status(json!({ "set": { "f": u64::MAX } })), 400);
    assert_eq!(status(json!({ "set": { "": 1 } })), 400);
    assert_eq!(status(json!({ "add": { "s": ["x"] }, "remove": { "s": ["x"] } })), 400);
    assert_eq!(status(json!({ "sett": {} })), 400);
    assert_eq!(status(json!([])), 400);
    assert_eq!(status(json!({ "set": { "f": "x".repeat(16 * 1024) } })), 200);
    assert_eq!(status(json!({ "set": { "f": "x".repeat(16 * 1024 + 1) } })), 413);
    assert_eq!(status(json!({ "set": { "f".repeat(65): 1 } })), 413);
    assert_eq!(status(json!({ "set": { "f": "x".repeat(600 * 1024) } })), 413);
    let long = format!("/v1/records/note/{}", "i".repeat(129));
    assert_eq!(call(&agent, "PUT", &long, Some(&json!({}))).status, 413);
    assert_eq!(call(&agent, "PUT", "/v1/records/asset/photo", Some(&json!({}))).status, 400);
    assert_eq!(call(&agent, "PUT", "/v1/records/note/%ff", Some(&json!({}))).status, 400);
    assert_eq!(call(&agent, "PUT", path, None).status, 415);
    let changes = |n: usize| {
        let put = |i: usize| json!({ "put": { "model": "n", "id": i.to_string() } });
        json!({ "changes": (0..n).map(put).collect::<Vec<_>>() })
    };
    assert_eq!(call(&agent, "POST", "/v1/batch", Some(&changes(64))).status, 200);
    assert_eq!(call(&agent, "POST", "/v1/batch", Some(&changes(65))).status, 413);
}

#[test]
fn a_record_larger_than_is_read_is_said_to_be_and_can_be_deleted() {
    let agent = Agent::start();
    let (path, text) = ("/v1/records/note/big", "x".repeat(15_000));
    for field in 0..72 {
        put(&agent, path, &json!({ "set": { field.to_string(): text } }));
    }
    let answer = call(&agent, "GET", path, None);
    assert_eq!(answer.status, 409);
    assert!(answer.body["detail"].as_str().unwrap().contains("1048576 bytes"), "{answer:?}");
    put(&agent, "/v1/records/note/small", &json!({}));
    let page = get(&agent, "/v1/records/note");
    assert_eq!(ids(&page), ["big", "small"], "it stands in nobody's way");
    assert_eq!(
        (&page["records"][0]["too_large"], &page["records"][0]["fields"]),
        (&true.into(), &json!({}))
    );
    assert_eq!(page["records"][1]["too_large"], Value::Null);
    assert_eq!(call(&agent, "DELETE", path, None).status, 200);
    assert_eq!(call(&agent, "GET", path, None).status, 404);
}

#[test]
fn a_batch_is_made_whole_or_not_at_all() {
    let agent = Agent::start();
    let batch =
        |changes: Value| call(&agent, "POST", "/v1/batch", Some(&json!({ "changes": changes })));
    let done = batch(json!([
        { "put": { "model": "note", "id": "1", "set": { "n": 1 }, "if_absent": true } },
        { "put": { "model": "note", "id": "2", "own": true, "add": { "s": ["x"] } } },
        { "event": { "stream": "notes", "type": "made", "data": { "id": "1" } } },
        { "event": { "stream": "notes", "type": "made" } },
    ]));
    assert_eq!(done.status, 200, "{done:?}");
    assert_eq!(done.body["event_seqs"], json!([0, 1]));
    let etag = get(&agent, "/v1/records/note/1")["etag"].clone();
    assert_eq!(etag, done.body["cursor"]);

    for (changes, status) in [
        (json!([{ "delete": { "model": "note", "id": "9" } }]), 404),
        (json!([{ "patch": { "model": "note", "id": "9" } }]), 404),
        (json!([{ "put": { "model": "note", "id": "1", "if_absent": true } }]), 412),
        (
            json!([{ "put": { "model": "note", "id": "3" } }, { "put": { "model": "note", "id": "3" } }]),
            400,
        ),
        (json!([{ "nothing": {} }]), 400),
    ] {
        let mut all = vec![json!({ "put": { "model": "note", "id": "1", "set": { "n": 2 } } })];
        if status == 412 {
            all = vec![json!({ "put": { "model": "note", "id": "8" } })];
        }
        all.extend(changes.as_array().unwrap().iter().cloned());
        assert_eq!(batch(json!(all)).status, status, "{changes}");
    }
    assert_eq!(get(&agent, "/v1/records/note/1")["fields"]["n"], 1);
    assert_eq!(call(&agent, "GET", "/v1/records/note/8", None).status, 404);
    let moved = batch(json!([
        { "patch": { "model": "note", "id": "1", "set": { "n": 3 }, "if_match": etag } },
        { "delete": { "model": "note", "id": "2", "own": true } },
    ]));
    assert_eq!(moved.status, 200, "{moved:?}");
    assert_eq!(call(&agent, "GET", "/v1/own/note/2", None).status, 404);
}

#[test]
fn a_watcher_sees_what_is_there_then_what_happens_and_resumes_without_loss() {
    let agent = Agent::start();
    put(&agent, "/v1/records/note/1", &json!({ "set": { "n": 1 } }));
    put(&agent, "/v1/records/other/1", &json!({}));
    let mut watch = Events::open(&agent, "/v1/watch?model=note", &[]).unwrap();
    let first = watch.until_ready();
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].data["fields"]["n"], 1);

    let batch = json!({ "changes": [
        { "put": { "model": "note", "id": "2" } }, { "put": { "model": "note", "id": "3" } },
    ] });
    assert_eq!(call(&agent, "POST", "/v1/batch", Some(&batch)).status, 200);
    let (two, three) = (watch.next(), watch.next());
    assert_eq!([&two.data["id"], &three.data["id"]], ["2", "3"]);
    assert!(two.id.is_none() && three.id.is_some(), "no cursor points into an op");
    put(&agent, "/v1/records/other/1", &json!({}));
    assert_eq!(call(&agent, "DELETE", "/v1/records/note/1", None).status, 200);
    let deleted = watch.next();
    assert_eq!(deleted.data["deleted"], true);
    assert_eq!(deleted.data["id"], "1");
    drop(watch);

    put(&agent, "/v1/records/note/2", &json!({ "set": { "n": 2 } }));
    let header = [format!("Last-Event-ID: {}", three.id.unwrap())];
    let mut resumed = Events::open(&agent, "/v1/watch?model=note", &header).unwrap();
    let missed = resumed.until_ready();
    let seen: Vec<_> = missed.iter().map(|event| event.data["id"].as_str().unwrap()).collect();
    assert_eq!(seen, ["1", "2"]);
    let mut now = Events::open(&agent, "/v1/watch?since=now", &[]).unwrap();
    assert_eq!(now.until_ready().len(), 0);

    let other_epoch = format!("/v1/watch?since={}-1", "ab".repeat(16));
    assert_eq!(Events::open(&agent, &other_epoch, &[]).err(), Some(410));
    for bad in ["/v1/watch?since=x", "/v1/watch?from=1"] {
        assert_eq!(Events::open(&agent, bad, &[]).err(), Some(400), "{bad}");
    }
}

#[test]
fn changed_records_are_listed_once_from_where_the_last_listing_ended() {
    let agent = Agent::start();
    let changes = |query: &str| get(&agent, &format!("/v1/changes{query}"));
    let seen = |page: &Value| -> Vec<String> {
        let changes = page["changes"].as_array().unwrap().iter();
        changes.map(|change| change["id"].as_str().unwrap().to_owned()).collect()
    };
    for id in ["1", "2", "3"] {
        put(&agent, &format!("/v1/records/note/{id}"), &json!({ "set": { "id": id } }));
    }
    put(&agent, "/v1/records/other/1", &json!({}));
    // A page of two may hold fewer of one model.
    let (mut cursor, mut found) = (String::new(), Vec::new());
    loop {
        let after = if cursor.is_empty() { String::new() } else { format!("&after={cursor}") };
        let page = changes(&format!("?model=note&limit=2{after}"));
        assert!(seen(&page).len() <= 2, "{page}");
        found.extend(seen(&page));
        page["cursor"].as_str().unwrap().clone_into(&mut cursor);
        if page["more"] == false {
            break;
        }
    }
    assert_eq!(found, ["1", "2", "3"]);
    let after = &cursor;
    assert_eq!(seen(&changes(&format!("?model=note&after={after}"))), Vec::<String>::new());

    // A listing tells states: what changed twice is there once, what was deleted is said to be.
    for n in [1, 2] {
        put(&agent, "/v1/records/note/2", &json!({ "set": { "n": n } }));
    }
    assert_eq!(call(&agent, "DELETE", "/v1/records/note/1", None).status, 200);
    let third = changes(&format!("?model=note&after={after}"));
    assert_eq!(seen(&third), ["2", "1"]);
    assert_eq!(third["changes"][0]["fields"]["n"], 2);
    assert_eq!(third["changes"][1]["deleted"], true);
    let all = changes("?limit=1000");
    let models: BTreeSet<_> =
        all["changes"].as_array().unwrap().iter().map(|it| it["model"].as_str().unwrap()).collect();
    assert!(models.is_superset(&BTreeSet::from(["note", "other"])), "{models:?}");

    for (query, status) in
        [("limit=0", 400), ("limit=1001", 400), ("after=x", 400), ("since=1", 400)]
    {
        let path = format!("/v1/changes?{query}");
        assert_eq!(call(&agent, "GET", &path, None).status, status, "{query}");
    }
    let foreign = format!("/v1/changes?after={}-1", "ab".repeat(16));
    assert_eq!(call(&agent, "GET", &foreign, None).status, 410);
}

#[test]
fn the_models_that_have_records_are_listed_and_records_by_when_they_were_written() {
    let agent = Agent::start();
    let models = || -> BTreeMap<String, Value> {
        let page = get(&agent, "/v1/records");
        let models = page["models"].as_array().unwrap().iter();
        models.map(|it| (it["model"].as_str().unwrap().to_owned(), it.clone())).collect()
    };
    assert!(!models().contains_key("note"));
    put(&agent, "/v1/records/note/old", &json!({}));
    // The next millisecond, so that the two writes differ in time.
    let written = |id: &str| {
        let record = get(&agent, &format!("/v1/records/note/{id}"));
        record["changed_ms"].as_u64().unwrap_or_else(|| panic!("{record}"))
    };
    let old_ms = written("old");
    let started = std::time::Instant::now();
    while started.elapsed() < std::time::Duration::from_millis(2) {
        std::thread::yield_now();
    }
    put(&agent, "/v1/records/note/new", &json!({}));
    put(&agent, "/v1/own/note/mine", &json!({}));
    assert!(models().contains_key("note"), "{:?}", models());
    let since = |ms: u64| get(&agent, &format!("/v1/records/note?since_ms={ms}"));
    assert_eq!(ids(&since(old_ms)), ["new", "old"]);
    assert_eq!(ids(&since(old_ms + 1)), ["new"]);
    assert_eq!(ids(&since(written("new") + 1)), Vec::<&str>::new());
    put(&agent, "/v1/records/note/old", &json!({ "set": { "n": 1 } }));
    assert_eq!(ids(&since(old_ms + 1)), ["new", "old"], "it was written to again");
    assert_eq!(call(&agent, "GET", "/v1/records/note?since_ms=yesterday", None).status, 400);
}

#[test]
fn assets_and_events_are_listed_from_a_time_on() {
    let agent = Agent::start();
    let stored = |name: &str| -> u64 {
        agent.command(&["add", "-"]).write_stdin(name).assert().success();
        let rows = agent.json(&["ls"]);
        rows.iter().map(|row| row["timestamp"].as_u64().unwrap()).max().unwrap()
    };
    let first_ms = stored("one");
    let mut second_ms = first_ms;
    for n in 0.. {
        second_ms = stored(&format!("two {n}"));
        if second_ms > first_ms {
            break;
        }
    }
    let count = |path: &str, list: &str| {
        let page = get(&agent, path);
        page[list].as_array().unwrap_or_else(|| panic!("{page}")).len()
    };
    let assets = |ms: u64| count(&format!("/v1/assets?since_ms={ms}"), "assets");
    assert_eq!(assets(second_ms), 1);
    assert!(assets(first_ms) >= 2);
    assert_eq!(assets(second_ms + 60_000), 0);
    let events = |ms: u64| count(&format!("/v1/events/device?since_ms={ms}"), "events");
    until("the arrivals are logged", || events(first_ms.saturating_sub(60_000)) >= 2);
    assert_eq!(events(second_ms + 60_000), 0);
}

#[test]
fn a_cursor_beyond_the_newest_op_is_refused_wherever_one_is_taken() {
    let agent = Agent::start();
    let etag = put(&agent, "/v1/records/note/1", &json!({ "set": { "n": 1 } }));
    let (epoch, newest) = etag.trim_matches('"').split_once('-').unwrap();
    let at = |more: u64| format!("{epoch}-{}", newest.parse::<u64>().unwrap() + more);
    for (more, status) in [(0, None), (1_000_000, Some(410))] {
        for path in ["/v1/watch?since=", "/v1/events/x/watch?after="] {
            let path = format!("{path}{}", at(more));
            assert_eq!(Events::open(&agent, &path, &[]).err(), status, "{path}");
        }
        let list = format!("/v1/events/x?after={}", at(more));
        assert_eq!(call(&agent, "GET", &list, None).status, status.unwrap_or(200));
    }
    put(&agent, "/v1/records/note/1", &json!({ "set": { "n": 2 } }));
    let lost = format!("If-Match: \"{}\"", at(1_000_000));
    let over = json!({ "set": { "n": 3 } });
    let answer = call_if(&agent, "PUT", "/v1/records/note/1", Some(&over), &[&lost]);
    assert_eq!(answer.status, 412, "{answer:?}");
    assert_eq!(get(&agent, "/v1/records/note/1")["fields"]["n"], 2);
}

#[test]
fn watchers_are_bounded_and_one_that_does_not_read_delays_nobody() {
    let agent = Agent::start();
    let mut watchers: Vec<_> =
        (0..16).map(|_| Events::open(&agent, "/v1/watch", &[]).unwrap()).collect();
    assert_eq!(Events::open(&agent, "/v1/watch", &[]).err(), Some(503));
    assert_eq!(Events::open(&agent, "/v1/events/x/watch", &[]).err(), Some(503));
    for n in 0..200 {
        let text = "x".repeat(16 * 1024);
        put(&agent, &format!("/v1/records/note/{n}"), &json!({ "set": { "text": text } }));
    }
    let mut last = watchers.pop().unwrap();
    loop {
        let event = last.next();
        if event.data["id"] == "199" {
            break;
        }
    }
    drop(watchers);
    until("the places are given back", || Events::open(&agent, "/v1/watch", &[]).is_ok());
}

#[test]
fn events_are_numbered_filtered_and_followed() {
    let agent = Agent::start();
    let me = agent.ready()["node_id"].as_str().unwrap().to_owned();
    let hash = "ab".repeat(32);
    for n in 0..5 {
        let data = if n == 3 { json!({ "hash": hash }) } else { json!({ "n": n }) };
        let event = json!({ "type": "step", "data": data });
        let done = call(&agent, "POST", "/v1/events/work", Some(&event));
        assert_eq!(done.status, 200);
        assert_eq!(done.body["event_seqs"], json!([n]));
        assert_eq!(done.body["author"], me.as_str());
    }
    let numbers = |page: &Value| -> Vec<u64> {
        page["events"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| e["event_seq"].as_u64().unwrap())
            .collect()
    };
    let page = get(&agent, "/v1/events/work?limit=2");
    assert_eq!(numbers(&page), [0, 1]);
    assert_eq!(page["more"], true);
    let rest = format!("/v1/events/work?after={}", page["next"].as_str().unwrap());
    assert_eq!(numbers(&get(&agent, &rest)), [2, 3, 4]);
    assert_eq!(numbers(&get(&agent, &format!("/v1/events/work?hash={hash}"))), [3]);
    assert_eq!(numbers(&get(&agent, &format!("/v1/events/work?author={me}"))).len(), 5);
    assert_eq!(numbers(&get(&agent, &format!("/v1/events/work?author={hash}"))).len(), 0);
    assert_eq!(numbers(&get(&agent, "/v1/events/work?since_ms=99999999999999")).len(), 0);
    assert_eq!(numbers(&get(&agent, "/v1/events/other")).len(), 0);

    let watched = format!("/v1/events/work/watch?hash={hash}");
    let mut watch = Events::open(&agent, &watched, &[]).unwrap();
    let there = watch.until_ready();
    assert_eq!(there.len(), 1);
    let event = json!({ "type": "late", "data": { "hash": hash } });
    assert_eq!(call(&agent, "POST", "/v1/events/work", Some(&event)).status, 200);
    let late = watch.next();
    assert_eq!((&late.data["type"], &late.data["event_seq"]), (&json!("late"), &json!(5)));
    let header = [format!("Last-Event-ID: {}", there[0].id.clone().unwrap())];
    let mut resumed = Events::open(&agent, "/v1/events/work/watch", &header).unwrap();
    let missed = resumed.until_ready();
    let seen: Vec<_> = missed.iter().map(|event| &event.data["event_seq"]).collect();
    assert_eq!(seen, [&json!(4), &json!(5)]);
}

#[test]
fn the_journal_is_told_in_numbers_checked_and_well() {
    let agent = Agent::start();
    let me = agent.ready()["node_id"].as_str().unwrap().to_owned();
    put(&agent, "/v1/records/note/1", &json!({ "set": { "n": 1 } }));
    let members = get(&agent, "/v1/members");
    assert_eq!(members["members"][0]["device"], me.as_str());
    assert_eq!(members["members"][0]["member"], true);
    let stats = get(&agent, "/v1/journal/stats");
    assert!(stats["live_ops"].as_u64().unwrap() >= 2, "{stats}");
    assert_eq!(stats["logs"][0]["author"], me.as_str());
    let none = json!({});
    let checked = call(&agent, "POST", "/v1/journal/fsck", Some(&none));
    assert_eq!((checked.status, &checked.body["findings"]), (200, &json!([])));
    let rebased = call(&agent, "POST", "/v1/journal/rebase", Some(&none));
    assert_eq!((rebased.status, &rebased.body["ops"]), (200, &json!(0)));
}

#[test]
fn an_edit_of_an_asset_is_in_the_store_when_it_is_answered() {
    let agent = Agent::start();
    agent.command(&["add", "-"]).write_stdin("hello").assert().success();
    let hash = blake3::hash(b"hello").to_string();
    let path = format!("/v1/assets/{hash}/meta");
    let edit = |body: Value| call(&agent, "PATCH", &path, Some(&body)).status;
    assert_eq!(edit(json!({ "add": ["b", " a "], "description": "text", "trashed": true })), 200);
    let row = get(&agent, &format!("/assets/{hash}/meta"));
    assert_eq!(row["tags"], json!(["a", "b"]));
    assert_eq!((&row["description"], &row["trashed"]), (&json!("text"), &json!(true)));
    assert_eq!(edit(json!({ "remove": ["a"], "trashed": false })), 200);
    let row = get(&agent, &format!("/assets/{hash}/meta"));
    assert_eq!((&row["tags"], &row["trashed"]), (&json!(["b"]), &json!(false)));
    let record = get(&agent, &format!("/v1/records/asset/{hash}"));
    assert_eq!(record["sets"], json!({ "tags": ["b"] }));

    for bad in [json!({}), json!({ "add": [""] }), json!({ "add": ["x"], "remove": ["x"] })] {
        assert_eq!(edit(bad.clone()), 400, "{bad}");
    }
    let none = format!("/v1/assets/{}/meta", "0".repeat(64));
    assert_eq!(call(&agent, "PATCH", &none, Some(&json!({ "add": ["x"] }))).status, 404);
}

#[test]
fn an_edit_of_an_asset_means_the_same_at_both_routes() {
    let agent = Agent::start();
    let assets = [("/assets", "one"), ("/v1/assets", "two")].map(|(route, content)| {
        agent.command(&["add", "-"]).write_stdin(content).assert().success();
        let hash = blake3::hash(content.as_bytes());
        (format!("{route}/{hash}/meta"), format!("/assets/{hash}/meta"))
    });
    for (edit, status) in [
        (json!({ "tags": ["b", " a "], "description": " text ", "trashed": true }), 200),
        (json!({ "add": ["c", "a"], "remove": ["b", "none"] }), 200),
        (json!({ "trashed": false }), 200),
        (json!({ "tags": ["u\u{308}", "c"] }), 200),
        (json!({ "add": ["\u{fc}"] }), 200),
        (json!({ "remove": ["\u{fc}"], "description": "" }), 200),
        (json!({ "tags": [] }), 200),
        (json!({}), 400),
        (json!([]), 400),
        (json!({ "add": [""] }), 400),
        (json!({ "add": ["x"], "remove": [" x"] }), 400),
        (json!({ "tags": ["x"], "add": ["y"] }), 400),
        (json!({ "tag": ["x"] }), 400),
        (json!({ "description": "x".repeat(16_385) }), 400),
    ] {
        let after = assets.each_ref().map(|(route, row)| {
            assert_eq!(call(&agent, "PATCH", route, Some(&edit)).status, status, "{route} {edit}");
            let row = get(&agent, row);
            ["description", "tags", "trashed"].map(|member| row[member].clone())
        });
        assert_eq!(after[0], after[1], "{edit}");
    }
    for (route, row) in &assets {
        let seen = call(&agent, "PATCH", route, Some(&json!({ "add": ["seen"] }))).etag.unwrap();
        let if_seen = format!("If-Match: {seen}");
        let edit = |tag: &str| {
            let edit = json!({ "add": [tag] });
            call_if(&agent, "PATCH", route, Some(&edit), &[&if_seen]).status
        };
        assert_eq!((edit("first"), edit("second")), (200, 412), "{route}");
        assert_eq!(get(&agent, row)["tags"], json!(["first", "seen"]), "{route}");
    }
}

// ---- the description -----------------------------------------------------------------------------

/// The methods under each path of the description.
#[test]
fn an_upload_says_what_is_known_of_the_file_and_is_found_by_its_name() {
    let agent = Agent::start();
    let add = |query: &str, content: &str| -> (u16, Value) {
        let (status, answer) = agent.http(&format!(
            "POST /assets?{query} HTTP/1.0\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {}\r\n\
             Content-Length: {}\r\n\r\n{content}",
            agent.token(),
            content.len()
        ));
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    };
    let about = "name=a.svg&path=pictures%2F2024&modified_ms=-1&application=camera&user=me";
    let (status, added) = add(about, "<?xml version=\"1.0\"?><svg/>");
    assert_eq!(status, 201);
    let hash = added["hash"].as_str().unwrap();
    let row = get(&agent, &format!("/assets/{hash}/meta"));
    for (part, value) in [
        ("name", json!("a.svg")),
        ("path", json!("pictures/2024")),
        ("type", json!("image/svg+xml")),
        ("modified_ms", json!(-1)),
        ("captured_ms", Value::Null),
        ("application", json!("camera")),
        ("user", json!("me")),
    ] {
        assert_eq!(row[part], value, "{part}");
    }
    for bad in ["path=..%2F..", "modified_ms=soon", "modified_ms=999999999999999999", "nme=x"] {
        assert_eq!(add(bad, "x").0, 400, "{bad}");
    }

    let found = get(&agent, "/v1/assets/find?text=2024%2Fa.svg");
    assert_eq!((&found["hash"], &found["asset"]["size"]), (&added["hash"], &added["size"]));
    let listed = get(&agent, "/v1/assets?name=pictures%2F*&type=image%2F&limit=1");
    assert_eq!(listed["assets"][0]["hash"], added["hash"]);
    let me = agent.ready()["node_id"].as_str().unwrap();
    // Who added it is in the journal a moment later.
    let started = std::time::Instant::now();
    let mine = loop {
        let mine = get(&agent, &format!("/v1/assets?device={me}"));
        if mine["assets"] != json!([]) {
            break mine;
        }
        assert!(started.elapsed() < DEADLINE, "the device is not known to have added it");
    };
    assert_eq!(mine["assets"][0]["added_by"], me);
    let nobodys = get(&agent, &format!("/v1/assets?device={}", "ab".repeat(32)));
    assert_eq!(nobodys, json!({ "assets": [], "next": null }));
    add("name=a.txt", "x");
    for (query, status) in
        [("find?text=a", 404), ("find?text=", 400), ("find", 400), ("find?text=b", 404)]
    {
        assert_eq!(
            call(&agent, "GET", &format!("/v1/assets/{query}"), None).status,
            status,
            "{query}"
        );
    }
    assert_eq!(call(&agent, "GET", "/v1/assets?device=me", None).status, 400);
    let events = get(&agent, &format!("/v1/events/device?hash={hash}"));
    assert_eq!(events["events"][0]["asset_name"], "pictures/2024/a.svg");
}

fn described(openapi: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let methods = |item: &Value| -> BTreeSet<String> {
        item.as_object().unwrap().keys().map(|method| method.to_uppercase()).collect()
    };
    let paths = openapi["paths"].as_object().unwrap();
    paths.iter().map(|(path, item)| (path.clone(), methods(item))).collect()
}

#[test]
fn every_route_of_the_sources_is_described_and_no_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut routes = BTreeSet::new();
    let mut folders = vec![root.join("api"), root.join("http")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(path).unwrap();
                let found = text.split(".route(\"").skip(1);
                routes.extend(found.map(|rest| rest.split('"').next().unwrap().to_owned()));
            }
        }
    }
    let openapi = get(&Agent::start(), "/openapi.json");
    assert_eq!(described(&openapi).into_keys().collect::<BTreeSet<_>>(), routes);
}

#[test]
fn every_path_takes_the_methods_that_are_described_and_no_other() {
    let agent = Agent::start();
    for (path, methods) in described(&get(&agent, "/openapi.json")) {
        // Nothing has these names, so a described method answers 2xx or an error other than 405.
        let path = path
            .replace("{hash}", &"0".repeat(64))
            .replace("{device}", "nobody")
            .replace(['{', '}'], "x");
        for method in ["GET", "PUT", "POST", "PATCH", "DELETE"] {
            // No feed gives out this cursor: an event stream is refused, or begins and is dropped.
            let headers = ["Last-Event-ID: x".to_owned()];
            let status = if method == "GET" {
                Events::open(&agent, &path, &headers).map_or_else(|status| status, |_| 200)
            } else {
                call(&agent, method, &path, None).status
            };
            assert_eq!(status != 405, methods.contains(method), "{method} {path}: {status}");
            assert!(status != 500, "{method} {path}");
        }
    }
}

#[test]
fn the_description_is_consistent() {
    let openapi = get(&Agent::start(), "/openapi.json");
    assert_eq!(openapi["openapi"], "3.1.0");
    let mut names = BTreeSet::new();
    for (path, item) in openapi["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let name = operation["operationId"].as_str().unwrap();
            assert!(names.insert(name.to_owned()), "{name} twice");
            assert!(!operation["summary"].as_str().unwrap().is_empty());
            let empty = Vec::new();
            let parameters = operation["parameters"].as_array().unwrap_or(&empty);
            let declared: BTreeSet<_> = parameters
                .iter()
                .filter(|parameter| parameter["in"] == "path")
                .map(|parameter| parameter["name"].as_str().unwrap())
                .collect();
            let named: BTreeSet<_> = path.split(['{', '}']).skip(1).step_by(2).collect();
            assert_eq!(declared, named, "{method} {path}");
            let responses = operation["responses"].as_object().unwrap();
            assert!(responses.keys().any(|status| status.starts_with('2')), "{method} {path}");
        }
    }
    let mut values = vec![&openapi];
    while let Some(value) = values.pop() {
        match value {
            Value::Object(members) => {
                if let Some(reference) = members.get("$ref") {
                    let pointer = reference.as_str().unwrap().strip_prefix('#').unwrap();
                    assert!(openapi.pointer(pointer).is_some(), "{reference}");
                }
                values.extend(members.values());
            }
            Value::Array(items) => values.extend(items),
            _ => {}
        }
    }
}

#[test]
fn the_status_is_described_to_its_last_member() {
    let agent = Agent::start();
    let (openapi, status) = (get(&agent, "/openapi.json"), get(&agent, "/v1/status"));
    for (schema, answer) in [
        ("Status", &status),
        ("DeviceStatus", &status["device"]),
        ("StoreStatus", &status["store"]),
        ("JournalStatus", &status["journal"]),
    ] {
        let properties = &openapi["components"]["schemas"][schema]["properties"];
        let names = |object: &Value| -> BTreeSet<String> {
            object.as_object().unwrap().keys().cloned().collect()
        };
        assert_eq!(names(answer), names(properties), "{schema}");
    }
    let properties = &openapi["components"]["schemas"];
    for (schema, member) in [("DeviceStatus", "obstacles"), ("StoreStatus", "damaged")] {
        assert!(properties[schema]["properties"][member].is_object(), "{schema}.{member}");
    }
}

#[test]
fn the_example_runs_as_it_stands() {
    let agent = Agent::start();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/shopping.py");
    let run = |args: &[&str]| {
        let mut command = Command::new("python3");
        command.arg(&script).args(args).env("CAN_SYNC_HOME", agent.home());
        command
    };
    match run(&["add", "oat", "milk"]).status() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
        status => assert!(status.unwrap().success()),
    }
    assert!(run(&["done", "oat", "milk"]).status().unwrap().success());
    assert!(run(&["add", "a/b"]).status().unwrap().success());
    let mut shown = run(&[]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(shown.stdout.take().unwrap()).lines();
    let lines: Vec<_> = lines.take(2).map(Result::unwrap).collect();
    shown.kill().unwrap();
    shown.wait().unwrap();
    assert_eq!(lines, ["[x] oat milk", "[ ] a/b"]);
}

// ---- folders ---------------------------------------------------------------------------------

#[test]
fn folders_are_bound_asked_about_and_brought_back_over_http() {
    let agent = Agent::start();
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().canonicalize().unwrap().join("dir");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("plan.txt"), "one").unwrap();
    let post = |path: &str, body: Value| call(&agent, "POST", path, Some(&body));
    let bind = json!({ "dir": dir, "name": "shared" });
    let preview = post("/v1/folders", json!({ "dir": dir, "name": "shared", "dry_run": true }));
    assert_eq!((preview.status, &preview.body["files"]), (200, &json!(1)));
    assert_eq!(get(&agent, "/v1/folders")["folders"], json!([]));
    assert_eq!(post("/v1/folders", bind.clone()).status, 200);
    assert_eq!(post("/v1/folders", bind).status, 409, "it is bound already");
    assert_eq!(post("/v1/folders", json!({ "dir": "not/absolute" })).status, 400);
    assert_eq!(post("/v1/folders", json!({ "dir": dir, "nonsense": 1 })).status, 400);
    assert_eq!(post("/v1/folders/none/join", json!({ "dir": dir })).status, 404);

    let status = || get(&agent, "/v1/folders/shared");
    let is_up_to_date = || status()["folder"]["binding"]["state"] == "up_to_date";
    until("it is taken in", || status()["files"] == 1 && is_up_to_date());
    let history = || get(&agent, "/v1/folders/shared/history?path=plan.txt");
    fs::write(dir.join("plan.txt"), "two").unwrap();
    until("there are two versions", || history()["versions"].as_array().unwrap().len() == 2);

    let restore = |body| post("/v1/folders/shared/restore", body);
    let first = json!({ "path": "plan.txt", "version": 1 });
    assert_eq!(restore(first).body["changed"], true);
    until("the first is back", || fs::read(dir.join("plan.txt")).unwrap() == b"one");
    assert_eq!(restore(json!({ "path": "none", "version": 1 })).status, 404);
    assert_eq!(restore(json!({ "path": "../out" })).status, 400);
    assert_eq!(restore(json!({ "path": "plan.txt", "version": 1, "at_ms": 1 })).status, 400);

    let why = get(&agent, "/v1/folders/shared/why?path=plan.txt");
    assert_eq!(why["folder"]["kind"], "file");
    let located = get(&agent, &format!("/v1/locate?path={}", dir.join("plan.txt").display()));
    assert_eq!((&located["name"], &located["path"]), (&json!("shared"), &json!("plan.txt")));
    assert_eq!(call(&agent, "GET", "/v1/locate?path=/nowhere", None).status, 404);

    let state = |what: &str| {
        let answer = post(&format!("/v1/folders/shared/{what}"), json!({}));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body["binding"]["state"].clone()
    };
    assert_eq!(state("pause"), "paused");
    let undo = |since_ms: u64, dry_run| {
        let request = json!({ "since_ms": since_ms, "dry_run": dry_run });
        post("/v1/folders/shared/undo", request)
    };
    let since_ms = can_sync::clock::wall_ms();
    assert_eq!(undo(since_ms, false).status, 409, "a paused folder is not undone");
    assert_ne!(state("resume"), "paused");
    assert_ne!(state("confirm"), "held");
    until("it goes on", &is_up_to_date);
    let too_early = undo(1, false);
    assert_eq!(too_early.status, 409, "all would be removed: {too_early:?}");
    assert_eq!(post("/v1/folders/shared/undo", json!({})).status, 400, "nothing is held");
    fs::write(dir.join("new.txt"), "new").unwrap();
    until("it is taken in", || status()["files"] == 2 && is_up_to_date());
    let preview = undo(since_ms, true).body;
    assert_eq!(preview["removed"], 1, "{preview}");
    assert!(dir.join("new.txt").exists());
    assert_eq!(undo(since_ms, false).body["removed"], 1);
    until("it was not there at the time", || !dir.join("new.txt").exists());
    assert!(dir.join("plan.txt").exists());

    assert_eq!(call(&agent, "DELETE", "/v1/folders/shared/binding", None).status, 200);
    assert_eq!(call(&agent, "DELETE", "/v1/folders/shared/binding", None).status, 404);
    assert_eq!(status()["folder"]["binding"], Value::Null);
}
