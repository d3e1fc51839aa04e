//! Somebody saves a file while it is replaced, thousands of times. Each saved line must be found: at the
//! name, in a version that was read before it was replaced, or in an edit that was returned.
//!
//! `ROUNDS=100000 cargo test --release --test folder_disk races -- --nocapture` for long runs.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use can_sync::folders::disk::{Displaced, Place, PlaceError, Placed, Seen, keep};

use crate::common::{Bound, content, path, quick_dir};

const NAME: &str = "file";

/// How much faster than the real one the clock of the kept content goes, so that ten seconds pass many
/// times in a test. A save under way still takes a small part of them.
const HURRY: u128 = 20;

/// Replaces the file again and again, as the driver of a folder does, and remembers every line that
/// is safe.
struct Driver {
    bound: Bound,
    base: Option<Seen>,
    safe: BTreeSet<String>,
    started: Instant,
    edits: usize,
    refused: usize,
}

impl Driver {
    fn new(dir: &Path) -> Self {
        let bound = Bound::within(dir);
        let base = Some(bound.write(NAME, ""));
        let (safe, started) = (BTreeSet::new(), Instant::now());
        Self { bound, base, safe, started, edits: 0, refused: 0 }
    }

    fn remember(&mut self, content: &[u8]) {
        let text = String::from_utf8(content.to_vec()).unwrap();
        self.safe.extend(text.lines().map(str::to_owned));
    }

    /// Takes over what the user saved. False when the file is being written.
    fn ingest(&mut self) -> bool {
        let seen = self.bound.seen(NAME);
        if seen == self.base {
            return true;
        }
        if let Some(seen) = seen {
            let at = path(NAME);
            let Ok(mut stable) = self.bound.root.open_stable(&at, &seen) else { return false };
            let mut content = Vec::new();
            if stable.read_to_end(&mut content).is_err() || stable.finish().is_err() {
                return false;
            }
            self.remember(&content);
        }
        self.base = seen;
        true
    }

    fn take(&mut self, edit: Displaced) {
        self.edits += 1;
        let content = content(&self.bound.root, &edit.kept);
        self.remember(&content);
        // What is written from now on must come back.
        self.bound.root.release(edit);
    }

    /// The stat that is returned with what was placed is of that, and of no edit after it.
    fn check_base(&self, placed: &str) {
        let Some(seen) = self.base else { return };
        let at = path(NAME);
        let Ok(mut stable) = self.bound.root.open_stable(&at, &seen) else { return };
        let mut text = String::new();
        if stable.read_to_string(&mut text).is_ok() && stable.finish().is_ok() {
            assert_eq!(text, placed);
        }
    }

    fn round(&mut self, round: usize) {
        if self.ingest() {
            let text = format!("placed {round}\n");
            let placed = if round % 7 == 6 {
                self.bound.place_other(NAME, Place::Nothing, self.base)
            } else {
                self.bound.place(NAME, &text, self.base)
            };
            match placed {
                Ok(Placed::Done(seen)) => {
                    self.base = seen;
                    self.check_base(&text);
                }
                Ok(Placed::Displaced { seen, edit }) => {
                    self.base = seen;
                    self.check_base(&text);
                    self.take(edit);
                }
                Err(PlaceError::Changed) => self.refused += 1,
                Err(error) => panic!("{error}"),
            }
        }
        let now_ms = self.started.elapsed().as_millis() * HURRY;
        self.settle(u64::try_from(now_ms).unwrap());
    }

    fn settle(&mut self, now_ms: u64) {
        for edit in self.bound.root.settle(now_ms) {
            self.take(edit);
        }
    }

    /// After the writers ended.
    fn end(mut self, saved: &BTreeSet<String>) {
        let start_ms = u64::try_from(self.started.elapsed().as_millis() * HURRY).unwrap();
        for step in 1..10 {
            self.settle(start_ms + step * keep::KEPT_MS);
        }
        assert!(self.ingest());
        let lost: Vec<_> = saved.difference(&self.safe).collect();
        assert!(lost.is_empty(), "{} of {} lines are lost: {lost:?}", lost.len(), saved.len());
        assert_eq!(self.bound.kept(), Vec::<String>::new());
        assert!(self.bound.own_names("").iter().all(|name| name == ".can-sync-kept"));
        let (edits, refused) = (self.edits, self.refused);
        println!("{} lines saved, {edits} edits returned, {refused} refused", saved.len());
    }
}

/// Replaces the file `rounds` times while `write` saves. It gets the file's path and the text to add,
/// and returns false when the file is not there.
pub(crate) fn race(dir: &Path, rounds: usize, writers: &[fn(&Path, &str) -> io::Result<()>]) {
    let mut driver = Driver::new(dir);
    let (file, stop) = (driver.bound.dir.join(NAME), AtomicBool::new(false));
    let saved = std::thread::scope(|scope| {
        let threads: Vec<_> = writers
            .iter()
            .enumerate()
            .map(|(writer, write)| {
                let (file, stop) = (&file, &stop);
                scope.spawn(move || {
                    let mut saved = BTreeSet::new();
                    for count in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let line = format!("writer {writer} line {count}");
                        match write(file, &line) {
                            Ok(()) => drop(saved.insert(line)),
                            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                    saved
                })
            })
            .collect();
        for round in 0..rounds {
            driver.round(round);
        }
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<BTreeSet<_>>()
    });
    assert!(!saved.is_empty());
    assert!(driver.edits + driver.refused > 0, "nobody was in anybody's way");
    driver.end(&saved);
}

pub(crate) fn append(file: &Path, line: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).open(file)?;
    file.write_all(format!("{line}\n").as_bytes())
}

