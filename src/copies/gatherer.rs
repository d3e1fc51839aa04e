//! `safe` and `evict`: gathers proofs of other devices for assets, and has copies here deleted that
//! enough of them have promised to keep. [`crate::core::leases`] decides.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::mpsc;

use super::asking::Asker;
use super::evicting::Evictor;
use super::gathered::{GatherOutcome, GatherRequest, Gathered, LackingAt, ProvenBy, Purpose};
use super::open::Open;
use crate::clock::{boot_ms, wall_ms};
use crate::core::engine::Input;
use crate::core::ids::{Digest, Hash, NodeId};
use crate::core::leases::{Lack, Verdict};
use crate::core::limits::SMALL_BYTES_MAX;

/// Gathers proofs for one request.
pub(crate) struct Gatherer<F> {
    pub(crate) asker: Asker,
    pub(crate) evictor: Evictor<F>,
}

impl<F: From<Input>> Gatherer<F> {
    /// Sends the outcome of each asset. Ends early when the receiver is dropped.
    pub(crate) async fn run(self, request: GatherRequest, tell: mpsc::Sender<Gathered>) {
        let (mut small, mut alone) = (Vec::new(), Vec::new());
        for hash in &request.hashes {
            match self.asker.store.lookup(*hash).await {
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
                _ => self.asker.known_proofs(digest.hash, since_ms).await,
            };
            match self.are_enough(known.keys(), request) {
                true => gathered.push(self.proven(digest, GatherOutcome::Proven, &known)),
                false => open.push(Open::new(digest, request)),
            }
        }
        if let Err(why) = self.asker.gather(&mut open, is_held, true).await {
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
        if !self.evictor.can_evict {
            let why = "the store belongs to another program: delete it there".to_owned();
            return digests.into_iter().map(|digest| refused(digest, why.clone())).collect();
        }
        let (mut gathered, mut open) = (Vec::new(), Vec::new());
        match self.evictor.begin(&digests, dry_run, |id| self.asker.name(id)).await {
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
        // A dry run asks for leases, too: only with them it says what would happen.
        let failed = self.asker.gather(&mut open, true, true).await.err();
        let mut may_go = BTreeMap::new();
        for open in open.iter().filter(|_| failed.is_none()) {
            if let Verdict::Delete { before_ms, .. } = open.gathering.verdict(boot_ms()) {
                may_go.insert(open.digest.hash, before_ms);
            }
        }
        if dry_run {
            gathered.extend(open.iter().map(|open| {
                match (&failed, may_go.contains_key(&open.digest.hash)) {
                    (Some(why), _) => refused(open.digest, why.clone()),
                    (None, true) => {
                        self.proven(open.digest, GatherOutcome::WouldEvict, &open.proven_at)
                    }
                    (None, false) => self.short(open, request),
                }
            }));
            return gathered;
        }
        let (gone, failed_to_delete) = self.evictor.delete(&may_go).await;
        let hashes: Vec<Hash> = open.iter().map(|open| open.digest.hash).collect();
        self.evictor.end(&hashes, &gone).await;
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

    fn are_enough<'a>(
        &self,
        proven: impl Iterator<Item = &'a NodeId>,
        request: &GatherRequest,
    ) -> bool {
        let proven: BTreeSet<&NodeId> = proven.collect();
        let others = self.asker.others.iter().filter(|other| proven.contains(&other.node_id));
        let sites: BTreeSet<&str> = others.map(|other| other.site.as_str()).collect();
        proven.len() >= request.copies.max(1) && sites.len() >= request.sites
    }

    fn proven(
        &self,
        digest: Digest,
        outcome: GatherOutcome,
        proven_at: &BTreeMap<NodeId, u64>,
    ) -> Gathered {
        let by = |(node_id, at_ms): (&NodeId, &u64)| ProvenBy {
            node_id: *node_id,
            name: self.asker.name(node_id),
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
            name: self.asker.name(node_id),
            why: words(*lack).to_owned(),
        };
        let lacking = open.lacking.iter().map(at).collect();
        let proven = self.proven(open.digest, GatherOutcome::Refused, &open.proven_at);
        Gathered { lacking, reason: Some(reason), ..proven }
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
