//! Whole agents over real QUIC whose journals make them a group: which devices are members, what
//! all of them know, and what happens to devices that were away, left, or were restored to an old
//! state.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use can_sync::core::ids::{Hash, HashAlgorithm, LogId, NodeId};
use can_sync::core::journal::device_events::{DEVICE_ID, DEVICE_MODEL, DEVICE_STREAM, DeviceState};
use can_sync::core::journal::draft::{Draft, DraftChange, DraftPut};
use can_sync::core::journal::op::{Elem, Key, Value};
use can_sync::replica::status::PeerState;
use can_sync::state::journal::{Journal, Owner};
use can_sync::store::{Metadata, NewAsset};
use tokio::time::Instant;

mod common;

use common::group::{Device, all_in_sync, pair, until};
use common::logs::keep_secret;
use common::{content, digest};

#[path = "group/databases.rs"]
mod databases;
#[path = "group/pairing.rs"]
mod pairing;
#[path = "group/power.rs"]
mod power;
#[path = "group/restored.rs"]
mod restored;

/// How long an edit may take to reach the stores of all devices: less than [`until`] waits.
const SHOWN: Duration = Duration::from_secs(40);

// ---- what a test does and sees -----------------------------------------------------------------

/// `n` running devices in sync; the first one added all others.
async fn group<const N: usize>() -> [Device; N] {
    let mut devices = Vec::new();
    for _ in 0..N {
        devices.push(Device::start().await);
    }
    let (first, rest) = devices.split_first().unwrap();
    for joiner in rest {
        pair(first, joiner).await;
    }
    all_in_sync(&devices.iter().collect::<Vec<_>>(), N - 1).await;
    devices.try_into().ok().unwrap()
}

/// Three running devices in sync that know each other; the first and the last never meet.
async fn chain() -> [Device; 3] {
    let [mut a, mut b, mut c] = [Device::new(), Device::new(), Device::new()];
    a.net.unreachable = vec![c.node_id];
    c.net.unreachable = vec![a.node_id];
    tokio::join!(a.up(), b.up(), c.up());
    pair(&b, &a).await;
    pair(&b, &c).await;
    same_journal(&[&a, &b, &c]).await;
    // The status shows what the journal holds a moment later.
    until("all are known", &[&a, &b, &c], async || {
        [&a, &b, &c].iter().all(|device| device.status().peers.len() == 2)
    })
    .await;
    [a, b, c]
}

/// Returns once all journals are equal.
async fn same_journal(devices: &[&Device]) {
    until("one journal", devices, async || {
        let mut clocks = Vec::new();
        for device in devices {
            let clock = device.handle().journal().read(|reader| reader.clock()).await.unwrap();
            // Other devices do not know of a log that was begun but never written.
            let logs = clock.entries.iter().filter(|entry| entry.seq > 0);
            let logs: BTreeMap<_, _> = logs.map(|entry| (entry.log, entry.seq)).collect();
            clocks.push((logs, clock.digest));
        }
        clocks.iter().all(|clock| *clock == clocks[0])
    })
    .await;
}

/// Every device that ever was a member, and whether it is one now.
async fn members(device: &Device) -> BTreeMap<NodeId, bool> {
    let rows = device.handle().journal().read(|reader| reader.members()).await.unwrap();
    rows.into_iter().map(|row| (row.device, row.member)).collect()
}

fn is_cut_off(device: &Device) -> bool {
    device.status().peers.iter().all(|peer| peer.state != PeerState::Idle)
}

fn note(id: &str) -> DraftPut {
    let key = Key { model: "note".into(), id: id.into(), owned: false };
    let (set, add, remove) = Default::default();
    DraftPut { key, create: true, set, add, remove }
}

fn with_text(id: &str, field: &str, text: &str) -> DraftPut {
    let text = Some(Value::Text(text.into()));
    DraftPut { set: BTreeMap::from([(field.into(), text)]), ..note(id) }
}

fn tags<'a>(tags: impl IntoIterator<Item = &'a str>) -> BTreeSet<Elem> {
    let elem = |tag: &str| Elem { field: "tags".into(), elem: tag.into() };
    tags.into_iter().map(elem).collect()
}

async fn write(device: &Device, put: DraftPut) {
    write_all(device, vec![DraftChange::Put(put)]).await;
}

async fn write_all(device: &Device, changes: Vec<DraftChange>) {
    let draft = Draft { changes, expect: Vec::new() };
    device.handle().journal().write(draft).await.unwrap().unwrap();
}

