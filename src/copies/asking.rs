//! Asks other devices to prove that they hold assets, and checks what they answer against the
//! contents here.
//!
//! E3  A proof counts only if it equals the hash of the content here, read whole for it, under the
//!     same key. A device without the bytes checks random groups instead, and evicts nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use futures_util::future::join_all;

use super::blocking;
use super::gathered::WrongProofs;
use super::open::Open;
use crate::clock::{boot_ms, wall_ms};
use crate::core::close::CloseCode;
use crate::core::ids::{Digest, Hash, HashAlgorithm, NodeId};
use crate::core::journal::device_events::LogEvent;
use crate::core::leases::{Lack, Verdict, proof_key};
use crate::core::limits::SMALL_BYTES_MAX;
use crate::core::proof::{Proof, Prove, choose_groups};
use crate::net::Connection;
use crate::replica::events::EventLog;
use crate::state::copies::Copies;
use crate::store::reading::{keyed_hashes, keyed_hashes_of_small};
use crate::store::{Store, StoreError};
use crate::transfer::prove::{are_right, ask};

/// After this many wrong proofs of one device the user is alarmed. One or two may come from a disk that
/// begins to fail.
const WRONG_PROOFS_ALARM: u32 = 3;

/// How often a device is asked at most. It is asked again if its lease ended while slower devices were
/// answering.
const ROUNDS: usize = 2;

/// Another device of the group.
pub(crate) struct Other {
    pub(crate) node_id: NodeId,
    pub(crate) name: String,
    /// Its site. A device without one has a site of its own.
    pub(crate) site: String,
    pub(crate) connection: Option<Connection>,
    /// Whether its version of can-sync can prove.
    pub(crate) proves: bool,
}

/// Asks other devices for proofs.
pub(crate) struct Asker {
    pub(crate) me: NodeId,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) copies: Copies,
    pub(crate) algorithm: HashAlgorithm,
    pub(crate) others: Vec<Other>,
    pub(crate) wrong_proofs: WrongProofs,
    pub(crate) events: EventLog,
}

impl Asker {
    /// Asks the other devices for proofs, and records the answers in `open`. `is_held`: the bytes are here,
    /// to check proofs against. `lease`: ask for leases too.
    ///
    /// # Errors
    /// The contents here cannot be read, in words.
    pub(super) async fn gather(
        &self,
        open: &mut [Open],
        is_held: bool,
        lease: bool,
    ) -> Result<(), String> {
        if open.is_empty() {
            return Ok(());
        }
        for open in &mut *open {
            for other in &self.others {
                let lack = match &other.connection {
                    None => Lack::Offline,
                    Some(_) if !other.proves => Lack::TooOld,
                    Some(_) => continue,
                };
                open.lacks(other.node_id, lack);
            }
        }
        let mut asked: Vec<&Other> =
            self.others.iter().filter(|other| other.proves && other.connection.is_some()).collect();
        for _ in 0..ROUNDS {
            match is_held {
                true => self.ask_and_compare(open, &asked, lease).await?,
                false => self.ask_for_groups(open, &asked).await,
            }
            let now_ms = boot_ms();
            let run_out: BTreeSet<NodeId> = open
                .iter()
                .filter(|open| matches!(open.gathering.verdict(now_ms), Verdict::Short { .. }))
                .flat_map(|open| open.gathering.run_out(now_ms))
                .filter(|_| lease)
                .collect();
            asked.retain(|other| run_out.contains(&other.node_id));
            if asked.is_empty() {
                break;
            }
        }
        self.note(open).await;
        Ok(())
    }

