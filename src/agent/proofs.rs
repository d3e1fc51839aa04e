//! `safe` and `evict`: gathers proofs of other devices for assets, and deletes copies here that
//! enough of them have promised to keep. [`crate::core::leases`] decides.
//!
//! E1  An intent is durable before a device is asked, and ends when the outcome is known. One that
//!     a crash leaves is settled by the next start, before anything is promised.
//! E2  A copy is deleted only while enough leases run. The store checks that in the transaction
//!     that deletes.
//! E3  A proof counts only if it equals the hash of the content here, read whole for it, under the
//!     same key. A device without the bytes checks random groups instead, and evicts nothing.
//! E4  The content of a file of a bound folder is not evicted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use futures_util::future::join_all;
use tokio::sync::{Notify, mpsc};
use tokio::task::spawn_blocking;

use super::copies::Judge;
use super::gathered::{
    GatherOutcome, GatherRequest, Gathered, LackingAt, ProvenBy, Purpose, WrongProofs,
};
use super::live::Live;
use super::parts::Parts;
use super::start::Wakers;
use crate::clock::{boot_ms, wall_ms};
use crate::core::close::CloseCode;
use crate::core::engine::Engine;
use crate::core::ids::{Digest, Hash, HashAlgorithm, NodeId};
use crate::core::journal::device_events::LogEvent;
use crate::core::leases::{Gathering, Lack, Promised, Verdict, proof_key};
use crate::core::limits::SMALL_BYTES_MAX;
use crate::core::pairing::shown_name;
use crate::core::peers::ConnId;
use crate::core::proof::{Proof, Prove, choose_groups};
use crate::folders::handle::Folders;
use crate::net::Connection;
use crate::replica::events::EventLog;
use crate::state::copies::Copies;
use crate::store::reading::{keyed_hashes, keyed_hashes_of_small};
use crate::store::{Store, StoreError};
use crate::transfer::prove::{are_right, ask};

/// So many wrong proofs of one device are an alarm: one or two may be a disk that begins to fail.
const WRONG_PROOFS_ALARM: u32 = 3;

/// How often a device is asked again because its lease ran out while slower ones answered.
const ROUNDS: usize = 2;

/// Another device of the group.
pub(super) struct Other {
    pub(super) node_id: NodeId,
    pub(super) name: String,
    /// Where it is. A device without a site is one of its own.
    pub(super) site: String,
    pub(super) connection: Option<Connection>,
    /// Whether its version can prove.
    pub(super) proves: bool,
}

/// Gathers proofs for one request.
pub(super) struct Gatherer {
    pub(super) me: NodeId,
    pub(super) store: Arc<dyn Store>,
    /// Whether contents may be deleted: the store is this agent's own.
    pub(super) can_evict: bool,
    pub(super) copies: Copies,
    pub(super) algorithm: HashAlgorithm,
    pub(super) others: Vec<Other>,
    pub(super) wrong_proofs: WrongProofs,
    pub(super) events: EventLog,
    pub(super) folders: Folders,
    pub(super) judge: Judge,
    /// Makes the catalogue list the store.
    pub(super) nudge: Arc<Notify>,
}

/// One asset of a batch.
struct Open {
    digest: Digest,
    gathering: Gathering,
    /// When each device proved it.
    proven_at: BTreeMap<NodeId, u64>,
    lacking: BTreeMap<NodeId, Lack>,
}

