//! The journal's tests: devices with a journal each, and a plain model of the expected state.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use tempfile::TempDir;

use super::*;
use crate::core::journal::cell::CellValue;
use crate::core::journal::draft::{Draft, DraftChange, DraftPut};
use crate::core::journal::message::Clock;
use crate::core::journal::op::{Body, Change as OpChange, Elem, Key, LogInfo, Value};
use crate::core::journal::set_hash::SetDigest;
use crate::core::limits::{OPS_FRAME_BYTES, OPS_PER_FRAME_MAX};

mod bounds;
mod durable;
mod fences;
mod folders;
mod group;
mod hostile;
mod local;
mod merge;
mod tickets;
mod upgrade;

const NOW_MS: u64 = 1_900_000_000_000;
const IDENT: DbIdent = DbIdent { device: 1, inode: 2, born_ns: 3 };
const LIMITS: ScanLimits =
    ScanLimits { ops: OPS_PER_FRAME_MAX, bytes: OPS_FRAME_BYTES, rows: 4096 };

impl Journal {
    /// A token for one joiner.
    fn create_token(
        &mut self,
        key: &[u8; 32],
        verify: bool,
        now_ms: u64,
        expires_ms: u64,
    ) -> Result<()> {
        self.create_token_for(key, verify, 1, now_ms, expires_ms)
    }
}

/// A device with its journal.
struct Device {
    journal: Journal,
    reader: JournalReader,
    identity: Identity,
    dir: TempDir,
    now_ms: u64,
    opened: u8,
    /// Whether it plays a version that knows neither deletes nor events.
    old: bool,
}

impl Device {
    /// A device in no group. Its files are in memory where possible: there are thousands.
    fn new(n: u8) -> Self {
        let memory = std::path::Path::new("/dev/shm");
        let dir = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.unwrap();
        let identity = Identity::from_bytes(&[n; 32]);
        let path = dir.path().join("journal.db");
        let journal = Journal::open_as(&path, &identity, [n; 32], IDENT).unwrap();
        let reader = journal.reader().unwrap();
        Self { journal, reader, identity, dir, now_ms: NOW_MS, opened: 0, old: false }
    }

    /// A device that founded a group.
    fn founder() -> Self {
        let mut device = Self::new(1);
        device.journal.found("one", NOW_MS).unwrap();
        device
    }

    /// `n` devices of one group.
    fn group(n: u8) -> Vec<Self> {
        let mut devices = vec![Self::founder()];
        for n in 2..=n {
            let joiner = devices[0].admit(n);
            devices.push(joiner);
        }
        for n in 0..devices.len() {
            let (first, rest) = devices.split_first_mut().unwrap();
            if n > 0 {
                sync(first, &mut rest[n - 1]);
            }
        }
        devices
    }

    /// A new device admitted to this one's group.
    fn admit(&mut self, n: u8) -> Self {
        let mut joiner = Self::new(n);
        self.journal.add(&joiner.id(), "joiner", self.now_ms).unwrap();
        let group = self.journal.group().unwrap();
        let intro = self.reader.intro(&joiner.id()).unwrap();
        let intro: Vec<_> = intro.into_iter().map(|op| verify(&group, op).unwrap()).collect();
        joiner.journal.join(group, &intro, self.now_ms).unwrap();
        joiner
    }

    fn id(&self) -> NodeId {
        self.identity.node_id
    }

    /// Sets how many bytes of ops this device keeps by an author; `None` for the default.
    fn set_quota(&self, author: &NodeId, bytes: Option<u64>) {
        let set = "INSERT INTO devices(id, quota_bytes) VALUES (?1, ?2)
                   ON CONFLICT(id) DO UPDATE SET quota_bytes = ?2";
        let params = rusqlite::params![author.0, bytes.map(crate::db::int)];
        self.journal.connection.execute(set, params).unwrap();
    }

    fn group_id(&self) -> GroupId {
        self.journal.group().unwrap()
    }

    fn open_log(&self) -> LogId {
        let open = schema::meta_array(&self.journal.connection, schema::key::OPEN_LOG);
        LogId(open.unwrap().expect("it has written"))
    }

    /// Restarts with the same file.
    fn restart(&mut self) {
        self.opened += 1;
        let mut seed = [self.opened; 32];
        seed[0] = self.id().0[0];
        let path = self.dir.path().join("journal.db");
        self.journal = Journal::open_as(&path, &self.identity, seed, IDENT).unwrap();
        self.reader = self.journal.reader().unwrap();
    }

