//! Each alert: brought about, and mended.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::core::ids::LogId;

const ME: NodeId = NodeId([1; 32]);
const PHONE: NodeId = NodeId([2; 32]);
const NAS: NodeId = NodeId([3; 32]);
const GROUP: GroupId = GroupId([9; 32]);

/// A time long after the epoch.
const START: u64 = 1_796_040_000_000;
const MINUTE: u64 = 60_000;

/// An agent whose clock a test turns.
struct Agent {
    alerts: Alerts,
    now_ms: u64,
    facts: Facts,
    thresholds: Thresholds,
}

impl Agent {
    fn start() -> Self {
        let mut agent = Self {
            alerts: Alerts::begin(Memory::default(), START),
            now_ms: START,
            facts: Facts::quiet(ME, GROUP),
            thresholds: Thresholds::default(),
        };
        agent.look();
        agent
    }

    /// Among others, which it is in sync with.
    fn among(devices: &[NodeId]) -> Self {
        let mut agent = Self::start();
        agent.facts.devices = devices.iter().map(|id| device(*id)).collect();
        agent.look();
        agent
    }

    fn look(&mut self) {
        self.alerts.look(self.now_ms, &self.facts, &self.thresholds);
    }

    /// Lets time pass, and evaluates the conditions each minute.
    fn pass(&mut self, ms: u64) {
        let end_ms = self.now_ms + ms;
        while self.now_ms < end_ms {
            self.now_ms = end_ms.min(self.now_ms + MINUTE);
            self.look();
        }
    }

    /// The device is off, or sleeps, for so long.
    fn sleep(&mut self, ms: u64) {
        self.now_ms += ms;
        self.look();
    }

    /// Ends, in order or not, and starts again after `ms`; nothing is known at first.
    fn restart(&mut self, in_order: bool, ms: u64) {
        let memory = self.alerts.to_save().unwrap_or_else(|| self.alerts.saved.clone());
        let memory = if in_order { memory.ended(self.now_ms) } else { memory };
        let json = serde_json::to_string(&memory).unwrap();
        self.now_ms += ms;
        self.alerts = Alerts::begin(serde_json::from_str(&json).unwrap(), self.now_ms);
        for device in &mut self.facts.devices {
            *device = DeviceFacts {
                is_connected: false,
                has_same_edits: false,
                skew_ms: None,
                ..device.clone()
            };
        }
        self.look();
    }

    fn device(&mut self, id: NodeId) -> &mut DeviceFacts {
        self.facts.devices.iter_mut().find(|device| device.id == id).unwrap()
    }

    fn ids(&self) -> Vec<String> {
        self.alerts.standing().into_iter().map(|alert| alert.id).collect()
    }

    fn text(&self) -> String {
        let standing = self.alerts.standing();
        let [alert] = standing.as_slice() else { panic!("expected one alert: {standing:?}") };
        alert.text.clone()
    }

    /// The events since the last call: `+id` or `-id`.
    fn events(&mut self) -> Vec<String> {
        let changes = self.alerts.outbox();
        self.alerts.told(changes.len());
        let sign = |change: &Change| if change.is_raised { '+' } else { '-' };
        changes.iter().map(|change| format!("{}{}", sign(change), change.id)).collect()
    }
}

fn device(id: NodeId) -> DeviceFacts {
    DeviceFacts {
        id,
        name: if id == PHONE { "phone" } else { "nas" }.into(),
        is_connected: true,
        is_in_sync: true,
        has_same_edits: true,
        missing_here: 0,
        missing_there: 0,
        skew_ms: None,
    }
}

/// Brings an alert about at once, reads its text, mends it, and finds nothing left.
#[track_caller]
fn comes_and_goes(id: &str, words: &[&str], break_it: impl Fn(&mut Facts), wait_ms: u64) {
    let mut agent = Agent::among(&[PHONE]);
    let well = agent.facts.clone();
    agent.pass(MINUTE);
    assert_eq!(agent.ids(), Vec::<String>::new());
    break_it(&mut agent.facts);
    agent.look();
    if wait_ms > 0 {
        assert_eq!(agent.ids(), Vec::<String>::new(), "too early");
        agent.pass(wait_ms);
    }
    assert_eq!(agent.ids(), [id]);
    let text = agent.text();
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
    assert_eq!(agent.events(), [format!("+{id}")]);
    agent.pass(MINUTE);
    assert_eq!(agent.events(), Vec::<String>::new(), "it is told once");
    agent.facts = well;
    agent.look();
    assert_eq!(agent.ids(), Vec::<String>::new());
    assert_eq!(agent.events(), [format!("-{id}")]);
}

