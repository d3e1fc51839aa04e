//! Versions of paths: what is written, what loses, and what becomes of it.

use super::*;
use crate::core::folder::names::conflict_path;
use crate::core::folder::path::FolderPath;
use crate::core::folder::resolve::{make_way, may_be_forgotten};
use crate::core::folder::version::{Content, ShortId, Vector, Version};
use crate::core::folder::{FILE_MODEL, FILE_VERSION, file_id, history_stream};
use crate::core::ids::{FolderId, Hash};
use crate::core::limits::OP_CHANGES_MAX;
use crate::state::journal::superseded::HISTORY_WAIT_MS;
use crate::wire::folder::{version_from_bytes, version_to_bytes};

const FOLDER: FolderId = FolderId([0xf0; 16]);

fn path(text: &str) -> FolderPath {
    FolderPath::from_text(text).unwrap()
}

fn file(n: u8) -> Content {
    let size_bytes = n.into();
    Content::File { hash: Hash([n; 32]), size_bytes, modified_ms: 7, is_executable: false }
}

/// A change of `at` that contains `base`.
fn change(at: &str, content: Content, base: Option<&Version>) -> FileChange {
    let vector = base.map_or_else(Vector::default, |base| base.vector.clone());
    let version = Version { path: path(at), content, vector, device_name: String::new() };
    FileChange { before: base.filter(|base| !base.is_absent()).cloned(), version, is_undo: false }
}

fn key(at: &str) -> Key {
    Key { model: FILE_MODEL.into(), id: file_id(FOLDER, path(at).key()).to_vec(), owned: false }
}

impl Device {
    fn files(&mut self, changes: Vec<FileChange>) -> Vec<Version> {
        self.now_ms += 1;
        let stamping = Stamping::AsChanges;
        self.journal.write_files(FOLDER, changes, stamping, self.now_ms).unwrap().unwrap()
    }

    /// Changes a path as a user does who sees what the journal has.
    fn edit(&mut self, at: &str, content: Content) -> Version {
        let base = self.version(at);
        self.files(vec![change(at, content, base.as_ref())]).remove(0)
    }

    fn version(&self, at: &str) -> Option<Version> {
        let rows = self.reader.versions_at(FOLDER, &[path(at)]).unwrap();
        rows.into_iter().flatten().next().map(|row| row.version)
    }

    fn content(&self, at: &str) -> Option<Content> {
        self.version(at).map(|version| version.content)
    }

    fn resolve(&mut self) -> Resolved {
        let mut all = Resolved::default();
        loop {
            let resolved = self.journal.resolve_superseded(3, self.now_ms).unwrap().unwrap();
            all.versions += resolved.versions;
            all.ops += resolved.ops;
            if resolved.versions == 0 {
                return all;
            }
        }
    }

    fn history(&self, at: &str) -> Vec<Content> {
        let page = self.reader.file_history(FOLDER, Some(path(at).key()), 0, None, 100).unwrap();
        page.entries.into_iter().map(|entry| entry.version.content).collect()
    }

    fn superseded(&self) -> u64 {
        let count = "SELECT count(*) FROM superseded";
        self.journal.connection.query_row(count, [], |row| schema::row_u64(row, 0)).unwrap()
    }

    /// Writes raw bytes into the cell of a path, as a careless or hostile member can.
    fn raw(&mut self, at: &str, value: Value) {
        self.now_ms += 1;
        let mut put = put("");
        put.key = key(at);
        put.set.insert(FILE_VERSION.into(), Some(value));
        self.write(vec![DraftChange::Put(put)]);
    }
}

/// Syncs and resolves until nothing happens any more. Returns the ops that resolving wrote.
fn quiet(devices: &mut [Device]) -> usize {
    let mut ops = 0;
    for _ in 0..20 {
        sync_all(devices);
        let wrote: usize = devices.iter_mut().map(|device| device.resolve().ops).sum();
        ops += wrote;
        if wrote == 0 {
            for device in devices.iter_mut() {
                device.fsck();
            }
            let first = devices[0].cells();
            assert!(devices.iter().all(|device| device.cells() == first));
            return ops;
        }
    }
    panic!("it does not become quiet");
}

