//! A member that lies about what it holds, or floods the victim with requests for proofs.

use can_sync::copies::gathered::{GatherOutcome, GatherRequest, Gathered, Purpose};
use can_sync::core::ids::Digest;

use super::*;

async fn evict(victim: &Device, asset: Digest) -> Gathered {
    let purpose = Purpose::Evict { dry_run: false };
    let request = GatherRequest { hashes: vec![asset.hash], copies: 1, sites: 1, purpose };
    let mut told = victim.handle().gather(request).await.unwrap();
    timeout(SOON, told.recv()).await.expect("it ends").expect("an outcome")
}

fn prove(hashes: &[Hash]) -> peer::Prove {
    let hashes = hashes.iter().map(|hash| Bytes::copy_from_slice(hash.as_bytes())).collect();
    let nonce = Bytes::from_static(&[5; 32]);
    peer::Prove { nonce, hashes, lease: true, groups: Vec::new() }
}

/// Greets as a device that can prove.
async fn greet(member: &Member) -> Control {
    let mut control = member.connect().await;
    let hello = peer::Hello { features: vec!["proofs".into()], ..member.hello() };
    control.send(Kind::Hello, &hello).await;
    let mut reader = FrameReader::new(&mut control.recv, Some(SOON));
    assert_eq!(reader.read().await.unwrap().unwrap().kind, Kind::Hello);
    control
}

async fn ask(control: &Control, prove: &peer::Prove) -> Option<peer::Proofs> {
    let (mut send, recv) = control.connection.open_stream(0).await.unwrap();
    send.write_all(&frame(Kind::Prove, &prove.encode_to_vec())).await.unwrap();
    send.flush().await.unwrap();
    let mut reader = FrameReader::new(recv, Some(SOON));
    loop {
        let answer = reader.read().await.ok()??;
        if answer.kind == Kind::Proofs {
            return Some(peer::Proofs::decode(answer.payload).unwrap());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_proves_wrongly_three_times_is_named_and_nothing_is_evicted() {
    let _shared = PROCESS.read().await;
    let victim = Device::start().await;
    let assets = victim.add([1000, 400_000, 2000]).await;
    victim.handle().check().await.unwrap();
    let member = Member::join(&victim).await;
    let control = greet(&member).await;
    for asset in assets {
        let answer = async {
            loop {
                let (mut send, recv) = control.connection.accept_stream(0).await.unwrap();
                let mut reader = FrameReader::new(recv, Some(SOON));
                let Ok(Some(asked)) = reader.read().await else { continue };
                if asked.kind != Kind::Prove {
                    continue;
                }
                let mut entry = peer::ProofEntry {
                    proof: Bytes::from_static(&[1; 32]),
                    lease_ms: u64::MAX,
                    ..peer::ProofEntry::default()
                };
                entry.set_outcome(peer::proof_entry::Outcome::Holds);
                let proofs = peer::Proofs { entries: vec![entry] };
                send.write_all(&frame(Kind::Proofs, &proofs.encode_to_vec())).await.unwrap();
                send.shutdown().await.unwrap();
                return;
            }
        };
        let (gathered, ()) = tokio::join!(evict(&victim, asset), answer);
        assert_eq!(gathered.outcome, GatherOutcome::Refused, "{gathered:?}");
        assert!(gathered.lacking[0].why.contains("wrong proof"), "{gathered:?}");
        assert!(victim.store().lookup(asset.hash).await.unwrap().unwrap().is_held());
    }
    let named = || was_logged(&["a proof was wrong", "count=3"]);
    until("it is named", &[&victim], async || named()).await;
    control.connection.close(CloseCode::Ok, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_gets_no_proof_of_what_is_not_held_and_a_flood_is_answered_busy() {
    let _shared = PROCESS.read().await;
    let (victim, honest) = victim_and_honest().await;
    let held = victim.add([1000, 3_000_000]).await;
    victim.handle().check().await.unwrap();
    let member = Member::join(&victim).await;
    let control = greet(&member).await;
    let nowhere = Hash([9; 32]);
    let proofs = ask(&control, &prove(&[held[0].hash, nowhere])).await.unwrap();
    let outcomes: Vec<_> = proofs.entries.iter().map(peer::ProofEntry::outcome).collect();
    use peer::proof_entry::Outcome;
    assert_eq!(outcomes, [Outcome::Holds, Outcome::NotHeld]);
    let lease_ms = proofs.entries[0].lease_ms;
    assert!((900_000..960_000).contains(&lease_ms), "{lease_ms}");

    let request = prove(&[held[1].hash]);
    let flood = (0..12).map(|_| ask(&control, &request));
    let answers = futures_util::future::join_all(flood).await;
    let of = |outcome| {
        let is = |proofs: &&peer::Proofs| proofs.entries[0].outcome() == outcome;
        answers.iter().flatten().filter(is).count()
    };
    assert!(of(Outcome::Holds) >= 1 && of(Outcome::Busy) >= 1, "{answers:?}");
    assert_eq!(of(Outcome::Holds) + of(Outcome::Busy), 12, "{answers:?}");
    still_syncs(&victim, &honest).await;

    // Beyond a bound.
    let many: Vec<Hash> = (0..65).map(|n| Hash([n; 32])).collect();
    assert_eq!(ask(&control, &prove(&many)).await, None);
    control.closed_with(CloseCode::Protocol, "65 hashes").await;
    still_syncs(&victim, &honest).await;
}
