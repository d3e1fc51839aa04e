//! What is worth an alert, and the words for it: what is seen, and what to do. Each text is
//! understood alone.

use std::collections::BTreeMap;

use super::{GRACE_MS, Kind, Memory, NEWS_MS, Thresholds};
use crate::core::foreign_text::visible;
use crate::core::ids::{GroupId, LogId, NodeId};
use crate::core::limits::REASON_CHARS_MAX;
use crate::core::units::counted;

/// A store or a receiver of a hook may be started again for so long before that is an alert.
const DOWN_MS: u64 = 15_000;

/// What is above a threshold of free space by this part of it has ended to be short: what hovers
/// around the threshold raises one alert.
const FREE_SLACK: u64 = 20;

/// The longest name of a device or folder in a text.
const NAME_CHARS_MAX: usize = 60;

/// What is known now. Text by other devices and programs may be in it as it came.
#[derive(Debug, Clone)]
pub struct Facts {
    /// This device.
    pub me: NodeId,
    /// This device's group.
    pub group: GroupId,
    /// This device was removed from its group.
    pub is_removed: bool,
    /// The other devices of the group.
    pub devices: Vec<DeviceFacts>,
    /// The changes of the group that are in force: which device was added or removed by which.
    pub changes: Vec<MemberChange>,
    /// The free space on each disk that the agent writes to; those that do not say are left out.
    pub disks: Vec<DiskFacts>,
    /// One sentence for each disk, of the store or of the journal, that is full.
    pub shortage: Vec<String>,
    /// Whether the store answers.
    pub is_store_up: bool,
    /// Why the store does not answer.
    pub store_error: Option<String>,
    /// Damaged assets of this store.
    pub damaged: u64,
    /// Assets that were refused, or came with wrong content.
    pub quarantined: u64,
    /// Assets that are on one device alone, as far as is known; `None`: devices that are connected have
    /// yet to confirm what they hold.
    pub one_copy: Option<u64>,
    /// The number of other assets with fewer copies or sites than the group wants; `None` as above.
    pub few_copies: Option<u64>,
    /// The addresses of another device with the key of this one; `None`: there is none.
    pub twin: Option<Vec<String>>,
    /// The logs in which one number stands for two different ops (forks), each with its author.
    pub forked: Vec<(LogId, NodeId)>,
    /// The bound directories of this device; `None`: not known yet.
    pub folders: Option<Vec<FolderFacts>>,
    /// The hooks that fail.
    pub hooks: Vec<HookTrouble>,
}

impl Facts {
    /// Nothing wrong and nobody else, on the device `me` in `group`.
    pub fn quiet(me: NodeId, group: GroupId) -> Self {
        Self {
            me,
            group,
            is_removed: false,
            devices: Vec::new(),
            changes: Vec::new(),
            disks: Vec::new(),
            shortage: Vec::new(),
            is_store_up: true,
            store_error: None,
            damaged: 0,
            quarantined: 0,
            one_copy: Some(0),
            few_copies: Some(0),
            twin: None,
            forked: Vec::new(),
            folders: None,
            hooks: Vec::new(),
        }
    }
}

/// Another device of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFacts {
    /// The device's node ID.
    pub id: NodeId,
    /// The device's name.
    pub name: String,
    /// Whether the device is connected.
    pub is_connected: bool,
    /// Whether it holds the same assets and edits as this device.
    pub is_in_sync: bool,
    /// Whether the device is connected and has the same edits.
    pub has_same_edits: bool,
    /// Assets that it has and this device lacks.
    pub missing_here: u64,
    /// Assets that this device has and it lacks.
    pub missing_there: u64,
    /// How far its clock is ahead, if that is too far.
    pub skew_ms: Option<i64>,
}

/// A device that was added to the group or removed from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberChange {
    /// The device.
    pub device: NodeId,
    /// The device's name.
    pub name: String,
    /// True when the device was added, false when it was removed.
    pub is_added: bool,
    /// The device that did it.
    pub by: NodeId,
    /// The name of that device.
    pub by_name: String,
}

impl MemberChange {
    pub(super) fn key(&self) -> (NodeId, bool) {
        (self.device, self.is_added)
    }
}

