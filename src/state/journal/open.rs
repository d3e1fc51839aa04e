//! Opening the journal, and proving that this device remembers the end of its log.

use std::path::Path;

use crate::clock::wall_ms;
use crate::core::ids::{GroupId, NodeId, OpHash};
use crate::core::journal::op::{Change, KINDS};
use crate::db::Readers;
use crate::state::home::private_database_file;
use crate::state::identity::Identity;

use super::roster::Roster;
use super::rows::read_body;
use super::schema::{key, meta, meta_array, prepare, set_meta};
use super::tx::{Nonces, Tx};
use super::upgrade::STEPS;
use super::{DbIdent, Journal, JournalError, JournalReader, Result};

impl DbIdent {
    /// Reads the identity of the file at `path`.
    pub fn of(path: &Path) -> std::io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let meta = std::fs::metadata(path)?;
        let born = meta.created().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        let born_ns = born.map_or(0, |age| u64::try_from(age.as_nanos()).unwrap_or(u64::MAX));
        Ok(Self { device: meta.dev(), inode: meta.ino(), born_ns })
    }

    /// Whether both are the same file. A file system may get another device number at every mount,
    /// so that number counts only where files have no birth time.
    fn is_same_file(self, other: Self) -> bool {
        let same_birth = (self.inode, self.born_ns) == (other.inode, other.born_ns);
        same_birth && (self.born_ns != 0 || self.device == other.device)
    }

    /// Reads what [`Self::to_bytes`] wrote.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (numbers, rest) = bytes.as_chunks::<8>();
        match (numbers, rest) {
            ([device, inode, born_ns], []) => {
                let [device, inode, born_ns] =
                    [device, inode, born_ns].map(|n| u64::from_be_bytes(*n));
                Some(Self { device, inode, born_ns })
            }
            _ => None,
        }
    }

    fn to_bytes(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        for (part, number) in bytes.chunks_exact_mut(8).zip([self.device, self.inode, self.born_ns])
        {
            part.copy_from_slice(&number.to_be_bytes());
        }
        bytes
    }
}

impl Journal {
    /// Opens the journal at `path`, or creates it. If the file is not the one that was written last
    /// (a restored backup, a copy), this device writes to a new log. `seed` must be random and new
    /// at every call: the nonces of logs and groups are made from it.
    pub fn open(path: &Path, identity: &Identity, seed: [u8; 32]) -> Result<Self> {
        private_database_file(path).map_err(|error| JournalError::Open(format!("{error:#}")))?;
        let ident = DbIdent::of(path).map_err(|error| JournalError::Open(error.to_string()))?;
        Self::open_as(path, identity, seed, ident)
    }

    /// As [`Journal::open`] for a file with the given identity; for simulations of restores.
    pub fn open_as(
        path: &Path,
        identity: &Identity,
        seed: [u8; 32],
        ident: DbIdent,
    ) -> Result<Self> {
        let connection = prepare(path, &STEPS, &identity.node_id, wall_ms())?;
        let mut journal = Self {
            path: path.to_owned(),
            identity: identity.clone(),
            connection,
            nonces: Nonces::new(seed),
            roster: Roster::default(),
            group: None,
            news: super::News::default(),
            ledger: None,
            is_log_full: false,
        };
        journal.prove_tail(ident)?;
        journal.read_opaque()?;
        journal.group = meta_array(&journal.connection, key::GROUP)?.map(GroupId);
        let mut tx = journal.begin(0)?;
        let roster = tx.next_roster()?;
        tx.commit()?;
        journal.roster.set(roster);
        Ok(journal)
    }

    /// Opens a reader of the same journal.
    pub fn reader(&self) -> Result<JournalReader> {
        JournalReader::open(&self.path)
    }

    /// Opens reading connections to the same journal, for a pool.
    pub fn readers(&self, count: usize) -> Result<Readers<JournalReader>> {
        Ok(Readers::new((0..count).map(|_| self.reader()).collect::<Result<_>>()?))
    }

    /// Moves all commits into the main file, so that it alone is the whole journal.
    pub fn close(self) -> Result<()> {
        let is_busy: bool =
            self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        if is_busy {
            tracing::warn!(
                "somebody is reading the journal: a part of it stays in journal.db-wal until the next \
                 stop"
            );
        }
        Ok(())
    }

    /// The group; `None` when this device is in none.
    pub fn group(&self) -> Option<GroupId> {
        self.group
    }

