//! Three real agents in one group that are killed and restarted while programs write to all of
//! them. Whatever was acknowledged is on every device in the end, and nothing whose deletion was
//! acknowledged is back. `ROUNDS` and `SEED` in the environment choose another run.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use can_sync::replica::status::{JournalPeerState, Status};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

#[path = "common/agent.rs"]
mod agent;

use agent::Agent;

/// The number of devices: three are enough that a kill leaves a majority, a pair, one or none.
const DEVICES: usize = 3;

/// How long writers run in a round before the kill.
const ROUND_MS: std::ops::Range<u64> = 20..400;

/// How long all devices may take to be in sync after the last round.
const IN_STEP: Duration = Duration::from_secs(120);

/// The event stream that is written to.
const STREAM: &str = "soak";

#[test]
fn what_was_acknowledged_is_on_every_device_after_a_few_kills() {
    soak(number("ROUNDS").unwrap_or(6).min(6));
}

#[test]
#[ignore = "takes minutes: ROUNDS=2000 cargo test --release --test soak -- --ignored --nocapture"]
fn what_was_acknowledged_is_on_every_device_after_many_kills() {
    soak(number("ROUNDS").unwrap_or(100));
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, got {text:?}")))
}

fn soak(rounds: u64) {
    let seed = number("SEED").unwrap_or_else(rand::random);
    println!("SEED={seed} ROUNDS={rounds}");
    let mut random = StdRng::seed_from_u64(seed);
    let started = Instant::now();
    let mut group = Group::start();
    let writers: Vec<_> = (0..DEVICES).map(|n| group.writer(n, seed)).collect();
    let mut kills = 0;
    for _ in 0..rounds {
        thread::sleep(Duration::from_millis(random.random_range(ROUND_MS)));
        group.start_the_dead();
        for _ in 0..random.random_range(1..DEVICES) {
            kills += u64::from(group.kill(random.random_range(0..DEVICES)));
        }
        // Some restart at once, others miss a round.
        if random.random_bool(0.5) {
            group.start_the_dead();
        }
    }
    group.start_the_dead();
    group.stop.store(true, Ordering::Relaxed);
    let mut said = Ledger::default();
    for writer in writers {
        said.add(writer.join().unwrap());
    }
    println!(
        "{kills} kills; {} writes acknowledged, {} cut off: {} records, {} of them deleted, \
         {} events, {} assets, {} edits of assets",
        said.acknowledged,
        said.unknown,
        said.records.len() + said.deleted.len(),
        said.deleted.len(),
        said.events.len(),
        said.assets.len(),
        said.tags.len() + said.untagged.len() + said.trashed.len(),
    );
    assert!(said.acknowledged > 5 * rounds, "too little was written to prove anything");
    assert!(said.unknown <= kills, "a kill cuts off one request of one writer");
    group.in_step();
    for agent in group.agents.iter().flatten() {
        said.judge(agent);
    }
    println!("nothing lost, in {:.0} s", started.elapsed().as_secs_f64());
}

// ---- the devices -----------------------------------------------------------------------------

/// The address of an agent while it lives.
#[derive(Debug, Clone)]
struct Api {
    address: String,
    token: String,
}

struct Group {
    homes: Vec<PathBuf>,
    agents: Vec<Option<Agent>>,
    apis: Vec<Arc<Mutex<Option<Api>>>>,
    /// Assets on some device, for all writers to tag.
    assets: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    _folder: tempfile::TempDir,
}