#[test]
fn a_version_is_read_back_with_the_counter_and_the_name_of_its_writer() {
    let mut device = Device::founder();
    let written = device.edit("a/b.txt", file(1));
    let read = device.version("a/b.txt").unwrap();
    assert_eq!(read, written);
    assert_eq!(read.device_name, "one");
    let (author, _) = read.vector.newest().unwrap();
    assert_eq!(author, ShortId::from(&device.id()));
    assert_eq!(read.written_at_ms(), device.now_ms);
    let row = device.reader.versions_at(FOLDER, &[path("a/b.txt")]).unwrap().remove(0).unwrap();
    assert_eq!((row.device, row.changed_at_ms), (device.id(), device.now_ms));
    assert_eq!(device.version("a/c.txt"), None);
    device.edit("a/b.txt", Content::Absent);
    assert_eq!(device.content("a/b.txt"), Some(Content::Absent));
    assert_eq!(device.history("a/b.txt"), [file(1)]);
    assert_eq!(device.resolve(), Resolved::default(), "its author wrote the event");
}

#[test]
fn of_two_edits_made_apart_the_later_keeps_the_name_and_the_other_is_kept_beside_it() {
    let mut devices = Device::group(3);
    devices[0].edit("plan", file(1));
    quiet(&mut devices);
    devices[0].now_ms += 10_000;
    let lost = devices[1].edit("plan", file(2));
    devices[0].edit("plan", file(3));
    let ops = quiet(&mut devices);
    assert!((1..=3).contains(&ops), "each device writes the copy at most once: {ops}");
    for device in &devices {
        assert_eq!(device.content("plan"), Some(file(3)));
        let copy = device.version(&conflict_path(&lost).to_text()).unwrap();
        assert_eq!((copy.content, copy.vector), (lost.content.clone(), lost.vector.clone()));
        assert_eq!(device.history("plan"), [file(2), file(1)], "what was at the name");
        assert_eq!(device.superseded(), 0);
    }
}

#[test]
fn a_version_that_lost_is_resolved_after_a_crash_and_only_once() {
    let mut devices = Device::group(2);
    let lost = devices[1].edit("plan", file(2));
    devices[0].now_ms += 10_000;
    devices[0].edit("plan", file(3));
    sync_all(&mut devices);
    assert_eq!(devices[0].superseded(), 1, "refused here");
    assert_eq!(devices[1].superseded(), 1, "replaced there");
    for device in &mut devices {
        device.restart();
    }
    // The first one never comes back.
    let mut alone = devices.remove(1);
    alone.resolve();
    assert_eq!(alone.content(&conflict_path(&lost).to_text()), Some(file(2)));
    alone.restart();
    assert_eq!(alone.resolve(), Resolved::default());
}

#[test]
fn a_version_is_kept_that_arrives_after_the_one_that_wins_and_whose_op_is_dead() {
    let mut devices = Device::group(3);
    let lost = devices[1].edit("plan", file(2));
    devices[0].now_ms += 10_000;
    devices[0].edit("plan", file(3));
    let [first, second, third] = &mut devices[..] else { panic!() };
    push(first, third);
    second.edit("other", file(9));
    push(second, third);
    let is_plan =
        |change: &OpChange| matches!(change, OpChange::Put(put) if put.key == key("plan"));
    let live = third.live();
    let holds =
        |op: &VerifiedOp| live.contains(&op.hash().0) && op.body().changes.iter().any(is_plan);
    assert_eq!(third.ops().iter().filter(|op| holds(op)).count(), 1, "the other is dead");
    third.resolve();
    assert_eq!(third.content(&conflict_path(&lost).to_text()), Some(file(2)));
}

