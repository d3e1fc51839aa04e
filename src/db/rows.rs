//! Converts between the program's unsigned numbers and SQLite's signed ones.

use rusqlite::Row;

/// Converts a number to a column. No stored number reaches the 64th bit; a number in a comparison
/// may, because a peer can send any, and then means "after everything".
pub fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Converts a column to a number. A negative one is an error: the file is damaged.
pub fn row_u64(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
}