#[test]
fn a_device_that_is_away_for_a_week_is_an_alert_until_it_connects() {
    let words = ["phone was last seen 7 days ago", "`can-sync remove phone`"];
    let id = format!("device-away-{}", PHONE.short());
    let away = |facts: &mut Facts| {
        (facts.devices[0].is_connected, facts.devices[0].has_same_edits) = (false, false);
    };
    comes_and_goes(&id, &words, away, 7 * DAY_MS);
}

#[test]
fn a_device_that_is_connected_for_a_day_without_becoming_the_same_is_an_alert() {
    let words = ["for 24 hours without becoming the same", "3 assets are missing here and 1 there"];
    let id = format!("out-of-sync-{}", PHONE.short());
    let behind = |facts: &mut Facts| {
        facts.devices[0].is_in_sync = false;
        (facts.devices[0].missing_here, facts.devices[0].missing_there) = (3, 1);
    };
    comes_and_goes(&id, &words, behind, DAY_MS);
}

#[test]
fn a_disk_below_its_floor_is_an_alert_and_so_is_one_below_the_threshold() {
    let disk =
        |free_bytes| DiskFacts { folder: "/home/ann".into(), free_bytes, floor_bytes: 1 << 30 };
    let words = ["512.0 MiB are free on the disk of /home/ann", "not taken in", "Free some space"];
    comes_and_goes("low-space", &words, |facts| facts.disks = vec![disk(512 << 20)], 0);
    let full = |facts: &mut Facts| facts.shortage = vec!["the disk of /x is full: no edits".into()];
    comes_and_goes("low-space", &["The disk of /x is full: no edits."], full, 0);

    let mut agent = Agent::start();
    agent.thresholds.free_bytes = 10 << 30;
    agent.facts.disks = vec![disk(11 << 30)];
    agent.look();
    assert_eq!(agent.ids(), Vec::<String>::new());
    agent.facts.disks = vec![disk((10 << 30) - 1)];
    agent.look();
    assert!(
        agent.text().contains("below 1.0 GiB nothing is taken in any more"),
        "{}",
        agent.text()
    );
    // A file more or less does not end it and raise it again.
    for free_bytes in [(10 << 30) + 1, (10 << 30) - 1] {
        agent.facts.disks = vec![disk(free_bytes)];
        agent.look();
    }
    assert_eq!(agent.events(), ["+low-space"]);
    agent.facts.disks = vec![disk(11 << 30)];
    agent.look();
    assert_eq!(agent.events(), ["-low-space"]);
}

#[test]
fn damaged_and_refused_assets_are_alerts() {
    let words = ["1 asset is damaged", "add again from its file"];
    comes_and_goes("damaged", &words, |facts| facts.damaged = 1, 0);
    let words = ["4 assets are not taken in", "tried again later"];
    comes_and_goes("quarantined", &words, |facts| facts.quarantined = 4, 0);
}

#[test]
fn assets_with_fewer_copies_than_the_group_wants_are_an_alert_after_a_day() {
    let words = ["5 assets are on fewer devices or sites", "`can-sync copies`"];
    comes_and_goes("few-copies", &words, |facts| facts.few_copies = Some(5), DAY_MS);
}

#[test]
fn assets_on_one_device_alone_are_an_alert_after_a_day() {
    let words = ["12 assets are on one device alone", "Connect another device"];
    comes_and_goes("one-copy", &words, |facts| facts.one_copy = Some(12), DAY_MS);
    let mut agent = Agent::start();
    agent.facts.one_copy = Some(0);
    agent.pass(2 * DAY_MS);
    assert_eq!(agent.ids(), Vec::<String>::new());
}

#[test]
fn while_devices_confirm_what_they_hold_the_alert_about_one_copy_neither_comes_nor_goes() {
    let mut agent = Agent::start();
    agent.facts.one_copy = None;
    agent.pass(2 * DAY_MS);
    assert_eq!(agent.ids(), Vec::<String>::new());
    agent.facts.one_copy = Some(3);
    agent.look();
    agent.pass(DAY_MS);
    agent.facts.one_copy = None;
    agent.pass(DAY_MS);
    assert_eq!(agent.ids(), ["one-copy"]);
    agent.facts.one_copy = Some(0);
    agent.look();
    assert_eq!(agent.ids(), Vec::<String>::new());
}

#[test]
fn a_copied_home_is_an_alert() {
    let twin = |facts: &mut Facts| facts.twin = Some(vec!["192.0.2.7:5758".into()]);
    let words = ["Another device has this key, at 192.0.2.7:5758", "stop one of them"];
    comes_and_goes("cloned-device", &words, twin, 0);
}

