//! Journals of earlier versions open with all their content.

use std::path::{Path, PathBuf};

use rusqlite::OpenFlags;

use super::*;
use crate::state::home::Home;

/// A writable copy of a device's home as 0.1.0 left it.
fn thawed(device: &str, into: &Path) -> PathBuf {
    let homes = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/homes/0.1.0");
    let mut tar = std::process::Command::new("tar");
    tar.arg("-xzf").arg(homes.join(format!("{device}.tar.gz"))).arg("-C").arg(into);
    assert!(tar.arg("--no-same-owner").status().unwrap().success());
    into.join(device)
}

/// The rows of tables and columns that both versions have, as text.
fn content(path: &Path) -> Vec<(String, Vec<String>)> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let connection = Connection::open_with_flags(path, flags).unwrap();
    [
        "arr, log, seq, hash, hlc, refs, opaque, recv_ms, body, sig FROM ops",
        "log, log_id, dev, nonce, seq, head, forked, bytes FROM logs",
        "* FROM cells",
        "* FROM records",
        "* FROM events",
        "stream, log, next FROM streams",
        "* FROM retention",
        "op, idx, by_dev, kind, dev, name FROM members",
        "* FROM devices",
        "* FROM models",
        "* FROM acks",
        "* FROM shadows",
        "* FROM cursors",
        "seq FROM sqlite_sequence WHERE name = 'ops'",
        "k, v FROM meta WHERE k IN ('device', 'group_id', 'open_log', 'hlc_max')",
    ]
    .into_iter()
    .map(|what| {
        let mut query = connection.prepare(&format!("SELECT {what}")).unwrap();
        let columns = query.column_count();
        let rows = query.query_map([], |row| {
            let values: Vec<String> =
                (0..columns).map(|column| format!("{:?}", row.get_ref(column).unwrap())).collect();
            Ok(values.join(" "))
        });
        let mut rows: Vec<String> = rows.unwrap().map(std::result::Result::unwrap).collect();
        rows.sort();
        (what.to_owned(), rows)
    })
    .collect()
}

/// The tables and indexes, each with its columns.
fn shape(path: &Path) -> Vec<(String, String)> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let connection = Connection::open_with_flags(path, flags).unwrap();
    let mut query = connection
        .prepare(
            "SELECT m.name, concat_ws(' ', c.name, c.type, c.\"notnull\", c.pk, c.dflt_value)
             FROM sqlite_schema m LEFT JOIN pragma_table_xinfo(m.name) c ORDER BY 1, c.cid",
        )
        .unwrap();
    let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(std::result::Result::unwrap).collect()
}

#[test]
fn a_journal_of_0_1_0_gets_the_tables_that_a_new_one_has() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::open(Some(thawed("desk", dir.path()))).unwrap();
    let identity = Identity::load_or_create(&home, &home.lock().unwrap()).unwrap();
    let new = dir.path().join("new.db");
    Journal::open(&new, &identity, [7; 32]).unwrap();
    Journal::open(&home.journal_db_path(), &identity, [7; 32]).unwrap();
    assert_eq!(shape(&home.journal_db_path()), shape(&new));
}

#[test]
fn a_journal_of_0_1_0_opens_with_all_that_was_in_it_and_a_copy_beside() {
    for device in ["desk", "phone"] {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(Some(thawed(device, dir.path()))).unwrap();
        let identity = Identity::load_or_create(&home, &home.lock().unwrap()).unwrap();
        let path = home.journal_db_path();
        // All in the main file, as the agent would leave it.
        let before = {
            let connection = Connection::open(&path).unwrap();
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
            drop(connection);
            content(&path)
        };
        assert!(before.iter().filter(|(_, rows)| !rows.is_empty()).count() > 8, "{device}");
        let mut journal = Journal::open(&path, &identity, [7; 32]).unwrap();
        assert_eq!(journal.reader().unwrap().fsck().unwrap(), Vec::<String>::new(), "{device}");
        assert_eq!(
            journal.reader().unwrap().check_signatures().unwrap(),
            Vec::<String>::new(),
            "{device}"
        );
        // The copied home is noticed as a copy, so this device forgets which log it was writing.
        let unchanged = |content: Vec<(String, Vec<String>)>| -> Vec<_> {
            let touched = |what: &str| what.contains("meta") || what.contains("shadows");
            content.into_iter().filter(|(what, _)| !touched(what)).collect()
        };
        assert_eq!(unchanged(content(&path)), unchanged(before.clone()), "{device}");
        let copies: Vec<_> = std::fs::read_dir(path.parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|ext| ext == "bak"))
            .collect();
        assert_eq!(copies.len(), 1, "{device}: {copies:?}");
        assert_eq!(content(&copies[0]), before, "{device}");
        let draft = Draft { changes: vec![DraftChange::Put(put("new"))], expect: vec![] };
        let now_ms = crate::clock::wall_ms();
        let written = journal.write(&[draft], now_ms).unwrap().remove(0).unwrap().unwrap();
        assert_eq!(written.stamp.seq, 1, "in a new log");
        assert_eq!(journal.reader().unwrap().fsck().unwrap(), Vec::<String>::new(), "{device}");
    }
}
