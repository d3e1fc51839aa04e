//! Tells a peer of the plain protocol what changes in the metadata of assets. It has no journal, so it
//! gets values; `transfer/told.rs` has the streams.
//!
//! G1  The position in the journal is saved only when the peer has acknowledged everything before it. So
//!     nothing stays untold, and after a crash some is told twice, which changes nothing.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::time::sleep_until;

use super::live::Live;
use super::parts::Parts;
use crate::clock::instant_now;
use crate::core::ids::Hash;
use crate::core::journal::asset::ASSET_MODEL;
use crate::net::Connection;
use crate::replica::journal::JournalHandle;
use crate::state::journal::Cursor;
use crate::transfer::told;

/// Behind new assets and before large ones: metadata are small, and they describe the assets.
const PRIORITY: i32 = 15;

/// The changed records that are read at once.
const PAGE: usize = 512;

/// When assets that the peer does not know yet are told of again: soon at first, because most of them
/// are on their way.
const AGAIN_MIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// How long after a change the position is saved, and how soon a stream that broke is made again.
const REST: Duration = Duration::from_secs(30);

/// The most assets that wait until the peer knows them. Of more, all are told again over the next
/// connection.
const WAITING_MAX: usize = 4096;

/// Starts telling the peer of a connection, until the connection ends.
pub(super) fn start(parts: &mut Parts, live: &Live) {
    let (connection, journal) = (live.connection.clone(), parts.journal.clone());
    parts.tasks.spawn("plain metadata", async move {
        let telling = Telling {
            name: format!("plain {}", connection.peer()),
            connection: connection.clone(),
            journal,
            at: None,
            saved: None,
            waiting: BTreeSet::new(),
            is_overrun: false,
            again_in: AGAIN_MIN,
            due: instant_now() + REST,
        };
        tokio::select! {
            _ = connection.closed() => {}
            () = telling.run() => {}
        }
    });
}

struct Telling {
    connection: Connection,
    journal: JournalHandle,
    /// The name under which the position is saved.
    name: String,
    /// Up to where the journal's changes were told.
    at: Option<Cursor>,
    saved: Option<Cursor>,
    /// The assets that the peer did not know yet.
    waiting: BTreeSet<Hash>,
    /// There were too many of them.
    is_overrun: bool,
    again_in: Duration,
    /// When to look at those that wait, or to save the position.
    due: Instant,
}

impl Telling {
    async fn run(mut self) {
        let mut commits = self.journal.commits();
        let name = self.name.clone();
        match self.journal.read(move |reader| reader.cursor(&name)).await {
            Ok(saved) => (self.at, self.saved) = (saved, saved),
            Err(error) => return tracing::warn!(%error, "cannot tell a peer metadata"),
        }
        loop {
            commits.borrow_and_update();
            let mut told = self.tell_new().await;
            if told.is_ok() && instant_now() >= self.due {
                told = self.look_again().await;
            }
            if let Err(error) = &told {
                let peer = self.connection.peer();
                tracing::debug!(peer = %peer.short(), "telling metadata broke off: {error:#}");
                self.due = instant_now() + REST;
            }
            let is_at_rest = told.is_ok() && self.waiting.is_empty() && self.at == self.saved;
            tokio::select! {
                changed = commits.changed(), if told.is_ok() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = sleep_until(self.due.into()), if !is_at_rest => {}
            }
        }
    }

    /// Tells what changed.
    async fn tell_new(&mut self) -> Result<()> {
        loop {
            let since = self.at;
            let page = self
                .journal
                .read(move |reader| reader.changes(Some(ASSET_MODEL), since.as_ref(), PAGE))
                .await?;
            let Some(page) = page else {
                if self.at.take().is_none() {
                    return Ok(());
                }
                continue;
            };
            let changed = page.changes.iter().filter_map(|change| Hash::from_slice(&change.id));
            self.tell(changed.collect()).await?;
            self.at = Some(page.cursor);
            if !page.more {
                return Ok(());
            }
        }
    }

    /// Tells of the assets that waited, or saves the position if there are none.
    async fn look_again(&mut self) -> Result<()> {
        self.due = instant_now() + REST;
        if !self.waiting.is_empty() {
            self.again_in = (self.again_in * 2).min(AGAIN_MAX);
            self.due = instant_now() + self.again_in;
            let waiting = self.waiting.iter().copied().collect();
            return self.tell(waiting).await;
        }
        let (name, Some(at)) = (self.name.clone(), self.at) else { return Ok(()) };
        if !self.is_overrun && self.saved != self.at {
            self.journal.run(move |journal, _| journal.set_cursor(&name, &at)).await?;
        }
        self.saved = self.at;
        Ok(())
    }

    async fn tell(&mut self, mut hashes: Vec<Hash>) -> Result<()> {
        while !hashes.is_empty() {
            let (told, count, rest) = self
                .journal
                .read(move |reader| {
                    let (told, count) = reader.told(&hashes)?;
                    Ok((told, count, hashes))
                })
                .await?;
            if !told.is_empty() {
                let (send, recv) = self.connection.open_stream(PRIORITY).await?;
                let later = told::tell(recv, send, &told).await?;
                self.note(&rest[..count], later);
            }
            hashes = rest[count..].to_vec();
        }
        Ok(())
    }

    fn note(&mut self, told: &[Hash], later: Vec<Hash>) {
        if later.iter().any(|hash| !self.waiting.contains(hash)) {
            self.again_in = AGAIN_MIN;
            self.due = instant_now() + AGAIN_MIN;
        }
        for hash in told {
            self.waiting.remove(hash);
        }
        self.waiting.extend(later);
        if self.waiting.len() > WAITING_MAX {
            self.waiting.clear();
            self.is_overrun = true;
        }
    }
}
