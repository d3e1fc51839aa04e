//! The assets that the metadata stage has yet to look at: the catalogue adds them, the settler
//! takes them.
//!
//! B1  The catalogue never waits here. The backlog is bounded; of lines that do not fit only the
//!     position in the store's feed is kept, and the settler lists the store from there.
//! B2  The settler has taken every line of the feed up to [`Lines::read_to`], or the line is in the
//!     backlog, or a listing that the backlog demands covers it. So a new session with the store
//!     reads the feed from there on.
//! B3  A settler that cannot finish puts back what it took.
//! B4  The backlog never mixes lines of two stores: it is emptied when another store answers.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};

use crate::core::ids::{Hash, StoreId};
use crate::store::{Cursor, StoreInfo, Touched};

/// The most lines in the backlog: some seconds of a fast import, less than 1 MiB.
pub(crate) const LINES_MAX: usize = 16 * 1024;

/// A store that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Opened {
    /// A new number means another store, or an older state of the same one.
    pub(crate) number: u64,
    pub(crate) store_id: StoreId,
}

/// The store, or why it does not answer; `None` until either is known.
pub(crate) type Answer = Option<Result<Opened, String>>;

/// An asset that was stored or edited, and its position in the store's feed.
pub(crate) type Line = (Hash, Cursor);

/// What the settler has to look at.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Work {
    /// In the order of the feed.
    pub(crate) lines: VecDeque<Line>,
    /// List the assets stored after this cursor: their lines did not fit.
    pub(crate) list_from: Option<Cursor>,
    /// Look at every asset: lines of edits are missing.
    pub(crate) is_gap: bool,
}

/// The lines that the catalogue has read and the settler has not taken. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Backlog(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    lines: Mutex<Lines>,
    news: Notify,
    answer: watch::Sender<Answer>,
}

#[derive(Debug)]
struct Lines {
    /// The number of the store that answered last, see [`Opened::number`].
    number: u64,
    /// How far the feed was read, and of which store.
    read_to: Option<(StoreId, Cursor)>,
    work: Work,
}

impl Backlog {
    /// An empty backlog. `read_to` is the position that an earlier run's settler reached in a
    /// store's feed.
    pub(crate) fn new(read_to: Option<(StoreId, Cursor)>) -> Self {
        let lines = Lines { number: 0, read_to, work: Work::default() };
        let (lines, answer) = (Mutex::new(lines), watch::channel(None).0);
        Self(Arc::new(Shared { lines, news: Notify::new(), answer }))
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.0.lines.lock()
    }

    // ---- the catalogue's side ----------------------------------------------------------------

    /// Begins a session with the store that answered. Returns the cursor from which to read its
    /// feed.
    pub(crate) fn open(&self, info: &StoreInfo) -> Cursor {
        let mut lines = self.lines();
        let read_to = match lines.read_to {
            Some((store_id, read_to)) if store_id == info.store_id => Some(read_to),
            _ => None,
        };
        // A store that does not report its asset count does not report its newest cursor either.
        let went_back = info.asset_count > 0 && read_to.is_some_and(|at| at > info.newest_cursor);
        if read_to.is_none() || went_back {
            // The feed does not report changes before this moment.
            lines.work = Work { is_gap: true, ..Work::default() };
            lines.read_to = Some((info.store_id, info.newest_cursor));
        }
        if read_to.is_none() || went_back || lines.number == 0 {
            lines.number += 1;
        }
        let opened = Opened { number: lines.number, store_id: info.store_id };
        let from = lines.cursor();
        drop(lines);
        self.0.answer.send_replace(Some(Ok(opened)));
        self.0.news.notify_one();
        from
    }

    /// Records that the store does not answer.
    pub(super) fn close(&self, error: String) {
        self.0.answer.send_replace(Some(Err(error)));
    }

    /// How far the store's feed was read.
    pub(super) fn read_to(&self) -> Cursor {
        self.lines().cursor()
    }

    /// Adds a line of the store's change feed to the backlog.
    pub(crate) fn add(&self, line: Touched) {
        self.lines().add(line);
        self.0.news.notify_one();
    }

    // ---- the settler's side ------------------------------------------------------------------

    /// The store that answers; changes when another one does.
    pub(crate) fn answer(&self) -> watch::Receiver<Answer> {
        self.0.answer.subscribe()
    }

    /// Waits until there is something to look at.
    ///
    /// # Cancel safety
    /// Safe. At most one caller may wait.
    pub(crate) async fn ready(&self) {
        while self.lines().work == Work::default() {
            self.0.news.notified().await;
        }
    }

    /// Takes at most `lines_max` lines and every demand for a listing; `None` if another store
    /// answers now.
    pub(crate) fn take(&self, number: u64, lines_max: usize) -> Option<Work> {
        let mut all = self.lines();
        if all.number != number {
            return None;
        }
        let Work { lines, list_from, is_gap } = &mut all.work;
        let count = lines.len().min(lines_max);
        let lines = lines.drain(..count).collect();
        Some(Work { lines, list_from: list_from.take(), is_gap: std::mem::take(is_gap) })
    }

    /// Puts back the unfinished work for the store of this number. Does nothing if another store
    /// answers now.
    pub(crate) fn put_back(&self, number: u64, unfinished: Work) {
        let mut all = self.lines();
        if all.number != number {
            return;
        }
        let Work { mut lines, list_from, is_gap } = unfinished;
        lines.append(&mut all.work.lines);
        all.work.lines = lines;
        if let Some(from) = list_from {
            all.work.list_from(from);
        }
        all.work.is_gap |= is_gap;
        drop(all);
        self.0.news.notify_one();
    }
}

