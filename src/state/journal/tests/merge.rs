//! Devices that receive the same ops end in the same state, whatever the order.

use proptest::prelude::*;

use super::*;
use crate::core::ids::OpHash;

/// An event on a device, by its number.
#[derive(Debug, Clone)]
enum Step {
    Set(usize, u8, u8, i64),
    Owned(usize, u8, i64),
    Tag(usize, u8, u8, bool),
    Delete(usize, u8),
    Event(usize),
    Push(usize, usize),
    Prune(usize),
    Restart(usize),
    Tick(usize, i64),
}

const DEVICES: usize = 3;

fn step() -> impl Strategy<Value = Step> {
    let device = || 0..DEVICES;
    prop_oneof![
        4 => (device(), 0..2_u8, 0..2_u8, any::<i64>()).prop_map(|(d, id, f, v)| Step::Set(d, id, f, v)),
        1 => (device(), 0..2_u8, any::<i64>()).prop_map(|(d, id, v)| Step::Owned(d, id, v)),
        4 => (device(), 0..2_u8, 0..2_u8, any::<bool>()).prop_map(|(d, id, t, a)| Step::Tag(d, id, t, a)),
        1 => (device(), 0..2_u8).prop_map(|(d, id)| Step::Delete(d, id)),
        1 => device().prop_map(Step::Event),
        4 => (device(), device()).prop_map(|(a, b)| Step::Push(a, b)),
        2 => device().prop_map(Step::Prune),
        1 => device().prop_map(Step::Restart),
        1 => (device(), -400_000..400_000_i64).prop_map(|(d, ms)| Step::Tick(d, ms)),
    ]
}

/// All ops ever written, collected before any device can drop one.
#[derive(Default)]
struct Ever(BTreeMap<OpHash, VerifiedOp>);

impl Ever {
    fn gather(&mut self, device: &Device) {
        for op in device.ops() {
            self.0.insert(op.hash(), op);
        }
    }

    /// J1: the cells are at least what all ops up to the clock make.
    fn check(&self, device: &Device) {
        let cells = device.cells();
        let has = device.has();
        let covered = self
            .0
            .values()
            .filter(|op| has.get(&op.log()).is_some_and(|seq| op.body().seq <= *seq));
        for (cell, value) in model(covered) {
            let clear = (cell.0.clone(), cell.1, cell.2.clone(), String::new(), "x".to_owned());
            let held = cells.get(&cell).is_some_and(|held| *held >= value)
                || cells.get(&clear).is_some_and(|clear| clear.stamp >= value.stamp);
            assert!(held, "{cell:?} is less than what the clock claims");
        }
    }
}

