//! The expected state of a journal: a map folded with `max` over ops, written independently of the
//! real code; and a reader of a journal's tables to compare it with.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use can_sync::core::ids::{NodeId, OpHash};
use can_sync::core::journal::members::{FactKind, MemberFact, Removal, Verdicts};
use can_sync::core::journal::op::{
    self, Body, Change, KEEP_DAYS, Key, MemberChange, Put, STREAM_MODEL, value_from_bytes,
    value_to_bytes,
};
use can_sync::wire::journal::decode_body;
use rusqlite::{Connection, OpenFlags};

/// (model, owner or nothing, id, field, elem).
pub(crate) type Cell = (String, Vec<u8>, Vec<u8>, String, String);

/// (hlc, log, seq).
pub(crate) type Stamp = (u64, [u8; 16], u64);

/// (stamp, removed, bytes): the greater one stays.
pub(crate) type Value = (Stamp, bool, Vec<u8>);

/// (stream, log, number, hlc, kind, data).
pub(crate) type Event = (String, [u8; 16], u64, u64, String, Vec<u8>);

/// A device's id.
pub(crate) type Id = [u8; 32];

/// The rules of membership, some of which may be turned off.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// All devices that a removed device added stay.
    pub(crate) keep_ignored: bool,
    /// All devices that a removed device added are removed.
    pub(crate) keep_forgotten: bool,
    /// A device that was added twice counts as not removed.
    pub(crate) add_undoes: bool,
}

impl Rules {
    pub(crate) const REAL: Self =
        Self { keep_ignored: false, keep_forgotten: false, add_undoes: false };
}

/// An op as it is stored: (arr, author, nonce, body).
pub(crate) type Row = (i64, [u8; 32], [u8; 16], Vec<u8>);

/// The state that ops make.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct State {
    pub(crate) cells: BTreeMap<Cell, Value>,
    pub(crate) events: BTreeSet<Event>,
    pub(crate) facts: BTreeSet<MemberFact>,
}

impl State {
    /// Applies an op. Returns whether anything changed.
    pub(crate) fn apply(
        &mut self,
        author: &NodeId,
        log: [u8; 16],
        hash: &OpHash,
        body: &Body,
    ) -> bool {
        let stamp = (body.hlc.0, log, body.seq);
        let mut changed = false;
        for (index, change) in body.changes.iter().enumerate() {
            changed |= match change {
                Change::Put(put) => self.put(author, put, stamp),
                Change::Delete(key) => self.delete(author, key, stamp),
                Change::Event(event) => self.events.insert((
                    event.stream.clone(),
                    log,
                    event.event_seq,
                    body.hlc.0,
                    event.kind.clone(),
                    event.data.clone(),
                )),
                Change::Member(told) => self.facts.insert(fact(author, hash, index, told)),
                Change::Unknown => false,
            };
        }
        changed
    }

    fn put(&mut self, author: &NodeId, put: &Put, stamp: Stamp) -> bool {
        let mut writes = Vec::new();
        if put.create {
            writes.push((cell(author, &put.key, "", "a"), (stamp, false, Vec::new())));
        }
        for (field, value) in &put.set {
            let bytes = value_to_bytes(value.as_ref());
            writes.push((cell(author, &put.key, field, ""), (stamp, false, bytes)));
        }
        for add in &put.add {
            let key = cell(author, &put.key, &add.field, &add.elem);
            writes.push((key, (stamp, false, Vec::new())));
        }
        for removal in &put.remove {
            let (seen, elem) = (removal.observed, &removal.elem);
            let stamp = (seen.hlc.0, seen.log.0, seen.seq);
            let key = cell(author, &put.key, &elem.field, &elem.elem);
            writes.push((key, (stamp, true, Vec::new())));
        }
        let cleared = self.cells.get(&cell(author, &put.key, "", "x")).map(|clear| clear.0);
        let mut changed = false;
        for (key, value) in writes {
            let gone = cleared.is_some_and(|clear| value.0 <= clear);
            if !gone && self.cells.get(&key).is_none_or(|old| *old < value) {
                self.cells.insert(key, value);
                changed = true;
            }
        }
        changed
    }

    fn delete(&mut self, author: &NodeId, key: &Key, stamp: Stamp) -> bool {
        let clear = cell(author, key, "", "x");
        if self.cells.get(&clear).is_some_and(|old| old.0 >= stamp) {
            return false;
        }
        self.cells.retain(|other, value| {
            let same_record = (&other.0, &other.1, &other.2) == (&clear.0, &clear.1, &clear.2);
            !same_record || value.0 > stamp
        });
        self.cells.insert(clear, (stamp, false, Vec::new()));
        true
    }

