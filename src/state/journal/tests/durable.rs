//! Crashes, restarts, restored backups, full disks, damage.

use std::fs;
use std::path::Path;

use super::*;

/// Copies a database and its WAL as a crash would leave them.
pub(super) fn copy(from: &Path, to: &Path) {
    for name in ["journal.db", "journal.db-wal", "journal.db-shm"] {
        let (from, to) = (from.join(name), to.join(name));
        if name.ends_with("shm") {
            let _ = fs::remove_file(to);
        } else if from.exists() {
            fs::copy(from, to).unwrap();
        } else {
            let _ = fs::remove_file(to);
        }
    }
}

fn open_copy(of: &Device, into: &Path) -> Journal {
    Journal::open_as(&into.join("journal.db"), &of.identity, [99; 32], IDENT).unwrap()
}

type Action = fn(&mut Device, &mut Device);

const ACTIONS: [Action; 9] = [
    |a, _| drop(a.set("1", "f", 1)),
    |a, _| drop(a.tag("1", "red", true)),
    |a, _| drop(a.event("log")),
    |a, b| {
        b.set("2", "g", 2);
        sync(a, b);
    },
    |a, _| drop(a.tag("1", "red", false)),
    |a, _| assert!(!a.journal.prune(NOW_MS, 100).unwrap().more),
    |a, _| a.journal.restored().unwrap(),
    |a, b| drop(a.journal.remove(&b.id(), NOW_MS).unwrap()),
    |a, _| drop(a.delete("1")),
];

#[test]
fn a_crash_after_any_call_keeps_what_the_call_did() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    for action in ACTIONS {
        action(a, b);
        let crashed = tempfile::tempdir().unwrap();
        copy(a.dir.path(), crashed.path());
        let again = open_copy(a, crashed.path());
        assert_eq!(again.reader().unwrap().fsck().unwrap(), Vec::<String>::new());
        assert_eq!(again.reader().unwrap().check_signatures().unwrap(), Vec::<String>::new());
        let reader = again.reader().unwrap();
        assert_eq!(reader.clock().unwrap(), a.clock());
        assert_eq!(reader.stats().unwrap(), a.reader.stats().unwrap());
    }
}

#[test]
fn a_log_cut_anywhere_is_a_whole_journal_of_some_moment() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    for action in ACTIONS {
        action(a, b);
    }
    let wal = fs::read(a.dir.path().join("journal.db-wal")).unwrap();
    let mut seen = BTreeSet::new();
    for part in 0..=40 {
        let cut = tempfile::tempdir().unwrap();
        copy(a.dir.path(), cut.path());
        fs::write(cut.path().join("journal.db-wal"), &wal[..wal.len() * part / 40]).unwrap();
        let Ok(again) =
            Journal::open_as(&cut.path().join("journal.db"), &a.identity, [99; 32], IDENT)
        else {
            panic!("part {part} does not open");
        };
        assert_eq!(again.reader().unwrap().fsck().unwrap(), Vec::<String>::new(), "part {part}");
        let stats = again.reader().unwrap().stats().unwrap();
        assert!(stats.live_ops <= a.reader.stats().unwrap().live_ops + 8);
        seen.insert(stats.logs.iter().map(|log| log.seq).sum::<u64>());
    }
    assert!(seen.len() > 5, "only {seen:?}");
}

#[test]
fn nothing_of_a_call_is_there_when_it_did_not_end() {
    let mut devices = Device::group(2);
    let [a, _] = &mut devices[..] else { unreachable!() };
    a.set("1", "f", 1);
    let before = (a.clock(), a.cells(), a.reader.stats().unwrap());
    {
        let mut tx = a.journal.begin(NOW_MS).unwrap();
        let draft = Draft { changes: vec![DraftChange::Delete(put("1").key)], expect: vec![] };
        tx.write(&draft, None).unwrap().unwrap().unwrap();
        tx.begin_log().unwrap();
    }
    assert_eq!((a.clock(), a.cells(), a.reader.stats().unwrap()), before);
    let written = a.set("1", "f", 2).unwrap();
    assert_eq!(written.stamp.seq, before.0.entries.iter().map(|e| e.seq).max().unwrap() + 1);
    a.fsck();
}

