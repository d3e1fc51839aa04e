//! Whole agents: metadata in the store and in the journal are merged in both directions, and events
//! are logged. The journal's own tests check its rules; these check what a user sees.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use can_sync::core::ids::{Hash, HashAlgorithm};
use can_sync::core::journal::asset::{DESCRIPTION, JournalRow, TAGS, TRASHED, asset_key};
use can_sync::core::journal::brake::WRITES_MAX;
use can_sync::core::journal::device_events::{
    DEVICE_ID, DEVICE_MODEL, DEVICE_STREAM, DeviceState, Held, LogEvent,
};
use can_sync::core::journal::draft::{Draft, DraftChange, DraftPut};
use can_sync::core::journal::op::{Elem, Value};
use can_sync::state::journal::Owner;
use can_sync::store::embedded::{EmbeddedStore, Options};
use can_sync::store::{Metadata, NewAsset, Store, StoreError};

mod common;

use common::group::{Device, Foreign, all_in_sync, pair, until};
use common::{content, digest};

// ---- what a test does and sees -----------------------------------------------------------------

fn meta(description: &str, tags: &[&str], trashed: bool) -> Metadata {
    let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
    Metadata { description: description.into(), tags, trashed, ..Metadata::default() }
}

/// What the user sees: description, tags, trashed.
async fn shown(store: &dyn Store, hash: Hash) -> (String, Vec<String>, bool) {
    let row = store.lookup(hash).await.unwrap().expect("it is held").metadata;
    (row.description, row.tags, row.trashed)
}

fn as_shown(metadata: &Metadata) -> (String, Vec<String>, bool) {
    (metadata.description.clone(), metadata.tags.clone(), metadata.trashed)
}

async fn in_journal(device: &Device, hash: Hash) -> JournalRow {
    device.handle().journal().read(move |reader| reader.asset(&hash)).await.unwrap()
}

/// The number of ops of any kind that the journal ever stored.
async fn ops(device: &Device) -> u64 {
    let stats = device.handle().journal().read(|reader| reader.stats()).await.unwrap();
    stats.logs.iter().map(|log| log.seq).sum()
}

/// The events that the device logged; checks their numbers.
async fn events(device: &Device) -> Vec<LogEvent> {
    let journal = device.handle().journal();
    let page = journal.read(|reader| reader.events(DEVICE_STREAM, (0, 0), 100_000)).await.unwrap();
    let own: Vec<_> = page.events.iter().filter(|row| row.author == device.node_id).collect();
    let numbers: Vec<u64> = own.iter().map(|row| row.event_seq).collect();
    assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>(), "numbers are contiguous");
    own.iter().map(|row| LogEvent::parse(&row.kind, &row.data).unwrap()).collect()
}

async fn asset_events(device: &Device) -> Vec<LogEvent> {
    events(device).await.into_iter().filter(|event| event.kind().starts_with("asset-")).collect()
}

fn put(hash: Hash) -> DraftPut {
    DraftPut {
        key: asset_key(&hash),
        create: true,
        set: BTreeMap::new(),
        add: BTreeSet::new(),
        remove: BTreeSet::new(),
    }
}

fn tag(tag: &str) -> Elem {
    Elem { field: TAGS.into(), elem: tag.into() }
}

/// A change as another device would write it.
fn described(hash: Hash, text: &str) -> DraftPut {
    let text = Some(Value::Text(text.into()));
    DraftPut { set: BTreeMap::from([(DESCRIPTION.into(), text)]), ..put(hash) }
}

async fn write(device: &Device, put: DraftPut) {
    let draft = Draft { changes: vec![DraftChange::Put(put)], expect: Vec::new() };
    device.handle().journal().write(draft).await.unwrap().unwrap();
}

fn new_asset(seed: u64, metadata: Metadata) -> NewAsset {
    let content = content(seed, 64);
    NewAsset { digest: digest(HashAlgorithm::Blake3, &content), content, metadata }
}

