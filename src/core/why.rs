//! Why an asset is, or is not, on each device of the group, and what happens next. Decided from what
//! the engine knows at this moment ([`Facts`]) and what the shell saw ([`Seen`]); nothing is guessed:
//! what is not known is said to be unknown.
//!
//! Times of [`Facts`] are monotonic, those of the answer are of the wall clock.

mod answer;
mod facts;
mod text;

use crate::core::ids::{Hash, NodeId};

pub use answer::{AssetWhy, DeviceWhy, HereReason, NamedDevice, Next, NextStep, ThereReason};
pub use facts::{
    Facts, Here, Limits, LinkFacts, Moment, PeerFacts, PeerSeen, Rest, RestCause, Seen, Sending,
    Unwanted, Wanted,
};

/// Answers from `facts` and `seen`, at this moment.
pub fn why(hash: Hash, moment: Moment, facts: &Facts, seen: &Seen) -> AssetWhy {
    let view = View { moment, facts, seen };
    let here = view.here();
    let devices: Vec<DeviceWhy> = facts.peers.iter().map(|peer| view.there(peer)).collect();
    let next = match seen.here {
        Here::Whole => view.next_there(&devices),
        Here::Absent | Here::Damaged => view.next_here(&here),
    };
    let damaged = seen.here == Here::Damaged;
    let text = String::new();
    let mut why = AssetWhy { hash, at_ms: moment.wall_ms, damaged, here, devices, next, text };
    let added_by = seen.added_by.as_ref().map(|(node_id, name)| {
        let peer = facts.peers.iter().find(|peer| peer.node_id == *node_id);
        peer.map_or_else(|| name.clone(), |peer| named(peer).name)
    });
    why.text = text::paragraph(&why, added_by.as_deref());
    why
}

struct View<'a> {
    moment: Moment,
    facts: &'a Facts,
    seen: &'a Seen,
}