impl Gatherer {
    /// Sends the outcome of each asset. Ends early when the receiver is dropped.
    pub(super) async fn run(self, request: GatherRequest, tell: mpsc::Sender<Gathered>) {
        let (mut small, mut alone) = (Vec::new(), Vec::new());
        for hash in &request.hashes {
            match self.store.lookup(*hash).await {
                Ok(Some(asset)) if !asset.is_held() => alone.push((asset.entry.digest, false)),
                Ok(Some(asset)) if asset.entry.digest.size_bytes > SMALL_BYTES_MAX => {
                    alone.push((asset.entry.digest, true));
                }
                Ok(Some(asset)) => small.push(asset.entry.digest),
                Ok(None) => {
                    let why = "this device does not know it".to_owned();
                    let digest = Digest { hash: *hash, size_bytes: 0 };
                    let _ = tell.send(refused(digest, why)).await;
                }
                Err(error) => {
                    let digest = Digest { hash: *hash, size_bytes: 0 };
                    let _ = tell.send(refused(digest, error.to_string())).await;
                }
            }
        }
        let mut batches =
            Vec::from_iter(Some((small, true)).filter(|(small, _)| !small.is_empty()));
        batches.extend(alone.into_iter().map(|(digest, is_held)| (vec![digest], is_held)));
        for (digests, is_held) in batches {
            let gathered = match request.purpose {
                Purpose::Safe { within_ms } => {
                    self.are_safe(digests, is_held, within_ms, &request).await
                }
                Purpose::Evict { dry_run } if is_held => {
                    self.evict(digests, dry_run, &request).await
                }
                Purpose::Evict { .. } => {
                    let why = |digest| refused(digest, "its bytes are not here".to_owned());
                    digests.into_iter().map(why).collect()
                }
            };
            for gathered in gathered {
                if tell.send(gathered).await.is_err() {
                    return;
                }
            }
        }
    }

    async fn are_safe(
        &self,
        digests: Vec<Digest>,
        is_held: bool,
        within_ms: u64,
        request: &GatherRequest,
    ) -> Vec<Gathered> {
        let since_ms = wall_ms().saturating_sub(within_ms);
        let (mut gathered, mut open) = (Vec::new(), Vec::new());
        for digest in digests {
            let known = match within_ms {
                0 => BTreeMap::new(),
                _ => self.known_proofs(digest.hash, since_ms).await,
            };
            match self.are_enough(known.keys(), request) {
                true => gathered.push(self.proven(digest, GatherOutcome::Proven, &known)),
                false => open.push(Open::new(digest, request)),
            }
        }
        if let Err(why) = self.gather(&mut open, is_held, true).await {
            gathered.extend(open.iter().map(|open| refused(open.digest, why.clone())));
            return gathered;
        }
        for open in open {
            // A device whose store may delete at any time proves that it holds the bytes now.
            let is_safe = self.are_enough(open.proven_at.keys(), request);
            gathered.push(match is_safe {
                true => self.proven(open.digest, GatherOutcome::Proven, &open.proven_at),
                false => self.short(&open, request),
            });
        }
        gathered
    }

    async fn evict(
        &self,
        digests: Vec<Digest>,
        dry_run: bool,
        request: &GatherRequest,
    ) -> Vec<Gathered> {
        if !self.can_evict {
            let why = "the store belongs to another program: delete it there".to_owned();
            return digests.into_iter().map(|digest| refused(digest, why.clone())).collect();
        }
        let (mut gathered, mut open) = (Vec::new(), Vec::new());
        match self.begin(&digests, dry_run).await {
            Ok(begun) => {
                for (digest, begun) in digests.into_iter().zip(begun) {
                    match begun {
                        Ok(()) => open.push(Open::new(digest, request)),
                        Err(why) => gathered.push(refused(digest, why)),
                    }
                }
            }
            Err(why) => {
                return digests.into_iter().map(|digest| refused(digest, why.clone())).collect();
            }
        }
        let failed = self.gather(&mut open, true, !dry_run).await.err();
        let mut may_go = BTreeMap::new();
        for open in open.iter().filter(|_| failed.is_none()) {
            if let Verdict::Delete { before_ms, .. } = open.gathering.verdict(boot_ms()) {
                may_go.insert(open.digest.hash, before_ms);
            }
        }
        if dry_run {
            gathered.extend(open.iter().map(|open| {
                // Without leases the verdict is always short: nothing was promised.
                let is_enough = self.are_enough(open.proven_at.keys(), request);
                match (&failed, is_enough) {
                    (Some(why), _) => refused(open.digest, why.clone()),
                    (None, true) => {
                        self.proven(open.digest, GatherOutcome::WouldEvict, &open.proven_at)
                    }
                    (None, false) => self.short(open, request),
                }
            }));
            return gathered;
        }
        let (gone, failed_to_delete) = self.delete(&may_go).await;
        let hashes: Vec<Hash> = open.iter().map(|open| open.digest.hash).collect();
        self.end(&hashes, &gone).await;
        gathered.extend(open.iter().map(|open| {
            let hash = open.digest.hash;
            match (&failed, &failed_to_delete) {
                _ if gone.contains(&hash) => {
                    self.proven(open.digest, GatherOutcome::Evicted, &open.proven_at)
                }
                (Some(why), _) => refused(open.digest, why.clone()),
                (None, Some(why)) if may_go.contains_key(&hash) => {
                    refused(open.digest, why.clone())
                }
                _ => self.short(open, request),
            }
        }));
        gathered
    }

