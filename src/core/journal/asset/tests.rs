//! Tests of the merge, by example and against a model of two devices.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

const HASH: Hash = Hash([3; 32]);

fn tags(tags: &[&str]) -> BTreeSet<String> {
    tags.iter().map(|tag| (*tag).to_owned()).collect()
}

fn row(description: &str, trashed: bool, of: &[&str]) -> Row {
    Row { description: description.into(), trashed, tags: tags(of), ..Row::default() }
}

fn has(description: &str, trashed: bool, of: &[&str]) -> JournalRow {
    JournalRow {
        alive: true,
        description: Some(description.into()),
        trashed: Some(trashed),
        tags: tags(of),
        ..JournalRow::default()
    }
}

fn settled(row: &Row) -> Shadow {
    written(row, row.attributes.clone(), 1)
}

/// Applies an edit to the journal's row.
fn apply(journal: &mut JournalRow, edit: Option<&DraftPut>) {
    let Some(edit) = edit else { return };
    journal.alive |= edit.create;
    for (field, value) in &edit.set {
        match (field.as_str(), value) {
            (DESCRIPTION, Some(Value::Text(text))) => journal.description = Some(text.clone()),
            (TRASHED, Some(Value::Bool(trashed))) => journal.trashed = Some(*trashed),
            (field, value) => {
                let attribute = Attribute::of_field(field).unwrap();
                let value = attribute_of_value(attribute, value.clone());
                journal.attributes.insert(attribute, value);
            }
        }
    }
    for elem in &edit.add {
        journal.tags.insert(elem.elem.clone());
        journal.removed_tags.remove(&elem.elem);
    }
    for elem in &edit.remove {
        assert!(journal.tags.remove(&elem.elem), "{elem:?} was not in");
        journal.removed_tags.insert(elem.elem.clone());
    }
}

#[test]
fn the_first_sight_fills_and_never_overwrites() {
    let store = row("mine", true, &["red", "old"]);
    let empty = reconcile(&HASH, &store, 1, None, &JournalRow::default());
    let edit = empty.edit.unwrap();
    assert!(edit.create && edit.set.len() == 2 && edit.add.len() == 2);
    assert_eq!(empty.write, None);

    let mut journal = has("theirs", false, &["blue"]);
    journal.removed_tags = tags(&["old"]);
    let decision = reconcile(&HASH, &store, 1, None, &journal);
    let edit = decision.edit.unwrap();
    assert!(!edit.create && edit.set.is_empty());
    assert_eq!(edit.add.iter().map(|e| e.elem.as_str()).collect::<Vec<_>>(), ["red"]);
    assert_eq!(decision.write, Some(row("theirs", false, &["blue", "red"])));
}

#[test]
fn a_user_edit_is_issued_once_with_just_its_fields() {
    let before = row("a", false, &["x", "y"]);
    let mut journal = has("a", false, &["x", "y"]);
    let after = row("a", true, &["x", "z"]);
    let first = reconcile(&HASH, &after, 2, Some(&settled(&before)), &journal);
    let edit = first.edit.as_ref().unwrap();
    assert_eq!(edit.set.keys().collect::<Vec<_>>(), [TRASHED]);
    assert_eq!((edit.add.len(), edit.remove.len()), (1, 1));
    assert_eq!(first.write, None);
    apply(&mut journal, first.edit.as_ref());
    let second = reconcile(&HASH, &after, 2, Some(&first.shadow), &journal);
    assert_eq!((second.edit, second.write), (None, None));
}

#[test]
fn our_own_write_that_comes_back_is_no_edit_also_after_a_crash_in_between() {
    let before = row("a", false, &["x"]);
    let journal = has("b", true, &["y"]);
    let first = reconcile(&HASH, &before, 1, Some(&settled(&before)), &journal);
    let pending = first.write.clone().unwrap();
    assert_eq!(pending, row("b", true, &["y"]));
    // The write succeeded, but a crash lost the answer. The journal has moved on meanwhile.
    let newer = has("c", true, &["y", "z"]);
    let second = reconcile(&HASH, &pending, 2, Some(&first.shadow), &newer);
    assert_eq!(second.edit, None);
    assert_eq!(second.write, Some(row("c", true, &["y", "z"])));
    // Or the write never reached the store.
    let third = reconcile(&HASH, &before, 1, Some(&first.shadow), &newer);
    assert_eq!(third.edit, None);
}

