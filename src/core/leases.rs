//! When a device may delete its copy of an asset: the leases that it gave to others, and the leases that
//! it needs from others.
//!
//! A device that proves that it holds an asset gives a **lease** with its answer: until the lease
//! ends it keeps the asset. A device that wants to delete its copy (the evictor) first writes down
//! that it does (the **intent**), and then gathers leases from others.
//!
//! L1  While a lease that it gave runs, a device does not begin to evict the asset; while it is
//!     evicting it, it gives none. Both are read and written in one transaction ([`Standing`]).
//! L2  The evictor deletes only while the leases of enough devices run. It counts each from the
//!     moment it *sent* the request, less a margin, so its count ends before the promise does,
//!     however slow the answer was and as long as no clock is wrong by more than the margin.
//! L3  So at the moment of each eviction as many other devices as are required hold the bytes and may not
//!     delete them, as far as they are honest. If two devices each rely on the other, both are refused.
//! L4  A lease survives a restart: it then runs again for its full time, because the clock that measured
//!     it may have started again from zero.
//!
//! Times are milliseconds of a clock that counts sleep and is never set (`clock::boot_ms`).

use std::collections::{BTreeMap, BTreeSet};

use crate::core::ids::NodeId;

/// How long a device keeps an asset after it answered with a proof.
pub const LEASE_MS: u64 = 15 * 60 * 1000;

/// The evictor leaves one part in this many of each lease unused: for clocks that run at different
/// rates, and for the time that deleting takes.
pub const MARGIN_FRACTION: u64 = 10;

/// The context string from which the keys of proofs are derived; see BLAKE3's `derive_key`.
const PROOF_CONTEXT: &str = "can-sync proof of possession v1";

/// The key under which `prover` hashes a content to prove to `asker` that it holds the content. Both
/// node IDs go into the key, so that a device cannot pass on the proof of another device.
pub fn proof_key(asker: &NodeId, prover: &NodeId, nonce: &[u8; 32]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(PROOF_CONTEXT);
    hasher.update(&asker.0).update(&prover.0).update(nonce);
    *hasher.finalize().as_bytes()
}

/// The leases that this device gave on one asset, and whether it is evicting the asset. Durable: read,
/// changed and written back in one transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// When each lease ends, by the device that it was given to.
    pub leases: BTreeMap<NodeId, u64>,
    /// Whether the copy here is kept.
    pub keeping: Keeping,
}

/// Whether a device keeps its copy of an asset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Keeping {
    /// The device keeps its copy, or never had one.
    #[default]
    Kept,
    /// The device gathers proofs, or is deleting its copy.
    Evicting,
    /// It deleted its copy on purpose, and does not want it back.
    Evicted,
}

/// Why a lease is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoLease {
    /// This device is evicting the asset itself.
    Evicting,
    /// This device has evicted the asset.
    Evicted,
}

/// A lease that forbids an eviction: who has it and when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promised {
    /// The device that relies on the copy here.
    pub device: NodeId,
    /// When its lease ends.
    pub until_ms: u64,
}

impl Standing {
    /// Gives `device` a lease, which must be durable before the device receives it.
    ///
    /// # Errors
    /// This device does not keep the asset.
    pub fn grant(&mut self, now_ms: u64, device: NodeId) -> Result<(), NoLease> {
        match self.keeping {
            Keeping::Kept => {}
            Keeping::Evicting => return Err(NoLease::Evicting),
            Keeping::Evicted => return Err(NoLease::Evicted),
        }
        let until_ms = self.leases.entry(device).or_default();
        *until_ms = (*until_ms).max(now_ms + LEASE_MS);
        Ok(())
    }

    /// Begins an eviction. It must be durable before a lease is requested from any device.
    ///
    /// # Errors
    /// Another device has a lease that has not ended; the one that ends last is named.
    pub fn begin(&mut self, now_ms: u64) -> Result<(), Promised> {
        self.leases.retain(|_, until_ms| now_ms < *until_ms);
        let latest = self.leases.iter().max_by_key(|(_, until_ms)| **until_ms);
        if let Some((device, until_ms)) = latest {
            return Err(Promised { device: *device, until_ms: *until_ms });
        }
        self.keeping = Keeping::Evicting;
        Ok(())
    }

    /// Ends an eviction. `is_held` is whether the bytes are still here.
    pub fn end(&mut self, is_held: bool) {
        if self.keeping == Keeping::Evicting {
            self.keeping = if is_held { Keeping::Kept } else { Keeping::Evicted };
        }
    }

    /// Wants an evicted asset back.
    pub fn take_back(&mut self) {
        if self.keeping == Keeping::Evicted {
            self.keeping = Keeping::Kept;
        }
    }

    /// Renews the leases after a restart, see L4, and ends an eviction that was under way: it has either
    /// deleted the bytes or never will. `is_held`: the bytes are here.
    pub fn restart(&mut self, now_ms: u64, is_held: bool) {
        for until_ms in self.leases.values_mut() {
            *until_ms = now_ms + LEASE_MS;
        }
        self.end(is_held);
    }
}