/// A record's texts and tags; `None` when it does not exist.
async fn read(device: &Device, id: &str) -> Option<(BTreeMap<String, String>, BTreeSet<String>)> {
    let (id, journal) = (id.to_owned(), device.handle().journal());
    let read = journal.read(move |reader| reader.record("note", Owner::Shared, id.as_bytes()));
    let record = read.await.unwrap()?;
    let text = |(name, value): (String, Option<Value>)| match value {
        Some(Value::Text(text)) => Some((name, text)),
        _ => None,
    };
    let texts = record.fields.into_iter().filter_map(text).collect();
    Some((texts, record.sets.get("tags").cloned().unwrap_or_default()))
}

async fn add(device: &Device, seed: u64, metadata: Metadata) -> Hash {
    let content = content(seed, 64);
    let digest = digest(HashAlgorithm::Blake3, &content);
    let asset = NewAsset { digest, content, metadata };
    device.store().put(vec![asset]).await.unwrap().remove(0).unwrap();
    digest.hash
}

fn meta(description: &str, tags: &[&str], trashed: bool) -> Metadata {
    let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
    Metadata { description: description.into(), tags, trashed, ..Metadata::default() }
}

/// Description, tags, trashed.
fn meta_of(row: &Metadata) -> (String, Vec<String>, bool) {
    (row.description.clone(), row.tags.clone(), row.trashed)
}

/// An edit by the user in the store.
async fn edit(device: &Device, hash: Hash, metadata: Metadata) {
    device.store().set_metadata(hash, &metadata, None).await.unwrap();
    device.handle().settle(hash).await.unwrap();
}

/// Returns once the stores of all devices show this metadata.
async fn all_show(devices: &[&Device], hash: Hash, expected: &Metadata) {
    let mut shown = Vec::new();
    let shows = async || {
        shown.clear();
        for device in devices {
            let row = device.store().lookup(hash).await.unwrap().map(|asset| asset.metadata);
            shown.push(row.map(|row| meta_of(&row)));
        }
        shown.iter().all(|shown| shown.as_ref() == Some(&meta_of(expected)))
    };
    let waited = tokio::time::timeout(SHOWN, until("all show it", devices, shows)).await;
    assert!(waited.is_ok(), "expected {expected:?} of {hash}, got {shown:?}");
}