/// Reads all, truncates, writes all: only this program knows the lines in between.
pub(crate) fn rewrite(file: &Path, line: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(file)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(last_lines(&text, line).as_bytes())
}

pub(crate) fn save_by_rename(file: &Path, line: &str) -> io::Result<()> {
    let text = std::fs::read_to_string(file)?;
    let saved = beside(file, "saved");
    std::fs::write(&saved, last_lines(&text, line))?;
    std::fs::rename(saved, file)
}

/// As editors do that keep a backup: the old file gets another name, a new one is written in place.
fn save_with_backup(file: &Path, line: &str) -> io::Result<()> {
    let text = std::fs::read_to_string(file)?;
    std::fs::rename(file, beside(file, "backup"))?;
    let mut new = File::create(file)?;
    new.write_all(last_lines(&text, line).as_bytes())
}

/// Keeps the file open for several lines.
pub(crate) fn hold_open(file: &Path, line: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).open(file)?;
    for part in 0..20 {
        let part = if part == 19 { String::new() } else { format!(" part {part}") };
        file.write_all(format!("{line}{part}\n").as_bytes())?;
        std::thread::yield_now();
    }
    Ok(())
}

/// What the file becomes. All lines, so that a save carries over what an earlier one wrote.
fn last_lines(text: &str, line: &str) -> String {
    format!("{text}{line}\n")
}

fn beside(file: &Path, name: &str) -> PathBuf {
    file.parent().unwrap().parent().unwrap().join(name)
}

/// Directories on different file systems, and how many rounds they bear.
fn places() -> Vec<(PathBuf, usize)> {
    let rounds: usize = std::env::var("ROUNDS").map_or(500, |text| text.parse().unwrap());
    // A disk is slower, and its writes take long enough to be in each other's way.
    vec![(quick_dir(), rounds), (std::env::temp_dir(), rounds / 10)]
}

fn race_everywhere(writers: &[fn(&Path, &str) -> io::Result<()>]) {
    for (dir, rounds) in places() {
        race(&dir, rounds, writers);
    }
}

#[test]
fn no_line_is_lost_that_is_appended_in_place() {
    race_everywhere(&[append]);
}

#[test]
fn no_line_is_lost_that_is_saved_by_truncating_and_writing() {
    race_everywhere(&[rewrite]);
}

#[test]
fn no_line_is_lost_that_is_saved_by_rename() {
    race_everywhere(&[save_by_rename]);
}

#[test]
fn no_line_is_lost_that_is_saved_with_a_backup() {
    race_everywhere(&[save_with_backup]);
}

#[test]
fn no_line_is_lost_of_a_program_that_holds_the_file_open() {
    race_everywhere(&[hold_open]);
}

#[test]
fn no_line_is_lost_of_several_programs_at_once() {
    race_everywhere(&[append, hold_open, append]);
}

#[test]
fn a_reader_never_sees_a_part_of_a_file() {
    let bound = Bound::new();
    let text = |round: usize| format!("{round:07}\n").repeat(8192);
    let mut seen = crate::common::done(bound.place(NAME, &text(0), None));
    let (file, stop) = (bound.dir.join(NAME), AtomicBool::new(false));
    let reads = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !stop.load(Ordering::Relaxed) {
                let content = std::fs::read_to_string(&file).unwrap();
                assert_eq!(content.len(), text(0).len());
                let first = content.lines().next().unwrap();
                assert!(content.lines().all(|line| line == first));
                reads += 1;
            }
            reads
        });
        for round in 1..200 {
            seen = crate::common::done(bound.place(NAME, &text(round), seen));
        }
        stop.store(true, Ordering::Relaxed);
        reader.join().unwrap()
    });
    assert!(reads > 0);
}

#[test]
fn a_directory_made_in_the_moment_in_which_a_file_is_replaced_stays_visible() {
    let bound = Bound::quick();
    let stop = AtomicBool::new(false);
    let file = bound.dir.join(NAME);
    let made = std::thread::scope(|scope| {
        let maker = scope.spawn(|| {
            let mut made = 0;
            while !stop.load(Ordering::Relaxed) {
                let new = bound.outside().join("new");
                if !new.exists() {
                    std::fs::create_dir(&new).unwrap();
                    std::fs::write(new.join(format!("mine {made}")), "mine").unwrap();
                }
                let _ = std::fs::remove_file(&file);
                if std::fs::rename(&new, &file).is_ok() {
                    made += 1;
                }
            }
            made
        });
        for round in 0..500 {
            let seen = bound.seen(NAME);
            if seen.is_some_and(|seen| seen.kind == can_sync::folders::disk::SeenKind::Directory) {
                // The user takes it away, so that there is another race.
                let _ = std::fs::rename(&file, bound.dir.join(format!("away {round}")));
                continue;
            }
            let _ = bound.place(NAME, "placed", seen);
        }
        stop.store(true, Ordering::Relaxed);
        maker.join().unwrap()
    });
    let found = bound.listed().iter().filter(|at| at.contains("/mine ")).count();
    assert_eq!(found, made);
}
