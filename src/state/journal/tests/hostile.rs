//! Ops that are forged, malformed, forked or from the future.

use prost::Message as _;

use super::*;
use crate::core::ids::OpHash;
use crate::core::journal::message::{ClockEntry, Head};
use crate::core::journal::op::{MemberChange, Put, SignedOp};
use crate::core::journal::stamp::Hlc;
use crate::core::limits::{FUTURE_MS_MAX, OP_SEQ_MAX};
use crate::wire::proto::journal as proto;

/// A body that sets a field of a record.
pub(super) fn body(seq: u64, prev: Option<OpHash>, hlc: Hlc, value: i64) -> Body {
    let set = vec![("f".to_owned(), Some(Value::Int(value)))];
    let key = put("1").key;
    let put = Put { key, create: true, set, add: vec![], remove: vec![] };
    Body { seq, prev, hlc, changes: vec![OpChange::Put(put)] }
}

pub(super) fn now() -> Hlc {
    Hlc::from_ms(NOW_MS)
}

#[test]
fn an_op_is_good_for_its_author_log_and_group_only() {
    let device = Device::founder();
    let group = device.group_id();
    let op = craft(&device.identity, &group, 7, body(1, None, now(), 1)).signed().clone();
    assert!(verify(&group, op.clone()).is_ok());
    let forged = |change: fn(&mut SignedOp)| {
        let mut op = op.clone();
        change(&mut op);
        verify(&group, op)
    };
    assert!(matches!(forged(|op| op.sig[3] ^= 1), Err(OpError::Signature(_))));
    assert!(matches!(forged(|op| op.log.nonce[0] ^= 1), Err(OpError::Signature(_))));
    assert!(matches!(forged(|op| op.log.author.0 = [3; 32]), Err(OpError::Signature(_))));
    let longer = |op: &mut SignedOp| op.body = [&op.body[..], &[0x78, 1]].concat().into();
    assert!(matches!(forged(longer), Err(OpError::Signature(_))));
    let other = GroupId([4; 32]);
    assert!(matches!(verify(&other, op.clone()), Err(OpError::Signature(_))));
    let elsewhere = craft(&device.identity, &other, 7, body(1, None, now(), 1));
    let mut device = device;
    let id = device.id();
    let received = device.journal.receive(&id, &[elsewhere], NOW_MS).unwrap();
    assert_eq!(received.refused[0].why, RefusedWhy::OtherGroup);
}

#[test]
fn a_flipped_bit_anywhere_in_an_op_is_found() {
    let device = Device::founder();
    let group = device.group_id();
    let op = craft(&device.identity, &group, 7, body(1, None, now(), 1)).signed().clone();
    let flipped = |flip: &dyn Fn(&mut SignedOp)| {
        let mut op = op.clone();
        flip(&mut op);
        assert!(matches!(verify(&group, op), Err(OpError::Signature(_))));
    };
    for bit in 0..8 * op.body.len() {
        flipped(&|op| {
            let mut bytes = op.body.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            op.body = bytes.into();
        });
    }
    (0..8 * 64).for_each(|bit| flipped(&|op| op.sig[bit / 8] ^= 1 << (bit % 8)));
    (0..8 * 16).for_each(|bit| flipped(&|op| op.log.nonce[bit / 8] ^= 1 << (bit % 8)));
    (0..8 * 32).for_each(|bit| flipped(&|op| op.log.author.0[bit / 8] ^= 1 << (bit % 8)));
}

#[test]
fn what_was_signed_for_another_purpose_is_no_op() {
    let device = Device::founder();
    let group = device.group_id();
    let op = craft(&device.identity, &group, 7, body(1, None, now(), 1));
    let (log, bytes) = (op.log(), op.signed().body.clone());
    let signed = crate::core::journal::op::signed_bytes(&log, &bytes);
    let later = String::from_utf8_lossy(&signed[..21]).replace("/1", "/2").into_bytes();
    for other in [
        bytes.to_vec(),
        [&log.0[..], &bytes].concat(),
        [&later[..], &signed[21..]].concat(),
        signed[1..].to_vec(),
        blake3::hash(&signed).as_bytes().to_vec(),
    ] {
        assert_ne!(other, signed);
        let forged = SignedOp { sig: device.identity.sign(&other), ..op.signed().clone() };
        assert!(matches!(verify(&group, forged), Err(OpError::Signature(_))));
    }
}

