//! Which alerts stand: what the user must hear about without asking. Facts and the time go in;
//! alerts that were raised or have ended come out. [`mod@conditions`] says what is worth an alert, and
//! its words.
//!
//! A1  An alert is raised once its condition has held for the time that belongs to it, and ends by
//!     itself when the condition does.
//! A2  [`Memory`] is all that is remembered, and the caller saves it: a restart neither forgets an
//!     alert or its acknowledgement, nor raises it again.
//! A3  What was raised before a restart or a sleep stays until the facts refute it, or [`GRACE_MS`]
//!     are over: at first little is known.
//! A4  Time in which this device was off or slept counts against nobody.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::duration::parse_duration;
use super::ids::{GroupId, NodeId};
use super::rate::parse_rate;

mod conditions;
#[cfg(test)]
mod tests;

pub use conditions::{
    DeviceFacts, DiskFacts, Facts, FolderFacts, FolderTrouble, HookTrouble, MemberChange, ago,
    twin_text,
};

use conditions::{Condition, conditions, is_refuted};

/// Within this time after a start, and after a sleep, other devices connect and stores answer.
pub const GRACE_MS: u64 = 10 * 60 * 1000;

/// A longer time between two evaluations of the conditions means that this device slept.
const SLEPT_MS: u64 = 3 * 60 * 1000;

/// How long news are shown that no later fact refutes, unless they are acknowledged.
const NEWS_MS: u64 = 7 * DAY_MS;

/// An agent that has run for so long has got over its crash.
const CRASH_MS: u64 = DAY_MS;

/// The crashes that are counted; more say nothing more.
const CRASHES_MAX: usize = 16;

/// The most alerts that stand at a time. Facts about more devices and folders than people have are
/// needed to get there; the rest is not shown.
pub const ALERTS_MAX: usize = 512;

/// The most changes that wait to be written as events. They wait while the journal cannot be
/// written; then the oldest are dropped.
pub const OUTBOX_MAX: usize = 64;

/// The smallest change of the time out of sync that is worth a write to the disk.
const SAVED_STEP_MS: u64 = 10 * 60 * 1000;

/// A day.
pub const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// From when on the user is alerted; `None`: not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// A device was not connected for so long.
    pub away_ms: Option<u64>,
    /// A device was connected, and not in sync, for so long in all.
    pub out_of_sync_ms: Option<u64>,
    /// Assets were on one device alone for so long.
    pub one_copy_ms: Option<u64>,
    /// Less than this is free on a disk. In any case there is an alert when nothing is taken in any
    /// more.
    pub free_bytes: u64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            away_ms: Some(7 * DAY_MS),
            out_of_sync_ms: Some(DAY_MS),
            one_copy_ms: Some(DAY_MS),
            free_bytes: 0,
        }
    }
}

/// Reads how long something must last: `7d`, or `off` for never.
///
/// # Errors
/// What was expected.
pub fn parse_after(text: &str) -> Result<Option<u64>, String> {
    if text.eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    let expected = |_| format!("expected a time such as 12h or 7d, or off, got {text:?}");
    let after = parse_duration(text).map_err(expected)?;
    Ok(Some(u64::try_from(after.as_millis()).unwrap_or(u64::MAX)))
}

/// Reads how much must be free: `10G`, or `off`.
///
/// # Errors
/// What was expected.
pub fn parse_free(text: &str) -> Result<u64, String> {
    let expected = |_| format!("expected a size such as 10G, or off, got {text:?}");
    Ok(parse_rate(text).map_err(expected)?.unwrap_or(0))
}

/// The kind of an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[schema(as = AlertKind)]
pub enum Kind {
    /// Assets are damaged here.
    Damaged,
    /// Assets are on one device alone.
    OneCopy,
    /// Assets have fewer copies, or are on fewer sites, than the group wants.
    FewCopies,
    /// A disk is short of space.
    LowSpace,
    /// The store does not answer.
    StoreDown,
    /// Another device has the key of this one.
    ClonedDevice,
    /// A log holds two ops of one number.
    ForkedLog,
    /// A device was removed from the group.
    MemberRemoved,
    /// A device was added to the group.
    MemberAdded,
    /// A device was not seen for long.
    DeviceAway,
    /// A device was connected, but not in sync, for long.
    OutOfSync,
    /// Assets were refused, or came with wrong content.
    Quarantined,
    /// The clocks of two devices differ too much.
    ClockOff,
    /// A folder holds back very many changes.
    FolderHeld,
    /// A folder is not kept equal.
    FolderStopped,
    /// A folder is paused.
    FolderPaused,
    /// A hook fails.
    HookFailing,
    /// The agent crashed and was started again.
    Crashed,
}

