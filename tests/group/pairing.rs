//! Pairings that break off at each step, on either side: no device lists one that has not joined,
//! and the next pairing works.

use can_sync::agent::handle::{RequestError, TicketTerms};
use can_sync::clock::wall_ms;
use can_sync::core::joining::{PairAccept, PairOffer};
use can_sync::net::pairing::{Joiner, ask, receive};
use can_sync::net::ticket::Ticket;
use can_sync::net::{Accepted, Admission, Net, NetConfig, Verdict};
use can_sync::replica::status::PairingState;
use can_sync::state::identity::Identity;
use can_sync::state::journal::verify;

use super::*;

/// The network of a device whose agent is not running.
async fn net_of(device: &Device) -> Net {
    let lock = device.home.lock().unwrap();
    let identity = Identity::load_or_create(&device.home, &lock).unwrap();
    let config = NetConfig {
        offline: true,
        bind: Some("127.0.0.1:0".parse().unwrap()),
        ..NetConfig::new(identity.secret_key)
    };
    Net::bind(config).await.unwrap()
}

fn joiner(name: &str) -> Joiner {
    Joiner {
        device_name: name.into(),
        addresses: Vec::new(),
        hash_algorithm: HashAlgorithm::Blake3,
        verify: false,
    }
}

fn is_alone(device: &Device) -> bool {
    device.status().peers.is_empty()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joiner_that_breaks_off_at_any_step_is_listed_nowhere_and_pairs_the_next_time() {
    let a = Device::start().await;
    let mut b = Device::new();
    for is_accepted in [false, true] {
        let net = net_of(&b).await;
        let ticket: Ticket = ticket(&a).await.parse().unwrap();
        let mut joining = ask(&net, &ticket, joiner("b"), wall_ms()).await.unwrap();
        if is_accepted {
            joining.confirm().await.unwrap();
        }
        drop(joining);
        net.close().await;
        assert!(is_alone(&a));
        let only_a = BTreeMap::from([(a.node_id, true)]);
        assert_eq!(members(&a).await, only_a, "accepted: {is_accepted}");
    }
    b.up().await;
    pair(&a, &b).await;
    all_in_sync(&[&a, &b], 1).await;
    assert_eq!(members(&a).await, members(&b).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inviter_that_breaks_off_at_any_step_is_listed_nowhere_and_pairs_the_next_time() {
    let (mut a, b) = (Device::new(), Device::start().await);
    let group_id = b.status().device.group_id;
    for steps in 0..4 {
        let net = net_of(&a).await;
        let mut incoming = net.acceptor(Admission {
            verdict: Box::new(|_| Verdict::Stranger),
            pairing_open: Box::new(|| true),
            introductions_open: Box::new(|| false),
        });
        let (inviter, addresses) = (net.node_id(), net.addresses());
        let ticket = Ticket { inviter, addresses, secret: [7; 16], expires_ms: wall_ms() + 60_000 };
        let hosting = async {
            let Some(Accepted::Pairing(connection)) = incoming.next().await else { panic!() };
            if steps == 0 {
                return;
            }
            let mut hosting = receive(connection).await.unwrap();
            let offer = PairOffer {
                group_id: can_sync::core::ids::GroupId([7; 32]),
                nonce: [8; 32],
                members: 2,
                device_name: "a".into(),
                now_ms: wall_ms(),
                verify: false,
            };
            if steps > 1 {
                hosting.offer(inviter, &offer).await.unwrap();
            }
            if steps > 2 {
                hosting.confirmed(false).await.unwrap();
                // An invalid introduction: the joiner does not join.
                assert!(hosting.accept(&PairAccept { intro: Vec::new() }).await.is_err());
            }
        };
        let handle = b.handle();
        let (refused, ()) = tokio::join!(handle.pair(ticket.to_string()), hosting);
        assert!(refused.is_err());
        net.close().await;
        assert!(is_alone(&b));
        assert_eq!(b.status().device.group_id, group_id, "after {steps} steps");
    }
    a.up().await;
    pair(&a, &b).await;
    all_in_sync(&[&a, &b], 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_of_a_device_that_has_none_open_is_refused_and_not_called_broken_off() {
    let (a, b, c) = (Device::start().await, Device::start().await, Device::start().await);
    let ticket = ticket(&a).await;
    b.handle().pair(ticket.clone()).await.unwrap();
    // The connection may be closed before or after the joiner's stream is open.
    for _ in 0..20 {
        let refused = c.handle().pair(ticket.clone()).await.unwrap_err();
        assert!(matches!(refused, RequestError::Refused(_)), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joiner_whose_last_word_was_lost_is_a_member_when_it_comes_back() {
    let a = Device::start().await;
    let mut b = Device::new();
    let net = net_of(&b).await;
    let ticket: Ticket = ticket(&a).await.parse().unwrap();
    let mut joining = ask(&net, &ticket, joiner("b"), wall_ms()).await.unwrap();
    let intro = joining.confirm().await.unwrap().intro;
    let group = joining.offer().group_id;
    let lock = b.home.lock().unwrap();
    let identity = Identity::load_or_create(&b.home, &lock).unwrap();
    drop(lock);
    let mut journal = Journal::open(&b.home.journal_db_path(), &identity, [3; 32]).unwrap();
    let intro: Vec<_> = intro.into_iter().map(|op| verify(&group, op).unwrap()).collect();
    journal.join(group, &intro, wall_ms()).unwrap();
    journal.reached(&a.node_id, &ticket.addresses).unwrap();
    drop((journal, joining));
    net.close().await;
    assert!(is_alone(&a), "it has not heard of the joiner");

    b.up().await;
    all_in_sync(&[&a, &b], 1).await;
    assert_eq!(members(&a).await, members(&b).await);
    // It is a member like any other.
    write(&b, with_text("first", "text", "of b")).await;
    same_journal(&[&a, &b]).await;
}

/// The digits that a device wants people to compare, once it shows them.
async fn digits(device: &Device) -> String {
    let shown = || device.status().pairings.into_iter().find(|p| p.state == PairingState::Compare);
    until("digits are shown", &[device], async || shown().is_some()).await;
    shown().unwrap().short_code
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_verify_on_either_side_nothing_is_shared_before_both_have_confirmed() {
    for inviter_asks in [true, false] {
        let (a, b) = (Device::start().await, Device::start().await);
        a.add([7; 3]).await;
        let ttl = Duration::from_secs(60);
        let made = match inviter_asks {
            true => a.handle().ticket_on(TicketTerms { ttl, verify: true, uses: 1 }).await,
            false => a.handle().ticket(ttl).await,
        };
        let ticket = made.unwrap().ticket;
        keep_secret(ticket.as_bytes());
        let handle = b.handle();
        let pairing = tokio::spawn(async move {
            match inviter_asks {
                true => handle.pair(ticket).await,
                false => handle.pair_to_verify(ticket).await,
            }
        });
        let code = digits(&a).await;
        assert_eq!(digits(&b).await, code, "both show the same");
        let wrong = b.handle().confirm("0000 0000 0000".into(), true).await.unwrap_err();
        assert!(matches!(wrong, RequestError::Unknown(_)), "{wrong:?}");
        let first = if inviter_asks { &a } else { &b };
        first.handle().confirm(code.clone(), true).await.unwrap();
        let only_a = BTreeMap::from([(a.node_id, true)]);
        assert!(is_alone(&a) && is_alone(&b) && members(&a).await == only_a);
        assert!(!pairing.is_finished() && b.hashes().await.is_empty());
        let second = if inviter_asks { &b } else { &a };
        second.handle().confirm(code.clone(), true).await.unwrap();
        assert_eq!(pairing.await.unwrap().unwrap().short_code, code);
        all_in_sync(&[&a, &b], 1).await;
        assert_eq!(b.hashes().await.len(), 3);
        for device in [&a, &b] {
            until("it is shown as paired", &[device], async || {
                let pairings = device.status().pairings;
                pairings.len() == 1 && pairings[0].state == PairingState::Paired
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn digits_that_differ_on_either_side_end_the_pairing_with_nobody_added() {
    let (a, b) = (Device::start().await, Device::start().await);
    for inviter_refuses in [true, false] {
        let terms = TicketTerms { ttl: Duration::from_secs(60), verify: true, uses: 1 };
        let ticket = a.handle().ticket_on(terms).await.unwrap().ticket;
        keep_secret(ticket.as_bytes());
        let handle = b.handle();
        let pairing = tokio::spawn(async move { handle.pair(ticket).await });
        let (at_a, at_b) = (digits(&a).await, digits(&b).await);
        let (refuses, code) = if inviter_refuses { (&a, at_a) } else { (&b, at_b) };
        refuses.handle().confirm(code, false).await.unwrap();
        let refused = pairing.await.unwrap().unwrap_err();
        assert!(refused.to_string().contains("not confirmed"), "{refused}");
        until("nothing is shown", &[&a, &b], async || {
            a.status().pairings.is_empty() && b.status().pairings.is_empty()
        })
        .await;
        assert!(is_alone(&a) && is_alone(&b));
        assert_eq!(members(&a).await, BTreeMap::from([(a.node_id, true)]));
    }
    pair(&a, &b).await;
    all_in_sync(&[&a, &b], 1).await;
}