impl Group {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let homes = (0..DEVICES).map(|n| folder.path().join(n.to_string())).collect();
        let mut group = Self {
            homes,
            agents: (0..DEVICES).map(|_| None).collect(),
            apis: (0..DEVICES).map(|_| Arc::default()).collect(),
            assets: Arc::default(),
            stop: Arc::default(),
            _folder: folder,
        };
        group.start_the_dead();
        for n in 1..DEVICES {
            // Not all are added by the first one, so that introductions are passed on.
            let ticket = group.agent(n - 1).output(&["--quiet", "ticket"]);
            group.agent(n).command(&["pair"]).write_stdin(ticket).assert().success();
        }
        group
    }

    fn agent(&self, n: usize) -> &Agent {
        self.agents[n].as_ref().unwrap()
    }

    fn start_the_dead(&mut self) {
        for n in 0..DEVICES {
            if self.agents[n].is_none() {
                let agent = Agent::start_in(&self.homes[n]);
                *self.apis[n].lock().unwrap() = Some(Api::of(&agent));
                self.agents[n] = Some(agent);
            }
        }
    }

    /// Kills a device; returns whether it was running.
    fn kill(&mut self, n: usize) -> bool {
        let Some(mut agent) = self.agents[n].take() else { return false };
        // From here on nothing new begins; what is under way is cut off.
        *self.apis[n].lock().unwrap() = None;
        agent.stop_with("-KILL");
        let log = agent.log();
        let errors: Vec<_> = log.lines().filter(|line| line.contains(" ERROR ")).collect();
        assert!(errors.is_empty(), "device {n}: {errors:#?}");
        true
    }

    fn writer(&self, n: usize, seed: u64) -> thread::JoinHandle<Ledger> {
        let writer = Writer {
            name: format!("w{n}"),
            random: StdRng::seed_from_u64(seed.wrapping_add(n as u64 + 1)),
            api: Arc::clone(&self.apis[n]),
            assets: Arc::clone(&self.assets),
            stop: Arc::clone(&self.stop),
            said: Ledger::default(),
            count: 0,
            tagged: 0,
            own: Vec::new(),
        };
        thread::spawn(move || writer.write())
    }

    /// Waits until all devices report the same state.
    fn in_step(&self) {
        let agents: Vec<&Agent> = self.agents.iter().flatten().collect();
        let peers = DEVICES - 1;
        let deadline = Instant::now() + IN_STEP;
        loop {
            let statuses: Vec<Status> = agents.iter().map(|agent| status(agent)).collect();
            let in_step = statuses.iter().all(|status| {
                let journals = &status.journal.peers;
                let in_sync = journals.iter().filter(|p| p.state == JournalPeerState::InSync);
                status.journal.ready && in_sync.count() == peers
            });
            let held: BTreeSet<u64> = statuses.iter().map(|status| status.store.assets).collect();
            let assets = statuses.iter().all(|status| {
                status.in_sync && status.peers.iter().filter(|peer| peer.in_sync).count() == peers
            });
            let clocks: BTreeSet<String> = agents.iter().map(|agent| clock(agent)).collect();
            if in_step && assets && held.len() == 1 && clocks.len() == 1 {
                return;
            }
            assert!(Instant::now() < deadline, "never in step: {statuses:#?}\n{clocks:#?}");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

fn status(agent: &Agent) -> Status {
    serde_json::from_value(read(agent, "/v1/status")).unwrap()
}

/// The progress of each log, as text.
fn clock(agent: &Agent) -> String {
    let stats = read(agent, "/v1/journal/stats");
    let logs: BTreeMap<String, u64> = array(&stats["logs"])
        .iter()
        .map(|log| (text(&log["log"]), log["seq"].as_u64().unwrap()))
        .collect();
    format!("{logs:?}")
}

// ---- HTTP ------------------------------------------------------------------------------------

impl Api {
    fn of(agent: &Agent) -> Self {
        let address = agent.ready()["api"].as_str().unwrap().strip_prefix("http://").unwrap();
        Self { address: address.to_owned(), token: agent.token() }
    }

    /// The answer's status and body; `None` when the agent died before it was complete.
    fn ask(&self, method: &str, path: &str, kind: &str, body: &str) -> Option<(u16, Value)> {
        let Self { address, token } = self;
        let mut stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(agent::DEADLINE)).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, serde_json::from_str(body).ok()?))
    }

    fn ask_json(&self, method: &str, path: &str, body: &Value) -> Option<(u16, Value)> {
        self.ask(method, path, "application/json", &body.to_string())
    }
}