#[test]
fn an_asset_put_with_the_journals_row_is_no_edit_whatever_becomes_of_it() {
    let put = row("theirs", false, &["x"]);
    let shadow = Shadow::expected(put.clone());
    assert!(shadow.is_expected() && !shadow.is_forgotten());
    let newer = has("newer", true, &[]);
    // Three cases: the asset arrived with the row; it arrived without; the user added it with a
    // row of his own.
    let arrived = reconcile(&HASH, &put, 1, Some(&shadow), &newer);
    assert_eq!((arrived.edit, arrived.write), (None, Some(row("newer", true, &[]))));
    let bare = reconcile(&HASH, &Row::default(), 1, Some(&shadow), &newer);
    assert_eq!((bare.edit, bare.write), (None, Some(row("newer", true, &[]))));
    let own = reconcile(&HASH, &row("mine", false, &["x"]), 1, Some(&shadow), &newer);
    assert_eq!(own.edit.unwrap().set.keys().collect::<Vec<_>>(), [DESCRIPTION]);
}

#[test]
fn a_store_that_chooses_otherwise_is_asked_once() {
    let base = row("a", false, &[]);
    let journal = has("b", false, &[]);
    let first = reconcile(&HASH, &base, 1, Some(&settled(&base)), &journal);
    let shadow = written(first.write.as_ref().unwrap(), Attributes::default(), 2);
    // The store kept a third value. It may be an edit by the user, so it is issued.
    let odd = row("B", false, &[]);
    let second = reconcile(&HASH, &odd, 2, Some(&shadow), &journal);
    assert!(second.edit.is_some());
    // The store kept its old value. Writing again would repeat for ever, so the row is left alone.
    let same = Shadow { base: base.clone(), ..shadow };
    let third = reconcile(&HASH, &base, 2, Some(&same), &journal);
    assert_eq!((third.edit, third.write), (None, None));
}

#[test]
fn more_tags_than_an_op_takes_are_issued_over_several_looks() {
    let names: Vec<String> = (0..900).map(|n| format!("{n:0>100}")).collect();
    let store = Row { tags: names.iter().cloned().collect(), ..Row::default() };
    let mut journal = JournalRow::default();
    let mut decision = reconcile(&HASH, &store, 1, None, &journal);
    let mut looks = 1;
    while decision.again {
        assert_eq!(decision.write, None, "nothing is taken from the store meanwhile");
        apply(&mut journal, decision.edit.as_ref());
        decision = reconcile(&HASH, &store, 1, Some(&decision.shadow), &journal);
        looks += 1;
    }
    apply(&mut journal, decision.edit.as_ref());
    assert_eq!(journal.tags, store.tags);

    let bare = Row::default();
    let mut decision = reconcile(&HASH, &bare, 2, Some(&settled(&store)), &journal);
    while decision.again {
        assert_eq!(decision.write, None);
        apply(&mut journal, decision.edit.as_ref());
        decision = reconcile(&HASH, &bare, 2, Some(&decision.shadow), &journal);
        looks += 1;
    }
    apply(&mut journal, decision.edit.as_ref());
    assert!(journal.tags.is_empty() && looks > 4, "{looks} looks");
}

#[test]
fn texts_too_long_for_the_journal_stay_here_and_disturb_nothing() {
    let long = "x".repeat(VALUE_BYTES_MAX + 1);
    let tag = "t".repeat(SET_ELEM_BYTES_MAX + 1);
    let store = row(&long, false, &[&tag, "short"]);
    let decision = reconcile(&HASH, &store, 1, None, &JournalRow::default());
    let edit = decision.edit.unwrap();
    assert!(edit.set.is_empty());
    assert_eq!(edit.add.len(), 1);
    assert_eq!(decision.write, None);
}

