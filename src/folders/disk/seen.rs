//! What a stat shows of a path. Two equal stats mean that nothing changed in between; `read.rs` says
//! when that holds.

use rustix::fs::{FileType, Mode, Stat};

/// What is at a path, by its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SeenKind {
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A directory.
    Directory,
    /// A FIFO, a socket or a device.
    Other,
}

impl SeenKind {
    fn of(file_type: FileType) -> Self {
        match file_type {
            FileType::RegularFile => Self::File,
            FileType::Symlink => Self::Symlink,
            FileType::Directory => Self::Directory,
            _ => Self::Other,
        }
    }
}

/// What a stat shows. Of a directory only kind, inode and mode are set, because the rest changes with
/// what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Seen {
    /// The file's type.
    pub kind: SeenKind,
    /// The file's size.
    pub size_bytes: u64,
    /// When its content last changed, seconds since the Unix epoch. Programs can set it.
    pub mtime_secs: i64,
    /// The nanoseconds of that second.
    pub mtime_nanos: u32,
    /// When its content, mode, links or name last changed. Programs cannot set it.
    pub ctime_secs: i64,
    /// The nanoseconds of that second.
    pub ctime_nanos: u32,
    /// The file's number in its file system.
    pub inode: u64,
    /// The permission bits.
    pub mode: u32,
}

impl Seen {
    /// Differs from the stat of every file: what has it is read before it counts as unchanged.
    pub const UNKNOWN: Self = Self {
        kind: SeenKind::Other,
        size_bytes: 0,
        mtime_secs: 0,
        mtime_nanos: 0,
        ctime_secs: 0,
        ctime_nanos: 0,
        inode: 0,
        mode: 0,
    };

    /// Milliseconds since the Unix epoch at which the content last changed, rounded down.
    pub fn modified_ms(&self) -> i64 {
        self.mtime_secs.saturating_mul(1000).saturating_add(i64::from(self.mtime_nanos / 1_000_000))
    }

    /// Whether its owner may execute it.
    pub fn is_executable(&self) -> bool {
        self.kind == SeenKind::File && self.mode & 0o100 != 0
    }

    /// Leaves out what changes with the content of a directory.
    fn without_times_of_a_directory(self) -> Self {
        if self.kind != SeenKind::Directory {
            return self;
        }
        Self { size_bytes: 0, mtime_secs: 0, mtime_nanos: 0, ctime_secs: 0, ctime_nanos: 0, ..self }
    }

    /// Whether both are equal except for the time of the last change of the inode, which a rename
    /// changes too.
    pub fn is_same_file(&self, other: &Self) -> bool {
        let (ctime_secs, ctime_nanos) = (other.ctime_secs, other.ctime_nanos);
        Self { ctime_secs, ctime_nanos, ..*self } == *other
    }
}

#[cfg(target_os = "linux")]
impl From<rustix::fs::Statx> for Seen {
    fn from(stat: rustix::fs::Statx) -> Self {
        let kind = SeenKind::of(FileType::from_raw_mode(stat.stx_mode.into()));
        let seen = Self {
            kind,
            size_bytes: stat.stx_size,
            mtime_secs: stat.stx_mtime.tv_sec,
            mtime_nanos: stat.stx_mtime.tv_nsec,
            ctime_secs: stat.stx_ctime.tv_sec,
            ctime_nanos: stat.stx_ctime.tv_nsec,
            inode: stat.stx_ino,
            mode: u32::from(stat.stx_mode) & 0o7777,
        };
        seen.without_times_of_a_directory()
    }
}

impl From<Stat> for Seen {
    // The types of the fields differ by operating system and processor.
    #[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
    fn from(stat: Stat) -> Self {
        let seen = Self {
            kind: SeenKind::of(FileType::from_raw_mode(stat.st_mode)),
            size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
            mtime_secs: stat.st_mtime as i64,
            mtime_nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
            ctime_secs: stat.st_ctime as i64,
            ctime_nanos: u32::try_from(stat.st_ctime_nsec).unwrap_or(0),
            inode: stat.st_ino as u64,
            mode: Mode::from_raw_mode(stat.st_mode).bits() as u32,
        };
        seen.without_times_of_a_directory()
    }
}