impl Lines {
    fn cursor(&self) -> Cursor {
        self.read_to.map_or(0, |(_, cursor)| cursor)
    }

    fn add(&mut self, line: Touched) {
        let (hash, cursor, is_stored) = match line {
            Touched::Stored { hash, cursor } => (hash, cursor, true),
            Touched::Edited { hash, cursor } => (hash, cursor, false),
            Touched::Changed => return,
            Touched::Gap => {
                self.work.is_gap = true;
                return;
            }
        };
        if let Some((_, read_to)) = &mut self.read_to
            && cursor > 0
        {
            *read_to = cursor;
        }
        if self.work.lines.len() < LINES_MAX {
            self.work.lines.push_back((hash, cursor));
        } else if is_stored && cursor > 0 {
            self.work.list_from(cursor - 1);
        } else {
            // Only a listing of everything shows edits.
            self.work.is_gap = true;
        }
    }
}

impl Work {
    fn list_from(&mut self, cursor: Cursor) {
        self.list_from = Some(self.list_from.map_or(cursor, |from| from.min(cursor)));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::core::ids::HashAlgorithm;

    fn info(store: u8, newest_cursor: Cursor) -> StoreInfo {
        StoreInfo {
            store_id: StoreId([store; StoreId::LEN]),
            hash_algorithm: HashAlgorithm::Blake3,
            newest_cursor,
            asset_count: newest_cursor,
            asset_bytes: newest_cursor,
            largest_asset_bytes: None,
        }
    }

    fn stored(cursor: Cursor) -> Touched {
        Touched::Stored { hash: Hash([7; 32]), cursor }
    }

    fn edited(cursor: Cursor) -> Touched {
        Touched::Edited { hash: Hash([8; 32]), cursor }
    }

    fn number(backlog: &Backlog) -> u64 {
        let answer = backlog.answer().borrow().clone();
        answer.unwrap().unwrap().number
    }

    fn cursors(work: &Work) -> Vec<Cursor> {
        work.lines.iter().map(|(_, cursor)| *cursor).collect()
    }

    #[test]
    fn the_feed_is_read_on_from_where_it_was_read_and_nothing_is_taken_twice() {
        let backlog = Backlog::new(Some((info(1, 0).store_id, 3)));
        assert_eq!(backlog.open(&info(1, 9)), 3, "where the run before stood");
        let first = number(&backlog);
        for line in [stored(4), edited(6), Touched::Changed] {
            backlog.add(line);
        }
        backlog.close("down".into());
        assert_eq!(backlog.open(&info(1, 9)), 6);
        assert_eq!(number(&backlog), first, "the same store");
        backlog.add(stored(7));
        let work = backlog.take(first, 2).unwrap();
        assert_eq!(cursors(&work), [4, 6]);
        backlog.put_back(first, work);
        assert_eq!(cursors(&backlog.take(first, 10).unwrap()), [4, 6, 7], "in their order");
        assert_eq!(backlog.take(first, 10), Some(Work::default()));
    }

    #[test]
    fn lines_of_one_store_are_not_taken_for_anothers() {
        let backlog = Backlog::new(None);
        assert_eq!(backlog.open(&info(1, 5)), 5);
        let first = number(&backlog);
        backlog.add(stored(6));
        let work = backlog.take(first, 10).unwrap();
        assert!(work.is_gap, "what was there before is to be looked at");
        backlog.add(stored(7));
        assert_eq!(backlog.open(&info(2, 2)), 2);
        assert_eq!(backlog.take(first, 10), None);
        backlog.put_back(first, work);
        let of_second = Work { is_gap: true, ..Work::default() };
        assert_eq!(backlog.take(number(&backlog), 10), Some(of_second));
    }

    #[test]
    fn a_store_that_went_back_is_read_from_its_newest_cursor_and_looked_at_whole() {
        let backlog = Backlog::new(None);
        backlog.open(&info(1, 5));
        let first = number(&backlog);
        backlog.add(stored(6));
        assert_eq!(backlog.open(&info(1, 4)), 4);
        assert_ne!(number(&backlog), first);
        let work = backlog.take(number(&backlog), 10).unwrap();
        assert_eq!(work, Work { is_gap: true, ..Work::default() });
    }

    #[test]
    fn what_does_not_fit_is_listed_from_its_place_and_of_lost_edits_all_is_looked_at() {
        let backlog = Backlog::new(None);
        backlog.open(&info(1, 0));
        let first = number(&backlog);
        backlog.take(first, 0);
        let newest = LINES_MAX as u64 + 3;
        (1..=newest).for_each(|cursor| backlog.add(stored(cursor)));
        assert_eq!(backlog.read_to(), newest);
        let work = backlog.take(first, usize::MAX).unwrap();
        assert_eq!((work.lines.len(), work.is_gap), (LINES_MAX, false));
        assert_eq!(work.list_from, Some(LINES_MAX as u64), "after the last that fitted in");
        backlog.put_back(first, work);
        backlog.add(edited(newest + 1));
        assert!(backlog.take(first, 1).unwrap().is_gap);
        // A store without cursors cannot be listed from a position.
        backlog.add(stored(newest + 2));
        backlog.add(stored(0));
        assert!(backlog.take(first, 1).unwrap().is_gap);
    }
}