#[test]
fn a_forked_log_is_an_alert_for_a_week_because_it_stays_forked() {
    let mut agent = Agent::among(&[PHONE]);
    agent.facts.forked = vec![(LogId([0xab; 16]), PHONE)];
    agent.look();
    assert_eq!(agent.ids(), ["forked-log-ababababab"]);
    for words in ["Two different edits of phone have the same number", "only one agent"] {
        assert!(agent.text().contains(words), "{}", agent.text());
    }
    agent.pass(7 * DAY_MS);
    assert_eq!(agent.ids(), Vec::<String>::new());
    assert_eq!(agent.events(), ["+forked-log-ababababab", "-forked-log-ababababab"]);
}

#[test]
fn a_clock_that_is_off_is_laid_at_the_door_of_the_one_that_all_disagree_with() {
    let hour = 60 * MINUTE as i64;
    let ahead = |facts: &mut Facts| facts.devices[0].skew_ms = Some(3 * hour);
    let id = format!("clock-off-{}", PHONE.short());
    let words = ["The clock of phone is 3 hours ahead of this device's", "Set the wrong one"];
    comes_and_goes(&id, &words, ahead, 0);
    let mut agent = Agent::among(&[PHONE, NAS]);
    agent.device(PHONE).skew_ms = Some(3 * hour);
    agent.look();
    assert_eq!(agent.ids(), [id]);
    agent.device(NAS).skew_ms = Some(4 * hour);
    agent.look();
    assert_eq!(agent.ids(), [format!("clock-off-{}", ME.short())]);
    let words = "The clock of this device is 3 hours behind those of all 2 connected devices";
    assert!(agent.text().contains(words), "{}", agent.text());
}

#[test]
fn folders_that_are_paused_held_or_stopped_are_alerts() {
    let folder = |trouble: FolderTrouble| {
        move |facts: &mut Facts| {
            facts.folders = Some(vec![FolderFacts {
                short_id: "1d6a0bc55d".into(),
                name: "my papers".into(),
                trouble: Some(trouble.clone()),
                is_unknown: false,
            }]);
        }
    };
    let words = ["my papers is paused", "`can-sync folder resume 'my papers'`"];
    comes_and_goes("folder-paused-1d6a0bc55d", &words, folder(FolderTrouble::Paused), 0);
    let words = ["very many files", "folder confirm 'my papers'", "folder undo 'my papers'"];
    comes_and_goes("folder-held-1d6a0bc55d", &words, folder(FolderTrouble::Held), 0);
    let why = FolderTrouble::Stopped("the marker is missing".into());
    let words = ["not kept equal (the marker is missing)", "`can-sync folder status 'my papers'`"];
    comes_and_goes("folder-stopped-1d6a0bc55d", &words, folder(why), 0);
}

#[test]
fn a_store_that_stays_away_is_an_alert_and_one_that_restarts_is_none() {
    let down = |facts: &mut Facts| {
        (facts.is_store_up, facts.store_error) = (false, Some("connection refused".into()));
    };
    comes_and_goes("store-down", &["does not answer (connection refused)"], down, MINUTE);
    let mut agent = Agent::start();
    down(&mut agent.facts);
    agent.look();
    agent.facts.is_store_up = true;
    agent.pass(MINUTE);
    assert_eq!(agent.events(), Vec::<String>::new());
}

#[test]
fn a_hook_that_fails_is_an_alert() {
    let fails = |facts: &mut Facts| {
        let error = "/bin/tell: no such file".into();
        facts.hooks = vec![HookTrouble { name: "mail".into(), error, since_ms: START }];
    };
    let words = ["The hook mail fails", "/bin/tell: no such file", "`can-sync hooks test mail`"];
    comes_and_goes("hook-failing-mail", &words, fails, 0);
}

#[test]
fn a_crash_is_an_alert_for_a_day_and_an_orderly_restart_is_none() {
    let mut agent = Agent::start();
    agent.restart(true, MINUTE);
    assert_eq!(agent.ids(), Vec::<String>::new());
    agent.restart(false, MINUTE);
    agent.pass(5 * MINUTE);
    assert_eq!(agent.ids(), ["crashed"]);
    assert!(agent.text().contains("started again 5 minutes ago. Nothing"), "{}", agent.text());
    agent.restart(false, MINUTE);
    agent.restart(true, MINUTE);
    assert!(agent.text().contains(", 2 times within a day"), "{}", agent.text());
    agent.pass(DAY_MS - 4 * MINUTE);
    assert_eq!(agent.ids(), ["crashed"], "the last one counts");
    assert_eq!(agent.events(), ["+crashed"]);
    agent.pass(DAY_MS);
    assert_eq!(agent.ids(), Vec::<String>::new());
    assert_eq!(agent.events(), ["-crashed"]);
}

