//! Bounds on what a member makes others store: quotas, logs, branches, large records.

use super::hostile::{body, now};
use super::*;
use crate::core::ids::Hash;
use crate::core::journal::asset::{JournalRow, TAGS, asset_key};
use crate::core::journal::device_events::DeviceState;
use crate::core::journal::stamp::Hlc;
use crate::core::limits::{
    ASSET_TAGS_BYTES_MAX, AUTHORS_MAX, BRANCHES_MAX, CELL_BYTES, LOGS_PER_AUTHOR_MAX,
    RECORD_BYTES_MAX,
};

#[test]
fn an_author_over_its_quota_is_refused_and_its_dead_ops_make_room() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    for n in 0..10 {
        a.set("same", "f", n);
    }
    sync(a, b);
    let used = |device: &Device, by: NodeId| -> u64 {
        let logs = device.reader.stats().unwrap().logs;
        logs.iter().filter(|log| log.author == by).map(|log| log.bytes).sum()
    };
    let limit = used(b, a.id()) + 10;
    b.set_quota(&a.id(), Some(limit));
    for n in 0..5 {
        a.set(&format!("other {n}"), "f", n);
    }
    assert_eq!(push(a, b), vec![], "the dead ones made room");
    assert!(used(b, a.id()) <= limit);
    for n in 5..40 {
        a.set(&format!("other {n}"), "f", n);
    }
    let refused = push(a, b);
    assert!(!refused.is_empty() && refused.iter().all(|r| r.why == RefusedWhy::Quota));
    assert!(used(b, a.id()) <= limit);
    b.fsck();
    b.set_quota(&a.id(), None);
    assert_eq!(push(a, b), vec![]);
    assert_eq!(a.digest(), b.digest());
}

#[test]
fn an_author_has_a_bounded_number_of_logs() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    let group = a.group_id();
    let ops: Vec<_> = (0..=255_u8)
        .map(|n| craft(&a.identity, &group, n, body(1, None, Hlc(now().0 + u64::from(n)), 1)))
        .collect();
    let received = b.journal.receive(&a.id(), &ops, NOW_MS).unwrap();
    let room = LOGS_PER_AUTHOR_MAX - 1;
    assert_eq!((received.applied, received.refused.len()), (room, ops.len() - room));
    assert!(received.refused.iter().all(|refused| refused.why == RefusedWhy::Quota));
}

#[test]
fn a_device_begins_no_more_logs_than_others_take_of_it_and_opens_all_the_same() {
    let mut device = Device::founder();
    for n in 1..LOGS_PER_AUTHOR_MAX {
        device.journal.restored().unwrap();
        device.set("1", "f", n as i64);
    }
    assert!(!device.journal.roster().is_out_of_logs());
    device.journal.restored().unwrap();
    assert!(device.journal.roster().is_out_of_logs());
    let draft = || Draft { changes: vec![DraftChange::Put(put("2"))], expect: vec![] };
    let refused = device.journal.write(&[draft()], NOW_MS);
    assert!(matches!(refused, Err(JournalError::UsedUp { .. })), "{refused:?}");
    device.restart();
    assert!(device.journal.roster().is_out_of_logs());
    assert_eq!(device.field("1", "f"), Some(LOGS_PER_AUTHOR_MAX as i64 - 1));
    device.fsck();
}

#[test]
fn a_copied_file_costs_a_log_only_when_something_is_written() {
    let mut device = Device::founder();
    let path = device.dir.path().join("journal.db");
    for n in 0..3 * LOGS_PER_AUTHOR_MAX as u64 {
        let other = DbIdent { inode: 100 + n, ..IDENT };
        device.journal = Journal::open_as(&path, &device.identity, [9; 32], other).unwrap();
    }
    device.set("1", "f", 1);
    assert_eq!(device.reader.logs().unwrap().len(), 2);
    // Logs that an earlier version began and never wrote are dropped to make room.
    let dev: i64 =
        device.journal.connection.query_row("SELECT dev FROM logs", [], |row| row.get(0)).unwrap();
    for n in 2..LOGS_PER_AUTHOR_MAX as u8 {
        let empty = "INSERT INTO logs (log_id, dev, nonce, seq, forked, above, bytes)
                     VALUES (?1, ?2, ?1, 0, 0, x'', 0)";
        device.journal.connection.execute(empty, rusqlite::params![[n; 16], dev]).unwrap();
    }
    device.journal.restored().unwrap();
    device.set("1", "f", 2);
    assert_eq!(device.reader.logs().unwrap().len(), 3);
    device.fsck();
}