impl View<'_> {
    fn here(&self) -> HereReason {
        let Facts { is_removed, store_up, paused_until_ms, want, .. } = self.facts;
        if self.seen.here == Here::Whole {
            return HereReason::Whole;
        }
        if *is_removed {
            return HereReason::Removed;
        }
        if let (Wanted::Not, Some(because)) = (want, self.seen.unwanted) {
            return HereReason::NotWanted { because };
        }
        if !store_up || self.seen.store_error.is_some() {
            return HereReason::StoreDown { error: self.seen.store_error.clone() };
        }
        let limit_bytes = self.seen.limits.down_bytes;
        match want {
            // What is damaged was stored once.
            Wanted::Stored if self.seen.here == Here::Damaged => {}
            Wanted::Stored => return HereReason::Stored,
            Wanted::Arriving(peers) => {
                let (from, left_bytes) = (self.named(peers), self.seen.left_bytes);
                return HereReason::Arriving { from, left_bytes, limit_bytes };
            }
            Wanted::Not | Wanted::Requested { .. } | Wanted::Queued { .. } => {}
        }
        let paused_until_ms = paused_until_ms.map(|at_ms| self.moment.wall(at_ms));
        if !self.seen.shortage.is_empty() {
            let what = self.seen.shortage.clone();
            return HereReason::NoSpace { what, until_ms: paused_until_ms };
        }
        if let Some(until_ms) = paused_until_ms {
            return HereReason::StorePaused { until_ms };
        }
        match want {
            Wanted::Requested { from, at_ms, others } => {
                let (from, at_ms) = (self.name(from), self.moment.wall(*at_ms));
                let left_bytes = self.left_bytes(&from.node_id);
                let others = *others;
                return HereReason::Requested { from, at_ms, others, left_bytes, limit_bytes };
            }
            Wanted::Queued { holders, ahead } => {
                let left_bytes = holders.first().map_or(0, |first| self.left_bytes(first));
                let (from, ahead) = (self.named(holders), *ahead);
                return HereReason::Queued { from, ahead, left_bytes, limit_bytes };
            }
            Wanted::Not | Wanted::Stored | Wanted::Arriving(_) => {}
        }
        if let Some(first) = self.facts.rests.iter().min_by_key(|rest| rest.until_ms) {
            let peers: Vec<NodeId> = self.facts.rests.iter().map(|rest| rest.peer).collect();
            let until_ms = self.moment.wall(first.until_ms);
            if first.cause == RestCause::NoSpace {
                return HereReason::NoSpace { what: Vec::new(), until_ms: Some(until_ms) };
            }
            return HereReason::Resting { cause: first.cause, from: self.named(&peers), until_ms };
        }
        self.nobody_asked()
    }

    /// The reason when it is not requested from anybody.
    fn nobody_asked(&self) -> HereReason {
        let peers = &self.facts.peers;
        if peers.is_empty() {
            return HereReason::Alone;
        }
        let (mut asked, mut comparing, mut offline) = (Vec::new(), Vec::new(), Vec::new());
        for peer in peers {
            match peer.link {
                LinkFacts::Connected { in_sync: true, .. } => asked.push(named(peer)),
                LinkFacts::Connected { .. } | LinkFacts::Greeting => comparing.push(named(peer)),
                LinkFacts::Offline { .. } => offline.push(named(peer)),
            }
        }
        if !comparing.is_empty() {
            return HereReason::Comparing { with: comparing };
        }
        let held = peers.iter().filter_map(|peer| match peer.link {
            LinkFacts::Offline { since_ms, .. } => {
                Some((*self.seen.holders.get(&peer.node_id)?, peer, since_ms))
            }
            LinkFacts::Greeting | LinkFacts::Connected { .. } => None,
        });
        if let Some((at_ms, peer, since_ms)) = held.max_by_key(|(at_ms, ..)| *at_ms) {
            let since_ms = self.offline_since_ms(peer, since_ms);
            return HereReason::HolderOffline {
                device: named(peer),
                held_at_ms: Some(at_ms),
                since_ms,
            };
        }
        let adder = self.seen.added_by.as_ref().map(|(node_id, _)| *node_id);
        let adder = peers.iter().find(|peer| Some(peer.node_id) == adder);
        if let Some(peer) = adder
            && let LinkFacts::Offline { since_ms, .. } = peer.link
        {
            let since_ms = self.offline_since_ms(peer, since_ms);
            return HereReason::HolderOffline { device: named(peer), held_at_ms: None, since_ms };
        }
        HereReason::Nowhere { asked, offline }
    }

    fn there(&self, peer: &PeerFacts) -> DeviceWhy {
        DeviceWhy { device: named(peer), reason: self.reason_there(peer) }
    }

    /// Since when a peer is away: on the clock of this agent, or as an earlier run noted it.
    fn offline_since_ms(&self, peer: &PeerFacts, since_ms: Option<u64>) -> Option<u64> {
        let since_ms = since_ms.map(|at_ms| self.moment.wall(at_ms));
        since_ms.or_else(|| self.seen.last_seen.get(&peer.node_id).copied())
    }

    fn reason_there(&self, peer: &PeerFacts) -> ThereReason {
        let is_here = self.seen.here == Here::Whole;
        let (in_sync, compare_at_ms) = match &peer.link {
            LinkFacts::Offline { since_ms, error, retry_at_ms } => {
                return ThereReason::Offline {
                    since_ms: self.offline_since_ms(peer, *since_ms),
                    held_at_ms: self.seen.holders.get(&peer.node_id).copied(),
                    error: error.clone(),
                    retry_at_ms: retry_at_ms.map(|at_ms| self.moment.wall(at_ms)),
                };
            }
            LinkFacts::Greeting => (false, None),
            LinkFacts::Connected { in_sync, compare_at_ms } => (*in_sync, *compare_at_ms),
        };
        let is_holder = self.seen.holders.contains_key(&peer.node_id);
        // A peer that does not tell what it lacks holds all that both know.
        if peer.holds || is_holder || (in_sync && is_here && !peer.tells_absent) {
            return ThereReason::Has;
        }
        if in_sync {
            return ThereReason::Lacks;
        }
        let seen = self.seen.peers.get(&peer.node_id);
        let limit_bytes = self.seen.limits.up_bytes;
        match peer.sending {
            Sending::Under => return ThereReason::Sending { limit_bytes },
            Sending::Queued { .. } | Sending::No => {}
        }
        if is_here && let Some((at_ms, why)) = seen.and_then(|seen| seen.refused.clone()) {
            return ThereReason::Refused { at_ms: self.moment.wall(at_ms), why };
        }
        if is_here && let Some(why) = seen.and_then(|seen| seen.put_off.clone()) {
            return ThereReason::PutOff { why };
        }
        if let Sending::Queued { ahead, ahead_bytes } = peer.sending {
            return ThereReason::Queued { ahead, ahead_bytes, limit_bytes };
        }
        let at_ms = compare_at_ms.filter(|at_ms| *at_ms > self.moment.mono_ms);
        ThereReason::Comparing { at_ms: at_ms.map(|at_ms| self.moment.wall(at_ms)) }
    }

    /// What happens next to an asset that is not here.
    fn next_here(&self, here: &HereReason) -> Option<Next> {
        let next = |step, device: Option<&NamedDevice>, at_ms| {
            Some(Next { step, device: device.cloned(), at_ms })
        };
        match here {
            HereReason::Whole
            | HereReason::Stored
            | HereReason::NotWanted { .. }
            | HereReason::Removed => None,
            HereReason::StoreDown { .. } => next(NextStep::TryStore, None, None),
            HereReason::StorePaused { until_ms } => next(NextStep::TryStore, None, Some(*until_ms)),
            HereReason::NoSpace { until_ms, .. } => next(NextStep::MakeSpace, None, *until_ms),
            HereReason::Arriving { from, .. } => next(NextStep::Transfer, from.first(), None),
            HereReason::Requested { from, .. } => next(NextStep::Transfer, Some(from), None),
            HereReason::Queued { from, .. } => next(NextStep::Request, from.first(), None),
            HereReason::Resting { from, until_ms, .. } => {
                next(NextStep::Request, from.first(), Some(*until_ms))
            }
            HereReason::HolderOffline { device, .. } => self.dial(|peer| peer == device.node_id),
            HereReason::Comparing { with } => {
                let at_ms = self.facts.peers.iter().filter_map(|peer| match peer.link {
                    LinkFacts::Connected { in_sync: false, compare_at_ms } => compare_at_ms,
                    _ => None,
                });
                let at_ms = at_ms.min().filter(|at_ms| *at_ms > self.moment.mono_ms);
                next(NextStep::Compare, with.first(), at_ms.map(|at_ms| self.moment.wall(at_ms)))
            }
            HereReason::Nowhere { offline, .. } => {
                let is_offline = |peer| offline.iter().any(|device| device.node_id == peer);
                self.dial(is_offline).or_else(|| next(NextStep::AddFile, None, None))
            }
            HereReason::Alone => next(NextStep::AddFile, None, None),
        }
    }

    /// The next dial of one of these peers.
    fn dial(&self, is_meant: impl Fn(NodeId) -> bool) -> Option<Next> {
        let dials = self.facts.peers.iter().filter(|peer| is_meant(peer.node_id));
        let dials = dials.filter_map(|peer| match peer.link {
            LinkFacts::Offline { retry_at_ms, .. } => Some((retry_at_ms, peer)),
            LinkFacts::Greeting | LinkFacts::Connected { .. } => None,
        });
        let (at_ms, peer) = dials.min_by_key(|(at_ms, _)| *at_ms)?;
        let at_ms = at_ms.map(|at_ms| self.moment.wall(at_ms));
        Some(Next { step: NextStep::Dial, device: Some(named(peer)), at_ms })
    }

    /// What happens next to an asset that is here: the first step towards another device.
    fn next_there(&self, devices: &[DeviceWhy]) -> Option<Next> {
        let steps = devices.iter().filter_map(|DeviceWhy { device, reason }| {
            let (step, at_ms) = match reason {
                ThereReason::Has | ThereReason::Lacks => return None,
                ThereReason::Sending { .. } => (NextStep::Transfer, None),
                ThereReason::Queued { .. } => (NextStep::Send, None),
                ThereReason::PutOff { .. } | ThereReason::Refused { .. } => return None,
                ThereReason::Comparing { at_ms } => (NextStep::Compare, *at_ms),
                ThereReason::Offline { retry_at_ms, .. } => (NextStep::Dial, *retry_at_ms),
            };
            Some(Next { step, device: Some(device.clone()), at_ms })
        });
        steps.min_by_key(|next| next.at_ms)
    }

    fn left_bytes(&self, peer: &NodeId) -> u64 {
        self.seen.peers.get(peer).map_or(0, |seen| seen.left_bytes)
    }

    fn name(&self, node_id: &NodeId) -> NamedDevice {
        let known = self.facts.peers.iter().find(|peer| peer.node_id == *node_id);
        known.map_or_else(|| NamedDevice { node_id: *node_id, name: node_id.short() }, named)
    }

    fn named(&self, peers: &[NodeId]) -> Vec<NamedDevice> {
        peers.iter().map(|peer| self.name(peer)).collect()
    }
}

fn named(peer: &PeerFacts) -> NamedDevice {
    let name = if peer.name.is_empty() { peer.node_id.short() } else { peer.name.clone() };
    NamedDevice { node_id: peer.node_id, name }
}