    async fn ask_and_compare(
        &self,
        open: &mut [Open],
        asked: &[&Other],
        lease: bool,
    ) -> Result<(), String> {
        let nonces: Vec<[u8; 32]> = asked.iter().map(|_| rand::random()).collect();
        let key = |(other, nonce): (&&Other, &[u8; 32])| proof_key(&self.me, &other.node_id, nonce);
        let keys: Vec<[u8; 32]> = asked.iter().zip(&nonces).map(key).collect();
        let hashes: Vec<Hash> = open.iter().map(|open| open.digest.hash).collect();
        let bytes = open.iter().map(|open| open.digest.size_bytes).sum();
        // Leases count from this moment, because no request is sent earlier.
        let now_ms = boot_ms();
        for open in &mut *open {
            for other in asked {
                open.gathering.asked(now_ms, other.node_id);
            }
        }
        let asking = asked.iter().zip(&nonces).map(|(other, nonce)| {
            let hashes = hashes.clone();
            let prove = Prove { nonce: *nonce, hashes, lease, groups: Vec::new() };
            async move { self.ask_one(other, &prove, bytes).await }
        });
        let (answers, own) = tokio::join!(join_all(asking), self.read_own(open, &keys));
        let own = own.map_err(|error| format!("reading the copy here: {error}"))?;
        let mut wrong = BTreeSet::new();
        for (number, (other, answer)) in asked.iter().zip(answers).enumerate() {
            for (at, open) in open.iter_mut().enumerate() {
                let expected = own.get(&open.digest.hash).and_then(|hashes| hashes.get(number));
                let proof = match &answer {
                    Ok((proofs, _)) => proofs.get(at).copied(),
                    Err(lack) => Some(Proof::Lacks(*lack)),
                };
                match (proof, expected) {
                    (Some(Proof::Holds { proof, lease_ms }), Some(expected)) => {
                        match proof == *expected {
                            true => {
                                open.proves(other.node_id, &other.site, lease.then_some(lease_ms))
                            }
                            false => {
                                wrong.insert((other.node_id, open.digest.hash));
                                open.lacks(other.node_id, Lack::WrongProof);
                            }
                        }
                    }
                    (Some(Proof::Lacks(lack)), _) => open.lacks(other.node_id, lack),
                    (Some(Proof::Holds { .. }), None) => {
                        open.lacks(other.node_id, Lack::Unchecked);
                    }
                    (None, _) => open.lacks(other.node_id, Lack::NoAnswer),
                }
            }
        }
        self.alarm(wrong);
        match open.iter().find(|open| !own.contains_key(&open.digest.hash)) {
            Some(open) if own.is_empty() => {
                Err(format!("the copy of {} here is damaged or gone", open.digest.hash))
            }
            _ => Ok(()),
        }
    }

    /// Asks for random groups of an asset whose bytes are not here.
    async fn ask_for_groups(&self, open: &mut [Open], asked: &[&Other]) {
        for open in open {
            let digest = open.digest;
            let groups = choose_groups(&digest, |below| rand::random::<u64>() % below.max(1));
            let asking = asked.iter().map(|other| {
                let (nonce, hashes, groups) = (rand::random(), vec![digest.hash], groups.clone());
                let prove = Prove { nonce, hashes, lease: false, groups };
                async move { self.ask_one(other, &prove, digest.size_bytes).await }
            });
            let mut wrong = BTreeSet::new();
            for (other, answer) in asked.iter().zip(join_all(asking).await) {
                match answer {
                    Ok((proofs, sent)) => match proofs.first() {
                        Some(Proof::Lacks(lack)) => open.lacks(other.node_id, *lack),
                        _ if sent.len() < groups.len() => {
                            open.lacks(other.node_id, Lack::Unchecked);
                        }
                        _ if are_right(&digest, self.algorithm, &groups, &sent) => {
                            open.proves(other.node_id, &other.site, None);
                        }
                        _ => {
                            wrong.insert((other.node_id, digest.hash));
                            open.lacks(other.node_id, Lack::WrongProof);
                        }
                    },
                    Err(lack) => open.lacks(other.node_id, lack),
                }
            }
            self.alarm(wrong);
        }
    }

