//! Devices whose journal was restored from an older backup, noticed and unnoticed.

use std::fs;
use std::path::Path;

use can_sync::core::alerts::Kind;
use common::group::alert;

use super::*;

const FILES: [&str; 3] = ["journal.db", "journal.db-wal", "journal.db-shm"];

/// Copies the journal of a device that is not running.
fn back_up(device: &Device) -> tempfile::TempDir {
    let backup = tempfile::tempdir().unwrap();
    let path = device.home.journal_db_path();
    for name in FILES {
        let from = path.with_file_name(name);
        if from.exists() {
            fs::copy(from, backup.path().join(name)).unwrap();
        }
    }
    backup
}

/// Restores a copy: as other files, or into the same ones, so that the file system does not show
/// it.
fn put_back(device: &Device, backup: &Path, same_file: bool) {
    let path = device.home.journal_db_path();
    for name in FILES {
        let (from, to) = (backup.join(name), path.with_file_name(name));
        let is_database = name == FILES[0];
        if to.exists() && !(same_file && is_database) {
            fs::remove_file(&to).unwrap();
        }
        if from.exists() {
            fs::copy(from, &to).unwrap();
        }
    }
}

async fn logs_of(device: &Device, author: NodeId) -> usize {
    let stats = device.handle().journal().read(|reader| reader.stats()).await.unwrap();
    stats.logs.iter().filter(|log| log.author == author).count()
}

/// What c wrote before the backup, after it, and after the restore is on all devices in the end.
async fn nothing_is_lost_by_a_restore(same_file: bool) {
    let [a, b, mut c] = group().await;
    write(&c, with_text("1", "text", "before the backup")).await;
    let hash = add(&c, 40_000 + u64::from(same_file), meta("before", &[], false)).await;
    all_show(&[&a, &b, &c], hash, &meta("before", &[], false)).await;
    c.down().await;
    let backup = back_up(&c);
    c.up().await;
    for n in 0..50 {
        write(&c, with_text(&format!("since {n}"), "text", "x")).await;
    }
    write(&c, with_text("1", "text", "since the backup")).await;
    edit(&c, hash, meta("since the backup", &[], false)).await;
    all_show(&[&a, &b, &c], hash, &meta("since the backup", &[], false)).await;
    same_journal(&[&a, &b, &c]).await;
    let before = log(&a).await;
    c.down().await;

    // While it is away, another device edits.
    let otherwise = meta("while it was away", &[], false);
    if !same_file {
        edit(&b, hash, otherwise.clone()).await;
        all_show(&[&a, &b], hash, &otherwise).await;
    }
    put_back(&c, backup.path(), same_file);
    c.up().await;
    write(&c, with_text("2", "text", "after it was put back")).await;
    same_journal(&[&a, &b, &c]).await;
    write(&c, with_text("3", "text", "when all is well")).await;
    same_journal(&[&a, &b, &c]).await;
    for device in [&a, &b, &c] {
        assert_eq!(read(device, "1").await.unwrap().0["text"], "since the backup");
        for id in ["2", "3", "since 0", "since 49"] {
            assert!(read(device, id).await.is_some(), "record {id}");
        }
        assert!(logs_of(device, c.node_id).await > 1, "it writes another log");
        let findings = device.handle().journal().fsck().await.unwrap();
        assert_eq!(findings, Vec::<String>::new());
    }
    if same_file {
        all_show(&[&a, &b, &c], hash, &meta("since the backup", &[], false)).await;
    } else {
        // The restore was noticed before the first write, and what its store shows is not taken for
        // an edit.
        all_show(&[&a, &b, &c], hash, &otherwise).await;
        assert_eq!(a.status().journal.forked_logs, Vec::<LogId>::new());
        let after = log(&c).await;
        assert!(before.iter().all(|(number, kind)| after.get(number) == Some(kind)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_on_an_old_copy_of_its_journal_writes_another_log_and_loses_nothing() {
    nothing_is_lost_by_a_restore(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_whose_journal_went_back_unnoticed_is_found_out_and_loses_nothing() {
    nothing_is_lost_by_a_restore(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_written_on_from_an_old_copy_is_an_alert_until_it_is_acknowledged() {
    let [mut a, mut c] = group().await;
    c.down().await;
    let backup = back_up(&c);
    c.up().await;
    write(&c, with_text("1", "text", "since the backup")).await;
    same_journal(&[&a, &c]).await;
    a.down().await;
    c.down().await;
    put_back(&c, backup.path(), true);
    c.up().await;
    // With nobody there to say that these numbers are taken.
    write(&c, with_text("1", "text", "after it was put back")).await;
    write(&c, with_text("2", "text", "after it was put back")).await;
    a.up().await;
    same_journal(&[&a, &c]).await;
    for device in [&a, &c] {
        let stands = || alert(device, Kind::ForkedLog);
        until("it is an alert", &[device], async || stands().is_some()).await;
        let said = stands().unwrap();
        assert_eq!(said.device, Some(c.node_id));
        assert!(said.text.contains("have the same number"), "{}", said.text);
        let acked = device.handle().alerts().ack(&said.id).await.unwrap();
        assert!(acked.acked_ms.is_some());
        until("that is shown", &[device], async || stands().unwrap().acked_ms.is_some()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_devices_on_one_key_lose_nothing_of_what_either_says() {
    let [a, b, mut c] = group().await;
    c.down().await;
    let mut copy = c.copied();
    // One after the other, because the copy would take the port to which the first one returns.
    c.up().await;
    copy.up().await;
    for n in 0..20 {
        write(&c, with_text(&format!("original {n}"), "text", "x")).await;
        write(&copy, with_text(&format!("copy {n}"), "text", "x")).await;
    }
    until("all is heard of both", &[&a, &b, &c, &copy], async || {
        for device in [&a, &b] {
            for n in 0..20 {
                for name in ["original", "copy"] {
                    if read(device, &format!("{name} {n}")).await.is_none() {
                        return false;
                    }
                }
            }
        }
        true
    })
    .await;
    until("one names the other in its status", &[&c, &copy], async || {
        [&c, &copy].iter().any(|device| {
            let warnings = device.status().device.warnings;
            warnings
                .iter()
                .any(|warning| warning.contains("another device has this key, at 127.0.0.1:"))
        })
    })
    .await;
    until("it is an alert on one", &[&c, &copy], async || {
        [&c, &copy].iter().any(|device| alert(device, Kind::ClonedDevice).is_some())
    })
    .await;
    copy.down().await;
    same_journal(&[&a, &b, &c]).await;
    // Each wrote a log of its own.
    assert_eq!(logs_of(&a, c.node_id).await, 2);
    log(&a).await;
    assert_eq!(a.status().journal.forked_logs, Vec::<LogId>::new());
}
