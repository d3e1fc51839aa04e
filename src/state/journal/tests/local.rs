//! What local writers and readers see.

use super::*;
use crate::core::attributes::Attributes;
use crate::core::ids::Hash;
use crate::core::journal::asset::{Row, Shadow, asset_key, reconcile};
use crate::core::journal::device_events::DEVICE_STREAM;
use crate::core::journal::draft::{DraftError, Expect};
use crate::core::journal::op::{KEEP_DAYS, STREAM_MODEL};
use crate::core::limits::{LOGGED_QUOTA_FRACTION, OP_BODY_BYTES_MAX, VALUE_BYTES_MAX};

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

#[test]
fn drafts_of_one_call_are_ops_of_their_own_and_fail_alone() {
    let mut device = Device::founder();
    let good = |id: &str| Draft { changes: vec![DraftChange::Put(put(id))], expect: vec![] };
    let bad = Draft {
        changes: vec![DraftChange::Delete(Key { id: vec![], ..put("1").key })],
        expect: vec![],
    };
    let unmet = Draft { expect: vec![Expect::Alive(put("9").key)], ..good("3") };
    let nothing = Draft { changes: vec![DraftChange::Delete(put("8").key)], expect: vec![] };
    let results =
        device.journal.write(&[good("1"), bad, unmet, nothing, good("2")], NOW_MS).unwrap();
    let [
        Ok(Some(first)),
        Err(DraftError::Empty(_)),
        Err(DraftError::Absent),
        Ok(None),
        Ok(Some(second)),
    ] = &results[..]
    else {
        panic!("{results:?}");
    };
    assert_eq!(second.stamp.seq, first.stamp.seq + 1);
    assert!(device.record("1").is_some() && device.record("3").is_none());
    device.fsck();
}

#[test]
fn a_draft_is_written_only_on_what_its_writer_saw() {
    let mut device = Device::founder();
    device.set("1", "f", 1);
    let seen = device.record("1").unwrap().arr;
    let key = put("1").key;
    let mut write = |expect: Expect| {
        let mut change = put("1");
        change.set.insert("f".into(), Some(Value::Int(2)));
        let draft = Draft { changes: vec![DraftChange::Put(change)], expect: vec![expect] };
        device.journal.write(&[draft], NOW_MS).unwrap().remove(0)
    };
    assert_eq!(write(Expect::Absent(key.clone())), Err(DraftError::Alive));
    assert!(write(Expect::Unchanged(key.clone(), seen)).is_ok());
    let Err(DraftError::Changed { now: Some(now) }) = write(Expect::Unchanged(key.clone(), seen))
    else {
        panic!("the record has changed");
    };
    assert!(now > seen && write(Expect::Unchanged(key, now)).is_ok());
}

#[test]
fn an_op_too_large_as_a_whole_is_refused() {
    let mut device = Device::founder();
    let changes = (0..5).map(|n| {
        let mut put = put(&n.to_string());
        put.set.insert("f".into(), Some(Value::Bytes(vec![0; 16 * 1024])));
        DraftChange::Put(put)
    });
    let draft = Draft { changes: changes.collect(), expect: vec![] };
    let refused = device.journal.write(&[draft], NOW_MS).unwrap().remove(0);
    assert!(matches!(refused, Err(DraftError::OutOfBounds { .. })), "{refused:?}");
    device.fsck();
}

#[test]
fn removing_what_is_not_there_writes_nothing() {
    let mut device = Device::founder();
    assert_eq!(device.tag("1", "red", false), None);
    device.tag("1", "red", true);
    assert!(device.tag("1", "red", false).is_some());
    assert_eq!(device.tag("1", "red", false), None);
}

#[test]
fn records_come_in_pages_by_prefix_and_owner() {
    let mut devices = Device::group(2);
    for device in &mut devices {
        for id in ["a1", "a2", "b1", "b2"] {
            let mut own = put(id);
            own.key.owned = true;
            device.write(vec![DraftChange::Put(own)]);
        }
    }
    devices[0].set("a1", "f", 1);
    devices[0].set("a3", "f", 1);
    devices[0].delete("a3");
    sync_all(&mut devices);
    let reader = &devices[1].reader;
    let pages = |owner, prefix: &[u8], limit| {
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let page = reader.records("note", owner, prefix, after.as_ref(), limit).unwrap();
            assert!(page.records.len() <= limit);
            all.extend(
                page.records.into_iter().map(|r| (r.owner, String::from_utf8(r.id).unwrap())),
            );
            match page.next {
                Some(next) => after = Some(next),
                None => return all,
            }
        }
    };
    assert_eq!(pages(Some(Owner::Shared), b"", 1), [(Owner::Shared, "a1".to_owned())]);
    let own = Owner::Device(devices[0].id());
    let expected = vec![(own, "b1".to_owned()), (own, "b2".to_owned())];
    for limit in 1..4 {
        assert_eq!(pages(Some(own), b"b", limit), expected);
        assert_eq!(pages(None, b"", limit).len(), 9);
    }
    assert!(pages(None, b"\xff", 3).is_empty());
}