    async fn ask_one(
        &self,
        other: &Other,
        prove: &Prove,
        bytes: u64,
    ) -> Result<(Vec<Proof>, Vec<(u64, bytes::Bytes)>), Lack> {
        let Some(connection) = &other.connection else { return Err(Lack::Offline) };
        match ask(connection, prove, bytes).await {
            Ok(answer) => Ok((answer.proofs, answer.groups)),
            Err(error) => {
                tracing::info!(peer = %other.node_id.short(), %error, "a device did not prove");
                if error.is_violation() {
                    connection.close(CloseCode::Protocol, &error.to_string());
                }
                Err(Lack::NoAnswer)
            }
        }
    }

    /// Counts wrong proofs, and logs an alarm for a device that sends them repeatedly.
    fn alarm(&self, wrong: BTreeSet<(NodeId, Hash)>) {
        for (device, hash) in wrong {
            let mut counts = self.wrong_proofs.lock();
            let count = counts.entry(device).or_default();
            *count += 1;
            tracing::warn!(peer = %device.short(), %hash, count = *count, "a proof was wrong");
            if *count == WRONG_PROOFS_ALARM {
                let what = format!("a device proved wrongly {WRONG_PROOFS_ALARM} times");
                let (hash, device) = (Some(hash), Some(device));
                self.events.tell(LogEvent::IntegrityAlarm { what, hash, device });
            }
        }
    }

    /// Saves what was proven for a later request whose purpose is [`super::gathered::Purpose::Safe`].
    async fn note(&self, open: &[Open]) {
        let mut proofs = Vec::new();
        for open in open {
            let hash = open.digest.hash;
            proofs.extend(open.proven_at.keys().map(|device| (hash, *device, true)));
            let is_known = |lack: &Lack| {
                matches!(lack, Lack::NotHeld | Lack::Damaged | Lack::Evicting | Lack::WrongProof)
            };
            let lacking = open.lacking.iter().filter(|(_, lack)| is_known(lack));
            proofs.extend(lacking.map(|(device, _)| (hash, *device, false)));
        }
        let copies = self.copies.clone();
        if let Err(error) = blocking(move || copies.note_proofs(proofs, wall_ms())).await {
            tracing::warn!(%error, "keeping proofs");
        }
    }

    /// Reads the contents here and hashes them under each key: for each asset, the hashes in the
    /// order of the keys.
    async fn read_own(
        &self,
        open: &[Open],
        keys: &[[u8; 32]],
    ) -> Result<BTreeMap<Hash, Vec<[u8; 32]>>, StoreError> {
        let digests: Vec<Digest> = open.iter().map(|open| open.digest).collect();
        let read = match digests[..] {
            [digest] if digest.size_bytes > SMALL_BYTES_MAX => {
                let read_bytes = AtomicU64::new(0);
                vec![keyed_hashes(&self.store, self.algorithm, digest, keys, &read_bytes).await]
            }
            _ => keyed_hashes_of_small(&*self.store, self.algorithm, &digests, keys).await?,
        };
        let mut own = BTreeMap::new();
        for (digest, hashes) in digests.iter().zip(read) {
            match hashes {
                Ok(Some(hashes)) => {
                    own.insert(digest.hash, hashes);
                }
                Ok(None) => {}
                Err(StoreError::Damaged(hash)) => {
                    self.store.verify(hash).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(own)
    }

    /// The saved proofs of other devices that are not older than `since_ms`: when each device proved.
    pub(super) async fn known_proofs(&self, hash: Hash, since_ms: u64) -> BTreeMap<NodeId, u64> {
        let copies = self.copies.clone();
        let known = blocking(move || copies.proofs(&hash, since_ms)).await.unwrap_or_default();
        let is_other = |node_id: &NodeId| self.others.iter().any(|o| o.node_id == *node_id);
        known.into_iter().filter(|(node_id, _)| is_other(node_id)).collect()
    }

    /// The name of a device.
    pub(super) fn name(&self, node_id: &NodeId) -> String {
        let other = self.others.iter().find(|other| other.node_id == *node_id);
        other.map_or_else(|| node_id.short(), |other| other.name.clone())
    }
}
