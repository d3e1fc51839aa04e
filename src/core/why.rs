//! Why an asset is, or is not, on each device of the group, and what happens next. Decided from what
//! the engine knows at this moment ([`Facts`]) and what the shell saw ([`Seen`]); nothing is guessed:
//! what is not known is said to be unknown.
//!
//! Times of [`Facts`] are monotonic, those of the answer are of the wall clock.

mod text;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::core::ids::{Hash, NodeId};

// ---- what is known ---------------------------------------------------------------------------

/// What the engine knows about one asset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Whether the group removed this device.
    pub is_removed: bool,
    /// Whether the store answers.
    pub store_up: bool,
    /// Until then nothing is requested, because the store could not take what came.
    pub paused_until_ms: Option<u64>,
    /// How it stands with the request for it.
    pub want: Wanted,
    /// The peers from which it is not accepted for now.
    pub rests: Vec<Rest>,
    /// Every other device of the group.
    pub peers: Vec<PeerFacts>,
}

/// How it stands with the request for an asset that is not here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Wanted {
    /// It is not requested.
    #[default]
    Not,
    /// It was stored a moment ago.
    Stored,
    /// These peers send it.
    Arriving(Vec<NodeId>),
    /// It was requested.
    Requested {
        /// From this peer.
        from: NodeId,
        /// At this time.
        at_ms: u64,
        /// How many other assets that peer owes.
        others: u64,
    },
    /// It is going to be requested.
    Queued {
        /// The peers that hold it.
        holders: Vec<NodeId>,
        /// How many other assets are requested from the first of them before it.
        ahead: u64,
    },
}

/// A peer from which an asset is not accepted for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rest {
    /// The peer.
    pub peer: NodeId,
    /// Why.
    pub cause: RestCause,
    /// Until then.
    pub until_ms: u64,
}

/// Why an asset is not accepted from a peer for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RestCause {
    /// The bytes were not those of the hash, or the store refuses the asset.
    WrongBytes,
    /// There was no space for it.
    NoSpace,
    /// The transfer broke off.
    Interrupted,
}

/// What the engine knows about one asset and one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerFacts {
    /// The peer.
    pub node_id: NodeId,
    /// Its name.
    pub name: String,
    /// The connection.
    pub link: LinkFacts,
    /// Whether it said that it holds the asset.
    pub holds: bool,
    /// Whether it tells which assets it lacks on purpose: equal sets do not mean that it holds all.
    pub tells_absent: bool,
    /// Whether the asset is on its way to it.
    pub sending: Sending,
}

/// The connection to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkFacts {
    /// There is none.
    Offline {
        /// When the last connection ended; `None`: there was none since this agent started.
        since_ms: Option<u64>,
        /// Why the last connection or dial ended.
        error: Option<String>,
        /// When it is dialled next; `None` while it is being dialled.
        retry_at_ms: Option<u64>,
    },
    /// The devices have not greeted each other yet.
    Greeting,
    /// The devices talk.
    Connected {
        /// Whether both hold the same set.
        in_sync: bool,
        /// When the sets are compared next, as far as known.
        compare_at_ms: Option<u64>,
    },
}

/// Whether an asset is on its way to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    /// It is not.
    No,
    /// It is queued behind others of its kind.
    Queued {
        /// How many.
        ahead: u64,
        /// Their bytes, as far as known.
        ahead_bytes: u64,
    },
    /// It is in a batch under way.
    Under,
}

/// What the shell saw of the asset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// What the store has.
    pub here: Here,
    /// What the disks have no space for, in words.
    pub shortage: Vec<String>,
    /// Why the store does not answer.
    pub store_error: Option<String>,
    /// The bytes that are still missing of a large asset under way.
    pub left_bytes: Option<u64>,
    /// Why it is not wanted here, if so.
    pub unwanted: Option<Unwanted>,
    /// The peers that were known to hold it, and when that was confirmed, ms since the Unix epoch.
    pub holders: BTreeMap<NodeId, u64>,
    /// The device that added it, as the journal has it, with its name.
    pub added_by: Option<(NodeId, String)>,
    /// The rate limits in force, in bytes per second.
    pub limits: Limits,
    /// Of each connected peer what it said.
    pub peers: BTreeMap<NodeId, PeerSeen>,
}