fn read(agent: &Agent, path: &str) -> Value {
    let (status, answer) = Api::of(agent).ask("GET", path, "text/plain", "").expect("an answer");
    assert_eq!(status, 200, "{path}: {answer}");
    answer
}

fn array(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// All items of a paged listing.
fn all_pages(agent: &Agent, path: &str, rows: &str) -> Vec<Value> {
    let (mut all, mut after) = (Vec::new(), String::new());
    loop {
        let page = read(agent, &format!("{path}?limit=1000{after}"));
        all.extend_from_slice(array(&page[rows]));
        let next = page["next"].as_str();
        match next.filter(|_| page["more"] != json!(false)) {
            Some(next) => after = format!("&after={next}"),
            None => return all,
        }
    }
}

// ---- the writers -----------------------------------------------------------------------------

/// A program beside one agent. No other writer writes what it writes, so it knows what must exist.
struct Writer {
    name: String,
    random: StdRng,
    api: Arc<Mutex<Option<Api>>>,
    /// The assets of all writers.
    assets: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    said: Ledger,
    count: i64,
    /// How many of `assets` it has tagged, in their order.
    tagged: usize,
    /// Its own assets that it has neither trashed nor untagged.
    own: Vec<String>,
}

impl Writer {
    fn write(mut self) -> Ledger {
        while !self.stop.load(Ordering::Relaxed) {
            let api = self.api.lock().unwrap().clone();
            match api {
                Some(api) => self.write_one(&api),
                None => thread::yield_now(),
            }
        }
        self.said
    }

    fn write_one(&mut self, api: &Api) {
        match self.random.random_range(0..10) {
            0..2 => self.put_record(api),
            2 => self.count_on(api),
            3 => self.delete_record(api),
            4..6 => self.append_event(api),
            6 => self.put_with_event(api),
            7 => self.add_asset(api),
            8 => self.tag_next(api),
            _ => self.edit_own(api),
        }
    }

    fn next(&mut self) -> i64 {
        self.count += 1;
        self.count
    }

    /// Makes a request; returns its answer if the write was acknowledged.
    fn ask(&mut self, api: &Api, method: &str, path: &str, body: &Value) -> Option<Value> {
        let answered = api.ask_json(method, path, body);
        self.heard(&format!("{method} {path}"), answered)
    }

    fn heard(&mut self, what: &str, answered: Option<(u16, Value)>) -> Option<Value> {
        match answered {
            Some((200 | 201, answer)) => {
                self.said.acknowledged += 1;
                Some(answer)
            }
            // The asset has not reached this device yet.
            Some((404, _)) if what.contains("/v1/assets/") => None,
            Some((status, answer)) => panic!("{what}: {status} {answer}"),
            None => {
                self.said.unknown += 1;
                None
            }
        }
    }

    fn put_record(&mut self, api: &Api) {
        let n = self.next();
        let id = format!("{}-{n}", self.name);
        if self.ask(api, "PUT", &format!("/v1/records/soak/{id}"), &fields(n)).is_some() {
            self.said.records.insert(id, n);
        }
    }

    /// Increments a counter in one record.
    fn count_on(&mut self, api: &Api) {
        let n = self.next();
        let id = self.name.clone();
        if self.ask(api, "PUT", &format!("/v1/records/soak/{id}"), &fields(n)).is_some() {
            self.said.records.insert(id, n);
        }
    }

    fn delete_record(&mut self, api: &Api) {
        let Some(id) = self.said.records.keys().find(|id| **id != self.name).cloned() else {
            return;
        };
        // From now on the record may be missing, whatever the outcome.
        self.said.records.remove(&id);
        let path = format!("/v1/records/soak/{id}");
        let answered = api.ask("DELETE", &path, "text/plain", "");
        if self.heard(&format!("DELETE {path}"), answered).is_some() {
            self.said.deleted.insert(id);
        }
    }

    fn append_event(&mut self, api: &Api) {
        let data = json!({ "by": self.name, "n": self.next() });
        let body = json!({ "type": "wrote", "data": data });
        if let Some(answer) = self.ask(api, "POST", &format!("/v1/events/{STREAM}"), &body) {
            self.said.events.insert(numbers(&answer).remove(0), data);
        }
    }

    /// A record and two events in one op.
    fn put_with_event(&mut self, api: &Api) {
        let n = self.next();
        let id = format!("{}-{n}", self.name);
        let data = ["one", "two"].map(|part| json!({ "by": self.name, "n": n, "part": part }));
        let event = |data: &Value| json!({ "stream": STREAM, "type": "wrote", "data": data });
        let body = json!({ "changes": [
            { "put": { "model": "soak", "id": id, "set": { "n": n } } },
            { "event": event(&data[0]) },
            { "event": event(&data[1]) },
        ] });
        if let Some(answer) = self.ask(api, "POST", "/v1/batch", &body) {
            self.said.records.insert(id, n);
            self.said.events.extend(numbers(&answer).into_iter().zip(data));
        }
    }

    fn add_asset(&mut self, api: &Api) {
        let n = self.next();
        let content = format!("{} {n}", self.name);
        let answered = api.ask("POST", "/assets", "text/plain", &content);
        if let Some(answer) = self.heard("POST /assets", answered) {
            let hash = text(&answer["hash"]);
            self.said.assets.insert(hash.clone());
            self.own.push(hash.clone());
            self.assets.lock().unwrap().push(hash);
        }
    }

    /// Tags the next asset that any writer added.
    fn tag_next(&mut self, api: &Api) {
        let next = self.assets.lock().unwrap().get(self.tagged).cloned();
        let Some(hash) = next else { return };
        let before = self.said.unknown;
        let edited = self.edit(api, &hash, &json!({ "add": [self.name] }));
        // An asset that has not arrived yet is waited for.
        self.tagged += usize::from(edited || self.said.unknown > before);
        if edited {
            self.said.tags.insert((hash, self.name.clone()));
        }
    }

    fn edit_own(&mut self, api: &Api) {
        let Some(hash) = self.own.pop() else { return };
        let tag = (hash, self.name.clone());
        match self.said.tags.take(&tag) {
            Some((hash, name)) => {
                if self.edit(api, &hash, &json!({ "remove": [name] })) {
                    self.said.untagged.insert(tag);
                }
            }
            None => {
                if self.edit(api, &tag.0, &json!({ "trashed": true })) {
                    self.said.trashed.insert(tag.0);
                }
            }
        }
    }

    fn edit(&mut self, api: &Api, hash: &str, body: &Value) -> bool {
        self.ask(api, "PATCH", &format!("/v1/assets/{hash}/meta"), body).is_some()
    }
}

fn fields(n: i64) -> Value {
    json!({ "set": { "n": n } })
}

/// An event's author, log and number.
type EventNumber = (String, String, u64);

fn numbers(answer: &Value) -> Vec<EventNumber> {
    let number =
        |seq: &Value| (text(&answer["author"]), text(&answer["log"]), seq.as_u64().unwrap());
    array(&answer["event_seqs"]).iter().map(number).collect()
}

// ---- what was said, and what is so -----------------------------------------------------------

/// What agents have acknowledged.
#[derive(Default)]
struct Ledger {
    acknowledged: u64,
    /// The number of writes without an answer: done or not.
    unknown: u64,
    /// Records that must exist with at least this number.
    records: BTreeMap<String, i64>,
    deleted: BTreeSet<String>,
    events: BTreeMap<EventNumber, Value>,
    assets: BTreeSet<String>,
    /// (hash, tag).
    tags: BTreeSet<(String, String)>,
    untagged: BTreeSet<(String, String)>,
    trashed: BTreeSet<String>,
}

impl Ledger {
    fn add(&mut self, other: Self) {
        self.acknowledged += other.acknowledged;
        self.unknown += other.unknown;
        self.records.extend(other.records);
        self.deleted.extend(other.deleted);
        for (number, data) in other.events {
            let twice = self.events.insert(number.clone(), data);
            assert!(twice.is_none(), "the number {number:?} was given twice");
        }
        self.assets.extend(other.assets);
        self.tags.extend(other.tags);
        self.untagged.extend(other.untagged);
        self.trashed.extend(other.trashed);
    }

    fn judge(&self, agent: &Agent) {
        self.judge_records(agent);
        self.judge_events(agent);
        self.judge_assets(agent);
        agent.output(&["journal", "fsck"]);
    }

    fn judge_records(&self, agent: &Agent) {
        let rows = all_pages(agent, "/v1/records/soak", "records");
        let there: BTreeMap<String, i64> = rows
            .iter()
            .map(|row| (text(&row["id"]), row["fields"]["n"].as_i64().unwrap()))
            .collect();
        for (id, n) in &self.records {
            let found = there.get(id);
            assert!(found.is_some_and(|found| found >= n), "record {id}: {found:?}, not {n}");
        }
        for id in &self.deleted {
            assert!(!there.contains_key(id), "record {id} is back");
        }
    }

    fn judge_events(&self, agent: &Agent) {
        for stream in [STREAM, "device"] {
            let rows = all_pages(agent, &format!("/v1/events/{stream}"), "events");
            let there: BTreeMap<EventNumber, &Value> = rows
                .iter()
                .map(|row| {
                    let seq = row["event_seq"].as_u64().unwrap();
                    ((text(&row["author"]), text(&row["log"]), seq), &row["data"])
                })
                .collect();
            assert_eq!(there.len(), rows.len(), "an event of {stream} is there twice");
            let mut expected: BTreeMap<(&str, &str), u64> = BTreeMap::new();
            for (author, log, seq) in there.keys() {
                let next = expected.entry((author, log)).or_default();
                assert_eq!(seq, next, "the numbers of {stream} by {author} have a gap");
                *next += 1;
            }
            if stream == STREAM {
                for (number, data) in &self.events {
                    assert_eq!(there.get(number), Some(&data), "event {number:?}");
                }
            }
        }
    }

    /// Checks the assets in the journal, and a little later in the store.
    fn judge_assets(&self, agent: &Agent) {
        let records = all_pages(agent, "/v1/records/asset", "records");
        let row = |record: &Value| {
            let trashed = record["fields"]["trashed"] == json!(true);
            (text(&record["id"]), (tags(&record["sets"]["tags"]), trashed))
        };
        self.judge_rows(&records.iter().map(row).collect()).unwrap();
        let deadline = Instant::now() + agent::DEADLINE;
        loop {
            let rows = agent.json(&["ls", "--all"]);
            let row = |row: &Value| {
                (text(&row["hash"]), (tags(&row["tags"]), row["trashed"] == json!(true)))
            };
            let rows: Rows = rows.iter().map(row).collect();
            let lost: Vec<_> =
                self.assets.iter().filter(|hash| !rows.contains_key(*hash)).collect();
            assert!(lost.is_empty(), "assets are lost: {lost:?}");
            let Err(wrong) = self.judge_rows(&rows) else { return };
            assert!(Instant::now() < deadline, "in the store: {wrong}");
        }
    }

    fn judge_rows(&self, rows: &Rows) -> Result<(), String> {
        let nothing = (BTreeSet::new(), false);
        let row = |hash: &String| rows.get(hash).unwrap_or(&nothing);
        let lost = self.tags.iter().find(|(hash, tag)| !row(hash).0.contains(tag));
        let back = self.untagged.iter().find(|(hash, tag)| row(hash).0.contains(tag));
        let kept = self.trashed.iter().find(|hash| !row(hash).1);
        match (lost, back, kept) {
            (None, None, None) => Ok(()),
            wrong => Err(format!("a tag lost, one back, an asset out of the trash: {wrong:?}")),
        }
    }
}

/// Tags and trash of each asset.
type Rows = BTreeMap<String, (BTreeSet<String>, bool)>;

fn tags(tags: &Value) -> BTreeSet<String> {
    tags.as_array().into_iter().flatten().map(text).collect()
}