// ---- removal -----------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_heard_of_through_a_third_device_cuts_within_a_second() {
    let [a, b, c] = chain().await;
    until("c is connected with b alone", &[&a, &b, &c], async || {
        c.sees(&b).state == PeerState::Idle && c.sees(&a).state != PeerState::Idle
    })
    .await;
    let asked = Instant::now();
    a.handle().remove(c.node_id.to_string()).await.unwrap();
    until("c is cut off", &[&c], async || is_cut_off(&c)).await;
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    until("c is told", &[&c], async || c.status().device.removed).await;
    assert!(!members(&b).await[&c.node_id]);
    assert_eq!(b.status().peers.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_removed_while_it_was_away_is_refused_by_all_also_when_the_remover_is_gone() {
    let [mut a, b, mut c] = group().await;
    c.down().await;
    a.handle().remove(c.node_id.to_string()).await.unwrap();
    until("b has heard", &[&b], async || !members(&b).await[&c.node_id]).await;
    a.down().await;
    c.up().await;
    write(&c, with_text("late", "text", "written before it was told")).await;
    until("c is told", &[&c], async || c.status().device.removed).await;
    a.up().await;
    all_in_sync(&[&a, &b], 1).await;
    same_journal(&[&a, &b]).await;
    for device in [&a, &b] {
        assert_eq!(read(device, "late").await, None, "nothing is taken from it");
    }
    // It can add nobody any more.
    assert!(c.handle().ticket(Duration::from_secs(60)).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_devices_that_remove_each_other_are_out_for_all_and_told_so() {
    let [mut a, mut b, mut c, mut d] = group().await;
    // Two halves without a connection between them: a and c, b and d.
    let (left, right) = ([a.node_id, c.node_id], [b.node_id, d.node_id]);
    for (device, others) in [(&mut a, right), (&mut c, right), (&mut b, left), (&mut d, left)] {
        device.down().await;
        device.net.unreachable = others.to_vec();
    }
    for device in [&mut a, &mut b, &mut c, &mut d] {
        device.up().await;
    }
    tokio::join!(async { a.handle().remove(b.node_id.to_string()).await.unwrap() }, async {
        b.handle().remove(a.node_id.to_string()).await.unwrap()
    },);
    until("each half knows of one removal", &[&c, &d], async || {
        !members(&c).await[&b.node_id] && !members(&d).await[&a.node_id]
    })
    .await;
    for device in [&mut c, &mut d] {
        device.down().await;
        device.net.unreachable = Vec::new();
        device.up().await;
    }
    same_journal(&[&c, &d]).await;
    for device in [&c, &d] {
        let members = members(device).await;
        assert!(!members[&a.node_id] && !members[&b.node_id], "{members:?}");
        assert!(members[&c.node_id] && members[&d.node_id], "{members:?}");
    }
    until("both are told", &[&a, &b], async || {
        a.status().device.removed && b.status().device.removed
    })
    .await;
    all_in_sync(&[&c, &d], 1).await;
}

// ---- leaving and coming back -------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_left_may_come_back_and_finds_what_it_had_written() {
    let [a, b] = group().await;
    write(&b, with_text("1", "text", "before")).await;
    same_journal(&[&a, &b]).await;
    b.handle().leave().await.unwrap();
    assert_eq!(read(&b, "1").await, None, "it has forgotten the group");
    write(&b, with_text("2", "text", "alone")).await;
    pair(&a, &b).await;
    same_journal(&[&a, &b]).await;
    all_in_sync(&[&a, &b], 1).await;
    for device in [&a, &b] {
        assert_eq!(read(device, "1").await.unwrap().0["text"], "before");
        assert_eq!(read(device, "2").await, None, "that was another group's");
    }
    write(&b, with_text("1", "text", "after")).await;
    until("it is heard", &[&a], async || read(&a, "1").await.unwrap().0["text"] == "after").await;
    assert_eq!(a.status().journal.forked_logs, Vec::<LogId>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_of_a_joiner_fills_in_and_overwrites_nothing() {
    let [a, b] = [Device::start().await, Device::start().await];
    // Enough assets that the first page of changes does not hold them all.
    let many: Vec<Hash> = {
        let mut many = Vec::new();
        for n in 0..300 {
            many.push(add(&a, 5_000 + n, meta("of the group", &["group"], false)).await);
            add(&b, 5_000 + n, meta("of the joiner", &["joiner"], true)).await;
        }
        many
    };
    let new = add(&b, 6_000, meta("of the joiner alone", &["joiner"], false)).await;
    for device in [&a, &b] {
        device.handle().check().await.unwrap();
        device.handle().settle(many[299]).await.unwrap();
    }
    pair(&a, &b).await;
    all_in_sync(&[&a, &b], 1).await;
    all_show(&[&a, &b], new, &meta("of the joiner alone", &["joiner"], false)).await;
    // Neither side had set the trashed flag before, and tags add up.
    let merged = meta("of the group", &["group", "joiner"], true);
    for hash in many {
        all_show(&[&a, &b], hash, &merged).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_asset_can_be_edited_at_any_moment_of_pairing() {
    let [a, b] = [Device::start().await, Device::start().await];
    let hash = add(&b, 7_000, meta("mine", &[], false)).await;
    b.handle().settle(hash).await.unwrap();
    pair(&a, &b).await;
    // Its metadata starts again, in the journal of the group.
    until("it is in the group's journal", &[&a, &b], async || {
        b.handle().settle(hash).await.unwrap();
        let journal = a.handle().journal();
        journal.read(move |reader| reader.asset(&hash)).await.unwrap().alive
    })
    .await;
    edit(&b, hash, meta("mine", &["edited"], false)).await;
    all_in_sync(&[&a, &b], 1).await;
    all_show(&[&a, &b], hash, &meta("mine", &["edited"], false)).await;
}

// ---- what is said about assets -----------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_on_one_device_shows_in_the_stores_of_all_along_a_chain() {
    let [a, b, c] = chain().await;
    let all = [&a, &b, &c];
    let hash = add(&a, 8_000, meta("", &["old"], false)).await;
    all_show(&all, hash, &meta("", &["old"], false)).await;
    edit(&a, hash, meta("a boat", &["sea", "sun"], false)).await;
    all_show(&all, hash, &meta("a boat", &["sea", "sun"], false)).await;
    edit(&c, hash, meta("a boat", &["sea"], true)).await;
    all_show(&all, hash, &meta("a boat", &["sea"], true)).await;
    for device in all {
        let bytes = device.store().read(hash, 0..64).await.unwrap();
        assert_eq!(bytes.unwrap(), content(8_000, 64), "the trash keeps bytes");
    }
    edit(&b, hash, meta("a boat", &["sea"], false)).await;
    all_show(&all, hash, &meta("a boat", &["sea"], false)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edits_made_apart_all_count() {
    let [a, mut b, c] = chain().await;
    let hash = add(&a, 9_000, meta("a boat", &["sea", "sun"], false)).await;
    all_show(&[&a, &b, &c], hash, &meta("a boat", &["sea", "sun"], false)).await;
    same_journal(&[&a, &b, &c]).await;
    b.down().await;
    edit(&a, hash, meta("a ship", &["sea", "sun", "of a"], false)).await;
    edit(&c, hash, meta("a boat", &["sun", "of c"], true)).await;
    // The same field on both devices: the later write wins.
    write(&a, with_text("1", "text", "first")).await;
    // Writes in the same millisecond have no order that people know.
    let said = Instant::now();
    until("the clock goes on", &[&a, &c], async || said.elapsed() > Duration::from_millis(5)).await;
    write(&c, with_text("1", "text", "second")).await;
    b.up().await;
    all_show(&[&a, &b, &c], hash, &meta("a ship", &["of a", "of c", "sun"], true)).await;
    same_journal(&[&a, &b, &c]).await;
    for device in [&a, &b, &c] {
        assert_eq!(read(device, "1").await.unwrap().0["text"], "second");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_edits_in_a_short_time_show_on_the_other_devices() {
    let [a, b] = group().await;
    let hash = add(&a, 9_500, meta("", &[], false)).await;
    all_show(&[&a, &b], hash, &meta("", &[], false)).await;
    let names: Vec<String> = (0..12).map(|n| format!("tag {n:02}")).collect();
    for n in 1..=names.len() {
        let said: Vec<&str> = names[..n].iter().map(String::as_str).collect();
        edit(&a, hash, meta("", &said, false)).await;
        all_show(&[&a, &b], hash, &meta("", &said, false)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_was_long_away_resurrects_nothing_and_adds_what_it_gathered() {
    let [mut a, mut b, mut c] = group().await;
    let hash = add(&a, 9_900, meta("a boat", &["sea", "sun"], false)).await;
    all_show(&[&a, &b, &c], hash, &meta("a boat", &["sea", "sun"], false)).await;
    for n in 0..20 {
        write(&a, with_text(&format!("gone {n}"), "text", "x")).await;
    }
    write(&a, DraftPut { add: tags(["red", "blue"]), ..note("kept") }).await;
    same_journal(&[&a, &b, &c]).await;
    a.down().await;
    b.down().await;
    // c continues alone, and what it writes is older than what follows.
    write(&c, with_text("gone 0", "more", "by c")).await;
    write(&c, DraftPut { add: tags(["by c"]), ..with_text("kept", "text", "by c") }).await;
    c.down().await;

    a.up().await;
    b.up().await;
    for n in 0..20 {
        write_all(&a, vec![DraftChange::Delete(note(&format!("gone {n}")).key)]).await;
    }
    write(&a, DraftPut { create: false, remove: tags(["red"]), ..note("kept") }).await;
    for n in 0..200 {
        write(&b, with_text("much", "text", &n.to_string())).await;
    }
    edit(&b, hash, meta("a boat", &["sea"], true)).await;
    same_journal(&[&a, &b]).await;
    let later_ms = 400 * 24 * 3_600_000;
    for device in [&a, &b] {
        let prune = move |journal: &mut Journal, now_ms| journal.prune(now_ms + later_ms, 100_000);
        let pruned = device.handle().journal().run(prune).await.unwrap();
        assert!(pruned.ops > 100, "{pruned:?}");
    }

    c.up().await;
    same_journal(&[&a, &b, &c]).await;
    all_show(&[&a, &b, &c], hash, &meta("a boat", &["sea"], true)).await;
    for device in [&a, &b, &c] {
        for n in 0..20 {
            assert_eq!(read(device, &format!("gone {n}")).await, None);
        }
        let (texts, tags) = read(device, "kept").await.unwrap();
        assert_eq!(texts["text"], "by c");
        assert_eq!(tags, BTreeSet::from(["blue".to_owned(), "by c".to_owned()]));
        assert_eq!(read(device, "much").await.unwrap().0["text"], "199");
        let findings = device.handle().journal().fsck().await.unwrap();
        assert_eq!(findings, Vec::<String>::new());
    }
}

// ---- what devices tell of themselves -------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_state_of_a_device_that_is_away_is_known_on_every_other() {
    let [a, b, mut c] = group().await;
    c.handle().rename("attic".into()).await.unwrap();
    same_journal(&[&a, &b, &c]).await;
    let owner = Owner::Device(c.node_id);
    let told = async |device: &Device| {
        let journal = device.handle().journal();
        let record =
            journal.read(move |reader| reader.record(DEVICE_MODEL, owner, DEVICE_ID)).await;
        let record = record.unwrap().expect("it has told of itself");
        (DeviceState::from_fields(&record.fields), record.newest)
    };
    let expected = told(&c).await;
    assert_eq!(expected.0.name, "attic");
    assert!(!expected.0.addresses.is_empty() && expected.0.free_bytes.is_some());
    c.down().await;
    // It may have told something newer before it went.
    until("both know the same", &[&a, &b], async || {
        let of_a = told(&a).await;
        of_a == told(&b).await && of_a.0.name == "attic" && of_a.1 >= expected.1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_of_each_device_is_on_all_with_numbers_that_have_no_gap() {
    let [mut a, b, mut c] = group().await;
    for device in [&a, &b, &c] {
        device.add([10; 30]).await;
    }
    all_in_sync(&[&a, &b, &c], 2).await;
    same_journal(&[&a, &b, &c]).await;
    let before = log(&b).await;
    for device in [&mut a, &mut c] {
        device.down().await;
        device.up().await;
        device.add([10; 5]).await;
    }
    all_in_sync(&[&a, &b, &c], 2).await;
    until("everything is logged", &[&a, &b, &c], async || {
        let events = log(&b).await;
        let of = |node_id| events.keys().filter(|(author, ..)| *author == node_id).count();
        // 90 assets before and 10 after; each device logs every one.
        [&a, &b, &c].iter().all(|device| of(device.node_id) >= 100)
    })
    .await;
    same_journal(&[&a, &b, &c]).await;
    let expected = log(&a).await;
    assert!(before.iter().all(|(number, kind)| expected.get(number) == Some(kind)));
    for device in [&b, &c] {
        assert_eq!(log(device).await, expected);
    }
    let logs: BTreeSet<_> = expected.keys().map(|(author, log, _)| (author, log)).collect();
    assert_eq!(logs.len(), 3, "a restart begins no other log");
}

/// Author, log, number and type of every logged event; checks the numbers.
async fn log(device: &Device) -> BTreeMap<(NodeId, LogId, u64), String> {
    let read = |reader: &can_sync::state::journal::JournalReader| {
        reader.events(DEVICE_STREAM, (0, 0), 100_000)
    };
    let page = device.handle().journal().read(read).await.unwrap();
    let mut next: BTreeMap<(NodeId, LogId), u64> = BTreeMap::new();
    let mut events = BTreeMap::new();
    for event in page.events {
        let data = String::from_utf8_lossy(&event.data).into_owned();
        let number = (event.author, event.log, event.event_seq);
        let twice = events.insert(number, format!("{} {data}", event.kind));
        assert_eq!(twice, None, "{number:?} is there twice");
    }
    for (author, log, seq) in events.keys() {
        let next = next.entry((*author, *log)).or_default();
        assert_eq!(seq, next, "a gap in the log of {author}");
        *next += 1;
    }
    events
}

/// A ticket of a device; it must not be logged.
async fn ticket(device: &Device) -> String {
    let ticket = device.handle().ticket(Duration::from_secs(60)).await.unwrap().ticket;
    keep_secret(ticket.as_bytes());
    ticket
}

// ---- from one group to another -------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_moves_from_one_group_to_another_and_takes_no_record_along() {
    let [a, b] = group().await;
    let [c, d] = group().await;
    write(&a, with_text("first", "text", "of the first group")).await;
    write(&c, with_text("second", "text", "of the second group")).await;
    same_journal(&[&a, &b]).await;
    let ticket = ticket(&c).await;
    assert!(b.handle().pair(ticket.clone()).await.is_err(), "it is in a group");
    b.handle().leave().await.unwrap();
    b.handle().pair(ticket).await.unwrap();
    all_in_sync(&[&b, &c, &d], 2).await;
    same_journal(&[&b, &c, &d]).await;
    for device in [&b, &c, &d] {
        assert_eq!(read(device, "first").await, None);
        assert!(read(device, "second").await.is_some());
        assert!(!members(device).await.contains_key(&a.node_id));
    }
    // For the first group it is a member that is away.
    assert!(members(&a).await[&b.node_id]);
    write(&a, with_text("third", "text", "not for b")).await;
    assert_eq!(read(&b, "third").await, None);
}