    // ---- this device -------------------------------------------------------------------------

    /// Begins evictions, see E1; for each asset why not, if not.
    async fn begin(
        &self,
        digests: &[Digest],
        dry_run: bool,
    ) -> Result<Vec<Result<(), String>>, String> {
        let hashes: Vec<Hash> = digests.iter().map(|digest| digest.hash).collect();
        let used = self.folders.uses(hashes.iter().copied().collect()).await;
        let used = used.map_err(|error| format!("looking at the bound folders: {error}"))?;
        let free: Vec<Hash> = hashes.iter().copied().filter(|h| !used.contains_key(h)).collect();
        let copies = self.copies.clone();
        let begun = match dry_run {
            true => vec![Ok(()); free.len()],
            false => {
                let free = free.clone();
                let begin = move || copies.begin_evictions(free, boot_ms(), wall_ms());
                blocking(begin)
                    .await
                    .map_err(|error| format!("writing down the intent: {error}"))?
            }
        };
        let mut begun: BTreeMap<Hash, Result<(), Promised>> = free.into_iter().zip(begun).collect();
        let answer = |hash: &Hash| match (used.get(hash), begun.remove(hash)) {
            (Some(path), _) => Err(format!("the bound folders here need it: {path}")),
            (None, Some(Err(promised))) => Err(self.promised(promised)),
            (None, _) => Ok(()),
        };
        Ok(hashes.iter().map(answer).collect())
    }

    fn promised(&self, promised: Promised) -> String {
        let minutes = promised.until_ms.saturating_sub(boot_ms()).div_ceil(60_000);
        let name = self.name(&promised.device);
        format!("{name} relies on the copy here for another {minutes} min: try again then")
    }

    /// Deletes what may go, see E2. Returns what is gone, and why the rest is not.
    async fn delete(&self, may_go: &BTreeMap<Hash, u64>) -> (BTreeSet<Hash>, Option<String>) {
        let Some(before_ms) = may_go.values().min().copied() else { return Default::default() };
        let permit = Box::new(move || boot_ms() < before_ms);
        let hashes: BTreeSet<Hash> = may_go.keys().copied().collect();
        let deleted = self.judge.delete(&*self.store, hashes, permit).await;
        if !deleted.as_ref().is_ok_and(|gone| gone.len() == may_go.len()) {
            self.nudge.notify_one();
        }
        match deleted {
            Ok(gone) => {
                let why = "it was damaged, or the proofs were too old by then: try again";
                (gone.into_iter().collect(), Some(why.to_owned()))
            }
            Err(error) => {
                tracing::warn!("deleting evicted contents: {error:#}");
                // It may have come to its commit.
                let mut gone = BTreeSet::new();
                for hash in may_go.keys() {
                    if let Ok(Some(asset)) = self.store.lookup(*hash).await
                        && asset.is_evicted
                    {
                        gone.insert(*hash);
                    }
                }
                (gone, Some(format!("{error:#}")))
            }
        }
    }

    async fn end(&self, hashes: &[Hash], gone: &BTreeSet<Hash>) {
        let ended = hashes.iter().map(|hash| (*hash, !gone.contains(hash))).collect();
        let copies = self.copies.clone();
        if let Err(error) = blocking(move || copies.end_evictions(ended, wall_ms())).await {
            tracing::warn!(%error, "ending an eviction: the next start does it");
        }
    }