#[test]
fn a_full_disk_is_said_and_half_of_nothing_is_done() {
    let mut device = Device::founder();
    let pages: i64 =
        device.journal.connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
    device.journal.connection.pragma_update(None, "max_page_count", pages + 3).unwrap();
    let large = |n: usize| {
        let mut put = put(&n.to_string());
        put.set.insert("f".into(), Some(Value::Bytes(vec![n as u8; 16_000])));
        Draft { changes: vec![DraftChange::Put(put)], expect: vec![] }
    };
    let drafts: Vec<_> = (0..8).map(large).collect();
    let before = (device.clock(), device.cells());
    let failed = device.journal.write(&drafts, NOW_MS).unwrap_err();
    assert!(matches!(failed, JournalError::DiskFull), "{failed:?}");
    assert_eq!((device.clock(), device.cells()), before);
    device.fsck();
    device.journal.connection.pragma_update(None, "max_page_count", 1_000_000).unwrap();
    let written = device.journal.write(&drafts, NOW_MS).unwrap();
    assert!(written.iter().all(std::result::Result::is_ok));
    device.fsck();
}

#[test]
fn stamps_and_numbers_rise_over_restarts_and_clocks_set_back() {
    let mut device = Device::founder();
    let mut last: Option<Stamp> = None;
    for back_ms in [0, 3_600_000, 0, 86_400_000, 5] {
        device.now_ms = NOW_MS - back_ms;
        let stamp = device.set("1", "f", 1).unwrap().stamp;
        assert!(last.is_none_or(|last| stamp > last && stamp.seq == last.seq + 1));
        last = Some(stamp);
        device.restart();
    }
    device.fsck();
}

#[test]
fn a_wall_clock_that_jumps_through_the_ages_breaks_no_order() {
    let mut device = Device::founder();
    let year_ms = 365 * 24 * 3_600_000;
    let mut last: Option<Stamp> = None;
    // The limits of signed and unsigned 32-bit seconds are days like others.
    for now_ms in [NOW_MS, NOW_MS - 3_600_000, NOW_MS + year_ms, i32::MAX as u64 * 1000 + 999]
        .into_iter()
        .chain([u64::from(u32::MAX) * 1000 + 1000, NOW_MS])
    {
        device.now_ms = now_ms;
        let stamp = device.set("1", "f", 1).unwrap().stamp;
        assert!(last.is_none_or(|last| stamp > last && stamp.seq == last.seq + 1));
        last = Some(stamp);
        device.restart();
    }
    for never_set_ms in [0, 1, 3_600_000] {
        let draft = Draft { changes: vec![DraftChange::Put(put("2"))], expect: vec![] };
        let refused = device.journal.write(&[draft], never_set_ms).unwrap().remove(0);
        assert_eq!(refused, Err(crate::core::journal::draft::DraftError::ClockNotSet));
    }
    device.now_ms = NOW_MS;
    assert!(device.set("1", "f", 2).unwrap().stamp > last.unwrap());
    device.fsck();
}

#[test]
fn another_file_than_before_gets_another_log() {
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity::from_bytes(&[1; 32]);
    let path = dir.path().join("journal.db");
    let epoch = |journal: &Journal| journal.reader().unwrap().cursor_now().unwrap().unwrap().epoch;
    let mut journal = Journal::open(&path, &identity, [1; 32]).unwrap();
    journal.found("one", NOW_MS).unwrap();
    let first = epoch(&journal);
    drop(journal);
    let journal = Journal::open(&path, &identity, [2; 32]).unwrap();
    assert_eq!(epoch(&journal), first, "a restart is no restore");
    drop(journal);
    let backup = dir.path().join("backup");
    fs::copy(&path, &backup).unwrap();
    fs::remove_file(&path).unwrap();
    fs::copy(&backup, &path).unwrap();
    let journal = Journal::open(&path, &identity, [3; 32]).unwrap();
    let second = epoch(&journal);
    assert_ne!(second, first);
    drop(journal);
    let mut journal = Journal::open(&path, &identity, [4; 32]).unwrap();
    assert_eq!(epoch(&journal), second);
    journal.restored().unwrap();
    assert_ne!(epoch(&journal), second, "or when the user says so");
    assert!(matches!(
        Journal::open(&path, &Identity::from_bytes(&[2; 32]), [5; 32]),
        Err(JournalError::OtherDevice(_))
    ));
}

