//! Numbers in columns: ours are unsigned, SQLite's are signed.

use rusqlite::Row;

/// A number as a column. None that we keep reaches the 64th bit; one to compare with may (a peer made
/// it up), and then means "beyond everything".
pub fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A column as a number. A negative one is an error: the file is damaged.
pub fn row_u64(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
}