/// Adds one content; returns its hash.
async fn add(store: &dyn Store, seed: u64, metadata: Metadata) -> Hash {
    let asset = new_asset(seed, metadata);
    let hash = asset.digest.hash;
    store.put(vec![asset]).await.unwrap().remove(0).unwrap();
    hash
}

async fn edit(store: &dyn Store, hash: Hash, metadata: Metadata) {
    store.set_metadata(hash, &metadata, None).await.unwrap();
}

fn tags(row: &JournalRow) -> Vec<&str> {
    row.tags.iter().map(String::as_str).collect()
}

// ---- one asset ---------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edit_in_the_store_is_in_the_journal_and_in_the_log_once() {
    let a = Device::start().await;
    let hash = add(&*a.store(), 1, meta("cat", &["x", "y"], false)).await;
    a.handle().settle(hash).await.unwrap();
    let row = in_journal(&a, hash).await;
    assert_eq!((row.description.as_deref(), tags(&row)), (Some("cat"), vec!["x", "y"]));
    assert_eq!(row.trashed, None, "only what is there is issued");

    edit(&*a.store(), hash, meta("dog", &["y", "z"], true)).await;
    a.handle().settle(hash).await.unwrap();
    let row = in_journal(&a, hash).await;
    assert_eq!((row.description.as_deref(), tags(&row)), (Some("dog"), vec!["y", "z"]));
    assert_eq!(row.trashed, Some(true));

    // Without a request too.
    edit(&*a.store(), hash, meta("dog", &["y", "z"], false)).await;
    until("it is restored", &[&a], async || in_journal(&a, hash).await.trashed == Some(false))
        .await;
    let fields = BTreeSet::from([DESCRIPTION.to_owned(), TAGS.to_owned()]);
    let held = |description: &str, tags: [&str; 2]| {
        Held::from([
            (DESCRIPTION.to_owned(), description.into()),
            (TAGS.to_owned(), tags.map(str::to_owned).to_vec().into()),
        ])
    };
    let (before, after) = (held("cat", ["x", "y"]), held("dog", ["y", "z"]));
    let expected = [
        LogEvent::AssetAdded { hash, size_bytes: 64 },
        LogEvent::AssetTrashed { hash },
        LogEvent::AssetChanged { hash, fields, before, after },
        LogEvent::AssetRestored { hash },
    ];
    assert_eq!(asset_events(&a).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_journal_has_is_in_the_store_and_bytes_stay() {
    let a = Device::start().await;
    let hash = add(&*a.store(), 2, meta("mine", &["x"], false)).await;
    a.handle().settle(hash).await.unwrap();
    let mut theirs = described(hash, "theirs");
    theirs.set.insert(TRASHED.into(), Some(Value::Bool(true)));
    theirs.add.insert(tag("y"));
    theirs.remove.insert(tag("x"));
    write(&a, theirs).await;
    let expected = ("theirs".to_owned(), vec!["y".to_owned()], true);
    until("the store has it", &[&a], async || shown(&*a.store(), hash).await == expected).await;
    assert!(a.store().read(hash, 0..64).await.unwrap().is_some());
    // It was not done on this device.
    a.handle().settle(hash).await.unwrap();
    assert_eq!(asset_events(&a).await.len(), 1);

    // After `settle` the change can be read at once.
    write(&a, described(hash, "again")).await;
    a.handle().settle(hash).await.unwrap();
    assert_eq!(shown(&*a.store(), hash).await.0, "again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_rest_nothing_is_written() {
    let mut a = Device::start().await;
    let hash = add(&*a.store(), 3, meta("cat", &["x"], false)).await;
    let bare = add(&*a.store(), 4, Metadata::default()).await;
    a.handle().settle(hash).await.unwrap();
    a.handle().settle(bare).await.unwrap();
    write(&a, described(hash, "theirs")).await;
    a.handle().settle(hash).await.unwrap();
    until("the device has told of itself", &[&a], async || state(&a).await.is_some()).await;
    let figures = async |a: &Device| {
        (ops(a).await, a.store().info().await.unwrap().newest_cursor, asset_events(a).await.len())
    };
    let before = figures(&a).await;
    for _ in 0..3 {
        a.handle().settle(hash).await.unwrap();
        a.handle().settle(bare).await.unwrap();
    }
    assert_eq!(figures(&a).await, before);
    // The scan of everything after a start finds nothing to do either.
    a.down().await;
    a.up().await;
    a.handle().settle(hash).await.unwrap();
    a.handle().settle(bare).await.unwrap();
    let after = figures(&a).await;
    assert_eq!((after.1, after.2), (before.1, before.2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edits_made_while_the_agent_was_down_are_found() {
    let mut a = Device::start().await;
    let hash = add(&*a.store(), 5, meta("cat", &[], false)).await;
    a.handle().settle(hash).await.unwrap();
    a.down().await;
    let added = {
        let store = EmbeddedStore::open(&a.home.store_dir(), Options::default()).unwrap();
        edit(&store, hash, meta("dog", &["new"], false)).await;
        let added = add(&store, 6, meta("another", &[], false)).await;
        store.close().await;
        added
    };
    a.up().await;
    until("both are found", &[&a], async || {
        let (old, new) = (in_journal(&a, hash).await, in_journal(&a, added).await);
        old.description.as_deref() == Some("dog") && new.description.as_deref() == Some("another")
    })
    .await;
    assert_eq!(tags(&in_journal(&a, hash).await), ["new"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edits_on_both_sides_at_once_all_count() {
    const EDITS: usize = 40;
    let a = Device::start().await;
    let hash = add(&*a.store(), 7, meta("", &["s"], false)).await;
    let by_user = async {
        let store = a.store();
        for n in 0..EDITS {
            // As people's programs do it: read, change, write if unchanged.
            loop {
                let mut row = store.lookup(hash).await.unwrap().unwrap().metadata;
                row.tags.push(format!("s{n}"));
                match store.set_metadata(hash, &row, Some(row.version)).await {
                    Ok(_) => break,
                    Err(StoreError::Conflict(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            tokio::task::yield_now().await;
        }
    };
    // Fewer writes than the brake holds back.
    let by_others = async {
        for n in 0..WRITES_MAX - 1 {
            let name = format!("j{n}");
            write(&a, DraftPut { add: BTreeSet::from([tag(&name)]), ..put(hash) }).await;
            a.handle().settle(hash).await.unwrap();
        }
    };
    tokio::join!(by_user, by_others);
    let user = (0..EDITS).map(|n| format!("s{n}"));
    let expected: BTreeSet<String> =
        user.chain((0..WRITES_MAX - 1).map(|n| format!("j{n}"))).chain(["s".to_owned()]).collect();
    until("every tag is in both", &[&a], async || {
        let (_, shown, _) = shown(&*a.store(), hash).await;
        in_journal(&a, hash).await.tags == expected && BTreeSet::from_iter(shown) == expected
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_written_again_and_again_is_held_back_and_reported_but_no_edit_is_lost() {
    let a = Device::start().await;
    let hash = add(&*a.store(), 8, Metadata::default()).await;
    // Seen once, so that later changes are edits.
    a.handle().settle(hash).await.unwrap();
    for n in 0..WRITES_MAX {
        // As a store does that alters what is written to it.
        edit(&*a.store(), hash, meta(&format!("altered {n}"), &[], false)).await;
        until("it is taken for an edit", &[&a], async || {
            in_journal(&a, hash).await.description == Some(format!("altered {n}"))
        })
        .await;
        write(&a, described(hash, &n.to_string())).await;
        until("it is written", &[&a], async || shown(&*a.store(), hash).await.0 == n.to_string())
            .await;
    }
    write(&a, described(hash, "too often")).await;
    until("it is logged", &[&a], async || {
        events(&a).await.iter().any(|event| event.kind() == "integrity-alarm")
    })
    .await;
    a.handle().check().await.unwrap();
    until("it is reported", &[&a], async || {
        a.status().device.warnings.iter().any(|warning| warning.contains("again and again"))
    })
    .await;
    assert_eq!(shown(&*a.store(), hash).await.0, (WRITES_MAX - 1).to_string());
    // The user's edit is still taken over.
    let row = meta(&(WRITES_MAX - 1).to_string(), &["kept"], false);
    edit(&*a.store(), hash, row).await;
    until("the tag is in the journal", &[&a], async || {
        tags(&in_journal(&a, hash).await) == ["kept"]
    })
    .await;
    assert_eq!(in_journal(&a, hash).await.description.as_deref(), Some("too often"));
    // An asset that a person asks for is not held back.
    a.handle().settle(hash).await.unwrap();
    assert_eq!(shown(&*a.store(), hash).await, ("too often".into(), vec!["kept".into()], false));
}

// ---- many --------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_store_is_taken_in_with_few_ops_and_logged_once() {
    const ASSETS: u64 = 1_000;
    let mut a = Device::new();
    {
        let store = EmbeddedStore::open(&a.home.store_dir(), Options::default()).unwrap();
        let assets = (0..ASSETS).map(|n| new_asset(1_000 + n, meta("", &["import"], false)));
        store.put(assets.collect()).await.unwrap();
        store.close().await;
    }
    a.up().await;
    let added = async |a: &Device| {
        let events = asset_events(a).await;
        let hashes: BTreeSet<Hash> = events
            .iter()
            .map(|event| match event {
                LogEvent::AssetAdded { hash, .. } => *hash,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(hashes.len(), events.len(), "none is logged twice");
        events.len() as u64
    };
    until("all is logged", &[&a], async || added(&a).await == ASSETS).await;
    let one = new_asset(1_000, Metadata::default()).digest.hash;
    assert_eq!(tags(&in_journal(&a, one).await), ["import"]);
    // A change and an event for each asset, 64 in an op, and a few ops about the device itself.
    let ops = ops(&a).await;
    assert!(ops < 2 * ASSETS / 64 + 20, "{ops} ops");
    a.down().await;
    a.up().await;
    let last = add(&*a.store(), 1_000 + ASSETS, Metadata::default()).await;
    a.handle().settle(last).await.unwrap();
    assert_eq!(added(&a).await, ASSETS + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_from_another_device_is_logged_as_received_and_has_the_journals_metadata() {
    let (a, mut b) = (Device::start().await, Device::start().await);
    pair(&a, &b).await;
    let asset = new_asset(20, meta("of a's store", &[], false));
    let hash = asset.digest.hash;
    // The journals know its metadata before the asset arrives.
    write(&b, described(hash, "of b's journal")).await;
    let before = in_journal(&b, hash).await;
    until("a knows it too", &[&a, &b], async || in_journal(&a, hash).await == before).await;
    a.store().put(vec![asset]).await.unwrap();
    let many = a.add([10; 200]).await;
    let large = a.add([700 * 1024]).await;
    all_in_sync(&[&a, &b], 1).await;
    let row = b.store().lookup(hash).await.unwrap().unwrap().metadata;
    // Metadata is sent by the journal alone; the row was stored with the asset, not after it.
    let said = meta("of b's journal", &[], false);
    assert_eq!(as_shown(&row), as_shown(&said));
    assert_eq!(row.version, b.store().lookup(hash).await.unwrap().unwrap().entry.cursor);
    let received = async |b: &Device| {
        let mut received = BTreeSet::new();
        for event in asset_events(b).await {
            let LogEvent::AssetReceived { hash, from, .. } = event else { panic!("{event:?}") };
            assert_eq!(from, Some(a.node_id));
            assert!(received.insert(hash), "{hash} is logged twice");
        }
        received.len()
    };
    let expected = 1 + many.len() + large.len();
    until("all is logged", &[&b], async || received(&b).await == expected).await;
    b.handle().settle(hash).await.unwrap();
    assert_eq!(in_journal(&b, hash).await, before, "its arrival is no edit");
    a.handle().settle(hash).await.unwrap();
    assert_eq!(shown(&*a.store(), hash).await, as_shown(&said));
    b.down().await;
    b.up().await;
    b.handle().settle(hash).await.unwrap();
    assert_eq!(received(&b).await, expected);
}

// ---- a foreign store ---------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_store_is_kept_one_with_the_journal_too() {
    let store = Foreign::start(HashAlgorithm::Blake3).await;
    let a = Device::beside(&store).await;
    let hash = add(store.store(), 30, meta("cat", &["x"], false)).await;
    until("it is taken in", &[&a], async || !in_journal(&a, hash).await.tags.is_empty()).await;
    edit(store.store(), hash, meta("cat", &[], false)).await;
    until("the tag is gone", &[&a], async || in_journal(&a, hash).await.tags.is_empty()).await;
    write(&a, described(hash, "dog")).await;
    until("it is written", &[&a], async || shown(store.store(), hash).await.0 == "dog").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_answer_was_lost_is_not_taken_for_an_edit() {
    let store = Foreign::start(HashAlgorithm::Blake3).await;
    let a = Device::beside(&store).await;
    let hash = add(store.store(), 31, meta("mine", &[], false)).await;
    until("it is taken in", &[&a], async || in_journal(&a, hash).await.alive).await;
    store.faults.loses_meta.store(true, Ordering::Relaxed);
    write(&a, described(hash, "theirs")).await;
    until("the answer is lost", &[&a], async || {
        store.faults.lost_meta.load(Ordering::Relaxed) > 0
            && shown(store.store(), hash).await.0 == "theirs"
    })
    .await;
    // Meanwhile it changes again. If the row in the store counted as an edit, it would win.
    write(&a, described(hash, "newer")).await;
    store.faults.loses_meta.store(false, Ordering::Relaxed);
    until("the newer is there", &[&a], async || shown(store.store(), hash).await.0 == "newer")
        .await;
    assert_eq!(in_journal(&a, hash).await.description.as_deref(), Some("newer"));
    let events = asset_events(&a).await;
    assert_eq!(events, [LogEvent::AssetAdded { hash, size_bytes: 64 }]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_store_in_the_place_of_another_takes_nothing_from_the_journal() {
    let mut store = Foreign::start(HashAlgorithm::Blake3).await;
    let mut a = Device::beside(&store).await;
    let hash = add(store.store(), 32, meta("precious", &["x"], false)).await;
    until("it is taken in", &[&a], async || in_journal(&a, hash).await.alive).await;
    a.down().await;
    store.down().await;
    store.replace();
    store.up().await;
    // The same content added again, without metadata.
    assert_eq!(add(store.store(), 32, Metadata::default()).await, hash);
    a.up().await;
    let expected = as_shown(&meta("precious", &["x"], false));
    until("it is filled in", &[&a], async || shown(store.store(), hash).await == expected).await;
    let row = in_journal(&a, hash).await;
    assert_eq!((row.description.as_deref(), tags(&row)), (Some("precious"), vec!["x"]));
}

// ---- the device itself -------------------------------------------------------------------------

async fn state(device: &Device) -> Option<DeviceState> {
    let owner = Owner::Device(device.node_id);
    let journal = device.handle().journal();
    let record = journal.read(move |reader| reader.record(DEVICE_MODEL, owner, DEVICE_ID)).await;
    let record = record.unwrap()?;
    Some(DeviceState::from_fields(&record.fields))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_tells_of_itself_and_of_its_new_name() {
    let a = Device::start().await;
    until("it has told", &[&a], async || state(&a).await.is_some()).await;
    let told = state(&a).await.unwrap();
    assert_eq!(
        (told.name, told.version),
        (a.status().device.name, env!("CARGO_PKG_VERSION").into())
    );
    assert!(told.platform.contains('-') && told.free_bytes.is_some_and(|bytes| bytes > 0));
    a.handle().rename("attic".into()).await.unwrap();
    until("the new name is told", &[&a], async || state(&a).await.unwrap().name == "attic").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_let_in_met_and_put_out_is_logged() {
    let (a, b) = (Device::start().await, Device::start().await);
    pair(&a, &b).await;
    all_in_sync(&[&a, &b], 1).await;
    let logged = async |kind: &str| {
        let of_b = b.node_id.to_string();
        let about_b = |event: &&LogEvent| String::from_utf8_lossy(&event.data()).contains(&of_b);
        events(&a).await.iter().filter(about_b).filter(|event| event.kind() == kind).count()
    };
    until("both are logged", &[&a], async || {
        logged("device-paired").await == 1 && logged("device-connected").await == 1
    })
    .await;
    a.handle().remove(b.node_id.to_string()).await.unwrap();
    until("it is logged", &[&a], async || logged("device-removed").await == 1).await;
    assert_eq!(logged("device-paired").await, 1);
}

// ---- devices of the plain protocol -------------------------------------------------------------

async fn comes_to_show(device: &Device, devices: &[&Device], hash: Hash, expected: Metadata) {
    until(&format!("it shows {expected:?}"), devices, async || {
        let row = device.store().lookup(hash).await.unwrap();
        row.is_some_and(|asset| as_shown(&asset.metadata) == as_shown(&expected))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_reach_a_device_of_the_plain_protocol_and_its_edits_come_back() {
    let (full, plain) = (Device::start().await, Device::start_plain().await);
    let early = add(&*full.store(), 1, meta("before they met", &["old"], false)).await;
    pair(&full, &plain).await;
    let both = [&full, &plain];
    comes_to_show(&plain, &both, early, meta("before they met", &["old"], false)).await;

    let hash = add(&*full.store(), 2, meta("cat", &["x", "y"], false)).await;
    comes_to_show(&plain, &both, hash, meta("cat", &["x", "y"], false)).await;
    edit(&*plain.store(), hash, meta("dog", &["y", "z"], true)).await;
    comes_to_show(&full, &both, hash, meta("dog", &["y", "z"], true)).await;
    edit(&*full.store(), hash, meta("", &["x"], false)).await;
    comes_to_show(&plain, &both, hash, meta("", &["x"], false)).await;

    // What comes back to its author is no edit: a change on either side is one op on each, or two where
    // it takes something back too.
    let before = (ops(&full).await, ops(&plain).await);
    edit(&*full.store(), early, meta("there", &["old"], false)).await;
    comes_to_show(&plain, &both, early, meta("there", &["old"], false)).await;
    edit(&*plain.store(), early, meta("and back", &["old"], false)).await;
    comes_to_show(&full, &both, early, meta("and back", &["old"], false)).await;
    let after = (ops(&full).await, ops(&plain).await);
    assert!(after.0 - before.0 <= 3 && after.1 - before.1 <= 3, "{before:?} {after:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_edited_while_devices_of_the_plain_protocol_were_apart_is_told_when_they_meet() {
    let (full, mut plain) = (Device::start().await, Device::start_plain().await);
    pair(&full, &plain).await;
    let hash = add(&*full.store(), 1, meta("first", &["a"], false)).await;
    comes_to_show(&plain, &[&full, &plain], hash, meta("first", &["a"], false)).await;
    plain.down().await;
    edit(&*full.store(), hash, meta("second", &["b"], false)).await;
    full.handle().settle(hash).await.unwrap();
    plain.up().await;
    comes_to_show(&plain, &[&full, &plain], hash, meta("second", &["b"], false)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_come_through_a_device_of_the_plain_protocol_to_the_rest_of_the_group() {
    let (a, plain, b) = (Device::start().await, Device::start_plain().await, Device::start().await);
    pair(&a, &plain).await;
    pair(&a, &b).await;
    let hash = add(&*plain.store(), 1, meta("from the plain one", &["t"], false)).await;
    comes_to_show(&b, &[&a, &plain, &b], hash, meta("from the plain one", &["t"], false)).await;
}