#[test]
fn what_the_store_shows_is_no_edit_to_a_journal_put_back_from_a_backup() {
    use crate::core::attributes::Attributes;
    use crate::core::ids::Hash;
    use crate::core::journal::asset::{Row, written};
    let mut device = Device::founder();
    let hash = Hash([5; 32]);
    let shadow =
        written(&Row { description: "then".into(), ..Row::default() }, Attributes::default(), 7);
    device.journal.write_with_shadows(&[], &[], &[(hash, shadow.clone())], NOW_MS).unwrap();
    device.restart();
    assert_eq!(device.reader.shadow(&hash).unwrap(), Some(shadow));
    let path = device.dir.path().join("journal.db");
    let elsewhere = DbIdent { inode: 77, ..IDENT };
    let journal = Journal::open_as(&path, &device.identity, [9; 32], elsewhere).unwrap();
    assert!(journal.shadow(&hash).unwrap().unwrap().is_forgotten());
}

#[test]
fn a_file_system_mounted_under_another_number_is_no_restored_backup() {
    let mut device = Device::founder();
    let path = device.dir.path().join("journal.db");
    let seed = std::cell::Cell::new(9);
    let open = |ident| {
        seed.set(seed.get() + 1);
        let journal = Journal::open_as(&path, &device.identity, [seed.get(); 32], ident).unwrap();
        journal.reader().unwrap().cursor_now().unwrap().unwrap().epoch
    };
    let log = open(IDENT);
    assert_eq!(open(DbIdent { device: 77, ..IDENT }), log);
    let newer = DbIdent { born_ns: 78, ..IDENT };
    let restored = open(newer);
    assert_ne!(restored, log);
    // Without a birth time only the inode number is left.
    let undated = DbIdent { born_ns: 0, ..IDENT };
    let undated_log = open(undated);
    assert!(undated_log != restored && undated_log == open(undated));
    assert_ne!(open(DbIdent { device: 77, ..undated }), undated_log);
    device.restart();
    device.fsck();
}