    /// Whether a member removed the device.
    pub(crate) fn is_removed(&self, device: &Id, rules: Rules) -> bool {
        let adds = |fact: &&MemberFact| fact.what == FactKind::Add(NodeId(*device));
        let is_added_again = rules.add_undoes && self.facts.iter().filter(adds).count() > 1;
        self.judged(rules).removed(&NodeId(*device)) && !is_added_again
    }

    /// Whether a device is a member.
    pub(crate) fn is_member(&self, device: &Id, rules: Rules) -> bool {
        self.judged(rules).legit(&NodeId(*device)) && !self.is_removed(device, rules)
    }

    /// The real verdicts over facts changed according to `rules`. Other tests check the verdicts;
    /// here it matters that all devices come to the same ones.
    fn judged(&self, rules: Rules) -> Verdicts {
        let mut facts: Vec<MemberFact> = self.facts.iter().cloned().collect();
        for fact in &mut facts {
            let FactKind::Remove(removal) = &mut fact.what else { continue };
            if rules.keep_ignored {
                removal.fence = None;
                removal.keep = self.facts.iter().filter_map(added).collect();
            }
            if rules.keep_forgotten {
                removal.keep.clear();
            }
        }
        Verdicts::of(&facts)
    }

    /// The streams whose retention was ever set.
    pub(crate) fn spoken_streams(&self) -> BTreeSet<String> {
        let spoken = |(model, owner, _, field, elem): &&Cell| {
            let says = (field == KEEP_DAYS && elem.is_empty()) || (field.is_empty() && elem == "x");
            model == STREAM_MODEL && owner.is_empty() && says
        };
        let ids = self.cells.keys().filter(spoken).map(|cell| cell.2.clone());
        ids.filter_map(|id| String::from_utf8(id).ok()).collect()
    }

    /// The current retention of a stream in days; `None`: for ever.
    pub(crate) fn keep_days(&self, stream: &str) -> Option<u64> {
        let cell = |field: &str, elem: &str| {
            let id = stream.as_bytes().to_vec();
            self.cells.get(&(STREAM_MODEL.into(), Vec::new(), id, field.into(), elem.into()))
        };
        cell("", "a")?;
        match value_from_bytes(&cell(KEEP_DAYS, "")?.2)?? {
            op::Value::Int(days) => u64::try_from(days).ok().filter(|days| *days > 0),
            _ => None,
        }
    }

    /// The state without the events of these streams.
    pub(crate) fn without(mut self, streams: &BTreeSet<String>) -> Self {
        self.events.retain(|event| !streams.contains(&event.0));
        self
    }

    /// The first difference, for people.
    pub(crate) fn difference(&self, other: &Self) -> Option<String> {
        let cells = first_of(&self.cells, &other.cells);
        let events = self.events.symmetric_difference(&other.events).next();
        let facts = self.facts.symmetric_difference(&other.facts).next();
        cells
            .or_else(|| events.map(|event| format!("event {event:?}")))
            .or_else(|| facts.map(|fact| format!("fact {fact:?}")))
    }
}

/// The fact in a change of an op.
fn fact(by: &NodeId, op: &OpHash, index: usize, told: &MemberChange) -> MemberFact {
    let what = match told {
        MemberChange::Genesis { .. } => FactKind::Genesis,
        MemberChange::Add { device, .. } => FactKind::Add(*device),
        MemberChange::Remove { device, keep, fence } => FactKind::Remove(Removal {
            device: *device,
            keep: keep.iter().copied().collect(),
            fence: fence.as_ref().map(|fence| fence.iter().copied().collect()),
        }),
    };
    MemberFact { by: *by, op: *op, index, what }
}

fn added(fact: &MemberFact) -> Option<NodeId> {
    match &fact.what {
        FactKind::Add(device) => Some(*device),
        _ => None,
    }
}

fn first_of(a: &BTreeMap<Cell, Value>, b: &BTreeMap<Cell, Value>) -> Option<String> {
    let keys: BTreeSet<_> = a.keys().chain(b.keys()).collect();
    let differs = keys.into_iter().find(|key| a.get(*key) != b.get(*key))?;
    Some(format!("cell {differs:?}: {:?} and {:?}", a.get(differs), b.get(differs)))
}

fn cell(author: &NodeId, key: &Key, field: &str, elem: &str) -> Cell {
    let owner = if key.owned { author.0.to_vec() } else { Vec::new() };
    (key.model.clone(), owner, key.id.clone(), field.to_owned(), elem.to_owned())
}

/// Reads the tables of a journal without its own code.
pub(crate) struct Tables(Connection);

impl Tables {
    pub(crate) fn open(path: &Path) -> Self {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Self(Connection::open_with_flags(path, flags).unwrap())
    }