/// The free space on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFacts {
    /// A folder on it.
    pub folder: String,
    /// The free bytes.
    pub free_bytes: u64,
    /// The bytes below which nothing is taken in.
    pub floor_bytes: u64,
}

/// A bound directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderFacts {
    /// The start of the folder's id.
    pub short_id: String,
    /// The folder's name.
    pub name: String,
    /// What is wrong with the directory; `None` if nothing is, or it was not looked at yet.
    pub trouble: Option<FolderTrouble>,
    /// Whether the directory has not been looked at since the start.
    pub is_unknown: bool,
}

/// What is wrong with a bound directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FolderTrouble {
    /// The user paused it.
    Paused,
    /// Very many changes are held back.
    Held,
    /// The directory cannot be used, and why.
    Stopped(String),
}

/// A hook that fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookTrouble {
    /// The hook's name.
    pub name: String,
    /// Why its last call failed.
    pub error: String,
    /// Since when every call has failed.
    pub since_ms: u64,
}

/// Something that holds now.
#[derive(Debug)]
pub(super) struct Condition {
    pub(super) kind: Kind,
    pub(super) device: Option<NodeId>,
    pub(super) text: String,
    /// Since when, where that is known; else since it was first seen.
    pub(super) since_ms: Option<u64>,
    /// The condition must hold for this long before it is an alert.
    pub(super) after_ms: u64,
    /// The alert is shown for at most this long.
    pub(super) lasts_ms: Option<u64>,
}

/// Collects conditions under their ids.
struct Found(BTreeMap<String, Condition>);

impl Found {
    fn add(&mut self, kind: Kind, about: &str, text: String) -> &mut Condition {
        let condition =
            Condition { kind, device: None, text, since_ms: None, after_ms: 0, lasts_ms: None };
        self.0.entry(id_of(kind, about)).or_insert(condition)
    }

    fn add_device(&mut self, kind: Kind, device: NodeId, text: String) -> &mut Condition {
        let condition = self.add(kind, &device.short(), text);
        condition.device = Some(device);
        condition
    }
}

/// The id of the alert of this kind about the given subject.
fn id_of(kind: Kind, about: &str) -> String {
    match about {
        "" => kind.name().to_owned(),
        _ => format!("{}-{about}", kind.name()),
    }
}

/// The conditions that hold now, each under the id of its alert.
pub(super) fn conditions(
    now_ms: u64,
    awake_for_ms: u64,
    memory: &Memory,
    facts: &Facts,
    thresholds: &Thresholds,
) -> BTreeMap<String, Condition> {
    let mut found = Found(BTreeMap::new());
    of_devices(&mut found, now_ms, awake_for_ms, memory, facts, thresholds);
    of_clocks(&mut found, facts);
    of_members(&mut found, memory, facts);
    of_disks(&mut found, memory, facts, thresholds);
    of_assets(&mut found, facts, thresholds);
    of_copies(&mut found, facts);
    of_folders(&mut found, facts);
    if !facts.is_store_up {
        let why = facts.store_error.as_deref().map(reason).unwrap_or_default();
        let text = format!(
            "The store does not answer{}: nothing is synced until it does. Start it, or look at its \
             log.",
            after_colon(&why)
        );
        found.add(Kind::StoreDown, "", text).after_ms = DOWN_MS;
    }
    for hook in &facts.hooks {
        let text = format!(
            "The hook {} fails, first {}: {}. Its events wait. Try it with `can-sync hooks test {}`.",
            hook.name,
            ago(now_ms, hook.since_ms),
            reason(&hook.error),
            hook.name
        );
        let failing = found.add(Kind::HookFailing, &hook.name, text);
        (failing.since_ms, failing.after_ms) = (Some(hook.since_ms), DOWN_MS);
    }
    if let Some(last_ms) = memory.crashes.last() {
        let times = match memory.crashes.len() {
            1 => String::new(),
            count => format!(", {count} times within a day"),
        };
        let text = format!(
            "The agent crashed or was killed, and was started again {}{times}. Nothing that was \
             acknowledged is lost. If you did not do it, look at the end of its log before that: \
             `can-sync service logs`.",
            ago(now_ms, *last_ms)
        );
        found.add(Kind::Crashed, "", text).since_ms = Some(*last_ms);
    }
    found.0
}