#[test]
fn texts_that_look_the_same_are_the_same_whoever_wrote_them() {
    let (composed, decomposed) = ("\u{e9}t\u{e9}", "e\u{301}te\u{301}");
    let store = row(decomposed, false, &[decomposed]);
    let first = reconcile(&HASH, &store, 1, None, &JournalRow::default());
    let edit = first.edit.unwrap();
    assert_eq!(edit.set[DESCRIPTION], Some(Value::Text(composed.into())));
    assert_eq!(edit.add.iter().map(|e| e.elem.as_str()).collect::<Vec<_>>(), [composed]);

    for (here, there) in [(composed, decomposed), (decomposed, composed)] {
        let (store, journal) = (row(here, false, &[here]), has(there, false, &[there]));
        for shadow in [None, Some(settled(&store)), Some(settled(&journal.row()))] {
            let decision = reconcile(&HASH, &store, 1, shadow.as_ref(), &journal);
            assert_eq!((decision.edit, decision.write), (None, None), "{here:?} {there:?}");
        }
        // Taking the tag out takes it out as it stands in the journal.
        let bare = row(here, false, &[]);
        let decision = reconcile(&HASH, &bare, 2, Some(&settled(&store)), &journal);
        let edit = decision.edit.unwrap();
        assert_eq!(edit.remove.iter().map(|e| e.elem.as_str()).collect::<Vec<_>>(), [there]);
    }
}

#[test]
fn rows_are_compared_in_canonical_form() {
    let plain = row("a b", false, &["x"]);
    let padded = row(" a b \n", false, &["x ", " "]);
    assert_eq!(padded.canonical(), plain);
    let decision = reconcile(&HASH, &padded, 1, Some(&settled(&plain)), &has("a b", false, &["x"]));
    assert_eq!((decision.edit, decision.write), (None, None));
}

fn named(name: &str) -> Row {
    Row { attributes: Attributes::named(name), ..Row::default() }
}

fn knows(name: &str) -> JournalRow {
    let name = Attributes::named(name).get(Attribute::Name).cloned();
    let attributes = BTreeMap::from([(Attribute::Name, name)]);
    JournalRow { alive: true, attributes, ..JournalRow::default() }
}

fn fields(put: Option<&DraftPut>) -> Vec<(&str, &Option<Value>)> {
    let set = put.map(|put| put.set.iter()).into_iter().flatten();
    set.map(|(field, value)| (field.as_str(), value)).collect()
}

#[test]
fn the_adder_tells_the_attributes_and_a_later_adder_overwrites_none() {
    let mut store = named("mine.txt");
    store.attributes.set(Attribute::ModifiedMs, Some(AttributeValue::TimeMs(7)));
    let first = reconcile(&HASH, &store, 1, None, &JournalRow::default());
    let (name, modified) = (Some(Value::Text("mine.txt".into())), Some(Value::Int(7)));
    let told = [("modified_ms", &modified), ("name", &name)];
    assert_eq!(fields(first.edit.as_ref()), told);
    assert_eq!((first.fill, first.write), (None, None));

    let second = reconcile(&HASH, &store, 1, None, &knows("theirs.txt"));
    assert_eq!(fields(second.edit.as_ref()), told[..1]);
    assert_eq!(second.write.unwrap().attributes.name(), "theirs.txt");
    let cleared = reconcile(&HASH, &store, 1, None, &knows(""));
    assert_eq!(fields(cleared.edit.as_ref()), told[..1], "a cleared name is not filled in again");
}

#[test]
fn an_edited_attribute_is_issued_and_a_row_that_lacks_it_clears_nothing() {
    let (seen, journal) = (settled(&named("a")), knows("a"));
    let edited = reconcile(&HASH, &named("b"), 2, Some(&seen), &journal);
    assert_eq!(fields(edited.edit.as_ref()), [("name", &Some(Value::Text("b".into())))]);
    let lacking = reconcile(&HASH, &Row::default(), 2, Some(&seen), &journal);
    assert_eq!((lacking.edit, lacking.fill), (None, None));
    assert_eq!(lacking.write, None, "this store was given the name before and dropped it");
    let cleared = reconcile(&HASH, &named("a"), 1, Some(&seen), &knows(""));
    assert_eq!((cleared.edit, cleared.write), (None, Some(Row::default())));
}

#[test]
fn a_shadow_of_an_earlier_version_makes_attributes_fill_the_journal_and_no_edit() {
    let old = Shadow { knows_attributes: false, ..settled(&Row::default()) };
    let decision = reconcile(&HASH, &named("a"), 1, Some(&old), &JournalRow::default());
    assert_eq!(fields(decision.fill.as_ref()), [("name", &Some(Value::Text("a".into())))]);
    assert_eq!((decision.edit, decision.write), (None, None));
    assert!(decision.shadow.knows_attributes);
    let theirs = reconcile(&HASH, &named("a"), 1, Some(&old), &knows("b"));
    assert_eq!((theirs.edit, theirs.fill), (None, None));
    assert_eq!(theirs.write, Some(named("b")));
}