    /// The state in the tables.
    pub(crate) fn state(&self) -> State {
        let mut state = State::default();
        let mut cells = self
            .0
            .prepare_cached(
                "SELECT m.name, d.id, c.id, c.field, c.elem, c.hlc, c.log_id, c.seq, c.removed,
                     c.value
                 FROM cells c JOIN models m USING (model) LEFT JOIN devices d ON d.dev = c.scope",
            )
            .unwrap();
        let mut rows = cells.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let owner: Option<Vec<u8>> = row.get(1).unwrap();
            let key = (
                row.get(0).unwrap(),
                owner.unwrap_or_default(),
                row.get(2).unwrap(),
                row.get(3).unwrap(),
                row.get(4).unwrap(),
            );
            let hlc: i64 = row.get(5).unwrap();
            let seq: i64 = row.get(7).unwrap();
            let stamp = (hlc as u64, row.get(6).unwrap(), seq as u64);
            state.cells.insert(key, (stamp, row.get(8).unwrap(), row.get(9).unwrap()));
        }
        let mut events = self
            .0
            .prepare_cached(
                "SELECT e.stream, l.log_id, e.event_seq, e.hlc, e.type, e.data
                 FROM events e JOIN logs l USING (log)",
            )
            .unwrap();
        let mut rows = events.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let (number, hlc): (i64, i64) = (row.get(2).unwrap(), row.get(3).unwrap());
            state.events.insert((
                row.get(0).unwrap(),
                row.get(1).unwrap(),
                number as u64,
                hlc as u64,
                row.get(4).unwrap(),
                row.get(5).unwrap(),
            ));
        }
        let mut facts = self
            .0
            .prepare_cached(
                "SELECT b.id, o.hash, m.idx, o.body FROM members m
                 JOIN devices b ON b.dev = m.by_dev JOIN ops o ON o.arr = m.op",
            )
            .unwrap();
        let mut rows = facts.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let (by, hash) = (NodeId(row.get(0).unwrap()), OpHash(row.get(1).unwrap()));
            let index = row.get::<_, i64>(2).unwrap() as usize;
            let body = decode_body(&row.get::<_, Vec<u8>>(3).unwrap()).unwrap();
            let Change::Member(told) = &body.changes[index] else { panic!("not a fact") };
            state.facts.insert(fact(&by, &hash, index, told));
        }
        state
    }

    /// Ops that arrived after `arr`.
    pub(crate) fn ops_after(&self, arr: i64) -> Vec<Row> {
        let mut query = self
            .0
            .prepare_cached(
                "SELECT o.arr, d.id, l.nonce, o.body FROM ops o
                 JOIN logs l USING (log) JOIN devices d USING (dev) WHERE o.arr > ?1 ORDER BY o.arr",
            )
            .unwrap();
        let rows = query
            .query_map([arr], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
            .unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    }

    /// The hashes of the live ops.
    pub(crate) fn live(&self) -> BTreeSet<[u8; 32]> {
        let mut query =
            self.0.prepare_cached("SELECT hash FROM ops WHERE refs > 0 OR opaque = 1").unwrap();
        let rows = query.query_map([], |row| row.get(0)).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    }

    /// The last arrival number ever given.
    pub(crate) fn last_arr(&self) -> i64 {
        let last = "SELECT ifnull(max(seq), 0) FROM sqlite_sequence WHERE name = 'ops'";
        self.0.query_row(last, [], |row| row.get(0)).unwrap()
    }

    /// Makes all writes fail or succeed again: a trigger on each table also writes to a table whose
    /// row ids are used up, for which SQLite reports a full disk.
    pub(crate) fn fill(&self, full: bool) {
        let name = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'
                    AND name != 'room'";
        let mut tables = self.0.prepare_cached(name).unwrap();
        let tables = tables.query_map([], |row| row.get::<_, String>(0)).unwrap();
        let mut sql = match full {
            true => format!(
                "CREATE TABLE room (n INTEGER PRIMARY KEY AUTOINCREMENT);
                 INSERT INTO room VALUES ({});",
                i64::MAX
            ),
            false => "DROP TABLE IF EXISTS room;".to_owned(),
        };
        for table in tables.map(Result::unwrap) {
            for verb in ["INSERT", "UPDATE"] {
                sql += &match full {
                    true => format!(
                        "CREATE TRIGGER full_{verb}_{table} BEFORE {verb} ON {table}
                         BEGIN INSERT INTO room VALUES (NULL); END;"
                    ),
                    false => format!("DROP TRIGGER IF EXISTS full_{verb}_{table};"),
                };
            }
        }
        self.meddle(&format!("BEGIN IMMEDIATE; {sql} COMMIT;"));
    }

    /// Changes the tables directly; for mutants only.
    pub(crate) fn meddle(&self, sql: &str) {
        self.0.execute_batch(sql).unwrap();
    }
}