    /// The roster: what is looked up about the group at every connection.
    pub fn roster(&self) -> Roster {
        self.roster.clone()
    }

    /// Begins a new log because the user says that this is a restored backup.
    pub fn restored(&mut self) -> Result<()> {
        let mut tx = self.begin(0)?;
        tx.group()?;
        tx.close_log();
        tx.forget_shadows()?;
        tx.commit()
    }

    pub(super) fn begin(&mut self, now_ms: u64) -> Result<Tx<'_>> {
        let Self { connection, identity, nonces, news, ledger, roster, .. } = self;
        Tx::begin(connection, identity, nonces, news, ledger, roster.clone(), now_ms)
    }

    /// Closes the log if the database is not the file that was written last.
    fn prove_tail(&mut self, ident: DbIdent) -> Result<()> {
        let known = meta(&self.connection, key::IDENT)?;
        let known = known.and_then(|bytes| DbIdent::from_bytes(&bytes));
        if known.is_some_and(|known| known.is_same_file(ident)) {
            return Ok(());
        }
        let mut tx = self.begin(0)?;
        if tx.group.is_some() {
            tx.close_log();
            // The store has changed since the backup: its rows are not edits of what was known
            // then.
            tx.forget_shadows()?;
            tracing::warn!(
                "the journal is not the file of the last run but a backup or a copy: this device \
                 writes to a new log from now on"
            );
        }
        set_meta(&tx.db, key::IDENT, &ident.to_bytes())?;
        tx.commit()
    }

    /// Reads the ops that an earlier version could not read.
    fn read_opaque(&mut self) -> Result<()> {
        let kinds = KINDS.to_string().into_bytes();
        if meta(&self.connection, key::KINDS)?.as_ref() == Some(&kinds) {
            return Ok(());
        }
        let mut tx = self.begin(0)?;
        let unread: Vec<i64> = {
            let mut query = tx.db.prepare("SELECT arr FROM ops WHERE opaque = 1 ORDER BY arr")?;
            let rows = query.query_map([], |row| row.get(0))?;
            rows.collect::<rusqlite::Result<_>>()?
        };
        for arr in unread {
            tx.reread(arr)?;
        }
        set_meta(&tx.db, key::KINDS, &kinds)?;
        tx.commit()
    }
}

impl Tx<'_> {
    /// Merges an op again that was opaque; it stays opaque while anything in it is unknown. It gets
    /// a new arrival number and keeps its references: readers with a cursor are past its old
    /// number.
    fn reread(&mut self, old: i64) -> Result<()> {
        let bytes: Vec<u8> =
            self.db.query_row("SELECT body FROM ops WHERE arr = ?1", [old], |row| row.get(0))?;
        let body = match read_body(&bytes) {
            Ok(body) => body,
            // It was valid enough to be stored, and is no reason to refuse all other ops.
            Err(error) => {
                tracing::warn!(%error, "cannot read an op of a later version yet");
                return Ok(());
            }
        };
        let next = "UPDATE sqlite_sequence SET seq = seq + 1 WHERE name = 'ops' RETURNING seq";
        let arr: i64 = self.db.query_row(next, [], |row| row.get(0))?;
        let (log, hash, refs) = self.db.query_row(
            "UPDATE ops SET arr = ?2 WHERE arr = ?1 RETURNING log, hash, refs",
            [old, arr],
            |row| Ok((row.get(0)?, OpHash(row.get(1)?), row.get::<_, i64>(2)?)),
        )?;
        if refs > 0 {
            for renumber in [
                "UPDATE cells SET op = ?2 WHERE op = ?1",
                "UPDATE events SET arr = ?2 WHERE arr = ?1",
                "UPDATE members SET op = ?2 WHERE op = ?1",
            ] {
                self.db.execute(renumber, [old, arr])?;
            }
        }
        let row = self.log(log)?;
        let (log_id, dev) = (row.id, row.dev);
        let author = self
            .db
            .query_row("SELECT id FROM devices WHERE dev = ?1", [dev], |row| row.get(0))
            .map(NodeId)?;
        self.merge(arr, log, &author, &log_id, &hash, &body)?;
        if body.changes.contains(&Change::Unknown) {
            return Ok(());
        }
        let refs: i64 = self.db.query_row(
            "UPDATE ops SET opaque = 0 WHERE arr = ?1 RETURNING refs",
            [arr],
            |row| row.get(0),
        )?;
        if refs == 0 {
            self.toggle_above(log, body.seq, &hash.0, false)?;
        }
        Ok(())
    }
}