#[test]
fn keys_of_small_order_and_signatures_of_another_form_are_refused() {
    let device = Device::founder();
    let group = device.group_id();
    let op = craft(&device.identity, &group, 7, body(1, None, now(), 1)).signed().clone();
    // The order of the group, little-endian (RFC 8032, 5.1). Added to S it gives the same equation.
    let order: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde,
        0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let mut malleable = op.clone();
    let mut carry = 0;
    for (byte, add) in malleable.sig[32..].iter_mut().zip(order) {
        let sum = u16::from(*byte) + u16::from(add) + carry;
        (*byte, carry) = (sum.to_le_bytes()[0], sum >> 8);
    }
    assert_eq!(carry, 0);
    assert!(matches!(verify(&group, malleable), Err(OpError::Signature(_))));
    // With the neutral point as key and as R, and S = 0, the equation holds for any message. It has
    // two encodings; the second is not canonical.
    let neutral = |first: u8, rest: u8, last: u8| {
        let mut point = [rest; 32];
        (point[0], point[31]) = (first, last);
        point
    };
    for point in [neutral(1, 0, 0), neutral(0xee, 0xff, 0x7f), [0; 32]] {
        let mut weak = op.clone();
        weak.log.author = NodeId(point);
        weak.sig = [0; 64];
        weak.sig[..32].copy_from_slice(&neutral(1, 0, 0));
        assert!(matches!(verify(&group, weak), Err(OpError::Signature(_))));
    }
}

#[test]
fn fields_of_a_later_version_in_a_signed_body_are_kept_and_passed_on() {
    let mut devices = Device::group(3);
    let [a, b, c] = &mut devices[..] else { unreachable!() };
    let plain = craft(&a.identity, &a.group_id(), 7, body(1, None, now(), 5));
    // Field 99 of the body, which this version does not know.
    let bytes = [&plain.signed().body[..], &[0x98, 6, 42]].concat();
    let message = crate::core::journal::op::signed_bytes(&plain.log(), &bytes);
    let sig = a.identity.sign(&message);
    let op = SignedOp { body: bytes.into(), sig, ..plain.signed().clone() };
    let op = verify(&a.group_id(), op).unwrap();
    let from = a.id();
    b.journal.receive(&from, std::slice::from_ref(&op), NOW_MS).unwrap();
    assert_eq!(b.field("1", "f"), Some(5), "what is known of it counts");
    b.restart();
    push(b, c);
    assert!(c.ops().contains(&op));
    assert_eq!((c.field("1", "f"), c.digest()), (Some(5), b.digest()));
    b.fsck();
    c.fsck();
    assert_eq!(c.reader.check_signatures().unwrap(), Vec::<String>::new());
}

#[test]
fn what_was_signed_is_passed_on_byte_for_byte() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    a.set("1", "f", 1);
    sync(a, b);
    let bytes = |device: &Device| -> BTreeSet<(Vec<u8>, [u8; 64])> {
        device.ops().iter().map(|op| (op.signed().body.to_vec(), op.signed().sig)).collect()
    };
    assert_eq!(bytes(a), bytes(b));
}

#[test]
fn an_op_of_the_future_is_held_back_until_its_time() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    a.now_ms += FUTURE_MS_MAX + 1;
    a.set("1", "f", 1);
    let before = (b.cells(), b.has());
    let refused = push(a, b);
    let until_ms = NOW_MS + 1;
    assert_eq!(
        refused.iter().map(|r| r.why).collect::<Vec<_>>(),
        [RefusedWhy::Future { until_ms }]
    );
    assert_eq!((b.cells(), b.has()), before);
    b.now_ms = until_ms;
    assert_eq!(push(a, b), vec![]);
    assert_eq!(b.field("1", "f"), Some(1));
    // A device that has seen the value can overwrite it even though its clock is behind.
    b.set("1", "f", 2);
    push(b, a);
    assert_eq!(a.field("1", "f"), Some(2));
}

#[test]
fn a_far_future_is_refused_and_breaks_no_clock() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    let op = craft(&a.identity, &a.group_id(), 7, body(1, None, Hlc::MAX, 1));
    let received = b.journal.receive(&a.id(), &[op], NOW_MS).unwrap();
    assert!(matches!(received.refused[0].why, RefusedWhy::Future { .. }));
    let written = b.set("1", "f", 2).unwrap();
    assert_eq!(written.stamp.hlc.ms(), NOW_MS);
}