fn run(devices: &mut [Device], ever: &mut Ever, step: &Step) {
    match step {
        Step::Set(d, id, field, value) => {
            devices[*d].set(&id.to_string(), &format!("f{field}"), *value);
        }
        Step::Owned(d, id, value) => {
            let mut put = put(&id.to_string());
            put.key.owned = true;
            put.set.insert("f".into(), Some(Value::Int(*value)));
            devices[*d].write(vec![DraftChange::Put(put)]);
        }
        Step::Tag(d, id, tag, add) => {
            devices[*d].tag(&id.to_string(), &tag.to_string(), *add);
        }
        Step::Delete(d, _) | Step::Event(d) if devices[*d].old => {}
        Step::Delete(d, id) => drop(devices[*d].delete(&id.to_string())),
        Step::Event(d) => drop(devices[*d].event("log")),
        Step::Push(a, b) if a != b => {
            let (low, high) = (*a.min(b), *a.max(b));
            let (head, tail) = devices.split_at_mut(high);
            let (low, high) = (&mut head[low], &mut tail[0]);
            let (from, to) = if a < b { (low, high) } else { (high, low) };
            push(from, to);
        }
        Step::Push(..) => {}
        Step::Prune(d) => {
            ever.gather(&devices[*d]);
            let device = &mut devices[*d];
            let before = device.clock().digest;
            device.journal.prune(device.now_ms, 1000).unwrap();
            assert_eq!(device.clock().digest, before, "pruning changed the digest");
        }
        Step::Restart(d) => devices[*d].restart(),
        Step::Tick(d, ms) => {
            let device = &mut devices[*d];
            device.now_ms =
                device.now_ms.saturating_add_signed(*ms).clamp(NOW_MS, NOW_MS + 200_000);
        }
    }
    for device in devices.iter() {
        ever.gather(device);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn devices_that_meet_end_the_same_whatever_happened(steps in prop::collection::vec(step(), 1..50)) {
        let mut devices = Device::group(u8::try_from(DEVICES).unwrap());
        let mut ever = Ever::default();
        let mut clocks: Vec<_> = devices.iter().map(Device::has).collect();
        for step in &steps {
            run(&mut devices, &mut ever, step);
            for (device, before) in devices.iter().zip(&mut clocks) {
                ever.check(device);
                let now = device.has();
                for (log, seq) in before.iter() {
                    prop_assert!(now[log] >= *seq, "a clock went back");
                }
                *before = now;
            }
        }
        sync_all(&mut devices);
        let expected = model(ever.0.values());
        for device in &mut devices {
            prop_assert_eq!(&device.cells(), &expected);
            prop_assert_eq!(device.reader.fsck().unwrap(), Vec::<String>::new());
            ever.check(device);
        }
        let first = &devices[0];
        for device in &devices[1..] {
            prop_assert_eq!(device.digest(), first.digest());
            prop_assert_eq!(device.live(), first.live());
            prop_assert_eq!(device.has(), first.has());
        }
        // A device that joins last ends in the same state, despite dropped ops.
        let mut late = devices[0].admit(9);
        sync(&mut devices[0], &mut late);
        prop_assert_eq!(&late.cells(), &expected);
        prop_assert_eq!(late.digest(), devices[0].digest());
        prop_assert_eq!(late.has(), devices[0].has());
        late.fsck();
    }

    #[test]
    fn a_device_that_is_upgraded_late_ends_the_same(
        steps in prop::collection::vec(step(), 1..50),
        at in any::<prop::sample::Index>(),
    ) {
        let mut devices = Device::group(u8::try_from(DEVICES).unwrap());
        devices[2].old = true;
        let mut ever = Ever::default();
        let upgraded = at.index(steps.len());
        for (n, step) in steps.iter().enumerate() {
            if n == upgraded {
                devices[2].upgrade();
            }
            run(&mut devices, &mut ever, step);
            devices.iter().filter(|device| !device.old).for_each(|device| ever.check(device));
        }
        sync_all(&mut devices);
        let expected = model(ever.0.values());
        let first = (devices[0].digest(), devices[0].live(), devices[0].has());
        for device in &mut devices {
            prop_assert_eq!(&device.cells(), &expected);
            prop_assert_eq!(device.reader.fsck().unwrap(), Vec::<String>::new());
            prop_assert_eq!(&(device.digest(), device.live(), device.has()), &first);
        }
    }

    #[test]
    fn any_order_and_repetition_of_ops_makes_the_same(
        steps in prop::collection::vec(step(), 1..30),
        order in prop::collection::vec((any::<prop::sample::Index>(), 1..6_usize), 0..80),
    ) {
        let mut devices = Device::group(u8::try_from(DEVICES).unwrap());
        let mut ever = Ever::default();
        ever.gather(&devices[0]);
        for step in steps.iter().filter(|step| !matches!(step, Step::Prune(_))) {
            run(&mut devices, &mut ever, step);
        }
        let ops: Vec<VerifiedOp> = ever.0.values().cloned().collect();
        let expected = model(&ops);
        let mut late = devices[0].admit(9);
        let from = devices[0].id();
        push(&devices[0], &mut late);
        for (at, n) in order {
            let at = at.index(ops.len());
            let batch = &ops[at..(at + n).min(ops.len())];
            let received = late.journal.receive(&from, batch, late.now_ms).unwrap();
            prop_assert_eq!(received.refused, vec![]);
            ever.check(&late);
        }
        late.journal.receive(&from, &ops, late.now_ms).unwrap();
        let again = late.journal.receive(&from, &ops, late.now_ms).unwrap();
        prop_assert_eq!((again.applied, again.known), (0, ops.len()));
        prop_assert_eq!(late.cells(), expected);
        for entry in late.clock().entries {
            prop_assert!(entry.above.is_empty() && !entry.forked, "all is covered: {entry:?}");
        }
        late.fsck();
    }
}

#[test]
fn an_add_that_was_not_seen_survives_a_removal_unless_it_is_earlier() {
    for (later_ms, stays) in [(1, true), (0, false)] {
        let mut devices = Device::group(2);
        let [a, b] = &mut devices[..] else { unreachable!() };
        a.now_ms += 1000;
        a.tag("1", "red", true);
        // The other device adds the same element without having heard of it.
        b.now_ms += if stays { 1000 + later_ms } else { 0 };
        b.tag("1", "red", true);
        a.tag("1", "red", false);
        sync(a, b);
        for device in [a, b] {
            let tagged = device.record("1").unwrap().sets.contains_key("tags");
            assert_eq!(tagged, stays, "an add {later_ms} ms later");
        }
    }
}

#[test]
fn a_delete_wins_over_what_it_did_not_see_and_a_later_create_over_the_delete() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    a.set("1", "f", 1);
    sync(a, b);
    b.now_ms += 5;
    b.delete("1");
    a.now_ms += 3;
    a.set("1", "g", 2);
    sync(a, b);
    assert_eq!((a.record("1"), b.record("1")), (None, None));
    a.set("1", "h", 3);
    sync(a, b);
    for device in [a, b] {
        assert_eq!(device.field("1", "h"), Some(3));
        assert_eq!(device.field("1", "f"), None, "no part of the deleted record comes back");
    }
}

