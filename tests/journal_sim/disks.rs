//! Disks: crashes, restored backups, full disks.

use super::*;

impl World {
    pub(super) fn open(&mut self, n: usize) {
        let seed = self.rng.bytes();
        let node = &mut self.nodes[n];
        if std::mem::take(&mut node.memory.full) {
            Tables::open(&node.path).fill(false);
        }
        let ident = DbIdent { device: 1, inode: node.ident, born_ns: 0 };
        let journal = Journal::open_as(&node.path, &node.identity, seed, ident).unwrap();
        let reader = journal.reader().unwrap();
        node.open = Some(Open { journal, reader, tables: Tables::open(&node.path) });
    }

    /// Sometimes crashes the device right after a commit, before it can send anything.
    pub(super) fn crashes_now(&mut self, n: usize) -> bool {
        let crashes = self.faults.crashes && self.rng.chance(1);
        if crashes {
            self.crash(n);
        }
        crashes
    }

    pub(super) fn crash(&mut self, n: usize) {
        if self.nodes[n].gone || !self.faults.crashes {
            return;
        }
        self.count(Happened::Crash, 1);
        let next = self.next_path(n);
        let torn = self.rng.bytes();
        let torn = &torn[..self.rng.index(33)];
        copy(&self.nodes[n].path, &next, torn);
        self.start_from(n, next);
        self.check(n);
    }

    pub(crate) fn back_up(&mut self, n: usize) {
        if self.is_up(n) {
            let path = self.next_path(n);
            copy(&self.nodes[n].path, &path, &[]);
            let memory = self.nodes[n].memory.clone();
            self.nodes[n].backups.push((path, memory));
        }
    }

    pub(super) fn restore(&mut self, n: usize) {
        if self.nodes[n].gone || self.nodes[n].backups.is_empty() {
            return;
        }
        let silent = match (self.faults.silent_restores, self.faults.restores) {
            (true, true) => self.rng.chance(50),
            (true, false) => true,
            (false, true) => false,
            (false, false) => return,
        };
        let from = self.rng.index(self.nodes[n].backups.len());
        self.put_back(n, from, silent);
        if self.rng.chance(40) {
            // It first meets others, which know what it has forgotten.
            return;
        }
        // It writes before it meets others, so that logs fork and prunes hide the forks.
        for _ in 0..self.rng.below(6) {
            self.write(n);
        }
        let times = self.rng.below(12);
        self.overwrite(n, 0, times);
        if self.rng.chance(70) {
            let days = if self.rng.chance(50) { 31 } else { 0 };
            self.prune(n, days);
        }
    }

    /// Restores a backup.
    pub(crate) fn put_back(&mut self, n: usize, from: usize, silent: bool) {
        let (path, memory) = self.nodes[n].backups[from].clone();
        let next = self.next_path(n);
        copy(&path, &next, &[]);
        if silent {
            self.nodes[n].silently_restored = true;
            self.count(Happened::SilentRestore, 1);
        } else if !self.is(Mutant::NoNewLogAfterARestore) {
            self.nodes[n].ident += 1;
        }
        self.count(Happened::Restore, 1);
        self.nodes[n].memory = memory;
        self.start_from(n, next);
        self.check(n);
    }

    fn start_from(&mut self, n: usize, path: PathBuf) {
        self.unplug(n);
        self.nodes[n].open = None;
        self.nodes[n].path = path;
        self.nodes[n].later = None;
        self.open(n);
    }

    pub(super) fn unplug(&mut self, n: usize) {
        self.links.retain(|link| link.iter().all(|side| side.node != n));
    }

    fn next_path(&mut self, n: usize) -> PathBuf {
        self.nodes[n].generation += 1;
        self.dir.path().join(format!("{n}-{}.db", self.nodes[n].generation))
    }

    pub(super) fn fill_disk(&mut self, n: usize) {
        if self.faults.full_disks && self.is_up(n) {
            let full = !self.nodes[n].memory.full;
            self.set_full(n, full);
        }
    }

    pub(super) fn set_full(&mut self, n: usize, full: bool) {
        if self.nodes[n].memory.full != full {
            self.nodes[n].tables().fill(full);
            self.nodes[n].memory.full = full;
        }
    }

    /// The outcome, unless the disk was full or the device is removed; any other error is a
    /// failure.
    pub(super) fn unless_full<T>(
        &mut self,
        n: usize,
        outcome: Result<T, JournalError>,
    ) -> Option<T> {
        match outcome {
            Ok(outcome) => return Some(outcome),
            Err(JournalError::DiskFull) if self.nodes[n].memory.full => {
                self.count(Happened::DiskFull, 1);
                self.check(n);
            }
            Err(JournalError::Removed) => {}
            // A ticket is refused where ops of a later version would have to be written anew first.
            Err(JournalError::Unreadable) if self.faults.later_kinds => {}
            Err(error) => self.blame(|| format!("device {n}: {error}")),
        }
        None
    }
}

/// Copies what is on the disk at this moment, with a torn write at the end of SQLite's WAL.
fn copy(from: &Path, to: &Path, torn: &[u8]) {
    let wal = |path: &Path| PathBuf::from(format!("{}-wal", path.display()));
    std::fs::copy(from, to).unwrap();
    if let Ok(mut bytes) = std::fs::read(wal(from)) {
        bytes.extend_from_slice(torn);
        std::fs::write(wal(to), bytes).unwrap();
    }
}