#[test]
fn an_op_of_the_highest_number_ends_its_log_and_no_more() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    let last = body(OP_SEQ_MAX, Some(OpHash([8; 32])), now(), 1);
    let op = craft(&a.identity, &a.group_id(), 7, last);
    b.journal.receive(&a.id(), std::slice::from_ref(&op), NOW_MS).unwrap();
    let claim = |seq| ClockEntry {
        log: op.log(),
        seq,
        head: Head::default(),
        above: SetDigest::default(),
        forked: false,
        withheld: false,
    };
    assert_eq!(b.journal.jump(&[claim(OP_SEQ_MAX)]).unwrap(), [op.log()]);
    b.fsck();
    // An op stored before there was a bound has no next number either.
    let highest = u64::try_from(i64::MAX).unwrap();
    let meddle = "UPDATE ops SET seq = ?2 WHERE seq = ?1";
    let seqs = [OP_SEQ_MAX, highest].map(|seq| i64::try_from(seq).unwrap());
    b.journal.connection.execute(meddle, seqs).unwrap();
    assert_eq!(b.journal.jump(&[claim(highest)]).unwrap(), [op.log()]);
}

#[test]
fn a_signed_op_of_a_number_beyond_all_is_refused_before_it_comes_to_the_journal() {
    let device = Device::founder();
    let group = device.group_id();
    let good =
        craft(&device.identity, &group, 7, body(OP_SEQ_MAX, Some(OpHash([8; 32])), now(), 1));
    let signed = |seq: u64| {
        let mut body = proto::OpBody::decode(&good.signed().body[..]).unwrap();
        body.seq = seq;
        let bytes = body.encode_to_vec();
        let message = crate::core::journal::op::signed_bytes(&good.log(), &bytes);
        let sig = device.identity.sign(&message);
        verify(&group, SignedOp { body: bytes.into(), sig, ..good.signed().clone() })
    };
    assert!(signed(OP_SEQ_MAX).is_ok());
    for seq in [OP_SEQ_MAX + 1, i64::MAX.cast_unsigned(), u64::MAX] {
        assert!(matches!(signed(seq), Err(OpError::Body(_))), "{seq}");
    }
}

#[test]
fn ops_of_authors_nobody_added_are_refused_until_somebody_does() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    let stranger = Identity::from_bytes(&[77; 32]);
    let op = craft(&stranger, &a.group_id(), 1, body(1, None, now(), 5));
    let received = b.journal.receive(&a.id(), std::slice::from_ref(&op), NOW_MS).unwrap();
    assert_eq!(received.refused[0].why, RefusedWhy::UnknownAuthor);
    assert_eq!(b.reader.logs().unwrap().len(), 1, "a refused op leaves no log behind");
    a.journal.add(&stranger.node_id, "friend", NOW_MS).unwrap();
    push(a, b);
    let received = b.journal.receive(&a.id(), &[op], NOW_MS).unwrap();
    assert_eq!((received.applied, received.refused.len()), (1, 0));
}

#[test]
fn a_stranger_cannot_found_the_group_again() {
    let mut device = Device::founder();
    let stranger = Identity::from_bytes(&[77; 32]);
    let genesis = MemberChange::Genesis { nonce: [1; 16], name: "evil".into() };
    let body = Body { seq: 1, prev: None, hlc: now(), changes: vec![OpChange::Member(genesis)] };
    let op = craft(&stranger, &device.group_id(), 1, body);
    let from = device.id();
    let received = device.journal.receive(&from, &[op], NOW_MS).unwrap();
    assert_eq!(received.refused[0].why, RefusedWhy::UnknownAuthor);
}

