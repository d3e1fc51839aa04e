//! What a foreign store says of itself: its id, the algorithm of its hashes, and its features. A
//! core-only store says nothing, so its algorithm is found out from one of its assets.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use reqwest::{Method, StatusCode};

use super::connection::Request;
use super::{Inner, SHORT_BYTES_MAX, WHOLE_BYTES_MAX, contract};
use crate::core::ids::{HashAlgorithm, StoreId};
use crate::store::messages::{self, MESSAGE_REPEATED_MAX};
use crate::store::{Entry, StoreError, StoreInfo};

/// How many assets are read to find out the algorithm of their hashes.
const TRIED_ASSETS: usize = 8;

/// What a store reported about itself.
#[derive(Debug, Clone)]
pub(super) struct Profile {
    pub(super) store_id: StoreId,
    pub(super) algorithm: HashAlgorithm,
    pub(super) is_core_only: bool,
    pub(super) features: BTreeSet<String>,
}

impl Profile {
    pub(super) fn offers(&self, feature: &str) -> bool {
        self.features.contains(feature)
    }
}

impl Inner {
    /// Requests the store's info, and keeps its profile.
    pub(super) async fn ask_info(&self) -> Result<StoreInfo, StoreError> {
        let answer = self.connection.send(&Request::new(Method::GET, "/sync/info")).await?;
        let (info, profile) = match answer.status() {
            StatusCode::OK => {
                let message = self.message(answer, SHORT_BYTES_MAX, MESSAGE_REPEATED_MAX).await?;
                let (info, features) = messages::info(message).map_err(contract)?;
                if self.stated.is_some_and(|stated| stated != info.hash_algorithm) {
                    let told = info.hash_algorithm.name();
                    return Err(contract(format!(
                        "it says that its hashes are {told}, and store_hash says otherwise: \
                         correct the configuration"
                    )));
                }
                let profile = Profile {
                    store_id: info.store_id,
                    algorithm: info.hash_algorithm,
                    is_core_only: false,
                    features: features.into_iter().collect(),
                };
                (info, profile)
            }
            StatusCode::NOT_FOUND => self.core_only(self.algorithm_of_core_only().await?),
            _ => return Err(self.connection.failure("GET /sync/info", answer).await),
        };
        let before = self.set_profile(Some(profile));
        if before.is_some_and(|before| before.store_id != info.store_id) {
            let url = self.connection.url();
            tracing::warn!(store = %info.store_id, url, "another store answers at this address");
            self.lists_by_since.store(false, Ordering::Relaxed);
            self.set_whole(None);
        }
        Ok(info)
    }

    /// The profile of a store that reports none.
    fn core_only(&self, algorithm: HashAlgorithm) -> (StoreInfo, Profile) {
        let derived = blake3::derive_key(
            "can-sync 2026 id of a core-only store from its url",
            self.connection.url().as_bytes(),
        );
        let mut store_id = StoreId([0; StoreId::LEN]);
        store_id.0.copy_from_slice(&derived[..StoreId::LEN]);
        let info = StoreInfo {
            store_id,
            hash_algorithm: algorithm,
            newest_cursor: self.newest_seen.load(Ordering::Relaxed),
            asset_count: 0,
            asset_bytes: 0,
            largest_asset_bytes: Some(WHOLE_BYTES_MAX),
        };
        let profile =
            Profile { store_id, algorithm, is_core_only: true, features: BTreeSet::new() };
        (info, profile)
    }

    /// The algorithm of a store that does not tell it: as stated, else the one with which one of its
    /// assets has its hash. It is never assumed: every asset would count as damaged.
    async fn algorithm_of_core_only(&self) -> Result<HashAlgorithm, StoreError> {
        let known = self.stated.or(*self.found.lock());
        if let Some(known) = known {
            return Ok(known);
        }
        let listed = self.core_only_changes(0, TRIED_ASSETS).await?.entries;
        let readable = listed.iter().filter(|entry| entry.digest.size_bytes <= WHOLE_BYTES_MAX);
        let mut tried = 0;
        for Entry { digest, .. } in readable.take(TRIED_ASSETS) {
            let Some(content) = self.read_whole(digest.hash).await? else { continue };
            self.set_whole(None);
            tried += 1;
            let fits = |algorithm: &HashAlgorithm| algorithm.hash(&content) == digest.hash;
            let found = [HashAlgorithm::Blake3, HashAlgorithm::Sha256].into_iter().find(fits);
            if let Some(found) = found {
                tracing::info!(
                    algorithm = found.name(),
                    "found out the hash algorithm of the store"
                );
                *self.found.lock() = Some(found);
                return Ok(found);
            }
        }
        Err(contract(match tried {
            0 => "it does not tell the algorithm of its hashes, and has no asset to find it out \
                  from: state it with store_hash = \"blake3\" or \"sha256\""
                .to_owned(),
            _ => format!(
                "the hashes of {tried} of its assets are neither their BLAKE3 nor their SHA-256 \
                 hashes"
            ),
        }))
    }

    pub(super) async fn profile(&self) -> Result<Profile, StoreError> {
        let known = self.lock_profile().clone();
        if let Some(profile) = known {
            return Ok(profile);
        }
        self.ask_info().await?;
        let known = self.lock_profile().clone();
        known.ok_or_else(|| StoreError::Unreachable("its profile was just forgotten".into()))
    }

    fn lock_profile(&self) -> parking_lot::MutexGuard<'_, Option<Profile>> {
        self.profile.lock()
    }

    pub(super) fn set_profile(&self, profile: Option<Profile>) -> Option<Profile> {
        std::mem::replace(&mut *self.lock_profile(), profile)
    }
}