    /// Restarts as the current version.
    fn upgrade(&mut self) {
        self.old = false;
        let reset = "UPDATE meta SET v = x'00' WHERE k = 'kinds'";
        self.journal.connection.execute(reset, []).unwrap();
        self.restart();
    }

    /// An op as this device can read it.
    fn read(&self, op: VerifiedOp) -> VerifiedOp {
        op.unread(|change| self.old && matches!(change, OpChange::Delete(_) | OpChange::Event(_)))
    }

    /// Restarts on the files of a backup, restored so that it cannot be noticed.
    fn restore(&mut self, backup: &std::path::Path) {
        let memory = std::path::Path::new(":memory:");
        self.journal = Journal::open_as(memory, &self.identity, [0; 32], IDENT).unwrap();
        self.reader = JournalReader { connection: Connection::open_in_memory().unwrap() };
        durable::copy(backup, self.dir.path());
        self.restart();
    }

    fn write(&mut self, changes: Vec<DraftChange>) -> Option<Written> {
        let draft = Draft { changes, expect: vec![] };
        self.journal.write(&[draft], self.now_ms).unwrap().remove(0).unwrap()
    }

    fn set(&mut self, id: &str, field: &str, value: i64) -> Option<Written> {
        let mut put = put(id);
        put.set.insert(field.into(), Some(Value::Int(value)));
        self.write(vec![DraftChange::Put(put)])
    }

    fn tag(&mut self, id: &str, tag: &str, add: bool) -> Option<Written> {
        let mut put = put(id);
        put.create = add;
        if add { &mut put.add } else { &mut put.remove }.insert(elem(tag));
        self.write(vec![DraftChange::Put(put)])
    }

    fn delete(&mut self, id: &str) -> Option<Written> {
        self.write(vec![DraftChange::Delete(put(id).key)])
    }

    fn event(&mut self, stream: &str) -> Option<Written> {
        let (stream, kind) = (stream.into(), "happened".into());
        self.write(vec![DraftChange::Event { stream, kind, data: vec![1, 2] }])
    }

    fn record(&self, id: &str) -> Option<Record> {
        self.reader.record("note", Owner::Shared, id.as_bytes()).unwrap()
    }

    fn field(&self, id: &str, field: &str) -> Option<i64> {
        match self.record(id)?.fields.get(field)? {
            Some(Value::Int(value)) => Some(*value),
            _ => None,
        }
    }

    fn clock(&self) -> Clock {
        self.reader.clock().unwrap()
    }

    fn digest(&self) -> SetDigest {
        self.clock().digest.unwrap().sum
    }

    fn has(&self) -> BTreeMap<LogId, u64> {
        self.clock().entries.iter().map(|entry| (entry.log, entry.seq)).collect()
    }

    fn fsck(&mut self) {
        assert_eq!(self.reader.fsck().unwrap(), Vec::<String>::new());
    }

    /// All stored ops in order of arrival.
    fn ops(&self) -> Vec<VerifiedOp> {
        let scan = self.reader.scan(
            0,
            &BTreeMap::new(),
            ScanLimits { ops: 1 << 20, bytes: 1 << 30, rows: 1 << 20 },
        );
        let group = self.group_id();
        scan.unwrap().ops.into_iter().map(|(_, _, op)| verify(&group, op).unwrap()).collect()
    }

    /// The hashes of the live ops.
    fn live(&self) -> BTreeSet<[u8; 32]> {
        let mut query =
            self.journal.connection.prepare("SELECT hash FROM ops WHERE refs > 0").unwrap();
        query.query_map([], |row| row.get(0)).unwrap().map(std::result::Result::unwrap).collect()
    }

    /// The cells in the form of the model.
    fn cells(&self) -> BTreeMap<Cell, CellValue> {
        let mut query = self
            .journal
            .connection
            .prepare(
                "SELECT c.hlc, c.log_id, c.seq, c.removed, c.value, m.name, d.id, c.id, c.field, c.elem
                 FROM cells c JOIN models m USING (model) LEFT JOIN devices d ON d.dev = c.scope",
            )
            .unwrap();
        let rows = query.query_map([], |row| {
            let owner = row.get::<_, Option<[u8; 32]>>(6)?.map(NodeId);
            let cell = (row.get(5)?, owner, row.get(7)?, row.get(8)?, row.get(9)?);
            Ok((cell, super::rows::row_cell(row, 0)?))
        });
        rows.unwrap().map(std::result::Result::unwrap).collect()
    }
}

/// Model, owner, id, field, element.
type Cell = (String, Option<NodeId>, Vec<u8>, String, String);

