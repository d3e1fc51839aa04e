//! Frees the space of what nothing holds any more, by this device's own policy, see
//! [`crate::core::expiry`].
//!
//! X4  Bytes are deleted like evicted ones: with a durable intent, and not while another device relies on
//!     them or a bound directory needs them. Of an asset a stub stays, which sync leaves alone.
//! X5  What holds a content is looked at again right before, and nothing is deleted if the journal changed
//!     since or somebody put the content again: that may be about to be told.
//! X6  Once something holds a content again that went, it is wanted again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};

use crate::clock::wall_ms;
use crate::core::attributes::{Attribute, AttributeValue};
use crate::core::engine::Input;
use crate::core::expiry::{KeepPolicy, References, Waits, tells_of_itself};
use crate::core::folder::version::{Content, ShortId};
use crate::core::ids::{Digest, FolderId, Hash, NodeId};
use crate::core::journal::asset::{ASSET_MODEL, JournalRow};
use crate::replica::journal::JournalHandle;
use crate::state::copies::{Copies, Expiring};
use crate::state::journal::{Cursor, HistoryPlace, JournalReader};
use crate::store::{Filter, Metadata};

use super::evicting::Evictor;

/// How often all contents are looked at.
const WALK_EVERY: Duration = Duration::from_secs(3600);

/// How soon that is done again if something that is due could not be deleted.
const RETRY: Duration = Duration::from_secs(10);

/// Looking takes at most one part in this many of the time: a retry waits as long.
const WALK_PART: u32 = 20;

/// How long changes of the journal are collected before they are read.
const GATHER: Duration = Duration::from_secs(1);

/// Rows that are read or written at a time.
const PAGE: usize = 1024;

/// The most contents that one walk takes up, some hundred bytes each. The others follow once these went.
const CANDIDATES_MAX: usize = 100_000;

/// The contents that are deleted together: the intents of so many are durable at once.
const BATCH: usize = 64;

/// The task's parts.
pub(crate) struct Expiry<F> {
    pub(crate) journal: JournalHandle,
    pub(crate) policy: KeepPolicy,
    pub(crate) evictor: Evictor<F>,
}

/// A content that may be held by nothing.
#[derive(Debug, Default)]
struct Candidate {
    /// The devices that wrote versions with it.
    authors: BTreeSet<ShortId>,
    is_past: bool,
}

/// How far the journal's changes were followed.
#[derive(Debug, Clone, Copy, Default)]
struct Followed {
    files: Option<Cursor>,
    assets: Option<Cursor>,
}

impl<F: From<Input>> Expiry<F> {
    /// Runs until dropped or the journal is closed.
    pub(crate) async fn run(self) {
        let mut commits = self.journal.commits();
        let (mut followed, mut walk_at) = (Followed::default(), Instant::now());
        loop {
            commits.borrow_and_update();
            let begun = Instant::now();
            let looked = match begun >= walk_at {
                true => {
                    walk_at = begun + WALK_EVERY;
                    let walked = self.walk(&mut followed, wall_ms()).await;
                    if !walked.as_ref().is_ok_and(|all_went| *all_went) {
                        let took = begun.elapsed();
                        walk_at = Instant::now() + RETRY.max(took * WALK_PART);
                    }
                    walked.map(|_| ())
                }
                false => self.follow(&mut followed, &mut BTreeMap::new()).await,
            };
            if let Err(error) = looked {
                tracing::debug!("cannot look for what nothing holds: {error:#}");
            }
            let wait = walk_at.saturating_duration_since(Instant::now());
            if let Ok(Err(_)) = timeout(wait, commits.changed()).await {
                return;
            }
            sleep(GATHER).await;
        }
    }