#[test]
fn a_database_that_another_program_holds_locked_is_busy_and_nothing_is_lost() {
    let mut device = Device::founder();
    let other = Connection::open(device.dir.path().join("journal.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    device.journal.connection.busy_timeout(std::time::Duration::ZERO).unwrap();
    let draft = Draft { changes: vec![DraftChange::Put(put("1"))], expect: vec![] };
    let refused = device.journal.write(std::slice::from_ref(&draft), NOW_MS);
    assert!(matches!(refused, Err(JournalError::Busy)), "{refused:?}");
    other.execute_batch("ROLLBACK").unwrap();
    device.journal.write(&[draft], NOW_MS).unwrap().remove(0).unwrap();
    device.fsck();
}

#[test]
fn a_file_that_is_no_database_any_more_is_damaged_beyond_writing_on() {
    let device = Device::new(1);
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("journal.db"), [7; 8192]).unwrap();
    let path = elsewhere.path().join("journal.db");
    let opened = Journal::open_as(&path, &device.identity, [9; 32], IDENT);
    assert!(matches!(opened, Err(JournalError::Corrupt(_))), "{opened:?}");
}

#[test]
fn planted_damage_is_found() {
    let plants = [
        "UPDATE ops SET refs = refs + 1 WHERE arr = (SELECT max(arr) FROM ops)",
        "UPDATE logs SET seq = seq - 1 WHERE seq > 1",
        "UPDATE logs SET head = zeroblob(32) WHERE seq > 0",
        "UPDATE logs SET bytes = bytes + 1",
        "UPDATE logs SET above = x'01010101010101010101010101010101'",
        "UPDATE meta SET v = x'01010101010101010101010101010101' WHERE k = 'digest'",
        "UPDATE meta SET v = x'0000000000000001' WHERE k = 'hlc_max'",
        "UPDATE cells SET value = x'020000000000000000' WHERE field = 'f'",
        "DELETE FROM cells WHERE field = 'f'",
        "DELETE FROM events",
        "DELETE FROM streams",
        "UPDATE streams SET next = 0",
        "DELETE FROM members WHERE kind = 1",
        "UPDATE records SET alive = 1 - alive",
        "DELETE FROM records",
        "UPDATE ops SET body = x'00' WHERE arr = (SELECT max(arr) FROM ops)",
        "DELETE FROM ops WHERE arr = (SELECT max(arr) FROM ops)",
        "UPDATE ops SET hlc = hlc + 1 WHERE arr = (SELECT max(arr) FROM ops)",
        "UPDATE ops SET opaque = 1 WHERE arr = (SELECT max(arr) FROM ops)",
    ];
    for plant in plants {
        let mut device = Device::founder();
        device.journal.add(&NodeId([9; 32]), "nine", NOW_MS).unwrap();
        device.event("log");
        device.set("1", "f", 7);
        device.fsck();
        let changed = device.journal.connection.execute(plant, []).unwrap();
        assert!(changed > 0, "{plant}");
        let found = device.reader.fsck();
        assert!(found.is_err() || !found.unwrap().is_empty(), "{plant}: not found");
    }
    let device = Device::founder();
    let plant = "UPDATE ops SET sig = zeroblob(64)";
    device.journal.connection.execute(plant, []).unwrap();
    assert_eq!(device.reader.check_signatures().unwrap().len(), 1);
}

#[test]
fn ops_of_a_wrong_clock_are_written_anew_and_nothing_is_lost() {
    let year_ms = 365 * 24 * 3_600_000;
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    b.tag("1", "theirs", true);
    b.set("2", "f", 1);
    sync(a, b);
    a.event("log");
    sync(a, b);
    a.now_ms += year_ms;
    a.set("1", "f", 1);
    a.tag("1", "mine", true);
    a.tag("1", "gone", true);
    a.tag("1", "gone", false);
    a.tag("1", "theirs", false);
    a.delete("2");
    a.event("log");
    let state = |device: &Device| {
        let record = device.record("1").unwrap();
        (record.fields, record.sets, device.record("2").is_some())
    };
    let before = state(a);
    assert!(push(a, b).iter().all(|r| matches!(r.why, RefusedWhy::Future { .. })));
    a.now_ms = NOW_MS;
    b.now_ms += 1;
    let old = a.open_log();
    let Rebased::Done { ops, log } = a.journal.rebase(NOW_MS).unwrap() else { panic!() };
    assert!(ops == 7 && log != old);
    assert_eq!(state(a), before);
    a.fsck();
    assert_eq!(push(a, b), vec![]);
    sync(a, b);
    assert_eq!(state(b), before);
    assert_eq!(a.digest(), b.digest());
    assert_eq!(a.journal.rebase(NOW_MS).unwrap(), Rebased::Nothing);
    b.fsck();
    a.restart();
    assert_eq!(a.journal.rebase(NOW_MS).unwrap(), Rebased::Nothing);
}

#[test]
fn a_clock_that_goes_back_claims_nothing_of_what_was_taken_out() {
    let mut device = Device::founder();
    device.set("1", "f", 0);
    let (old, before) = (device.open_log(), device.has());
    device.now_ms += 24 * 3_600_000;
    (1..4).for_each(|n| drop(device.set("1", "f", n)));
    let late_ms = device.now_ms + crate::core::limits::DEAD_OP_KEPT_MS + 1;
    assert!(device.journal.prune(late_ms, 100).unwrap().ops > 0);
    device.now_ms = NOW_MS;
    assert!(matches!(device.journal.rebase(NOW_MS).unwrap(), Rebased::Done { ops: 1, .. }));
    assert!(device.has().get(&old).is_none_or(|seq| *seq <= before[&old]));
    assert_eq!(device.field("1", "f"), Some(3));
    device.fsck();
}

#[test]
fn what_was_brought_along_after_an_op_of_a_wrong_clock_stays_and_is_summed() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    a.now_ms += 24 * 3_600_000;
    a.set("1", "f", 1);
    let mut brought = put("2");
    brought.set.insert("f".into(), Some(Value::Int(2)));
    let fill = Draft { changes: vec![DraftChange::Put(brought)], expect: vec![] };
    a.journal.write_with_shadows(&[fill], &[], &[], a.now_ms).unwrap().remove(0).unwrap();
    a.now_ms = NOW_MS;
    assert!(matches!(a.journal.rebase(NOW_MS).unwrap(), Rebased::Done { ops: 1, .. }));
    a.fsck();
    b.now_ms += 1;
    sync(a, b);
    assert_eq!((b.field("1", "f"), b.field("2", "f")), (Some(1), Some(2)));
    assert_eq!(a.clock(), b.clock());
}