/// The state that ops should make: all their cells folded with max, minus what was cleared.
fn model<'a>(ops: impl IntoIterator<Item = &'a VerifiedOp>) -> BTreeMap<Cell, CellValue> {
    let mut all: BTreeMap<Cell, CellValue> = BTreeMap::new();
    for op in ops {
        let body = op.body();
        let stamp = Stamp { hlc: body.hlc, log: op.log(), seq: body.seq };
        let mut take = |key: &Key, field: &str, elem: &str, stamp, removed, bytes: Vec<u8>| {
            let owner = key.owned.then_some(op.signed().log.author);
            let cell = (key.model.clone(), owner, key.id.clone(), field.into(), elem.into());
            let value = CellValue { stamp, removed, bytes };
            let old = all.entry(cell).or_insert_with(|| value.clone());
            *old = old.clone().max(value);
        };
        for change in &body.changes {
            match change {
                OpChange::Put(put) => {
                    if put.create {
                        take(&put.key, "", "a", stamp, false, vec![]);
                    }
                    for (field, value) in &put.set {
                        let bytes = crate::core::journal::op::value_to_bytes(value.as_ref());
                        take(&put.key, field, "", stamp, false, bytes);
                    }
                    for Elem { field, elem } in &put.add {
                        take(&put.key, field, elem, stamp, false, vec![]);
                    }
                    for removal in &put.remove {
                        let Elem { field, elem } = &removal.elem;
                        take(&put.key, field, elem, removal.observed, true, vec![]);
                    }
                }
                OpChange::Delete(key) => take(key, "", "x", stamp, false, vec![]),
                OpChange::Event(_) | OpChange::Member(_) | OpChange::Unknown => {}
            }
        }
    }
    let clears: BTreeMap<_, _> = all
        .iter()
        .filter(|((_, _, _, field, elem), _)| field.is_empty() && elem == "x")
        .map(|((model, owner, id, _, _), value)| ((model.clone(), *owner, id.clone()), value.stamp))
        .collect();
    all.retain(|(model, owner, id, field, elem), value| {
        let clear = clears.get(&(model.clone(), *owner, id.clone()));
        (field.is_empty() && elem == "x") || clear.is_none_or(|clear| value.stamp > *clear)
    });
    all
}

fn put(id: &str) -> DraftPut {
    DraftPut {
        key: Key { model: "note".into(), id: id.into(), owned: false },
        create: true,
        set: BTreeMap::new(),
        add: BTreeSet::new(),
        remove: BTreeSet::new(),
    }
}

fn elem(tag: &str) -> Elem {
    Elem { field: "tags".into(), elem: tag.into() }
}

/// Sends all ops of `from` above the clock of `to`. Returns the refused ones.
fn push(from: &Device, to: &mut Device) -> Vec<Refused> {
    push_above(from, to, &to.has())
}

fn push_above(from: &Device, to: &mut Device, has: &BTreeMap<LogId, u64>) -> Vec<Refused> {
    let group = from.group_id();
    let mut cursor = from.reader.scan_start(has).unwrap();
    let mut refused = Vec::new();
    loop {
        let scan = from.reader.scan(cursor, has, LIMITS).unwrap();
        cursor = scan.cursor;
        let ops = scan.ops.into_iter().map(|(_, _, op)| to.read(verify(&group, op).unwrap()));
        let ops: Vec<_> = ops.collect();
        if !ops.is_empty() {
            let received = to.journal.receive(&from.id(), &ops, to.now_ms).unwrap();
            refused.extend(received.refused);
        }
        if let Some(clock) = scan.drained {
            assert!(clock.drained);
            if refused.is_empty() {
                to.journal.jump(&clock.entries).unwrap();
            }
            to.journal.ack(&from.id(), &clock.entries).unwrap();
            return refused;
        }
    }
}

fn sync(a: &mut Device, b: &mut Device) {
    push(a, b);
    push(b, a);
    let clock = b.clock();
    a.journal.ack(&b.id(), &clock.entries).unwrap();
}

fn sync_all(devices: &mut [Device]) {
    for _ in 0..2 {
        for n in 1..devices.len() {
            let (before, rest) = devices.split_at_mut(n);
            for device in before {
                sync(device, &mut rest[0]);
            }
        }
    }
}

/// A hand-made op by any author.
fn craft(by: &Identity, group: &GroupId, nonce: u8, body: Body) -> VerifiedOp {
    let info = LogInfo { author: by.node_id, nonce: [nonce; 16] };
    let op = VerifiedOp::author(by, group, info, body).unwrap();
    assert_eq!(verify(group, op.signed().clone()).unwrap(), op);
    op
}