fn of_devices(
    found: &mut Found,
    now_ms: u64,
    awake_for_ms: u64,
    memory: &Memory,
    facts: &Facts,
    thresholds: &Thresholds,
) {
    for device in &facts.devices {
        let Some(known) = memory.devices.get(&device.id) else { continue };
        let name = name(&device.name);
        if let Some(away_ms) = thresholds.away_ms
            && !device.is_connected
            && now_ms.saturating_sub(known.seen_ms) >= away_ms
            && awake_for_ms >= away_ms.min(GRACE_MS)
        {
            let text = format!(
                "{name} was last seen {}. Start it, or connect it to a network; if it is gone for \
                 good: `can-sync remove {}`.",
                ago(now_ms, known.seen_ms),
                word(&name)
            );
            let away = found.add_device(Kind::DeviceAway, device.id, text);
            away.since_ms = Some(known.seen_ms);
        }
        if let Some(out_of_sync_ms) = thresholds.out_of_sync_ms
            && known.behind_ms >= out_of_sync_ms
            && !(device.is_connected && device.is_in_sync)
        {
            let missing = match (device.missing_here, device.missing_there) {
                (0, 0) => "their edits differ".to_owned(),
                (here, there) => {
                    format!(
                        "{} missing here and {there} there",
                        counted(here, "asset is", "assets are")
                    )
                }
            };
            let text = format!(
                "{name} and this device were connected for {} without becoming the same: {missing}. \
                 `can-sync status` shows what is in the way.",
                span(known.behind_ms)
            );
            found.add_device(Kind::OutOfSync, device.id, text);
        }
    }
}

/// A clock that several devices find wrong in the same way is this device's own.
fn of_clocks(found: &mut Found, facts: &Facts) {
    let connected = facts.devices.iter().filter(|device| device.is_connected).count();
    let skewed: Vec<(&DeviceFacts, i64)> =
        facts.devices.iter().filter_map(|device| Some((device, device.skew_ms?))).collect();
    let is_ahead = skewed.first().is_some_and(|(_, skew_ms)| *skew_ms < 0);
    let agree = skewed.iter().all(|(_, skew_ms)| (*skew_ms < 0) == is_ahead);
    if skewed.len() >= 2 && skewed.len() == connected && agree {
        let by_ms = skewed.iter().map(|(_, skew_ms)| skew_ms.unsigned_abs()).min().unwrap_or(0);
        let text = format!(
            "The clock of this device is {} {} those of all {connected} connected devices: edits \
             from the future are held back. Set it right, and have it set by the network.",
            span(by_ms),
            if is_ahead { "ahead of" } else { "behind" }
        );
        found.add_device(Kind::ClockOff, facts.me, text);
        return;
    }
    for (device, skew_ms) in skewed {
        let text = format!(
            "The clock of {} is {} {} this device's: edits from the future are held back. Set the \
             wrong one of the two right, and have it set by the network.",
            name(&device.name),
            span(skew_ms.unsigned_abs()),
            if skew_ms > 0 { "ahead of" } else { "behind" }
        );
        found.add_device(Kind::ClockOff, device.id, text);
    }
}

fn of_members(found: &mut Found, memory: &Memory, facts: &Facts) {
    for change in &facts.changes {
        if memory.known_changes.contains(&change.key()) || change.device == facts.me {
            continue;
        }
        let (member, by) = (name(&change.name), name(&change.by_name));
        let (kind, text) = match change.is_added {
            true => (
                Kind::MemberAdded,
                format!(
                    "{by} added {member} to the group: it can read and change everything. If nobody \
                     of you did that: `can-sync remove {}`.",
                    word(&member)
                ),
            ),
            false => (
                Kind::MemberRemoved,
                format!(
                    "{by} removed {member} from the group, for good. If nobody of you did that, \
                     `can-sync remove {}`, and pair {member} as a new device.",
                    word(&by)
                ),
            ),
        };
        found.add_device(kind, change.device, text).lasts_ms = Some(NEWS_MS);
    }
    if facts.is_removed {
        let text = "This device was removed from its group: it syncs with nobody. If that is a \
                    mistake, start over as a new device: `can-sync leave --yes`, start the agent \
                    again, and pair it.";
        found.add_device(Kind::MemberRemoved, facts.me, text.to_owned());
    }
}