/// Why a device's copy does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lack {
    /// The device is not connected.
    Offline,
    /// The device runs a version of can-sync that cannot prove.
    TooOld,
    /// The device does not hold the asset.
    NotHeld,
    /// The device's copy is damaged.
    Damaged,
    /// The device is evicting its own copy.
    Evicting,
    /// The device's store belongs to another program, which may delete at any time.
    CannotPromise,
    /// The device is busy with other proofs.
    Busy,
    /// The device did not answer before the deadline.
    NoAnswer,
    /// The device's proof was wrong.
    WrongProof,
    /// This device cannot check its proof.
    Unchecked,
}

/// The answer of one device to the evictor.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Asked { at_ms: u64 },
    Proven { until_ms: u64, site: String },
    Lacking(Lack),
}

/// The leases gathered for one eviction. They are dropped when it ends: no lease serves two evictions.
#[derive(Debug, Clone)]
pub struct Gathering {
    copies: usize,
    sites: usize,
    answers: BTreeMap<NodeId, Answer>,
}

/// What the evictor may do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Wait for the devices that were asked.
    Wait,
    /// Delete the copy; the deletion must be complete before the given time.
    Delete {
        /// When the first of the leases that are needed ends.
        before_ms: u64,
        /// The devices whose leases are needed.
        by: Vec<NodeId>,
    },
    /// Keep the copy.
    Short {
        /// The devices whose proofs counted.
        proven: Vec<NodeId>,
        /// Why the others' did not.
        lacking: Vec<(NodeId, Lack)>,
    },
}

impl Gathering {
    /// Begins to gather leases on `copies` copies (at least one) on `sites` different sites.
    pub fn new(copies: usize, sites: usize) -> Self {
        Self { copies: copies.max(1), sites, answers: BTreeMap::new() }
    }

    /// Records a request for a lease to a device. Call it before sending the request: the lease
    /// counts from `now_ms`, see L2.
    pub fn asked(&mut self, now_ms: u64, device: NodeId) {
        self.answers.insert(device, Answer::Asked { at_ms: now_ms });
    }

    /// Records a proof that was checked and found right. The device promised to keep its copy for
    /// `lease_ms` from when the request reached it; here the lease counts from when the request was sent,
    /// see L2. A proof that was not asked for is ignored.
    pub fn proven(&mut self, device: NodeId, site: &str, lease_ms: u64) {
        let Some(Answer::Asked { at_ms }) = self.answers.get(&device) else { return };
        let until_ms = at_ms.saturating_add(lease_ms - lease_ms.div_ceil(MARGIN_FRACTION));
        self.answers.insert(device, Answer::Proven { until_ms, site: site.to_owned() });
    }

    /// Records why a device's copy does not count.
    pub fn lacking(&mut self, device: NodeId, lack: Lack) {
        self.answers.insert(device, Answer::Lacking(lack));
    }

    /// Stops waiting: devices that have not answered count as [`Lack::NoAnswer`].
    pub fn give_up(&mut self) {
        for answer in self.answers.values_mut() {
            if matches!(answer, Answer::Asked { .. }) {
                *answer = Answer::Lacking(Lack::NoAnswer);
            }
        }
    }

    /// The devices whose leases have ended since they answered; they may be asked again.
    pub fn run_out(&self, now_ms: u64) -> Vec<NodeId> {
        let is_over = |answer: &Answer| matches!(answer, Answer::Proven { until_ms, .. } if *until_ms <= now_ms);
        self.answers.iter().filter(|(_, answer)| is_over(answer)).map(|(id, _)| *id).collect()
    }

    /// What may be done at `now_ms`.
    pub fn verdict(&self, now_ms: u64) -> Verdict {
        if let Some((before_ms, by)) = self.enough()
            && now_ms < before_ms
        {
            return Verdict::Delete { before_ms, by };
        }
        if self.answers.values().any(|answer| matches!(answer, Answer::Asked { .. })) {
            return Verdict::Wait;
        }
        let (mut proven, mut lacking) = (Vec::new(), Vec::new());
        for (device, answer) in &self.answers {
            match answer {
                Answer::Proven { until_ms, .. } if now_ms < *until_ms => proven.push(*device),
                Answer::Proven { .. } | Answer::Asked { .. } => {
                    lacking.push((*device, Lack::NoAnswer));
                }
                Answer::Lacking(lack) => lacking.push((*device, *lack)),
            }
        }
        Verdict::Short { proven, lacking }
    }