#[test]
fn a_removal_that_arrives_before_its_add_still_removes() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    a.tag("1", "red", true);
    a.tag("1", "red", false);
    let mut ops: Vec<_> = a.ops().into_iter().filter(|op| op.log() == a.open_log()).collect();
    ops.reverse();
    b.journal.receive(&a.id(), &ops, NOW_MS).unwrap();
    assert!(b.record("1").unwrap().sets.is_empty());
    assert_eq!(b.digest(), a.digest());
}

#[test]
fn two_devices_that_remove_the_same_element_agree_on_which_op_is_live() {
    let mut devices = Device::group(3);
    devices[0].tag("1", "red", true);
    sync_all(&mut devices);
    devices[1].tag("1", "red", false);
    devices[2].tag("1", "red", false);
    sync_all(&mut devices);
    let live = devices[0].live();
    assert!(devices.iter().all(|device| device.live() == live));
}

#[test]
fn a_gap_is_jumped_only_up_to_an_op_that_is_held() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    let log = a.open_log();
    let before = b.has()[&log];
    for n in 0..5 {
        a.set("1", "f", n);
    }
    let top = a.has()[&log];
    let last = a.ops().pop().unwrap();
    b.journal.receive(&a.id(), &[last], NOW_MS).unwrap();
    assert_eq!(b.has()[&log], before);
    let mut claim = a.clock().entries;
    for entry in &mut claim {
        entry.seq = 1 << 60;
    }
    b.journal.jump(&claim).unwrap();
    assert_eq!(b.has()[&log], top);
    assert_eq!(b.digest(), a.digest());
    // A claim about an unknown log or number changes no progress.
    claim.iter_mut().for_each(|entry| entry.log = LogId([9; 16]));
    assert_eq!(b.journal.jump(&claim).unwrap(), vec![]);
    b.fsck();
}

#[test]
fn what_is_held_above_the_clock_is_summed_until_the_clock_has_it() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    let log = a.open_log();
    for n in 0..4 {
        a.set(&n.to_string(), "f", n);
    }
    let ops = a.ops();
    let [.., third, last] = &ops[..] else { unreachable!() };
    b.journal.receive(&a.id(), &[third.clone(), last.clone()], NOW_MS).unwrap();
    let entry = |device: &Device| *device.clock().entries.iter().find(|e| e.log == log).unwrap();
    let at = entry(b).seq;
    assert_eq!(entry(b).above, a.reader.above(&log, third.body().seq - 1).unwrap());
    assert_eq!(entry(b).above, b.reader.above(&log, at).unwrap());
    b.fsck();
    push(a, b);
    assert!(entry(b).above.is_empty());
    assert_eq!(entry(b), entry(a));
}
