//! Power cuts of SQLite files: what a disk holds of a write-ahead log that it was still writing.

use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::group::SOON;

/// SQLite's file format, 4.1 and 4.2: the bytes before the frames, and before each page.
pub const WAL_HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;

/// Keeps the log of a database as it is: while the snapshot is open, SQLite neither restarts the log nor
/// changes the database file. `table` is one of its tables.
pub fn pin(database: &Path, table: &str) -> Connection {
    let connection = Connection::open(database).unwrap();
    connection.busy_timeout(SOON).unwrap();
    loop {
        let row = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0);
        let busy = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], row).unwrap();
        connection.execute_batch(&format!("BEGIN; SELECT count(*) FROM {table}")).unwrap();
        if busy == 0 && fs::metadata(wal_of(database)).unwrap().len() == 0 {
            return connection;
        }
        connection.execute_batch("ROLLBACK").unwrap();
    }
}

/// The write-ahead log of a database.
pub fn wal_of(database: &Path) -> PathBuf {
    PathBuf::from(format!("{}-wal", database.display()))
}

/// The end of each frame of a log, and whether it ends a commit.
pub fn frames(wal: &[u8]) -> Vec<(usize, bool)> {
    if wal.len() < WAL_HEADER_BYTES {
        return Vec::new();
    }
    let word = |at: usize| u32::from_be_bytes(wal[at..at + 4].try_into().unwrap());
    let frame_bytes = FRAME_HEADER_BYTES + word(8) as usize;
    let starts = (WAL_HEADER_BYTES..).step_by(frame_bytes);
    let whole = starts.take_while(|start| start + frame_bytes <= wal.len());
    let salt = wal[16..24].to_vec();
    whole
        .take_while(|start| wal[start + 8..start + 16] == salt)
        .map(|start| (start + frame_bytes, word(start + 4) != 0))
        .collect()
}
