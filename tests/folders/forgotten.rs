//! A journal that is restored from a backup while the directory and `folders.db` are not, and records
//! that are no versions.

use std::collections::BTreeMap;

use can_sync::core::folder::{FILE_MODEL, FILE_VERSION};
use can_sync::core::journal::draft::{Draft, DraftChange, DraftPut};
use can_sync::core::journal::op::{Key, Value};
use can_sync::folders::status::ContentView;
use common::logs::times_logged;

use super::*;

/// The files of a device's journal, which must be stopped.
fn journal_files(device: &Device) -> BTreeMap<PathBuf, Vec<u8>> {
    let db = device.home.journal_db_path();
    let beside = |suffix: &str| PathBuf::from(format!("{}{suffix}", db.display()));
    let files = [db.clone(), beside("-wal"), beside("-shm")].into_iter();
    files.filter_map(|file| Some((file.clone(), fs::read(&file).ok()?))).collect()
}

fn restore(device: &Device, files: &BTreeMap<PathBuf, Vec<u8>>) {
    journal_files(device).into_keys().for_each(|file| fs::remove_file(file).unwrap());
    for (file, bytes) in files {
        fs::write(file, bytes).unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edits_that_a_restored_journal_has_forgotten_are_written_again() {
    let (mut a, mut b) = two().await;
    for name in ["edited", "edited twice", "edited on both"] {
        a.write(name, b"first");
    }
    equal(&a, &b, 3).await;
    b.device.down().await;
    a.device.down().await;
    let backup = journal_files(&a.device);
    a.device.up().await;
    for name in ["edited", "edited twice", "edited on both"] {
        a.write(name, b"second");
    }
    a.write("made", b"made");
    until("a has written it down", &[&a.device], async || {
        let status = a.status().await;
        status.files == 4 && status.folder.binding.unwrap().state == BindingState::UpToDate
    })
    .await;
    let folders = a.device.handle().folders();
    let is_down = async |name| {
        let content = folders.history(NAME, name).await.unwrap().versions.remove(0).content;
        matches!(content, ContentView::File { size_bytes: 6, .. })
    };
    for name in ["edited", "edited twice", "edited on both"] {
        until("the second is down", &[&a.device], async || is_down(name).await).await;
    }
    a.device.down().await;
    restore(&a.device, &backup);
    a.write("edited twice", b"third!!");
    b.write("edited on both", b"of b");
    b.device.up().await;
    a.device.up().await;
    // The two edits of one file by different devices stay beside each other.
    equal(&a, &b, 5).await;
    assert_eq!(b.read("edited").unwrap(), b"second");
    assert_eq!(b.read("edited twice").unwrap(), b"third!!");
    assert_eq!(b.read("made").unwrap(), b"made");
    let both: Vec<_> = b.tree().into_keys().filter(|name| name.contains("on both")).collect();
    let both: Vec<_> = both.iter().map(|name| b.read(name).unwrap()).collect();
    assert!(both.contains(&b"second".to_vec()) && both.contains(&b"of b".to_vec()), "{both:?}");
    // What the journal had forgotten and the user replaced is in the history.
    let folders = b.device.handle().folders();
    until("the second version can be brought back", &[&a.device, &b.device], async || {
        let history = folders.history(NAME, "edited twice").await.unwrap();
        history
            .versions
            .iter()
            .any(|version| matches!(version.content, ContentView::File { size_bytes: 6, .. }))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_are_no_versions_are_told_in_one_line_and_hold_up_nothing() {
    let (a, b) = two().await;
    a.write("before", b"1");
    equal(&a, &b, 1).await;
    let folder = a.status().await.folder.id;
    for n in 0..100_u8 {
        let id = [&folder.0[..], &[n; 16]].concat();
        let key = Key { model: FILE_MODEL.into(), id, owned: false };
        let garbage = Some(Value::Bytes(vec![n; 40]));
        let set = BTreeMap::from([(FILE_VERSION.to_owned(), garbage)]);
        let put = DraftPut { key, create: true, set, add: [].into(), remove: [].into() };
        let draft = Draft { changes: vec![DraftChange::Put(put)], expect: Vec::new() };
        a.device.handle().journal().write(draft).await.unwrap().unwrap();
    }
    a.write("after", b"2");
    equal(&a, &b, 2).await;
    until("b tells of all", &[&a.device, &b.device], async || {
        b.problems().await.contains("100 changes of the folder cannot be read")
    })
    .await;
    // How many the first look found is a matter of chance; a second line there is not.
    let line = ["of the folder cannot be read", b.dir.to_str().unwrap()];
    assert_eq!(times_logged(&line), 1);
}