#[test]
fn a_watcher_sees_every_change_once_and_in_the_end_the_newest() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    let mut cursor = a.reader.cursor_now().unwrap();
    let mut seen = BTreeMap::new();
    for round in 0..6 {
        a.set("1", "f", round);
        b.set(&format!("n{round}"), "f", round);
        if round == 3 {
            a.delete("n1");
            b.tag("1", "red", true);
        }
        sync(a, b);
        loop {
            let page = a.reader.changes(Some("note"), cursor.as_ref(), 2).unwrap().unwrap();
            for change in page.changes {
                seen.insert(change.id.clone(), change.record);
            }
            cursor = Some(page.cursor);
            if !page.more {
                break;
            }
        }
        for (id, record) in &seen {
            let now = a.reader.record("note", Owner::Shared, id).unwrap();
            assert_eq!(*record, now, "round {round}");
        }
    }
    assert_eq!(seen.len(), 7);
    let page = a.reader.changes(None, cursor.as_ref(), 2).unwrap().unwrap();
    assert!(page.changes.is_empty() && !page.more);
    a.journal.restored().unwrap();
    assert_eq!(a.reader.changes(None, cursor.as_ref(), 2).unwrap(), None, "another epoch");
}

#[test]
fn events_are_numbered_without_gaps_and_read_in_order_of_arrival() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    for n in 0..3 {
        assert_eq!(a.event("log").unwrap().event_seqs, [n]);
        a.restart();
    }
    let event = || DraftChange::Event { stream: "log".into(), kind: "k".into(), data: vec![] };
    assert_eq!(a.write(vec![event(), event()]).unwrap().event_seqs, [3, 4]);
    assert_eq!(b.event("log").unwrap().event_seqs, [0]);
    assert_eq!(b.event("other").unwrap().event_seqs, [0]);
    sync(a, b);
    a.journal.restored().unwrap();
    assert_eq!(a.event("log").unwrap().event_seqs, [0], "a new log begins anew");
    sync(a, b);
    let mut after = (0, 0);
    let mut seen = Vec::new();
    loop {
        let page = b.reader.events("log", after, 2).unwrap();
        seen.extend(page.events);
        after = page.next;
        if !page.more {
            break;
        }
    }
    assert_eq!(seen.len(), 7);
    assert!(seen.is_sorted_by_key(|event| event.arr));
    let mut logs: BTreeMap<LogId, Vec<u64>> = BTreeMap::new();
    for event in &seen {
        logs.entry(event.log).or_default().push(event.event_seq);
    }
    for numbers in logs.values() {
        assert!(numbers.iter().copied().eq(0..numbers.len() as u64), "{numbers:?}");
    }
}

#[test]
fn a_stream_with_days_to_keep_loses_its_old_events_and_nothing_else() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    a.event("log");
    a.event("other");
    sync(a, b);
    let mut keep = put("log");
    keep.key.model = STREAM_MODEL.into();
    keep.set.insert(KEEP_DAYS.into(), Some(Value::Int(7)));
    a.write(vec![DraftChange::Put(keep)]);
    sync(a, b);
    assert_eq!(a.digest(), b.digest());
    a.now_ms += 8 * DAY_MS;
    b.now_ms += 8 * DAY_MS;
    assert_eq!(a.event("log").unwrap().event_seqs, [1]);
    let pruned = a.journal.prune(a.now_ms, 100).unwrap();
    assert_eq!(pruned.events, 1);
    a.fsck();
    let streams = |device: &Device| {
        ["log", "other"].map(|s| device.reader.events(s, (0, 0), 9).unwrap().events.len())
    };
    assert_eq!(streams(a), [1, 1]);
    sync(a, b);
    assert_eq!(a.digest(), b.digest(), "though the other still has the old one");
    let all = BTreeMap::new();
    push_above(b, a, &all);
    assert_eq!(streams(a), [1, 1], "it does not come back");
    a.fsck();
    b.fsck();
}