/// What the store has of an asset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Here {
    /// Nothing.
    #[default]
    Absent,
    /// Bytes that are known to be damaged.
    Damaged,
    /// All of it.
    Whole,
}

/// Why an asset is not wanted here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unwanted {
    /// What this device wants leaves it out.
    Expression,
    /// Its copy here was deleted on purpose.
    Evicted,
}

/// The rate limits in force, in bytes per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// For sending.
    pub up_bytes: Option<u64>,
    /// For receiving.
    pub down_bytes: Option<u64>,
}

/// What the shell saw of a connected peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerSeen {
    /// Why it takes no assets for now.
    pub put_off: Option<String>,
    /// When it refused this asset in this connection, by the monotonic clock, and why.
    pub refused: Option<(u64, String)>,
    /// The bytes that it is still to send in batches under way.
    pub left_bytes: u64,
}

/// The same moment on both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Monotonic.
    pub mono_ms: u64,
    /// Since the Unix epoch.
    pub wall_ms: u64,
}

impl Moment {
    fn wall(self, mono_ms: u64) -> u64 {
        (self.wall_ms + mono_ms).saturating_sub(self.mono_ms)
    }
}

// ---- the answer ------------------------------------------------------------------------------

/// Why an asset is, or is not, on each device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AssetWhy {
    /// The asset.
    pub hash: Hash,
    /// The time of the answer, milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Whether this device has bytes of it that are damaged: it then counts as missing.
    pub damaged: bool,
    /// How it stands on this device.
    pub here: HereReason,
    /// How it stands on each other device, by name.
    pub devices: Vec<DeviceWhy>,
    /// What happens next; null: nothing, or it is not known.
    #[schema(required)]
    pub next: Option<Next>,
    /// All of it, in words.
    pub text: String,
}

/// A device in an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NamedDevice {
    /// Its node ID.
    pub node_id: NodeId,
    /// Its name.
    pub name: String,
}

/// How an asset stands on this device. `limit_bytes` is the rate limit in force, in bytes per second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum HereReason {
    /// It is here and whole.
    Whole,
    /// It has just arrived.
    Stored,
    /// It is not wanted here.
    NotWanted {
        /// Why.
        because: Unwanted,
    },
    /// The group removed this device.
    Removed,
    /// The store does not answer.
    StoreDown {
        /// Why.
        error: Option<String>,
    },
    /// The store could not take what came last, so nothing is requested for a while.
    StorePaused {
        /// Until then.
        until_ms: u64,
    },
    /// There is no space for it.
    NoSpace {
        /// What there is no space for.
        what: Vec<String>,
        /// When it is tried again, if that is known.
        until_ms: Option<u64>,
    },
    /// It is arriving.
    Arriving {
        /// From these devices.
        from: Vec<NamedDevice>,
        /// The bytes that are missing, of a large asset.
        left_bytes: Option<u64>,
        /// The rate limit.
        limit_bytes: Option<u64>,
    },
    /// It was requested.
    Requested {
        /// From this device.
        from: NamedDevice,
        /// At this time.
        at_ms: u64,
        /// How many other assets that device owes.
        others: u64,
        /// The bytes that it is still to send of those under way.
        left_bytes: u64,
        /// The rate limit.
        limit_bytes: Option<u64>,
    },
    /// It waits to be requested.
    Queued {
        /// The devices that hold it.
        from: Vec<NamedDevice>,
        /// How many others are requested before it.
        ahead: u64,
        /// The bytes that the first device is still to send of those under way.
        left_bytes: u64,
        /// The rate limit.
        limit_bytes: Option<u64>,
    },
    /// It is not accepted for a while from the devices that hold it.
    Resting {
        /// Why.
        cause: RestCause,
        /// The devices.
        from: Vec<NamedDevice>,
        /// Until then.
        until_ms: u64,
    },
    /// No connected device has it, and one that had it is offline.
    HolderOffline {
        /// The device.
        device: NamedDevice,
        /// When it was known to have it; absent: it added it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        held_at_ms: Option<u64>,
        /// When its last connection ended; absent: it was not connected since this agent started.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since_ms: Option<u64>,
    },
    /// Connected devices may have it: this device and they are still comparing what they hold.
    Comparing {
        /// The devices.
        with: Vec<NamedDevice>,
    },
    /// No connected device has it.
    Nowhere {
        /// The connected devices, which hold what this device holds.
        asked: Vec<NamedDevice>,
        /// The devices that are offline and may have it.
        offline: Vec<NamedDevice>,
    },
    /// No other device is in the group.
    Alone,
}