#[test]
fn an_edit_wins_over_a_removal_that_had_not_seen_it() {
    for edit_is_later in [false, true] {
        let mut devices = Device::group(2);
        devices[0].edit("plan", file(1));
        quiet(&mut devices);
        devices[usize::from(edit_is_later)].now_ms += 10_000;
        devices[0].edit("plan", Content::Absent);
        devices[1].edit("plan", file(2));
        quiet(&mut devices);
        for device in &devices {
            assert_eq!(device.content("plan"), Some(file(2)), "{edit_is_later}");
        }
    }
}

#[test]
fn equal_trees_brought_by_two_devices_make_no_conflict_and_become_quiet() {
    let mut devices = Device::group(2);
    for device in &mut devices {
        let files = (0..100).map(|n| change(&format!("f{n}"), file(n), None)).collect();
        device.files(files);
    }
    quiet(&mut devices);
    let page = devices[0].reader.versions(FOLDER, None, 1000).unwrap();
    assert_eq!(page.rows.len(), 100);
    assert!(page.rows.iter().all(|row| row.version.vector.0.len() == 2), "both are in each");
}

#[test]
fn a_record_of_a_file_that_a_member_deletes_comes_back_with_edits_that_arrive_late() {
    let mut devices = Device::group(3);
    devices[0].edit("kept", file(1));
    devices[0].edit("edited", file(2));
    quiet(&mut devices);
    devices[2].edit("edited", file(3));
    devices[2].edit("new", file(4));
    devices[1].now_ms += 10_000;
    let deleted = ["kept", "edited", "new"].map(|at| DraftChange::Delete(key(at)));
    for delete in deleted {
        devices[1].write(vec![delete]);
    }
    let [first, second, _] = &mut devices[..] else { panic!() };
    sync(first, second);
    assert_eq!(first.version("kept"), None, "for a moment");
    quiet(&mut devices);
    for device in &devices {
        for (at, n) in [("kept", 1), ("edited", 3), ("new", 4)] {
            assert_eq!(device.content(at), Some(file(n)), "{at}");
        }
    }
}

#[test]
fn what_is_no_version_is_ignored_and_takes_the_place_of_none() {
    let mut devices = Device::group(2);
    let good = devices[0].edit("plan", file(1));
    quiet(&mut devices);
    let mut other = good.clone();
    other.path = path("elsewhere");
    for value in [
        Value::Text("garbage".into()),
        Value::Int(7),
        Value::Bytes(vec![]),
        Value::Bytes(vec![0xff; 100]),
        Value::Bytes(version_to_bytes(&good)[..20].to_vec()),
        Value::Bytes(version_to_bytes(&other)),
    ] {
        devices[1].now_ms += 10_000;
        devices[1].raw("plan", value.clone());
        sync_all(&mut devices);
        assert_eq!(devices[0].version("plan"), None, "for a moment: {value:?}");
        quiet(&mut devices);
        assert_eq!(devices[0].version("plan").unwrap(), good, "{value:?}");
        // Where there was nothing there is nothing.
        devices[1].raw("fresh", value);
        quiet(&mut devices);
        assert_eq!(devices[0].version("fresh"), None);
    }
    let mut odd = put("");
    odd.key = Key { id: b"no path".to_vec(), ..key("plan") };
    odd.set.insert(FILE_VERSION.into(), Some(Value::Bytes(version_to_bytes(&good))));
    devices[1].write(vec![DraftChange::Put(odd)]);
    quiet(&mut devices);
    assert_eq!(devices[0].reader.versions(FOLDER, None, 10).unwrap().rows.len(), 1);
    let page = devices[0].reader.file_changes(None, 10).unwrap().unwrap();
    assert_eq!(page.rows.len(), 1);
}