#[test]
fn a_forked_log_is_found_named_and_merged_in_any_order() {
    let mut devices = Device::group(3);
    let evil = Identity::from_bytes(&[3; 32]);
    let group = devices[0].group_id();
    let first = craft(&evil, &group, 7, body(1, None, now(), 1));
    let left = craft(&evil, &group, 7, body(2, Some(first.hash()), Hlc(now().0 + 1), 2));
    let right = craft(&evil, &group, 7, body(2, Some(first.hash()), Hlc(now().0 + 1), 3));
    let further = craft(&evil, &group, 7, body(3, Some(right.hash()), Hlc(now().0 + 2), 4));
    let from = evil.node_id;
    let orders: [Vec<&VerifiedOp>; 4] = [
        vec![&first, &left, &right, &further],
        vec![&further, &left, &first, &right],
        vec![&first, &left, &further, &right],
        vec![&right, &further, &left, &first],
    ];
    let mut ends = Vec::new();
    for order in orders {
        let mut device = devices[0].admit(20 + u8::try_from(ends.len()).unwrap());
        push(&devices[0], &mut device);
        let mut forked = Vec::new();
        for op in order {
            let received = device.journal.receive(&from, std::slice::from_ref(op), NOW_MS).unwrap();
            assert_eq!(received.refused, vec![]);
            forked.extend(received.forked);
        }
        assert_eq!(forked, [first.log()], "said once");
        device.fsck();
        let entry = device.clock().entries.into_iter().find(|e| e.log == first.log()).unwrap();
        let live = device.live();
        let live = [&first, &left, &right, &further].map(|op| live.contains(&op.hash().0));
        ends.push((device.cells(), live, entry));
    }
    assert_eq!(ends[0].0, model([&first, &left, &right, &further]));
    assert!(ends.iter().all(|end| *end == ends[0]), "{ends:#?}");
}

#[test]
fn a_fork_that_is_seen_by_its_chain_alone_is_a_fork() {
    let mut devices = Device::group(3);
    let evil = Identity::from_bytes(&[3; 32]);
    let group = devices[0].group_id();
    let first = craft(&evil, &group, 7, body(1, None, now(), 1));
    let odd = craft(&evil, &group, 7, body(2, Some(OpHash([8; 32])), Hlc(now().0 + 1), 2));
    for ops in [[&first, &odd], [&odd, &first]] {
        let mut device = devices[1].admit(40 + ops[0].body().seq as u8);
        let mut forked = Vec::new();
        for op in ops {
            let from = evil.node_id;
            push(&devices[0], &mut device);
            forked.extend(
                device.journal.receive(&from, std::slice::from_ref(op), NOW_MS).unwrap().forked,
            );
        }
        assert_eq!(forked, [first.log()]);
        device.fsck();
        push(&device, &mut devices[0]);
        devices[0].fsck();
    }
}

#[test]
fn a_device_shown_an_op_of_its_own_that_it_does_not_know_begins_another_log() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    a.set("1", "f", 1);
    let backup = tempfile::tempdir().unwrap();
    durable::copy(a.dir.path(), backup.path());
    a.set("1", "f", 2);
    sync(a, b);
    a.restore(backup.path());
    let old = a.open_log();
    let above = b.ops().into_iter().filter(|op| op.log() == old).max_by_key(|op| op.body().seq);
    let received = a.journal.receive(&b.id(), &[above.unwrap()], NOW_MS).unwrap();
    assert!(received.rotated);
    assert_eq!(a.field("1", "f"), Some(2), "what was lost is back");
    let written = a.set("1", "f", 3).unwrap();
    assert_ne!(a.open_log(), old);
    assert_eq!((written.stamp.log, written.stamp.seq), (a.open_log(), 1));
    sync(a, b);
    assert_eq!((b.field("1", "f"), b.digest()), (Some(3), a.digest()));
    assert!(b.clock().entries.iter().all(|entry| !entry.forked));
    a.fsck();
    b.fsck();
}

#[test]
fn a_restored_device_that_writes_first_forks_its_log_and_loses_nothing() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    let backup = tempfile::tempdir().unwrap();
    durable::copy(a.dir.path(), backup.path());
    a.set("1", "f", 1);
    sync(a, b);
    a.restore(backup.path());
    let old = a.open_log();
    a.set("2", "g", 2);
    for _ in 0..2 {
        let all = BTreeMap::new();
        push_above(b, a, &all);
        push_above(a, b, &all);
    }
    assert_ne!(a.set("3", "h", 3).unwrap().stamp.log, old);
    push(a, b);
    for device in [&mut *a, &mut *b] {
        assert_eq!((device.field("1", "f"), device.field("2", "g")), (Some(1), Some(2)));
        assert!(device.clock().entries.iter().any(|entry| entry.log == old && entry.forked));
        device.fsck();
    }
    assert_eq!(a.clock().entries, {
        sync(a, b);
        b.clock().entries
    });
    assert_eq!(a.digest(), b.digest());
}