    /// Looks at all contents, notes those that nothing holds, and deletes those that are due. Returns false
    /// if some of these could not be deleted now.
    async fn walk(&self, followed: &mut Followed, now_ms: u64) -> Result<bool> {
        *followed = Followed::default();
        let is_over = self.policy.is_all() || !self.evictor.can_evict;
        let copies = self.evictor.copies.clone();
        let noted = move || {
            let of = |is_applied| copies.expiring(is_applied, None, 1);
            Ok::<_, anyhow::Error>(!of(true)?.is_empty() || !of(false)?.is_empty())
        };
        if is_over && !spawn_blocking(noted).await?? {
            return Ok(true);
        }
        followed.assets = self.journal.read(|reader| reader.cursor_now()).await?;
        self.revive_untrashed().await?;
        let mut candidates = BTreeMap::new();
        if !is_over {
            self.collect_noted(&mut candidates).await?;
            self.collect_trashed(&mut candidates).await?;
            self.collect_past(&mut candidates).await?;
        }
        self.follow(followed, &mut candidates).await?;
        let hashes: Vec<Hash> = candidates.keys().copied().collect();
        for page in hashes.chunks(PAGE) {
            let found = page.iter().filter_map(|hash| Some((*hash, candidates.get(hash)?)));
            let waiting = self.waiting(found.collect()).await?;
            let copies = self.evictor.copies.clone();
            spawn_blocking(move || copies.note_expiring(waiting, now_ms, now_ms)).await??;
        }
        let copies = self.evictor.copies.clone();
        spawn_blocking(move || copies.forget_unseen(now_ms)).await??;
        match is_over {
            true => Ok(true),
            false => self.free(followed, &mut candidates, now_ms).await,
        }
    }

    /// Those that were noted before: they go first, so that new ones do not crowd them out.
    async fn collect_noted(&self, candidates: &mut BTreeMap<Hash, Candidate>) -> Result<()> {
        let copies = self.evictor.copies.clone();
        let noted = spawn_blocking(move || copies.expiring(false, None, CANDIDATES_MAX)).await??;
        candidates.extend(noted.into_iter().map(|one| (one.hash, Candidate::default())));
        Ok(())
    }