#[test]
fn of_many_ops_of_one_number_all_devices_keep_the_same_few() {
    let mut devices = Device::group(3);
    let [a, b, c] = &mut devices[..] else { unreachable!() };
    b.set("1", "f", 99);
    sync(a, b);
    sync(a, c);
    let evil = Identity::from_bytes(&[3; 32]);
    let group = a.group_id();
    let first = craft(&evil, &group, 7, body(1, None, now(), 1));
    let twin = |n: i64| {
        let hlc = Hlc(now().0 + 1 + u64::try_from(n).unwrap());
        craft(&evil, &group, 7, body(2, Some(first.hash()), hlc, n))
    };
    let mut twins: Vec<_> = (0..3 * BRANCHES_MAX as i64).map(twin).collect();
    let mut orders = vec![twins.clone()];
    twins.reverse();
    orders.push(twins.clone());
    twins.sort_by_key(|op| op.hash().0);
    orders.push(twins.clone());
    let mut ends = Vec::new();
    for (device, order) in [&mut *a, &mut *b, &mut *c].into_iter().zip(orders) {
        device.journal.receive(&evil.node_id, std::slice::from_ref(&first), NOW_MS).unwrap();
        for ops in order.chunks(7) {
            let received = device.journal.receive(&evil.node_id, ops, NOW_MS).unwrap();
            assert_eq!(received.refused, vec![]);
            device.fsck();
        }
        while device.journal.prune(NOW_MS, 10).unwrap().more {}
        device.fsck();
        let held = |op: &&VerifiedOp| device.ops().contains(op);
        let kept: Vec<_> = twins.iter().filter(held).map(VerifiedOp::hash).collect();
        let least: Vec<_> = twins[..BRANCHES_MAX].iter().map(VerifiedOp::hash).collect();
        assert_eq!(kept, least);
        ends.push((device.cells(), device.live(), device.digest()));
    }
    assert_eq!(ends[0], ends[1]);
    assert_eq!(ends[0], ends[2]);
    let kept: Vec<_> = a.ops();
    assert_eq!(a.cells(), model(&kept), "what was dropped has left nothing behind");
}

/// Counts the rows that statements step over as work, because measuring time would make this test
/// flaky.
#[test]
fn another_op_of_a_number_costs_no_more_when_there_were_many() {
    let mut device = Device::founder();
    let evil = Identity::from_bytes(&[3; 32]);
    let group = device.group_id();
    device.journal.add(&evil.node_id, "evil", NOW_MS).unwrap();
    let from = device.id();
    let mut held = Vec::new();
    for round in 0..4_u64 {
        let twins: Vec<_> = (0..256)
            .map(|n| craft(&evil, &group, 7, body(1, None, Hlc(now().0 + 256 * round + n), 1)))
            .collect();
        device.journal.receive(&from, &twins, NOW_MS).unwrap();
        let log = twins[0].log();
        held.push(device.reader.hashes_at(&log, 1).unwrap().len());
    }
    assert_eq!(held, [BRANCHES_MAX; 4]);
    device.fsck();
}

#[test]
fn devices_that_a_member_invents_take_no_log_from_those_that_were_there_before() {
    let mut devices = Device::group(3);
    let [a, b, c] = &mut devices[..] else { unreachable!() };
    a.set("1", "f", 1);
    sync(a, c);
    let invented: Vec<Identity> =
        (0..AUTHORS_MAX as u8).map(|n| Identity::from_bytes(&[n + 100; 32])).collect();
    for device in &invented {
        b.journal.add(&device.node_id, "x", NOW_MS).unwrap();
    }
    push(b, c);
    let group = c.group_id();
    let ops: Vec<_> =
        invented.iter().map(|by| craft(by, &group, 7, body(1, None, now(), 1))).collect();
    let received = c.journal.receive(&b.id(), &ops, NOW_MS).unwrap();
    assert_eq!(received.applied, AUTHORS_MAX - 3, "those of the three are there");
    assert!(received.refused.iter().all(|refused| refused.why == RefusedWhy::Quota));
    a.journal.restored().unwrap();
    a.set("2", "f", 2);
    assert_eq!(push(a, c), vec![], "another log of a device that had one");
    assert_eq!(c.field("2", "f"), Some(2));
}

/// Fills a record with fields of 16 KB.
fn fill(device: &mut Device, key: &Key, fields: std::ops::Range<usize>) {
    let value = Value::Bytes(vec![7; 15_000]);
    for field in fields {
        let set = BTreeMap::from([(format!("f{field}"), Some(value.clone()))]);
        device.write(vec![DraftChange::Put(DraftPut { key: key.clone(), set, ..put("") })]);
    }
}

