//! Alerts about what only a device that misbehaves does: wrong content, a wrong clock.

use can_sync::core::alerts::Kind as AlertKind;
use can_sync::store::{Metadata, NewAsset};

use super::*;
use common::group::alert;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_content_is_an_alert_until_another_device_has_sent_the_asset() {
    let _shared = PROCESS.read().await;
    let (victim, honest) = victim_and_honest().await;
    let member = Member::join(&victim).await;
    let (good, wrong) = (content(1 << 43, 1000), content(1 << 44, 1000));
    let named = digest(HashAlgorithm::Blake3, &good);
    let entry = peer::OfferEntry {
        hash: Bytes::copy_from_slice(named.hash.as_bytes()),
        size_bytes: 1000,
        inline: true,
    };
    let offer = peer::Offer { entries: vec![entry], solicited: false };
    let bytes = peer::Content { index: 0, bytes: wrong, hash: Bytes::new() };
    let contents = peer::Contents { contents: vec![bytes] };
    let control = member.greet().await;
    let (mut send, _recv) = control.connection.open_stream(0).await.unwrap();
    let batch = [
        frame(Kind::Offer, &offer.encode_to_vec()),
        frame(Kind::Contents, &contents.encode_to_vec()),
        frame(Kind::Done, b""),
    ];
    let _ = send.write_all(&batch.concat()).await;
    let _ = send.shutdown().await;
    control.closed_with(CloseCode::Protocol, "wrong bytes").await;
    let stands = || alert(&victim, AlertKind::Quarantined);
    until("it is an alert", &[&victim], async || stands().is_some()).await;
    let text = stands().unwrap().text;
    assert!(text.contains("their content was wrong"), "{text}");
    let asset = NewAsset { digest: named, content: good, metadata: Metadata::default() };
    honest.store().put(vec![asset]).await.unwrap().remove(0).unwrap();
    until("it has ended", &[&victim, &honest], async || stands().is_none()).await;
    assert!(victim.hashes().await.contains(&named.hash));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_whose_clock_is_an_hour_ahead_is_an_alert_until_its_clock_is_right() {
    const HOUR_MS: i64 = 60 * 60 * 1000;
    let _shared = PROCESS.read().await;
    let (victim, _honest) = victim_and_honest().await;
    let member = Member::join(&victim).await;
    let stands = || alert(&victim, AlertKind::ClockOff);
    for ahead_ms in [HOUR_MS, 0] {
        let control = member.greet().await;
        let (mut send, _recv) = control.connection.open_stream(0).await.unwrap();
        let now_ms = wall_ms() as i64 + ahead_ms;
        let hello = journal::Hello {
            version: VERSION,
            group: member.group_id,
            now_ms,
            intro: Vec::new(),
            features: 0,
        };
        let (kind, payload) = encode_message(&JournalMessage::Hello(hello));
        send.write_all(&frame(kind, &payload)).await.unwrap();
        send.flush().await.unwrap();
        if ahead_ms == 0 {
            until("it has ended", &[&victim], async || stands().is_none()).await;
        } else {
            until("it is an alert", &[&victim], async || stands().is_some()).await;
            let said = stands().unwrap();
            assert_eq!(said.device, Some(member.net.node_id()));
            assert!(said.text.contains("ahead of this device's"), "{}", said.text);
        }
        control.connection.close(CloseCode::Ok, "");
    }
}