#[test]
fn a_name_that_the_user_gave_to_an_asset_on_its_way_here_overwrites_none() {
    let expected = Shadow::expected(named("theirs"));
    let decision = reconcile(&HASH, &named("mine"), 1, Some(&expected), &knows("theirs"));
    assert_eq!((decision.edit, decision.fill), (None, None));
    assert_eq!(decision.write, Some(named("theirs")));
}

#[test]
fn values_that_no_store_can_show_are_none() {
    for (attribute, value) in [
        (Attribute::Name, Value::Text("x".repeat(VALUE_BYTES_MAX))),
        (Attribute::Name, Value::Int(1)),
        (Attribute::ModifiedMs, Value::Text("1".into())),
        (Attribute::ModifiedMs, Value::Int(i64::MAX)),
        (Attribute::User, Value::Bytes(vec![1])),
    ] {
        assert_eq!(attribute_of_value(attribute, Some(value.clone())), None, "{value:?}");
    }
}

/// The stamp of a cell: when it was written, and by whom.
type CellStamp = (u64, usize);

/// A device of the model: its store's row, its shadow, and its copy of the journal.
#[derive(Debug, Default)]
struct Device {
    row: Option<Row>,
    version: u64,
    shadow: Option<Shadow>,
    cells: BTreeMap<Attribute, (CellStamp, Option<AttributeValue>)>,
    /// It keeps a name and a media type, set at ingest, and drops all else.
    has_old_store: bool,
}

#[derive(Debug, Clone)]
enum Step {
    Add(usize, Attributes),
    Receive(usize),
    Edit(usize, Attribute, AttributeValue),
    Clear(usize, Attribute),
    Look(usize),
    /// The device looks, and crashes after its store took the row.
    LookAndCrash(usize),
    /// The shadow is one of an earlier version.
    Upgrade(usize),
    Exchange,
}

#[derive(Debug, Default)]
struct Model {
    devices: [Device; 2],
    now: u64,
}

impl Device {
    fn journal(&self) -> JournalRow {
        let attributes = self.cells.iter().map(|(a, (_, value))| (*a, value.clone())).collect();
        JournalRow { alive: true, attributes, ..JournalRow::default() }
    }

    /// The attributes that the store keeps of those it is given.
    fn kept(&self, given: &Attributes, is_ingest: bool) -> Attributes {
        let keeps = |attribute| {
            let is_old = matches!(attribute, Attribute::Name | Attribute::MediaType);
            !self.has_old_store || is_ingest && is_old
        };
        let kept = given.iter().filter(|(attribute, _)| keeps(*attribute));
        kept.map(|(attribute, value)| (attribute, value.clone())).collect()
    }

    fn write(&mut self, put: Option<&DraftPut>, stamp: CellStamp) {
        for (field, value) in put.map(|put| &put.set).into_iter().flatten() {
            let attribute = Attribute::of_field(field).unwrap();
            let new = (stamp, attribute_of_value(attribute, value.clone()));
            let cell = self.cells.entry(attribute).or_insert_with(|| new.clone());
            if new.0 > cell.0 {
                *cell = new;
            }
        }
    }
}

impl Model {
    fn step(&mut self, step: Step) {
        self.now += 1;
        match step {
            Step::Add(d, attributes) => {
                let device = &mut self.devices[d];
                let attributes = device.kept(&attributes, true);
                device.row.get_or_insert(Row { attributes, ..Row::default() });
            }
            Step::Receive(d) => {
                let is_there = self.devices[1 - d].row.is_some();
                let device = &mut self.devices[d];
                if is_there && device.row.is_none() {
                    let row = device.journal().row();
                    device.shadow = Some(Shadow::expected(row.clone()));
                    let attributes = device.kept(&row.attributes, true);
                    device.row = Some(Row { attributes, ..row });
                }
            }
            Step::Edit(d, attribute, value) => {
                let device = &mut self.devices[d];
                if let Some(row) = device.row.as_mut().filter(|_| !device.has_old_store) {
                    row.attributes.set(attribute, Some(value));
                    device.version += 1;
                }
            }
            Step::Clear(d, attribute) => {
                let cell = ((self.now, d), None);
                self.devices[d].cells.insert(attribute, cell);
            }
            Step::Look(d) => {
                self.look(d, false);
            }
            Step::LookAndCrash(d) => {
                self.look(d, true);
            }
            Step::Upgrade(d) => {
                if let Some(shadow) = &mut self.devices[d].shadow {
                    shadow.knows_attributes = false;
                    let rows =
                        [Some(&mut shadow.base), shadow.pending.as_mut(), shadow.written.as_mut()];
                    rows.into_iter()
                        .flatten()
                        .for_each(|row| row.attributes = Attributes::default());
                }
            }
            Step::Exchange => {
                let [one, two] = &mut self.devices;
                let cells = [one.cells.clone(), two.cells.clone()];
                for (from, to) in cells.iter().zip([two, one]) {
                    for (attribute, cell) in from {
                        let known = to.cells.entry(*attribute).or_insert_with(|| cell.clone());
                        if cell.0 > known.0 {
                            *known = cell.clone();
                        }
                    }
                }
            }
        }
    }