    /// The devices whose leases are enough, those that end last first, and when the first of them ends;
    /// `None` if they are too few.
    fn enough(&self) -> Option<(u64, Vec<NodeId>)> {
        let proven = self.answers.iter().filter_map(|(device, answer)| match answer {
            Answer::Proven { until_ms, site } => Some((*until_ms, site.as_str(), *device)),
            Answer::Asked { .. } | Answer::Lacking(_) => None,
        });
        let mut proven: Vec<(u64, &str, NodeId)> = proven.collect();
        proven.sort_unstable_by(|a, b| b.cmp(a));
        let (mut sites, mut by) = (BTreeSet::new(), Vec::new());
        for (until_ms, site, device) in proven {
            sites.insert(site);
            by.push(device);
            if by.len() >= self.copies && sites.len() >= self.sites {
                return Some((until_ms, by));
            }
        }
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const A: NodeId = NodeId([1; 32]);
    const B: NodeId = NodeId([2; 32]);
    const C: NodeId = NodeId([3; 32]);

    #[test]
    fn a_device_that_gave_a_lease_does_not_evict_until_it_ends() {
        let mut standing = Standing::default();
        standing.grant(1000, A).unwrap();
        let until_ms = 1000 + LEASE_MS;
        assert_eq!(standing.begin(until_ms - 1), Err(Promised { device: A, until_ms }));
        assert_eq!(standing.begin(until_ms), Ok(()));
    }

    #[test]
    fn a_device_that_is_evicting_gives_no_lease() {
        let mut standing = Standing::default();
        standing.begin(0).unwrap();
        assert_eq!(standing.grant(1, A), Err(NoLease::Evicting));
        standing.end(false);
        assert_eq!(standing.grant(1, A), Err(NoLease::Evicted));
        standing.take_back();
        assert_eq!(standing.grant(1, A), Ok(()));
    }

    #[test]
    fn a_second_lease_of_a_device_never_shortens_the_first() {
        let mut standing = Standing::default();
        standing.grant(1000, A).unwrap();
        standing.grant(10, A).unwrap();
        assert_eq!(standing.leases[&A], 1000 + LEASE_MS);
    }

    #[test]
    fn leases_run_anew_after_a_restart_and_an_intent_ends_as_the_bytes_are() {
        let mut standing = Standing::default();
        standing.grant(1_000_000, A).unwrap();
        standing.restart(5, true);
        assert_eq!(standing.leases[&A], 5 + LEASE_MS);
        for (is_held, expected) in [(true, Keeping::Kept), (false, Keeping::Evicted)] {
            let mut standing = Standing { keeping: Keeping::Evicting, ..Standing::default() };
            standing.restart(0, is_held);
            assert_eq!(standing.keeping, expected);
        }
    }

    #[test]
    fn a_lease_counts_from_when_the_request_was_sent_less_a_tenth() {
        let mut gathering = Gathering::new(1, 1);
        gathering.asked(1000, A);
        assert_eq!(gathering.verdict(900_000), Verdict::Wait);
        gathering.proven(A, "", 1_000_000);
        let delete = Verdict::Delete { before_ms: 901_000, by: vec![A] };
        assert_eq!(gathering.verdict(900_999), delete);
        let late = Verdict::Short { proven: vec![], lacking: vec![(A, Lack::NoAnswer)] };
        assert_eq!(gathering.verdict(901_000), late);
        assert_eq!(gathering.run_out(901_000), [A]);
    }

    #[test]
    fn the_shortest_of_the_leases_that_are_needed_ends_the_time() {
        let mut gathering = Gathering::new(2, 1);
        for (device, lease_ms) in [(A, 1000), (B, 2000), (C, 3000)] {
            gathering.asked(0, device);
            gathering.proven(device, "", lease_ms);
        }
        let delete = Verdict::Delete { before_ms: 1800, by: vec![C, B] };
        assert_eq!(gathering.verdict(0), delete);
    }

    #[test]
    fn copies_on_too_few_sites_are_not_enough() {
        let mut gathering = Gathering::new(2, 2);
        for (device, site) in [(A, "home"), (B, "home")] {
            gathering.asked(0, device);
            gathering.proven(device, site, 1000);
        }
        assert!(matches!(gathering.verdict(0), Verdict::Short { .. }));
        gathering.asked(0, C);
        gathering.proven(C, "office", 500);
        let delete = Verdict::Delete { before_ms: 450, by: vec![B, A, C] };
        assert_eq!(gathering.verdict(0), delete);
    }

    #[test]
    fn an_answer_that_was_not_asked_for_does_not_count() {
        let mut gathering = Gathering::new(1, 1);
        gathering.proven(A, "", 1000);
        assert!(matches!(gathering.verdict(0), Verdict::Short { .. }));
    }

    #[test]
    fn the_key_of_a_proof_differs_for_each_asker_and_prover_and_nonce() {
        let keys = [
            proof_key(&A, &B, &[0; 32]),
            proof_key(&B, &A, &[0; 32]),
            proof_key(&A, &C, &[0; 32]),
            proof_key(&A, &B, &[1; 32]),
        ];
        assert_eq!(BTreeSet::from(keys).len(), 4);
    }
}