    /// The assets here that are in the trash.
    async fn collect_trashed(&self, candidates: &mut BTreeMap<Hash, Candidate>) -> Result<()> {
        if self.policy.trash_ms.is_none() {
            return Ok(());
        }
        let trashed = Filter { trashed: Some(true), ..Filter::default() };
        let mut after = 0;
        while candidates.len() < CANDIDATES_MAX {
            let page = self.evictor.store.list(&trashed, after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = last.entry.cursor;
            let held = page.iter().filter(|asset| asset.is_held());
            candidates.extend(held.map(|asset| (asset.entry.digest.hash, Candidate::default())));
        }
        Ok(())
    }

    /// The contents here of earlier versions, and which of the candidates are such.
    async fn collect_past(&self, candidates: &mut BTreeMap<Hash, Candidate>) -> Result<()> {
        for folder in self.folders().await? {
            let mut after: Option<HistoryPlace> = None;
            loop {
                let read =
                    move |reader: &JournalReader| reader.file_history(folder, None, 0, after, PAGE);
                let page = self.journal.read(read).await?;
                let past: Vec<(Hash, Option<ShortId>)> = page
                    .entries
                    .iter()
                    .filter_map(|entry| {
                        let author = entry.version.vector.newest().map(|(author, _)| author);
                        Some((hash_of(&entry.version.content)?, author))
                    })
                    .collect();
                let (index, asked) = (self.evictor.judge.index.clone(), past.clone());
                let held = spawn_blocking(move || {
                    index.held(&asked.into_iter().map(|(hash, _)| hash).collect::<Vec<_>>())
                });
                for ((hash, author), is_held) in past.into_iter().zip(held.await??) {
                    let has_room = candidates.len() < CANDIDATES_MAX;
                    let is_new = is_held && has_room && self.policy.versions_ms.is_some();
                    let candidate = match candidates.get_mut(&hash) {
                        Some(candidate) => candidate,
                        None if is_new => candidates.entry(hash).or_default(),
                        None => continue,
                    };
                    candidate.is_past = true;
                    candidate.authors.extend(author);
                }
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// The folders that any path belongs to.
    async fn folders(&self) -> Result<BTreeSet<FolderId>> {
        let mut folders = BTreeSet::new();
        let mut cursor = None;
        loop {
            let read = move |reader: &JournalReader| reader.file_changes(cursor.as_ref(), PAGE);
            let Some(page) = self.journal.read(read).await? else { return Ok(folders) };
            folders.extend(page.rows.iter().map(|row| row.folder));
            cursor = Some(page.cursor);
            if !page.more {
                return Ok(folders);
            }
        }
    }

    /// Follows the changes of files and assets. What holds a content now takes it out of the candidates, and
    /// brings it back if it went.
    async fn follow(
        &self,
        followed: &mut Followed,
        candidates: &mut BTreeMap<Hash, Candidate>,
    ) -> Result<()> {
        loop {
            let cursor = followed.files;
            let read = move |reader: &JournalReader| reader.file_changes(cursor.as_ref(), PAGE);
            let Some(page) = self.journal.read(read).await? else { break };
            let contents = page.rows.iter().map(|row| &row.version.content);
            let current: Vec<Hash> = contents.filter_map(hash_of).collect();
            current.iter().for_each(|hash| {
                candidates.remove(hash);
            });
            self.revive(current).await?;
            followed.files = Some(page.cursor);
            if !page.more {
                break;
            }
        }
        loop {
            let cursor = followed.assets;
            let read = move |reader: &JournalReader| {
                reader.changes(Some(ASSET_MODEL), cursor.as_ref(), PAGE)
            };
            // Another journal: the next walk looks at all.
            let Some(page) = self.journal.read(read).await? else { break };
            let ids = page.changes.iter().filter_map(|change| Hash::from_slice(&change.id));
            self.revive_of(ids.collect()).await?;
            followed.assets = Some(page.cursor);
            if !page.more {
                break;
            }
        }
        Ok(())
    }

    /// Takes up which of the assets that went are not in the trash any more.
    async fn revive_untrashed(&self) -> Result<()> {
        let mut after = None;
        loop {
            let copies = self.evictor.copies.clone();
            let page = spawn_blocking(move || copies.expiring(true, after, PAGE)).await??;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.hash);
            self.revive_of(page.into_iter().map(|one| one.hash).collect()).await?;
        }
    }

    /// Brings back those assets that waited in the trash and are not there any more.
    async fn revive_of(&self, hashes: Vec<Hash>) -> Result<()> {
        let copies = self.evictor.copies.clone();
        let noted = spawn_blocking(move || copies.are_expiring(&hashes)).await??;
        if noted.is_empty() {
            return Ok(());
        }
        let read = move |reader: &JournalReader| {
            let mut untrashed = Vec::new();
            for (hash, waits) in noted {
                let is_trashed = reader.asset(&hash)?.trashed == Some(true);
                untrashed.extend((waits.trash && !is_trashed).then_some(hash));
            }
            Ok(untrashed)
        };
        let untrashed = self.journal.read(read).await?;
        self.revive(untrashed).await
    }

    async fn revive(&self, hashes: Vec<Hash>) -> Result<()> {
        let copies = self.evictor.copies.clone();
        let revived = spawn_blocking(move || {
            let noted = copies.are_expiring(&hashes)?;
            match noted.is_empty() {
                true => Ok(Vec::new()),
                false => copies.revive(noted.into_iter().map(|(hash, _)| hash).collect()),
            }
        });
        let revived = revived.await??;
        if !revived.is_empty() {
            tracing::info!(count = revived.len(), "contents that went are wanted again");
        }
        self.evictor.judge.reconsider(revived).await
    }

    /// Which of the candidates nothing holds, with what each waits for. What holds paths is known.
    async fn waiting(&self, candidates: Vec<(Hash, &Candidate)>) -> Result<Vec<(Hash, Waits)>> {
        let hashes: Vec<Hash> = candidates.iter().map(|(hash, _)| *hash).collect();
        let (copies, asked) = (self.evictor.copies.clone(), hashes.clone());
        let tells_since_ms = spawn_blocking(move || copies.tells_since_ms()).await??;
        let read = move |reader: &JournalReader| {
            let origins = reader.origins(&asked)?;
            let rows = asked.iter().map(|hash| reader.asset(hash));
            Ok((origins, rows.collect::<crate::state::journal::Result<Vec<_>>>()?))
        };
        let (origins, rows) = self.journal.read(read).await?;
        let mut waiting = Vec::new();
        for (((hash, candidate), origin), row) in candidates.into_iter().zip(origins).zip(rows) {
            let Some(asset) = self.evictor.store.lookup(hash).await? else { continue };
            if !asset.is_held() {
                continue;
            }
            let tells = origin.is_none_or(|(adder, added_ms)| {
                let is_by_author = candidate.authors.contains(&ShortId::from(&adder));
                is_by_author && tells_of_itself(added_ms, tells_since_ms)
            });
            let references = References {
                is_current: false,
                is_past: candidate.is_past,
                is_trashed: row.trashed == Some(true) && asset.metadata.trashed,
                is_own: !tells || is_described(&row) || is_told(&asset.metadata),
            };
            waiting.extend(references.waits().map(|waits| (hash, waits)));
        }
        Ok(waiting)
    }

    /// Deletes what is due. Returns false if some could not be deleted now.
    async fn free(
        &self,
        followed: &mut Followed,
        candidates: &mut BTreeMap<Hash, Candidate>,
        now_ms: u64,
    ) -> Result<bool> {
        let (mut after, mut all_went) = (None, true);
        loop {
            let copies = self.evictor.copies.clone();
            let page = spawn_blocking(move || copies.expiring(false, after, PAGE)).await??;
            let Some(last) = page.last() else { return Ok(all_went) };
            after = Some(last.hash);
            let is_due = |one: &&Expiring| self.policy.is_due(one.waits, one.since_ms, now_ms);
            let due: Vec<Expiring> = page.iter().filter(is_due).copied().collect();
            for batch in due.chunks(BATCH) {
                all_went &= self.delete(batch, followed, candidates).await?;
            }
        }
    }

    /// Deletes contents that are due, see X4 and X5. Returns false if some of them could not be deleted now.
    async fn delete(
        &self,
        due: &[Expiring],
        followed: &mut Followed,
        candidates: &mut BTreeMap<Hash, Candidate>,
    ) -> Result<bool> {
        let mut commits = self.journal.commits();
        commits.borrow_and_update();
        self.follow(followed, candidates).await?;
        let found = due.iter().filter_map(|one| Some((one.hash, candidates.get(&one.hash)?)));
        let waiting: BTreeSet<(Hash, Waits)> =
            self.waiting(found.collect()).await?.into_iter().collect();
        let mut digests = Vec::new();
        for one in due.iter().filter(|one| waiting.contains(&(one.hash, one.waits))) {
            let asset = self.evictor.store.lookup(one.hash).await?;
            digests.extend(asset.map(|asset| asset.entry.digest));
        }
        let begun = self.evictor.begin(&digests, false, NodeId::short).await;
        let begun = begun.map_err(anyhow::Error::msg)?.into_iter();
        let begun: Vec<Hash> =
            digests.iter().zip(begun).filter(|(_, begun)| begun.is_ok()).map(hash_begun).collect();
        if begun.is_empty() {
            return Ok(digests.is_empty());
        }
        apply(&self.evictor.copies, begun.clone(), true).await?;
        let (store, hashes) = (self.evictor.store.clone(), begun.clone());
        let permit = Box::new(move || {
            !commits.has_changed().unwrap_or(true)
                && !hashes.iter().any(|hash| store.is_on_hold(hash))
        });
        let (gone, _) = self.evictor.delete_if(begun.iter().copied().collect(), permit).await;
        self.evictor.end(&begun, &gone).await;
        let kept: Vec<Hash> = begun.iter().filter(|hash| !gone.contains(hash)).copied().collect();
        apply(&self.evictor.copies, kept, false).await?;
        tracing::info!(
            deleted = gone.len(),
            "contents that nothing held for the time to keep them"
        );
        Ok(gone.len() == digests.len())
    }
}

async fn apply(copies: &Copies, hashes: Vec<Hash>, is_applied: bool) -> Result<()> {
    let copies = copies.clone();
    let applied = spawn_blocking(move || copies.apply_expiry(hashes, is_applied)).await?;
    applied.context("writing copies.db")
}

fn hash_begun((digest, _): (&Digest, Result<(), String>)) -> Hash {
    digest.hash
}

fn hash_of(content: &Content) -> Option<Hash> {
    match content {
        Content::File { hash, .. } => Some(*hash),
        Content::Absent | Content::Symlink { .. } | Content::Directory | Content::Later(_) => None,
    }
}

/// Whether the journal says something of an asset that no folder says of its files.
fn is_described(row: &JournalRow) -> bool {
    let application = row.attribute(Attribute::Application);
    let has_application =
        matches!(application, Some(AttributeValue::Text(text)) if !text.is_empty());
    let has_description = row.description.as_ref().is_some_and(|text| !text.is_empty());
    has_application || has_description || !row.tags.is_empty() || row.is_too_large
}

/// The same for its row in the store, which may be newer.
fn is_told(metadata: &Metadata) -> bool {
    let has_application = !metadata.attributes.text(Attribute::Application).is_empty();
    has_application || !metadata.description.is_empty() || !metadata.tags.is_empty()
}