#[test]
fn a_member_that_forges_counters_does_not_use_up_those_of_others() {
    let mut devices = Device::group(2);
    let good = devices[0].edit("plan", file(1));
    sync_all(&mut devices);
    let mut forged = Version { content: file(66), ..good };
    forged.vector.0.values_mut().for_each(|n| *n = u64::MAX);
    forged.vector.0.insert(ShortId(1), 1 << 63);
    devices[1].raw("plan", Value::Bytes(version_to_bytes(&forged)));
    sync_all(&mut devices);
    assert_eq!(devices[0].content("plan"), Some(file(66)));
    let again = devices[0].edit("plan", file(2));
    let now = schema::meta_u64(&devices[0].journal.connection, schema::key::HLC_MAX).unwrap();
    assert!(again.vector.0.values().all(|n| *n <= now.unwrap()), "{again:?}");
    quiet(&mut devices);
    for device in &devices {
        assert_eq!(device.content("plan"), Some(file(2)));
    }
}

#[test]
fn a_change_without_an_event_is_in_the_history_after_a_while_with_its_author_and_time() {
    let mut devices = Device::group(3);
    devices[0].edit("plan", file(1));
    quiet(&mut devices);
    let base = devices[1].version("plan").unwrap();
    let secret = FileChange { before: None, ..change("plan", Content::Absent, Some(&base)) };
    devices[1].files(vec![secret]);
    let (by, at_ms) = (devices[1].id(), devices[1].now_ms);
    quiet(&mut devices);
    for device in &devices {
        assert_eq!(device.history("plan"), [], "its event may still be on the way");
    }
    for device in &mut devices {
        device.now_ms += HISTORY_WAIT_MS + 1000;
    }
    quiet(&mut devices);
    for device in &devices {
        let page = device.reader.file_history(FOLDER, None, 0, None, 100).unwrap();
        let [entry] = &page.entries[..] else { panic!("{page:?}") };
        assert_eq!(entry.version.content, file(1));
        assert_eq!((entry.device, entry.changed_at_ms), (by, at_ms));
    }
}

#[test]
fn an_event_that_arrives_after_later_changes_is_not_written_a_second_time() {
    let mut devices = Device::group(3);
    devices[0].edit("plan", file(1));
    quiet(&mut devices);
    devices[1].edit("plan", file(2));
    let [first, second, third] = &mut devices[..] else { panic!() };
    sync(second, third);
    third.edit("plan", file(3));
    // The third's op alone, as another device may relay it first.
    let ops: Vec<_> = third.ops();
    let own: Vec<_> = ops.into_iter().filter(|op| op.signed().log.author == third.id()).collect();
    first.journal.receive(&third.id(), &own, first.now_ms).unwrap();
    assert_eq!(first.superseded(), 1);
    sync(first, second);
    for device in &mut devices {
        device.now_ms += HISTORY_WAIT_MS + 1000;
    }
    assert_eq!(quiet(&mut devices), 0, "nobody writes an event");
    assert_eq!(devices[0].history("plan"), [file(2), file(1)]);
    assert_eq!(devices[0].superseded(), 0);
}

#[test]
fn a_change_of_times_alone_makes_no_conflict_and_no_history() {
    let mut devices = Device::group(2);
    devices[0].edit("plan", file(1));
    quiet(&mut devices);
    for (n, device) in devices.iter_mut().enumerate() {
        let Content::File { hash, size_bytes, is_executable, .. } = file(1) else { panic!() };
        let modified_ms = 100 + i64::try_from(n).unwrap();
        let touched = Content::File { hash, size_bytes, modified_ms, is_executable };
        let base = device.version("plan").unwrap();
        let touch = FileChange { before: None, ..change("plan", touched, Some(&base)) };
        device.files(vec![touch]);
    }
    quiet(&mut devices);
    for device in &mut devices {
        device.now_ms += HISTORY_WAIT_MS + 1000;
    }
    quiet(&mut devices);
    assert_eq!(devices[0].reader.versions(FOLDER, None, 10).unwrap().rows.len(), 1);
    assert_eq!(devices[0].history("plan"), []);
}