fn change(device: NodeId, is_added: bool, by: NodeId) -> MemberChange {
    let name = |id: NodeId| if id == NAS { "nas" } else { "phone" }.to_owned();
    MemberChange { device, name: name(device), is_added, by, by_name: name(by) }
}

#[test]
fn a_member_that_another_device_adds_or_removes_is_an_alert_for_a_week() {
    let tv = NodeId([7; 32]);
    let mut agent = Agent::among(&[PHONE]);
    agent.facts.changes.push(change(tv, true, NAS));
    agent.look();
    assert_eq!(agent.ids(), [format!("member-added-{}", tv.short())]);
    assert!(agent.text().starts_with("nas added phone to the group: it can read"));
    agent.facts.changes = vec![change(tv, false, NAS)];
    agent.look();
    assert_eq!(agent.ids(), [format!("member-removed-{}", tv.short())]);
    assert!(agent.text().contains("`can-sync remove nas`"), "{}", agent.text());
    agent.pass(7 * DAY_MS);
    assert_eq!(agent.ids(), Vec::<String>::new());
    agent.restart(true, DAY_MS);
    assert_eq!(agent.ids(), Vec::<String>::new(), "old news are not raised again");
    let tv = tv.short();
    let expected = ["+member-added-", "-member-added-", "+member-removed-", "-member-removed-"];
    assert_eq!(agent.events(), expected.map(|event| format!("{event}{tv}")));
}

#[test]
fn what_this_device_did_and_what_was_before_it_came_is_no_news() {
    let mut agent = Agent::start();
    agent.facts.changes = vec![change(PHONE, true, ME)];
    agent.facts.devices = vec![device(PHONE)];
    agent.look();
    assert_eq!(agent.ids(), Vec::<String>::new());
    // It joins another group, and hears of its members one by one.
    agent.facts.group = GroupId([8; 32]);
    agent.facts.changes = vec![change(ME, true, NAS)];
    agent.facts.devices = vec![DeviceFacts { has_same_edits: false, ..device(NAS) }];
    agent.look();
    agent.facts.changes.push(change(PHONE, true, NAS));
    agent.look();
    agent.facts.devices = vec![device(NAS)];
    agent.look();
    assert_eq!(agent.ids(), Vec::<String>::new());
    agent.facts.changes.push(change(NodeId([7; 32]), true, NAS));
    agent.look();
    assert_eq!(agent.ids().len(), 1);
    agent.facts.changes.clear();
    agent.facts.is_removed = true;
    agent.look();
    assert!(agent.text().contains("`can-sync leave --yes`"), "{}", agent.text());
}

#[test]
fn a_restart_neither_forgets_an_alert_nor_its_acknowledgement_nor_tells_of_it_again() {
    let mut agent = Agent::among(&[PHONE]);
    agent.facts.quarantined = 2;
    agent.facts.damaged = 1;
    agent.look();
    assert_eq!(agent.ids(), ["damaged", "quarantined"]);
    let acked = agent.alerts.ack("damaged", agent.now_ms).unwrap();
    assert_eq!(acked.acked_ms, Some(agent.now_ms));
    assert_eq!(agent.alerts.ack("one-copy", agent.now_ms), None);
    assert_eq!(agent.ids(), ["quarantined", "damaged"], "acknowledged ones come last");
    assert_eq!(agent.events(), ["+damaged", "+quarantined"]);
    let raised_ms = agent.now_ms;
    agent.pass(MINUTE);
    // After the start neither is known yet.
    (agent.facts.quarantined, agent.facts.damaged) = (0, 0);
    agent.restart(true, DAY_MS);
    assert_eq!(agent.ids(), ["quarantined", "damaged"]);
    (agent.facts.quarantined, agent.facts.damaged) = (2, 1);
    agent.pass(MINUTE);
    let standing = agent.alerts.standing();
    assert_eq!(standing[1].acked_ms, Some(raised_ms));
    assert!(standing.iter().all(|alert| alert.raised_ms == raised_ms), "{standing:?}");
    assert_eq!(agent.events(), Vec::<String>::new());
    // What was mended while it was down ends when there was time to find out.
    (agent.facts.quarantined, agent.facts.damaged) = (0, 0);
    agent.restart(true, DAY_MS);
    agent.pass(GRACE_MS);
    assert_eq!(agent.events(), ["-damaged", "-quarantined"]);
    // An acknowledgement ends with its alert.
    agent.facts.damaged = 1;
    agent.look();
    assert_eq!(agent.alerts.standing()[0].acked_ms, None);
}

