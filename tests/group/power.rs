//! Simulated power cuts: the journal of a running agent is copied while it writes and receives, and
//! the WAL of the copy is cut off at every place where a disk could have stopped.

use std::fs;
use std::path::Path;

use can_sync::state::identity::Identity;
use can_sync::state::journal::{DbIdent, JournalReader};
use common::wal::{WAL_HEADER_BYTES, frames, pin, wal_of};
use tempfile::TempDir;

use super::*;

/// The number of writes before the copy; each is one commit.
const WRITES: usize = 25;

/// The journal that a device finds after its WAL was cut off, and its progress in each log.
struct Cut {
    reader: JournalReader,
    clock: BTreeMap<LogId, u64>,
    _folder: TempDir,
}

impl Cut {
    fn open(database: &[u8], wal: &[u8], identity: &Identity, ident: DbIdent) -> Self {
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
        let folder = folder.unwrap();
        let path = folder.path().join("journal.db");
        fs::write(&path, database).unwrap();
        fs::write(wal_of(&path), wal).unwrap();
        let journal = Journal::open_as(&path, identity, [1; 32], ident).unwrap();
        assert_eq!(
            journal.reader().unwrap().fsck().unwrap(),
            Vec::<String>::new(),
            "cut at {}",
            wal.len()
        );
        let reader = journal.reader().unwrap();
        let clock = reader.clock().unwrap().entries;
        let clock = clock.iter().map(|entry| (entry.log, entry.seq)).collect();
        Self { reader, clock, _folder: folder }
    }

    fn has(&self, id: &str) -> bool {
        self.reader.record("note", Owner::Shared, id.as_bytes()).unwrap().is_some()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_cut_off_anywhere_holds_a_prefix_of_what_was_committed() {
    let mut a = Device::new();
    let identity = Identity::load_or_create(&a.home, &a.home.lock().unwrap()).unwrap();
    a.up().await;
    let b = Device::start().await;
    pair(&a, &b).await;
    same_journal(&[&a, &b]).await;
    let path = a.home.journal_db_path();
    let ident = DbIdent::of(&path).unwrap();
    let pinned = pin(&path, "meta");
    let database = fs::read(&path).unwrap();

    // Both write, so that commits are of both kinds. Acknowledged writes are recorded in order.
    let write_as = async |device: &Device, name: &str| {
        let mut written = Vec::new();
        for n in 0..WRITES {
            let id = format!("{name} {n}");
            let changes = vec![
                DraftChange::Put(with_text(&id, "text", &id)),
                DraftChange::Event { stream: "s".into(), kind: "k".into(), data: vec![1] },
            ];
            let draft = Draft { changes, expect: Vec::new() };
            let stamp = device.handle().journal().write(draft).await.unwrap().unwrap();
            written.push((stamp.unwrap().stamp, id));
        }
        written
    };
    let (by_a, by_b) = tokio::join!(write_as(&a, "a"), write_as(&b, "b"));
    same_journal(&[&a, &b]).await;
    let wal = fs::read(wal_of(&path)).unwrap();
    assert_eq!(fs::read(&path).unwrap(), database, "the log alone has what was written");
    drop(pinned);

    let frames = frames(&wal);
    assert!(frames.len() > 100, "only {} frames", frames.len());
    let mut before: Option<BTreeMap<LogId, u64>> = None;
    let mut start = WAL_HEADER_BYTES;
    for (end, is_commit) in frames {
        // Cut within the frame, and at its end.
        for cut in [(start + end) / 2, end] {
            let found = Cut::open(&database, &wal[..cut], &identity, ident);
            if let Some(before) = &before
                && !(is_commit && cut == end)
            {
                assert_eq!(found.clock, *before, "a commit is whole or absent: cut at {cut}");
            }
            for (stamp, id) in by_a.iter().chain(&by_b) {
                let covered = found.clock.get(&stamp.log).is_some_and(|seq| *seq >= stamp.seq);
                assert_eq!(found.has(id), covered, "{id}, cut at {cut}");
            }
            let past = before.iter().flatten();
            for (log, seq) in past {
                assert!(found.clock[log] >= *seq, "less than before: cut at {cut}");
            }
            before = Some(found.clock);
        }
        start = end;
    }
    let all = before.unwrap();
    for (stamp, id) in by_a.iter().chain(&by_b) {
        assert!(all[&stamp.log] >= stamp.seq, "{id} was acknowledged");
    }
}