fn of_disks(found: &mut Found, memory: &Memory, facts: &Facts, thresholds: &Thresholds) {
    let was_low = memory.entries.contains_key(Kind::LowSpace.name());
    let low = facts.disks.iter().find(|disk| {
        let limit_bytes = disk.floor_bytes.max(thresholds.free_bytes);
        let slack_bytes = if was_low { limit_bytes / FREE_SLACK } else { 0 };
        disk.free_bytes < limit_bytes.saturating_add(slack_bytes)
    });
    let text = match (facts.shortage.as_slice(), low) {
        ([], None) => return,
        ([], Some(disk)) => {
            let stops = match disk.free_bytes < disk.floor_bytes {
                true => "assets of other devices are not taken in until there is room".to_owned(),
                false => format!("below {} nothing is taken in any more", size(disk.floor_bytes)),
            };
            format!(
                "{} are free on the disk of {}: {stops}. Free some space there.",
                size(disk.free_bytes),
                reason(&disk.folder)
            )
        }
        (shortage, _) => {
            let all: Vec<String> = shortage.iter().map(|text| sentence(&reason(text))).collect();
            format!("{} Free some space there.", all.join(" "))
        }
    };
    found.add(Kind::LowSpace, "", text);
}

fn of_assets(found: &mut Found, facts: &Facts, thresholds: &Thresholds) {
    if facts.damaged > 0 {
        let text = format!(
            "{} damaged in the store of this device. The other devices are asked for good copies; what \
             none of them has, add again from its file. `can-sync log` names them. Check the disk.",
            are(facts.damaged)
        );
        found.add(Kind::Damaged, "", text);
    }
    if facts.quarantined > 0 {
        let text = format!(
            "{} not taken in: their content was wrong, or this store refused them. Each is tried \
             again later; the log names the devices that sent them.",
            are(facts.quarantined)
        );
        found.add(Kind::Quarantined, "", text);
    }
    if let (Some(count @ 1..), Some(after_ms)) = (facts.one_copy, thresholds.one_copy_ms) {
        let text = format!(
            "{} on one device alone: if its disk fails they are lost. Connect another device that \
             takes them.",
            are(count)
        );
        found.add(Kind::OneCopy, "", text).after_ms = after_ms;
    }
    if let (Some(count @ 1..), Some(after_ms)) = (facts.few_copies, thresholds.one_copy_ms) {
        let text = format!(
            "{} on fewer devices or sites than the group wants. Connect a device that takes them, or \
             change with `can-sync copies` and `can-sync sites` what the group wants.",
            are(count)
        );
        found.add(Kind::FewCopies, "", text).after_ms = after_ms;
    }
}

fn of_copies(found: &mut Found, facts: &Facts) {
    if let Some(twin) = &facts.twin {
        found.add(Kind::ClonedDevice, "", sentence(&twin_text(twin)));
    }
    for (log, author) in &facts.forked {
        let of_device = facts.devices.iter().find(|device| device.id == *author);
        let whose = match of_device {
            _ if *author == facts.me => "this device".to_owned(),
            Some(device) => name(&device.name),
            None => format!("the device {}", author.short()),
        };
        let text = format!(
            "Two different edits of {whose} have the same number: its home was copied, or put back \
             from a backup while the agent ran. Both count and nothing is lost. See that only one \
             agent runs with its key, then acknowledge this."
        );
        let forked = found.add(Kind::ForkedLog, &log.short(), text);
        // A log stays forked, and there is nothing to mend but the cause.
        (forked.device, forked.lasts_ms) = (Some(*author), Some(NEWS_MS));
    }
}