#[test]
fn pruning_waits_for_the_members_and_not_for_ever() {
    let mut devices = Device::group(3);
    let count = |device: &Device| device.ops().len();
    for n in 0..5 {
        devices[0].set("1", "f", n);
    }
    let (a, rest) = devices.split_first_mut().unwrap();
    sync(a, &mut rest[0]);
    assert_eq!(a.journal.prune(NOW_MS, 100).unwrap(), Pruned::default(), "one has not said");
    sync(a, &mut rest[1]);
    let before = count(a);
    assert_eq!(
        a.journal.prune(NOW_MS, 3).unwrap(),
        Pruned { ops: 3, more: true, ..Pruned::default() }
    );
    a.journal.prune(NOW_MS, 100).unwrap();
    assert_eq!(count(a), before - 4);
    for n in 0..5 {
        a.set("1", "f", n);
    }
    let away_ms = crate::core::limits::DEAD_OP_KEPT_MS + 1;
    let pruned = a.journal.prune(NOW_MS + away_ms, 100).unwrap();
    assert_eq!(pruned.ops, 5);
    a.journal.remove(&rest[1].id(), NOW_MS).unwrap();
    a.fsck();
    push(a, &mut rest[0]);
    assert_eq!(rest[0].digest(), a.digest());
}

#[test]
fn what_a_device_logs_by_itself_leaves_room_for_what_users_write() {
    let mut device = Device::founder();
    let (id, quota) = (device.id(), 4 * OP_BODY_BYTES_MAX as u64);
    device.set_quota(&id, Some(quota));
    let used = |device: &Device| -> u64 {
        device.reader.stats().unwrap().logs.iter().map(|log| log.bytes).sum()
    };
    let data = vec![7; 8_000];
    let (stream, kind) = (DEVICE_STREAM.to_owned(), "asset-added".to_owned());
    let arrival = DraftChange::Event { stream, kind, data };
    let shadow = Shadow { version: 1, knows_attributes: true, ..Shadow::default() };
    for n in 0..64 {
        let hash = Hash([n; 32]);
        let edit = DraftPut { set: [("f".into(), None)].into(), ..put(&n.to_string()) };
        let changes = vec![DraftChange::Put(edit), arrival.clone()];
        let draft = Draft { changes, expect: vec![] };
        let alone = Draft { changes: vec![arrival.clone()], expect: vec![] };
        let shadows = [(hash, shadow.clone())];
        let written =
            device.journal.write_with_shadows(&[], &[draft, alone], &shadows, NOW_MS).unwrap();
        assert!(written.iter().all(|one| one.is_ok()), "{n}: {written:?}");
        assert_eq!(device.reader.shadow(&hash).unwrap().as_ref(), Some(&shadow));
        assert!(device.record(&n.to_string()).is_some());
    }
    let events = device.reader.events(DEVICE_STREAM, (0, 0), 100).unwrap().events.len();
    assert!((8..64).contains(&events), "{events} events");
    assert!(used(&device) < quota / LOGGED_QUOTA_FRACTION + 32_000);
    let alone = Draft { changes: vec![arrival], expect: vec![] };
    let refused = device.journal.write(&[alone], NOW_MS).unwrap();
    assert!(matches!(refused[..], [Err(DraftError::Quota { .. })]), "{refused:?}");

    // Users fill the rest; then retention can still be set.
    let large = |n: u8| DraftPut {
        set: [("f".into(), Some(Value::Bytes(vec![n; VALUE_BYTES_MAX])))].into(),
        ..put("large")
    };
    let mut id = 0;
    let refused = loop {
        id += 1;
        let mut large = large(id);
        large.key.id = vec![id];
        let changes = vec![DraftChange::Put(large)];
        let draft = Draft { changes, expect: vec![] };
        if let Err(error) = device.journal.write(&[draft], NOW_MS).unwrap().remove(0) {
            break error;
        }
    };
    assert!(matches!(refused, DraftError::Quota { .. }), "{refused:?}");
    let key = Key { model: STREAM_MODEL.into(), id: DEVICE_STREAM.into(), owned: false };
    let set = [(KEEP_DAYS.to_owned(), Some(Value::Int(1)))].into();
    let keep = DraftPut { key, set, ..put("") };
    device.write(vec![DraftChange::Put(keep)]).unwrap();
    let later_ms = NOW_MS + 40 * 24 * 60 * 60 * 1000;
    while device.journal.prune(later_ms, 1_000).unwrap().more {}
    device.write(vec![DraftChange::Put(large(99))]).unwrap();
    device.fsck();
}