#[test]
fn a_device_restored_from_a_backup_gives_no_counter_twice() {
    let mut devices = Device::group(2);
    devices[0].edit("plan", file(1));
    quiet(&mut devices);
    let backup = TempDir::new().unwrap();
    durable::copy(devices[0].dir.path(), backup.path());
    let before = devices[0].edit("plan", file(2));
    quiet(&mut devices);
    devices[0].restore(backup.path());
    devices[0].journal.restored().unwrap();
    // The base of the directory is newer than the journal now, and the clock was set back.
    devices[0].now_ms -= 60_000;
    let after = devices[0].files(vec![change("plan", file(3), Some(&before))]).remove(0);
    let me = ShortId::from(&devices[0].id());
    assert!(after.vector.0[&me] > before.vector.0[&me]);
    devices[0].now_ms += 120_000;
    quiet(&mut devices);
    for device in &devices {
        assert_eq!(device.content("plan"), Some(file(3)), "the edit is the newest");
    }
}

#[test]
fn a_version_that_only_a_directory_knows_after_a_restore_is_kept_beside_the_one_that_came() {
    let mut devices = Device::group(2);
    let backup = TempDir::new().unwrap();
    durable::copy(devices[0].dir.path(), backup.path());
    let base = devices[0].edit("plan", file(1));
    devices[1].edit("plan", file(2));
    devices[0].restore(backup.path());
    devices[0].journal.restored().unwrap();
    quiet(&mut devices);
    let journal = devices[0].version("plan").unwrap();
    assert!(may_be_forgotten(&base, &journal));
    let now_ms = devices[0].now_ms;
    for _ in 0..2 {
        devices[0].journal.keep_versions(FOLDER, std::slice::from_ref(&base), now_ms).unwrap();
        quiet(&mut devices);
    }
    for device in &devices {
        assert_eq!(device.content("plan"), Some(file(2)));
        assert_eq!(device.content(&conflict_path(&base).to_text()), Some(file(1)));
        assert_eq!(device.history("plan"), [file(1)]);
    }
}

#[test]
fn a_removed_devices_versions_stay() {
    let mut devices = Device::group(3);
    devices[2].edit("plan", file(1));
    quiet(&mut devices);
    let gone = devices.pop().unwrap();
    let now_ms = devices[0].now_ms;
    devices[0].journal.remove(&gone.id(), now_ms).unwrap();
    sync_all(&mut devices);
    for device in &devices {
        assert_eq!(device.content("plan"), Some(file(1)));
    }
    devices[1].edit("plan", file(2));
    quiet(&mut devices);
    assert_eq!(devices[0].content("plan"), Some(file(2)));
    assert_eq!(devices[0].history("plan"), [file(1)]);
}

#[test]
fn a_file_moves_aside_for_a_directory_alike_on_every_device() {
    let mut devices = Device::group(2);
    let in_the_way = devices[0].edit("d", file(1));
    quiet(&mut devices);
    for device in &mut devices {
        let [copy, removal] = make_way(&device.version("d").unwrap());
        let changes = vec![
            FileChange { version: copy, before: None, is_undo: false },
            FileChange { version: removal, before: device.version("d"), is_undo: false },
        ];
        device.now_ms += 1;
        let stamping = Stamping::AsTheyAre;
        device.journal.write_files(FOLDER, changes, stamping, device.now_ms).unwrap().unwrap();
    }
    assert_eq!(quiet(&mut devices), 0, "there is nothing to resolve");
    assert_eq!(devices[0].content("d"), Some(Content::Absent));
    assert_eq!(devices[0].content(&conflict_path(&in_the_way).to_text()), Some(file(1)));
    assert_eq!(devices[0].history("d"), [file(1)]);
}

#[test]
fn many_changes_become_ops_of_at_most_64_within_their_bounds_and_in_order() {
    let mut device = Device::founder();
    let deep = ["d".repeat(255).as_str(); 15].join("/");
    let at = |n: usize| format!("{deep}/{n}");
    let first = device.files((0..200).map(|n| change(&at(n), file(1), None)).collect());
    assert_eq!(first.len(), 200);
    let again = first.iter().map(|base| change(&base.path.to_text(), file(2), Some(base)));
    let mut again: Vec<_> = again.collect();
    // A path twice: the later change stays.
    again.push(change(&at(0), file(3), Some(&first[0])));
    device.files(again);
    assert_eq!(device.content(&at(0)), Some(file(3)));
    assert_eq!(device.content(&at(199)), Some(file(2)));
    assert_eq!(device.history(&at(199)), [file(1)]);
    let short = (0..300).map(|n| change(&format!("s{n}"), file(1), None)).collect();
    let before = device.ops().len();
    device.files(short);
    assert_eq!(device.ops().len() - before, 300_usize.div_ceil(OP_CHANGES_MAX));
    device.fsck();
}

