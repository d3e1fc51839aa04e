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
        // The copied home is noticed as a copy, so this device forgets which log it was writing. Its
        // place in the store's feed is set back, so that attributes reach the journal.
        let unchanged = |content: Vec<(String, Vec<String>)>| -> Vec<_> {
            let touched =
                |what: &str| ["meta", "shadows", "cursors"].iter().any(|w| what.contains(w));
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

/// The names of the files in the folder of `path` that start with its name.
fn names(path: &Path) -> Vec<String> {
    let name = path.file_name().unwrap().to_str().unwrap();
    let mut names: Vec<String> = std::fs::read_dir(path.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|other| other.starts_with(name))
        .collect();
    names.sort();
    names
}

#[test]
fn the_last_two_copies_of_a_journal_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::open(Some(thawed("desk", dir.path()))).unwrap();
    let identity = Identity::load_or_create(&home, &home.lock().unwrap()).unwrap();
    let path = home.journal_db_path();
    for older in ["20240101-000000", "20250101-000000"] {
        std::fs::write(path.with_file_name(format!("journal.db.v1-{older}.bak")), "x").unwrap();
    }
    drop(Journal::open(&path, &identity, [7; 32]).unwrap());
    let names = names(&path);
    assert_eq!(names.len(), 3, "{names:?}");
    assert_eq!(names[..2], ["journal.db", "journal.db.v1-20250101-000000.bak"], "{names:?}");
    assert!(names[2].starts_with("journal.db.v1-20") && names[2].ends_with(".bak"), "{names:?}");
}

#[test]
fn a_journal_of_a_newer_version_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.db");
    let identity = Identity::from_bytes(&[1; 32]);
    Journal::open(&path, &identity, [1; 32]).unwrap().close().unwrap();
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let before = std::fs::read(&path).unwrap();

    let error = Journal::open(&path, &identity, [1; 32]).unwrap_err();
    assert!(matches!(error, JournalError::Newer { found: 99, known: 4 }), "{error}");
    assert!(std::fs::read(&path).unwrap() == before, "it is changed");
    assert_eq!(names(&path), ["journal.db"]);
}

#[test]
fn a_journal_whose_copy_does_not_fit_is_refused_with_the_bytes_needed_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::open(Some(thawed("desk", dir.path()))).unwrap();
    let identity = Identity::load_or_create(&home, &home.lock().unwrap()).unwrap();
    let path = home.journal_db_path();
    let connection = Connection::open(&path).unwrap();
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(connection);
    let bytes = crate::db::migrate::tests::make_huge(&path);

    let error = Journal::open(&path, &identity, [7; 32]).unwrap_err().to_string();
    assert!(error.contains(&format!("{bytes} bytes are needed")), "{error}");
    let connection = Connection::open(&path).unwrap();
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    assert_eq!(version, 1);
    drop(connection);
    assert_eq!(names(&path), ["journal.db"]);
}