#[test]
fn a_kind_of_change_nobody_knows_yet_is_kept_and_passed_on() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    // seq 1, hlc, and one change with field 77 of a later version.
    let hlc = now().0.to_le_bytes();
    let body = [&[0x08, 1, 0x11][..], &hlc, &[0x22, 4, 0xea, 4, 1, 0]].concat();
    let log = LogInfo { author: a.id(), nonce: [5; 16] };
    let id = log.id(&a.group_id());
    let message = crate::core::journal::op::signed_bytes(&id, &body);
    let op = SignedOp { log, sig: a.identity.sign(&message), body: body.into() };
    let op = verify(&a.group_id(), op).unwrap();
    let received = b.journal.receive(&a.id(), std::slice::from_ref(&op), NOW_MS).unwrap();
    assert_eq!(received.applied, 1);
    b.journal.prune(NOW_MS + (1 << 40), 1000).unwrap();
    assert!(push(b, a).is_empty());
    assert!(a.ops().contains(&op));
    assert_eq!(a.reader.stats().unwrap().opaque_ops, 1);
    assert_eq!(a.digest(), b.digest(), "a difference would be seen");
    a.fsck();
    b.restart();
    b.fsck();
}

#[test]
fn an_op_of_which_a_later_version_reads_more_comes_to_what_it_makes_of_a_new_one() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    let mut twice = body(1, None, now(), 1);
    twice.changes.extend(body(1, None, now(), 2).changes);
    let (second, changes) = (twice.changes[1].clone(), twice.changes.clone());
    let op = craft(&a.identity, &a.group_id(), 7, Body { changes, ..twice });
    b.journal.receive(&a.id(), std::slice::from_ref(&op), NOW_MS).unwrap();
    let half = op.unread(|change| *change == second);
    a.journal.receive(&b.id(), &[half], NOW_MS).unwrap();
    assert_eq!((a.field("1", "f"), b.field("1", "f")), (Some(1), Some(2)));
    a.upgrade();
    assert_eq!((a.cells(), a.digest()), (b.cells(), b.digest()));
    a.fsck();
}

#[test]
fn an_op_that_turns_out_malformed_after_an_upgrade_stays_unread() {
    let mut device = Device::founder();
    let op = craft(&device.identity, &device.group_id(), 7, body(1, None, now(), 1));
    let op = op.unread(|_| true);
    device.journal.receive(&device.id(), &[op], NOW_MS).unwrap();
    device.set("2", "f", 2);
    let malform = "UPDATE ops SET body = x'ff' WHERE opaque = 1";
    device.journal.connection.execute(malform, []).unwrap();
    device.upgrade();
    assert_eq!(device.field("2", "f"), Some(2));
    assert_eq!(device.reader.stats().unwrap().opaque_ops, 1);
}

#[test]
fn what_an_earlier_version_could_not_read_is_read_after_the_upgrade() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    a.set("1", "f", 1);
    a.event("log");
    sync(a, b);
    let expected = (b.cells(), b.digest());
    let cursor = b.reader.cursor_now().unwrap();
    let last_arr = b.ops().len() as u64;
    // As if this version had understood nothing of these ops.
    let forget = "UPDATE ops SET opaque = 1, refs = 0 WHERE seq = 3 OR seq = 4;
        DELETE FROM cells; DELETE FROM events; DELETE FROM streams; DELETE FROM records;
        UPDATE meta SET v = x'00' WHERE k = 'kinds'";
    let shares = b.cells().into_iter().map(|((model, owner, id, field, elem), value)| {
        crate::core::journal::cell::cell_digest(&model, owner.as_ref(), &id, &field, &elem, &value)
    });
    let mut digest = schema::meta_set(&b.journal.connection, "digest").unwrap().unwrap();
    shares.for_each(|share| digest.remove(&share));
    let event =
        b.ops().into_iter().find(|op| matches!(op.body().changes[..], [OpChange::Event(_)]));
    digest.remove(&crate::core::journal::cell::event_digest(&event.unwrap().hash(), 0));
    b.journal.connection.execute_batch(forget).unwrap();
    let meddle = "UPDATE meta SET v = ?1 WHERE k = 'digest'";
    b.journal.connection.execute(meddle, [digest.to_bytes()]).unwrap();
    b.restart();
    assert_eq!((b.cells(), b.digest()), expected);
    b.fsck();
    let page = b.reader.changes(None, cursor.as_ref(), 9).unwrap().unwrap();
    let ids: Vec<_> = page.changes.iter().map(|change| change.id.as_slice()).collect();
    assert_eq!(ids, [b"1"], "whoever watches hears of it");
    let page = b.reader.events("log", (last_arr, 0), 9).unwrap();
    assert_eq!(page.events.len(), 1, "whoever follows the stream reads it");
}