impl Kind {
    /// Every kind, the most pressing first.
    pub const ALL: [Self; 18] = [
        Self::Damaged,
        Self::OneCopy,
        Self::FewCopies,
        Self::LowSpace,
        Self::StoreDown,
        Self::ClonedDevice,
        Self::ForkedLog,
        Self::MemberRemoved,
        Self::MemberAdded,
        Self::DeviceAway,
        Self::OutOfSync,
        Self::Quarantined,
        Self::ClockOff,
        Self::FolderHeld,
        Self::FolderStopped,
        Self::FolderPaused,
        Self::HookFailing,
        Self::Crashed,
    ];

    /// The kind's name, as in ids, metrics and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Damaged => "damaged",
            Self::OneCopy => "one-copy",
            Self::FewCopies => "few-copies",
            Self::LowSpace => "low-space",
            Self::StoreDown => "store-down",
            Self::ClonedDevice => "cloned-device",
            Self::ForkedLog => "forked-log",
            Self::MemberRemoved => "member-removed",
            Self::MemberAdded => "member-added",
            Self::DeviceAway => "device-away",
            Self::OutOfSync => "out-of-sync",
            Self::Quarantined => "quarantined",
            Self::ClockOff => "clock-off",
            Self::FolderHeld => "folder-held",
            Self::FolderStopped => "folder-stopped",
            Self::FolderPaused => "folder-paused",
            Self::HookFailing => "hook-failing",
            Self::Crashed => "crashed",
        }
    }
}

/// An alert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Alert {
    /// The alert's name: the kind, and what it is about.
    pub id: String,
    /// The alert's kind.
    pub kind: Kind,
    /// What is seen, and what to do about it.
    pub text: String,
    /// The device that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub device: Option<NodeId>,
    /// Since when it holds, milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// When it was raised.
    pub raised_ms: u64,
    /// When a user acknowledged it; null: nobody has.
    #[schema(required)]
    pub acked_ms: Option<u64>,
}

/// An alert that was raised or has ended; it is reported as an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// True when the alert was raised, false when it ended.
    pub is_raised: bool,
    /// The alert's id.
    pub id: String,
    /// The alert's text at that time.
    pub text: String,
    /// The device that it is about.
    pub device: Option<NodeId>,
    /// When the alert was raised. Together with the id it names one raising of the alert.
    pub raised_ms: u64,
}

/// What is remembered across restarts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// The agent runs, or ended without saying so.
    is_running: bool,
    /// When the agent was started after a crash.
    crashes: Vec<u64>,
    /// The group whose members are known.
    group: Option<GroupId>,
    /// Whether the group was compared with another device, so that what comes from now on is news.
    is_settled: bool,
    /// The changes of members that are no news any more.
    known_changes: BTreeSet<(NodeId, bool)>,
    devices: BTreeMap<NodeId, DeviceMemory>,
    entries: BTreeMap<String, Entry>,
    outbox: VecDeque<Change>,
}

/// What is remembered of another device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct DeviceMemory {
    /// When it was last connected; at first, when it became known.
    seen_ms: u64,
    is_connected: bool,
    /// How long the device has been connected without being in sync.
    behind_ms: u64,
}

/// A condition that holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    kind: Kind,
    text: String,
    device: Option<NodeId>,
    since_ms: u64,
    raised_ms: Option<u64>,
    acked_ms: Option<u64>,
    /// Whether the condition was seen to hold since the start, or since the device woke.
    #[serde(skip)]
    is_confirmed: bool,
    /// Whether this alert reports an event and was shown for long enough.
    #[serde(default)]
    is_over: bool,
}

/// The alerts of an agent that runs.
#[derive(Debug)]
pub struct Alerts {
    memory: Memory,
    /// The time of the last look.
    looked_ms: u64,
    /// When the agent started or the device woke.
    awake_ms: u64,
    /// What was last saved.
    saved: Memory,
}

impl Alerts {
    /// Begins a run with what the last one remembered.
    pub fn begin(memory: Memory, now_ms: u64) -> Self {
        let mut memory = memory;
        if memory.is_running {
            memory.crashes.push(now_ms);
            let surplus = memory.crashes.len().saturating_sub(CRASHES_MAX);
            memory.crashes.drain(..surplus);
            // Nobody wrote down when those that were connected were last seen.
            for device in memory.devices.values_mut().filter(|device| device.is_connected) {
                device.seen_ms = now_ms;
            }
        }
        memory.is_running = true;
        memory.devices.values_mut().for_each(|device| device.is_connected = false);
        Self { memory, looked_ms: now_ms, awake_ms: now_ms, saved: Memory::default() }
    }