#[test]
fn a_removal_written_anew_removes_although_its_add_was_dropped() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    b.tag("1", "red", true);
    sync(a, b);
    a.now_ms += 24 * 3_600_000;
    a.tag("1", "red", true);
    a.tag("1", "red", false);
    let late_ms = a.now_ms + crate::core::limits::DEAD_OP_KEPT_MS + 1;
    a.tag("1", "blue", true);
    a.journal.prune(late_ms, 100).unwrap();
    a.now_ms = NOW_MS;
    assert!(matches!(a.journal.rebase(NOW_MS).unwrap(), Rebased::Done { .. }));
    b.now_ms += 1;
    sync(a, b);
    let tags = |device: &Device| device.record("1").unwrap().sets["tags"].clone();
    assert_eq!((tags(a), tags(b)), (["blue".into()].into(), ["blue".into()].into()));
    a.fsck();
    b.fsck();
}

#[test]
fn what_a_later_version_wrote_cannot_be_written_anew() {
    let mut device = Device::founder();
    device.now_ms += 24 * 3_600_000;
    let seq = device.has()[&device.open_log()] + 1;
    device.event("log");
    let op = device.ops().into_iter().find(|op| op.body().seq == seq).unwrap();
    let body = [&op.signed().body[..], &[0x22, 4, 0xea, 4, 1, 0]].concat();
    let sql = "UPDATE ops SET opaque = 1, body = ?1 WHERE seq = ?2";
    device.journal.connection.execute(sql, (body, seq as i64)).unwrap();
    let before = (device.clock(), device.cells());
    assert!(matches!(device.journal.rebase(NOW_MS), Err(JournalError::Unreadable)));
    assert_eq!((device.clock(), device.cells()), before);
}

#[test]
fn nothing_is_written_anew_when_it_is_our_clock_that_is_slow() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    let day_ms = 24 * 3_600_000;
    a.now_ms += day_ms;
    b.now_ms += day_ms;
    a.set("1", "f", 1);
    sync(a, b);
    assert_eq!(a.journal.rebase(NOW_MS).unwrap(), Rebased::OurClockIsSlow, "acknowledged");
    b.set("1", "f", 2);
    a.set("3", "f", 2);
    push(b, a);
    assert_eq!(a.journal.rebase(NOW_MS).unwrap(), Rebased::OurClockIsSlow, "others too");
    a.fsck();
}

#[test]
fn after_an_orderly_end_the_main_file_alone_is_the_journal() {
    let mut device = Device::founder();
    device.set("1", "f", 7);
    let (clock, identity) = (device.clock(), device.identity.clone());
    let Device { journal, reader, dir, .. } = device;
    journal.close().unwrap();
    assert_eq!(fs::metadata(dir.path().join("journal.db-wal")).map_or(0, |file| file.len()), 0);
    drop(reader);
    let elsewhere = tempfile::tempdir().unwrap();
    let copy = elsewhere.path().join("journal.db");
    fs::copy(dir.path().join("journal.db"), &copy).unwrap();
    let again = Journal::open_as(&copy, &identity, [5; 32], IDENT).unwrap();
    assert_eq!(again.reader().unwrap().clock().unwrap(), clock);
}

#[test]
fn a_clock_that_jumps_ahead_drops_no_event_that_others_have_not_got() {
    const YEAR_MS: u64 = 365 * 24 * 3_600_000;
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    let mut days = put("log");
    days.key.model = crate::core::journal::op::STREAM_MODEL.into();
    days.set.insert(crate::core::journal::op::KEEP_DAYS.into(), Some(Value::Int(7)));
    a.write(vec![DraftChange::Put(days)]);
    sync(a, b);
    a.event("log");
    b.event("log");
    let count = |device: &Device| device.reader.events("log", (0, 0), 9).unwrap().events.len();
    // Both what it has and nobody else, and what it receives.
    b.now_ms += YEAR_MS;
    while b.journal.prune(b.now_ms, 100).unwrap().more {}
    push(a, b);
    assert_eq!(count(b), 2);
    push(b, a);
    assert_eq!(count(a), 2);
    // When other devices' clocks also say that a year has passed, it has.
    a.now_ms += YEAR_MS;
    a.set("1", "f", 1);
    sync(a, b);
    while b.journal.prune(b.now_ms, 100).unwrap().more {}
    assert_eq!(count(b), 0);
    b.fsck();
}
