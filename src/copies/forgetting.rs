//! Follows the wishes of the group to forget assets, by this device's own rule, see
//! [`crate::core::forgetting`].
//!
//! F4  Bytes are deleted like evicted ones: with a durable intent, and not while another device relies
//!     on them or a bound directory needs them. Then the wish is looked at again later.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::clock::wall_ms;
use crate::core::engine::Input;
use crate::core::foreign_text::visible;
use crate::core::forgetting::{
    FORGET_MODEL, FORGET_REASON, FORGET_REASON_BYTES_MAX, ForgottenRule, WISHES_MAX, is_due,
    wish_key,
};
use crate::core::ids::{Digest, Hash, NodeId};
use crate::core::journal::draft::{Draft, DraftChange, DraftError, DraftPut, Expect};
use crate::core::journal::op::Value;
use crate::replica::journal::{AskError, JournalHandle};
use crate::state::journal::{JournalReader, Owner};

use super::evicting::Evictor;
use crate::group::{RequestError, journal_error};

/// How often wishes are checked although the journal did not change: one may have become due, or a lease
/// that kept the bytes may have ended.
const LOOK_EVERY: Duration = Duration::from_secs(3600);

/// How long changes of the journal are collected before wishes are read again.
const GATHER: Duration = Duration::from_secs(20);

/// A wish of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// The asset to forget.
    pub hash: Hash,
    /// Why, fit for people.
    pub reason: String,
}

/// The task's parts.
pub(crate) struct Forgetting<F> {
    pub(crate) journal: JournalHandle,
    pub(crate) rule: ForgottenRule,
    pub(crate) evictor: Evictor<F>,
}

impl<F: From<Input>> Forgetting<F> {
    /// Runs until dropped or the journal is closed.
    pub(crate) async fn run(self) {
        let mut commits = self.journal.commits();
        loop {
            commits.borrow_and_update();
            if let Err(error) = self.look(wall_ms()).await {
                tracing::debug!("cannot follow wishes now: {error:#}");
            }
            // A timeout is a reason to check, too.
            if let Ok(Err(_)) = timeout(LOOK_EVERY, commits.changed()).await {
                return;
            }
            sleep(GATHER).await;
        }
    }

    /// Saves the wishes of the group, with when each was first seen, and follows those that are due at
    /// `now_ms`.
    async fn look(&self, now_ms: u64) -> Result<()> {
        let wished = wishes(&self.journal).await?.into_iter().map(|wish| wish.hash).collect();
        let copies = self.evictor.copies.clone();
        let noted = spawn_blocking(move || {
            let wanted_again = copies.note_wishes(wished, now_ms)?;
            Ok::<_, anyhow::Error>((wanted_again, copies.open_wishes()?))
        });
        let (wanted_again, open) = noted.await??;
        self.evictor.judge.reconsider(wanted_again).await?;
        for (hash, seen_ms) in open {
            if is_due(seen_ms, now_ms) {
                self.follow(hash, now_ms).await.with_context(|| format!("forgetting {hash}"))?;
            }
        }
        Ok(())
    }

    async fn follow(&self, hash: Hash, now_ms: u64) -> Result<()> {
        let asset = self.evictor.store.lookup(hash).await?;
        let deletes = self.rule == ForgottenRule::Delete && self.evictor.can_evict;
        if let Some(asset) = asset.filter(|asset| asset.is_held() || asset.is_damaged)
            && !(deletes && self.delete(asset.entry.digest).await?)
        {
            return Ok(());
        }
        let copies = self.evictor.copies.clone();
        spawn_blocking(move || copies.apply_wish(hash, now_ms)).await??;
        self.evictor.judge.reconsider(vec![hash]).await
    }

    /// Deletes the bytes here, see F4. Returns false if another device relies on them, a bound directory
    /// needs them, or the store failed.
    async fn delete(&self, digest: Digest) -> Result<bool> {
        let hash = digest.hash;
        let begun = self.evictor.begin(&[digest], false, NodeId::short).await;
        if begun.map_err(anyhow::Error::msg)?.iter().any(Result::is_err) {
            return Ok(false);
        }
        // No lease is needed, so there is no time before which it must be done.
        let (gone, _) = self.evictor.delete(&BTreeMap::from([(hash, u64::MAX)])).await;
        self.evictor.end(&[hash], &gone).await;
        let is_gone = gone.contains(&hash);
        tracing::info!(%hash, is_gone, "a forgotten asset");
        Ok(is_gone)
    }
}

/// The wishes of the group.
///
/// # Errors
/// The journal cannot be read.
pub async fn wishes(journal: &JournalHandle) -> Result<Vec<Wish>, AskError> {
    let read = |reader: &JournalReader| {
        let mut records = Vec::new();
        let mut after = None;
        while records.len() < WISHES_MAX {
            let page =
                reader.records(FORGET_MODEL, Some(Owner::Shared), &[], after.as_ref(), 1000)?;
            records.extend(page.records);
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        Ok(records)
    };
    let records = journal.read(read).await?;
    let wish = |record: &crate::state::journal::Record| {
        let reason = match record.fields.get(FORGET_REASON) {
            Some(Some(Value::Text(text))) => visible(text, FORGET_REASON_BYTES_MAX),
            _ => String::new(),
        };
        Some(Wish { hash: Hash::from_slice(&record.id)?, reason })
    };
    Ok(records.iter().filter_map(wish).collect())
}

/// Tells the group the wish to forget an asset, or takes it back.
///
/// # Errors
/// The reason is missing or too long, or the journal cannot be written.
pub async fn wish(
    journal: &JournalHandle,
    hash: Hash,
    reason: Option<String>,
) -> Result<(), RequestError> {
    let key = wish_key(&hash);
    let mut expect = Vec::new();
    let change = match reason {
        None => {
            expect.push(Expect::Alive(key.clone()));
            DraftChange::Delete(key)
        }
        Some(reason) => {
            let got = reason.len();
            if reason.trim().is_empty() || got > FORGET_REASON_BYTES_MAX {
                return Err(RequestError::Invalid(format!(
                    "expected a reason of at most {FORGET_REASON_BYTES_MAX} bytes, got {got}"
                )));
            }
            let set = BTreeMap::from([(FORGET_REASON.to_owned(), Some(Value::Text(reason)))]);
            let (add, remove) = (BTreeSet::new(), BTreeSet::new());
            DraftChange::Put(DraftPut { key, create: true, set, add, remove })
        }
    };
    let written = journal.write(Draft { changes: vec![change], expect }).await;
    match written.map_err(|error| journal_error("writing the wish", &error))? {
        Ok(_) => Ok(()),
        Err(DraftError::NotMember) => {
            Err(RequestError::Refused("this device was removed from its group".into()))
        }
        Err(DraftError::Absent) => {
            Err(RequestError::Unknown("no wish to forget this asset stands".into()))
        }
        Err(error) => Err(RequestError::Temporary(error.to_string())),
    }
}