    /// Looks at the facts at `now_ms`, wall clock.
    pub fn look(&mut self, now_ms: u64, facts: &Facts, thresholds: &Thresholds) {
        let passed_ms = now_ms.saturating_sub(self.looked_ms);
        if passed_ms > SLEPT_MS {
            self.awake_ms = now_ms;
            self.memory.entries.values_mut().for_each(|entry| entry.is_confirmed = false);
        }
        self.looked_ms = now_ms;
        self.memory.forget_the_future(now_ms);
        self.awake_ms = self.awake_ms.min(now_ms);
        self.memory.see_devices(now_ms, passed_ms.min(SLEPT_MS), facts);
        self.memory.see_members(facts);
        self.memory.crashes.retain(|at_ms| at_ms.saturating_add(CRASH_MS) > now_ms);
        let awake_for_ms = now_ms - self.awake_ms;
        let holding = conditions(now_ms, awake_for_ms, &self.memory, facts, thresholds);
        self.memory.settle(now_ms, awake_for_ms, holding, facts);
    }

    /// The alerts that stand, the most pressing first, acknowledged ones last.
    pub fn standing(&self) -> Vec<Alert> {
        let mut alerts: Vec<Alert> = self.memory.standing().collect();
        alerts.sort_by_key(|alert| (alert.acked_ms.is_some(), alert.kind, alert.id.clone()));
        alerts
    }

    /// Acknowledges an alert; `None` if there is no such alert now.
    pub fn ack(&mut self, id: &str, now_ms: u64) -> Option<Alert> {
        let entry = self.memory.entries.get_mut(id).filter(|entry| entry.is_shown())?;
        entry.acked_ms.get_or_insert(now_ms);
        self.memory.standing().find(|alert| alert.id == id)
    }

    /// When each device that is not connected was last seen.
    pub fn last_seen(&self) -> BTreeMap<NodeId, u64> {
        let away = self.memory.devices.iter().filter(|(_, device)| !device.is_connected);
        away.map(|(id, device)| (*id, device.seen_ms)).collect()
    }

    /// The changes that are to be written as events, the oldest first.
    pub fn outbox(&self) -> Vec<Change> {
        self.memory.outbox.iter().cloned().collect()
    }

    /// Takes the first `count` changes out of the outbox: they were written.
    pub fn told(&mut self, count: usize) {
        self.memory.outbox.drain(..count.min(self.memory.outbox.len()));
    }

    /// What is to be saved now; `None` when nothing is worth a write.
    pub fn to_save(&self) -> Option<Memory> {
        (self.memory.essence() != self.saved.essence()).then(|| self.memory.clone())
    }

    /// Records that `memory` is on disk.
    pub fn saved(&mut self, memory: Memory) {
        self.saved = memory;
    }
}

impl Entry {
    fn is_shown(&self) -> bool {
        self.raised_ms.is_some() && !self.is_over
    }
}

impl Memory {
    /// What a run that ends in order leaves: the next one is no restart after a crash.
    pub fn ended(mut self, now_ms: u64) -> Self {
        self.is_running = false;
        for device in self.devices.values_mut().filter(|device| device.is_connected) {
            (device.seen_ms, device.is_connected) = (now_ms, false);
        }
        self
    }

    fn standing(&self) -> impl Iterator<Item = Alert> {
        let shown = self.entries.iter().filter(|(_, entry)| entry.is_shown());
        shown.map(|(id, entry)| Alert {
            id: id.clone(),
            kind: entry.kind,
            text: entry.text.clone(),
            device: entry.device,
            since_ms: entry.since_ms,
            raised_ms: entry.raised_ms.unwrap_or(entry.since_ms),
            acked_ms: entry.acked_ms,
        })
    }

    /// The memory without the values that change all the time: a change of them alone is not saved.
    fn essence(&self) -> Self {
        let mut essence = self.clone();
        for device in essence.devices.values_mut() {
            device.behind_ms -= device.behind_ms % SAVED_STEP_MS;
            if device.is_connected {
                device.seen_ms = 0;
            }
        }
        for entry in essence.entries.values_mut() {
            entry.text.clear();
            entry.is_confirmed = false;
        }
        essence
    }