fn of_folders(found: &mut Found, facts: &Facts) {
    for folder in facts.folders.iter().flatten() {
        let name = name(&folder.name);
        let (kind, text) = match &folder.trouble {
            None => continue,
            Some(FolderTrouble::Paused) => (
                Kind::FolderPaused,
                format!(
                    "The folder {name} is paused: changes go neither way. `can-sync folder resume \
                     {}` goes on.",
                    word(&name)
                ),
            ),
            Some(FolderTrouble::Held) => (
                Kind::FolderHeld,
                format!(
                    "The folder {name} is held: very many files were changed or removed at once. \
                     `can-sync folder confirm {0}` lets the changes pass, `can-sync folder undo {0}` \
                     puts the folder back; with `--since TIME` if they came from another device.",
                    word(&name)
                ),
            ),
            Some(FolderTrouble::Stopped(why)) => (
                Kind::FolderStopped,
                format!(
                    "The folder {name} is not kept equal{}. `can-sync folder status {}` tells more.",
                    after_colon(&reason(why)),
                    word(&name)
                ),
            ),
        };
        found.add(kind, &folder.short_id, text);
    }
}

/// What is said of another device with the key of this one, at these addresses.
pub fn twin_text(addresses: &[String]) -> String {
    format!(
        "another device has this key, at {}: its home is a copy of this one's, or this one's of it. \
         Each interrupts the other's connections: stop one of them, and start it over as a new device \
         by moving `key` and `journal.db` with its -wal and -shm away",
        reason(&addresses.join(", "))
    )
}

/// Whether the facts show that an alert of an earlier run has ended.
pub(super) fn is_refuted(kind: Kind, device: Option<NodeId>, id: &str, facts: &Facts) -> bool {
    let of_device = facts.devices.iter().find(|known| Some(known.id) == device);
    match kind {
        Kind::DeviceAway => of_device.is_none_or(|device| device.is_connected),
        Kind::OutOfSync => of_device.is_none_or(|device| device.is_connected && device.is_in_sync),
        Kind::ClockOff => device != Some(facts.me) && of_device.is_none(),
        Kind::FolderHeld | Kind::FolderStopped | Kind::FolderPaused => {
            let folder = |all: &Vec<FolderFacts>| {
                all.iter().find(|folder| id.ends_with(&folder.short_id)).cloned()
            };
            let known = facts.folders.as_ref().map(folder);
            known.is_some_and(|folder| folder.is_none_or(|folder| !folder.is_unknown))
        }
        Kind::StoreDown => facts.is_store_up,
        Kind::LowSpace => !facts.disks.is_empty(),
        Kind::MemberAdded | Kind::MemberRemoved | Kind::Crashed => true,
        Kind::Damaged
        | Kind::OneCopy
        | Kind::FewCopies
        | Kind::ClonedDevice
        | Kind::ForkedLog
        | Kind::Quarantined
        | Kind::HookFailing => false,
    }
}

// ---- words -----------------------------------------------------------------------------------

fn name(text: &str) -> String {
    visible(text, NAME_CHARS_MAX)
}

fn reason(text: &str) -> String {
    visible(text, REASON_CHARS_MAX)
}

/// A name as it is typed in a shell.
fn word(name: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    match !name.is_empty() && name.chars().all(is_plain) {
        true => name.to_owned(),
        false => format!("'{}'", name.replace('\'', r"'\''")),
    }
}

fn after_colon(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" ({text})") }
}

/// With a capital at the start and a full stop at the end.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(char::to_uppercase).into_iter().flatten();
    let text: String = first.chain(chars).collect();
    if text.ends_with(['.', '?', '!']) { text } else { format!("{text}.") }
}

/// How many assets, and the verb.
fn are(count: u64) -> String {
    match count {
        1 => "1 asset is".to_owned(),
        _ => format!("{count} assets are"),
    }
}

/// How long ago a time was.
pub fn ago(now_ms: u64, at_ms: u64) -> String {
    match now_ms.saturating_sub(at_ms) {
        0..60_000 => "less than a minute ago".to_owned(),
        ms => format!("{} ago", span(ms)),
    }
}

/// A length of time, in the unit that fits.
fn span(ms: u64) -> String {
    let minutes = ms / 60_000;
    let (count, unit) = match minutes {
        0 => (ms / 1000, "second"),
        1..120 => (minutes, "minute"),
        120..2_880 => (minutes / 60, "hour"),
        _ => (minutes / 1_440, "day"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

/// A number of bytes, in the unit that fits.
fn size(bytes: u64) -> String {
    let (mut value, mut units) = (bytes as f64, ["B", "KiB", "MiB", "GiB", "TiB"].iter());
    let mut unit = units.next().unwrap_or(&"B");
    for larger in units {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    if *unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}