    async fn known_proofs(&self, hash: Hash, since_ms: u64) -> BTreeMap<NodeId, u64> {
        let copies = self.copies.clone();
        let known = blocking(move || copies.proofs(&hash, since_ms)).await.unwrap_or_default();
        let is_other = |node_id: &NodeId| self.others.iter().any(|o| o.node_id == *node_id);
        known.into_iter().filter(|(node_id, _)| is_other(node_id)).collect()
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

    // ---- the other devices -------------------------------------------------------------------

    /// Asks the other devices. `is_held`: the bytes are here, to check proofs against.
    async fn gather(&self, open: &mut [Open], is_held: bool, lease: bool) -> Result<(), String> {
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
        // The leases count from here: no request is sent before.
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
                            true => open.proves(other, lease.then_some(lease_ms)),
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
                            open.proves(other, None);
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

    /// Counts wrong proofs, and names a device that proves wrongly again and again.
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

    /// Keeps what was proven for a later [`Purpose::Safe`].
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

    // ---- the answer --------------------------------------------------------------------------

    fn are_enough<'a>(
        &self,
        proven: impl Iterator<Item = &'a NodeId>,
        request: &GatherRequest,
    ) -> bool {
        let proven: BTreeSet<&NodeId> = proven.collect();
        let others = self.others.iter().filter(|other| proven.contains(&other.node_id));
        let sites: BTreeSet<&str> = others.map(|other| other.site.as_str()).collect();
        proven.len() >= request.copies.max(1) && sites.len() >= request.sites
    }

    fn name(&self, node_id: &NodeId) -> String {
        let other = self.others.iter().find(|other| other.node_id == *node_id);
        other.map_or_else(|| node_id.short().to_string(), |other| other.name.clone())
    }

    fn proven(
        &self,
        digest: Digest,
        outcome: GatherOutcome,
        proven_at: &BTreeMap<NodeId, u64>,
    ) -> Gathered {
        let by = |(node_id, at_ms): (&NodeId, &u64)| ProvenBy {
            node_id: *node_id,
            name: self.name(node_id),
            at_ms: *at_ms,
        };
        let Digest { hash, size_bytes: size } = digest;
        let proven = proven_at.iter().map(by).collect();
        Gathered { hash, size, outcome, proven, lacking: Vec::new(), reason: None }
    }

    fn short(&self, open: &Open, request: &GatherRequest) -> Gathered {
        let (count, copies) = (open.proven_at.len(), request.copies.max(1));
        let reason = match count < copies {
            true => format!("{count} of {copies} other devices have proven that they hold it"),
            false if self.are_enough(open.proven_at.keys(), request) => {
                "too few of the devices that hold it can promise to keep it".to_owned()
            }
            false => format!("the copies are on fewer than {} sites", request.sites),
        };
        let at = |(node_id, lack): (&NodeId, &Lack)| LackingAt {
            node_id: *node_id,
            name: self.name(node_id),
            why: words(*lack).to_owned(),
        };
        let lacking = open.lacking.iter().map(at).collect();
        let proven = self.proven(open.digest, GatherOutcome::Refused, &open.proven_at);
        Gathered { lacking, reason: Some(reason), ..proven }
    }
}

impl Open {
    fn new(digest: Digest, request: &GatherRequest) -> Self {
        let gathering = Gathering::new(request.copies, request.sites);
        Self { digest, gathering, proven_at: BTreeMap::new(), lacking: BTreeMap::new() }
    }

    /// `lease_ms`: what was promised, if a promise was asked for.
    fn proves(&mut self, other: &Other, lease_ms: Option<u64>) {
        self.lacking.remove(&other.node_id);
        match lease_ms {
            Some(0) => {
                self.gathering.lacking(other.node_id, Lack::CannotPromise);
                self.lacking.insert(other.node_id, Lack::CannotPromise);
            }
            Some(lease_ms) => self.gathering.proven(other.node_id, &other.site, lease_ms),
            None => {}
        }
        self.proven_at.insert(other.node_id, wall_ms());
    }

