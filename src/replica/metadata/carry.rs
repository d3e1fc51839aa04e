//! One look at assets: their rows and the journal are compared, edits become ops, and the store gets
//! the journal's rows.

use anyhow::Result;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::look::{Asked, Look, Written, pack, write_row};
use super::{BegunAnew, LOOK_ASSETS, SCAN_AGAIN_MS, Settler, call};
use crate::core::ids::Hash;
use crate::core::journal::asset::Shadow;
use crate::core::journal::device_events::LogEvent;
use crate::replica::journal::DraftResult;
use crate::state::journal;
use crate::store::{Asset, StoreError};

/// The most looks at one asset in a row: an edit of many tags takes several ops, and the user may
/// edit meanwhile. Whatever is left then comes again by itself.
const ROUNDS_MAX: usize = 8;

/// The most store calls at once; a store on the same device has few cores.
const CALLS_AT_ONCE: usize = 8;

impl Settler {
    /// Reconciles assets; returns when all are done. Skips those that are not in the store: their
    /// arrival causes another look.
    pub(super) async fn look(&mut self, mut hashes: Vec<Hash>) -> Result<()> {
        hashes.sort_unstable();
        hashes.dedup();
        for hashes in hashes.chunks(LOOK_ASSETS) {
            let mut left = hashes.to_vec();
            for _ in 0..ROUNDS_MAX {
                if left.is_empty() {
                    break;
                }
                let store = &self.store;
                let assets: Vec<Option<Asset>> = stream::iter(left)
                    .map(|hash| call(store.lookup(hash)))
                    .buffered(CALLS_AT_ONCE)
                    .try_collect()
                    .await?;
                left = self.bring_together(assets.into_iter().flatten().collect()).await?;
            }
        }
        Ok(())
    }

    /// Reconciles rows just read with the journal. Returns the assets that need another look.
    pub(super) async fn bring_together(&mut self, assets: Vec<Asset>) -> Result<Vec<Hash>> {
        let is_brought = !self.at.is_whole && self.journal.roster().member_count() > 1;
        let asked: Vec<Asked> = assets
            .into_iter()
            .map(|asset| {
                let hash = asset.entry.digest.hash;
                let (frozen, from) = (self.brake.is_frozen(&hash), self.arrivals.sender(&hash));
                Asked { asset, frozen, is_brought, from }
            })
            .collect();
        // Mostly there is nothing to do, and then the writer is not needed.
        let asked = self
            .journal
            .read(move |reader| {
                let mut restless = Vec::new();
                for asked in asked {
                    let hash = asked.hash();
                    let look = asked.judge(reader.shadow(&hash)?, &reader.asset(&hash)?);
                    if look.is_some() {
                        restless.push(asked);
                    }
                }
                Ok(restless)
            })
            .await?;
        if asked.is_empty() {
            return Ok(Vec::new());
        }
        let looks = self.issue(asked).await?;
        self.write_to_store(looks).await
    }

    /// T6: writes the user's edits into the journal, with their events and the shadows.
    async fn issue(&mut self, asked: Vec<Asked>) -> Result<Vec<Look>> {
        let group = self.at.group;
        let issued = self
            .journal
            .run(move |journal, now_ms| {
                // The looks were made for another group.
                if journal.group() != group {
                    return Ok(None);
                }
                let mut looks = Vec::with_capacity(asked.len());
                for asked in asked {
                    let hash = asked.hash();
                    looks.extend(asked.judge(journal.shadow(&hash)?, &journal.asset(&hash)?));
                }
                let mut write = |looks: &[Look]| {
                    let fills = pack(looks.iter().map(|look| look.fill.as_slice()));
                    let drafts = pack(looks.iter().map(|look| look.changes.as_slice()));
                    let shadows: Vec<(Hash, Shadow)> =
                        looks.iter().map(|look| (look.hash(), look.shadow.clone())).collect();
                    let results = journal.write_with_shadows(&fills, &drafts, &shadows, now_ms)?;
                    journal::Result::Ok(results.into_iter().find_map(DraftResult::err))
                };
                if write(&looks)?.is_none() {
                    return Ok(Some((looks, None)));
                }
                // One by one, so that one bad change does not hold up the others.
                let (mut done, mut refused) = (Vec::new(), None);
                for look in looks {
                    match write(std::slice::from_ref(&look))? {
                        None => done.push(look),
                        Some(error) => refused = Some((look.hash(), error)),
                    }
                }
                Ok(Some((done, refused)))
            })
            .await?;
        let (looks, refused) = issued.ok_or(BegunAnew)?;
        if let Some((hash, error)) = refused {
            tracing::warn!(hash = hash.short(), %error, "metadata was not taken by the journal");
            self.scan_at(self.clock.now_ms() + SCAN_AGAIN_MS);
        }
        for look in &looks {
            self.arrivals.arrived(&look.hash());
            if look.is_edit {
                self.brake.edited(look.hash());
            }
        }
        Ok(looks)
    }

    /// Writes the journal's rows to the store. Returns the assets that need another look.
    pub(super) async fn write_to_store(&mut self, looks: Vec<Look>) -> Result<Vec<Hash>> {
        let mut again: Vec<Hash> = looks.iter().filter(|look| look.again).map(Look::hash).collect();
        let writes: Vec<Look> = looks.into_iter().filter(|look| look.write.is_some()).collect();
        let store = &self.store;
        let ends: Vec<(Hash, Result<Written, StoreError>)> = stream::iter(writes)
            .map(|look| async move { (look.hash(), write_row(&**store, look).await) })
            .buffer_unordered(CALLS_AT_ONCE)
            .collect()
            .await;
        let mut shadows = Vec::new();
        let mut lost = None;
        for (hash, end) in ends {
            match end {
                Ok(Written::Row(shadow)) => {
                    self.count_write(hash);
                    shadows.push((hash, shadow));
                }
                Ok(Written::Refused(shadow)) => shadows.push((hash, shadow)),
                Ok(Written::Changed) => again.push(hash),
                Ok(Written::Gone) => {}
                // The shadow records the pending write, and the next look continues from there.
                Err(error) if error.is_temporary() => lost = Some(error),
                Err(error) => {
                    tracing::warn!(hash = hash.short(), %error, "the store did not take metadata");
                    self.scan_at(self.clock.now_ms() + SCAN_AGAIN_MS);
                }
            }
        }
        if !shadows.is_empty() {
            let group = self.at.group;
            let noted = self.journal.run(move |journal, now_ms| {
                // The rows belong to another group, and must not enter this one.
                if journal.group() != group {
                    return Ok(None);
                }
                journal.write_with_shadows(&[], &[], &shadows, now_ms).map(Some)
            });
            noted.await?.ok_or(BegunAnew)?;
        }
        lost.map_or(Ok(again), |error| Err(error.into()))
    }

    fn count_write(&mut self, hash: Hash) {
        if !self.brake.count(hash, self.clock.now_ms()) {
            return;
        }
        self.frozen.send_replace(self.brake.frozen());
        let what = "its metadata changes again and again: the store waits for it";
        tracing::warn!(hash = hash.short(), "{what}");
        let alarm = LogEvent::IntegrityAlarm { what: what.into(), hash: Some(hash), device: None };
        self.events.tell(alarm);
    }
}
