//! What the file system of a bound directory can do, found by trying.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, StatVfsMountFlags, fstatvfs, linkat, mkdirat, openat, unlinkat,
};
use rustix::io::Errno;

use super::moves::exchange;
use super::names::{Stage, Temp};
use super::root::{Root, open_child, stat_at, stat_file};
use super::seen::Seen;
use super::share::reflink;
use crate::clock;
use crate::core::folder::path::PathKey;

/// The longest time between two ticks of the clock that sets the times of files, where these have
/// nanoseconds: two ticks at 100 a second.
const TICK_MS_MAX: u64 = 20;

/// The tick of file systems that keep no fractions of seconds; on FAT they are even.
const COARSE_TICK_MS: u64 = 2_000;

/// How often a probe file is changed to find out whether each change gets another time.
const CHANGES_TRIED: usize = 4;

/// What a file system can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traits {
    /// Names that differ only by case are the same file.
    pub folds_case: bool,
    /// Names that differ only by Unicode normalisation are the same file.
    pub folds_normalisation: bool,
    /// Files can share their blocks with files of the home.
    pub can_reflink: bool,
    /// Files can be hard links to files of the home.
    pub can_link: bool,
    /// Two names can be exchanged in one step. Where they cannot, a file that is replaced is away for
    /// a moment.
    pub can_exchange: bool,
    /// Nothing can be written.
    pub is_read_only: bool,
    /// The space that this user may still fill.
    pub free_bytes: u64,
}

impl Root {
    /// Tries what the file system can do, also together with the file system of the directory `home`.
    ///
    /// # Errors
    /// It cannot be tried. A directory that cannot be written is no error.
    pub fn traits(&self, home: &Path) -> io::Result<Traits> {
        let disk = fstatvfs(self.top())?;
        let free_bytes = disk.f_bavail.saturating_mul(disk.f_frsize);
        let is_read_only = disk.f_flag.contains(StatVfsMountFlags::RDONLY);
        let traits = Traits { free_bytes, is_read_only, ..Traits::default() };
        if is_read_only {
            return Ok(traits);
        }
        let name = self.probe_name();
        match mkdirat(self.top(), &name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::ROFS | Errno::ACCESS | Errno::PERM) => {
                return Ok(Traits { is_read_only: true, ..traits });
            }
            Err(error) => return Err(error.into()),
        }
        let dir = open_child(self.top(), name.as_bytes())?;
        let found = probe(&dir, home, &self.probe_name(), traits);
        for file in PROBES {
            let _ = unlinkat(&dir, file, AtFlags::empty());
        }
        unlinkat(self.top(), &name, AtFlags::REMOVEDIR)?;
        found
    }

    fn probe_name(&self) -> String {
        // A key that no path has, so that the probe's name is not the name of new content.
        let key = PathKey([0; 16]);
        let run = self.run;
        Temp { run, key, stage: Stage::New }.name()
    }

    /// Waits until a new change of `file` would get another time than the one in `seen`.
    pub(super) fn await_tick(&self, file: &File, seen: &Seen) {
        let tick_ms = match (seen.ctime_nanos, seen.mtime_nanos) {
            (0, 0) => COARSE_TICK_MS,
            _ if self.is_on_top(file) && self.has_fine_times() => return,
            _ => tick_ms(),
        };
        let changed_ms =
            seen.ctime_secs.saturating_mul(1000) + i64::from(seen.ctime_nanos / 1_000_000);
        let age_ms = u64::try_from(clock::wall_ms_signed().saturating_sub(changed_ms));
        // A change in the future is one of an unknown age.
        let rest_ms = tick_ms.saturating_sub(age_ms.unwrap_or(0));
        sleep(Duration::from_millis(rest_ms));
    }

    /// Whether each change of a file gets another time, however fast they follow (Linux 6.13 and
    /// later on ext4, XFS, btrfs and tmpfs).
    fn has_fine_times(&self) -> bool {
        *self.fine_times.get_or_init(|| self.try_times().unwrap_or(false))
    }

    fn try_times(&self) -> io::Result<bool> {
        let name = self.probe_name();
        let mut file = create(self.top(), &name)?;
        let mut try_all = || -> io::Result<bool> {
            let mut last = stat_file(&file)?;
            for _ in 0..CHANGES_TRIED {
                file.write_all(b"x")?;
                let now = stat_file(&file)?;
                let is_later =
                    (now.mtime_secs, now.mtime_nanos) > (last.mtime_secs, last.mtime_nanos);
                if !is_later {
                    return Ok(false);
                }
                last = now;
            }
            Ok(true)
        };
        let tried = try_all();
        unlinkat(self.top(), &name, AtFlags::empty())?;
        tried
    }

    fn is_on_top(&self, file: &File) -> bool {
        let device = |fd: rustix::fd::BorrowedFd<'_>| rustix::fs::fstat(fd).map(|stat| stat.st_dev);
        use rustix::fd::AsFd as _;
        device(file.as_fd()).is_ok_and(|found| device(self.top().as_fd()) == Ok(found))
    }
}

/// Within this time the clock that stamps files ticks, where it has nanoseconds: two ticks of the
/// clock of which Linux says that it stamps files.
#[cfg(target_os = "linux")]
fn tick_ms() -> u64 {
    use rustix::time::{ClockId, clock_getres};
    let tick = clock_getres(ClockId::RealtimeCoarse);
    let tick_ms = u64::try_from(tick.tv_nsec).unwrap_or(u64::MAX).div_ceil(1_000_000);
    if tick.tv_sec == 0 { tick_ms.saturating_mul(2).min(TICK_MS_MAX) } else { TICK_MS_MAX }
}

#[cfg(not(target_os = "linux"))]
fn tick_ms() -> u64 {
    TICK_MS_MAX
}

/// The names that [`probe`] uses: `é` composed, and others.
const PROBES: [&str; 4] = ["a", "b", "\u{e9}", "link"];

fn probe(dir: &OwnedFd, home: &Path, name: &str, traits: Traits) -> io::Result<Traits> {
    let mut file = create(dir, PROBES[0])?;
    file.write_all(&[1; 8192])?;
    create(dir, PROBES[1])?;
    create(dir, PROBES[2])?;
    let home_path = home.join(name);
    let in_home = File::create_new(&home_path)?;
    let can_reflink = reflink(&file, &in_home).is_ok();
    let can_link = linkat(CWD, &home_path, dir, PROBES[3], AtFlags::empty()).is_ok();
    std::fs::remove_file(&home_path)?;
    Ok(Traits {
        folds_case: stat_at(dir, b"A").is_ok(),
        folds_normalisation: stat_at(dir, "e\u{301}".as_bytes()).is_ok(),
        can_reflink,
        can_link,
        can_exchange: exchange(dir, PROBES[0].as_bytes(), PROBES[1].as_bytes()).is_ok(),
        ..traits
    })
}

fn create(dir: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?))
}