#[test]
fn pages_of_versions_and_of_changes_show_every_path_once() {
    let mut device = Device::founder();
    device.files((0..300).map(|n| change(&format!("f{n}"), file(1), None)).collect());
    device.set("a note", "between", 1);
    let (mut seen, mut after) = (BTreeSet::new(), None);
    loop {
        let page = device.reader.versions(FOLDER, after, 64).unwrap();
        assert!(page.rows.iter().all(|row| seen.insert(row.version.path.clone())));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen.len(), 300);
    assert_eq!(device.reader.versions(FolderId([1; 16]), None, 10).unwrap().rows, []);

    let (mut seen, mut cursor) = (BTreeSet::new(), None);
    loop {
        let page = device.reader.file_changes(cursor.as_ref(), 50).unwrap().unwrap();
        assert!(!page.is_restart);
        assert!(page.rows.iter().all(|row| seen.insert(row.version.path.clone())));
        cursor = Some(page.cursor);
        if !page.more {
            break;
        }
    }
    assert_eq!(seen.len(), 300);
    device.edit("f7", file(2));
    let page = device.reader.file_changes(cursor.as_ref(), 50).unwrap().unwrap();
    assert_eq!(page.rows.len(), 1);
    let unknown = Cursor { epoch: LogId([9; 16]), arr: 3 };
    let page = device.reader.file_changes(Some(&unknown), 1000).unwrap().unwrap();
    assert!(page.is_restart);
    assert_eq!(page.rows.len(), 300);
}

#[test]
fn the_history_of_a_folder_is_read_in_pages_from_a_time_on() {
    let mut device = Device::founder();
    for n in 1..=10 {
        device.now_ms += 1000;
        device.edit("plan", file(n));
        device.edit("other", file(100 + n));
    }
    assert_eq!(device.history("plan"), (1..=9).rev().map(file).collect::<Vec<_>>());
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = device.reader.file_history(FOLDER, None, 0, after, 4).unwrap();
        all.extend(page.entries.into_iter().map(|entry| entry.version.content));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(all.len(), 18);
    let since_ms = device.now_ms - 2500;
    let page = device.reader.file_history(FOLDER, None, since_ms, None, 100).unwrap();
    let contents: Vec<_> = page.entries.iter().map(|entry| entry.version.content.clone()).collect();
    assert_eq!(contents, [109, 9, 108, 8, 107, 7].map(file));
    let plan: String = device
        .journal
        .connection
        .query_row(
            "EXPLAIN QUERY PLAN SELECT hlc, data FROM events WHERE stream = ?1 AND type = ?2
                 AND stream >= 'folder/' AND stream < 'folder0' ORDER BY arr DESC, idx DESC",
            [history_stream(FOLDER), "x".into()],
            |row| row.get(3),
        )
        .unwrap();
    assert!(plan.contains("events_of_file"), "{plan}");
}

#[test]
fn a_version_of_a_later_program_is_kept_and_wins_by_the_same_rules() {
    let mut devices = Device::group(2);
    let base = devices[0].edit("plan", file(1));
    quiet(&mut devices);
    let later = Content::Later(vec![0x4a, 2, 1, 2]);
    devices[1].files(vec![change("plan", later.clone(), Some(&base))]);
    quiet(&mut devices);
    assert_eq!(devices[0].content("plan"), Some(later));
    let bytes = version_to_bytes(&devices[0].version("plan").unwrap());
    assert!(version_from_bytes(&bytes).is_ok());
}