/// How an asset stands on another device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceWhy {
    /// The device.
    #[serde(flatten)]
    pub device: NamedDevice,
    /// How it stands.
    #[serde(flatten)]
    pub reason: ThereReason,
}

/// How an asset stands on another device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum ThereReason {
    /// It has it.
    Has,
    /// It does not have it.
    Lacks,
    /// It is being sent to it.
    Sending {
        /// The rate limit in force, in bytes per second.
        limit_bytes: Option<u64>,
    },
    /// It waits to be sent.
    Queued {
        /// How many others of its kind are sent before it.
        ahead: u64,
        /// Their bytes, as far as known.
        ahead_bytes: u64,
        /// The rate limit in force, in bytes per second.
        limit_bytes: Option<u64>,
    },
    /// The device takes no assets for now.
    PutOff {
        /// What it says.
        why: String,
    },
    /// The device refused the asset.
    Refused {
        /// At this time.
        at_ms: u64,
        /// What it said.
        why: String,
    },
    /// The device is offline: it is not known whether it has it.
    Offline {
        /// When its last connection ended; absent: it was not connected since this agent started.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since_ms: Option<u64>,
        /// When it was known to have the asset; absent: it was not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        held_at_ms: Option<u64>,
        /// Why the last connection or dial ended.
        error: Option<String>,
        /// When it is dialled next; absent: it is being dialled.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_at_ms: Option<u64>,
    },
    /// The two devices are still comparing what they hold.
    Comparing {
        /// When they compare next; absent: they do, or wait for a transfer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at_ms: Option<u64>,
    },
}

/// What happens next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Next {
    /// What.
    pub step: NextStep,
    /// With which device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<NamedDevice>,
    /// When; absent: now, or as soon as its turn comes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_ms: Option<u64>,
}

/// See [`Next`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NextStep {
    /// The transfer under way goes on to its end.
    Transfer,
    /// The asset is requested.
    Request,
    /// The asset is sent.
    Send,
    /// The device is dialled.
    Dial,
    /// The two devices compare what they hold.
    Compare,
    /// The store is tried again.
    TryStore,
    /// Nothing until somebody makes space.
    MakeSpace,
    /// Nothing until a device that has it is in the group, or the file is added again.
    AddFile,
}

// ---- the decision ----------------------------------------------------------------------------

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
            let since_ms = since_ms.map(|at_ms| self.moment.wall(at_ms));
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
            let since_ms = since_ms.map(|at_ms| self.moment.wall(at_ms));
            return HereReason::HolderOffline { device: named(peer), held_at_ms: None, since_ms };
        }
        HereReason::Nowhere { asked, offline }
    }

    fn there(&self, peer: &PeerFacts) -> DeviceWhy {
        DeviceWhy { device: named(peer), reason: self.reason_there(peer) }
    }

    fn reason_there(&self, peer: &PeerFacts) -> ThereReason {
        let is_here = self.seen.here == Here::Whole;
        let (in_sync, compare_at_ms) = match &peer.link {
            LinkFacts::Offline { since_ms, error, retry_at_ms } => {
                return ThereReason::Offline {
                    since_ms: since_ms.map(|at_ms| self.moment.wall(at_ms)),
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