#[test]
fn a_shadow_is_written_with_its_edit_or_not_at_all() {
    let mut device = Device::founder();
    let hash = Hash([5; 32]);
    let row = Row {
        description: "mine".into(),
        trashed: true,
        tags: BTreeSet::from(["x".into()]),
        attributes: Attributes::named("a.txt"),
    };
    let decision = reconcile(&hash, &row, u64::MAX, None, &device.journal.asset(&hash).unwrap());
    let edit = Draft { changes: vec![DraftChange::Put(decision.edit.unwrap())], expect: vec![] };
    let shadow = Shadow { pending: Some(Row::default()), ..decision.shadow };
    let unmet = Draft { expect: vec![Expect::Alive(asset_key(&hash))], ..edit.clone() };
    let shadows = [(hash, shadow.clone())];
    let failed = device.journal.write_with_shadows(&[], &[unmet], &shadows, NOW_MS).unwrap();
    assert_eq!(failed, [Err(DraftError::Absent)]);
    assert_eq!(device.reader.shadow(&hash).unwrap(), None);
    let written = device.journal.write_with_shadows(&[], &[edit], &shadows, NOW_MS).unwrap();
    assert!(matches!(written[..], [Ok(Some(_))]));
    assert_eq!(device.reader.shadow(&hash).unwrap(), Some(shadow));
    let journal = device.reader.asset(&hash).unwrap();
    assert_eq!((journal.description.as_deref(), journal.trashed), (Some("mine"), Some(true)));
    assert!(journal.alive && journal.tags.contains("x"));
    let cursor = device.reader.cursor_now().unwrap().unwrap();
    device.journal.set_cursor("store", &cursor).unwrap();
    assert_eq!(device.reader.cursor("store").unwrap(), Some(cursor));
    device.fsck();
}

#[test]
fn what_is_brought_along_overwrites_nothing_also_what_comes_later() {
    let mut devices = Device::group(3);
    let [a, b, c] = &mut devices[..] else { unreachable!() };
    a.set("1", "f", 1);
    c.tag("1", "old", true);
    c.tag("1", "old", false);
    let mut fill = put("1");
    fill.set.insert("f".into(), Some(Value::Int(2)));
    fill.set.insert("g".into(), Some(Value::Int(2)));
    fill.add.extend([elem("old"), elem("new")]);
    let fill = Draft { changes: vec![DraftChange::Put(fill)], expect: vec![] };
    b.now_ms += 1000;
    let written = b.journal.write_with_shadows(&[fill], &[], &[], b.now_ms).unwrap();
    assert!(written.iter().all(std::result::Result::is_ok));
    assert_eq!(b.field("1", "f"), Some(2), "nothing else is known yet");
    sync(b, a);
    sync(b, c);
    sync(a, b);
    for device in [&mut *a, &mut *b] {
        let record = device.record("1").unwrap();
        assert_eq!(record.fields["f"], Some(Value::Int(1)));
        assert_eq!(record.fields["g"], Some(Value::Int(2)));
        assert_eq!(record.sets["tags"], BTreeSet::from(["new".to_owned()]));
        device.fsck();
    }
    // Later ops are stamped with the current time again.
    assert!(b.set("1", "f", 3).unwrap().stamp.hlc.ms() >= NOW_MS);
}

#[test]
fn a_scan_in_small_steps_sends_the_same_as_one() {
    let mut device = Device::founder();
    for n in 0..40 {
        device.set(&n.to_string(), "f", n);
    }
    let has = BTreeMap::new();
    let small = ScanLimits { ops: 3, bytes: 400, rows: 4 };
    let (mut cursor, mut sent) = (device.reader.scan_start(&has).unwrap(), Vec::new());
    loop {
        let scan = device.reader.scan(cursor, &has, small).unwrap();
        assert!(scan.ops.len() <= 3);
        assert!(scan.cursor > cursor || scan.drained.is_some());
        cursor = scan.cursor;
        sent.extend(scan.ops.into_iter().map(|(_, seq, _)| seq));
        if let Some(clock) = scan.drained {
            assert_eq!(clock.entries, device.clock().entries);
            break;
        }
    }
    assert_eq!(sent, (1..=41).collect::<Vec<_>>());
    let all = device.has();
    let start = device.reader.scan_start(&all).unwrap();
    let scan = device.reader.scan(start, &all, small).unwrap();
    assert!(scan.ops.is_empty() && scan.drained.is_some(), "nothing is looked through again");
}
