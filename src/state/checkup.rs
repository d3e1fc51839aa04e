//! Measures the disks and databases of a home for `doctor`. Reads, and writes one small file that it
//! removes again.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use crate::clock::instant_now;
use crate::core::doctor::{Check, DiskFacts, WatchFacts};
use crate::core::limits::{FREE_FLOOR_BYTES, FREE_FLOOR_FRACTION};
use crate::state::home::Home;

/// How many times a file is written and synced; the middle one counts.
const FSYNCS: usize = 5;

/// The bytes of the file that is written.
const FSYNC_BYTES: usize = 4096;

/// How long to wait for a lock of a database.
const BUSY_WAIT: Duration = Duration::from_secs(5);

/// Measures the disk that `folder` is on.
pub fn disk(holds: &'static str, folder: &Path) -> DiskFacts {
    let stat = rustix::fs::statvfs(folder);
    let (free_bytes, size_bytes) = stat.map_or((0, 0), |stat| {
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        (bytes(stat.f_bavail), bytes(stat.f_blocks))
    });
    DiskFacts {
        holds,
        file_system: file_system(folder),
        fsync_ms: fsync_ms(folder).map_err(|error| error.to_string()),
        free_bytes,
        size_bytes,
        floor_bytes: FREE_FLOOR_BYTES.min(size_bytes / FREE_FLOOR_FRACTION),
    }
}

fn fsync_ms(folder: &Path) -> std::io::Result<f64> {
    let path = folder.join(format!(".doctor-{}", std::process::id()));
    let written = write_and_sync(&path);
    let removed = std::fs::remove_file(&path);
    let mut took_ms = written?;
    removed?;
    took_ms.sort_unstable_by(f64::total_cmp);
    Ok(took_ms[FSYNCS / 2])
}

fn write_and_sync(path: &Path) -> std::io::Result<[f64; FSYNCS]> {
    let mut file = File::options().write(true).create_new(true).open(path)?;
    let mut took_ms = [0.0; FSYNCS];
    for took_ms in &mut took_ms {
        let begun = instant_now();
        file.write_all(&[0; FSYNC_BYTES])?;
        file.sync_all()?;
        *took_ms = (instant_now() - begun).as_secs_f64() * 1000.0;
    }
    Ok(took_ms)
}

/// The name of the file system that `folder` is on, if it is known.
#[cfg(target_os = "linux")]
fn file_system(folder: &Path) -> Option<&'static str> {
    const NAMES: [(u64, &str); 17] = [
        (0xEF53, "ext4"),
        (0x9123_683E, "btrfs"),
        (0x5846_5342, "xfs"),
        (0x2FC1_2FC1, "zfs"),
        (0xF2F5_2010, "f2fs"),
        (0xCA45_1A4E, "bcachefs"),
        (0x0102_1994, "tmpfs"),
        (0x794C_7630, "overlay"),
        (0x0000_6969, "nfs"),
        (0xFF53_4D42, "cifs"),
        (0xFE53_4D42, "smb"),
        (0x6573_5546, "fuse"),
        (0x0102_1997, "9p"),
        (0x0000_4D44, "vfat"),
        (0x2011_BAB0, "exfat"),
        (0x7366_746E, "ntfs"),
        (0x0000_F15F, "ecryptfs"),
    ];
    // The kernel's number has 32 bits; the field is signed on some machines.
    let kind = rustix::fs::statfs(folder).ok()?.f_type as u64 & 0xFFFF_FFFF;
    NAMES.iter().find(|(number, _)| *number == kind).map(|(_, name)| *name)
}

#[cfg(not(target_os = "linux"))]
fn file_system(_: &Path) -> Option<&'static str> {
    None
}

/// Reads the limits of the kernel's file notices.
pub fn watches() -> WatchFacts {
    let limit = |name: &str| {
        let text = std::fs::read_to_string(Path::new("/proc/sys/fs/inotify").join(name)).ok()?;
        text.trim().parse().ok()
    };
    WatchFacts {
        watches_max: limit("max_user_watches"),
        instances_max: limit("max_user_instances"),
    }
}

/// Checks every database of the home as SQLite does, page by page.
pub fn databases(home: &Home) -> Vec<Check> {
    let folders = [home.state_dir().to_owned(), home.store_dir()];
    let mut paths: Vec<PathBuf> = folders.iter().flat_map(|folder| databases_in(folder)).collect();
    paths.sort_unstable();
    paths.dedup();
    paths.iter().map(|path| database(path)).collect()
}

fn databases_in(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths.filter(|path| path.extension().is_some_and(|end| end == "db") && path.is_file()).collect()
}

fn database(path: &Path) -> Check {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name = format!("database-{stem}");
    let remedy = "stop the agent and copy the home before anything else; index.db may then be \
                  removed and is made again, for the others see \"When bits rot\" in the README";
    match quick_check(path) {
        Ok(said) if said == "ok" => Check::ok(&name, "its pages are whole"),
        Ok(said) => Check::failed(&name, said, remedy),
        Err(error) => Check::failed(&name, format!("it cannot be read: {error}"), remedy),
    }
}

fn quick_check(path: &Path) -> rusqlite::Result<String> {
    let access = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, access)?;
    connection.busy_timeout(BUSY_WAIT)?;
    connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::core::doctor::Verdict;

    #[test]
    fn a_disk_is_measured_and_nothing_is_left_on_it() {
        let folder = tempfile::tempdir().unwrap();
        let facts = disk("state", folder.path());
        assert!(facts.fsync_ms.unwrap() >= 0.0);
        assert!(facts.free_bytes > 0 && facts.free_bytes <= facts.size_bytes);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let gone = disk("state", &folder.path().join("gone"));
        assert!(gone.fsync_ms.is_err());
    }

    #[test]
    fn a_damaged_database_is_found_and_a_whole_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.db");
        let connection = Connection::open(&path).unwrap();
        connection
            .execute_batch("CREATE TABLE t (a); INSERT INTO t VALUES (zeroblob(100000))")
            .unwrap();
        drop(connection);
        assert_eq!(database(&path).verdict, Verdict::Ok);
        let bytes = std::fs::read(&path).unwrap();
        let mut torn = bytes.clone();
        torn[4096..8192].fill(0xa5);
        std::fs::write(&path, torn).unwrap();
        let check = database(&path);
        assert_eq!(check.verdict, Verdict::Failed);
        assert!(check.remedy.is_some() && check.name == "database-x", "{check:?}");
        std::fs::write(&path, b"no database at all, but a text that is long enough").unwrap();
        assert_eq!(database(&path).verdict, Verdict::Failed);
    }
}