    /// After a clock that was years ahead is corrected, no time may lie years in the future.
    fn forget_the_future(&mut self, now_ms: u64) {
        let clamp = |at_ms: &mut u64| *at_ms = (*at_ms).min(now_ms);
        self.crashes.iter_mut().for_each(clamp);
        self.devices.values_mut().for_each(|device| clamp(&mut device.seen_ms));
        for entry in self.entries.values_mut() {
            clamp(&mut entry.since_ms);
            entry.raised_ms.iter_mut().for_each(clamp);
        }
    }

    fn see_devices(&mut self, now_ms: u64, passed_ms: u64, facts: &Facts) {
        let is_there = |id: &NodeId| facts.devices.iter().any(|device| device.id == *id);
        self.devices.retain(|id, _| is_there(id));
        for device in &facts.devices {
            let new = DeviceMemory { seen_ms: now_ms, is_connected: false, behind_ms: 0 };
            let known = self.devices.entry(device.id).or_insert(new);
            let was_connected = std::mem::replace(&mut known.is_connected, device.is_connected);
            if device.is_connected || was_connected {
                known.seen_ms = now_ms;
            }
            if device.is_connected && device.is_in_sync {
                known.behind_ms = 0;
            } else if device.is_connected && was_connected {
                known.behind_ms = known.behind_ms.saturating_add(passed_ms);
            }
        }
    }

    /// Learns which changes of members are no news: those of before this device came to the group,
    /// and its own. They cannot be told by their time, which their author writes.
    fn see_members(&mut self, facts: &Facts) {
        if self.group != Some(facts.group) {
            self.group = Some(facts.group);
            self.is_settled = false;
            self.known_changes.clear();
        }
        let is_alone = facts.devices.is_empty() && facts.changes.is_empty();
        let is_compared = facts.devices.iter().any(|device| device.has_same_edits);
        for change in &facts.changes {
            if change.by == facts.me || !self.is_settled {
                self.known_changes.insert(change.key());
            }
        }
        self.is_settled |= is_alone || is_compared;
    }

    /// Updates the entries from the conditions, and records which alerts were raised or have ended.
    fn settle(
        &mut self,
        now_ms: u64,
        awake_for_ms: u64,
        holding: BTreeMap<String, Condition>,
        facts: &Facts,
    ) {
        let ended: Vec<String> = self
            .entries
            .iter()
            .filter(|(id, entry)| {
                let is_early = !entry.is_confirmed && awake_for_ms < GRACE_MS;
                let may_be_unknown = is_early && !is_refuted(entry.kind, entry.device, id, facts);
                // Devices that connect say soon what they hold.
                let is_counting = match entry.kind {
                    Kind::OneCopy => facts.one_copy.is_none(),
                    Kind::FewCopies => facts.few_copies.is_none(),
                    _ => false,
                };
                !holding.contains_key(*id) && !may_be_unknown && !is_counting
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in ended {
            if let Some(entry) = self.entries.remove(&id).filter(Entry::is_shown) {
                self.tell(false, id, &entry);
            }
        }
        for (id, condition) in holding {
            let Condition { kind, device, text, since_ms, after_ms, lasts_ms } = condition;
            if self.entries.len() >= ALERTS_MAX && !self.entries.contains_key(&id) {
                continue;
            }
            let entry = self.entries.entry(id.clone()).or_insert_with(|| Entry {
                kind,
                text: String::new(),
                device,
                since_ms: since_ms.unwrap_or(now_ms),
                raised_ms: None,
                acked_ms: None,
                is_confirmed: true,
                is_over: false,
            });
            (entry.text, entry.is_confirmed) = (text, true);
            let held_ms = now_ms.saturating_sub(entry.since_ms);
            let is_over = lasts_ms.is_some_and(|lasts_ms| held_ms >= lasts_ms);
            let is_new = entry.raised_ms.is_none() && held_ms >= after_ms && !is_over;
            if is_new {
                entry.raised_ms = Some(now_ms);
            }
            let ends = is_over && entry.is_shown();
            entry.is_over |= is_over;
            if is_new || ends {
                let entry = entry.clone();
                self.tell(is_new, id, &entry);
            }
        }
    }

    fn tell(&mut self, is_raised: bool, id: String, entry: &Entry) {
        if self.outbox.len() >= OUTBOX_MAX {
            self.outbox.pop_front();
        }
        self.outbox.push_back(Change {
            is_raised,
            id,
            text: entry.text.clone(),
            device: entry.device,
            raised_ms: entry.raised_ms.unwrap_or(entry.since_ms),
        });
    }
}