    /// Returns whether there was something to do.
    fn look(&mut self, d: usize, is_crash: bool) -> bool {
        let now = self.now;
        let device = &mut self.devices[d];
        let Some(row) = device.row.clone() else { return false };
        let (seen, journal) = (device.shadow.clone(), device.journal());
        let decision = reconcile(&HASH, &row, device.version, seen.as_ref(), &journal);
        let filled = if seen.is_none() { &decision.edit } else { &decision.fill };
        for (field, _) in fields(filled.as_ref()) {
            let attribute = Attribute::of_field(field).unwrap();
            assert!(!journal.attributes.contains_key(&attribute), "{field} is filled in twice");
        }
        device.write(decision.fill.as_ref(), (0, d));
        device.write(decision.edit.as_ref(), (now, d));
        device.shadow = Some(decision.shadow);
        let is_busy =
            decision.edit.is_some() || decision.fill.is_some() || decision.write.is_some();
        if let Some(write) = decision.write {
            let attributes = match device.has_old_store {
                true => row.attributes,
                false => write.attributes.clone(),
            };
            device.row = Some(Row { attributes: attributes.clone(), ..write.clone() });
            device.version += 1;
            if !is_crash {
                device.shadow = Some(written(&write, attributes, device.version));
            }
        }
        is_busy
    }
}

fn attribute_and_value() -> impl Strategy<Value = (Attribute, AttributeValue)> {
    (prop::sample::select(Attribute::ALL.to_vec()), 1..5_i64).prop_map(|(attribute, n)| {
        let value = match attribute.is_time() {
            true => AttributeValue::TimeMs(n),
            false => AttributeValue::Text(n.to_string()),
        };
        (attribute, value)
    })
}

fn step() -> impl Strategy<Value = Step> {
    let attributes = prop::collection::vec(attribute_and_value(), 0..4);
    prop_oneof![
        (0..2_usize, attributes).prop_map(|(d, of)| Step::Add(d, of.into_iter().collect())),
        (0..2_usize).prop_map(Step::Receive),
        (0..2_usize, attribute_and_value()).prop_map(|(d, (a, value))| Step::Edit(d, a, value)),
        (0..2_usize, attribute_and_value()).prop_map(|(d, (a, _))| Step::Clear(d, a)),
        (0..2_usize).prop_map(Step::Look),
        (0..2_usize).prop_map(Step::LookAndCrash),
        (0..2_usize).prop_map(Step::Upgrade),
        Just(Step::Exchange),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_both_stores_end_with_the_attributes_of_the_journal_and_rest(
        has_old_store in any::<bool>(),
        steps in prop::collection::vec(step(), 0..40),
    ) {
        let mut model = Model::default();
        model.devices[1].has_old_store = has_old_store;
        for step in steps {
            model.step(step);
        }
        let mut looks = 0;
        loop {
            model.step(Step::Exchange);
            model.now += 1;
            let is_busy = [0, 1].map(|d| model.look(d, false));
            if is_busy == [false, false] {
                break;
            }
            looks += 1;
            prop_assert!(looks < 8, "it does not come to rest: {model:?}");
        }
        prop_assert_eq!(&model.devices[0].cells, &model.devices[1].cells);
        for device in model.devices.iter().filter(|device| !device.has_old_store) {
            let Some(row) = &device.row else { continue };
            for (attribute, (_, value)) in &device.cells {
                prop_assert_eq!(row.attributes.get(*attribute), value.as_ref());
            }
        }
    }
}