#[test]
fn the_absence_of_this_device_counts_against_nobody() {
    let mut agent = Agent::among(&[PHONE, NAS]);
    agent.pass(MINUTE);
    agent.restart(true, 30 * DAY_MS);
    assert_eq!(agent.ids(), Vec::<String>::new(), "the others may be about to connect");
    *agent.device(PHONE) = device(PHONE);
    agent.pass(GRACE_MS);
    assert_eq!(agent.ids(), [format!("device-away-{}", NAS.short())]);
    // A laptop that slept for a month does not alert either, and what stood before stands on.
    agent.sleep(30 * DAY_MS);
    assert_eq!(agent.ids(), [format!("device-away-{}", NAS.short())]);
    assert_eq!(agent.events(), [format!("+device-away-{}", NAS.short())]);
    *agent.device(NAS) = device(NAS);
    agent.device(PHONE).is_connected = false;
    agent.look();
    assert_eq!(agent.ids(), Vec::<String>::new());
}

#[test]
fn time_out_of_sync_counts_only_while_connected_and_adds_up() {
    let mut agent = Agent::among(&[PHONE]);
    let id = format!("out-of-sync-{}", PHONE.short());
    agent.device(PHONE).is_in_sync = false;
    for _ in 0..5 {
        agent.device(PHONE).is_connected = true;
        agent.pass(DAY_MS / 3);
        agent.device(PHONE).is_connected = false;
        agent.pass(2 * DAY_MS);
        agent.restart(true, DAY_MS);
        if agent.ids().contains(&id) {
            break;
        }
    }
    assert!(agent.ids().contains(&id), "{:?}", agent.ids());
    let spent_ms = agent.now_ms - START;
    assert!(spent_ms > 8 * DAY_MS, "it came too early");
}

#[test]
fn a_threshold_can_be_changed_and_turned_off() {
    let mut agent = Agent::among(&[PHONE]);
    agent.device(PHONE).is_connected = false;
    agent.thresholds.away_ms = Some(5 * MINUTE);
    agent.pass(6 * MINUTE);
    assert_eq!(agent.ids().len(), 1);
    agent.thresholds.away_ms = None;
    agent.look();
    assert_eq!(agent.ids(), Vec::<String>::new());
}

#[test]
fn a_clock_set_back_by_years_makes_nothing_last_for_years() {
    let mut agent = Agent::among(&[PHONE]);
    agent.now_ms += 3650 * DAY_MS;
    agent.facts.damaged = 1;
    agent.look();
    agent.now_ms = START + MINUTE;
    agent.device(PHONE).is_connected = false;
    agent.look();
    assert_eq!(agent.alerts.standing()[0].raised_ms, agent.now_ms);
    agent.pass(7 * DAY_MS + GRACE_MS);
    assert!(agent.ids().contains(&format!("device-away-{}", PHONE.short())), "{:?}", agent.ids());
}

#[test]
fn an_idle_agent_saves_nothing_and_text_of_others_does_not_act_on_a_terminal() {
    let mut agent = Agent::among(&[PHONE]);
    let memory = agent.alerts.to_save().unwrap();
    agent.alerts.saved(memory);
    agent.pass(10 * DAY_MS);
    assert_eq!(agent.alerts.to_save(), None);
    agent.device(PHONE).name = "ph\u{1b}[31mo\nne; rm -rf /".into();
    agent.device(PHONE).is_connected = false;
    agent.pass(8 * DAY_MS);
    let text = agent.text();
    assert!(!text.contains('\u{1b}') && !text.contains('\n'), "{text:?}");
    assert!(text.contains("`can-sync remove 'ph[31mone; rm -rf /'`"), "{text}");
}

#[test]
fn alerts_and_events_that_wait_are_bounded() {
    let mut agent = Agent::start();
    let log = |n: u64| {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&n.to_be_bytes());
        id.rotate_left(4);
        (LogId(id), PHONE)
    };
    agent.facts.forked = (0..2 * ALERTS_MAX as u64).map(log).collect();
    agent.look();
    assert!(agent.ids().len() <= ALERTS_MAX);
    assert_eq!(agent.alerts.outbox().len(), OUTBOX_MAX);
}

#[test]
fn every_kind_is_listed_under_its_name() {
    for kind in Kind::ALL {
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
    }
    assert!(Kind::ALL.is_sorted());
}