#[test]
fn a_record_larger_than_is_read_is_told_without_what_is_in_it() {
    let mut device = Device::founder();
    let fields = RECORD_BYTES_MAX / 15_000 - 1;
    fill(&mut device, &put("1").key, 0..fields);
    let record = device.record("1").unwrap();
    assert!(!record.is_too_large && record.fields.len() == fields);
    fill(&mut device, &put("1").key, fields..fields + 3);
    device.tag("1", "red", true);
    let record = device.record("1").unwrap();
    assert!(record.is_too_large && record.fields.is_empty() && record.sets.is_empty());
    assert_eq!(record.arr, device.ops().len() as u64, "whoever watches hears of it");
    device.delete("1");
    fill(&mut device, &put("1").key, 0..1);
    let record = device.record("1").unwrap();
    assert!(!record.is_too_large && record.fields.len() == 1);
    device.fsck();
}

#[test]
fn a_page_of_large_records_is_closed_early_and_the_next_goes_on() {
    let mut device = Device::founder();
    let fields = RECORD_BYTES_MAX / 15_000 - 1;
    let ids = ["1", "2", "3", "4", "5", "6", "7"];
    ids.iter().for_each(|id| fill(&mut device, &put(id).key, 0..fields));
    let (mut after, mut since) = (None, None);
    let (mut listed, mut changed) = (Vec::new(), Vec::new());
    loop {
        let owner = Some(Owner::Shared);
        let page = device.reader.records("note", owner, b"", after.as_ref(), 100).unwrap();
        assert!(page.records.len() < ids.len());
        listed.extend(page.records.into_iter().map(|record| record.id));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    loop {
        let page = device.reader.changes(Some("note"), since.as_ref(), 100).unwrap().unwrap();
        assert!(page.changes.len() < ids.len());
        changed.extend(page.changes.into_iter().map(|change| change.id));
        since = Some(page.cursor);
        if !page.more {
            break;
        }
    }
    assert_eq!(listed, ids.map(|id| id.as_bytes().to_vec()));
    assert_eq!(changed, listed);
}

#[test]
fn of_what_a_device_tells_of_itself_only_the_fields_that_count_are_read() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    let state = DeviceState { name: "bed".into(), ..DeviceState::default() };
    b.write(vec![DraftChange::Put(state.put_over(None).unwrap())]);
    fill(b, &DeviceState::key(), 0..3);
    sync(a, b);
    // A damaged field that is not read causes no error.
    let plant = "UPDATE cells SET value = x'09' WHERE field = 'f1'";
    assert_eq!(a.journal.connection.execute(plant, []).unwrap(), 1);
    let members = a.reader.group_state(&a.id()).unwrap().unwrap().members.members;
    assert_eq!(members.iter().filter(|member| member.name == "bed").count(), 1);
    let fields = a.reader.device_fields(&b.id()).unwrap().unwrap();
    assert_eq!(fields, state.fields());
    assert_eq!(a.reader.device_fields(&a.id()).unwrap(), None);
}

#[test]
fn of_an_asset_with_tags_without_end_none_is_read() {
    let mut device = Device::founder();
    let hash = Hash([5; 32]);
    let text = "x".repeat(200);
    let fits = ASSET_TAGS_BYTES_MAX / (text.len() + 4 + CELL_BYTES);
    let mut tag = |tags: std::ops::Range<usize>| {
        for first in tags.clone().step_by(100) {
            let tags = first..(first + 100).min(tags.end);
            let add = tags.map(|n| Elem { field: TAGS.into(), elem: format!("{n:04}{text}") });
            let put = DraftPut { key: asset_key(&hash), add: add.collect(), ..put("") };
            device.write(vec![DraftChange::Put(put)]);
        }
        device.reader.asset(&hash).unwrap()
    };
    let row = tag(0..fits);
    assert!(!row.is_too_large && row.alive && row.tags.len() == fits);
    let row = tag(fits..fits + 1);
    assert!(row.is_too_large && row.tags.is_empty());
    device.write(vec![DraftChange::Delete(asset_key(&hash))]);
    assert_eq!(device.reader.asset(&hash).unwrap(), JournalRow::default());
    device.fsck();
}

#[test]
fn a_delete_takes_away_all_cells_of_a_large_record_but_later_ones() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    for n in 0..10 {
        let mut put = put("1");
        put.add = (0..90).map(|m| elem(&format!("{n}-{m}"))).collect();
        put.set.insert(format!("f{n}"), None);
        a.write(vec![DraftChange::Put(put)]);
    }
    push(a, b);
    b.delete("1");
    // The delete has not seen this add, which is later.
    a.now_ms += 10;
    a.tag("1", "5-later", true);
    sync(a, b);
    sync(a, b);
    for device in [&mut *a, &mut *b] {
        let record = device.record("1").unwrap();
        assert_eq!(record.sets["tags"], ["5-later".to_owned()].into());
        assert!(record.fields.is_empty());
        device.fsck();
    }
    assert_eq!(a.digest(), b.digest());
}
