//! Journals that replicate over byte streams: the final state of two and three devices, and what
//! one withstands from a peer that cuts, stalls or lies.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use can_sync::clock::wall_ms;
use can_sync::core::close::CloseCode;
use can_sync::core::journal::message::{Clock, Hello, JournalMessage, Ops, RefuseCode, VERSION};
use can_sync::core::journal::op::SignedOp;
use can_sync::core::journal::session::End;
use can_sync::replica::replicate::Ended;
use can_sync::replica::status::JournalPeerState;
use can_sync::state::journal::Journal;

#[path = "journal_stream/node.rs"]
mod node;

use node::{Link, Node, Puppet, SOON, Tie, draft, equal, until};

// ---- two -------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_op_reaches_a_connected_peer_at_once() {
    let a = Node::founder();
    let b = a.welcome().await;
    let link = Link::between(&a, &b);
    link.in_sync().await;
    // Slower than a loaded machine needs, but faster than any pause of the protocol.
    let mut fastest = Duration::MAX;
    for n in 0..5 {
        let (from, to) = if n % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let started = tokio::time::Instant::now();
        from.write(draft(n, 100)).await;
        until("the op", async || to.has(n).await).await;
        fastest = fastest.min(started.elapsed());
    }
    assert!(fastest < Duration::from_millis(100), "{fastest:?}");
    equal(&[&a, &b]).await;
    link.in_sync().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_joins_late_gets_everything_and_gives_what_it_wrote() {
    let a = Node::founder();
    a.write_many(0..1500, 200).await;
    // Dead ops, so that there are gaps to jump.
    a.write_many(0..300, 200).await;
    a.journal.run(|journal, now_ms| journal.prune(now_ms, 10_000)).await.unwrap();
    let b = a.welcome().await;
    b.write_many(2_000..2_100, 10).await;
    let link = Link::between(&a, &b);
    link.in_sync().await;
    equal(&[&a, &b]).await;
    a.check().await;
    b.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_write_without_a_pause_and_end_equal() {
    let a = Node::founder();
    let b = a.welcome().await;
    let link = Link::between(&a, &b);
    let writes = async |node: &Node, of: u64| {
        for n in 0..150 {
            // The same records from both sides.
            node.write(draft(n % 40, 10 + of as usize)).await;
        }
    };
    tokio::join!(writes(&a, 1), writes(&b, 2));
    equal(&[&a, &b]).await;
    link.in_sync().await;
    a.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_cut_again_and_again_goes_on_where_it_was() {
    let a = Node::founder();
    a.write_many(0..2_000, 300).await;
    let b = a.welcome().await;
    let whole = Link::cut_after(&a, &a.welcome().await, usize::MAX);
    whole.in_sync().await;
    let whole_bytes = whole.bytes();
    let mut crossed_bytes = 0;
    for cuts in 0.. {
        assert!(cuts < 40, "no progress: {crossed_bytes} of {whole_bytes}");
        // More than one frame, less than two.
        let link = Link::cut_after(&a, &b, whole_bytes * 2 / 5);
        tokio::select! {
            () = link.in_sync() => {
                crossed_bytes += link.bytes();
                break;
            }
            () = link.ended() => crossed_bytes += link.bytes(),
        }
    }
    equal(&[&a, &b]).await;
    // After each cut a frame is sent again, and the part of the next one that had been written.
    assert!(crossed_bytes < 3 * whole_bytes, "{crossed_bytes} to {whole_bytes}");
    b.check().await;
}

// ---- three -----------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ops_are_passed_on_along_a_chain_both_ways() {
    let a = Node::founder();
    let (b, c) = (a.welcome().await, a.welcome().await);
    a.write_many(0..700, 50).await;
    c.write_many(1_000..1_700, 50).await;
    let ab = Link::between(&a, &b);
    ab.in_sync().await;
    let bc = Link::between(&b, &c);
    equal(&[&a, &b, &c]).await;
    a.write(draft(1, 77)).await;
    c.write(draft(2, 78)).await;
    equal(&[&a, &b, &c]).await;
    ab.in_sync().await;
    bc.in_sync().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_is_known_by_its_introduction_where_its_adding_has_not_been_heard_of() {
    let a = Node::founder();
    let b = a.welcome().await;
    let link = Link::between(&a, &b);
    link.in_sync().await;
    link.close().await;
    let c = a.welcome().await;
    let link = Link::between(&a, &c);
    link.in_sync().await;
    link.close().await;
    c.write(draft(5, 5)).await;
    let _bc = Link::between(&b, &c);
    until("what c wrote", async || b.has(5).await).await;
    equal(&[&b, &c]).await;
}

// ---- slow, broken, hostile -------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_reads_nothing_stalls_nobody_and_is_sent_no_more_than_it_takes() {
    let a = Node::founder();
    a.write_many(0..1_200, 4_000).await;
    let stuck_node = a.welcome().await;
    let mut stuck = Puppet::beside(&a, &stuck_node).await;
    stuck.greet().await;
    stuck.say(JournalMessage::Clock(Clock::default())).await;
    // It has sent an empty clock, and reads nothing from now on.
    let b = a.welcome().await;
    let link = Link::between(&a, &b);
    link.in_sync().await;
    a.write(draft(9_999, 10)).await;
    equal(&[&a, &b]).await;
    assert_eq!(stuck.view().state, JournalPeerState::CatchingUp);
    assert!(stuck.taken_bytes() <= 2 * node::PIPE_BYTES, "{}", stuck.taken_bytes());
    // It reads again and gets everything.
    until(
        "all of it",
        async || matches!(stuck.hear().await, JournalMessage::Clock(clock) if clock.drained),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_op_that_its_author_did_not_sign_ends_the_stream_and_leaves_no_trace() {
    let a = Node::founder();
    let b = a.welcome().await;
    b.write_many(0..3, 20).await;
    let good = b.ops().await;
    let before = a.clock().await;
    let spoil: [fn(&mut SignedOp); 3] = [
        |op| op.sig[7] ^= 1,
        |op| {
            let mut body = op.body.to_vec();
            *body.last_mut().unwrap() ^= 1;
            op.body = body.into();
        },
        |op| op.log.nonce[0] ^= 1,
    ];
    for spoil in spoil {
        let mut liar = Puppet::beside(&a, &b).await;
        liar.greet().await;
        liar.say(JournalMessage::Clock(Clock::default())).await;
        let mut ops = good.clone();
        spoil(ops.last_mut().unwrap());
        liar.say(JournalMessage::Ops(Ops { ops, has_more: false })).await;
        let ended = liar.ended().await;
        assert!(matches!(ended, Ended::Session(End::Protocol(_))), "{ended}");
        assert_eq!(ended.close_code(), CloseCode::Protocol);
        // The valid ops before the bad one in the batch are refused too.
        assert_eq!(a.clock().await, before);
    }
    let _link = Link::between(&a, &b);
    equal(&[&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_hears_nothing_but_a_refusal() {
    let a = Node::founder();
    a.write(draft(1, 10)).await;
    let other = Node::founder();
    let mut stranger = Puppet::beside(&a, &other).await;
    let group = a.group().await;
    let hello =
        Hello { version: VERSION, group, now_ms: wall_ms() as i64, intro: Vec::new(), features: 0 };
    stranger.say(JournalMessage::Hello(hello)).await;
    let JournalMessage::Refuse(refuse) = stranger.hear().await else { panic!("not a refusal") };
    assert_eq!(refuse.code, RefuseCode::NotMember);
    assert_eq!(stranger.ended().await.close_code(), CloseCode::NotMember);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_is_removed_is_shut_out_in_the_midst_of_a_stream() {
    let a = Node::founder();
    let b = a.welcome().await;
    let link = Link::between(&a, &b);
    link.in_sync().await;
    let b_id = b.id();
    a.journal.run(move |journal, now_ms| journal.remove(&b_id, now_ms)).await.unwrap();
    let (here, there) = link.ends().await;
    assert_eq!(here.close_code(), CloseCode::Removed, "{here}");
    assert!(there.is_peers_to_close(), "{there}");
    // It is not admitted again.
    let (here, _) = Link::between(&a, &b).ends().await;
    assert_eq!(here.close_code(), CloseCode::Removed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_op_from_the_future_is_held_back_and_shown_and_the_rest_goes_on() {
    let a = Node::founder();
    let b = a.welcome().await;
    let ahead =
        |journal: &mut Journal, now_ms: u64| journal.write(&[draft(1, 10)], now_ms + 3_600_000);
    b.journal.run(ahead).await.unwrap();
    let link = Link::between(&a, &b);
    until("the hold", async || link.views().0.held_logs == 1).await;
    until("the refusal", async || link.views().1.refused.is_some()).await;
    let (here, there) = link.views();
    assert_eq!(here.held[0].seq, Some(1));
    assert_eq!(there.refused.unwrap().seq, Some(1));
    a.write(draft(2, 10)).await;
    until("the other op", async || b.has(2).await).await;
    assert!(!a.has(1).await);
    assert_ne!(link.views().0.state, JournalPeerState::InSync);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_that_are_too_far_apart_are_said_to_be() {
    let a = Node::founder();
    for (minutes, is_said) in [(9, false), (-9, false), (11, true), (-11, true)] {
        let b = a.welcome().await;
        let mut early = Puppet::beside(&a, &b).await;
        let now_ms = wall_ms() as i64 + minutes * 60_000;
        let hello = Hello {
            version: VERSION,
            group: a.group().await,
            now_ms,
            intro: Vec::new(),
            features: 0,
        };
        early.say(JournalMessage::Hello(hello)).await;
        until("the greeting", async || early.view().state != JournalPeerState::Greeting).await;
        let skew_ms = early.view().skew_ms;
        assert_eq!(skew_ms.is_some(), is_said, "{minutes} min");
        assert!(skew_ms.is_none_or(|skew_ms| (skew_ms - minutes * 60_000).abs() < 30_000));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_author_that_floods_is_held_back_and_shown_and_the_rest_goes_on() {
    let a = Node::founder();
    let (b, c) = (a.welcome().await, a.welcome().await);
    let b_id = b.id();
    a.set_quota(&b_id, Some(100_000));
    b.write_many(0..500, 1_000).await;
    let (ab, ac) = (Link::between(&a, &b), Link::between(&a, &c));
    until("the hold", async || ab.views().0.held_logs == 1).await;
    until("the refusal", async || ab.views().1.refused.is_some()).await;
    assert!(ab.views().0.held[0].reason.contains("space"), "{:?}", ab.views().0.held);
    let held_bytes = async |node: &Node| {
        let stats = node.journal.read(|reader| reader.stats()).await.unwrap();
        let of_b = stats.logs.iter().filter(|log| log.author == b_id);
        of_b.map(|log| log.bytes).sum::<u64>()
    };
    assert!(held_bytes(&a).await <= 100_000);
    // Another device writes, and that reaches the flooder too.
    c.write(draft(1_000, 10)).await;
    until("what another writes", async || a.has(1_000).await && b.has(1_000).await).await;
    assert!(held_bytes(&a).await <= 100_000);
    a.set_quota(&b_id, None);
    ab.close().await;
    let _ab = Link::between(&a, &b);
    equal(&[&a, &b, &c]).await;
    ac.in_sync().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_put_back_unnoticed_is_named_and_nothing_is_lost() {
    let a = Node::founder();
    let b = a.welcome().await;
    b.write(draft(1, 10)).await;
    let backup = b.copy();
    b.write(draft(2, 10)).await;
    let link = Link::between(&a, &b);
    equal(&[&a, &b]).await;
    link.close().await;
    let b = b.sleep().await.put_back(&backup);
    b.write(draft(3, 10)).await;
    let _link = Link::between(&a, &b);
    equal(&[&a, &b]).await;
    for n in [1, 2, 3] {
        assert!(a.has(n).await && b.has(n).await, "record {n}");
    }
    let forked = tokio::sync::watch::channel(Vec::new());
    let mut seen = forked.1;
    tokio::select! {
        () = a.replication().watch_forks(&forked.0) => {}
        changed = tokio::time::timeout(SOON, seen.changed()) => changed.unwrap().unwrap(),
    }
    assert_eq!(seen.borrow().len(), 1);
}

// ---- crashes and the disk --------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_it_takes_in_a_device_loses_nothing_it_has_acknowledged() {
    let a = Node::founder();
    let mut b = a.welcome().await;
    let b_id = b.id();
    let acked = || a.acks_of(b_id).into_values().sum::<u64>();
    for (round, more) in (0..).zip([1, 300, 600, 900]) {
        // Acknowledgements are recorded from time to time, each for everything that arrived by
        // then.
        a.write_many(round * 2_000..(round + 1) * 2_000, 100).await;
        let asleep = b.sleep().await;
        let (mut child, stream) = asleep.lend(a.id()).await;
        let enough = acked() + more;
        let tie = Tie::to(&a, b_id, stream);
        until("acknowledgements", async || acked() >= enough).await;
        child.kill().unwrap();
        child.wait().unwrap();
        tie.end().await;
        b = asleep.wake();
        b.check().await;
        let clock = b.clock().await;
        let has: BTreeMap<_, _> =
            clock.entries.iter().map(|entry| (entry.log, entry.seq)).collect();
        for (log, seq) in a.acks_of(b_id) {
            assert!(has.get(&log).copied().unwrap_or(0) >= seq, "{log}: {seq} was acknowledged");
        }
    }
    let _link = Link::between(&a, &b);
    equal(&[&a, &b]).await;
}

/// Not a test: the child process of the one before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    node::child_main().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changes_nothing_writes_nothing_to_the_disk() {
    let a = Node::founder();
    let b = a.welcome().await;
    a.write_many(0..20, 20).await;
    let link = Link::between(&a, &b);
    link.in_sync().await;
    equal(&[&a, &b]).await;
    a.acked_by(&b).await;
    b.acked_by(&a).await;
    link.close().await;
    let (before_a, before_b) = (a.on_disk(), b.on_disk());
    for _ in 0..2 {
        let link = Link::between(&a, &b);
        link.in_sync().await;
        link.close().await;
    }
    a.journal.run(|journal, now_ms| journal.prune(now_ms, 1_000)).await.unwrap();
    assert_eq!(a.on_disk(), before_a);
    assert_eq!(b.on_disk(), before_b);
}