    fn lacks(&mut self, device: NodeId, lack: Lack) {
        self.gathering.lacking(device, lack);
        self.proven_at.remove(&device);
        self.lacking.insert(device, lack);
    }
}

fn refused(digest: Digest, reason: String) -> Gathered {
    let Digest { hash, size_bytes: size } = digest;
    let (outcome, reason) = (GatherOutcome::Refused, Some(reason));
    Gathered { hash, size, outcome, proven: Vec::new(), lacking: Vec::new(), reason }
}

/// Why a device's copy does not count, for people.
fn words(lack: Lack) -> &'static str {
    match lack {
        Lack::Offline => "is not connected",
        Lack::TooOld => "has a version of can-sync that cannot prove",
        Lack::NotHeld => "does not hold it",
        Lack::Damaged => "has a damaged copy",
        Lack::Evicting => "is evicting its own copy",
        Lack::CannotPromise => "holds it in a store of another program, which may delete it",
        Lack::Busy => "is busy: try again",
        Lack::NoAnswer => "did not answer in time",
        Lack::WrongProof => "sent a wrong proof",
        Lack::Unchecked => "cannot be checked, because the bytes are not here",
    }
}

async fn blocking<T: Send + 'static, E: std::fmt::Display + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, String> {
    let done = spawn_blocking(work).await.map_err(|error| error.to_string())?;
    done.map_err(|error| error.to_string())
}

/// Starts a task that gathers proofs for a request.
pub(super) fn start(
    parts: &mut Parts,
    engine: &Engine,
    live: &BTreeMap<ConnId, Live>,
    wakers: &Wakers,
    request: GatherRequest,
    tell: mpsc::Sender<Gathered>,
) {
    let provers: BTreeMap<NodeId, (ConnId, bool)> =
        engine.provers().map(|(node_id, conn, proves)| (node_id, (conn, proves))).collect();
    let sites = parts.keeper.view().sites;
    let members = engine.members().members.iter();
    let others = members.filter(|member| member.node_id != parts.node_id).map(|member| {
        let session = provers.get(&member.node_id);
        let live = session.and_then(|(conn, _)| live.get(conn));
        Other {
            node_id: member.node_id,
            name: shown_name(&member.name, &member.node_id),
            site: sites.get(&member.node_id).cloned().unwrap_or(member.node_id.to_string()),
            connection: live.map(|live| live.connection.clone()),
            proves: session.is_some_and(|(_, proves)| *proves),
        }
    });
    let gatherer = Gatherer {
        me: parts.node_id,
        store: parts.store.clone(),
        can_evict: parts.embedded.is_some(),
        copies: parts.copies.clone(),
        algorithm: engine.identity().algorithm,
        others: others.collect(),
        wrong_proofs: parts.wrong_proofs.clone(),
        events: parts.events.clone(),
        folders: parts.folders.clone(),
        judge: Judge::of(parts, wakers.gate.clone()),
        nudge: wakers.nudge.clone(),
    };
    parts.tasks.spawn("gather proofs", gatherer.run(request, tell));
}

/// Settles evictions that a crash interrupted, before anything is promised; see E1.
///
/// # Errors
/// The store or the database failed: the caller must not promise anything.
pub(super) async fn restart(copies: &Copies, store: &dyn Store) -> anyhow::Result<()> {
    let reading = copies.clone();
    let intents = spawn_blocking(move || reading.intents()).await??;
    let mut settled = Vec::with_capacity(intents.len());
    for hash in intents {
        let is_gone = store.lookup(hash).await?.is_some_and(|asset| asset.is_evicted);
        tracing::info!(%hash, is_gone, "an eviction was interrupted");
        settled.push((hash, !is_gone));
    }
    let writing = copies.clone();
    spawn_blocking(move || writing.restart_leases(settled, boot_ms(), wall_ms())).await??;
    Ok(())
}
